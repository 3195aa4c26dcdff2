//! NodeRestriction: a node writes only what is its own: itself, its lease, the status of its pods, tokens for its pods.
//!
//! The node authorizer says which kinds of object a node may write at all; which of them, only their content tells.

use super::{AdmissionContext, Operation, Plugin};
use crate::authorization::node::node_name;
use api::{Status, Value, object::ObjectExt};
use std::collections::BTreeSet;

/// Labels with these domains say where workloads may run; a node may set only those below.
const GUARDED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "node.kubernetes.io/windows-build",
];
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels that only someone else may put on a node, whatever their name.
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) struct NodeRestriction;

#[async_trait::async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let Some(node) = node_name(cx.user) else { return Ok(()) };
        let refuse = |message: String| Err(cx.forbidden(object, message));
        if node.is_empty() {
            return refuse(format!("could not determine node from user {:?}", cx.user.name));
        }
        let verdict = match (cx.kind.group.as_str(), cx.kind.resource.as_str(), cx.subresource) {
            ("", "pods", "") => pods(cx, node, object)?,
            ("", "pods", "status") => pod_status(node, object, cx.old),
            ("", "pods", "eviction") => own_pod(cx, node, "evict")?,
            ("", "nodes", _) => nodes(cx, node, object),
            ("", "serviceaccounts", "token") => token(cx, node, object)?,
            ("", "persistentvolumeclaims", "status") => Ok(()),
            ("coordination.k8s.io", "leases", _) => lease(cx, node, object),
            ("storage.k8s.io", "csinodes", _) => named(cx, node, object, "can only modify CSINode with name"),
            _ => Ok(()),
        };
        verdict.or_else(refuse)
    }
}

type Verdict = Result<(), String>;

fn pods(cx: &AdmissionContext<'_>, node: &str, object: &Value) -> Result<Verdict, Status> {
    match cx.operation {
        Operation::Create => Ok(mirror_pod(node, object)),
        Operation::Delete => own_pod(cx, node, "delete"),
        operation => Ok(Err(format!("unexpected operation {operation:?}, node {node:?} can only create and delete mirror pods"))),
    }
}

/// A node may show its own static pods, which refer to nothing.
fn mirror_pod(node: &str, pod: &Value) -> Verdict {
    if pod.annotation(MIRROR).is_none() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if pod.str_at("spec.nodeName") != Some(node) {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    for owner in pod.owner_references() {
        if owner.kind != "Node" || owner.name != node {
            return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
    }
    if pod.str_at("spec.serviceAccountName").is_some_and(|name| !name.is_empty()) {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let refers = ["secret", "configMap", "persistentVolumeClaim", "projected"];
    let uses = |volume: &Value| refers.iter().any(|kind| volume.get(kind).is_some());
    if pod.list_at("spec.volumes").iter().any(uses) {
        return Err(format!("node {node:?} can not create pods that reference secrets, configmaps, persistentvolumeclaims or tokens"));
    }
    Ok(())
}

fn own_pod(cx: &AdmissionContext<'_>, node: &str, verb: &str) -> Result<Verdict, Status> {
    let pod = match cx.old {
        Some(old) => Some(old.clone()),
        None => cx.find("", "pods", cx.namespace, cx.name)?,
    };
    // What is not there is the next one's to say.
    let own = pod.is_none_or(|pod| pod.str_at("spec.nodeName") == Some(node));
    Ok(if own { Ok(()) } else { Err(format!("node {node:?} can only {verb} pods with spec.nodeName set to itself")) })
}

fn pod_status(node: &str, pod: &Value, old: Option<&Value>) -> Verdict {
    let bound = old.unwrap_or(pod);
    if bound.str_at("spec.nodeName") != Some(node) {
        return Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if old.is_some_and(|old| old.labels() != pod.labels()) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    Ok(())
}

fn nodes(cx: &AdmissionContext<'_>, node: &str, object: &Value) -> Verdict {
    let name = if cx.name.is_empty() { object.name() } else { cx.name };
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    if !matches!(cx.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let forbidden = changed_guarded_labels(object, cx.old);
    if !forbidden.is_empty() {
        let labels = forbidden.into_iter().collect::<Vec<_>>().join(", ");
        let verb = if cx.operation == Operation::Create { "set" } else { "modify" };
        return Err(format!("is not allowed to {verb} the following labels: {labels}"));
    }
    let Some(old) = cx.old else { return Ok(()) };
    if old.at("spec.taints") != object.at("spec.taints") {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if old.owner_references() != object.owner_references() {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    Ok(())
}

/// Labels that the write sets, changes or removes and that are not a node's to say.
fn changed_guarded_labels(node: &Value, old: Option<&Value>) -> BTreeSet<String> {
    let value = |object: Option<&Value>, key: &str| object.and_then(|object| object.label(key)).map(String::from);
    let keys = node.labels().into_iter().chain(old.and_then(|old| old.labels())).flatten().map(|(key, _)| key);
    keys.filter(|key| value(Some(node), key) != value(old, key) && is_guarded(key)).cloned().collect()
}

fn is_guarded(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if within(RESTRICTED_DOMAIN) {
        return true;
    }
    GUARDED_DOMAINS.iter().any(|domain| within(domain)) && !OWN_LABELS.contains(&label) && !OWN_DOMAINS.iter().any(|domain| within(domain))
}

/// A node gets tokens only for the pods that it runs.
fn token(cx: &AdmissionContext<'_>, node: &str, request: &Value) -> Result<Verdict, Status> {
    let bound = |key: &str| request.str_at(&format!("spec.boundObjectRef.{key}")).unwrap_or_default();
    if bound("kind") != "Pod" || !matches!(bound("apiVersion"), "v1" | "") {
        return Ok(Err("node requested token not bound to a pod".into()));
    }
    if bound("uid").is_empty() {
        return Ok(Err("node requested token with a pod binding without a uid".into()));
    }
    let Some(pod) = cx.find("", "pods", cx.namespace, bound("name"))? else {
        return Err(Status::not_found(("", "pods"), bound("name")));
    };
    if pod.uid() != bound("uid") {
        return Ok(Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            bound("uid"),
            pod.uid()
        )));
    }
    if pod.str_at("spec.nodeName") != Some(node) {
        return Ok(Err("node requested token bound to a pod scheduled on a different node".into()));
    }
    Ok(Ok(()))
}

fn lease(cx: &AdmissionContext<'_>, node: &str, object: &Value) -> Verdict {
    if cx.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    named(cx, node, object, "can only access node lease with name")
}

fn named(cx: &AdmissionContext<'_>, node: &str, object: &Value, message: &str) -> Verdict {
    let name = if cx.name.is_empty() { object.name() } else { cx.name };
    if name == node { Ok(()) } else { Err(format!("{message} {node:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_steer_workloads_are_guarded() {
        for guarded in ["node-role.kubernetes.io/control-plane", "node-restriction.kubernetes.io/x", "a.k8s.io/b", "kubernetes.io/other"] {
            assert!(is_guarded(guarded), "{guarded}");
        }
        for own in [
            "kubernetes.io/hostname",
            "kubernetes.io/os",
            "example.com/x",
            "x",
            "node.kubernetes.io/x",
            "sub.kubelet.kubernetes.io/x",
            "mykubernetes.io/x",
        ] {
            assert!(!is_guarded(own), "{own}");
        }
        let old = json!({"metadata": {"labels": {"node-role.kubernetes.io/a": "", "x": "1"}}});
        let new = json!({"metadata": {"labels": {"x": "2"}}});
        assert_eq!(changed_guarded_labels(&new, Some(&old)).into_iter().collect::<Vec<_>>(), ["node-role.kubernetes.io/a"]);
        assert!(changed_guarded_labels(&old, Some(&old)).is_empty(), "what stays is nobody's change");
    }

    #[test]
    fn a_node_shows_only_its_own_static_pods() {
        let good = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "n1"}});
        assert_eq!(mirror_pod("n1", &good), Ok(()));
        assert!(mirror_pod("n2", &good).is_err());
        assert!(mirror_pod("n1", &json!({"metadata": {}, "spec": {"nodeName": "n1"}})).is_err());
        let secret = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "n1", "volumes": [{"secret": {"secretName": "s"}}]}});
        assert!(mirror_pod("n1", &secret).is_err());
    }

    #[test]
    fn a_node_reports_only_on_its_own_pods() {
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n1"}});
        assert_eq!(pod_status("n1", &old, Some(&old)), Ok(()));
        assert!(pod_status("n2", &old, Some(&old)).is_err());
        assert!(pod_status("n1", &json!({"spec": {"nodeName": "n1"}}), Some(&old)).is_err());
    }
}
