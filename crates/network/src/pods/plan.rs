//! Where packets to the other nodes' pods go: nodes in, routes out. Pure.
//!
//! A node that shares a link with this one is the next hop itself; any other is reached through VXLAN. The tunnel needs no
//! agreement between nodes: the inner address of a node's end is the network address of its pod range, and its hardware
//! address follows from the node's own address, so that every node can work out all of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

use crate::links::Hop;

/// How other nodes' pods are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A route where the link is shared, VXLAN elsewhere.
    #[default]
    Auto,
    /// Routes only: the network between the nodes knows the pods' ranges.
    Routes,
    /// VXLAN always.
    Vxlan,
}

impl std::str::FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "auto" => Ok(Mode::Auto),
            "routes" => Ok(Mode::Routes),
            "vxlan" => Ok(Mode::Vxlan),
            other => Err(format!("{other:?} is none of auto, routes, vxlan")),
        }
    }
}

/// What the pod network needs to know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node's name.
    pub name: String,
    /// Its InternalIP.
    pub address: Ipv4Addr,
    /// The range of its pods.
    pub pods: Ipv4Net,
}

/// A node's place, when it has both address and range.
pub fn place(node: &Node) -> Option<Place> {
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let address = addresses.filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok())?;
    Some(Place { name: node.metadata.name.clone()?, address, pods: pod_range(node)? })
}

/// The range of a node's pods, when it has one.
pub fn pod_range(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let range: Ipv4Net = ranges.filter_map(|range| range.parse().ok()).next()?;
    // Three addresses at least: network, gateway, one pod.
    (range.prefix_len() <= 29).then(|| range.trunc())
}

/// The routes of the node `name`, whose own link has the network `link`.
pub fn routes(name: &str, own_pods: Ipv4Net, link: Option<Ipv4Net>, mode: Mode, places: &[Place]) -> BTreeMap<Ipv4Net, Hop> {
    let mut routes = BTreeMap::new();
    // In order of name, so that of two nodes that claim one range always the same one has it.
    let mut places: Vec<&Place> = places.iter().filter(|place| place.name != name).collect();
    places.sort_by(|a, b| a.name.cmp(&b.name));
    for place in places {
        let shared = link.is_some_and(|link| link.contains(&place.address));
        let hop = if mode == Mode::Routes || (mode == Mode::Auto && shared) {
            Hop::Via(place.address)
        } else {
            Hop::Tunnel { inner: place.pods.network(), hardware: hardware(place.address), outer: place.address }
        };
        routes.entry(place.pods).or_insert(hop);
    }
    // An address of ours that no pod has leads nowhere, instead of out by the default route.
    routes.insert(own_pods, Hop::Unreachable);
    routes
}

/// The hardware address of a node's end of the tunnel.
pub fn hardware(node: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = node.octets();
    // 0x52 is locally administered, unicast.
    [0x52, 0x47, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_link_is_a_route_and_others_a_tunnel() {
        let place =
            |name: &str, address: &str, pods: &str| Place { name: name.into(), address: address.parse().unwrap(), pods: pods.parse().unwrap() };
        let places = [
            place("one", "172.30.0.2", "10.244.1.0/24"),
            place("two", "172.30.0.3", "10.244.2.0/24"),
            place("far", "192.168.7.9", "10.244.3.0/24"),
            place("two-twin", "172.30.0.9", "10.244.2.0/24"),
        ];
        let link = Some("172.30.0.0/24".parse().unwrap());
        let own = "10.244.1.0/24".parse().unwrap();
        let text = |mode| -> Vec<String> { routes("one", own, link, mode, &places).iter().map(|(range, hop)| format!("{range} {hop:?}")).collect() };
        let far = "10.244.3.0/24 Tunnel { inner: 10.244.3.0, hardware: [82, 71, 192, 168, 7, 9], outer: 192.168.7.9 }";
        assert_eq!(text(Mode::Auto), ["10.244.1.0/24 Unreachable", "10.244.2.0/24 Via(172.30.0.3)", far]);
        assert_eq!(text(Mode::Routes)[2], "10.244.3.0/24 Via(192.168.7.9)");
        assert!(text(Mode::Vxlan)[1].contains("Tunnel"));
    }
}
