//! Pod.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{annotations, defaults, display, resources, scheduling, spec, status, update, warnings},
        values::{fill, list, made, put, text, within},
    },
    object::ObjectExt,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Pod", "pods")
        .short(&["po"])
        .categories(&["all"])
        .generation()
        .selectable(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ])
        .graceful()
        .connect("attach", ("", "", "PodAttachOptions"), &["create", "get"])
        .connect("binding", ("", "", "Binding"), &["create"])
        .connect("ephemeralcontainers", ("", "", "Pod"), &["get", "patch", "update"])
        .connect("eviction", ("policy", "v1", "Eviction"), &["create"])
        .connect("exec", ("", "", "PodExecOptions"), &["create", "get"])
        .connect("log", ("", "", "Pod"), &["get"])
        .connect("portforward", ("", "", "PodPortForwardOptions"), &["create", "get"])
        .connect("proxy", ("", "", "PodProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .connect("resize", ("", "", "Pod"), &["get", "patch", "update"])
        .status()
        .hooks(Pods)
}

struct Pods;

impl Hooks for Pods {
    fn default(&self, pod: &mut Value) {
        let spec = made(pod, "spec");
        defaults::spec(spec);
        defaults::pod_spec(spec);
    }
    fn prepare_update(&self, pod: &mut Value, _old: &Value) {
        within(pod, "spec", defaults::drop_disabled);
    }
    fn prepare_create(&self, pod: &mut Value) {
        within(pod, "spec", defaults::drop_disabled);
        let labels = pod.labels().cloned().unwrap_or_default();
        within(pod, "spec", |spec| scheduling::merge_label_keys(spec, &labels));
        let metadata = pod.get("metadata").cloned().unwrap_or_default();
        within(pod, "spec", |spec| annotations::app_armor_fields(&metadata, spec));
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let mut status = json!({"phase": "Pending", "qosClass": resources::quality_of_service(spec)});
        if !list(spec, "schedulingGates").is_empty() {
            let gated = json!({
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null, "lastTransitionTime": pod.creation_timestamp(),
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            });
            put(&mut status, "conditions", json!([gated]));
        }
        put(pod, "status", status);
    }
    fn prepare_status(&self, pod: &mut Value, old: &Value) {
        if let Some(class) = old.at("status.qosClass").filter(|class| !class.is_null()) {
            fill(made(pod, "status"), "qosClass", class.clone());
        }
        // Nodes of long ago broke these.
        match old.at("metadata.ownerReferences") {
            Some(owners) => pod.set("metadata.ownerReferences", owners.clone()),
            None => drop(pod.remove("metadata.ownerReferences")),
        }
        status::keep_observed_generations(pod, old);
    }
    fn validate(&self, pod: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let nothing = Value::Null;
        let pod_spec = pod.get("spec").unwrap_or(&nothing);
        // What is as it was has been checked before.
        if old.is_none_or(|old| old.get("spec") != Some(pod_spec)) {
            spec::validate_pod(pod, pod_spec, &path, errors);
        }
        match old {
            Some(old) => update::validate(pod, old, errors),
            None => {
                if !list(pod_spec, "ephemeralContainers").is_empty() {
                    errors.forbidden(path.child("ephemeralContainers"), "cannot be set on create");
                }
                if !list(pod_spec, "schedulingGates").is_empty() && !text(pod_spec, "nodeName").is_empty() {
                    errors.forbidden(path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
                }
                annotations::match_fields(pod.get("metadata").unwrap_or(&nothing), pod_spec, &path, errors);
            }
        }
    }
    fn validate_status(&self, pod: &Value, old: &Value, errors: &mut Errors) {
        status::validate(pod, old, errors);
    }
    fn prepare_view(&self, view: &str, pod: &mut Value, old: &Value) {
        match view {
            "resize" => update::prepare_resize(pod, old),
            _ => update::prepare_ephemeral_containers(pod, old),
        }
    }
    fn validate_view(&self, view: &str, pod: &Value, old: &Value, errors: &mut Errors) {
        spec::validate_pod(pod, pod.get("spec").unwrap_or(&Value::Null), &Path::new("spec"), errors);
        match view {
            "resize" => update::validate_resize(pod, old, errors),
            _ => update::validate_ephemeral_containers(pod, old, errors),
        }
    }
    fn status_warnings(&self, pod: &Value) -> Vec<String> {
        let addresses = |key: &'static str| {
            let path = Path::new("status").child(key);
            let all = list(pod.get("status").unwrap_or(&Value::Null), key).iter().enumerate();
            all.filter_map(move |(i, address)| checks::ip_warning(text(address, "ip"), &path.index(i).child("ip"))).collect::<Vec<_>>()
        };
        ["podIPs", "hostIPs"].into_iter().flat_map(addresses).collect()
    }
    fn warnings(&self, pod: &Value, old: Option<&Value>) -> Vec<String> {
        // Who changes a pod is a controller or a node, and has nobody to tell.
        if old.is_some() {
            return vec![];
        }
        let mut all: Vec<String> = warnings::host_name(pod.name(), "the Pod's hostname").into_iter().collect();
        all.extend(warnings::pod(pod, &Path::root(), false));
        all
    }
    fn selectable_value(&self, pod: &Value, field: &str) -> String {
        match field {
            "spec.hostNetwork" => pod.bool_at(field).unwrap_or_default().to_string(),
            "status.podIPs" => pod.list_at(field).iter().map(|ip| text(ip, "ip")).collect::<Vec<_>>().join(","),
            _ => pod.str_at(field).unwrap_or_default().to_string(),
        }
    }
    fn row_conditions(&self, pod: &Value) -> Vec<Value> {
        let message = match pod.str_at("status.phase") {
            Some("Succeeded") => "The pod has completed successfully.",
            Some("Failed") => "The pod failed.",
            _ => return vec![],
        };
        vec![json!({"type": "Completed", "status": "True", "reason": pod.str_at("status.phase"), "message": message})]
    }
    fn cells(&self, pod: &Value, now_unix_s: i64) -> Vec<Value> {
        display::cells(pod, now_unix_s)
    }
}
