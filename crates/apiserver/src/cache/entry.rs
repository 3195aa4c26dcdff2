//! One object as the cache holds it: its final bytes and the few fields that are asked for without parsing.
//!
//! The stored form of an object is `{"apiVersion":…,"kind":…,"metadata":{…},…}` without `resourceVersion`
//! ([`encode_stored`] writes it). The version is known only after the commit, and is put in here, once. Because the order
//! of the first three keys is fixed, the bytes can be cut without parsing: list items leave out `apiVersion` and `kind`,
//! and `PartialObjectMetadata` is the span of `metadata`.

use crate::gathered::append;
use api::{Kind, Value, object::ObjectExt, protobuf, structure};
use bytes::{BufMut, Bytes, BytesMut};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};
use store::Revision;

/// An object at one version. Immutable.
#[derive(Debug)]
pub struct Entry {
    /// The object's JSON, complete with `metadata.resourceVersion`.
    pub bytes: Bytes,
    /// Where `"metadata":` begins: a list item is `{` and everything from here.
    item_start: usize,
    /// The value of `metadata`, braces included.
    metadata: Range<usize>,
    /// The digits of the resourceVersion.
    version: Range<usize>,
    /// `namespace/name`, or `name` at cluster scope.
    pub place: Arc<str>,
    /// The store's revision of this state; for a deleted object that of its deletion.
    pub revision: Revision,
    pub uid: Box<str>,
    /// Shared by the versions of an object in which they are the same.
    pub labels: Arc<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the order of `Kind::selectable_fields`.
    pub fields: Box<[Box<str>]>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// What is stored, where that is not what is shown: an older custom resource under a newer definition.
    stored: Option<Bytes>,
    /// The object's protobuf message, once somebody has asked for it.
    protobuf: OnceLock<Option<Bytes>>,
}

impl Entry {
    /// Reads a stored value. `None` if it is not an object's JSON.
    pub fn read(place: &str, stored: &Bytes, revision: Revision, kind: Option<&Kind>) -> Option<Entry> {
        let mut value = structure::stored(stored)?;
        if kind.is_some_and(|kind| kind.hooks.revives() && kind.hooks.revive(&mut value)) {
            let shown = Bytes::from(encode_stored(&value));
            let entry = Entry::of(place, &shown, &value, revision, kind)?;
            return Some(Entry { stored: Some(stored.clone()), ..entry });
        }
        Entry::of(place, stored, &value, revision, kind)
    }

    /// The same object under another record of its kind.
    pub fn under(&self, kind: Option<&Kind>) -> Option<Entry> {
        let stored = self.stored.clone().unwrap_or_else(|| encode_stored(&self.value()).into());
        Entry::read(&self.place, &stored, self.revision, kind)
    }

    /// Whether the object is in this version, `group/version`.
    pub fn is_in(&self, api_version: &str) -> bool {
        const BEFORE: &[u8] = br#"{"apiVersion":""#;
        self.bytes.strip_prefix(BEFORE).and_then(|rest| rest.strip_prefix(api_version.as_bytes())).is_some_and(|rest| rest.first() == Some(&b'"'))
    }

    /// The same, when the value is parsed already.
    pub fn of(place: &str, stored: &Bytes, value: &Value, revision: Revision, kind: Option<&Kind>) -> Option<Entry> {
        let prefix = head(value);
        let stored = if stored.starts_with(prefix.as_bytes()) { stored.clone() } else { encode_stored(value).into() };
        Some(Unversioned::of(place, &stored, value, &prefix, kind)?.at(revision))
    }

    /// The same object with another resourceVersion: what a DELETED event shows.
    pub fn at(&self, revision: Revision) -> Entry {
        let digits = revision.to_string();
        let mut bytes = BytesMut::with_capacity(self.bytes.len() + digits.len());
        bytes.put_slice(&self.bytes[..self.version.start]);
        bytes.put_slice(digits.as_bytes());
        bytes.put_slice(&self.bytes[self.version.end..]);
        let metadata_end = self.metadata.end + digits.len() - self.version.len();
        Entry {
            bytes: bytes.freeze(),
            item_start: self.item_start,
            metadata: self.metadata.start..metadata_end,
            version: self.version.start..self.version.start + digits.len(),
            place: self.place.clone(),
            revision,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            deleting: self.deleting,
            stored: None,
            protobuf: OnceLock::new(),
        }
    }

    /// Shares with an earlier state what is the same.
    pub(super) fn share(&mut self, before: &Entry) {
        if self.labels == before.labels {
            self.labels = before.labels.clone();
        }
        self.place = before.place.clone();
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        structure::stored(&self.bytes).unwrap_or(Value::Null)
    }
    /// The object's protobuf message without the envelope; `None` if its kind has none. Made once.
    pub fn protobuf(&self) -> Option<Bytes> {
        let make = || {
            let value = self.value();
            protobuf::encode_message(value.api_version(), value.kind(), &value).map(Bytes::from)
        };
        self.protobuf.get_or_init(make).clone()
    }
    /// What follows the opening brace of a list item.
    pub fn item(&self) -> Bytes {
        self.bytes.slice(self.item_start..)
    }
    /// The JSON of `metadata`.
    pub fn metadata(&self) -> &[u8] {
        &self.bytes[self.metadata.clone()]
    }
    /// Empty at cluster scope.
    pub fn namespace(&self) -> &str {
        self.place.split_once('/').map_or("", |(namespace, _)| namespace)
    }
    pub fn name(&self) -> &str {
        self.place.split_once('/').map_or(&*self.place, |(_, name)| name)
    }
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }
}

/// A state that has no version yet: all of an [`Entry`] but the bytes that have it in them.
pub(super) struct Unversioned {
    stored: Bytes,
    /// How long the stored value's head is, and where its `metadata` ends.
    head_bytes: usize,
    metadata_end: usize,
    place: Arc<str>,
    uid: Box<str>,
    labels: Arc<[(Box<str>, Box<str>)]>,
    fields: Box<[Box<str>]>,
    deleting: bool,
}

impl Unversioned {
    /// `None` if what is stored is not the value itself but another form of it.
    pub(super) fn new(place: &str, stored: &Encoded, value: &Value, kind: Option<&Kind>) -> Option<Unversioned> {
        let prefix = head(value);
        let same = stored.bytes.starts_with(prefix.as_bytes());
        same.then(|| Unversioned::with(place, &stored.bytes, value, prefix.len(), stored.metadata_end, kind))
    }

    fn of(place: &str, stored: &Bytes, value: &Value, prefix: &str, kind: Option<&Kind>) -> Option<Unversioned> {
        let metadata_end = object_end(stored, prefix.len() - 1)?;
        Some(Unversioned::with(place, stored, value, prefix.len(), metadata_end, kind))
    }

    fn with(place: &str, stored: &Bytes, value: &Value, head_bytes: usize, metadata_end: usize, kind: Option<&Kind>) -> Unversioned {
        let labels = value.labels().into_iter().flatten().filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into()))).collect();
        let fields = |kind: &Kind| kind.selectable_fields.iter().map(|field| kind.hooks.selectable_value(value, field).into()).collect();
        Unversioned {
            stored: stored.clone(),
            head_bytes,
            metadata_end,
            place: place.into(),
            uid: value.uid().into(),
            labels,
            fields: kind.map(fields).unwrap_or_default(),
            deleting: value.deletion_timestamp().is_some(),
        }
    }

    /// The state at its version.
    pub(super) fn at(self, revision: Revision) -> Entry {
        let digits = revision.to_string();
        let (prefix, rest) = self.stored.split_at(self.head_bytes);
        let mut bytes = BytesMut::with_capacity(self.stored.len() + digits.len() + 22);
        bytes.put_slice(prefix);
        bytes.put_slice(br#""resourceVersion":""#);
        let version = bytes.len()..bytes.len() + digits.len();
        bytes.put_slice(digits.as_bytes());
        bytes.put_u8(b'"');
        if rest.first() != Some(&b'}') {
            bytes.put_u8(b',');
        }
        let put_in = bytes.len() - prefix.len();
        append(&mut bytes, rest);
        Entry {
            bytes: bytes.freeze(),
            item_start: self.head_bytes - METADATA.len(),
            metadata: self.head_bytes - 1..self.metadata_end + put_in,
            version,
            place: self.place,
            revision,
            uid: self.uid,
            labels: self.labels,
            fields: self.fields,
            deleting: self.deleting,
            stored: None,
            protobuf: OnceLock::new(),
        }
    }
}

/// So long stored objects usually are at most; longer ones are copied while they are written.
const STORED_BYTES_USUAL: usize = 4096;

const METADATA: &str = r#""metadata":{"#;

/// How a stored value begins, up to and with the opening brace of `metadata`.
fn head(value: &Value) -> String {
    let text = |key: &str| Value::from(value.str_at(key).unwrap_or_default());
    format!(r#"{{"apiVersion":{},"kind":{},{METADATA}"#, text("apiVersion"), text("kind"))
}

/// An object in its stored form, by its writer.
pub struct Encoded {
    pub bytes: Bytes,
    /// Where the value of `metadata` ends.
    metadata_end: usize,
}

/// The stored form of an object: fixed head, no resourceVersion.
pub fn encode_stored(value: &Value) -> Vec<u8> {
    write_stored(value, None).0
}

/// The same, for one who goes on with it.
pub fn encode(value: &Value) -> Encoded {
    let (bytes, metadata_end) = write_stored(value, None);
    Encoded { bytes: bytes.into(), metadata_end }
}

/// The same of a new object whose `managedFields` are beside it, as JSON. What it says of them itself counts more.
pub fn encode_with_books(value: &Value, books: &str) -> Encoded {
    let books = value.metadata().is_none_or(|metadata| !metadata.contains_key(BOOKS)).then_some(books);
    let (bytes, metadata_end) = write_stored(value, books);
    Encoded { bytes: bytes.into(), metadata_end }
}

const BOOKS: &str = "managedFields";

/// The stored form, and where its `metadata` ends.
fn write_stored(value: &Value, mut books: Option<&str>) -> (Vec<u8>, usize) {
    let mut out = Vec::with_capacity(STORED_BYTES_USUAL);
    out.extend_from_slice(head(value).as_bytes());
    let mut first = true;
    let mut name = |out: &mut Vec<u8>, key: &str| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        // Writing JSON values into memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
    };
    for (key, value) in value.metadata().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion" && *key != "selfLink") {
        if let Some(books) = books.take_if(|_| key.as_str() > BOOKS) {
            name(&mut out, BOOKS);
            out.extend_from_slice(books.as_bytes());
        }
        name(&mut out, key);
        let _ = serde_json::to_writer(&mut out, value);
    }
    if let Some(books) = books {
        name(&mut out, BOOKS);
        out.extend_from_slice(books.as_bytes());
    }
    out.push(b'}');
    let metadata_end = out.len();
    for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) {
        out.push(b',');
        let _ = serde_json::to_writer(&mut out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut out, value);
    }
    out.push(b'}');
    (out, metadata_end)
}

/// Where the JSON object that begins at `start` ends.
fn object_end(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (i, &byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(i + 1),
            b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_put_in_once_and_can_be_replaced() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "}\"{"},
            "metadata": {"name": "x", "namespace": "n", "labels": {"l": "{"}, "resourceVersion": "3"}});
        let kind = Kind::namespaced("", "v1", "ConfigMap", "configmaps").selectable(&["data.a"]);
        let stored = Bytes::from(encode_stored(&object));
        assert!(!stored.windows(15).any(|w| w == b"resourceVersion"));
        let entry = Entry::read("n/x", &stored, Revision(99), Some(&kind)).unwrap();
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = json!("99");
        assert_eq!(entry.value(), expected);
        assert_eq!(serde_json::from_slice::<Value>(entry.metadata()).unwrap(), expected["metadata"]);
        assert_eq!((entry.namespace(), entry.name(), entry.label("l")), ("n", "x", Some("{")));
        assert_eq!(&*entry.fields[0], "}\"{");
        let later = entry.at(Revision(100));
        expected["metadata"]["resourceVersion"] = json!("100");
        assert_eq!(later.value(), expected);
        assert_eq!(serde_json::from_slice::<Value>(later.metadata()).unwrap(), expected["metadata"]);
        let item = [b"{", entry.item().as_ref()].concat();
        assert_eq!(serde_json::from_slice::<Value>(&item).unwrap()["data"], object["data"]);
    }

    #[test]
    fn books_beside_an_object_are_written_where_they_would_stand() {
        let books = r#"[{"manager":"m"}]"#;
        for metadata in [json!({}), json!({"labels": {}}), json!({"name": "a"}), json!({"labels": {}, "managed": 1, "name": "a", "selfLink": "s"})] {
            let mut object = json!({"apiVersion": "v1", "kind": "X", "metadata": metadata, "spec": 1});
            let beside = encode_with_books(&object, books);
            object["metadata"][BOOKS] = serde_json::from_str(books).unwrap();
            let within = encode(&object);
            assert_eq!((&beside.bytes, beside.metadata_end), (&within.bytes, within.metadata_end));
            assert_eq!(encode_with_books(&object, "[]").bytes, within.bytes);
        }
    }

    #[test]
    fn fractions_are_kept_to_the_last_bit() {
        // As bytes, for a number in this text would be read by the compiler.
        for number in ["0.1", "1.7976931348623157e308", "5e-324", "2.2250738585072011e-308", "9.5367431640625e-7", "0.30000000000000004"] {
            let body = format!(r#"{{"apiVersion":"v1","kind":"X","metadata":{{}},"spec":{number}}}"#);
            let mut value = structure::parse(body.as_bytes(), structure::Encoding::Json).unwrap();
            let first = value["spec"].as_f64().unwrap();
            assert_eq!(first.to_bits(), number.parse::<f64>().unwrap().to_bits());
            for _ in 0..3 {
                let entry = Entry::read("x", &encode_stored(&value).into(), Revision(1), None).unwrap();
                value = entry.value();
                assert_eq!(value["spec"].as_f64().map(f64::to_bits), Some(first.to_bits()), "{number}");
            }
        }
    }

    #[test]
    fn a_value_in_another_order_is_brought_into_ours() {
        let stored = Bytes::from_static(br#"{"kind":"Node","metadata":{},"apiVersion":"v1"}"#);
        let entry = Entry::read("n", &stored, Revision(7), None).unwrap();
        assert_eq!(entry.bytes, br#"{"apiVersion":"v1","kind":"Node","metadata":{"resourceVersion":"7"}}"#.as_slice());
    }
}
