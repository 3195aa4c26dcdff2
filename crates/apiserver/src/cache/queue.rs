//! What one watcher has not taken yet: a bounded queue from the cache to one reader.
//!
//! Putting in and waking are two steps ([`Wakes`]): a change is first put into the queues of all who see it, under the cache's
//! lock, and then they are woken, so that nobody runs against the rest of the round. A reader that writes to a connection with
//! others says so ([`Receiver::writes_to`]), and is expected there from its wake until it has come.
//!
//! What must stay true: a reader is expected only while it waits in [`Receiver::recv`]; it has arrived as soon as that is
//! polled or given up.

use super::resource::Message;
use crate::turns::Turns;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::task::coop;

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    /// The reader, while it waits.
    waiting: Option<Waker>,
    /// Whether its connection expects it.
    expected: bool,
    /// Whether one of the two ends is gone.
    closed: bool,
    connection: Option<Arc<Turns>>,
}

impl State {
    /// The connection to be told that the reader is there.
    fn arrived(&mut self) -> Option<Arc<Turns>> {
        if std::mem::take(&mut self.expected) { self.connection.clone() } else { None }
    }
}

/// Readers to be woken when the round is over, at the latest when this is dropped.
#[derive(Default)]
#[must_use]
pub struct Wakes(Vec<Waker>);

impl Drop for Wakes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

/// A queue of at most `most` messages.
pub fn queue(most: usize) -> (Sender, Receiver) {
    let state = Arc::new(Mutex::new(State::default()));
    (Sender { state: state.clone(), most }, Receiver(state))
}

/// The cache's end. The reader sees the end of the queue when this is dropped.
pub struct Sender {
    state: Arc<Mutex<State>>,
    most: usize,
}

impl Sender {
    /// Puts in a message; `false` if there is no room, or nobody to read it.
    #[must_use]
    pub fn put(&self, message: Message, wakes: &mut Wakes) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.messages.len() >= self.most {
            return false;
        }
        state.messages.push_back(message);
        if let Some(waker) = state.waiting.take() {
            if let Some(connection) = &state.connection {
                connection.expect();
                state.expected = true;
            }
            wakes.0.push(waker);
        }
        true
    }
    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The reader's end.
pub struct Receiver(Arc<Mutex<State>>);

impl Receiver {
    /// Says to which connection the reader writes what it takes from here; see [`Turns`] for who may say so.
    pub fn writes_to(&mut self, connection: Arc<Turns>) {
        self.0.lock().connection = Some(connection);
    }
    /// The next message, or `None` at the end.
    pub fn recv(&mut self) -> Receive<'_> {
        Receive { queue: self, over: false }
    }
    /// The next message, if it is there already.
    pub fn take(&mut self) -> Option<Message> {
        self.0.lock().messages.pop_front()
    }
    pub fn is_empty(&self) -> bool {
        self.0.lock().messages.is_empty()
    }
    /// Whether nothing more will be put in.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }
    /// The reader is there, or does not wait any more.
    fn arrive(&self) {
        let connection = {
            let mut state = self.0.lock();
            state.waiting = None;
            state.arrived()
        };
        connection.iter().for_each(|connection| connection.arrived());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let messages = {
            let mut state = self.0.lock();
            state.closed = true;
            std::mem::take(&mut state.messages)
        };
        drop(messages);
    }
}

/// Waits for the next message.
pub struct Receive<'a> {
    queue: &'a mut Receiver,
    over: bool,
}

impl Future for Receive<'_> {
    type Output = Option<Message>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let coop = ready!(coop::poll_proceed(cx));
        let (next, connection) = {
            let mut state = self.queue.0.lock();
            let next = match state.messages.pop_front() {
                Some(message) => Poll::Ready(Some(message)),
                None if state.closed => Poll::Ready(None),
                None => {
                    match &mut state.waiting {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                    Poll::Pending
                }
            };
            (next, state.arrived())
        };
        connection.iter().for_each(|connection| connection.arrived());
        self.over = next.is_ready();
        if self.over {
            coop.made_progress();
        }
        next
    }
}

impl Drop for Receive<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.queue.arrive();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Entry;
    use futures::task::noop_waker_ref;
    use serde_json::json;
    use store::Revision;

    fn message(revision: u64) -> Message {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        let stored = crate::cache::encode_stored(&value).into();
        Message::Initial(Arc::new(Entry::of("a", &stored, &value, Revision(revision), None).unwrap()))
    }

    #[test]
    fn a_reader_is_expected_from_its_wake_until_it_has_come_or_given_up() {
        let (sender, mut receiver) = queue(2);
        let connection = Arc::new(Turns::default());
        receiver.writes_to(connection.clone());
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut wakes = Wakes::default();
        assert!(sender.put(message(1), &mut wakes) && wakes.0.is_empty() && connection.expected() == 0, "it does not wait");
        assert!(Pin::new(&mut receiver.recv()).poll(&mut cx).is_ready());
        {
            let mut waiting = receiver.recv();
            assert!(Pin::new(&mut waiting).poll(&mut cx).is_pending());
            assert!(sender.put(message(2), &mut wakes) && sender.put(message(3), &mut wakes));
            assert_eq!((wakes.0.len(), connection.expected()), (1, 1));
            assert!(Pin::new(&mut waiting).poll(&mut cx).is_ready());
            assert_eq!(connection.expected(), 0);
        }
        assert!(receiver.take().is_some() && receiver.take().is_none());
        {
            let mut waiting = receiver.recv();
            assert!(Pin::new(&mut waiting).poll(&mut cx).is_pending());
            assert!(sender.put(message(4), &mut wakes) && connection.expected() == 1);
        }
        assert_eq!(connection.expected(), 0, "it was given up");
        assert!(sender.put(message(5), &mut wakes) && !sender.put(message(6), &mut wakes), "it is full");
        drop(sender);
        let left: Vec<bool> = (0..3).map(|_| matches!(Pin::new(&mut receiver.recv()).poll(&mut cx), Poll::Ready(Some(_)))).collect();
        assert_eq!(left, [true, true, false]);
    }
}
