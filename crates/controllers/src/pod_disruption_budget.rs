//! PodDisruptionBudgets: how many of the selected pods may be evicted now.
//!
//! Reads budgets, pods, and the sizes of the workloads that the pods belong to; owns the budgets' status. Evictions (in the
//! API server) spend what it says, and note the pods in `disruptedPods` until they are seen to go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder, Warning};
use client::{Clock, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};

use crate::Context;
use crate::common::amounts::{is_share, resolve};
use crate::common::owner::{controller_of, labels_of, name_of};
use crate::common::{patch, pod_state};

/// An evicted pod that has not begun to go after this long is counted again: its eviction has come to nothing.
const EVICTION_TAKES_MAX: Duration = Duration::from_secs(120);

struct Budgets {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    client: kube::Client,
    recorder: Recorder,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Budgets {
        budgets: context.informers.all(),
        pods: context.informers.all(),
        deployments: context.informers.all(),
        replica_sets: context.informers.all(),
        stateful_sets: context.informers.all(),
        replication_controllers: context.informers.all(),
        client: context.client.clone(),
        recorder: context.recorder_for("controllermanager"),
        clock: context.clock.clone(),
    })
}

/// The pods that the budget selects. No selector selects none, an empty one all of the namespace.
fn selector(spec: &PodDisruptionBudgetSpec) -> Option<Selector> {
    spec.selector.clone().and_then(|selector| Selector::try_from(selector).ok())
}

/// Whether the budget depends on the size of the pods' workloads, and not only on the pods.
fn needs_sizes(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || spec.min_available.as_ref().is_some_and(is_share)
}

/// Decides the status. `sizes` is the sum of the workloads' sizes, where it matters. Gives also the pods whose eviction
/// came to nothing, and when to look again.
fn decide(
    budget: &PodDisruptionBudget,
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<Pod>],
    sizes: Result<i32, String>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Vec<String>, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let mut status = PodDisruptionBudgetStatus { observed_generation: budget.metadata.generation, ..old.clone() };
    let sizes = match sizes {
        Ok(sizes) => sizes,
        Err(why) => {
            // Not knowing is no licence: nothing may be evicted.
            status.disruptions_allowed = Some(0);
            status.observed_generation = old.observed_generation;
            status.conditions = Some(condition(&old, budget.metadata.generation, false, "SyncFailed", why, now));
            return (status, Vec::new(), None);
        }
    };
    let (expected, desired) = if let Some(amount) = &spec.max_unavailable {
        (sizes, (sizes - resolve(amount, sizes, true)).max(0))
    } else {
        match spec.min_available.clone().unwrap_or(IntOrString::Int(1)) {
            IntOrString::Int(number) => (i32::try_from(pods.len()).unwrap_or(i32::MAX), number),
            share => (sizes, resolve(&share, sizes, true)),
        }
    };

    let mut disrupted = BTreeMap::new();
    let mut given_up = Vec::new();
    let mut next: Option<Duration> = None;
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let Some(pod) = pods.iter().find(|pod| name_of(&***pod) == name.as_str()).filter(|pod| !pod_state::is_deleting(pod)) else { continue };
        let passed = Duration::try_from(now.duration_since(since.0)).unwrap_or(Duration::ZERO);
        match EVICTION_TAKES_MAX.checked_sub(passed).filter(|left| !left.is_zero()) {
            Some(left) => {
                next = Some(next.map_or(left, |next| next.min(left)));
                disrupted.insert(name.clone(), since.clone());
            }
            None => given_up.push(name_of(&**pod).to_owned()),
        }
    }
    let healthy =
        pods.iter().filter(|pod| !pod_state::is_deleting(pod) && !disrupted.contains_key(name_of(&***pod)) && pod_state::is_ready(pod)).count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    status.current_healthy = Some(healthy);
    status.desired_healthy = Some(desired);
    status.expected_pods = Some(expected);
    status.disruptions_allowed = Some(allowed);
    status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    status.conditions = Some(condition(&old, budget.metadata.generation, allowed > 0, reason, String::new(), now));
    (status, given_up, next)
}

/// The conditions, with DisruptionAllowed as it is now.
fn condition(
    old: &PodDisruptionBudgetStatus,
    generation: Option<i64>,
    allowed: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let value = if allowed { "True" } else { "False" };
    let known = conditions.iter().find(|condition| condition.type_ == "DisruptionAllowed");
    let since = known.filter(|condition| condition.status == value).map(|condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| Time(client::clock::whole_seconds(now))),
    };
    conditions.retain(|known| known.type_ != "DisruptionAllowed");
    conditions.push(condition);
    conditions
}

#[async_trait]
impl Controller for Budgets {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.budgets);
        inputs.read(&self.deployments);
        inputs.read(&self.replica_sets);
        inputs.read(&self.stateful_sets);
        inputs.read(&self.replication_controllers);
        let budgets = self.budgets.clone();
        inputs.mapped(&self.pods, move |change| {
            let pod = change.object();
            let candidates = budgets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
            let selected = |budget: &PodDisruptionBudget| {
                let Some(selector) = budget.spec.as_ref().and_then(selector) else { return false };
                change.old().into_iter().chain([pod]).any(|pod| selector.matches(labels_of(&**pod)))
            };
            candidates.iter().filter(|budget| selected(budget)).map(|budget| Key::of(&**budget)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Next::Done) };
        let Some(spec) = budget.spec.as_ref().filter(|_| budget.metadata.deletion_timestamp.is_none()) else { return Ok(Next::Done) };
        let selector = selector(spec);
        let pods: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| !pod_state::is_finished(pod) && selector.as_ref().is_some_and(|selector| selector.matches(labels_of(&**pod))))
            .collect();
        if pods.is_empty() {
            self.recorder.about(&*budget, Normal, "NoPods", "No matching pods found");
        }
        let sizes = if needs_sizes(spec) { self.sizes(&key.namespace, &pods).await? } else { Ok(0) };
        if let Err(why) = &sizes {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            self.recorder.about(&*budget, Warning, "CalculateExpectedPodCountFailed", message);
        }
        let (status, given_up, next) = decide(&budget, spec, &pods, sizes, self.clock.now());
        for name in given_up {
            if let Some(pod) = self.pods.get(&Key::new(key.namespace.clone(), name)) {
                let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                self.recorder.about(&*pod, Warning, "NotDeleted", message);
            }
        }
        patch::write_status(&self.budgets, &budget, budget.status.as_ref(), &status).await?;
        Ok(next.map_or(Next::Done, Next::After))
    }
}

impl Budgets {
    /// The sum of the sizes of the workloads that the pods belong to. The inner error is for the user.
    async fn sizes(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Result<i32, String>, Error> {
        let mut found: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            // A pod without a controller is nobody's replica: no number of it is expected.
            let Some(owner) = controller_of(&**pod) else { continue };
            if found.contains_key(&owner.uid) {
                continue;
            }
            match self.size(namespace, owner).await? {
                Some((uid, size)) => {
                    found.insert(uid, size);
                }
                None => return Ok(Err(format!("found no controllers for pod {:?}", name_of(&**pod)))),
            }
        }
        Ok(Ok(found.values().sum()))
    }

    /// The size of a workload: of the Deployment behind a ReplicaSet, of what it is known by itself, or by its scale.
    async fn size(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
        let key = Key::new(namespace, owner.name.clone());
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let size = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let Some(set) = self.replica_sets.get(&key).filter(|set| set.metadata.uid.as_ref() == Some(&owner.uid)) else { return Ok(None) };
                let parent = controller_of(&*set).filter(|parent| parent.kind == "Deployment");
                let deployment = parent.and_then(|parent| self.deployments.get(&Key::new(namespace, parent.name.clone())));
                if let Some(deployment) = deployment {
                    let size = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    return Ok(deployment.metadata.uid.clone().map(|uid| (uid, size)));
                }
                set.spec.as_ref().and_then(|spec| spec.replicas)
            }
            ("apps", "StatefulSet") => self.stateful_sets.get(&key).and_then(|set| set.spec.as_ref()?.replicas),
            ("", "ReplicationController") => self.replication_controllers.get(&key).and_then(|set| set.spec.as_ref()?.replicas),
            _ => return self.scale_of(namespace, owner).await,
        };
        Ok(size.map(|size| (owner.uid.clone(), size)))
    }

    /// Asks the API for the scale of any other kind.
    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let kind = kube::core::GroupVersionKind::gvk(group, version, &owner.kind);
        let (resource, _) = match kube::discovery::pinned_kind(&self.client, &kind).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let api: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(self.client.clone(), namespace, &resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) => Ok(scale.spec.and_then(|spec| spec.replicas).map(|size| (owner.uid.clone(), size))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};

    fn amount(text: &str) -> IntOrString {
        text.parse().map_or_else(|_| IntOrString::String(text.into()), IntOrString::Int)
    }

    /// `ready` of `pods` pods are ready; shown as healthy/desired of expected: allowed.
    fn check(min: Option<&str>, max: Option<&str>, ready: usize, pods: usize, sizes: i32, disrupted: &[(&str, i64)], expected: &str) {
        let spec = PodDisruptionBudgetSpec { min_available: min.map(amount), max_unavailable: max.map(amount), ..Default::default() };
        let mut budget = PodDisruptionBudget::default();
        let noted = disrupted.iter().map(|(name, since)| ((*name).to_owned(), Time(at(*since)))).collect();
        budget.status = Some(PodDisruptionBudgetStatus { disrupted_pods: Some(noted), ..Default::default() });
        let pods: Vec<Arc<Pod>> = (0..pods).map(|n| Arc::new(pod(&format!("p{n}"), "n", "Running", (n < ready).then_some(1)))).collect();
        let (status, given_up, next) = decide(&budget, &spec, &pods, Ok(sizes), at(1000));
        let got = format!(
            "{}/{} of {}: {} {}{}",
            status.current_healthy.unwrap(),
            status.desired_healthy.unwrap(),
            status.expected_pods.unwrap(),
            status.disruptions_allowed.unwrap(),
            status.conditions.unwrap()[0].reason,
            if given_up.is_empty() {
                next.map_or(String::new(), |d| format!(" next {}", d.as_secs()))
            } else {
                format!(" given up {}", given_up.join(","))
            }
        );
        assert_eq!(got, expected);
    }

    #[test]
    fn what_may_be_disrupted() {
        check(Some("2"), None, 3, 3, 0, &[], "3/2 of 3: 1 SufficientPods");
        check(Some("2"), None, 2, 3, 0, &[], "2/2 of 3: 0 InsufficientPods");
        check(Some("50%"), None, 3, 3, 3, &[], "3/2 of 3: 1 SufficientPods");
        check(None, Some("1"), 3, 3, 3, &[], "3/2 of 3: 1 SufficientPods");
        check(None, Some("30%"), 10, 10, 10, &[], "10/7 of 10: 3 SufficientPods");
        check(None, Some("1"), 0, 0, 0, &[], "0/0 of 0: 0 InsufficientPods");
    }

    #[test]
    fn an_eviction_counts_until_it_has_come_to_nothing() {
        check(Some("1"), None, 3, 3, 0, &[("p0", 950)], "2/1 of 3: 1 SufficientPods next 70");
        check(Some("1"), None, 3, 3, 0, &[("p0", 880)], "3/1 of 3: 2 SufficientPods given up p0");
    }

    #[test]
    fn not_knowing_is_no_licence() {
        let spec = PodDisruptionBudgetSpec { max_unavailable: Some(IntOrString::Int(1)), ..Default::default() };
        let (status, _, _) = decide(&PodDisruptionBudget::default(), &spec, &[], Err("x".into()), at(1));
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!(status.conditions.unwrap()[0].reason, "SyncFailed");
    }
}
