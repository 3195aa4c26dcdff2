//! The checks of a pod spec, wherever it stands.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{flag, int, list, map, member, strings, text},
    },
    names,
};
use serde_json::Value;

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const DNS_NAMESERVERS_MAX: usize = 3;
const DNS_SEARCH_PATHS_MAX: usize = 32;
const DNS_SEARCH_CHARS_MAX: usize = 2048;

fn dns(spec: &Value, path: &Path, errors: &mut Errors) {
    let policy = text(spec, "dnsPolicy");
    match policy {
        "" => errors.required(path.child("dnsPolicy"), ""),
        _ => checks::one_of(spec, "dnsPolicy", DNS_POLICIES, path, errors),
    }
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
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        errors.invalid_all(&at.child("searches").index(i), *search, names::dns1123_subdomain(&name));
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(at.child("options").index(i), "must not be empty");
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for alias in list(spec, "hostAliases") {
        let path = path.child("hostAliases");
        let ip = text(alias, "ip");
        errors.invalid_all(&path.child("ip"), ip, checks::ip(ip));
        for name in strings(alias, "hostnames") {
            errors.invalid_all(&path.child("hostnames"), name, names::dns1123_subdomain(name));
        }
    }
}

/// Checks a pod spec at `path`.
pub fn validate(spec: &Value, path: &Path, errors: &mut Errors) {
    match int(spec, "terminationGracePeriodSeconds") {
        None => errors.required(path.child("terminationGracePeriodSeconds"), ""),
        Some(seconds) if seconds < 0 => errors.invalid(path.child("terminationGracePeriodSeconds"), seconds, checks::NOT_NEGATIVE),
        Some(_) => {}
    }
    let volumes = super::volumes::validate(spec, path, errors);
    super::resources::validate_claims(spec, path, errors);
    super::containers::validate(spec, &volumes, path, errors);
    super::resources::validate_pod_level(spec, &path.child("resources"), errors);
    checks::required_one_of(spec, "restartPolicy", RESTART_POLICIES, path, errors);
    dns(spec, path, errors);
    super::security::validate_pod(spec, path, errors);
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        errors.invalid_all(&path.child("readinessGates").index(i).child("conditionType"), kind, names::qualified_name(kind));
    }
    super::scheduling::validate(spec, path, errors);
    checks::checked(spec, "serviceAccountName", path, names::dns1123_subdomain, errors);
    checks::checked(spec, "hostname", path, names::dns1123_label, errors);
    checks::checked(spec, "subdomain", path, names::dns1123_label, errors);
    if let Some(Value::String(name)) = member(spec, "hostnameOverride") {
        let at = path.child("hostnameOverride");
        if flag(spec, "setHostnameAsFQDN") {
            errors.forbidden(at.clone(), "may not be specified when setHostnameAsFQDN is true");
        }
        if flag(spec, "hostNetwork") {
            errors.forbidden(at.clone(), "may not be specified when hostNetwork is true");
        }
        errors.invalid_all(&at, name.as_str(), names::dns1123_subdomain(name));
        if name.len() > 64 {
            errors.too_long(at, name.as_str(), 64);
        }
    }
    host_aliases(spec, path, errors);
    checks::checked(spec, "priorityClassName", path, names::dns1123_subdomain, errors);
    checks::checked(spec, "runtimeClassName", path, names::dns1123_subdomain, errors);
    checks::one_of(spec, "preemptionPolicy", &["Never", "PreemptLowerPriority"], path, errors);
    for (name, value) in map(spec, "overhead").into_iter().flatten() {
        checks::quantity_not_negative(value, &path.child("overhead").key(name), errors);
    }
    super::security::validate_os(spec, path, errors);
}
