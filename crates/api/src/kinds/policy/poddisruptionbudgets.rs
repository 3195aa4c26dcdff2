//! PodDisruptionBudget of policy.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain, NameRule},
    kinds::{
        checks, conditions,
        values::{has, int, made, member, put},
        workload,
    },
    selector, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .generation()
        .names(NameRule::PathSegment)
        .conditional_update()
        .status()
        .metadata_again(MetadataAgain::Never)
        .hooks(PodDisruptionBudgets)
}

const COUNTERS: &[&str] = &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];

struct PodDisruptionBudgets;

impl Hooks for PodDisruptionBudgets {
    fn default(&self, budget: &mut Value) {
        made(budget, "spec");
    }
    fn prepare_create(&self, budget: &mut Value) {
        put(budget, "status", COUNTERS.iter().map(|key| (key.to_string(), json!(0))).collect::<serde_json::Map<_, _>>());
    }
    fn validate(&self, budget: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(budget), Path::new("spec"));
        if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
            let whole = internal::show("policy.v1.PodDisruptionBudgetSpec", spec);
            errors.invalid_structure(path.clone(), &whole, "minAvailable and maxUnavailable cannot be both set");
        }
        for key in ["minAvailable", "maxUnavailable"] {
            if let Some(value) = member(spec, key) {
                checks::count_or_percent(value, &path.child(key), errors);
                checks::not_over_100_percent(value, &path.child(key), errors);
            }
        }
        if let Some(selector) = member(spec, "selector") {
            selector::validate(selector, &path.child("selector"), errors);
        }
        checks::one_of(spec, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], &path, errors);
    }
    fn validate_status(&self, budget: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(budget), Path::new("status"));
        conditions::validate(status, &path, errors);
        checks::not_negatives(status, COUNTERS, &path, errors);
    }
    fn cells(&self, budget: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(budget);
        let shown = |key: &str| match member(spec, key) {
            None => json!("N/A"),
            Some(Value::String(text)) => json!(text),
            Some(other) => json!(other.to_string()),
        };
        vec![
            table::name(budget),
            shown("minAvailable"),
            shown("maxUnavailable"),
            json!(int(workload::status(budget), "disruptionsAllowed").unwrap_or(0)),
            table::age(budget, now_unix_s),
        ]
    }
}
