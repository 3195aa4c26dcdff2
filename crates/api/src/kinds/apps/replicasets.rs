//! ReplicaSet of apps.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::template,
        values::{fill, made, put},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .categories(&["all"])
        .generation()
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
        .hooks(ReplicaSets)
}

struct ReplicaSets;

/// Rules for the status of a ReplicaSet or ReplicationController.
pub fn validate_status(object: &Value, errors: &mut Errors) {
    let (status, path) = (workload::status(object), Path::new("status"));
    workload::counters(status, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"], &path, errors);
    workload::available_within_ready(status, &path, "cannot be greater than readyReplicas", errors);
}

/// The cells of a ReplicaSet or ReplicationController.
pub fn cells(object: &Value, selector: String, now_unix_s: i64) -> Vec<Value> {
    let (spec, status) = (workload::spec(object), workload::status(object));
    let mut cells = vec![
        table::name(object),
        workload::count(spec, "replicas"),
        workload::count(status, "replicas"),
        workload::count(status, "readyReplicas"),
        table::age(object, now_unix_s),
    ];
    cells.extend(workload::wide(spec, selector));
    cells
}

impl Hooks for ReplicaSets {
    fn default(&self, set: &mut Value) {
        let spec = made(set, "spec");
        fill(spec, "replicas", 1);
        template::default(spec);
    }
    fn prepare_create(&self, set: &mut Value) {
        template::drop_disabled(set);
        put(set, "status", json!({"replicas": 0}));
    }
    fn prepare_update(&self, set: &mut Value, _old: &Value) {
        template::drop_disabled(set);
    }
    fn validate(&self, set: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(set), Path::new("spec"));
        checks::not_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
        workload::required_selector(spec, &path, errors);
        if let Some(old) = old {
            workload::immutable_selector(spec, workload::spec(old), &path, errors);
        }
    }
    fn validate_status(&self, set: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(set, errors);
    }
    fn warnings(&self, set: &Value, old: Option<&Value>) -> Vec<String> {
        crate::kinds::pod::warnings::workload(set, old, true)
    }
    fn cells(&self, set: &Value, now_unix_s: i64) -> Vec<Value> {
        cells(set, workload::selector_text(workload::spec(set)), now_unix_s)
    }
}
