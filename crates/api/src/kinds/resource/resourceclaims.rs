//! ResourceClaim of resource.k8s.io.

use super::devices;
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks, conditions,
        pod::scheduling,
        values::{each, fill, fill_zero, has, int, is_empty, list, made, map, member, put, shown, take, text, within},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::HashSet;

pub fn kind() -> Kind {
    Kind::namespaced("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims").status_alone().hooks(ResourceClaims)
}

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const CONSTRAINTS_MAX: usize = 32;
const RESULTS_MAX: usize = 32;
const CONSUMERS_MAX: usize = 256;
const CONDITIONS_MAX: usize = 8;
const DATA_BYTES_MAX: usize = 10 * 1024;
const INTERFACE_NAME_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;
const ADDRESSES_MAX: usize = 16;
const BAD_REQUEST_NAME: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

struct ResourceClaims;

/// Defaults of the spec of a claim, alone or in a template.
pub fn default_spec(spec: &mut Value) {
    let devices = made(spec, "devices");
    let request = |request: &mut Value| {
        fill(request, "allocationMode", "ExactCount");
        if text(request, "allocationMode") == "ExactCount" {
            fill_zero(request, "count", 1);
        }
        default_tolerations(request);
    };
    each(devices, "requests", |item| {
        within(item, "exactly", request);
        each(item, "firstAvailable", request);
    });
}

fn default_tolerations(request: &mut Value) {
    each(request, "tolerations", |toleration| fill(toleration, "operator", "Equal"));
}

impl Hooks for ResourceClaims {
    fn default(&self, claim: &mut Value) {
        default_spec(made(claim, "spec"));
        within(claim, "status", |status| {
            within(status, "allocation", |allocation| {
                within(allocation, "devices", |devices| each(devices, "results", default_tolerations));
            });
        });
    }
    fn prepare_create(&self, claim: &mut Value) {
        put(claim, "status", json!({}));
    }
    fn validate(&self, claim: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(claim), Path::new("spec"));
        match old.map(workload::spec) {
            Some(old) if old != spec => errors.invalid_structure(path, &internal::show("resource.v1.ResourceClaimSpec", spec), checks::IMMUTABLE),
            Some(_) => {}
            None => validate_spec(spec, &path, errors),
        }
    }
    /// What drivers have said of devices goes with these.
    fn prepare_status(&self, claim: &mut Value, old: &Value) {
        let mut gone = allocated(workload::status(old));
        for device in allocated(workload::status(claim)) {
            gone.remove(&device);
        }
        within(claim, "status", |status| {
            let kept: Vec<Value> = list(status, "devices").iter().filter(|device| !gone.contains(&device_id(device))).cloned().collect();
            match kept.is_empty() {
                true => drop(take(status, "devices")),
                false => put(status, "devices", kept),
            }
        });
    }
    fn validate_status(&self, claim: &Value, old: &Value, errors: &mut Errors) {
        status(claim, old, &Path::new("status"), errors);
    }
    fn cells(&self, claim: &Value, now_unix_s: i64) -> Vec<Value> {
        let status = workload::status(claim);
        let mut states = vec![];
        if claim.deletion_timestamp().is_some() {
            states.push("deleted");
        }
        if !has(status, "allocation") {
            if claim.deletion_timestamp().is_none() {
                states.push("pending");
            }
        } else {
            states.push("allocated");
            if !list(status, "reservedFor").is_empty() {
                states.push("reserved");
            }
        }
        vec![table::name(claim), json!(states.join(",")), table::age(claim, now_unix_s)]
    }
}

fn claim_devices(spec: &Value) -> &Value {
    spec.get("devices").unwrap_or(&Value::Null)
}
fn by_name(item: &Value) -> Value {
    json!(text(item, "name"))
}
fn itself(item: &Value) -> Value {
    item.clone()
}

/// What requests of a claim are called: each by its name, each of its alternatives by both.
type Requests<'a> = HashSet<(&'a str, Option<&'a str>)>;

fn requests_of(claim: &Value) -> Requests<'_> {
    let alternatives = |request| list(request, "firstAvailable").iter().map(|alternative| Some(text(alternative, "name")));
    let all = checks::by_name(list(claim, "requests"));
    all.into_iter().flat_map(|(name, request)| [None].into_iter().chain(alternatives(request)).map(move |second| (name, second))).collect()
}
fn request_reference(claim: &Requests, reference: &str, path: &Path, errors: &mut Errors) {
    let parts: Vec<&str> = reference.split('/').collect();
    if parts.len() > 2 {
        return errors.invalid(path.clone(), reference, BAD_REQUEST_NAME);
    }
    for part in parts {
        devices::label(part, path, errors);
    }
    if !claim.contains(&reference.split_once('/').map_or((reference, None), |(name, rest)| (name, Some(rest)))) {
        errors.invalid(path.clone(), reference, BAD_REQUEST_NAME);
    }
}
/// The requests that a constraint or configuration is for.
fn references(claim: &Requests, parent: &Value, path: &Path, errors: &mut Errors) {
    devices::each_once(list(parent, "requests"), REQUESTS_MAX, &path.child("requests"), errors, itself, |name, path, errors| {
        request_reference(claim, name.as_str().unwrap_or_default(), path, errors);
    });
}

/// Rules for the spec of a claim, alone or in a template.
pub fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let (claim, path) = (claim_devices(spec), path.child("devices"));
    let requests = &requests_of(claim);
    devices::each_once(list(claim, "requests"), REQUESTS_MAX, &path.child("requests"), errors, by_name, request);
    devices::each(list(claim, "constraints"), CONSTRAINTS_MAX, &path.child("constraints"), errors, |constraint, path, errors| {
        references(requests, constraint, path, errors);
        let attribute = ["matchAttribute", "distinctAttribute"].into_iter().find_map(|key| Some((key, member(constraint, key)?.as_str()?)));
        match attribute {
            Some((key, name)) => devices::fully_qualified_name(name, &path.child(key), errors),
            None => {
                errors.required(path.clone(), "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set")
            }
        }
    });
    devices::each(list(claim, "config"), devices::CONFIGS_MAX, &path.child("config"), errors, |config, path, errors| {
        references(requests, config, path, errors);
        devices::configuration(config, false, path, errors);
    });
}

fn request(request: &Value, path: &Path, errors: &mut Errors) {
    devices::label(text(request, "name"), &path.child("name"), errors);
    let alternatives = list(request, "firstAvailable");
    match (member(request, "exactly"), alternatives.is_empty()) {
        (None, true) => errors.required(path.clone(), "exactly one of `exactly` or `firstAvailable` is required"),
        (Some(_), false) => {
            errors.invalid(path.clone(), Value::Null, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")
        }
        (Some(exactly), true) => wanted(exactly, &path.child("exactly"), errors),
        (None, false) => {
            devices::each_once(alternatives, ALTERNATIVES_MAX, &path.child("firstAvailable"), errors, by_name, |alternative, path, errors| {
                devices::label(text(alternative, "name"), &path.child("name"), errors);
                wanted(alternative, path, errors);
            });
        }
    }
}
/// What is wanted: the class, by which selectors, how many.
fn wanted(request: &Value, path: &Path, errors: &mut Errors) {
    devices::class_name(text(request, "deviceClassName"), &path.child("deviceClassName"), errors);
    devices::selectors(list(request, "selectors"), false, &path.child("selectors"), errors);
    let count = int(request, "count").unwrap_or(0);
    match text(request, "allocationMode") {
        "All" if count != 0 => errors.invalid(path.child("count"), count, "must not be specified when allocationMode is 'All'"),
        "All" => {}
        "ExactCount" if count <= 0 => errors.invalid(path.child("count"), count, "must be greater than zero"),
        "ExactCount" => {}
        other => errors.not_supported(path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    for (i, toleration) in list(request, "tolerations").iter().enumerate() {
        devices::toleration(toleration, &path.child("tolerations").index(i), errors);
    }
}

/// The devices that a status says are the claim's.
fn allocated(status: &Value) -> HashSet<Value> {
    member(status, "allocation").map(|a| list(claim_devices(a), "results")).unwrap_or_default().iter().map(device_id).collect()
}

fn status(claim: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let (status, before) = (workload::status(claim), workload::status(old));
    let requests = requests_of(claim_devices(workload::spec(claim)));
    let consumers = list(status, "reservedFor");
    let uid = |consumer: &Value| json!(text(consumer, "uid"));
    devices::each_once(consumers, CONSUMERS_MAX, &path.child("reservedFor"), errors, uid, |consumer, path, errors| {
        for key in ["resource", "name", "uid"] {
            checks::required(consumer, key, path, errors);
        }
    });
    let (allocation, results) = (member(status, "allocation"), allocated(status));
    devices::each_once(list(status, "devices"), usize::MAX, &path.child("devices"), errors, device_id, |device, path, errors| {
        device_status(device, &results, path, errors);
    });
    if !consumers.is_empty() {
        let at = path.child("reservedFor");
        let known: HashSet<&Value> = list(before, "reservedFor").iter().collect();
        if allocation.is_none() {
            errors.forbidden(at, "may not be specified when `allocated` is not set");
        } else if claim.deletion_timestamp().is_some() && consumers.iter().any(|consumer| !known.contains(consumer)) {
            errors.forbidden(at, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set");
        }
    }
    let Some(allocation) = allocation else { return };
    let at = path.child("allocation");
    match member(before, "allocation") {
        Some(before) if before != allocation => {
            errors.invalid_structure(at, &internal::show("resource.v1.AllocationResult", allocation), checks::IMMUTABLE);
        }
        Some(_) => {}
        None => validate_allocation(allocation, &requests, &at, errors),
    }
}

fn validate_allocation(allocation: &Value, requests: &Requests, path: &Path, errors: &mut Errors) {
    let (allocated, at) = (claim_devices(allocation), path.child("devices"));
    devices::each(list(allocated, "results"), RESULTS_MAX, &at.child("results"), errors, |result, path, errors| {
        request_reference(requests, text(result, "request"), &path.child("request"), errors);
        device(result, path, errors);
        devices::binding_conditions(result, path, errors);
        for (i, toleration) in list(result, "tolerations").iter().enumerate() {
            devices::toleration(toleration, &path.child("tolerations").index(i), errors);
        }
        share_id(result, path, errors);
    });
    devices::each(list(allocated, "config"), 2 * devices::CONFIGS_MAX, &at.child("config"), errors, |config, path, errors| {
        checks::required_one_of(config, "source", &["FromClaim", "FromClass"], path, errors);
        references(requests, config, path, errors);
        devices::configuration(config, false, path, errors);
    });
    if let Some(selector) = member(allocation, "nodeSelector") {
        scheduling::node_selector(selector, &path.child("nodeSelector"), errors);
    }
}

fn device(device: &Value, path: &Path, errors: &mut Errors) {
    devices::driver_name(text(device, "driver"), &path.child("driver"), errors);
    devices::pool_name(text(device, "pool"), &path.child("pool"), errors);
    devices::label(text(device, "device"), &path.child("device"), errors);
}
fn share_id(device: &Value, path: &Path, errors: &mut Errors) {
    let Some(id) = member(device, "shareID").and_then(Value::as_str) else { return };
    let at = path.child("shareID");
    let groups: Vec<&str> = id.split('-').collect();
    let hexadecimal = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let shaped = groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|g| hexadecimal(g));
    if !shaped {
        let why = if id.len() == 36 { "invalid UUID format".to_string() } else { format!("invalid UUID length: {}", id.len()) };
        errors.invalid(at, id, &format!("error validating uid: {why}"));
    } else if id.bytes().any(|b| b.is_ascii_uppercase()) {
        errors.invalid(
            at,
            id,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters",
        );
    }
}
/// What tells a device, or a share of one, from others.
fn device_id(device: &Value) -> Value {
    let id = ["driver", "pool", "device"].map(|key| text(device, key)).join("/");
    match text(device, "shareID") {
        "" => json!(id),
        share => json!(format!("{id}/{share}")),
    }
}

fn device_status(reported: &Value, results: &HashSet<Value>, path: &Path, errors: &mut Errors) {
    device(reported, path, errors);
    share_id(reported, path, errors);
    let id = device_id(reported);
    if !results.contains(&id) {
        errors.invalid(path.clone(), id, "must be an allocated device in the claim");
    }
    let count = list(reported, "conditions").len();
    if count > CONDITIONS_MAX {
        errors.too_many(path.child("conditions"), count, CONDITIONS_MAX);
    }
    conditions::validate(reported, path, errors);
    if let Some(data) = reported.get("data").filter(|data| !data.is_null()) {
        devices::raw_object(Some(data), DATA_BYTES_MAX, &path.child("data"), errors);
    }
    let Some(network) = member(reported, "networkData") else { return };
    let path = path.child("networkData");
    for (key, max) in [("interfaceName", INTERFACE_NAME_BYTES_MAX), ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX)] {
        if text(network, key).len() > max {
            errors.too_long(path.child(key), "", max);
        }
    }
    devices::each_once(list(network, "ips"), ADDRESSES_MAX, &path.child("ips"), errors, itself, |address, path, errors| {
        let address = address.as_str().unwrap_or_default();
        interface_address(address, path, errors);
    });
}
/// An address with the length of its network's prefix.
fn interface_address(address: &str, path: &Path, errors: &mut Errors) {
    match checks::parse_cidr(address) {
        None => errors.invalid(path.clone(), address, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"),
        Some((ip, length)) => {
            let canonical = format!("{ip}/{length}");
            if canonical != address {
                errors.invalid(path.clone(), address, &format!("must be in canonical form ({canonical:?})"));
            }
        }
    }
}

/// Whether a request of the claim in `spec` asks for more than its own share; gives their places.
pub fn admin_requests(spec: &Value) -> Vec<usize> {
    let is_admin = |request: &Value| request.at("exactly.adminAccess").and_then(Value::as_bool) == Some(true);
    list(claim_devices(spec), "requests").iter().enumerate().filter(|(_, request)| is_admin(request)).map(|(i, _)| i).collect()
}

/// Metadata of a template: labels and annotations, and nothing that is one claim's own.
pub fn template_metadata(metadata: &Value, path: &Path, errors: &mut Errors) {
    checks::annotations(map(metadata, "annotations"), &path.child("annotations"), errors);
    checks::labels(map(metadata, "labels"), &path.child("labels"), errors);
    for key in [
        "name",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "ownerReferences",
        "managedFields",
    ] {
        let said = shown(metadata, key);
        if !is_empty(&said) && said != json!(0) {
            errors.forbidden(path.child(key), "cannot be set");
        }
    }
}
