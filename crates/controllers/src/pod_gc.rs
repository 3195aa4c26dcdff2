//! Pod garbage: pods that nobody will remove otherwise. Terminated ones beyond a threshold, those of nodes that are gone,
//! those that were deleted before they were ever bound, and those stuck terminating on nodes declared out of service.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, Deletion, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tracing::info;

use crate::Context;
use crate::common::disruption;
use crate::common::owner::name_of;
use crate::common::pod_state::{is_deleting, is_finished, node_name};

const PERIOD: Duration = Duration::from_secs(20);
/// A node must have been missing for this long, as its object may only be late.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(PodGc {
        threshold: context.options.terminated_pod_gc_threshold,
        pods: context.informers.all(),
        nodes: context.informers.all(),
        clock: context.clock.clone(),
        missing: Mutex::default(),
    })
}

struct PodGc {
    threshold: usize,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    clock: Clock,
    /// Nodes that pods name and nobody knows, since when.
    missing: Mutex<HashMap<String, Timestamp>>,
}

#[async_trait]
impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.read(&self.pods);
        inputs.read(&self.nodes);
        inputs.every(PERIOD, Key::new("", "all"));
    }

    async fn reconcile(&self, _: &Key) -> Result<Next, Error> {
        let pods = self.pods.list();
        let nodes = self.nodes.list();
        let gone = self.gone_nodes(&pods, &nodes).await?;
        let mut outcome = Ok(Next::Done);
        for (pod, reason) in decide(&pods, &nodes, &gone, self.threshold) {
            info!(pod = %Key::of(&*pod), ?reason, "removing");
            // One that cannot be removed must not keep the others.
            if let Err(error) = self.remove(&pod, reason).await {
                outcome = Err(error.into());
            }
        }
        outcome
    }
}

impl PodGc {
    /// The nodes that are gone for certain: missing for long, and the API itself says so.
    async fn gone_nodes(&self, pods: &[Arc<Pod>], nodes: &[Arc<Node>]) -> Result<BTreeSet<String>, Error> {
        let now = self.clock.now();
        let due: Vec<String> = {
            let mut missing = self.missing.lock();
            let known: BTreeSet<&str> = nodes.iter().map(|node| name_of(&**node)).collect();
            let named: BTreeSet<&str> = pods.iter().filter_map(|pod| node_name(pod)).filter(|name| !known.contains(name)).collect();
            missing.retain(|name, _| named.contains(name.as_str()));
            for name in named {
                missing.entry(name.to_owned()).or_insert(now);
            }
            let is_due = |since: &Timestamp| Duration::try_from(now.duration_since(*since)).is_ok_and(|past| past >= QUARANTINE);
            missing.iter().filter(|(_, since)| is_due(since)).map(|(name, _)| name.clone()).collect()
        };
        let mut gone = BTreeSet::new();
        for name in due {
            if self.nodes.live(&Key::new("", name.clone())).await?.is_none() {
                gone.insert(name);
            }
        }
        Ok(gone)
    }

    async fn remove(&self, pod: &Pod, reason: Reason) -> Result<(), kube::Error> {
        if !is_finished(pod) {
            let message = match reason {
                Reason::Orphaned => Some("PodGC: node no longer exists"),
                Reason::OutOfService => Some("PodGC: node is out-of-service"),
                Reason::Unbound | Reason::Terminated => None,
            };
            let condition = message.map(|message| disruption::condition("DeletionByPodGC", message, self.clock.now()));
            disruption::fail(&self.pods, pod, condition).await?;
        }
        let deletion = Deletion { grace_period_seconds: Some(0), ..Deletion::of(pod) };
        match self.pods.delete(&Key::of(pod), &deletion).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Its node is gone.
    Orphaned,
    /// Deleted, and no node ever had it.
    Unbound,
    /// Deleted, and its node is declared dead.
    OutOfService,
    /// Ended, and there are too many such.
    Terminated,
}

/// Which pods to remove, each for one reason.
fn decide(pods: &[Arc<Pod>], nodes: &[Arc<Node>], gone: &BTreeSet<String>, threshold: usize) -> Vec<(Arc<Pod>, Reason)> {
    let dead: BTreeSet<&str> = nodes.iter().filter(|node| is_out_of_service(node)).map(|node| name_of(&**node)).collect();
    let reason_of = |pod: &Pod| match node_name(pod) {
        Some(node) if gone.contains(node) => Some(Reason::Orphaned),
        Some(node) if is_deleting(pod) && dead.contains(node) => Some(Reason::OutOfService),
        None if is_deleting(pod) => Some(Reason::Unbound),
        _ => None,
    };
    let mut remove: Vec<_> = pods.iter().filter_map(|pod| Some((pod.clone(), reason_of(pod)?))).collect();
    if threshold > 0 {
        let mut ended: Vec<_> = pods.iter().filter(|pod| is_finished(pod) && !is_deleting(pod) && reason_of(pod).is_none()).collect();
        let excess = ended.len().saturating_sub(threshold);
        ended.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.metadata.name.clone()));
        remove.extend(ended.into_iter().take(excess).map(|pod| (pod.clone(), Reason::Terminated)));
    }
    remove
}

fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !is_ready && node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::pod;

    fn deleted(mut pod: Pod) -> Pod {
        pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        pod
    }

    #[test]
    fn each_for_its_reason() {
        let pods: Vec<_> = [
            pod("fine", "n1", "Running", Some(1)),
            pod("orphan", "gone", "Running", Some(1)),
            deleted(pod("unbound", "", "Pending", None)),
            pod("waiting", "", "Pending", None),
            pod("ended-old", "n1", "Succeeded", Some(1)),
            pod("ended-new", "n1", "Failed", Some(2)),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let removed: Vec<_> = decide(&pods, &[], &BTreeSet::from(["gone".to_owned()]), 1)
            .into_iter()
            .map(|(pod, reason)| (name_of(&*pod).to_owned(), reason))
            .collect();
        let expected = [("orphan", Reason::Orphaned), ("unbound", Reason::Unbound), ("ended-old", Reason::Terminated)];
        assert_eq!(removed, expected.map(|(name, reason)| (name.to_owned(), reason)));
    }
}
