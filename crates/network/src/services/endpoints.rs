//! Which endpoints a Service port's traffic goes to: EndpointSlices and node facts in, addresses out. Pure.
//!
//! What must stay true: a port with a ready endpoint never uses one that is not; without any ready endpoint, those that
//! are terminating but still serve are used (so that a rolling update of the last pod loses nothing); an endpoint that
//! several slices name (while it moves between them) counts once; what the membership says of a node never leaves a
//! Service without any endpoint that it had (only an endpoint's owner can say that it is not ready).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use client::endpoints::{pod, said};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use membership::Doubt;

use super::NodeFacts;

/// Where a connection can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The pod's (or whoever's) address.
    pub address: Ipv4Addr,
    /// The port there.
    pub port: u16,
}

/// The endpoints of one Service port, as its policies select them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// For traffic under the policy `Cluster`.
    pub cluster: Vec<Backend>,
    /// For traffic under the policy `Local`: those on this node.
    pub local: Vec<Backend>,
    /// All that the slices name, usable or not: what is not here any more has vanished.
    pub known: Vec<Backend>,
    /// Those of `cluster` and `local` that run on this node.
    pub on_this_node: Vec<Backend>,
}

#[derive(Clone, Debug)]
struct Candidate {
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    doubt: Doubt,
    zones: Vec<String>,
    nodes: Vec<String>,
}

/// Selects the endpoints of `port` from the Service's slices.
pub fn select<'a>(service: &Service, port: &ServicePort, slices: impl IntoIterator<Item = &'a EndpointSlice>, node: &NodeFacts) -> Backends {
    let as_published = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let candidates = least_doubtful(candidates(port, slices, node, as_published));
    let mut result = Backends { known: candidates.keys().copied().collect(), ..Backends::default() };

    let ready: Vec<(&Backend, &Candidate)> = candidates.iter().filter(|(_, c)| c.ready).collect();
    let draining = |c: &Candidate| c.serving && c.terminating;
    result.cluster = if ready.is_empty() { candidates.iter().filter(|(_, c)| draining(c)).map(|(b, _)| *b).collect() } else { near(&ready, node) };

    if uses_local(service) {
        result.local = ready.iter().filter(|(_, c)| c.local).map(|(b, _)| **b).collect();
        if result.local.is_empty() {
            result.local = candidates.iter().filter(|(_, c)| c.local && draining(c)).map(|(b, _)| *b).collect();
        }
    }
    let mut here: Vec<Backend> =
        result.cluster.iter().chain(&result.local).filter(|backend| candidates.get(backend).is_some_and(|c| c.local)).copied().collect();
    here.sort();
    here.dedup();
    result.on_this_node = here;
    result
}

/// Whether traffic from inside goes only to endpoints on the same node.
pub fn internal_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.internal_traffic_policy.as_deref()) == Some("Local")
}

/// Whether traffic from outside goes only to endpoints on the node it reached.
pub fn external_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

fn uses_local(service: &Service) -> bool {
    internal_local(service) || external_local(service)
}

/// Of the endpoints that can be used, keeps those with the least doubt.
fn least_doubtful(mut candidates: BTreeMap<Backend, Candidate>) -> BTreeMap<Backend, Candidate> {
    let usable = candidates.values().filter(|c| c.ready || (c.serving && c.terminating));
    if let Some(least) = usable.map(|c| c.doubt).min() {
        candidates.retain(|_, c| c.doubt <= least);
    }
    candidates
}

/// `as_published`: the Service wants its endpoints whether they are ready or not.
fn candidates<'a>(
    port: &ServicePort,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeFacts,
    as_published: bool,
) -> BTreeMap<Backend, Candidate> {
    let mut found: BTreeMap<Backend, Candidate> = BTreeMap::new();
    let name = port.name.as_deref().unwrap_or("");
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    for slice in slices.into_iter().filter(|slice| slice.address_type == "IPv4") {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let Some(number) = ports
            .iter()
            .find(|p| p.name.as_deref().unwrap_or("") == name && p.protocol.as_deref().unwrap_or("TCP") == protocol)
            .and_then(|p| p.port)
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
        else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(said) = said(slice, endpoint) else { continue };
            let hints = endpoint.hints.as_ref();
            let refined = node.view.as_ref().map(|view| view.refine(endpoint.node_name.as_deref(), pod(endpoint), said));
            let address = refined.map_or(said.address, |refined| refined.address);
            let (ready, serving) = match refined {
                Some(refined) if !as_published => (refined.ready, refined.serving),
                _ => (said.ready, said.serving),
            };
            let candidate = Candidate {
                local: endpoint.node_name.as_deref() == Some(node.name.as_str()),
                ready,
                serving,
                terminating: said.terminating,
                doubt: refined.map_or(Doubt::None, |refined| refined.doubt),
                zones: hints.and_then(|h| h.for_zones.as_ref()).into_iter().flatten().map(|z| z.name.clone()).collect(),
                nodes: hints.and_then(|h| h.for_nodes.as_ref()).into_iter().flatten().map(|n| n.name.clone()).collect(),
            };
            let backend = Backend { address, port: number };
            // Named twice: the better word counts.
            match found.get(&backend) {
                Some(known) if known.ready || (known.serving && !candidate.ready) => {}
                _ => {
                    found.insert(backend, candidate);
                }
            }
        }
    }
    found
}

/// The ready endpoints, or only the near ones where every endpoint says for whom it is and some are for this node or zone.
fn near(ready: &[(&Backend, &Candidate)], node: &NodeFacts) -> Vec<Backend> {
    let chosen = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<Backend> { ready.iter().filter(|(_, c)| wanted(c)).map(|(b, _)| **b).collect() };
    if ready.iter().all(|(_, c)| !c.nodes.is_empty()) {
        let here = chosen(&|c| c.nodes.contains(&node.name));
        if !here.is_empty() {
            return here;
        }
    }
    if let Some(zone) = &node.zone
        && ready.iter().all(|(_, c)| !c.zones.is_empty())
    {
        let here = chosen(&|c| c.zones.contains(zone));
        if !here.is_empty() {
            return here;
        }
    }
    chosen(&|_| true)
}
