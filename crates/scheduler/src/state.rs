//! What the scheduler knows, kept up change by change: the snapshot and the queue, from what the informers report.
//!
//! What must stay true: no I/O here, and every change leaves the same state whatever order the kinds arrive in. A pod
//! that was placed by this scheduler stays assumed on its node until the API shows it bound, changed or gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::{Change, Json, Key};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::DynamicObject;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use crate::cycle::Profile;
use crate::devices;
use crate::framework::{Causes, Happening};
use crate::pod::{PodInfo, PodSelector};
use crate::queue::Queue;
use crate::snapshot::{Budget, Snapshot, Workload};
use crate::volumes;

/// What must be written before a pod is bound.
#[derive(Debug, Default)]
pub struct Plan {
    /// About its volumes.
    pub volumes: volumes::Plan,
    /// About its devices.
    pub devices: devices::Plan,
}

/// See the module.
pub struct State {
    /// The plugins.
    pub profile: Profile,
    /// The cluster.
    pub snapshot: Snapshot,
    /// The pods that wait.
    pub queue: Queue,
    /// Pods placed but not yet seen bound, by UID.
    assumed: HashMap<String, Arc<PodInfo>>,
    scheduler_name: String,
}

impl State {
    /// An empty state for the pods that name `scheduler_name`.
    pub fn new(scheduler_name: impl Into<String>) -> State {
        State {
            profile: Profile::default(),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            assumed: HashMap::new(),
            scheduler_name: scheduler_name.into(),
        }
    }

    /// Counts a pod on the node that was decided for it, before the API knows.
    ///
    /// Gives what must be written about its volumes and devices first; these are kept for it meanwhile.
    pub fn assume(&mut self, pod: &Arc<PodInfo>, node: &str) -> Plan {
        let of = |node| Plan { volumes: self.snapshot.volumes.plan(pod, node), devices: self.snapshot.devices.plan(pod, node) };
        let plan = self.snapshot.node(node).map(of).unwrap_or_default();
        self.snapshot.volumes.choose(&pod.uid, &plan.volumes);
        self.snapshot.devices.choose(&pod.uid, &plan.devices);
        self.snapshot.withdraw_nomination(&pod.uid);
        self.snapshot.place(pod, node);
        self.assumed.insert(pod.uid.clone(), Arc::clone(pod));
        plan
    }

    /// The API refused the placement: the pod is tried again after a back-off.
    pub fn placement_failed(&mut self, uid: &str, now: Instant) {
        self.snapshot.volumes.release(uid);
        self.snapshot.devices.release(uid);
        if let Some(pod) = self.assumed.remove(uid) {
            self.snapshot.displace(uid);
            self.queue.failed(uid, now);
            self.happened(Causes::POD_FREED, None, Some(pod), now);
        }
    }

    /// Whether a pod waits for the API to show it bound.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains_key(uid)
    }

    fn happened(&mut self, causes: Causes, node: Option<&str>, pod: Option<Arc<PodInfo>>, now: Instant) {
        let node = node.and_then(|name| self.snapshot.node(name)).cloned();
        self.queue.happened(&self.profile, &Happening { causes, node, pod }, now);
    }

    /// Takes a change of a pod.
    pub fn pod_changed(&mut self, change: &Change<Pod>, now: Instant) {
        let new = match change {
            Change::Deleted(pod) => return self.pod_gone(pod, now),
            Change::Applied { old, new } => {
                if let Some(old) = old.as_ref().filter(|old| old.uid() != new.uid()) {
                    self.pod_gone(old, now);
                }
                new
            }
        };
        let pod = PodInfo::of(Arc::clone(new));
        if pod.is_finished() {
            return self.pod_gone(new, now);
        }
        match pod.node_name().map(str::to_owned) {
            Some(node) => self.pod_bound(&pod, &node, now),
            None => self.pod_waits(pod, now),
        }
    }

    fn pod_bound(&mut self, pod: &Arc<PodInfo>, node: &str, now: Instant) {
        let was_assumed = self.assumed.remove(&pod.uid).is_some();
        self.snapshot.volumes.release(&pod.uid);
        self.snapshot.devices.release(&pod.uid);
        self.queue.remove(&pod.uid);
        self.snapshot.withdraw_nomination(&pod.uid);
        let before = self.snapshot.displace(&pod.uid).filter(|_| !was_assumed);
        self.snapshot.place(pod, node);
        let causes = match before {
            None => Causes::POD_BOUND,
            Some(before) => {
                let relabelled = before.labels() != pod.labels();
                let mut least = before.requests.clone();
                least.raise_to(&pod.requests);
                let shrunk = least != pod.requests || (pod.is_terminating() && !before.is_terminating());
                let labels = if relabelled { Causes::POD_LABELS } else { Causes::NONE };
                labels.and(if shrunk { Causes::POD_FREED } else { Causes::NONE })
            }
        };
        if causes != Causes::NONE {
            self.happened(causes, None, Some(Arc::clone(pod)), now);
        }
    }

    fn pod_waits(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let scheduler = pod.pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let is_ours = scheduler.unwrap_or("default-scheduler") == self.scheduler_name;
        if !is_ours || self.is_assumed(&pod.uid) {
            return;
        }
        if pod.is_terminating() {
            self.queue.remove(&pod.uid);
            self.snapshot.withdraw_nomination(&pod.uid);
            return;
        }
        if let Some(node) = pod.nominated_node() {
            self.snapshot.nominate(&pod, node);
        }
        self.queue.set(pod, &self.profile, now);
    }

    fn pod_gone(&mut self, pod: &Pod, now: Instant) {
        let Some(uid) = pod.uid() else {
            return;
        };
        self.assumed.remove(&uid);
        self.snapshot.volumes.release(&uid);
        self.snapshot.devices.release(&uid);
        self.queue.remove(&uid);
        let was_nominated = self.snapshot.nomination_of(&uid).is_some();
        if was_nominated {
            self.snapshot.withdraw_nomination(&uid);
        }
        let placed = self.snapshot.displace(&uid);
        if placed.is_some() || was_nominated {
            self.happened(Causes::POD_FREED, None, placed, now);
        }
    }

    /// Takes a change of a node.
    pub fn node_changed(&mut self, change: &Change<Node>, now: Instant) {
        match change {
            Change::Deleted(node) => self.snapshot.remove_node(&node.name_any()),
            Change::Applied { new, .. } => {
                let name = new.name_any();
                // By what is known here, not by what the change says was before: both must agree, and this is ours.
                let causes = match self.snapshot.node(&name) {
                    None => Causes::NODE_ADDED,
                    Some(before) => node_causes(&before.node, new),
                };
                let images = |node: &Node| node.status.as_ref().and_then(|status| status.images.clone());
                let known = self.snapshot.node(&name);
                if causes != Causes::NONE || known.is_some_and(|known| images(&known.node) != images(new)) {
                    self.snapshot.set_node(Arc::clone(new));
                }
                if causes != Causes::NONE {
                    self.happened(causes, Some(&name), None, now);
                }
            }
        }
    }

    /// Takes a change of a namespace.
    pub fn namespace_changed(&mut self, change: &Change<Namespace>) {
        match change {
            Change::Deleted(namespace) => self.snapshot.set_namespace(&namespace.name_any(), None),
            Change::Applied { new, .. } => {
                let labels = new.metadata.labels.clone().unwrap_or_default();
                self.snapshot.set_namespace(&new.name_any(), Some(labels));
            }
        }
    }

    /// Takes a change of a disruption budget.
    pub fn budget_changed(&mut self, change: &Change<PodDisruptionBudget>) {
        let object = change.object();
        let namespace = object.namespace().unwrap_or_default();
        let budget = match change {
            Change::Deleted(_) => None,
            Change::Applied { new, .. } => {
                let status = new.status.as_ref();
                let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
                Some(Budget {
                    namespace: namespace.clone(),
                    selector: PodSelector::of(new.spec.as_ref().and_then(|spec| spec.selector.as_ref())),
                    disruptions_allowed: status.map_or(0, |status| i64::from(status.disruptions_allowed.unwrap_or(0))),
                    disrupted: disrupted.into_iter().flat_map(BTreeMap::keys).cloned().collect(),
                })
            }
        };
        self.snapshot.set_budget(&namespace, &object.name_any(), budget);
    }

    /// Takes a change of a claim.
    pub fn claim_changed(&mut self, change: &Change<PersistentVolumeClaim>, now: Instant) {
        let claim = matches!(change, Change::Applied { .. }).then(|| Arc::clone(change.object()));
        self.snapshot.volumes.set_claim(Key::of(&**change.object()), claim);
        self.happened(Causes::VOLUMES, None, None, now);
    }

    /// Takes a change of a volume.
    pub fn volume_changed(&mut self, change: &Change<PersistentVolume>, now: Instant) {
        let volume = matches!(change, Change::Applied { .. }).then(|| Arc::clone(change.object()));
        self.snapshot.volumes.set_volume(&change.object().name_any(), volume);
        self.happened(Causes::VOLUMES, None, None, now);
    }

    /// Takes a change of a class of volumes.
    pub fn class_changed(&mut self, change: &Change<StorageClass>, now: Instant) {
        let class = matches!(change, Change::Applied { .. }).then(|| Arc::clone(change.object()));
        self.snapshot.volumes.set_class(&change.object().name_any(), class);
        self.happened(Causes::VOLUMES, None, None, now);
    }

    /// Takes a change of a claim of devices.
    pub fn device_claim_changed(&mut self, change: &Change<ResourceClaim>, now: Instant) {
        // What cannot be written as JSON has not been read from it.
        let claim = matches!(change, Change::Applied { .. }).then(|| change.object().to_tree().unwrap_or_default());
        self.snapshot.devices.set_claim(Key::of(&**change.object()), claim);
        self.happened(Causes::DEVICES, None, None, now);
    }

    /// Takes a change of a class of devices.
    pub fn device_class_changed(&mut self, change: &Change<DynamicObject>, now: Instant) {
        let class = matches!(change, Change::Applied { .. }).then(|| &change.object().data);
        self.snapshot.devices.set_class(&change.object().name_any(), class);
        self.happened(Causes::DEVICES, None, None, now);
    }

    /// Takes a change of a slice of devices.
    pub fn device_slice_changed(&mut self, change: &Change<DynamicObject>, now: Instant) {
        let slice = matches!(change, Change::Applied { .. }).then(|| &change.object().data);
        self.snapshot.devices.set_slice(&change.object().name_any(), slice);
        self.happened(Causes::DEVICES, None, None, now);
    }

    /// Takes a change of a Service.
    pub fn service_changed(&mut self, change: &Change<Service>) {
        let labels = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
        self.workload_changed("Service", change, |service| {
            labels(service).filter(|labels| !labels.is_empty()).map(|labels| PodSelector::equal(&labels))
        });
    }

    /// Takes a change of a ReplicationController, which selects by plain labels.
    pub fn replication_controller_changed(&mut self, change: &Change<ReplicationController>) {
        let labels = |object: &ReplicationController| object.spec.as_ref().and_then(|spec| spec.selector.clone());
        self.workload_changed("ReplicationController", change, |object| labels(object).map(|labels| PodSelector::equal(&labels)));
    }

    /// Takes a change of an owner of pods that selects them by a label selector.
    pub fn owner_changed<K>(&mut self, kind: &'static str, change: &Change<K>, selector: impl Fn(&K) -> Option<&LabelSelector>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.workload_changed(kind, change, |object| selector(object).map(|selector| PodSelector::of(Some(selector))));
    }

    fn workload_changed<K>(&mut self, kind: &'static str, change: &Change<K>, selector: impl Fn(&K) -> Option<PodSelector>)
    where
        K: Resource<DynamicType = ()>,
    {
        let meta = change.object().meta();
        let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let selector = match change {
            Change::Applied { new, .. } => selector(new),
            Change::Deleted(_) => None,
        };
        match selector {
            Some(selector) => self.snapshot.set_workload(Workload { kind, namespace, name, selector }),
            None => self.snapshot.remove_workload(kind, &namespace, &name),
        }
    }
}

fn node_causes(old: &Node, new: &Node) -> Causes {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let spec = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable.unwrap_or(false)));
    let mut causes = Causes::NONE;
    if allocatable(old) != allocatable(new) {
        causes = causes.and(Causes::NODE_ALLOCATABLE);
    }
    if old.metadata.labels != new.metadata.labels {
        causes = causes.and(Causes::NODE_LABELS);
    }
    if spec(old) != spec(new) {
        causes = causes.and(Causes::NODE_TAINTS);
    }
    // Another node of the same name.
    if old.metadata.uid != new.metadata.uid { causes.and(Causes::NODE_ADDED) } else { causes }
}
