//! The checkpoint's file: SQLite in WAL mode, one table, one writing thread.
//!
//! **Layout.** `row(seq, shelf, key, sealed, value, sum)`: `seq` grows with every write, so the order of writing is kept.
//! There is no index on disk (what an index says and what is there could differ after damage, and a removal would miss its
//! row): the place of each row is in memory. A shelf's version is the row of [`VERSION_KEY`]. `sum` is the beginning of the
//! SHA-256 of everything else.
//!
//! **Writing.** Callers change what is *pending*, under a lock: the last state of each row, so that nothing grows without
//! bound. The thread takes all that is pending and commits it in one transaction with one fsync. If that fails, it goes back
//! under what has come since, and is tried again: the disk holds the older state, whole, until the newer one is there, whole.
//!
//! **What must stay true.** A transaction holds every change that was made before it and is not on disk, so the disk is
//! always at some moment of the past, never at a mixture.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, params};
use tokio::sync::{Notify, oneshot};

use super::seal::Seal;
use super::{Error, Report};
use crate::limits;

/// The key of the row that holds a shelf's version.
pub(super) const VERSION_KEY: &str = "";
/// `RGcp` in the file's head: it is a checkpoint.
const APPLICATION_ID: i32 = 0x5247_6370;
/// The layout.
const FORMAT: i32 = 1;
/// Bytes of a checksum.
const SUM_BYTES: usize = 16;
/// SQLite's log is taken into the file after so many pages, and is cut to this size.
const LOG_PAGES: i64 = 256;
const LOG_BYTES_MAX: i64 = 4 << 20;

const SCHEMA: &str = "
    CREATE TABLE row (
        seq INTEGER PRIMARY KEY,
        shelf TEXT NOT NULL,
        key TEXT NOT NULL,
        sealed INTEGER NOT NULL,
        value BLOB NOT NULL,
        sum BLOB NOT NULL
    );
";

/// A value to keep.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) bytes: Vec<u8>,
    pub(super) is_sealed: bool,
}

/// A row as it was found.
pub(super) struct Row {
    pub(super) shelf: String,
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

/// What a file held when it was opened.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) rows: Vec<Row>,
    /// What was wrong, in words.
    pub(super) damage: Vec<String>,
    /// Shelves of which something is missing.
    pub(super) damaged_shelves: BTreeSet<String>,
}

type Slot = (Arc<str>, String);

/// What is on disk of a row.
struct Held {
    seq: i64,
    sum: [u8; SUM_BYTES],
    bytes: usize,
}

/// What waits to be written.
#[derive(Default)]
struct Pending {
    rows: BTreeMap<Slot, Option<Value>>,
    /// The keys of each shelf, as they will be when everything is written.
    keys: HashMap<Arc<str>, BTreeSet<String>>,
    waiting: Vec<oneshot::Sender<bool>>,
    /// The last commit failed.
    is_failing: bool,
    rows_held: usize,
    bytes_held: usize,
    left_out: usize,
    is_closing: bool,
    /// The thread has taken what was pending and is writing it.
    is_writing: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// The same for a [`Hand`].
    wanted: Notify,
}

impl Shared {
    fn wake(&self) {
        self.wake.notify_one();
        self.wanted.notify_one();
    }
}

/// See the module.
pub(super) struct File {
    path: PathBuf,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

fn sum(shelf: &str, key: &str, is_sealed: bool, value: &[u8]) -> [u8; SUM_BYTES] {
    let mut context = Context::new(&SHA256);
    for part in [shelf.as_bytes(), key.as_bytes(), &[u8::from(is_sealed)], value] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut out = [0; SUM_BYTES];
    out.copy_from_slice(&context.finish().as_ref()[..SUM_BYTES]);
    out
}

impl File {
    /// Opens or begins the file, reads all of it, and starts its writer.
    pub(super) fn open(directory: &Path, component: &str) -> Result<(File, Contents), Error> {
        let (mut file, contents, Hand { writer, shared }) = File::open_by_hand(directory, component)?;
        let name = format!("checkpoint-{component}");
        let path = file.path.clone();
        let spawned = std::thread::Builder::new().name(name).spawn(move || writer.run(&shared)).map_err(|source| Error::Disk { path, source })?;
        file.writer = Some(spawned);
        Ok((file, contents))
    }

    /// The same without a writer of its own: it writes when it is told to.
    pub(super) fn open_by_hand(directory: &Path, component: &str) -> Result<(File, Contents, Hand), Error> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Disk { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(disk(directory))?;
        let path = directory.join(format!("{component}.db"));
        if !path.exists() {
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(disk(&path))?;
        }
        let mut contents = Contents::default();
        let (connection, held) = match read_file(&path, directory, &mut contents) {
            Ok(opened) => opened,
            Err(Unreadable::Refused(source)) => return Err(Error::Sqlite { path, source }),
            Err(Unreadable::Damaged(why)) => {
                let aside = path.with_extension("db.damaged");
                set_aside(&path, &aside).map_err(disk(&path))?;
                contents = Contents::default();
                contents.damage.push(format!(
                    "the checkpoint {} is damaged ({why}); it is set aside as {} and begun anew from the API, and until a server answers this node knows nothing from before",
                    path.display(),
                    aside.display()
                ));
                read_file(&path, directory, &mut contents).map_err(|error| match error {
                    Unreadable::Refused(source) => Error::Sqlite { path: path.clone(), source },
                    Unreadable::Damaged(why) => Error::Disk { path: path.clone(), source: std::io::Error::other(why) },
                })?
            }
        };
        let mut pending = Pending::default();
        for (shelf, key) in held.keys() {
            pending.keys.entry(shelf.clone()).or_default().insert(key.clone());
        }
        pending.rows_held = held.len();
        pending.bytes_held = held.values().map(|row| row.bytes).sum();
        let shared = Arc::new(Shared { pending: Mutex::new(pending), ..Shared::default() });
        let writer = Writer {
            connection,
            directory: directory.to_owned(),
            path: path.clone(),
            seal: None,
            bytes: held.values().map(|row| row.bytes).sum(),
            held,
            left_out: BTreeSet::new(),
            failures: 0,
        };
        Ok((File { path, shared: shared.clone(), writer: None }, contents, Hand { writer, shared }))
    }

    /// Changes rows of a shelf, and its version.
    pub(super) fn change(&self, shelf: &Arc<str>, rows: Vec<(String, Option<Value>)>, version: Option<&str>) {
        let mut pending = self.shared.pending.lock();
        for (key, value) in rows {
            pending.set(shelf, key, value);
        }
        if let Some(version) = version {
            pending.set(shelf, VERSION_KEY.to_owned(), Some(Value { bytes: version.as_bytes().to_vec(), is_sealed: false }));
        }
        self.shared.wake();
    }

    /// Makes a shelf hold these rows and no others.
    pub(super) fn replace(&self, shelf: &Arc<str>, rows: Vec<(String, Option<Value>)>, version: &str) {
        let stay: BTreeSet<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
        let go: Vec<(String, Option<Value>)> = {
            let pending = self.shared.pending.lock();
            let known = pending.keys.get(shelf).into_iter().flatten();
            known.filter(|key| !stay.contains(key.as_str()) && key.as_str() != VERSION_KEY).map(|key| (key.clone(), None)).collect()
        };
        self.change(shelf, go.into_iter().chain(rows).collect(), Some(version));
    }

    /// Waits until all that was changed so far is on disk; false if the disk does not take it.
    pub(super) async fn written(&self) -> bool {
        let waiting = {
            let mut pending = self.shared.pending.lock();
            if pending.rows.is_empty() && !pending.is_writing {
                return !pending.is_failing;
            }
            let (sender, receiver) = oneshot::channel();
            pending.waiting.push(sender);
            receiver
        };
        self.shared.wake();
        waiting.await.unwrap_or(false)
    }

    pub(super) fn report(&self) -> Report {
        let pending = self.shared.pending.lock();
        Report {
            path: self.path.clone(),
            rows: pending.rows_held,
            bytes: pending.bytes_held,
            left_out: pending.left_out,
            is_written: pending.rows.is_empty() && !pending.is_writing && !pending.is_failing,
            damage: Vec::new(),
        }
    }
}

impl Drop for File {
    /// What is pending is written first.
    fn drop(&mut self) {
        self.shared.pending.lock().is_closing = true;
        self.shared.wake();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Pending {
    /// Who waits for nothing is answered at once.
    fn answer_all(&mut self) {
        let is_well = !self.is_failing;
        self.waiting.drain(..).for_each(|waiting| answer(waiting, is_well));
    }

    fn set(&mut self, shelf: &Arc<str>, key: String, value: Option<Value>) {
        let keys = self.keys.entry(shelf.clone()).or_default();
        if value.is_some() {
            keys.insert(key.clone());
        } else if !keys.remove(&key) {
            return;
        }
        self.rows.insert((shelf.clone(), key), value);
    }
}

/// A writer that waits to be told.
pub(super) struct Hand {
    writer: Writer,
    shared: Arc<Shared>,
}

impl Hand {
    /// Waits until something is to be written, or somebody waits.
    pub(super) async fn wanted(&mut self) {
        self.shared.wanted.notified().await;
    }

    /// Commits what is pending. Answers whether everything is on disk.
    pub(super) fn write(&mut self) -> bool {
        self.writer.write(&self.shared);
        self.writer.failures == 0
    }
}

struct Writer {
    connection: Connection,
    directory: PathBuf,
    path: PathBuf,
    seal: Option<Seal>,
    held: HashMap<Slot, Held>,
    bytes: usize,
    left_out: BTreeSet<Slot>,
    failures: u32,
}

impl Writer {
    fn run(mut self, shared: &Shared) {
        loop {
            {
                let mut pending = shared.pending.lock();
                while pending.rows.is_empty() && !pending.is_closing {
                    pending.answer_all();
                    shared.wake.wait(&mut pending);
                }
                if pending.rows.is_empty() {
                    return;
                }
            }
            let pause = self.write(shared);
            let is_closing = shared.pending.lock().is_closing;
            if is_closing && self.failures > 0 {
                return;
            }
            std::thread::sleep(if is_closing { Duration::ZERO } else { pause });
        }
    }

    /// Commits what is pending, and tells who waits for it. Answers how long to wait before the next commit.
    fn write(&mut self, shared: &Shared) -> Duration {
        let (rows, waiting) = {
            let mut pending = shared.pending.lock();
            if pending.rows.is_empty() {
                pending.answer_all();
                return Duration::ZERO;
            }
            pending.is_writing = true;
            (std::mem::take(&mut pending.rows), std::mem::take(&mut pending.waiting))
        };
        let result = self.commit(&rows);
        let pause = match &result {
            Ok(()) => limits::CHECKPOINT_COMMIT_SPACING,
            Err(error) => {
                if self.failures.is_multiple_of(60) {
                    tracing::error!(path = %self.path.display(), %error, "the checkpoint cannot be written; the node goes on from memory, but what changes now is not known after a restart without a server");
                }
                limits::CHECKPOINT_RETRY
            }
        };
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        {
            let mut pending = shared.pending.lock();
            pending.is_writing = false;
            pending.is_failing = result.is_err();
            if result.is_err() {
                for (slot, value) in rows {
                    pending.rows.entry(slot).or_insert(value);
                }
            }
            (pending.rows_held, pending.bytes_held, pending.left_out) = (self.held.len(), self.bytes, self.left_out.len());
        }
        waiting.into_iter().for_each(|waiting| answer(waiting, result.is_ok()));
        pause
    }

    /// Writes everything in one transaction. Nothing in memory changes unless it is on disk.
    fn commit(&mut self, rows: &BTreeMap<Slot, Option<Value>>) -> Result<(), rusqlite::Error> {
        let mut left_out = self.left_out.clone();
        let mut bytes = self.bytes;
        let mut done: Vec<(Slot, Option<Held>)> = Vec::new();
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM row WHERE seq = ?1")?;
            let mut insert = transaction.prepare_cached("INSERT INTO row (shelf, key, sealed, value, sum) VALUES (?1, ?2, ?3, ?4, ?5)")?;
            // Versions last: whether one may be resumed from depends on what had a place.
            let (versions, objects): (Vec<_>, Vec<_>) = rows.iter().partition(|((_, key), _)| key == VERSION_KEY);
            for (slot, value) in objects.into_iter().chain(versions) {
                let (shelf, key) = slot;
                let known = self.held.get(slot);
                let known_bytes = known.map_or(0, |held| held.bytes);
                left_out.remove(slot);
                let Some(value) = value else {
                    if let Some(held) = known {
                        delete.execute([held.seq])?;
                        bytes -= held.bytes;
                        done.push((slot.clone(), None));
                    }
                    continue;
                };
                let is_version = key == VERSION_KEY;
                let incomplete = is_version && left_out.iter().any(|(name, _)| name == shelf);
                let plain = if incomplete { &[][..] } else { &value.bytes[..] };
                let plain_sum = sum(shelf, key, value.is_sealed, plain);
                if known.is_some_and(|held| held.sum == plain_sum) {
                    continue;
                }
                let after = bytes - known_bytes + plain.len() + key.len();
                if let Some(held) = known {
                    delete.execute([held.seq])?;
                }
                bytes -= known_bytes;
                let too_large = !is_version && (plain.len() > limits::CHECKPOINT_ROW_BYTES_MAX || after > limits::CHECKPOINT_BYTES_MAX);
                let sealed = match value.is_sealed && !too_large {
                    true => Some(seal(&mut self.seal, &self.directory, shelf, key, plain)),
                    false => None,
                };
                if too_large || matches!(sealed, Some(None)) {
                    if left_out.insert(slot.clone()) && too_large {
                        tracing::error!(
                            shelf = &**shelf,
                            key,
                            "the checkpoint is full: this is not kept, and after a restart it is not known before a server answers"
                        );
                    }
                    done.push((slot.clone(), None));
                    continue;
                }
                let sealed = sealed.flatten();
                let stored = sealed.as_deref().unwrap_or(plain);
                let stored_sum = sum(shelf, key, value.is_sealed, stored);
                insert.execute(params![&**shelf, key, value.is_sealed, stored, &stored_sum[..]])?;
                let row_bytes = plain.len() + key.len();
                bytes += row_bytes;
                done.push((slot.clone(), Some(Held { seq: transaction.last_insert_rowid(), sum: plain_sum, bytes: row_bytes })));
            }
        }
        transaction.commit()?;
        for (slot, held) in done {
            match held {
                Some(held) => self.held.insert(slot, held),
                None => self.held.remove(&slot),
            };
        }
        (self.bytes, self.left_out) = (bytes, left_out);
        Ok(())
    }
}

/// Tells who waits; one that has gone away does not matter.
fn answer(waiting: oneshot::Sender<bool>, is_written: bool) {
    let _ = waiting.send(is_written);
}

/// The sealed value; `None` (and said) if it cannot be sealed.
fn seal(kept: &mut Option<Seal>, directory: &Path, shelf: &str, key: &str, value: &[u8]) -> Option<Vec<u8>> {
    let result = match kept {
        Some(seal) => seal.seal(shelf, key, value),
        None => Seal::open(directory).and_then(|seal| kept.insert(seal).seal(shelf, key, value)),
    };
    result.inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, shelf, key, "a secret cannot be kept")).ok()
}

enum Unreadable {
    /// SQLite says that it is not well.
    Damaged(String),
    /// It may be well, but cannot be used now.
    Refused(rusqlite::Error),
}

impl From<rusqlite::Error> for Unreadable {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, PermissionDenied, ReadOnly};
        match error.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked | DiskFull | OutOfMemory | PermissionDenied | ReadOnly | CannotOpen) => Unreadable::Refused(error),
            _ => Unreadable::Damaged(error.to_string()),
        }
    }
}

/// Opens the file and reads every row that is whole.
fn read_file(path: &Path, directory: &Path, contents: &mut Contents) -> Result<(Connection, HashMap<Slot, Held>), Unreadable> {
    let connection = Connection::open(path)?;
    // One process has it, and holds no file that another could see half-written.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, format) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 && application == 0 {
        let schema = format!("BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {SCHEMA} COMMIT;");
        connection.execute_batch(&schema)?;
        return Ok((connection, HashMap::new()));
    }
    if (application, format) != (APPLICATION_ID, FORMAT) {
        return Err(Unreadable::Damaged(format!("its format is {application:#x}/{format}, not {APPLICATION_ID:#x}/{FORMAT}")));
    }
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(Unreadable::Damaged(check));
    }
    let held = read_rows(&connection, directory, contents)?;
    Ok((connection, held))
}

fn read_rows(connection: &Connection, directory: &Path, contents: &mut Contents) -> Result<HashMap<Slot, Held>, Unreadable> {
    let mut held: HashMap<Slot, Held> = HashMap::new();
    let mut order: BTreeMap<i64, Row> = BTreeMap::new();
    let mut bad: Vec<i64> = Vec::new();
    let mut names: HashMap<String, Arc<str>> = HashMap::new();
    let mut kept_seal: Option<Seal> = None;
    // Which shelf a damaged row was of is not known for sure: then all are asked for anew.
    let mut any_shelf = false;
    let mut statement = connection.prepare("SELECT seq, shelf, key, sealed, value, sum FROM row ORDER BY seq")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        let read = || -> Result<_, rusqlite::Error> {
            let parts: (String, String, bool, Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
            Ok(parts)
        };
        let Ok((shelf, key, is_sealed, stored, stored_sum)) = read() else {
            contents.damage.push(format!("row {seq} of the checkpoint cannot be read; it is refused"));
            any_shelf = true;
            bad.push(seq);
            continue;
        };
        let mut refuse = |why: &str, contents: &mut Contents| {
            contents
                .damage
                .push(format!("the row {key:?} of {shelf:?} in the checkpoint is refused ({why}); it is asked for again when a server answers"));
            contents.damaged_shelves.insert(shelf.clone());
            bad.push(seq);
        };
        if sum(&shelf, &key, is_sealed, &stored)[..] != stored_sum[..] {
            refuse("its checksum is wrong", contents);
            any_shelf = true;
            continue;
        }
        let value = if is_sealed {
            if kept_seal.is_none() {
                kept_seal = Seal::open(directory).inspect_err(|error| contents.damage.push(error.to_string())).ok();
            }
            match kept_seal.as_ref().map(|seal| seal.open_value(&shelf, &key, &stored)) {
                Some(Ok(value)) => value,
                Some(Err(error)) => {
                    refuse(&error.to_string(), contents);
                    continue;
                }
                None => {
                    refuse("there is no key", contents);
                    continue;
                }
            }
        } else {
            stored
        };
        let name = names.entry(shelf.clone()).or_insert_with(|| shelf.as_str().into()).clone();
        let row = Held { seq, sum: sum(&shelf, &key, is_sealed, &value), bytes: value.len() + key.len() };
        if let Some(older) = held.insert((name, key.clone()), row) {
            // Cannot be by our own writing; the newer one counts.
            order.remove(&older.seq);
            bad.push(older.seq);
        }
        order.insert(seq, Row { shelf, key, value });
    }
    drop(rows);
    drop(statement);
    for seq in bad {
        connection.execute("DELETE FROM row WHERE seq = ?1", [seq])?;
    }
    if any_shelf {
        contents.damaged_shelves.extend(names.into_keys());
    }
    contents.rows.extend(order.into_values());
    Ok(held)
}

/// Moves a damaged file and its companions away; one that was set aside before is replaced.
fn set_aside(path: &Path, aside: &Path) -> std::io::Result<()> {
    fs::rename(path, aside)?;
    for companion in ["db-wal", "db-shm"] {
        let companion = path.with_extension(companion);
        match fs::remove_file(&companion) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
