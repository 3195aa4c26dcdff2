//! Whether the schema of a definition may be one: it must be structural (every field has one type, in one place), its lists
//! and maps must say how they merge in a way that can be followed, its defaults must fit, its rules must compile.

use super::{check, formats, pattern, props::Props, shape};
use crate::{
    Value, cel,
    field::{Errors, Path},
    kinds::checks,
};
use serde_json::{Map, json};

/// What can be said only where a value's structure is said, not inside `anyOf` and its like.
const NOT_IN_COMBINATIONS: &[&str] = &["type", "title", "description", "nullable"];
const EXTENSIONS: &[&str] = &[
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
];
const SCALARS: &[&str] = &["string", "integer", "number", "boolean"];

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or_default()
}
fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}
fn schemas<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}
fn strings<'a>(map: &'a Map<String, Value>, key: &str) -> Vec<&'a str> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Checks the schema of a version. `path` is that of `openAPIV3Schema`.
pub fn validate(schema: &Value, path: &Path, errors: &mut Errors) {
    let empty = Map::new();
    let root = schema.as_object().unwrap_or(&empty);
    standard(root, path, true, errors);
    let before = errors.0.len();
    structure(root, path, Level::Root, errors);
    let props = Props::read(schema);
    if errors.0.len() == before {
        defaults(&props, path, Where::Root, errors);
    }
    cel::rule::validate_schema(&props, schema, path, errors);
}

/// The formats that a schema names and nobody knows.
pub fn unknown_formats(schema: &Map<String, Value>, found: &mut Vec<String>) {
    let format = text(schema, "format");
    if !format.is_empty() && !formats::is_known(format) && !found.iter().any(|known| known == format) {
        found.push(format.to_string());
    }
    each_below(schema, &Path::root(), |below, _| unknown_formats(below, found));
}

/// Every schema below, with its path.
fn each_below<'a>(map: &'a Map<String, Value>, path: &Path, mut visit: impl FnMut(&'a Map<String, Value>, Path)) {
    for key in ["properties", "patternProperties", "definitions"] {
        for (name, below) in map.get(key).and_then(Value::as_object).into_iter().flatten() {
            if let Some(below) = below.as_object() {
                visit(below, path.child(key).key(name));
            }
        }
    }
    for key in ["additionalProperties", "items", "not"] {
        if let Some(below) = map.get(key).and_then(Value::as_object) {
            visit(below, path.child(key));
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, below) in schemas(map, key).enumerate() {
            visit(below, path.child(key).index(i));
        }
    }
}

/// What no schema may say, and how lists and maps must be described.
fn standard(map: &Map<String, Value>, path: &Path, root: bool, errors: &mut Errors) {
    for (key, name) in [("id", "id"), ("$schema", "schema"), ("$ref", "$ref")] {
        if !text(map, key).is_empty() {
            errors.forbidden(path.child(key), &format!("{name} is not supported"));
        }
    }
    for key in ["definitions", "dependencies", "patternProperties"] {
        if map.get(key).and_then(Value::as_object).is_some_and(|below| !below.is_empty()) {
            errors.forbidden(path.child(key), &format!("{key} is not supported"));
        }
    }
    if map.get("additionalItems").is_some_and(|below| !below.is_null()) {
        errors.forbidden(path.child("additionalItems"), "additionalItems is not supported");
    }
    if flag(map, "uniqueItems") {
        errors.forbidden(path.child("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    let has_properties = map.get("properties").and_then(Value::as_object).is_some_and(|properties| !properties.is_empty());
    match map.get("additionalProperties") {
        Some(Value::Bool(false)) => errors.forbidden(path.child("additionalProperties"), "additionalProperties cannot be set to false"),
        Some(Value::Null) | None => {}
        Some(_) if has_properties => errors.forbidden(path.child("additionalProperties"), "additionalProperties and properties are mutual exclusive"),
        Some(_) => {}
    }
    if map.get("items").is_some_and(Value::is_array) {
        errors.forbidden(path.child("items"), "items must be a schema object and not an array");
    }
    if let Err(why) = pattern::compile(text(map, "pattern")) {
        errors.invalid(path.child("pattern"), text(map, "pattern"), &format!("must be a valid regular expression, but isn't: {why}"));
    }
    if text(map, "type") == "null" {
        errors.forbidden(path.child("type"), "type cannot be set to null, use nullable as an alternative");
    } else if !matches!(text(map, "type"), "" | "object" | "array" | "string" | "integer" | "number" | "boolean") {
        errors.not_supported(path.child("type"), text(map, "type"), &["array", "boolean", "integer", "number", "object", "string"]);
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.invalid(path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
    }
    merging(map, path, errors);
    if root && !matches!(text(map, "type"), "" | "object") {
        errors.invalid(path.child("type"), text(map, "type"), "must be object at the root");
    }
    each_below(map, path, |below, path| standard(below, &path, false, errors));
}

fn merging(map: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let type_ = text(map, "type");
    if let Some(map_type) = map.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if type_ != "object" {
            match type_ {
                "" => errors.required(path.child("type"), "must be object if x-kubernetes-map-type is specified"),
                other => errors.invalid(path.child("type"), other, "must be object if x-kubernetes-map-type is specified"),
            }
        }
        if !matches!(map_type, "atomic" | "granular") {
            errors.not_supported(path.child("x-kubernetes-map-type"), map_type, &["atomic", "granular"]);
        }
    }
    let list_type = map.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys = strings(map, "x-kubernetes-list-map-keys");
    if let Some(list_type) = list_type {
        if type_ != "array" {
            match type_ {
                "" => errors.required(path.child("type"), "must be array if x-kubernetes-list-type is specified"),
                other => errors.invalid(path.child("type"), other, "must be array if x-kubernetes-list-type is specified"),
            }
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            errors.not_supported(path.child("x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]);
        }
    }
    if list_type != Some("map") {
        if !keys.is_empty() {
            match list_type {
                None => errors.required(path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty"),
                Some(other) => {
                    errors.invalid(path.child("x-kubernetes-list-type"), other, "must be map if x-kubernetes-list-map-keys is non-empty");
                }
            }
        }
    } else if keys.is_empty() {
        errors.required(path.child("x-kubernetes-list-map-keys"), "must not be empty if x-kubernetes-list-type is map");
    }
    let Some(items) = map.get("items").and_then(Value::as_object) else { return };
    let at = path.child("items");
    match list_type {
        Some("set") => {
            if flag(items, "nullable") {
                errors.forbidden(at.child("nullable"), "cannot be nullable when x-kubernetes-list-type is set");
            }
            let atomic = |items: &Map<String, Value>, key: &str| items.get(key).and_then(Value::as_str) == Some("atomic");
            if text(items, "type") == "object" && !atomic(items, "x-kubernetes-map-type") {
                let shown = items.get("x-kubernetes-map-type").cloned().unwrap_or_default();
                errors.invalid(at.child("x-kubernetes-map-type"), shown, "must be atomic as item of a list with x-kubernetes-list-type=set");
            }
            if text(items, "type") == "array" && items.get("x-kubernetes-list-type").is_some() && !atomic(items, "x-kubernetes-list-type") {
                let shown = items.get("x-kubernetes-list-type").cloned().unwrap_or_default();
                errors.invalid(at.child("x-kubernetes-list-type"), shown, "must be atomic as item of a list with x-kubernetes-list-type=set");
            }
        }
        Some("map") => keyed_items(items, &keys, path, errors),
        _ => {}
    }
}

fn keyed_items(items: &Map<String, Value>, keys: &[&str], path: &Path, errors: &mut Errors) {
    let at = path.child("items");
    if flag(items, "nullable") {
        errors.forbidden(at.child("nullable"), "cannot be nullable when x-kubernetes-list-type is map");
    }
    match text(items, "type") {
        "object" => {}
        "" => errors.required(at.child("type"), "must be object if parent array's x-kubernetes-list-type is map"),
        other => errors.invalid(at.child("type"), other, "must be object if parent array's x-kubernetes-list-type is map"),
    }
    let empty = Map::new();
    let properties = items.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required = strings(items, "required");
    if text(items, "type") == "object" {
        for (i, key, again) in checks::distinct(keys, |key| *key) {
            if again {
                errors.invalid(path.child("x-kubernetes-list-map-keys").index(i), *key, "duplicate entries are not allowed");
            }
            let Some(property) = properties.get(*key).and_then(Value::as_object) else {
                errors.invalid(path.child("x-kubernetes-list-map-keys"), json!(keys), "entries must all be names of item properties");
                continue;
            };
            let at = at.child("properties").key(key);
            if !SCALARS.contains(&text(property, "type")) && !flag(property, "x-kubernetes-int-or-string") {
                errors.invalid(at.child("type"), text(property, "type"), "must be a scalar type if parent array's x-kubernetes-list-type is map");
            }
            if flag(property, "nullable") {
                errors.forbidden(at.child("nullable"), "cannot be nullable if parent array's x-kubernetes-list-type is map");
            }
            let has_default = property.get("default").is_some_and(|default| !default.is_null());
            if !required.contains(key) && !has_default {
                errors.required(
                    at.child("default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                );
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// That every value has a type, said in one place.
fn structure(map: &Map<String, Value>, path: &Path, level: Level, errors: &mut Errors) {
    let type_ = text(map, "type");
    let (int_or_string, preserve) = (flag(map, "x-kubernetes-int-or-string"), flag(map, "x-kubernetes-preserve-unknown-fields"));
    if type_.is_empty() && !int_or_string && !(preserve && level != Level::Root) {
        errors.required(
            path.child("type"),
            match level {
                Level::Root => "must not be empty at the root",
                Level::Field => "must not be empty for specified object fields",
                Level::Item => "must not be empty for specified array items",
            },
        );
    }
    if flag(map, "x-kubernetes-embedded-resource") {
        if type_ != "object" {
            match type_ {
                "" => errors.required(path.child("type"), "must be object if x-kubernetes-embedded-resource is true"),
                other => errors.invalid(path.child("type"), other, "must be object if x-kubernetes-embedded-resource is true"),
            }
        }
        let has_properties = map.get("properties").and_then(Value::as_object).is_some_and(|properties| !properties.is_empty());
        if !preserve && !has_properties {
            errors.required(
                path.child("properties"),
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            );
        }
        embedded_metadata(map, path, errors);
    }
    if int_or_string && !type_.is_empty() {
        errors.invalid(path.child("type"), type_, "must be empty if x-kubernetes-int-or-string is true");
    }
    if type_ == "array" && map.get("items").is_none_or(|items| items.is_null()) {
        errors.required(path.child("items"), "must be specified");
    }
    if level == Level::Root {
        embedded_metadata(map, path, errors);
    }
    for (name, below) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let meta = level == Level::Root && name == "metadata";
        if let (Some(below), false) = (below.as_object(), meta) {
            structure(below, &path.child("properties").key(name), Level::Field, errors);
        }
    }
    if let Some(below) = map.get("additionalProperties").and_then(Value::as_object) {
        structure(below, &path.child("additionalProperties"), Level::Field, errors);
    }
    if let Some(below) = map.get("items").and_then(Value::as_object) {
        structure(below, &path.child("items"), Level::Item, errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, below) in schemas(map, key).enumerate() {
            let skip = int_or_string && is_int_or_string_alternatives(map, key, i);
            combination(below, Some(map), &path.child(key).index(i), skip, errors);
        }
    }
    if let Some(below) = map.get("not").and_then(Value::as_object) {
        combination(below, Some(map), &path.child("not"), false, errors);
    }
}

/// `anyOf: [{type: integer}, {type: string}]` is how int-or-string is said to others.
fn is_int_or_string_alternatives(map: &Map<String, Value>, key: &str, index: usize) -> bool {
    let alternatives = [json!({"type": "integer"}), json!({"type": "string"})];
    let is = |value: Option<&Value>| value.and_then(Value::as_array).is_some_and(|list| list.as_slice() == alternatives);
    match key {
        "anyOf" => is(map.get("anyOf")),
        "allOf" => index == 0 && schemas(map, "allOf").next().is_some_and(|first| is(first.get("anyOf"))),
        _ => false,
    }
}

fn embedded_metadata(map: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let Some(properties) = map.get("properties").and_then(Value::as_object) else { return };
    let at = path.child("properties");
    for name in ["apiVersion", "kind"] {
        if let Some(type_) = properties.get(name).and_then(Value::as_object).map(|below| text(below, "type"))
            && type_ != "string"
        {
            errors.invalid(at.key(name).child("type"), type_, "must be string");
        }
    }
    let Some(metadata) = properties.get("metadata").and_then(Value::as_object) else { return };
    let at = at.key("metadata");
    if text(metadata, "type") != "object" {
        errors.invalid(at.child("type"), text(metadata, "type"), "must be object");
    }
    let fields = metadata.get("properties").and_then(Value::as_object);
    for name in fields.into_iter().flat_map(Map::keys).filter(|name| !matches!(name.as_str(), "name" | "generateName")) {
        errors.forbidden(at.clone(), &format!("must not specify anything other than name and generateName, but {name} is specified"));
    }
}

/// Inside `anyOf` and its like values are only checked, not described.
fn combination(map: &Map<String, Value>, described: Option<&Map<String, Value>>, path: &Path, int_or_string: bool, errors: &mut Errors) {
    for key in NOT_IN_COMBINATIONS.iter().filter(|key| !(int_or_string && **key == "type")) {
        if map.get(*key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && value != "") {
            errors.forbidden(path.child(key), "must be empty to be structural");
        }
    }
    if map.get("default").is_some_and(|default| !default.is_null()) {
        errors.forbidden(path.child("default"), "must be undefined to be structural");
    }
    if map.get("additionalProperties").is_some_and(|below| !below.is_null()) {
        errors.forbidden(path.child("additionalProperties"), "must be undefined to be structural");
    }
    for key in EXTENSIONS {
        match map.get(*key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(Value::Bool(true)) => errors.forbidden(path.child(key), "must be false to be structural"),
            Some(_) => errors.forbidden(path.child(key), "must be undefined to be structural"),
        }
    }
    // What is checked there must be described outside.
    let below_of = |key: &str, name: Option<&str>| {
        let value = described?.get(key)?;
        name.map_or(Some(value), |name| value.get(name))?.as_object()
    };
    for (name, below) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let Some(below) = below.as_object() else { continue };
        combination(below, below_of("properties", Some(name)), &path.child("properties").key(name), false, errors);
    }
    if let Some(below) = map.get("items").and_then(Value::as_object) {
        combination(below, below_of("items", None), &path.child("items"), false, errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, below) in schemas(map, key).enumerate() {
            combination(below, described, &path.child(key).index(i), int_or_string && key == "anyOf", errors);
        }
    }
    if let Some(below) = map.get("not").and_then(Value::as_object) {
        combination(below, described, &path.child("not"), false, errors);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Root,
    Metadata,
    Inside,
}

/// That defaults fit their own schema.
fn defaults(props: &Props, path: &Path, place: Where, errors: &mut Errors) {
    if !props.has_defaults {
        return;
    }
    if let Some(default) = &props.default {
        let at = path.child("default");
        if place == Where::Metadata {
            errors.forbidden(at, "must not be set in top-level metadata");
        } else {
            one_default(props, default, &at, place, errors);
        }
    }
    for (name, below) in &props.properties {
        let place = match place {
            Where::Root if name == "metadata" => Where::Metadata,
            Where::Metadata => Where::Metadata,
            _ => Where::Inside,
        };
        defaults(below, &path.child("properties").key(name), place, errors);
    }
    if let Some(below) = props.additional() {
        defaults(below, &path.child("additionalProperties"), Where::Inside, errors);
    }
    if let Some(below) = &props.items {
        defaults(below, &path.child("items"), Where::Inside, errors);
    }
}

fn one_default(props: &Props, default: &Value, at: &Path, place: Where, errors: &mut Errors) {
    let mut unknown = vec![];
    let mut pruned = default.clone();
    shape::prune(props, &mut pruned, place == Where::Root, "", &mut unknown);
    if !unknown.is_empty() {
        return errors.invalid(at.clone(), default.clone(), "must not have unknown fields");
    }
    if place == Where::Root || props.embedded {
        for key in ["apiVersion", "kind"] {
            if default.get(key).is_none() {
                errors.required(at.child(key), "");
            }
        }
    }
    let mut filled = default.clone();
    shape::default(props, &mut filled);
    let before = errors.0.len();
    check::check(props, &filled, None, at, errors);
    check::check_lists(props, &filled, None, at, errors);
    if errors.0.len() == before {
        let mut found = Errors::default();
        let mut budget = cel::limits::OBJECT_COST_MAX;
        cel::rule::check_rules(props, &filled, None, false, at, &mut budget, &mut found);
        errors.extend(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(schema: Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&schema, &Path::new("s"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structure_is_said_once_and_everywhere() {
        assert_eq!(complaints(json!({"properties": {}})), ["s.type: Required value: must not be empty at the root"]);
        assert_eq!(
            complaints(json!({"type": "object", "properties": {"a": {"type": "string", "not": {"description": "x"}}, "b": {"type": "array"}}})),
            [
                "s.properties[a].not.description: Forbidden: must be empty to be structural",
                "s.properties[b].items: Required value: must be specified"
            ]
        );
        let fine =
            json!({"type": "object", "properties": {"p": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}});
        assert_eq!(complaints(fine), [] as [&str; 0]);
    }

    #[test]
    fn defaults_fit() {
        assert_eq!(
            complaints(json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 2, "default": 1}}})),
            ["s.properties[a].default: Invalid value: 1:  in body should be greater than or equal to 2"]
        );
        assert_eq!(
            complaints(
                json!({"type": "object", "properties": {"a": {"type": "object", "required": ["b"], "default": {}, "properties": {"b": {"type": "string"}}}}})
            ),
            ["s.properties[a].default.b: Required value"]
        );
    }
}
