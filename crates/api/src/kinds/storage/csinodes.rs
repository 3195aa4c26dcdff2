//! CSINode of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::volumes::csi_driver,
        values::{list, made, text},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "CSINode", "csinodes").conditional_update().hooks(CsiNodes)
}

struct CsiNodes;

impl Hooks for CsiNodes {
    fn default(&self, node: &mut Value) {
        made(node, "spec");
    }
    fn validate(&self, node: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let drivers = list(workload::spec(node), "drivers");
        for (i, driver) in drivers.iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(i);
            checks::required_checked(driver, "name", &path, csi_driver, errors);
            checks::required(driver, "nodeID", &path, errors);
            if drivers[..i].iter().any(|other| text(other, "name") == text(driver, "name")) {
                errors.duplicate(path.child("name"), text(driver, "name"));
            }
        }
    }
    fn cells(&self, node: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(node), json!(list(workload::spec(node), "drivers").len()), table::age(node, now_unix_s)]
    }
}
