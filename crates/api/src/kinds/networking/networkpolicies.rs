//! NetworkPolicy of networking.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{each, fill_absent, int, list, made, member, put, strings, text},
        workload,
    },
    selector, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies").short(&["netpol"]).generation().hooks(NetworkPolicies)
}

struct NetworkPolicies;

impl Hooks for NetworkPolicies {
    fn default(&self, policy: &mut Value) {
        let spec = made(policy, "spec");
        for direction in ["ingress", "egress"] {
            each(spec, direction, |rule| each(rule, "ports", |port| fill_absent(port, "protocol", "TCP")));
        }
        made(spec, "podSelector");
        if list(spec, "policyTypes").is_empty() {
            let types = if list(spec, "egress").is_empty() { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
            put(spec, "policyTypes", types);
        }
    }
    fn validate(&self, policy: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(policy), Path::new("spec"));
        if let Some(pods) = member(spec, "podSelector") {
            selector::validate(pods, &path.child("podSelector"), errors);
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in list(spec, direction).iter().enumerate() {
                let path = path.child(direction).index(i);
                for (i, port) in list(rule, "ports").iter().enumerate() {
                    validate_port(port, &path.child("ports").index(i), errors);
                }
                for (i, peer) in list(rule, peers).iter().enumerate() {
                    validate_peer(peer, &path.child(peers).index(i), errors);
                }
            }
        }
        let types = list(spec, "policyTypes");
        if types.len() > 2 {
            errors.invalid(path.child("policyTypes"), Value::from(types.to_vec()), "may not specify more than two policyTypes");
            return;
        }
        for (i, kind) in strings(spec, "policyTypes").enumerate() {
            if !matches!(kind, "Ingress" | "Egress") {
                errors.not_supported(path.child("policyTypes").index(i), kind, &["Ingress", "Egress"]);
            }
        }
    }
    fn warnings(&self, policy: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut all = vec![];
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in list(workload::spec(policy), direction).iter().enumerate() {
                for (j, peer) in list(rule, peers).iter().enumerate() {
                    let Some(block) = member(peer, "ipBlock") else { continue };
                    let path = Path::new("spec").child(direction).index(i).child(peers).index(j).child("ipBlock");
                    all.extend(checks::cidr_warning(text(block, "cidr"), &path.child("cidr")));
                    let except = strings(block, "except").enumerate();
                    all.extend(except.filter_map(|(k, range)| checks::cidr_warning(range, &path.child("except").index(k))));
                }
            }
        }
        all
    }
    fn cells(&self, policy: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(policy), json!(table::selector_text(workload::spec(policy).get("podSelector"))), table::age(policy, now_unix_s)]
    }
}

fn validate_port(port: &Value, path: &Path, errors: &mut Errors) {
    checks::one_of(port, "protocol", &["TCP", "UDP", "SCTP"], path, errors);
    let (at, end) = (path.child("endPort"), int(port, "endPort"));
    match (member(port, "port"), end) {
        (None, Some(end)) => errors.invalid(at, end, "may not be specified when `port` is not specified"),
        (None, None) => {}
        (Some(Value::String(name)), end) => {
            if let Some(end) = end {
                errors.invalid(at, end, "may not be specified when `port` is non-numeric");
            }
            errors.invalid_all(&path.child("port"), name.as_str(), checks::port_name(name));
        }
        (Some(start), end) => {
            let start = start.as_i64().unwrap_or(0);
            checks::port_number(start, &path.child("port"), errors);
            let Some(end) = end else { return };
            if end < start {
                errors.invalid(at.clone(), start, "must be greater than or equal to `port`");
            }
            checks::port_number(end, &at, errors);
        }
    }
}

fn validate_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(value) = member(peer, key) {
            count += 1;
            selector::validate(value, &path.child(key), errors);
        }
    }
    if let Some(block) = member(peer, "ipBlock") {
        count += 1;
        validate_block(block, &path.child("ipBlock"), errors);
        if count > 1 {
            errors.forbidden(path.clone(), "may not specify both ipBlock and another peer");
        }
    }
    if count == 0 {
        errors.required(path.clone(), "must specify a peer");
    }
}

fn validate_block(block: &Value, path: &Path, errors: &mut Errors) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        errors.required(path.child("cidr"), "");
        return;
    }
    let problems = checks::cidr(cidr);
    let outer = checks::parse_cidr(cidr);
    errors.invalid_all(&path.child("cidr"), cidr, problems);
    let Some((outer, length)) = outer else { return };
    for (i, except) in strings(block, "except").enumerate() {
        let at = path.child("except").index(i);
        errors.invalid_all(&at, except, checks::cidr(except));
        if let Some((inner, inner_length)) = checks::parse_cidr(except) {
            let within =
                inner.is_ipv4() == outer.is_ipv4() && checks::network_of(inner, length) == checks::network_of(outer, length) && inner_length > length;
            if !within {
                errors.invalid(at, except, "must be a strict subset of `cidr`");
            }
        }
    }
}
