//! Ingress of networking.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{has, int, list, made, member, put, shown, strings, text},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("networking.k8s.io", "v1", "Ingress", "ingresses").short(&["ing"]).generation().status().hooks(Ingresses)
}

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const HOSTS_SHOWN_MAX: usize = 3;

struct Ingresses;

impl Hooks for Ingresses {
    fn default(&self, ingress: &mut Value) {
        made(ingress, "spec");
    }
    fn prepare_create(&self, ingress: &mut Value) {
        put(ingress, "status", json!({"loadBalancer": {}}));
    }
    fn validate(&self, ingress: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(ingress), Path::new("spec"));
        if list(spec, "rules").is_empty() && !has(spec, "defaultBackend") {
            errors.invalid(path.clone(), shown(spec, "rules"), "either `defaultBackend` or `rules` must be specified");
        }
        if let Some(backend) = member(spec, "defaultBackend") {
            validate_backend(backend, &path.child("defaultBackend"), errors);
        }
        for (i, rule) in list(spec, "rules").iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
        for (i, tls) in list(spec, "tls").iter().enumerate() {
            for (j, name) in strings(tls, "hosts").enumerate() {
                let at = path.child("tls").index(i).child("hosts").index(j);
                errors.invalid_all(&at, name, host_name(name));
            }
            checks::checked(tls, "secretName", &path.child("tls").index(i), names::dns1123_subdomain, errors);
        }
        if let Some(class) = member(spec, "ingressClassName").and_then(Value::as_str) {
            errors.invalid_all(&path.child("ingressClassName"), class, names::dns1123_subdomain(class));
            if let (None, Some(annotation)) = (old, ingress.annotation(CLASS_ANNOTATION))
                && annotation != class
            {
                errors.invalid(Path::new("annotations").child(CLASS_ANNOTATION), annotation, "must match `ingressClassName` when both are specified");
            }
        }
    }
    fn validate_status(&self, ingress: &Value, _old: &Value, errors: &mut Errors) {
        let addresses = workload::status(ingress).at("loadBalancer").map(|balancer| list(balancer, "ingress")).unwrap_or_default();
        checks::load_balancer_addresses(addresses, false, &Path::new("status").child("loadBalancer").child("ingress"), errors);
    }
    fn warnings(&self, ingress: &Value, old: Option<&Value>) -> Vec<String> {
        let named = old.is_none() && ingress.annotation(CLASS_ANNOTATION).is_some() && !has(workload::spec(ingress), "ingressClassName");
        named.then(|| format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead")).into_iter().collect()
    }
    fn cells(&self, ingress: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(ingress), workload::status(ingress));
        let class = spec.str_at("ingressClassName").unwrap_or("<none>");
        let addresses: Vec<&str> = workload::load_balancer_addresses(status).into_iter().collect();
        let ports = if list(spec, "tls").is_empty() { "80" } else { "80, 443" };
        vec![table::name(ingress), json!(class), json!(hosts(spec)), json!(addresses.join(",")), json!(ports), table::age(ingress, now_unix_s)]
    }
}

fn hosts(spec: &Value) -> String {
    let rules = list(spec, "rules");
    let (mut hosts, mut more) = (vec![], false);
    for rule in rules {
        // After the last that is shown a rule counts even if it names no host; the count is that of the rules.
        more |= hosts.len() == HOSTS_SHOWN_MAX;
        if !more && !text(rule, "host").is_empty() {
            hosts.push(text(rule, "host"));
        }
    }
    match hosts.join(",") {
        none if none.is_empty() => "*".into(),
        shown if more => format!("{shown} + {} more...", rules.len() - HOSTS_SHOWN_MAX),
        shown => shown,
    }
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { checks::wildcard_subdomain(host) } else { names::dns1123_subdomain(host) }
}

fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let host = text(rule, "host");
    if !host.is_empty() {
        let at = path.child("host");
        if checks::sloppy_ip(host).is_some() {
            errors.invalid(at.clone(), host, "must be a DNS name, not an IP address");
        }
        errors.invalid_all(&at, host, host_name(host));
    }
    let Some(http) = member(rule, "http") else { return };
    let at = path.child("http").child("paths");
    if list(http, "paths").is_empty() {
        errors.required(at.clone(), "");
    }
    for (i, one) in list(http, "paths").iter().enumerate() {
        let path = at.index(i);
        let value = text(one, "path");
        if !has(one, "pathType") {
            errors.required(path.child("pathType"), "pathType must be specified");
            continue;
        }
        match text(one, "pathType") {
            "Exact" | "Prefix" => {
                let at = path.child("path");
                if !value.starts_with('/') {
                    errors.invalid(at.clone(), value, "must be an absolute path");
                }
                if !value.is_empty() {
                    for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| value.contains(**part)) {
                        errors.invalid(at.clone(), value, &format!("must not contain '{part}'"));
                    }
                    for end in ["/..", "/."].iter().filter(|end| value.ends_with(**end)) {
                        errors.invalid(at.clone(), value, &format!("cannot end with '{end}'"));
                    }
                }
            }
            "ImplementationSpecific" => {
                if !value.is_empty() && !value.starts_with('/') {
                    errors.invalid(path.child("path"), value, "must be an absolute path");
                }
            }
            other => errors.not_supported(path.child("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]),
        }
        validate_backend(one.get("backend").unwrap_or(&Value::Null), &path.child("backend"), errors);
    }
}

fn validate_backend(backend: &Value, path: &Path, errors: &mut Errors) {
    match (member(backend, "service"), member(backend, "resource")) {
        (Some(_), Some(_)) => errors.invalid(path.clone(), "", "cannot set both resource and service backends"),
        (None, Some(resource)) => {
            let path = path.child("resource");
            super::ingressclasses::typed_reference(resource, &path, errors);
        }
        (None, None) => errors.invalid(path.clone(), "", "resource or service backend is required"),
        (Some(service), None) => {
            let at = path.child("service");
            checks::required_checked(service, "name", &at, names::dns1123_label, errors);
            let nothing = Value::Null;
            let port = service.get("port").unwrap_or(&nothing);
            let (name, number) = (text(port, "name"), int(port, "number").unwrap_or(0));
            let at = at.child("port");
            if !name.is_empty() && number != 0 {
                errors.invalid(path.clone(), "", "cannot set both port name & port number");
            } else if !name.is_empty() {
                errors.invalid_all(&at.child("name"), name, checks::port_name(name));
            } else if number != 0 {
                checks::port_number(number, &at.child("number"), errors);
            } else {
                errors.required(path.clone(), "port name or number is required");
            }
        }
    }
}
