//! ConfigMap.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{entries, flag, map, member},
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ConfigMap", "configmaps").short(&["cm"]).hooks(ConfigMaps)
}

/// Bytes of all data of a ConfigMap or Secret.
const DATA_BYTES_MAX: usize = 1024 * 1024;

struct ConfigMaps;

/// Bytes that a text in base64 stands for.
pub fn decoded_bytes(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

/// The total size of data.
pub fn check_size(bytes: usize, path: Path, errors: &mut Errors) {
    if bytes > DATA_BYTES_MAX {
        errors.too_long(path, "", DATA_BYTES_MAX);
    }
}

/// What is `immutable` stays as it is, and stays so.
pub fn check_immutable(object: &Value, old: &Value, keys: &[&str], errors: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !flag(object, "immutable") {
        errors.forbidden(Path::new("immutable"), DETAIL);
    }
    for key in keys {
        let said = |object: &Value| member(object, key).filter(|v| !crate::kinds::values::is_empty(v)).cloned();
        if said(object) != said(old) {
            errors.forbidden(Path::new(key), DETAIL);
        }
    }
}

impl Hooks for ConfigMaps {
    fn validate(&self, config: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            check_immutable(config, old, &["data", "binaryData"], errors);
        }
        let mut bytes = 0;
        for (key, value) in entries(config, "data") {
            errors.invalid_all(&Path::new("data").key(key), key.as_str(), checks::config_key(key));
            if map(config, "binaryData").is_some_and(|binary| binary.contains_key(key)) {
                errors.invalid(Path::new("data").key(key), key.as_str(), "duplicate of key present in binaryData");
            }
            bytes += value.as_str().map_or(0, str::len);
        }
        for (key, value) in entries(config, "binaryData") {
            errors.invalid_all(&Path::new("binaryData").key(key), key.as_str(), checks::config_key(key));
            bytes += value.as_str().map_or(0, decoded_bytes);
        }
        check_size(bytes, Path::new("[]"), errors);
    }
    fn cells(&self, config: &Value, now_unix_s: i64) -> Vec<Value> {
        let count = entries(config, "data").count() + entries(config, "binaryData").count();
        vec![table::name(config), json!(count), table::age(config, now_unix_s)]
    }
}
