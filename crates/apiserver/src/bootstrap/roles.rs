//! Default roles and bindings, brought up to date at every start.
//!
//! A role that is there gets the rules it lacks, a binding the subjects it lacks; more than the default stays. The
//! annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` leaves an object alone. A binding whose role has
//! changed is made anew, as a binding's role cannot be changed.

use super::{ensure, first_objects, own, typed};
use crate::authorization::escalation::uncovered;
use crate::authorization::rbac::{GROUP, Rule};
use crate::{Error, Server};
use api::{Status, Value, object::ObjectExt};
use std::sync::Arc;

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

pub(super) async fn reconcile(server: &Arc<Server>) -> Result<(), Error> {
    let mut all: Vec<(&str, Value)> = Vec::new();
    for resource in ["clusterroles", "clusterrolebindings", "roles", "rolebindings"] {
        let path = format!("apis/{GROUP}/v1/{resource}");
        all.extend(first_objects(&path)?.iter().map(|object| (resource, object.clone())));
    }
    all.extend(own::roles()?);
    all.extend(own::store_copies(&server.config.bootstrap.store_copy_nodes));
    for (resource, wanted) in all {
        let name = wanted.name().to_string();
        one(server, resource, wanted).await.map_err(|status| Error::Bootstrap(format!("{resource} {name}: {status}")))?;
    }
    Ok(())
}

async fn one(server: &Arc<Server>, resource: &str, wanted: Value) -> Result<(), Status> {
    let (namespace, name) = (wanted.namespace().to_string(), wanted.name().to_string());
    let Some(entry) = server.lookup(GROUP, resource, &namespace, &name)? else {
        return ensure(server, GROUP, resource, wanted).await;
    };
    let stored = entry.value();
    match plan(&stored, &wanted) {
        Plan::Keep => Ok(()),
        Plan::Update => {
            let change = |stored: &mut Value| Ok(merge(stored, &wanted));
            server.update_internal(GROUP, resource, &namespace, &name, "", change).await.map(|_| ())
        }
        Plan::Replace => {
            server.delete_internal(GROUP, resource, &namespace, &name).await?;
            server.create_internal(GROUP, resource, &namespace, typed(server, GROUP, resource, wanted)?).await.map(|_| ())
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Keep,
    Update,
    Replace,
}

fn plan(stored: &Value, wanted: &Value) -> Plan {
    if stored.annotation(AUTO_UPDATE) == Some("false") {
        return Plan::Keep;
    }
    let role = |binding: &Value| ["kind", "name"].map(|key| binding.str_at(&format!("roleRef.{key}")).unwrap_or_default().to_string());
    if wanted.at("roleRef").is_some() && role(stored) != role(wanted) {
        return Plan::Replace;
    }
    if merge(&mut stored.clone(), wanted) { Plan::Update } else { Plan::Keep }
}

/// Adds what is missing. Answers whether anything was.
fn merge(stored: &mut Value, wanted: &Value) -> bool {
    let before = stored.clone();
    for part in ["labels", "annotations"] {
        for (key, value) in wanted.map_at(&format!("metadata.{part}")).into_iter().flatten() {
            let metadata = stored.metadata_mut().entry(part).or_insert_with(|| Value::Object(Default::default()));
            if let Some(map) = metadata.as_object_mut() {
                map.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    if let Some(rule) = wanted.get("aggregationRule") {
        // The rules of an aggregated role are put together from others, by its controller.
        stored.set_default("aggregationRule", rule.clone());
    } else {
        let held = Rule::of_role(stored);
        let missing: Vec<Value> = (wanted.list_at("rules").iter().zip(Rule::of_role(wanted)))
            .filter(|(_, rule)| !uncovered(&held, std::slice::from_ref(rule)).is_empty())
            .map(|(rule, _)| rule.clone())
            .collect();
        extend(stored, "rules", missing);
    }
    let same =
        |a: &Value, b: &Value| ["kind", "name", "namespace"].iter().all(|key| a.str_at(key).unwrap_or_default() == b.str_at(key).unwrap_or_default());
    let missing: Vec<Value> =
        wanted.list_at("subjects").iter().filter(|subject| !stored.list_at("subjects").iter().any(|known| same(known, subject))).cloned().collect();
    extend(stored, "subjects", missing);
    *stored != before
}

fn extend(object: &mut Value, key: &str, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    match object.at_mut(key) {
        Some(Value::Array(list)) => list.extend(items),
        _ => object.set(key, items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_added_and_what_is_more_stays() {
        let wanted = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]});
        let mut stored = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}, {"apiGroups": ["x"], "resources": ["y"], "verbs": ["z"]}]});
        assert_eq!(plan(&stored, &wanted), Plan::Update);
        assert!(merge(&mut stored, &wanted));
        assert_eq!(stored["rules"].as_array().unwrap().len(), 3);
        assert_eq!(plan(&stored, &wanted), Plan::Keep);
    }

    #[test]
    fn a_users_no_is_respected_and_a_changed_role_makes_a_new_binding() {
        let wanted =
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "new"}, "subjects": [{"kind": "User", "name": "a"}]});
        let mut stored = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "old"}, "subjects": []});
        assert_eq!(plan(&stored, &wanted), Plan::Replace);
        stored.set_annotation(AUTO_UPDATE, "false");
        assert_eq!(plan(&stored, &wanted), Plan::Keep);
    }
}
