//! Objects in Kubernetes' protobuf form, read and written by the table of golden facts (`facts/protobuf-fields.json`).
//!
//! Typed Go clients (kubectl among them) write bodies like this and do not fall back to JSON when they are refused, and they
//! ask for it in answers. Nothing here knows a kind: messages, field numbers and types are [`facts`].
//!
//! The form: four bytes `k8s\0`, then `runtime.Unknown` with the kind and the object's message in `raw`. Go writes fields
//! that are no pointers even when they are zero; [`crate::structure`] drops those when it reads, [`encode`] writes them.

mod encode;
pub(crate) mod facts;

pub use encode::{ENVELOPE_END, encode, encode_message, envelope, envelope_start, item_start, list_start, watch_frame};

use crate::limits;
use base64::{Engine, engine::general_purpose::STANDARD};
use facts::{Count, Form, Message, Type};
use serde_json::{Map, Value, json};

/// The media type of this form.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a watch in this form.
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// How every body of this form begins.
pub const MAGIC: &[u8] = b"k8s\0";

/// What times are counted from. A time without a zone, because one with a zone does not reach to the end of the year 9999.
const EPOCH: jiff::civil::DateTime = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoMagic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: invalid UTF-8 string")]
    Text,
    #[error("exceeded max depth")]
    TooDeep,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("embedded JSON: {0}")]
    Json(String),
}

/// Reads a body into the object's JSON, with `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let unknown = named("k8s.io.apimachinery.pkg.runtime.Unknown", body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?)?;
    let text = |path: &str| unknown.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text("/typeMeta/apiVersion"), text("/typeMeta/kind"));
    let raw = STANDARD.decode(text("/raw")).map_err(|error| Error::Json(error.to_string()))?;
    if text("/contentType") == "application/json" {
        return serde_json::from_slice(&raw).map_err(|error| Error::Json(error.to_string()));
    }
    let index = message_index(&api_version, &kind).ok_or_else(|| Error::UnknownKind { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = message(facts::message(index), &raw, 0)?;
    if let Value::Object(members) = &mut object {
        members.insert("apiVersion".into(), json!(api_version));
        members.insert("kind".into(), json!(kind));
    }
    Ok(object)
}

/// Whether a kind has this form.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    message_index(api_version, kind).is_some()
}

/// The query parameters of what a request for a part of an object may say (`PodExecOptions`), by name, with their types in OpenAPI.
/// Times and objects cannot be said there.
pub fn parameters(options: &str) -> Vec<(&'static str, &'static str)> {
    let Some(index) = message_index("v1", options) else { return Vec::new() };
    let type_of = |field: &facts::Field| match field.type_ {
        Type::Text => Some("string"),
        Type::Bool => Some("boolean"),
        Type::Signed | Type::Unsigned => Some("integer"),
        Type::Double | Type::Float => Some("number"),
        Type::Bytes | Type::Message(_) => None,
    };
    let mut found: Vec<_> = facts::message(index).fields.iter().filter_map(|field| Some((field.key.as_str(), type_of(field)?))).collect();
    found.sort_unstable();
    found
}

/// The message of a kind. Options are the same in every group.
fn message_index(api_version: &str, kind: &str) -> Option<usize> {
    message_names(api_version, kind).iter().find_map(|name| facts::index(name))
}

fn message_names(api_version: &str, kind: &str) -> Vec<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let mut names = Vec::with_capacity(5);
    let first = match group.split_once('.') {
        None if group.is_empty() => "core",
        None => group,
        Some(("internal", "apiserver.k8s.io")) => "apiserverinternal",
        Some((first, rest)) if rest == "k8s.io" || rest.ends_with(".k8s.io") => first,
        // A group of definitions, whatever its name begins with.
        Some(_) => "",
    };
    if !first.is_empty() {
        names.push(format!("k8s.io.api.{first}.{version}.{kind}"));
        names.push(format!("k8s.io.apiextensions_apiserver.pkg.apis.{first}.{version}.{kind}"));
        names.push(format!("k8s.io.kube_aggregator.pkg.apis.{first}.{version}.{kind}"));
    }
    let options = kind.ends_with("Options");
    if group.is_empty() || group == "meta.k8s.io" || options {
        names.push(format!("k8s.io.apimachinery.pkg.apis.meta.{}.{kind}", if options { "v1" } else { version }));
    }
    names
}

/// A value on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Error::Truncated)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Error::Overflow)
    }
    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let length = usize::try_from(length).map_err(|_| Error::Truncated)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
    /// The next field's number and value, or `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let little_endian = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let value = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(little_endian(self.take(8)?)),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(little_endian(self.take(4)?)),
            other => return Err(Error::WireType(other as u8)),
        };
        Ok(Some((key >> 3, value)))
    }
}

fn named(name: &str, bytes: &[u8]) -> Result<Value, Error> {
    match facts::index(name) {
        Some(index) => message(facts::message(index), bytes, 0),
        None => Ok(json!({})),
    }
}

fn message(facts: &Message, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > limits::NESTING_DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    let mut members = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // Fields of a newer version are left out, as Go does.
        let Some(field) = facts.field(number) else { continue };
        match field.count {
            Count::Map => {
                let Wire::Bytes(entry) = wire else { return Err(Error::WireType(0)) };
                let (key, value) = map_entry(field.type_, entry, depth)?;
                if let Value::Object(map) = members.entry(&field.key).or_insert_with(|| json!({})) {
                    map.insert(key, value);
                }
            }
            Count::Many => {
                if let Value::Array(list) = members.entry(&field.key).or_insert_with(|| json!([])) {
                    list.extend(repeated(field.type_, wire, depth)?);
                }
            }
            Count::One => match scalar(field.type_, wire, depth)? {
                Value::Object(inner) if field.embedded.is_some() => members.extend(inner),
                Value::Null => {}
                value => drop(members.insert(field.key.clone(), value)),
            },
        }
    }
    special(facts.form, members)
}

fn map_entry(type_: Type, bytes: &[u8], depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = Some(scalar(type_, wire, depth)?),
            _ => {}
        }
    }
    let value = match (value, type_) {
        (Some(value), _) => value,
        (None, Type::Text | Type::Bytes) => json!(""),
        (None, Type::Message(index)) => message(facts::message(index), &[], depth + 1)?,
        (None, _) => json!(0),
    };
    Ok((key, value))
}

/// The items of one occurrence of a repeated field: one, or several numbers packed.
fn repeated(type_: Type, wire: Wire<'_>, depth: usize) -> Result<Vec<Value>, Error> {
    match wire {
        Wire::Bytes(bytes) if matches!(type_, Type::Signed | Type::Unsigned | Type::Bool) => {
            let mut reader = Reader(bytes);
            let mut all = Vec::new();
            while !reader.0.is_empty() {
                all.push(scalar(type_, Wire::Number(reader.varint()?), depth)?);
            }
            Ok(all)
        }
        wire => Ok(vec![scalar(type_, wire, depth)?]),
    }
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(bytes).map(String::from).map_err(|_| Error::Text)
}

fn scalar(type_: Type, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (type_, wire) {
        (Type::Text, Wire::Bytes(bytes)) => json!(text(bytes)?),
        (Type::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Type::Bool, Wire::Number(number)) => json!(number != 0),
        (Type::Signed, Wire::Number(number)) => json!(number as i64),
        (Type::Unsigned, Wire::Number(number)) => json!(number),
        (Type::Double, Wire::Number(bits)) => json!(f64::from_bits(bits)),
        (Type::Float, Wire::Number(bits)) => json!(f32::from_bits(bits as u32)),
        (Type::Message(index), Wire::Bytes(bytes)) => message(facts::message(index), bytes, depth + 1)?,
        (_, Wire::Bytes(_)) => return Err(Error::WireType(2)),
        (_, Wire::Number(_)) => return Err(Error::WireType(0)),
    })
}

/// What JSON shows otherwise than as an object.
fn special(form: Form, mut members: Map<String, Value>) -> Result<Value, Error> {
    let number = |members: &Map<String, Value>, key: &str| members.get(key).and_then(Value::as_i64).unwrap_or(0);
    Ok(match form {
        Form::Time { micro } => {
            if members.is_empty() {
                return Ok(Value::Null);
            }
            let nanoseconds = i32::try_from(number(&members, "nanos")).unwrap_or(0);
            match EPOCH.checked_add(jiff::SignedDuration::new(number(&members, "seconds"), nanoseconds)) {
                Ok(time) if micro => json!(time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()),
                Ok(time) => json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
                Err(_) => Value::Null,
            }
        }
        Form::Quantity => members.remove("string").unwrap_or_else(|| json!("0")),
        Form::IntOrString => match number(&members, "type") {
            0 => json!(number(&members, "intVal")),
            _ => members.remove("strVal").unwrap_or_else(|| json!("")),
        },
        Form::Raw => {
            let encoded = members.get("raw").or_else(|| members.get("Raw")).and_then(Value::as_str).unwrap_or_default();
            if encoded.is_empty() {
                return Ok(Value::Null);
            }
            let bytes = STANDARD.decode(encoded).map_err(|error| Error::Json(error.to_string()))?;
            serde_json::from_slice(&bytes).map_err(|error| Error::Json(error.to_string()))?
        }
        Form::Items => members.remove("items").unwrap_or_else(|| json!([])),
        Form::SchemaOrArray => members.remove("jSONSchemas").or_else(|| members.remove("schema")).unwrap_or(Value::Null),
        Form::SchemaOrBool => members.remove("schema").or_else(|| members.remove("allows")).unwrap_or(Value::Bool(false)),
        Form::SchemaOrTexts => members.remove("property").or_else(|| members.remove("schema")).unwrap_or(Value::Null),
        Form::Fields => Value::Object(members),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }
    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn an_object_is_read_by_the_facts() {
        let metadata = [field(1, b"a"), field(8, b""), field(11, &[field(1, b"k"), field(2, b"v")].concat())].concat();
        let limits = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let port = [field(1, b""), vec![3 << 3, 80]].concat();
        let container = [field(1, b"c"), field(2, b"nginx"), field(6, &port), field(8, &field(1, &limits))].concat();
        let volume = [field(1, b"v"), field(2, &field(6, &field(1, b"s")))].concat();
        let spec = [field(1, &volume), field(2, &container), vec![4 << 3, 0]].concat();
        let pod = decode(&envelope("v1", "Pod", &[field(1, &metadata), field(2, &spec), field(3, b"")].concat())).unwrap();
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"k": "v"}}, "status": {}, "spec": {
                "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                "containers": [{"name": "c", "image": "nginx", "ports": [{"name": "", "containerPort": 80}], "resources": {"limits": {"cpu": "100m"}}}],
                "terminationGracePeriodSeconds": 0}})
        );
    }

    #[test]
    fn groups_and_options_are_found() {
        let check = |api_version: &str, kind: &str, name: &str| assert_eq!(message_index(api_version, kind), facts::index(name), "{name}");
        check("apps/v1", "Deployment", "k8s.io.api.apps.v1.Deployment");
        check("rbac.authorization.k8s.io/v1", "Role", "k8s.io.api.rbac.v1.Role");
        check("policy/v1", "DeleteOptions", "k8s.io.apimachinery.pkg.apis.meta.v1.DeleteOptions");
        check("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "k8s.io.api.flowcontrol.v1.FlowSchema");
        check("v1", "Status", "k8s.io.apimachinery.pkg.apis.meta.v1.Status");
        assert!(is_known("example.com/v1", "DeleteOptions") && !is_known("example.com/v1", "Foo") && !is_known("apps.example.com/v1", "Deployment"));
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        assert_eq!(decode(b"{}"), Err(Error::NoMagic));
        assert_eq!(decode(b"k8s\0\x0a\xff"), Err(Error::Truncated));
        let whole = envelope("v1", "ConfigMap", &field(1, &field(1, b"a")));
        for end in 4..whole.len() {
            let _ = decode(&whole[..end]);
        }
    }
}
