//! The audit log's file: written by one thread, turned over by size, old ones removed by number and age.
//!
//! Events wait in a queue that is bounded in number and in bytes. When it is full, whoever has an event waits a moment; what finds no
//! room even then is dropped, counted (`apiserver_audit_error_total`) and said in the server's log: never silently.

use parking_lot::Mutex;
use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Events that may wait for the disk.
const EVENTS_MAX: usize = 10_000;
/// Bytes of them.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an event may wait for room.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long the end of the server waits for what is still to be written.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// A time in a name, as Kubernetes' log has it.
const TIME_IN_NAME: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// Where and how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `-` is the standard output.
    pub path: PathBuf,
    /// Days after which old files are removed; 0: never (`--audit-log-maxage`).
    pub age_days_max: u64,
    /// Old files that are kept; 0: all (`--audit-log-maxbackup`).
    pub backups_max: usize,
    /// Megabytes after which a new file is begun; 0: 100 (`--audit-log-maxsize`).
    pub size_megabytes_max: u64,
}

enum Message {
    /// A line, and the room that it takes.
    Line(Vec<u8>, tokio::sync::OwnedSemaphorePermit),
    /// Says when everything before it is on its way to the disk.
    Flush(oneshot::Sender<()>),
}

/// The way to the thread.
pub struct Log {
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    pub written: AtomicU64,
    pub lost: Arc<AtomicU64>,
    said: Mutex<Option<SystemTime>>,
}

impl Log {
    /// Opens the file and starts the thread.
    pub fn start(settings: Settings) -> std::io::Result<Log> {
        let mut file = Rotating::open(settings)?;
        let (queue, mut waiting) = mpsc::channel::<Message>(EVENTS_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let failed = lost.clone();
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            let written = |file: &mut Rotating, line: &[u8]| {
                if let Err(error) = file.write(line) {
                    failed.fetch_add(1, Relaxed);
                    tracing::error!(%error, path = %file.settings.path.display(), "an audit event could not be written");
                }
            };
            while let Some(message) = waiting.blocking_recv() {
                let mut next = Some(message);
                let mut flushed = Vec::new();
                while let Some(message) = next {
                    match message {
                        Message::Line(line, room) => {
                            written(&mut file, &line);
                            drop(room);
                        }
                        Message::Flush(done) => flushed.push(done),
                    }
                    next = waiting.try_recv().ok();
                }
                if let Err(error) = file.flush() {
                    tracing::error!(%error, path = %file.settings.path.display(), "the audit log could not be written");
                }
                for done in flushed {
                    // Whoever asked may have left.
                    let _ = done.send(());
                }
            }
        })?;
        Ok(Log { queue, room: Arc::new(Semaphore::new(BYTES_MAX)), written: AtomicU64::new(0), lost, said: Mutex::default() })
    }

    /// Hands over one event. Waits for room, but not for the disk.
    pub async fn write(&self, line: Vec<u8>) {
        let bytes = u32::try_from(line.len().min(BYTES_MAX)).unwrap_or(u32::MAX);
        let queued = async {
            let room = self.room.clone().acquire_many_owned(bytes).await.ok()?;
            self.queue.send(Message::Line(line, room)).await.ok()
        };
        match tokio::time::timeout(WAIT_MAX, queued).await {
            Ok(Some(())) => self.count(),
            _ => self.lose(),
        }
    }

    /// The same where nobody can wait: at the end of a stream.
    pub fn write_now(&self, line: Vec<u8>) {
        let bytes = u32::try_from(line.len().min(BYTES_MAX)).unwrap_or(u32::MAX);
        let queued = self.room.clone().try_acquire_many_owned(bytes).is_ok_and(|room| self.queue.try_send(Message::Line(line, room)).is_ok());
        if queued { self.count() } else { self.lose() }
    }

    fn count(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    fn lose(&self) {
        let lost = self.lost.fetch_add(1, Relaxed) + 1;
        let (mut said, now) = (self.said.lock(), SystemTime::now());
        if said.is_none_or(|last| now.duration_since(last).is_ok_and(|since| since >= WAIT_MAX)) {
            *said = Some(now);
            tracing::error!(lost, "audit events are lost: the log cannot be written as fast as they come");
        }
    }

    /// Waits, but not for ever, until everything so far is written.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // The thread answers or is gone.
                let _ = written.await;
            }
        };
        if tokio::time::timeout(FLUSH_MAX, flushed).await.is_err() {
            tracing::error!("the last audit events could not be written in time");
        }
    }
}

/// A file that is turned over.
struct Rotating {
    settings: Settings,
    out: Option<BufWriter<File>>,
    bytes: u64,
}

impl Rotating {
    fn open(settings: Settings) -> std::io::Result<Rotating> {
        if settings.path == Path::new("-") {
            return Ok(Rotating { settings, out: None, bytes: 0 });
        }
        if let Some(directory) = settings.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        let file = Rotating::file(&settings.path)?;
        let bytes = file.metadata()?.len();
        Ok(Rotating { settings, out: Some(BufWriter::new(file)), bytes })
    }

    fn file(path: &Path) -> std::io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }

    fn limit_bytes(&self) -> u64 {
        let megabytes = if self.settings.size_megabytes_max == 0 { 100 } else { self.settings.size_megabytes_max };
        megabytes.saturating_mul(1024 * 1024)
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.out.is_some() && self.bytes > 0 && self.bytes + line.len() as u64 > self.limit_bytes() {
            self.turn_over()?;
        }
        match &mut self.out {
            Some(out) => out.write_all(line)?,
            None => std::io::stdout().lock().write_all(line)?,
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.out {
            Some(out) => out.flush(),
            None => std::io::stdout().lock().flush(),
        }
    }

    /// Puts the file aside under the time, begins a new one, and removes those that are too many or too old.
    fn turn_over(&mut self) -> std::io::Result<()> {
        self.flush()?;
        let now = jiff::Timestamp::now();
        let (stem, extension) = parts(&self.settings.path);
        let aside = self.settings.path.with_file_name(format!("{stem}-{}{extension}", now.strftime(TIME_IN_NAME)));
        fs::rename(&self.settings.path, aside)?;
        self.out = Some(BufWriter::new(Rotating::file(&self.settings.path)?));
        self.bytes = 0;
        for old in self.superfluous(now)? {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    fn superfluous(&self, now: jiff::Timestamp) -> std::io::Result<Vec<PathBuf>> {
        let (stem, extension) = parts(&self.settings.path);
        let directory = self.settings.path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut old = Vec::new();
        for file in fs::read_dir(directory)? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            let time = time.and_then(|time| jiff::fmt::strtime::parse(TIME_IN_NAME, time).ok()?.to_datetime().ok());
            if let Some(at) = time.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok()) {
                old.push((at.timestamp(), path));
            }
        }
        old.sort_by(|a, b| b.cmp(a));
        let oldest = now.as_second() - i64::try_from(self.settings.age_days_max).unwrap_or(i64::MAX).saturating_mul(86_400);
        let too_many = |i: usize| self.settings.backups_max > 0 && i >= self.settings.backups_max;
        let too_old = |at: jiff::Timestamp| self.settings.age_days_max > 0 && at.as_second() < oldest;
        Ok(old.into_iter().enumerate().filter(|(i, (at, _))| too_many(*i) || too_old(*at)).map(|(_, (_, path))| path).collect())
    }
}

/// The name of a file without its extension, and the extension with its dot.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/audit.log");
        let mut file = Rotating::open(Settings { path: path.clone(), age_days_max: 0, backups_max: 2, size_megabytes_max: 1 }).unwrap();
        let line = vec![b'x'; 700 * 1024];
        for _ in 0..6 {
            file.write(&line).unwrap();
            // Names have milliseconds.
            let now = jiff::Timestamp::now().as_millisecond();
            while jiff::Timestamp::now().as_millisecond() == now {
                std::hint::spin_loop();
            }
        }
        file.flush().unwrap();
        let names: Vec<_> =
            fs::read_dir(directory.path().join("logs")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.iter().filter(|name| name.starts_with("audit-2") && name.ends_with(".log")).count() == 2, "{names:?}");
        let far = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 30);
        file.settings.age_days_max = 7;
        assert_eq!(file.superfluous(far).unwrap().len(), 2, "by age");
    }

    #[tokio::test]
    async fn what_was_handed_over_is_written_when_it_is_flushed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let log = Log::start(Settings { path: path.clone(), age_days_max: 0, backups_max: 0, size_megabytes_max: 0 }).unwrap();
        for i in 0..1000 {
            log.write(format!("{i}\n").into_bytes()).await;
        }
        log.write_now(b"last\n".to_vec());
        log.flush().await;
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!((text.lines().count(), text.lines().last()), (1001, Some("last")));
        assert_eq!((log.written.load(Relaxed), log.lost.load(Relaxed)), (1001, 0));
    }
}
