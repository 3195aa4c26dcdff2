//! How a back end that lives in this process tells its watchers what was committed.
//!
//! The writer calls [`Hub::publish`] after a commit, in revision order. A watcher first registers, then reads the past
//! up to the revision that was published at that moment, then follows: nothing falls between the two.
//! A watcher that lets [`WATCHER_BATCHES_MAX`] batches pile up is dropped and told so ([`Error::FellBehind`]).

use crate::{Error, Event, Result, Revision, Watch, Watched};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Interval};

/// Batches of events that may wait for one watcher.
pub const WATCHER_BATCHES_MAX: usize = 4096;
/// How often a watcher to whom nothing happens is told how far it is.
const HEARTBEAT: Duration = Duration::from_secs(5);

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
        let (batches, receiver) = mpsc::channel(WATCHER_BATCHES_MAX);
        let published = {
            let mut inner = self.inner.lock();
            inner.watchers.push(Watcher { prefix: prefix.to_string(), batches });
            inner.published
        };
        let begun = Stage::Past(past(published).boxed());
        // What was published before a client's `from` (a revision that it got from a write) is not repeated.
        let live = Live { hub: self.clone(), batches: receiver, from: from.max(published), heartbeat: tokio::time::interval(HEARTBEAT) };
        // The reader itself waits for the writer: a task between the two would be woken for every commit.
        stream::unfold((begun, live), |(stage, mut live)| async move {
            let found = match stage {
                Stage::Over => return None,
                Stage::Live => live.next().await,
                Stage::Past(past) => match past.await {
                    Ok(events) if events.is_empty() => live.next().await,
                    Ok(events) => Ok(Watched::Events(events)),
                    Err(error) => Err(error),
                },
            };
            let stage = if found.is_ok() { Stage::Live } else { Stage::Over };
            Some((found, (stage, live)))
        })
        .boxed()
    }
}

/// Where a watch is.
enum Stage {
    /// What came before it is being read.
    Past(BoxFuture<'static, Result<Vec<Event>>>),
    Live,
    Over,
}

/// What comes to a watcher once it has read the past.
struct Live {
    hub: Arc<Hub>,
    batches: mpsc::Receiver<Vec<Event>>,
    from: Revision,
    heartbeat: Interval,
}

impl Live {
    async fn next(&mut self) -> Result<Watched> {
        loop {
            tokio::select! {
                biased;
                batch = self.batches.recv() => {
                    let mut events = batch.ok_or(Error::FellBehind)?;
                    events.retain(|event| event.revision > self.from);
                    if !events.is_empty() {
                        return Ok(Watched::Events(events));
                    }
                }
                _ = self.heartbeat.tick() => {
                    // Read before the queue is looked at again: whatever was published up to here was queued before.
                    let progress = self.hub.published();
                    if self.batches.is_empty() {
                        return Ok(Watched::Progress(progress));
                    }
                }
            }
        }
    }
}
