//! ResourceQuota.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::resources,
        values::{entries, list, made, member, put, strings, text},
        workload,
    },
    names,
    quantity::Quantity,
    table,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ResourceQuota", "resourcequotas").short(&["quota"]).status().hooks(ResourceQuotas)
}

const COMPUTE: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
/// What is counted by number under a name of its own.
pub const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
const SCOPES: &[&str] =
    &["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity", "VolumeAttributesClass"];
/// Scopes that only ask whether a pod is in them.
const PLAIN_SCOPES: &[&str] = &["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "CrossNamespacePodAffinity"];
const POD_COMPUTE: &[&str] = &["pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

struct ResourceQuotas;

impl Hooks for ResourceQuotas {
    fn default(&self, quota: &mut Value) {
        made(quota, "spec");
    }
    fn prepare_create(&self, quota: &mut Value) {
        put(quota, "status", json!({}));
    }
    fn validate(&self, quota: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(quota), Path::new("spec"));
        hard(spec, &path.child("hard"), errors);
        scopes(spec, &path, errors);
        if let Some(old) = old {
            let set = |spec: &Value| strings(spec, "scopes").map(String::from).collect::<BTreeSet<_>>();
            if set(spec) != set(workload::spec(old)) {
                errors.invalid(path.child("scopes"), spec.get("scopes").cloned().unwrap_or_default(), checks::IMMUTABLE);
            }
        }
    }
    fn validate_status(&self, quota: &Value, _old: &Value, errors: &mut Errors) {
        for key in ["hard", "used"] {
            hard(&json!({"hard": workload::status(quota).get(key)}), &Path::new("status").child(key), errors);
        }
    }
    fn cells(&self, quota: &Value, now_unix_s: i64) -> Vec<Value> {
        let status = workload::status(quota);
        let shown = |limits: bool| {
            let parts: Vec<String> = entries(status, "hard")
                .filter(|(name, _)| name.starts_with("limits.") == limits)
                .map(|(name, hard)| {
                    let quantity =
                        |value: Option<&Value>| value.and_then(|v| Quantity::from_value(v).ok()).map_or("0".to_string(), |q| q.to_string());
                    format!("{name}: {}/{}", quantity(status.get("used").and_then(|used| used.get(name))), quantity(Some(hard)))
                })
                .collect();
            json!(parts.join(", "))
        };
        vec![table::name(quota), shown(false), shown(true), table::age(quota, now_unix_s)]
    }
}

/// Whether a name without a domain is one of the resources that quotas know.
pub fn is_quota_name(name: &str) -> bool {
    COMPUTE.contains(&name) || COUNTED.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

fn hard(spec: &Value, path: &Path, errors: &mut Errors) {
    for (name, value) in entries(spec, "hard") {
        let at = path.key(name);
        let problems = names::qualified_name(name);
        let good = problems.is_empty();
        errors.invalid_all(&at, name.as_str(), problems);
        if good && !name.contains('/') && !is_quota_name(name) {
            errors.invalid(at.clone(), name.as_str(), "must be a standard resource type or fully qualified");
        }
        if !name.contains('/') && !is_quota_name(name) {
            errors.invalid(at.clone(), name.as_str(), "must be a standard resource for quota");
        }
        resources::quantity(name, value, &at, errors);
    }
}

/// Whether a scope says anything about a resource.
fn applies(scope: &str, resource: &str) -> bool {
    match scope {
        // What Kubernetes does not know may be anything.
        _ if !is_quota_name(resource) => true,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "CrossNamespacePodAffinity" | "PriorityClass" | "Terminating" | "NotTerminating" | "NotBestEffort" => {
            POD_COMPUTE.contains(&resource) || resource.contains("ephemeral-storage")
        }
        _ => true,
    }
}

fn scopes(spec: &Value, path: &Path, errors: &mut Errors) {
    // Of other resources no scope says anything.
    let hard: Vec<&String> = entries(spec, "hard").map(|(name, _)| name).filter(|name| is_quota_name(name)).collect();
    let all: Vec<&str> = strings(spec, "scopes").collect();
    let at = path.child("scopes");
    check_scopes(&all, &hard, &at, &json!(all), errors);
    let Some(selector) = member(spec, "scopeSelector") else { return };
    let at = path.child("scopeSelector").child("matchExpressions");
    let mut seen = vec![];
    for expression in list(selector, "matchExpressions") {
        if errors.is_full() {
            return;
        }
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        let values = list(expression, "values");
        if !SCOPES.contains(&scope) {
            errors.invalid(at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in hard.iter().filter(|resource| !applies(scope, resource)) {
            if errors.is_full() {
                return;
            }
            let shown = internal::show("core.v1.ScopeSelector", selector);
            errors.invalid_structure(at.clone(), &shown, "unsupported scope applied to resource");
        }
        if PLAIN_SCOPES.contains(&scope) && operator != "Exists" {
            errors.invalid(at.child("operator"), operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(at.child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                at.child("values"),
                Value::from(values.to_vec()),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(at.child("operator"), other, "not a valid selector operator"),
        }
        seen.push(scope);
    }
    if conflict(&seen) {
        errors.invalid(at, spec.get("scopes").cloned().unwrap_or_default(), "conflicting scopes");
    }
}
fn conflict(scopes: &[&str]) -> bool {
    let both = |a: &str, b: &str| scopes.contains(&a) && scopes.contains(&b);
    both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating")
}
fn check_scopes(all: &[&str], hard: &[&String], at: &Path, shown: &Value, errors: &mut Errors) {
    for scope in all {
        if errors.is_full() {
            break;
        }
        if !SCOPES.contains(scope) {
            errors.invalid(at.clone(), shown.clone(), "unsupported scope");
        }
        for _ in hard.iter().filter(|resource| !applies(scope, resource)) {
            if errors.is_full() {
                return;
            }
            errors.invalid(at.clone(), shown.clone(), "unsupported scope applied to resource");
        }
    }
    if conflict(all) {
        errors.invalid(at.clone(), shown.clone(), "conflicting scopes");
    }
}
