//! What there is to give out: the networks that ServiceCIDR objects name, and the range of node ports.
//!
//! What must stay true: a network that is on its way out, or not ready, gives out nothing more, and what was given out of it stays.

use super::Item;
use crate::{Server, cache::Entry};
use api::{Status, Value, object::ObjectExt};
use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

/// Addresses of a Service network that can be given out at most; of a larger network the first so many.
const ADDRESSES_MAX: u64 = 1 << 20;

/// One network of Services.
#[derive(Clone, Debug)]
pub struct Network {
    cidr: ipnet::IpNet,
    /// Usable addresses: all but that of the network itself and, for IPv4, the broadcast address.
    pub addresses: usize,
    /// Whether it gives out addresses.
    pub ready: bool,
}

impl Network {
    pub fn new(cidr: ipnet::IpNet) -> Network {
        let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let all = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
        let usable = if cidr.addr().is_ipv4() { all.saturating_sub(2) } else { all.saturating_sub(1) }.min(ADDRESSES_MAX) as usize;
        Network { cidr, addresses: usable, ready: true }
    }

    /// The networks that a ServiceCIDR names. One without conditions counts as ready: nobody looks after it.
    fn of(range: &Value) -> Vec<Network> {
        let condition = range.list_at("status.conditions").iter().find(|condition| condition.str_at("type") == Some("Ready"));
        let ready = range.deletion_timestamp().is_none() && condition.is_none_or(|condition| condition.str_at("status") == Some("True"));
        let cidrs = range.list_at("spec.cidrs").iter().filter_map(|cidr| cidr.as_str()?.parse().ok());
        cidrs.map(|cidr| Network { ready, ..Network::new(cidr) }).collect()
    }

    /// The network's own address is before the first.
    fn contains(&self, address: IpAddr) -> bool {
        let distance = match (address, self.cidr.network()) {
            (IpAddr::V4(address), IpAddr::V4(network)) => u32::from(address).checked_sub(u32::from(network)).map(u128::from),
            (IpAddr::V6(address), IpAddr::V6(network)) => u128::from(address).checked_sub(u128::from(network)),
            _ => None,
        };
        distance.is_some_and(|distance| (1..=self.addresses as u128).contains(&distance))
    }
    pub fn address(&self, i: usize) -> Item {
        Item::Address(match self.cidr.network() {
            IpAddr::V4(network) => IpAddr::from((u32::from(network) + i as u32 + 1).to_be_bytes()),
            IpAddr::V6(network) => IpAddr::from((u128::from(network) + i as u128 + 1).to_be_bytes()),
        })
    }
}

/// Everything at one moment.
pub struct Ranges {
    /// The family that Services have here.
    pub family: &'static str,
    /// The oldest first: further ones serve when it is full.
    pub networks: Vec<Network>,
    pub ports: RangeInclusive<u16>,
}

impl Ranges {
    pub fn of(family: &'static str, networks: Vec<Network>, ports: RangeInclusive<u16>) -> Ranges {
        Ranges { family, networks, ports }
    }

    /// As the server's ServiceCIDRs say now.
    pub fn now(server: &Server) -> Result<Ranges, Status> {
        let config = &server.config;
        let mut ranges = server.entries("networking.k8s.io", "servicecidrs", None)?;
        ranges.sort_by_cached_key(|range: &Arc<Entry>| {
            let value = range.value();
            (value.str_at("metadata.creationTimestamp").map(String::from), range.name().to_string())
        });
        let networks = ranges.iter().flat_map(|range| Network::of(&range.value())).collect();
        Ok(Ranges::of(if config.service_cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" }, networks, config.node_ports.clone()))
    }

    /// Whether an item is in any range, ready or not.
    pub fn contains(&self, item: Item) -> bool {
        match item {
            Item::Address(address) => self.networks.iter().any(|network| network.contains(address)),
            Item::Port(port) => self.ports.contains(&port),
        }
    }

    /// Whether an address may be given out.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.ready && network.contains(address))
    }

    /// The networks that give out addresses of the own family.
    pub fn giving(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().filter(|network| network.ready && network.cidr.addr().is_ipv4() == (self.family == "IPv4"))
    }

    pub fn port(&self, i: usize) -> Item {
        // The range is as long as `i` may be.
        Item::Port(self.ports.start() + i as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_that_are_not_ready_keep_what_they_gave() {
        let range = |extra: Value| {
            let mut range = json!({"metadata": {"name": "r"}, "spec": {"cidrs": ["10.1.0.0/24", "fd00::/120", "nonsense"]}, "status": {}});
            api::merge::merge_patch(&mut range, &extra);
            Network::of(&range)
        };
        let ready = |networks: Vec<Network>| networks.iter().map(|network| network.ready).collect::<Vec<_>>();
        assert_eq!(ready(range(json!({}))), [true, true]);
        let condition = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        assert_eq!(ready(range(condition("True"))), [true, true]);
        assert_eq!(ready(range(condition("False"))), [false, false]);
        let going = range(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let ranges = Ranges::of("IPv4", going, 1..=2);
        let address: IpAddr = "10.1.0.9".parse().unwrap();
        assert!(ranges.contains(Item::Address(address)) && !ranges.gives(address) && ranges.giving().next().is_none());
        let ranges = Ranges::of("IPv6", range(json!({})), 1..=2);
        assert_eq!(ranges.giving().map(|network| network.address(0)).collect::<Vec<_>>(), [Item::Address("fd00::1".parse().unwrap())]);
        assert!(!ranges.gives("10.1.0.0".parse().unwrap()) && !ranges.gives("10.0.255.255".parse().unwrap()));
    }
}
