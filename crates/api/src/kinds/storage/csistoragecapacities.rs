//! CSIStorageCapacity of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::warnings,
        values::{entries, list, member, text},
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
        if let Some(topology) = member(capacity, "nodeTopology") {
            selector::validate(topology, &root.child("nodeTopology"), errors);
        }
        let class = text(capacity, "storageClassName");
        errors.invalid_all(&root.child("storageClassName"), class, names::dns1123_subdomain(class));
        if let Some(value) = member(capacity, "capacity") {
            checks::quantity_not_negative(value, &root.child("capacity"), errors);
        }
        if let Some(old) = old {
            let (new_topology, old_topology) = (capacity.get("nodeTopology"), old.get("nodeTopology"));
            checks::immutable_structure("meta.v1.LabelSelector", new_topology, old_topology, &root.child("nodeTopology"), errors);
            checks::immutable(capacity.get("storageClassName"), old.get("storageClassName"), &root.child("storageClassName"), errors);
        }
    }
    fn warnings(&self, capacity: &Value, _old: Option<&Value>) -> Vec<String> {
        let Some(topology) = member(capacity, "nodeTopology") else { return vec![] };
        let path = Path::new("nodeTopology");
        let named = entries(topology, "matchLabels").map(|(key, _)| (path.child("matchLabels").key(key), key.as_str()));
        let expressions = list(topology, "matchExpressions").iter().enumerate();
        let required = expressions.map(|(i, e)| (path.child("matchExpressions").index(i).child("key"), text(e, "key")));
        named.chain(required).filter_map(|(path, key)| Some(format!("{path}: {}", warnings::old_label(key)?))).collect()
    }
}
