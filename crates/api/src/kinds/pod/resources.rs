//! Requests and limits of containers and pods: sums, quality of service, checks.

use crate::{
    field::{Errors, Path},
    internal,
    kinds::{
        checks,
        core::resourcequotas,
        values::{entries, has, list, member, text},
    },
    names,
    object::ObjectExt,
    quantity::Quantity,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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

/// Limits of all containers together.
pub fn aggregate_limits(spec: &Value) -> Resources {
    aggregate(spec, "limits")
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
const HUGE_PAGES: &str = "hugepages-";

/// Whether a resource name has no domain of its own: Kubernetes' own resources.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}
/// What is wrong with the name of a resource of a container.
pub fn container_resource_name(name: &str) -> Vec<String> {
    let mut problems = resource_name(name);
    if !name.contains('/') {
        if !STANDARD.contains(&name) && !is_huge_pages(name) {
            problems.push("must be a standard resource for containers".into());
        }
    } else if !is_native(name) && !is_extended(name) {
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
pub fn is_huge_pages(name: &str) -> bool {
    name.starts_with(HUGE_PAGES)
}
/// Whether a resource is one of somebody's domain, which Kubernetes only counts.
fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}
/// Whether more of a resource may be promised than there is.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}
/// Whether a resource is counted in whole numbers.
fn whole_only(name: &str) -> bool {
    resourcequotas::COUNTED.contains(&name) || is_extended(name)
}
/// The amount of a resource: not negative, and whole where it is counted.
pub fn quantity(name: &str, value: &Value, path: &Path, errors: &mut Errors) -> Option<Quantity> {
    let quantity = checks::quantity_not_negative(value, path, errors)?;
    if whole_only(name) && quantity.milli() % 1000 != 0 {
        errors.invalid(path.clone(), quantity.to_string(), "must be an integer");
    }
    Some(quantity)
}
/// Huge pages come in whole pages.
fn whole_pages(name: &str, quantity: Quantity) -> bool {
    let page = name.strip_prefix(HUGE_PAGES).and_then(|size| Quantity::parse(size).ok());
    page.is_some_and(|page| page.sign() > 0 && page.milli() % 1000 == 0 && quantity.milli() % page.milli() == 0)
}

/// Checks the resources of one container. `claims` are those of its pod.
pub fn validate(resources: &Value, path: &Path, claims: &Claims, errors: &mut Errors) {
    requirements(resources, false, path, errors);
    claims_of(list(resources, "claims"), claims, &path.child("claims"), errors);
}

/// Limits and requests of a container, or of a pod as a whole.
fn requirements(resources: &Value, whole_pod: bool, path: &Path, errors: &mut Errors) {
    let one = |name: &str, value: &Value, path: &Path, errors: &mut Errors| {
        let problems = if whole_pod { resource_name(name) } else { container_resource_name(name) };
        if whole_pod && problems.is_empty() && !is_pod_level(name) {
            errors.not_supported(path.clone(), name, &["cpu", HUGE_PAGES, "memory"]);
        }
        errors.invalid_all(path, name, problems);
        quantity(name, value, path, errors)
    };
    let pages = |name: &str, quantity: Quantity, path: &Path, errors: &mut Errors| {
        if is_huge_pages(name) && !whole_pages(name, quantity) {
            errors.invalid(path.clone(), quantity.to_string(), &format!("{quantity} is not positive integer multiple of {name}"));
        }
    };
    let mut limits = Resources::new();
    for (name, value) in entries(resources, "limits") {
        let at = path.child("limits").key(name);
        if let Some(quantity) = one(name, value, &at, errors) {
            pages(name, quantity, &at, errors);
            limits.insert(name.clone(), quantity);
        }
    }
    for (name, value) in entries(resources, "requests") {
        let at = path.child("requests").key(name);
        let Some(request) = one(name, value, &at, errors) else { continue };
        match limits.get(name) {
            Some(limit) if request != *limit && !overcommits(name) => {
                errors.invalid(path.child("requests"), request.to_string(), &format!("must be equal to {name} limit of {limit}"))
            }
            Some(limit) if request > *limit => {
                errors.invalid(path.child("requests"), request.to_string(), &format!("must be less than or equal to {name} limit of {limit}"))
            }
            None if !overcommits(name) => errors.required(path.child("limits"), "Limit must be set for non overcommitable resources"),
            _ => {}
        }
        pages(name, request, &at, errors);
    }
    let any = |what: fn(&str) -> bool| ["limits", "requests"].iter().any(|key| entries(resources, key).any(|(name, _)| what(name)));
    if any(is_huge_pages) && !any(|name| matches!(name, "cpu" | "memory")) {
        errors.forbidden(path.clone(), "HugePages require cpu or memory");
    }
}

/// Which of the pod's claims a container uses: each whole, or by its requests, and nothing twice.
fn claims_of(claims: &[Value], known: &Claims, path: &Path, errors: &mut Errors) {
    let (mut used, mut counts) = (HashSet::new(), HashMap::new());
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.required(path, "");
            continue;
        }
        if used.contains(&(name, "")) {
            errors.duplicate(path.clone(), name);
        } else {
            if !request.is_empty() {
                errors.invalid_all(&path.child("request"), request, names::dns1123_label(request));
            }
            if used.contains(&(name, request)) {
                errors.duplicate(path.clone(), format!("{name}/{request}"));
            } else if request.is_empty() {
                for _ in 0..counts.get(name).copied().unwrap_or(0) {
                    errors.duplicate(path.clone(), name);
                }
            }
            used.insert((name, request));
            *counts.entry(name).or_insert(0) += 1;
        }
        if !known.0.contains(name) && !errors.is_full() {
            let names = known.0.iter().copied().collect::<Vec<&str>>().join(", ");
            let names = if names.is_empty() { " which is empty".to_string() } else { format!(": {names}") };
            checks::not_found(path, name, &format!("must be one of the names in pod.spec.resourceClaims{names}"), errors);
        }
    }
}

/// Checks resources said for the pod as a whole.
pub fn validate_pod_level(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(resources) = member(spec, "resources") else { return };
    if spec.get("os").is_some_and(|os| text(os, "name") == "windows") {
        return errors.forbidden(path.clone(), "may not be set for a windows pod");
    }
    if has(resources, "claims") {
        errors.forbidden(path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(resources, true, path, errors);
    claims_of(list(resources, "claims"), &Claims::of(spec), &path.child("claims"), errors);
    let (limits, requests) = (read(resources, "limits"), read(resources, "requests"));
    for (name, sum) in aggregate_requests(spec) {
        if let Some(request) = requests.get(&name).filter(|request| **request < sum) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(path.child("requests").key(&name), request.to_string(), &why);
        }
    }
    for (name, sum) in aggregate_limits(spec).into_iter().filter(|(name, _)| is_huge_pages(name)) {
        if let Some(limit) = limits.get(&name).filter(|limit| **limit < sum) {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.invalid(path.child("limits").key(&name), limit.to_string(), &why);
        }
    }
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (name, limit) in container.get("resources").map(|r| read(r, "limits")).unwrap_or_default() {
            if let Some(pod) = limits.get(&name).filter(|pod| limit > **pod) {
                let at = path.child("containers").index(i).key(&name).child("limits");
                errors.invalid(at, limit.to_string(), &format!("must be less than or equal to pod limits of {pod}"));
            }
        }
    }
}

/// `resizePolicy` of a container in a pod that restarts by `restart_policy`.
pub fn validate_resize_policy(container: &Value, restart_policy: &str, path: &Path, errors: &mut Errors) {
    const RESTART_POLICIES: [&str; 2] = ["NotRequired", "RestartContainer"];
    let path = path.child("resizePolicy");
    for (i, policy, again) in checks::distinct(list(container, "resizePolicy"), |policy| text(policy, "resourceName")) {
        let name = text(policy, "resourceName");
        if again {
            errors.duplicate(path.index(i), name);
        }
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
            errors.invalid(path.clone(), restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

/// Names of the claims that a pod declares.
#[derive(Default)]
pub struct Claims<'a>(BTreeSet<&'a str>);

impl<'a> Claims<'a> {
    pub fn of(spec: &'a Value) -> Claims<'a> {
        Claims(list(spec, "resourceClaims").iter().map(|claim| text(claim, "name")).filter(|name| !name.is_empty()).collect())
    }
}

/// Checks `resourceClaims` of a pod.
pub fn validate_claims(spec: &Value, pod: Option<&Value>, path: &Path, errors: &mut Errors) {
    let mut known = HashSet::new();
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let path = path.child("resourceClaims").index(i);
        if pod.is_some_and(|pod| pod.annotation(super::update::MIRROR).is_some()) {
            errors.forbidden(Path::new("[]"), "static pods do not support resource claims");
            continue;
        }
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else if !known.insert(name) {
            errors.duplicate(path.child("name"), name);
        } else {
            errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"].map(|key| member(claim, key));
        let shown = || internal::show("core.v1.PodResourceClaim", claim);
        match sources.iter().flatten().count() {
            0 => errors.invalid_structure(path.clone(), &shown(), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            2 => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid_structure(path.clone(), &shown(), why);
            }
            _ => {}
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(Value::String(name)) = member(claim, key) {
                errors.invalid_all(&path.child(key), name.as_str(), names::dns1123_subdomain(name));
            }
        }
    }
}
