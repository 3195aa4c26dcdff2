//! Patches: JSON patch, merge patch, strategic merge patch.
//!
//! All are functions from an object and a patch to an object. They know nothing of what the object means; the result is
//! checked by [`crate::structure`] like any other body.

mod json_patch;
mod strategic;

pub use json_patch::{json_patch, json_patch_problem, json_patch_unknown_fields};
pub use strategic::strategic_merge;

use crate::{
    Value,
    schema::Schema,
    status::{Result, Status},
    structure::{self, Encoding},
};
use serde_json::Map;

/// From which power of ten on Go prints a fraction with an exponent.
const GO_EXPONENT_MIN: i32 = 6;

/// That a value is not what it should be, in the words of Go's decoder.
fn unexpected(found: &Value, wanted: &str) -> String {
    let found = match found {
        Value::Null => "null",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
    };
    format!("json: cannot unmarshal {found} into Go {wanted}")
}

/// What a merge or strategic merge patch must be: an object, or null.
fn check_map(patch: &Value) -> Result<(), String> {
    if patch.is_object() || patch.is_null() { Ok(()) } else { Err(unexpected(patch, "value of type map[string]interface {}")) }
}

/// Reads a merge patch and merges it into an object.
pub fn merge_patched(target: &Value, patch: &[u8]) -> Result<Value> {
    let undecodable = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = structure::parse(patch, Encoding::Json).map_err(undecodable)?;
    check_map(&patch).map_err(undecodable)?;
    if patch.is_null() {
        return Err(Status::bad_request("Invalid JSON Patch"));
    }
    let mut merged = target.clone();
    merge_patch(&mut merged, &patch);
    Ok(merged)
}

/// Reads a strategic merge patch and merges it into an object.
pub fn strategic_patched(target: &Value, patch: &[u8], schema: &Schema) -> Result<Value> {
    let patch = structure::parse(patch, Encoding::Json).and_then(|patch| check_map(&patch).map(|()| patch)).map_err(Status::bad_request)?;
    strategic_merge(target, &patch, schema)
}

/// RFC 7386: null removes, objects merge, everything else replaces. Beyond it, as Kubernetes' library has it, objects in the
/// lists of a patch lose their nulls.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        drop_nulls(target);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, change) in patch {
        if change.is_null() {
            target.remove(key);
        } else {
            merge_patch(target.entry(key.as_str()).or_insert(Value::Null), change);
        }
    }
}

/// Takes the members that are null out of all objects.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// A value as Go prints it, `map[foo:1]`: how errors about strategic merge patches show the patch.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        Value::Number(number) if number.is_f64() => go_float(number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// A fraction as Go prints it: as few digits as say which it is, and an exponent if it is small or large.
pub fn go_float(number: f64) -> String {
    let shortest = format!("{number:e}");
    match shortest.split_once('e').and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?))) {
        Some((digits, exponent)) if !(-4..GO_EXPONENT_MIN).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patches() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null, "z": null}), json!({"b": "c"})),
            (json!({"a": [1]}), json!({"a": {"b": {"c": null, "d": 1}}}), json!({"a": {"b": {"d": 1}}})),
            (json!({"a": {"b": 1}}), json!({"a": [2]}), json!({"a": [2]})),
            (json!({}), json!({"a": [null, {"b": null, "c": [{"d": null}]}]}), json!({"a": [null, {"c": [{}]}]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        ] {
            let mut found = target.clone();
            merge_patch(&mut found, &patch);
            assert_eq!(found, result, "{target} + {patch}");
        }
        let floats = [1.5, 2.0, 123456.0, 1234567.0, 1e21, 0.0001, 0.000012, -3e7];
        assert_eq!(floats.map(go_float), ["1.5", "2", "123456", "1.234567e+06", "1e+21", "0.0001", "1.2e-05", "-3e+07"]);
        assert_eq!(go_text(&json!({"b": [1, "x"], "a": {"c": null}})), "map[a:map[c:<nil>] b:[1 x]]");
    }
}
