//! ResourceSlice of resource.k8s.io: devices of a pool, as their driver reports them.

use super::devices;
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::scheduling,
        values::{each, fill, flag, has, int, list, made, map, member, shown, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    quantity::Quantity,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")
        .generation()
        .selectable(&["spec.nodeName", "spec.driver"])
        .hooks(ResourceSlices)
}

const DEVICES_MAX: usize = 128;
/// Devices where any has taints, consumes counters, or lists of values.
const RICH_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMED_SETS_MAX: usize = 2;
const ATTRIBUTES_MAX: usize = 32;
const VALUES_MAX: usize = 48;
const VALUE_BYTES_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const OPTIONS_MAX: usize = 10;
const ONE_OF_NODES: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const ONE_OF_DEVICE_NODES: &str =
    "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
/// Lists of values that an attribute may have instead of one.
const LISTS: &[&str] = &["bools", "ints", "strings", "versions"];

struct ResourceSlices;

impl Hooks for ResourceSlices {
    fn default(&self, slice: &mut Value) {
        let spec = made(slice, "spec");
        each(spec, "devices", |device| {
            for capacity in device.get_mut("capacity").and_then(Value::as_object_mut).into_iter().flat_map(|c| c.values_mut()) {
                within(capacity, "requestPolicy", |policy| {
                    within(policy, "validRange", |range| {
                        if !has(range, "min") {
                            fill(range, "min", "0");
                        }
                    })
                });
            }
        });
    }
    fn prepare_create(&self, slice: &mut Value) {
        add_taint_times(slice);
    }
    fn prepare_update(&self, slice: &mut Value, _old: &Value) {
        add_taint_times(slice);
    }
    fn validate(&self, slice: &Value, old: Option<&Value>, errors: &mut Errors) {
        validate_spec(workload::spec(slice), old.map(workload::spec), &Path::new("spec"), errors);
    }
    fn cells(&self, slice: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(slice);
        vec![
            table::name(slice),
            json!(text(spec, "nodeName")),
            json!(text(spec, "driver")),
            json!(spec.str_at("pool.name").unwrap_or_default()),
            table::age(slice, now_unix_s),
        ]
    }
}

/// A taint says since when it is there. A slice has no clock: the object's own time is the only one at hand.
fn add_taint_times(slice: &mut Value) {
    let Some(now) = slice.creation_timestamp().map(String::from) else { return };
    within(slice, "spec", |spec| {
        each(spec, "devices", |device| {
            each(device, "taints", |taint| fill(taint, "timeAdded", now.as_str()));
        });
    });
}

fn validate_spec(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    devices::driver_name(text(spec, "driver"), &path.child("driver"), errors);
    let (pool, at) = (spec.get("pool").unwrap_or(&Value::Null), path.child("pool"));
    devices::pool_name(text(pool, "name"), &at.child("name"), errors);
    let (count, generation) = (int(pool, "resourceSliceCount").unwrap_or(0), int(pool, "generation").unwrap_or(0));
    if count <= 0 {
        errors.invalid(at.child("resourceSliceCount"), count, "must be greater than zero");
    }
    if generation < 0 {
        errors.invalid(at.child("generation"), generation, "must be greater than or equal to zero");
    }
    if let Some(old) = old {
        checks::immutable(spec.at("pool.name"), old.at("pool.name"), &at.child("name"), errors);
        for key in ["driver", "nodeName"] {
            checks::immutable(spec.get(key), old.get(key), &path.child(key), errors);
        }
    }
    let chosen = nodes(
        spec,
        &["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"],
        "must be either unset or set to a non-empty string",
        path,
        errors,
    );
    if let Some(selector) = member(spec, "nodeSelector")
        && list(selector, "nodeSelectorTerms").len() != 1
    {
        let shown = internal::show_all("core.v1.NodeSelectorTerm", list(selector, "nodeSelectorTerms"));
        errors.invalid_structure(path.child("nodeSelector").child("nodeSelectorTerms"), &shown, "must have exactly one node selector term");
    }
    match chosen.as_slice() {
        [] => errors.required(path.clone(), ONE_OF_NODES),
        [_] => {}
        several => errors.invalid(path.clone(), format!("{{{}}}", several.join(", ")), &format!("{ONE_OF_NODES}, but multiple fields are set")),
    }
    if has(spec, "sharedCounters") && has(spec, "devices") {
        errors.invalid(path.clone(), "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let all = list(spec, "devices");
    let max = if all.iter().any(is_rich) { RICH_DEVICES_MAX } else { DEVICES_MAX };
    let per_device = flag(spec, "perDeviceNodeSelection");
    devices::each_once(
        all,
        max,
        &path.child("devices"),
        errors,
        |d| json!(text(d, "name")),
        |device, path, errors| {
            let before = old.and_then(|old| list(old, "devices").iter().find(|other| text(other, "name") == text(device, "name")));
            validate_device(device, before, per_device, path, errors);
        },
    );
    let sets = list(spec, "sharedCounters");
    devices::each_once(
        sets,
        COUNTER_SETS_MAX,
        &path.child("sharedCounters"),
        errors,
        |s| json!(text(s, "name")),
        |set, path, errors| {
            counters(set, "name", path, errors);
        },
    );
}

/// Checks by what nodes are chosen; gives the ways that are used.
fn nodes(parent: &Value, ways: &[&str], empty_name: &str, path: &Path, errors: &mut Errors) -> Vec<String> {
    let mut chosen = vec![];
    for way in ways {
        let at = path.child(way);
        match (*way, member(parent, way)) {
            (_, None) => continue,
            (_, Some(Value::String(name))) if name.is_empty() => {
                errors.invalid(at, "", empty_name);
                continue;
            }
            (_, Some(Value::String(name))) => errors.invalid_all(&at, name.as_str(), names::dns1123_subdomain(name)),
            (_, Some(Value::Bool(false))) => {
                errors.invalid(at, false, "must be either unset or set to true");
                continue;
            }
            ("nodeSelector", Some(selector)) => scheduling::node_selector(selector, &at, errors),
            _ => {}
        }
        chosen.push(format!("`{way}`"));
    }
    chosen
}

fn is_rich(device: &Value) -> bool {
    let lists = |attribute: &Value| LISTS.iter().any(|key| has(attribute, key));
    !list(device, "taints").is_empty()
        || !list(device, "consumesCounters").is_empty()
        || map(device, "attributes").into_iter().flat_map(|a| a.values()).any(lists)
}

fn counters(set: &Value, name_key: &str, path: &Path, errors: &mut Errors) {
    let name = text(set, name_key);
    if name.is_empty() {
        errors.required(path.child(name_key), "");
    } else {
        devices::label(name, &path.child(name_key), errors);
    }
    match map(set, "counters").filter(|c| !c.is_empty()) {
        None => errors.required(path.child("counters"), ""),
        some => devices::each_entry(some, COUNTERS_MAX, &path.child("counters"), errors, devices::label, |_, _, _| {}),
    }
}

fn validate_device(device: &Value, old: Option<&Value>, per_device: bool, path: &Path, errors: &mut Errors) {
    devices::label(text(device, "name"), &path.child("name"), errors);
    let (attributes, capacity) = (map(device, "attributes"), map(device, "capacity"));
    let count = attributes.map_or(0, |a| a.len()) + capacity.map_or(0, |c| c.len());
    if count > ATTRIBUTES_MAX {
        errors.invalid(path.clone(), count, &format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}"));
    }
    let values = |attribute: &Value| LISTS.iter().map(|key| list(attribute, key).len()).sum::<usize>().max(1);
    let count: usize = attributes.into_iter().flat_map(|a| a.values()).map(values).sum();
    if count > VALUES_MAX {
        errors.invalid(path.clone(), count, &format!("the total number of attribute values must not exceed {VALUES_MAX}"));
    }
    devices::each_entry(attributes, usize::MAX, &path.child("attributes"), errors, devices::qualified_name, attribute);
    let unchanged = |key: &str| old.is_some_and(|old| devices::same(old.get(key), device.get(key)));
    if !unchanged("capacity") {
        let shared = flag(device, "allowMultipleAllocations");
        devices::each_entry(capacity, usize::MAX, &path.child("capacity"), errors, devices::qualified_name, |capacity, path, errors| {
            let Some(policy) = member(capacity, "requestPolicy") else { return };
            let at = path.child("requestPolicy");
            if shared {
                request_policy(policy, capacity, &at, errors);
            } else {
                errors.forbidden(at, "allowMultipleAllocations must be true");
            }
        });
    }
    if !unchanged("taints") {
        devices::each(list(device, "taints"), TAINTS_MAX, &path.child("taints"), errors, devices::taint);
    }
    let consumed = list(device, "consumesCounters");
    let set_name = |set: &Value| json!(text(set, "counterSet"));
    devices::each_once(consumed, CONSUMED_SETS_MAX, &path.child("consumesCounters"), errors, set_name, |set, path, errors| {
        counters(set, "counterSet", path, errors);
    });
    let ways = ["nodeName", "nodeSelector", "allNodes"];
    if per_device {
        match nodes(device, &ways, "must not be empty", path, errors).as_slice() {
            [] => errors.required(path.clone(), ONE_OF_DEVICE_NODES),
            [_] => {}
            several => errors.invalid(path.clone(), format!("{{{}}}", several.join(", ")), ONE_OF_DEVICE_NODES),
        }
    } else if ways.iter().any(|way| has(device, way)) {
        errors.invalid(
            path.clone(),
            Value::Null,
            "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
        );
    }
    devices::binding_conditions(device, path, errors);
}

fn attribute(attribute: &Value, path: &Path, errors: &mut Errors) {
    let mut count = ["bool", "int", "string", "version"].iter().filter(|key| has(attribute, key)).count();
    if let Some(Value::String(value)) = member(attribute, "string") {
        bounded(value, &path.child("string"), errors);
    }
    if let Some(Value::String(value)) = member(attribute, "version") {
        version(value, &path.child("version"), errors);
    }
    for key in LISTS.iter().filter(|key| has(attribute, key)) {
        count += 1;
        let at = path.child(key);
        if list(attribute, key).is_empty() {
            errors.invalid(at.clone(), shown(attribute, key), "must not be empty if specified");
        }
        for (i, value) in list(attribute, key).iter().enumerate() {
            match (*key, value.as_str()) {
                ("strings", Some(value)) => bounded(value, &at.index(i), errors),
                ("versions", Some(value)) => version(value, &at.index(i), errors),
                _ => {}
            }
        }
    }
    match count {
        0 => errors.invalid(path.clone(), "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid_structure(path.clone(), &internal::show("resource.v1.DeviceAttribute", attribute), "exactly one value must be specified"),
    }
}
fn bounded(value: &str, path: &Path, errors: &mut Errors) {
    if value.len() > VALUE_BYTES_MAX {
        errors.too_long(path.clone(), "", VALUE_BYTES_MAX);
    }
}
fn version(value: &str, path: &Path, errors: &mut Errors) {
    if !is_semantic_version(value) {
        errors.invalid(path.clone(), value, "must be a string compatible with semver.org spec 2.0.0");
    }
    bounded(value, path, errors);
}
fn is_semantic_version(text: &str) -> bool {
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|part| word(part) && (!digits(part) || number(part))))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// How much of a capacity may be asked for.
fn request_policy(policy: &Value, capacity: &Value, path: &Path, errors: &mut Errors) {
    let quantity = |parent: &Value, key: &str| member(parent, key).and_then(|q| Quantity::from_value(q).ok());
    let Some(capacity) = quantity(capacity, "value") else { return };
    let values = list(policy, "validValues");
    let range = member(policy, "validRange");
    let default = quantity(policy, "default");
    if !values.is_empty() && range.is_some() {
        let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return errors.forbidden(path.clone(), detail);
    }
    if !values.is_empty() {
        let Some(default) = default else { return errors.required(path.child("default"), "required when validValues is defined") };
        options(values, default, capacity, &path.child("validValues"), errors);
    } else if let Some(range) = range {
        let Some(default) = default else { return errors.required(path.child("default"), "required when validRange is defined") };
        let [min, max, step] = ["min", "max", "step"].map(|key| quantity(range, key));
        valid_range(default, capacity, [min, max, step], &path.child("validRange"), errors);
    }
}
fn options(values: &[Value], default: Quantity, capacity: Quantity, path: &Path, errors: &mut Errors) {
    let all: Vec<Quantity> = values.iter().filter_map(|q| Quantity::from_value(q).ok()).collect();
    for (i, pair) in all.windows(2).enumerate() {
        if pair[0] > pair[1] {
            errors.invalid(path.index(i + 1), pair[1].to_string(), "values must be sorted in ascending order");
        }
    }
    let key = |q: &Value| Quantity::from_value(q).map_or(Value::Null, |q| json!(q.value().to_string()));
    devices::each_once(values, OPTIONS_MAX, path, errors, key, |option, path, errors| {
        if let Ok(option) = Quantity::from_value(option)
            && option > capacity
        {
            errors.invalid(path.clone(), option.to_string(), &format!("option is larger than capacity value: {capacity}"));
        }
    });
    if !all.contains(&default) {
        errors.invalid(path.clone(), default.to_string(), "default value is not valid according to the requestPolicy");
    }
}
fn valid_range(default: Quantity, capacity: Quantity, [min, max, step]: [Option<Quantity>; 3], path: &Path, errors: &mut Errors) {
    let Some(min) = min else { return errors.required(path.child("min"), "required when validRange is defined") };
    let mut refuse = |wrong: bool, key: &str, shown: Quantity, detail: String| {
        if wrong {
            errors.invalid(path.child(key), shown.to_string(), &detail);
        }
    };
    refuse(min > capacity, "min", min, format!("min is larger than capacity value: {capacity}"));
    refuse(default < min, "default", default, format!("default is less than min: {min}"));
    if let Some(max) = max {
        refuse(min > max, "max", min, format!("min is larger than max: {max}"));
        refuse(max > capacity, "max", max, format!("max is larger than capacity value: {capacity}"));
        refuse(default > max, "default", default, format!("default is more than max: {max}"));
    }
    let Some(step) = step else { return };
    if step.sign() <= 0 || step.value() == 0 {
        return refuse(true, "step", step, "must be greater than zero".into());
    }
    let one = min.add(&step);
    refuse(one > capacity, "step", step, format!("one step {one} is larger than capacity value: {capacity}"));
    for value in [Some(default), max].into_iter().flatten() {
        let off = value.value().wrapping_sub(min.value()).wrapping_rem(step.value()) != 0;
        refuse(off, "step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> String {
        let mut errors = Errors::default();
        validate_spec(&spec, None, &Path::new("spec"), &mut errors);
        errors.to_string()
    }
    fn slice(device: Value) -> Value {
        json!({"driver": "d.example.com", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]})
    }

    #[test]
    fn versions_are_semantic() {
        for good in ["1.2.3", "0.0.0-a.1+b.7", "1.0.0--", "1.0.0+001"] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-01", "1.2.3-", "a.b.c", ""] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }

    #[test]
    fn devices_choose_nodes_only_where_the_slice_lets_them() {
        assert_eq!(errors(slice(json!({"name": "a"}))), "[]");
        let own = errors(slice(json!({"name": "a", "allNodes": true})));
        assert!(own.contains("can only be set if `perDeviceNodeSelection`"), "{own}");
        let mut spec = slice(json!({"name": "a", "nodeName": "m", "allNodes": true}));
        spec.as_object_mut().unwrap().remove("nodeName");
        spec["perDeviceNodeSelection"] = json!(true);
        let both = errors(spec);
        assert!(both.starts_with("spec.devices[0]: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of"), "{both}");
    }

    #[test]
    fn a_policy_of_requests_fits_its_capacity() {
        let device = |policy: Value| {
            slice(json!({"name": "a", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}}))
        };
        assert_eq!(errors(device(json!({"default": "1Gi", "validValues": ["1Gi", "2Gi"]}))), "[]");
        let policy = json!({"default": "3Gi", "validRange": {"min": "1Gi", "max": "20Gi", "step": "1Gi"}});
        let path = "spec.devices[0].capacity[memory].requestPolicy.validRange";
        assert_eq!(errors(device(policy)), format!("{path}.max: Invalid value: \"20Gi\": max is larger than capacity value: 10Gi"));
    }
}
