//! The checks of a pod spec, wherever it stands.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{flag, has, int, list, map, member, strings, text},
    },
    names,
};
use serde_json::Value;

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const HOST_NAME_CHARS_MAX: usize = 64;
const DNS_NAMESERVERS_MAX: usize = 3;
const DNS_SEARCH_PATHS_MAX: usize = 32;
const DNS_SEARCH_CHARS_MAX: usize = 2048;

fn dns(spec: &Value, path: &Path, errors: &mut Errors) {
    let policy = text(spec, "dnsPolicy");
    let at = path.child("dnsConfig");
    let config = member(spec, "dnsConfig");
    let servers = config.map(|c| list(c, "nameservers")).unwrap_or_default();
    if policy == "None" {
        if config.is_none() {
            errors.required(at.clone(), "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        } else if servers.is_empty() {
            errors.required(at.child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None");
            return;
        }
    }
    let Some(config) = config else { return };
    if servers.len() > DNS_NAMESERVERS_MAX {
        errors.invalid(at.child("nameservers"), Value::from(servers.to_vec()), &format!("must not have more than {DNS_NAMESERVERS_MAX} nameservers"));
    }
    for (i, server) in strings(config, "nameservers").enumerate() {
        errors.invalid_all(&at.child("nameservers").index(i), server, checks::ip(server));
    }
    let searches: Vec<&str> = strings(config, "searches").collect();
    if searches.len() > DNS_SEARCH_PATHS_MAX {
        errors.invalid(at.child("searches"), searches.clone(), &format!("must not have more than {DNS_SEARCH_PATHS_MAX} search paths"));
    }
    if searches.join(" ").len() > DNS_SEARCH_CHARS_MAX {
        errors.invalid(
            at.child("searches"),
            searches.clone(),
            &format!("must not have more than {DNS_SEARCH_CHARS_MAX} characters (including spaces) in the search list"),
        );
    }
    for (i, search) in searches.iter().enumerate() {
        if *search == "." {
            continue;
        }
        let name = search.strip_suffix('.').unwrap_or(search);
        errors.invalid_all(&at.child("searches").index(i), name, names::dns1123_subdomain_with_underscores(name));
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(at.child("options").index(i), "must not be empty");
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        let ip = text(alias, "ip");
        errors.invalid_all(&path.child("ip"), ip, checks::ip(ip));
        for (j, name) in strings(alias, "hostnames").enumerate() {
            errors.invalid_all(&path.child("hostnames").index(j), name, names::dns1123_subdomain(name));
        }
    }
}

/// A name for the pod's host that is none of the pod's own.
fn host_name_override(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(Value::String(name)) = member(spec, "hostnameOverride") else { return };
    let at = path.child("hostnameOverride");
    if flag(spec, "setHostnameAsFQDN") {
        errors.forbidden(at.clone(), "may not be specified when setHostnameAsFQDN is true");
    }
    if flag(spec, "hostNetwork") {
        errors.forbidden(at.clone(), "may not be specified when hostNetwork is true");
    }
    if name.len() > HOST_NAME_CHARS_MAX {
        errors.too_long(at.clone(), name.as_str(), HOST_NAME_CHARS_MAX);
    }
    errors.invalid_all(&at, name.as_str(), names::dns1123_subdomain(name));
}

/// Checks a pod spec at `path`. `pod` is the pod that it belongs to; there is none for a template's.
pub fn validate(spec: &Value, pod: Option<&Value>, path: &Path, errors: &mut Errors) {
    if int(spec, "terminationGracePeriodSeconds").is_none() {
        errors.required(path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = super::volumes::validate(spec, pod, path, errors);
    super::resources::validate_claims(spec, pod, path, errors);
    super::containers::validate(spec, &volumes, path, errors);
    super::resources::validate_pod_level(spec, &path.child("resources"), errors);
    super::containers::host_network_ports(spec, pod.is_some(), path, errors);
    match text(spec, "restartPolicy") {
        "" => errors.required(path.child("restartPolicy"), ""),
        _ => checks::one_of(spec, "restartPolicy", RESTART_POLICIES, path, errors),
    }
    match text(spec, "dnsPolicy") {
        "" => errors.required(path.child("dnsPolicy"), ""),
        _ => checks::one_of(spec, "dnsPolicy", DNS_POLICIES, path, errors),
    }
    checks::labels(map(spec, "nodeSelector"), &path.child("nodeSelector"), errors);
    super::security::validate_pod(spec, path, errors);
    if let Some(affinity) = member(spec, "affinity") {
        super::scheduling::affinity(affinity, &path.child("affinity"), errors);
    }
    dns(spec, path, errors);
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        errors.invalid_all(&path.child("readinessGates").index(i).child("conditionType"), kind, names::qualified_name(kind));
    }
    super::scheduling::gates(spec, path, errors);
    super::scheduling::topology_spread(spec, path, errors);
    super::security::host_processes(spec, path, errors);
    super::security::host_users(spec, path, errors);
    host_name_override(spec, path, errors);
    checks::checked(spec, "serviceAccountName", path, names::dns1123_subdomain, errors);
    checks::checked(spec, "nodeName", path, names::dns1123_subdomain, errors);
    if let Some(seconds) = int(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.invalid(path.child("activeDeadlineSeconds"), seconds, "must be between 1 and 2147483647, inclusive");
    }
    checks::checked(spec, "hostname", path, names::dns1123_label, errors);
    checks::checked(spec, "subdomain", path, names::dns1123_label, errors);
    super::scheduling::tolerations(list(spec, "tolerations"), &path.child("tolerations"), errors);
    host_aliases(spec, path, errors);
    checks::checked(spec, "priorityClassName", path, names::dns1123_subdomain, errors);
    if let Some(Value::String(class)) = member(spec, "runtimeClassName") {
        errors.invalid_all(&path.child("runtimeClassName"), class.as_str(), names::dns1123_subdomain(class));
    }
    match member(spec, "preemptionPolicy").and_then(Value::as_str) {
        Some("") => errors.required(path.child("preemptionPolicy"), ""),
        _ => checks::one_of(spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path, errors),
    }
    if let Some(overhead) = member(spec, "overhead") {
        super::resources::validate(&serde_json::json!({"limits": overhead}), &path.child("overhead"), &super::resources::Claims::default(), errors);
    }
    super::security::validate_os(spec, path, errors);
    super::environment::file_volumes(spec, path, errors);
}

/// What is asked of a pod itself, but not of a template.
pub fn validate_pod(pod: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    super::annotations::validate(metadata, spec, &Path::new("metadata").child("annotations"), errors);
    validate(spec, Some(pod), path, errors);
    if text(spec, "serviceAccountName").is_empty() {
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            let sources = member(volume, "projected").map(|projected| list(projected, "sources")).unwrap_or_default();
            for (j, _) in sources.iter().enumerate().filter(|(_, source)| has(source, "serviceAccountToken")) {
                let at = path.child("volumes").index(i).child("projected").child("sources").index(j).child("serviceAccountToken");
                errors.forbidden(at, "must not be specified when serviceAccountName is not set");
            }
        }
    }
    checks::not_negative(spec, "terminationGracePeriodSeconds", path, errors);
    for key in ["containers", "initContainers"] {
        for (i, container) in list(spec, key).iter().enumerate() {
            super::containers::trimmed_image(container, &path.child(key).index(i), errors);
        }
    }
}
