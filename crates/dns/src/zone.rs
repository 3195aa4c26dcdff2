//! The cluster's zone: Services and EndpointSlices in, answers to questions out. Pure.
//!
//! | name below the cluster's domain | answer |
//! |---|---|
//! | `SERVICE.NAMESPACE.svc` | A: the ClusterIP, or of a headless Service its ready endpoints; CNAME: an ExternalName; SRV: all ports |
//! | `_PORT._PROTOCOL.SERVICE.NAMESPACE.svc` | SRV: the port; of a headless Service one per endpoint |
//! | `HOST.SERVICE.NAMESPACE.svc` | A: the endpoint with this hostname, or with this address written with dashes |
//! | `A-B-C-D.NAMESPACE.pod` | A: the address |
//! | `D.C.B.A.in-addr.arpa` | PTR: the Service, or the endpoint |
//!
//! What must stay true: a name that exists answers a question of another type with no data, never with NXDOMAIN (a client
//! that asks for AAAA first must not give up); names compare without case, and the answer repeats the question's spelling.
//! IPv4 only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use client::endpoints::{pod, said};
use client::{Change, Key};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use membership::{Doubt, View};

use crate::limits;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The version of Kubernetes' DNS specification that is followed.
const VERSION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The name is not of this zone: ask others.
    Elsewhere,
    /// The records, or that there are none.
    Here(Records),
    /// An alias: its record, and the name to go on with.
    Alias(Record, Name),
}

/// An answer of the zone itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// `NoError` or `NXDomain`.
    pub code: ResponseCode,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The zone's own record, when there is no answer.
    pub authorities: Vec<Record>,
    /// Addresses of what the answers name.
    pub additionals: Vec<Record>,
}

/// Everything the zone is made of.
pub struct Zone {
    domain: Name,
    /// The domain's labels, lower case, last first.
    domain_labels: Vec<String>,
    services: HashMap<Key, Arc<Service>>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    /// How many Services a namespace has.
    namespaces: HashMap<String, usize>,
    service_by_ip: HashMap<Ipv4Addr, BTreeSet<Key>>,
    /// The Services whose slices name an address, with how often.
    services_by_endpoint: HashMap<Ipv4Addr, BTreeMap<Key, usize>>,
    serial: u32,
    /// What the membership says, sharpening the slices.
    view: Option<Arc<View>>,
}

impl Zone {
    /// An empty zone of this domain; `None` if it is no domain name.
    pub fn new(domain: &str) -> Option<Zone> {
        let mut domain = Name::from_ascii(domain.trim_end_matches('.')).ok()?;
        domain.set_fqdn(true);
        let domain_labels = labels(&domain)?;
        Some(Zone {
            domain,
            domain_labels,
            services: HashMap::new(),
            slices: HashMap::new(),
            namespaces: HashMap::new(),
            service_by_ip: HashMap::new(),
            services_by_endpoint: HashMap::new(),
            serial: 1,
            view: None,
        })
    }

    /// A Service has changed.
    pub fn service(&mut self, change: &Change<Service>) {
        self.serial = self.serial.wrapping_add(1);
        let key = Key::of(change.object().as_ref());
        if let Some(old) = self.services.remove(&key) {
            for ip in cluster_ips(&old) {
                if let Some(keys) = self.service_by_ip.get_mut(&ip) {
                    keys.remove(&key);
                    if keys.is_empty() {
                        self.service_by_ip.remove(&ip);
                    }
                }
            }
            if let Some(count) = self.namespaces.get_mut(&key.namespace) {
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(&key.namespace);
                }
            }
        }
        if let Change::Applied { new, .. } = change {
            for ip in cluster_ips(new) {
                self.service_by_ip.entry(ip).or_default().insert(key.clone());
            }
            *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
            self.services.insert(key, new.clone());
        }
    }

    /// An EndpointSlice has changed.
    pub fn slice(&mut self, change: &Change<EndpointSlice>) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(old) = change.old() {
            self.drop_slice(old);
        }
        if let Change::Applied { new, .. } = change {
            self.drop_slice(new);
            if let (Some(service), Some(name)) = (service_of(new), new.metadata.name.clone()) {
                for address in new.endpoints.iter().flatten().filter_map(address) {
                    *self.services_by_endpoint.entry(address).or_default().entry(service.clone()).or_default() += 1;
                }
                self.slices.entry(service).or_default().insert(name, new.clone());
            }
        }
    }

    /// What the membership says now.
    pub fn view(&mut self, view: Option<Arc<View>>) {
        self.serial = self.serial.wrapping_add(1);
        self.view = view;
    }

    fn drop_slice(&mut self, slice: &EndpointSlice) {
        let (Some(service), Some(name)) = (service_of(slice), slice.metadata.name.as_ref()) else { return };
        let Some(of_service) = self.slices.get_mut(&service) else { return };
        let Some(known) = of_service.remove(name) else { return };
        if of_service.is_empty() {
            self.slices.remove(&service);
        }
        for address in known.endpoints.iter().flatten().filter_map(address) {
            if let Some(services) = self.services_by_endpoint.get_mut(&address) {
                if let Some(count) = services.get_mut(&service) {
                    *count -= 1;
                    if *count == 0 {
                        services.remove(&service);
                    }
                }
                if services.is_empty() {
                    self.services_by_endpoint.remove(&address);
                }
            }
        }
    }

    /// Whether the name is in the cluster's domain (only then is it worth waiting for the first list).
    pub fn covers(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    /// The answer to a question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let Some(labels) = labels(name) else { return Answer::Elsewhere };
        if let Some(address) = reverse_address(&labels) {
            return self.reverse(name, address, kind);
        }
        let Some(rest) = labels.strip_prefix(self.domain_labels.as_slice()) else { return Answer::Elsewhere };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] => Answer::Here(self.apex(name, kind)),
            ["dns-version"] => Answer::Here(self.typed(name, kind, RecordType::TXT, || {
                vec![Record::from_rdata(name.clone(), limits::TTL_SERVICE_SECONDS, RData::TXT(TXT::new(vec![VERSION.to_owned()])))]
            })),
            ["svc" | "pod"] => Answer::Here(self.no_data()),
            ["pod", namespace] | ["svc", namespace] if self.namespaces.contains_key(*namespace) => Answer::Here(self.no_data()),
            ["pod", _namespace, address] => match dashed_address(address) {
                Some(address) => Answer::Here(self.addresses(name, kind, &[address], limits::TTL_ENDPOINT_SECONDS)),
                None => Answer::Here(self.no_name()),
            },
            ["svc", namespace, service, rest @ ..] => {
                let key = Key::new(*namespace, *service);
                match self.services.get(&key) {
                    Some(service) => self.in_service(name, kind, &key, service, rest),
                    None => Answer::Here(self.no_name()),
                }
            }
            _ => Answer::Here(self.no_name()),
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Records {
        let record = |data| vec![Record::from_rdata(name.clone(), limits::TTL_SERVICE_SECONDS, data)];
        match kind {
            RecordType::SOA => Records { answers: vec![self.authority()], ..Records::default() },
            RecordType::NS => Records { answers: record(RData::NS(NS(self.own_server()))), ..Records::default() },
            _ => self.no_data(),
        }
    }

    fn in_service(&self, name: &Name, kind: RecordType, key: &Key, service: &Service, rest: &[&str]) -> Answer {
        let spec = service.spec.as_ref();
        if let (Some("ExternalName"), Some(target)) = (spec.and_then(|s| s.type_.as_deref()), spec.and_then(|s| s.external_name.as_deref())) {
            if !rest.is_empty() {
                return Answer::Here(self.no_name());
            }
            // A target that is a bare address is not a name to go on with.
            return match Name::from_ascii(target.trim_end_matches('.')) {
                Ok(mut target) if target.num_labels() > 0 => {
                    target.set_fqdn(true);
                    let alias = RData::CNAME(CNAME(target.clone()));
                    Answer::Alias(Record::from_rdata(name.clone(), limits::TTL_SERVICE_SECONDS, alias), target)
                }
                _ => Answer::Here(self.no_data()),
            };
        }
        let ips: Vec<Ipv4Addr> = cluster_ips(service).collect();
        let headless = ips.is_empty();
        let endpoints = || self.endpoints(key, service);
        Answer::Here(match rest {
            [] if headless => {
                let endpoints = endpoints();
                if endpoints.is_empty() {
                    self.no_name()
                } else if kind == RecordType::SRV {
                    self.endpoint_ports(name, key, &endpoints, |_| true)
                } else {
                    let addresses: Vec<Ipv4Addr> = distinct(endpoints.iter().map(|e| e.address));
                    self.addresses(name, kind, &addresses, limits::TTL_ENDPOINT_SECONDS)
                }
            }
            [] if kind == RecordType::SRV => self.service_ports(name, key, service, &ips, |_, _| true),
            [] => self.addresses(name, kind, &ips, limits::TTL_SERVICE_SECONDS),
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                let (protocol, port) = (&protocol[1..], &port[1..]);
                let records = if headless {
                    self.endpoint_ports(name, key, &endpoints(), |p| p.name == port && p.protocol.eq_ignore_ascii_case(protocol))
                } else {
                    self.service_ports(name, key, service, &ips, |n, p| n == port && p.eq_ignore_ascii_case(protocol))
                };
                if records.answers.is_empty() || kind == RecordType::SRV { records } else { self.no_data() }
            }
            [host] => {
                let named = endpoints().into_iter().filter(|e| e.host() == *host);
                let addresses: Vec<Ipv4Addr> = distinct(named.map(|e| e.address));
                if addresses.is_empty() { self.no_name() } else { self.addresses(name, kind, &addresses, limits::TTL_ENDPOINT_SECONDS) }
            }
            _ => self.no_name(),
        })
    }

    fn service_ports(&self, name: &Name, key: &Key, service: &Service, ips: &[Ipv4Addr], wanted: impl Fn(&str, &str) -> bool) -> Records {
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        let ports: Vec<u16> = ports
            .filter(|p| wanted(p.name.as_deref().unwrap_or(""), p.protocol.as_deref().unwrap_or("TCP")))
            .filter_map(|p| u16::try_from(p.port).ok())
            .collect();
        let Some(target) = self.service_name(key).filter(|_| !ports.is_empty()) else { return self.no_name() };
        let ttl = limits::TTL_SERVICE_SECONDS;
        Records {
            answers: self.service_records(name, ttl, ports.into_iter().map(|port| (port, target.clone()))),
            additionals: ips.iter().map(|ip| Record::from_rdata(target.clone(), ttl, RData::A(A(*ip)))).collect(),
            ..Records::default()
        }
    }

    fn endpoint_ports(&self, name: &Name, key: &Key, endpoints: &[Target], wanted: impl Fn(&TargetPort) -> bool) -> Records {
        let ttl = limits::TTL_ENDPOINT_SECONDS;
        let Some(service) = self.service_name(key) else { return self.no_name() };
        let mut answers: Vec<(u16, Name)> = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        for endpoint in endpoints {
            let Ok(target) = service.prepend_label(endpoint.host().as_bytes()) else { continue };
            let before = answers.len();
            answers.extend(endpoint.ports.iter().filter(|p| wanted(p)).map(|p| (p.number, target.clone())));
            let record = Record::from_rdata(target, ttl, RData::A(A(endpoint.address)));
            if answers.len() > before && !additionals.contains(&record) {
                additionals.push(record);
            }
        }
        if answers.is_empty() {
            return self.no_name();
        }
        Records { answers: self.service_records(name, ttl, answers.into_iter()), additionals, ..Records::default() }
    }

    fn service_records(&self, name: &Name, ttl: u32, ports: impl Iterator<Item = (u16, Name)>) -> Vec<Record> {
        let mut ports: Vec<(u16, Name)> = ports.collect();
        ports.sort();
        ports.dedup();
        // All of one priority share its weight of a hundred.
        let weight = u16::try_from(100 / ports.len().max(1)).unwrap_or(1).max(1);
        let record = |(port, target)| Record::from_rdata(name.clone(), ttl, RData::SRV(SRV::new(0, weight, port, target)));
        ports.into_iter().map(record).collect()
    }

    fn reverse(&self, name: &Name, address: Ipv4Addr, kind: RecordType) -> Answer {
        let mut targets: Vec<Name> = self.service_by_ip.get(&address).into_iter().flatten().filter_map(|key| self.service_name(key)).collect();
        let mut ttl = limits::TTL_SERVICE_SECONDS;
        if targets.is_empty() {
            ttl = limits::TTL_ENDPOINT_SECONDS;
            for key in self.services_by_endpoint.get(&address).into_iter().flat_map(BTreeMap::keys) {
                let Some(service) = self.services.get(key) else { continue };
                let here = self.endpoints(key, service).into_iter().filter(|e| e.address == address);
                let hosts = distinct(here.map(|e| e.host()));
                let names = hosts.iter().filter_map(|host| self.service_name(key)?.prepend_label(host.as_bytes()).ok());
                targets.extend(names);
            }
        }
        if targets.is_empty() {
            return Answer::Elsewhere;
        }
        Answer::Here(self.typed(name, kind, RecordType::PTR, || {
            targets.into_iter().map(|target| Record::from_rdata(name.clone(), ttl, RData::PTR(PTR(target)))).collect()
        }))
    }

    /// The Service's endpoints that may be used: the ready ones, or all where the Service says so.
    fn endpoints(&self, key: &Key, service: &Service) -> Vec<Target> {
        let all = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
        let mut targets = Vec::new();
        for slice in self.slices.get(key).into_iter().flat_map(BTreeMap::values).filter(|s| s.address_type == "IPv4") {
            let ports: Vec<TargetPort> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|p| {
                    Some(TargetPort {
                        name: p.name.clone().unwrap_or_default(),
                        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                        number: u16::try_from(p.port?).ok()?,
                    })
                })
                .collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let Some((ready, address, doubt)) = self.refined(slice, endpoint) else { continue };
                if ready || all {
                    let hostname = endpoint.hostname.clone().filter(|h| !h.is_empty()).map(|h| h.to_ascii_lowercase());
                    targets.push((doubt, Target { address, hostname, ports: ports.clone() }));
                }
            }
        }
        // Doubt alone never empties a Service.
        let least = targets.iter().map(|(doubt, _)| *doubt).min();
        targets.into_iter().filter(|(doubt, _)| Some(*doubt) == least).map(|(_, target)| target).collect()
    }

    /// Whether the endpoint is ready, where it is, and why it may be of no use.
    fn refined(&self, slice: &EndpointSlice, endpoint: &Endpoint) -> Option<(bool, Ipv4Addr, Doubt)> {
        let said = said(slice, endpoint)?;
        let Some(view) = &self.view else { return Some((said.ready, said.address, Doubt::None)) };
        let refined = view.refine(endpoint.node_name.as_deref(), pod(endpoint), said);
        Some((refined.ready, refined.address, refined.doubt))
    }

    fn addresses(&self, name: &Name, kind: RecordType, addresses: &[Ipv4Addr], ttl: u32) -> Records {
        self.typed(name, kind, RecordType::A, || addresses.iter().map(|ip| Record::from_rdata(name.clone(), ttl, RData::A(A(*ip)))).collect())
    }

    /// The records if they are of the type that was asked for, else that there are none of that type.
    fn typed(&self, _name: &Name, asked: RecordType, has: RecordType, records: impl FnOnce() -> Vec<Record>) -> Records {
        if asked == has || asked == RecordType::ANY { Records { answers: records(), ..Records::default() } } else { self.no_data() }
    }

    fn service_name(&self, key: &Key) -> Option<Name> {
        let below_domain = self.domain.prepend_label("svc").ok()?;
        below_domain.prepend_label(key.namespace.as_bytes()).ok()?.prepend_label(key.name.as_bytes()).ok()
    }

    fn own_server(&self) -> Name {
        let name = self.domain.prepend_label("dns").and_then(|name| name.prepend_label("ns"));
        name.unwrap_or_else(|_| self.domain.clone())
    }

    fn authority(&self) -> Record {
        let hostmaster = self.domain.prepend_label("hostmaster").unwrap_or_else(|_| self.domain.clone());
        let ttl = limits::TTL_ENDPOINT_SECONDS;
        let data = SOA::new(self.own_server(), hostmaster, self.serial, 7200, 1800, 86400, ttl);
        Record::from_rdata(self.domain.clone(), ttl, RData::SOA(data))
    }

    fn no_data(&self) -> Records {
        Records { authorities: vec![self.authority()], ..Records::default() }
    }

    fn no_name(&self) -> Records {
        Records { code: ResponseCode::NXDomain, authorities: vec![self.authority()], ..Records::default() }
    }
}

struct Target {
    address: Ipv4Addr,
    hostname: Option<String>,
    ports: Vec<TargetPort>,
}

#[derive(Clone)]
struct TargetPort {
    name: String,
    protocol: String,
    number: u16,
}

impl Target {
    fn host(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.address.to_string().replace('.', "-"))
    }
}

/// The name's labels, lower case, last first; `None` when one is not plain text (then it is not of this zone).
fn labels(name: &Name) -> Option<Vec<String>> {
    let mut labels: Vec<String> = Vec::with_capacity(usize::from(name.num_labels()));
    for label in name.iter() {
        labels.push(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
    }
    labels.reverse();
    Some(labels)
}

fn reverse_address(labels: &[String]) -> Option<Ipv4Addr> {
    let [arpa, in_addr, a, b, c, d] = labels else { return None };
    if arpa != "arpa" || in_addr != "in-addr" {
        return None;
    }
    Some(Ipv4Addr::new(a.parse().ok()?, b.parse().ok()?, c.parse().ok()?, d.parse().ok()?))
}

fn dashed_address(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

fn cluster_ips(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let spec = service.spec.as_ref();
    let external = spec.is_some_and(|s| s.type_.as_deref() == Some("ExternalName"));
    let listed = spec.filter(|_| !external).into_iter().flat_map(|s| s.cluster_ips.iter().flatten().chain(&s.cluster_ip));
    distinct(listed.filter_map(|ip| ip.parse().ok())).into_iter()
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

fn address(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    endpoint.addresses.first()?.parse().ok()
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.collect::<BTreeSet<T>>().into_iter().collect()
}

#[cfg(test)]
pub(crate) mod tests;
