//! HorizontalPodAutoscaler of autoscaling, stored as `v2` and also served as `v1`, which knows one metric only.

use super::first_version;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::resources,
        values::{fill, fill_absent, has, int, list, made, member, put, text, within},
        workload,
    },
    names,
    quantity::Quantity,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .categories(&["all"])
        .served(&["v2", "v1"])
        .status()
        .hooks(HorizontalPodAutoscalers)
}

const UTILIZATION_DEFAULT: i64 = 80;
const PERIOD_MAX_S: i64 = 1800;
const STABILIZATION_MAX_S: i64 = 3600;
const METRICS_SHOWN_MAX: usize = 2;

struct HorizontalPodAutoscalers;

impl Hooks for HorizontalPodAutoscalers {
    fn to_stored(&self, version: &str, scaler: &mut Value) {
        if version == "v1" {
            first_version::read(scaler);
        }
    }
    fn from_stored(&self, version: &str, scaler: &mut Value) {
        if version == "v1" {
            first_version::write(scaler);
        }
    }
    fn default(&self, scaler: &mut Value) {
        let spec = made(scaler, "spec");
        fill(spec, "minReplicas", 1);
        if list(spec, "metrics").is_empty() {
            put(spec, "metrics", json!([first_version::cpu_metric(UTILIZATION_DEFAULT)]));
        }
        within(spec, "behavior", |behavior| {
            let up = made(behavior, "scaleUp");
            fill(up, "stabilizationWindowSeconds", 0);
            fill_absent(up, "selectPolicy", "Max");
            if up.get("policies").is_none_or(Value::is_null) {
                put(
                    up,
                    "policies",
                    json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
                );
            }
            let down = made(behavior, "scaleDown");
            fill_absent(down, "selectPolicy", "Max");
            if down.get("policies").is_none_or(Value::is_null) {
                put(down, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
            }
        });
    }
    fn prepare_create(&self, scaler: &mut Value) {
        put(scaler, "status", json!({"desiredReplicas": 0, "currentMetrics": null}));
    }
    fn validate(&self, scaler: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(scaler), Path::new("spec"));
        let minimum = int(spec, "minReplicas").unwrap_or(1);
        let maximum = int(spec, "maxReplicas").unwrap_or(0);
        // Scaling to zero is off, but an object that already says so may keep it.
        let zero = old.is_some_and(|old| int(workload::spec(old), "minReplicas") == Some(0));
        let lower = i64::from(!zero);
        if minimum < lower {
            errors.invalid(path.child("minReplicas"), minimum, &format!("must be greater than or equal to {lower}"));
        }
        match maximum {
            0 => errors.required(path.child("maxReplicas"), "must be set and greater than 0"),
            ..0 => errors.invalid(path.child("maxReplicas"), maximum, "must be greater than or equal to 1"),
            _ => {}
        }
        if maximum < minimum {
            errors.invalid(path.child("maxReplicas"), maximum, "must be greater than or equal to `minReplicas`");
        }
        let before = old.map(workload::spec);
        let target = spec.get("scaleTargetRef").unwrap_or(&Value::Null);
        let as_before = before.and_then(|before| before.get("scaleTargetRef")).is_some_and(|b| same_kind(b, target));
        let version = match text(target, "kind") {
            _ if as_before => TargetVersion::Any,
            "ReplicationController" => TargetVersion::Known,
            _ => TargetVersion::InGroup,
        };
        reference(target, version, &path.child("scaleTargetRef"), errors);
        let was_odd = before.is_some_and(|before| {
            list(before, "metrics")
                .iter()
                .filter_map(|metric| metric.get("object")?.get("describedObject"))
                .any(|o| TargetVersion::Known.problem(o).is_some())
        });
        let version = if was_odd { TargetVersion::Any } else { TargetVersion::Known };
        for (i, metric) in list(spec, "metrics").iter().enumerate() {
            validate_metric(metric, version, &path.child("metrics").index(i), errors);
        }
        let wakes = |metric: &Value| matches!(text(metric, "type"), "Object" | "External");
        if minimum == 0 && !list(spec, "metrics").iter().any(wakes) {
            errors.forbidden(path.child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas");
        }
        if let Some(behavior) = member(spec, "behavior") {
            for direction in ["scaleUp", "scaleDown"] {
                if let Some(rules) = member(behavior, direction) {
                    validate_rules(rules, &path.child("behavior").child(direction), errors);
                }
            }
        }
    }
    fn validate_status(&self, scaler: &Value, _old: &Value, errors: &mut Errors) {
        checks::not_negatives(workload::status(scaler), &["currentReplicas", "desiredReplicas"], &Path::new("status"), errors);
    }
    fn cells(&self, scaler: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(scaler), workload::status(scaler));
        let target = spec.get("scaleTargetRef").map(|r| format!("{}/{}", text(r, "kind"), text(r, "name"))).unwrap_or_default();
        let minimum = int(spec, "minReplicas").map_or("<unset>".to_string(), |n| n.to_string());
        vec![
            table::name(scaler),
            json!(target),
            json!(targets(list(spec, "metrics"), list(status, "currentMetrics"))),
            json!(minimum),
            json!(int(spec, "maxReplicas").unwrap_or(0)),
            json!(int(status, "currentReplicas").unwrap_or(0)),
            table::age(scaler, now_unix_s),
        ]
    }
}

/// What the `apiVersion` of a reference must be.
#[derive(Clone, Copy)]
enum TargetVersion {
    /// Anything: it was so before.
    Any,
    /// A version, of the core group too.
    Known,
    InGroup,
}

impl TargetVersion {
    fn problem(self, reference: &Value) -> Option<String> {
        let version = text(reference, "apiVersion");
        match (self, version.split('/').collect::<Vec<_>>().as_slice()) {
            (TargetVersion::Any, _) | (TargetVersion::Known, [_] | [_, _]) => None,
            (TargetVersion::InGroup, [group, _]) if !group.is_empty() => None,
            (_, [_] | [_, _]) => Some("apiVersion must specify API group".into()),
            _ => Some(format!("unexpected GroupVersion string: {version}")),
        }
    }
}

fn same_kind(a: &Value, b: &Value) -> bool {
    ["kind", "apiVersion"].iter().all(|key| text(a, key) == text(b, key))
}

fn reference(reference: &Value, version: TargetVersion, path: &Path, errors: &mut Errors) {
    for key in ["kind", "name"] {
        checks::required_checked(reference, key, path, checks::path_segment, errors);
    }
    if let Some(problem) = version.problem(reference) {
        errors.invalid(path.child("apiVersion"), text(reference, "apiVersion"), &problem);
    }
}

/// Members of a metric by its type.
const SOURCES: &[(&str, &str)] =
    &[("ContainerResource", "containerResource"), ("External", "external"), ("Object", "object"), ("Pods", "pods"), ("Resource", "resource")];

fn validate_metric(metric: &Value, version: TargetVersion, path: &Path, errors: &mut Errors) {
    let kind = text(metric, "type");
    let types: Vec<&str> = SOURCES.iter().map(|(kind, _)| *kind).collect();
    if kind.is_empty() {
        errors.required(path.child("type"), "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, key)| *key);
    if expected.is_none() {
        errors.not_supported(path.child("type"), kind, &types);
    }
    let said: Vec<&str> = ["object", "external", "pods", "resource", "containerResource"].into_iter().filter(|key| has(metric, key)).collect();
    // Of several, only the first is looked at.
    if let Some(first) = said.first() {
        validate_source(first, &metric[*first], version, &path.child(first), errors);
    }
    match expected {
        // Said once for the type and once for the source that it should name.
        None => errors.not_supported(path.child("type"), kind, &types),
        Some(expected) if !said.contains(&expected) => {
            errors.required(path.child(expected), "must populate information for the given metric source");
        }
        Some(_) => {}
    }
    for key in said.iter().filter(|key| said.len() > 1 && Some(**key) != expected) {
        errors.forbidden(path.child(key), "must populate the given metric source only");
    }
}

fn validate_source(name: &str, source: &Value, version: TargetVersion, path: &Path, errors: &mut Errors) {
    let nothing = Value::Null;
    let target = source.get("target").unwrap_or(&nothing);
    match name {
        "resource" | "containerResource" => {
            if text(source, "name").is_empty() {
                errors.required(path.child("name"), "must specify a resource name");
            } else if name == "containerResource" {
                checks::checked(source, "name", path, resources::container_resource_name, errors);
            }
            if name == "containerResource" && text(source, "container").is_empty() {
                errors.required(path.child("container"), "must specify a container");
            } else if name == "containerResource" {
                checks::checked(source, "container", path, names::dns1123_label, errors);
            }
        }
        _ => {
            if name == "object" {
                reference(source.get("describedObject").unwrap_or(&nothing), version, &path.child("describedObject"), errors);
            }
            let metric = source.get("metric").unwrap_or(&nothing);
            let at = path.child("metric");
            if text(metric, "name").is_empty() {
                errors.required(at.child("name"), "must specify a metric name");
            } else {
                checks::checked(metric, "name", &at, checks::path_segment, errors);
            }
        }
    }
    let at = path.child("target");
    if text(target, "type").is_empty() {
        errors.required(at.child("type"), "must specify a metric target type");
    }
    if !matches!(text(target, "type"), "Utilization" | "Value" | "AverageValue") {
        errors.invalid(at.child("type"), text(target, "type"), "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        if let Some(Ok(quantity)) = member(target, key).map(Quantity::from_value)
            && quantity.sign() <= 0
        {
            errors.invalid(at.child(key), quantity.to_string(), "must be positive");
        }
    }
    let utilization = int(target, "averageUtilization");
    if let Some(value) = utilization
        && value < 1
    {
        errors.invalid(at.child("averageUtilization"), value, "must be greater than 0");
    }
    match name {
        "resource" | "containerResource" => {
            if utilization.is_none() && !has(target, "averageValue") {
                errors.required(at.child("averageUtilization"), "must set either a target raw value or a target utilization");
            }
            if utilization.is_some() && has(target, "averageValue") {
                errors.forbidden(at.child("averageValue"), "may not set both a target raw value and a target utilization");
            }
        }
        "pods" if !has(target, "averageValue") => errors.required(at.child("averageValue"), "must specify a positive target averageValue"),
        "object" if !has(target, "value") && !has(target, "averageValue") => {
            errors.required(at.child("averageValue"), "must set either a target value or averageValue")
        }
        "external" if !has(target, "value") && !has(target, "averageValue") => {
            errors.required(at.child("averageValue"), "must set either a target value for metric or a per-pod target")
        }
        "external" if has(target, "value") && has(target, "averageValue") => {
            errors.forbidden(at.child("value"), "may not set both a target value for metric and a per-pod target")
        }
        _ => {}
    }
}

fn validate_rules(rules: &Value, path: &Path, errors: &mut Errors) {
    if let Some(seconds) = int(rules, "stabilizationWindowSeconds") {
        let at = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.invalid(at, seconds, "must be greater than or equal to zero");
        } else if seconds > STABILIZATION_MAX_S {
            errors.invalid(at, seconds, &format!("must be less than or equal to {STABILIZATION_MAX_S}"));
        }
    }
    checks::one_of(rules, "selectPolicy", &["Disabled", "Max", "Min"], path, errors);
    let policies = list(rules, "policies");
    if policies.is_empty() {
        errors.required(path.child("policies"), "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = path.child("policies").index(i);
        checks::supported(policy, "type", &["Percent", "Pods"], &path, errors);
        for key in ["value", "periodSeconds"] {
            let value = int(policy, key).unwrap_or(0);
            if value <= 0 {
                errors.invalid(path.child(key), value, "must be greater than zero");
            }
        }
        if let Some(seconds) = int(policy, "periodSeconds").filter(|s| *s > PERIOD_MAX_S) {
            errors.invalid(path.child("periodSeconds"), seconds, &format!("must be less than or equal to {PERIOD_MAX_S}"));
        }
    }
    if let Some(tolerance) = member(rules, "tolerance") {
        checks::quantity_not_negative(tolerance, &path.child("tolerance"), errors);
    }
}

/// The cell `Targets`: `cpu: 55%/80%`, and how many more.
fn targets(metrics: &[Value], current: &[Value]) -> String {
    if metrics.is_empty() {
        return "<none>".into();
    }
    let quantity =
        |parent: Option<&Value>, key: &str| parent.and_then(|p| member(p, key)).and_then(|q| Quantity::from_value(q).ok()).map(|q| q.to_string());
    let unknown = || "<unknown>".to_string();
    // Of a metric that was measured in another way.
    let measured = |now: Option<&Value>| quantity(now, "averageValue").or(now.map(|_| "<nil>".to_string())).unwrap_or_else(unknown);
    let mut all = vec![];
    for (i, metric) in metrics.iter().enumerate() {
        let Some((kind, key)) = SOURCES.iter().find(|(kind, _)| *kind == text(metric, "type")) else {
            all.push("<unknown type>".to_string());
            continue;
        };
        let target = metric.get(key).and_then(|s| s.get("target"));
        let now = current.get(i).and_then(|c| c.get(key)).and_then(|s| s.get("current"));
        let average = quantity(target, "averageValue");
        let shown = match *kind {
            "Resource" | "ContainerResource" => {
                let name = metric.get(key).map(|s| text(s, "name")).unwrap_or_default();
                match average {
                    Some(average) => format!("{name}: {}/{average}", measured(now)),
                    None => {
                        let now = now.and_then(|n| int(n, "averageUtilization")).map_or_else(unknown, |n| format!("{n}%"));
                        let want = target.and_then(|t| int(t, "averageUtilization")).map_or("<auto>".to_string(), |n| format!("{n}%"));
                        format!("{name}: {now}/{want}")
                    }
                }
            }
            "Pods" => format!("{}/{}", measured(now), average.unwrap_or("<nil>".into())),
            _ => match average {
                Some(average) => format!("{}/{average} (avg)", quantity(now, "averageValue").unwrap_or_else(unknown)),
                None => {
                    let now = quantity(now, "value").or(now.map(|_| "<nil>".to_string())).unwrap_or_else(unknown);
                    format!("{now}/{}", quantity(target, "value").unwrap_or("<nil>".into()))
                }
            },
        };
        all.push(shown);
    }
    let more = all.len().saturating_sub(METRICS_SHOWN_MAX);
    let shown = all[..all.len().min(METRICS_SHOWN_MAX)].join(", ");
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}
