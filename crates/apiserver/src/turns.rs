//! When a connection gets its turn: after those who were woken to write to it, not after each of them.
//!
//! HTTP/2 wakes a connection for every frame that a stream gives it, and the connection then writes what there is. When one
//! change wakes two hundred watchers on four connections, that is a system call for every frame or two. So whoever wakes many
//! streams says of each that it is expected ([`Turns::expect`]); until all of them have come ([`Turns::arrived`]), the wakes of
//! their connection are held back, and are then one.
//!
//! What must stay true: whoever is expected has been woken and is polled by another task than the connection's own, so that it
//! comes whatever the connection does. Streams of HTTP/2 are such; the body of an HTTP/1.1 answer is not.

use futures::task::AtomicWaker;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A connection gets its turn after so many arrivals even if there is always somebody who is expected.
const ARRIVALS_MAX: usize = 256;

/// The turns of one connection. Found among the extensions of its HTTP/2 requests.
#[derive(Debug, Default)]
pub struct Turns {
    /// Streams that were woken and have not come yet.
    expected: AtomicUsize,
    /// Streams that ever came.
    arrivals: AtomicUsize,
    /// Whether the connection was woken since its last turn.
    due: AtomicBool,
    task: AtomicWaker,
}

impl Turns {
    /// Announces a stream that is about to be woken.
    pub fn expect(&self) {
        self.expected.fetch_add(1, SeqCst);
    }

    /// One that was expected is there.
    pub fn arrived(&self) {
        let arrivals = self.arrivals.fetch_add(1, SeqCst) + 1;
        if self.expected.fetch_sub(1, SeqCst) == 1 || arrivals.is_multiple_of(ARRIVALS_MAX) {
            self.release();
        }
    }

    #[cfg(test)]
    pub fn expected(&self) -> usize {
        self.expected.load(SeqCst)
    }

    fn release(&self) {
        if self.due.swap(false, SeqCst) {
            self.task.wake();
        }
    }

    /// Runs a connection turn by turn.
    pub fn run<'a, F: Future>(self: &Arc<Turns>, mut connection: Pin<&'a mut F>) -> impl Future<Output = F::Output> + use<'a, F> {
        let (turns, waker) = (self.clone(), Waker::from(self.clone()));
        std::future::poll_fn(move |cx| -> Poll<F::Output> {
            turns.task.register(cx.waker());
            connection.as_mut().poll(&mut Context::from_waker(&waker))
        })
    }
}

impl Wake for Turns {
    fn wake(self: Arc<Turns>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Turns>) {
        // Set before the look at who is expected: the last to arrive looks the other way round, and one of the two sees.
        self.due.store(true, SeqCst);
        if self.expected.load(SeqCst) == 0 {
            self.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker_ref;

    #[derive(Default)]
    struct Counted(AtomicUsize);
    impl Wake for Counted {
        fn wake(self: Arc<Counted>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn wakes_wait_for_all_who_are_expected_and_are_then_one() {
        let (turns, woken) = (Arc::new(Turns::default()), Arc::new(Counted::default()));
        let inner = Arc::new(AtomicWaker::new());
        let registered = inner.clone();
        let mut connection = std::pin::pin!(std::future::poll_fn(move |cx| -> Poll<()> {
            registered.register(cx.waker());
            Poll::Pending
        }));
        let task = Waker::from(woken.clone());
        let mut poll = |waker: &Waker| {
            let mut running = std::pin::pin!(turns.run(connection.as_mut()));
            assert!(running.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        };
        poll(&task);
        inner.wake();
        assert_eq!(woken.0.load(SeqCst), 1, "nobody is expected");
        poll(&task);
        turns.expect();
        turns.expect();
        inner.wake();
        turns.arrived();
        poll(noop_waker_ref());
        poll(&task);
        inner.wake();
        assert_eq!(woken.0.load(SeqCst), 1, "one has not arrived");
        turns.arrived();
        assert_eq!(woken.0.load(SeqCst), 2);
        poll(&task);
        turns.expect();
        turns.arrived();
        assert_eq!(woken.0.load(SeqCst), 2, "the connection had nothing to do");
        turns.expect();
        inner.wake();
        for _ in 0..ARRIVALS_MAX {
            turns.expect();
            turns.arrived();
        }
        assert_eq!(woken.0.load(SeqCst), 3, "there is always somebody expected");
    }
}
