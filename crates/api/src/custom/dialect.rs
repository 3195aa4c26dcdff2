//! Which OpenAPI the schema of a definition may use: what is not supported, what goes with what, how lists and maps say that
//! they merge, and the rules that stand in it.
//!
//! That every value is described in one place is [`super::structural`]'s; it comes before this in what users are told.

use super::{
    props::Props,
    structural::{flag, has, list_type, schemas, strings, text},
};
use crate::{
    Value,
    cel::rule::{self, Total},
    field::{Errors, Path},
};
use serde_json::{Map, json};
use std::cell::OnceCell;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
/// What every object says of itself.
const META_FIELDS: &[&str] = &["apiVersion", "kind", "metadata"];

/// What a schema has wrong, here and below. Rules are only compiled where the schema around them is right.
#[derive(Default)]
struct Found {
    schema: Errors,
    rules: Errors,
}

impl Found {
    fn take(&mut self, other: Found) {
        self.schema.extend(other.schema);
        self.rules.extend(other.rules);
    }
}

/// Where in a schema a schema stands.
#[derive(Clone, Default)]
struct Place<'a> {
    root: bool,
    /// Whether it is about what objects say of themselves.
    inside_meta: bool,
    /// Why nothing may have a default here, if so.
    no_defaults: Option<String>,
    /// The outermost list around it whose items have no former selves.
    unmatched: Option<Path>,
    /// The schema as rules see it, and how often there may be a value of it (`None`: as often as there is room). Nothing where rules
    /// are not looked at.
    seen: Option<(&'a Props, Option<u64>)>,
}

impl<'a> Place<'a> {
    /// A place below, whose schema is found by `part` in what rules see.
    fn below(&self, part: impl FnOnce(&'a Props) -> Option<&'a Props>) -> Place<'a> {
        let seen = self.seen.and_then(|(props, times)| {
            let times = times.zip(rule::times(props)).map(|(times, more)| times.saturating_mul(more));
            Some((part(props)?, times))
        });
        Place { root: false, seen, ..self.clone() }
    }
    /// A place in `anyOf` and its like.
    fn combined(&self) -> Place<'a> {
        Place { root: false, seen: None, ..self.clone() }
    }
}

/// Checks a whole schema. `props` is its other form; without it rules are not looked at. `settled`: whether the schema was accepted
/// before, so that no rule of it is too dear.
pub fn validate(schema: &Value, props: Option<&Props>, settled: bool, path: &Path, errors: &mut Errors) {
    let Some(root) = schema.as_object() else { return };
    let mut walk = Walk { total: Total::default(), settled };
    let found = walk.schema(root, path, Place { root: true, seen: props.map(|props| (props, Some(1))), ..Place::default() });
    errors.extend(found.schema);
    errors.extend(found.rules);
    walk.total.complain(path, errors);
}

struct Walk {
    total: Total,
    settled: bool,
}

impl Walk {
    fn schema(&mut self, map: &Map<String, Value>, path: &Path, place: Place<'_>) -> Found {
        let mut found = Found::default();
        standard(map, path, &place, &mut found.schema);
        self.parts(map, path, &place, &mut found);
        if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            found.schema.invalid(path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
        }
        merging(map, path, &mut found.schema);
        keyed(map, path, &mut found.schema);
        let rules = map.get("x-kubernetes-validations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if rules.is_empty() {
            return found;
        }
        let at = path.child("x-kubernetes-validations");
        let form = OnceCell::new();
        for (i, raw) in rules.iter().enumerate() {
            rule::validate_form(raw, map, &form, &at.index(i), &mut found.schema);
        }
        if let Some((props, times)) = place.seen.filter(|_| found.schema.is_empty()) {
            let site = rule::Site { root: place.root, times, unmatched: place.unmatched.as_ref(), settled: self.settled };
            rule::validate_rules(props, &site, &at, &mut self.total, &mut found.rules);
        }
        found
    }

    /// The schemas within a schema.
    fn parts(&mut self, map: &Map<String, Value>, path: &Path, place: &Place<'_>, found: &mut Found) {
        if flag(map, "uniqueItems") {
            found.schema.forbidden(path.child("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
        }
        let properties = map.get("properties").and_then(Value::as_object).filter(|properties| !properties.is_empty());
        if let Some(additional) = map.get("additionalProperties").filter(|below| !below.is_null()) {
            let at = path.child("additionalProperties");
            if properties.is_some() && additional != &Value::Bool(true) {
                found.schema.forbidden(at.clone(), "additionalProperties and properties are mutual exclusive");
            }
            if let Some(below) = additional.as_object() {
                let mut values = place.below(Props::additional);
                if place.inside_meta {
                    values.no_defaults = Some("inside additionalProperties applying to object metadata".into());
                }
                found.take(self.schema(below, &at, values));
            }
        }
        for (name, below) in properties.into_iter().flatten() {
            let Some(below) = below.as_object() else { continue };
            let mut field = place.below(|props| props.properties.get(name));
            if (place.root || flag(map, "x-kubernetes-embedded-resource")) && META_FIELDS.contains(&name.as_str()) {
                field.inside_meta = true;
                if place.root {
                    field.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            found.take(self.schema(below, &path.child("properties").key(name), field));
        }
        if let Some(below) = map.get("not").and_then(Value::as_object) {
            found.take(self.schema(below, &path.child("not"), place.combined()));
        }
        for key in ["allOf", "oneOf", "anyOf"] {
            for (i, below) in schemas(map, key).enumerate() {
                found.take(self.schema(below, &path.child(key).index(i), place.combined()));
            }
        }
        for key in ["definitions", "dependencies"] {
            for (name, below) in map.get(key).and_then(Value::as_object).into_iter().flatten() {
                if let Some(below) = below.as_object() {
                    found.take(self.schema(below, &path.child(key).key(name), place.combined()));
                }
            }
        }
        let mut items = place.below(|props| props.items.as_deref());
        if list_type(map) != Some("map") {
            items.unmatched = place.unmatched.clone().or_else(|| Some(path.clone()));
        }
        match map.get("items") {
            Some(Value::Object(below)) => found.take(self.schema(below, &path.child("items"), items)),
            Some(Value::Array(all)) => {
                for (i, below) in all.iter().enumerate() {
                    if let Some(below) = below.as_object() {
                        found.take(self.schema(below, &path.child("items").index(i), Place { seen: None, ..items.clone() }));
                    }
                }
            }
            _ => {}
        }
    }
}

/// What no schema may say.
fn standard(map: &Map<String, Value>, path: &Path, place: &Place<'_>, errors: &mut Errors) {
    let type_ = text(map, "type");
    if !type_.is_empty() && !TYPES.contains(&type_) {
        errors.not_supported(path.child("type"), type_, TYPES);
    }
    if let Some(why) = place.no_defaults.as_ref().filter(|_| has(map, "default")) {
        errors.forbidden(path.child("default"), &format!("must not be set {why}"));
    }
    let mut refuse = |key: &str, is: bool| {
        if is {
            errors.forbidden(path.child(key), &format!("{key} is not supported"));
        }
    };
    let holds_any = |key: &str| map.get(key).and_then(Value::as_object).is_some_and(|below| !below.is_empty());
    refuse("id", !text(map, "id").is_empty());
    refuse("additionalItems", has(map, "additionalItems"));
    refuse("patternProperties", holds_any("patternProperties"));
    refuse("definitions", holds_any("definitions"));
    refuse("dependencies", has(map, "dependencies"));
    refuse("$ref", has(map, "$ref"));
    if type_ == "null" {
        errors.forbidden(path.child("type"), "type cannot be set to null, use nullable as an alternative");
    }
    if map.get("items").and_then(Value::as_array).is_some_and(|items| !items.is_empty()) {
        errors.forbidden(path.child("items"), "items must be a schema object and not an array");
    }
    if place.inside_meta && flag(map, "x-kubernetes-embedded-resource") {
        errors.forbidden(path.child("x-kubernetes-embedded-resource"), "must not be used inside of resource meta");
    }
}

/// How lists and maps are said to merge.
fn merging(map: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let (type_, list_type) = (text(map, "type"), list_type(map));
    let of_type = |wanted: &str, key: &str, errors: &mut Errors| {
        let detail = format!("must be {wanted} if {key} is specified");
        match type_ {
            "" => errors.required(path.child("type"), &detail),
            other => errors.invalid(path.child("type"), other, &detail),
        }
    };
    if let Some(map_type) = map.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if type_ != "object" {
            of_type("object", "x-kubernetes-map-type", errors);
        }
        if !matches!(map_type, "atomic" | "granular") {
            errors.not_supported(path.child("x-kubernetes-map-type"), map_type, &["atomic", "granular"]);
        }
    }
    let items = map.get("items").and_then(Value::as_object);
    if list_type.is_some() && type_ != "array" {
        of_type("array", "x-kubernetes-list-type", errors);
    } else if let (Some("set"), Some(items)) = (list_type, items) {
        let at = path.child("items");
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        // Both times it is the list type that clients are shown.
        let shown = items.get("x-kubernetes-list-type").cloned().unwrap_or_default();
        match text(items, "type") {
            "array" if !matches!(self::list_type(items), None | Some("atomic")) => errors.invalid(at.child("x-kubernetes-list-type"), shown, detail),
            "object" if text(items, "x-kubernetes-map-type") != "atomic" => errors.invalid(at.child("x-kubernetes-map-type"), shown, detail),
            _ => {}
        }
    }
    if let Some(list_type) = list_type.filter(|list_type| !matches!(*list_type, "atomic" | "set" | "map")) {
        errors.not_supported(path.child("x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]);
    }
    if !strings(map, "x-kubernetes-list-map-keys").is_empty() && list_type != Some("map") {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.required(path.child("x-kubernetes-list-type"), detail),
            Some(other) => errors.invalid(path.child("x-kubernetes-list-type"), other, detail),
        }
    }
}

/// What the items of sets are, and of lists with keys.
fn keyed(map: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let Some(list_type @ ("set" | "map")) = list_type(map) else { return };
    let (keys, at) = (strings(map, "x-kubernetes-list-map-keys"), path.child("items"));
    let items = map.get("items").and_then(Value::as_object);
    let empty = Map::new();
    let properties = items.and_then(|items| items.get("properties")).and_then(Value::as_object).unwrap_or(&empty);
    if list_type == "map" {
        if keys.is_empty() {
            errors.required(path.child("x-kubernetes-list-map-keys"), "must not be empty if x-kubernetes-list-type is map");
        }
        match (map.get("items"), items) {
            (None | Some(Value::Null), _) => errors.required(at.clone(), "must have a schema if x-kubernetes-list-type is map"),
            (Some(other), None) => errors.invalid(at.clone(), other.clone(), "must only have a single schema if x-kubernetes-list-type is map"),
            (_, Some(items)) if text(items, "type") != "object" => {
                errors.invalid(at.child("type"), text(items, "type"), "must be object if parent array's x-kubernetes-list-type is map");
            }
            (_, Some(_)) => keys_are_fields(&keys, properties, path, errors),
        }
    }
    let Some(items) = items else { return };
    if flag(items, "nullable") {
        errors.forbidden(at.child("nullable"), &format!("cannot be nullable when x-kubernetes-list-type is {list_type}"));
    }
    if list_type == "set" {
        return;
    }
    let required = strings(items, "required");
    for key in keys {
        let Some(property) = properties.get(key).and_then(Value::as_object) else { continue };
        let at = at.child("properties").key(key);
        if !required.contains(&key) && !has(property, "default") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(at.child("default"), detail);
        }
        if flag(property, "nullable") {
            errors.forbidden(at.child("nullable"), "this property is in x-kubernetes-list-map-keys, so it cannot be nullable");
        }
        if errors.is_full() {
            return;
        }
    }
}

fn keys_are_fields(keys: &[&str], properties: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let at = path.child("x-kubernetes-list-map-keys");
    for (_, key, again) in crate::kinds::checks::distinct(keys, |key| *key) {
        match properties.get(*key).and_then(Value::as_object) {
            // It is the type of the items that clients are shown.
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let at = path.child("items").child("properties").key(key).child("type");
                errors.invalid(at, "object", "must be a scalar type if parent array's x-kubernetes-list-type is map");
            }
            Some(_) => {}
            None => errors.invalid(at.clone(), json!(keys), "entries must all be names of item properties"),
        }
        if again {
            errors.invalid(at.clone(), json!(keys), "must not contain duplicate entries");
        }
        if errors.is_full() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(schema: Value) -> Vec<String> {
        let (mut errors, props) = (Errors::default(), Props::read(&schema));
        validate(&schema, Some(&props), false, &Path::new("s"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }
    fn field(schema: Value) -> Vec<String> {
        complaints(json!({"type": "object", "properties": {"a": schema}}))
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(field(json!({"type": "object", "$ref": ""})), ["s.properties[a].$ref: Forbidden: $ref is not supported"]);
        assert_eq!(field(json!({"type": "object", "dependencies": {}})), ["s.properties[a].dependencies: Forbidden: dependencies is not supported"]);
        assert_eq!(
            field(json!({"type": "null"})),
            [
                "s.properties[a].type: Unsupported value: \"null\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
                "s.properties[a].type: Forbidden: type cannot be set to null, use nullable as an alternative",
            ]
        );
        assert_eq!(field(json!({"type": "object", "additionalProperties": false})), [] as [&str; 0]);
        let both = json!({"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": false});
        assert_eq!(field(both), ["s.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"]);
    }

    #[test]
    fn what_objects_say_of_themselves_has_no_defaults() {
        let kind = json!({"type": "object", "properties": {"kind": {"type": "string", "default": "K"}}});
        assert_eq!(complaints(kind), ["s.properties[kind].default: Forbidden: must not be set in top-level kind"]);
        let labels = json!({"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"metadata": {"type": "object",
            "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string", "default": "x"}}}}}});
        assert_eq!(
            field(labels),
            [
                "s.properties[a].properties[metadata].properties[labels].additionalProperties.default: Forbidden: must not be set inside additionalProperties applying to object metadata"
            ]
        );
        let within = json!({"type": "object", "properties": {"metadata": {"type": "object", "x-kubernetes-embedded-resource": true}}});
        assert_eq!(
            complaints(within),
            ["s.properties[metadata].x-kubernetes-embedded-resource: Forbidden: must not be used inside of resource meta"]
        );
    }

    #[test]
    fn lists_with_keys_are_described() {
        let list = |keys: Value, items: Value| {
            field(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": items}))
        };
        let items = json!({"type": "object", "required": ["k"], "nullable": true, "properties": {"k": {"type": "string", "nullable": true}}});
        assert_eq!(
            list(json!(["k", "k"]), items),
            [
                "s.properties[a].x-kubernetes-list-map-keys: Invalid value: [\"k\",\"k\"]: must not contain duplicate entries",
                "s.properties[a].items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is map",
                "s.properties[a].items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                "s.properties[a].items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ]
        );
        assert_eq!(list(json!(["k"]), Value::Null), ["s.properties[a].items: Required value: must have a schema if x-kubernetes-list-type is map"]);
        assert_eq!(
            list(json!(["k"]), json!({})),
            ["s.properties[a].items.type: Invalid value: \"\": must be object if parent array's x-kubernetes-list-type is map"]
        );
    }

    #[test]
    fn rules_are_only_looked_at_where_the_schema_is_right() {
        let wrong = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.a >"}], "properties": {"a": {"type": "string", "id": "x"}}});
        assert_eq!(complaints(wrong), ["s.properties[a].id: Forbidden: id is not supported"]);
    }
}
