//! The view for the other processes of the same node: a Unix socket, one line of JSON per change.
//!
//! The process with the member publishes; proxy, DNS and controller manager read. A reader keeps the last good view while
//! the publisher is away; only what it said of endpoints' readiness is forgotten after a while, since that grows old.

use crate::{View, limits};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Where the socket is by default.
pub const SOCKET: &str = "/run/regent/membership.sock";

/// Publishes the view until `shutdown`. Only root may read.
pub async fn publish(path: &Path, view: watch::Receiver<Arc<View>>, shutdown: CancellationToken) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let readers = Arc::new(Semaphore::new(limits::READERS_MAX));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a reader of the membership could not be accepted");
                    tokio::time::sleep(Duration::from_millis(limits::READER_RETRY_MS)).await;
                    continue;
                }
            },
        };
        let Ok(place) = readers.clone().try_acquire_owned() else { continue };
        let (view, shutdown) = (view.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                // A reader that has gone is no news.
                _ = write(stream, view) => {}
            }
            drop(place);
        });
    }
}

async fn write(mut stream: UnixStream, mut view: watch::Receiver<Arc<View>>) -> io::Result<()> {
    view.mark_changed();
    while view.changed().await.is_ok() {
        let now = view.borrow_and_update().clone();
        let mut line = serde_json::to_vec(&*now)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        tokio::time::sleep(Duration::from_millis(limits::VIEW_EVERY_MS)).await;
    }
    Ok(())
}

/// Follows the view that is published there, until nobody listens any more or `shutdown`. `None` until the first one.
pub fn follow(path: PathBuf, shutdown: CancellationToken) -> watch::Receiver<Option<Arc<View>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut lost: Option<Instant> = None;
        loop {
            let read = tokio::select! {
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
                read = read(&path, &sender, &mut lost) => read,
            };
            if let Err(error) = read {
                tracing::debug!(path = %path.display(), %error, "the membership is not published at the moment");
            }
            let since = *lost.get_or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_millis(limits::PUBLISHER_GONE_MS) {
                sender.send_if_modified(|view| match view {
                    Some(known) if !known.stale => {
                        let known = Arc::make_mut(known);
                        known.endpoints.clear();
                        known.stale = true;
                        true
                    }
                    _ => false,
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(limits::READER_RETRY_MS)) => {}
            }
        }
    });
    receiver
}

async fn read(path: &Path, sender: &watch::Sender<Option<Arc<View>>>, lost: &mut Option<Instant>) -> io::Result<()> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    loop {
        let mut line = Vec::new();
        let read = (&mut stream).take(limits::VIEW_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The last good view is kept when this one is not good.
        let view: View = serde_json::from_slice(&line)?;
        *lost = None;
        sender.send_replace(Some(Arc::new(view)));
    }
}

/// The next view, for a `select!`: pends for ever where there is none, or nobody says anything more.
pub async fn newest(views: &mut Option<watch::Receiver<Option<Arc<View>>>>) -> Option<Arc<View>> {
    if let Some(receiver) = views
        && receiver.changed().await.is_ok()
    {
        return receiver.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The view of a member in this very process, in the form that readers of the socket get.
pub fn direct(mut view: watch::Receiver<Arc<View>>) -> watch::Receiver<Option<Arc<View>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let now = view.borrow_and_update().clone();
            sender.send_replace(Some(now));
            tokio::select! {
                () = sender.closed() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Endpoint;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn a_reader_gets_every_newest_view_and_keeps_the_last_through_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/membership.sock");
        let named = |name: &str| Arc::new(View { me: name.into(), ..View::default() });
        let (sender, view) = watch::channel(named("one"));
        let stop = CancellationToken::new();
        let publisher = tokio::spawn({
            let (path, stop) = (path.clone(), stop.clone());
            async move { publish(&path, view, stop).await }
        });
        let mut reader = follow(path.clone(), CancellationToken::new());
        let is = |name: &'static str| move |view: &Option<Arc<View>>| view.as_ref().is_some_and(|view| view.me == name);
        reader.wait_for(is("one")).await.unwrap();
        let mut two = View { me: "two".into(), ..View::default() };
        let endpoint = Endpoint { address: [10, 0, 0, 1].into(), ready: true, serving: true, version: 1 };
        two.endpoints.insert("two".into(), Arc::new(BTreeMap::from([("pod".into(), endpoint)])));
        sender.send_replace(Arc::new(two));
        reader.wait_for(is("two")).await.unwrap();
        stop.cancel();
        publisher.await.unwrap().unwrap();
        assert_eq!(reader.borrow().as_ref().unwrap().endpoints.len(), 1);
        let (_sender, view) = watch::channel(named("three"));
        let stop = CancellationToken::new();
        let again = tokio::spawn({
            let stop = stop.clone();
            async move { publish(&path, view, stop).await }
        });
        reader.wait_for(is("three")).await.unwrap();
        stop.cancel();
        again.await.unwrap().unwrap();
    }
}
