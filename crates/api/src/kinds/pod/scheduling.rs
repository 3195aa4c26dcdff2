//! Where a pod may run: affinity, tolerations, spreading, gates, node selectors.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{has, int, list, map, member, strings, text},
    },
    names,
};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// One term of a node selector. `values_too` says whether values that no label can have are refused.
pub fn node_selector_term(term: &Value, values_too: bool, path: &Path, errors: &mut Errors) {
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list(requirement, "values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            }
            "Exists" | "DoesNotExist" => {}
            "Gt" | "Lt" if values.len() != 1 => {
                errors.required(path.child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
            }
            "Gt" | "Lt" => {}
            other => errors.invalid(path.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(requirement, "key");
        errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
        for (i, value) in strings(requirement, "values").enumerate().filter(|_| values_too) {
            errors.invalid_all(&path.child("values").index(i), value, names::label_value(value));
        }
    }
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(i);
        let values = list(requirement, "values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values.len() != 1 => {
                errors.required(path.child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
            }
            "In" | "NotIn" => {}
            other => errors.invalid(path.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(requirement, "key");
        if key != "metadata.name" {
            errors.invalid(path.child("key"), key, "not a valid field selector key");
        } else {
            for (i, value) in strings(requirement, "values").enumerate() {
                errors.invalid_all(&path.child("values").index(i), value, names::dns1123_subdomain(value));
            }
        }
    }
}
/// A whole node selector (of affinity, of a PersistentVolume).
pub fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(path.clone(), "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, true, &path.index(i), errors);
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity_term(term: &Value, path: &Path, errors: &mut Errors) {
    if let Some(selector) = member(term, "labelSelector") {
        crate::selector::validate(selector, &path.child("labelSelector"), errors);
    }
    if let Some(selector) = member(term, "namespaceSelector") {
        crate::selector::validate(selector, &path.child("namespaceSelector"), errors);
    }
    for namespace in strings(term, "namespaces") {
        errors.invalid_all(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    match_label_keys(term, path, errors);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(path.child("topologyKey"), "can not be empty");
    }
    errors.invalid_all(&path.child("topologyKey"), key, names::qualified_name(key));
}

/// Labels of the pod itself that others must have, or must not.
fn match_label_keys(term: &Value, path: &Path, errors: &mut Errors) {
    let selector = member(term, "labelSelector");
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = path.child(key);
        if selector.is_none() && !list(term, key).is_empty() {
            errors.forbidden(path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, label) in strings(term, key).enumerate() {
            errors.invalid_all(&path.index(i), label, names::qualified_name(label));
        }
    }
    let keys: Vec<&str> = strings(term, "matchLabelKeys").collect();
    if let Some(selector) = selector {
        let mut said: HashSet<&str> = map(selector, "matchLabels").into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let place: HashMap<&str, usize> = keys.iter().enumerate().map(|(i, label)| (*label, i)).collect();
        for expression in list(selector, "matchExpressions") {
            let key = text(expression, "key");
            if let Some(i) = place.get(key).filter(|_| said.contains(key)) {
                errors.invalid(path.index(*i), key, "exists in both matchLabelKeys and labelSelector");
            }
            said.insert(key);
        }
    }
    let others: HashSet<&str> = strings(term, "mismatchLabelKeys").collect();
    for (i, key) in keys.iter().enumerate().filter(|(_, key)| others.contains(*key)) {
        errors.invalid(path.child("matchLabelKeys").index(i), *key, "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// Where the pod likes to be, and near whom.
pub fn affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    if let Some(node) = member(affinity, "nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(required) = member(node, REQUIRED) {
            node_selector(required, &path.child(REQUIRED), errors);
        }
        for (i, term) in list(node, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(term, &path, errors);
            // A wish that cannot come true does no harm.
            node_selector_term(term.get("preference").unwrap_or(&Value::Null), false, &path.child("preference"), errors);
        }
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        let Some(pod) = member(affinity, name) else { continue };
        let path = path.child(name);
        for (i, term) in list(pod, REQUIRED).iter().enumerate() {
            pod_affinity_term(term, &path.child(REQUIRED).index(i), errors);
        }
        for (i, term) in list(pod, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(term, &path, errors);
            pod_affinity_term(term.get("podAffinityTerm").unwrap_or(&Value::Null), &path.child("podAffinityTerm"), errors);
        }
    }
}

/// The effect of a taint or toleration.
pub const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A list of tolerations at `path`.
pub fn tolerations(list: &[Value], path: &Path, errors: &mut Errors) {
    for (i, toleration) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, operator, value, effect) =
            (text(toleration, "key"), text(toleration, "operator"), text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            errors.invalid(
                path.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(path.child("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "" | "Equal" => {
                if !names::label_value(value).is_empty() {
                    errors.invalid(path.child("operator"), value, &names::label_value(value).join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(path.child("operator"), value, "value must be empty when `operator` is 'Exists'");
                }
            }
            // Not yet on by default.
            "Lt" | "Gt" => errors.not_supported(path.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errors.not_supported(path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
            errors.not_supported(path.child("effect"), effect, TAINT_EFFECTS);
        }
    }
}

/// How pods are spread.
pub fn topology_spread(spec: &Value, path: &Path, errors: &mut Errors) {
    const ACTIONS: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
    let constraints = list(spec, "topologySpreadConstraints");
    let pair = |constraint: &'_ Value| ["topologyKey", "whenUnsatisfiable"].map(|key| text(constraint, key).to_string());
    // Of several that are alike, the last is the one that may be there.
    let last: HashMap<_, _> = constraints.iter().enumerate().map(|(i, constraint)| (pair(constraint), i)).collect();
    for (i, constraint) in constraints.iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(path.child("maxSkew"), skew, "must be greater than zero");
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            errors.required(path.child("topologyKey"), "can not be empty");
        }
        let action = text(constraint, "whenUnsatisfiable");
        if !ACTIONS.contains(&action) {
            errors.not_supported(path.child("whenUnsatisfiable"), action, ACTIONS);
        }
        if last.get(&pair(constraint)).is_some_and(|last| *last > i) {
            let pair = format!("{{{key}, {action}}}");
            errors.duplicate(path.child("{topologyKey, whenUnsatisfiable}"), pair);
        }
        if let Some(minimum) = int(constraint, "minDomains") {
            if minimum <= 0 {
                errors.invalid(path.child("minDomains"), minimum, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                errors.invalid(
                    path.child("minDomains"),
                    minimum,
                    &format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"),
                );
            }
        }
        checks::one_of(constraint, "nodeAffinityPolicy", &["Honor", "Ignore"], &path, errors);
        checks::one_of(constraint, "nodeTaintsPolicy", &["Honor", "Ignore"], &path, errors);
        match_label_keys(constraint, &path, errors);
        if let Some(selector) = member(constraint, "labelSelector") {
            crate::selector::validate(selector, &path.child("labelSelector"), errors);
        }
    }
}

/// What must go before the pod is scheduled.
pub fn gates(spec: &Value, path: &Path, errors: &mut Errors) {
    let gates = list(spec, "schedulingGates");
    for (i, gate, again) in checks::distinct(gates, |gate| text(gate, "name")) {
        let name = text(gate, "name");
        let path = path.child("schedulingGates").index(i);
        errors.invalid_all(&path, name, names::qualified_name(name));
        if again {
            errors.duplicate(path, name);
        }
    }
}

/// Fills into the selectors of spread constraints what `matchLabelKeys` says, from the pod's own labels.
pub fn merge_label_keys(spec: &mut Value, labels: &serde_json::Map<String, Value>) {
    use crate::kinds::values::{each, made, within};
    let merge = |term: &mut Value| {
        for (key, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let wanted: Vec<(String, Value)> = strings(term, key).filter_map(|k| Some((k.to_string(), labels.get(k)?.clone()))).collect();
            if !has(term, "labelSelector") || wanted.is_empty() {
                continue;
            }
            let selector = made(term, "labelSelector");
            if !selector["matchExpressions"].is_array() {
                selector["matchExpressions"] = Value::Array(vec![]);
            }
            if let Some(list) = selector["matchExpressions"].as_array_mut() {
                list.extend(wanted.into_iter().map(|(label, value)| serde_json::json!({"key": label, "operator": operator, "values": [value]})));
            }
        }
    };
    each(spec, "topologySpreadConstraints", merge);
    within(spec, "affinity", |affinity| {
        for name in ["podAffinity", "podAntiAffinity"] {
            within(affinity, name, |pod| {
                each(pod, REQUIRED, merge);
                each(pod, PREFERRED, |term| within(term, "podAffinityTerm", merge));
            });
        }
    });
}
