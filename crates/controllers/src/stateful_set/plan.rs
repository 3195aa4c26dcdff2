//! What to do next about a StatefulSet, decided ordinal by ordinal, without I/O.
//!
//! In order (`OrderedReady`): up from the lowest, each only when all before it are available; down from the highest, each
//! only when all that remain are; then updated from the highest. `Parallel` does not wait when scaling, but updates alike.

use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity::{is_labelled, ordinal_of};
use crate::common::amounts::resolve;
use crate::common::history::HASH_LABEL;
use crate::common::owner::{labels_of, name_of};
use crate::common::pod_state;

/// What there is.
pub(super) struct View<'a> {
    pub(super) spec: &'a StatefulSetSpec,
    pub(super) name: &'a str,
    pub(super) generation: Option<i64>,
    pub(super) deleting: bool,
    pub(super) status: &'a StatefulSetStatus,
    /// The name of the revision that an update comes from.
    pub(super) current: &'a str,
    /// The name of the revision of the template as it is.
    pub(super) update: &'a str,
    /// The set's own pods.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// One thing to do.
#[derive(Debug)]
pub(super) enum Step {
    Create {
        ordinal: i32,
        from_update: bool,
    },
    Delete {
        pod: Arc<Pod>,
        recreating: Option<&'static str>,
    },
    /// An adopted pod lacks the labels that say which one it is.
    Label {
        pod: Arc<Pod>,
        ordinal: i32,
    },
}

/// What to do, in this order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
}

/// The ordinals that the set should have.
pub(super) fn ordinals(spec: &StatefulSetSpec) -> Range<i32> {
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    start..start.saturating_add(spec.replicas.unwrap_or(1).max(0))
}

fn revision_of(pod: &Pod) -> &str {
    labels_of(pod).get(HASH_LABEL).map_or("", String::as_str)
}

pub(super) fn decide(view: &View<'_>) -> Plan {
    let mut steps = Vec::new();
    if !view.deleting {
        walk(view, &mut steps);
    }
    Plan { steps, status: status_of(view) }
}

fn walk(view: &View<'_>, steps: &mut Vec<Step>) {
    let spec = view.spec;
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let healthy = |pod: &Pod| {
        pod_state::phase(pod) == "Running"
            && !pod_state::is_deleting(pod)
            && pod_state::is_available(pod, spec.min_ready_seconds.unwrap_or(0), view.now)
    };
    let wanted = ordinals(spec);
    let pod_of = |ordinal: i32| view.pods.iter().find(|pod| ordinal_of(view.name, name_of(&***pod)) == Some(ordinal));
    let slots: Vec<(i32, Option<&Arc<Pod>>)> = wanted.clone().map(|ordinal| (ordinal, pod_of(ordinal))).collect();
    let mut condemned: Vec<(i32, &Arc<Pod>)> = view
        .pods
        .iter()
        .filter_map(|pod| ordinal_of(view.name, name_of(&**pod)).map(|ordinal| (ordinal, pod)))
        .filter(|(ordinal, _)| !wanted.contains(ordinal))
        .collect();
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    // The one that is waited for; if it is itself condemned, waiting for it would be for ever.
    let first_unhealthy = slots.iter().filter_map(|(_, pod)| *pod).chain(condemned.iter().rev().map(|(_, pod)| *pod)).find(|pod| !healthy(pod));

    for (ordinal, pod) in &slots {
        let Some(pod) = pod else {
            steps.push(Step::Create { ordinal: *ordinal, from_update: !stays_behind(view, *ordinal) });
            if ordered {
                return;
            }
            continue;
        };
        if pod_state::is_finished(pod) {
            if !pod_state::is_deleting(pod) {
                let what = if pod_state::phase(pod) == "Failed" { "failed" } else { "terminated" };
                steps.push(Step::Delete { pod: Arc::clone(pod), recreating: Some(what) });
            }
            if ordered {
                return;
            }
            continue;
        }
        if !pod_state::is_deleting(pod) && !is_labelled(pod, *ordinal) {
            steps.push(Step::Label { pod: Arc::clone(pod), ordinal: *ordinal });
        }
        if ordered && !healthy(pod) {
            return;
        }
    }
    for (_, pod) in condemned {
        if pod_state::is_deleting(pod) {
            if ordered {
                return;
            }
            continue;
        }
        if ordered && first_unhealthy.is_some_and(|unhealthy| !Arc::ptr_eq(unhealthy, pod)) {
            return;
        }
        steps.push(Step::Delete { pod: Arc::clone(pod), recreating: None });
        if ordered {
            return;
        }
    }
    if spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let replicas = spec.replicas.unwrap_or(1);
    let mut may_be_down = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).map_or(1, |amount| resolve(amount, replicas, true)).max(1);
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0).max(0);
    for (ordinal, pod) in slots.iter().rev() {
        if may_be_down == 0 || *ordinal < wanted.start.saturating_add(partition) {
            return;
        }
        let Some(pod) = pod else {
            may_be_down -= 1;
            continue;
        };
        if !pod_state::is_deleting(pod) && revision_of(pod) != view.update {
            steps.push(Step::Delete { pod: Arc::clone(pod), recreating: None });
            may_be_down -= 1;
        } else if !healthy(pod) {
            may_be_down -= 1;
        }
    }
}

/// Whether a missing pod of this ordinal is made from the old revision: the update has not come to it yet.
fn stays_behind(view: &View<'_>, ordinal: i32) -> bool {
    let strategy = view.spec.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return false;
    }
    let behind = match strategy.rolling_update {
        Some(rolling) => rolling.partition.unwrap_or(0),
        None => view.status.current_replicas.unwrap_or(0),
    };
    ordinal < ordinals(view.spec).start.saturating_add(behind)
}

fn status_of(view: &View<'_>) -> StatefulSetStatus {
    let count = |counts: &dyn Fn(&Pod) -> bool| i32::try_from(view.pods.iter().filter(|pod| counts(pod)).count()).unwrap_or(i32::MAX);
    let ready = |pod: &Pod| pod_state::phase(pod) == "Running" && pod_state::is_ready(pod);
    let replicas = count(&|_| true);
    let ready_replicas = count(&ready);
    let available = count(&|pod| ready(pod) && pod_state::is_available(pod, view.spec.min_ready_seconds.unwrap_or(0), view.now));
    let mut current_replicas = count(&|pod| !pod_state::is_deleting(pod) && revision_of(pod) == view.current);
    let updated = count(&|pod| !pod_state::is_deleting(pod) && revision_of(pod) == view.update);
    let mut current = view.current;
    // An update is over when every pod is of the new revision and ready.
    let rolling = view.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
    if rolling && updated == replicas && ready_replicas == replicas && current != view.update {
        current = view.update;
        current_replicas = updated;
    }
    let counted = |count: i32| (count != 0).then_some(count);
    StatefulSetStatus {
        observed_generation: view.generation,
        replicas,
        ready_replicas: counted(ready_replicas),
        available_replicas: Some(available),
        current_replicas: counted(current_replicas),
        updated_replicas: counted(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(view.update.to_owned()),
        collision_count: Some(view.status.collision_count.unwrap_or(0)),
        conditions: view.status.conditions.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use crate::stateful_set::identity::labels;
    use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetOrdinals, StatefulSetUpdateStrategy};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    /// Pods as `ordinal:revision:state`, where the state is ready, starting, failed or leaving.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |word: &str| {
            let [ordinal, revision, state] = word.split(':').collect::<Vec<_>>()[..] else { panic!("{word}") };
            let name = format!("web-{ordinal}");
            let phase = if state == "failed" { "Failed" } else { "Running" };
            let mut pod = pod(&name, "n", phase, (state == "ready").then_some(1));
            let mut own = labels(&name, ordinal.parse().unwrap());
            own.insert(HASH_LABEL.into(), revision.into());
            pod.metadata.labels = Some(own);
            if state == "leaving" {
                pod.metadata.deletion_timestamp = Some(Time(at(1)));
            }
            Arc::new(pod)
        };
        text.split_whitespace().map(one).collect()
    }

    fn spec(replicas: i32, policy: &str, partition: i32) -> StatefulSetSpec {
        StatefulSetSpec {
            replicas: Some(replicas),
            pod_management_policy: Some(policy.into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(partition), max_unavailable: None }),
            }),
            ..Default::default()
        }
    }

    fn shown(spec: &StatefulSetSpec, have: &str) -> String {
        let pods = pods(have);
        let status = StatefulSetStatus::default();
        let view =
            View { spec, name: "web", generation: None, deleting: false, status: &status, current: "v1", update: "v2", pods: &pods, now: at(1000) };
        let plan = decide(&view);
        let step = |step: &Step| match step {
            Step::Create { ordinal, from_update } => format!("+{ordinal}{}", if *from_update { "" } else { " old" }),
            Step::Delete { pod, recreating } => format!("-{}{}", name_of(&**pod), recreating.map_or(String::new(), |what| format!(" {what}"))),
            Step::Label { ordinal, .. } => format!("label {ordinal}"),
        };
        plan.steps.iter().map(step).collect::<Vec<_>>().join(",")
    }

    fn check(spec: &StatefulSetSpec, have: &str, expected: &str) {
        assert_eq!(shown(spec, have), expected, "{have}");
    }

    #[test]
    fn in_order_each_waits_for_those_before() {
        let spec = spec(3, "OrderedReady", 0);
        check(&spec, "", "+0");
        check(&spec, "0:v2:starting", "");
        check(&spec, "0:v2:ready", "+1");
        check(&spec, "0:v2:ready 1:v2:failed", "-web-1 failed");
        check(&spec, "0:v2:ready 1:v2:leaving", "");
        check(&spec, "0:v2:ready 1:v2:ready 2:v2:ready", "");
    }

    #[test]
    fn down_goes_from_the_highest() {
        let spec = spec(1, "OrderedReady", 0);
        check(&spec, "0:v2:ready 1:v2:ready 2:v2:ready", "-web-2");
        check(&spec, "0:v2:ready 1:v2:ready 2:v2:leaving", "");
        check(&spec, "0:v2:ready 1:v2:starting 2:v2:ready", "");
        check(&spec, "0:v2:ready 1:v2:starting", "-web-1");
    }

    #[test]
    fn in_parallel_nobody_waits() {
        check(&spec(3, "Parallel", 0), "1:v2:starting", "+0,+2");
        check(&spec(0, "Parallel", 0), "0:v2:ready 1:v2:starting", "-web-1,-web-0");
    }

    #[test]
    fn updates_go_from_the_highest_down_to_the_partition() {
        let whole = spec(3, "OrderedReady", 0);
        check(&whole, "0:v1:ready 1:v1:ready 2:v1:ready", "-web-2");
        check(&whole, "0:v1:ready 1:v1:ready", "+2");
        check(&whole, "0:v1:ready 1:v1:ready 2:v2:starting", "");
        check(&whole, "0:v1:ready 1:v1:ready 2:v2:ready", "-web-1");
        let part = spec(3, "OrderedReady", 2);
        check(&part, "0:v1:ready 1:v1:ready 2:v2:ready", "");
        check(&part, "1:v1:ready 2:v2:ready", "+0 old");
    }

    #[test]
    fn ordinals_may_start_anywhere() {
        let mut spec = spec(2, "OrderedReady", 0);
        spec.ordinals = Some(StatefulSetOrdinals { start: Some(5) });
        check(&spec, "5:v2:ready", "+6");
        check(&spec, "0:v2:ready 5:v2:ready 6:v2:ready", "-web-0");
    }

    #[test]
    fn an_update_is_over_when_all_are_new_and_ready() {
        let spec = spec(1, "OrderedReady", 0);
        let done = |have: &str| {
            let (pods, status) = (pods(have), StatefulSetStatus::default());
            let view = View {
                spec: &spec,
                name: "web",
                generation: None,
                deleting: false,
                status: &status,
                current: "v1",
                update: "v2",
                pods: &pods,
                now: at(1000),
            };
            decide(&view).status.current_revision.unwrap()
        };
        assert_eq!(done("0:v2:starting"), "v1");
        assert_eq!(done("0:v2:ready"), "v2");
    }
}
