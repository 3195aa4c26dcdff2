//! Annotations of pods that mean something to Kubernetes: what they may say, and that they do not contradict the fields that
//! came after them.

use crate::{
    field::{Errors, Path},
    kinds::values::{each, entries, has, list, made, map, member, put, text},
};
use serde_json::{Value, json};
use std::collections::HashSet;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const LOCAL: &str = "localhost/";

fn annotation<'a>(metadata: &'a Value, key: &str) -> Option<&'a str> {
    map(metadata, "annotations")?.get(key)?.as_str()
}
fn containers<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    let keys = ["initContainers", "containers", "ephemeralContainers"].into_iter();
    keys.flat_map(|key| list(spec, key).iter().enumerate().map(move |(i, one)| (one, path.child(key).index(i)))).collect()
}

/// What annotations of a pod or template say, each by itself.
pub fn validate(metadata: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    if let Some(mirror) = annotation(metadata, super::update::MIRROR)
        && text(spec, "nodeName").is_empty()
    {
        errors.invalid(path.key(super::update::MIRROR), mirror, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(cost) = annotation(metadata, DELETION_COST)
        && !is_cost(cost)
    {
        errors.invalid(path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    let text_of = |value: &'_ Value| value.as_str().unwrap_or_default().to_string();
    for (key, value) in entries(metadata, "annotations").filter(|(key, _)| *key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER)) {
        let profile = text_of(value);
        match profile.strip_prefix(LOCAL) {
            _ if matches!(profile.as_str(), "runtime/default" | "docker/default" | "unconfined") => {}
            Some(local) => super::volumes::relative_path(local, &path.child(key), errors),
            None => errors.invalid(path.child(key), profile, "must be a valid seccomp profile"),
        }
    }
    let mut known = None;
    for (key, value) in entries(metadata, "annotations") {
        let Some(name) = key.strip_prefix(APP_ARMOR) else { continue };
        let profile = text_of(value);
        let known = known.get_or_insert_with(|| containers(spec, path).iter().map(|(one, _)| text(one, "name")).collect::<HashSet<_>>());
        if !known.contains(name) {
            errors.invalid(path.key(key), name, "container not found");
        }
        if !matches!(profile.as_str(), "" | "runtime/default" | "unconfined") && !profile.starts_with(LOCAL) {
            errors.invalid(path.key(key), profile.as_str(), &format!("invalid AppArmor profile name: {profile:?}"));
        }
    }
}

/// A number without a plus or zeros in front, as a cost is written.
fn is_cost(cost: &str) -> bool {
    let plain = !cost.starts_with('+') && (cost == "0" || !cost.trim_start_matches('-').starts_with('0'));
    plain && cost.parse::<i32>().is_ok()
}

/// Profiles that annotations name are those of the fields. `path` is the spec's.
pub fn match_fields(metadata: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    if entries(metadata, "annotations").next().is_none() {
        return;
    }
    let nothing = Value::Null;
    let own = |owner: &'_ Value, key: &str| owner.get("securityContext").and_then(|context| member(context, key)).cloned();
    let seccomp = |profile: Option<Value>, key: &str, at: &Path, errors: &mut Errors| {
        if let (Some(profile), Some(said)) = (profile, annotation(metadata, key)) {
            let plain: &[&str] = &["runtime/default", "docker/default"];
            agree(&profile, said, plain, "seccomp", &at.child("securityContext").child("seccompProfile"), errors);
        }
    };
    seccomp(own(spec, "seccompProfile"), SECCOMP_POD, path, errors);
    for (container, at) in containers(spec, path) {
        seccomp(own(container, "seccompProfile"), &format!("{SECCOMP_CONTAINER}{}", text(container, "name")), &at, errors);
    }
    if text(spec.get("os").unwrap_or(&nothing), "name") == "windows" {
        return;
    }
    for (container, at) in containers(spec, path) {
        let profile = own(container, "appArmorProfile").or_else(|| own(spec, "appArmorProfile"));
        if let (Some(profile), Some(said)) = (profile, annotation(metadata, &format!("{APP_ARMOR}{}", text(container, "name")))) {
            agree(&profile, said, &["runtime/default"], "apparmor", &at.child("securityContext").child("appArmorProfile"), errors);
        }
    }
}

/// A container whose AppArmor profile only an annotation names gets it as a field, where it is not that of the pod already.
pub fn app_armor_fields(metadata: &Value, spec: &mut Value) {
    const LOCAL_BYTES_MAX: usize = 4095;
    let by_pod = spec.get("securityContext").and_then(|context| member(context, "appArmorProfile")).cloned();
    if spec.get("os").is_some_and(|os| text(os, "name") == "windows") {
        return;
    }
    for key in ["initContainers", "containers"] {
        each(spec, key, |container| {
            let said = annotation(metadata, &format!("{APP_ARMOR}{}", text(container, "name"))).unwrap_or_default();
            let profile = match (said, said.strip_prefix(LOCAL)) {
                ("unconfined", _) => json!({"type": "Unconfined"}),
                ("runtime/default", _) => json!({"type": "RuntimeDefault"}),
                (_, Some(local)) if !local.is_empty() && local.trim() == local && local.len() <= LOCAL_BYTES_MAX => {
                    json!({"type": "Localhost", "localhostProfile": local})
                }
                _ => return,
            };
            let own = container.get("securityContext").is_some_and(|context| has(context, "appArmorProfile"));
            if !own && by_pod.as_ref() != Some(&profile) {
                put(made(container, "securityContext"), "appArmorProfile", profile);
            }
        });
    }
}

fn agree(profile: &Value, said: &str, defaults: &[&str], what: &str, path: &Path, errors: &mut Errors) {
    let kind = match text(profile, "type") {
        "Unconfined" => said == "unconfined",
        "RuntimeDefault" => defaults.contains(&said),
        "Localhost" => said.starts_with(LOCAL),
        _ => true,
    };
    if !kind {
        errors.forbidden(path.child("type"), &format!("{what} type in annotation and field must match"));
    } else if text(profile, "type") == "Localhost" && said.strip_prefix(LOCAL) != member(profile, "localhostProfile").and_then(Value::as_str) {
        errors.forbidden(path.child("localhostProfile"), &format!("{what} profile in annotation and field must match"));
    }
}

/// What an update of a pod may not do to its annotations.
pub fn validate_update(metadata: &Value, old: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let kinds = [(APP_ARMOR, "AppArmor annotations"), (super::update::MIRROR, "mirror pod annotation")];
    let protected = |key: &str| kinds.iter().find(|(prefix, _)| if prefix.ends_with('/') { key.starts_with(prefix) } else { key == *prefix });
    for (key, before) in entries(old, "annotations") {
        if let Some((_, what)) = protected(key)
            && annotation(metadata, key) != before.as_str()
        {
            errors.forbidden(path.key(key), &format!("may not remove or update {what}"));
        }
    }
    for (key, _) in entries(metadata, "annotations") {
        if let Some((_, what)) = protected(key)
            && annotation(old, key).is_none()
        {
            errors.forbidden(path.key(key), &format!("may not add {what}"));
        }
    }
    validate(metadata, spec, path, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(annotations: Value, spec: Value) -> String {
        let (metadata, mut errors) = (json!({"annotations": annotations}), Errors::default());
        validate(&metadata, &spec, &Path::new("metadata.annotations"), &mut errors);
        match_fields(&metadata, &spec, &Path::new("spec"), &mut errors);
        errors.to_string()
    }

    #[test]
    fn annotations_with_a_meaning_are_checked() {
        let nothing = "[]";
        let local = || json!({"containers": [{"name": "a", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}}]});
        for (annotations, spec, wanted) in [
            (json!({DELETION_COST: "-7"}), json!({}), nothing),
            (
                json!({DELETION_COST: "01"}),
                json!({}),
                "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"01\": must be a 32bit integer",
            ),
            (json!({"container.apparmor.security.beta.kubernetes.io/a": "localhost/x"}), local(), nothing),
            (
                json!({"container.apparmor.security.beta.kubernetes.io/a": "localhost/y"}),
                local(),
                "spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: apparmor profile in annotation and field must match",
            ),
            (
                json!({SECCOMP_POD: "runtime/default"}),
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
            ),
        ] {
            assert_eq!(said(annotations, spec), wanted);
        }
    }

    #[test]
    fn app_armor_profiles_of_annotations_become_fields() {
        let metadata =
            json!({"annotations": {format!("{APP_ARMOR}a"): "localhost/x", format!("{APP_ARMOR}b"): "unconfined", format!("{APP_ARMOR}c"): "odd"}});
        let mut spec =
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}, "containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        app_armor_fields(&metadata, &mut spec);
        let local = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}});
        assert_eq!(spec["containers"], json!([{"name": "a", "securityContext": local}, {"name": "b"}, {"name": "c"}]));
    }
}
