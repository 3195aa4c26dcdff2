//! Devices as the scheduler sees them (dynamic resource allocation): what a pod's ResourceClaims ask for, which devices the
//! ResourceSlices offer on which nodes, and what must be written before the pod is bound.
//!
//! A claim that has its devices ties the pod to the nodes from which they can be used. One that has none gets them here: the node
//! decides which. Devices that share counters or wait for conditions are not given out.
//!
//! What must stay true: pure; a device is given to one claim, and one chosen for a pod is chosen for no other until the pod is bound
//! or has failed; a search ends.

mod offer;
mod search;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use client::Key;
use client::placement::NodeTerms;
use k8s_openapi::api::core::v1::{NodeSelector, Pod};
use serde_json::{Value, json};

pub use offer::DeviceId;
use offer::{Pools, Slice};
use search::Request;

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// On a claim whose devices were chosen here.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Who may use one claim at the same time.
const CONSUMERS_MAX: usize = 256;

/// A pod's use of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUse {
    /// The claim's name, as far as it is known.
    pub claim: Option<String>,
    /// Whether it is made for the pod.
    pub made: bool,
}

impl DeviceUse {
    /// The claims of a pod; not those of which it is known that none is needed.
    pub fn of_pod(pod: &Pod) -> Vec<DeviceUse> {
        let statuses = || pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
        let uses = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()).filter_map(|entry| match &entry.resource_claim_name {
            Some(name) => Some(DeviceUse { claim: Some(name.clone()), made: false }),
            None => match statuses().find(|status| status.name == entry.name) {
                Some(status) => status.resource_claim_name.clone().map(|name| DeviceUse { claim: Some(name), made: true }),
                None => Some(DeviceUse { claim: None, made: true }),
            },
        });
        uses.collect()
    }
}

/// What must be written for one claim before its pod is bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The claim.
    pub claim: Key,
    /// What it is given, if it has nothing yet.
    pub allocation: Option<Value>,
    /// Its devices.
    devices: Vec<DeviceId>,
}

/// All that must be written.
pub type Plan = Vec<Grant>;

/// What a pod's claims ask of its node.
pub struct Needs {
    /// Where claims that have their devices can be used.
    bound: Vec<NodeTerms>,
    /// Claims that the pod must be entered in, and that have their devices.
    entered: Vec<Key>,
    /// Claims that are given devices.
    open: Vec<Open>,
    pools: Arc<Pools>,
    taken: HashSet<DeviceId>,
}

struct Open {
    claim: Key,
    spec: Arc<Value>,
    requests: Vec<Request>,
}

impl Needs {
    /// Whether any node will do and nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.entered.is_empty() && self.open.is_empty()
    }

    /// What must be written so that the pod has its devices on `node`, or why it can't have them there.
    pub fn on(&self, node: &NodeInfo) -> Result<Plan, String> {
        if !self.bound.iter().all(|terms| terms.matches(&node.name, node.labels())) {
            return Err("resourceclaim not available on the node".to_owned());
        }
        let mut plan: Plan = self.entered.iter().map(|claim| Grant { claim: claim.clone(), allocation: None, devices: Vec::new() }).collect();
        let mut taken = self.taken.clone();
        for open in &self.open {
            let found = search::search(&open.requests, &open.spec, &self.pools, node, &taken)?;
            let Some(chosen) = found else { return Err("cannot allocate all claims".to_owned()) };
            let devices: Vec<DeviceId> = chosen.iter().filter(|choice| !choice.admin).map(|choice| choice.id.clone()).collect();
            let allocation = search::allocation(&chosen, &open.requests, &open.spec, node);
            taken.extend(devices.iter().cloned());
            plan.push(Grant { claim: open.claim.clone(), allocation: Some(allocation), devices });
        }
        Ok(plan)
    }
}

/// All claims, classes and slices.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    claims: HashMap<Key, Arc<Value>>,
    classes: HashMap<String, Arc<Value>>,
    slices: BTreeMap<String, Arc<Slice>>,
    /// Made of the slices when first needed.
    pools: Option<Arc<Pools>>,
    /// What was chosen for pods that are not bound yet: by claim, with the pod's UID.
    chosen: HashMap<Key, (String, Vec<DeviceId>)>,
}

impl Devices {
    /// Takes a claim (`None`: it is gone).
    pub fn set_claim(&mut self, key: Key, claim: Option<Value>) {
        match claim {
            Some(claim) => self.claims.insert(key, Arc::new(claim)),
            None => self.claims.remove(&key),
        };
    }

    /// Takes a class (`None`: it is gone).
    pub fn set_class(&mut self, name: &str, class: Option<&Value>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), Arc::new(class.clone())),
            None => self.classes.remove(name),
        };
    }

    /// Takes a slice (`None`: it is gone).
    pub fn set_slice(&mut self, name: &str, slice: Option<&Value>) {
        self.pools = None;
        match slice.and_then(|slice| Slice::of(slice.get("spec")?)) {
            Some(slice) => self.slices.insert(name.to_owned(), Arc::new(slice)),
            None => self.slices.remove(name),
        };
    }

    /// Gets ready what is made of many objects; to be called before a cycle.
    pub fn prepare(&mut self) {
        if self.pools.is_none() {
            self.pools = Some(Arc::new(Pools::of(self.slices.values())));
        }
    }

    /// Keeps what was chosen for the pod.
    pub fn choose(&mut self, uid: &str, plan: &Plan) {
        for grant in plan.iter().filter(|grant| grant.allocation.is_some()) {
            self.chosen.insert(grant.claim.clone(), (uid.to_owned(), grant.devices.clone()));
        }
    }

    /// The pod is bound, or has failed: what was kept for it is no longer kept.
    pub fn release(&mut self, uid: &str) {
        self.chosen.retain(|_, (owner, _)| owner != uid);
    }

    /// What the pod's claims ask of its node, or why no node at all will do.
    pub fn needs(&self, pod: &PodInfo) -> Result<Needs, String> {
        let pools = self.pools.clone().unwrap_or_default();
        let mut needs = Needs { bound: Vec::new(), entered: Vec::new(), open: Vec::new(), pools, taken: HashSet::new() };
        for used in &pod.devices {
            let Some(name) = &used.claim else { return Err(format!("pod \"{}\": ResourceClaim not created yet", pod.full_name())) };
            let key = Key::new(pod.namespace.clone(), name.clone());
            let Some(claim) = self.claims.get(&key) else { return Err(format!("resourceclaim \"{name}\" not found")) };
            if !claim["metadata"]["deletionTimestamp"].is_null() {
                return Err(format!("resourceclaim \"{name}\" is being deleted"));
            }
            let owners = claim["metadata"]["ownerReferences"].as_array();
            if used.made && !owners.into_iter().flatten().any(|owner| owner["uid"] == pod.uid.as_str()) {
                return Err(format!("ResourceClaim {}/{name} was not created for pod {} (pod is not owner)", pod.namespace, pod.full_name()));
            }
            if self.chosen.get(&key).is_some_and(|(owner, _)| *owner != pod.uid) {
                return Err(format!("resourceclaim \"{name}\" is being allocated for another pod"));
            }
            let status = &claim["status"];
            if status["allocation"].is_null() {
                let requests = search::requests(claim, &self.classes)?;
                needs.open.push(Open { claim: key, spec: claim.clone(), requests });
                continue;
            }
            if let Some(terms) = terms(&status["allocation"]["nodeSelector"]) {
                needs.bound.push(terms);
            }
            let consumers = status["reservedFor"].as_array().map(Vec::as_slice).unwrap_or_default();
            if !consumers.iter().any(|consumer| consumer["uid"] == pod.uid.as_str()) {
                if consumers.len() >= CONSUMERS_MAX {
                    return Err("resourceclaim in use".to_owned());
                }
                needs.entered.push(key);
            }
        }
        if !needs.open.is_empty() {
            needs.taken = self.taken();
        }
        Ok(needs)
    }

    /// The devices that are given to claims, or will be in a moment.
    fn taken(&self) -> HashSet<DeviceId> {
        let given = self.claims.values().flat_map(|claim| claim["status"]["allocation"]["devices"]["results"].as_array().into_iter().flatten());
        let given = given.filter(|result| result["adminAccess"] != true).filter_map(DeviceId::of_result);
        given.chain(self.chosen.values().flat_map(|(_, devices)| devices.iter().cloned())).collect()
    }

    /// What must be written before the pod is bound to the node that was decided.
    pub fn plan(&self, pod: &PodInfo, node: &NodeInfo) -> Plan {
        if pod.devices.is_empty() {
            return Plan::new();
        }
        self.needs(pod).ok().and_then(|needs| needs.on(node).ok()).unwrap_or_default()
    }
}

/// The nodes that a selector means; `None` where there is none, or one that cannot be read, which means all.
fn terms(selector: &Value) -> Option<NodeTerms> {
    if selector.is_null() {
        return None;
    }
    serde_json::from_value::<NodeSelector>(selector.clone()).ok().map(|selector| NodeTerms::of(&selector))
}

/// Who a pod is in `status.reservedFor`.
pub fn consumer(pod: &PodInfo) -> Value {
    json!({"resource": "pods", "name": pod.name, "uid": pod.uid})
}

#[cfg(test)]
mod tests;
