//! CSINode of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        pod::volumes::csi_driver,
        values::{int, list, made, take, text},
        workload,
    },
    names, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "CSINode", "csinodes").conditional_update().metadata_again(MetadataAgain::AsCreate).hooks(CsiNodes)
}

/// The longest name that a driver may have for a node.
const NODE_ID_CHARS_MAX: usize = 256;

struct CsiNodes;

impl Hooks for CsiNodes {
    fn default(&self, node: &mut Value) {
        made(node, "spec");
    }
    fn validate(&self, node: &Value, old: Option<&Value>, errors: &mut Errors) {
        let drivers = list(workload::spec(node), "drivers");
        for (i, driver, again) in checks::distinct(drivers, |driver| text(driver, "name")) {
            let path = Path::new("spec").child("drivers").index(i);
            csi_driver(text(driver, "name"), &path.child("name"), errors);
            checks::required(driver, "nodeID", &path, errors);
            if text(driver, "nodeID").len() > NODE_ID_CHARS_MAX {
                errors.invalid(path.child("nodeID"), text(driver, "nodeID"), &format!("must be {NODE_ID_CHARS_MAX} characters or less"));
            }
            if let Some(count) = driver.get("allocatable").and_then(|a| int(a, "count")).filter(|count| *count < 0) {
                errors.invalid(path.child("allocatable").child("count"), count, checks::NOT_NEGATIVE);
            }
            if again {
                errors.duplicate(path.child("name"), text(driver, "name"));
            }
            for (_, key, again) in checks::distinct(list(driver, "topologyKeys"), |key| key.as_str()) {
                let name = key.as_str().unwrap_or_default();
                if name.is_empty() {
                    errors.required(path.clone(), "");
                }
                if again {
                    errors.duplicate(path.clone(), name);
                }
                errors.invalid_all(&path, name, names::qualified_name(name));
            }
        }
        // A driver that is there stays as it is, but for how many volumes it can have.
        let now = checks::by_name(drivers);
        for before in old.map(|old| list(workload::spec(old), "drivers")).unwrap_or_default() {
            let Some(driver) = now.get(text(before, "name")) else { continue };
            let fixed = |driver: &Value| {
                let mut driver = driver.clone();
                take(&mut driver, "allocatable");
                driver
            };
            if fixed(driver) != fixed(before) {
                let shown = internal::show("storage.v1.CSINodeDriver", &fixed(driver));
                errors.invalid_structure(Path::new("spec").child("drivers"), &shown, checks::IMMUTABLE);
            }
        }
    }
    fn cells(&self, node: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(node), json!(list(workload::spec(node), "drivers").len()), table::age(node, now_unix_s)]
    }
}
