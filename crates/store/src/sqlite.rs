//! The store on one server: SQLite in WAL mode, one writer thread, group commit.
//!
//! **Layout.** `log` is append-only: one row per change, with its value. `current` says for each living key which row
//! of the log holds its value. A list of the past reads the log by `(key, revision)`; compaction deletes the rows that
//! no living key and no kept revision needs.
//!
//! **Writing.** One thread owns the writing connection. It takes everything that is queued (up to [`BATCH_WRITES_MAX`]),
//! applies it in one transaction, which costs one fsync (`synchronous=FULL`), publishes the events, and only then
//! answers. A conflict is answered after the commit too, for it may be with a write of the same batch.
//!
//! **Reading** is done on a few connections of its own; WAL lets them see a stable state while the writer writes.
//!
//! **How it can go wrong.** If a commit fails (disk full, I/O error), every write of the batch gets the error and
//! nothing of it is kept; the next batch tries anew. A second process on the same directory is refused by a lock file.
//! Each row carries a checksum, and everything is compared when the store is opened (`check`, `wal`): a damaged store
//! does not start. Once damage is found while running, every call fails with it: nothing is served as if it were whole.

mod check;
mod wal;

use crate::{Depth, Error, Event, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Write, hub::Hub, memory::check_readable};
use bytes::Bytes;
use check::{Newest, failure, failure_at};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, config::DbConfig, params};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
};
use tokio::sync::{mpsc, oneshot};

/// Writes that one transaction may carry; more wait for the next.
pub const BATCH_WRITES_MAX: usize = 512;
/// Writes that may be queued; a further `commit` waits for a place.
pub const QUEUE_WRITES_MAX: usize = 4096;
/// Idle reading connections that are kept.
pub const READERS_IDLE_MAX: usize = 4;
/// How long a statement waits for SQLite's own lock, in milliseconds (checkpoints; never another process).
const BUSY_TIMEOUT_MS: u64 = 10_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS log (
        revision INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        value BLOB,
        created INTEGER NOT NULL,
        previous INTEGER,
        checksum INTEGER
    );
    CREATE INDEX IF NOT EXISTS log_by_key ON log (key, revision);
    CREATE TABLE IF NOT EXISTS current (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
";

/// The format of the tables. 1 had no checksums.
const FORMAT: u64 = 2;
/// The database's file in the store's directory.
const DATABASE: &str = "state.db";
/// What a row is read with; the order that [`check_row`] and [`key_value`] know.
const ROW: &str = "log.key, log.value, log.created, log.revision, log.previous, log.checksum";

enum Request {
    Write(Write, oneshot::Sender<Result<Outcome>>),
    Compact(Revision, oneshot::Sender<Result<()>>),
}

/// A store in one directory.
pub struct Sqlite {
    /// `None` for a store that is only read.
    requests: Option<mpsc::Sender<Request>>,
    readers: Arc<Readers>,
    hub: Arc<Hub>,
    /// The newest revision; kept by the writer.
    newest: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
    trouble: Arc<Trouble>,
    _lock: Option<Lock>,
}

struct Readers {
    path: PathBuf,
    /// Which file was opened: another one in its place is not this store.
    inode: u64,
    idle: Mutex<Vec<Connection>>,
    trouble: Arc<Trouble>,
}

/// What is wrong, as long as it is. Damage stays for good.
#[derive(Default)]
struct Trouble(Mutex<Option<Error>>);

impl Trouble {
    fn note(&self, error: &Error) {
        if !matches!(error, Error::Damaged(_) | Error::Unwritable(_)) {
            return;
        }
        let mut standing = self.0.lock();
        if standing.is_none() {
            tracing::error!(%error, "the store needs help");
        }
        if !matches!(*standing, Some(Error::Damaged(_))) {
            *standing = Some(error.clone());
        }
    }

    /// A write came through.
    fn written(&self) {
        let mut standing = self.0.lock();
        if matches!(*standing, Some(Error::Unwritable(_))) {
            tracing::info!("the store can be written again");
            *standing = None;
        }
    }

    fn damage(&self) -> Result<()> {
        match &*self.0.lock() {
            Some(error @ Error::Damaged(_)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Passes a result on, keeping what is wrong.
    fn seen<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.note(error);
        }
        result
    }
}

impl Sqlite {
    /// Opens the store in `directory`, making it if need be. Fails if another process has it open, or if what is there is damaged.
    pub fn open(directory: &Path) -> Result<Sqlite> {
        Sqlite::open_from(directory, Revision(0))
    }

    /// Makes a new store whose revisions begin after `base`: everything up to it counts as compacted.
    pub fn create(directory: &Path, base: Revision) -> Result<Sqlite> {
        if directory.join(DATABASE).exists() {
            return Err(Error::Unavailable(format!("there is a store in {} already", directory.display())));
        }
        Sqlite::open_from(directory, base)
    }

    fn open_from(directory: &Path, base: Revision) -> Result<Sqlite> {
        let at = failure_at(directory);
        std::fs::create_dir_all(directory).map_err(&at)?;
        set_private(directory, 0o700).map_err(&at)?;
        let lock = Lock::take(directory)?;
        let path = directory.join(DATABASE);
        wal::check(&directory.join(format!("{DATABASE}-wal")))?;
        let mut connection = Connection::open(&path).map_err(failure)?;
        set_private(&path, 0o600).map_err(&at)?;
        prepare(&connection)?;
        check::structure(&connection)?;
        make_tables(&mut connection, base)?;
        check::content(&connection)?;
        let noted = Newest::open(directory)?;
        let newest = newest_on_disk(&connection).map_err(failure)?;
        noted.compare(newest)?;
        noted.note(newest);
        let (requests, queue) = mpsc::channel(QUEUE_WRITES_MAX);
        let hub = Arc::new(Hub::new(newest));
        let newest = Arc::new(AtomicU64::new(newest.0));
        let trouble = Arc::new(Trouble::default());
        let writer = {
            let (hub, newest, trouble) = (hub.clone(), newest.clone(), trouble.clone());
            let run = move || write_loop(&mut connection, queue, &hub, &newest, &noted, &trouble);
            std::thread::Builder::new().name("store-writer".into()).spawn(run).map_err(&at)?
        };
        let readers = Arc::new(Readers { inode: inode(&path).map_err(&at)?, path, idle: Mutex::new(Vec::new()), trouble: trouble.clone() });
        Ok(Sqlite { requests: Some(requests), readers, hub, newest, writer: Some(writer), trouble, _lock: Some(lock) })
    }

    /// Opens the store in `directory` for reading alone, whether or not a server runs on it. What is damaged is refused.
    pub fn open_reading(directory: &Path) -> Result<Sqlite> {
        let path = directory.join(DATABASE);
        if !path.exists() {
            return Err(Error::Unavailable(format!("there is no store in {}", directory.display())));
        }
        let trouble = Arc::new(Trouble::default());
        let inode = inode(&path).map_err(failure_at(&path))?;
        let connection = open_reader(&path)?;
        let format = format(&connection)?;
        if format != Some(FORMAT) {
            return Err(Error::Unavailable(format!("the store in {} has an older format; start its server once", directory.display())));
        }
        check::structure(&connection)?;
        check::content(&connection)?;
        let newest = newest_on_disk(&connection).map_err(failure)?;
        let readers = Arc::new(Readers { path, inode, idle: Mutex::new(vec![connection]), trouble: trouble.clone() });
        let hub = Arc::new(Hub::new(newest));
        Ok(Sqlite { requests: None, readers, hub, newest: Arc::new(AtomicU64::new(newest.0)), writer: None, trouble, _lock: None })
    }

    /// Whether a process has the store in `directory` open for writing.
    pub fn in_use(directory: &Path) -> bool {
        directory.join(DATABASE).exists() && matches!(Lock::take(directory), Err(Error::Unavailable(_)))
    }

    /// The newest revision that the store in `directory` is known to have had, however damaged it may be now.
    pub fn newest_known(directory: &Path) -> Option<Revision> {
        let read = || newest_on_disk(&open_reader(&directory.join(DATABASE)).ok()?).ok();
        read().into_iter().chain(Newest::read(directory)).max()
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let gone = || Error::Unavailable("the store is shutting down, or was opened for reading alone".into());
        self.trouble.damage()?;
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Sqlite {
    /// Waits until everything queued is on disk.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn set_private(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn inode(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.ino())
}

/// The right to write the store in a directory, until it is dropped.
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes it, or says that another process has it. The directory MUST be there.
    pub fn take(directory: &Path) -> Result<Lock> {
        let path = directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failure_at(&path))?;
        file.try_lock().map_err(|_| Error::Unavailable(format!("{} is in use by another process", directory.display())))?;
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    /// Gives it back: closing alone would not, while a child that was forked a moment ago has the file open until its exec.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// A connection that may not write: beside a running server it shares the write-ahead log.
fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failure)?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS)).map_err(failure)?;
    connection.execute_batch("PRAGMA query_only=1; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-1024;").map_err(failure)?;
    keep_plans(&connection)?;
    Ok(connection)
}

/// The format of the tables that are there; `None` in an empty database.
fn format(connection: &Connection) -> Result<Option<u64>> {
    let tables: u64 = connection.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'meta'", [], |row| row.get(0)).map_err(failure)?;
    if tables == 0 {
        return Ok(None);
    }
    connection.query_row("SELECT value FROM meta WHERE name = 'format'", [], |row| row.get(0)).optional().map_err(failure)
}

/// Makes the tables, or brings those of an older version up to date.
fn make_tables(connection: &mut Connection, base: Revision) -> Result<()> {
    let format = format(connection)?;
    let make = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        match format {
            None => {
                transaction.execute_batch(SCHEMA)?;
                transaction.execute("INSERT INTO meta VALUES ('compacted', 0), ('compacted-checksum', 0), ('format', ?1)", [FORMAT])?;
                set_compacted(&transaction, base)?;
            }
            Some(_) => {
                transaction.execute_batch("ALTER TABLE log ADD COLUMN checksum INTEGER")?;
                let mut rows = transaction.prepare("SELECT key, value, created, revision, previous FROM log")?;
                let mut rows = rows.query([])?;
                while let Some(row) = rows.next()? {
                    let (key, value): (String, Option<Vec<u8>>) = (row.get(0)?, row.get(1)?);
                    let revision: u64 = row.get(3)?;
                    let checksum = check::checksum(revision, &key, value.as_deref(), row.get(2)?, row.get(4)?);
                    transaction.prepare_cached("UPDATE log SET checksum = ?1 WHERE revision = ?2")?.execute([u64::from(checksum), revision])?;
                }
                let at = transaction.query_row("SELECT value FROM meta WHERE name = 'compacted'", [], |row| row.get(0).map(Revision))?;
                transaction.execute("INSERT INTO meta VALUES ('compacted-checksum', 0)", [])?;
                set_compacted(&transaction, at)?;
                transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'format'", [FORMAT])?;
            }
        }
        transaction.commit()
    };
    match format {
        Some(FORMAT) => Ok(()),
        Some(newer) if newer > FORMAT => {
            Err(Error::Unavailable(format!("its format is {newer}, this version knows up to {FORMAT}; use a newer version")))
        }
        _ => make(connection).map_err(failure),
    }
}

fn set_compacted(transaction: &Transaction<'_>, at: Revision) -> rusqlite::Result<()> {
    transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'compacted'", [at.0])?;
    transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'compacted-checksum'", [check::checksum_of_compacted(at)])?;
    Ok(())
}

fn prepare(connection: &Connection) -> Result<()> {
    // A checkpoint writes a page once, however often the log has it: it is worth waiting for as many pages as the log may keep.
    let pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-1024;
        PRAGMA wal_autocheckpoint=3000; PRAGMA journal_size_limit=16777216;";
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS)).map_err(failure)?;
    connection.execute_batch(pragmas).map_err(failure)?;
    keep_plans(connection)
}

/// A prepared statement keeps its plan: without this SQLite makes it anew for every value that is bound to a key.
fn keep_plans(connection: &Connection) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop).map_err(failure)
}

fn write_loop(connection: &mut Connection, mut queue: mpsc::Receiver<Request>, hub: &Hub, newest: &AtomicU64, noted: &Newest, trouble: &Trouble) {
    let mut requests = Vec::with_capacity(BATCH_WRITES_MAX);
    while queue.blocking_recv_many(&mut requests, BATCH_WRITES_MAX) > 0 {
        let mut writes = Vec::new();
        let mut compactions = Vec::new();
        for request in requests.drain(..) {
            match request {
                Request::Write(write, reply) => writes.push((write, reply)),
                Request::Compact(at, reply) => compactions.push((at, reply)),
            }
        }
        if !writes.is_empty() {
            let (writes, replies): (Vec<_>, Vec<_>) = writes.into_iter().unzip();
            match commit_batch(connection, writes, Revision(newest.load(SeqCst))) {
                Ok((outcomes, events)) => {
                    if let Some(last) = events.last() {
                        noted.note(last.revision);
                        newest.store(last.revision.0, SeqCst);
                        hub.publish(&events);
                        trouble.written();
                    }
                    for (outcome, reply) in outcomes.into_iter().zip(replies) {
                        let _ = reply.send(Ok(outcome));
                    }
                }
                Err(error) => {
                    let error = failure(error);
                    trouble.note(&error);
                    for reply in replies {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
            }
        }
        for (at, reply) in compactions {
            let _ = reply.send(trouble.seen(compact(connection, at, Revision(newest.load(SeqCst)))));
        }
    }
}

fn commit_batch(connection: &mut Connection, writes: Vec<Write>, newest: Revision) -> rusqlite::Result<(Vec<Outcome>, Vec<Event>)> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut revision = newest;
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut events = Vec::with_capacity(writes.len());
    for write in writes {
        outcomes.push(apply(&transaction, write, &mut revision, &mut events)?);
    }
    if !events.is_empty() {
        transaction.commit()?;
    }
    Ok((outcomes, events))
}

fn apply(transaction: &Transaction<'_>, write: Write, revision: &mut Revision, events: &mut Vec<Event>) -> rusqlite::Result<Outcome> {
    // What stands there is looked at, not read: its value lies on other pages.
    let standing = transaction
        .prepare_cached("SELECT revision, created FROM current WHERE key = ?1")?
        .query_row([write.key()], |row| Ok((Revision(row.get(0)?), Revision(row.get(1)?))))
        .optional()?;
    let is_standing = |expected: Revision| standing.is_some_and(|(modified, _)| modified == expected);
    let (key, value) = match write {
        Write::Create { key, value } if standing.is_none() => (key, Some(value)),
        Write::Update { key, value, expected } if is_standing(expected) => (key, Some(value)),
        Write::Delete { key, expected } if is_standing(expected) => (key, None),
        lost => return Ok(Outcome::Conflict(get(transaction, lost.key())?)),
    };
    revision.0 += 1;
    let created = standing.map_or(*revision, |(_, created)| created);
    let previous = standing.map(|(modified, _)| modified.0);
    transaction.prepare_cached("INSERT INTO log (revision, key, value, created, previous, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
        params![revision.0, key, value.as_deref(), created.0, previous, check::checksum(revision.0, &key, value.as_deref(), created.0, previous)],
    )?;
    match &value {
        Some(_) if standing.is_some() => {
            transaction.prepare_cached("UPDATE current SET revision = ?2 WHERE key = ?1")?.execute(params![key, revision.0])?
        }
        Some(_) => transaction
            .prepare_cached("INSERT INTO current (key, revision, created) VALUES (?1, ?2, ?3)")?
            .execute(params![key, revision.0, created.0])?,
        None => transaction.prepare_cached("DELETE FROM current WHERE key = ?1")?.execute([&key])?,
    };
    events.push(Event { revision: *revision, key, value, previous: previous.map(Revision), created });
    Ok(Outcome::Committed(*revision))
}

fn compact(connection: &mut Connection, at: Revision, newest: Revision) -> Result<()> {
    let run = |connection: &mut Connection| -> rusqlite::Result<std::result::Result<(), Error>> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if let Err(error) = check_readable(at, compacted(&transaction)?, newest) {
            return Ok(Err(error));
        }
        // A row is needed while it is the newest of its key at `at`, unless that is a deletion.
        transaction.execute(
            "DELETE FROM log WHERE revision <= ?1 AND (value IS NULL OR EXISTS
                (SELECT 1 FROM log AS later WHERE later.key = log.key AND later.revision > log.revision AND later.revision <= ?1))",
            [at.0],
        )?;
        set_compacted(&transaction, at)?;
        transaction.commit()?;
        Ok(Ok(()))
    };
    run(connection).map_err(failure)?
}

fn compacted(connection: &Connection) -> rusqlite::Result<Revision> {
    let read = |name: &str| -> rusqlite::Result<Option<u64>> {
        connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
    };
    let (at, checksum) = (read("compacted")?.map(Revision), read("compacted-checksum")?);
    match at {
        Some(at) if checksum == Some(u64::from(check::checksum_of_compacted(at))) => Ok(at),
        _ => Err(check::rot("the revision of its last compaction is not what was written".into())),
    }
}

/// Compares a row of the log ([`ROW`]) with its checksum; returns its revision.
fn check_row(row: &Row<'_>) -> rusqlite::Result<Revision> {
    let read = || -> rusqlite::Result<(u64, bool)> {
        let revision: u64 = row.get(3)?;
        let (key, value) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_blob_or_null()?);
        let checksum: Option<u32> = row.get(5)?;
        Ok((revision, checksum == Some(check::checksum(revision, key, value, row.get(2)?, row.get(4)?))))
    };
    match read() {
        Ok((revision, true)) => Ok(Revision(revision)),
        Ok((revision, false)) => Err(check::rot(format!("the change of revision {revision} is not what was written"))),
        // A value of a wrong type, a key that is no text: SQLite takes those for granted.
        Err(_) => Err(check::rot("a change is not what was written".into())),
    }
}

fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    let modified = check_row(row)?;
    let value: Vec<u8> = row.get(1)?;
    Ok(KeyValue { key: row.get(0)?, value: Bytes::from(value), created: Revision(row.get(2)?), modified })
}

fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    let sql = format!("SELECT {ROW} FROM current LEFT JOIN log USING (revision) WHERE current.key = ?1");
    let found = connection.prepare_cached(&sql)?.query_row([key], key_value).optional()?;
    match found {
        Some(kv) if kv.key != key => Err(check::rot(format!("the key {key} leads to the value of {}", kv.key))),
        found => Ok(found),
    }
}

fn list(connection: &mut Connection, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
    let read = |connection: &mut Connection| -> rusqlite::Result<Result<Page>> {
        let transaction = connection.transaction()?;
        let newest = newest_on_disk(&transaction)?;
        let revision = at.unwrap_or(newest);
        if let Err(error) = check_readable(revision, compacted(&transaction)?, newest) {
            return Ok(Err(error));
        }
        // LEFT JOIN: a key without its row is damage, not a key that is left out.
        let sql = if revision == newest {
            format!(
                "SELECT {ROW} FROM current LEFT JOIN log USING (revision)
                 WHERE current.key >= ?1 AND (?2 IS NULL OR current.key < ?2) AND (?3 IS NULL OR current.key > ?3) AND ?5 >= 0 ORDER BY current.key LIMIT ?4"
            )
        } else {
            format!(
                "SELECT {ROW} FROM log
                 WHERE log.key >= ?1 AND (?2 IS NULL OR log.key < ?2) AND (?3 IS NULL OR log.key > ?3) AND log.value IS NOT NULL
                   AND log.revision = (SELECT max(revision) FROM log AS newer WHERE newer.key = log.key AND newer.revision <= ?5) ORDER BY log.key LIMIT ?4"
            )
        };
        let asked = if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1 };
        let mut items: Vec<KeyValue> = transaction
            .prepare_cached(&sql)?
            .query_map(params![prefix, prefix_end(prefix), after, asked, revision.0], key_value)?
            .collect::<rusqlite::Result<_>>()?;
        let more = limit > 0 && items.len() > limit;
        if more {
            items.truncate(limit);
        }
        Ok(Ok(Page { items, revision, more }))
    };
    read(connection).map_err(failure)?
}

fn newest_on_disk(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT max(1, (SELECT value FROM meta WHERE name = 'compacted'), ifnull((SELECT max(revision) FROM log), 1))")?
        .query_row([], |row| row.get(0).map(Revision))
}

/// The first key after all that start with `prefix`; `None` if there is none.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        if let Some(next) = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

/// The changes of keys under `prefix` in `(from, to]`.
fn past(connection: &mut Connection, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Event>> {
    let read = |connection: &mut Connection| -> rusqlite::Result<Result<Vec<Event>>> {
        let transaction = connection.transaction()?;
        let oldest = compacted(&transaction)?;
        if from < oldest {
            return Ok(Err(Error::Compacted { asked: from, oldest }));
        }
        let blob = |row: &Row<'_>, i| Ok::<_, rusqlite::Error>(row.get::<_, Option<Vec<u8>>>(i)?.map(Bytes::from));
        let sql = format!(
            "SELECT {ROW} FROM log
             WHERE log.revision > ?1 AND log.revision <= ?2 AND log.key >= ?3 AND (?4 IS NULL OR log.key < ?4) ORDER BY log.revision"
        );
        let events = transaction
            .prepare_cached(&sql)?
            .query_map(params![from.0, to.0, prefix, prefix_end(prefix)], |row| {
                let revision = check_row(row)?;
                let previous = row.get::<_, Option<u64>>(4)?.map(Revision);
                Ok(Event { revision, key: row.get(0)?, value: blob(row, 1)?, previous, created: Revision(row.get(2)?) })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Ok(events))
    };
    read(connection).map_err(failure)?
}

impl Readers {
    /// Runs `read` on a reading connection, on a thread that may block.
    async fn run<T: Send + 'static>(self: &Arc<Self>, read: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static) -> Result<T> {
        self.trouble.damage()?;
        let readers = self.clone();
        let work = move || {
            let idle = readers.idle.lock().pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => open_reader(&readers.path)?,
            };
            let answer = readers.trouble.seen(read(&mut connection));
            let mut idle = readers.idle.lock();
            if idle.len() < READERS_IDLE_MAX {
                idle.push(connection);
            }
            answer
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::Unavailable(error.to_string()))?
    }
}

#[async_trait::async_trait]
impl Store for Sqlite {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let key = key.to_string();
        self.readers.run(move |connection| get(connection, &key).map_err(failure)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let (prefix, after) = (prefix.to_string(), after.map(String::from));
        self.readers.run(move |connection| list(connection, &prefix, after.as_deref(), limit, at)).await
    }

    async fn commit(&self, write: Write) -> Result<Outcome> {
        self.ask(|reply| Request::Write(write, reply)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let (readers, wanted) = (self.readers.clone(), prefix.to_string());
        let oldest = readers.run(|connection| compacted(connection).map_err(failure)).await?;
        if from < oldest {
            return Err(Error::Compacted { asked: from, oldest });
        }
        Ok(self.hub.watch(prefix, from, move |published| async move {
            if from >= published {
                return Ok(Vec::new());
            }
            readers.run(move |connection| past(connection, &wanted, from, published)).await
        }))
    }

    async fn revision(&self) -> Result<Revision> {
        self.trouble.damage()?;
        if self.requests.is_some() {
            return Ok(Revision(self.newest.load(SeqCst)));
        }
        self.readers.run(|connection| newest_on_disk(connection).map_err(failure)).await
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(at, reply)).await
    }

    fn trouble(&self) -> Option<Error> {
        self.trouble.0.lock().clone()
    }

    async fn check(&self, depth: Depth) -> Result<()> {
        let standing = inode(&self.readers.path).ok();
        if standing != Some(self.readers.inode) {
            let what = if standing.is_some() { "was replaced by another file" } else { "is gone" };
            return self.trouble.seen(Err(Error::Damaged(format!("{} {what} while the server ran", self.readers.path.display()))));
        }
        match depth {
            Depth::Quick => self.trouble.damage(),
            Depth::Thorough => {
                // On a connection of its own: the others have pages in memory that the disk may no longer hold.
                let path = self.readers.path.clone();
                let look = move |_: &mut Connection| {
                    let fresh = open_reader(&path)?;
                    check::structure(&fresh).and_then(|()| check::content(&fresh))
                };
                self.readers.run(look).await
            }
        }
    }
}
