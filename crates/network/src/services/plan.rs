//! The proxy's state as a pure machine: changes in, the wished table and the stale flows out.
//!
//! A change only marks its Service as dirty; [`Plan::renew`] computes the dirty ones anew, so that ten changes of one
//! Service between two transactions cost one computation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use client::{Change, Key};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use membership::View;

use super::rules::{self, PortFlows};
use super::{Facts, TABLE};
use crate::conntrack::{self, Flush};
use crate::table::Table;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// All Services, their slices, and what they come to in the kernel.
pub struct Plan {
    facts: Facts,
    services: HashMap<Key, Arc<Service>>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    flows: HashMap<Key, Vec<PortFlows>>,
    dirty: BTreeSet<Key>,
    table: Table<Key>,
}

impl Plan {
    /// An empty plan under these facts.
    pub fn new(facts: Facts) -> Plan {
        let table = Table::new(TABLE, rules::base(&facts));
        Plan { facts, services: HashMap::new(), slices: HashMap::new(), flows: HashMap::new(), dirty: BTreeSet::new(), table }
    }

    /// A Service has changed.
    pub fn service(&mut self, change: &Change<Service>) {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Applied { new, .. } => {
                self.services.insert(key.clone(), new.clone());
            }
            Change::Deleted(_) => {
                self.services.remove(&key);
            }
        }
        self.dirty.insert(key);
    }

    /// An EndpointSlice has changed.
    pub fn slice(&mut self, change: &Change<EndpointSlice>) {
        if let Some(old) = change.old() {
            self.drop_slice(old);
        }
        if let Change::Applied { new, .. } = change
            && let Some(service) = service_of(new)
        {
            let name = new.metadata.name.clone().unwrap_or_default();
            self.slices.entry(service.clone()).or_default().insert(name, new.clone());
            self.dirty.insert(service);
        }
    }

    fn drop_slice(&mut self, slice: &EndpointSlice) {
        let (Some(service), Some(name)) = (service_of(slice), slice.metadata.name.as_ref()) else { return };
        if let Some(of_service) = self.slices.get_mut(&service) {
            of_service.remove(name);
            if of_service.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// This node's zone. Says whether anything must be computed anew.
    pub fn zone(&mut self, zone: Option<String>) -> bool {
        if self.facts.node.zone == zone {
            return false;
        }
        self.facts.node.zone = zone;
        self.dirty.extend(self.services.keys().cloned());
        true
    }

    /// What the membership says now. Says whether anything must be computed anew.
    pub fn view(&mut self, view: Option<Arc<View>>) -> bool {
        let nothing = View::default();
        let (new, old) = (view.as_deref().unwrap_or(&nothing), self.facts.node.view.as_deref().unwrap_or(&nothing));
        let changed = new.changed_nodes(old);
        self.facts.node.view = view;
        let touched = |slice: &Arc<EndpointSlice>| {
            let mut nodes = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.node_name.as_ref());
            nodes.any(|node| changed.contains(node))
        };
        let dirty: Vec<Key> = self.slices.iter().filter(|(_, slices)| slices.values().any(touched)).map(|(key, _)| key.clone()).collect();
        self.dirty.extend(dirty.iter().cloned());
        !dirty.is_empty()
    }

    /// Computes what is dirty, and says which flows that makes stale.
    pub fn renew(&mut self) -> Vec<Flush> {
        let mut stale = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let slices = self.slices.get(&key);
            let slices = slices.into_iter().flat_map(BTreeMap::values).map(Arc::as_ref);
            let rules = self.services.get(&key).map(|service| rules::rules(service, slices, &self.facts)).unwrap_or_default();
            let old = self.flows.remove(&key).unwrap_or_default();
            stale.extend(conntrack::stale(&old, &rules.ports));
            if !rules.ports.is_empty() {
                self.flows.insert(key.clone(), rules.ports);
            }
            let fragment = (rules.fragment != Default::default()).then_some(rules.fragment);
            self.table.set(&key, fragment);
        }
        stale
    }

    /// The table as it should be.
    pub fn table(&self) -> &Table<Key> {
        &self.table
    }

    /// The table, to note what the kernel has.
    pub fn table_mut(&mut self) -> &mut Table<Key> {
        &mut self.table
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}
