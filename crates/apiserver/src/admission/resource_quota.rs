//! ResourceQuota: a namespace does not get more than its quotas allow.
//!
//! A quota counts by its status: `status.hard` is what holds (the quota controller copies it from the spec), `status.used` is
//! what is charged here before the object is stored. A charge whose object is not stored after all is put right by the
//! controller. Charges of one server are made one after the other, so that two creates never both take the last place.

use super::limit_ranger::{pod_resources, resources};
use super::{AdmissionContext, Operation, Plugin};
use api::{Kind, Status, Value, object::ObjectExt, quantity::Quantity};
use std::collections::BTreeMap;
use tokio::sync::Mutex;

type Amounts = BTreeMap<String, Quantity>;

/// Core resources whose quota has the resource's own name.
const PLAIN: [&str; 7] = ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// Of these every container must say what it uses, if a quota bounds them.
const STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

#[derive(Default)]
pub(super) struct ResourceQuota {
    charging: Mutex<()>,
}

#[async_trait::async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let written = matches!(cx.operation, Operation::Create | Operation::Update) && cx.subresource.is_empty();
        if !written || cx.namespace.is_empty() {
            return Ok(());
        }
        let usage = usage(cx.kind, object);
        let before = cx.old.map(|old| self::usage(cx.kind, old)).unwrap_or_default();
        let wanted: Amounts = usage.into_iter().map(|(name, amount)| (name.clone(), before.get(&name).map_or(amount, |old| amount.sub(old)))).collect();
        if cx.operation == Operation::Update && wanted.values().all(|amount| amount.sign() <= 0) {
            return Ok(());
        }
        let mut quotas = cx.objects("", "resourcequotas", Some(cx.namespace))?;
        quotas.retain(|quota| matches(quota, cx.kind, object) && bounded(quota).keys().any(|name| wanted.contains_key(name) || must_state(cx, name)));
        if quotas.is_empty() {
            return Ok(());
        }
        let _charging = self.charging.lock().await;
        for quota in &quotas {
            check(cx, quota, object, &wanted).map_err(|message| cx.forbidden(object, message))?;
        }
        if cx.dry_run {
            return Ok(());
        }
        for quota in &quotas {
            let name = quota.name().to_string();
            let charge = |quota: &mut Value| {
                check(cx, quota, object, &wanted).map_err(|message| cx.forbidden(object, message))?;
                Ok(charge(quota, &wanted))
            };
            match cx.server.update_internal("", "resourcequotas", cx.namespace, &name, "status", charge).await {
                Err(status) if status.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// Whether a pod must state how much of a bounded resource it uses.
fn must_state(cx: &AdmissionContext<'_>, name: &str) -> bool {
    cx.operation == Operation::Create && cx.concerns("", "pods") && STATED.contains(&name)
}

fn bounded(quota: &Value) -> Amounts {
    resources(quota, "status.hard")
}

/// What an object counts for.
fn usage(kind: &Kind, object: &Value) -> Amounts {
    let one = || Quantity::from_units(1, api::quantity::Format::DecimalSi);
    let mut usage = Amounts::new();
    let suffix = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
    usage.insert(format!("count/{}{suffix}", kind.resource), one());
    if kind.group.is_empty() && PLAIN.contains(&kind.resource.as_str()) {
        usage.insert(kind.resource.clone(), one());
    }
    match (kind.group.as_str(), kind.resource.as_str()) {
        ("", "pods") => {
            let requests = pod_resources(object, "requests");
            for (name, amount) in requests {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
                    usage.insert(name.clone(), amount);
                }
                usage.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in pod_resources(object, "limits") {
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
                usage.insert("services.nodeports".into(), Quantity::from_units(i64::try_from(ports).unwrap_or(i64::MAX), api::quantity::Format::DecimalSi));
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

/// Whether a quota's scopes take in the object. Only pods have scopes.
fn matches(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes: Vec<&str> = quota.list_at("spec.scopes").iter().filter_map(Value::as_str).collect();
    let expressions = quota.list_at("spec.scopeSelector.matchExpressions");
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    if !kind.group.is_empty() || kind.resource != "pods" {
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
        ["requests", "limits"].iter().any(|part| ["cpu", "memory"].iter().any(|name| resources(container, &format!("resources.{part}")).get(*name).is_some_and(|amount| !amount.is_zero())))
    };
    !["spec.containers", "spec.initContainers"].iter().any(|list| pod.list_at(list).iter().any(counts))
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let base = format!("spec.affinity.{kind}");
        let required = pod.list_at(&format!("{base}.requiredDuringSchedulingIgnoredDuringExecution")).iter();
        let preferred = pod.list_at(&format!("{base}.preferredDuringSchedulingIgnoredDuringExecution")).iter().filter_map(|term| term.get("podAffinityTerm"));
        required.chain(preferred).any(|term| !term.list_at("namespaces").is_empty() || term.at("namespaceSelector").is_some_and(|selector| !selector.is_null()))
    })
}

/// Whether what is wanted fits; the error says why not.
fn check(cx: &AdmissionContext<'_>, quota: &Value, object: &Value, wanted: &Amounts) -> Result<(), String> {
    let (hard, used) = (bounded(quota), resources(quota, "status.used"));
    if cx.operation == Operation::Create && cx.concerns("", "pods") {
        let unstated = unstated(&hard, object);
        if !unstated.is_empty() {
            return Err(format!("failed quota: {}: must specify {unstated}", quota.name()));
        }
    }
    let relevant: Vec<&String> = hard.keys().filter(|name| wanted.contains_key(*name)).collect();
    let unknown: Vec<&str> = relevant.iter().filter(|name| !used.contains_key(**name)).map(|name| name.as_str()).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {}, resources: {}", quota.name(), unknown.join(",")));
    }
    let exceeded = |name: &&&String| match (wanted.get(**name), used.get(**name), hard.get(**name)) {
        (Some(wanted), Some(used), Some(hard)) => wanted.sign() > 0 && used.add(wanted) > *hard,
        _ => false,
    };
    let exceeded: Vec<&&String> = relevant.iter().filter(exceeded).collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    let show = |amounts: &Amounts| exceeded.iter().filter_map(|name| Some(format!("{name}={}", amounts.get(**name)?))).collect::<Vec<_>>().join(",");
    Err(format!("exceeded quota: {}, requested: {}, used: {}, limited: {}", quota.name(), show(wanted), show(&used), show(&hard)))
}

/// Containers that do not say how much of a bounded resource they use: `limits.memory for: c; requests.cpu for: c`.
fn unstated(hard: &Amounts, pod: &Value) -> String {
    let missing = hard.keys().filter(|name| STATED.contains(&name.as_str())).filter_map(|name| {
        let (part, resource) = name.split_once('.').unwrap_or(("requests", name));
        let silent: Vec<&str> = (["spec.containers", "spec.initContainers"].iter().flat_map(|list| pod.list_at(list)))
            .filter(|container| !resources(container, &format!("resources.{part}")).contains_key(resource))
            .filter_map(|container| container.str_at("name"))
            .collect();
        (!silent.is_empty()).then(|| format!("{name} for: {}", silent.join(",")))
    });
    missing.collect::<Vec<_>>().join("; ")
}

/// Adds what is wanted to what is used. Answers whether anything changed.
fn charge(quota: &mut Value, wanted: &Amounts) -> bool {
    let (hard, used) = (bounded(quota), resources(quota, "status.used"));
    let mut changed = false;
    for (name, amount) in wanted.iter().filter(|(name, amount)| hard.contains_key(*name) && !amount.is_zero()) {
        let sum = used.get(name).map_or(*amount, |used| used.add(amount));
        quota.set_default("status.used", Value::Object(Default::default()));
        if let Some(used) = quota.at_mut("status.used").and_then(Value::as_object_mut) {
            used.insert(name.clone(), sum.to_string().into());
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Catalogue;
    use serde_json::json;

    fn kind(group: &str, resource: &str) -> std::sync::Arc<Kind> {
        Catalogue::built_in().resource(group, resource).unwrap().clone()
    }

    #[test]
    fn what_objects_count_for() {
        let check = |group: &str, resource: &str, object: Value, expected: Value| {
            let usage: serde_json::Map<_, _> = usage(&kind(group, resource), &object).into_iter().map(|(name, amount)| (name, json!(amount.to_string()))).collect();
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
    }

    #[test]
    fn scopes_select_pods() {
        let pods = kind("", "pods");
        let quota = json!({"spec": {"scopes": ["BestEffort"]}});
        let plain = json!({"spec": {"containers": [{"name": "c"}]}});
        let asking = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1m"}}}], "priorityClassName": "high"}});
        assert!(matches(&quota, &pods, &plain) && !matches(&quota, &pods, &asking));
        let high = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(matches(&high, &pods, &asking) && !matches(&high, &pods, &plain));
        assert!(!matches(&quota, &kind("", "secrets"), &json!({})));
    }

    #[test]
    fn containers_that_say_nothing_are_named() {
        let hard: Amounts = ["limits.memory", "pods", "requests.cpu"].iter().map(|name| (name.to_string(), Quantity::ZERO)).collect();
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}, "requests": {"cpu": "1"}}}, {"name": "d"}]}});
        assert_eq!(unstated(&hard, &pod), "limits.memory for: d; requests.cpu for: d");
    }

    #[test]
    fn charges_add_up() {
        let mut quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2"}, "used": {"pods": "1"}}});
        let wanted: Amounts = [("pods".to_string(), Quantity::parse("1").unwrap()), ("cpu".to_string(), Quantity::parse("1").unwrap())].into();
        assert!(charge(&mut quota, &wanted));
        assert_eq!(quota["status"]["used"], json!({"pods": "2"}));
    }
}
