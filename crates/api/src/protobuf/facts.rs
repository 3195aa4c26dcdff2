//! The table of golden facts (`facts/protobuf-fields.json`) in the form in which messages are read and written by it.
//!
//! A message is made ready when it is first met, and stays. Nothing here knows a kind: what Go embeds without a name, and
//! the few names that differ from JSON's, are the lists below. Whether Go writes a field that nobody set is told by the
//! schema: fields that are no pointers are always on the wire.

use crate::schema::{self, Schema, Zero};
use serde_json::value::RawValue;
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, OnceLock},
};

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

/// What JSON shows otherwise than as an object of the message's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Fields,
    /// Seconds and nanoseconds; a text in JSON. `micro` is whether JSON shows microseconds.
    Time {
        micro: bool,
    },
    Quantity,
    IntOrString,
    /// JSON as it is.
    Raw,
    /// A list of texts.
    Items,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrTexts,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    Bytes,
    Bool,
    Signed,
    Unsigned,
    Double,
    Float,
    Message(usize),
}

/// How often a field comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    One,
    Many,
    /// Values by text.
    Map,
}

#[derive(Debug)]
pub struct Field {
    pub number: u32,
    /// The name in JSON.
    pub key: String,
    pub count: Count,
    pub type_: Type,
    /// The message, if its fields belong to the one around it.
    pub embedded: Option<Box<Message>>,
    /// Whether Go writes it even when nobody set it.
    pub always: bool,
}

#[derive(Debug)]
pub struct Message {
    pub form: Form,
    /// In the order of their numbers.
    pub fields: Vec<Field>,
}

impl Message {
    pub fn field(&self, number: u64) -> Option<&Field> {
        self.fields.binary_search_by(|field| u64::from(field.number).cmp(&number)).ok().map(|at| &self.fields[at])
    }
}

struct Table {
    names: Vec<&'static str>,
    texts: Vec<&'static RawValue>,
    ready: Vec<OnceLock<Message>>,
}

/// The facts are part of the program: a test reads all of them, so what cannot be read here is a programmer's error.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let facts = include_str!("../../facts/protobuf-fields.json");
    let all: BTreeMap<&'static str, &'static RawValue> = serde_json::from_str(facts).expect("facts/protobuf-fields.json is JSON");
    Table { names: all.keys().copied().collect(), texts: all.values().copied().collect(), ready: all.iter().map(|_| OnceLock::new()).collect() }
});

/// The number of a message by its full name, `k8s.io.api.core.v1.Pod`.
pub fn index(name: &str) -> Option<usize> {
    TABLE.names.binary_search(&name).ok()
}

/// The full name of a message.
pub fn name(index: usize) -> &'static str {
    TABLE.names[index]
}

/// A message by its number.
pub fn message(index: usize) -> &'static Message {
    TABLE.ready[index].get_or_init(|| {
        let name = TABLE.names[index];
        let definition = name.strip_prefix("k8s.io.").map(|rest| format!("io.k8s.{}", rest.replace('_', "-"))).unwrap_or_default();
        make(index, schema::definition(&definition))
    })
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn form(name: &str) -> Form {
    match short(name) {
        "Time" | "MicroTime" if name.starts_with("k8s.io.apimachinery.pkg.apis.meta.") => Form::Time { micro: short(name) == "MicroTime" },
        "Quantity" => Form::Quantity,
        "IntOrString" => Form::IntOrString,
        "RawExtension" | "JSON" | "FieldsV1" => Form::Raw,
        "ExtraValue" | "Verbs" => Form::Items,
        "JSONSchemaPropsOrArray" => Form::SchemaOrArray,
        "JSONSchemaPropsOrBool" => Form::SchemaOrBool,
        "JSONSchemaPropsOrStringArray" => Form::SchemaOrTexts,
        _ => Form::Fields,
    }
}

/// `schema` is that of the JSON object that the fields stand in.
fn make(index: usize, schema: Option<Arc<Schema>>) -> Message {
    let name = TABLE.names[index];
    let rows: Vec<(u32, String, String, String)> = serde_json::from_str(TABLE.texts[index].get()).expect("facts/protobuf-fields.json has fields");
    let mut fields: Vec<Field> = rows
        .into_iter()
        .map(|(number, field, label, type_)| {
            let map = type_.strip_prefix("map<string,").map(|rest| rest.trim_end_matches('>'));
            let count = match (map, label.as_str()) {
                (Some(_), _) => Count::Map,
                (None, "repeated") => Count::Many,
                _ => Count::One,
            };
            let type_ = resolve(map.unwrap_or(&type_), name);
            let key = RENAMED.iter().find(|(message, here, _)| *message == short(name) && *here == field).map(|(.., there)| there.to_string());
            let embedded = match type_ {
                Type::Message(inner) if EMBEDDED.contains(&(short(name), field.as_str())) => Some(Box::new(make(inner, schema.clone()))),
                _ => None,
            };
            let key = key.unwrap_or(field);
            let always = count == Count::One && is_always(&key, type_, schema.as_deref());
            Field { number, key, count, type_, embedded, always }
        })
        .collect();
    fields.sort_by_key(|field| field.number);
    Message { form: form(name), fields }
}

fn resolve(type_: &str, within: &str) -> Type {
    match type_ {
        "string" => Type::Text,
        "bytes" => Type::Bytes,
        "bool" => Type::Bool,
        "int32" | "int64" => Type::Signed,
        "uint32" | "uint64" => Type::Unsigned,
        "double" => Type::Double,
        "float" => Type::Float,
        other => {
            let full = match other.strip_prefix('.') {
                Some(absolute) => absolute.to_string(),
                None => format!("{}.{other}", within.rsplit_once('.').map_or("", |(package, _)| package)),
            };
            Type::Message(index(&full).expect("a type of facts/protobuf-fields.json is a message there"))
        }
    }
}

/// Whether a field is no pointer in Go.
fn is_always(key: &str, type_: Type, schema: Option<&Schema>) -> bool {
    let field = schema.and_then(|schema| schema.field(key));
    match type_ {
        Type::Bytes => false,
        Type::Message(index) => {
            let name = TABLE.names[index];
            let metadata = key == "metadata" && matches!(short(name), "ObjectMeta" | "ListMeta");
            let shown = field.and_then(|field| field.always);
            let time = matches!(form(name), Form::Time { .. }) && (shown == Some(Zero::Null) || key == "creationTimestamp");
            metadata || time || shown == Some(Zero::Object)
        }
        _ => field.is_some_and(|field| field.required || field.omit_zero || field.always.is_some_and(|zero| zero != Zero::Null)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_can_be_made_ready() {
        for index in 0..TABLE.names.len() {
            message(index);
        }
    }
}
