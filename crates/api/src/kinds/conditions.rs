//! Conditions in the form that newer kinds share (`metav1.Condition`).

use super::{
    checks,
    values::{has, int, list, text},
};
use crate::{
    field::{Errors, Path},
    names,
};
use serde_json::Value;

/// Values of a condition's `status`.
pub const STATUSES: &[&str] = &["False", "True", "Unknown"];

/// Checks `conditions` of a status.
pub fn validate(status: &Value, path: &Path, errors: &mut Errors) {
    let conditions = list(status, "conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.child("conditions").index(i);
        let kind = text(condition, "type");
        if conditions[..i].iter().any(|other| text(other, "type") == kind) {
            errors.duplicate(path.child("type"), kind);
        }
        if checks::required(condition, "type", &path, errors) {
            errors.invalid_all(&path.child("type"), kind, names::qualified_name(kind));
        }
        if !STATUSES.contains(&text(condition, "status")) {
            errors.not_supported(path.child("status"), text(condition, "status"), STATUSES);
        }
        if int(condition, "observedGeneration").is_some_and(|g| g < 0) {
            errors.invalid(
                path.child("observedGeneration"),
                int(condition, "observedGeneration").unwrap_or(0),
                "must be greater than or equal to zero",
            );
        }
        if !has(condition, "lastTransitionTime") {
            errors.required(path.child("lastTransitionTime"), "");
        }
        checks::required(condition, "reason", &path, errors);
    }
}
