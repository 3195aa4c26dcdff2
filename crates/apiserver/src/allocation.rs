//! Cluster IPs and node ports of Services.
//!
//! [`reserve`] runs on every create and update after mutating admission and before validation; what it takes is given
//! back unless [`Reservation::keep`] is called after the commit. [`release`] runs after an object is gone.
//!
//! What is taken is in two bit maps in memory, filled from the stored Services at start. Taking is one step under one lock,
//! so two writes never get the same address or port. A write whose fields make no sense takes nothing: validation, which comes
//! next, says what is wrong.

use crate::{Error, Server};
use api::{
    Kind, Status, Value,
    field::{Errors, Path},
    object::ObjectExt,
};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::json;
use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

/// Addresses of a Service network that can be given out at most; of a larger network the first so many.
const ADDRESSES_MAX: u64 = 1 << 20;

/// Numbers from 0 on, each free or taken.
struct Pool {
    bits: Vec<u64>,
    size: usize,
    /// Numbers below are for those who ask for one by name, as long as there are others.
    lower_band: usize,
}

impl Pool {
    fn new(size: usize, lower_band: usize) -> Pool {
        Pool { bits: vec![0; size.div_ceil(64)], size, lower_band: lower_band.min(size) }
    }
    fn is_taken(&self, i: usize) -> bool {
        self.bits[i / 64] & (1 << (i % 64)) != 0
    }
    /// Takes one number; false if it is taken already.
    fn take(&mut self, i: usize) -> bool {
        if i >= self.size || self.is_taken(i) {
            return false;
        }
        self.bits[i / 64] |= 1 << (i % 64);
        true
    }
    fn free(&mut self, i: usize) {
        if i < self.size {
            self.bits[i / 64] &= !(1 << (i % 64));
        }
    }
    /// Takes the first free number from a random place on; `None` if all are taken.
    fn take_any(&mut self) -> Option<usize> {
        let bands = [self.lower_band..self.size, 0..self.lower_band];
        for band in bands.into_iter().filter(|band| !band.is_empty()) {
            let start = rand::rng().random_range(band.clone());
            if let Some(i) = (start..band.end).chain(band.start..start).find(|i| !self.is_taken(*i)) {
                self.take(i);
                return Some(i);
            }
        }
        None
    }
}

/// How many numbers are kept for those who ask by name, as Kubernetes reckons.
fn lower_band(size: usize, divisor: usize, max: usize) -> usize {
    if size <= 16 { 0 } else { (size / divisor).clamp(16, max) }
}

/// One thing that a Service holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

struct Pools {
    cidr: ipnet::IpNet,
    ports: RangeInclusive<u16>,
    /// Usable addresses: all but that of the network itself and, for IPv4, the broadcast address.
    taken_addresses: Pool,
    taken_ports: Pool,
}

impl Pools {
    fn new(cidr: ipnet::IpNet, ports: RangeInclusive<u16>) -> Pools {
        let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let all = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
        let usable = if cidr.addr().is_ipv4() { all.saturating_sub(2) } else { all.saturating_sub(1) }.min(ADDRESSES_MAX) as usize;
        let port_count = ports.clone().count();
        Pools {
            cidr,
            taken_addresses: Pool::new(usable, lower_band(usable, 16, 256)),
            taken_ports: Pool::new(port_count, lower_band(port_count, 32, 128)),
            ports,
        }
    }

    /// The place of an address in its pool: the network's own address would be before the first.
    fn index(&self, item: Item) -> Option<usize> {
        match item {
            Item::Address(address) if self.cidr.contains(&address) => {
                let distance = match (address, self.cidr.network()) {
                    (IpAddr::V4(address), IpAddr::V4(network)) => u128::from(u32::from(address) - u32::from(network)),
                    (IpAddr::V6(address), IpAddr::V6(network)) => u128::from(address) - u128::from(network),
                    _ => return None,
                };
                usize::try_from(distance.checked_sub(1)?).ok().filter(|i| *i < self.taken_addresses.size)
            }
            Item::Port(port) if self.ports.contains(&port) => Some(usize::from(port - self.ports.start())),
            _ => None,
        }
    }
    fn address(&self, i: usize) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(network) => IpAddr::from((u32::from(network) + i as u32 + 1).to_be_bytes()),
            IpAddr::V6(network) => IpAddr::from((u128::from(network) + i as u128 + 1).to_be_bytes()),
        }
    }
    fn take(&mut self, item: Item) -> bool {
        let Some(i) = self.index(item) else { return false };
        match item {
            Item::Address(_) => self.taken_addresses.take(i),
            Item::Port(_) => self.taken_ports.take(i),
        }
    }
    fn free(&mut self, item: Item) {
        if let Some(i) = self.index(item) {
            match item {
                Item::Address(_) => self.taken_addresses.free(i),
                Item::Port(_) => self.taken_ports.free(i),
            }
        }
    }
    fn family(&self) -> &'static str {
        if self.cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" }
    }
}

/// What is taken.
pub struct Allocators {
    pools: Arc<Mutex<Pools>>,
}

impl Allocators {
    pub fn new(config: &crate::Config) -> Result<Allocators, Error> {
        if config.node_ports.is_empty() {
            return Err(Error::Configuration("the range of node ports is empty".into()));
        }
        Ok(Allocators { pools: Arc::new(Mutex::new(Pools::new(config.service_cidr, config.node_ports.clone()))) })
    }

    /// Learns what the stored Services hold.
    pub fn load(&self, server: &Server) -> Result<(), Error> {
        let services = server.entries("", "services", None).map_err(|status| Error::Bootstrap(status.to_string()))?;
        let mut pools = self.pools.lock();
        for entry in services {
            for item in held(&entry.value()) {
                if !pools.take(item) {
                    tracing::warn!(service = &*entry.place, ?item, "a Service holds what another holds too, or what is out of range");
                }
            }
        }
        Ok(())
    }
}

/// What one write took. Dropped without `keep`, it is given back.
#[must_use]
pub struct Reservation {
    pools: Option<Arc<Mutex<Pools>>>,
    taken: Vec<Item>,
    /// What the old state held and the new one does not.
    given_up: Vec<Item>,
}

impl Reservation {
    fn nothing() -> Reservation {
        Reservation { pools: None, taken: vec![], given_up: vec![] }
    }
    /// The write is on disk.
    pub fn keep(mut self) {
        self.taken.clear();
        if let Some(pools) = &self.pools {
            let mut pools = pools.lock();
            self.given_up.drain(..).for_each(|item| pools.free(item));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(pools) = &self.pools
            && !self.taken.is_empty()
        {
            let mut pools = pools.lock();
            self.taken.drain(..).for_each(|item| pools.free(item));
        }
    }
}

/// Takes what the object needs and writes it into the object.
pub fn reserve(server: &Server, kind: &Kind, object: &mut Value, old: Option<&Value>, _dry_run: bool) -> Result<Reservation, Status> {
    if !is_service(kind) {
        return Ok(Reservation::nothing());
    }
    let shared = &server.allocators.pools;
    let mut taken = Vec::new();
    let given = reserve_in(&mut shared.lock(), object, old, &mut taken);
    // From here on whatever was taken is given back unless it is kept.
    let mut reservation = Reservation { pools: Some(shared.clone()), taken, given_up: vec![] };
    match given {
        Ok(errors) if errors.is_empty() => {
            let now = held(object);
            reservation.given_up = old.map(held).unwrap_or_default().into_iter().filter(|item| !now.contains(item)).collect();
            Ok(reservation)
        }
        Ok(errors) => Err(Status::invalid("", "Service", object.name(), &errors)),
        Err(status) => Err(status),
    }
}

/// Gives back what a deleted object held.
pub fn release(server: &Server, kind: &Kind, object: &Value) {
    if is_service(kind) {
        let mut pools = server.allocators.pools.lock();
        held(object).into_iter().for_each(|item| pools.free(item));
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.resource == "services"
}

/// All that a Service holds, each once.
fn held(service: &Value) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let addresses = service.list_at("spec.clusterIPs").iter().filter_map(Value::as_str).chain(service.str_at("spec.clusterIP"));
    let ports = service.list_at("spec.ports").iter().filter_map(|port| port.i64_at("nodePort")).chain(service.i64_at("spec.healthCheckNodePort"));
    let addresses = addresses.filter_map(|address| address.parse().ok()).map(Item::Address);
    for item in addresses.chain(ports.filter(|port| *port != 0).filter_map(|port| u16::try_from(port).ok()).map(Item::Port)) {
        if !items.contains(&item) {
            items.push(item);
        }
    }
    items
}

fn reserve_in(pools: &mut Pools, service: &mut Value, old: Option<&Value>, taken: &mut Vec<Item>) -> Result<Errors, Status> {
    let mut errors = Errors::default();
    if service.str_at("spec.type") == Some("ExternalName") {
        return Ok(errors);
    }
    let before = old.map(held).unwrap_or_default();
    if families(pools, service, &mut errors) && errors.is_empty() {
        addresses(pools, service, &before, taken, &mut errors)?;
    }
    if errors.is_empty() {
        ports(pools, service, &before, taken, &mut errors)?;
    }
    Ok(errors)
}

fn is_headless(service: &Value) -> bool {
    service.str_at("spec.clusterIP") == Some("None")
}

/// Fills in policy and families. False if they make no sense and validation will say so.
fn families(pools: &Pools, service: &mut Value, errors: &mut Errors) -> bool {
    let spec = Path::new("spec");
    let listed = service.list_at("spec.clusterIPs").to_vec();
    let first = service.str_at("spec.clusterIP").unwrap_or_default();
    if listed.len() > 2 || listed.first().is_some_and(|address| address != first) || listed.iter().skip(1).any(|_| first == "None") {
        return false;
    }
    let (own, other) = match pools.family() {
        "IPv4" => ("IPv4", "IPv6"),
        _ => ("IPv6", "IPv4"),
    };
    let given: Vec<String> = service.list_at("spec.ipFamilies").iter().filter_map(Value::as_str).map(String::from).collect();
    let policy = service.str_at("spec.ipFamilyPolicy").map(String::from);
    let known = given.iter().all(|family| family == own || family == other);
    let twice = given.len() > 1 && (given.len() > 2 || given[0] == given[1] || policy.as_deref() == Some("SingleStack"));
    if !known || twice || policy.as_deref().is_some_and(|policy| !matches!(policy, "SingleStack" | "PreferDualStack" | "RequireDualStack")) {
        return false;
    }
    // Without address and selector the cluster has no part in what the endpoints are.
    let anything_goes = is_headless(service) && service.map_at("spec.selector").is_none_or(|selector| selector.is_empty());
    if anything_goes {
        let policy = policy.unwrap_or_else(|| "RequireDualStack".into());
        let mut families = if given.is_empty() { vec![own.to_string()] } else { given };
        if policy != "SingleStack" && families.len() == 1 {
            families.push(if families[0] == own { other } else { own }.into());
        }
        service.set("spec.ipFamilies", families);
        service.set("spec.ipFamilyPolicy", policy);
        return true;
    }
    for (i, family) in given.iter().enumerate().filter(|(_, family)| *family != own) {
        errors.invalid(spec.child("ipFamilies").index(i), family.as_str(), "not configured on this cluster");
    }
    if policy.as_deref() == Some("RequireDualStack") {
        errors.invalid(spec.child("ipFamilyPolicy"), "RequireDualStack", "this cluster is not configured for dual-stack services");
    }
    for (i, address) in listed.iter().enumerate() {
        let parsed = address.as_str().and_then(|address| address.parse::<IpAddr>().ok());
        if parsed.is_some_and(|address| address.is_ipv4() != (own == "IPv4")) {
            errors.invalid(spec.child("clusterIPs").index(i), listed.clone(), &format!("{other} is not configured on this cluster"));
        }
    }
    if errors.is_empty() {
        service.set("spec.ipFamilies", vec![own]);
        service.set_default("spec.ipFamilyPolicy", "SingleStack");
    }
    true
}

fn addresses(pools: &mut Pools, service: &mut Value, before: &[Item], taken: &mut Vec<Item>, errors: &mut Errors) -> Result<(), Status> {
    if is_headless(service) {
        service.set("spec.clusterIP", "None");
        service.set_default("spec.clusterIPs", json!(["None"]));
        return Ok(());
    }
    let listed: Vec<Value> = service.list_at("spec.clusterIPs").to_vec();
    let first = service.str_at("spec.clusterIP").unwrap_or_default().to_string();
    if listed.is_empty() && first.is_empty() {
        let i = pools.taken_addresses.take_any().ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
        let address = pools.address(i);
        taken.push(Item::Address(address));
        service.set("spec.clusterIP", address.to_string());
        service.set("spec.clusterIPs", vec![address.to_string()]);
        return Ok(());
    }
    if listed.len() != 1 || listed[0] != first.as_str() {
        return Ok(());
    }
    let Ok(address) = first.parse::<IpAddr>() else { return Ok(()) };
    let item = Item::Address(address);
    if before.contains(&item) {
        return Ok(());
    }
    let problem = match pools.index(item) {
        None => "the provided network does not match the current range",
        Some(_) if !pools.take(item) => "provided IP is already allocated",
        Some(_) => {
            taken.push(item);
            return Ok(());
        }
    };
    errors.invalid(Path::new("spec").child("clusterIPs"), listed, &format!("failed to allocate IP {address}: {problem}"));
    Ok(())
}

fn ports(pools: &mut Pools, service: &mut Value, before: &[Item], taken: &mut Vec<Item>, errors: &mut Errors) -> Result<(), Status> {
    let balanced = service.str_at("spec.type") == Some("LoadBalancer");
    if !balanced && service.str_at("spec.type") != Some("NodePort") {
        return Ok(());
    }
    let allocate = !balanced || service.bool_at("spec.allocateLoadBalancerNodePorts").unwrap_or(true);
    let listed = service.list_at("spec.ports").to_vec();
    // Ports of this Service by protocol: one number may serve once per protocol.
    let mut own: Vec<(String, i64)> = Vec::new();
    let mut numbers: Vec<Option<i64>> = vec![None; listed.len()];
    let path = Path::new("spec").child("ports");
    for (i, port) in listed.iter().enumerate() {
        let Some(number) = port.i64_at("nodePort").filter(|number| *number != 0) else { continue };
        let key = (port.str_at("protocol").unwrap_or("TCP").to_string(), number);
        match explicit(pools, number, before, taken, own.iter().any(|(protocol, other)| *other == number && *protocol != key.0), own.contains(&key)) {
            Ok(()) => numbers[i] = Some(number),
            Err(problem) => errors.invalid(path.index(i).child("nodePort"), number, &problem),
        }
        own.push(key);
    }
    if !errors.is_empty() {
        return Ok(());
    }
    for (i, port) in listed.iter().enumerate() {
        if !allocate || numbers[i].is_some() {
            continue;
        }
        // The same port in another protocol gets the same number, if that is free there.
        let protocol = port.str_at("protocol").unwrap_or("TCP");
        let sibling = (listed.iter().zip(&numbers)).find_map(|(other, number)| {
            let number = (*number)?;
            let free = !own.contains(&(protocol.to_string(), number));
            (free && other.i64_at("port") == port.i64_at("port") && other.str_at("protocol").unwrap_or("TCP") != protocol).then_some(number)
        });
        let number = match sibling {
            Some(number) => number,
            None => any_port(pools, taken)?,
        };
        own.push((protocol.to_string(), number));
        numbers[i] = Some(number);
    }
    if let Some(ports) = service.at_mut("spec.ports").and_then(Value::as_array_mut) {
        for (port, number) in ports.iter_mut().zip(&numbers) {
            if let Some(number) = number {
                port.set("nodePort", *number);
            }
        }
    }
    if balanced && service.str_at("spec.externalTrafficPolicy") == Some("Local") {
        match service.i64_at("spec.healthCheckNodePort").filter(|number| *number != 0) {
            Some(number) => {
                if let Err(problem) = explicit(pools, number, before, taken, false, own.iter().any(|(_, other)| *other == number)) {
                    errors.invalid(Path::new("spec").child("healthCheckNodePort"), number, &problem);
                }
            }
            None => service.set("spec.healthCheckNodePort", any_port(pools, taken)?),
        }
    }
    Ok(())
}

/// Takes a port that was asked for by number. `shared`: this Service has it already for another protocol; `twice`: for this one.
fn explicit(pools: &mut Pools, number: i64, before: &[Item], taken: &mut Vec<Item>, shared: bool, twice: bool) -> Result<(), String> {
    let item = u16::try_from(number).ok().map(Item::Port).filter(|item| pools.index(*item).is_some());
    let Some(item) = item else {
        let (first, last) = (pools.ports.start(), pools.ports.end());
        return Err(format!("provided port is not in the valid range. The range of valid ports is {first}-{last}"));
    };
    if twice {
        return Err("provided port is already allocated".into());
    }
    if shared || before.contains(&item) {
        return Ok(());
    }
    if !pools.take(item) {
        return Err("provided port is already allocated".into());
    }
    taken.push(item);
    Ok(())
}

fn any_port(pools: &mut Pools, taken: &mut Vec<Item>) -> Result<i64, Status> {
    let i = pools.taken_ports.take_any().ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?;
    // The pool is as long as the range.
    let port = pools.ports.start() + i as u16;
    taken.push(Item::Port(port));
    Ok(i64::from(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools() -> Pools {
        Pools::new("10.96.0.0/16".parse().unwrap(), 30000..=32767)
    }

    /// What a Service becomes, or what is wrong with it.
    fn reserve(pools: &mut Pools, spec: Value) -> Result<Value, String> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let mut taken = vec![];
        match reserve_in(pools, &mut service, None, &mut taken) {
            Ok(errors) if errors.is_empty() => Ok(service["spec"].take()),
            Ok(errors) => Err(errors.to_string()),
            Err(status) => Err(status.message),
        }
    }

    #[test]
    fn addresses_come_from_the_range_and_only_once() {
        let mut pools = pools();
        let spec = reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap();
        let address: IpAddr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(pools.cidr.contains(&address) && pools.index(Item::Address(address)).unwrap() >= 256, "not from the lower band");
        assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        let explicit = |address: &str| json!({"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]});
        assert!(reserve(&mut pools, explicit("10.96.0.10")).is_ok());
        let check = |pools: &mut Pools, address: &str, expected: &str| assert_eq!(reserve(pools, explicit(address)).unwrap_err(), expected);
        check(
            &mut pools,
            "10.96.0.10",
            r#"spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"#,
        );
        check(
            &mut pools,
            "1.2.3.4",
            r#"spec.clusterIPs: Invalid value: ["1.2.3.4"]: failed to allocate IP 1.2.3.4: the provided network does not match the current range"#,
        );
        check(&mut pools, "fd00::1", r#"spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster"#);
        pools.free(Item::Address("10.96.0.10".parse().unwrap()));
        assert!(reserve(&mut pools, explicit("10.96.0.10")).is_ok(), "free again");
        assert_eq!(reserve(&mut pools, explicit("abc")).unwrap()["clusterIP"], "abc", "left to validation");
    }

    #[test]
    fn headless_services_take_nothing() {
        let mut pools = pools();
        let spec = reserve(&mut pools, json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}})).unwrap();
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        let spec = reserve(&mut pools, json!({"type": "ClusterIP", "clusterIP": "None", "ipFamilies": ["IPv6"]})).unwrap();
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv6", "IPv4"]), &json!("RequireDualStack")));
    }

    #[test]
    fn node_ports() {
        let mut pools = pools();
        let spec = reserve(&mut pools, json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "protocol": "TCP", "nodePort": 31000}]})).unwrap();
        let port = |i: usize| spec["ports"][i]["nodePort"].as_i64().unwrap();
        assert!((30000..=32767).contains(&port(0)) && port(0) == port(1) && port(2) == 31000);
        let check = |pools: &mut Pools, ports: Value, expected: &str| {
            assert_eq!(reserve(pools, json!({"type": "NodePort", "ports": ports})).unwrap_err(), expected)
        };
        check(
            &mut pools,
            json!([{"port": 80, "nodePort": 31000}]),
            "spec.ports[0].nodePort: Invalid value: 31000: provided port is already allocated",
        );
        check(
            &mut pools,
            json!([{"port": 1, "nodePort": 80}]),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
        check(
            &mut pools,
            json!([{"port": 1, "nodePort": 32111}, {"port": 2, "nodePort": 32111}]),
            "spec.ports[1].nodePort: Invalid value: 32111: provided port is already allocated",
        );
        let spec = reserve(
            &mut pools,
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        )
        .unwrap();
        assert_eq!(spec["ports"][0].get("nodePort"), None);
        assert!(spec["healthCheckNodePort"].as_i64().is_some());
    }

    #[test]
    fn an_update_keeps_what_it_has() {
        let mut pools = pools();
        let spec = reserve(&mut pools, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
        let old = json!({"metadata": {"name": "s"}, "spec": spec});
        let (mut new, mut taken) = (old.clone(), vec![]);
        assert!(reserve_in(&mut pools, &mut new, Some(&old), &mut taken).unwrap().is_empty());
        assert_eq!(new, old);
        assert!(taken.is_empty());
    }

    #[test]
    fn a_full_range_says_so() {
        let mut pools = Pools::new("10.0.0.0/30".parse().unwrap(), 30000..=30000);
        assert_eq!(reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap()["clusterIPs"].as_array().unwrap().len(), 1);
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).is_ok());
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap_err().contains("range is full"));
    }
}
