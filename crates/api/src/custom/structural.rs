//! Whether the schema of a definition may be one: it must be structural (every value has one type, described in one place), its
//! defaults must fit, and what it says must be said in the OpenAPI that definitions know ([`super::dialect`]).

use super::{check, dialect, formats, pattern, props::Props, shape};
use crate::{
    Value, cel,
    field::{Errors, Path},
};
use serde_json::{Map, json};

pub(super) fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or_default()
}
pub(super) fn has(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).is_some_and(|value| !value.is_null())
}
pub(super) fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}
pub(super) fn list_type(map: &Map<String, Value>) -> Option<&str> {
    map.get("x-kubernetes-list-type").and_then(Value::as_str)
}
pub(super) fn schemas<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}
pub(super) fn strings<'a>(map: &'a Map<String, Value>, key: &str) -> Vec<&'a str> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}
fn fields<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = (&'a String, &'a Map<String, Value>)> {
    map.get(key).and_then(Value::as_object).into_iter().flatten().filter_map(|(name, below)| Some((name, below.as_object()?)))
}
fn below<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    map.get(key).and_then(Value::as_object)
}

/// Checks the schema of a version. `path` is that of `openAPIV3Schema`; `settled` says that it was accepted before.
pub fn validate(schema: &Value, settled: bool, path: &Path, errors: &mut Errors) {
    let empty = Map::new();
    let root = schema.as_object().unwrap_or(&empty);
    let (before, unreadable, props) = (errors.0.len(), unreadable(root), Props::read(schema));
    if unreadable.is_none() {
        errors.extend(problems(root, path));
        if errors.0.len() == before {
            defaults(&props, path, Where::Root, errors);
        }
    }
    let seen = Some(&props).filter(|_| unreadable.is_none() && errors.0.len() == before);
    dialect::validate(schema, seen, settled, path, errors);
    // What makes a schema unreadable is mostly told better above.
    if let Some(why) = unreadable.filter(|_| errors.0.len() == before) {
        errors.invalid(path.clone(), "", &why);
    }
}

/// What a schema says that no structural one can be made of.
fn unreadable(map: &Map<String, Value>) -> Option<String> {
    let said = |key: &str| match map.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::Object(below)) => !below.is_empty() || key == "additionalItems",
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    const KEYS: &[(&str, &str)] = &[
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    if let Some((_, name)) = KEYS.iter().find(|(key, _)| said(key)) {
        return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        return Some("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into());
    }
    if map.get("items").and_then(Value::as_array).is_some_and(|items| !items.is_empty()) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
    }
    all_below(map).find_map(unreadable)
}

/// The schemas just below one.
fn all_below(map: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let parts = ["not", "additionalProperties", "items"].into_iter().filter_map(|key| below(map, key));
    let alternatives = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|key| schemas(map, key));
    parts.chain(alternatives).chain(fields(map, "properties").map(|(_, below)| below))
}

/// The formats that a schema names and nobody knows.
pub fn unknown_formats(schema: &Map<String, Value>, found: &mut Vec<String>) {
    let format = text(schema, "format");
    if !format.is_empty() && !formats::is_known(format) && !found.iter().any(|known| known == format) {
        found.push(format.to_string());
    }
    all_below(schema).for_each(|below| unknown_formats(below, found));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Why a schema is not structural, in order of the messages.
fn problems(root: &Map<String, Value>, path: &Path) -> Errors {
    let mut found = Errors::default();
    described(root, Level::Root, path, &mut found);
    complete(root, root, path, path, &mut found);
    found.0.sort_by_cached_key(ToString::to_string);
    found
}

/// That every value has a type, said in one place.
fn described(map: &Map<String, Value>, level: Level, path: &Path, errors: &mut Errors) {
    let type_ = text(map, "type");
    if type_ == "array" && !has(map, "items") {
        errors.required(path.child("items"), "must be specified");
    }
    if let Some(items) = below(map, "items") {
        described(items, Level::Item, &path.child("items"), errors);
    }
    for (name, field) in fields(map, "properties") {
        described(field, Level::Field, &path.child("properties").key(name), errors);
    }
    if has(map, "additionalProperties") && level == Level::Root {
        errors.forbidden(path.child("additionalProperties"), "must not be used at the root");
    }
    if let Some(values) = below(map, "additionalProperties") {
        described(values, Level::Field, &path.child("additionalProperties"), errors);
    }
    let [int_or_string, embedded, preserve] =
        ["x-kubernetes-int-or-string", "x-kubernetes-embedded-resource", "x-kubernetes-preserve-unknown-fields"].map(|key| flag(map, key));
    for (key, is) in [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)] {
        if int_or_string && is {
            errors.invalid(path.child(key), true, "must be false if x-kubernetes-int-or-string is true");
        }
    }
    let is_first = is_int_or_string(schemas(map, "allOf").next().and_then(|first| first.get("anyOf")));
    checked(map, is_int_or_string(map.get("anyOf")), is_first, path, errors);
    if embedded && type_ != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        match type_ {
            "" => errors.required(path.child("type"), detail),
            other => errors.invalid(path.child("type"), other, detail),
        }
    } else if type_.is_empty() && !int_or_string && !preserve {
        errors.required(
            path.child("type"),
            match level {
                Level::Root => "must not be empty at the root",
                Level::Field => "must not be empty for specified object fields",
                Level::Item => "must not be empty for specified array items",
            },
        );
    }
    if embedded && has(map, "additionalProperties") {
        errors.forbidden(path.child("additionalProperties"), "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !matches!(type_, "" | "object") {
        errors.invalid(path.child("type"), type_, "must be object at the root");
    }
    type_meta(map, level, path, errors);
    if embedded && !preserve && fields(map, "properties").next().is_none() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(path.child("properties"), detail);
    }
}

/// What a schema of whole objects says of what every object has.
fn type_meta(map: &Map<String, Value>, level: Level, path: &Path, errors: &mut Errors) {
    if level != Level::Root && !flag(map, "x-kubernetes-embedded-resource") {
        return;
    }
    let at = path.child("properties");
    let type_of = |name: &str| Some(text(below(below(map, "properties")?, name)?, "type"));
    for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        if let Some(type_) = type_of(name).filter(|type_| *type_ != wanted) {
            errors.invalid(at.key(name).child("type"), type_, &format!("must be {wanted}"));
        }
    }
    let metadata = below(map, "properties").and_then(|properties| below(properties, "metadata")).filter(|_| level == Level::Root);
    if metadata.is_some_and(says_more_than_names) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(at.key("metadata"), detail);
    }
}

/// Whether the schema of metadata is about anything but names.
fn says_more_than_names(metadata: &Map<String, Value>) -> bool {
    let only_names = |properties: &Map<String, Value>| properties.keys().all(|name| matches!(name.as_str(), "name" | "generateName"));
    metadata.iter().any(|(key, value)| match key.as_str() {
        "type" | "default" | "externalDocs" | "example" => false,
        "properties" => value.as_object().is_some_and(|properties| !only_names(properties)),
        _ => !matches!(value, Value::Null | Value::Bool(false)) && !crate::kinds::values::is_empty(value),
    })
}

/// `anyOf: [{type: integer}, {type: string}]` is how int-or-string is said to others.
fn is_int_or_string(alternatives: Option<&Value>) -> bool {
    let known = [json!({"type": "integer"}), json!({"type": "string"})];
    alternatives.and_then(Value::as_array).is_some_and(|list| list.as_slice() == known)
}

/// What a schema says of values beside their structure: that of its alternatives only, which describe nothing.
fn checked(map: &Map<String, Value>, skip_any_of: bool, skip_in_first: bool, path: &Path, errors: &mut Errors) {
    for key in ["anyOf", "allOf", "oneOf"] {
        for (i, below) in schemas(map, key).enumerate().filter(|_| !(skip_any_of && key == "anyOf")) {
            combined(below, skip_in_first && key == "allOf" && i == 0, &path.child(key).index(i), errors);
        }
    }
    if let Some(not) = below(map, "not") {
        combined(not, false, &path.child("not"), errors);
    }
    if let Err(why) = pattern::compile(text(map, "pattern")) {
        errors.invalid(path.child("pattern"), text(map, "pattern"), &format!("must be a valid regular expression, but isn't: {why}"));
    }
}

/// Inside `anyOf` and its like values are only checked, not described.
fn combined(map: &Map<String, Value>, skip_any_of: bool, path: &Path, errors: &mut Errors) {
    checked(map, skip_any_of, false, path, errors);
    if let Some(items) = below(map, "items") {
        combined(items, false, &path.child("items"), errors);
    }
    for (name, field) in fields(map, "properties") {
        combined(field, false, &path.child("properties").key(name), errors);
    }
    const REFUSED: &[(&str, &str)] = &[
        ("type", "empty"),
        ("additionalProperties", "undefined"),
        ("default", "undefined"),
        ("title", "empty"),
        ("description", "empty"),
        ("nullable", "false"),
        ("x-kubernetes-preserve-unknown-fields", "false"),
        ("x-kubernetes-embedded-resource", "false"),
        ("x-kubernetes-int-or-string", "false"),
        ("x-kubernetes-list-map-keys", "empty"),
        ("x-kubernetes-list-type", "undefined"),
        ("x-kubernetes-map-type", "undefined"),
        ("x-kubernetes-validations", "empty"),
    ];
    for (key, must_be) in REFUSED {
        let said = match map.get(*key) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(is)) => *is || *must_be == "undefined",
            Some(Value::String(text)) => !text.is_empty() || *must_be == "undefined",
            Some(Value::Array(list)) => !list.is_empty() || *must_be == "undefined",
            Some(_) => true,
        };
        if said {
            errors.forbidden(path.child(key), &format!("must be {must_be} to be structural"));
        }
    }
    if below(map, "properties").is_some_and(|properties| properties.contains_key("metadata")) {
        errors.forbidden(path.child("properties").key("metadata"), "must not be specified in a nested context");
    }
}

/// That what alternatives speak of is described outside of them. `at` is where it is described, `said_at` where it is spoken of.
fn complete(map: &Map<String, Value>, described: &Map<String, Value>, at: &Path, said_at: &Path, errors: &mut Errors) {
    if let Some(not) = below(map, "not") {
        complete_below(not, Some(described), at, &said_at.child("not"), errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, below) in schemas(map, key).enumerate() {
            complete_below(below, Some(described), at, &said_at.child(key).index(i), errors);
        }
    }
}

fn complete_below(map: &Map<String, Value>, described: Option<&Map<String, Value>>, at: &Path, said_at: &Path, errors: &mut Errors) {
    let Some(described) = described else { return errors.required(at.clone(), &format!("because it is defined in {said_at}")) };
    complete(map, described, at, said_at, errors);
    if let Some(items) = below(map, "items") {
        complete_below(items, below(described, "items"), &at.child("items"), &said_at.child("items"), errors);
    }
    for (name, field) in fields(map, "properties") {
        let there = below(described, "properties").and_then(|properties| below(properties, name));
        complete_below(field, there, &at.child("properties").key(name), &said_at.child("properties").key(name), errors);
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
        one_default(props, default, &path.child("default"), place, errors);
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
    if !unknown.is_empty() && place != Where::Metadata {
        errors.invalid(at.clone(), default.clone(), "must not have unknown fields");
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
        validate(&schema, false, &Path::new("s"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }
    fn object(more: Value) -> Value {
        let mut schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        schema
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
        assert_eq!(complaints(object(json!({"additionalProperties": true}))), ["s.additionalProperties: Forbidden: must not be used at the root"]);
        let fine =
            json!({"type": "object", "properties": {"p": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}});
        assert_eq!(complaints(fine), [] as [&str; 0]);
        assert_eq!(complaints(object(json!({"$schema": "x"}))), ["s: Invalid value: \"\": OpenAPIV3Schema 'schema' is not supported"]);
    }

    #[test]
    fn alternatives_describe_nothing() {
        let said = json!({"type": "object", "default": {}, "title": "t", "nullable": true, "additionalProperties": {}, "x-kubernetes-list-map-keys": ["k"],
            "x-kubernetes-list-type": "set", "x-kubernetes-map-type": "atomic", "x-kubernetes-int-or-string": true,
            "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(
            complaints(object(json!({"allOf": [said]})))[..11],
            [
                "s.allOf[0].additionalProperties: Forbidden: must be undefined to be structural",
                "s.allOf[0].default: Forbidden: must be undefined to be structural",
                "s.allOf[0].nullable: Forbidden: must be false to be structural",
                "s.allOf[0].title: Forbidden: must be empty to be structural",
                "s.allOf[0].type: Forbidden: must be empty to be structural",
                "s.allOf[0].x-kubernetes-embedded-resource: Forbidden: must be false to be structural",
                "s.allOf[0].x-kubernetes-int-or-string: Forbidden: must be false to be structural",
                "s.allOf[0].x-kubernetes-list-map-keys: Forbidden: must be empty to be structural",
                "s.allOf[0].x-kubernetes-list-type: Forbidden: must be undefined to be structural",
                "s.allOf[0].x-kubernetes-map-type: Forbidden: must be undefined to be structural",
                "s.allOf[0].x-kubernetes-preserve-unknown-fields: Forbidden: must be false to be structural",
            ]
        );
        for key in ["allOf", "anyOf", "oneOf"] {
            assert_eq!(
                complaints(object(json!({key: [{"properties": {"a": {"x-kubernetes-validations": [{"rule": "self > 1"}]}}}]}))),
                [format!("s.{key}[0].properties[a].x-kubernetes-validations: Forbidden: must be empty to be structural")]
            );
        }
        assert_eq!(
            complaints(object(json!({"not": {"items": {"x-kubernetes-validations": [{"rule": "self > 1"}]}}}))),
            [
                "s.items: Required value: because it is defined in s.not.items",
                "s.not.items.x-kubernetes-validations: Forbidden: must be empty to be structural",
            ]
        );
    }

    #[test]
    fn what_alternatives_speak_of_is_described() {
        assert_eq!(
            complaints(object(json!({"oneOf": [{"properties": {"b": {"minimum": 1}, "a": {"minimum": 1}}}]}))),
            ["s.properties[b]: Required value: because it is defined in s.oneOf[0].properties[b]"]
        );
        assert_eq!(
            complaints(object(json!({"anyOf": [{"properties": {"metadata": {}}}]}))),
            [
                "s.anyOf[0].properties[metadata]: Forbidden: must not be specified in a nested context",
                "s.properties[metadata]: Required value: because it is defined in s.anyOf[0].properties[metadata]",
            ]
        );
        // Only what stands at the root is looked at that way.
        let inner = object(json!({"properties": {"b": object(json!({"anyOf": [{"properties": {"z": {"minimum": 1}}}]}))}}));
        assert_eq!(complaints(inner), [] as [&str; 0]);
    }

    #[test]
    fn metadata_is_only_spoken_of_by_name() {
        let metadata = |metadata: Value| complaints(json!({"type": "object", "properties": {"metadata": metadata}}));
        assert_eq!(metadata(json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}})), [] as [&str; 0]);
        for more in [json!({"labels": {"type": "object"}}), json!({"name": {"type": "string"}, "uid": {"type": "string"}})] {
            assert_eq!(
                metadata(json!({"type": "object", "properties": more})),
                [
                    "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"
                ]
            );
        }
        assert_eq!(metadata(json!({"type": "string"})), ["s.properties[metadata].type: Invalid value: \"string\": must be object"]);
    }

    #[test]
    fn objects_within_are_whole() {
        let within = |schema: Value| complaints(json!({"type": "object", "properties": {"o": schema}}));
        assert_eq!(
            within(json!({"type": "object", "x-kubernetes-embedded-resource": true, "additionalProperties": {"type": "string"}})),
            [
                "s.properties[o].additionalProperties: Forbidden: must not be used if x-kubernetes-embedded-resource is set",
                "s.properties[o].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ]
        );
        assert_eq!(
            within(json!({"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true})),
            ["s.properties[o].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true"]
        );
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
