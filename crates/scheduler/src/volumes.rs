//! Claims and volumes as the scheduler sees them: on which nodes a pod can have its volumes, and what must be written before
//! it is bound there.
//!
//! A claim that is bound ties the pod to the nodes that its volume can be reached from. A claim of a class with
//! `WaitForFirstConsumer` is bound here: the node decides which volume it gets, or where one is to be made.
//!
//! What must stay true: pure; a volume that was chosen for a pod is chosen for no other until the pod is bound or has failed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::Key;
use client::placement::NodeTerms;
use client::volumes::{NO_PROVISIONER, SELECTED_NODE, annotation, candidates, claim_of_pod, class_of_claim, is_bound, requested, volume_of_claim};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::pod::{Labels, PodInfo};
use crate::snapshot::NodeInfo;

/// A pod's use of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimUse {
    /// The claim's name.
    pub name: String,
    /// Whether it is made for the pod.
    pub ephemeral: bool,
}

impl ClaimUse {
    /// The claims of a pod.
    pub fn of_pod(pod: &Pod) -> Vec<ClaimUse> {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.filter_map(|volume| claim_of_pod(pod, volume)).map(|(name, ephemeral)| ClaimUse { name, ephemeral }).collect()
    }
}

/// What must be written before a pod is bound to its node.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Claims with the volumes that they get.
    pub bind: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    /// Claims for which a volume is to be made for the node.
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Plan {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }

    /// The claims that must be bound before the pod is.
    pub fn claims(&self) -> impl Iterator<Item = &Arc<PersistentVolumeClaim>> {
        self.bind.iter().map(|(claim, _)| claim).chain(&self.provision)
    }
}

/// A volume with the nodes that it can be reached from.
#[derive(Clone, Debug)]
struct Reachable {
    volume: Arc<PersistentVolume>,
    nodes: Option<NodeTerms>,
}

impl Reachable {
    fn of(volume: Arc<PersistentVolume>) -> Reachable {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()).and_then(|affinity| affinity.required.as_ref());
        Reachable { nodes: affinity.map(NodeTerms::of), volume }
    }

    fn reaches(&self, node: &NodeInfo) -> bool {
        self.nodes.as_ref().is_none_or(|terms| terms.matches(&node.name, node.labels()))
    }
}

/// A claim that is bound when the pod is.
#[derive(Clone, Debug)]
struct Delayed {
    claim: Arc<PersistentVolumeClaim>,
    class: Arc<StorageClass>,
    candidates: Vec<Reachable>,
}

/// What a pod's claims ask of its node.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    bound: Vec<Reachable>,
    delayed: Vec<Delayed>,
}

impl Needs {
    /// Whether any node will do.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.delayed.is_empty()
    }

    /// The volumes that are bound already.
    pub fn bound(&self) -> impl Iterator<Item = &PersistentVolume> {
        self.bound.iter().map(|reachable| &*reachable.volume)
    }

    /// What must be written so that the pod has its volumes on `node`, or why it can't have them there.
    pub fn on(&self, node: &NodeInfo) -> Result<Plan, &'static str> {
        const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";
        if !self.bound.iter().all(|reachable| reachable.reaches(node)) {
            return Err("node(s) didn't match PersistentVolume's node affinity");
        }
        let mut plan = Plan::default();
        for Delayed { claim, class, candidates } in &self.delayed {
            match annotation(&**claim, SELECTED_NODE) {
                Some(selected) if selected != node.name => return Err(NONE_TO_BIND),
                // Somebody is making it a volume for this node.
                Some(_) => {
                    plan.provision.push(claim.clone());
                    continue;
                }
                None => {}
            }
            let taken = |volume: &PersistentVolume| plan.bind.iter().any(|(_, other)| other.metadata.name == volume.metadata.name);
            if let Some(found) = candidates.iter().find(|each| each.reaches(node) && !taken(&each.volume)) {
                plan.bind.push((claim.clone(), found.volume.clone()));
            } else if class.provisioner != NO_PROVISIONER && can_be_made_for(class, node.labels()) {
                plan.provision.push(claim.clone());
            } else {
                return Err(NONE_TO_BIND);
            }
        }
        Ok(plan)
    }
}

/// Whether the class makes volumes for nodes with these labels.
fn can_be_made_for(class: &StorageClass, labels: &Labels) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let fulfilled = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        term.match_label_expressions.iter().flatten().all(|each| labels.get(&each.key).is_some_and(|value| each.values.contains(value)))
    };
    terms.is_empty() || terms.iter().any(fulfilled)
}

/// All claims, volumes and classes.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
    /// Volumes that were chosen for pods which are not bound yet: name to the pod's UID.
    chosen: HashMap<String, String>,
}

impl Volumes {
    /// Takes a claim (`None`: it is gone).
    pub fn set_claim(&mut self, key: Key, claim: Option<Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(claim) => self.claims.insert(key, claim),
            None => self.claims.remove(&key),
        };
    }

    /// Takes a volume (`None`: it is gone).
    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) {
        match volume {
            Some(volume) => self.volumes.insert(name.to_owned(), volume),
            None => self.volumes.remove(name),
        };
    }

    /// Takes a class (`None`: it is gone).
    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    /// Keeps the plan's volumes for the pod.
    pub fn choose(&mut self, uid: &str, plan: &Plan) {
        for (_, volume) in &plan.bind {
            self.chosen.insert(volume.metadata.name.clone().unwrap_or_default(), uid.to_owned());
        }
    }

    /// The pod is bound, or has failed: what was kept for it is no longer kept.
    pub fn release(&mut self, uid: &str) {
        self.chosen.retain(|_, owner| owner != uid);
    }

    /// One of a pod's claims.
    pub fn claim(&self, pod: &PodInfo, used: &ClaimUse) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&Key::new(pod.namespace.clone(), used.name.clone()))
    }

    /// What the pod's claims ask of its node, or why no node at all will do.
    pub fn needs(&self, pod: &PodInfo) -> Result<Needs, String> {
        let mut needs = Needs::default();
        for used in &pod.claims {
            let name = &used.name;
            let claim = match self.claim(pod, used) {
                Some(claim) => claim,
                None if used.ephemeral => {
                    return Err(format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""));
                }
                None => return Err(format!("persistentvolumeclaim \"{name}\" not found")),
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let owned = || claim.metadata.owner_references.iter().flatten().any(|owner| owner.uid == pod.uid);
            if used.ephemeral && !owned() {
                return Err(format!("PVC \"{}/{name}\" was not created for pod \"{}\" (pod is not owner)", pod.namespace, pod.full_name()));
            }
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                let volume = volume_of_claim(claim).unwrap_or_default();
                return Err(format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""));
            }
            if is_bound(claim) {
                match volume_of_claim(claim).and_then(|name| self.volumes.get(name)) {
                    Some(volume) => needs.bound.push(Reachable::of(volume.clone())),
                    None => return Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".to_owned()),
                }
                continue;
            }
            let class = self.classes.get(class_of_claim(claim));
            let waits = |class: &&Arc<StorageClass>| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
            match class.filter(waits) {
                Some(class) if volume_of_claim(claim).is_none() => {
                    let free = self.volumes.iter().filter(|(name, _)| self.chosen.get(*name).is_none_or(|owner| *owner == pod.uid));
                    let found = candidates(claim, free.map(|(_, volume)| volume), false);
                    let candidates = found.into_iter().map(Reachable::of).collect();
                    needs.delayed.push(Delayed { claim: claim.clone(), class: class.clone(), candidates });
                }
                _ => return Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
            }
        }
        // The least demanding first, so that a small claim does not take the only large volume.
        needs.delayed.sort_by_key(|delayed| requested(&delayed.claim));
        Ok(needs)
    }

    /// What must be written before the pod is bound to the node that was decided.
    pub fn plan(&self, pod: &PodInfo, node: &NodeInfo) -> Plan {
        self.needs(pod).ok().and_then(|needs| needs.on(node).ok()).unwrap_or_default()
    }
}
