//! Lease of coordination.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{int, made, take, text, within},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("coordination.k8s.io", "v1", "Lease", "leases").conditional_update().create_on_update().hooks(Leases)
}

struct Leases;

/// Fields of coordinated leader election, which is off.
fn drop_disabled(lease: &mut Value) {
    within(lease, "spec", |spec| {
        take(spec, "strategy");
        take(spec, "preferredHolder");
    });
}

impl Hooks for Leases {
    fn default(&self, lease: &mut Value) {
        made(lease, "spec");
    }
    fn prepare_create(&self, lease: &mut Value) {
        drop_disabled(lease);
    }
    fn prepare_update(&self, lease: &mut Value, _old: &Value) {
        drop_disabled(lease);
    }
    fn validate(&self, lease: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(lease), Path::new("spec"));
        if let Some(seconds) = int(spec, "leaseDurationSeconds")
            && seconds <= 0
        {
            errors.invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        checks::not_negative(spec, "leaseTransitions", &path, errors);
    }
    fn cells(&self, lease: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(lease), json!(text(workload::spec(lease), "holderIdentity")), table::age(lease, now_unix_s)]
    }
}
