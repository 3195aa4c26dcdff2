//! Whether the database holds what was written to it.
//!
//! SQLite notices a broken tree, not a flipped bit in a value. So each row of the log has a CRC-32 of everything in it, which
//! every read compares; and [`content`] compares what the tables say of each other. Beside the database stands a small file,
//! `newest`, with the newest revision that was ever acknowledged: a database that ends before it has lost changes (a tail
//! cut off, an old copy put in its place), although nothing in it is broken.

use crate::{Error, Result, Revision};
use rusqlite::{Connection, ErrorCode, ffi};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Why a row cannot be believed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Rot(String);

/// What stands in a row's `checksum`.
pub(super) fn checksum(revision: u64, key: &str, value: Option<&[u8]>, created: u64, previous: Option<u64>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&revision.to_le_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(&[u8::from(value.is_some()), u8::from(previous.is_some())]);
    hasher.update(value.unwrap_or_default());
    hasher.update(&created.to_le_bytes());
    hasher.update(&previous.unwrap_or_default().to_le_bytes());
    hasher.finalize()
}

/// What stands beside the one number that no row of the log covers.
pub(super) fn checksum_of_compacted(at: Revision) -> u32 {
    crc32fast::hash(&at.0.to_le_bytes())
}

/// An error that says what is wrong with a row.
pub(super) fn rot(what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(Rot(what)))
}

/// What SQLite's failures are to the store's users.
pub(super) fn failure(error: rusqlite::Error) -> Error {
    if let rusqlite::Error::FromSqlConversionFailure(_, _, source) = &error
        && let Some(Rot(what)) = source.downcast_ref::<Rot>()
    {
        return Error::Damaged(what.clone());
    }
    let full = || Error::Unwritable("its disk is full; free some space, and writes go on by themselves".into());
    match &error {
        rusqlite::Error::SqliteFailure(code, text) => match (code.code, code.extended_code) {
            (ErrorCode::DiskFull, _) => full(),
            (ErrorCode::ReadOnly, _) => Error::Unwritable("its files are read-only; mount their file system writable".into()),
            (_, ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_SHMOPEN) => full(),
            (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_TRUNCATE) => {
                Error::Unwritable("its disk takes no writes (full, read-only or failing); `dmesg` and `df` say more".into())
            }
            (ErrorCode::CannotOpen, _) => Error::Damaged("its database cannot be opened".into()),
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Error::Unavailable("its database is locked by another program".into()),
            _ => Error::Damaged(text.clone().unwrap_or_else(|| code.to_string())),
        },
        other => Error::Damaged(other.to_string()),
    }
}

/// What the file system's failures are, when the store is opened.
pub(super) fn failure_at(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::Unwritable(format!("the disk of {} is full; free some space and start again", path.display()))
        }
        std::io::ErrorKind::ReadOnlyFilesystem => {
            Error::Unwritable(format!("{} is on a read-only file system; mount it writable and start again", path.display()))
        }
        std::io::ErrorKind::PermissionDenied => Error::Unwritable(format!("{} may not be opened by this user; run as root", path.display())),
        _ => Error::Unwritable(format!("{}: {error}", path.display())),
    }
}

/// Whether the trees are sound.
pub(super) fn structure(connection: &Connection) -> Result<()> {
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failure)?;
    // SQLite's words span lines.
    let verdict = verdict.split_whitespace().collect::<Vec<_>>().join(" ");
    if verdict == "ok" { Ok(()) } else { Err(Error::Damaged(format!("its database is broken ({verdict})"))) }
}

/// Whether every row is what was written, and the tables agree.
pub(super) fn content(connection: &Connection) -> Result<()> {
    let read = || -> rusqlite::Result<Result<()>> {
        let transaction = connection.unchecked_transaction()?;
        // An empty store stands at 1 without a change.
        let compacted = super::compacted(&transaction)?.max(Revision(1));
        let mut rows = transaction.prepare("SELECT key, value, created, revision, previous, checksum FROM log ORDER BY revision")?;
        let mut rows = rows.query([])?;
        let (mut newest, mut after) = (compacted, 0);
        while let Some(row) = rows.next()? {
            let revision = super::check_row(row)?;
            newest = newest.max(revision);
            after += u64::from(revision > compacted);
        }
        let count = |sql: &str| transaction.query_row(sql, [], |row| row.get::<_, u64>(0));
        let lost = "changes are missing from its log";
        if after != newest.0 - compacted.0 {
            return Ok(Err(Error::Damaged(lost.into())));
        }
        let orphans = "SELECT count(*) FROM current LEFT JOIN log USING (revision)
             WHERE log.revision IS NULL OR log.value IS NULL OR log.key <> current.key OR log.created <> current.created";
        let missing = "SELECT count(*) FROM log WHERE value IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM log AS later WHERE later.key = log.key AND later.revision > log.revision)
             AND NOT EXISTS (SELECT 1 FROM current WHERE current.key = log.key AND current.revision = log.revision)";
        // What a row says stood before it is there, unless it is compacted.
        let broken = "SELECT count(*) FROM log LEFT JOIN log AS before ON before.revision = log.previous
             WHERE log.previous > (SELECT value FROM meta WHERE name = 'compacted') AND (before.key IS NULL OR before.key <> log.key)";
        for (sql, what) in [(orphans, "its keys and its log disagree"), (missing, "keys are missing"), (broken, lost)] {
            if count(sql)? > 0 {
                return Ok(Err(Error::Damaged(what.into())));
            }
        }
        Ok(Ok(()))
    };
    read().map_err(failure)?
}

/// The newest acknowledged revision, kept beside the database.
pub(super) struct Newest {
    file: File,
    path: PathBuf,
}

/// Revision and its CRC-32: one write, within one sector.
const NEWEST_BYTES: usize = 12;

impl Newest {
    pub(super) fn open(directory: &Path) -> Result<Newest> {
        let path = directory.join("newest");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failure_at(&path))?;
        super::set_private(&path, 0o600).map_err(failure_at(&path))?;
        Ok(Newest { file, path })
    }

    /// What is noted in a directory; `None` if nothing (or nothing readable) is.
    pub(super) fn read(directory: &Path) -> Option<Revision> {
        let bytes = std::fs::read(directory.join("newest")).ok()?;
        let (revision, sum) = (bytes.get(..8)?, bytes.get(8..NEWEST_BYTES)?);
        (crc32fast::hash(revision).to_le_bytes() == sum).then(|| u64::from_le_bytes(revision.try_into().unwrap_or_default())).map(Revision)
    }

    /// Notes what was acknowledged. Not synced: it may lag behind a power cut, but never runs ahead of the database.
    pub(super) fn note(&self, revision: Revision) {
        let mut bytes = [0; NEWEST_BYTES];
        bytes[..8].copy_from_slice(&revision.0.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..8]);
        bytes[8..].copy_from_slice(&sum.to_le_bytes());
        if let Err(error) = self.file.write_all_at(&bytes, 0) {
            tracing::debug!(%error, file = %self.path.display(), "the newest revision could not be noted");
        }
    }

    /// Refuses a database that ends before what was acknowledged.
    pub(super) fn compare(&self, newest: Revision) -> Result<()> {
        match Newest::read(self.path.parent().unwrap_or(Path::new("."))) {
            Some(noted) if noted > newest => Err(Error::Damaged(format!(
                "it ends at revision {newest}, but changes up to revision {noted} were acknowledged (to accept their loss, remove {})",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }
}
