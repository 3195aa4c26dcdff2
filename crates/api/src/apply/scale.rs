//! The books of a Scale: who owns the number of replicas of the object behind it.
//!
//! A Scale has no books of its own. For a write to it they are made from the object's, and what the write has made of them is
//! put back into the object's.

use super::{Entry, Set, decode, encode};
use crate::Value;

/// Where a Scale has the number of replicas.
const IN_SCALE: &str = "spec.replicas";
const API_VERSION: &str = "autoscaling/v1";

fn is_same(a: &Entry, b: &Entry) -> bool {
    (&a.manager, a.applies, &a.subresource) == (&b.manager, b.applies, &b.subresource)
}

/// Gives `scale` the books that `object`, which has its replicas at `path`, has of them.
pub fn books_of_scale(object: &Value, path: &str, scale: &mut Value) {
    let replicas = Set::of(&[path]);
    let entries = decode(object).unwrap_or_default().into_iter().filter(|entry| !entry.set.intersection(&replicas).is_empty());
    encode(scale, entries.map(|entry| Entry { set: Set::of(&[IN_SCALE]), api_version: API_VERSION.into(), ..entry }).collect());
}

/// Puts what the books of a written `scale` say into those of `object`, which is written in `api_version`.
pub fn take_books_of_scale(object: &mut Value, path: &str, api_version: &str, scale: &Value) {
    let replicas = Set::of(&[path]);
    let in_scale = Set::of(&[IN_SCALE]);
    let mut owners = decode(scale).unwrap_or_default();
    // The rest of a Scale is nobody's.
    owners.retain(|owner| !owner.set.intersection(&in_scale).is_empty());
    let mut entries = decode(object).unwrap_or_default();
    for entry in entries.iter_mut().filter(|entry| !entry.set.intersection(&replicas).is_empty()) {
        match owners.iter().position(|owner| is_same(owner, entry)) {
            Some(i) => drop(owners.remove(i)),
            None => entry.set = entry.set.difference(&replicas),
        }
    }
    for owner in owners {
        // The time of a write to a Scale is not kept.
        let fresh = Entry { set: replicas.clone(), api_version: api_version.into(), time: None, ..owner };
        match entries.iter_mut().find(|entry| entry.is(&fresh)) {
            Some(entry) => entry.set = entry.set.union(&replicas),
            None => entries.push(fresh),
        }
    }
    encode(object, entries);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(manager: &str, operation: &str, api_version: &str, subresource: &str, fields: Value) -> Value {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": api_version, "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            entry["subresource"] = json!(subresource);
        }
        entry
    }

    #[test]
    fn replicas_change_hands_through_a_scale() {
        let both = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let mut object = json!({"metadata": {"managedFields": [entry("one", "Apply", "apps/v1", "", both.clone())]}});
        let mut scale = json!({});
        books_of_scale(&object, "spec.replicas", &mut scale);
        assert_eq!(scale["metadata"]["managedFields"], json!([entry("one", "Apply", "autoscaling/v1", "", json!({"f:spec": {"f:replicas": {}}}))]));
        let unchanged = object.clone();
        take_books_of_scale(&mut object, "spec.replicas", "apps/v1", &scale);
        assert_eq!(object, unchanged);
        scale["metadata"]["managedFields"] = json!([entry("two", "Update", "autoscaling/v1", "scale", json!({"f:spec": {"f:replicas": {}}}))]);
        take_books_of_scale(&mut object, "spec.replicas", "apps/v1", &scale);
        let books = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        assert!(books.contains(&entry("one", "Apply", "apps/v1", "", json!({"f:spec": {"f:paused": {}}}))), "{books:?}");
        assert!(books.contains(&entry("two", "Update", "apps/v1", "scale", json!({"f:spec": {"f:replicas": {}}}))), "{books:?}");
    }
}
