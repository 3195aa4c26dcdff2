//! Saving: from a store into a file.

use super::{Blob, Error, Header, Result, Secret, Status, Writer, format::Ending};
use crate::{KeyValue, Revision, Store};
use bytes::{Bytes, BytesMut};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The keys that a snapshot holds: the objects. What a back end keeps beside them is its own affair.
pub const SAVED_PREFIX: &str = "/registry/";
/// Whether a key under [`SAVED_PREFIX`] is an object's. The others are how servers and restores agree among themselves.
pub(super) fn is_saved(key: &str) -> bool {
    is_copied(key) && key != crate::copy::EPOCH_KEY
}

/// A copy of the store also knows whose it is.
fn is_copied(key: &str) -> bool {
    key != crate::compaction::KEY && key != crate::etcd::restore::KEY
}

/// Keys that are read from the store at once.
const PAGE_KEYS: usize = 500;
/// Pages that may wait for the disk.
const PAGES_WAITING_MAX: usize = 2;
/// Bytes of a piece of a stream, and pieces that may wait for the network.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_WAITING_MAX: usize = 8;
/// How often a snapshot is begun anew because the store compacted its revision away meanwhile.
const ATTEMPTS: usize = 3;

/// What a snapshot is of, beside the store's content.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The fingerprint of the cluster's authority.
    pub cluster: String,
    /// `sqlite`, `etcd` or `memory`.
    pub store: String,
    /// The version of Regent.
    pub regent: String,
    pub created_at_s: u64,
    /// What the store alone does not hold.
    pub files: Vec<Blob>,
}

/// Saves everything as of one revision to a new file, which has mode 0600 and gets its name when it is whole and on disk.
pub async fn save(store: &dyn Store, origin: &Origin, path: &Path, secret: Option<&Secret>) -> Result<Status> {
    if path.exists() {
        return Err(Error::Exists { path: path.display().to_string() });
    }
    let mut attempt = 1;
    loop {
        match attempt_save(store, origin, path, secret).await {
            Err(Error::Store(crate::Error::Compacted { .. })) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

async fn attempt_save(store: &dyn Store, origin: &Origin, path: &Path, secret: Option<&Secret>) -> Result<Status> {
    let (path, files, secret) = (path.to_path_buf(), origin.files.clone(), secret.cloned());
    pass(store, origin, is_saved, move |header, waiting, is_complete| write_file(&path, header, &files, secret.as_ref(), waiting, is_complete)).await
}

type Waiting = mpsc::Receiver<Vec<KeyValue>>;
type Completion = tokio::sync::oneshot::Receiver<()>;

/// Reads everything as of one revision, page by page, and has it written meanwhile where writing may block.
async fn pass<T: Send + 'static>(
    store: &dyn Store,
    origin: &Origin,
    is_wanted: fn(&str) -> bool,
    write: impl FnOnce(Header, Waiting, Completion) -> Result<T> + Send + 'static,
) -> Result<T> {
    let first = store.list(SAVED_PREFIX, None, PAGE_KEYS, None).await?;
    let revision = first.revision;
    let header = header(origin, revision);
    let (pages, waiting) = mpsc::channel::<Vec<KeyValue>>(PAGES_WAITING_MAX);
    let (complete, is_complete) = tokio::sync::oneshot::channel();
    let writer = tokio::task::spawn_blocking(move || write(header, waiting, is_complete));
    let read = read_pages(store, first, revision, &pages, is_wanted).await;
    // Told before the pages end, for the writer looks when they do.
    if read.is_ok() {
        let _ = complete.send(());
    } else {
        drop(complete);
    }
    drop(pages);
    let written = writer.await.map_err(|error| Error::Io(std::io::Error::other(error)))?;
    // A writer that failed (a full disk) is why its reader could not go on; the store's own failure is told first.
    match read {
        Err(Some(error)) => Err(error.into()),
        _ => written,
    }
}

fn header(origin: &Origin, revision: Revision) -> Header {
    Header {
        format: super::FORMAT,
        regent: origin.regent.clone(),
        cluster: origin.cluster.clone(),
        store: origin.store.clone(),
        revision: revision.0,
        created_at_s: origin.created_at_s,
        seal: None,
    }
}

/// What [`save`] would write, piece by piece, and beside the objects what a copy must know. An error is the last piece.
pub fn stream(store: Arc<dyn Store>, origin: Origin) -> ReceiverStream<Result<Bytes>> {
    let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    tokio::spawn(async move {
        if let Err(error) = send_pieces(&*store, &origin, &pieces).await {
            let _ = pieces.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_pieces(store: &dyn Store, origin: &Origin, pieces: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
    let (files, out) = (origin.files.clone(), Pieces { out: pieces.clone(), piece: BytesMut::new() });
    let write = move |header, waiting, is_complete| write_all(Writer::new(out, header, None)?, &files, waiting, is_complete)?.finish().map(drop);
    pass(store, origin, is_copied, write).await
}

/// Bytes in pieces, for whoever takes them.
struct Pieces {
    out: mpsc::Sender<Result<Bytes>>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(buffer);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(buffer.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        let piece = self.piece.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.out.blocking_send(Ok(piece)).map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))
    }
}

/// Reads every page at `revision`. `Err(None)`: nobody takes them any more.
async fn read_pages(
    store: &dyn Store,
    first: crate::Page,
    revision: Revision,
    pages: &mpsc::Sender<Vec<KeyValue>>,
    is_wanted: fn(&str) -> bool,
) -> std::result::Result<(), Option<crate::Error>> {
    let mut page = first;
    loop {
        let (last, more) = (page.items.last().map(|item| item.key.clone()), page.more);
        page.items.retain(|kv| is_wanted(&kv.key));
        pages.send(page.items).await.map_err(|_| None)?;
        match last {
            Some(last) if more => page = store.list(SAVED_PREFIX, Some(&last), PAGE_KEYS, Some(revision)).await.map_err(Some)?,
            _ => return Ok(()),
        }
    }
}

fn write_file(
    path: &Path,
    header: Header,
    files: &[Blob],
    secret: Option<&Secret>,
    pages: mpsc::Receiver<Vec<KeyValue>>,
    complete: tokio::sync::oneshot::Receiver<()>,
) -> Result<Status> {
    let mut temporary = Temporary::beside(path)?;
    let writer = Writer::new(BufWriter::new(temporary.file()?), header, secret)?;
    let (out, summary, hash) = write_all(writer, files, pages, complete)?.finish()?;
    let file = out.into_inner().map_err(|error| Error::Io(error.into_error()))?;
    let file_bytes = file.metadata().map_err(Error::Io)?.len();
    // Sealing was decided in the writer; the header is told as it stands in the file.
    temporary.keep(path)?;
    let header = super::open(path)?.header;
    Ok(Status::new(header, Ending { summary, hash, file_bytes }))
}

/// Everything but the end.
fn write_all<W: Write>(
    mut writer: Writer<W>,
    files: &[Blob],
    mut pages: mpsc::Receiver<Vec<KeyValue>>,
    mut complete: tokio::sync::oneshot::Receiver<()>,
) -> Result<Writer<W>> {
    for blob in files {
        writer.file(blob)?;
    }
    while let Some(page) = pages.blocking_recv() {
        for kv in &page {
            writer.key(kv)?;
        }
    }
    if complete.try_recv().is_err() {
        return Err(Error::Io(std::io::Error::other("the store could not be read to its end")));
    }
    Ok(writer)
}

/// Writes a snapshot from what another one holds: the same items, sealed or not, in a file that has its name when it is whole
/// and on disk. `fill` puts in what belongs there.
pub fn rewrite(
    path: &Path,
    header: Header,
    secret: Option<&Secret>,
    fill: impl FnOnce(&mut Writer<BufWriter<File>>) -> Result<()>,
) -> Result<Status> {
    let mut temporary = Temporary::beside(path)?;
    let mut writer = Writer::new(BufWriter::new(temporary.file()?), header, secret)?;
    fill(&mut writer)?;
    let (out, summary, hash) = writer.finish()?;
    let file = out.into_inner().map_err(|error| Error::Io(error.into_error()))?;
    let file_bytes = file.metadata().map_err(Error::Io)?.len();
    temporary.keep(path)?;
    let header = super::open(path)?.header;
    Ok(Status::new(header, Ending { summary, hash, file_bytes }))
}

/// A file that is gone again unless it is kept.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Temporary> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::Cipher)?;
        let path = path.with_file_name(format!(".{name}.{}", super::hex(&random)));
        Ok(Temporary { path, kept: false })
    }

    fn file(&self) -> Result<File> {
        let doing = || format!("writing {}", self.path.display());
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path).map_err(|source| Error::At { doing: doing(), source })
    }

    /// Puts the file on disk and then in its place.
    fn keep(&mut self, path: &Path) -> Result<()> {
        let at = |source| Error::At { doing: format!("writing {}", path.display()), source };
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(at)?;
        fs::rename(&self.path, path).map_err(at)?;
        self.kept = true;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Puts a file in its place, whole or not at all, with its mode from the first byte.
pub fn write_private(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut temporary = Temporary::beside(path)?;
    let at = |source| Error::At { doing: format!("writing {}", path.display()), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o777).open(&temporary.path).map_err(at)?;
    file.write_all(content).map_err(at)?;
    temporary.keep(path)
}
