//! The status of a pod: what its node may say, and what it may not take back.

use crate::{
    field::{Errors, Path},
    internal,
    kinds::{
        checks,
        values::{has, int, list, member, put, text},
        workload,
    },
    names,
    object::ObjectExt,
};
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
};

/// Conditions of Kubernetes itself.
const CONDITIONS: &[&str] = &["PodScheduled", "Ready", "Initialized"];
const NOT_NEGATIVE: &str = "must be a non-negative integer";

/// What was seen once stays seen if a writer does not know of it.
pub fn keep_observed_generations(pod: &mut Value, old: &Value) {
    let generation = |value: &Value| int(value, "observedGeneration").unwrap_or(0);
    let before = workload::status(old).clone();
    let Some(status) = pod.get_mut("status").filter(|status| status.is_object()) else { return };
    if generation(status) == 0 && generation(&before) != 0 {
        put(status, "observedGeneration", generation(&before));
    }
    // Of several of a type each is kept for one, in their order.
    let mut known: HashMap<&str, VecDeque<i64>> = HashMap::new();
    for one in list(&before, "conditions") {
        known.entry(text(one, "type")).or_default().push_back(generation(one));
    }
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(seen) = known.get_mut(text(condition, "type")).and_then(VecDeque::pop_front) else { continue };
        if generation(condition) == 0 && seen != 0 {
            put(condition, "observedGeneration", seen);
        }
    }
}

/// Rules for a write to `/status`.
pub fn validate(pod: &Value, old: &Value, errors: &mut Errors) {
    super::update::validate_annotations(pod, old, errors);
    let path = Path::new("status");
    let (status, before, spec) = (workload::status(pod), workload::status(old), workload::spec(old));
    for (i, condition) in list(status, "conditions").iter().enumerate() {
        let (path, kind) = (path.child("conditions").index(i), text(condition, "type"));
        if let Some(seen) = int(condition, "observedGeneration").filter(|seen| *seen < 0) {
            errors.invalid(path.child("observedGeneration"), seen, NOT_NEGATIVE);
        }
        if !CONDITIONS.contains(&kind) {
            errors.invalid_all(&path.child("Type"), kind, names::qualified_name(kind));
        }
    }
    let nominated = text(status, "nominatedNodeName");
    if !nominated.is_empty() && nominated != text(before, "nominatedNodeName") {
        let path = path.child("nominatedNodeName");
        errors.invalid_all(&path, nominated, names::dns1123_subdomain(nominated));
        if !text(spec, "nodeName").is_empty() {
            errors.forbidden(path, "may not be set on pods that are already bound to a node");
        }
    }
    if let Some(seen) = int(status, "observedGeneration").filter(|seen| *seen < 0) {
        errors.invalid(path.child("observedGeneration"), seen, NOT_NEGATIVE);
    }
    if text(status, "qosClass") != text(before, "qosClass") {
        errors.invalid(path.child("qosClass"), text(status, "qosClass"), checks::IMMUTABLE);
    }
    if !all_may_restart(spec) {
        for (statuses, containers) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
            let by_name = checks::by_name(list(spec, containers));
            let may = |name: &str, exit_code: i64| by_name.get(name).is_some_and(|one| may_restart(one, spec, exit_code));
            transitions(list(status, statuses), list(before, statuses), may, &path.child(statuses), errors);
        }
    }
    let statuses = "ephemeralContainerStatuses";
    transitions(list(status, statuses), list(before, statuses), |_, _| false, &path.child(statuses), errors);
    claims(list(status, "resourceClaimStatuses"), list(spec, "resourceClaims"), &path.child("resourceClaimStatuses"), errors);
    pod_ips(status, before, &path, errors);
    host_ips(status, before, &path, errors);
    for key in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(list(status, key), spec, &path.child(key), errors);
    }
    for (i, _) in list(status, statuses).iter().enumerate().filter(|(_, one)| !list(one, "allocatedResourcesStatus").is_empty()) {
        errors.forbidden(path.child(statuses).index(i).child("allocatedResourcesStatus"), "must not be specified in container status");
    }
}

/// Whether some container, when it ends, may begin all of them anew.
fn all_may_restart(spec: &Value) -> bool {
    let rules = ["containers", "initContainers"].into_iter().flat_map(|key| list(spec, key)).flat_map(|one| list(one, "restartPolicyRules"));
    rules.into_iter().any(|rule| text(rule, "action") == "RestartAllContainers")
}

/// Whether a container that has ended so may run again.
fn may_restart(container: &Value, spec: &Value, exit_code: i64) -> bool {
    let by_policy = |policy: &str| match policy {
        "Always" => Some(true),
        "OnFailure" => Some(exit_code != 0),
        "Never" => Some(false),
        _ => None,
    };
    if has(container, "restartPolicy") {
        let matches = |rule: &&Value| {
            let Some(codes) = member(rule, "exitCodes") else { return false };
            let named = list(codes, "values").iter().any(|code| code.as_i64() == Some(exit_code));
            matches!((text(codes, "operator"), named), ("In", true) | ("NotIn", false))
        };
        if list(container, "restartPolicyRules").iter().find(matches).is_some_and(|rule| text(rule, "action").starts_with("Restart")) {
            return true;
        }
        if let Some(answer) = by_policy(text(container, "restartPolicy")) {
            return answer;
        }
    }
    by_policy(text(spec, "restartPolicy")).unwrap_or(true)
}

/// What has ended for good does not run again.
fn transitions(new: &[Value], old: &[Value], may: impl Fn(&str, i64) -> bool, path: &Path, errors: &mut Errors) {
    let ended = |status: &Value| status.at("state.terminated").filter(|state| !state.is_null()).cloned();
    let running: HashSet<&str> = new.iter().filter(|now| ended(now).is_none()).map(|now| text(now, "name")).collect();
    for (i, before) in old.iter().enumerate() {
        let Some(state) = ended(before) else { continue };
        let name = text(before, "name");
        if running.contains(name) && !may(name, int(&state, "exitCode").unwrap_or(0)) {
            errors.forbidden(path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(statuses: &[Value], claims: &[Value], path: &Path, errors: &mut Errors) {
    let known = checks::by_name(claims);
    for (i, status, again) in checks::distinct(statuses, |status| text(status, "name")) {
        let (path, name) = (path.index(i), text(status, "name"));
        if !known.contains_key(name) {
            errors.invalid(path.child("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if again {
            errors.duplicate(path.child("name"), name);
        }
        if let Some(Value::String(claim)) = member(status, "resourceClaimName") {
            errors.invalid_all(&path.child("resourceClaimName"), claim.as_str(), names::dns1123_subdomain(claim));
        }
    }
}

/// Addresses that are new are good ones, and there is one of each family. Gives all of them.
fn addresses<'a>(status: &'a Value, before: &Value, key: &str, path: &Path, errors: &mut Errors) -> Vec<&'a str> {
    let ips: Vec<&str> = list(status, key).iter().map(|ip| text(ip, "ip")).collect();
    let known: HashSet<&str> = list(before, key).iter().map(|old| text(old, "ip")).collect();
    for (i, ip) in ips.iter().enumerate().filter(|(_, ip)| !known.contains(*ip)) {
        errors.invalid_all(&path.index(i), *ip, checks::ip(ip));
    }
    ips
}
fn one_per_family(status: &Value, key: &str, message: &str, path: &Path, errors: &mut Errors) {
    let ips: Vec<Option<IpAddr>> = list(status, key).iter().map(|ip| checks::sloppy_ip(text(ip, "ip"))).collect();
    if ips.len() < 2 {
        return;
    }
    if let Some(wrong) = ips.iter().position(Option::is_none) {
        let shown = text(&list(status, key)[wrong], "ip").to_string();
        errors.internal(path.clone(), &format!("failed to check for dual stack with error:invalid IP[{wrong}]: <nil> ({shown})"));
    }
    let both = [true, false].iter().all(|v4| ips.iter().flatten().any(|ip| ip.is_ipv4() == *v4));
    if !both || ips.len() > 2 || ips.iter().any(Option::is_none) {
        errors.invalid_structure(path.clone(), &internal::show_all(message, list(status, key)), "may specify no more than one IP for each IP family");
    }
}

fn pod_ips(status: &Value, before: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("podIPs");
    let ips = addresses(status, before, "podIPs", &path, errors);
    one_per_family(status, "podIPs", "core.v1.PodIP", &path, errors);
    let first = text(status, "podIP");
    if first.is_empty() != ips.is_empty() {
        let shown = if ips.is_empty() { internal::Tree::Leaf(Value::Null) } else { internal::show_all("core.v1.PodIP", list(status, "podIPs")) };
        errors.invalid_structure(path, &shown, "podIP and podIPs must either both be set or both be unset");
    } else if let Some(ip) = ips.first().filter(|ip| **ip != first) {
        errors.invalid(path.index(0).child("ip"), *ip, "must be equal to `podIP`");
    }
}
fn host_ips(status: &Value, before: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("hostIPs");
    if let Some(first) = list(status, "hostIPs").first().map(|ip| text(ip, "ip")).filter(|ip| *ip != text(status, "hostIP")) {
        errors.invalid(path.index(0).child("ip"), first, "must be equal to `hostIP`");
    }
    addresses(status, before, "hostIPs", &path, errors);
    one_per_family(status, "hostIPs", "core.v1.HostIP", &path, errors);
}

/// Who containers run as, on Linux.
fn users(statuses: &[Value], spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, status) in statuses.iter().enumerate() {
        let Some(linux) = status.get("user").and_then(|user| member(user, "linux")) else { continue };
        let path = path.index(i).child("user").child("linux");
        match text(spec.get("os").unwrap_or(&Value::Null), "name") {
            "windows" => errors.forbidden(path, "cannot be set for a windows pod"),
            "" | "linux" => {
                for key in ["uid", "gid"] {
                    super::security::id(int(linux, key), path.child(key), errors);
                }
                for (j, group) in list(linux, "supplementalGroups").iter().enumerate() {
                    super::security::id(group.as_i64(), path.child("supplementalGroups").index(j), errors);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(spec: Value, before: Value, status: Value) -> String {
        let (old, new) = (json!({"spec": spec, "status": before}), json!({"spec": spec, "status": status}));
        let mut errors = Errors::default();
        validate(&new, &old, &mut errors);
        errors.to_string()
    }

    #[test]
    fn what_has_ended_for_good_does_not_run_again() {
        let spec = |policy: &str, own: Value| json!({"restartPolicy": policy, "containers": [own]});
        let state = |state: Value| json!({"containerStatuses": [{"name": "c", "state": state}]});
        let ended = |code: i64| state(json!({"terminated": {"exitCode": code}}));
        let (runs, again) =
            (state(json!({"running": {}})), "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state");
        let rules = json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}},
        ]});
        for (spec, code, wanted) in [
            (spec("Always", json!({"name": "c"})), 0, "[]"),
            (spec("OnFailure", json!({"name": "c"})), 1, "[]"),
            (spec("OnFailure", json!({"name": "c"})), 0, again),
            (spec("Always", rules.clone()), 42, "[]"),
            (spec("Always", rules), 1, again),
        ] {
            assert_eq!(said(spec, ended(code), runs.clone()), wanted);
        }
    }

    #[test]
    fn addresses_are_one_of_each_family() {
        let ips = |ips: &[&str]| json!(ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>());
        let status = |first: &str, all: &[&str]| json!({"podIP": first, "podIPs": ips(all)});
        let check = |status: Value, wanted: &str| assert_eq!(said(json!({}), json!({}), status), wanted);
        check(status("10.0.0.1", &["10.0.0.1", "fd00::1"]), "[]");
        check(status("10.0.0.2", &["10.0.0.1"]), "status.podIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `podIP`");
        check(
            status("10.0.0.1", &["10.0.0.1", "10.0.0.2"]),
            "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family",
        );
    }
}
