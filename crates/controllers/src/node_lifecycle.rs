//! Node lifecycle: who has fallen silent, and what follows from that.
//!
//! ```text
//! leases, node status --observe--> since when each node is silent --decide(zones)--> conditions Unknown
//!                                                                     |-> taints (NoSchedule at once, NoExecute by rate)
//!                                                                     '-> its pods not ready
//! ```
//!
//! Taints by conditions forbid new pods at once. The NoExecute taints, which make pods leave (see [`crate::taint_eviction`]),
//! come at a limited rate per zone, slower or not at all where most of a zone is gone, and not at all while every node is
//! gone: then it is more likely this end that is cut off.
//!
//! The nodes' membership, where there is one ([`membership::View`]), makes this faster and calmer: a node that the majority
//! of its peers sees dead is silent at once; one that they vouch for, and that says it cannot reach the API, or that is being cut
//! off from here, is not silent ([`silence`] has the table); and while most nodes say so, it is the servers that were gone, and
//! everybody gets the full time again.
//!
//! What must stay true: silence only counts while this controller itself could hear. Time during which the API did not
//! answer, or this process did not run, is no node's fault, so the return of a server marks nobody. Nothing moves back when
//! a node returns: its taints go, its pods stay where they are.

mod memory;
mod silence;
mod zones;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder, Warning};
use client::{Change, Clock, ErrorExt, Informer, Key, Selection};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::Patch;
use membership::View;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::memory::Memory;
use self::zones::Zones;
use crate::Context;
use crate::common::owner::name_of;
use crate::common::patch;
use crate::common::pod_state::{is_ready, node_name};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The API must answer within this, or this controller counts as deaf.
const HEARING_MAX: Duration = Duration::from_secs(3);
/// How many nodes are written to at once.
const WRITES_MAX: usize = 16;
/// With a membership, nodes are looked at at least this often.
const LOOK_WITH_PEERS: Duration = Duration::from_secs(1);
/// The conditions that a silent node no longer knows.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let leases = Selection { namespace: Some(LEASE_NAMESPACE.to_owned()), ..Selection::default() };
    Arc::new(NodeLifecycle {
        nodes: context.informers.all(),
        pods: context.informers.all(),
        leases: context.informers.selected(leases),
        client: context.client.clone(),
        recorder: context.recorder_for("node-controller"),
        clock: context.clock.clone(),
        options: context.options.clone(),
        state: Mutex::default(),
    })
}

struct NodeLifecycle {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    leases: Informer<Lease>,
    client: kube::Client,
    recorder: Recorder,
    clock: Clock,
    options: Arc<crate::Options>,
    state: Mutex<State>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct State {
    memory: Memory,
    zones: Zones,
}

#[async_trait]
impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        let all = Key::new("", "all");
        let period = self.options.node_monitor_period;
        inputs.every(if self.options.membership.is_some() { period.min(LOOK_WITH_PEERS) } else { period }, all.clone());
        // What a node says of itself shows at once, not at the next look.
        inputs.mapped(&self.nodes, move |change| match change {
            Change::Applied { old: Some(old), new } if facts(old) == facts(new) => Vec::new(),
            _ => vec![all.clone()],
        });
        inputs.read(&self.leases);
        inputs.read(&self.pods);
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, _: &Key) -> Result<Next, Error> {
        let heard = timeout(HEARING_MAX, self.client.apiserver_version()).await.is_ok_and(|answer| answer.is_ok());
        let nodes = self.nodes.list();
        let now = self.clock.now();
        let plans = {
            let mut state = self.state.lock();
            let State { memory, zones } = &mut *state;
            let renewed = |node: &str| self.leases.get(&Key::new(LEASE_NAMESPACE, node))?.spec.as_ref()?.renew_time.as_ref().map(|time| time.0);
            let changes = memory.observe(&nodes, renewed, now, heard, self.options.node_monitor_period);
            for node in changes.arrived {
                self.tell(&node, "RegisteredNode", format!("Node {0} event: Registered Node {0} in Controller", name_of(&*node)));
            }
            for name in changes.left {
                info!(node = name, "node removed");
            }
            if !heard {
                return Err(Error::NotYet("the API does not answer; silence is not counted".to_owned()));
            }
            let view = self.options.membership.as_ref().and_then(|views| views.borrow().clone()).unwrap_or_default();
            silence::heed(&view, memory, now);
            plan(&nodes, memory, zones, now, &self.options, &view)
        };
        let applied = futures::stream::iter(plans).map(|plan| self.apply(plan)).buffer_unordered(WRITES_MAX);
        let failures: Vec<Error> = applied.filter_map(|outcome| async move { outcome.err() }).collect().await;
        failures.into_iter().next().map_or(Ok(Next::Done), Err)
    }
}

impl NodeLifecycle {
    fn tell(&self, node: &Node, reason: &str, message: String) {
        self.recorder.about(node, Normal, reason, message);
    }

    async fn apply(&self, plan: Plan) -> Result<(), Error> {
        let mut node = plan.node.clone();
        if !plan.unknown.is_empty() {
            warn!(node = name_of(&*node), "node has stopped reporting");
            let meta = &node.metadata;
            let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "status": {"conditions": plan.unknown}});
            node = self.nodes.patch_status(&Key::of(&*node), &Patch::Strategic(patch)).await?;
        }
        if let Some(taints) = &plan.taints {
            debug!(node = name_of(&*node), ?taints, "taints");
            node = patch::write(&self.nodes, &*node, json!({"spec": {"taints": taints}})).await?;
        }
        if plan.pods_unready {
            self.mark_pods(&node).await?;
            self.state.lock().memory.set_pods_marked(name_of(&*node));
        }
        Ok(())
    }

    /// The node can't say any more that its pods are ready, so they are not.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        self.tell(node, "NodeNotReady", format!("Node {} status is now: NodeNotReady", name_of(node)));
        let on_it = self.pods.list().into_iter().filter(|pod| node_name(pod) == Some(name_of(node)) && is_ready(pod));
        for pod in on_it.collect::<Vec<_>>() {
            let since = Time(client::clock::whole_seconds(self.clock.now()));
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": since});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
            match self.pods.patch_status(&Key::of(&*pod), &Patch::Strategic(patch)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                Err(_) => {}
                Ok(_) => self.recorder.about(&*pod, Warning, "NodeNotReady", "Node is not ready"),
            }
        }
        Ok(())
    }
}

/// What of a node matters here.
fn facts(node: &Node) -> (Vec<(&str, &str)>, &[Taint], bool) {
    let statuses = conditions(node).iter().map(|condition| (condition.type_.as_str(), condition.status.as_str()));
    let spec = node.spec.as_ref();
    (statuses.collect(), taints(node), spec.and_then(|spec| spec.unschedulable).unwrap_or(false))
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// What to do about one node.
#[derive(Debug)]
struct Plan {
    node: Arc<Node>,
    /// Conditions that become Unknown.
    unknown: Vec<NodeCondition>,
    /// All its taints, where they change.
    taints: Option<Vec<Taint>>,
    /// Whether its pods must be marked.
    pods_unready: bool,
}

/// What to do now. Remembers in `zones` what evictions it has granted.
fn plan(nodes: &[Arc<Node>], memory: &mut Memory, zones: &mut Zones, now: Timestamp, options: &crate::Options, view: &View) -> Vec<Plan> {
    let judged: Vec<_> = nodes.iter().map(|node| (node, unknown_conditions(node, memory, now, options, view))).collect();
    let ready = |node: &Node, unknown: &[NodeCondition]| Ready::of(node, unknown);
    let verdicts = judged.iter().map(|(node, unknown)| (zones::of(node), ready(node, unknown) == Ready::True));
    let was_all_gone = zones.all_gone();
    zones.judge(verdicts, now, options);
    if was_all_gone && !zones.all_gone() {
        // Somebody is back after everybody was gone: the others get their full time again.
        memory.restart(now);
    }
    let mut plans = Vec::new();
    for (node, unknown) in judged {
        let ready = ready(node, &unknown);
        let wanted = wanted_taints(node, &unknown, ready, zones, now);
        let pods_unready = ready != Ready::True && ready != Ready::Missing && !memory.pods_marked(name_of(&**node));
        if ready == Ready::True {
            memory.clear_pods_marked(name_of(&**node));
        }
        if !unknown.is_empty() || wanted.is_some() || pods_unready {
            plans.push(Plan { node: node.clone(), unknown, taints: wanted, pods_unready });
        }
    }
    plans
}

/// The node's condition Ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    True,
    False,
    Unknown,
    Missing,
}

impl Ready {
    /// As it will be once `changed` is written.
    fn of(node: &Node, changed: &[NodeCondition]) -> Ready {
        match status_of(node, changed, "Ready") {
            Some("True") => Ready::True,
            Some("False") => Ready::False,
            Some(_) => Ready::Unknown,
            None => Ready::Missing,
        }
    }
}

fn status_of<'a>(node: &'a Node, changed: &'a [NodeCondition], type_: &str) -> Option<&'a str> {
    let found = changed.iter().chain(conditions(node)).find(|condition| condition.type_ == type_);
    found.map(|condition| condition.status.as_str())
}

/// The conditions that become Unknown because the node has been silent for too long.
fn unknown_conditions(node: &Node, memory: &Memory, now: Timestamp, options: &crate::Options, view: &View) -> Vec<NodeCondition> {
    let has_reported = conditions(node).iter().any(|condition| condition.type_ == "Ready");
    let grace = if has_reported { options.node_monitor_grace_period } else { options.node_startup_grace_period };
    let member = view.nodes.get(name_of(node)).filter(|_| !view.stale);
    if !silence::is_silent(memory.silence(name_of(node), now), grace, options.node_monitor_period, member) {
        return Vec::new();
    }
    let time = Time(client::clock::whole_seconds(now));
    let unknown = |type_: &str| {
        let before = conditions(node).iter().find(|condition| condition.type_ == type_);
        let (reason, message) = match before {
            Some(condition) if condition.status == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        Some(NodeCondition {
            type_: type_.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: before.map_or_else(|| node.metadata.creation_timestamp.clone(), |condition| condition.last_heartbeat_time.clone()),
            last_transition_time: Some(time.clone()),
        })
    };
    REPORTED.iter().filter_map(|type_| unknown(type_)).collect()
}

/// The taints that this controller owns.
fn is_ours(taint: &Taint) -> bool {
    let by_condition = ["memory-pressure", "disk-pressure", "pid-pressure", "network-unavailable", "unschedulable", "not-ready", "unreachable"];
    let key = taint.key.strip_prefix("node.kubernetes.io/");
    match taint.effect.as_str() {
        "NoSchedule" => key.is_some_and(|key| by_condition.contains(&key)),
        "NoExecute" => key.is_some_and(|key| ["not-ready", "unreachable"].contains(&key)),
        _ => false,
    }
}

/// All taints that the node should have, if they are not what it has.
fn wanted_taints(node: &Node, changed: &[NodeCondition], ready: Ready, zones: &mut Zones, now: Timestamp) -> Option<Vec<Taint>> {
    let is_true = |type_: &str| status_of(node, changed, type_) == Some("True");
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let by_ready = match ready {
        Ready::False => Some(NOT_READY),
        Ready::Unknown => Some(UNREACHABLE),
        Ready::True | Ready::Missing => None,
    };
    let rules = [
        (is_true("MemoryPressure"), "node.kubernetes.io/memory-pressure"),
        (is_true("DiskPressure"), "node.kubernetes.io/disk-pressure"),
        (is_true("PIDPressure"), "node.kubernetes.io/pid-pressure"),
        (is_true("NetworkUnavailable"), "node.kubernetes.io/network-unavailable"),
        (cordoned, "node.kubernetes.io/unschedulable"),
        (by_ready == Some(NOT_READY), NOT_READY),
        (by_ready == Some(UNREACHABLE), UNREACHABLE),
    ];
    let mut wanted: Vec<(&str, &str)> = rules.iter().filter(|(holds, _)| *holds).map(|(_, key)| (*key, "NoSchedule")).collect();
    if let Some(key) = by_ready.filter(|_| !zones.all_gone()) {
        // Changing one NoExecute taint into the other evicts nobody new; a first one must be granted.
        let has_one = taints(node).iter().any(|taint| taint.effect == "NoExecute" && is_ours(taint));
        if has_one || zones.grant(&zones::of(node)) {
            wanted.push((key, "NoExecute"));
        }
    }
    // A node that has never reported keeps what it registered with.
    let keeps_own = |taint: &&Taint| ready == Ready::Missing && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let is_kept = |taint: &&Taint| !is_ours(taint) || keeps_own(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut all: Vec<Taint> = taints(node).iter().filter(is_kept).cloned().collect();
    for (key, effect) in wanted {
        if !all.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = Some(Time(client::clock::whole_seconds(now)));
            all.push(Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added });
        }
    }
    (all != taints(node)).then_some(all)
}

#[cfg(test)]
mod tests;
