//! ReplicaSets (and, by the same code, ReplicationControllers): as many pods of one template as asked for.
//!
//! Reads pods and the sets; owns the sets' pods and status. Too few active pods: the missing ones are created, in slow
//! start; too many: those missed least are deleted. What this process has just created or deleted is in its view
//! already, so that no pod is made or removed twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, ErrorExt, Informer, Key, Object};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Selector;

use crate::Context;
use crate::common::owner::{Owner, controller_of, labels_of, uid_of, workload_selector};
use crate::common::pods::{PodControl, from_template, slow_start};
use crate::common::{claim, on_return, patch, pod_state};

/// Pods created or deleted in one reconcile at most; the next one goes on.
const BURST_PODS: usize = 500;

/// What a kind of replicated pods says, whatever its API.
pub struct Wanted {
    /// How many.
    pub replicas: i32,
    /// How long a pod must be ready to be available.
    pub min_ready_seconds: i32,
    /// Which pods; `None` selects nothing.
    pub selector: Option<Selector>,
    /// What they are made from.
    pub template: PodTemplateSpec,
    /// The status as it is.
    pub status: Option<ReplicaSetStatus>,
    /// Whether this kind counts terminating pods in its status.
    pub counts_terminating: bool,
}

/// A kind that this code can keep.
pub trait Replicated: Object {
    /// The controller's name.
    const CONTROLLER: &'static str;
    /// The name in events.
    const COMPONENT: &'static str;
    /// The kind's name in owner references.
    const KIND: &'static str;
    /// What it says.
    fn wanted(&self) -> Wanted;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const COMPONENT: &'static str = "replicaset-controller";
    const KIND: &'static str = "ReplicaSet";

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: workload_selector(&spec.selector),
            template: spec.template.unwrap_or_default(),
            status: self.status.clone(),
            counts_terminating: true,
        }
    }
}

/// Makes the ReplicaSet controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Replicas::<ReplicaSet>::new(context))
}

/// The controller of one replicated kind.
pub struct Replicas<K> {
    sets: Informer<K>,
    pods: PodControl,
    clock: Clock,
}

impl<K: Replicated> Replicas<K> {
    /// With the shared informers.
    pub fn new(context: &Context) -> Self {
        Replicas { sets: context.informers.all(), pods: PodControl::new(context, K::COMPONENT), clock: context.clock.clone() }
    }
}

/// What to do about the pods.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// How many to create.
    pub create: usize,
    /// Which to delete.
    pub delete: Vec<Arc<Pod>>,
}

/// Whether the pod is one of the replicas: active, and not set aside while its node is away.
fn counts(pod: &Pod) -> bool {
    pod_state::is_active(pod) && !on_return::is_set_aside(pod)
}

/// Decides from the pods that are the set's own.
pub fn decide(replicas: i32, pods: &[Arc<Pod>], neighbours: &BTreeMap<String, usize>, now: Timestamp) -> Plan {
    let replicas = usize::try_from(replicas).unwrap_or(0);
    let mut active: Vec<Arc<Pod>> = pods.iter().filter(|pod| counts(pod)).cloned().collect();
    if active.len() < replicas {
        return Plan { create: (replicas - active.len()).min(BURST_PODS), delete: Vec::new() };
    }
    let surplus = (active.len() - replicas).min(BURST_PODS);
    if surplus > 0 {
        pod_state::sort_for_deletion(&mut active, neighbours, now);
        active.truncate(surplus);
        return Plan { create: 0, delete: active };
    }
    Plan::default()
}

/// The status that the pods amount to. `failure` is what has just failed: a reason and a message.
pub fn status_of(wanted: &Wanted, generation: Option<i64>, pods: &[Arc<Pod>], failure: Option<(&str, String)>, now: Timestamp) -> ReplicaSetStatus {
    let template_labels = wanted.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    let (mut replicas, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    for pod in pods {
        if pod_state::is_terminating(pod) {
            terminating += 1;
        }
        if !counts(pod) {
            continue;
        }
        replicas += 1;
        let labels = labels_of(&**pod);
        if template_labels.is_none_or(|wanted| wanted.iter().all(|(name, value)| labels.get(name) == Some(value))) {
            labelled += 1;
        }
        if pod_state::is_ready(pod) {
            ready += 1;
        }
        if pod_state::is_available(pod, wanted.min_ready_seconds, now) {
            available += 1;
        }
    }
    let old = wanted.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let failing = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some((reason, message)) if !failing => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(client::clock::whole_seconds(now))),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    // Zero counts are left out, as Kubernetes leaves them out; `replicas` alone is always said.
    let counted = |count: i32| (count != 0).then_some(count);
    ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: counted(labelled),
        ready_replicas: counted(ready),
        available_replicas: counted(available),
        terminating_replicas: wanted.counts_terminating.then_some(terminating),
        observed_generation: generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

#[async_trait]
impl<K: Replicated> Controller for Replicas<K> {
    fn name(&self) -> &'static str {
        K::CONTROLLER
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.sets);
        inputs.owned(self.pods.pods(), K::KIND);
        let sets = self.sets.clone();
        inputs.mapped(self.pods.pods(), move |change| claim::adopters(change, &sets, |set: &K| set.wanted().selector));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else { return Ok(Next::Done) };
        let wanted = set.wanted();
        let owner = Owner::of(&*set);
        let pods = claim::claim(&self.sets, &owner, self.pods.pods(), wanted.selector.as_ref(), pod_state::is_active).await?;
        let now = self.clock.now();

        let outcome = if owner.deleting { Ok(()) } else { self.manage(&set, &owner, &wanted, &pods, now).await };
        let (failure, outcome) = match outcome {
            Ok(()) => (None, Ok(())),
            Err((reason, error)) => (Some((reason, error.short())), Err(error)),
        };
        let status = status_of(&wanted, set.meta().generation, &pods, failure, now);
        patch::write_status(&self.sets, &set, wanted.status.as_ref(), &status).await?;
        outcome?;
        let soonest = pod_state::next_available(pods.iter().map(|pod| &**pod), wanted.min_ready_seconds, now);
        Ok(soonest.map_or(Next::Done, Next::After))
    }
}

impl<K: Replicated> Replicas<K> {
    async fn manage(&self, set: &K, owner: &Owner, wanted: &Wanted, pods: &[Arc<Pod>], now: Timestamp) -> Result<(), (&'static str, kube::Error)> {
        let plan = decide(wanted.replicas, pods, &BTreeMap::new(), now);
        if plan.create > 0 {
            let pod = from_template(&wanted.template, owner);
            let (_, outcome) = slow_start(plan.create, |_| async {
                match self.pods.create(owner, &pod).await {
                    // The namespace goes, and this set with it.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    created => created.map(drop),
                }
            })
            .await;
            outcome.map_err(|error| ("FailedCreate", error))?;
        }
        if !plan.delete.is_empty() {
            // Decided again with the neighbours, which are counted only when it comes to deleting.
            let all = self.pods.pods().in_namespace(&owner.namespace);
            let crowd = pod_state::neighbours(all.iter().map(|pod| &**pod), &self.siblings(set));
            let plan = decide(wanted.replicas, pods, &crowd, now);
            let outcomes = futures::future::join_all(plan.delete.iter().map(|pod| self.pods.delete(owner, pod))).await;
            outcomes.into_iter().collect::<Result<(), _>>().map_err(|error| ("FailedDelete", error))?;
        }
        Ok(())
    }

    /// The UIDs of all sets that serve the same owner as this one (itself included).
    fn siblings(&self, set: &K) -> Vec<String> {
        let mut uids = vec![uid_of(set).to_owned()];
        if let Some(parent) = controller_of(set) {
            let all = self.sets.in_namespace(set.meta().namespace.as_deref().unwrap_or_default());
            uids.extend(all.iter().filter(|other| controller_of(&***other).is_some_and(|o| o.uid == parent.uid)).map(|o| uid_of(&**o).to_owned()));
        }
        uids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};

    fn plan(replicas: i32, pods: Vec<Pod>) -> String {
        let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let plan = decide(replicas, &pods, &BTreeMap::new(), at(1000));
        let names: Vec<&str> = plan.delete.iter().map(|pod| crate::common::owner::name_of(&**pod)).collect();
        format!("+{} -{}", plan.create, names.join(","))
    }

    fn deleting(mut pod: Pod) -> Pod {
        pod.metadata.deletion_timestamp = Some(Time(at(1)));
        pod
    }

    #[test]
    fn the_number_is_made_right() {
        let running = |name: &str| pod(name, "n", "Running", Some(10));
        assert_eq!(plan(3, vec![]), "+3 -");
        assert_eq!(plan(2, vec![running("a"), running("b")]), "+0 -");
        assert_eq!(plan(2, vec![running("a"), deleting(running("b")), pod("c", "n", "Failed", None)]), "+1 -");
        assert_eq!(plan(1, vec![running("a"), pod("b", "", "Pending", None)]), "+0 -b");
        assert_eq!(plan(0, vec![deleting(running("a"))]), "+0 -");
        assert_eq!(plan(1000, vec![]), "+500 -");
    }

    #[test]
    fn the_status_counts() {
        let wanted = Wanted {
            replicas: 3,
            min_ready_seconds: 10,
            selector: None,
            template: PodTemplateSpec::default(),
            status: None,
            counts_terminating: true,
        };
        let pods: Vec<Arc<Pod>> = [
            pod("a", "n", "Running", Some(10)),
            pod("b", "n", "Running", Some(95)),
            pod("c", "n", "Pending", None),
            deleting(pod("d", "n", "Running", None)),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let status = status_of(&wanted, Some(7), &pods, Some(("FailedCreate", "no".into())), at(100));
        assert_eq!((status.replicas, status.fully_labeled_replicas), (3, Some(3)));
        assert_eq!((status.ready_replicas, status.available_replicas, status.terminating_replicas), (Some(2), Some(1), Some(1)));
        assert_eq!(status.observed_generation, Some(7));
        assert_eq!(status.conditions.as_ref().map(Vec::len), Some(1));
        let wanted = Wanted { status: Some(status), ..wanted };
        assert_eq!(status_of(&wanted, Some(7), &pods, None, at(100)).conditions, None);
    }
}
