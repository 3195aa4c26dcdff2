//! What a pod's object says about it: ready, available, finished, and which of several to delete first.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use super::owner::{annotation, controller_of};

/// The pod's phase, `Pending` if it has none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether it has run to its end.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it is being deleted.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether it counts as a replica: neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// Whether it is being deleted, but its containers may still run.
pub fn is_terminating(pod: &Pod) -> bool {
    is_deleting(pod) && !is_finished(pod)
}

/// One of the pod's conditions.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether its condition Ready is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when it has been ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|condition| condition.status == "True")?.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether it has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && available_in(pod, min_ready_seconds, now).is_none()
}

/// How long until a ready pod is available; `None` if it is, or is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if min_ready_seconds <= 0 || !is_ready(pod) {
        return None;
    }
    let min_ready = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    let Some(since) = ready_since(pod) else { return Some(min_ready) };
    let been = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    min_ready.checked_sub(been).filter(|left| !left.is_zero())
}

/// The earliest time at which one of the pods becomes available by waiting.
pub fn next_available<'a>(pods: impl IntoIterator<Item = &'a Pod>, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    pods.into_iter().filter(|pod| !is_deleting(pod)).filter_map(|pod| available_in(pod, min_ready_seconds, now)).min()
}

/// The node that the pod is bound to, if it is.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The most restarts of any of its containers.
fn restarts_max(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// The whole restarts of all of its containers.
pub fn restarts_total(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    statuses.map(|status| status.restart_count).sum()
}

/// Sorts pods so that those come first that are missed least: not bound, not running, not ready, not to be kept on
/// their node's return ([`super::on_return`]), cheap to delete, on
/// crowded nodes, ready only lately, restarted often, young.
///
/// `neighbours` counts, per node, the pods of all that serve the same purpose. Times are compared in orders of magnitude
/// of the age, so that among pods of about the same age it is not always the same one's turn.
pub fn sort_for_deletion(pods: &mut [std::sync::Arc<Pod>], neighbours: &BTreeMap<String, usize>, now: Timestamp) {
    let objects: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    let on_return: BTreeMap<String, i64> =
        objects.iter().map(|pod| super::owner::uid_of(*pod).to_owned()).zip(super::on_return::ranks(&objects)).collect();
    pods.sort_by_cached_key(|pod| {
        let phase_rank = match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost = annotation(&**pod, "controller.kubernetes.io/pod-deletion-cost").and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0);
        let crowd = node_name(pod).and_then(|node| neighbours.get(node)).copied().unwrap_or(0);
        let age_rank = |since: Option<Timestamp>| since.map_or(-1, |since| magnitude(now.duration_since(since).as_secs()));
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            node_name(pod).is_some(),
            phase_rank,
            is_ready(pod),
            on_return.get(super::owner::uid_of(&**pod)).copied().unwrap_or(0),
            cost,
            std::cmp::Reverse(crowd),
            age_rank(ready_since(pod)),
            std::cmp::Reverse(restarts_max(pod)),
            age_rank(created),
            pod.metadata.uid.clone(),
        )
    });
}

fn magnitude(age_s: i64) -> i64 {
    i64::from(age_s.max(0).checked_ilog2().map_or(0, |log| log + 1))
}

/// How many of the pods are on each node, counting those of the given owners only (all pods that serve the same purpose).
pub fn neighbours<'a>(pods: impl IntoIterator<Item = &'a Pod>, owner_uids: &[String]) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for pod in pods {
        let counted = is_active(pod) && controller_of(pod).is_some_and(|owner| owner_uids.contains(&owner.uid));
        if let Some(node) = node_name(pod).filter(|_| counted) {
            *count.entry(node.to_owned()).or_default() += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use std::sync::Arc;

    /// Names in the order of deletion.
    fn check(pods: Vec<Pod>, neighbours: &[(&str, usize)], expected: &[&str]) {
        let mut pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let neighbours = neighbours.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
        sort_for_deletion(&mut pods, &neighbours, at(10_000));
        let names: Vec<&str> = pods.iter().map(|pod| crate::common::owner::name_of(&**pod)).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn the_least_missed_go_first() {
        check(
            vec![
                pod("old-ready", "n1", "Running", Some(100)),
                pod("new-ready", "n1", "Running", Some(9_990)),
                pod("unready", "n1", "Running", None),
                pod("unbound", "", "Pending", None),
                pod("pending", "n1", "Pending", None),
            ],
            &[],
            &["unbound", "pending", "unready", "new-ready", "old-ready"],
        );
    }

    #[test]
    fn crowded_nodes_are_thinned_out_and_costs_count_first() {
        check(vec![pod("a", "n1", "Running", Some(100)), pod("b", "n2", "Running", Some(100))], &[("n1", 1), ("n2", 2)], &["b", "a"]);
        let mut dear = pod("b", "n2", "Running", Some(100));
        dear.metadata.annotations = Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "5".to_owned())].into());
        check(vec![dear, pod("a", "n1", "Running", Some(100))], &[("n2", 9)], &["a", "b"]);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let ready = pod("a", "n1", "Running", Some(100));
        assert!(is_available(&ready, 0, at(100)));
        assert!(!is_available(&ready, 10, at(105)));
        assert_eq!(available_in(&ready, 10, at(105)), Some(Duration::from_secs(5)));
        assert!(is_available(&ready, 10, at(110)));
    }
}
