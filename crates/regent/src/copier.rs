//! A node's copy of the server's store: begun, followed, and begun anew where it cannot go on.
//!
//! Nothing is asked twice at a time, and each request says what is on the disk already; so it does not matter where the
//! node, the server or the network dies. A node that may not have a copy is told so, and asks again once in a while.

use anyhow::{Context, Result, bail};
use backup::copy::{Copy, Found};
use bytes::{Buf, Bytes};
use clap::ValueEnum;
use futures::StreamExt;
use http_body_util::{BodyDataStream, BodyExt, Limited};
use kube::client::Body;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use store::copy::{BATCH_BYTES_MAX, Batch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Below a node's directory.
pub const DIRECTORY: &str = "store-copy";
/// What the cluster's keys in a copy are known by, beside it.
const KEYS_MARK: &str = "keys";
/// Pauses after a failure, growing from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// When a node that may not have a copy asks again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long the server may take for an answer, and for the next piece of a long one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Changes are gathered for this long at least: a copy costs the server so many requests per second at most.
const PACE: Duration = Duration::from_millis(100);
/// Pieces that wait for the disk.
const PIECES_WAITING_MAX: usize = 8;

/// Whether a node wants a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Willing {
    /// If the server lets it have one.
    Auto,
    True,
    False,
}

/// Why a copy does not go on.
#[derive(Debug)]
enum Stop {
    /// Begin it anew.
    Anew(String),
    /// The server gives this node none.
    Refused(String),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

/// Keeps the copy in `ROOT-DIR/store-copy` until the shutdown.
pub async fn run(client: kube::Client, root_dir: PathBuf, willing: Willing, shutdown: CancellationToken) {
    if willing == Willing::False {
        return;
    }
    let directory = root_dir.join(DIRECTORY);
    tokio::select! { () = shutdown.cancelled() => {} () = follow(&client, &directory, willing) => {} }
}

async fn follow(client: &kube::Client, directory: &Path, willing: Willing) {
    let (mut pause, mut refused) = (RETRY.0, false);
    let mut copy = None;
    loop {
        let outcome = match copy.take() {
            None => begin(client, directory, false).await,
            Some(standing) => catch_up(client, standing, directory).await,
        };
        match outcome {
            Ok(standing) => {
                (copy, refused) = (Some(standing), false);
                pause = RETRY.0;
                continue;
            }
            Err(Stop::Anew(why)) => {
                tracing::warn!("the copy of the store is begun anew: {why}");
                match begin(client, directory, true).await {
                    Ok(standing) => copy = Some(standing),
                    Err(Stop::Anew(why) | Stop::Refused(why)) => tracing::warn!("the copy of the store cannot be begun anew: {why}"),
                    Err(Stop::Failed(error)) => tracing::warn!("the copy of the store cannot be begun anew: {error:#}"),
                }
            }
            Err(Stop::Refused(why)) => {
                if !std::mem::replace(&mut refused, true) && willing == Willing::True {
                    tracing::warn!("this node is given no copy of the store ({why}); `--store-copy-nodes` on the server names those that are");
                }
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
            Err(Stop::Failed(error)) => tracing::debug!("the copy of the store cannot go on yet: {error:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// A copy, and what its keys are known by.
struct Standing {
    copy: Copy,
    keys: String,
}

/// The copy that is there, or a new one.
async fn begin(client: &kube::Client, directory: &Path, anew: bool) -> Result<Standing, Stop> {
    if !anew {
        let place = directory.to_owned();
        match tokio::task::spawn_blocking(move || Copy::open(&place)).await?? {
            Found::Whole(copy) => {
                if let Ok(keys) = std::fs::read_to_string(directory.join(KEYS_MARK)) {
                    tracing::info!(revision = copy.progress().revision.0, "the copy of the store goes on");
                    return Ok(Standing { copy: *copy, keys });
                }
            }
            Found::Nothing => {}
            Found::Damaged(why) => tracing::error!("the copy of the store is damaged, and begun anew: {why}"),
        }
    }
    let body = ask(client, apiserver::copies::PATH).await?;
    let (pieces, waiting) = mpsc::channel(PIECES_WAITING_MAX);
    let place = directory.to_owned();
    let writer = tokio::task::spawn_blocking(move || -> Result<Standing> {
        let copy = Copy::begin(&place, Pieces { waiting, piece: Bytes::new() }, None)?;
        let keys = apiserver::copies::keys_mark(&copy.files()?);
        store::snapshot::write_private(&place.join(KEYS_MARK), keys.as_bytes(), 0o600)?;
        Ok(Standing { copy, keys })
    });
    let mut body = BodyDataStream::new(body);
    loop {
        let piece = tokio::time::timeout(ANSWER_TIMEOUT, body.next()).await.context("the server stopped in the middle")?;
        let Some(piece) = piece else { break };
        // An error goes along: a body that merely ended would look like an end.
        let (piece, broken) = match piece {
            Ok(piece) => (Ok(piece), false),
            Err(error) => (Err(std::io::Error::other(error.to_string())), true),
        };
        if pieces.send(piece).await.is_err() || broken {
            break;
        }
    }
    drop(pieces);
    let standing = writer.await??;
    tracing::info!(revision = standing.copy.progress().revision.0, "a copy of the store is whole, and is kept up to date");
    Ok(standing)
}

/// One step: what has come since, on disk.
async fn catch_up(client: &kube::Client, mut standing: Standing, directory: &Path) -> Result<Standing, Stop> {
    if standing.copy.is_long() {
        return Err(Stop::Anew("its log has grown longer than what it is of".into()));
    }
    let began = tokio::time::Instant::now();
    let path = format!("{}?after={}&keys={}", apiserver::copies::CHANGES_PATH, standing.copy.progress().revision, standing.keys);
    let batch = loop {
        // A copy goes on although one request fails: its place is on the disk, not in the connection.
        match ask_batch(client, &path).await {
            Ok(batch) => break batch,
            Err(Stop::Failed(error)) => {
                tracing::debug!("no changes for the copy: {error:#}");
                tokio::time::sleep(RETRY.0).await;
            }
            Err(other) => return Err(other),
        }
    };
    let taken = tokio::task::spawn_blocking(move || {
        let appended = standing.copy.append(&batch);
        (standing, appended, batch.changes.len())
    });
    let (standing, appended, count) = taken.await?;
    appended.with_context(|| format!("the copy in {}", directory.display()))?;
    if count > 0 {
        tokio::time::sleep(PACE.saturating_sub(began.elapsed())).await;
    }
    Ok(standing)
}

async fn ask_batch(client: &kube::Client, path: &str) -> Result<Batch, Stop> {
    let body = ask(client, path).await?;
    let collected = tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(body, BATCH_BYTES_MAX).collect()).await?;
    Ok(Batch::decode(&collected.map_err(|error| anyhow::anyhow!(error))?.to_bytes())?)
}

async fn ask(client: &kube::Client, path: &str) -> Result<Body, Stop> {
    let request = http::Request::get(path).body(Body::empty()).map_err(anyhow::Error::from)?;
    let response = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await??;
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body());
    }
    let text = Limited::new(response.into_body(), 64 * 1024).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let why = value["message"].as_str().unwrap_or("no reason is given").to_owned();
    match status.as_u16() {
        410 => Err(Stop::Anew(why)),
        401 | 403 | 404 => Err(Stop::Refused(why)),
        code => Err(Stop::Failed(anyhow::anyhow!("the server answers {code}: {why}"))),
    }
}

/// Pieces of a body, for somebody who reads.
struct Pieces {
    waiting: mpsc::Receiver<std::io::Result<Bytes>>,
    piece: Bytes,
}

impl std::io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.waiting.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let take = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..take]);
        Ok(take)
    }
}

/// Whether there is a copy, whole or not.
pub fn is_there(directory: &Path) -> bool {
    directory.join("base.snapshot").exists()
}

/// Refuses a directory that holds no copy.
pub fn must_be_there(directory: &Path) -> Result<()> {
    if !is_there(directory) {
        bail!(
            "there is no copy of a store in {}; a node has one if its server names it (`--store-copy-nodes`). `regent snapshot restore` \
             brings a server back from a snapshot",
            directory.display()
        );
    }
    Copy::look(directory).map(drop).with_context(|| format!("the copy in {} is of no use; try another node's, or a snapshot", directory.display()))
}

#[cfg(test)]
#[path = "copier_tests.rs"]
mod tests;
