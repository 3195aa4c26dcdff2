//! watch: what has changed, as it changes, one JSON line or one protobuf frame per event.
//!
//! A plain JSON watch sends the cache's own frames, shared by all its watchers. Tables and metadata are made per watcher.

use crate::{
    body::{self, Body, BoxError},
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
use futures::future::BoxFuture;
use http::StatusCode;
use http_body::Frame;
use rand::Rng;
use serde_json::json;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use store::Revision;
use tokio::time::{Instant, Sleep};

/// Events that are ready go out together up to about this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
const BOOKMARK_PERIOD: Duration = Duration::from_secs(limits::WATCH_BOOKMARK_PERIOD_S);
/// The annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub async fn watch(mut call: Call) -> Answer {
    let socket = websocket::asked(&mut call.request, &[])?;
    let (server, place) = (call.server.clone(), call.request.extensions_mut().remove::<Place>());
    let events = events(call, place.clone()).await?;
    if let (Some(place), None) = (place, &socket) {
        place.stay();
    }
    Ok(websocket::answer(&server, socket, events))
}

async fn events(call: Call, place: Option<Place>) -> Answer {
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
    let framer = Framer::of(&call);
    let media_type = framer.media_type();
    let alarm = Alarm::new(deadline, options.allow_bookmarks);
    let conversion = conversion::is_by_webhook(&call.kind).then_some(Conversion { later, running: None, failed: false });
    // Looked at after the watch has begun: whoever begins later than this is not ended with the others.
    if call.server.config.shutdown.is_cancelled() {
        return Ok(respond(StatusCode::OK, media_type, body::empty()));
    }
    let running = Running { watch, framer, first, alarm, place, call: Arc::new(call), conversion };
    Ok(respond(StatusCode::OK, media_type, Body::new(running)))
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

/// A watch on its way to the client: what it says, line by line.
///
/// It is polled by hand, for hundreds of watchers see one change: each touches as little memory as it can.
struct Running {
    watch: Watch,
    framer: Framer,
    /// Whether the bookmark that ends the initial events is still to come.
    first: bool,
    alarm: Alarm,
    /// Where it runs, on a connection of HTTP/2.
    place: Option<Place>,
    call: Arc<Call>,
    /// Only for what a webhook converts.
    conversion: Option<Conversion>,
}

/// How events come into the version of the watch if that takes a while.
struct Conversion {
    /// What is selected by fields that are only there once an object has been converted.
    later: Option<Selection>,
    /// The event that is being converted; nothing comes of it if it is nothing to this watcher.
    running: Option<BoxFuture<'static, Result<Option<(ChangeKind, Arc<Entry>)>, Status>>>,
    /// Whether an object could not be converted, which is the watch's end.
    failed: bool,
}

impl http_body::Body for Running {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.get_mut().poll_lines(cx).map(|lines| lines.map(|lines| Ok(Frame::data(lines))))
    }
}

/// What comes next.
enum Next {
    Event(Message),
    Line(Bytes),
    End,
}

impl Running {
    /// The next lines, or `None` at the end.
    fn poll_lines(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.conversion.is_some() {
            return self.poll_converted(cx);
        }
        Poll::Ready(match ready!(self.poll_next(cx)) {
            Next::Event(message) => Some(self.batch(&message)),
            Next::Line(line) => Some(line),
            Next::End => None,
        })
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(message) = self.watch.past.pop_front() {
            return Poll::Ready(Next::Event(message));
        }
        if std::mem::take(&mut self.first) {
            return Poll::Ready(Next::Line(self.framer.bookmark(self.watch.revision, true)));
        }
        // Whatever it was woken for is seen below: what is in the queue, and what time it is.
        if let Some(place) = &self.place {
            place.look();
        }
        match self.watch.live.poll_recv(cx) {
            Poll::Ready(message) => Poll::Ready(message.map_or(Next::End, Next::Event)),
            Poll::Pending => self.poll_alarm(cx),
        }
    }

    /// While nothing happens: bookmarks, and the end of the time.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        while let Alarmed::Bookmark = ready!(self.alarm.poll(cx)) {
            // Read first: every change up to here is in the queue already, so an empty queue means all was sent.
            let reached = self.call.server.cache.reached();
            let resource = self.call.server.cache.of(&self.call.kind);
            let sent = resource.between_changes(|changed| self.watch.live.is_empty().then_some(changed.max(reached)));
            if let Some(revision) = sent {
                return Poll::Ready(Next::Line(self.framer.bookmark(revision, false)));
            }
        }
        Poll::Ready(Next::End)
    }

    /// The line of an event, with those of events that are there already.
    fn batch(&mut self, message: &Message) -> Bytes {
        let first = self.framer.event(message);
        let Some(second) = self.at_hand() else { return first };
        let mut lines = BytesMut::from(first.as_ref());
        lines.extend_from_slice(&self.framer.event(&second));
        while lines.len() < BATCH_BYTES {
            let Some(message) = self.at_hand() else { break };
            lines.extend_from_slice(&self.framer.event(&message));
        }
        lines.freeze()
    }

    /// The next event, if it is there and nothing comes before it.
    fn at_hand(&mut self) -> Option<Message> {
        self.watch.past.pop_front().or_else(|| if self.first { None } else { self.watch.live.take() })
    }

    /// The next line where a webhook converts objects, one after the other.
    fn poll_converted(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some(conversion) = self.conversion.as_mut().filter(|conversion| !conversion.failed) else { return Poll::Ready(None) };
            if let Some(running) = &mut conversion.running {
                let event = ready!(running.as_mut().poll(cx));
                conversion.running = None;
                match event {
                    Ok(Some((kind, entry))) => return Poll::Ready(Some(self.framer.shown(kind, &entry))),
                    Ok(None) => {}
                    Err(status) => {
                        conversion.failed = true;
                        return Poll::Ready(Some(self.framer.frame("ERROR", &status.to_value())));
                    }
                }
            }
            match ready!(self.poll_next(cx)) {
                Next::Event(message) => {
                    if let Some(conversion) = &mut self.conversion {
                        conversion.running = Some(Box::pin(converted(self.call.clone(), conversion.later.clone(), message)));
                    }
                }
                Next::Line(line) => return Poll::Ready(Some(line)),
                Next::End => return Poll::Ready(None),
            }
        }
    }
}

/// When a watch has to do something though nothing has happened.
struct Alarm {
    /// The time is up.
    over: Instant,
    bookmark: Option<Instant>,
    /// Set to the earlier of the two, and looked at only then: it is dear to ask.
    sleep: Pin<Box<Sleep>>,
    /// Who is woken by it.
    set_for: Option<Waker>,
}

enum Alarmed {
    Over,
    Bookmark,
}

impl Alarm {
    fn new(over: Instant, bookmarks: bool) -> Alarm {
        let bookmark = bookmarks.then(|| Instant::now() + BOOKMARK_PERIOD);
        let sleep = Box::pin(tokio::time::sleep_until(next_of(over, bookmark)));
        Alarm { over, bookmark, sleep, set_for: None }
    }
    /// Ready when the time is up, and whenever a bookmark is due.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Alarmed> {
        let (now, next) = (Instant::now(), next_of(self.over, self.bookmark));
        if now < next && self.set_for.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        if self.sleep.as_mut().poll(cx).is_pending() {
            self.set_for = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if next >= self.over {
            return Poll::Ready(Alarmed::Over);
        }
        self.bookmark = Some(now + BOOKMARK_PERIOD);
        self.set_for = None;
        self.sleep.as_mut().reset(next_of(self.over, self.bookmark));
        Poll::Ready(Alarmed::Bookmark)
    }
}

fn next_of(over: Instant, bookmark: Option<Instant>) -> Instant {
    bookmark.map_or(over, |bookmark| bookmark.min(over))
}

/// An event in the version of the watch; `None` if it is nothing to the watcher.
async fn converted(call: Arc<Call>, later: Option<Selection>, message: Message) -> Result<Option<(ChangeKind, Arc<Entry>)>, Status> {
    let view = call.view();
    match later {
        Some(selection) => selected(&call, &view, &selection, &message).await,
        None => conversion::entry(&call.server, &view, message.entry()).await.map(|entry| Some((message.kind(), entry))),
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
    /// The line or frame of an event whose object is in the version of the watch.
    fn event(&mut self, message: &Message) -> Bytes {
        if self.as_cached {
            return message.frame();
        }
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
