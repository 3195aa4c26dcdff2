//! DaemonSets: one pod on every node that may have it.
//!
//! Reads DaemonSets, nodes, pods and revisions; owns the DaemonSets' pods, revisions and status. It decides itself where
//! its pods belong (names, selectors, affinity, taints) and tells the scheduler by a node affinity to the one node.
//! Updates go node by node: within `maxUnavailable` old pods are deleted, within `maxSurge` new ones come first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Recorder, Warning};
use client::placement::NodeMatch;
use client::taints::untolerated;
use client::{Change, Clock, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;

use crate::Context;
use crate::common::amounts::resolve;
use crate::common::history::{self, HASH_LABEL, Outcome};
use crate::common::owner::{Owner, annotation, labels_of, name_of, workload_selector};
use crate::common::pods::{PodControl, from_template, slow_start};
use crate::common::{claim, patch, pod_state};

/// Pods created or deleted in one reconcile at most.
const BURST_PODS: usize = 250;
/// The longest pause before a failed pod is replaced once more.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// The label of a template's generation, kept for old clients.
const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

struct DaemonSets {
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    pods: PodControl,
    recorder: Recorder,
    clock: Clock,
    failures: Mutex<Failures>,
}

/// Where pods have failed, so that one that fails again and again is not replaced without a pause. It is lost with the
/// process, which costs nothing but one early try.
#[derive(Default)]
struct Failures(HashMap<(String, String), (u32, Timestamp)>);

impl Failures {
    /// How long the set's pod on this node must stay failed.
    fn left(&self, set_uid: &str, node: &str, now: Timestamp) -> Option<Duration> {
        let (count, last) = self.0.get(&(set_uid.to_owned(), node.to_owned()))?;
        let pause = Duration::from_secs(1).saturating_mul(1 << (count - 1).min(10)).min(FAILURE_PAUSE_MAX);
        let passed = Duration::try_from(now.duration_since(*last)).unwrap_or(Duration::ZERO);
        pause.checked_sub(passed).filter(|left| !left.is_zero())
    }

    fn note(&mut self, set_uid: &str, node: &str, now: Timestamp) {
        // Whoever has not failed for long has recovered.
        self.0.retain(|_, (_, last)| Duration::try_from(now.duration_since(*last)).is_ok_and(|passed| passed < 2 * FAILURE_PAUSE_MAX));
        let entry = self.0.entry((set_uid.to_owned(), node.to_owned())).or_insert((0, now));
        *entry = (entry.0.saturating_add(1), now);
    }
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(DaemonSets {
        sets: context.informers.all(),
        nodes: context.informers.all(),
        revisions: context.informers.all(),
        pods: PodControl::new(context, "daemonset-controller"),
        recorder: context.recorder_for("daemonset-controller"),
        clock: context.clock.clone(),
        failures: Mutex::default(),
    })
}

/// The pod specification that the DaemonSet's pods have on this node: bound to it by affinity, and tolerating what
/// happens to nodes.
fn pod_spec_for(template: &PodSpec, node: &str) -> PodSpec {
    let mut spec = template.clone();
    let here = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.into()]) }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // The template's own terms have been checked by us; the scheduler needs only the node.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: vec![here] });
    spec.tolerations = Some(tolerations_for(template));
    spec
}

/// What the DaemonSet's pods tolerate: what the template says, and what happens to nodes.
fn tolerations_for(template: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = template.tolerations.clone().unwrap_or_default();
    let mut tolerated = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if template.host_network == Some(true) {
        tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    for (key, effect) in tolerated {
        let toleration = Toleration { key: Some(key.into()), operator: Some("Exists".into()), effect: Some(effect.into()), ..Default::default() };
        // One for the same taint gives way.
        tolerations.retain(|t| t.key != toleration.key || t.effect != toleration.effect);
        tolerations.push(toleration);
    }
    tolerations
}

/// What a DaemonSet's template says of nodes: read once, asked about each.
struct Placement<'a> {
    node_name: Option<&'a str>,
    nodes: NodeMatch,
    tolerations: Vec<Toleration>,
}

impl Placement<'_> {
    fn of(template: &PodSpec) -> Placement<'_> {
        Placement {
            node_name: template.node_name.as_deref().filter(|name| !name.is_empty()),
            nodes: NodeMatch::of_spec(template),
            tolerations: tolerations_for(template),
        }
    }

    /// Whether the DaemonSet's pods should come to the node, and whether one that is there may stay.
    fn allows(&self, node: &Node) -> (bool, bool) {
        let bound_elsewhere = self.node_name.is_some_and(|name| name != name_of(node));
        if bound_elsewhere || !self.nodes.matches(name_of(node), labels_of(node)) {
            return (false, false);
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let may_come = untolerated(taints, &self.tolerations, &["NoSchedule", "NoExecute"]).is_none();
        let may_stay = untolerated(taints, &self.tolerations, &["NoExecute"]).is_none();
        (may_come, may_stay)
    }
}

/// The node that a pod is on, or is meant for.
fn node_of(pod: &Pod) -> Option<&str> {
    if let Some(node) = pod_state::node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.iter().find(|field| field.key == "metadata.name" && field.operator == "In")?;
    field.values.as_ref()?.first().map(String::as_str)
}

/// What there is.
struct View<'a> {
    spec: &'a DaemonSetSpec,
    generation: Option<i64>,
    collision_count: Option<i32>,
    nodes: &'a [Arc<Node>],
    /// The set's own pods.
    pods: &'a [Arc<Pod>],
    /// The hash of the current template's revision.
    hash: &'a str,
    /// Nodes where the pod has failed just now, again: it is left alone for a while.
    held_back: &'a BTreeSet<String>,
    now: Timestamp,
}

/// What to do.
#[derive(Debug, Default)]
struct Plan {
    /// Nodes that need a pod.
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
    /// Failed pods among those to delete, with their nodes: worth an event.
    failed: Vec<(Arc<Pod>, String)>,
    status: DaemonSetStatus,
}

fn decide(view: &View<'_>) -> Plan {
    let template = view.spec.template.spec.clone().unwrap_or_default();
    let min_ready = view.spec.min_ready_seconds.unwrap_or(0);
    let mut plan = Plan::default();
    let mut on_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in view.pods {
        if let Some(node) = node_of(pod) {
            on_node.entry(node).or_default().push(pod);
        }
    }
    let is_current = |pod: &Pod| labels_of(pod).get(HASH_LABEL).is_some_and(|hash| hash == view.hash);
    let available = |pod: &Pod| pod_state::is_available(pod, min_ready, view.now);
    let placement = Placement::of(&template);
    let placed: Vec<(&str, bool, bool)> = view
        .nodes
        .iter()
        .map(|node| {
            let (may_come, may_stay) = placement.allows(node);
            (name_of(&**node), may_come, may_stay)
        })
        .collect();
    let desired = i32::try_from(placed.iter().filter(|(_, may_come, _)| *may_come).count()).unwrap_or(i32::MAX);
    let (max_surge, max_unavailable) = rolling(view.spec, desired);

    let mut existing: BTreeSet<&str> = BTreeSet::new();
    for (node, may_come, may_stay) in &placed {
        existing.insert(node);
        let mut here = on_node.get(node).cloned().unwrap_or_default();
        here.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.metadata.name.clone()));
        if *may_stay || *may_come {
            let mut kept: Vec<&Arc<Pod>> = Vec::new();
            let mut terminating = false;
            for pod in here {
                let held_back = pod_state::phase(pod) == "Failed" && view.held_back.contains(*node);
                if pod_state::is_deleting(pod) || held_back {
                    terminating = true;
                } else if pod_state::phase(pod) == "Failed" {
                    plan.failed.push((pod.clone(), (*node).to_owned()));
                    plan.delete.push(pod.clone());
                    terminating = true;
                } else if pod_state::phase(pod) == "Succeeded" {
                    plan.delete.push(pod.clone());
                    terminating = true;
                } else {
                    kept.push(pod);
                }
            }
            match kept.as_slice() {
                // A pod that is leaving still has the node's ports and volumes: its successor comes when it is gone.
                [] if *may_come && !terminating => plan.create.push((*node).to_owned()),
                [] => {}
                [_, rest @ ..] => {
                    // During a surge an old and a new pod share the node until the new one is available.
                    let current = kept.iter().find(|pod| is_current(pod));
                    let old = kept.iter().find(|pod| !is_current(pod));
                    match (current, old) {
                        (Some(current), Some(old)) if max_surge > 0 && !rest.is_empty() => {
                            for pod in kept.iter().filter(|pod| !Arc::ptr_eq(pod, current) && !Arc::ptr_eq(pod, old)) {
                                plan.delete.push(Arc::clone(pod));
                            }
                            if available(current) || !pod_state::is_ready(old) {
                                plan.delete.push(Arc::clone(old));
                            }
                        }
                        _ => plan.delete.extend(rest.iter().map(|pod| Arc::clone(pod))),
                    }
                }
            }
        } else {
            plan.delete.extend(here.into_iter().filter(|pod| !pod_state::is_deleting(pod)).cloned());
        }
    }
    // Bound pods of nodes that are gone are the pod garbage collector's; those not bound yet would wait for ever.
    for (node, pods) in &on_node {
        if !existing.contains(node) {
            plan.delete
                .extend(pods.iter().filter(|pod| pod_state::node_name(pod).is_none() && !pod_state::is_deleting(pod)).map(|pod| Arc::clone(pod)));
        }
    }

    if view.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete") && !view.hash.is_empty() {
        roll(&placed, &on_node, (max_surge, max_unavailable), &is_current, &available, &mut plan);
    }
    plan.create.truncate(BURST_PODS);
    plan.delete.truncate(BURST_PODS);
    plan.status = status_of(view, &placed, &on_node, &is_current, &available);
    plan
}

/// The resolved `maxSurge` and `maxUnavailable`.
fn rolling(spec: &DaemonSetSpec, desired: i32) -> (i32, i32) {
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let max_surge = rolling.max_surge.map_or(0, |amount| resolve(&amount, desired, true));
    let max_unavailable = resolve(&rolling.max_unavailable.unwrap_or(IntOrString::Int(1)), desired, true);
    (max_surge, if max_surge == 0 && max_unavailable == 0 { 1 } else { max_unavailable })
}

/// One step of a rolling update, added to the plan.
fn roll(
    placed: &[(&str, bool, bool)],
    on_node: &BTreeMap<&str, Vec<&Arc<Pod>>>,
    (max_surge, max_unavailable): (i32, i32),
    is_current: &dyn Fn(&Pod) -> bool,
    available: &dyn Fn(&Pod) -> bool,
    plan: &mut Plan,
) {
    let mut unavailable_nodes = 0;
    let mut surging = 0;
    let mut broken: Vec<Arc<Pod>> = Vec::new();
    let mut good: Vec<(Arc<Pod>, &str)> = Vec::new();
    for (node, _, _) in placed.iter().filter(|(_, may_come, _)| *may_come) {
        let live: Vec<&&Arc<Pod>> = on_node.get(node).map(|pods| pods.iter().filter(|pod| pod_state::is_active(pod)).collect()).unwrap_or_default();
        let current = live.iter().find(|pod| is_current(pod));
        let old = live.iter().find(|pod| !is_current(pod));
        if max_surge > 0 {
            match (current, old) {
                (Some(current), Some(_)) if !available(current) => surging += 1,
                (None, Some(old)) if !available(old) => broken.push(Arc::clone(old)),
                (None, Some(old)) => good.push((Arc::clone(old), node)),
                _ => {}
            }
            continue;
        }
        match (current, old) {
            (Some(current), _) if available(current) => {}
            (None, Some(old)) if available(old) => good.push((Arc::clone(old), node)),
            (None, Some(old)) => {
                unavailable_nodes += 1;
                broken.push(Arc::clone(old));
            }
            _ => unavailable_nodes += 1,
        }
    }
    if max_surge > 0 {
        // A broken old pod needs no overlap: its node gets a new one like any other, and it goes when that is there.
        let room = usize::try_from(max_surge - surging).unwrap_or(0);
        let candidates = broken.iter().filter_map(|pod| node_of(pod).map(str::to_owned)).chain(good.iter().map(|(_, node)| (*node).to_owned()));
        plan.create.extend(candidates.take(room).collect::<Vec<_>>());
        return;
    }
    // What is down anyway costs nothing to replace.
    let room = usize::try_from(max_unavailable - unavailable_nodes).unwrap_or(0);
    plan.delete.extend(broken);
    plan.delete.extend(good.into_iter().map(|(pod, _)| pod).take(room));
}

fn status_of(
    view: &View<'_>,
    placed: &[(&str, bool, bool)],
    on_node: &BTreeMap<&str, Vec<&Arc<Pod>>>,
    is_current: &dyn Fn(&Pod) -> bool,
    available: &dyn Fn(&Pod) -> bool,
) -> DaemonSetStatus {
    let (mut desired, mut scheduled, mut misscheduled, mut ready, mut avail, mut updated) = (0, 0, 0, 0, 0, 0);
    for (node, may_come, _) in placed {
        let mut pods: Vec<&&Arc<Pod>> = on_node.get(node).map(|pods| pods.iter().collect()).unwrap_or_default();
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        if !may_come {
            misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        desired += 1;
        let Some(oldest) = pods.first() else { continue };
        scheduled += 1;
        // The oldest stands for the node, except that any of the node's that is ready serves its users.
        let serving = pods.iter().find(|pod| pod_state::is_ready(pod)).unwrap_or(oldest);
        ready += i32::from(pod_state::is_ready(serving));
        avail += i32::from(available(serving));
        updated += i32::from(pods.iter().any(|pod| is_current(pod) && !pod_state::is_deleting(pod)));
    }
    let counted = |count: i32| (count != 0).then_some(count);
    DaemonSetStatus {
        current_number_scheduled: scheduled,
        desired_number_scheduled: desired,
        number_misscheduled: misscheduled,
        number_ready: ready,
        number_available: counted(avail),
        number_unavailable: counted(desired - avail),
        updated_number_scheduled: counted(updated),
        observed_generation: view.generation,
        collision_count: view.collision_count,
        conditions: None,
    }
}

#[async_trait]
impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.sets);
        inputs.owned(self.pods.pods(), "DaemonSet");
        inputs.owned(&self.revisions, "DaemonSet");
        let sets = self.sets.clone();
        inputs.mapped(&self.nodes, move |change| sets_affected(change, &sets));
        let sets = self.sets.clone();
        inputs.mapped(self.pods.pods(), move |change| {
            claim::adopters(change, &sets, |set| set.spec.as_ref().and_then(|spec| workload_selector(&spec.selector)))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else { return Ok(Next::Done) };
        let Some(spec) = set.spec.as_ref() else { return Ok(Next::Done) };
        let owner = Owner::of(&*set);
        let Some(selector) = workload_selector(&spec.selector) else {
            self.recorder.event(
                &owner.about,
                Warning,
                "SelectingAll",
                "",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Next::Done);
        };
        if owner.deleting {
            return Ok(Next::Done);
        }
        let known = claim::claim(&self.sets, &owner, &self.revisions, Some(&selector), |_| true).await?;
        let template_labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let step = history::decide(&owner, &template_labels, &spec.template, &known, collisions);
        let current = match history::apply(&self.revisions, step).await? {
            Outcome::Revision(revision) => revision,
            Outcome::Collision => {
                let old = set.status.clone().unwrap_or_default();
                let status = DaemonSetStatus { collision_count: Some(collisions.unwrap_or(0) + 1), ..old.clone() };
                patch::write_status(&self.sets, &set, Some(&old), &status).await?;
                return Err(Error::NotYet("the new revision's name is taken".into()));
            }
        };
        let hash = history::hash_of(&current).to_owned();
        let pods = claim::claim(&self.sets, &owner, self.pods.pods(), Some(&selector), |pod| !pod_state::is_finished(pod)).await?;
        let nodes = self.nodes.list();
        let now = self.clock.now();
        let mut held_back = BTreeSet::new();
        let mut soonest = pod_state::next_available(pods.iter().map(|pod| &**pod), spec.min_ready_seconds.unwrap_or(0), now);
        for node in pods.iter().filter(|pod| pod_state::phase(pod) == "Failed").filter_map(|pod| node_of(pod)) {
            if let Some(left) = self.failures.lock().left(owner.uid(), node, now) {
                held_back.insert(node.to_owned());
                soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
            }
        }
        let plan = decide(&View {
            spec,
            generation: set.metadata.generation,
            collision_count: collisions,
            nodes: &nodes,
            pods: &pods,
            hash: &hash,
            held_back: &held_back,
            now,
        });
        for (_, node) in &plan.failed {
            self.failures.lock().note(owner.uid(), node, now);
        }
        let outcome = self.apply(&set, spec, &owner, &hash, &plan).await;
        patch::write_status(&self.sets, &set, set.status.as_ref(), &plan.status).await?;
        outcome?;

        let mut in_use: BTreeSet<String> = pods.iter().filter_map(|pod| labels_of(&**pod).get(HASH_LABEL).cloned()).collect();
        in_use.insert(hash);
        history::delete(&self.revisions, &history::surplus(&known, &in_use, spec.revision_history_limit.unwrap_or(10))).await?;
        Ok(soonest.map_or(Next::Done, Next::After))
    }
}

impl DaemonSets {
    async fn apply(&self, set: &DaemonSet, spec: &DaemonSetSpec, owner: &Owner, hash: &str, plan: &Plan) -> Result<(), Error> {
        for (pod, node) in &plan.failed {
            let message = format!("Found failed daemon pod {} on node {node}, will try to kill it", Key::of(&**pod));
            self.recorder.event(&owner.about, Warning, "FailedDaemonPod", "", message);
        }
        let deleted = futures::future::join_all(plan.delete.iter().map(|pod| self.pods.delete(owner, pod))).await;
        deleted.into_iter().collect::<Result<(), _>>()?;

        let mut pod = from_template(&spec.template, owner);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(HASH_LABEL.into(), hash.to_owned());
        if let Some(generation) = annotation(set, GENERATION_ANNOTATION) {
            labels.insert(GENERATION_LABEL.into(), generation.to_owned());
        }
        let template = spec.template.spec.clone().unwrap_or_default();
        let (_, outcome) = slow_start(plan.create.len(), |n| {
            let mut pod = pod.clone();
            pod.spec = Some(pod_spec_for(&template, &plan.create[n]));
            async move {
                match self.pods.create(owner, &pod).await {
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    created => created.map(drop),
                }
            }
        })
        .await;
        Ok(outcome?)
    }
}

/// The DaemonSets for which a node's change makes a difference.
fn sets_affected(change: &Change<Node>, sets: &Informer<DaemonSet>) -> Vec<Key> {
    let differs = |set: &DaemonSet| {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else { return false };
        let placement = Placement::of(template);
        match change {
            Change::Applied { old: Some(old), new } => placement.allows(old) != placement.allows(new),
            Change::Applied { old: None, new } => placement.allows(new) != (false, false),
            Change::Deleted(_) => true,
        }
    };
    // Heartbeats change nodes all the time: look at what placement depends on before asking every DaemonSet.
    if let Change::Applied { old: Some(old), new } = change
        && old.metadata.labels == new.metadata.labels
        && old.spec.as_ref().map(|spec| &spec.taints) == new.spec.as_ref().map(|spec| &spec.taints)
    {
        return Vec::new();
    }
    sets.list().iter().filter(|set| differs(set)).map(|set| Key::of(&**set)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use k8s_openapi::api::apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::api::ObjectMeta;

    fn node(name: &str, taint: Option<(&str, &str)>) -> Arc<Node> {
        let taints = taint.map(|(key, effect)| vec![Taint { key: key.into(), effect: effect.into(), value: None, time_added: None }]);
        Arc::new(Node {
            metadata: ObjectMeta { name: Some(name.into()), ..Default::default() },
            spec: Some(NodeSpec { taints, ..Default::default() }),
            status: None,
        })
    }

    /// A pod as `node:hash:state`, where the state is ready, starting, failed or leaving.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |(at_s, word): (usize, &str)| {
            let [node, hash, state] = word.split(':').collect::<Vec<_>>()[..] else { panic!("{word}") };
            let at_s = i64::try_from(at_s).unwrap() + 1;
            let phase = if state == "failed" { "Failed" } else { "Running" };
            let mut pod = pod(&format!("{node}-{hash}"), node, phase, (state == "ready").then_some(at_s));
            pod.metadata.creation_timestamp = Some(Time(at(at_s)));
            pod.metadata.labels = Some([(HASH_LABEL.to_owned(), hash.to_owned())].into());
            if state == "leaving" {
                pod.metadata.deletion_timestamp = Some(Time(at(1)));
            }
            Arc::new(pod)
        };
        text.split_whitespace().enumerate().map(one).collect()
    }

    fn check(surge: i32, unavailable: i32, nodes: &[Arc<Node>], have: &str, expected: &str) {
        let spec = DaemonSetSpec {
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            ..Default::default()
        };
        let pods = pods(have);
        let plan = decide(&View {
            spec: &spec,
            generation: Some(1),
            collision_count: None,
            nodes,
            pods: &pods,
            hash: "v2",
            held_back: &BTreeSet::new(),
            now: at(1000),
        });
        let deleted: Vec<&str> = plan.delete.iter().map(|pod| name_of(&**pod)).collect();
        let s = &plan.status;
        let status = format!(
            "{}/{} ready {} updated {}",
            s.current_number_scheduled,
            s.desired_number_scheduled,
            s.number_ready,
            s.updated_number_scheduled.unwrap_or(0)
        );
        assert_eq!(format!("+{} -{} | {status}", plan.create.join(","), deleted.join(",")), expected, "{have}");
    }

    #[test]
    fn every_node_that_may_have_one_gets_one() {
        let nodes = [
            node("a", None),
            node("b", None),
            node("c", Some(("dedicated", "NoSchedule"))),
            node("d", Some(("node.kubernetes.io/unreachable", "NoExecute"))),
        ];
        check(0, 1, &nodes, "", "+a,b,d - | 0/3 ready 0 updated 0");
        check(0, 1, &nodes, "a:v2:ready b:v2:leaving c:v2:ready d:v2:failed", "+ -d-v2 | 3/3 ready 1 updated 2");
        let gone = [node("a", Some(("dedicated", "NoExecute")))];
        check(0, 1, &gone, "a:v2:ready", "+ -a-v2 | 0/0 ready 0 updated 0");
        check(0, 1, &nodes[..1], "a:v2:ready a:v2:ready", "+ -a-v2 | 1/1 ready 1 updated 1");
    }

    #[test]
    fn an_update_stays_within_max_unavailable() {
        let nodes = [node("a", None), node("b", None), node("c", None)];
        check(0, 1, &nodes, "a:v1:ready b:v1:ready c:v1:ready", "+ -a-v1 | 3/3 ready 3 updated 0");
        check(0, 1, &nodes, "a:v2:starting b:v1:ready c:v1:ready", "+ - | 3/3 ready 2 updated 1");
        check(0, 1, &nodes, "a:v2:ready b:v1:ready c:v1:starting", "+ -c-v1 | 3/3 ready 2 updated 1");
        check(0, 2, &nodes, "a:v2:ready b:v1:ready c:v1:ready", "+ -b-v1,c-v1 | 3/3 ready 3 updated 1");
    }

    #[test]
    fn a_surge_brings_the_new_pod_first() {
        let nodes = [node("a", None), node("b", None)];
        check(1, 0, &nodes, "a:v1:ready b:v1:ready", "+a - | 2/2 ready 2 updated 0");
        check(1, 0, &nodes, "a:v1:ready a:v2:starting b:v1:ready", "+ - | 2/2 ready 2 updated 1");
        check(1, 0, &nodes, "a:v1:ready a:v2:ready b:v1:ready", "+b -a-v1 | 2/2 ready 2 updated 1");
    }

    #[test]
    fn a_pod_that_fails_again_and_again_is_replaced_ever_later() {
        let mut failures = Failures::default();
        let left = |failures: &Failures, now: i64| failures.left("set", "a", at(now)).map(|left| left.as_secs());
        assert_eq!(left(&failures, 100), None);
        failures.note("set", "a", at(100));
        assert_eq!((left(&failures, 100), left(&failures, 101)), (Some(1), None));
        failures.note("set", "a", at(101));
        assert_eq!(left(&failures, 101), Some(2));
        (0..20).for_each(|_| failures.note("set", "a", at(110)));
        assert_eq!(left(&failures, 110), Some(900));
        assert_eq!(failures.left("set", "b", at(110)), None);
    }

    #[test]
    fn a_pod_is_bound_by_affinity_and_tolerates_what_happens_to_nodes() {
        let spec = pod_spec_for(&PodSpec::default(), "a");
        let made = Pod { spec: Some(spec.clone()), ..Default::default() };
        assert_eq!(node_of(&made), Some("a"));
        assert_eq!(spec.tolerations.map(|t| t.len()), Some(6));
    }
}
