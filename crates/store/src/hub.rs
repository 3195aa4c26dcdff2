//! How a back end that lives in this process tells its watchers what was committed.
//!
//! The writer calls [`Hub::publish`] after a commit, in revision order. A watcher first registers, then reads the past
//! up to the revision that was published at that moment, then follows: nothing falls between the two.
//! A watcher that lets [`WATCHER_BATCHES_MAX`] batches pile up is dropped and told so ([`Error::FellBehind`]).

use crate::{Error, Event, Result, Revision, Watch, Watched};
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Batches of events that may wait for one watcher.
pub const WATCHER_BATCHES_MAX: usize = 4096;

struct Watcher {
    prefix: String,
    batches: mpsc::Sender<Vec<Event>>,
}

struct Inner {
    published: Revision,
    watchers: Vec<Watcher>,
}

/// The watchers of one store.
pub struct Hub {
    inner: Mutex<Inner>,
}

impl Hub {
    pub fn new(published: Revision) -> Hub {
        Hub { inner: Mutex::new(Inner { published, watchers: Vec::new() }) }
    }

    /// The newest revision that watchers have been told of.
    pub fn published(&self) -> Revision {
        self.inner.lock().published
    }

    /// Hands one commit's events to every watcher of their keys. Events MUST come in revision order.
    pub fn publish(&self, events: &[Event]) {
        let mut inner = self.inner.lock();
        if let Some(last) = events.last() {
            inner.published = last.revision;
        }
        inner.watchers.retain(|watcher| {
            let wanted: Vec<Event> = events.iter().filter(|e| e.key.starts_with(&watcher.prefix)).cloned().collect();
            if wanted.is_empty() { !watcher.batches.is_closed() } else { watcher.batches.try_send(wanted).is_ok() }
        });
    }

    /// A watch of `prefix` after `from`. `past` is asked once for the events in `(from, published]`.
    pub fn watch<F>(self: &Arc<Self>, prefix: &str, from: Revision, past: impl FnOnce(Revision) -> F) -> Watch
    where
        F: Future<Output = Result<Vec<Event>>> + Send + 'static,
    {
        let (batches, mut receiver) = mpsc::channel(WATCHER_BATCHES_MAX);
        let published = {
            let mut inner = self.inner.lock();
            inner.watchers.push(Watcher { prefix: prefix.to_string(), batches });
            inner.published
        };
        let past = past(published);
        let hub = self.clone();
        async_stream(move |out| async move {
            match past.await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    if out.send(Ok(Watched::Events(events))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = out.send(Err(error)).await;
                    return;
                }
            }
            // What was published before a client's `from` (a revision that it got from a write) is not repeated.
            let from = from.max(published);
            let mut heartbeat = tokio::time::interval(std::time::Duration::from_secs(5));
            loop {
                tokio::select! {
                    batch = receiver.recv() => match batch {
                        Some(mut events) => {
                            events.retain(|event| event.revision > from);
                            if !events.is_empty() && out.send(Ok(Watched::Events(events))).await.is_err() {
                                return;
                            }
                        }
                        None => {
                            let _ = out.send(Err(Error::FellBehind)).await;
                            return;
                        }
                    },
                    _ = heartbeat.tick(), if receiver.is_empty() => {
                        // Read before the queue is looked at again: whatever was published up to here was queued before.
                        let progress = hub.published();
                        if receiver.is_empty() && out.send(Ok(Watched::Progress(progress))).await.is_err() {
                            return;
                        }
                    }
                    () = out.closed() => return,
                }
            }
        })
    }
}

/// A stream fed by a task that ends with its reader.
fn async_stream<F, Fut>(feed: F) -> Watch
where
    F: FnOnce(mpsc::Sender<Result<Watched>>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(feed(sender));
    tokio_stream::wrappers::ReceiverStream::new(receiver).boxed()
}
