//! A schema as a CustomResourceDefinition writes it (`JSONSchemaProps`), read once into a form that values are checked by.
//!
//! Reading never fails: what a definition says wrongly is named by [`super::structural`], and reads here as not said.

use crate::{
    Value,
    cel::{estimate, rule::Rule},
    custom::pattern::compile,
    schema::{Field, Link, ListType, PatchStrategy, Schema, Type},
};
use regex::Regex;
use serde_json::Map;
use std::{collections::BTreeMap, sync::Arc};

/// What an object may have beside its named properties.
#[derive(Debug, Default)]
pub enum Additional {
    /// Nothing was said.
    #[default]
    Unsaid,
    Allowed(bool),
    Values(Box<Props>),
}

/// One schema.
#[derive(Debug, Default)]
pub struct Props {
    /// Empty for any; two for `x-kubernetes-int-or-string`.
    pub types: Vec<String>,
    pub format: String,
    pub nullable: bool,
    pub properties: BTreeMap<String, Props>,
    pub additional: Additional,
    pub items: Option<Box<Props>>,
    pub required: Vec<String>,
    pub values: Vec<Value>,
    pub pattern: Option<(String, Option<Regex>)>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<i64>,
    pub max_length: Option<i64>,
    pub min_items: Option<i64>,
    pub max_items: Option<i64>,
    pub unique_items: bool,
    pub min_properties: Option<i64>,
    pub max_properties: Option<i64>,
    pub any_of: Vec<Props>,
    pub one_of: Vec<Props>,
    pub all_of: Vec<Props>,
    pub not: Option<Box<Props>>,
    pub default: Option<Value>,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: String,
    pub list_keys: Vec<String>,
    pub map_type: String,
    pub rules: Vec<Rule>,
    /// Whether a default stands here or below.
    pub has_defaults: bool,
    /// Whether a rule stands here or below.
    pub has_rules: bool,
    /// Whether rules can see values of it.
    pub is_seen: bool,
    /// The fewest bytes of JSON that a value of it takes.
    pub least_bytes: u64,
}

fn number(map: &Map<String, Value>, key: &str) -> Option<f64> {
    map.get(key).and_then(Value::as_f64)
}
fn whole(map: &Map<String, Value>, key: &str) -> Option<i64> {
    map.get(key).and_then(Value::as_i64)
}
fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or_default()
}
fn text(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).and_then(Value::as_str).unwrap_or_default().to_string()
}
fn strings(map: &Map<String, Value>, key: &str) -> Vec<String> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}
fn all(map: &Map<String, Value>, key: &str) -> Vec<Props> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().map(Props::read).collect()
}

impl Props {
    pub fn read(raw: &Value) -> Props {
        let empty = Map::new();
        let map = raw.as_object().unwrap_or(&empty);
        let int_or_string = flag(map, "x-kubernetes-int-or-string");
        let types = match text(map, "type") {
            _ if int_or_string => vec!["integer".to_string(), "string".to_string()],
            named if named.is_empty() => vec![],
            named => vec![named],
        };
        let mut props = Props {
            types,
            format: text(map, "format"),
            nullable: flag(map, "nullable"),
            properties: map
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, below)| (name.clone(), Props::read(below)))
                .collect(),
            additional: match map.get("additionalProperties") {
                Some(Value::Bool(allowed)) => Additional::Allowed(*allowed),
                Some(values @ Value::Object(_)) => Additional::Values(Box::new(Props::read(values))),
                _ => Additional::Unsaid,
            },
            items: map.get("items").filter(|items| items.is_object()).map(|items| Box::new(Props::read(items))),
            required: strings(map, "required"),
            values: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern: map.get("pattern").and_then(Value::as_str).filter(|text| !text.is_empty()).map(|text| (text.to_string(), compile(text).ok())),
            minimum: number(map, "minimum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            maximum: number(map, "maximum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            multiple_of: number(map, "multipleOf"),
            min_length: whole(map, "minLength"),
            max_length: whole(map, "maxLength"),
            min_items: whole(map, "minItems"),
            max_items: whole(map, "maxItems"),
            unique_items: flag(map, "uniqueItems"),
            min_properties: whole(map, "minProperties"),
            max_properties: whole(map, "maxProperties"),
            any_of: all(map, "anyOf"),
            one_of: all(map, "oneOf"),
            all_of: all(map, "allOf"),
            not: map.get("not").filter(|not| not.is_object()).map(|not| Box::new(Props::read(not))),
            default: map.get("default").filter(|default| !default.is_null()).cloned(),
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            int_or_string,
            list_type: text(map, "x-kubernetes-list-type"),
            list_keys: strings(map, "x-kubernetes-list-map-keys"),
            map_type: text(map, "x-kubernetes-map-type"),
            rules: map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten().map(Rule::read).collect(),
            has_defaults: false,
            has_rules: false,
            is_seen: false,
            least_bytes: 0,
        };
        let least_bytes = estimate::least_bytes(&props);
        (props.is_seen, props.least_bytes) = (least_bytes.is_some(), least_bytes.unwrap_or(0));
        props.has_defaults = props.default.is_some() || props.below().any(|below| below.has_defaults);
        props.has_rules = !props.rules.is_empty() || props.below().any(|below| below.has_rules);
        props
    }

    /// The schemas of what stands inside a value.
    pub fn below(&self) -> impl Iterator<Item = &Props> {
        let values = if let Additional::Values(values) = &self.additional { Some(&**values) } else { None };
        self.properties.values().chain(values).chain(self.items.as_deref())
    }
    pub fn is(&self, type_: &str) -> bool {
        self.types.iter().any(|known| known == type_)
    }
    /// The schema of the values of a map.
    pub fn additional(&self) -> Option<&Props> {
        if let Additional::Values(values) = &self.additional { Some(values) } else { None }
    }

    /// The form by which objects are merged and applied. `root` adds what every object has.
    pub fn merge_schema(&self, root: bool) -> Schema {
        let plain = |type_| Arc::new(Schema { type_, ..Schema::default() });
        let field = |name: &str, schema: Link, atomic| Field {
            name: name.to_string().into(),
            schema,
            required: false,
            omit_zero: false,
            always: None,
            patch: PatchStrategy::default(),
            atomic,
        };
        let mut schema =
            Schema { nullable: self.nullable, default: self.default.clone(), preserve_unknown: self.preserve_unknown, ..Schema::default() };
        schema.type_ = match self.types.first().map(String::as_str) {
            _ if self.int_or_string => Type::IntOrString,
            Some("object") | None if root || self.embedded || !self.properties.is_empty() => Type::Object,
            Some("object") if matches!(self.additional, Additional::Values(_) | Additional::Allowed(true)) => Type::Map,
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer { bits: 64 },
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            _ => Type::Any,
        };
        schema.atomic = self.map_type == "atomic";
        match schema.type_ {
            Type::Object => {
                let mut fields: Vec<Field> = (self.properties.iter())
                    .filter(|(name, _)| !((root || self.embedded) && matches!(name.as_str(), "apiVersion" | "kind" | "metadata")))
                    .map(|(name, below)| field(name, Link::Inline(Arc::new(below.merge_schema(false))), None))
                    .collect();
                if root || self.embedded {
                    fields.push(field("apiVersion", Link::Inline(plain(Type::String)), None));
                    fields.push(field("kind", Link::Inline(plain(Type::String)), None));
                    let metadata = crate::schema::definition_link("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
                    fields.extend(metadata.map(|link| field("metadata", link, None)));
                }
                schema.fields = fields.into();
                // Beside named properties the values of a map may be told too, which merging does not know.
                schema.preserve_unknown |= !matches!(self.additional, Additional::Unsaid | Additional::Allowed(false));
            }
            Type::Map => schema.items = self.additional().map(|values| Link::Inline(Arc::new(values.merge_schema(false)))),
            Type::Array => {
                schema.items = self.items.as_ref().map(|items| Link::Inline(Arc::new(items.merge_schema(false))));
                schema.list = match self.list_type.as_str() {
                    "set" => ListType::Set,
                    "map" => ListType::Map(self.list_keys.iter().map(|key| key.clone().into()).collect()),
                    _ => ListType::Atomic,
                };
            }
            _ => {}
        }
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_read_and_made_fit_for_merging() {
        let props = Props::read(&json!({"type": "object", "properties": {
            "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]},
            "m": {"type": "object", "additionalProperties": {"type": "integer"}}, "i": {"x-kubernetes-int-or-string": true, "default": 5}}}));
        assert!(props.has_defaults && !props.has_rules);
        let schema = props.merge_schema(true);
        assert_eq!(schema.field("l").unwrap().schema.list, ListType::Map(vec!["k".into()]));
        assert_eq!((schema.field("m").unwrap().schema.type_, schema.field("i").unwrap().schema.type_), (Type::Map, Type::IntOrString));
        assert!(schema.field("metadata").unwrap().schema.field("labels").is_some());
    }
}
