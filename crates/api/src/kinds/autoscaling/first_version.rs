//! HorizontalPodAutoscalers as `autoscaling/v1` shows them: one target for CPU, and in annotations, as JSON, all that `v1` has
//! no field for. Metrics and conditions are there in the form of `v1`'s own types, behaviour in the internal one.

use crate::{
    internal,
    kinds::values::{int, is_empty, map, put, take, text, within},
    object::ObjectExt,
};
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// The metric of CPU that a number in `v1` means.
pub fn cpu_metric(utilization: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": utilization}}})
}
fn is_cpu_utilization(metric: &Value, field: &str) -> bool {
    metric.str_at("type") == Some("Resource")
        && metric.str_at("resource.name") == Some("cpu")
        && metric.at(field).and_then(|t| int(t, "averageUtilization")).is_some()
}

/// From `v1` to the stored form.
pub fn read(scaler: &mut Value) {
    put(scaler, "apiVersion", "autoscaling/v2");
    let [metrics, behavior, conditions, current] = [METRICS, BEHAVIOR, CONDITIONS, CURRENT_METRICS].map(|key| {
        let said = scaler.annotation(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
        scaler.remove_annotation(key);
        said
    });
    within(scaler, "spec", |spec| {
        let mut all: Vec<Value> = metrics.iter().flat_map(|m| m.as_array()).flatten().map(|m| metric(m, "target")).collect();
        if let Some(target) = take(spec, "targetCPUUtilizationPercentage").filter(|t| !t.is_null()) {
            all.push(cpu_metric(target.as_i64().unwrap_or(0)));
        }
        if !all.is_empty() {
            put(spec, "metrics", all);
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            put(spec, "behavior", in_lower_case(behavior));
        }
    });
    within(scaler, "status", |status| {
        let utilization = take(status, "currentCPUUtilizationPercentage").filter(|c| !c.is_null());
        let cpu = utilization.map(|current| json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": current}}}));
        let all: Vec<Value> = current.iter().flat_map(|m| m.as_array()).flatten().map(|m| metric(m, "current")).collect();
        let all = if all.is_empty() { cpu.into_iter().collect() } else { all };
        if !all.is_empty() {
            put(status, "currentMetrics", all);
        }
        if let Some(conditions) = conditions.filter(Value::is_array) {
            put(status, "conditions", conditions);
        }
    });
}

/// From the stored form to `v1`.
pub fn write(scaler: &mut Value) {
    put(scaler, "apiVersion", "autoscaling/v1");
    let mut annotations: Vec<(&str, String)> = vec![];
    within(scaler, "spec", |spec| {
        let mut metrics = take(spec, "metrics").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(i) = metrics.iter().position(|m| is_cpu_utilization(m, "resource.target")) {
            let metric = metrics.remove(i);
            put(spec, "targetCPUUtilizationPercentage", metric.at("resource.target.averageUtilization").cloned().unwrap_or_default());
        }
        if !metrics.is_empty() {
            annotations.push((METRICS, json_of("MetricSpec", metrics.iter().map(|m| first_metric(m, "target")))));
        }
        if let Some(behavior) = take(spec, "behavior").filter(Value::is_object) {
            annotations.push((BEHAVIOR, internal::show("autoscaling.v2.HorizontalPodAutoscalerBehavior", &behavior).to_string()));
        }
    });
    within(scaler, "status", |status| {
        let metrics = take(status, "currentMetrics").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(cpu) = metrics.iter().find(|m| is_cpu_utilization(m, "resource.current")) {
            put(status, "currentCPUUtilizationPercentage", cpu.at("resource.current.averageUtilization").cloned().unwrap_or_default());
        }
        if !metrics.is_empty() {
            annotations.push((CURRENT_METRICS, json_of("MetricStatus", metrics.iter().map(|m| first_metric(m, "current")))));
        }
        if let Some(Value::Array(conditions)) = take(status, "conditions").filter(|c| !is_empty(c)) {
            annotations.push((CONDITIONS, json_of("HorizontalPodAutoscalerCondition", conditions.into_iter())));
        }
        if status.get("currentReplicas").is_none() {
            put(status, "currentReplicas", 0);
        }
    });
    for (key, value) in annotations {
        scaler.set_annotation(key, &value);
    }
}

fn json_of(type_: &str, items: impl Iterator<Item = Value>) -> String {
    internal::json_list(&format!("autoscaling.v1.{type_}"), &items.collect::<Vec<_>>()).to_string()
}

/// Names that begin with a capital letter, as the internal form has them, as JSON has them; what is not said is left out.
fn in_lower_case(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let lower = |name: String| {
                let mut characters = name.chars();
                characters.next().map(|first| first.to_lowercase().chain(characters).collect::<String>()).unwrap_or_default()
            };
            map.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (lower(name), in_lower_case(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(in_lower_case).collect(),
        other => other,
    }
}

/// How `v1` names the parts of a metric's target or current value: what is in `v2`, and there by kind of source.
const VALUES: &[(&str, &str)] = &[("averageUtilization", "AverageUtilization"), ("averageValue", "AverageValue"), ("value", "Value")];
const SOURCES: &[&str] = &["object", "pods", "resource", "external", "containerResource"];

/// A metric of `v2` as one of `v1`. `part` is `target` or `current`.
fn first_metric(metric: &Value, part: &str) -> Value {
    let mut shown = Map::from_iter([("type".to_string(), json!(text(metric, "type")))]);
    for source in SOURCES {
        let Some(from) = metric.get(*source).filter(|s| s.is_object()) else { continue };
        let mut to = Map::new();
        for key in ["name", "container"] {
            if let Some(said) = from.get(key) {
                to.insert(key.into(), said.clone());
            }
        }
        if let Some(described) = from.get("describedObject") {
            to.insert("target".into(), described.clone());
        }
        let named = from.get("metric").unwrap_or(&Value::Null);
        if let Some(name) = named.get("name") {
            to.insert("metricName".into(), name.clone());
        }
        if let Some(selector) = named.get("selector").filter(|s| !s.is_null()) {
            to.insert(if *source == "external" { "metricSelector" } else { "selector" }.into(), selector.clone());
        }
        let values = from.get(part).unwrap_or(&Value::Null);
        for (key, name) in VALUES {
            let name = match (*source, *key) {
                ("object", "averageValue") => "averageValue".to_string(),
                _ => format!("{part}{name}"),
            };
            match values.get(*key).filter(|v| !v.is_null()) {
                Some(value) => to.insert(name, value.clone()),
                // Fields that are no pointers in v1.
                None if always(source, part, key) => to.insert(name, json!("0")),
                None => None,
            };
        }
        shown.insert(source.to_string(), Value::Object(to));
    }
    Value::Object(shown)
}
/// Whether `v1` always says a value.
fn always(source: &str, part: &str, key: &str) -> bool {
    matches!(
        (source, part, key),
        ("object", _, "value")
            | ("pods", _, "averageValue")
            | ("resource" | "containerResource", "current", "averageValue")
            | ("external", "current", "value")
    )
}

/// A metric of `v1` as one of `v2`.
fn metric(first: &Value, part: &str) -> Value {
    let mut shown = Map::from_iter([("type".to_string(), json!(text(first, "type")))]);
    for source in SOURCES {
        let Some(from) = first.get(*source).filter(|s| s.is_object()) else { continue };
        let mut to = Map::new();
        for key in ["name", "container"] {
            if let Some(said) = from.get(key) {
                to.insert(key.into(), said.clone());
            }
        }
        if let Some(described) = from.get("target").filter(|t| t.is_object()) {
            to.insert("describedObject".into(), described.clone());
        }
        if let Some(name) = from.get("metricName") {
            let mut named = json!({"name": name});
            if let Some(selector) = ["selector", "metricSelector"].iter().find_map(|key| map(from, key)) {
                put(&mut named, "selector", selector.clone());
            }
            to.insert("metric".into(), named);
        }
        let mut values = Map::new();
        for (key, said) in from.as_object().into_iter().flatten().filter(|(_, said)| !said.is_null()) {
            let bare = key.strip_prefix(part).unwrap_or(key);
            if let Some((key, _)) = VALUES.iter().find(|(key, name)| *name == bare || *key == bare) {
                values.insert(key.to_string(), said.clone());
            }
        }
        if part == "target" {
            let kind = match () {
                () if values.contains_key("averageUtilization") => "Utilization",
                () if values.contains_key("averageValue") => "AverageValue",
                () => "Value",
            };
            // What says an average says nothing by its zero value.
            if kind == "AverageValue" && values.get("value") == Some(&json!("0")) {
                values.remove("value");
            }
            values.insert("type".into(), json!(kind));
        }
        to.insert(part.to_string(), Value::Object(values));
        shown.insert(source.to_string(), Value::Object(to));
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_goes_through_annotations_and_back() {
        let stored = json!({
            "apiVersion": "autoscaling/v2",
            "metadata": {"name": "h"},
            "spec": {
                "maxReplicas": 5,
                "metrics": [
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "hits"}, "target": {"type": "Value", "value": "5"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "3"}}},
                ],
                "behavior": {"scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}},
            },
        });
        let mut first = stored.clone();
        write(&mut first);
        assert_eq!(first["spec"], json!({"maxReplicas": 5, "targetCPUUtilizationPercentage": 60}));
        assert_eq!(
            first.annotation(METRICS),
            Some(concat!(
                r#"[{"type":"Object","object":{"target":{"kind":"Service","name":"s"},"metricName":"hits","targetValue":"5"}},"#,
                r#"{"type":"External","external":{"metricName":"q","metricSelector":{"matchLabels":{"a":"b"}},"targetAverageValue":"3"}}]"#
            ))
        );
        read(&mut first);
        let mut metrics = stored["spec"]["metrics"].as_array().cloned().unwrap();
        // The target of CPU comes last.
        let cpu = metrics.remove(1);
        metrics.push(cpu);
        assert_eq!(first["spec"]["metrics"], json!(metrics));
        assert_eq!(first["spec"]["behavior"], stored["spec"]["behavior"]);
        assert!(first["metadata"].get("annotations").is_none_or(|a| a == &json!({})));
    }
}
