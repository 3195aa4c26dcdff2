//! Checks of `metadata` that are the same for every kind.

use crate::{Kind, Value, field};

/// On create: names, labels, annotations, finalizers, owners, managed fields.
pub fn validate_create(_object: &Value, _kind: &Kind, _errors: &mut field::Errors) {}
/// On update: the same, and what may not change.
pub fn validate_update(_object: &Value, _old: &Value, _kind: &Kind, _errors: &mut field::Errors) {}
