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
const REASON_BYTES_MAX: usize = 1024;
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
const REASON_FORM: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

/// Checks `conditions` of a status.
pub fn validate(status: &Value, path: &Path, errors: &mut Errors) {
    for (i, condition, again) in checks::distinct(list(status, "conditions"), |condition| text(condition, "type")) {
        let path = path.child("conditions").index(i);
        let kind = text(condition, "type");
        if again {
            errors.duplicate(path.child("type"), kind);
        }
        errors.invalid_all(&path.child("type"), kind, names::qualified_name(kind));
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
        if checks::required(condition, "reason", &path, errors) {
            let reason = text(condition, "reason");
            if !is_reason(reason) {
                errors.invalid(path.child("reason"), reason, REASON_FORM);
            }
            if reason.len() > REASON_BYTES_MAX {
                errors.too_long(path.child("reason"), reason, REASON_BYTES_MAX);
            }
        }
        let message = text(condition, "message");
        if message.len() > MESSAGE_BYTES_MAX {
            errors.too_long(path.child("message"), message, MESSAGE_BYTES_MAX);
        }
    }
}

fn is_reason(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(good) && !text.ends_with([',', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words() {
        for (text, good) in [("A", true), ("my_name", true), ("A:B,c9_", true), ("9a", false), ("a b", false), ("a:", false), ("", false)] {
            assert_eq!(is_reason(text), good, "{text}");
        }
    }
}
