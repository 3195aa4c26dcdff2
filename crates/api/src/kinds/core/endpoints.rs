//! Endpoints.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{each, fill, int, list, member, text},
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Endpoints", "endpoints").short(&["ep"]).create_on_update().hooks(Endpoints)
}

/// Addresses that a cell shows before it only counts.
pub const SHOWN_MAX: usize = 3;

/// The first few of `count`, and how many more there are.
pub fn first_few(all: impl Iterator<Item = String>, count: usize) -> String {
    let shown = all.take(SHOWN_MAX).collect::<Vec<_>>().join(",");
    match count.checked_sub(SHOWN_MAX) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

struct Endpoints;

impl Hooks for Endpoints {
    fn default(&self, endpoints: &mut Value) {
        each(endpoints, "subsets", |subset| each(subset, "ports", |port| fill(port, "protocol", "TCP")));
    }
    fn validate(&self, endpoints: &Value, old: Option<&Value>, errors: &mut Errors) {
        // What was good once stays good.
        if old.is_some_and(|old| old.get("subsets") == endpoints.get("subsets")) {
            return;
        }
        for (i, subset) in list(endpoints, "subsets").iter().enumerate() {
            let path = Path::new("subsets").index(i);
            if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
                errors.required(path.clone(), "must specify `addresses` or `notReadyAddresses`");
            }
            for key in ["addresses", "notReadyAddresses"] {
                for (i, address) in list(subset, key).iter().enumerate() {
                    let path = path.child(key).index(i);
                    let ip = text(address, "ip");
                    let problems = checks::ip(ip);
                    let parses = checks::sloppy_ip(ip).is_some();
                    errors.invalid_all(&path.child("ip"), ip, problems);
                    checks::checked(address, "hostname", &path, names::dns1123_label, errors);
                    if let Some(node) = member(address, "nodeName").and_then(Value::as_str) {
                        errors.invalid_all(&path.child("nodeName"), node, names::dns1123_subdomain(node));
                    }
                    if parses {
                        errors.invalid_all(&path.child("ip"), ip, checks::not_special_ip(ip));
                    } else {
                        errors.invalid(path.child("ip"), ip, "must be a valid IP address");
                    }
                }
            }
            let ports = list(subset, "ports");
            for (i, port) in ports.iter().enumerate() {
                let path = path.child("ports").index(i);
                if text(port, "name").is_empty() {
                    if ports.len() > 1 {
                        errors.required(path.child("name"), "");
                    }
                } else {
                    checks::checked(port, "name", &path, names::dns1123_label, errors);
                }
                checks::port_number(int(port, "port").unwrap_or(0), &path.child("port"), errors);
                checks::protocol(port, &path, errors);
                if let Some(protocol) = member(port, "appProtocol").and_then(Value::as_str) {
                    errors.invalid_all(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
                }
            }
        }
    }
    fn warnings(&self, endpoints: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut all = vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_string()];
        // Those of the controller are of addresses that it has put right.
        if endpoints.label("endpoints.kubernetes.io/managed-by") == Some("endpoint-controller") {
            return all;
        }
        for (i, subset) in list(endpoints, "subsets").iter().enumerate() {
            for key in ["addresses", "notReadyAddresses"] {
                let path = Path::new("subsets").index(i).child(key);
                let addresses = list(subset, key).iter().enumerate();
                all.extend(addresses.filter_map(|(j, address)| checks::ip_warning(text(address, "ip"), &path.index(j).child("ip"))));
            }
        }
        all
    }
    fn cells(&self, endpoints: &Value, now_unix_s: i64) -> Vec<Value> {
        let subsets = list(endpoints, "subsets");
        // Each port of each address is one: of the many that may be, only those that are shown are made.
        let count = subsets.iter().map(|subset| list(subset, "addresses").len() * list(subset, "ports").len().max(1)).sum();
        let all = subsets.iter().flat_map(|subset| {
            let addresses = |port: Option<i64>| {
                list(subset, "addresses").iter().map(move |address| match (text(address, "ip"), port) {
                    (ip, None) => ip.to_string(),
                    (ip, Some(number)) if ip.contains(':') => format!("[{ip}]:{number}"),
                    (ip, Some(number)) => format!("{ip}:{number}"),
                })
            };
            let ports = list(subset, "ports");
            let alone = ports.is_empty().then_some(None);
            alone.into_iter().chain(ports.iter().map(|port| Some(int(port, "port").unwrap_or(0)))).flat_map(addresses)
        });
        let shown = if subsets.is_empty() { "<none>".into() } else { first_few(all, count) };
        vec![table::name(endpoints), json!(shown), table::age(endpoints, now_unix_s)]
    }
}
