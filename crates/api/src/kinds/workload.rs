//! What workloads (Deployment, ReplicaSet, DaemonSet, StatefulSet, ...) share: selectors, strategies, counters, columns.

use super::{
    checks,
    pod::template,
    values::{int, is_empty, list, member, text},
};
use crate::{
    field::{Errors, Path},
    internal, selector, table,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The spec of an object, null if there is none.
pub fn spec(object: &Value) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}
/// The status of an object, null if there is none.
pub fn status(object: &Value) -> &Value {
    object.get("status").unwrap_or(&Value::Null)
}

/// The selector of a Deployment or ReplicaSet: needed, not empty, well-formed. Of one that selects, the template is checked too.
pub fn required_selector(spec: &Value, path: &Path, errors: &mut Errors) {
    let at = path.child("selector");
    match member(spec, "selector") {
        None => errors.required(at.clone(), ""),
        Some(selector) => {
            selector::validate(selector, &at, errors);
            if is_everything(selector) {
                errors.invalid_structure(at.clone(), &internal::selector(Some(selector)), "empty selector is invalid for deployment");
            }
        }
    }
    let selector = spec.get("selector").unwrap_or(&Value::Null);
    if is_selector(selector) {
        template::validate_running(spec, "ReplicaSet", Some(selector), &path.child("template"), errors);
    } else {
        errors.invalid_structure(at, &internal::selector(Some(selector)), "invalid label selector");
    }
}
/// Whether a LabelSelector object is one.
pub fn is_selector(selector: &Value) -> bool {
    let mut errors = Errors::default();
    selector::validate(selector, &Path::root(), &mut errors);
    errors.is_empty()
}
/// Whether a selector names no label at all.
pub fn is_everything(selector: &Value) -> bool {
    ["matchLabels", "matchExpressions"].iter().all(|key| selector.get(key).is_none_or(is_empty))
}
/// A selector may not change.
pub fn immutable_selector(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if member(spec, "selector") != member(old, "selector") {
        errors.invalid_structure(path.child("selector"), &internal::selector(spec.get("selector")), checks::IMMUTABLE);
    }
}

/// Counters of a status: not negative, and those that count a part of the `replicas` not above them.
pub fn counters(status: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    checks::not_negatives(status, keys, path, errors);
    let replicas = int(status, "replicas").unwrap_or(0);
    let part = |key: &&&str| key.ends_with("Replicas") && !matches!(**key, "unavailableReplicas" | "terminatingReplicas");
    for key in keys.iter().filter(part) {
        if let Some(count) = int(status, key).filter(|count| *count > replicas) {
            errors.invalid(path.child(key), count, "cannot be greater than status.replicas");
        }
    }
}
/// `availableReplicas` is not above `readyReplicas`.
pub fn available_within_ready(status: &Value, path: &Path, detail: &str, errors: &mut Errors) {
    let available = int(status, "availableReplicas").unwrap_or(0);
    if available > int(status, "readyReplicas").unwrap_or(0) {
        errors.invalid(path.child("availableReplicas"), available, detail);
    }
}
/// `collisionCount` only grows.
pub fn collision_count(status: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if let Some(before) = int(old, "collisionCount") {
        match int(status, "collisionCount") {
            Some(now) if now >= before => {}
            now => errors.invalid(path.child("collisionCount"), now.unwrap_or(0), "cannot be decremented"),
        }
    }
}

/// A count for a cell: 0 if there is none.
pub fn count(parent: &Value, key: &str) -> Value {
    json!(int(parent, key).unwrap_or(0))
}
/// `ready/wanted`.
pub fn ready_of(ready: Option<i64>, wanted: Option<i64>) -> Value {
    json!(format!("{}/{}", ready.unwrap_or(0), wanted.unwrap_or(0)))
}
/// The cells `Containers`, `Images` and `Selector`.
pub fn wide(spec: &Value, selector: String) -> [Value; 3] {
    let (containers, images) = template::containers_and_images(spec.get("template").unwrap_or(&Value::Null));
    [json!(containers), json!(images), json!(selector)]
}
/// Where a load balancer can be reached, by its status: addresses or else names, sorted, each once.
pub fn load_balancer_addresses(status: &Value) -> BTreeSet<&str> {
    let ingress = status.get("loadBalancer").map(|balancer| list(balancer, "ingress")).unwrap_or_default().iter();
    let address = |ingress| [text(ingress, "ip"), text(ingress, "hostname")].into_iter().find(|address| !address.is_empty());
    ingress.filter_map(address).collect()
}
/// A LabelSelector as a cell.
pub fn selector_text(spec: &Value) -> String {
    table::selector_text(spec.get("selector"))
}
