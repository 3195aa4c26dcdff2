//! Objects in Kubernetes' protobuf form, read into JSON by the table of golden facts (`facts/protobuf-fields.json`).
//!
//! Typed Go clients (kubectl among them) write bodies like this and do not fall back to JSON when they are refused, so it
//! must be read; what is answered can always be JSON. Nothing here knows a kind: messages, field numbers and types are
//! facts. What Go embeds without a name, and the few names that differ, are the lists below.
//!
//! The form: four bytes `k8s\0`, then `runtime.Unknown` with the kind and the object's message in `raw`. Go writes fields
//! that are no pointers even when they are zero; [`crate::structure`] drops those.

use crate::limits;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json, value::RawValue};
use std::{collections::HashMap, sync::LazyLock};

/// The media type of this form.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// How every body of this form begins.
pub const MAGIC: &[u8] = b"k8s\0";

static FACTS: LazyLock<HashMap<&'static str, &'static RawValue>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../facts/protobuf-fields.json")).expect("facts/protobuf-fields.json is JSON"));

/// Members that Go embeds: their fields belong to the message around them.
const EMBEDDED: &[(&str, &str)] = &[
    ("NamedRuleWithOperations", "ruleWithOperations"),
    ("RuleWithOperations", "rule"),
    ("ConfigMapEnvSource", "localObjectReference"),
    ("ConfigMapKeySelector", "localObjectReference"),
    ("ConfigMapProjection", "localObjectReference"),
    ("ConfigMapVolumeSource", "localObjectReference"),
    ("SecretEnvSource", "localObjectReference"),
    ("SecretKeySelector", "localObjectReference"),
    ("SecretProjection", "localObjectReference"),
    ("EphemeralContainer", "ephemeralContainerCommon"),
    ("PersistentVolumeSpec", "persistentVolumeSource"),
    ("Probe", "handler"),
    ("Volume", "volumeSource"),
    ("IngressRule", "ingressRuleValue"),
    ("DeviceAllocationConfiguration", "deviceConfiguration"),
    ("DeviceClaimConfiguration", "deviceConfiguration"),
    ("DeviceClassConfiguration", "deviceConfiguration"),
];

/// Names that are others in JSON: message, name here, name there.
const RENAMED: &[(&str, &str, &str)] = &[
    ("MutatingWebhookConfiguration", "Webhooks", "webhooks"),
    ("ValidatingWebhookConfiguration", "Webhooks", "webhooks"),
    ("Validation", "Expression", "expression"),
    ("Variable", "Name", "name"),
    ("Variable", "Expression", "expression"),
    ("BoundObjectReference", "uID", "uid"),
    ("IngressClassParametersReference", "aPIGroup", "apiGroup"),
    ("JSONSchemaProps", "schema", "$schema"),
    ("JSONSchemaProps", "ref", "$ref"),
    ("JSONSchemaProps", "xKubernetesPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("JSONSchemaProps", "xKubernetesEmbeddedResource", "x-kubernetes-embedded-resource"),
    ("JSONSchemaProps", "xKubernetesIntOrString", "x-kubernetes-int-or-string"),
    ("JSONSchemaProps", "xKubernetesListMapKeys", "x-kubernetes-list-map-keys"),
    ("JSONSchemaProps", "xKubernetesListType", "x-kubernetes-list-type"),
    ("JSONSchemaProps", "xKubernetesMapType", "x-kubernetes-map-type"),
    ("JSONSchemaProps", "xKubernetesValidations", "x-kubernetes-validations"),
];

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
    let unknown = message("k8s.io.apimachinery.pkg.runtime.Unknown", body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?, 0)?;
    let text = |path: &str| unknown.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text("/typeMeta/apiVersion"), text("/typeMeta/kind"));
    let raw = STANDARD.decode(text("/raw")).map_err(|error| Error::Json(error.to_string()))?;
    if text("/contentType") == "application/json" {
        return serde_json::from_slice(&raw).map_err(|error| Error::Json(error.to_string()));
    }
    let name = message_name(&api_version, &kind).ok_or_else(|| Error::UnknownKind { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = message(&name, &raw, 0)?;
    if let Value::Object(members) = &mut object {
        members.insert("apiVersion".into(), json!(api_version));
        members.insert("kind".into(), json!(kind));
    }
    Ok(object)
}

/// The message of a kind. Options are the same in every group.
fn message_name(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let group = group.split('.').next().unwrap_or_default();
    let candidates = [
        format!("k8s.io.api.{}.{version}.{kind}", if group.is_empty() { "core" } else { group }),
        format!("k8s.io.api.flowcontrol.{version}.{kind}"),
        format!("k8s.io.apiextensions_apiserver.pkg.apis.{group}.{version}.{kind}"),
        format!("k8s.io.kube_aggregator.pkg.apis.{group}.{version}.{kind}"),
        format!("k8s.io.apimachinery.pkg.apis.meta.v1.{kind}"),
    ];
    candidates.into_iter().find(|name| FACTS.contains_key(name.as_str()))
}

/// A field: number, name, `optional`/`repeated`/empty for a map, type.
type Field = (u32, String, String, String);

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

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The full name of a type that the message `within` mentions.
fn full_name(type_: &str, within: &str) -> String {
    match type_.strip_prefix('.') {
        Some(absolute) => absolute.to_string(),
        None => format!("{}.{type_}", within.rsplit_once('.').map_or("", |(package, _)| package)),
    }
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > limits::NESTING_DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    let facts: Vec<Field> = match FACTS.get(name) {
        Some(facts) => serde_json::from_str(facts.get()).unwrap_or_default(),
        None => Vec::new(),
    };
    let mut members = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // Fields of a newer version are left out, as Go does.
        let Some((_, field, label, type_)) = facts.iter().find(|(known, ..)| u64::from(*known) == number) else { continue };
        let renamed = RENAMED.iter().find(|(message, here, _)| *message == short(name) && here == field).map(|(.., there)| *there);
        let key = renamed.unwrap_or(field);
        if let Some(map) = type_.strip_prefix("map<string,") {
            let Wire::Bytes(entry) = wire else { return Err(Error::WireType(0)) };
            let (entry_key, value) = map_entry(map.trim_end_matches('>'), name, entry, depth)?;
            if let Value::Object(map) = members.entry(key).or_insert_with(|| json!({})) {
                map.insert(entry_key, value);
            }
            continue;
        }
        if label == "repeated" {
            let list = members.entry(key).or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                for value in repeated(type_, name, wire, depth)? {
                    list.push(value);
                }
            }
            continue;
        }
        let value = scalar(type_, name, wire, depth)?;
        match value {
            Value::Object(inner) if EMBEDDED.contains(&(short(name), field)) => members.extend(inner),
            Value::Null => {}
            value => drop(members.insert(key.to_string(), value)),
        }
    }
    special(name, members)
}

fn map_entry(type_: &str, within: &str, bytes: &[u8], depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = Some(scalar(type_, within, wire, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None if matches!(type_, "string" | "bytes") => json!(""),
        None if FACTS.contains_key(full_name(type_, within).as_str()) => message(&full_name(type_, within), &[], depth + 1)?,
        None => json!(0),
    };
    Ok((key, value))
}

/// The items of one occurrence of a repeated field: one, or several numbers packed.
fn repeated(type_: &str, within: &str, wire: Wire<'_>, depth: usize) -> Result<Vec<Value>, Error> {
    match wire {
        Wire::Bytes(bytes) if matches!(type_, "int32" | "int64" | "uint32" | "uint64" | "bool") => {
            let mut reader = Reader(bytes);
            let mut all = Vec::new();
            while !reader.0.is_empty() {
                all.push(scalar(type_, within, Wire::Number(reader.varint()?), depth)?);
            }
            Ok(all)
        }
        wire => Ok(vec![scalar(type_, within, wire, depth)?]),
    }
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(bytes).map(String::from).map_err(|_| Error::Text)
}

fn scalar(type_: &str, within: &str, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (type_, wire) {
        ("string", Wire::Bytes(bytes)) => json!(text(bytes)?),
        ("bytes", Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        ("bool", Wire::Number(number)) => json!(number != 0),
        ("int32" | "int64" | "sint32" | "sint64", Wire::Number(number)) => json!(number as i64),
        ("uint32" | "uint64", Wire::Number(number)) => json!(number),
        ("double", Wire::Number(bits)) => json!(f64::from_bits(bits)),
        ("float", Wire::Number(bits)) => json!(f32::from_bits(bits as u32)),
        (type_, Wire::Bytes(bytes)) => message(&full_name(type_, within), bytes, depth + 1)?,
        (_, Wire::Number(_)) => return Err(Error::WireType(0)),
    })
}

/// What JSON shows otherwise than as an object.
fn special(name: &str, mut members: Map<String, Value>) -> Result<Value, Error> {
    let number = |members: &Map<String, Value>, key: &str| members.get(key).and_then(Value::as_i64).unwrap_or(0);
    let raw = |members: &Map<String, Value>, key: &str| -> Result<Value, Error> {
        let Some(encoded) = members.get(key).and_then(Value::as_str) else { return Ok(Value::Null) };
        let bytes = STANDARD.decode(encoded).map_err(|error| Error::Json(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Json(error.to_string()))
    };
    Ok(match short(name) {
        "Time" | "MicroTime" if name.starts_with("k8s.io.apimachinery.pkg.apis.meta.") => {
            if members.is_empty() {
                return Ok(Value::Null);
            }
            let nanoseconds = i32::try_from(number(&members, "nanos")).unwrap_or(0);
            match jiff::Timestamp::new(number(&members, "seconds"), nanoseconds) {
                Ok(time) if short(name) == "MicroTime" => json!(time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()),
                Ok(time) => json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
                Err(_) => Value::Null,
            }
        }
        "Quantity" => members.remove("string").unwrap_or_else(|| json!("0")),
        "IntOrString" => match number(&members, "type") {
            0 => json!(number(&members, "intVal")),
            _ => members.remove("strVal").unwrap_or_else(|| json!("")),
        },
        "RawExtension" | "JSON" => raw(&members, "raw")?,
        "FieldsV1" => raw(&members, "Raw")?,
        "ExtraValue" | "Verbs" => members.remove("items").unwrap_or_else(|| json!([])),
        "JSONSchemaPropsOrArray" => match members.remove("jSONSchemas") {
            Some(many) => many,
            None => members.remove("$schema").or_else(|| members.remove("schema")).unwrap_or(Value::Null),
        },
        "JSONSchemaPropsOrBool" => match members.remove("schema") {
            Some(schema) => schema,
            None => members.remove("allows").unwrap_or(Value::Bool(false)),
        },
        "JSONSchemaPropsOrStringArray" => match members.remove("property") {
            Some(names) => names,
            None => members.remove("schema").unwrap_or(Value::Null),
        },
        _ => Value::Object(members),
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
        assert_eq!(message_name("apps/v1", "Deployment").as_deref(), Some("k8s.io.api.apps.v1.Deployment"));
        assert_eq!(message_name("rbac.authorization.k8s.io/v1", "Role").as_deref(), Some("k8s.io.api.rbac.v1.Role"));
        assert_eq!(message_name("policy/v1", "DeleteOptions").as_deref(), Some("k8s.io.apimachinery.pkg.apis.meta.v1.DeleteOptions"));
        assert_eq!(message_name("flowcontrol.apiserver.k8s.io/v1", "FlowSchema").as_deref(), Some("k8s.io.api.flowcontrol.v1.FlowSchema"));
        assert_eq!(message_name("example.com/v1", "Foo"), None);
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
