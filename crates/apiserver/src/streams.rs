//! Who runs the answers of one connection, and when the connection gets its turn.
//!
//! The requests of an HTTP/2 connection run beside one another: the answer to each begins as a task of its own. A watch has most of
//! the time nothing to say, and then not alone: one change has many watchers. So it says that it stays ([`Place::stay`]), and its
//! answer, as it is, moves into the connection's own task. That is woken once for a change; in one turn all watches say their
//! lines, HTTP/2 makes frames of them, and what came of it goes out ([`Outlet`]).
//!
//! Whoever wakes many says so ([`together`]): a connection gets its turn when all have been woken, not from the first on.
//!
//! What must stay true: whatever moved here is polled by the connection's task alone, before the connection itself. That is why
//! nobody has to be woken for what it does there.

use crate::{BoxError, gathered::Outlet};
use futures::task::AtomicWaker;
use hyper::rt::Executor;
use parking_lot::Mutex;
use slab::Slab;
use std::{
    cell::RefCell,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::coop::unconstrained,
};

/// The answer to a request, on its way.
type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// So often an answer is polled in one turn if it goes on asking for it.
const POLLS_MAX: usize = 3;

/// Where the answer to one request runs. Found among the extensions of HTTP/2 requests.
#[derive(Clone)]
pub struct Place(Arc<Call>);

impl Place {
    /// Says that the answer has no end of its own, and mostly waits: it moves into the connection's task as soon as it does.
    pub fn stay(&self) {
        self.0.stays.store(true, SeqCst);
    }

    /// Says, while it is polled, that it looks at everything from here on: it need not be polled again for what woke it before.
    ///
    /// HTTP/2 wakes whoever asks it for room, also when it has given it at once and that has been seen.
    pub fn look(&self) {
        let _ = self.0.state.compare_exchange(POLLED | ASKED, POLLED, SeqCst, SeqCst);
    }

    fn stays(&self) -> bool {
        self.0.stays.load(SeqCst)
    }
}

/// The answers of a connection, for those who begin them.
#[derive(Clone, Default)]
pub struct Streams(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The place of the request whose answer begins next.
    next: Mutex<Option<Place>>,
    /// Those who stay and have not been taken in yet.
    arriving: Mutex<Vec<(Stream, Arc<Call>)>>,
    /// Those who stay and have been woken since the last turn.
    woken: Mutex<Vec<usize>>,
    /// Whether the task has been woken for one of these.
    called: AtomicBool,
    /// [`BEFORE`] and [`SPOKEN`]. Always changed as it is read: so each side sees what the other did before.
    turn: AtomicU8,
    task: AtomicWaker,
}

/// The connection is about to be polled: whoever wakes it need wake nobody.
const BEFORE: u8 = 1;
/// Somebody has woken the connection.
const SPOKEN: u8 = 2;

impl Streams {
    /// The place of a request whose answer is the next to be given to this executor.
    pub fn place(&self) -> Place {
        let place = self.somewhere();
        *self.0.next.lock() = Some(place.clone());
        place
    }

    fn somewhere(&self) -> Place {
        let (stays, key, state) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX), AtomicU8::new(0));
        Place(Arc::new(Call { stays, key, state, shared: self.0.clone() }))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (shared, place) = (self.0.clone(), self.0.next.lock().take().unwrap_or_else(|| self.somewhere()));
        let mut stream: Stream = Box::pin(stream);
        tokio::spawn(async move {
            let over = poll_fn(|cx| match stream.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending if place.stays() => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            if !over.await {
                shared.arriving.lock().push((stream, place.0));
                shared.task.wake();
            }
        });
    }
}

/// The connection itself is woken.
impl Wake for Shared {
    fn wake(self: Arc<Shared>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Shared>) {
        if self.turn.fetch_or(SPOKEN, SeqCst) & BEFORE == 0 {
            self.task.wake();
        }
    }
}

/// The answer to one request; what wakes it once it stays.
struct Call {
    stays: AtomicBool,
    /// Which of those who stay it is.
    key: AtomicUsize,
    /// [`ASKED`] and [`POLLED`], or neither while it waits.
    state: AtomicU8,
    shared: Arc<Shared>,
}

/// It has been woken, and will be polled.
const ASKED: u8 = 1;
/// It is being polled, by the one who looks afterwards whether it was woken meanwhile.
const POLLED: u8 = 2;

impl Call {
    fn put(self: &Arc<Call>) {
        self.shared.woken.lock().push(self.key.load(SeqCst));
        if !self.shared.called.swap(true, SeqCst) {
            let later = TOGETHER.with_borrow_mut(|later| later.as_mut().map(|later| later.push(self.shared.clone())));
            if later.is_none() {
                self.shared.task.wake();
            }
        }
    }
}

impl Wake for Call {
    fn wake(self: Arc<Call>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Call>) {
        if self.state.fetch_or(ASKED, SeqCst) == 0 {
            self.put();
        }
    }
}

thread_local! {
    /// Whose task is woken when all have been; `None` while they are woken one by one.
    static TOGETHER: RefCell<Option<Vec<Arc<Shared>>>> = const { RefCell::new(None) };
}

/// Does something that wakes many, and lets none of their connections have its turn before it is done.
pub fn together(wake: impl FnOnce()) {
    let outer = TOGETHER.replace(Some(Vec::new()));
    wake();
    for shared in TOGETHER.replace(outer).into_iter().flatten() {
        shared.task.wake();
    }
}

/// One of those who stay.
struct Staying {
    stream: Stream,
    call: Arc<Call>,
    waker: Waker,
}

impl Staying {
    /// Lets it say what it has, which is at most as much as HTTP/2 takes of it. Returns whether it is over.
    fn speak(&mut self) -> bool {
        for _ in 0..POLLS_MAX {
            self.call.state.store(POLLED, SeqCst);
            let polled = pin!(unconstrained(&mut self.stream)).poll(&mut Context::from_waker(&self.waker));
            if polled.is_ready() {
                return true;
            }
            if self.call.state.compare_exchange(POLLED, 0, SeqCst, SeqCst).is_ok() {
                return false;
            }
        }
        self.call.state.store(ASKED, SeqCst);
        self.call.put();
        false
    }
}

/// A connection with the answers that stay, turn by turn.
pub struct Turns<S> {
    shared: Arc<Shared>,
    staying: Slab<Staying>,
    /// Room for those who are woken, kept from turn to turn.
    woken: Vec<usize>,
    outlet: Outlet<S>,
    waker: Waker,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Turns<S> {
    pub fn new(streams: &Streams, outlet: Outlet<S>) -> Turns<S> {
        let shared = streams.0.clone();
        Turns { waker: Waker::from(shared.clone()), shared, staying: Slab::new(), woken: Vec::new(), outlet }
    }

    /// Runs the connection to its end. May be given up and begun again with the same one.
    pub async fn run<F>(&mut self, mut connection: Pin<&mut F>) -> Result<(), BoxError>
    where
        F: Future<Output = Result<(), BoxError>>,
    {
        poll_fn(|cx| self.turn(cx, connection.as_mut())).await
    }

    fn turn<F>(&mut self, cx: &mut Context<'_>, connection: Pin<&mut F>) -> Poll<Result<(), BoxError>>
    where
        F: Future<Output = Result<(), BoxError>>,
    {
        self.shared.task.register(cx.waker());
        self.shared.turn.swap(BEFORE, SeqCst);
        self.take_in();
        self.shared.called.store(false, SeqCst);
        std::mem::swap(&mut self.woken, &mut *self.shared.woken.lock());
        for key in self.woken.drain(..) {
            if self.staying.get_mut(key).is_some_and(Staying::speak) {
                self.staying.remove(key);
            }
        }
        let spoken = self.shared.turn.swap(0, SeqCst) & SPOKEN != 0;
        let over = connection.poll(&mut Context::from_waker(&self.waker));
        match self.outlet.poll_turn(cx, !spoken) {
            Poll::Ready(Err(error)) if over.is_pending() => Poll::Ready(Err(error.into())),
            _ => over,
        }
    }

    fn take_in(&mut self) {
        let arriving = std::mem::take(&mut *self.shared.arriving.lock());
        for (stream, call) in arriving {
            let place = self.staying.vacant_entry();
            call.key.store(place.key(), SeqCst);
            call.state.store(ASKED, SeqCst);
            call.put();
            place.insert(Staying { stream, waker: Waker::from(call.clone()), call });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gathered::outlet;
    use tokio::{
        sync::{mpsc, watch},
        task,
    };

    /// A hundred who stay, and one who does not: where each of them runs, and that a change that all see is one turn.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_stays_runs_in_the_task_of_the_connection() {
        const STAYING: usize = 100;
        let (near, _far) = tokio::io::duplex(1000);
        let (streams, turns) = (Streams::default(), Arc::new(AtomicUsize::new(0)));
        let mut running = Turns::new(&streams, outlet(near, true).0);
        let counted = turns.clone();
        let connection = task::spawn(async move {
            let connection = pin!(poll_fn(move |_| {
                counted.fetch_add(1, SeqCst);
                Poll::<Result<(), BoxError>>::Pending
            }));
            running.run(connection).await
        });
        let (say, heard) = watch::channel(0);
        let (tell, mut told) = mpsc::unbounded_channel();
        let stream = |mut heard: watch::Receiver<usize>| {
            let tell = tell.clone();
            async move {
                while heard.changed().await.is_ok() {
                    let _ = tell.send((task::id(), *heard.borrow_and_update()));
                }
            }
        };
        for _ in 0..STAYING {
            streams.place().stay();
            streams.execute(stream(heard.clone()));
        }
        streams.place();
        streams.execute(stream(heard));
        for round in 1.. {
            together(|| say.send(round).unwrap());
            let mut here = 0;
            for _ in 0..=STAYING {
                let (id, said) = told.recv().await.unwrap();
                assert_eq!(said, round);
                here += usize::from(id == connection.id());
            }
            assert!(here <= STAYING);
            // Until then one or the other has not moved yet.
            if here == STAYING {
                break;
            }
        }
        let before = turns.load(SeqCst);
        together(|| say.send(0).unwrap());
        for _ in 0..=STAYING {
            told.recv().await.unwrap();
        }
        assert!(turns.load(SeqCst) <= before + 2, "one by one they would be as many turns as there are of them");
        connection.abort();
    }

    #[tokio::test]
    async fn who_asks_again_and_again_gets_turns_and_who_ends_is_forgotten() {
        let (near, _far) = tokio::io::duplex(1000);
        let streams = Streams::default();
        let mut running = Turns::new(&streams, outlet(near, true).0);
        let (say, mut heard) = mpsc::unbounded_channel();
        let mut left = 100;
        streams.place().stay();
        streams.execute(poll_fn(move |cx| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            let _ = say.send(left);
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let connection = pin!(poll_fn(|_| Poll::<Result<(), BoxError>>::Pending));
        let all = async { while heard.recv().await.is_some() {} };
        tokio::select! {
            _ = running.run(connection) => unreachable!("the connection has no end"),
            () = all => {}
        }
        assert!(running.staying.is_empty());
    }

    #[tokio::test]
    async fn what_woke_somebody_before_they_look_asks_for_no_turn() {
        let (near, _far) = tokio::io::duplex(1000);
        let streams = Streams::default();
        let mut running = Turns::new(&streams, outlet(near, true).0);
        let (say, mut heard) = mpsc::unbounded_channel();
        let place = streams.place();
        place.stay();
        let here = place.clone();
        streams.execute(poll_fn(move |cx| {
            let _ = say.send(cx.waker().clone());
            cx.waker().wake_by_ref();
            here.look();
            Poll::<()>::Pending
        }));
        let mut turn = async || {
            let connection = pin!(poll_fn(|_| Poll::<Result<(), BoxError>>::Pending));
            let _ = futures::poll!(pin!(running.run(connection)));
        };
        // Of the task in which it begins it is no part yet.
        heard.recv().await.unwrap();
        let waker = loop {
            turn().await;
            match heard.try_recv() {
                Ok(waker) if streams.0.arriving.lock().is_empty() && place.0.key.load(SeqCst) != usize::MAX => break waker,
                _ => task::yield_now().await,
            }
        };
        turn().await;
        assert!(heard.try_recv().is_err(), "it was polled again for what it had seen");
        waker.wake();
        turn().await;
        assert!(heard.try_recv().is_ok() && heard.try_recv().is_err(), "it is polled once for what came later");
    }
}
