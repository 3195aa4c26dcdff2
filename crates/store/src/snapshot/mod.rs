//! Snapshots: a whole store as of one revision in one file, the same file for every back end.
//!
//! [`save`] reads a running store page by page at one revision, so that its memory stays bounded and nobody waits for it.
//! [`verify`] reads a file to its end and says whether it is whole. [`restore_into`] makes a store equal to a snapshot:
//! it writes what differs, deletes what the snapshot does not have, and then forgets the store's past, so that every
//! watcher has to list anew. Run again after an end in its middle, it goes on from there.
//!
//! What must stay true: nothing is changed for a file that is not whole; a file has its name only when it is whole and on disk.

mod format;
mod restore;
mod save;
mod seal;

pub use format::{Blob, Content, Ending, FORMAT, Hash, Header, Item, Reader, Summary, Writer};
pub use restore::{Restored, beyond, files, restore_into};
pub use save::{Origin, SAVED_PREFIX, rewrite, save, stream, write_private};
pub use seal::{Description, Secret};

use serde::Serialize;
use std::{fs::File, io::BufReader, path::Path};

/// Why a snapshot cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this is not a snapshot of Regent")]
    NoSnapshot,
    #[error("the snapshot has format {format}, which is newer than this version of Regent reads (up to {FORMAT}); use the version that wrote it")]
    TooNew { format: u32 },
    #[error("the snapshot is damaged: {0}; use another one (`regent snapshot list`)")]
    Damaged(String),
    #[error("the snapshot is encrypted; say --passphrase-file or --key-file")]
    SecretNeeded,
    #[error("the snapshot does not open with this passphrase or key file")]
    SecretWrong,
    #[error("{0}")]
    WeakSecret(String),
    #[error("{what} has {bytes} bytes, but a snapshot takes at most {most}")]
    TooBig { what: String, bytes: u64, most: u64 },
    #[error("{path} is already there; choose another name")]
    Exists { path: String },
    #[error("the cipher failed")]
    Cipher,
    #[error(transparent)]
    Io(std::io::Error),
    #[error("{doing}")]
    At { doing: String, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] crate::Error),
    /// Somebody else writes to the store that is being restored.
    #[error("the store was written to by somebody else ({key}) while it was restored; stop the API servers and run the same command again")]
    Contended { key: String },
}

pub type Result<T> = std::result::Result<T, Error>;

/// What is known of a whole snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The SHA-256 of the file, in hexadecimal.
    pub hash: String,
    pub header: Header,
    pub summary: Summary,
    pub file_bytes: u64,
}

impl Status {
    fn new(header: Header, ending: Ending) -> Status {
        Status { hash: hex(&ending.hash), header, summary: ending.summary, file_bytes: ending.file_bytes }
    }

    /// The hash as people compare it: its first 32 bits.
    pub fn short_hash(&self) -> &str {
        &self.hash[..8.min(self.hash.len())]
    }
}

/// Opens a snapshot and reads its header.
pub fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let file = File::open(path).map_err(|source| Error::At { doing: format!("opening {}", path.display()), source })?;
    Reader::new(BufReader::with_capacity(256 * 1024, file))
}

/// Reads a snapshot to its end and says what it is; needs no secret, changes nothing.
pub fn read_status(path: &Path) -> Result<Status> {
    let reader = open(path)?;
    let header = reader.header.clone();
    Ok(Status::new(header, reader.skip_to_end()?))
}

/// Reads a snapshot to its end, content included: after this, restoring from it cannot fail for the file's sake.
pub fn verify(path: &Path, secret: Option<&Secret>) -> Result<Status> {
    // First the checksum alone: where it is right, a seal that does not open means the wrong secret, not a damaged file.
    let status = read_status(path)?;
    let mut content = open(path)?.content(secret)?;
    while content.next_item()?.is_some() {}
    content.finish()?;
    Ok(status)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| text.get(i..i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect()
}
