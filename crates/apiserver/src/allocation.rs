//! Cluster IPs and node ports of Services.
//!
//! [`reserve`] runs on every create and update after mutating admission and before validation; what it takes is given
//! back unless [`Reservation::keep`] is called after the commit. [`release`] runs after an object is gone.
//!
//! What is taken stands in the store, one key per address (an IPAddress object, as in Kubernetes) and per port, so that of
//! several API servers one gets it: taking is the creation of that key. The cache says what is probably free; the store
//! decides. A write whose fields make no sense takes nothing: validation, which comes next, says what is wrong.
//!
//! A server that dies between the two writes leaves a claim without a Service; [`look_after`] removes it, and makes what
//! claims are missing (of Services from a snapshot or an older version). What there is to give out is in [`ranges`].

mod ranges;

use ranges::Ranges;

use crate::{
    Server,
    cache::encode_stored,
    keys,
    write::{now, store_failure},
};
use api::{
    Kind, Status, Value,
    field::{Errors, Path},
    kinds::core::services,
    object::ObjectExt,
};
use rand::Rng;
use serde_json::{Map, json};
use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};
use store::{Outcome, Revision, Write};

/// How often claims are held against Services. One that is without twice in a row is given back.
const REPAIR_EVERY: Duration = Duration::from_secs(60);
/// As Kubernetes marks the IPAddresses that belong to Services.
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// Where claims of ports are stored. They are no API objects, but have their form.
const PORTS: (&str, &str) = ("", "servicenodeports");
const ADDRESSES: (&str, &str) = ("networking.k8s.io", "ipaddresses");

/// How many numbers are kept for those who ask by name, as Kubernetes reckons.
fn lower_band(size: usize, divisor: usize, max: usize) -> usize {
    if size <= 16 { 0 } else { (size / divisor).clamp(16, max) }
}

/// One thing that a Service holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

impl Item {
    /// Group, resource and name under which it is claimed.
    fn place(self) -> ((&'static str, &'static str), String) {
        match self {
            Item::Address(address) => (ADDRESSES, address.to_string()),
            Item::Port(port) => (PORTS, port.to_string()),
        }
    }
    fn key(self) -> String {
        let ((group, resource), name) = self.place();
        keys::object(group, resource, "", &name)
    }
}

/// Where it stands what is taken.
#[async_trait::async_trait]
trait Ledger: Send {
    /// Whether nobody is known to have it. Only a claim decides.
    fn seems_free(&self, item: Item) -> bool;
    /// Takes it; false if somebody else has it.
    async fn claim(&mut self, item: Item) -> Result<bool, Status>;
    /// Whether any item will do, free or not: nothing is kept of it.
    fn pretends(&self) -> bool {
        false
    }
}

/// Takes the first item that is free, from a random place on; `None` if all are taken.
async fn claim_any<L: Ledger>(ledger: &mut L, size: usize, lower_band: usize, item: impl Fn(usize) -> Item) -> Result<Option<Item>, Status> {
    if ledger.pretends() && size > 0 {
        return Ok(Some(item(0)));
    }
    let lower_band = lower_band.min(size);
    for band in [lower_band..size, 0..lower_band].into_iter().filter(|band| !band.is_empty()) {
        let start = rand::rng().random_range(band.clone());
        for i in (start..band.end).chain(band.start..start) {
            let item = item(i);
            if ledger.seems_free(item) && ledger.claim(item).await? {
                return Ok(Some(item));
            }
        }
    }
    Ok(None)
}

/// The ledger of all servers: the store.
struct Claims {
    server: Arc<Server>,
    /// Namespace and name of the Service.
    holder: (String, String),
    /// Nothing is written.
    dry_run: bool,
    taken: Vec<(Item, Revision)>,
}

#[async_trait::async_trait]
impl Ledger for Claims {
    fn seems_free(&self, item: Item) -> bool {
        let ((group, resource), name) = item.place();
        self.server.cache.resource(group, resource).get("", &name).is_none()
    }

    fn pretends(&self) -> bool {
        self.dry_run
    }

    async fn claim(&mut self, item: Item) -> Result<bool, Status> {
        if self.dry_run {
            return Ok(self.seems_free(item));
        }
        let write = Write::Create { key: item.key(), value: encode_stored(&claim(item, &self.holder.0, &self.holder.1)).into() };
        match self.server.store.commit(write).await.map_err(store_failure)? {
            Outcome::Committed(revision) => {
                self.taken.push((item, revision));
                Ok(true)
            }
            Outcome::Conflict(_) => Ok(false),
        }
    }
}

/// The object that says that a Service has an item.
fn claim(item: Item, namespace: &str, name: &str) -> Value {
    let parent = json!({"resource": "services", "namespace": namespace, "name": name});
    let created = now();
    let mut claim = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": item.place().1,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": created,
            "labels": {MANAGED_BY.0: MANAGED_BY.1},
        },
        "spec": {"parentRef": parent},
    });
    match item {
        Item::Address(address) => {
            claim.set_label(FAMILY, if address.is_ipv4() { "IPv4" } else { "IPv6" });
            let labels = [FAMILY, MANAGED_BY.0].map(|key| (format!("f:{key}"), json!({})));
            let labels: Map<String, Value> = [(".".to_string(), json!({}))].into_iter().chain(labels).collect();
            let parent = json!({".": {}, "f:name": {}, "f:namespace": {}, "f:resource": {}});
            let books = json!([{
                "manager": "kube-apiserver",
                "operation": "Update",
                "apiVersion": "networking.k8s.io/v1",
                "time": created,
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:labels": labels}, "f:spec": {"f:parentRef": parent}},
            }]);
            claim.set("metadata.managedFields", books);
        }
        Item::Port(_) => {
            claim.set("apiVersion", "v1");
            claim.set("kind", "ServiceNodePort");
        }
    }
    claim
}

/// The Service that a claim is for, if it is one that this module has made.
fn holder(claim: &Value) -> Option<(String, String)> {
    if claim.label(MANAGED_BY.0) != Some(MANAGED_BY.1) {
        return None;
    }
    let part = |name: &str| claim.str_at(&format!("spec.parentRef.{name}")).map(String::from);
    Some((part("namespace")?, part("name")?))
}

/// What one write took. Dropped without `keep`, it is given back.
#[must_use]
pub struct Reservation {
    claims: Option<Claims>,
    /// What the old state held and the new one does not.
    given_up: Vec<Item>,
}

impl Reservation {
    /// The write is on disk.
    pub async fn keep(mut self) {
        let Some(claims) = &mut self.claims else { return };
        claims.taken.clear();
        for item in std::mem::take(&mut self.given_up) {
            give_back(&claims.server, item, &claims.holder.0, &claims.holder.1).await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(claims) = self.claims.take().filter(|claims| !claims.taken.is_empty()) else { return };
        tokio::spawn(async move {
            for (item, expected) in claims.taken {
                // One that cannot be given back now is found by the repair.
                let _ = claims.server.store.commit(Write::Delete { key: item.key(), expected }).await;
            }
        });
    }
}

/// Takes what the object needs and writes it into the object.
pub async fn reserve(server: &Arc<Server>, kind: &Kind, object: &mut Value, old: Option<&Value>, dry_run: bool) -> Result<Reservation, Status> {
    if !is_service(kind) {
        return Ok(Reservation { claims: None, given_up: vec![] });
    }
    let holder = (object.namespace().to_string(), object.name().to_string());
    // From here on whatever is taken is given back unless it is kept.
    let mut reservation = Reservation { claims: None, given_up: vec![] };
    let claims = reservation.claims.insert(Claims { server: server.clone(), holder, dry_run, taken: vec![] });
    let errors = reserve_in(&Ranges::now(server)?, claims, object, old).await?;
    if !errors.is_empty() {
        return Err(Status::invalid("", "Service", object.name(), &errors));
    }
    if !dry_run {
        let now = held(object);
        reservation.given_up = old.map(held).unwrap_or_default().into_iter().filter(|item| !now.contains(item)).collect();
    }
    Ok(reservation)
}

/// Gives back what a deleted object held.
pub async fn release(server: &Arc<Server>, kind: &Kind, object: &Value) {
    if is_service(kind) {
        for item in held(object) {
            give_back(server, item, object.namespace(), object.name()).await;
        }
    }
}

/// Removes the claim of a Service, if it is that one's. What fails is found by the repair.
async fn give_back(server: &Arc<Server>, item: Item, namespace: &str, name: &str) {
    let work = async {
        let Some(standing) = server.store.get(&item.key()).await? else { return Ok(()) };
        let own = serde_json::from_slice::<Value>(&standing.value).ok().and_then(|claim| holder(&claim));
        if own.is_some_and(|(ns, n)| ns == namespace && n == name) {
            server.store.commit(Write::Delete { key: standing.key, expected: standing.modified }).await?;
        }
        Ok::<(), store::Error>(())
    };
    if let Err(error) = work.await {
        tracing::warn!(?item, %error, "a Service's address or port could not be given back now");
    }
}

/// Makes the claims that are missing; answers with those that no Service holds, and whose they are.
async fn compare(server: &Arc<Server>) -> Result<HashSet<(Item, Revision)>, Status> {
    // The claims first: a Service that is made meanwhile has its claims before.
    server.cache.certain().await?;
    let mut claims: Vec<(Item, Revision, (String, String))> = Vec::new();
    for (group, resource) in [ADDRESSES, PORTS] {
        for entry in server.entries(group, resource, None)? {
            let item = match resource {
                "ipaddresses" => entry.name().parse().ok().map(Item::Address),
                _ => entry.name().parse().ok().map(Item::Port),
            };
            if let (Some(item), Some(holder)) = (item, holder(&entry.value())) {
                claims.push((item, entry.revision, holder));
            }
        }
    }
    let services = server.entries("", "services", None)?;
    let ranges = Ranges::now(server)?;
    let mut wanted: HashSet<(Item, (String, String))> = HashSet::new();
    for service in services {
        let holder = (service.namespace().to_string(), service.name().to_string());
        for item in held(&service.value()).into_iter().filter(|item| ranges.contains(*item)) {
            wanted.insert((item, holder.clone()));
        }
    }
    for (item, holder) in &wanted {
        if claims.iter().any(|(claimed, _, by)| claimed == item && by == holder) {
            continue;
        }
        let value = encode_stored(&claim(*item, &holder.0, &holder.1)).into();
        if let Outcome::Conflict(Some(standing)) = server.store.commit(Write::Create { key: item.key(), value }).await.map_err(store_failure)?
            && self::holder(&serde_json::from_slice(&standing.value).unwrap_or_default()).as_ref() != Some(holder)
        {
            tracing::warn!(service = format!("{}/{}", holder.0, holder.1), ?item, "a Service holds what somebody else holds too");
        }
    }
    Ok(claims
        .into_iter()
        .filter(|(item, _, holder)| !wanted.contains(&(*item, holder.clone())))
        .map(|(item, revision, _)| (item, revision))
        .collect())
}

/// Keeps claims and Services in agreement until the shutdown.
pub(crate) async fn look_after(server: Arc<Server>) {
    let mut orphans = HashSet::new();
    let mut ticks = tokio::time::interval(REPAIR_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! { () = server.config.shutdown.cancelled() => return, _ = ticks.tick() => {} }
        match compare(&server).await {
            Ok(now) => {
                for (item, expected) in orphans.intersection(&now) {
                    tracing::info!(?item, "no Service holds it any more; it is given back");
                    let _ = server.store.commit(Write::Delete { key: Item::key(*item), expected: *expected }).await;
                }
                orphans = now;
            }
            Err(status) => tracing::debug!(error = %status, "addresses and ports of Services could not be compared; will try again"),
        }
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

async fn reserve_in<L: Ledger>(ranges: &Ranges, ledger: &mut L, service: &mut Value, old: Option<&Value>) -> Result<Errors, Status> {
    let mut errors = Errors::default();
    if service.str_at("spec.type") == Some("ExternalName") {
        return Ok(errors);
    }
    services::validate_addresses(service, old, &mut errors);
    if errors.is_empty() {
        families(ranges, service, old, &mut errors);
    }
    let before = old.map(held).unwrap_or_default();
    // Who has an address keeps it; who asks for another is told so when the Service is checked.
    let has_address = old.is_some_and(|old| old.str_at("spec.type") != Some("ExternalName") && !old.list_at("spec.clusterIPs").is_empty());
    if errors.is_empty() && !has_address {
        addresses(ranges, ledger, service, &before, &mut errors).await?;
    }
    if errors.is_empty() {
        ports(ranges, ledger, service, &before, &mut errors).await?;
    }
    Ok(errors)
}

fn is_headless(service: &Value) -> bool {
    service.str_at("spec.clusterIP") == Some("None")
}

/// Fills in policy and families, of addresses that are well-formed.
fn families(ranges: &Ranges, service: &mut Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = Path::new("spec");
    let policy_at = spec.child("ipFamilyPolicy");
    let (own, other) = if ranges.family == "IPv4" { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    // Without address and selector the cluster has no part in what the endpoints are.
    let anything_goes = is_headless(service) && service.map_at("spec.selector").is_none_or(|selector| selector.is_empty());
    let said = |service: &Value| service.str_at("spec.ipFamilyPolicy").filter(|policy| !policy.is_empty()).map(String::from);
    let default = if anything_goes { "RequireDualStack" } else { "SingleStack" };
    let policy = said(service).or_else(|| old.and_then(said)).unwrap_or_else(|| default.into());
    let single = policy == "SingleStack";
    if let Some(old) = old {
        for (key, what) in [("spec.clusterIPs", "cluster IP"), ("spec.ipFamilies", "IP family")] {
            let (now, before) = (service.list_at(key).to_vec(), old.list_at(key));
            if single && now == before && now.len() > 1 {
                service.set(key, vec![now[0].clone()]);
            } else if !single && !now.is_empty() && now.len() < before.len() {
                errors.invalid(policy_at.clone(), policy.as_str(), &format!("must be 'SingleStack' to release the secondary {what}"));
            }
        }
    }
    let listed = service.list_at("spec.clusterIPs").to_vec();
    let mut families: Vec<String> = service.list_at("spec.ipFamilies").iter().filter_map(Value::as_str).map(String::from).collect();
    for (count, what) in [(listed.len(), "cluster IPs"), (families.len(), "IP families")] {
        if single && count == 2 {
            let detail = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.invalid(policy_at.clone(), policy.as_str(), &detail);
        }
    }
    for (i, address) in listed.iter().enumerate().skip(families.len()) {
        match address.as_str().and_then(|address| address.parse::<IpAddr>().ok()) {
            Some(address) if address.is_ipv4() == (own == "IPv4") => families.push(own.into()),
            Some(_) => {
                errors.invalid(spec.child("clusterIPs").index(i), listed.clone(), &format!("{other} is not configured on this cluster"));
            }
            None => {}
        }
    }
    if !errors.is_empty() {
        return;
    }
    if anything_goes {
        if families.is_empty() {
            families.push(own.into());
        }
        if !single && families.len() == 1 {
            families.push(if families[0] == own { other } else { own }.into());
        }
    } else {
        if policy == "RequireDualStack" {
            errors.invalid(policy_at, policy.as_str(), "this cluster is not configured for dual-stack services");
        }
        for (i, family) in families.iter().enumerate().filter(|(_, family)| *family != own) {
            errors.invalid(spec.child("ipFamilies").index(i), family.as_str(), "not configured on this cluster");
        }
        if families.is_empty() {
            families.push(own.into());
        }
    }
    if errors.is_empty() {
        service.set("spec.ipFamilies", families);
        service.set("spec.ipFamilyPolicy", policy);
    }
}

async fn addresses<L: Ledger>(ranges: &Ranges, ledger: &mut L, service: &mut Value, before: &[Item], errors: &mut Errors) -> Result<(), Status> {
    if is_headless(service) {
        service.set("spec.clusterIP", "None");
        service.set_default("spec.clusterIPs", json!(["None"]));
        return Ok(());
    }
    let listed: Vec<Value> = service.list_at("spec.clusterIPs").to_vec();
    let first = service.str_at("spec.clusterIP").unwrap_or_default().to_string();
    if listed.is_empty() && first.is_empty() {
        let mut found = None;
        for network in ranges.giving() {
            found = claim_any(ledger, network.addresses, lower_band(network.addresses, 16, 256), |i| network.address(i)).await?;
            if found.is_some() {
                break;
            }
        }
        let Some(Item::Address(address)) = found else { return Err(Status::internal("failed to allocate a serviceIP: range is full")) };
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
    let problem = match ranges.gives(address) {
        false => "the provided network does not match the current range",
        true if ledger.claim(item).await? => return Ok(()),
        true => "provided IP is already allocated",
    };
    errors.invalid(Path::new("spec").child("clusterIPs"), listed, &format!("failed to allocate IP {address}: {problem}"));
    Ok(())
}

async fn ports<L: Ledger>(ranges: &Ranges, ledger: &mut L, service: &mut Value, before: &[Item], errors: &mut Errors) -> Result<(), Status> {
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
        let (shared, twice) = (own.iter().any(|(protocol, other)| *other == number && *protocol != key.0), own.contains(&key));
        match explicit(ranges, ledger, number, before, shared, twice).await? {
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
            None => any_port(ranges, ledger).await?,
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
                if let Err(problem) = explicit(ranges, ledger, number, before, false, own.iter().any(|(_, other)| *other == number)).await? {
                    errors.invalid(Path::new("spec").child("healthCheckNodePort"), number, &problem);
                }
            }
            None => service.set("spec.healthCheckNodePort", any_port(ranges, ledger).await?),
        }
    }
    Ok(())
}

/// Takes a port that was asked for by number. `shared`: this Service has it already for another protocol; `twice`: for this one.
async fn explicit<L: Ledger>(
    ranges: &Ranges,
    ledger: &mut L,
    number: i64,
    before: &[Item],
    shared: bool,
    twice: bool,
) -> Result<Result<(), String>, Status> {
    let item = u16::try_from(number).ok().map(Item::Port).filter(|item| ranges.contains(*item));
    let Some(item) = item else {
        let (first, last) = (ranges.ports.start(), ranges.ports.end());
        return Ok(Err(format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")));
    };
    let taken = || Ok(Err("provided port is already allocated".into()));
    match () {
        () if twice => taken(),
        () if shared || before.contains(&item) => Ok(Ok(())),
        () if ledger.claim(item).await? => Ok(Ok(())),
        () => taken(),
    }
}

async fn any_port<L: Ledger>(ranges: &Ranges, ledger: &mut L) -> Result<i64, Status> {
    let size = ranges.ports.clone().count();
    match claim_any(ledger, size, lower_band(size, 32, 128), |i| ranges.port(i)).await? {
        Some(Item::Port(port)) => Ok(i64::from(port)),
        _ => Err(Status::internal("failed to allocate a nodePort: range is full")),
    }
}

#[cfg(test)]
mod tests {
    use super::{ranges::Network, *};
    use std::ops::RangeInclusive;

    /// Ranges, and what is taken of them.
    struct Pools {
        ranges: Ranges,
        taken: HashSet<Item>,
    }

    struct Book<'a>(&'a mut HashSet<Item>);

    #[async_trait::async_trait]
    impl Ledger for Book<'_> {
        fn seems_free(&self, item: Item) -> bool {
            !self.0.contains(&item)
        }
        async fn claim(&mut self, item: Item) -> Result<bool, Status> {
            Ok(self.0.insert(item))
        }
    }

    impl Pools {
        fn new(cidr: ipnet::IpNet, ports: RangeInclusive<u16>) -> Pools {
            let family = if cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            Pools { ranges: Ranges::of(family, vec![Network::new(cidr)], ports), taken: HashSet::new() }
        }
        fn free(&mut self, item: Item) {
            self.taken.remove(&item);
        }
    }

    fn pools() -> Pools {
        Pools::new("10.96.0.0/16".parse().unwrap(), 30000..=32767)
    }

    fn change(pools: &mut Pools, service: &mut Value, old: Option<&Value>) -> Result<Errors, Status> {
        futures::executor::block_on(reserve_in(&pools.ranges, &mut Book(&mut pools.taken), service, old))
    }

    /// What a Service becomes, or what is wrong with it.
    fn reserve(pools: &mut Pools, spec: Value) -> Result<Value, String> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        match change(pools, &mut service, None) {
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
        let IpAddr::V4(v4) = address else { panic!("{address}") };
        assert!(pools.ranges.contains(Item::Address(address)) && u32::from(v4) & 0xffff > 256, "not from the lower band");
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
        assert!(reserve(&mut pools, explicit("abc")).unwrap_err().contains("must be a valid IP address"));
    }

    #[test]
    fn further_networks_serve_when_the_first_is_full() {
        let mut pools = Pools::new("10.96.0.0/30".parse().unwrap(), 30000..=32767);
        pools.ranges.networks.push(Network::new("10.97.0.0/30".parse().unwrap()));
        let mut given: Vec<String> =
            (0..4).map(|_| reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap()["clusterIP"].as_str().unwrap().to_string()).collect();
        given.sort();
        assert_eq!(given, ["10.96.0.1", "10.96.0.2", "10.97.0.1", "10.97.0.2"]);
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap_err().ends_with("failed to allocate a serviceIP: range is full"));
        pools.free(Item::Address("10.97.0.2".parse().unwrap()));
        pools.ranges.networks[1].ready = false;
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).is_err(), "not ready");
    }

    #[test]
    fn headless_services_take_nothing() {
        let mut pools = pools();
        let spec = reserve(&mut pools, json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}})).unwrap();
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        let both = json!({"type": "ClusterIP", "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"});
        assert!(reserve(&mut pools, both).unwrap_err().contains("when multiple IP families are specified"));
        let spec = reserve(&mut pools, json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv6"]})).unwrap();
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
        let (mut new, before) = (old.clone(), pools.taken.clone());
        assert!(change(&mut pools, &mut new, Some(&old)).unwrap().is_empty());
        assert_eq!((new, pools.taken), (old, before));
    }

    #[test]
    fn a_full_range_says_so() {
        let mut pools = Pools::new("10.0.0.0/30".parse().unwrap(), 30000..=30000);
        assert_eq!(reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap()["clusterIPs"].as_array().unwrap().len(), 1);
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).is_ok());
        assert!(reserve(&mut pools, json!({"type": "ClusterIP"})).unwrap_err().contains("range is full"));
    }
}
