//! A copy of another server's store on this disk: everything as of one revision, and a log of what came after.
//!
//! ```text
//! key                    32 random bytes, for this disk alone (0600)
//! base.snapshot          a snapshot sealed with that key, with the cluster's keys and its epoch in it
//! log.<hash of the base> one record per batch: u32 length, 12 bytes nonce, the batch sealed and bound to its place
//! ```
//!
//! A new base is written whole beside the old one and takes its place in one step; as the log's name is that of its base, an
//! old log is never read on top of a new base. A record is on disk when [`Copy::append`] returns. What was cut off at the end
//! of the log in a power cut is cut away: the server is asked for it again. A record in the middle that does not open is
//! damage: the copy is refused as a whole, and begun anew from the server.
//!
//! [`Copy::materialise`] makes one snapshot of base and log, from which a server is brought back as from any other
//! ([`crate::restore`]).
//!
//! What must stay true: while a new base is on its way the old copy can be used; nothing is used that does not open and fit.

use crate::{Error, Result, at};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use store::{
    KeyValue, Revision,
    copy::{BATCH_BYTES_MAX, Batch, EPOCH_KEY},
    snapshot::{self, Header, Item, Reader, Secret, Status, write_private},
    sqlite::Lock,
};

const KEY: &str = "key";
const KEY_BYTES: usize = 32;
const BASE: &str = "base.snapshot";
const LOG_PREFIX: &str = "log.";
/// A log longer than this, and longer than its base, is given up for a new base.
pub const LOG_BYTES_MAX: u64 = 64 << 20;
/// What sealing adds to a batch.
const SEAL_BYTES: usize = 16;

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The cluster that it is of: the fingerprint of its authority.
    pub cluster: String,
    /// Everything up to here is on disk.
    pub revision: Revision,
    /// The server's time at which this was so, in milliseconds of Unix time.
    pub at_unix_ms: u64,
    pub log_bytes: u64,
}

/// A copy that is whole.
pub struct Copy {
    directory: PathBuf,
    secret: Secret,
    base: Status,
    seal: RandomizedNonceKey,
    log: File,
    records: u64,
    progress: Progress,
    /// One writer at a time; `None` for a look at it.
    _lock: Option<Lock>,
}

/// What is found in a copy's directory.
pub enum Found {
    Whole(Box<Copy>),
    /// Nothing yet.
    Nothing,
    /// Something that cannot be used, and why.
    Damaged(String),
}

impl Copy {
    /// Opens the copy in this directory and reads it to its end.
    pub fn open(directory: &Path) -> Result<Found> {
        if !directory.join(BASE).exists() {
            return Ok(Found::Nothing);
        }
        match Copy::read(directory, Some(Lock::take(directory)?), |_| {}) {
            Ok(copy) => Ok(Found::Whole(Box::new(copy))),
            Err(Error::Snapshot(error @ (snapshot::Error::Io(_) | snapshot::Error::At { .. }))) => Err(error.into()),
            Err(error @ Error::At { .. }) => Err(error),
            Err(error) => Ok(Found::Damaged(error.to_string())),
        }
    }

    /// Reads all of it. Who does not hold the lock leaves the end of the log as it is: somebody may be writing there.
    fn read(directory: &Path, lock: Option<Lock>, mut each: impl FnMut(Batch)) -> Result<Copy> {
        let secret = secret(directory)?;
        let base = snapshot::verify(&directory.join(BASE), Some(&secret))?;
        let seal = log_key(&secret, &base.hash)?;
        let path = log_path(directory, &base.hash);
        let mut log =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(at(format!("opening {}", path.display())))?;
        let mut progress = Progress {
            cluster: base.header.cluster.clone(),
            revision: Revision(base.header.revision),
            at_unix_ms: base.header.created_at_s.saturating_mul(1000),
            log_bytes: 0,
        };
        let length = log.metadata().map_err(at(format!("reading {}", path.display())))?.len();
        let (mut records, mut reader) = (0, std::io::BufReader::new(&mut log));
        while progress.log_bytes < length {
            let (bytes, batch) = match read_record(&mut reader, length - progress.log_bytes, &seal, &base.hash, records)
                .map_err(at(format!("reading {}", path.display())))?
            {
                Record::Batch(bytes, batch) if batch.after == progress.revision => (bytes, batch),
                Record::CutOff => break,
                _ => return Err(Error::Refused(format!("record {records} of its log does not open or does not fit"))),
            };
            records += 1;
            progress.log_bytes += bytes;
            (progress.revision, progress.at_unix_ms) = (batch.upto, batch.at_unix_ms);
            each(batch);
        }
        drop(reader);
        if progress.log_bytes < length && lock.is_some() {
            tracing::warn!(bytes = length - progress.log_bytes, "the end of the copy's log was cut off; the server is asked for it again");
            log.set_len(progress.log_bytes).and_then(|()| log.sync_all()).map_err(at(format!("cutting {}", path.display())))?;
        }
        Ok(Copy { directory: directory.to_owned(), secret, base, seal, log, records, progress, _lock: lock })
    }

    /// Begins a copy, or begins it anew: takes a whole stream of [`snapshot::stream`] in. What was there before stays until
    /// the new base is whole and on disk. `cluster`: refuse those of another.
    pub fn begin(directory: &Path, stream: impl Read, cluster: Option<&str>) -> Result<Copy> {
        pki::files::create_directory(directory).map_err(|error| Error::Refused(error.to_string()))?;
        let lock = Lock::take(directory)?;
        let secret = match secret(directory) {
            Ok(secret) => secret,
            Err(_) => make_secret(directory)?,
        };
        let reader = Reader::new(stream)?;
        let header = reader.header.clone();
        if let Some(ours) = cluster
            && ours != header.cluster
        {
            return Err(Error::Refused("the server's store is of another cluster".into()));
        }
        let mut content = reader.content(None)?;
        let base = snapshot::rewrite(&directory.join(BASE), header, Some(&secret), |writer| {
            while let Some(item) = content.next_item()? {
                match item {
                    Item::File(blob) => writer.file(&blob)?,
                    Item::Key(kv) => writer.key(&kv)?,
                }
            }
            // Only a stream that was whole gets a name.
            content.finish().map(drop)
        })?;
        let log = log_path(directory, &base.hash);
        for entry in fs::read_dir(directory).map_err(at(format!("reading {}", directory.display())))?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(LOG_PREFIX) && entry.path() != log {
                let _ = fs::remove_file(entry.path());
            }
        }
        Copy::read(directory, Some(lock), |_| {})
    }

    /// How far the copy in this directory is, though another process may be keeping it.
    pub fn look(directory: &Path) -> Result<Progress> {
        Ok(Copy::read(directory, None, |_| {})?.progress)
    }

    /// The cluster's keys in it.
    pub fn files(&self) -> Result<Vec<snapshot::Blob>> {
        Ok(snapshot::files(&self.directory.join(BASE), Some(&self.secret))?)
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether a new base would be shorter than base and log together.
    pub fn is_long(&self) -> bool {
        self.progress.log_bytes > LOG_BYTES_MAX.max(self.base.file_bytes)
    }

    /// Takes a batch in; when it returns, that is on disk. A batch that does not follow is refused.
    pub fn append(&mut self, batch: &Batch) -> Result<()> {
        if batch.after != self.progress.revision {
            return Err(Error::Refused(format!("the batch follows revision {}, the copy is at {}", batch.after, self.progress.revision)));
        }
        if batch.changes.is_empty() && batch.upto == batch.after {
            // As whole as before, at a later time: not worth a write.
            self.progress.at_unix_ms = batch.at_unix_ms;
            return Ok(());
        }
        let cipher = |_| Error::Refused("the cipher failed".into());
        let mut sealed = batch.encode();
        let nonce = self.seal.seal_in_place_append_tag(place(&self.base.hash, self.records), &mut sealed).map_err(cipher)?;
        let mut record = Vec::with_capacity(4 + NONCE_LEN + sealed.len());
        record.extend_from_slice(&u32::try_from(sealed.len()).map_err(|_| Error::Refused("a batch is too long".into()))?.to_le_bytes());
        record.extend_from_slice(nonce.as_ref());
        record.extend_from_slice(&sealed);
        let doing = || format!("writing the copy in {}", self.directory.display());
        if let Err(error) = self.log.write_all(&record).and_then(|()| self.log.sync_data()) {
            // What stands half there goes, so that the next attempt follows what is whole.
            let _ = self.log.set_len(self.progress.log_bytes);
            return Err(at(doing())(error));
        }
        self.records += 1;
        self.progress.log_bytes += record.len() as u64;
        (self.progress.revision, self.progress.at_unix_ms) = (batch.upto, batch.at_unix_ms);
        Ok(())
    }

    /// Makes one snapshot of all that the copy holds, sealed as the copy is; answers with what the store said of its epoch.
    pub fn materialise(directory: &Path, into: &Path) -> Result<Materialised> {
        let mut newer: BTreeMap<String, Option<KeyValue>> = BTreeMap::new();
        let copy = Copy::read(directory, None, |batch| {
            for change in batch.changes {
                let kv = change.value.map(|value| KeyValue { key: change.key.clone(), value, created: change.created, modified: change.revision });
                newer.insert(change.key, kv);
            }
        })?;
        let header =
            Header { revision: copy.progress.revision.0, created_at_s: copy.progress.at_unix_ms / 1000, seal: None, ..copy.base.header.clone() };
        let mut content = snapshot::open(&directory.join(BASE))?.content(Some(&copy.secret))?;
        let mut epoch = None;
        let mut newer = newer.into_iter().peekable();
        let status = snapshot::rewrite(into, header, Some(&copy.secret), |writer| {
            let mut put = |writer: &mut snapshot::Writer<_>, kv: KeyValue| -> snapshot::Result<()> {
                match kv.key.as_str() {
                    EPOCH_KEY => epoch = Some(kv.value),
                    key if key == store::compaction::KEY => {}
                    _ => writer.key(&kv)?,
                }
                Ok(())
            };
            loop {
                let item = content.next_item()?;
                if let Some(Item::File(blob)) = &item {
                    writer.file(blob)?;
                    continue;
                }
                let upto = match &item {
                    Some(Item::Key(kv)) => Some(kv.key.as_str()),
                    _ => None,
                };
                // What came later stands before, in place of, or after all of the base.
                let mut replaced = false;
                while let Some((key, change)) = newer.next_if(|(key, _)| upto.is_none_or(|upto| key.as_str() <= upto)) {
                    replaced |= Some(key.as_str()) == upto;
                    if let Some(kv) = change {
                        put(writer, kv)?;
                    }
                }
                match item {
                    Some(Item::Key(kv)) if !replaced => put(writer, kv)?,
                    Some(_) => {}
                    None => break,
                }
            }
            content.finish().map(drop)
        })?;
        Ok(Materialised { status, secret: copy.secret, epoch, progress: copy.progress })
    }
}

/// What [`Copy::materialise`] has made.
pub struct Materialised {
    pub status: Status,
    /// What opens it.
    pub secret: Secret,
    /// The value of [`EPOCH_KEY`].
    pub epoch: Option<Bytes>,
    pub progress: Progress,
}

enum Record {
    Batch(u64, Batch),
    /// The log ends before the record does.
    CutOff,
    Unusable,
}

/// Reads a record, of which at most `left` bytes can be there.
fn read_record(source: &mut impl Read, left: u64, seal: &RandomizedNonceKey, base: &str, number: u64) -> std::io::Result<Record> {
    const HEAD: u64 = 4 + NONCE_LEN as u64;
    if left < HEAD {
        return Ok(Record::CutOff);
    }
    let (mut length, mut nonce) = ([0; 4], [0; NONCE_LEN]);
    source.read_exact(&mut length)?;
    source.read_exact(&mut nonce)?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > (BATCH_BYTES_MAX + SEAL_BYTES) as u64 {
        return Ok(Record::Unusable);
    }
    if left - HEAD < length {
        return Ok(Record::CutOff);
    }
    let mut sealed = vec![0; length as usize];
    source.read_exact(&mut sealed)?;
    let is_last = left - HEAD == length;
    let opened = seal.open_in_place(Nonce::from(&nonce), place(base, number), &mut sealed).ok().map(|text| Bytes::copy_from_slice(text));
    Ok(match opened.and_then(|text| Batch::decode(&text).ok()) {
        Some(batch) => Record::Batch(HEAD + length, batch),
        // In a power cut a file may have its length before it has its content.
        None if is_last => Record::CutOff,
        None => Record::Unusable,
    })
}

/// What binds a record to its place: the base that it follows, and its number.
fn place(base: &str, number: u64) -> Aad<Vec<u8>> {
    let mut bound = base.as_bytes().to_vec();
    bound.extend_from_slice(&number.to_le_bytes());
    Aad::from(bound)
}

fn log_path(directory: &Path, base: &str) -> PathBuf {
    directory.join(format!("{LOG_PREFIX}{}", base.get(..16).unwrap_or(base)))
}

fn secret(directory: &Path) -> Result<Secret> {
    let path = directory.join(KEY);
    Ok(Secret::key_file(fs::read(&path).map_err(|error| Error::Refused(format!("{}: {error}", path.display())))?)?)
}

fn make_secret(directory: &Path) -> Result<Secret> {
    let mut key = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| Error::Refused("the machine gives no random numbers".into()))?;
    write_private(&directory.join(KEY), &key, 0o600)?;
    Ok(Secret::key_file(key)?)
}

/// The key of the log's records: of this disk, and of this base.
fn log_key(secret: &Secret, base: &str) -> Result<RandomizedNonceKey> {
    let Secret::KeyFile(content) = secret else { return Err(Error::Refused("a copy is sealed with a key file".into())) };
    let failed = |_| Error::Refused("the cipher failed".into());
    let mut key = [0; KEY_BYTES];
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, base.as_bytes()).extract(content);
    secret.expand(&[b"regent store copy log"], hkdf::HKDF_SHA256).and_then(|material| material.fill(&mut key)).map_err(failed)?;
    RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(failed)
}
