//! Deployment of apps.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::template,
        values::{fill, fill_absent, has, int, made, member, put, text},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "Deployment", "deployments")
        .short(&["deploy"])
        .categories(&["all"])
        .generation()
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
        .hooks(Deployments)
}

struct Deployments;

impl Hooks for Deployments {
    fn default(&self, deployment: &mut Value) {
        let spec = made(deployment, "spec");
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "progressDeadlineSeconds", 600);
        let strategy = made(spec, "strategy");
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            let rolling = made(strategy, "rollingUpdate");
            fill_absent(rolling, "maxUnavailable", "25%");
            fill_absent(rolling, "maxSurge", "25%");
        }
        template::default(spec);
    }
    fn prepare_create(&self, deployment: &mut Value) {
        template::drop_disabled(deployment);
        put(deployment, "status", json!({}));
    }
    fn prepare_update(&self, deployment: &mut Value, old: &Value) {
        template::drop_disabled(deployment);
        // Annotations of a Deployment go on to its ReplicaSets: a change of them is work for its controller.
        if deployment.annotations() != old.annotations() {
            deployment.set("metadata.generation", old.generation() + 1);
        }
    }
    fn prepare_status(&self, deployment: &mut Value, old: &Value) {
        match old.at("metadata.labels") {
            Some(labels) => deployment.set("metadata.labels", labels.clone()),
            None => drop(deployment.remove("metadata.labels")),
        }
    }
    fn validate(&self, deployment: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(deployment), Path::new("spec"));
        checks::not_negative(spec, "replicas", &path, errors);
        workload::required_selector(spec, &path, errors);
        strategy(spec, &path, errors);
        checks::not_negatives(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &path, errors);
        if let Some(deadline) = int(spec, "progressDeadlineSeconds")
            && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
        {
            errors.invalid(path.child("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds");
        }
        if let Some(old) = old {
            workload::immutable_selector(spec, workload::spec(old), &path, errors);
        }
    }
    fn validate_status(&self, deployment: &Value, old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(deployment), Path::new("status"));
        let keys = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        workload::counters(status, &keys, &path, errors);
        workload::available_within_ready(status, &path, "cannot be greater than readyReplicas", errors);
        workload::collision_count(status, workload::status(old), &path, errors);
    }
    fn warnings(&self, deployment: &Value, old: Option<&Value>) -> Vec<String> {
        crate::kinds::pod::warnings::workload(deployment, old, true)
    }
    fn cells(&self, deployment: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(deployment), workload::status(deployment));
        let mut cells = vec![
            table::name(deployment),
            workload::ready_of(int(status, "readyReplicas"), int(spec, "replicas")),
            workload::count(status, "updatedReplicas"),
            workload::count(status, "availableReplicas"),
            table::age(deployment, now_unix_s),
        ];
        cells.extend(workload::wide(spec, workload::selector_text(spec)));
        cells
    }
}

fn strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let nothing = Value::Null;
    let strategy = spec.get("strategy").unwrap_or(&nothing);
    let path = path.child("strategy");
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => {
            errors.forbidden(path.child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let Some(rolling) = member(strategy, "rollingUpdate") else {
                return errors.required(path.child("rollingUpdate"), "this should be defaulted and never be nil");
            };
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (member(rolling, "maxUnavailable"), member(rolling, "maxSurge"));
            checks::count_or_percent(unavailable.unwrap_or(&nothing), &path.child("maxUnavailable"), errors);
            checks::count_or_percent(surge.unwrap_or(&nothing), &path.child("maxSurge"), errors);
            if checks::plain_number(unavailable) == 0 && checks::plain_number(surge) == 0 {
                errors.invalid(path.child("maxUnavailable"), unavailable.cloned().unwrap_or(json!(0)), "may not be 0 when `maxSurge` is 0");
            }
            checks::not_over_100_percent(unavailable.unwrap_or(&nothing), &path.child("maxUnavailable"), errors);
        }
        other => {
            let shown = internal::fields([("Type", json!(other)), ("RollingUpdate", Value::Null)]);
            errors.not_supported_structure(path, &shown, &["Recreate", "RollingUpdate"]);
        }
    }
}
