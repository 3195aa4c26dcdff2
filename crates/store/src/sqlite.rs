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

use crate::{Error, Event, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Write, hub::Hub, memory::check_readable};
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
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
        previous INTEGER
    );
    CREATE INDEX IF NOT EXISTS log_by_key ON log (key, revision);
    CREATE TABLE IF NOT EXISTS current (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT OR IGNORE INTO meta VALUES ('compacted', 0), ('format', 1);
";

enum Request {
    Write(Write, oneshot::Sender<Result<Outcome>>),
    Compact(Revision, oneshot::Sender<Result<()>>),
}

/// A store in one directory.
pub struct Sqlite {
    requests: Option<mpsc::Sender<Request>>,
    readers: Arc<Readers>,
    hub: Arc<Hub>,
    newest: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
    _lock: File,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// Opens the store in `directory`, making it if need be. Fails if another process has it open, or if what is there is damaged.
    pub fn open(directory: &Path) -> Result<Sqlite> {
        let io = |error: std::io::Error| Error::Damaged(format!("{}: {error}", directory.display()));
        std::fs::create_dir_all(directory).map_err(io)?;
        set_private(directory, 0o700).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|_| Error::Unavailable(format!("{} is in use by another process", directory.display())))?;
        let path = directory.join("state.db");
        let mut connection = Connection::open(&path).map_err(damaged)?;
        set_private(&path, 0o600).map_err(io)?;
        prepare(&connection)?;
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(damaged)?;
        if verdict != "ok" {
            return Err(Error::Damaged(format!("{}: {verdict}", path.display())));
        }
        connection.execute_batch(SCHEMA).map_err(damaged)?;
        let newest: u64 = connection
            .query_row("SELECT max(1, (SELECT value FROM meta WHERE name = 'compacted'), ifnull((SELECT max(revision) FROM log), 1))", [], |row| {
                row.get(0)
            })
            .map_err(damaged)?;
        let (requests, queue) = mpsc::channel(QUEUE_WRITES_MAX);
        let hub = Arc::new(Hub::new(Revision(newest)));
        let newest = Arc::new(AtomicU64::new(newest));
        let writer = {
            let (hub, newest) = (hub.clone(), newest.clone());
            let run = move || write_loop(&mut connection, queue, &hub, &newest);
            std::thread::Builder::new().name("store-writer".into()).spawn(run).map_err(io)?
        };
        let readers = Arc::new(Readers { path, idle: Mutex::new(Vec::new()) });
        Ok(Sqlite { requests: Some(requests), readers, hub, newest, writer: Some(writer), _lock: lock })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let gone = || Error::Unavailable("the store is shutting down".into());
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

fn damaged(error: rusqlite::Error) -> Error {
    Error::Damaged(error.to_string())
}

fn prepare(connection: &Connection) -> Result<()> {
    let pragmas =
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY; PRAGMA journal_size_limit=16777216; PRAGMA cache_size=-1024;";
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS)).map_err(damaged)?;
    connection.execute_batch(pragmas).map_err(damaged)
}

fn write_loop(connection: &mut Connection, mut queue: mpsc::Receiver<Request>, hub: &Hub, newest: &AtomicU64) {
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
                        newest.store(last.revision.0, SeqCst);
                        hub.publish(&events);
                    }
                    for (outcome, reply) in outcomes.into_iter().zip(replies) {
                        let _ = reply.send(Ok(outcome));
                    }
                }
                Err(error) => {
                    let error = damaged(error);
                    tracing::error!(%error, "a commit failed; nothing of it was kept");
                    for reply in replies {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
            }
        }
        for (at, reply) in compactions {
            let _ = reply.send(compact(connection, at, Revision(newest.load(SeqCst))));
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
    let standing = get(transaction, write.key())?;
    let (key, value) = match write {
        Write::Create { key, value } if standing.is_none() => (key, Some(value)),
        Write::Update { key, value, expected } if standing.as_ref().is_some_and(|kv| kv.modified == expected) => (key, Some(value)),
        Write::Delete { key, expected } if standing.as_ref().is_some_and(|kv| kv.modified == expected) => (key, None),
        _ => return Ok(Outcome::Conflict(standing)),
    };
    revision.0 += 1;
    let created = standing.as_ref().map_or(*revision, |kv| kv.created);
    let previous = standing.as_ref().map(|kv| kv.modified.0);
    transaction.prepare_cached("INSERT INTO log (revision, key, value, created, previous) VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        revision.0,
        key,
        value.as_deref(),
        created.0,
        previous
    ])?;
    match &value {
        Some(_) => transaction
            .prepare_cached("INSERT OR REPLACE INTO current (key, revision, created) VALUES (?1, ?2, ?3)")?
            .execute(params![key, revision.0, created.0])?,
        None => transaction.prepare_cached("DELETE FROM current WHERE key = ?1")?.execute([&key])?,
    };
    events.push(Event { revision: *revision, key, value, previous: standing.map(|kv| kv.value), created });
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
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'compacted'", [at.0])?;
        transaction.commit()?;
        Ok(Ok(()))
    };
    run(connection).map_err(damaged)?
}

fn compacted(connection: &Connection) -> rusqlite::Result<Revision> {
    connection.prepare_cached("SELECT value FROM meta WHERE name = 'compacted'")?.query_row([], |row| row.get(0).map(Revision))
}

fn key_value(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyValue> {
    let value: Vec<u8> = row.get(1)?;
    Ok(KeyValue { key: row.get(0)?, value: Bytes::from(value), created: Revision(row.get(2)?), modified: Revision(row.get(3)?) })
}

fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    connection
        .prepare_cached("SELECT log.key, log.value, log.created, log.revision FROM current JOIN log USING (revision) WHERE current.key = ?1")?
        .query_row([key], key_value)
        .optional()
}

fn list(connection: &mut Connection, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
    let read = |connection: &mut Connection| -> rusqlite::Result<Result<Page>> {
        let transaction = connection.transaction()?;
        let newest = newest_on_disk(&transaction)?;
        let revision = at.unwrap_or(newest);
        if let Err(error) = check_readable(revision, compacted(&transaction)?, newest) {
            return Ok(Err(error));
        }
        let sql = if revision == newest {
            "SELECT log.key, log.value, log.created, log.revision FROM current JOIN log USING (revision)
             WHERE current.key >= ?1 AND (?2 IS NULL OR current.key < ?2) AND (?3 IS NULL OR current.key > ?3) AND ?5 >= 0 ORDER BY current.key LIMIT ?4"
        } else {
            "SELECT log.key, log.value, log.created, log.revision FROM log
             WHERE log.key >= ?1 AND (?2 IS NULL OR log.key < ?2) AND (?3 IS NULL OR log.key > ?3) AND log.value IS NOT NULL
               AND log.revision = (SELECT max(revision) FROM log AS newer WHERE newer.key = log.key AND newer.revision <= ?5) ORDER BY log.key LIMIT ?4"
        };
        let asked = if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1 };
        let mut items: Vec<KeyValue> = transaction
            .prepare_cached(sql)?
            .query_map(params![prefix, prefix_end(prefix), after, asked, revision.0], key_value)?
            .collect::<rusqlite::Result<_>>()?;
        let more = limit > 0 && items.len() > limit;
        if more {
            items.truncate(limit);
        }
        Ok(Ok(Page { items, revision, more }))
    };
    read(connection).map_err(damaged)?
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
        let blob = |row: &rusqlite::Row<'_>, i| Ok::<_, rusqlite::Error>(row.get::<_, Option<Vec<u8>>>(i)?.map(Bytes::from));
        let events = transaction
            .prepare_cached(
                "SELECT log.revision, log.key, log.value, before.value, log.created FROM log LEFT JOIN log AS before ON before.revision = log.previous
                 WHERE log.revision > ?1 AND log.revision <= ?2 AND log.key >= ?3 AND (?4 IS NULL OR log.key < ?4) ORDER BY log.revision",
            )?
            .query_map(params![from.0, to.0, prefix, prefix_end(prefix)], |row| {
                Ok(Event { revision: Revision(row.get(0)?), key: row.get(1)?, value: blob(row, 2)?, previous: blob(row, 3)?, created: Revision(row.get(4)?) })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Ok(events))
    };
    read(connection).map_err(damaged)?
}

impl Readers {
    /// Runs `read` on a reading connection, on a thread that may block.
    async fn run<T: Send + 'static>(self: &Arc<Self>, read: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let readers = self.clone();
        let work = move || {
            let idle = readers.idle.lock().pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => {
                    let connection = Connection::open(&readers.path).map_err(damaged)?;
                    prepare(&connection)?;
                    connection
                }
            };
            let answer = read(&mut connection);
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
        self.readers.run(move |connection| get(connection, &key).map_err(damaged)).await
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
        let oldest = readers.run(|connection| compacted(connection).map_err(damaged)).await?;
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
        Ok(Revision(self.newest.load(SeqCst)))
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(at, reply)).await
    }
}
