//! EndpointSlice of discovery.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        core::endpoints::first_few,
        values::{each, fill_absent, has, int, list, made, member, put, strings, take, text},
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub fn kind() -> Kind {
    Kind::namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
        .generation()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(EndpointSlices)
}

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
/// Zones or nodes for which an endpoint is meant.
const HINTS_MAX: usize = 8;
/// The controllers of clusters that make slices.
const CONTROLLERS: &[&str] = &["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];

struct EndpointSlices;

/// A list without ports is none.
fn no_ports(slice: &mut Value) {
    if list(slice, "ports").is_empty() {
        put(slice, "ports", Value::Null);
    }
}

/// The field of an older version is not stored.
fn no_topology(slice: &mut Value) {
    each(slice, "endpoints", |endpoint| {
        take(endpoint, "deprecatedTopology");
    });
}

impl Hooks for EndpointSlices {
    fn default(&self, slice: &mut Value) {
        each(slice, "ports", |port| {
            if !has(port, "name") {
                put(port, "name", "");
            }
            fill_absent(port, "protocol", "TCP");
        });
        each(slice, "endpoints", |endpoint| {
            made(endpoint, "conditions");
        });
        for key in ["endpoints", "ports"] {
            if !has(slice, key) {
                put(slice, key, Value::Null);
            }
        }
    }
    fn prepare_create(&self, slice: &mut Value) {
        no_topology(slice);
        no_ports(slice);
    }
    /// Labels count as content here: they say whose endpoints these are.
    fn prepare_update(&self, slice: &mut Value, old: &Value) {
        no_topology(slice);
        no_ports(slice);
        if slice.labels() != old.labels() {
            slice.set("metadata.generation", old.generation() + 1);
        }
    }
    fn validate(&self, slice: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = Path::root();
        let kind = text(slice, "addressType");
        checks::required_one_of(slice, "addressType", &["FQDN", "IPv4", "IPv6"], &root, errors);
        let endpoints = list(slice, "endpoints");
        if endpoints.len() > ENDPOINTS_MAX {
            errors.too_many(root.child("endpoints"), endpoints.len(), ENDPOINTS_MAX);
        } else {
            for (i, endpoint) in endpoints.iter().enumerate() {
                validate_endpoint(endpoint, kind, &root.child("endpoints").index(i), errors);
            }
        }
        let ports = list(slice, "ports");
        if ports.len() > PORTS_MAX {
            errors.too_many(root.child("ports"), ports.len(), PORTS_MAX);
        } else {
            validate_ports(ports, &root.child("ports"), errors);
        }
        if let Some(old) = old {
            checks::immutable(slice.get("addressType"), old.get("addressType"), &root.child("addressType"), errors);
        }
    }
    fn warnings(&self, slice: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = vec![];
        if old.is_none() && text(slice, "addressType") == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".into());
        }
        // Those of the controllers are of addresses that they have put right.
        if slice.label("endpointslice.kubernetes.io/managed-by").is_some_and(|manager| CONTROLLERS.contains(&manager)) {
            return warnings;
        }
        for (i, endpoint) in list(slice, "endpoints").iter().enumerate() {
            for (j, address) in strings(endpoint, "addresses").enumerate() {
                let path = Path::new("endpoints").index(i).child("addresses").index(j);
                warnings.extend(checks::ip_warning(address, &path));
            }
        }
        warnings
    }
    fn cells(&self, slice: &Value, now_unix_s: i64) -> Vec<Value> {
        let port = |port| int(port, "port").map_or_else(|| port.str_at("name").unwrap_or("*").to_string(), |number| number.to_string());
        let ports = list(slice, "ports");
        let addresses = || list(slice, "endpoints").iter().flat_map(|endpoint| strings(endpoint, "addresses"));
        let or_unset = |shown: String| if shown.is_empty() { json!("<unset>") } else { json!(shown) };
        let ports = or_unset(first_few(ports.iter().map(port), ports.len()));
        let addresses = or_unset(first_few(addresses().map(String::from), addresses().count()));
        vec![table::name(slice), json!(text(slice, "addressType")), ports, addresses, table::age(slice, now_unix_s)]
    }
}

fn validate_ports(ports: &[Value], path: &Path, errors: &mut Errors) {
    let mut names_seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "name");
        checks::checked(port, "name", &path, names::dns1123_label, errors);
        if !names_seen.insert(name) {
            errors.duplicate(path.child("name"), name);
        }
        checks::supported(port, "protocol", checks::PROTOCOLS, &path, errors);
        checked_if_there(port, "appProtocol", &path, names::qualified_name, errors);
    }
}

/// A string that is there is checked, even if it is empty.
fn checked_if_there(parent: &Value, key: &str, path: &Path, check: impl Fn(&str) -> Vec<String>, errors: &mut Errors) {
    if let Some(value) = member(parent, key).and_then(Value::as_str) {
        errors.invalid_all(&path.child(key), value, check(value));
    }
}

/// A name of at least two parts at `path`.
fn domain_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = names::dns1123_subdomain(name);
    if !problems.is_empty() {
        return errors.invalid(path.clone(), name, &problems.join(","));
    }
    if !name.contains('.') {
        return errors.invalid(path.clone(), name, "should be a domain with at least two segments separated by dots");
    }
    if let Some((label, problems)) = name.split('.').map(|label| (label, names::dns1123_label(label))).find(|(_, p)| !p.is_empty()) {
        errors.invalid(path.clone(), label, &problems.join(","));
    }
}

fn validate_endpoint(endpoint: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let addresses: Vec<&str> = strings(endpoint, "addresses").collect();
    if addresses.is_empty() {
        errors.required(path.child("addresses"), "must contain at least 1 address");
    } else if addresses.len() > ADDRESSES_MAX {
        errors.too_many(path.child("addresses"), addresses.len(), ADDRESSES_MAX);
    }
    for (i, address) in addresses.iter().enumerate() {
        let at = path.child("addresses").index(i);
        match kind {
            "IPv4" | "IPv6" => {
                let problems = checks::ip(address);
                if problems.is_empty() && address.contains(':') != (kind == "IPv6") {
                    let detail = if kind == "IPv4" { "must be an IPv4 address" } else { "must be an IPv6 address" };
                    errors.invalid(path.child("addresses"), *address, detail);
                } else if problems.is_empty() {
                    errors.invalid_all(&at, *address, checks::not_special_ip(address));
                }
                errors.invalid_all(&at, *address, problems);
            }
            "FQDN" => domain_name(address, &at, errors),
            _ => {}
        }
    }
    checked_if_there(endpoint, "nodeName", path, names::dns1123_subdomain, errors);
    checked_if_there(endpoint, "hostname", path, names::dns1123_label, errors);
    let Some(hints) = member(endpoint, "hints") else { return };
    for key in ["forZones", "forNodes"] {
        let all = list(hints, key);
        if all.len() > HINTS_MAX {
            errors.too_many(path.child("hints").child(key), all.len(), HINTS_MAX);
            continue;
        }
        for (i, hint, again) in checks::distinct(all, |hint| text(hint, "name")) {
            let at = path.child("hints").child(key).index(i).child("name");
            let name = text(hint, "name");
            if again {
                errors.duplicate(at.clone(), name);
            }
            errors.invalid_all(&at, name, if key == "forZones" { names::label_value(name) } else { names::dns1123_subdomain(name) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_names_have_at_least_two_parts() {
        for (name, problem) in
            [("a.example", ""), ("a.example.", ""), ("a", "should be a domain with at least two segments separated by dots"), ("", "Required value")]
        {
            let mut errors = Errors::default();
            domain_name(name, &Path::new("at"), &mut errors);
            assert!(errors.to_string().ends_with(problem) && errors.is_empty() == problem.is_empty(), "{name}: {errors}");
        }
    }
}
