//! Requests and limits of containers and pods: sums, quality of service, checks.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{entries, has, list, member, text},
    },
    names,
    quantity::Quantity,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Quantities by resource name.
pub type Resources = BTreeMap<String, Quantity>;

fn read(resources: &Value, key: &str) -> Resources {
    entries(resources, key).filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?))).collect()
}
fn add(sums: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        let sum = sums.get(name).map_or(*quantity, |sum| sum.add(quantity));
        sums.insert(name.clone(), sum);
    }
}
fn at_least(sums: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        if sums.get(name).is_none_or(|sum| sum < quantity) {
            sums.insert(name.clone(), *quantity);
        }
    }
}

/// What all containers of a pod need together: the sum of those that run side by side, or more if an init container
/// needs more before them.
fn aggregate(spec: &Value, key: &str) -> Resources {
    let of = |container: &Value| container.get("resources").map(|r| read(r, key)).unwrap_or_default();
    let mut sums = Resources::new();
    for container in list(spec, "containers") {
        add(&mut sums, &of(container));
    }
    let (mut sidecars, mut peak) = (Resources::new(), Resources::new());
    for container in list(spec, "initContainers") {
        let mut needs = of(container);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sums, &needs);
            add(&mut sidecars, &needs);
            needs = sidecars.clone();
        } else {
            add(&mut needs, &sidecars);
        }
        at_least(&mut peak, &needs);
    }
    at_least(&mut sums, &peak);
    sums
}
/// Requests of all containers together.
pub fn aggregate_requests(spec: &Value) -> Resources {
    aggregate(spec, "requests")
}

/// Resources that may be said for the pod as a whole.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn quality_of_service(spec: &Value) -> &'static str {
    let compute = |resources: &Value, key: &str| -> Resources {
        read(resources, key).into_iter().filter(|(name, quantity)| matches!(name.as_str(), "cpu" | "memory") && quantity.sign() > 0).collect()
    };
    let pod_level = member(spec, "resources").filter(|r| has(r, "requests") || has(r, "limits"));
    let all: Vec<&Value> = match pod_level {
        Some(resources) => vec![resources],
        None => {
            ["containers", "initContainers"].into_iter().flat_map(|key| list(spec, key)).map(|c| c.get("resources").unwrap_or(&Value::Null)).collect()
        }
    };
    let (mut requests, mut limits, mut guaranteed) = (Resources::new(), Resources::new(), true);
    for resources in all {
        let (container_requests, container_limits) = (compute(resources, "requests"), compute(resources, "limits"));
        add(&mut requests, &container_requests);
        add(&mut limits, &container_limits);
        guaranteed &= ["cpu", "memory"].iter().all(|name| container_limits.contains_key(*name));
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    guaranteed &= requests.len() == limits.len() && requests.iter().all(|(name, quantity)| limits.get(name) == Some(quantity));
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Whether a resource name has no domain of its own: Kubernetes' own resources.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}
/// What is wrong with the name of a resource of a container.
pub fn container_resource_name(name: &str) -> Vec<String> {
    let mut problems = names::qualified_name(name);
    if problems.is_empty() && !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        problems.push("must be a standard resource for containers".into());
        problems.insert(0, "must be a standard resource type or fully qualified".into());
    } else if problems.is_empty() && name.contains('/') && !is_native(name) && name.starts_with("requests.") {
        problems.push("doesn't follow extended resource name standard".into());
    }
    problems
}
/// What is wrong with the name of any resource.
pub fn resource_name(name: &str) -> Vec<String> {
    let mut problems = names::qualified_name(name);
    if problems.is_empty() && !name.contains('/') && !crate::kinds::core::resourcequotas::is_quota_name(name) && name != "storage" {
        problems.push("must be a standard resource type or fully qualified".into());
    }
    problems
}
/// Whether more of a resource may be promised than there is.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}
fn whole_only(name: &str) -> bool {
    !(STANDARD.contains(&name) || name.starts_with("hugepages-"))
}

/// Checks the resources of one container. `claims` are the names of the pod's resource claims.
pub fn validate(resources: &Value, path: &Path, claims: &[&str], errors: &mut Errors) {
    let mut quantities = |key: &str| {
        let path = path.child(key);
        let mut read = Resources::new();
        for (name, value) in entries(resources, key) {
            errors.invalid_all(&path, name.as_str(), container_resource_name(name));
            if let Some(quantity) = checks::quantity_not_negative(value, &path.key(name), errors) {
                if whole_only(name) && quantity.milli() % 1000 != 0 {
                    errors.invalid(path.key(name), quantity.to_string(), "must be an integer");
                }
                read.insert(name.clone(), quantity);
            }
        }
        read
    };
    let limits = quantities("limits");
    let requests = quantities("requests");
    for (name, request) in &requests {
        match limits.get(name) {
            Some(limit) if request != limit && !overcommits(name) => {
                errors.invalid(path.child("requests"), request.to_string(), &format!("must be equal to {name} limit of {limit}"))
            }
            Some(limit) if request > limit => {
                errors.invalid(path.child("requests"), request.to_string(), &format!("must be less than or equal to {name} limit of {limit}"))
            }
            None if !overcommits(name) => errors.required(path.child("limits"), "Limit must be set for non overcommitable resources"),
            _ => {}
        }
    }
    let huge = |r: &Resources| r.keys().any(|name| name.starts_with("hugepages-"));
    let base = |r: &Resources| r.contains_key("cpu") || r.contains_key("memory");
    if (huge(&limits) || huge(&requests)) && !base(&limits) && !base(&requests) {
        errors.forbidden(path.clone(), "HugePages require cpu or memory");
    }
    for (i, claim) in list(resources, "claims").iter().enumerate() {
        let path = path.child("claims").index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else if list(resources, "claims")[..i].iter().any(|c| text(c, "name") == name && text(c, "request") == text(claim, "request")) {
            errors.duplicate(path, name);
        } else if !claims.contains(&name) {
            let detail = if claims.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_string()
            } else {
                "must be one of the names in pod.spec.resourceClaims".to_string()
            };
            checks::not_found(path, name, &detail, errors);
        }
    }
}

/// Checks resources said for the pod as a whole.
pub fn validate_pod_level(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(resources) = member(spec, "resources") else { return };
    if list(resources, "claims").iter().next().is_some() {
        errors.forbidden(path.child("claims"), "claims cannot be set for Resources at pod-level");
    }
    for key in ["limits", "requests"] {
        let path = path.child(key);
        for (name, value) in entries(resources, key) {
            if !is_pod_level(name) {
                errors.not_supported(path.key(name), name.as_str(), &["cpu", "hugepages-", "memory"]);
            }
            checks::quantity_not_negative(value, &path.key(name), errors);
        }
    }
    let (limits, requests) = (read(resources, "limits"), read(resources, "requests"));
    for (name, request) in &requests {
        if let Some(limit) = limits.get(name).filter(|limit| request > *limit) {
            errors.invalid(path.child("requests"), request.to_string(), &format!("must be less than or equal to {name} limit of {limit}"));
        }
    }
    for (name, sum) in aggregate_requests(spec) {
        if let Some(request) = requests.get(&name).filter(|request| **request < sum) {
            errors.invalid(
                path.child("requests").key(&name),
                request.to_string(),
                &format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
    for containers in ["initContainers", "containers"] {
        for (i, container) in list(spec, containers).iter().enumerate() {
            for (name, limit) in container.get("resources").map(|r| read(r, "limits")).unwrap_or_default() {
                if let Some(pod) = limits.get(&name).filter(|pod| limit > **pod) {
                    let path = Path::new("spec").child(containers).index(i).child("resources").child("limits").key(&name);
                    errors.invalid(path, limit.to_string(), &format!("must be less than or equal to pod limits of {pod}"));
                }
            }
        }
    }
}

/// `resizePolicy` of a container that restarts by `restart_policy`.
pub fn validate_resize_policy(container: &Value, restart_policy: &str, path: &Path, errors: &mut Errors) {
    const RESTART_POLICIES: [&str; 2] = ["NotRequired", "RestartContainer"];
    let path = path.child("resizePolicy");
    let mut seen = vec![];
    for (i, policy) in list(container, "resizePolicy").iter().enumerate() {
        let name = text(policy, "resourceName");
        if seen.contains(&name) {
            errors.duplicate(path.index(i), name);
        }
        seen.push(name);
        match name {
            "cpu" | "memory" => {}
            "" => errors.required(path.clone(), ""),
            other => errors.not_supported(path.clone(), other, &["cpu", "memory"]),
        }
        let restart = text(policy, "restartPolicy");
        match restart {
            "" => errors.required(path.clone(), ""),
            known if RESTART_POLICIES.contains(&known) => {}
            other => errors.not_supported(path.clone(), other, &RESTART_POLICIES),
        }
        if restart_policy == "Never" && restart != "NotRequired" {
            errors.invalid(path.clone(), restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

/// Names of the claims that a pod declares.
pub fn claim_names(spec: &Value) -> Vec<&str> {
    list(spec, "resourceClaims").iter().map(|claim| text(claim, "name")).collect()
}

/// Checks `resourceClaims` of a pod.
pub fn validate_claims(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let path = path.child("resourceClaims").index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else if list(spec, "resourceClaims")[..i].iter().any(|c| text(c, "name") == name) {
            errors.duplicate(path.child("name"), name);
        } else {
            errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
        }
        let sources = [text(claim, "resourceClaimName"), text(claim, "resourceClaimTemplateName")];
        let go = |s: &str| if s.is_empty() { Value::Null } else { s.into() };
        let shown = serde_json::json!({"Name": name, "ResourceClaimName": go(sources[0]), "ResourceClaimTemplateName": go(sources[1])});
        match sources.iter().filter(|s| !s.is_empty()).count() {
            0 => errors.invalid(path.clone(), shown, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            2 => errors.invalid(path.clone(), shown, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            _ => {}
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            checks::checked(claim, key, &path, names::dns1123_subdomain, errors);
        }
    }
}
