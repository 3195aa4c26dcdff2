//! What one watcher has not taken yet: a bounded queue from the cache to one reader.
//!
//! Putting in and waking are two steps ([`Wakes`]): a change is first put into the queues of all who see it, under the cache's
//! lock, and then they are woken, so that nobody runs against the rest of the round.

use super::resource::Message;
use crate::streams::together;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::task::coop;

/// Messages in their order. Mostly there is one at most, and it is where everything else is that its two ends touch.
#[derive(Default)]
struct Messages {
    first: Option<Message>,
    others: VecDeque<Message>,
}

impl Messages {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }
    fn put(&mut self, message: Message) {
        if self.first.is_none() {
            self.first = Some(message);
        } else {
            self.others.push_back(message);
        }
    }
    fn take(&mut self) -> Option<Message> {
        let next = self.first.take();
        self.first = self.others.pop_front();
        next
    }
}

#[derive(Default)]
struct State {
    messages: Messages,
    /// The reader, while it waits.
    waiting: Option<Waker>,
    /// Whether one of the two ends is gone.
    closed: bool,
}

/// Readers to be woken when the round is over, which is when this is dropped.
#[derive(Default)]
#[must_use]
pub struct Wakes(Vec<Waker>);

impl Drop for Wakes {
    fn drop(&mut self) {
        let wakers = std::mem::take(&mut self.0);
        together(|| wakers.into_iter().for_each(Waker::wake));
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
        state.messages.put(message);
        if let Some(waker) = state.waiting.take() {
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
    /// The next message, or `None` at the end.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }
    /// The same; whoever asked last is woken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let coop = ready!(coop::poll_proceed(cx));
        let mut state = self.0.lock();
        let next = match state.messages.take() {
            Some(message) => Some(message),
            None if state.closed => None,
            None => {
                match &mut state.waiting {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
        };
        coop.made_progress();
        Poll::Ready(next)
    }
    /// The next message, if it is there already.
    pub fn take(&mut self) -> Option<Message> {
        self.0.lock().messages.take()
    }
    pub fn is_empty(&self) -> bool {
        self.0.lock().messages.first.is_none()
    }
    /// Whether nothing more will be put in.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Entry;
    use futures::task::noop_waker_ref;
    use serde_json::json;
    use store::Revision;

    /// Everybody who waits gets what was put in before they were woken, whichever worker that happens on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_of_a_round_are_woken() {
        const READERS: usize = 100;
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let mut senders = Vec::new();
        for _ in 0..READERS {
            let (sender, mut receiver) = queue(10);
            let said = said.clone();
            senders.push(sender);
            tokio::spawn(async move {
                while receiver.recv().await.is_some() {
                    let _ = said.send(());
                }
            });
        }
        for round in 1..=10 {
            let mut wakes = Wakes::default();
            assert!(senders.iter().all(|sender| sender.put(message(round), &mut wakes)));
            drop(wakes);
            for _ in 0..READERS {
                heard.recv().await.unwrap();
            }
        }
        let mut wakes = Wakes::default();
        assert!(senders.iter().all(|sender| sender.put(message(11), &mut wakes)));
        std::thread::spawn(move || drop(wakes)).join().unwrap();
        for _ in 0..READERS {
            heard.recv().await.unwrap();
        }
    }

    fn message(revision: u64) -> Message {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        let stored = crate::cache::encode_stored(&value).into();
        Message::Initial(Arc::new(Entry::of("a", &stored, &value, Revision(revision), None).unwrap()))
    }

    #[test]
    fn a_reader_is_woken_while_it_waits_and_a_full_queue_takes_no_more() {
        let (sender, mut receiver) = queue(2);
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut wakes = Wakes::default();
        assert!(sender.put(message(1), &mut wakes) && wakes.0.is_empty(), "it does not wait");
        assert!(receiver.poll_recv(&mut cx).is_ready());
        assert!(receiver.poll_recv(&mut cx).is_pending());
        assert!(sender.put(message(2), &mut wakes) && sender.put(message(3), &mut wakes));
        assert_eq!(wakes.0.len(), 1);
        assert!(receiver.poll_recv(&mut cx).is_ready());
        assert!(receiver.take().is_some() && receiver.take().is_none());
        assert!(sender.put(message(4), &mut wakes) && wakes.0.len() == 1, "it does not wait again yet");
        assert!(sender.put(message(5), &mut wakes) && !sender.put(message(6), &mut wakes), "it is full");
        drop(sender);
        let left: Vec<bool> = (0..3).map(|_| matches!(receiver.poll_recv(&mut cx), Poll::Ready(Some(_)))).collect();
        assert_eq!(left, [true, true, false]);
    }
}
