//! What a node lives on, kept on its disk as it changes, so that it can go on and start again with no server alive.
//!
//! ```text
//! API --> reflector --changes--> checkpoint (one transaction) --then--> store in memory --> readers
//!                                    |
//! next start:  checkpoint --replace--> store: synced at once, stale until a server has answered
//! ```
//!
//! One file per process (`DIRECTORY/COMPONENT.db`, SQLite) holds named shelves of rows. A durable informer has a shelf for
//! its objects with the version from which its watch resumes, and one for the UIDs that it has seen go. Other state of a node
//! (Secrets that were read one by one, tokens, statuses and events not said yet) has shelves of its own.
//!
//! **Ways chosen.** Typed state, not a cache of HTTP answers: it is used without asking anyone. Write-ahead: a change is on
//! disk before anybody here acts on it, so what was deleted before an outage never comes back, whenever the power goes.
//! Changes that wait together share one transaction, and two commits keep [`limits::CHECKPOINT_COMMIT_SPACING`] apart, so a
//! burst costs little. Only kinds that the process names ([`Checkpoint::keeping`]) are kept.
//!
//! **Ways rejected.** One file per object (no transaction over a change and its version); `serde` snapshots written now and
//! then (a deletion would be lost with the power); the API server's own store on every node (a node must not hold what is not
//! its own).
//!
//! **What must stay true.** A row that is read is a row that was written, whole: each has a checksum, and one that fails it
//! is refused, never guessed. A file that SQLite cannot read is set aside and begun anew. A disk that is full, slow or broken
//! never holds up the node: it goes on from memory, says so, and writes what is missing as soon as it can; until then the
//! disk keeps an older state that is consistent in itself. Secrets and tokens lie there only encrypted (`seal`).
//!
//! **How it can still go wrong.** Damage in the newest part of SQLite's log takes the newest transactions with it; the state
//! is then older by these, until a server answers. What is over [`limits::CHECKPOINT_BYTES_MAX`] is left out: after a start
//! with no server the node does not know it.

mod file;
mod seal;

use std::any::TypeId;
use std::collections::{HashMap, HashSet, VecDeque};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::Resource;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::informer::Key;
use crate::json::Json;
use crate::limits;
use file::{Contents, File, Hand, Value};

/// The shelf names of informers begin so.
const INFORMER: &str = "informer ";
/// The shelf names of what informers have seen go begin so.
const GONE: &str = "gone ";

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its place cannot be used.
    #[error("the checkpoint {path} cannot be used; see that the disk is there and can be written")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// SQLite cannot use it, though it is not damaged.
    #[error("the checkpoint {path} cannot be used; see that no other process has it open and that the disk can be written")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
}

/// Whether a shelf's values may be read by whoever can read the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// As they are.
    Open,
    /// Encrypted with the node's own key.
    Sealed,
}

/// What a checkpoint says of itself.
#[derive(Clone, Debug, Default, Serialize, serde::Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Rows that are kept.
    pub rows: usize,
    /// The bytes of these rows.
    pub bytes: usize,
    /// Rows that had no place ([`limits::CHECKPOINT_BYTES_MAX`]).
    pub left_out: usize,
    /// Whether everything that was to be written is on disk.
    pub is_written: bool,
    /// What was found damaged when it was opened, and what became of it.
    pub damage: Vec<String>,
}

/// The durable state of one process. Cheap to clone.
#[derive(Clone)]
pub struct Checkpoint {
    file: Arc<File>,
    kinds: HashSet<TypeId>,
    found: Arc<Mutex<HashMap<String, Found>>>,
    damage: Arc<Vec<String>>,
}

/// What writes a checkpoint of [`Checkpoint::open_with_disk`].
pub struct Disk(Hand);

impl Disk {
    /// Waits until something is to be written, or somebody waits for that.
    pub async fn wanted(&mut self) {
        self.0.wanted().await;
    }

    /// Writes what is to be written, in one transaction. Answers whether the file took it.
    pub fn write(&mut self) -> bool {
        self.0.write()
    }
}

/// A shelf as it was found on disk.
#[derive(Default)]
struct Found {
    /// In the order in which they were written.
    rows: Vec<(String, Vec<u8>)>,
    /// The version with which they were written; empty if it cannot be resumed from.
    version: Option<String>,
}

impl Checkpoint {
    /// Opens the checkpoint of this component in this directory, or begins one. What is damaged is refused, with a message.
    pub fn open(directory: &Path, component: &str) -> Result<Checkpoint, Error> {
        let (file, contents) = File::open(directory, component)?;
        Ok(Self::of(file, contents, component))
    }

    /// As [`Checkpoint::open`], but it is written only by the [`Disk`], when that is told to: what is not written yet when both are
    /// dropped is lost, as with the power. For whoever must decide when a disk writes.
    pub fn open_with_disk(directory: &Path, component: &str) -> Result<(Checkpoint, Disk), Error> {
        let (file, contents, hand) = File::open_by_hand(directory, component)?;
        Ok((Self::of(file, contents, component), Disk(hand)))
    }

    fn of(file: File, contents: Contents, component: &str) -> Checkpoint {
        for text in &contents.damage {
            tracing::error!(component, "{text}");
        }
        let mut found: HashMap<String, Found> = HashMap::new();
        for row in contents.rows {
            let shelf = found.entry(row.shelf).or_default();
            match row.key.as_str() {
                file::VERSION_KEY => shelf.version = Some(String::from_utf8(row.value).unwrap_or_default()),
                _ => shelf.rows.push((row.key, row.value)),
            }
        }
        for name in contents.damaged_shelves {
            // Something is missing: what is there is used, and asked for anew as soon as there is a server.
            found.entry(name).or_default().version = Some(String::new());
        }
        Checkpoint { file: Arc::new(file), kinds: HashSet::new(), found: Arc::new(Mutex::new(found)), damage: Arc::new(contents.damage) }
    }

    /// As [`Checkpoint::open`]; if there cannot be one, says so loudly and goes without.
    pub fn open_or_without(directory: &Path, component: &str) -> Option<Checkpoint> {
        Self::open(directory, component)
            .inspect_err(|error| {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    component,
                    "no checkpoint: with no server alive this component will not come back after a restart"
                );
            })
            .ok()
    }

    /// Keeps every informer of this kind.
    #[must_use]
    pub fn keeping<K: 'static>(mut self) -> Checkpoint {
        self.kinds.insert(TypeId::of::<K>());
        self
    }

    pub(crate) fn keeps<K: 'static>(&self) -> bool {
        self.kinds.contains(&TypeId::of::<K>())
    }

    /// A shelf for state that is no informer's.
    pub fn shelf(&self, name: &str, secrecy: Secrecy) -> Shelf {
        Shelf { name: name.into(), secrecy, checkpoint: self.clone() }
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        Report { damage: (*self.damage).clone(), ..self.file.report() }
    }

    fn take(&self, shelf: &str) -> Option<Found> {
        self.found.lock().remove(shelf)
    }
}

/// Rows of one sort. Cheap to clone.
#[derive(Clone)]
pub struct Shelf {
    name: Arc<str>,
    secrecy: Secrecy,
    checkpoint: Checkpoint,
}

impl Shelf {
    /// What the disk held when the checkpoint was opened, in the order in which it was written. Given once.
    pub fn load(&self) -> Vec<(String, Vec<u8>)> {
        self.checkpoint.take(&self.name).map(|found| found.rows).unwrap_or_default()
    }

    /// Keeps a value; it is on disk soon after.
    pub fn put(&self, key: &str, value: Vec<u8>) {
        self.checkpoint.file.change(&self.name, vec![(key.to_owned(), Some(self.value(value)))], None);
    }

    /// Keeps a value as JSON.
    pub fn put_json<T: Serialize>(&self, key: &str, value: &T) {
        self.put_written(key, serde_json::to_vec(value));
    }

    /// Keeps an object.
    pub fn put_object<K: Json>(&self, key: &str, object: &K) {
        self.put_written(key, object.to_json());
    }

    fn put_written(&self, key: &str, written: Result<Vec<u8>, serde_json::Error>) {
        match written {
            Ok(bytes) => self.put(key, bytes),
            Err(error) => tracing::error!(shelf = &*self.name, key, %error, "a value cannot be kept"),
        }
    }

    /// Everything that is kept as JSON; what this version cannot read is dropped.
    pub fn load_json<T: DeserializeOwned>(&self) -> Vec<(String, T)> {
        self.load_by(|text| serde_json::from_str(text))
    }

    /// Every object that is kept, likewise.
    pub fn load_objects<K: Json>(&self) -> Vec<(String, K)> {
        self.load_by(K::from_json)
    }

    fn load_by<T>(&self, read: impl Fn(&str) -> Result<T, serde_json::Error>) -> Vec<(String, T)> {
        let mut out = Vec::new();
        for (key, value) in self.load() {
            match text_of(&value).and_then(&read) {
                Ok(value) => out.push((key, value)),
                Err(error) => {
                    tracing::warn!(shelf = &*self.name, key, %error, "a kept value cannot be read and is dropped");
                    self.remove(&key);
                }
            }
        }
        out
    }

    /// Drops a value.
    pub fn remove(&self, key: &str) {
        self.checkpoint.file.change(&self.name, vec![(key.to_owned(), None)], None);
    }

    /// Waits until all that was given so far is on disk; false if the disk does not take it.
    pub async fn written(&self) -> bool {
        self.checkpoint.file.written().await
    }

    fn value(&self, bytes: Vec<u8>) -> Value {
        Value { bytes, is_sealed: self.secrecy == Secrecy::Sealed }
    }
}

fn text_of(value: &[u8]) -> Result<&str, serde_json::Error> {
    std::str::from_utf8(value).map_err(serde::de::Error::custom)
}

/// How a reflector keeps its objects.
pub(crate) struct Keeper<K> {
    kind: PhantomData<fn(&K)>,
    shelf: Shelf,
    gone: Gone,
}

/// What a durable informer starts with.
pub(crate) struct Start<K> {
    pub(crate) keeper: Keeper<K>,
    /// The objects and the version to go on from (empty if it must be listed anew), if there ever was a whole list.
    pub(crate) held: Option<(Vec<K>, String)>,
}

/// UIDs that an informer has seen go, the oldest first.
#[derive(Clone)]
pub(crate) struct Gone {
    shelf: Shelf,
    uids: Arc<Mutex<(VecDeque<String>, HashSet<String>)>>,
}

impl Gone {
    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.uids.lock().1.contains(uid)
    }

    /// The changes of rows that note this UID.
    fn add(&self, uid: &str) -> Vec<(String, Option<Value>)> {
        let mut uids = self.uids.lock();
        if uid.is_empty() || !uids.1.insert(uid.to_owned()) {
            return Vec::new();
        }
        uids.0.push_back(uid.to_owned());
        let mut rows = vec![(uid.to_owned(), Some(self.shelf.value(Vec::new())))];
        while uids.0.len() > limits::CHECKPOINT_GONE_MAX
            && let Some(oldest) = uids.0.pop_front()
        {
            uids.1.remove(&oldest);
            rows.push((oldest, None));
        }
        rows
    }
}

impl Checkpoint {
    /// What an informer of this name begins with.
    pub(crate) fn start<K>(&self, name: &str, secrecy: Secrecy) -> Start<K>
    where
        K: Resource + Json,
    {
        let shelf = self.shelf(&format!("{INFORMER}{name}"), secrecy);
        let gone_shelf = self.shelf(&format!("{GONE}{name}"), Secrecy::Open);
        let order: VecDeque<String> = gone_shelf.load().into_iter().map(|(uid, _)| uid).collect();
        let known = order.iter().cloned().collect();
        let gone = Gone { shelf: gone_shelf, uids: Arc::new(Mutex::new((order, known))) };
        let held = self.take(&shelf.name).and_then(|found| {
            let mut version = found.version?;
            let mut objects = Vec::new();
            for (key, value) in found.rows {
                match text_of(&value).and_then(K::from_json) {
                    // Its removal was cut short.
                    Ok(object) if object.meta().uid.as_deref().is_some_and(|uid| gone.contains(uid)) => shelf.remove(&key),
                    Ok(object) => objects.push(object),
                    Err(error) => {
                        tracing::error!(name, key, %error, "a kept object cannot be read; it is asked for again");
                        version = String::new();
                    }
                }
            }
            Some((objects, version))
        });
        Start { keeper: Keeper { kind: PhantomData, shelf, gone }, held }
    }
}

/// One change of an object, for the disk.
pub(crate) enum Kept<'a, K> {
    Applied(&'a K),
    Deleted(&'a K),
}

impl<K: Resource + Json> Keeper<K> {
    pub(crate) fn gone(&self) -> Gone {
        self.gone.clone()
    }

    /// Puts changes on disk, with the version that they lead to. Returns when they are there (or the disk does not take them).
    pub(crate) async fn changed(&self, changes: &[Kept<'_, K>], version: &str) {
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Kept::Applied(object) => rows.extend(self.row(object)),
                Kept::Deleted(object) => {
                    rows.push((Key::of(*object).to_string(), None));
                    let gone = self.gone.add(object.meta().uid.as_deref().unwrap_or_default());
                    self.gone.shelf.checkpoint.file.change(&self.gone.shelf.name, gone, None);
                }
            }
        }
        self.shelf.checkpoint.file.change(&self.shelf.name, rows, Some(version));
        self.wait().await;
    }

    /// Makes the disk hold these objects and no others. `removed` are the UIDs that went.
    pub(crate) async fn replaced(&self, objects: &[K], removed: &[String], version: &str) {
        let rows = objects.iter().filter_map(|object| self.row(object)).collect();
        for uid in removed {
            let gone = self.gone.add(uid);
            self.gone.shelf.checkpoint.file.change(&self.gone.shelf.name, gone, None);
        }
        self.shelf.checkpoint.file.replace(&self.shelf.name, rows, version);
        self.wait().await;
    }

    /// Notes that nothing happened up to this version. Not waited for.
    pub(crate) fn progress(&self, version: &str) {
        self.shelf.checkpoint.file.change(&self.shelf.name, Vec::new(), Some(version));
    }

    fn row(&self, object: &K) -> Option<(String, Option<Value>)> {
        match object.to_json() {
            Ok(bytes) => Some((Key::of(object).to_string(), Some(self.shelf.value(bytes)))),
            Err(error) => {
                tracing::error!(shelf = &*self.shelf.name, %error, "an object cannot be kept");
                None
            }
        }
    }

    async fn wait(&self) {
        if tokio::time::timeout(limits::CHECKPOINT_PATIENCE, self.shelf.written()).await.is_err() {
            tracing::warn!(shelf = &*self.shelf.name, "the disk is slow to take the checkpoint; going on without waiting for it");
        }
    }
}
