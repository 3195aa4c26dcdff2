//! What may change in a pod after it was made, by the object itself and by its subresources.

use super::resources::quality_of_service;
use crate::{
    field::{Errors, Path},
    internal,
    kinds::{
        checks,
        values::{int, list, map, member, put, shown, take, text},
    },
    object::ObjectExt,
};
use serde_json::Value;
use std::collections::HashSet;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// On a pod that only shows what a node runs by itself.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

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
    validate_annotations(pod, old, errors);
    for key in ["containers", "initContainers"] {
        if list(spec, key).len() != list(old_spec, key).len() {
            errors.forbidden(path.child(key), "pod updates may not add or remove containers");
            return;
        }
        for (i, container) in list(spec, key).iter().enumerate() {
            let at = path.child(key).index(i);
            if text(container, "image").is_empty() {
                errors.required(at.child("image"), "");
            }
            super::containers::trimmed_image(container, &at, errors);
        }
    }
    if spec == old_spec {
        return;
    }
    if !active_deadline(spec, old_spec, &path, errors) {
        return;
    }
    tolerations(spec, old_spec, &path, errors);
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        if !list(old_spec, "schedulingGates").contains(gate) {
            errors.forbidden(
                path.child("schedulingGates").index(i).child("name"),
                &format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name")),
            );
        }
    }

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
        let of = |spec: &Value| member(spec, "affinity").and_then(|affinity| member(affinity, "nodeAffinity")).cloned();
        let before = of(old_spec);
        if of(spec) != before {
            node_affinity_additions(spec, old_spec, &path, errors);
            let mut affinity = member(spec, "affinity").cloned().unwrap_or_else(|| serde_json::json!({}));
            take(&mut affinity, "nodeAffinity");
            if let Some(before) = before {
                put(&mut affinity, "nodeAffinity", before);
            }
            put(&mut munged, "affinity", affinity);
        }
    }
    let (mut new, mut before) = (munged.clone(), old_spec.clone());
    normal(&mut new);
    normal(&mut before);
    if new != before {
        errors.forbidden(path, &format!("{ALLOWED}{}", internal::difference("core.v1.PodSpec", old_spec, &munged)));
    }
}

/// The rules for annotations of a pod that stands.
pub fn validate_annotations(pod: &Value, old: &Value, errors: &mut Errors) {
    let [metadata, before] = [pod, old].map(|pod| pod.get("metadata").unwrap_or(&Value::Null));
    super::annotations::validate_update(metadata, before, spec_of(pod), &Path::new("metadata").child("annotations"), errors);
}

/// A deadline only comes nearer. Answers whether it makes sense to look further.
fn active_deadline(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) -> bool {
    let path = path.child("activeDeadlineSeconds");
    match (int(spec, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => errors.invalid(path, new, "must be between 0 and 2147483647, inclusive"),
        (Some(new), Some(old)) if new > old => errors.invalid(path, new, "must be less than or equal to previous value"),
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            return true;
        }
        _ => return true,
    }
    false
}
fn tolerations(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let plain = |toleration: &Value| {
        let mut toleration = toleration.clone();
        take(&mut toleration, "tolerationSeconds");
        toleration
    };
    let new: HashSet<Value> = list(spec, "tolerations").iter().map(plain).collect();
    if list(old, "tolerations").iter().any(|toleration| !new.contains(&plain(toleration))) {
        return errors.forbidden(path.child("tolerations"), "existing toleration can not be modified except its tolerationSeconds");
    }
    super::scheduling::tolerations(list(spec, "tolerations"), &path.child("tolerations"), errors);
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
    let path = path.child(REQUIRED).child("nodeSelectorTerms");
    let terms = |spec: &Value| spec.at(REQUIRED).map(|required| list(required, "nodeSelectorTerms").to_vec()).unwrap_or_default();
    let (before, after) = (terms(old), terms(spec));
    if before.is_empty() {
        return;
    }
    if after.len() != before.len() {
        let shown = if after.is_empty() { internal::Tree::Leaf(Value::Null) } else { internal::show_all("core.v1.NodeSelectorTerm", &after) };
        return errors.invalid_structure(path, &shown, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
    }
    for (i, (new, old)) in after.iter().zip(&before).enumerate() {
        let parts = ["matchExpressions", "matchFields"];
        let nothing = |term: &Value| parts.iter().all(|key| list(term, key).is_empty());
        // A term that selects nothing may not begin to select.
        let kept = parts.iter().all(|key| list(new, key).starts_with(list(old, key))) && (!nothing(old) || nothing(new));
        if !kept {
            let shown = internal::show("core.v1.NodeSelectorTerm", new);
            errors.invalid_structure(path.index(i), &shown, "only additions are allowed (no mutations or deletions)");
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
    validate_annotations(pod, old, errors);
    if old.annotation(MIRROR).is_some() {
        *errors = Errors::default();
        return errors.forbidden(Path::new("[]"), "static pods do not support ephemeral containers");
    }
    let path = Path::new("spec").child("ephemeralContainers");
    let new = checks::by_name(list(spec_of(pod), "ephemeralContainers"));
    for container in list(spec_of(old), "ephemeralContainers") {
        let name = text(container, "name");
        match new.get(name).copied() {
            None => errors.forbidden(path.clone(), &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(same) if same != container => {
                let difference = internal::difference("core.v1.EphemeralContainer", container, same);
                errors.forbidden(path.clone(), &format!("existing ephemeral containers {name:?} may not be changed\n{difference}"))
            }
            _ => {}
        }
    }
}

/// A write to `/resize` changes only resources and resize policies of containers. One that would have other containers is left as
/// it is: it is refused.
pub fn prepare_resize(pod: &mut Value, old: &Value) {
    let same = |key: &str| {
        let names = |pod: &Value| list(spec_of(pod), key).iter().map(|container| text(container, "name").to_string()).collect::<Vec<_>>();
        names(pod) == names(old)
    };
    if !["containers", "initContainers"].into_iter().all(same) {
        return;
    }
    let sent = std::mem::replace(pod, old.clone());
    if let Some(version) = sent.at("metadata.resourceVersion") {
        pod.set("metadata.resourceVersion", version.clone());
    }
    for key in ["containers", "initContainers"] {
        let containers = pod.at_mut("spec").and_then(|s| s.get_mut(key)).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, new) in containers.zip(list(spec_of(&sent), key)) {
            copy(container, new, "resources");
            copy(container, new, "resizePolicy");
        }
    }
    if let Some(spec) = pod.at_mut("spec") {
        copy(spec, spec_of(&sent), "resources");
    }
}
pub fn validate_resize(pod: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (spec, old_spec) = (spec_of(pod), spec_of(old));
    let whole = || Path::new("[]");
    let why = if old.annotation(MIRROR).is_some() {
        Some("static pods cannot be resized")
    } else if text(old_spec.get("os").unwrap_or(&Value::Null), "name") == "windows" {
        Some("windows pods cannot be resized")
    } else {
        None
    };
    if let Some(why) = why {
        *errors = Errors::default();
        return errors.forbidden(whole(), why);
    }
    let before = old.str_at("status.qosClass").unwrap_or_else(|| quality_of_service(old_spec));
    let now = quality_of_service(spec);
    if now != before {
        errors.invalid(path.clone(), before, "Pod QOS Class may not change as a result of resizing");
    }
    // A node that cannot resize does not say what its containers have.
    let running = old.list_at("status.containerStatuses").iter().find(|status| status.at("state.running").is_some_and(|state| !state.is_null()));
    if running.is_some_and(|status| status.get("resources").is_none_or(Value::is_null)) {
        errors.forbidden(path.clone(), "Pod running on node without support for resize");
    }
    whole_pod_resize(spec, old_spec, &path, errors);
    if !same_containers(spec, old_spec, &path, errors) {
        return;
    }
    for key in ["initContainers", "containers"] {
        for (i, (new, old)) in list(spec, key).iter().zip(list(old_spec, key)).enumerate() {
            removed(new.get("resources"), old.get("resources"), "resource", &path.child(key).index(i).child("resources"), errors);
        }
    }
    let others = |new: &Value, old: &Value| {
        other_resources(new.get("resources")) != other_resources(old.get("resources")) || {
            let policy = |container: &Value| list(container, "resizePolicy").to_vec();
            policy(new) != policy(old)
        }
    };
    for _ in list(spec, "containers").iter().zip(list(old_spec, "containers")).filter(|(new, old)| others(new, old)) {
        errors.forbidden(path.clone(), "only cpu and memory resources are mutable");
    }
    for (i, (new, old)) in list(spec, "initContainers").iter().zip(list(old_spec, "initContainers")).enumerate() {
        let at = path.child("initContainers").index(i);
        if others(new, old) {
            errors.forbidden(at.clone(), "only cpu and memory resources for init or sidecar containers are mutable");
        }
        if new != old && text(new, "restartPolicy") != "Always" {
            for _ in list(new, "resizePolicy").iter().filter(|policy| text(policy, "restartPolicy") == "RestartContainer") {
                errors.forbidden(at.clone(), "non-sidecar init containers with a resize policy of RestartContainer cannot be resized");
            }
        }
    }
}

/// Containers are neither added nor removed, nor do they change places.
fn same_containers(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) -> bool {
    let before = errors.0.len();
    for key in ["containers", "initContainers"] {
        let (new, old, path) = (list(spec, key), list(old, key), path.child(key));
        if new.len() != old.len() {
            errors.forbidden(path, &format!("{key} may not be added or removed on resize"));
            continue;
        }
        for (i, _) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| text(new, "name") != text(old, "name")) {
            errors.forbidden(path.index(i).child("name"), &format!("{key} may not be renamed or reordered on resize"));
        }
    }
    errors.0.len() == before
}

/// What is asked for the pod as a whole.
fn whole_pod_resize(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let (new, old) = (member(spec, "resources"), member(old, "resources"));
    if old.is_some() && new.is_none() {
        return errors.forbidden(path.child("resources"), "pod-level resources cannot be removed");
    }
    if old.is_some() {
        removed(new, old, "pod-level resource", &path.child("resources"), errors);
    }
    if other_resources(new) != other_resources(old) {
        errors.forbidden(path.clone(), "only cpu and memory resources are mutable at pod-level");
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
    if rest == serde_json::json!({}) { Value::Null } else { rest }
}
/// What was asked for may be asked for differently, but not no longer.
fn removed(new: Option<&Value>, old: Option<&Value>, what: &str, path: &Path, errors: &mut Errors) {
    for part in ["requests", "limits"] {
        let [new, old] = [new, old].map(|resources| resources.and_then(|resources| map(resources, part)));
        if old.into_iter().flatten().any(|(name, _)| new.is_none_or(|new| !new.contains_key(name))) {
            errors.forbidden(path.child(part), &format!("{what} {part} cannot be removed"));
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
        let sidecars = "spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable";
        assert_eq!(said(&new, &old), sidecars);
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
