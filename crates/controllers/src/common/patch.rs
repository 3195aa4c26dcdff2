//! Writing only what has changed: the difference of two values as a JSON merge patch, and statuses written by it.

use std::sync::Arc;

use client::controller::Error;
use client::{Informer, Key, Object};
use kube::api::Patch;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The merge patch that makes `new` out of `old`; `None` if they are equal.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (name, value) in new {
                match old.get(name) {
                    None if value.is_null() => {}
                    None => {
                        patch.insert(name.clone(), value.clone());
                    }
                    Some(before) => {
                        if let Some(part) = difference(before, value) {
                            patch.insert(name.clone(), part);
                        }
                    }
                }
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                patch.insert(name.clone(), Value::Null);
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) if old == new => None,
        (_, new) => Some(new.clone()),
    }
}

/// Writes the object's status if it differs, only in the version that was looked at. Gives the newest object known.
pub async fn write_status<K: Object, S: Serialize>(informer: &Informer<K>, object: &Arc<K>, old: Option<&S>, new: &S) -> Result<Arc<K>, Error> {
    let as_value = |status: Option<&S>| status.map_or(Ok(json!({})), serde_json::to_value).map_err(|error| Error::Other(error.into()));
    let Some(change) = difference(&as_value(old)?, &as_value(Some(new))?) else { return Ok(object.clone()) };
    let meta = object.meta();
    let patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version }, "status": change });
    Ok(informer.patch_status(&Key::of(&**object), &Patch::Merge(patch)).await?)
}

/// Patches the object's metadata or spec, only in the version that was looked at.
pub async fn write<K: Object>(informer: &Informer<K>, object: &K, mut change: Value) -> Result<Arc<K>, Error> {
    let meta = object.meta();
    change["metadata"]["uid"] = json!(meta.uid);
    change["metadata"]["resourceVersion"] = json!(meta.resource_version);
    Ok(informer.patch(&Key::of(object), &Patch::Merge(change)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: Value, new: Value, expected: Option<Value>) {
        assert_eq!(difference(&old, &new), expected);
    }

    #[test]
    fn only_what_changed() {
        check(json!({"a": 1, "b": {"c": 2}}), json!({"a": 1, "b": {"c": 2}}), None);
        check(json!({"a": 1, "b": {"c": 2, "d": 3}}), json!({"a": 1, "b": {"c": 4}}), Some(json!({"b": {"c": 4, "d": null}})));
        check(json!({"l": [1, 2]}), json!({"l": [1]}), Some(json!({"l": [1]})));
        check(json!({}), json!({"a": 0}), Some(json!({"a": 0})));
    }
}
