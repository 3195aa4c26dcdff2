//! What may change in a pod after it was made, by the object itself and by its subresources.

use super::resources::quality_of_service;
use crate::{
    field::{Errors, Path},
    internal,
    kinds::values::{has, int, list, map, member, put, shown, take, text},
    object::ObjectExt,
};
use serde_json::Value;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// On a pod that only shows what a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

fn spec_of(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}
/// Removes members that say nothing, so that absent and empty compare equal.
fn normal(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(normal);
            map.retain(|_, value| !crate::kinds::values::is_empty(value) && *value != Value::Bool(false));
        }
        Value::Array(list) => list.iter_mut().for_each(normal),
        _ => {}
    }
}
fn gated(spec: &Value) -> bool {
    !list(spec, "schedulingGates").is_empty()
}
fn copy(to: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => put(to, key, value.clone()),
        None => {
            take(to, key);
        }
    }
}

/// Rules for a PUT or PATCH of the pod itself.
pub fn validate(pod: &Value, old: &Value, errors: &mut Errors) {
    let (spec, old_spec) = (spec_of(pod), spec_of(old));
    let path = Path::new("spec");
    let mirror = Path::new("metadata").child("annotations").key(MIRROR);
    match (pod.annotation(MIRROR), old.annotation(MIRROR)) {
        (Some(_), None) => errors.forbidden(mirror, "may not add mirror pod annotation"),
        (new, Some(known)) if new != Some(known) => errors.forbidden(mirror, "may not remove or update mirror pod annotation"),
        _ => {}
    }
    for key in ["containers", "initContainers"] {
        if list(spec, key).len() != list(old_spec, key).len() {
            errors.forbidden(path.child(key), "pod updates may not add or remove containers");
            return;
        }
    }
    for key in ["containers", "initContainers"] {
        for (i, _) in list(spec, key).iter().enumerate().filter(|(_, container)| text(container, "image").is_empty()) {
            errors.required(path.child(key).index(i).child("image"), "");
        }
    }
    if spec == old_spec {
        return;
    }
    active_deadline(spec, old_spec, &path, errors);
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        if !list(old_spec, "schedulingGates").contains(gate) {
            errors.forbidden(
                path.child("schedulingGates").index(i).child("name"),
                &format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name")),
            );
        }
    }
    tolerations(spec, old_spec, &path, errors);

    let mut munged = spec.clone();
    for key in ["containers", "initContainers"] {
        let old_list = list(old_spec, key).to_vec();
        for (container, old) in munged.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().zip(&old_list) {
            copy(container, old, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut munged, old_spec, key);
    }
    if int(old_spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) && int(spec, "terminationGracePeriodSeconds") == Some(1) {
        copy(&mut munged, old_spec, "terminationGracePeriodSeconds");
    }
    if gated(old_spec) {
        node_selector_additions(spec, old_spec, &path, errors);
        copy(&mut munged, old_spec, "nodeSelector");
        node_affinity_additions(spec, old_spec, &path, errors);
        if let Some(affinity) = member(spec, "affinity").filter(|a| has(a, "nodeAffinity")) {
            let mut affinity = affinity.clone();
            take(&mut affinity, "nodeAffinity");
            put(&mut munged, "affinity", affinity);
            if let Some(node) = member(old_spec, "affinity").and_then(|a| member(a, "nodeAffinity")) {
                put(&mut munged["affinity"], "nodeAffinity", node.clone());
            }
        }
    }
    let (mut new, mut before) = (munged.clone(), old_spec.clone());
    normal(&mut new);
    normal(&mut before);
    if new != before {
        errors.forbidden(path, &format!("{ALLOWED}{}", internal::difference("core.v1.PodSpec", old_spec, &munged)));
    }
}

fn active_deadline(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("activeDeadlineSeconds");
    match (int(spec, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => errors.invalid(path, new, "must be less than or equal to previous value"),
        (None, Some(_)) => errors.invalid(path, Value::Null, "must not update from a positive integer to nil value"),
        _ => {}
    }
}
fn tolerations(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let plain = |toleration: &Value| {
        let mut toleration = toleration.clone();
        take(&mut toleration, "tolerationSeconds");
        toleration
    };
    let new: Vec<Value> = list(spec, "tolerations").iter().map(plain).collect();
    if list(old, "tolerations").iter().any(|toleration| !new.contains(&plain(toleration))) {
        errors.forbidden(path.child("tolerations"), "existing toleration can not be modified except its tolerationSeconds");
    }
}
fn node_selector_additions(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let new = map(spec, "nodeSelector");
    if map(old, "nodeSelector").into_iter().flatten().any(|(key, value)| new.and_then(|n| n.get(key)) != Some(value)) {
        errors.invalid(
            path.child("nodeSelector"),
            shown(spec, "nodeSelector"),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
}
fn node_affinity_additions(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    const REQUIRED: &str = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let path = path.child(REQUIRED);
    let terms = |spec: &Value| spec.at(REQUIRED).map(|r| list(r, "nodeSelectorTerms").to_vec());
    let Some(before) = terms(old) else { return };
    let Some(after) = terms(spec).filter(|after| after.len() == before.len()) else {
        errors.invalid(path.child("nodeSelectorTerms"), Value::Null, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        return;
    };
    for (i, (new, old)) in after.iter().zip(&before).enumerate() {
        let kept =
            ["matchExpressions", "matchFields"].iter().all(|key| list(old, key).iter().all(|requirement| list(new, key).contains(requirement)));
        if !kept {
            errors.invalid(path.child("nodeSelectorTerms").index(i), new.clone(), "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// A write to `/ephemeralcontainers` changes nothing else.
pub fn prepare_ephemeral_containers(pod: &mut Value, old: &Value) {
    let containers = pod.at("spec.ephemeralContainers").cloned();
    let version = pod.at("metadata.resourceVersion").cloned();
    *pod = old.clone();
    if let Some(version) = version {
        pod.set("metadata.resourceVersion", version);
    }
    if let Some(containers) = containers {
        pod.set("spec.ephemeralContainers", containers);
    }
}
pub fn validate_ephemeral_containers(pod: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    let (new, before) = (list(spec_of(pod), "ephemeralContainers"), list(spec_of(old), "ephemeralContainers"));
    for container in before {
        let name = text(container, "name");
        match new.iter().find(|c| text(c, "name") == name) {
            None => errors.forbidden(path.clone(), &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(same) if same != container => {
                errors.forbidden(path.clone(), &format!("existing ephemeral containers {name:?} may not be changed\n"))
            }
            _ => {}
        }
    }
}

/// A write to `/resize` changes only resources and resize policies of containers.
pub fn prepare_resize(pod: &mut Value, old: &Value) {
    let sent = std::mem::replace(pod, old.clone());
    if let Some(version) = sent.at("metadata.resourceVersion") {
        pod.set("metadata.resourceVersion", version.clone());
    }
    for key in ["containers", "initContainers"] {
        for container in pod.at_mut("spec").and_then(|s| s.get_mut(key)).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = text(container, "name").to_string();
            if let Some(new) = list(spec_of(&sent), key).iter().find(|c| text(c, "name") == name) {
                copy(container, new, "resources");
                copy(container, new, "resizePolicy");
            }
        }
    }
    if let (Some(spec), Some(resources)) = (pod.at_mut("spec"), spec_of(&sent).get("resources")) {
        put(spec, "resources", resources.clone());
    }
}
pub fn validate_resize(pod: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = spec_of(pod);
    let whole = || Path::new("[]");
    if old.annotation(MIRROR).is_some() {
        errors.forbidden(whole(), "static pods cannot be resized");
        return;
    }
    if text(spec.get("os").unwrap_or(&Value::Null), "name") == "windows" {
        errors.forbidden(whole(), "windows pods cannot be resized");
        return;
    }
    let before = old.str_at("status.qosClass").unwrap_or_else(|| quality_of_service(spec_of(old)));
    let now = quality_of_service(spec);
    if now != before {
        errors.invalid(path.clone(), before, "Pod QOS Class may not change as a result of resizing");
    }
    // A node that cannot resize does not say what its containers have.
    let running = old.list_at("status.containerStatuses").iter().find(|status| status.at("state.running").is_some_and(|state| !state.is_null()));
    if running.is_some_and(|status| status.get("resources").is_none_or(Value::is_null)) {
        errors.forbidden(path.clone(), "Pod running on node without support for resize");
    }
    let mut others_change = other_resources(spec.get("resources")) != other_resources(spec_of(old).get("resources"));
    removed(spec, spec_of(old), &path, errors);
    for key in ["containers", "initContainers"] {
        for (i, (new, old)) in list(spec, key).iter().zip(list(spec_of(old), key)).enumerate() {
            removed(new, old, &path.child(key).index(i), errors);
            others_change |= other_resources(new.get("resources")) != other_resources(old.get("resources"));
        }
    }
    if others_change {
        errors.forbidden(path.clone(), "only cpu and memory resources are mutable");
    }
}
/// What in a block of resources no resize may change.
fn other_resources(resources: Option<&Value>) -> Value {
    let mut rest = resources.cloned().unwrap_or_default();
    for key in ["requests", "limits"] {
        if let Some(map) = rest.get_mut(key).and_then(Value::as_object_mut) {
            map.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
        }
    }
    normal(&mut rest);
    rest
}
/// What was asked for may be asked for differently, but not no longer.
fn removed(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    for part in ["requests", "limits"] {
        let names = |c: &Value| c.get("resources").and_then(|r| map(r, part)).map(|m| m.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        let left = names(new);
        if names(old).iter().any(|name| !left.contains(name)) {
            errors.forbidden(path.child("resources").child(part), &format!("resource {part} cannot be removed"));
        }
    }
}

/// Rules for a write to `/status`: what has ended for good does not run again.
pub fn validate_status(pod: &Value, old: &Value, errors: &mut Errors) {
    let policy = text(spec_of(pod), "restartPolicy");
    if policy == "Always" {
        return;
    }
    let empty = Value::Null;
    let (status, before) = (pod.get("status").unwrap_or(&empty), old.get("status").unwrap_or(&empty));
    for (i, old_status) in list(before, "containerStatuses").iter().enumerate() {
        let Some(ended) = old_status.at("state.terminated").filter(|t| !t.is_null()) else { continue };
        if policy == "OnFailure" && int(ended, "exitCode").unwrap_or(0) != 0 {
            continue;
        }
        let name = text(old_status, "name");
        let has_rules = list(spec_of(pod), "containers").iter().any(|c| text(c, "name") == name && has(c, "restartPolicy"));
        let now = list(status, "containerStatuses").iter().find(|s| text(s, "name") == name);
        if !has_rules && now.is_some_and(|s| s.at("state.terminated").is_none_or(Value::is_null)) {
            errors
                .forbidden(Path::new("status").child("containerStatuses").index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// How no error at all is shown.
    const NOTHING: &str = "[]";

    fn pod(cpu: &str, more: Value) -> Value {
        let block = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2"}});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "first", "resources": block("1")}, {"name": "side", "restartPolicy": "Always", "resources": block("1")}],
            "containers": [{"name": "c", "resources": block(cpu)}],
        }});
        if let (Some(pod), Value::Object(more)) = (pod.as_object_mut(), more) {
            pod.extend(more);
        }
        pod
    }

    fn said(new: &Value, old: &Value) -> String {
        let mut errors = Errors::default();
        validate_resize(new, old, &mut errors);
        errors.to_string()
    }

    #[test]
    fn only_what_can_run_on_while_it_changes_is_resized() {
        let old = pod("1", json!({}));
        assert_eq!(said(&pod("1500m", json!({})), &old), NOTHING);
        let mut new = old.clone();
        new["spec"]["initContainers"][1]["resources"]["requests"]["cpu"] = json!("2");
        assert_eq!(said(&new, &old), NOTHING);
        new["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = json!("2");
        assert_eq!(said(&new, &old), NOTHING, "one that runs before the others too");
        new["spec"]["initContainers"][0]["resources"]["requests"]["ephemeral-storage"] = json!("1Gi");
        assert_eq!(said(&new, &old), "spec: Forbidden: only cpu and memory resources are mutable");
        let mut new = old.clone();
        new["spec"]["containers"][0]["resources"]["requests"] = json!({});
        assert_eq!(said(&new, &old), "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed");
        let mirror = pod("1", json!({"metadata": {"annotations": {MIRROR: "x"}}}));
        assert_eq!(said(&pod("2", json!({})), &mirror), "[]: Forbidden: static pods cannot be resized");
    }

    #[test]
    fn a_node_that_does_not_say_what_containers_have_cannot_resize_them() {
        let status = |resources: Value| json!({"status": {"containerStatuses": [{"name": "c", "state": {"running": {}}, "resources": resources}]}});
        assert_eq!(said(&pod("2", json!({})), &pod("1", status(Value::Null))), "spec: Forbidden: Pod running on node without support for resize");
        assert_eq!(said(&pod("2", json!({})), &pod("1", status(json!({})))), NOTHING);
    }
}
