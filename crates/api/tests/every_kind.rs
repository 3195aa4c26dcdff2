//! Every kind with every odd object that its schema allows: no hook may panic, and what is once decoded stays as it is.

use api::{
    Catalogue, Kind, Value,
    field::Errors,
    metadata,
    object::ObjectExt,
    protobuf,
    request::FieldValidation,
    schema::{Schema, Type},
    structure, table,
};
use serde_json::{Map, json};

/// How the values of an object are chosen.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    /// Empty texts, lists, maps; zeros.
    Zero,
    /// Negative and huge numbers, texts that mean nothing.
    Absurd,
    /// Plausible ones.
    Plain,
}

/// Nesting of the objects made; schemas may contain themselves.
const DEPTH_MAX: usize = 8;

fn value(schema: &Schema, choice: Choice, depth: usize) -> Value {
    let plain = |zero: Value, absurd: Value, plain: Value| match choice {
        Choice::Zero => zero,
        Choice::Absurd => absurd,
        Choice::Plain => plain,
    };
    let items = || schema.items.as_deref().map_or(Value::Null, |items| value(items, choice, depth + 1));
    match schema.type_ {
        Type::Object if depth > DEPTH_MAX || (depth > 4 && schema.name.ends_with(".JSONSchemaProps")) => json!({}),
        Type::Object => Value::Object(schema.fields.iter().map(|field| (field.name.to_string(), value(&field.schema, choice, depth + 1))).collect()),
        Type::Map if choice == Choice::Zero || depth > DEPTH_MAX => json!({}),
        Type::Map => Value::Object(Map::from_iter([("a".to_string(), items())])),
        Type::Array if choice == Choice::Zero || depth > DEPTH_MAX => json!([]),
        Type::Array if depth > 1 => json!([items()]),
        Type::Array => json!([items(), items()]),
        Type::String => plain(json!(""), json!("\u{0}/ä{}:-%$9999999999999999999999"), json!("a")),
        Type::Bytes => plain(json!(""), json!("//8="), json!("YQ==")),
        Type::Time => plain(json!("1970-01-01T00:00:00Z"), json!("9999-12-31T23:59:59Z"), json!("2024-01-01T00:00:00Z")),
        Type::MicroTime => plain(json!("1970-01-01T00:00:00.000000Z"), json!("9999-12-31T23:59:59.000000Z"), json!("2024-01-01T00:00:00.000000Z")),
        Type::Integer { bits: 32 } => plain(json!(0), json!(i32::MIN), json!(1)),
        Type::Integer { .. } => plain(json!(0), json!(i64::MIN), json!(1)),
        Type::Number => plain(json!(0), json!(-1e300), json!(1.5)),
        Type::Boolean => plain(json!(false), json!(true), json!(true)),
        Type::Quantity => plain(json!("0"), json!("-9223372036854775807E"), json!("1")),
        Type::IntOrString => plain(json!(0), json!("-%"), json!("50%")),
        Type::Any => plain(json!({}), json!([{"a": [null]}]), json!({"a": 1})),
    }
}

/// The object without one of the fields of its spec or root after the other, and the whole.
fn variants(object: &Value) -> Vec<Value> {
    let mut all = vec![object.clone(), json!({})];
    for parent in ["", "spec", "metadata"] {
        let Some(map) = (if parent.is_empty() { object.as_object() } else { object.map_at(parent) }) else { continue };
        for key in map.keys() {
            let mut less = object.clone();
            less.remove(&if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") });
            all.push(less);
        }
    }
    all
}

fn exercise(kind: &Kind, version: &str, object: &Value, old: &Value) {
    let mut object = object.clone();
    kind.hooks.to_stored(version, &mut object);
    kind.hooks.default(&mut object);
    let mut again = object.clone();
    kind.hooks.default(&mut again);
    assert_eq!(again, object, "{}: defaults must be idempotent", kind.kind);
    let mut errors = Errors::default();
    let mut created = object.clone();
    kind.hooks.prepare_create(&mut created);
    metadata::validate_create(&created, kind, &mut errors);
    kind.hooks.validate(&created, None, &mut errors);
    let mut updated = object.clone();
    kind.hooks.prepare_update(&mut updated, old);
    kind.hooks.validate(&updated, Some(old), &mut errors);
    metadata::validate_update(&updated, old, kind, &mut errors);
    kind.hooks.prepare_status(&mut object, old);
    kind.hooks.validate_status(&object, old, &mut errors);
    kind.hooks.warnings(&object, None);
    assert_eq!(table::cells(kind, &object, 1_700_000_000).len(), kind.columns.len() + kind.unnamed_cells, "{}: a cell per column", kind.kind);
    let _ = api::Status::invalid(&kind.group, &kind.kind, object.name(), &errors).to_bytes();
}

#[test]
fn no_object_that_fits_its_schema_breaks_a_kind() {
    for kind in Catalogue::built_in().iter() {
        for version in &kind.versions {
            let schema = kind.schema(version).unwrap_or_else(|| panic!("{}/{version} has no schema", kind.group_resource()));
            let mut olds = vec![json!({"metadata": {"name": "a"}})];
            for choice in [Choice::Plain, Choice::Zero, Choice::Absurd] {
                let mut whole = value(&schema, choice, 0);
                whole.set("apiVersion", api_version(kind, version));
                whole.set("kind", kind.kind.as_str());
                let less_and_less = if choice == Choice::Zero { variants(&whole) } else { vec![whole.clone()] };
                for variant in less_and_less {
                    let decoded =
                        structure::decode_object(variant.to_string().as_bytes(), structure::Encoding::Json, kind, version, FieldValidation::Strict);
                    let (object, _) = decoded.unwrap_or_else(|status| panic!("{}/{version}: {status}", kind.group_resource()));
                    let mut completed = object.clone();
                    structure::complete(&mut completed, &schema);
                    let mut again = completed.clone();
                    structure::complete(&mut again, &schema);
                    assert_eq!(again, completed, "{}: what is complete stays as it is", kind.kind);
                    assert_eq!(completed, without_said_nothing(object.clone(), &completed), "{}: a decoded object is complete", kind.kind);
                    olds.iter().rev().take(2).for_each(|old| exercise(kind, version, &object, old));
                }
                olds.push(whole);
            }
        }
    }
}

/// The same with null for an empty list that is always shown: the one thing that is not stored as it is read, for whoever
/// sends it has set it.
fn without_said_nothing(decoded: Value, completed: &Value) -> Value {
    match (decoded, completed) {
        (Value::Array(list), Value::Null) if list.is_empty() => Value::Null,
        (Value::Array(list), Value::Array(stored)) if list.len() == stored.len() => {
            list.into_iter().zip(stored).map(|(decoded, stored)| without_said_nothing(decoded, stored)).collect()
        }
        (Value::Object(map), stored) => {
            map.into_iter().map(|(key, value)| (key.clone(), without_said_nothing(value, stored.get(&key).unwrap_or(&Value::Bool(false))))).collect()
        }
        (decoded, _) => decoded,
    }
}

fn api_version(kind: &Kind, version: &str) -> String {
    if kind.group.is_empty() { version.into() } else { format!("{}/{version}", kind.group) }
}

#[test]
fn every_kind_survives_protobuf() {
    let mut wrong = Vec::new();
    for kind in Catalogue::built_in().iter() {
        for version in &kind.versions {
            let (schema, api_version) = (kind.schema(version).unwrap(), api_version(kind, version));
            assert!(protobuf::is_known(&api_version, &kind.kind), "{api_version} {} has a message", kind.kind);
            assert!(kind.is_virtual() || protobuf::is_known(&api_version, &kind.list_kind), "{api_version} {} has a message", kind.list_kind);
            for choice in [Choice::Plain, Choice::Zero, Choice::Absurd] {
                let mut whole = value(&schema, choice, 0);
                whole.set("apiVersion", api_version.as_str());
                whole.set("kind", kind.kind.as_str());
                let read = |bytes: &[u8]| {
                    structure::decode_object(bytes, structure::Encoding::Json, kind, version, FieldValidation::Ignore).map(|(object, _)| object)
                };
                let object = read(whole.to_string().as_bytes()).unwrap();
                let bytes = protobuf::encode(&object).unwrap();
                let back = protobuf::decode(&bytes).unwrap();
                assert_eq!(protobuf::encode(&back).unwrap(), bytes, "{api_version} {}: the same bytes again", kind.kind);
                // Alternatives of which the message holds one only.
                if choice == Choice::Absurd && kind.group == "apiextensions.k8s.io" {
                    continue;
                }
                let again = read(back.to_string().as_bytes()).unwrap();
                differences("", &settled(again), &settled(object), &mut |path| wrong.push(format!("{api_version} {}{path}", kind.kind)));
            }
        }
    }
    // What an embedded object is, no message says; defaulting does.
    wrong.retain(|path| !path.contains(".volumeClaimTemplates.apiVersion:") && !path.contains(".volumeClaimTemplates.kind:"));
    assert!(wrong.is_empty(), "fields that are others after protobuf: {wrong:#?}");
}

fn differences(path: &str, one: &Value, other: &Value, report: &mut dyn FnMut(&str)) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                let none = Value::Null;
                differences(&format!("{path}.{key}"), one.get(key).unwrap_or(&none), other.get(key).unwrap_or(&none), report);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter().zip(other).for_each(|(one, other)| differences(path, one, other, report));
        }
        (one, other) if one != other => report(&format!("{path}: {one} {other}")),
        _ => {}
    }
}

/// What protobuf cannot tell from nothing: empty lists and maps.
fn settled(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, settled(value))).filter(|(_, value)| !is_nothing(value)).collect(),
        Value::Array(items) => items.into_iter().map(settled).collect(),
        other => other,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}
