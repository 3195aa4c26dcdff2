//! What a custom resource keeps of what it was sent: pruning, defaults, nulls; and how its text becomes an object.

use super::props::{Additional, Props};
use crate::{
    Value,
    field::{Errors, Path},
    limits, schema,
    structure::{self, Encoding},
};
use serde_json::Map;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Removes what the schema does not know. Its paths go to `unknown`, in order of keys.
pub fn prune(props: &Props, value: &mut Value, root: bool, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let meta = root || props.embedded;
            let known = |key: &str| (meta && matches!(key, "apiVersion" | "kind" | "metadata")) || props.properties.contains_key(key);
            let keeps_all = props.preserve_unknown || !matches!(props.additional, Additional::Unsaid | Additional::Allowed(false));
            let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            if !keeps_all {
                let gone: Vec<String> = map.keys().filter(|key| !known(key)).cloned().collect();
                for key in gone {
                    map.remove(&key);
                    if unknown.len() < limits::STRICT_PROBLEMS_MAX {
                        unknown.push(below(&key));
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                if meta && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                if let Some(schema) = props.properties.get(key).or(props.additional()) {
                    prune(schema, value, false, &below(key), unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &props.items {
                for (i, item) in items.iter_mut().enumerate() {
                    prune(schema, item, false, &format!("{path}[{i}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

/// Removes nulls that are no values and have no default.
pub fn drop_nulls(props: &Props, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, below| {
                let Some(schema) = props.properties.get(key).or(props.additional()) else { return true };
                !below.is_null() || schema.nullable || schema.default.is_some() || schema.types.is_empty()
            });
            for (key, below) in map.iter_mut() {
                if let Some(schema) = props.properties.get(key).or(props.additional()) {
                    drop_nulls(schema, below);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &props.items {
                items.iter_mut().for_each(|item| drop_nulls(schema, item));
            }
        }
        _ => {}
    }
}

/// Whole numbers are written without a fraction, whatever they came as.
pub fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            // Beyond this a double no longer holds every whole number.
            const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
            if let Some(whole) = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() <= EXACT_MAX) {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Fills defaults. Answers whether anything changed.
pub fn default(props: &Props, value: &mut Value) -> bool {
    let mut changed = false;
    match value {
        Value::Object(map) => {
            for (key, schema) in &props.properties {
                if let Some(default) = &schema.default
                    && map.get(key).is_none_or(|value| value.is_null() && !schema.nullable)
                {
                    map.insert(key.clone(), default.clone());
                    changed = true;
                }
            }
            for (key, below) in map.iter_mut() {
                if let Some(schema) = props.properties.get(key) {
                    changed |= default(schema, below);
                } else if let Some(schema) = props.additional() {
                    if below.is_null()
                        && !schema.nullable
                        && let Some(default) = &schema.default
                    {
                        *below = default.clone();
                        changed = true;
                    }
                    changed |= default(schema, below);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &props.items {
                for item in items {
                    if item.is_null()
                        && !schema.nullable
                        && let Some(default) = &schema.default
                    {
                        *item = default.clone();
                        changed = true;
                    }
                    changed |= default(schema, item);
                }
            }
        }
        _ => {}
    }
    changed
}

/// An object that was read as it is, in the shape of its kind: pruned, metadata of embedded objects in order.
/// Answers with what was unknown.
pub fn fit(props: &Props, object: &mut Value) -> Vec<String> {
    let mut unknown = vec![];
    prune(props, object, true, "", &mut unknown);
    embedded_metadata(props, object, true, "", &mut unknown);
    unknown.sort();
    unknown
}

/// What a client sends wrong in an object within a custom resource: what it says of itself must be text, its metadata metadata.
pub fn embedded_problem(props: &Props, value: &Value, root: bool, path: &Path) -> Option<String> {
    let wrong = |at: Path, value: &Value, why: &str| {
        let mut errors = Errors::default();
        errors.invalid(at, value.clone(), why);
        Some(errors.to_string())
    };
    match value {
        Value::Object(map) => map.iter().find_map(|(key, below)| {
            if props.embedded && !root {
                match key.as_str() {
                    "apiVersion" | "kind" if !below.is_string() => return wrong(path.child(key), below, "must be a string"),
                    "metadata" => {
                        let schema = schema::definition(OBJECT_META)?;
                        if let Err(why) = structure::decode(below.to_string().as_bytes(), Encoding::Json, &schema) {
                            return wrong(path.child(key), below, &why);
                        }
                    }
                    _ => {}
                }
            }
            match (props.properties.get(key), props.additional()) {
                (Some(schema), _) => embedded_problem(schema, below, false, &path.child(key)),
                (None, Some(schema)) => embedded_problem(schema, below, false, &path.key(key)),
                (None, None) => None,
            }
        }),
        Value::Array(items) => {
            let schema = props.items.as_deref()?;
            items.iter().enumerate().find_map(|(i, item)| embedded_problem(schema, item, false, &path.index(i)))
        }
        _ => None,
    }
}

/// The metadata of embedded objects has the form of all metadata; what cannot be read goes.
fn embedded_metadata(props: &Props, value: &mut Value, root: bool, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            if props.embedded
                && !root
                && let Some(metadata) = map.get("metadata")
                && let Some(schema) = schema::definition(OBJECT_META)
            {
                match structure::decode(metadata.to_string().as_bytes(), Encoding::Json, &schema) {
                    Ok(decoded) => {
                        let fields = decoded.problems.iter().filter_map(|problem| problem.strip_prefix("unknown field \"")?.strip_suffix('"'));
                        unknown.extend(fields.map(|field| format!("{}.{field}", below("metadata"))));
                        map.insert("metadata".into(), decoded.value);
                    }
                    Err(_) => {
                        map.insert("metadata".into(), Value::Object(Map::new()));
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(schema) = props.properties.get(key).or(props.additional()) {
                    embedded_metadata(schema, value, false, &below(key), unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &props.items {
                for (i, item) in items.iter_mut().enumerate() {
                    embedded_metadata(schema, item, false, &format!("{path}[{i}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go_and_are_named() {
        let props = Props::read(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"a": {"type": "string"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"strict": {"type": "object"}}}}}}}));
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"x": 1}, "other": 1,
            "spec": {"a": "1", "b": 2, "free": {"any": {"thing": 1}, "strict": {"gone": 1}}}});
        assert_eq!(fit(&props, &mut object), ["other", "spec.b", "spec.free.strict.gone"]);
        assert_eq!(object["spec"], json!({"a": "1", "free": {"any": {"thing": 1}, "strict": {}}}));
    }

    #[test]
    fn objects_within_are_objects() {
        let props = Props::read(&json!({"type": "object", "properties": {"l": {"type": "array", "items":
            {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}));
        let found = |embedded: Value| embedded_problem(&props, &json!({"kind": 1, "l": [embedded]}), true, &Path::root());
        assert_eq!(found(json!({"kind": "K", "metadata": {"name": "a"}})), None);
        assert_eq!(found(json!({"kind": 1})).as_deref(), Some("l[0].kind: Invalid value: 1: must be a string"));
        let why = "json: cannot unmarshal number into Go struct field ObjectMeta.name of type string";
        assert_eq!(found(json!({"metadata": {"name": 1}})), Some(format!("l[0].metadata: Invalid value: {{\"name\":1}}: {why}")));
    }

    #[test]
    fn defaults_and_nulls() {
        let props = Props::read(&json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"}, "n": {"type": "string", "nullable": true, "default": "y"}, "s": {"type": "string"},
            "o": {"type": "object", "default": {}, "properties": {"p": {"type": "integer", "default": 3}}}, "l": {"type": "array", "items": {"type": "string"}}}}));
        let mut object = json!({"a": null, "n": null, "s": null, "l": [null]});
        drop_nulls(&props, &mut object);
        assert!(default(&props, &mut object));
        assert_eq!(object, json!({"a": "x", "n": null, "o": {"p": 3}, "l": [null]}));
        assert!(!default(&props, &mut object));
    }
}
