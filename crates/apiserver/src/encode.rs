//! How an answer looks: JSON, YAML or protobuf, the object itself, a Table or its metadata alone, pretty or not, gzip or not.
//!
//! [`Output::negotiate`] reads what the client accepts; the other functions turn entries and values into responses. Where
//! the client wants plain JSON in the stored version, the cache's bytes go out as they are.

use crate::{
    Body,
    body::{self, full},
    cache::Entry,
    gathered::append,
};
use api::{
    Kind, Status, Value,
    object::ObjectExt,
    protobuf,
    request::Query,
    table::{self, IncludeObject},
};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use std::{io::Write, sync::Arc};

/// Smaller answers are not worth compressing.
pub const GZIP_BYTES_MIN: usize = 128 * 1024;
/// A list goes out in pieces of about this size, so that no reader holds a second copy of a large one.
const LIST_PIECE_BYTES: usize = 128 * 1024;

/// The media types that objects are served in.
pub const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];
/// Those that custom resources are served in.
pub const CUSTOM_MEDIA_TYPES: &[&str] = &["application/json", "application/yaml"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    /// What has no such form goes out as JSON, and says so.
    Protobuf,
}

/// What is shown of an object. The version is that of `meta.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table { version: &'static str },
    Metadata { version: &'static str },
}

/// How the client wants its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    pub shape: Shape,
    pub include: IncludeObject,
    pub pretty: bool,
    pub gzip: bool,
    /// Whether the metadata of a list (true) or of one object (false) was asked for by name.
    pub metadata_list: Option<bool>,
}

/// The kind and version in which objects are shown.
#[derive(Clone)]
pub struct View {
    pub kind: Arc<Kind>,
    pub version: String,
}

impl View {
    /// Whether stored objects are shown as they are.
    pub fn is_stored_form(&self) -> bool {
        self.kind.stored_as.is_none() && self.kind.version() == self.version
    }
    pub fn api_version(&self) -> String {
        if self.kind.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.kind.group, self.version) }
    }
    /// Turns a stored object into the shown form.
    pub fn show(&self, object: &mut Value) {
        if !self.is_stored_form() {
            self.kind.hooks.from_stored(&self.version, object);
        }
    }
    fn value(&self, entry: &Entry) -> Value {
        let mut value = entry.value();
        if !self.shows(entry) {
            self.show(&mut value);
        }
        value
    }
    /// Whether an entry's bytes are what is shown.
    pub fn shows(&self, entry: &Entry) -> bool {
        match self.kind.custom {
            None => self.is_stored_form(),
            Some(_) => entry.is_in(&self.api_version()),
        }
    }
    /// The protobuf message of what is shown of an entry.
    fn message(&self, entry: &Entry) -> Option<Bytes> {
        if self.shows(entry) {
            return entry.protobuf();
        }
        protobuf::encode_message(&self.api_version(), &self.kind.kind, &self.value(entry)).map(Bytes::from)
    }
    /// The protobuf form of what is shown of an entry, in its envelope.
    pub fn protobuf(&self, entry: &Entry) -> Option<Vec<u8>> {
        Some(protobuf::envelope(&self.api_version(), &self.kind.kind, &self.message(entry)?))
    }
    /// What a list says beside its items: those of custom resources always have `continue`.
    fn list_head(&self, metadata: &Value) -> String {
        let mut metadata = metadata.clone();
        if self.kind.custom.is_some() && metadata.get("continue").is_none() {
            metadata.set("continue", "");
        }
        format!(r#"{{"kind":{},"apiVersion":{},"metadata":{metadata},"items":["#, json!(self.kind.list_kind), json!(self.api_version()))
    }
}

/// The `metadata` of a list.
#[derive(Clone, Debug, Default)]
pub struct ListMetadata {
    pub resource_version: String,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

impl ListMetadata {
    fn to_value(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.resource_version});
        if !self.continue_token.is_empty() {
            metadata.set("continue", self.continue_token.as_str());
            if let Some(remaining) = self.remaining {
                metadata.set("remainingItemCount", remaining);
            }
        }
        metadata
    }
}

impl Output {
    /// Plain JSON.
    pub fn json() -> Output {
        Output { format: Format::Json, shape: Shape::Object, include: IncludeObject::Metadata, pretty: false, gzip: false, metadata_list: None }
    }

    /// Reads `Accept`, `Accept-Encoding`, `User-Agent` and the query. 406 if nothing that is accepted can be served.
    /// `shapes` is whether Tables and metadata can be made of the answer; `custom` whether it is a custom resource, of which
    /// only the metadata has a protobuf form.
    pub fn negotiate(headers: &HeaderMap, query: &Query, shapes: bool, custom: bool) -> Result<Output, Status> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
        let (format, shape, metadata_list) =
            choose(&accept, shapes, custom).ok_or_else(|| not_acceptable(&accept, if custom { CUSTOM_MEDIA_TYPES } else { MEDIA_TYPES }))?;
        let include = match (shape, query.get("includeObject")) {
            (Shape::Table { .. }, Some(word)) => match word {
                "None" => IncludeObject::None,
                "" | "Metadata" => IncludeObject::Metadata,
                "Object" => IncludeObject::Object,
                other => {
                    return Err(Status::bad_request(format!(
                        "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
                    )));
                }
            },
            _ => IncludeObject::Metadata,
        };
        // People look at what curl and browsers fetch.
        let by_hand = ["curl", "Wget", "Mozilla/5.0"].iter().any(|agent| text(header::USER_AGENT).starts_with(agent));
        let pretty = match query.get("pretty") {
            Some(word) => matches!(word, "1" | "true" | "t" | "T" | "TRUE" | "True"),
            None => by_hand,
        };
        let gzip = text(header::ACCEPT_ENCODING).split(',').any(|coding| coding.trim().split(';').next() == Some("gzip"));
        Ok(Output { format, shape, include, pretty, gzip, metadata_list })
    }

    /// 406 if the metadata of a list was asked for where there is one object, or the other way round.
    pub fn check_list(&self, is_list: bool, kind: &str) -> Result<(), Status> {
        match (self.metadata_list, is_list) {
            (Some(true), false) => Err(Status::not_acceptable_because(format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list (*core.{kind})"
            ))),
            (Some(false), true) => {
                Err(Status::not_acceptable_because(format!("you requested PartialObjectMetadata, but the requested object is a list (*core.{kind})")))
            }
            _ => Ok(()),
        }
    }

    /// One object.
    pub fn entry(&self, code: StatusCode, view: &View, entry: &Entry) -> Response<Body> {
        match (self.shape, self.format) {
            (Shape::Object, Format::Json) if !self.pretty && view.shows(entry) => self.finish(code, entry.bytes.clone()),
            (Shape::Metadata { version }, Format::Json) if !self.pretty => self.finish(code, metadata_bytes(entry, version)),
            (Shape::Object, Format::Protobuf) => match view.protobuf(entry) {
                Some(bytes) => self.finish(code, bytes.into()),
                None => self.object(code, view, entry.value()),
            },
            _ => self.object(code, view, entry.value()),
        }
    }

    /// One object that is not in the cache, in stored form.
    pub fn object(&self, code: StatusCode, view: &View, mut object: Value) -> Response<Body> {
        let shown = match self.shape {
            Shape::Object => {
                view.show(&mut object);
                object
            }
            Shape::Metadata { version } => metadata_value(&object, version),
            Shape::Table { version } => {
                let metadata = json!({"resourceVersion": object.resource_version()});
                self.table(view, [object], metadata, true, version)
            }
        };
        self.value(code, &shown)
    }

    /// The same, of an object that its caller keeps.
    pub fn shown(&self, code: StatusCode, view: &View, object: &Value) -> Response<Body> {
        if self.shape == Shape::Object && view.is_stored_form() { self.value(code, object) } else { self.object(code, view, object.clone()) }
    }

    /// Anything that is shown as it is.
    pub fn value(&self, code: StatusCode, value: &Value) -> Response<Body> {
        if self.format != Format::Protobuf {
            return self.finish(code, self.bytes(value));
        }
        match protobuf::encode(value) {
            Some(bytes) => self.finish(code, bytes.into()),
            None => self.as_json().finish(code, self.bytes(value)),
        }
    }

    /// The same, but in JSON.
    fn as_json(&self) -> Output {
        Output { format: Format::Json, ..self.clone() }
    }

    /// A Status. Its own code is the answer's.
    pub fn status(&self, status: &Status) -> Response<Body> {
        let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = self.value(code, &status.to_value());
        if let Some(seconds) = status.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }

    /// A list of objects.
    pub fn list(&self, view: &View, entries: Vec<Arc<Entry>>, metadata: &ListMetadata) -> Response<Body> {
        let list_metadata = metadata.to_value();
        if self.format == Format::Protobuf {
            return self.protobuf_list(view, entries, metadata);
        }
        match self.shape {
            Shape::Table { version } => {
                // One object at a time: parsed, a large list would be many times its bytes.
                let objects = entries.iter().map(|entry| entry.value());
                self.value(StatusCode::OK, &self.table(view, objects, list_metadata, true, version))
            }
            Shape::Metadata { version } if entries.is_empty() => {
                // Go shows a list that was never begun as null.
                self.value(StatusCode::OK, &json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": list_metadata, "items": null}))
            }
            Shape::Metadata { version } => {
                let head =
                    format!(r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/{version}","metadata":{list_metadata},"items":["#);
                let items = entries.into_iter().map(move |entry| metadata_bytes(&entry, version));
                self.join(head, Box::new(items), b"")
            }
            Shape::Object if view.kind.custom.is_some() => {
                // Items say what they are, and may be in another version than the one shown.
                let shown = view.clone();
                let items = entries
                    .into_iter()
                    .map(move |entry| if shown.shows(&entry) { entry.bytes.clone() } else { shown.value(&entry).to_string().into() });
                self.join(view.list_head(&list_metadata), Box::new(items), b"")
            }
            Shape::Object if view.is_stored_form() => {
                let items = entries.into_iter().map(|entry| entry.item());
                self.join(view.list_head(&list_metadata), Box::new(items), b"{")
            }
            Shape::Object => {
                let shown = view.clone();
                let items = entries.into_iter().map(move |entry| {
                    let mut value = shown.value(&entry);
                    if let Some(object) = value.as_object_mut() {
                        object.remove("apiVersion");
                        object.remove("kind");
                    }
                    Bytes::from(value.to_string())
                });
                self.join(view.list_head(&list_metadata), Box::new(items), b"")
            }
        }
    }

    /// A list in protobuf. Its length stands at its beginning, so every item is made before the first goes out; most have
    /// been made before, and none is copied.
    fn protobuf_list(&self, view: &View, entries: Vec<Arc<Entry>>, metadata: &ListMetadata) -> Response<Body> {
        let (api_version, kind, messages) = match self.shape {
            Shape::Metadata { version } => {
                let api_version = format!("meta.k8s.io/{version}");
                let message = |entry: &Arc<Entry>| {
                    let partial = serde_json::from_slice(&metadata_bytes(entry, version)).unwrap_or(Value::Null);
                    protobuf::encode_message(&api_version, "PartialObjectMetadata", &partial).map(Bytes::from)
                };
                let messages: Option<Vec<Bytes>> = entries.iter().map(message).collect();
                (api_version, "PartialObjectMetadataList", messages)
            }
            _ => (view.api_version(), view.kind.list_kind.as_str(), entries.iter().map(|entry| view.message(entry)).collect()),
        };
        let Some(messages) = messages else { return self.as_json().list(view, entries, metadata) };
        let start = protobuf::list_start(&metadata.to_value());
        let raw_bytes: usize = messages.iter().map(|message| protobuf::item_start(message.len()).len() + message.len()).sum();
        let mut head = BytesMut::from(protobuf::envelope_start(&api_version, kind, start.len() + raw_bytes).as_slice());
        head.extend_from_slice(&start);
        let items = messages.into_iter().map(|message| [protobuf::item_start(message.len()), message.to_vec()].concat().into());
        let mut pieces =
            Pieces { next: head, items: Box::new(items), open: b"", between: b"", end: protobuf::ENVELOPE_END, first: true, done: false };
        let first = pieces.next().unwrap_or_default();
        if pieces.done {
            return self.finish(StatusCode::OK, first);
        }
        let pieces = std::iter::once(first).chain(pieces);
        if self.gzip {
            let compressed = Compressed { pieces: Box::new(pieces), encoder: Some(encoder()) };
            let mut response = respond(StatusCode::OK, protobuf::MEDIA_TYPE, body::stream(futures::stream::iter(compressed.map(Ok))));
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return response;
        }
        respond(StatusCode::OK, protobuf::MEDIA_TYPE, body::stream(futures::stream::iter(pieces.map(Ok))))
    }

    /// A list from pieces: its head, then every item behind `open`, then the end.
    fn join(&self, head: String, items: Box<dyn Iterator<Item = Bytes> + Send>, open: &'static [u8]) -> Response<Body> {
        let mut pieces = Pieces { next: BytesMut::from(head.as_bytes()), items, open, between: b",", end: b"]}\n", first: true, done: false };
        if self.pretty || self.format == Format::Yaml {
            let whole: Vec<u8> = pieces.flatten().collect();
            // Our own bytes always parse.
            let value: Value = serde_json::from_slice(&whole).unwrap_or(Value::Null);
            return self.value(StatusCode::OK, &value);
        }
        let first = pieces.next().unwrap_or_default();
        if pieces.done {
            return self.finish(StatusCode::OK, first);
        }
        if self.gzip {
            let compressed = Compressed { pieces: Box::new(std::iter::once(first).chain(pieces)), encoder: Some(encoder()) };
            let mut response = respond(StatusCode::OK, "application/json", body::stream(futures::stream::iter(compressed.map(Ok))));
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return response;
        }
        respond(StatusCode::OK, "application/json", body::stream(futures::stream::iter(std::iter::once(first).chain(pieces).map(Ok))))
    }

    /// A Table of objects in stored form.
    pub fn table(&self, view: &View, objects: impl IntoIterator<Item = Value>, list_metadata: Value, headers: bool, version: &str) -> Value {
        let now_unix_s = jiff::Timestamp::now().as_second();
        let mut rows: Vec<(i64, Value)> = objects
            .into_iter()
            .map(|mut object| {
                let place = view.kind.hooks.row_place(&object);
                let mut row = table::row(&view.kind, &object, self.include, now_unix_s);
                if self.include == IncludeObject::Object && !view.is_stored_form() {
                    view.show(&mut object);
                    row["object"] = object;
                }
                if version != "v1" {
                    relabel(row.get_mut("object"), version);
                }
                (place, row)
            })
            .collect();
        rows.sort_by_key(|(place, _)| *place);
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        let mut table = table::table(&view.kind.columns, rows, list_metadata, headers);
        if version != "v1" {
            relabel(Some(&mut table), version);
        }
        table
    }

    /// The body of a value, in the wanted format.
    pub fn bytes(&self, value: &Value) -> Bytes {
        match self.format {
            Format::Json if self.pretty => {
                let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
                text.push(b'\n');
                text.into()
            }
            Format::Json | Format::Protobuf => {
                let mut text = value.to_string();
                text.push('\n');
                text.into()
            }
            Format::Yaml => crate::yaml::text(value).into(),
        }
    }

    fn finish(&self, code: StatusCode, bytes: Bytes) -> Response<Body> {
        let content_type = match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => protobuf::MEDIA_TYPE,
        };
        if self.gzip && bytes.len() >= GZIP_BYTES_MIN {
            let mut encoder = encoder();
            if encoder.write_all(&bytes).is_ok()
                && let Ok(packed) = encoder.finish()
            {
                let mut response = respond(code, content_type, full(packed));
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
                return response;
            }
        }
        respond(code, content_type, full(bytes))
    }
}

/// A response of any kind.
pub fn respond(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn encoder() -> flate2::write::GzEncoder<Vec<u8>> {
    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast())
}

/// PartialObjectMetadata, cut from the cached bytes.
pub fn metadata_bytes(entry: &Entry, version: &str) -> Bytes {
    let head = format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":"#);
    [head.as_bytes(), entry.metadata(), b"}"].concat().into()
}

/// PartialObjectMetadata of a value.
pub fn metadata_value(object: &Value, version: &str) -> Value {
    let mut partial = table::partial_metadata(object);
    relabel(Some(&mut partial), version);
    partial
}

fn relabel(value: Option<&mut Value>, version: &str) {
    if let Some(value) = value.filter(|value| value.api_version().starts_with("meta.k8s.io/")) {
        value.set("apiVersion", format!("meta.k8s.io/{version}"));
    }
}

/// 406: in other words where not one of the media types is known than where what is wanted of one is not.
fn not_acceptable(accept: &str, media_types: &[&str]) -> Status {
    let known = |clause: &str| media_types.contains(&clause.split(';').next().unwrap_or_default().trim());
    if accept.split(',').any(known) {
        return Status::not_acceptable(media_types);
    }
    let mut status = Status::not_acceptable_because(format!("406: Not Acceptable\n\nAvailable representations: {}", media_types.join(", ")));
    status.details = Some(Default::default());
    status
}

/// The first accepted media type that can be served, by weight and then by order.
fn choose(accept: &str, shapes: bool, custom: bool) -> Option<(Format, Shape, Option<bool>)> {
    let mut clauses: Vec<(f32, &str, Vec<(&str, &str)>)> = accept
        .split(',')
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<(&str, &str)> =
                parts.filter_map(|part| part.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            let weight = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
            (weight, media, parameters)
        })
        .collect();
    if clauses.is_empty() {
        return Some((Format::Json, Shape::Object, None));
    }
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses.iter().find_map(|(_, media, parameters)| {
        let format = match *media {
            "application/json" | "*/*" | "application/*" => Format::Json,
            "application/yaml" => Format::Yaml,
            protobuf::MEDIA_TYPE => Format::Protobuf,
            _ => return None,
        };
        let parameter = |name: &str| parameters.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| *v);
        let version = match parameter("v") {
            "v1" => "v1",
            "v1beta1" => "v1beta1",
            _ => "",
        };
        let group = parameter("g") == "meta.k8s.io";
        let shape = match parameter("as") {
            "" => Shape::Object,
            "Table" if shapes && group && !version.is_empty() => Shape::Table { version },
            "PartialObjectMetadata" | "PartialObjectMetadataList" if shapes && group && !version.is_empty() => Shape::Metadata { version },
            _ => return None,
        };
        // Neither a Table nor a custom resource has a message.
        if format == Format::Protobuf && (matches!(shape, Shape::Table { .. }) || (custom && shape == Shape::Object)) {
            return None;
        }
        let metadata_list = matches!(shape, Shape::Metadata { .. }).then(|| parameter("as").ends_with("List"));
        Some((format, shape, metadata_list))
    })
}

/// The bytes of a list, about [`LIST_PIECE_BYTES`] at a time.
struct Pieces {
    next: BytesMut,
    items: Box<dyn Iterator<Item = Bytes> + Send>,
    /// What stands before each item, between two, and behind all.
    open: &'static [u8],
    between: &'static [u8],
    end: &'static [u8],
    first: bool,
    done: bool,
}

impl Iterator for Pieces {
    type Item = Bytes;
    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if self.next.capacity() < LIST_PIECE_BYTES {
            self.next.reserve(LIST_PIECE_BYTES + LIST_PIECE_BYTES / 8);
        }
        while self.next.len() < LIST_PIECE_BYTES {
            let Some(item) = self.items.next() else {
                self.next.put_slice(self.end);
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.next.put_slice(self.between);
            }
            self.next.put_slice(self.open);
            append(&mut self.next, &item);
        }
        Some(std::mem::take(&mut self.next).freeze())
    }
}

/// The same, compressed.
struct Compressed {
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
}

impl Iterator for Compressed {
    type Item = Bytes;
    fn next(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            match self.pieces.next() {
                // Writing into memory cannot fail.
                Some(piece) => {
                    let _ = encoder.write_all(&piece);
                    let packed = std::mem::take(encoder.get_mut());
                    if !packed.is_empty() {
                        return Some(packed.into());
                    }
                }
                None => return self.encoder.take()?.finish().ok().map(Bytes::from),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_servable_type_is_chosen() {
        let table = Shape::Table { version: "v1" };
        assert_eq!(choose("", true, false), Some((Format::Json, Shape::Object, None)));
        let both = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(choose(both, true, false), Some((Format::Protobuf, Shape::Object, None)));
        assert_eq!(choose(both, true, true), Some((Format::Json, Shape::Object, None)));
        assert_eq!(choose(protobuf::MEDIA_TYPE, true, true), None);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        assert_eq!(choose(metadata, true, true), Some((Format::Protobuf, Shape::Metadata { version: "v1" }, Some(true))));
        assert_eq!(choose("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", true, false), None);
        assert_eq!(choose("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", true, false), Some((Format::Json, table, None)));
        assert_eq!(choose("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", true, false), Some((Format::Json, Shape::Object, None)));
        assert_eq!(choose("application/json;as=Foo;v=v1;g=meta.k8s.io", true, false), None);
        assert_eq!(choose("image/png", true, false), None);
        assert_eq!(choose("application/json;q=0.1, application/yaml", true, false), Some((Format::Yaml, Shape::Object, None)));
    }
}
