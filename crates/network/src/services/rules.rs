//! What one Service wants in the kernel: a Service and its EndpointSlices in, a [`Fragment`] of nftables rules out. Pure.
//!
//! The way of a packet: `services` looks up (address, protocol, port) in the map `service-ips`, or, for any address of this
//! node, (protocol, port) in `node-ports`; one lookup each, however many Services there are. The map leads to the port's own
//! chains:
//!
//! | chain | does |
//! |---|---|
//! | `service/ID` | traffic to the ClusterIP: masquerade what does not come from a pod, then `cluster/ID` or `local/ID` |
//! | `external/ID` | traffic from outside (NodePort, external and load balancer addresses), by externalTrafficPolicy |
//! | `guard/ID` | before `external/ID`: only the load balancer's source ranges |
//! | `cluster/ID`, `local/ID` | choose an endpoint (all, or those of this node): one rule with an anonymous map |
//! | `endpoint/ID/ADDRESS/PORT` | only with session affinity: remember the client in the endpoint's set, then translate |
//!
//! ID is `namespace/name/protocol/port`: no part can hold a slash, so names never collide.
//! A port without endpoints is in `closed-ips` and `closed-ports` instead, which filter chains look up to refuse the
//! connection at once. Without session affinity a changed endpoint is one chain of one rule written anew.
//!
//! A packet that connection tracking cannot place is not forwarded: passed on untranslated, it would make the other end
//! reset a healthy connection.
//!
//! What must stay true: everything from outside that goes into nft's text is parsed first (addresses, numbers) or is a
//! name that the API server has checked, and is checked here again.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::{self, Backend, Backends};
use super::{Facts, limits};
use crate::conntrack::{Front, Protocol};
use crate::table::Fragment;

/// Map from (address, protocol, port) to the chain of a Service port.
pub const SERVICE_IPS: &str = "service-ips";
/// Map from (protocol, port) on the node's own addresses to the chain of a Service port.
pub const NODE_PORTS: &str = "node-ports";
/// Map from (address, protocol, port) to what happens where no endpoint is.
pub const CLOSED_IPS: &str = "closed-ips";
/// Map from (protocol, port) on the node's own addresses to what happens where no endpoint is.
pub const CLOSED_PORTS: &str = "closed-ports";
/// Set of (address, address) pairs of this node's endpoints: a pod that reaches itself through a Service is masqueraded.
pub const HAIRPINS: &str = "hairpins";

/// What one Service comes to: its rules, and what connection tracking needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The Service's part of the table.
    pub fragment: Fragment,
    /// Its ports, for [`crate::conntrack::stale`].
    pub ports: Vec<PortFlows>,
}

/// One Service port as connection tracking sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFlows {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where clients reach it.
    pub fronts: Vec<Front>,
    /// Where connections go now.
    pub used: BTreeSet<Backend>,
    /// What the slices name, usable or not.
    pub known: BTreeSet<Backend>,
}

/// Whether this proxy routes the Service at all.
fn is_routed(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let foreign = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
    !foreign && spec.type_.as_deref() != Some("ExternalName") && cluster_ip(service).is_some()
}

fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    let spec = service.spec.as_ref()?;
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    listed.filter_map(|ip| ip.parse().ok()).next()
}

/// The rules of one Service.
pub fn rules<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice> + Clone, facts: &Facts) -> Rules {
    let mut result = Rules::default();
    let (Some(spec), true) = (&service.spec, is_routed(service)) else { return result };
    let Some(cluster_ip) = cluster_ip(service) else { return result };
    for port in spec.ports.iter().flatten() {
        let backends = endpoints::select(service, port, slices.clone(), &facts.node);
        if let Some(port) = Port::new(service, port, cluster_ip, facts) {
            port.write(&backends, &mut result);
        }
    }
    result
}

struct Port<'a> {
    id: String,
    protocol: Protocol,
    number: u16,
    node_port: Option<u16>,
    cluster_ip: Ipv4Addr,
    /// External addresses and load balancer addresses without source ranges.
    external_ips: Vec<Ipv4Addr>,
    /// Load balancer addresses that only `source_ranges` may use.
    guarded_ips: Vec<Ipv4Addr>,
    source_ranges: Vec<Ipv4Net>,
    internal_local: bool,
    external_local: bool,
    affinity_seconds: Option<i32>,
    facts: &'a Facts,
}

impl<'a> Port<'a> {
    fn new(service: &Service, port: &ServicePort, cluster_ip: Ipv4Addr, facts: &'a Facts) -> Option<Port<'a>> {
        let spec = service.spec.as_ref()?;
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
        let number = port_number(port.port)?;
        let namespace = plain_name(service.metadata.namespace.as_deref()?)?;
        let name = plain_name(service.metadata.name.as_deref()?)?;
        let ips = |list: &Option<Vec<String>>| -> Vec<Ipv4Addr> { list.iter().flatten().filter_map(|ip| ip.parse().ok()).filter(usable).collect() };
        let balanced = spec.type_.as_deref() == Some("LoadBalancer");
        let load_balancer_ips: Vec<Ipv4Addr> = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref())
            .and_then(|l| l.ingress.as_ref())
            .into_iter()
            .flatten()
            .filter(|ingress| balanced && ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
            .filter(usable)
            .collect();
        let ranges_wished = balanced && spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
        let source_ranges = if ranges_wished {
            let mut ranges: Vec<Ipv4Net> = spec.load_balancer_source_ranges.iter().flatten().filter_map(|r| r.trim().parse().ok()).collect();
            ranges = Ipv4Net::aggregate(&ranges);
            ranges
        } else {
            Vec::new()
        };
        let mut external_ips = ips(&spec.external_ips);
        let mut guarded_ips = Vec::new();
        if ranges_wished {
            guarded_ips = load_balancer_ips.into_iter().filter(|ip| !external_ips.contains(ip)).collect();
        } else {
            external_ips.extend(load_balancer_ips);
        }
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let configured = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
            configured.filter(|s| (1..=86_400).contains(s)).unwrap_or(limits::AFFINITY_TIMEOUT_SECONDS)
        });
        Some(Port {
            id: format!("{namespace}/{name}/{protocol}/{number}"),
            protocol,
            number,
            node_port: port.node_port.and_then(port_number),
            cluster_ip,
            external_ips,
            guarded_ips,
            source_ranges,
            internal_local: endpoints::internal_local(service),
            external_local: endpoints::external_local(service),
            affinity_seconds,
            facts,
        })
    }

    fn write(&self, backends: &Backends, result: &mut Rules) {
        let fragment = &mut result.fragment;
        let id = &self.id;
        let left_alone = self.facts.left_alone.contains(&self.cluster_ip);
        let has_external = self.node_port.is_some() || !self.external_ips.is_empty() || !self.guarded_ips.is_empty();
        let mut used: BTreeSet<Backend> = BTreeSet::new();

        if backends.cluster.is_empty() && backends.local.is_empty() {
            self.close(fragment, left_alone);
        } else {
            let cluster_chain = self.choose(fragment, "cluster", &backends.cluster, &mut used);
            let wants_local = self.internal_local || (self.external_local && has_external);
            let local_chain = if wants_local { self.choose(fragment, "local", &backends.local, &mut used) } else { None };
            if !left_alone {
                let target = if self.internal_local { &local_chain } else { &cluster_chain };
                match target {
                    Some(target) => {
                        let mut rules = Vec::new();
                        if let Some(pods) = self.facts.cluster_cidr {
                            rules.push(format!("ip saddr != {pods} jump mark-for-masquerade"));
                        }
                        rules.push(format!("goto {target}"));
                        fragment.chains.insert(format!("service/{id}"), rules);
                        fragment.map(SERVICE_IPS, self.ip_key(&self.cluster_ip), format!("goto service/{id}"));
                    }
                    None => fragment.map(CLOSED_IPS, self.ip_key(&self.cluster_ip), "drop"),
                }
            }
            if has_external {
                self.write_external(fragment, cluster_chain.as_deref(), local_chain.as_deref());
            }
        }
        for backend in &backends.on_this_node {
            fragment.member(HAIRPINS, format!("{0} . {0}", backend.address));
        }
        result.ports.push(PortFlows { protocol: self.protocol, fronts: self.fronts(), used, known: backends.known.iter().copied().collect() });
    }

    /// No endpoint anywhere: refuse at once, on every address of the port.
    fn close(&self, fragment: &mut Fragment, left_alone: bool) {
        if !left_alone {
            fragment.map(CLOSED_IPS, self.ip_key(&self.cluster_ip), "goto refuse");
        }
        for ip in self.external_ips.iter().chain(&self.guarded_ips) {
            fragment.map(CLOSED_IPS, self.ip_key(ip), "goto refuse");
        }
        if let Some(port) = self.node_port {
            fragment.map(CLOSED_PORTS, format!("{} . {port}", self.protocol), "goto refuse");
        }
    }

    fn write_external(&self, fragment: &mut Fragment, cluster_chain: Option<&str>, local_chain: Option<&str>) {
        let id = &self.id;
        let mut rules = Vec::new();
        if self.external_local {
            // From inside the cluster the policy does not bind: pods and this node itself reach every endpoint.
            if let Some(cluster_chain) = cluster_chain {
                if let Some(pods) = self.facts.cluster_cidr {
                    rules.push(format!("ip saddr {pods} goto {cluster_chain}"));
                }
                rules.push("fib saddr type local jump mark-for-masquerade".to_owned());
                rules.push(format!("fib saddr type local goto {cluster_chain}"));
            }
            rules.push(local_chain.map_or("drop".to_owned(), |local_chain| format!("goto {local_chain}")));
        } else {
            rules.push("jump mark-for-masquerade".to_owned());
            rules.push(cluster_chain.map_or("drop".to_owned(), |cluster_chain| format!("goto {cluster_chain}")));
        }
        fragment.chains.insert(format!("external/{id}"), rules);
        if !self.guarded_ips.is_empty() {
            let mut rules = Vec::new();
            if !self.source_ranges.is_empty() {
                let ranges = self.source_ranges.iter().map(Ipv4Net::to_string).collect::<Vec<_>>().join(", ");
                rules.push(format!("ip saddr {{ {ranges} }} goto external/{id}"));
            }
            rules.push("drop".to_owned());
            fragment.chains.insert(format!("guard/{id}"), rules);
        }
        for ip in &self.external_ips {
            fragment.map(SERVICE_IPS, self.ip_key(ip), format!("goto external/{id}"));
        }
        for ip in &self.guarded_ips {
            fragment.map(SERVICE_IPS, self.ip_key(ip), format!("goto guard/{id}"));
        }
        if let Some(port) = self.node_port {
            fragment.map(NODE_PORTS, format!("{} . {port}", self.protocol), format!("goto external/{id}"));
        }
    }

    /// The chain that chooses one of the backends; none when there is none to choose.
    fn choose(&self, fragment: &mut Fragment, which: &str, backends: &[Backend], used: &mut BTreeSet<Backend>) -> Option<String> {
        if backends.is_empty() {
            return None;
        }
        used.extend(backends);
        let chain = format!("{which}/{}", self.id);
        let mut rules = Vec::new();
        match self.affinity_seconds {
            None => rules.push(self.translate(backends)),
            Some(seconds) => {
                for backend in backends {
                    let remembered = self.affinity_set(fragment, backend, seconds);
                    rules.push(format!("ip saddr @{remembered} goto {}", self.endpoint_chain(backend)));
                }
                if let [only] = backends {
                    rules.push(format!("goto {}", self.endpoint_chain(only)));
                } else {
                    let map = numbered(backends.iter().map(|backend| format!("goto {}", self.endpoint_chain(backend))));
                    rules.push(format!("numgen random mod {} vmap {{ {map} }}", backends.len()));
                }
            }
        }
        fragment.chains.insert(chain.clone(), rules);
        Some(chain)
    }

    fn translate(&self, backends: &[Backend]) -> String {
        let protocol = self.protocol;
        if let [only] = backends {
            return format!("meta l4proto {protocol} dnat to {}:{}", only.address, only.port);
        }
        let map = numbered(backends.iter().map(|backend| format!("{} . {}", backend.address, backend.port)));
        format!("meta l4proto {protocol} dnat to numgen random mod {} map {{ {map} }}", backends.len())
    }

    fn endpoint_chain(&self, backend: &Backend) -> String {
        format!("endpoint/{}/{}/{}", self.id, backend.address, backend.port)
    }

    fn affinity_set(&self, fragment: &mut Fragment, backend: &Backend, seconds: i32) -> String {
        // The declaration depends on the seconds, so the name holds them.
        let set = format!("affinity/{}/{}/{}/{seconds}", self.id, backend.address, backend.port);
        let size = limits::AFFINITY_CLIENTS_MAX;
        fragment.sets.insert(set.clone(), format!("type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; size {size};"));
        fragment.chains.insert(self.endpoint_chain(backend), vec![format!("update @{set} {{ ip saddr }}"), self.translate(&[*backend])]);
        set
    }

    fn ip_key(&self, ip: &Ipv4Addr) -> String {
        format!("{ip} . {} . {}", self.protocol, self.number)
    }

    fn fronts(&self) -> Vec<Front> {
        let ips = [&self.cluster_ip].into_iter().chain(&self.external_ips).chain(&self.guarded_ips);
        let mut fronts: Vec<Front> = ips.map(|ip| Front { address: Some(*ip), port: self.number }).collect();
        fronts.extend(self.node_port.map(|port| Front { address: None, port }));
        fronts
    }
}

/// The table's fixed part: containers, the chains on the kernel's hooks, and what they share.
pub fn base(facts: &Facts) -> String {
    let mut text = String::new();
    let left_alone = facts.left_alone.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
    let skip = if left_alone.is_empty() { String::new() } else { format!("    ip daddr {{ {left_alone} }} return\n") };
    // What is left for an address of the Service range was for no Service's port.
    let unknown = facts.service_cidr.map_or(String::new(), |cidr| format!("    ip daddr {cidr} goto refuse\n"));
    let _ = write!(
        text,
        "  map {SERVICE_IPS} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map {NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}
  map {CLOSED_IPS} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map {CLOSED_PORTS} {{ type inet_proto . inet_service : verdict; }}
  set {HAIRPINS} {{ type ipv4_addr . ipv4_addr; }}
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain services {{
{skip}    ip daddr . meta l4proto . th dport vmap @{SERVICE_IPS}
    fib daddr type local meta l4proto . th dport vmap @{NODE_PORTS}
  }}
  chain closed {{
    ct status dnat return
{skip}    ip daddr . meta l4proto . th dport vmap @{CLOSED_IPS}
    fib daddr type local meta l4proto . th dport vmap @{CLOSED_PORTS}
{unknown}  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr . ip daddr @{HAIRPINS} masquerade fully-random
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
  chain filter-input {{
    type filter hook input priority filter; policy accept;
    ct state new jump closed
  }}
  chain filter-forward {{
    type filter hook forward priority filter; policy accept;
    ct state invalid drop
    ct state new jump closed
  }}
  chain filter-output {{
    type filter hook output priority filter; policy accept;
    ct state new jump closed
  }}
  chain guard-loopback {{
    type filter hook prerouting priority raw; policy accept;
    iifname != \"lo\" ip daddr 127.0.0.0/8 drop
    iifname != \"lo\" ip saddr 127.0.0.0/8 drop
  }}
"
    );
    text
}

fn numbered(values: impl Iterator<Item = String>) -> String {
    values.enumerate().map(|(index, value)| format!("{index} : {value}")).collect::<Vec<_>>().join(", ")
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// An address that clients can mean: not unspecified, not loopback, not a group.
fn usable(ip: &Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
}

/// The name when it is one that can stand in nft's text.
fn plain_name(name: &str) -> Option<&str> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    (plain && !name.is_empty() && name.len() <= 63).then_some(name)
}
