//! Restoring: a store made equal to a snapshot.
//!
//! The snapshot's keys and the store's are both in order, so one walk over the two says what to create, change and delete.
//! What is the same already is left alone: an interrupted restore goes on where it was, and an object that did not change
//! keeps its revision.

use super::{Blob, Error, Item, Result, SAVED_PREFIX, Secret, Status, save::is_saved};
use crate::{KeyValue, Outcome, Revision, Store, Write};
use futures::{StreamExt, stream::FuturesUnordered};
use std::path::Path;
use tokio::sync::mpsc;

/// Writes under way at the same time; back ends commit many at once.
const WRITES_MAX: usize = 256;
/// Keys that are read from the store at once.
const PAGE_KEYS: usize = 500;
/// Keys of the snapshot that may wait for the store.
const KEYS_WAITING_MAX: usize = 512;
/// How often a write is asked for whose answer did not come.
const ATTEMPTS: usize = 5;
/// Revisions by which a restored store stands beyond everything that was ever seen of the cluster.
const STEP_REVISIONS: u64 = 1_000_000;
/// More changes per second than any cluster makes: what is added for the time since a snapshot whose store cannot be read.
const REVISIONS_PER_S_MAX: u64 = 10_000;

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub created: u64,
    pub changed: u64,
    pub deleted: u64,
    pub unchanged: u64,
    /// Where the store stands now; its past is compacted up to here.
    pub revision: Revision,
}

/// A revision beyond everything that anyone can have seen of the cluster: beyond `newest` where the old store could still
/// be read, and otherwise beyond what it can have come to between the snapshot and `now_s`.
pub fn beyond(snapshot: &Status, newest: Option<Revision>, now_s: u64) -> Revision {
    let guessed = || {
        let seconds = now_s.saturating_sub(snapshot.header.created_at_s);
        snapshot.header.revision.saturating_add(seconds.saturating_mul(REVISIONS_PER_S_MAX))
    };
    let seen = newest.map_or_else(guessed, |newest| newest.0.max(snapshot.header.revision));
    Revision(seen.saturating_add(STEP_REVISIONS))
}

/// The files in a snapshot.
pub fn files(path: &Path, secret: Option<&Secret>) -> Result<Vec<Blob>> {
    let mut content = super::open(path)?.content(secret)?;
    let mut files = Vec::new();
    while let Some(Item::File(blob)) = content.next_item()? {
        files.push(blob);
    }
    Ok(files)
}

/// Makes the store equal to the snapshot, then forgets its past. The file MUST have been verified, and nobody else may write.
pub async fn restore_into(store: &dyn Store, path: &Path, secret: Option<&Secret>) -> Result<Restored> {
    let (sender, mut wanted) = mpsc::channel::<Result<KeyValue>>(KEYS_WAITING_MAX);
    let read = {
        let (path, secret) = (path.to_path_buf(), secret.cloned());
        move || read_keys(&path, secret.as_ref(), &sender)
    };
    let reader = tokio::task::spawn_blocking(read);
    let mut standing = Standing::new(store);
    let mut done = Restored::default();
    let mut writes = FuturesUnordered::new();
    let mut next_wanted = wanted.recv().await.transpose()?;
    let mut next_standing = standing.next().await?;
    loop {
        let write = match (next_wanted.take(), next_standing.take()) {
            (None, None) => break,
            (Some(wish), None) => {
                next_wanted = wanted.recv().await.transpose()?;
                done.created += 1;
                Some(Write::Create { key: wish.key, value: wish.value })
            }
            (None, Some(there)) => {
                next_standing = standing.next().await?;
                done.deleted += 1;
                Some(Write::Delete { key: there.key, expected: there.modified })
            }
            (Some(wish), Some(there)) => match wish.key.cmp(&there.key) {
                std::cmp::Ordering::Less => {
                    next_standing = Some(there);
                    next_wanted = wanted.recv().await.transpose()?;
                    done.created += 1;
                    Some(Write::Create { key: wish.key, value: wish.value })
                }
                std::cmp::Ordering::Greater => {
                    next_wanted = Some(wish);
                    next_standing = standing.next().await?;
                    done.deleted += 1;
                    Some(Write::Delete { key: there.key, expected: there.modified })
                }
                std::cmp::Ordering::Equal => {
                    next_wanted = wanted.recv().await.transpose()?;
                    next_standing = standing.next().await?;
                    if wish.value == there.value {
                        done.unchanged += 1;
                        None
                    } else {
                        done.changed += 1;
                        Some(Write::Update { key: wish.key, value: wish.value, expected: there.modified })
                    }
                }
            },
        };
        if let Some(write) = write {
            if writes.len() >= WRITES_MAX {
                writes.next().await.transpose()?;
            }
            writes.push(commit(store, write));
        }
    }
    while let Some(written) = writes.next().await {
        written?;
    }
    reader.await.map_err(|error| Error::Io(std::io::Error::other(error)))??;
    done.revision = store.revision().await?;
    match store.compact(done.revision).await {
        // Interrupted after its compaction, and run again.
        Ok(()) | Err(crate::Error::Compacted { .. }) => Ok(done),
        Err(error) => Err(error.into()),
    }
}

/// One write, asked for again where its answer was lost. Nobody else writes, so what stands there then says whether it was done.
async fn commit(store: &dyn Store, write: Write) -> Result<()> {
    for _ in 1..ATTEMPTS {
        let failure = match store.commit(write.clone()).await {
            Ok(outcome) => return judge(&write, outcome),
            Err(error @ (crate::Error::Unknown(_) | crate::Error::Unavailable(_))) => error,
            Err(error) => return Err(error.into()),
        };
        tracing::debug!(error = %failure, key = write.key(), "a write of the restore is asked for again");
    }
    judge(&write, store.commit(write.clone()).await?)
}

fn judge(write: &Write, outcome: Outcome) -> Result<()> {
    let done = match (&outcome, write) {
        (Outcome::Committed(_), _) => true,
        (Outcome::Conflict(None), Write::Delete { .. }) => true,
        (Outcome::Conflict(Some(kv)), Write::Create { value, .. } | Write::Update { value, .. }) => kv.value == *value,
        (Outcome::Conflict(_), _) => false,
    };
    if done { Ok(()) } else { Err(Error::Contended { key: write.key().to_string() }) }
}

fn read_keys(path: &Path, secret: Option<&Secret>, keys: &mpsc::Sender<Result<KeyValue>>) -> Result<()> {
    let mut content = super::open(path)?.content(secret)?;
    loop {
        match content.next_item() {
            Ok(None) => break,
            Ok(Some(Item::File(_))) => {}
            Ok(Some(Item::Key(kv))) => {
                if keys.blocking_send(Ok(kv)).is_err() {
                    return Ok(());
                }
            }
            // To the walk too: a stream that merely ended would look like a snapshot with fewer keys.
            Err(error) => {
                let _ = keys.blocking_send(Err(error));
                return Ok(());
            }
        }
    }
    content.finish().map(drop)
}

/// The keys that stand in the store, in order, as they were when the walk began.
struct Standing<'a> {
    store: &'a dyn Store,
    page: std::vec::IntoIter<KeyValue>,
    last: Option<String>,
    at: Option<Revision>,
    more: bool,
}

impl<'a> Standing<'a> {
    fn new(store: &'a dyn Store) -> Standing<'a> {
        Standing { store, page: Vec::new().into_iter(), last: None, at: None, more: true }
    }

    async fn next(&mut self) -> Result<Option<KeyValue>> {
        loop {
            if let Some(kv) = self.page.find(|kv| is_saved(&kv.key)) {
                return Ok(Some(kv));
            }
            if !self.more {
                return Ok(None);
            }
            let page = self.store.list(SAVED_PREFIX, self.last.as_deref(), PAGE_KEYS, self.at).await?;
            self.at = Some(page.revision);
            self.more = page.more;
            self.last = page.items.last().map(|item| item.key.clone()).or(self.last.take());
            self.page = page.items.into_iter();
        }
    }
}
