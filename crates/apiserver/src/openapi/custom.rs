//! The types of definitions in OpenAPI: the schema as its author wrote it, with what every object has and in the words of
//! OpenAPI. Version 2 knows less than version 3; what it cannot say is left open there, so that clients do not refuse too much.

use super::Form;
use api::{Kind, custom::Custom};
use serde_json::{Map, Value, json};

/// Types of Kubernetes that those of definitions refer to.
pub const REFERRED_TO: [&str; 4] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

/// Groups that the part of Kubernetes that serves definitions does not know.
const UNKNOWN_GROUPS: [&str; 4] = ["admission.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "imagepolicy.k8s.io"];

/// Leaves out of what types say of kinds those of groups that are not known where definitions are served.
pub fn without_unknown_groups(schemas: &mut Map<String, Value>) {
    for schema in schemas.values_mut() {
        if let Some(kinds) = schema.get_mut("x-kubernetes-group-version-kind").and_then(Value::as_array_mut) {
            kinds.retain(|kind| !kind["group"].as_str().is_some_and(|group| UNKNOWN_GROUPS.contains(&group)));
        }
    }
}

/// The name of a type: the group backwards, then version and kind.
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let group: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", group.join("."))
}

/// The types that a definition makes in one of its versions: the object and its list.
pub fn definitions(kind: &Kind, version: &str, form: Form) -> Map<String, Value> {
    let raw = kind.custom.as_deref().and_then(|custom: &Custom| custom.version(version)).map(|version| version.raw.clone()).unwrap_or_default();
    let named = |shown: &str| json!([{"group": kind.group, "kind": shown, "version": version}]);
    let mut object = converted(&raw, form);
    if form == Form::V2 && raw.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool) == Some(true) {
        // Clients of version 2 take the fields that they are told of for all that there are.
        object = json!({"type": "object"});
    } else {
        own_fields(&mut object, REFERRED_TO[0], form);
    }
    object["x-kubernetes-group-version-kind"] = named(&kind.kind);
    let name = definition_name(&kind.group, version, &kind.kind);
    let item = form.reference(&name);
    let items = format!("List of {}. More info: {CONVENTIONS}", kind.resource);
    let mut list = json!({"type": "object", "required": ["items"], "properties": {"items": {"type": "array", "items": item, "description": items}}});
    list["description"] = json!(format!("{} is a list of {}", kind.list_kind, kind.kind));
    own_fields(&mut list, REFERRED_TO[1], form);
    list["x-kubernetes-group-version-kind"] = named(&kind.list_kind);
    [(name, object), (definition_name(&kind.group, version, &kind.list_kind), list)].into_iter().collect()
}

/// What every object says of itself.
fn own_fields(schema: &mut Value, metadata: &str, form: Form) {
    if !schema.is_object() {
        *schema = json!({});
    }
    if schema.get("properties").is_none_or(|properties| !properties.is_object()) {
        schema["properties"] = json!({});
    }
    schema["type"] = json!("object");
    let metadata_is = if metadata == REFERRED_TO[1] { LIST_METADATA } else { METADATA };
    schema["properties"]["apiVersion"] = json!({"type": "string", "description": format!("{API_VERSION} More info: {CONVENTIONS}#resources")});
    schema["properties"]["kind"] = json!({"type": "string", "description": format!("{KIND} More info: {CONVENTIONS}#types-kinds")});
    let metadata = form.reference(metadata);
    schema["properties"]["metadata"] = if form == Form::V3 { json!({"allOf": [metadata]}) } else { metadata };
    schema["properties"]["metadata"]["description"] = json!(format!("{}. More info: {CONVENTIONS}#{}", metadata_is.0, metadata_is.1));
}

/// What clients show of the fields that every object has.
const CONVENTIONS: &str = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase.";
const METADATA: (&str, &str) = ("Standard object's metadata", "metadata");
const LIST_METADATA: (&str, &str) = ("Standard list metadata", "types-kinds");

/// What version 2 cannot say, or clients of it do not understand.
const ONLY_V3: [&str; 7] = ["nullable", "oneOf", "anyOf", "allOf", "not", "default", "x-kubernetes-validations"];

/// A schema of a definition as OpenAPI has it.
fn converted(schema: &Value, form: Form) -> Value {
    let Some(schema) = schema.as_object() else { return schema.clone() };
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
    let mut made = Map::new();
    for (key, value) in schema {
        let value = match key.as_str() {
            "properties" | "patternProperties" => {
                let below = value.as_object().into_iter().flatten();
                Value::Object(below.map(|(name, below)| (name.clone(), converted(below, form))).collect())
            }
            "items" | "additionalProperties" if value.is_object() => converted(value, form),
            key if form == Form::V2 && ONLY_V3.contains(&key) => continue,
            _ => value.clone(),
        };
        made.insert(key.clone(), value);
    }
    if flag("x-kubernetes-embedded-resource") {
        let mut object = Value::Object(made);
        own_fields(&mut object, REFERRED_TO[0], form);
        made = object.as_object().cloned().unwrap_or_default();
    }
    match form {
        Form::V3 if flag("x-kubernetes-int-or-string") && !made.contains_key("anyOf") && !made.contains_key("type") => {
            made.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        Form::V2 if flag("nullable") || flag("x-kubernetes-int-or-string") => {
            for key in ["type", "items", "properties", "additionalProperties"] {
                made.remove(key);
            }
        }
        Form::V2 if flag("x-kubernetes-preserve-unknown-fields") => {
            for key in ["items", "properties", "additionalProperties"] {
                made.remove(key);
            }
        }
        _ => {}
    }
    Value::Object(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_group_backwards() {
        assert_eq!(definition_name("stable.example.com", "v1", "Thing"), "com.example.stable.v1.Thing");
    }

    #[test]
    fn a_schema_is_said_in_both_languages() {
        let schema = json!({"type": "object", "properties": {
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "array", "nullable": true, "items": {"type": "string"}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true}}});
        let v3 = converted(&schema, Form::V3);
        assert_eq!(v3["properties"]["port"]["anyOf"], json!([{"type": "integer"}, {"type": "string"}]));
        assert_eq!(v3["properties"]["maybe"]["items"]["type"], "string");
        assert_eq!(v3["properties"]["pod"]["properties"]["kind"]["type"], "string");
        let v2 = converted(&schema, Form::V2);
        assert_eq!(v2["properties"]["maybe"], json!({}));
        assert_eq!(v2["properties"]["any"], json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    }
}
