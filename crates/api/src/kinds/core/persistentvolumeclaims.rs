//! PersistentVolumeClaim.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{defaults, volumes, warnings},
        values::{has, made, map, member, put, strings, take, text, within},
        workload,
    },
    object::ObjectExt,
    quantity::Quantity,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).status().hooks(PersistentVolumeClaims)
}

struct PersistentVolumeClaims;

pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim or volume names, the old annotation first.
pub fn class(object: &Value) -> &str {
    object.annotation(BETA_CLASS).unwrap_or_else(|| text(workload::spec(object), "storageClassName"))
}
/// `RWO,ROX`: access modes in short.
pub fn short_modes(parent: &Value, key: &str) -> String {
    let modes: Vec<&str> = strings(parent, key).collect();
    let short: Vec<&str> = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")]
        .iter()
        .filter(|(mode, _)| modes.contains(mode))
        .map(|(_, short)| *short)
        .collect();
    short.join(",")
}

/// The two ways to name a source say the same; sources of unknown kinds are only said the newer way.
fn sources(spec: &mut Value) {
    if let Some(source) = member(spec, "dataSource") {
        let known = match text(source, "apiGroup") {
            "" => true,
            group => group == "snapshot.storage.k8s.io" && text(source, "kind") == "VolumeSnapshot",
        };
        if !known && !has(spec, "dataSourceRef") {
            take(spec, "dataSource");
        }
    }
    for key in ["dataSource", "dataSourceRef"] {
        within(spec, key, |source| {
            if !has(source, "apiGroup") {
                put(source, "apiGroup", Value::Null);
            }
        });
    }
    match (member(spec, "dataSource").cloned(), member(spec, "dataSourceRef").cloned()) {
        (Some(source), None) => put(spec, "dataSourceRef", source),
        (None, Some(source)) if text(&source, "namespace").is_empty() => put(spec, "dataSource", source),
        _ => {}
    }
}

impl Hooks for PersistentVolumeClaims {
    fn default(&self, claim: &mut Value) {
        defaults::claim_spec(made(claim, "spec"));
    }
    fn prepare_create(&self, claim: &mut Value) {
        put(claim, "status", json!({"phase": "Pending"}));
        within(claim, "spec", sources);
    }
    fn prepare_update(&self, claim: &mut Value, _old: &Value) {
        within(claim, "spec", sources);
    }
    fn validate(&self, claim: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(claim), Path::new("spec"));
        volumes::claim_spec(spec, &path, errors);
        if let Some(old) = old {
            validate_update(spec, old, &path, errors);
        }
    }
    fn warnings(&self, claim: &Value, _old: Option<&Value>) -> Vec<String> {
        let key = Path::new("metadata").child("annotations").key(BETA_CLASS);
        let old = claim.annotation(BETA_CLASS).map(|_| format!("{key}: deprecated since v1.8; use \"storageClassName\" attribute instead"));
        old.into_iter().chain(warnings::claim_spec(workload::spec(claim), &Path::new("spec"))).collect()
    }
    fn cells(&self, claim: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(claim), workload::status(claim));
        let phase = if claim.deletion_timestamp().is_some() { "Terminating" } else { text(status, "phase") };
        let bound = !text(spec, "volumeName").is_empty();
        let storage = || status.at("capacity.storage").and_then(|q| Quantity::from_value(q).ok()).map_or("0".to_string(), |q| q.to_string());
        let capacity = if bound { storage() } else { String::new() };
        vec![
            table::name(claim),
            json!(phase),
            json!(text(spec, "volumeName")),
            json!(capacity),
            json!(if bound { short_modes(status, "accessModes") } else { String::new() }),
            json!(class(claim)),
            json!(spec.str_at("volumeAttributesClassName").unwrap_or("<unset>")),
            table::age(claim, now_unix_s),
            json!(unset(text(spec, "volumeMode"))),
        ]
    }
}

/// A cell of what may be unset.
pub fn unset(text: &str) -> &str {
    if text.is_empty() { "<unset>" } else { text }
}

fn validate_update(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let before = workload::spec(old);
    let bound = text(workload::status(old), "phase") == "Bound";
    let copy = |spec: &Value| {
        let mut spec = spec.as_object().cloned().unwrap_or_default();
        spec.retain(|_, value| !value.is_null());
        spec
    };
    // What may change is made the same on both sides, so that the message shows the object as it is.
    let (mut new, mut then) = (copy(spec), copy(before));
    if bound {
        let size = before.at("resources.requests.storage").cloned();
        let requests = new.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(Value::as_object_mut);
        match (requests, size) {
            (Some(requests), Some(size)) => drop(requests.insert("storage".into(), size)),
            (Some(requests), None) => drop(requests.remove("storage")),
            (None, _) => {}
        }
        match before.get("volumeAttributesClassName").filter(|class| !class.is_null()) {
            Some(class) => drop(new.insert("volumeAttributesClassName".into(), class.clone())),
            None => drop(new.remove("volumeAttributesClassName")),
        }
    }
    // Binding gives a claim its volume, and a class where it had none.
    for (key, unset) in [("volumeName", text(before, "volumeName").is_empty()), ("storageClassName", !has(before, "storageClassName"))] {
        if unset {
            match new.get(key) {
                Some(given) => drop(then.insert(key.into(), given.clone())),
                None => drop(then.remove(key)),
            }
        }
    }
    if new != then {
        let [new, old] = [new, then].map(Value::Object);
        let difference = internal::difference("core.v1.PersistentVolumeClaimSpec", &old, &new);
        errors.forbidden(
            path.clone(),
            &format!("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims{difference}"),
        );
    }
    let storage = |spec: &Value| {
        spec.get("resources").and_then(|r| map(r, "requests")).and_then(|r| r.get("storage")).and_then(|q| Quantity::from_value(q).ok())
    };
    let capacity = old.at("status.capacity.storage").and_then(|q| Quantity::from_value(q).ok());
    if let (Some(new), Some(then)) = (storage(spec), storage(before))
        && new < then
        && capacity.is_some_and(|capacity| new <= capacity)
    {
        errors.forbidden(path.child("resources").child("requests").child("storage"), "field can not be less than status.capacity");
    }
    checks::immutable(spec.get("volumeMode"), before.get("volumeMode"), &Path::new("volumeMode"), errors);
    if !text(workload::status(old), "currentVolumeAttributesClassName").is_empty() {
        let class = path.child("volumeAttributesClassName");
        const IS_SAID: &str = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match member(spec, "volumeAttributesClassName").and_then(Value::as_str) {
            None => errors.forbidden(class, &format!("update to nil {IS_SAID}")),
            Some("") => errors.forbidden(class, &format!("update to empty string {IS_SAID}")),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(more: Value) -> String {
        let old = json!({"metadata": {"name": "c"}, "status": {"phase": "Bound"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "v",
            "storageClassName": "a", "resources": {"requests": {"storage": "1Gi"}}}});
        let mut new = old.clone();
        crate::merge::merge_patch(&mut new, &json!({"spec": more}));
        let mut errors = Errors::default();
        validate_update(&new["spec"], &old, &Path::new("spec"), &mut errors);
        errors.to_string()
    }

    #[test]
    fn a_bound_claim_may_grow_and_what_else_changes_is_shown_in_its_place() {
        assert_eq!(update(json!({"resources": {"requests": {"storage": "2Gi"}}, "volumeAttributesClassName": "gold"})), "[]");
        let message = update(json!({"storageClassName": "b"}));
        assert!(
            message.contains("\n@@ -10,7 +10,7 @@\n") && message.contains("- \"StorageClassName\": \"a\",\n+ \"StorageClassName\": \"b\","),
            "{message}"
        );
        assert!(update(json!({"volumeName": "w"})).contains("+ \"VolumeName\": \"w\","));
    }
}
