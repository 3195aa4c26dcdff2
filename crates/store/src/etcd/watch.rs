//! A watch that outlives the member that serves it.
//!
//! One task per watch reads etcd's stream and hands its events on; what it has handed on last ([`Cursor::done`]) is all it remembers.
//! When the stream breaks, when its member has no leader, keeps silent or lags, it opens another from there, at the next member.
//!
//! **Silence.** The task asks for progress every [`PROGRESS_EVERY_MS`], and a member that does not answer is left. Every other answer of
//! the store shows a revision too: once it is known to be ahead of the watch, the task asks at once, and is sooner gone
//! ([`WATCH_SILENCE_MS`], [`WATCH_LAG_MS`]), for readers wait for that revision.
//!
//! **Progress** is handed on as `Watched::Progress` only if nothing can come after it that is older. Old members (before 3.4.25 and
//! 3.5.8) answer a request for progress past the queue of events; from them only the regular notices count, and the answer shows no more
//! than that they live.
//!
//! **Compaction.** etcd lets a watch begin at the compacted revision itself, where a deletion may be missing. So the revision before the
//! first event is read, and read again when the first answer is there: if it can be read then, nothing after it was missing.
//!
//! What must stay true: events leave in order of revision, each once, a transaction whole; the stream ends only with an error that says
//! why, or because its reader is gone.

use super::{
    Fault, Shared,
    limits::{
        CONNECT_MS, PROGRESS_BEHIND_MS, PROGRESS_EVERY_MS, SILENT_MEMBER_MS, WATCH_ANSWERS_MAX, WATCH_LAG_MS, WATCH_RETRY_MS, WATCH_SILENCE_MS,
    },
    mark,
    members::{Attempt, Member},
    prefix_end, range, revision, signed,
};
use crate::{Error, Event, Result, Revision, Watch, Watched};
use etcd_client::{GetOptions, WatchOptions, WatchStream, proto::PbEvent, proto::PbWatchResponse};
use futures::{FutureExt, StreamExt};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

/// etcd's number for "the stream as a whole" in answers to progress requests.
const WHOLE_STREAM: i64 = -1;

/// What an answer to a request for progress is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// No event at or below its revision is still to come.
    Trusted,
    /// It only shows that the member lives.
    AliveOnly,
    /// As `Trusted`, but there may be no answer on a stream without events.
    MayBeSilent,
}

struct Cursor {
    key: Vec<u8>,
    /// Everything up to here has been handed on.
    done: Revision,
}

struct Opened {
    stream: WatchStream,
    member: Arc<Member>,
    progress: Progress,
}

enum End {
    ReaderGone,
    /// It goes on elsewhere.
    Broken(String),
    Failed(Error),
}

pub(super) async fn start(shared: Arc<Shared>, prefix: &str, from: Revision) -> Result<Watch> {
    let cursor = Cursor { key: shared.stored_key(prefix), done: from };
    let opened = open(&shared, &cursor).await?;
    let (out, receiver) = mpsc::channel(WATCH_ANSWERS_MAX);
    tokio::spawn(run(shared, cursor, opened, out));
    Ok(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed())
}

async fn run(shared: Arc<Shared>, mut cursor: Cursor, mut opened: Opened, out: mpsc::Sender<Result<Watched>>) {
    loop {
        let from = cursor.done;
        let url = opened.member.url.clone();
        match follow(&shared, &mut cursor, opened, &out).await {
            End::ReaderGone => return,
            End::Failed(error) => {
                let _ = out.send(Err(error)).await;
                return;
            }
            End::Broken(why) => {
                tracing::info!(member = url, why, from = cursor.done.0, "a watch of etcd moves on");
                if let Some(index) = shared.members.all().iter().position(|member| member.url == url) {
                    shared.members.avoid(index);
                }
            }
        }
        let mut pause_ms = WATCH_RETRY_MS.0;
        if cursor.done == from {
            // It broke before it brought anything; another try at once would be too soon.
            sleep(Duration::from_millis(pause_ms)).await;
        }
        opened = loop {
            if out.is_closed() {
                return;
            }
            match open(&shared, &cursor).await {
                Ok(opened) => break opened,
                Err(Error::Unavailable(why)) => {
                    tracing::debug!(why, "a watch of etcd cannot go on yet");
                    tokio::select! {
                        () = out.closed() => return,
                        () = sleep(Duration::from_millis(pause_ms)) => pause_ms = (pause_ms * 2).min(WATCH_RETRY_MS.1),
                    }
                }
                Err(error) => {
                    let _ = out.send(Err(error)).await;
                    return;
                }
            }
        };
    }
}

/// Opens a stream after the cursor at the first member that can.
async fn open(shared: &Shared, cursor: &Cursor) -> Result<Opened> {
    shared.unfenced().await?;
    let all = shared.members.all();
    let ask = |member: &Member, _| -> Attempt<Opened> {
        let Some(member) = all.iter().find(|known| std::ptr::eq(known.as_ref(), member)).cloned() else {
            return futures::future::ready(Err(Fault::NoEffect("the endpoints have changed".into()))).boxed();
        };
        open_at(member, cursor.key.clone(), cursor.done).boxed()
    };
    match shared.members.read(ask).await {
        Ok(opened) => Ok(opened),
        Err(fault) => Err(failed(shared, fault, cursor.done).await),
    }
}

async fn failed(shared: &Shared, fault: Fault, from: Revision) -> Error {
    let compacted = matches!(fault, Fault::Compacted);
    let error = shared.error(fault, from);
    match oldest(shared).await {
        Some(oldest) if compacted => Error::Compacted { asked: from, oldest },
        _ => error,
    }
}

async fn open_at(member: Arc<Member>, key: Vec<u8>, from: Revision) -> std::result::Result<Opened, Fault> {
    let version = member.plain().status().await?.version().to_string();
    let options = WatchOptions::new()
        .with_range(prefix_end(&key))
        .with_start_revision(signed(Revision(from.0 + 1)))
        .with_prev_key()
        .with_progress_notify()
        .with_fragment();
    let mut stream = member.watch().watch(key.clone(), Some(options)).await?;
    let answer = stream.message().await?.ok_or_else(|| Fault::Uncertain("the watch ended".into()))?.0;
    if answer.canceled {
        return Err(canceled(&answer));
    }
    if from > Revision(0) {
        readable(&member, key, from).await?;
    }
    Ok(Opened { stream, member, progress: progress_of(&version) })
}

/// Whether the past at `at` is still there: an error if not.
async fn readable(member: &Member, key: Vec<u8>, at: Revision) -> std::result::Result<(), Fault> {
    range(member, key, GetOptions::new().with_count_only().with_revision(signed(at)), true).await.map(drop)
}

fn canceled(answer: &PbWatchResponse) -> Fault {
    if answer.compact_revision > 0 { Fault::Compacted } else { Fault::NoEffect(format!("the member ended the watch: {}", answer.cancel_reason)) }
}

/// Reads one stream until it ends.
async fn follow(shared: &Shared, cursor: &mut Cursor, opened: Opened, out: &mpsc::Sender<Result<Watched>>) -> End {
    let Opened { mut stream, member, progress } = opened;
    let ms = Duration::from_millis;
    let from = cursor.done;
    let mut newest = shared.newest.subscribe();
    let mut part: Vec<Event> = Vec::new();
    let (mut verified, mut heard, mut asked) = (from == Revision(0), Instant::now(), Instant::now());
    let mut ask_at = asked + ms(PROGRESS_BEHIND_MS.0);
    // Since when the store has been known to be ahead of the cursor, which has not moved meanwhile.
    let mut behind: Option<Instant> = None;
    loop {
        let silent_at = match behind {
            Some(since) => heard.max(since) + ms(WATCH_SILENCE_MS.1),
            None => heard + ms(WATCH_SILENCE_MS.0),
        };
        let lags_at = behind.map_or(heard + ms(WATCH_SILENCE_MS.0), |since| since + ms(WATCH_LAG_MS));
        tokio::select! {
            biased;
            answer = stream.message() => {
                let answer = match answer {
                    Ok(Some(answer)) => answer.0,
                    Ok(None) => return End::Broken("the member ended the watch".into()),
                    Err(error) => return End::Broken(error.to_string()),
                };
                heard = Instant::now();
                if answer.canceled {
                    return match canceled(&answer) {
                        Fault::NoEffect(why) => End::Broken(why),
                        fault => End::Failed(failed(shared, fault, cursor.done).await),
                    };
                }
                let shown = shared.saw(answer.header.as_ref());
                let (fragment, whole_stream) = (answer.fragment, answer.watch_id == WHOLE_STREAM);
                let watched = if answer.events.is_empty() {
                    let counts = !answer.created && part.is_empty() && !(whole_stream && progress == Progress::AliveOnly);
                    counts.then(|| Watched::Progress(shown.max(cursor.done)))
                } else {
                    for event in answer.events {
                        match read(shared, event) {
                            // The changes behind it are the restore's own, half of which nobody shall see.
                            Ok(event) if event.key == super::restore::KEY && event.value.is_some() => {
                                shared.fenced.store(true, std::sync::atomic::Ordering::SeqCst);
                                return End::Failed(super::restore::standing());
                            }
                            Ok(event) => part.push(event),
                            Err(error) => return End::Failed(error),
                        }
                    }
                    (!fragment).then(|| Watched::Events(std::mem::take(&mut part)))
                };
                let Some(watched) = watched else { continue };
                if !verified {
                    match timeout(ms(WATCH_SILENCE_MS.0), readable(&member, cursor.key.clone(), from)).await {
                        Ok(Ok(())) => verified = true,
                        Ok(Err(fault @ (Fault::Compacted | Fault::Future))) => return End::Failed(failed(shared, fault, from).await),
                        Ok(Err(fault)) => return End::Broken(format!("{fault:?}")),
                        Err(_) => return End::Broken("no answer".into()),
                    }
                }
                let before = cursor.done;
                if !hand_on(cursor, watched, out).await {
                    return End::ReaderGone;
                }
                heard = Instant::now();
                if *newest.borrow() <= cursor.done.0 {
                    (behind, ask_at) = (None, asked + ms(PROGRESS_EVERY_MS));
                } else if cursor.done > before {
                    behind = behind.and(Some(heard));
                }
            }
            () = sleep_until(ask_at) => {
                asked = Instant::now();
                // The channel to the stream is never full unless the connection stands; then the silence tells.
                let _ = timeout(ms(PROGRESS_BEHIND_MS.0), stream.request_progress()).await;
                ask_at = asked + ms(if behind.is_some() { PROGRESS_BEHIND_MS.1 } else { PROGRESS_EVERY_MS });
            }
            changed = newest.changed() => {
                if changed.is_ok() && *newest.borrow_and_update() > cursor.done.0 && behind.is_none() {
                    behind = Some(Instant::now());
                    ask_at = ask_at.min(Instant::now() + ms(PROGRESS_BEHIND_MS.0));
                }
            }
            () = sleep_until(silent_at), if progress != Progress::MayBeSilent => {
                return End::Broken(format!("its member has been silent for {:?}", heard.elapsed()));
            }
            // An old member cannot say that there was nothing for this watch, so its lag cannot be told from a lull.
            () = sleep_until(lags_at), if progress == Progress::Trusted && behind.is_some() => {
                return End::Broken("its member lags behind the others".into());
            }
            () = out.closed() => return End::ReaderGone,
        }
    }
}

/// Gives the reader what is new in it. False if the reader is gone.
async fn hand_on(cursor: &mut Cursor, watched: Watched, out: &mpsc::Sender<Result<Watched>>) -> bool {
    let watched = match watched {
        Watched::Events(mut events) => {
            events.retain(|event| event.revision > cursor.done);
            let Some(last) = events.last() else { return true };
            cursor.done = last.revision;
            Watched::Events(events)
        }
        Watched::Progress(revision) => {
            cursor.done = cursor.done.max(revision);
            Watched::Progress(cursor.done)
        }
    };
    out.send(Ok(watched)).await.is_ok()
}

fn read(shared: &Shared, event: PbEvent) -> Result<Event> {
    const DELETE: i32 = 1;
    let kv = event.kv.ok_or_else(|| Error::Damaged("etcd sent an event without a key".into()))?;
    let before = event.prev_kv;
    let deleted = event.r#type == DELETE;
    let created = revision(if deleted { before.as_ref().map_or(0, |before| before.create_revision) } else { kv.create_revision });
    Ok(Event {
        revision: revision(kv.mod_revision),
        key: shared.key(&kv.key)?,
        value: (!deleted).then(|| mark::open(kv.value).0),
        previous: before.map(|before| revision(before.mod_revision)),
        created,
    })
}

/// The oldest revision that can still be read, if anything has been compacted: a watch from the beginning is refused with it.
pub(super) async fn oldest(shared: &Shared) -> Option<Revision> {
    let ask = |member: &Member, _| -> Attempt<Revision> {
        let mut client = member.watch();
        async move {
            let mut stream = client.watch("/", Some(WatchOptions::new().with_start_revision(1))).await?;
            while let Some(answer) = stream.message().await? {
                if answer.0.compact_revision > 0 {
                    return Ok(revision(answer.0.compact_revision));
                }
            }
            Err(Fault::NoEffect("the watch ended".into()))
        }
        .boxed()
    };
    timeout(Duration::from_millis(SILENT_MEMBER_MS.max(CONNECT_MS)), shared.members.read(ask)).await.ok()?.ok()
}

/// What a member of this version means by progress.
fn progress_of(version: &str) -> Progress {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (0..=2, ..) | (3, 0..=3, _) | (3, 4, 0..=24) | (3, 5, 0..=7) => Progress::AliveOnly,
        (3, 4, 25..=30) | (3, 5, 8..=12) => Progress::MayBeSilent,
        _ => Progress::Trusted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_members_are_trusted_with_less() {
        for (version, expected) in [
            ("3.4.23", Progress::AliveOnly),
            ("3.4.25", Progress::MayBeSilent),
            ("3.4.31", Progress::Trusted),
            ("3.5.7", Progress::AliveOnly),
            ("3.5.13", Progress::Trusted),
            ("3.6.0-rc.1", Progress::Trusted),
            ("4.0.0", Progress::Trusted),
            ("", Progress::AliveOnly),
        ] {
            assert_eq!(progress_of(version), expected, "{version}");
        }
    }

    #[tokio::test]
    async fn nothing_is_handed_on_twice() {
        let (out, mut received) = mpsc::channel(8);
        let event = |revision| Event { revision: Revision(revision), key: "/a".into(), value: None, previous: None, created: Revision(1) };
        let mut cursor = Cursor { key: Vec::new(), done: Revision(4) };
        assert!(hand_on(&mut cursor, Watched::Events(vec![event(3), event(4)]), &out).await);
        assert!(hand_on(&mut cursor, Watched::Events(vec![event(4), event(5), event(6)]), &out).await);
        assert!(hand_on(&mut cursor, Watched::Progress(Revision(2)), &out).await);
        assert_eq!(received.recv().await.unwrap().unwrap(), Watched::Events(vec![event(5), event(6)]));
        assert_eq!(received.recv().await.unwrap().unwrap(), Watched::Progress(Revision(6)));
        drop(received);
        assert!(!hand_on(&mut cursor, Watched::Progress(Revision(9)), &out).await);
    }
}
