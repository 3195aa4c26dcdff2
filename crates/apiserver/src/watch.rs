//! watch: what has changed, as it changes, one JSON line or one protobuf frame per event.
//!
//! A plain JSON watch sends the cache's own frames, shared by all its watchers. Tables and metadata are made per watcher.

use crate::{
    body::{self, BoxError},
    cache::{ChangeKind, Entry, From, Message, Selection, TooOld, Watch, frame},
    connect::{Answer, Call},
    conversion,
    encode::{Format, Output, Shape, View, metadata_bytes, metadata_value, respond},
    read::{invalid_options, number, selection},
    streams::Place,
    websocket,
};
use api::{
    Status, Value, field, limits,
    object::ObjectExt,
    protobuf,
    request::{ListOptions, VersionMatch},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http::StatusCode;
use parking_lot::Mutex;
use rand::Rng;
use serde_json::json;
use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};
use store::Revision;
use tokio::time::{Instant, Interval, Sleep};

/// Events that are ready go out together up to about this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// The annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub async fn watch(mut call: Call) -> Answer {
    let socket = websocket::asked(&mut call.request, &[])?;
    let (server, place) = (call.server.clone(), call.request.extensions_mut().remove::<Place>());
    let events = events(call).await?;
    if let (Some(place), None) = (place, &socket) {
        place.stay();
    }
    Ok(websocket::answer(&server, socket, events))
}

async fn events(call: Call) -> Answer {
    let options = ListOptions::parse(&call.query)?;
    check(&options)?;
    let selection = selection(&call, &options)?;
    let cache = &call.server.cache;
    let resource = cache.of(&call.kind);
    let version = match options.resource_version.as_str() {
        "" => None,
        text => Some(Revision(number(text).map_err(Status::unknown)?)),
    };
    let from = match (options.send_initial_events, version) {
        (Some(true), Some(version)) => {
            cache.reach(version).await?;
            From::Now
        }
        (None, Some(Revision(0))) => From::Now,
        (Some(true) | None, None) => {
            cache.fresh().await?;
            From::Now
        }
        (Some(false), None | Some(Revision(0))) => {
            cache.fresh().await?;
            From::After(cache.snapshot_of(&call.kind).revision)
        }
        (_, Some(version)) => From::After(version),
    };
    let timeout_s = options
        .timeout_s
        .filter(|&seconds| seconds > 0)
        .unwrap_or_else(|| limits::WATCH_TIMEOUT_DEFAULT_S + rand::rng().random_range(0..limits::WATCH_TIMEOUT_DEFAULT_S));
    let deadline = Instant::now() + Duration::from_secs(timeout_s.min(limits::WATCH_TIMEOUT_DEFAULT_S * 100));
    let later = selection.fields_later.then(|| Selection { fields_later: false, ..selection.clone() });
    let watch = match resource.watch(selection, from, cache.reached()) {
        Ok(watch) => watch,
        Err(TooOld { oldest }) => {
            let asked = version.unwrap_or_default();
            let status = Status::expired(format!("too old resource version: {asked} ({oldest})"));
            let framer = Framer::of(&call);
            return Ok(respond(StatusCode::OK, framer.media_type(), body::full(framer.frame("ERROR", &status.to_value()))));
        }
    };
    let first = options.allow_bookmarks && from == From::Now;
    let period = Duration::from_secs(limits::WATCH_BOOKMARK_PERIOD_S);
    let bookmarks = options.allow_bookmarks.then(|| tokio::time::interval_at(Instant::now() + period, period));
    let framer = Framer::of(&call);
    let media_type = framer.media_type();
    // Looked at after the watch has begun: whoever begins later than this is not ended with the others.
    let ended = call.server.config.shutdown.is_cancelled();
    let over = Box::pin(tokio::time::sleep_until(deadline));
    let running = Running { call: Arc::new(call), watch, framer, first, bookmarks, over, ended, later };
    Ok(respond(StatusCode::OK, media_type, body::stream(lines(running))))
}

fn check(options: &ListOptions) -> Result<(), Status> {
    let mut errors = field::Errors::default();
    let path = field::Path::new("resourceVersionMatch");
    if options.send_initial_events.is_some() {
        if options.version_match != VersionMatch::NotOlderThan {
            errors.forbidden(path.clone(), "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if options.version_match == VersionMatch::Exact {
            errors.not_supported(path, "Exact", &["NotOlderThan"]);
        }
    } else if options.version_match != VersionMatch::Unset {
        errors.forbidden(path, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
    }
    invalid_options(&errors)
}

/// What a watch says, line by line. One future makes all of it and stays where it is: it is large, and `unfold` would move it for
/// every event and watcher.
fn lines(mut running: Running) -> impl Stream<Item = Result<Bytes, BoxError>> {
    let made = Arc::new(Mutex::new(None));
    let making = made.clone();
    let mut all = Box::pin(async move {
        while let Some(lines) = running.next().await {
            *making.lock() = Some(lines);
            // Goes on when more is asked for, which wakes nobody.
            let mut asked = false;
            poll_fn(|_| if std::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending }).await;
        }
    });
    let mut over = false;
    stream::poll_fn(move |cx| {
        over = over || all.as_mut().poll(cx).is_ready();
        match made.lock().take() {
            Some(lines) => Poll::Ready(Some(Ok(lines))),
            None if over => Poll::Ready(None),
            None => Poll::Pending,
        }
    })
}

/// A watch on its way to the client.
struct Running {
    call: Arc<Call>,
    watch: Watch,
    framer: Framer,
    /// Whether the bookmark that ends the initial events is still to come.
    first: bool,
    bookmarks: Option<Interval>,
    /// Done when its time is up. Kept over events, for it is dear to begin anew.
    over: Pin<Box<Sleep>>,
    ended: bool,
    /// What is selected by fields that are only there once an object has been converted.
    later: Option<Selection>,
}

impl Running {
    /// The next lines, or `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let lines = self.lines().await?;
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }

    /// The same, or nothing for events that are not for this watcher.
    async fn lines(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(message) = self.watch.past.pop_front() {
            let mut lines = BytesMut::from(self.event(&message).await.as_ref());
            while lines.len() < BATCH_BYTES && !self.ended {
                let Some(message) = self.watch.past.pop_front() else { break };
                lines.extend_from_slice(&self.event(&message).await);
            }
            return Some(lines.freeze());
        }
        if std::mem::take(&mut self.first) {
            return Some(self.framer.bookmark(self.watch.revision, true));
        }
        loop {
            let bookmark = async {
                match &mut self.bookmarks {
                    Some(interval) => drop(interval.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = self.watch.live.recv() => {
                    let first = self.event(&message?).await;
                    if self.ended {
                        return Some(first);
                    }
                    let Some(second) = self.watch.live.take() else { return Some(first) };
                    let mut lines = BytesMut::from(first.as_ref());
                    lines.extend_from_slice(&self.event(&second).await);
                    while lines.len() < BATCH_BYTES && !self.ended {
                        let Some(message) = self.watch.live.take() else { break };
                        lines.extend_from_slice(&self.event(&message).await);
                    }
                    return Some(lines.freeze());
                }
                () = &mut self.over => return None,
                () = bookmark => {
                    // Read first: every change up to here is in the queue already, so an empty queue means all was sent.
                    let reached = self.call.server.cache.reached();
                    let resource = self.call.server.cache.of(&self.call.kind);
                    let sent = resource.between_changes(|changed| self.watch.live.is_empty().then_some(changed.max(reached)));
                    if let Some(revision) = sent {
                        return Some(self.framer.bookmark(revision, false));
                    }
                }
            }
        }
    }
}

impl Running {
    /// The line or frame of an event. An object that cannot be converted is the watch's end.
    async fn event(&mut self, message: &Message) -> Bytes {
        if self.framer.as_cached {
            return message.frame();
        }
        if !conversion::is_by_webhook(&self.call.kind) {
            return self.framer.event(message);
        }
        let event = match &self.later {
            Some(selection) => selected(&self.call, &self.framer.view, selection, message).await,
            None => conversion::entry(&self.call.server, &self.framer.view, message.entry()).await.map(|entry| Some((message.kind(), entry))),
        };
        match event {
            Ok(Some((kind, entry))) => self.framer.shown(kind, &entry),
            Ok(None) => Bytes::new(),
            Err(status) => {
                self.ended = true;
                self.framer.frame("ERROR", &status.to_value())
            }
        }
    }
}

/// An event as it is to somebody who selects by fields of the converted object; `None` if it is nothing to them.
async fn selected(call: &Call, view: &View, selection: &Selection, message: &Message) -> Result<Option<(ChangeKind, Arc<Entry>)>, Status> {
    let converted = |entry: Arc<Entry>| conversion::entry(&call.server, view, entry);
    let after = converted(message.entry()).await?;
    let matches = selection.matches(&after);
    let before = match message {
        Message::Change(ChangeKind::Modified, change) => match &change.previous {
            Some(previous) => Some(converted(Arc::new(previous.at(change.entry.revision))).await?),
            None => None,
        },
        _ => return Ok(matches.then(|| (message.kind(), after))),
    };
    let before = before.filter(|before| selection.matches(before));
    Ok(match (before, matches) {
        (None, false) => None,
        (None, true) => Some((ChangeKind::Added, after)),
        (Some(_), true) => Some((ChangeKind::Modified, after)),
        (Some(before), false) => Some((ChangeKind::Deleted, before)),
    })
}

/// Makes lines or frames of events.
struct Framer {
    output: Output,
    view: View,
    headers_sent: bool,
    /// Whether every event is a line that the cache has for all.
    as_cached: bool,
}

impl Framer {
    fn of(call: &Call) -> Framer {
        let (output, view) = (call.output.clone(), call.view());
        let whole = output.format != Format::Protobuf && output.shape == Shape::Object;
        let as_cached = whole && view.kind.custom.is_none() && view.is_stored_form() && !conversion::is_by_webhook(&call.kind);
        Framer { output, view, headers_sent: false, as_cached }
    }
    fn media_type(&self) -> &'static str {
        if self.output.format == Format::Protobuf { protobuf::WATCH_MEDIA_TYPE } else { "application/json" }
    }
    /// An event of any object.
    fn frame(&self, kind: &str, object: &Value) -> Bytes {
        match self.output.format {
            Format::Protobuf => protobuf::watch_frame(kind, &protobuf::encode(object).unwrap_or_default()).into(),
            _ => frame(kind, object.to_string().as_bytes()),
        }
    }
    fn event(&mut self, message: &Message) -> Bytes {
        if self.output.format == Format::Protobuf {
            let object = (self.output.shape == Shape::Object).then(|| self.view.protobuf(&message.entry())).flatten();
            return match object {
                Some(object) => protobuf::watch_frame(message.kind().name(), &object).into(),
                None => self.shown(message.kind(), &message.entry()),
            };
        }
        match self.output.shape {
            Shape::Object if self.view.kind.custom.is_some() && self.view.shows(&message.entry()) => message.frame(),
            Shape::Metadata { version } => frame(message.kind().name(), &metadata_bytes(&message.entry(), version)),
            _ => self.shown(message.kind(), &message.entry()),
        }
    }
    fn shown(&mut self, kind: ChangeKind, entry: &Entry) -> Bytes {
        let mut object = entry.value();
        if self.output.shape == Shape::Object {
            self.view.show(&mut object);
        }
        let shaped = self.shape(object, &entry.revision.to_string());
        self.frame(kind.name(), &shaped)
    }
    fn shape(&mut self, object: Value, resource_version: &str) -> Value {
        match self.output.shape {
            Shape::Object => object,
            Shape::Metadata { version } => metadata_value(&object, version),
            Shape::Table { version } => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                self.output.table(&self.view, [object], json!({"resourceVersion": resource_version}), headers, version)
            }
        }
    }
    fn bookmark(&mut self, revision: Revision, initial_events_end: bool) -> Bytes {
        let mut object =
            json!({"kind": self.view.kind.kind, "apiVersion": self.view.api_version(), "metadata": {"resourceVersion": revision.to_string()}});
        if initial_events_end {
            object.set_annotation(INITIAL_EVENTS_END, "true");
        }
        let shaped = self.shape(object, &revision.to_string());
        self.frame("BOOKMARK", &shaped)
    }
}
