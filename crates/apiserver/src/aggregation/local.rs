//! The APIServices of what this server serves itself. Those of its own groups are made when the server starts; those of the
//! groups of definitions come and go with these, and are put right when somebody changes them.

use super::{GROUP, RESOURCE};
use crate::Server;
use api::{Status, Value, kinds::metrics, object::ObjectExt};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

/// Marks an APIService that the server keeps: `onstart` for its own groups, `true` for those of definitions.
const KEPT: &str = "kube-aggregator.kubernetes.io/automanaged";
/// The priorities of what definitions make: of the group and of its versions.
const OF_DEFINITIONS: (i64, i64) = (1000, 100);

/// The groups of Kubernetes with their priorities: clients that look for a kind without a group take the highest.
const PRIORITIES: &[(&str, i64)] = &[
    (GROUP, 20_000),
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("admissionregistration.k8s.io", 16_700),
    ("apiextensions.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    (metrics::GROUP, 100),
];

/// The priority of a group that this server serves.
pub fn group_priority(group: &str) -> i64 {
    PRIORITIES.iter().find(|(name, _)| *name == group).map_or(OF_DEFINITIONS.0, |(_, priority)| *priority)
}

fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", _) => 21,
        (metrics::GROUP, _) => 100,
        _ => 15,
    }
}

/// What was made at the start of this server.
#[derive(Default)]
pub struct Registered {
    own: bool,
    failed: bool,
}

impl Registered {
    /// Whether there is something to do though nothing has changed.
    pub fn is_due(&self, server: &Server) -> bool {
        self.failed || (!self.own && server.health.is_bootstrapped())
    }
}

fn service(group: &str, version: &str, own: bool) -> Value {
    let (group_priority, version_priority) = if own { (group_priority(group), version_priority(group, version)) } else { OF_DEFINITIONS };
    let mut spec = json!({"groupPriorityMinimum": group_priority, "version": version, "versionPriority": version_priority});
    if !group.is_empty() {
        spec["group"] = json!(group);
    }
    json!({"metadata": {"name": format!("{version}.{group}"), "labels": {KEPT: if own { "onstart" } else { "true" }}}, "spec": spec})
}

/// The APIService of a group that this server serves itself.
pub fn own_service(group: &str, version: &str) -> Value {
    service(group, version, true)
}

/// Whether the server has made an APIService.
pub fn is_kept(service: &Value) -> bool {
    service.label(KEPT).is_some()
}

/// What shall be there, by name: (group, version, whether this server is built with it).
fn wanted(server: &Server) -> BTreeMap<String, (String, String, bool)> {
    let mut wanted = BTreeMap::new();
    let catalogue = server.catalogue.load();
    for kind in catalogue.iter().filter(|kind| kind.group != GROUP) {
        for version in &kind.versions {
            let entry = wanted.entry(format!("{version}.{}", kind.group)).or_insert_with(|| (kind.group.clone(), version.clone(), false));
            entry.2 |= kind.custom.is_none();
        }
    }
    wanted
}

/// Makes what is missing, puts right what definitions have made, and removes what they no longer make.
pub async fn keep(server: &Arc<Server>, services: &[Value], registered: &mut Registered) -> Result<(), Status> {
    if !server.health.is_bootstrapped() {
        return Ok(());
    }
    registered.failed = true;
    let wanted = wanted(server);
    let standing: BTreeMap<&str, &Value> = services.iter().map(|service| (service.name(), service)).collect();
    for (name, (group, version, own)) in &wanted {
        let object = service(group, version, *own);
        match standing.get(name.as_str()) {
            None if *own && registered.own => {}
            None => match server.create_internal(GROUP, RESOURCE, "", object).await {
                Err(status) if !status.is_already_exists() => return Err(status),
                _ => {}
            },
            Some(standing) if !own && standing.label(KEPT) == Some("true") && standing.get("spec") != object.get("spec") => {
                let spec = object["spec"].clone();
                let change = |current: &mut Value| {
                    let changes = current.get("spec") != Some(&spec);
                    current.set("spec", spec.clone());
                    Ok(changes)
                };
                server.update_internal(GROUP, RESOURCE, "", name, "", change).await?;
            }
            Some(_) => {}
        }
    }
    for (name, _) in standing.iter().filter(|(name, service)| service.label(KEPT) == Some("true") && !wanted.contains_key(**name)) {
        match server.delete_internal(GROUP, RESOURCE, "", name).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    *registered = Registered { own: true, failed: false };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_come_before_those_of_definitions() {
        assert!(group_priority("") > group_priority("apps") && group_priority("apps") > group_priority("example.com"));
        assert_eq!(service("", "v1", true)["metadata"]["name"], "v1.");
        let made = service("example.com", "v1", false);
        assert_eq!((made["spec"]["groupPriorityMinimum"].as_i64(), made.label(KEPT)), (Some(1000), Some("true")));
    }
}
