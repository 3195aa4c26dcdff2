//! The shell around the cycle: informers in; bindings, evictions, conditions and events out.
//!
//! One task owns the [`State`] and decides; what it decides is carried out by short tasks beside it (at most
//! [`TASKS_MAX`] at once) that report back. So a slow API server delays bindings, never decisions' consistency.
//!
//! What must stay true: nothing is decided before every informer holds its first whole list. A placement that the API
//! refuses is taken back. The loop never waits for the API while changes are unread.

use std::sync::Arc;

use client::election::{self, ElectionConfig};
use client::events::{EventType, Recorder};
use client::volumes::{SELECTED_NODE, annotation, is_bound, volume_change};
use client::{Changes, ErrorExt, Informer, Informers, Key, Object, Selection};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cycle::{Cursor, Unschedulable};
use crate::devices;
use crate::pod::PodInfo;
use crate::preemption::{self, Proposal};
use crate::state::{Plan, State};
use crate::volumes;

/// How many bindings, evictions and condition updates may be under way at once; beyond, deciding waits for one to end.
const TASKS_MAX: usize = 100;
/// How many changes of one kind are read before the next cycle.
const CHANGES_PER_CYCLE_MAX: usize = 1000;
/// How often waiting pods are counted, which costs as much as there are.
const COUNT_EVERY: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a pod's volumes may take to be bound before it is tried again (and goes on where it was).
const VOLUMES_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// An Event's message is cut here.
const EVENT_MESSAGE_BYTES_MAX: usize = 1024;

/// How a scheduler runs.
pub struct Config {
    /// How it reaches the API.
    pub client: kube::Client,
    /// The pods that name this scheduler are its own.
    pub scheduler_name: String,
    /// Whom it competes with; `None` when it is certain to be alone.
    pub election: Option<ElectionConfig>,
    /// The machine's name, for its events.
    pub host: String,
}

impl Config {
    /// The default scheduler, without leader election.
    pub fn new(client: kube::Client) -> Config {
        Config { client, scheduler_name: "default-scheduler".to_owned(), election: None, host: String::new() }
    }
}

/// Why the scheduler stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The election is misconfigured.
    #[error(transparent)]
    Election(#[from] election::Error),
}

/// Schedules until the shutdown, whenever this is the leader.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Config { client, scheduler_name, election, host } = config;
    let recorder = Recorder::new(client.clone(), &scheduler_name, &host);
    match election {
        Some(election) => {
            let work = |leading| schedule(client.clone(), scheduler_name.clone(), recorder.clone(), leading);
            election::lead(client.clone(), election, shutdown, work).await?;
        }
        None => schedule(client, scheduler_name, recorder, shutdown).await,
    }
    Ok(())
}

/// The changes of every kind that scheduling depends on.
struct Feeds {
    pods: Changes<Pod>,
    nodes: Changes<Node>,
    namespaces: Changes<Namespace>,
    budgets: Changes<PodDisruptionBudget>,
    services: Changes<Service>,
    controllers: Changes<ReplicationController>,
    replica_sets: Changes<ReplicaSet>,
    stateful_sets: Changes<StatefulSet>,
    claims: Changes<PersistentVolumeClaim>,
    volumes: Changes<PersistentVolume>,
    classes: Changes<StorageClass>,
    device_claims: Changes<ResourceClaim>,
    device_classes: Changes<DynamicObject>,
    device_slices: Changes<DynamicObject>,
}

/// The same for what is looked at as it is written.
async fn subscribe_as_written<K: kube::Resource<DynamicType = ()>>(informers: &Informers) -> Changes<DynamicObject> {
    let informer = informers.dynamic(&ApiResource::erase::<K>(&()), Selection::default());
    informer.synced().await;
    informer.subscribe()
}

async fn subscribe<K: Object>(informers: &Informers) -> Changes<K> {
    let informer = informers.all::<K>();
    informer.synced().await;
    informer.subscribe()
}

impl Feeds {
    async fn open(informers: &Informers) -> Feeds {
        let (pods, nodes, namespaces, budgets, services, controllers, replica_sets, stateful_sets, claims, volumes, classes) = tokio::join!(
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
            subscribe(informers),
        );
        let (device_claims, device_classes, device_slices) =
            tokio::join!(subscribe(informers), subscribe_as_written::<DeviceClass>(informers), subscribe_as_written::<ResourceSlice>(informers),);
        Feeds {
            pods,
            nodes,
            namespaces,
            budgets,
            services,
            controllers,
            replica_sets,
            stateful_sets,
            claims,
            volumes,
            classes,
            device_claims,
            device_classes,
            device_slices,
        }
    }

    /// Brings the state up to date with whatever has arrived; pods last, as they lean on all else.
    fn drain(&mut self, state: &mut State, now: Instant) {
        each(&mut self.namespaces, |change| state.namespace_changed(&change));
        each(&mut self.services, |change| state.service_changed(&change));
        each(&mut self.controllers, |change| state.replication_controller_changed(&change));
        each(&mut self.replica_sets, |change| {
            state.owner_changed("ReplicaSet", &change, |set: &ReplicaSet| set.spec.as_ref().map(|spec| &spec.selector));
        });
        each(&mut self.stateful_sets, |change| {
            state.owner_changed("StatefulSet", &change, |set: &StatefulSet| set.spec.as_ref().map(|spec| &spec.selector));
        });
        each(&mut self.budgets, |change| state.budget_changed(&change));
        each(&mut self.classes, |change| state.class_changed(&change, now));
        each(&mut self.volumes, |change| state.volume_changed(&change, now));
        each(&mut self.claims, |change| state.claim_changed(&change, now));
        each(&mut self.device_classes, |change| state.device_class_changed(&change, now));
        each(&mut self.device_slices, |change| state.device_slice_changed(&change, now));
        each(&mut self.device_claims, |change| state.device_claim_changed(&change, now));
        each(&mut self.nodes, |change| state.node_changed(&change, now));
        each(&mut self.pods, |change| state.pod_changed(&change, now));
    }

    /// Waits until anything arrives that can matter to a waiting pod, and takes it.
    async fn wait(&mut self, state: &mut State) {
        tokio::select! {
            Some(change) = self.pods.next() => state.pod_changed(&change, Instant::now()),
            Some(change) = self.nodes.next() => state.node_changed(&change, Instant::now()),
            Some(change) = self.claims.next() => state.claim_changed(&change, Instant::now()),
            Some(change) = self.volumes.next() => state.volume_changed(&change, Instant::now()),
            Some(change) = self.classes.next() => state.class_changed(&change, Instant::now()),
            Some(change) = self.device_claims.next() => state.device_claim_changed(&change, Instant::now()),
            Some(change) = self.device_classes.next() => state.device_class_changed(&change, Instant::now()),
            Some(change) = self.device_slices.next() => state.device_slice_changed(&change, Instant::now()),
            Some(change) = self.namespaces.next() => state.namespace_changed(&change),
            Some(change) = self.budgets.next() => state.budget_changed(&change),
        }
    }
}

fn each<K>(changes: &mut Changes<K>, mut take: impl FnMut(client::Change<K>))
where
    K: kube::Resource + Send + Sync + 'static,
{
    for _ in 0..CHANGES_PER_CYCLE_MAX {
        match changes.try_next() {
            Some(change) => take(change),
            None => return,
        }
    }
}

/// What a task reports when it has ended.
enum Report {
    /// The pod is bound, or nothing remains to be done about it.
    Done,
    /// The API refused the binding.
    NotBound { uid: String },
    /// Room has been made (or not) for the pod.
    Preempted { uid: String, nominated: bool },
}

async fn schedule(client: kube::Client, scheduler_name: String, recorder: Recorder, shutdown: CancellationToken) {
    let informers = Informers::new(client.clone());
    let mut feeds = tokio::select! {
        feeds = Feeds::open(&informers) => feeds,
        () = shutdown.cancelled() => return,
    };
    info!(scheduler = scheduler_name, "scheduling");
    let mut state = State::new(scheduler_name.clone());
    let hands = Hands { client, recorder, scheduler_name, claims: informers.all(), volumes: informers.all(), device_claims: informers.all() };
    let mut tasks: JoinSet<Report> = JoinSet::new();
    let mut cursor = Cursor::default();
    let mut counted: Option<Instant> = None;
    let mut rng = StdRng::from_rng(&mut rand::rng());
    loop {
        if shutdown.is_cancelled() {
            break;
        }
        let now = Instant::now();
        feeds.drain(&mut state, now);
        while let Some(report) = tasks.try_join_next() {
            settle(&mut state, report);
        }
        if tasks.len() < TASKS_MAX
            && let Some(pod) = state.queue.pop(now)
        {
            state.snapshot.devices.prepare();
            let decided = state.profile.decide(&state.snapshot, &pod, &mut cursor, &mut rng);
            count(&hands.scheduler_name, if decided.is_ok() { "scheduled" } else { "unschedulable" }, now.elapsed());
            match decided {
                Ok(node) => {
                    let plan = state.assume(&pod, &node);
                    tasks.spawn(hands.clone().bind(pod, node, plan));
                }
                Err(unschedulable) => {
                    let proposal = preemption::propose(&state.profile, &state.snapshot, &pod, &unschedulable, &mut rng);
                    refuse(&mut state, &mut tasks, &hands, pod, unschedulable, proposal);
                }
            }
            // Lets the tasks make progress between two cycles, also on one thread.
            tokio::task::yield_now().await;
            continue;
        }
        if counted.is_none_or(|counted| now.duration_since(counted) >= COUNT_EVERY) {
            counted = Some(now);
            for (queue, pods) in ["active", "backoff", "unschedulable", "gated"].into_iter().zip(state.queue.counts()) {
                client::metrics::set("scheduler_pending_pods", &[("queue", queue)], pods as i64);
            }
        }
        let due = state.queue.next_due();
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = feeds.wait(&mut state) => {}
            Some(report) = tasks.join_next(), if !tasks.is_empty() => settle(&mut state, report),
            () = sleep_until(due.unwrap_or(now)), if due.is_some() && tasks.len() < TASKS_MAX => {}
        }
    }
    tasks.shutdown().await;
}

/// Counts an attempt under Kubernetes' names.
fn count(profile: &str, result: &str, took: std::time::Duration) {
    let labels = [("profile", profile), ("result", result)];
    client::metrics::add("scheduler_schedule_attempts_total", &labels, 1);
    client::metrics::observe("scheduler_scheduling_attempt_duration_seconds", &labels, took);
}

fn settle(state: &mut State, report: Result<Report, tokio::task::JoinError>) {
    match report {
        Ok(Report::Done) => {}
        Ok(Report::NotBound { uid }) => state.placement_failed(&uid, Instant::now()),
        Ok(Report::Preempted { uid, nominated }) => {
            if !nominated {
                state.snapshot.withdraw_nomination(&uid);
            }
            // The victims may be gone already, so it is tried again by the clock, not only by their going.
            state.queue.failed(&uid, Instant::now());
        }
        // A task that panicked is a bug; its pod stays in flight until the informer brings its next version.
        Err(error) => warn!(%error, "a scheduling task has failed"),
    }
}

/// The pod goes nowhere now: says so, and makes room if that helps.
fn refuse(
    state: &mut State,
    tasks: &mut JoinSet<Report>,
    hands: &Hands,
    pod: Arc<PodInfo>,
    unschedulable: Unschedulable,
    proposal: Result<Proposal, String>,
) {
    let mut message = unschedulable.message();
    match proposal {
        Ok(proposal) => {
            info!(pod = %pod.full_name(), node = proposal.node, victims = proposal.victims.len(), "preempting");
            for other in &proposal.superseded {
                state.snapshot.withdraw_nomination(&other.uid);
            }
            state.snapshot.nominate(&pod, &proposal.node);
            tasks.spawn(hands.clone().preempt(pod, proposal, message));
        }
        Err(reason) => {
            if unschedulable.nodes > 0 {
                message = format!("{message} preemption: {reason}");
            }
            debug!(pod = %pod.full_name(), message, "unschedulable");
            state.queue.refused(&pod.uid, unschedulable.plugins, Instant::now());
            // Room that was being made on a node that can't take the pod any more is given back.
            let withdrawn =
                state.snapshot.nomination_of(&pod.uid).is_some_and(|node| unschedulable.refusals.get(node).is_none_or(|refusal| !refusal.resolvable));
            if withdrawn {
                state.snapshot.withdraw_nomination(&pod.uid);
            }
            let nomination = withdrawn.then_some(Value::Null);
            tasks.spawn(hands.clone().report_unschedulable(pod, message, nomination));
        }
    }
}

/// What carries out decisions.
#[derive(Clone)]
struct Hands {
    client: kube::Client,
    recorder: Recorder,
    scheduler_name: String,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    device_claims: Informer<ResourceClaim>,
}

impl Hands {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Gives the pod's claims their volumes, and waits until they are bound.
    async fn bind_volumes(&self, node: &str, plan: &volumes::Plan) -> Result<(), String> {
        for (claim, volume) in &plan.bind {
            if let Some(mut change) = volume_change(volume, claim) {
                change["metadata"]["resourceVersion"] = json!(volume.metadata.resource_version);
                self.volumes.patch(&Key::of(&**volume), &Patch::Merge(change)).await.map_err(|error| error.short())?;
            }
        }
        for claim in &plan.provision {
            if annotation(&**claim, SELECTED_NODE) != Some(node) {
                let meta = &claim.metadata;
                let change = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": {SELECTED_NODE: node}}});
                self.claims.patch(&Key::of(&**claim), &Patch::Merge(change)).await.map_err(|error| error.short())?;
            }
        }
        let mut changes = self.claims.subscribe();
        let bound = || plan.claims().all(|claim| self.claims.get(&Key::of(&**claim)).is_some_and(|claim| is_bound(&claim)));
        let wait = async {
            while !bound() {
                if changes.next().await.is_none() {
                    return;
                }
            }
        };
        timeout(VOLUMES_TIMEOUT, wait).await.map_err(|_| "binding volumes: timed out waiting for the condition".to_owned())
    }

    /// Writes what each claim gets, and that the pod uses it.
    async fn grant_devices(&self, pod: &PodInfo, plan: &devices::Plan) -> Result<(), String> {
        for grant in plan {
            let mut claim = self.device_claims.get(&grant.claim).ok_or_else(|| format!("resourceclaim \"{}\" not found", grant.claim.name))?;
            let finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
            if grant.allocation.is_some() && !finalizers.iter().any(|each| each == devices::FINALIZER) {
                let finalizers: Vec<_> = finalizers.into_iter().chain([devices::FINALIZER.to_owned()]).collect();
                let meta = &claim.metadata;
                let change = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
                claim = self.device_claims.patch(&grant.claim, &Patch::Merge(change)).await.map_err(|error| error.short())?;
            }
            let meta = &claim.metadata;
            let before = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
            let mut consumers = before.map(|consumers| json!(consumers)).unwrap_or_else(|| json!([]));
            if let Some(list) = consumers.as_array_mut().filter(|list| !list.iter().any(|each| each["uid"] == pod.uid.as_str())) {
                list.push(devices::consumer(pod));
            }
            let mut change = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "status": {"reservedFor": consumers}});
            if let Some(allocation) = &grant.allocation {
                change["status"]["allocation"] = allocation.clone();
            }
            self.device_claims.patch_status(&grant.claim, &Patch::Merge(change)).await.map_err(|error| error.short())?;
        }
        Ok(())
    }

    async fn bind(self, pod: Arc<PodInfo>, node: String, plan: Plan) -> Report {
        let mut prepared = self.grant_devices(&pod, &plan.devices).await;
        if prepared.is_ok() && !plan.volumes.is_empty() {
            prepared = self.bind_volumes(&node, &plan.volumes).await;
        }
        if let Err(message) = prepared {
            debug!(pod = %pod.full_name(), node, message, "volumes or devices not bound");
            self.say_failed(&pod, &message);
            self.set_condition(&pod, "SchedulerError", &message, None).await;
            return Report::NotBound { uid: pod.uid.clone() };
        }
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"kind": "Node", "name": node},
        });
        let pods = self.pods(&pod.namespace);
        let answer = in_time(pods.create_subresource::<Value, Value>("binding", &pod.name, &PostParams::default(), &binding)).await;
        match answer {
            Ok(_) => {
                let message = format!("Successfully assigned {} to {node}", pod.full_name());
                self.recorder.about(&*pod.pod, EventType::Normal, "Scheduled", message);
                Report::Done
            }
            Err(error) => {
                // A pod deleted meanwhile is no news; the informer takes it out of the queue.
                if !error.is_not_found() {
                    warn!(pod = %pod.full_name(), node, error = %error.short(), "not bound");
                    let message = format!("binding rejected: {}", error.short());
                    self.say_failed(&pod, &message);
                    self.set_condition(&pod, "SchedulerError", &message, None).await;
                }
                Report::NotBound { uid: pod.uid.clone() }
            }
        }
    }

    async fn report_unschedulable(self, pod: Arc<PodInfo>, message: String, nomination: Option<Value>) -> Report {
        self.say_failed(&pod, &message);
        self.set_condition(&pod, "Unschedulable", &message, nomination).await;
        Report::Done
    }

    fn say_failed(&self, pod: &PodInfo, message: &str) {
        self.recorder.about(&*pod.pod, EventType::Warning, "FailedScheduling", cut(message));
    }

    /// Sets the condition PodScheduled to False, if that says anything new.
    async fn set_condition(&self, pod: &PodInfo, reason: &str, message: &str, nomination: Option<Value>) {
        let Some(patch) = condition_patch(pod, reason, message, nomination, Timestamp::now()) else {
            return;
        };
        let pods = self.pods(&pod.namespace);
        let answer = in_time(pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))).await;
        match answer {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                warn!(pod = %pod.full_name(), error = %error.short(), "condition not set");
            }
            _ => {}
        }
    }

    async fn preempt(self, pod: Arc<PodInfo>, proposal: Proposal, message: String) -> Report {
        self.say_failed(&pod, &message);
        self.set_condition(&pod, "Unschedulable", &message, Some(proposal.node.clone().into())).await;
        for other in &proposal.superseded {
            let patch = json!({"metadata": {"uid": other.uid}, "status": {"nominatedNodeName": null}});
            let pods = self.pods(&other.namespace);
            // It keeps a nomination that no longer holds: harmless, it is only tried there first.
            let _ = in_time(pods.patch_status(&other.name, &PatchParams::default(), &Patch::Merge(patch))).await;
        }
        for victim in &proposal.victims {
            if let Err(error) = self.evict(&pod, victim, &proposal.node).await {
                warn!(victim = %victim.full_name(), error = %error.short(), "not evicted");
                return Report::Preempted { uid: pod.uid.clone(), nominated: false };
            }
        }
        Report::Preempted { uid: pod.uid.clone(), nominated: true }
    }

    async fn evict(&self, pod: &PodInfo, victim: &PodInfo, node: &str) -> Result<(), kube::Error> {
        if victim.is_terminating() {
            return Ok(());
        }
        let pods = self.pods(&victim.namespace);
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("PreemptionByScheduler".to_owned()),
            message: Some(format!("{}: preempting to accommodate a higher priority pod", self.scheduler_name)),
            last_transition_time: Some(now()),
            ..PodCondition::default()
        };
        let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
        let is_gone = |error: &kube::Error| error.is_not_found() || error.is_conflict();
        match in_time(pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch))).await {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let preconditions = Preconditions { uid: Some(victim.uid.clone()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match in_time(pods.delete(&victim.name, &params)).await {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
        let message = format!("Preempted by pod {} on node {node}", pod.uid);
        self.recorder.about(&*victim.pod, EventType::Normal, "Preempted", message);
        Ok(())
    }
}

fn now() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(client::clock::whole_seconds(Timestamp::now()))
}

/// A request with a deadline: one that hangs must not hold a pod (and one of the tasks) for ever.
async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("no answer in time".into());
    timeout(client::limits::REQUEST_TIMEOUT, request).await.map_err(late)?
}

/// The patch that makes PodScheduled False for this reason, or `None` if it already is. `nomination` is the new
/// `nominatedNodeName` (null: none any more).
fn condition_patch(pod: &PodInfo, reason: &str, message: &str, nomination: Option<Value>, now: Timestamp) -> Option<Value> {
    let status = pod.pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or(&[]);
    let before = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    let says_so = |condition: &&PodCondition| {
        condition.status == "False" && condition.reason.as_deref() == Some(reason) && condition.message.as_deref() == Some(message)
    };
    let nominated = pod.nominated_node().map_or(Value::Null, Value::from);
    let nomination = nomination.filter(|new| *new != nominated);
    if before.filter(says_so).is_some() && nomination.is_none() {
        return None;
    }
    let since = before.filter(|condition| condition.status == "False");
    let since = since.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0);
    let mut patch = json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": client::clock::whole_seconds(since.unwrap_or(now)),
        }]},
    });
    if let Some(generation) = pod.pod.metadata.generation {
        patch["status"]["conditions"][0]["observedGeneration"] = generation.into();
    }
    if let Some(nomination) = nomination {
        patch["status"]["nominatedNodeName"] = nomination;
    }
    Some(patch)
}

fn cut(message: &str) -> String {
    if message.len() <= EVENT_MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let end = (0..=EVENT_MESSAGE_BYTES_MAX - 4).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    format!("{} ...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::pod;

    #[test]
    fn a_condition_is_written_once_and_keeps_its_time() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let fresh = pod("p", "");
        let patch = condition_patch(&fresh, "Unschedulable", "no room", None, now).expect("news");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let told = pod(
            "p",
            r#"patch={"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "no room", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#,
        );
        assert_eq!(condition_patch(&told, "Unschedulable", "no room", None, now), None);
        let other = condition_patch(&told, "Unschedulable", "still none", None, now).expect("news");
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        let nominated = condition_patch(&told, "Unschedulable", "no room", Some("n1".into()), now).expect("news");
        assert_eq!(nominated["status"]["nominatedNodeName"], "n1");
        assert_eq!(condition_patch(&told, "Unschedulable", "no room", Some(Value::Null), now), None);
    }

    #[test]
    fn long_messages_are_cut() {
        assert_eq!(cut("short"), "short");
        assert!(cut(&"ü".repeat(2000)).len() <= EVENT_MESSAGE_BYTES_MAX);
    }
}
