//! A revisioned key-value store: what the API server keeps its objects in.
//!
//! One counter, the [`Revision`], orders every change of the whole store. A write is conditional on the revision that
//! its writer saw; a lost race is a value ([`Outcome::Conflict`]), not an error. A watch reports every change after a
//! revision in order, never skips, never repeats, and says so when that past is compacted.
//! Back ends: [`sqlite`] (one server), [`etcd`] (several), [`memory`] (tests). All pass the one [`suite`].
//!
//! What must stay true: when `commit` returns, the change is on disk; what `commit` acknowledged survives `kill -9` and power loss.
//!
//! A store that can no longer be trusted, or no longer written, says so ([`Error::Damaged`], [`Error::Unwritable`],
//! [`Store::trouble`]); nothing is served from what was found damaged. [`snapshot`] copies a store into one file and back, [`copy`] keeps a copy
//! elsewhere up to date.
//!
//! What this crate does not know: kinds, what the values mean, HTTP.

use bytes::Bytes;
use std::fmt;

pub mod compaction;
pub mod copy;
pub mod encryption;
pub mod etcd;
pub mod fenced;
mod hub;
pub mod memory;
pub mod snapshot;
pub mod sqlite;
pub mod suite;

/// The store's clock: the number of changes it has ever made. Starts at 1 for an empty store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One key as it stood at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    /// The revision that created the key (after its last deletion).
    pub created: Revision,
    /// The revision of its last change.
    pub modified: Revision,
}

/// One conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Fails if the key exists.
    Create { key: String, value: Bytes },
    /// Fails unless the key's last change is `expected`.
    Update { key: String, value: Bytes, expected: Revision },
    /// Fails unless the key's last change is `expected`.
    Delete { key: String, expected: Revision },
}

impl Write {
    pub fn key(&self) -> &str {
        match self {
            Write::Create { key, .. } | Write::Update { key, .. } | Write::Delete { key, .. } => key,
        }
    }
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk, at this revision.
    Committed(Revision),
    /// Its condition did not hold; this is what stands there instead (`None`: no such key).
    Conflict(Option<KeyValue>),
}

/// Part of a list, in key order.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub items: Vec<KeyValue>,
    /// The revision that the whole page shows.
    pub revision: Revision,
    /// Whether keys follow after the last item.
    pub more: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: String,
    /// The new value; `None` if the key was deleted.
    pub value: Option<Bytes>,
    /// The revision of the key's change before this one; `None` if the key was created.
    pub previous: Option<Revision>,
    /// The revision that created the key.
    pub created: Revision,
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Changes in revision order; all changes of a group commit may come at once.
    Events(Vec<Event>),
    /// Nothing has been left out up to this revision (heartbeat).
    Progress(Revision),
}

#[derive(Debug, thiserror::Error, Clone)]
pub enum Error {
    /// The revision asked for is gone; list anew.
    #[error("revision {asked} has been compacted: the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The revision asked for has not come yet.
    #[error("revision {asked} is in the future: the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    /// The store cannot answer now (no quorum, shutting down). Try again later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is on disk is not what was written, or cannot be read. Trying again does not help, and nothing is served from it any more.
    #[error(
        "the store is damaged: {0}; bring the newest good snapshot back with `regent snapshot restore FILE` (`regent snapshot list` shows what there is)"
    )]
    Damaged(String),
    /// Reads go on, but nothing can be written: the disk is full or read-only. Writes go on by themselves when that is mended.
    #[error("the store cannot be written: {0}")]
    Unwritable(String),
    /// The answer to a write was lost: it may have been carried out, or may yet be. Never reported as not done. Read, then decide.
    #[error("the store did not answer in time, and it is not known whether the write took place: {0}")]
    Unknown(String),
    /// A value is sealed with a key that is not here (see [`encryption`]). Nothing is left out instead: whoever asked gets this.
    #[error("a stored value cannot be decrypted: {0}")]
    Undecryptable(String),
    /// The value is longer than the store takes.
    #[error("the value is too large for the store: {0}")]
    TooLarge(String),
    /// A watcher read too slowly and was dropped; list anew.
    #[error("the watcher fell behind and was dropped")]
    FellBehind,
}

pub type Result<T> = std::result::Result<T, Error>;

/// A running watch. Dropping it ends it.
pub type Watch = futures::stream::BoxStream<'static, Result<Watched>>;

/// The store. Cheap to share as `Arc<dyn Store>`.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest value of a key.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;
    /// Keys that start with `prefix`, in byte order, strictly after the key `after` if given, at most `limit` (0: all),
    /// as of revision `at` (`None`: now).
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page>;
    /// Applies one write, if its condition holds. Returns when it is on disk.
    async fn commit(&self, write: Write) -> Result<Outcome>;
    /// Every change of keys under `prefix` with a revision greater than `from`.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch>;
    /// The newest revision, as every reader must see it (linearizable).
    async fn revision(&self) -> Result<Revision>;
    /// Forgets the past before `at`: lists and watches from before it fail with [`Error::Compacted`] afterwards.
    async fn compact(&self, at: Revision) -> Result<()>;
    /// What is wrong with the store right now and needs a person: [`Error::Damaged`] or [`Error::Unwritable`].
    fn trouble(&self) -> Option<Error> {
        None
    }
    /// Whether somebody else is bringing a snapshot back into it, as far as the last call or watch has shown. What is remembered of
    /// its objects is then of a past that is over.
    fn is_being_restored(&self) -> bool {
        false
    }
    /// Looks whether the store is whole; what it finds stays in [`Store::trouble`].
    async fn check(&self, _depth: Depth) -> Result<()> {
        Ok(())
    }
}

/// How closely [`Store::check`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What costs next to nothing: the files are there and are the ones that were opened.
    Quick,
    /// Every value against its checksum.
    Thorough,
}
