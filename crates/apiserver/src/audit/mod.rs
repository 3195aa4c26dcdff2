//! The audit log: who asked for what, and what came of it, as the [`policy`] wants it.
//!
//! A [`Record`] goes along with each request. It writes an event of audit.k8s.io/v1 at each stage that the policy asks for: when the
//! request is known to be someone's, when an answer that goes on has begun, and when it is complete. An answer is given only
//! after its event is queued for the [`log`]. Without a policy there is no record, and nothing costs anything.
//!
//! What must stay true: nothing is left out silently; what a request carries is kept only if the policy wants it.

mod log;
mod policy;

pub use log::Settings;
pub use policy::Policy;

use crate::{Body, Error, Identity, User, body, connect};
use api::{
    Status, Value,
    object::ObjectExt,
    protobuf,
    request::RequestInfo,
    structure::{self, Encoding},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use policy::{Choice, Level, Stage};
use serde_json::{Map, json};
use std::{
    fmt::Write,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// The longest id that a client may choose for its request.
const AUDIT_ID_CHARS_MAX: usize = 64;
/// The longest user agent that is written.
const USER_AGENT_CHARS_MAX: usize = 1024;
/// Bytes of an answer that goes along with its event; of a longer one it is said that it is left out.
const RESPONSE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What is written, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The text of the policy.
    pub policy: String,
    pub log: Settings,
}

/// The address that a connection came from; among a request's extensions if there is an audit log.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// The audit log of a server.
pub struct Audit {
    policy: Policy,
    log: log::Log,
}

impl Audit {
    pub fn new(config: &Config) -> Result<Audit, Error> {
        let policy = Policy::parse(&config.policy).map_err(|why| Error::Configuration(format!("the audit policy cannot be used: {why}")))?;
        let log = log::Log::start(config.log.clone())
            .map_err(|error| Error::Configuration(format!("--audit-log-path {}: {error}", config.log.path.display())))?;
        Ok(Audit { policy, log })
    }

    /// Begins the record of a request.
    pub fn begin(self: &Arc<Self>, request: &Request<Body>, identity: &Identity, info: &RequestInfo) -> Arc<Record> {
        let headers = request.headers();
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let own = text(&AUDIT_ID);
        let id = if own.is_empty() || own.len() > AUDIT_ID_CHARS_MAX { uuid::Uuid::new_v4().to_string() } else { own.to_string() };
        Arc::new(Record {
            audit: self.clone(),
            id,
            uri: request.uri().path_and_query().map(|uri| uri.as_str().to_string()).unwrap_or_default(),
            user_agent: text(&header::USER_AGENT).chars().take(USER_AGENT_CHARS_MAX).collect(),
            source_addresses: sources(headers, request.extensions().get(), identity),
            content_type: text(&header::CONTENT_TYPE).to_string(),
            info: info.clone(),
            long: connect::is_long(info),
            received: Timestamp::now(),
            state: Mutex::default(),
        })
    }

    /// Waits, but not for ever, until everything so far is written.
    pub async fn flush(&self) {
        self.log.flush().await;
    }

    /// Its part of the metrics.
    pub fn metrics(&self, out: &mut String) {
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP apiserver_audit_event_total Audit events that were written.\n# TYPE apiserver_audit_event_total counter\napiserver_audit_event_total {}\n\
             # HELP apiserver_audit_error_total Audit events that were lost.\n# TYPE apiserver_audit_error_total counter\napiserver_audit_error_total{{plugin=\"log\"}} {}",
            self.log.written.load(Relaxed),
            self.log.lost.load(Relaxed)
        );
    }
}

fn sources(headers: &HeaderMap, peer: Option<&PeerAddress>, identity: &Identity) -> Vec<String> {
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut all: Vec<String> = forwarded.filter_map(|address| address.trim().parse::<IpAddr>().ok()).map(|address| address.to_string()).collect();
    let nearest = match (peer, identity) {
        (Some(PeerAddress(address)), _) => Some(address.to_canonical().to_string()),
        (None, Identity::Local(_)) => Some("::1".to_string()),
        (None, Identity::Peer(_)) => None,
    };
    if let Some(nearest) = nearest.filter(|nearest| !all.contains(nearest)) {
        all.push(nearest);
    }
    all
}

/// What is known of one request.
pub struct Record {
    audit: Arc<Audit>,
    id: String,
    uri: String,
    user_agent: String,
    source_addresses: Vec<String>,
    content_type: String,
    info: RequestInfo,
    long: bool,
    received: Timestamp,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` until it is known who asks.
    choice: Option<Choice>,
    user: User,
    impersonated: Option<User>,
    annotations: Map<String, Value>,
    /// What was sent, if it is to be written.
    sent: Vec<Bytes>,
}

impl Record {
    fn wants(&self, level: Level) -> bool {
        self.state.lock().choice.as_ref().is_some_and(|choice| choice.level >= level)
    }

    /// It is known who asks: decides how much is written.
    pub async fn known(&self, user: &User) {
        let choice = self.audit.policy.choose(user, &self.info);
        {
            let mut state = self.state.lock();
            state.user = user.clone();
            state.choice = Some(choice);
        }
        self.write(Stage::RequestReceived, None, None).await;
    }

    /// The request is carried out as if it were someone else's.
    pub fn impersonated(&self, user: &User) {
        let mut state = self.state.lock();
        if state.user != *user {
            state.impersonated = Some(user.clone());
        }
    }

    /// Notes a body that will be read, if it is to be written.
    pub fn tee(self: &Arc<Self>, body: Body) -> Body {
        let writes = matches!(self.info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        if writes && !self.long && self.wants(Level::Request) { Body::new(Tee { body, record: self.clone() }) } else { body }
    }

    /// Adds an annotation to the events that follow; the last of a name counts.
    pub fn annotate(&self, key: &str, value: &str) {
        self.state.lock().annotations.insert(key.into(), value.into());
    }

    /// Nobody knows who it was.
    pub async fn refused(&self) {
        let choice = self.audit.policy.choose(&User::default(), &self.info);
        self.state.lock().choice = Some(choice);
    }

    /// The handler has panicked.
    pub async fn panicked(&self) {
        let status = Status::internal("the request's handler panicked");
        self.write(Stage::Panic, Some((status.code, Some(&status))), None).await;
    }

    /// Writes what was answered, and gives the answer on. That of a stream is complete when the stream is.
    pub async fn answered(self: &Arc<Self>, response: Response<Body>, status: Option<&Status>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            parts.headers.insert(AUDIT_ID, id);
        }
        let code = parts.status.as_u16();
        if self.state.lock().choice.is_none() {
            self.refused().await;
        }
        if self.long && status.is_none() {
            self.write(Stage::ResponseStarted, Some((code, None)), None).await;
            let end = End { record: self.clone(), code };
            return Response::from_parts(parts, if code == 101 { self.upgraded(end, body) } else { Body::new(Ending { body, _end: end }) });
        }
        if !self.wants(Level::RequestResponse) {
            self.write(Stage::ResponseComplete, Some((code, status)), None).await;
            return Response::from_parts(parts, body);
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string();
        let packed = parts.headers.contains_key(header::CONTENT_ENCODING);
        let (body, bytes) = match body.collect().await {
            Ok(collected) => {
                let bytes = collected.to_bytes();
                (body::full(bytes.clone()), bytes)
            }
            Err(error) => (Body::new(Broken(Some(error))), Bytes::new()),
        };
        let object = if packed || bytes.len() > RESPONSE_BYTES_MAX {
            Some(json!({"kind": "Unknown", "apiVersion": "", "omitted": format!("{} bytes", bytes.len())}))
        } else {
            read(&bytes, &content_type)
        };
        self.write(Stage::ResponseComplete, Some((code, status)), object).await;
        Response::from_parts(parts, body)
    }

    /// A connection that became something else is complete at once as far as this log can see.
    fn upgraded(&self, end: End, body: Body) -> Body {
        drop(end);
        body
    }

    async fn write(&self, stage: Stage, outcome: Option<(u16, Option<&Status>)>, answered: Option<Value>) {
        if let Some(line) = self.line(stage, outcome, answered) {
            self.audit.log.write(line).await;
        }
    }

    /// The event of a stage as a line; `None` if the policy does not want it.
    fn line(&self, stage: Stage, outcome: Option<(u16, Option<&Status>)>, answered: Option<Value>) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let choice = state.choice.as_ref().filter(|choice| choice.level > Level::None && !choice.omit_stages.contains(&stage))?;
        let mut event = Map::new();
        let mut set = |key: &str, value: Value| drop(event.insert(key.to_string(), value));
        set("kind", "Event".into());
        set("apiVersion", "audit.k8s.io/v1".into());
        set("level", choice.level.name().into());
        set("auditID", self.id.as_str().into());
        set("stage", stage.name().into());
        set("requestURI", self.uri.as_str().into());
        set("verb", self.info.verb.as_str().into());
        set("user", shown(&state.user));
        if let Some(user) = &state.impersonated {
            set("impersonatedUser", shown(user));
        }
        if !self.source_addresses.is_empty() {
            set("sourceIPs", json!(self.source_addresses));
        }
        if !self.user_agent.is_empty() {
            set("userAgent", self.user_agent.as_str().into());
        }
        let mut sent = None;
        if stage != Stage::RequestReceived && choice.level >= Level::Request && !state.sent.is_empty() {
            let mut joined = BytesMut::new();
            state.sent.iter().for_each(|part| joined.extend_from_slice(part));
            sent = read(&joined, &self.content_type);
        }
        if self.info.is_resource {
            set("objectRef", self.reference(sent.as_ref(), answered.as_ref()));
        }
        if let Some((code, status)) = outcome {
            set("responseStatus", said(code, status));
        }
        for (key, mut object) in [("requestObject", sent), ("responseObject", answered)].into_iter().filter_map(|(key, object)| Some((key, object?)))
        {
            if choice.omit_managed_fields {
                without_managers(&mut object);
            }
            set(key, object);
        }
        set("requestReceivedTimestamp", time(self.received));
        set("stageTimestamp", time(if stage == Stage::RequestReceived { self.received } else { Timestamp::now() }));
        if !state.annotations.is_empty() {
            set("annotations", Value::Object(state.annotations.clone()));
        }
        let mut line = serde_json::to_vec(&Value::Object(event)).ok()?;
        line.push(b'\n');
        Some(line)
    }

    fn reference(&self, sent: Option<&Value>, answered: Option<&Value>) -> Value {
        let info = &self.info;
        let mut reference = Map::new();
        let of = |object: Option<&Value>, get: fn(&Value) -> &str| object.map(get).unwrap_or_default().to_string();
        let name = if info.name.is_empty() && info.verb == "create" { of(sent, |object| object.name()) } else { info.name.clone() };
        for (key, text) in [
            ("resource", info.resource.clone()),
            ("namespace", info.namespace.clone()),
            ("name", name),
            ("uid", of(sent, |object| object.uid())),
            ("apiGroup", info.group.clone()),
            ("apiVersion", info.version.clone()),
            ("resourceVersion", of(sent, |object| object.resource_version())),
            ("subresource", info.subresource.clone()),
        ] {
            if !text.is_empty() {
                reference.insert(key.into(), text.into());
            }
        }
        let _ = answered;
        Value::Object(reference)
    }
}

fn shown(user: &User) -> Value {
    let mut shown = Map::new();
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            shown.insert(key.into(), text.as_str().into());
        }
    }
    if !user.groups.is_empty() {
        shown.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        shown.insert("extra".into(), json!(user.extra));
    }
    Value::Object(shown)
}

fn said(code: u16, status: Option<&Status>) -> Value {
    let Some(status) = status else { return json!({"metadata": {}, "code": code}) };
    let mut said = status.to_value();
    for key in ["kind", "apiVersion"] {
        said.remove(key);
    }
    said
}

fn time(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into()
}

/// An object as it went over the wire; `None` for what is none.
fn read(bytes: &[u8], content_type: &str) -> Option<Value> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    if media == protobuf::MEDIA_TYPE {
        return protobuf::decode(bytes).ok();
    }
    let encoding = match Encoding::of(content_type) {
        Some(encoding) => encoding,
        None if media.contains("yaml") => Encoding::Yaml,
        None if media.contains("json") || media.is_empty() => Encoding::Json,
        None => return None,
    };
    structure::parse(bytes, encoding).ok()
}

/// Takes `managedFields` out of an object, or of every item of a list.
fn without_managers(object: &mut Value) {
    object.remove("metadata.managedFields");
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        item.remove("metadata.managedFields");
    }
}

/// A request's body that leaves a copy behind.
struct Tee {
    body: Body,
    record: Arc<Record>,
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = body::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, body::BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            // Who reads it stops at the limit of bodies.
            self.record.state.lock().sent.push(data.clone());
        }
        frame
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Writes that a stream is complete, when it is dropped.
struct End {
    record: Arc<Record>,
    code: u16,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(line) = self.record.line(Stage::ResponseComplete, Some((self.code, None)), None) {
            self.record.audit.log.write_now(line);
        }
    }
}

/// A stream whose end is noted.
struct Ending {
    body: Body,
    _end: End,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = body::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, body::BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that broke before it could be written down.
struct Broken(Option<body::BoxError>);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = body::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, body::BoxError>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}
