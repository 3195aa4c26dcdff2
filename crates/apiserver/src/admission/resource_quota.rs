//! ResourceQuota: a namespace does not get more than its quotas allow.
//!
//! A quota counts by its status: `status.hard` is what holds (the quota controller copies it from the spec), `status.used` is
//! what is charged here before the object is stored. A charge whose object is not stored after all is put right by the
//! controller. Charges of one server are made one after the other, so that two creates never both take the last place.

use super::{AdmissionContext, Operation, Plugin};
use api::quota::{Amounts, matches, resources, usage};
use api::{Status, Value, object::ObjectExt};
use tokio::sync::Mutex;

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
        let part = cx.subresource.is_empty() || (cx.concerns("", "pods") && cx.subresource == "resize");
        let written = matches!(cx.operation, Operation::Create | Operation::Update) && part;
        if !written || cx.namespace.is_empty() || cx.server.cache.resource("", "resourcequotas").is_without(cx.namespace) {
            return Ok(());
        }
        let of = |object: &Value| usage(&cx.kind.group, &cx.kind.resource, object);
        let usage = of(object);
        let before = cx.old.map(of).unwrap_or_default();
        let wanted: Amounts =
            usage.into_iter().map(|(name, amount)| (name.clone(), before.get(&name).map_or(amount, |old| amount.sub(old)))).collect();
        if cx.operation == Operation::Update && wanted.values().all(|amount| amount.sign() <= 0) {
            return Ok(());
        }
        let mut quotas = cx.objects("", "resourcequotas", Some(cx.namespace))?;
        quotas.retain(|quota| {
            matches(quota, &cx.kind.group, &cx.kind.resource, object)
                && bounded(quota).keys().any(|name| wanted.contains_key(name) || must_state(cx, name))
        });
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
    use api::quantity::Quantity;
    use serde_json::json;

    #[test]
    fn containers_that_say_nothing_are_named() {
        let hard: Amounts = ["limits.memory", "pods", "requests.cpu"].iter().map(|name| (name.to_string(), Quantity::ZERO)).collect();
        let pod =
            json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}, "requests": {"cpu": "1"}}}, {"name": "d"}]}});
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
