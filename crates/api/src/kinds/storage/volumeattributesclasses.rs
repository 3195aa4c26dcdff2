//! VolumeAttributesClass of storage.k8s.io.

use super::storageclasses;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::values::{map, text},
    object::ObjectExt,
    table,
};
use serde_json::{Map, Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "VolumeAttributesClass", "volumeattributesclasses").short(&["vac"]).hooks(VolumeAttributesClasses)
}

struct VolumeAttributesClasses;

impl Hooks for VolumeAttributesClasses {
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            for key in ["driverName", "parameters"] {
                if class.get(key) != old.get(key) {
                    errors.forbidden(Path::new(key), &format!("updates to {key} are forbidden."));
                }
            }
        }
        storageclasses::provisioner(class, "driverName", errors);
        storageclasses::parameters(class, errors);
        if map(class, "parameters").is_none_or(Map::is_empty) {
            errors.required(Path::new("parameters"), "must contain at least one key/value pair");
        }
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        let default = class.annotation("volumeattributesclass.alpha.kubernetes.io/is-default-class") == Some("true");
        let name = if default { format!("{} (default)", class.name()) } else { class.name().to_string() };
        vec![json!(name), json!(text(class, "driverName")), table::age(class, now_unix_s)]
    }
}
