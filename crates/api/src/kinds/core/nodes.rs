//! Node.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{resources, scheduling::TAINT_EFFECTS},
        values::{entries, fill, flag, has, list, made, put, shown, strings, take, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    structure, table,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "Node", "nodes")
        .short(&["no"])
        .selectable(&["spec.unschedulable"])
        .connect("proxy", ("", "", "NodeProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .status()
        .hooks(Nodes)
}

const SYSTEM_INFO: &[&str] = &[
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
];

/// Pods that a node should not have, as JSON.
const AVOID_PODS: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";

struct Nodes;

/// Configuration of kubelets through the API is gone.
fn drop_disabled(node: &mut Value) {
    within(node, "spec", |spec| drop(take(spec, "configSource")));
    within(node, "status", |status| drop(take(status, "config")));
}

fn avoided_pods(node: &Value, errors: &mut Errors) {
    let Some(said) = node.annotation(AVOID_PODS) else { return };
    let path = Path::new("metadata").child("annotations");
    let avoided = match structure::parse(said.as_bytes(), structure::Encoding::Json) {
        Ok(avoided) => avoided,
        Err(why) => return errors.invalid(path.child("AvoidPods"), AVOID_PODS, &why),
    };
    for (i, entry) in list(&avoided, "preferAvoidPods").iter().enumerate() {
        let at = path.child(AVOID_PODS).index(i).child("PodSignature");
        match entry.at("podSignature.podController").filter(|c| c.is_object()) {
            None => errors.required(at, ""),
            Some(controller) if !flag(controller, "controller") => {
                errors.invalid(at.child("PodController"), flag(controller, "controller"), "must point to a controller");
            }
            Some(_) => {}
        }
    }
}

impl Hooks for Nodes {
    fn default(&self, node: &mut Value) {
        let spec = made(node, "spec");
        // The two fields say the same; the single one wins where they differ.
        let single = text(spec, "podCIDR").to_string();
        let first = strings(spec, "podCIDRs").next().map(String::from);
        match (single.is_empty(), first) {
            (true, Some(first)) => put(spec, "podCIDR", first),
            (false, first) if first.as_deref() != Some(single.as_str()) => put(spec, "podCIDRs", json!([single])),
            _ => {}
        }
        let status = made(node, "status");
        if !has(status, "allocatable")
            && let Some(capacity) = status.get("capacity").filter(|c| c.is_object()).cloned()
        {
            put(status, "allocatable", capacity);
        }
        fill(made(made(status, "daemonEndpoints"), "kubeletEndpoint"), "Port", 0);
        let info = made(status, "nodeInfo");
        for key in SYSTEM_INFO {
            if !has(info, key) {
                put(info, key, "");
            }
        }
    }
    fn prepare_create(&self, node: &mut Value) {
        drop_disabled(node);
    }
    fn prepare_update(&self, node: &mut Value, _old: &Value) {
        drop_disabled(node);
    }
    fn prepare_status(&self, node: &mut Value, _old: &Value) {
        drop_disabled(node);
    }
    fn warnings(&self, node: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = workload::spec(node);
        let old = !text(spec, "externalID").is_empty();
        let old = old.then(|| "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_string());
        let path = Path::new("spec").child("podCIDRs");
        let ranges = strings(spec, "podCIDRs").enumerate();
        old.into_iter().chain(ranges.filter_map(|(i, range)| checks::cidr_warning(range, &path.index(i)))).collect()
    }
    fn validate(&self, node: &Value, old: Option<&Value>, errors: &mut Errors) {
        avoided_pods(node, errors);
        taints(node, errors);
        amounts(node, errors);
        pod_cidrs(node, errors);
        // An update is checked like a new node, and then as an update.
        if let Some(old) = old {
            self.validate_status(node, old, errors);
        }
    }
    fn validate_status(&self, node: &Value, old: &Value, errors: &mut Errors) {
        avoided_pods(node, errors);
        amounts(node, errors);
        for (i, address, _) in checks::distinct(list(workload::status(node), "addresses"), |address| address).filter(|(.., again)| *again) {
            let shown = internal::show("core.v1.NodeAddress", address);
            errors.duplicate_structure(Path::new("status").child("addresses").index(i), &shown);
        }
        let (spec, before) = (workload::spec(node), workload::spec(old));
        if !list(before, "podCIDRs").is_empty() && list(before, "podCIDRs") != list(spec, "podCIDRs") {
            errors.forbidden(Path::new("spec").child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
        }
        if !text(before, "providerID").is_empty() && text(before, "providerID") != text(spec, "providerID") {
            errors.forbidden(Path::new("spec").child("providerID"), "node updates may not change providerID except from \"\" to valid");
        }
        taints(node, errors);
        if text(spec, "externalID") != text(before, "externalID") {
            errors.forbidden(Path::new("spec").child("externalID"), "may not be updated");
        }
    }
    fn selectable_value(&self, node: &Value, field: &str) -> String {
        node.bool_at(field).unwrap_or_default().to_string()
    }
    fn cells(&self, node: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(node), workload::status(node));
        let nothing = Value::Null;
        let info = status.get("nodeInfo").unwrap_or(&nothing);
        let mut state = match list(status, "conditions").iter().find(|c| text(c, "type") == "Ready") {
            Some(ready) if text(ready, "status") == "True" => "Ready".to_string(),
            Some(_) => "NotReady".to_string(),
            None => "Unknown".to_string(),
        };
        if flag(spec, "unschedulable") {
            state.push_str(",SchedulingDisabled");
        }
        let address = |kind: &str| list(status, "addresses").iter().find(|a| text(a, "type") == kind).map_or("<none>", |a| text(a, "address"));
        let known = |value: &str| if value.is_empty() { json!("<unknown>") } else { json!(value) };
        let kernel = match (text(info, "kernelVersion"), text(info, "architecture")) {
            ("", _) => json!("<unknown>"),
            (kernel, "") => json!(kernel),
            (kernel, architecture) => json!(format!("{kernel} ({architecture})")),
        };
        vec![
            table::name(node),
            json!(state),
            json!(roles(node)),
            table::age(node, now_unix_s),
            json!(text(info, "kubeletVersion")),
            json!(address("InternalIP")),
            json!(address("ExternalIP")),
            known(text(info, "osImage")),
            kernel,
            known(text(info, "containerRuntimeVersion")),
        ]
    }
}

/// Roles as labels say them.
fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node.labels().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|role| !role.is_empty()) {
            roles.insert(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|role| !role.is_empty()));
        }
    }
    if roles.is_empty() { "<none>".into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

/// What a node has, and what of that pods may have.
fn amounts(node: &Value, errors: &mut Errors) {
    for key in ["capacity", "allocatable"] {
        for (name, value) in entries(workload::status(node), key) {
            resources::quantity(name, value, &Path::new("status").child(key).child(name), errors);
        }
    }
}

fn taints(node: &Value, errors: &mut Errors) {
    // Kubernetes names the taints under metadata here.
    let path = Path::new("metadata").child("taints");
    let taints = list(workload::spec(node), "taints");
    for (i, taint, again) in checks::distinct(taints, |taint| ["key", "effect"].map(|part| text(taint, part))) {
        let path = path.index(i);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
        let problems = names::label_value(value);
        if !problems.is_empty() {
            errors.invalid(path.child("value"), value, &problems.join(";"));
        }
        if effect.is_empty() {
            errors.required(path.child("effect"), "");
        } else if !TAINT_EFFECTS.contains(&effect) {
            errors.not_supported(path.child("effect"), effect, TAINT_EFFECTS);
        }
        if again {
            let shown = internal::show("core.v1.Taint", taint);
            errors.push_structure(crate::field::Reason::Duplicate, path, &shown, "taints must be unique by key and effect pair");
        }
    }
}

fn pod_cidrs(node: &Value, errors: &mut Errors) {
    let spec = workload::spec(node);
    let path = Path::new("spec").child("podCIDRs");
    let cidrs: Vec<&str> = strings(spec, "podCIDRs").collect();
    for (i, cidr) in cidrs.iter().enumerate() {
        errors.invalid_all(&path.index(i), *cidr, checks::cidr(cidr));
    }
    if cidrs.len() < 2 {
        return;
    }
    if let Some((i, bad)) = cidrs.iter().enumerate().find(|(_, cidr)| checks::parse_cidr(cidr).is_none()) {
        errors.internal(
            path.clone(),
            &format!("invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> (invalid CIDR address: {bad})"),
        );
    }
    let families: Vec<bool> = cidrs.iter().filter_map(|cidr| checks::parse_cidr(cidr)).map(|(ip, _)| ip.is_ipv4()).collect();
    if cidrs.len() > 2 || families.len() != 2 || families[0] == families[1] {
        errors.invalid(path, shown(spec, "podCIDRs"), "may specify no more than one CIDR for each IP family");
    }
}
