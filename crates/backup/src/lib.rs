//! Backups: where snapshots are kept, when they are taken, and how a server is brought back from one.
//!
//! [`directory`] names, lists and prunes the files of one directory; [`bucket`] keeps copies in an S3-compatible store;
//! [`schedule`] takes them by the clock; [`files`] are the keys that go along; [`restore`] puts a snapshot in the place of a
//! stopped server's SQLite store, in steps that a `kill -9` between any two leaves repeatable; [`copy`] is a running server's
//! store on another node's disk, seconds old, of which a snapshot can be made.
//!
//! What must stay true: nothing of a server is touched for a snapshot that is damaged or of another cluster; what a restore
//! replaces is kept aside; a server does not start on a restore that was not finished.
//!
//! What this crate does not know: kinds, the bytes of a snapshot (those are `store::snapshot`'s), how servers are started.

pub mod bucket;
pub mod copy;
pub mod directory;
pub mod files;
pub mod restore;
pub mod schedule;

use std::path::PathBuf;

/// Why a backup cannot be taken, found or brought back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Snapshot(#[from] store::snapshot::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{doing}")]
    At { doing: String, source: std::io::Error },
    #[error(
        "the snapshot is of another cluster (its authority is {theirs}, this server's {ours}); \
         --replace-keys makes this server that cluster, --force takes the objects alone"
    )]
    Foreign { theirs: String, ours: String },
    #[error("a server runs on {0}; stop it first (`systemctl stop regent`)")]
    Running(PathBuf),
    #[error("a restore of {0} was begun and not finished; run the same `regent snapshot restore` again")]
    Interrupted(String),
    #[error("the bucket {what}: {detail}")]
    Bucket { what: String, detail: String },
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, Error>;

fn at(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let doing = doing.into();
    move |source| Error::At { doing, source }
}

/// Seconds since 1970, now.
pub fn now_s() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// A time as it stands in file names: `2026-11-22T06-41-56Z`.
pub fn stamp(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
}
