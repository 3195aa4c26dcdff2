//! ResourceSlice of resource.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{checks, values::text, workload},
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")
        .generation()
        .selectable(&["spec.nodeName", "spec.driver"])
        .hooks(ResourceSlices)
}

struct ResourceSlices;

impl Hooks for ResourceSlices {
    fn validate(&self, slice: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            for key in ["spec.driver", "spec.nodeName", "spec.pool.name"] {
                checks::immutable(slice.at(key), old.at(key), &Path::new(key), errors);
            }
        }
    }
    fn cells(&self, slice: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(slice);
        vec![
            table::name(slice),
            json!(text(spec, "nodeName")),
            json!(text(spec, "driver")),
            json!(spec.str_at("pool.name").unwrap_or_default()),
            table::age(slice, now_unix_s),
        ]
    }
}
