//! Patches: JSON patch, merge patch, strategic merge patch.
//!
//! All are functions from an object and a patch to an object. They know nothing of what the object means; the result is
//! checked by [`crate::structure`] like any other body.

mod json_patch;
mod strategic;

pub use json_patch::{json_patch, json_patch_problem};
pub use strategic::strategic_merge;

use crate::Value;
use serde_json::Map;

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
        other => other.to_string(),
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
        assert_eq!(go_text(&json!({"b": [1, "x"], "a": {"c": null}})), "map[a:map[c:<nil>] b:[1 x]]");
    }
}
