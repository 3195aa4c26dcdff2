//! Lists as long as a body may be: every kind is defaulted, checked and shown in a time that grows as the list does. What looks for each
//! item among all the others holds a core for minutes, and this test with it: nothing here measures time.

use api::{
    Catalogue, Kind, Value,
    field::Errors,
    kind::Subresource,
    limits, metadata,
    object::ObjectExt,
    schema::{Schema, Type},
    table,
};
use serde_json::{Map, json};
use std::collections::BTreeSet;

/// Nesting in which lists are looked for; schemas may contain themselves.
const DEPTH_MAX: usize = 12;
/// Items of all lists together: enough for what grows faster than they do.
const ITEMS_MAX: usize = 20_000;
/// Fields that tell items from each other, the likeliest first.
const KEYS: &[&str] = &["name", "type", "key", "ip", "mountPath", "conditionType", "topologyKey", "uid", "resourceName"];

fn scalar(schema: &Schema, i: usize) -> Option<Value> {
    Some(match schema.type_ {
        Type::String | Type::Quantity => json!(format!("{i}")),
        Type::Integer { .. } | Type::Number | Type::IntOrString => json!(i),
        _ => return None,
    })
}

/// A small item of a list, or a small value of a map: another for each `i`.
fn item(schema: &Schema, i: usize) -> Value {
    if let Some(value) = scalar(schema, i) {
        return value;
    }
    match schema.type_ {
        Type::Object => {
            let known = KEYS.iter().filter_map(|key| schema.field(key));
            let mut all = known.chain(schema.fields.iter()).filter_map(|field| Some((field.name.to_string(), scalar(&field.schema, i)?)));
            Value::Object(all.next().into_iter().collect())
        }
        Type::Boolean => json!(true),
        Type::Array => json!([]),
        Type::Bytes => json!("AA=="),
        Type::Time => json!("2024-01-01T00:00:00Z"),
        Type::MicroTime => json!("2024-01-01T00:00:00.000000Z"),
        _ => json!({}),
    }
}

/// As many items as a share of a body holds, half of them alike.
fn items(schema: &Schema, share: usize) -> Vec<Value> {
    let bytes = limits::REQUEST_BODY_BYTES_MAX / share;
    let count = (bytes / (item(schema, ITEMS_MAX).to_string().len() + 1)).min(ITEMS_MAX / share);
    (0..count).map(|i| item(schema, if i % 2 == 0 { i } else { 1 })).collect()
}

/// An object of `schema` whose own lists and maps are full.
fn full(schema: &Schema) -> Value {
    let large = |field: &&api::schema::Field| matches!(field.schema.type_, Type::Array | Type::Map);
    let share = schema.fields.iter().filter(large).count().max(1);
    let fill = |field: &api::schema::Field| {
        let nothing = Schema::default();
        let all = items(field.schema.items.as_deref().unwrap_or(&nothing), share);
        let value = match field.schema.type_ {
            Type::Map => Value::Object(all.into_iter().enumerate().map(|(i, value)| (format!("a{i}"), value)).collect()),
            _ => Value::Array(all),
        };
        (field.name.to_string(), value)
    };
    Value::Object(schema.fields.iter().filter(large).map(fill).collect())
}

/// Calls `visit` with every definition below that has lists or maps of its own, and with what makes a whole object of one. Each definition is visited once.
fn visit(
    schema: &Schema,
    depth: usize,
    known: &mut BTreeSet<String>,
    wrap: &dyn Fn(Value) -> Value,
    run: &mut dyn FnMut(&Schema, &dyn Fn(Value) -> Value),
) {
    if schema.type_ != Type::Object || depth > DEPTH_MAX || !known.insert(schema.name.to_string()) {
        return;
    }
    run(schema, wrap);
    for field in schema.fields.iter() {
        let name = field.name.to_string();
        match field.schema.type_ {
            Type::Object => {
                visit(&field.schema, depth + 1, known, &|value| wrap(Value::Object(Map::from_iter([(name.clone(), value)]))), run);
            }
            Type::Array => {
                let Some(items) = &field.schema.items else { continue };
                visit(items, depth + 1, known, &|value| wrap(json!({&name: [value]})), run);
            }
            Type::Map => {
                let Some(items) = &field.schema.items else { continue };
                visit(items, depth + 1, known, &|value| wrap(json!({&name: {"a": value}})), run);
            }
            _ => {}
        }
    }
}

fn exercise(kind: &Kind, version: &str, mut object: Value) {
    object.set("metadata.name", "a");
    let hooks = &kind.hooks;
    hooks.to_stored(version, &mut object);
    hooks.default(&mut object);
    let mut errors = Errors::default();
    let mut created = object.clone();
    hooks.prepare_create(&mut created);
    metadata::validate_create(&created, kind, &mut errors);
    hooks.validate(&created, None, &mut errors);
    let _ = api::Status::invalid(&kind.group, &kind.kind, "a", &errors).to_bytes();
    hooks.warnings(&object, None);
    let (mut errors, old) = (Errors::default(), &object);
    let mut updated = object.clone();
    hooks.prepare_update(&mut updated, old);
    metadata::validate_update(&updated, old, kind, &mut errors);
    hooks.validate(&updated, Some(old), &mut errors);
    let mut status = object.clone();
    hooks.prepare_status(&mut status, old);
    hooks.validate_status(&status, old, &mut errors);
    let is_view = |subresource: &&Subresource| matches!(subresource, Subresource::Connect { verbs, .. } if verbs.contains(&"update"));
    for subresource in kind.subresources.iter().filter(is_view) {
        let mut view = object.clone();
        hooks.prepare_view(subresource.name(), &mut view, old);
        hooks.validate_view(subresource.name(), &view, old, &mut errors);
    }
    table::cells(kind, &object, 1_700_000_000);
}

#[test]
fn a_long_list_is_not_compared_with_itself() {
    let mut known = BTreeSet::new();
    for kind in Catalogue::built_in().iter() {
        for version in &kind.versions {
            let Some(schema) = kind.schema(version) else { continue };
            visit(&schema, 0, &mut known, &|value| value, &mut |schema, wrap| {
                let value = full(schema);
                if value.as_object().is_some_and(|value| !value.is_empty()) {
                    // Who waits for this test sees at what.
                    println!("{} of {version}: lists of {}", kind.kind, schema.name);
                    exercise(kind, version, wrap(value));
                }
            });
        }
    }
}
