//! What becomes of a pod whose node was away so long that the pod was replaced elsewhere, and comes back with it running.
//!
//! Kubernetes deletes such a pod while its node is away; it ends when the node returns, and the replacement stays. A pod may
//! ask for another end, by the annotation [`ON_RETURN`]:
//!
//! | value | which stays |
//! |---|---|
//! | `keep-replacement` (default) | the replacement |
//! | `keep-original` | the pod that was there first |
//! | `keep-longest-running` | whichever has run longest without a restart |
//!
//! For the latter two the pod is not deleted when its time on the lost node is over but *set aside*: it is not counted among
//! the replicas, so that a replacement is made. When its node is back and it is ready there, it counts again; the surplus is
//! then deleted by the owner, in the order that the annotation asks for. A pod that was deleted cannot be called back, so
//! this works for pods of ReplicaSets (Deployments) and ReplicationControllers alone: a StatefulSet makes no replacement
//! while its pod's object is there.

use k8s_openapi::api::core::v1::{Pod, Taint};
use serde_json::{Value, json};

use super::owner::{annotation, controller_of};
use super::pod_state::is_ready;
use crate::node_lifecycle::{NOT_READY, UNREACHABLE};

/// What the pod's owner asks for.
pub const ON_RETURN: &str = "regent.dev/on-return";
/// On a pod that is not counted: since when.
pub const SET_ASIDE: &str = "regent.dev/set-aside-at";
/// On a pod that counts again: since when.
pub const RETURNED: &str = "regent.dev/returned-at";

/// Which of two pods stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// As Kubernetes does.
    Replacement,
    /// The first one.
    Original,
    /// The one that has run longest.
    LongestRunning,
}

/// The pod's choice; what is not understood is Kubernetes' way.
pub fn choice(pod: &Pod) -> Choice {
    match annotation(pod, ON_RETURN) {
        Some("keep-original") => Choice::Original,
        Some("keep-longest-running") => Choice::LongestRunning,
        _ => Choice::Replacement,
    }
}

/// Whether the pod is not counted now.
pub fn is_set_aside(pod: &Pod) -> bool {
    annotation(pod, SET_ASIDE).is_some()
}

/// Whether a pod that must leave its node is set aside instead of deleted: only if its node is lost, not if it is drained.
pub fn sets_aside(pod: &Pod, taints: &[Taint]) -> bool {
    let lost = !taints.is_empty() && taints.iter().all(|taint| [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()));
    let replaced = controller_of(pod).is_some_and(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "ReplicationController"));
    lost && replaced && choice(pod) != Choice::Replacement
}

/// The patch that sets the pod aside.
pub fn set_aside(pod: &Pod, now: &str) -> Value {
    json!({"metadata": {"uid": pod.metadata.uid, "annotations": {SET_ASIDE: now, RETURNED: null}}})
}

/// Whether the pod can count again: its node is back, and says that it runs well.
pub fn counts_again(pod: &Pod) -> bool {
    is_ready(pod)
}

/// The patch that makes it count again.
pub fn take_back(pod: &Pod, now: &str) -> Value {
    json!({"metadata": {"uid": pod.metadata.uid, "annotations": {SET_ASIDE: null, RETURNED: now}}})
}

/// Since when all of the pod's containers have been running, in seconds of the epoch; far in the future if they do not.
fn running_since(pod: &Pod) -> i64 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let started = statuses.map(|status| Some(status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0.as_second()));
    started.map(|at| at.unwrap_or(i64::MAX)).max().unwrap_or(i64::MAX)
}

/// How pods that have returned change the order of deletion among `pods`: for each a rank, the lowest is deleted first.
pub fn ranks(pods: &[&Pod]) -> Vec<i64> {
    let returned = |pod: &&&Pod| annotation(**pod, RETURNED).is_some();
    let chosen: Vec<Choice> = pods.iter().filter(returned).map(|pod| choice(pod)).collect();
    if chosen.contains(&Choice::Original) {
        return pods.iter().map(|pod| i64::from(returned(&pod) && choice(pod) == Choice::Original)).collect();
    }
    if chosen.contains(&Choice::LongestRunning) {
        return pods.iter().map(|pod| -running_since(pod)).collect();
    }
    vec![0; pods.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::pod;
    use std::collections::BTreeMap;

    fn with(name: &str, choice: &str, returned: bool, started_s: i64) -> Pod {
        let mut pod = pod(name, "n", "Running", Some(10));
        let mut annotations = BTreeMap::from([(ON_RETURN.to_owned(), choice.to_owned())]);
        if returned {
            annotations.insert(RETURNED.into(), "x".into());
        }
        pod.metadata.annotations = Some(annotations);
        let at = jiff::Timestamp::from_second(started_s).unwrap().to_string();
        let container = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": at}}}]);
        pod.status.as_mut().unwrap().container_statuses = serde_json::from_value(container).unwrap();
        pod
    }

    fn first_to_go(pods: &[Pod]) -> String {
        let all: Vec<&Pod> = pods.iter().collect();
        let ranks = ranks(&all);
        let first = (0..pods.len()).min_by_key(|index| ranks[*index]).unwrap();
        pods[first].metadata.name.clone().unwrap()
    }

    #[test]
    fn the_annotation_says_who_stays() {
        let pair = |choice: &str, original_started: i64| [with("original", choice, true, original_started), with("replacement", choice, false, 500)];
        assert_eq!(first_to_go(&pair("keep-original", 900)), "replacement");
        assert_eq!(first_to_go(&pair("keep-longest-running", 100)), "replacement");
        assert_eq!(first_to_go(&pair("keep-longest-running", 900)), "original");
        let nobody_returned = [with("a", "keep-original", false, 1), with("b", "keep-original", false, 2)];
        assert_eq!(ranks(&nobody_returned.iter().collect::<Vec<_>>()), [0, 0]);
    }

    #[test]
    fn only_a_lost_node_sets_aside_and_only_what_is_replaced() {
        let taint = |key: &str| Taint { key: key.into(), effect: "NoExecute".into(), ..Default::default() };
        let mut pod = with("a", "keep-original", false, 1);
        assert!(!sets_aside(&pod, &[taint(UNREACHABLE)]), "nobody would replace it");
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        assert!(sets_aside(&pod, &[taint(UNREACHABLE)]));
        assert!(!sets_aside(&pod, &[taint(UNREACHABLE), taint("maintenance")]));
        assert!(!sets_aside(&pod, &[]));
        pod.metadata.annotations = None;
        assert!(!sets_aside(&pod, &[taint(UNREACHABLE)]));
    }
}
