//! What objects count for against resource quotas, and which quotas take them in: for the admission that charges and for
//! the controller that counts again.
//!
//! What must stay true: both count the same, or quotas drift.

use std::collections::BTreeMap;

use crate::Value;
use crate::object::ObjectExt;
use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Core resources whose quota has the resource's own name.
pub const PLAIN: [&str; 7] = ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];

/// Resource amounts at a path; what cannot be read is left out (validation names it).
pub fn resources(object: &Value, path: &str) -> Amounts {
    object.map_at(path).into_iter().flatten().filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

/// What a pod's containers ask for together: the sum of those that run side by side, or one that must run before if that
/// is more; sidecars count with the others.
pub fn pod_resources(pod: &Value, part: &str) -> Amounts {
    pod_amounts(pod, part, false)
}

/// The same; `with_status` also counts what a pod that is being resized has.
fn pod_amounts(pod: &Value, part: &str, with_status: bool) -> Amounts {
    let path = format!("resources.{part}");
    let add = |total: &mut Amounts, more: &Amounts| {
        for (name, amount) in more {
            total.entry(name.clone()).and_modify(|sum| *sum = sum.add(amount)).or_insert(*amount);
        }
    };
    let raise = |total: &mut Amounts, other: &Amounts| {
        for (name, amount) in other {
            let most = total.entry(name.clone()).or_insert(*amount);
            *most = (*most).max(*amount);
        }
    };
    // While a pod is resized, what it has counts as well as what it wants; what its node refused for good does not.
    let is_infeasible = pod
        .list_at("status.conditions")
        .iter()
        .any(|condition| condition.str_at("type") == Some("PodResizePending") && condition.str_at("reason") == Some("Infeasible"));
    let of = |container: &Value, statuses: &str| {
        let mut needs = resources(container, &path);
        if !with_status {
            return needs;
        }
        let Some(status) = pod.list_at(statuses).iter().find(|status| status.str_at("name") == container.str_at("name")) else { return needs };
        let has = [resources(status, &path), if part == "requests" { resources(status, "allocatedResources") } else { Amounts::new() }];
        if is_infeasible && has.iter().any(|has| !has.is_empty()) {
            needs.clear();
        }
        has.iter().for_each(|has| raise(&mut needs, has));
        needs
    };
    let mut total = Amounts::new();
    for container in pod.list_at("spec.containers") {
        add(&mut total, &of(container, "status.containerStatuses"));
    }
    let (mut sidecars, mut before) = (Amounts::new(), Amounts::new());
    for container in pod.list_at("spec.initContainers") {
        let mut needs = of(container, "status.initContainerStatuses");
        if container.str_at("restartPolicy") == Some("Always") {
            add(&mut total, &needs);
            add(&mut sidecars, &needs);
            raise(&mut before, &sidecars);
        } else {
            add(&mut needs, &sidecars);
            raise(&mut before, &needs);
        }
    }
    raise(&mut total, &before);
    let overhead = resources(pod, "spec.overhead");
    match part {
        "requests" => add(&mut total, &overhead),
        _ => {
            for (name, amount) in overhead {
                total.entry(name).and_modify(|limit| *limit = limit.add(&amount));
            }
        }
    }
    total
}

/// What an object counts for. A pod that has ended only counts as an object.
pub fn usage(group: &str, resource: &str, object: &Value) -> Amounts {
    let one = || Quantity::from_units(1, crate::quantity::Format::DecimalSi);
    let mut usage = Amounts::new();
    let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
    usage.insert(format!("count/{resource}{suffix}"), one());
    if is_ended_pod(group, resource, object) {
        return usage;
    }
    if group.is_empty() && PLAIN.contains(&resource) {
        usage.insert(resource.to_owned(), one());
    }
    match (group, resource) {
        ("", "pods") => {
            let requests = pod_amounts(object, "requests", true);
            for (name, amount) in requests {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
                    usage.insert(name.clone(), amount);
                }
                usage.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in pod_amounts(object, "limits", true) {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                    usage.insert(format!("limits.{name}"), amount);
                }
            }
        }
        ("", "services") => {
            let balanced = object.str_at("spec.type") == Some("LoadBalancer");
            if balanced {
                usage.insert("services.loadbalancers".into(), one());
            }
            let ports = match balanced && object.bool_at("spec.allocateLoadBalancerNodePorts") == Some(false) {
                true => object.list_at("spec.ports").iter().filter(|port| port.i64_at("nodePort").is_some_and(|number| number != 0)).count(),
                false => object.list_at("spec.ports").len(),
            };
            if balanced || object.str_at("spec.type") == Some("NodePort") {
                usage.insert(
                    "services.nodeports".into(),
                    Quantity::from_units(i64::try_from(ports).unwrap_or(i64::MAX), crate::quantity::Format::DecimalSi),
                );
            }
        }
        ("", "persistentvolumeclaims") => {
            let storage = resources(object, "spec.resources.requests").remove("storage");
            let class = object.str_at("spec.storageClassName").filter(|class| !class.is_empty());
            if let Some(class) = class {
                usage.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
            }
            if let Some(storage) = storage {
                usage.insert("requests.storage".into(), storage);
                if let Some(class) = class {
                    usage.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
                }
            }
        }
        _ => {}
    }
    usage
}

/// Whether a pod has run to its end.
fn is_ended_pod(group: &str, resource: &str, object: &Value) -> bool {
    group.is_empty() && resource == "pods" && matches!(object.str_at("status.phase"), Some("Succeeded" | "Failed"))
}

/// Whether a quota's scopes take in the object. Only pods have scopes.
pub fn matches(quota: &Value, group: &str, resource: &str, object: &Value) -> bool {
    let scopes: Vec<&str> = quota.list_at("spec.scopes").iter().filter_map(Value::as_str).collect();
    let expressions = quota.list_at("spec.scopeSelector.matchExpressions");
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    if !group.is_empty() || resource != "pods" {
        return false;
    }
    let has = |scope: &str| match scope {
        "Terminating" => object.i64_at("spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0),
        "NotTerminating" => object.i64_at("spec.activeDeadlineSeconds").is_none_or(|seconds| seconds < 0),
        "BestEffort" => is_best_effort(object),
        "NotBestEffort" => !is_best_effort(object),
        "PriorityClass" => object.str_at("spec.priorityClassName").is_some_and(|name| !name.is_empty()),
        "CrossNamespacePodAffinity" => crosses_namespaces(object),
        _ => false,
    };
    scopes.iter().all(|scope| has(scope))
        && expressions.iter().all(|expression| {
            let scope = expression.str_at("scopeName").unwrap_or_default();
            let class = object.str_at("spec.priorityClassName").unwrap_or_default();
            let listed = || expression.list_at("values").iter().any(|value| value == class);
            match (scope, expression.str_at("operator")) {
                ("PriorityClass", Some("In")) => listed(),
                ("PriorityClass", Some("NotIn")) => !listed(),
                (scope, Some("DoesNotExist")) => !has(scope),
                (scope, _) => has(scope),
            }
        })
}

fn is_best_effort(pod: &Value) -> bool {
    let counts = |container: &Value| {
        ["requests", "limits"].iter().any(|part| {
            ["cpu", "memory"].iter().any(|name| resources(container, &format!("resources.{part}")).get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    };
    !["spec.containers", "spec.initContainers"].iter().any(|list| pod.list_at(list).iter().any(counts))
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let base = format!("spec.affinity.{kind}");
        let required = pod.list_at(&format!("{base}.requiredDuringSchedulingIgnoredDuringExecution")).iter();
        let preferred =
            pod.list_at(&format!("{base}.preferredDuringSchedulingIgnoredDuringExecution")).iter().filter_map(|term| term.get("podAffinityTerm"));
        required
            .chain(preferred)
            .any(|term| !term.list_at("namespaces").is_empty() || term.at("namespaceSelector").is_some_and(|selector| !selector.is_null()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_objects_count_for() {
        let check = |group: &str, resource: &str, object: Value, expected: Value| {
            let usage: serde_json::Map<_, _> =
                usage(group, resource, &object).into_iter().map(|(name, amount)| (name, json!(amount.to_string()))).collect();
            assert_eq!(Value::Object(usage), expected);
        };
        check("apps", "deployments", json!({}), json!({"count/deployments.apps": "1"}));
        check("", "secrets", json!({}), json!({"count/secrets": "1", "secrets": "1"}));
        check(
            "",
            "services",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
            json!({"count/services": "1", "services": "1", "services.nodeports": "1"}),
        );
        check(
            "",
            "pods",
            json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "600m"}, "limits": {"memory": "500Mi"}}}]}}),
            json!({"count/pods": "1", "pods": "1", "cpu": "600m", "requests.cpu": "600m", "limits.memory": "500Mi"}),
        );
        let resized = |reason: &str| {
            json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]},
                "status": {
                    "containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "1"}}],
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                },
            })
        };
        check("", "pods", resized("Deferred"), json!({"count/pods": "1", "pods": "1", "cpu": "3", "requests.cpu": "3"}));
        check("", "pods", resized("Infeasible"), json!({"count/pods": "1", "pods": "1", "cpu": "2", "requests.cpu": "2"}));
    }

    #[test]
    fn scopes_select_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort"]}});
        let plain = json!({"spec": {"containers": [{"name": "c"}]}});
        let asking = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1m"}}}], "priorityClassName": "high"}});
        assert!(matches(&quota, "", "pods", &plain) && !matches(&quota, "", "pods", &asking));
        let high = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(matches(&high, "", "pods", &asking) && !matches(&high, "", "pods", &plain));
        assert!(!matches(&quota, "", "secrets", &json!({})));
    }

    #[test]
    fn an_ended_pod_is_only_an_object() {
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Succeeded"}});
        assert_eq!(usage("", "pods", &pod).into_keys().collect::<Vec<_>>(), ["count/pods"]);
    }
}
