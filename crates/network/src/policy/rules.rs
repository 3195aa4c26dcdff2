//! What one pod of this node wants in the kernel because of NetworkPolicies: policies, pods and namespaces in, a
//! [`Fragment`] of nftables rules out. Pure.
//!
//! A pod that some policy selects for a direction accepts in it only what one of these policies allows: its address leads
//! from the map `ingress` (or `egress`) to a chain of its own, with one rule for each peer set and protocol, and a `drop`.
//! A pod that no policy selects is in no map. Connections that exist go on; what belongs to them is never looked at.
//!
//! What must stay true: everything from outside that goes into nft's text is parsed first (addresses, numbers) or is a name
//! that the API server has checked, and is checked here again. IPv4 only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};

use crate::table::Fragment;

/// Map from a pod's address to the chain of what may come to it.
pub const INGRESS: &str = "ingress";
/// Map from a pod's address to the chain of what may go from it.
pub const EGRESS: &str = "egress";

type Labels = BTreeMap<String, String>;

/// A pod as policies see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its namespace.
    pub namespace: String,
    /// Its UID, by which its chains are called: names may be longer than the kernel allows.
    pub uid: String,
    /// The node it is on.
    pub node: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports: name and protocol to number.
    pub ports: BTreeMap<(String, String), u16>,
}

impl Seen {
    /// Reads a pod; `None` if it has no address of its own that packets could come from.
    pub fn of(pod: &Pod) -> Option<Seen> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some(((port.name.clone()?, protocol), u16::try_from(port.container_port).ok()?))
        });
        Some(Seen {
            namespace: pod.metadata.namespace.clone()?,
            uid: pod.metadata.uid.clone()?,
            node: spec.node_name.clone()?,
            address: status.pod_ip.as_ref()?.parse().ok()?,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
        })
    }
}

/// Everything that policies speak of.
#[derive(Debug, Default)]
pub struct World {
    /// All policies.
    pub policies: Vec<NetworkPolicy>,
    /// All pods with addresses.
    pub pods: Vec<Seen>,
    /// The labels of every namespace.
    pub namespaces: BTreeMap<String, Labels>,
}

/// The table's fixed part.
pub fn base() -> String {
    // What goes to and from this node itself passes neither hook: the node may always reach its pods, and they it.
    let hook = |name: &str, priority: &str, key: &str, map: &str| {
        format!(
            "  chain forward-{name} {{\n    type filter hook forward priority {priority}; policy accept;\n    \
             ct state established,related accept\n    ip {key} vmap @{map}\n  }}\n"
        )
    };
    let map = |name: &str| format!("  map {name} {{ type ipv4_addr : verdict; }}\n");
    map(INGRESS) + &map(EGRESS) + &hook("egress", "filter - 2", "saddr", EGRESS) + &hook("ingress", "filter - 1", "daddr", INGRESS)
}

fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return true };
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// Whether the policy is about this direction.
fn is_about(policy: &NetworkPolicy, direction: &str) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|each| each == direction),
        _ => direction == "Ingress" || spec.egress.is_some(),
    }
}

/// The name when it is one that can stand in nft's text.
fn plain_name(name: &str) -> Option<&str> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
    (plain && !name.is_empty() && name.len() <= 63).then_some(name)
}

/// What the pod wants in the table; `None` if no policy selects it.
pub fn fragment(pod: &Seen, world: &World) -> Option<Fragment> {
    let (namespace, uid) = (pod.namespace.as_str(), plain_name(&pod.uid)?);
    let selecting: Vec<&NetworkPolicy> = world
        .policies
        .iter()
        .filter(|policy| policy.metadata.namespace.as_deref() == Some(namespace))
        .filter(|policy| policy.spec.as_ref().is_some_and(|spec| selects(spec.pod_selector.as_ref(), &pod.labels)))
        .collect();
    let mut fragment = Fragment::default();
    for (direction, map) in [("Ingress", INGRESS), ("Egress", EGRESS)] {
        let about: Vec<&&NetworkPolicy> = selecting.iter().filter(|policy| is_about(policy, direction)).collect();
        if about.is_empty() {
            continue;
        }
        let mut rules: Vec<String> = Vec::new();
        for spec in about.iter().filter_map(|policy| policy.spec.as_ref()) {
            if direction == "Ingress" {
                for rule in spec.ingress.iter().flatten() {
                    rules.extend(allow(world, namespace, rule.from.as_deref(), rule.ports.as_deref(), &Way::To(pod)));
                }
            } else {
                for rule in spec.egress.iter().flatten() {
                    rules.extend(allow(world, namespace, rule.to.as_deref(), rule.ports.as_deref(), &Way::From));
                }
            }
        }
        let chain = format!("{map}/{uid}");
        let mut seen = BTreeSet::new();
        rules.retain(|rule| seen.insert(rule.clone()));
        rules.push("drop".to_owned());
        fragment.chains.insert(chain.clone(), rules);
        fragment.map(map, pod.address.to_string(), format!("goto {chain}"));
    }
    (fragment != Fragment::default()).then_some(fragment)
}

/// Which way packets go: to this pod (its named ports count), or from it (those of the pods it reaches).
enum Way<'a> {
    To(&'a Seen),
    From,
}

impl Way<'_> {
    /// The side of the packet that the peers are on.
    fn side(&self) -> &'static str {
        match self {
            Way::To(_) => "saddr",
            Way::From => "daddr",
        }
    }
}

/// The rules for one list of peers and one of ports.
fn allow(world: &World, namespace: &str, peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>, way: &Way<'_>) -> Vec<String> {
    let ports = ports.unwrap_or_default();
    let side = way.side();
    let mut rules = Vec::new();
    let numbered = protocols(ports, |name, protocol| match way {
        Way::To(pod) => pod.ports.get(&(name.to_owned(), protocol.to_owned())).copied(),
        Way::From => None,
    });
    let peers = peers.unwrap_or_default();
    let mut chosen: Vec<&Seen> = Vec::new();
    let mut sources: Vec<String> = Vec::new();
    if peers.is_empty() {
        sources.push(String::new());
        chosen.extend(&world.pods);
    }
    for peer in peers {
        match &peer.ip_block {
            Some(block) => {
                let Ok(cidr) = block.cidr.parse::<Ipv4Net>() else { continue };
                let except: Vec<Ipv4Net> = block.except.iter().flatten().filter_map(|each| each.parse().ok()).collect();
                let except: Vec<String> = Ipv4Net::aggregate(&except).iter().map(Ipv4Net::to_string).collect();
                let without = if except.is_empty() { String::new() } else { format!("ip {side} != {{ {} }} ", except.join(", ")) };
                sources.push(format!("ip {side} {} {without}", cidr.trunc()));
            }
            None => chosen.extend(world.pods.iter().filter(|pod| is_peer(world, namespace, peer, pod))),
        }
    }
    if !peers.is_empty() {
        let addresses: BTreeSet<Ipv4Addr> = chosen.iter().map(|pod| pod.address).collect();
        if !addresses.is_empty() {
            sources.push(format!("ip {side} {{ {} }} ", list(&addresses)));
        }
    }
    for source in &sources {
        rules.extend(numbered.iter().map(|ports| format!("{source}{ports}accept")));
    }
    if let Way::From = way {
        rules.extend(named(ports, &chosen));
    }
    rules
}

/// The rules for ports that the pods reached have given names to.
fn named(ports: &[NetworkPolicyPort], pods: &[&Seen]) -> Vec<String> {
    let mut rules = Vec::new();
    for port in ports {
        let Some(IntOrString::String(name)) = &port.port else { continue };
        let Some((word, protocol)) = protocol_of(port) else { continue };
        let mut by_number: BTreeMap<u16, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for pod in pods {
            if let Some(number) = pod.ports.get(&(name.clone(), protocol.to_owned())) {
                by_number.entry(*number).or_default().insert(pod.address);
            }
        }
        for (number, addresses) in by_number {
            rules.push(format!("ip daddr {{ {} }} {word} dport {number} accept", list(&addresses)));
        }
    }
    rules
}

fn list(addresses: &BTreeSet<Ipv4Addr>) -> String {
    addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ")
}

fn is_peer(world: &World, namespace: &str, peer: &NetworkPolicyPeer, pod: &Seen) -> bool {
    let in_scope = match &peer.namespace_selector {
        None => pod.namespace == namespace,
        Some(selector) => world.namespaces.get(&pod.namespace).is_some_and(|labels| selects(Some(selector), labels)),
    };
    in_scope && selects(peer.pod_selector.as_ref(), &pod.labels)
}

/// nft's word for a port's protocol, and Kubernetes'.
fn protocol_of(port: &NetworkPolicyPort) -> Option<(&'static str, &'static str)> {
    match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => Some(("tcp", "TCP")),
        "UDP" => Some(("udp", "UDP")),
        "SCTP" => Some(("sctp", "SCTP")),
        _ => None,
    }
}

/// One match per protocol; a single empty one where all ports are meant.
fn protocols(ports: &[NetworkPolicyPort], number_of: impl Fn(&str, &str) -> Option<u16>) -> Vec<String> {
    if ports.is_empty() {
        return vec![String::new()];
    }
    // Ranges that do not overlap: nft refuses a set in which two do.
    let mut wanted: BTreeMap<&'static str, Option<Vec<(u16, u16)>>> = BTreeMap::new();
    for port in ports {
        let Some((word, protocol)) = protocol_of(port) else { continue };
        let first = match &port.port {
            None => {
                wanted.insert(word, None);
                continue;
            }
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|number| *number > 0),
            Some(IntOrString::String(name)) => number_of(name, protocol),
        };
        let Some(first) = first else { continue };
        let last = port.end_port.and_then(|last| u16::try_from(last).ok()).filter(|last| *last >= first).unwrap_or(first);
        if let Some(ranges) = wanted.entry(word).or_insert_with(|| Some(Vec::new())) {
            ranges.push((first, last));
        }
    }
    let one = |(word, ranges): (&'static str, Option<Vec<(u16, u16)>>)| match ranges {
        None => format!("meta l4proto {word} "),
        Some(ranges) => {
            let ranges = joined(ranges).into_iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
            format!("{word} dport {{ {} }} ", ranges.collect::<Vec<_>>().join(", "))
        }
    };
    wanted.into_iter().map(one).collect()
}

/// The same numbers in ranges that do not touch.
fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(namespace: &str, uid: &str, address: &str, labels: &[(&str, &str)]) -> Seen {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let ports = BTreeMap::from([(("http".to_owned(), "TCP".to_owned()), 8080)]);
        Seen { namespace: namespace.into(), uid: uid.into(), node: "n".into(), address: address.parse().unwrap(), labels, ports }
    }

    fn world(policies: &[Value]) -> World {
        let policy = |spec: &Value| serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})).unwrap();
        let namespace = |name: &str| (name.to_owned(), Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]));
        World {
            policies: policies.iter().map(policy).collect(),
            pods: vec![
                pod("shop", "web", "10.0.0.1", &[("app", "web")]),
                pod("shop", "api", "10.0.0.2", &[("app", "api")]),
                pod("other", "api", "10.0.1.2", &[("app", "api")]),
            ],
            namespaces: [namespace("shop"), namespace("other")].into(),
        }
    }

    fn rules(policies: &[Value], map: &str) -> Option<Vec<String>> {
        let world = world(policies);
        let fragment = fragment(&world.pods[0], &world)?;
        fragment.chains.get(&format!("{map}/web")).cloned()
    }

    #[test]
    fn who_is_selected_is_closed_but_for_what_is_allowed() {
        let web = json!({"matchLabels": {"app": "web"}});
        assert_eq!(rules(&[json!({"podSelector": {"matchLabels": {"app": "api"}}})], INGRESS), None);
        let closed = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        assert_eq!(rules(std::slice::from_ref(&closed), INGRESS).unwrap(), ["drop"]);
        assert_eq!(rules(std::slice::from_ref(&closed), EGRESS).unwrap(), ["drop"]);
        let from_api = json!({"podSelector": web, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [
            {"port": "http"}, {"port": 80}, {"port": 81, "endPort": 90}, {"protocol": "UDP"}]}]});
        assert_eq!(
            rules(&[from_api.clone(), closed], INGRESS).unwrap(),
            ["ip saddr { 10.0.0.2 } tcp dport { 80-90, 8080 } accept", "ip saddr { 10.0.0.2 } meta l4proto udp accept", "drop"]
        );
        assert_eq!(rules(&[from_api], EGRESS), None);
        assert_eq!(rules(&[json!({"podSelector": {}, "ingress": [{}]})], INGRESS).unwrap(), ["accept", "drop"]);
    }

    #[test]
    fn peers_are_pods_namespaces_and_blocks() {
        let ingress = |peer: Value| rules(&[json!({"podSelector": {}, "ingress": [{"from": [peer]}]})], INGRESS).unwrap()[0].clone();
        assert_eq!(ingress(json!({"namespaceSelector": {}})), "ip saddr { 10.0.0.1, 10.0.0.2, 10.0.1.2 } accept");
        let other = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}, "podSelector": {}});
        assert_eq!(ingress(other), "ip saddr { 10.0.1.2 } accept");
        assert_eq!(
            ingress(json!({"ipBlock": {"cidr": "172.16.0.0/12", "except": ["172.16.1.0/24"]}})),
            "ip saddr 172.16.0.0/12 ip saddr != { 172.16.1.0/24 } accept"
        );
        assert_eq!(ingress(json!({"podSelector": {"matchLabels": {"app": "nobody"}}})), "drop");
    }

    #[test]
    fn ports_by_name_are_those_of_whom_is_reached() {
        let to = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": "http"}]}, {"ports": [{"protocol": "UDP", "port": 53}]}]});
        assert_eq!(rules(&[to], EGRESS).unwrap(), ["ip daddr { 10.0.0.2 } tcp dport 8080 accept", "udp dport { 53 } accept", "drop"]);
    }
}
