//! Containers' logs: the files that the runtime writes, read as users ask for them, and kept small.
//!
//! A line of a log file is `TIME STREAM F|P TEXT`; `P` marks a part of a longer line. Reading can follow a file that
//! grows and is replaced under it. What must stay true: a reader never holds more than a line and a buffer in memory.

use crate::spec::{self, PodId, names};
use bytes::Bytes;
use jiff::Timestamp;
use std::{
    collections::HashMap,
    io::SeekFrom,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader},
    sync::mpsc,
};

/// How much of a container's log is kept. The defaults are Kubernetes'.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// A file larger than this is put aside.
    pub file_bytes_max: u64,
    /// Files per container, the one being written included; at least 2.
    pub files_max: usize,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { file_bytes_max: 10 * 1024 * 1024, files_max: 5 }
    }
}

/// Pieces on their way to a slow reader.
pub const PIECES_MAX: usize = 64;
const BLOCK_BYTES: u64 = 64 * 1024;
/// How often a followed file is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(150);

/// What a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr` for one of them only.
    pub stream: Option<String>,
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    pub partial: bool,
    pub text: &'a [u8],
}

/// Takes a line of a log file apart; `None` if it is none.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    matches!(stream, "stdout" | "stderr").then(|| Line { time, stream, partial: tags.first() == Some(&b'P'), text })
}

/// What a reader gets for a line; `at_start` says whether the line before was whole.
fn render(line: &Line<'_>, options: &Options, at_start: bool) -> Option<Vec<u8>> {
    if let Some(since) = options.since
        && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
    {
        return None;
    }
    if let Some(stream) = options.stream.as_deref().filter(|stream| *stream != "All")
        && !stream.eq_ignore_ascii_case(line.stream)
    {
        return None;
    }
    let mut out = Vec::with_capacity(line.text.len() + 40);
    if options.timestamps && at_start {
        out.extend_from_slice(line.time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(line.text);
    if !line.partial {
        out.push(b'\n');
    }
    Some(out)
}

/// Where the last `lines` lines begin.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    // The newline that ends the file ends the last line; it does not begin another.
    let mut left = lines + 1;
    let whole = end;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start)).await?;
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact(&mut block).await?;
        if end == whole && block.last() != Some(&b'\n') {
            left -= 1;
        }
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            left -= 1;
            if left == 0 {
                return Ok(start + index as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// Sends a log to `out` until its end, or while following until `is_running` says that the container has ended.
pub async fn read<F, R>(path: PathBuf, options: Options, out: mpsc::Sender<Bytes>, is_running: F) -> std::io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = bool>,
{
    let mut file = File::open(&path).await?;
    let start = match options.tail_lines {
        Some(lines) => tail_offset(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let mut inode = file.metadata().await?.ino();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let (mut at_start, mut last_look) = (true, false);
    let mut quiet = 0u32;
    loop {
        let read = reader.read_until(b'\n', &mut line).await?;
        if read > 0 && line.ends_with(b"\n") {
            quiet = 0;
            if let Some(parsed) = parse(&line) {
                if let Some(mut text) = render(&parsed, &options, at_start) {
                    text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= text.len() as u64;
                    if out.send(text.into()).await.is_err() || left == 0 {
                        return Ok(());
                    }
                }
                at_start = !parsed.partial;
            }
            line.clear();
            continue;
        }
        // The end, for now; half a line stays until its rest comes.
        if !options.follow || last_look {
            return Ok(());
        }
        if out.is_closed() {
            return Ok(());
        }
        if let Ok(meta) = tokio::fs::metadata(&path).await
            && meta.ino() != inode
        {
            inode = meta.ino();
            reader = BufReader::new(File::open(&path).await?);
            line.clear();
            continue;
        }
        quiet += 1;
        if quiet.is_multiple_of(5) && !is_running().await {
            last_look = true;
            continue;
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// The end of a log as plain text, for messages.
pub async fn tail_text(path: &str, lines_max: usize, bytes_max: u64) -> String {
    let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
    let options = Options { tail_lines: Some(lines_max as u64), ..Default::default() };
    let reading = tokio::spawn(read(PathBuf::from(path), options, sender, || async { false }));
    let mut text = Vec::new();
    while let Some(piece) = receiver.recv().await {
        text.extend_from_slice(&piece);
    }
    if !matches!(reading.await, Ok(Ok(()))) {
        return String::new();
    }
    let start = text.len().saturating_sub(usize::try_from(bytes_max).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// Removes a log with the files that were put aside from it.
pub async fn remove(path: &str) {
    let mut all = rotated(Path::new(path)).await;
    all.push(PathBuf::from(path));
    for file in all {
        if let Err(error) = tokio::fs::remove_file(&file).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "cannot remove an old log");
        }
    }
}

/// The files put aside from a log, oldest first.
async fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    if let Ok(mut entries) = tokio::fs::read_dir(directory).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The log of a container, by what its labels and annotations say.
pub fn path_of(log_dir: &Path, labels: &HashMap<String, String>, attempt: u32) -> Option<PathBuf> {
    let id = PodId {
        namespace: labels.get(names::POD_NAMESPACE)?.clone(),
        name: labels.get(names::POD_NAME)?.clone(),
        uid: labels.get(names::POD_UID)?.clone(),
    };
    let container = labels.get(names::CONTAINER_NAME)?;
    Some(log_dir.join(spec::log_directory_name(&id)).join(spec::container::log_path(container, attempt)))
}

/// Puts logs aside that have grown too large, and removes the oldest of those put aside.
pub async fn rotate(cri: &cri::Client, log_dir: &Path, running: Vec<cri::v1::Container>, kept: Kept) {
    for container in running {
        let attempt = container.metadata.as_ref().map(|metadata| metadata.attempt).unwrap_or_default();
        let Some(path) = path_of(log_dir, &container.labels, attempt) else { continue };
        match tokio::fs::metadata(&path).await {
            Ok(meta) if meta.len() > kept.file_bytes_max => {}
            _ => continue,
        }
        let mut old = rotated(&path).await;
        while old.len() > kept.files_max.saturating_sub(2) {
            let _ = tokio::fs::remove_file(old.remove(0)).await;
        }
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let mut aside = path.clone().into_os_string();
        aside.push(format!(".{stamp}"));
        if let Err(error) = tokio::fs::rename(&path, &aside).await {
            tracing::warn!(log = %path.display(), %error, "cannot put a log aside");
            continue;
        }
        if let Err(error) = cri.reopen_container_log(&container.id).await {
            // Nobody would write to the new file: keep the old name, and try again the next time.
            tracing::warn!(log = %path.display(), %error, "the runtime does not open the new log");
            let _ = tokio::fs::rename(&aside, &path).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2024-01-01T00:00:01.5Z stdout F one\n2024-01-01T00:00:02Z stderr P tw\n2024-01-01T00:00:02Z stderr F o\n2024-01-01T00:00:03Z stdout F \n2024-01-01T00:00:04Z stdout F four\n";

    async fn get(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
        let reading = tokio::spawn(read(path, options, sender, || async { false }));
        let mut text = Vec::new();
        while let Some(piece) = receiver.recv().await {
            text.extend_from_slice(&piece);
        }
        reading.await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn logs_are_read_as_asked() {
        assert_eq!(get(Options::default()).await, "one\ntwo\n\nfour\n");
        assert_eq!(get(Options { tail_lines: Some(2), ..Default::default() }).await, "\nfour\n");
        assert_eq!(get(Options { tail_lines: Some(0), ..Default::default() }).await, "");
        assert_eq!(get(Options { since: "2024-01-01T00:00:03Z".parse().ok(), ..Default::default() }).await, "\nfour\n");
        assert_eq!(get(Options { stream: Some("Stderr".into()), ..Default::default() }).await, "two\n");
        assert_eq!(get(Options { limit_bytes: Some(5), ..Default::default() }).await, "one\nt");
        let stamped = get(Options { timestamps: true, ..Default::default() }).await;
        assert!(stamped.starts_with("2024-01-01T00:00:01.5Z one\n2024-01-01T00:00:02Z two\n"), "{stamped}");
        assert_eq!(get(Options { follow: true, tail_lines: Some(1), ..Default::default() }).await, "four\n");
    }
}
