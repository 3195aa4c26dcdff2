//! CSIStorageCapacity of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{member, text},
    },
    names, selector,
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities").conditional_update().hooks(CsiStorageCapacities)
}

struct CsiStorageCapacities;

impl Hooks for CsiStorageCapacities {
    fn validate(&self, capacity: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = Path::root();
        let class = text(capacity, "storageClassName");
        errors.invalid_all(&root.child("storageClassName"), class, names::dns1123_subdomain(class));
        for key in ["capacity", "maximumVolumeSize"] {
            if let Some(value) = member(capacity, key) {
                checks::quantity_not_negative(value, &root.child(key), errors);
            }
        }
        if let Some(topology) = member(capacity, "nodeTopology") {
            selector::validate(topology, &root.child("nodeTopology"), errors);
        }
        if let Some(old) = old {
            for key in ["nodeTopology", "storageClassName"] {
                checks::immutable(capacity.get(key), old.get(key), &root.child(key), errors);
            }
        }
    }
}
