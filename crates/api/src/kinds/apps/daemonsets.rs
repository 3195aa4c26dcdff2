//! DaemonSet of apps.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::template,
        values::{fill, has, made, member, put, text},
        workload,
    },
    object::ObjectExt,
    selector, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "DaemonSet", "daemonsets").short(&["ds"]).categories(&["all"]).generation().status().hooks(DaemonSets)
}

const COUNTERS: &[&str] = &["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];

/// The template's generation.
const GENERATION: &str = "deprecated.daemonset.template.generation";

struct DaemonSets;

/// The generation that an annotation tells of.
fn generation(set: &Value) -> i64 {
    set.annotation(GENERATION).and_then(|said| said.parse().ok()).unwrap_or(0)
}

impl Hooks for DaemonSets {
    fn default(&self, set: &mut Value) {
        let spec = made(set, "spec");
        fill(spec, "revisionHistoryLimit", 10);
        let strategy = made(spec, "updateStrategy");
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            let rolling = made(strategy, "rollingUpdate");
            fill(rolling, "maxUnavailable", 1);
            fill(rolling, "maxSurge", 0);
        } else if has(strategy, "rollingUpdate") {
            fill(made(strategy, "rollingUpdate"), "maxSurge", 0);
        }
        template::default(spec);
        // Only kept for clients of an older API, which read it back: what counts is what the server makes of it.
        if set.annotation(GENERATION).is_none() {
            set.set_annotation(GENERATION, "0");
        }
    }
    fn prepare_create(&self, set: &mut Value) {
        template::drop_disabled(set);
        put(set, "status", COUNTERS.iter().map(|key| (key.to_string(), json!(0))).collect::<serde_json::Map<_, _>>());
        set.set_annotation(GENERATION, &generation(set).max(1).to_string());
    }
    /// The template's generation is a counter in an annotation.
    fn prepare_update(&self, set: &mut Value, old: &Value) {
        template::drop_disabled(set);
        let changed = workload::spec(set).get("template") != workload::spec(old).get("template");
        set.set_annotation(GENERATION, &generation(old).saturating_add(i64::from(changed)).to_string());
    }
    fn prepare_status(&self, set: &mut Value, old: &Value) {
        if let Some(counted) = old.annotation(GENERATION) {
            set.set_annotation(GENERATION, counted);
        }
    }
    fn validate(&self, set: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(set), Path::new("spec"));
        if let Some(old) = old {
            workload::immutable_selector(spec, workload::spec(old), &path, errors);
        }
        if let Some(selector) = member(spec, "selector") {
            selector::validate(selector, &path.child("selector"), errors);
            if workload::is_everything(selector) {
                errors.invalid_structure(path.child("selector"), &internal::selector(Some(selector)), "empty selector is invalid for daemonset");
            }
        }
        template::validate_running(spec, "DaemonSet", Some(spec.get("selector").unwrap_or(&Value::Null)), &path.child("template"), errors);
        checks::not_negative(spec, "minReadySeconds", &path, errors);
        strategy(spec, &path, errors);
        checks::not_negative(spec, "revisionHistoryLimit", &path, errors);
    }
    fn validate_status(&self, set: &Value, old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(set), Path::new("status"));
        checks::not_negatives(status, COUNTERS, &path, errors);
        checks::not_negatives(
            status,
            &["observedGeneration", "updatedNumberScheduled", "numberAvailable", "numberUnavailable", "collisionCount"],
            &path,
            errors,
        );
        workload::collision_count(status, workload::status(old), &path, errors);
    }
    fn warnings(&self, set: &Value, old: Option<&Value>) -> Vec<String> {
        crate::kinds::pod::warnings::workload(set, old, false)
    }
    fn cells(&self, set: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(set), workload::status(set));
        let mut cells = vec![
            table::name(set),
            workload::count(status, "desiredNumberScheduled"),
            workload::count(status, "currentNumberScheduled"),
            workload::count(status, "numberReady"),
            workload::count(status, "updatedNumberScheduled"),
            workload::count(status, "numberAvailable"),
            json!(table::labels_text(spec.at("template.spec.nodeSelector"))),
            table::age(set, now_unix_s),
        ];
        cells.extend(workload::wide(spec, workload::selector_text(spec)));
        cells
    }
}

fn strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let nothing = Value::Null;
    let strategy = spec.get("updateStrategy").unwrap_or(&nothing);
    let path = path.child("updateStrategy");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if !has(strategy, "rollingUpdate") => errors.required(path.child("rollingUpdate"), ""),
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (member(rolling, "maxUnavailable"), member(rolling, "maxSurge"));
            for (value, key) in [(unavailable, "maxUnavailable"), (surge, "maxSurge")] {
                checks::count_or_percent(value.unwrap_or(&nothing), &path.child(key), errors);
            }
            for (value, key) in [(unavailable, "maxUnavailable"), (surge, "maxSurge")] {
                checks::not_over_100_percent(value.unwrap_or(&nothing), &path.child(key), errors);
            }
            let (has_unavailable, has_surge) = (checks::plain_number(unavailable) != 0, checks::plain_number(surge) != 0);
            if has_unavailable && has_surge {
                errors.invalid(path.child("maxSurge"), surge.cloned().unwrap_or_default(), "may not be set when maxUnavailable is non-zero");
            }
            if !has_unavailable && !has_surge {
                errors.required(path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
            }
        }
        other => {
            let shown = internal::fields([("Type", json!(other)), ("RollingUpdate", Value::Null)]);
            errors.not_supported_structure(path, &shown, &["RollingUpdate", "OnDelete"]);
        }
    }
}
