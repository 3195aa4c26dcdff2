//! Namespace.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        values::{fill, list, made, put, strings, text},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "Namespace", "namespaces")
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .names(NameRule::Label)
        .selectable(&["status.phase"])
        .connect("finalize", ("", "", "Namespace"), &["update"])
        .status()
        .hooks(Namespaces)
}

/// The finalizer under which the namespace controller empties a namespace.
pub const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

struct Namespaces;

impl Hooks for Namespaces {
    fn default(&self, namespace: &mut Value) {
        let name = namespace.name().to_string();
        // A name that is yet to be generated comes after the client's part of the object.
        if !name.is_empty() && namespace.str_at("metadata.generateName").unwrap_or_default().is_empty() {
            namespace.set_label(NAME_LABEL, &name);
        }
        made(namespace, "spec");
    }
    fn prepare_create(&self, namespace: &mut Value) {
        let name = namespace.name().to_string();
        namespace.set_label(NAME_LABEL, &name);
        put(namespace, "status", json!({"phase": "Active"}));
        let spec = made(namespace, "spec");
        let mut finalizers = list(spec, "finalizers").to_vec();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(json!(FINALIZER));
        }
        put(spec, "finalizers", finalizers);
    }
    fn prepare_update(&self, namespace: &mut Value, old: &Value) {
        let finalizers = old.at("spec.finalizers").cloned();
        let spec = made(namespace, "spec");
        match finalizers {
            Some(finalizers) => put(spec, "finalizers", finalizers),
            None => {
                crate::kinds::values::take(spec, "finalizers");
            }
        }
    }
    fn prepare_view(&self, _view: &str, namespace: &mut Value, old: &Value) {
        if let Some(status) = old.get("status") {
            put(namespace, "status", status.clone());
        }
    }
    fn validate(&self, namespace: &Value, _old: Option<&Value>, errors: &mut Errors) {
        finalizers(namespace, false, errors);
        pod_security(namespace, errors);
    }
    fn validate_view(&self, _view: &str, namespace: &Value, _old: &Value, errors: &mut Errors) {
        finalizers(namespace, true, errors);
    }
    fn validate_status(&self, namespace: &Value, _old: &Value, errors: &mut Errors) {
        let phase = text(workload::status(namespace), "phase");
        let path = Path::new("status").child("Phase");
        if namespace.deletion_timestamp().is_none() {
            if phase != "Active" {
                errors.invalid(path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
            }
        } else if phase != "Terminating" {
            errors.invalid(path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }
    fn cells(&self, namespace: &Value, now_unix_s: i64) -> Vec<Value> {
        let mut status = workload::status(namespace).clone();
        if !status.is_object() {
            status = json!({});
        }
        fill(&mut status, "phase", "");
        vec![table::name(namespace), status["phase"].clone(), table::age(namespace, now_unix_s)]
    }
}

/// Names of `spec.finalizers` are qualified, or the one that Kubernetes has.
fn finalizers(namespace: &Value, indexed: bool, errors: &mut Errors) {
    let path = Path::new("spec").child("finalizers");
    for (i, name) in strings(workload::spec(namespace), "finalizers").enumerate() {
        let path = if indexed { path.index(i) } else { path.clone() };
        errors.invalid_all(&path, name, names::qualified_name(name));
        if !name.contains('/') && name != FINALIZER {
            errors.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}

/// Labels that set the pod security level say a level and a version.
fn pod_security(namespace: &Value, errors: &mut Errors) {
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("pod-security.kubernetes.io/{mode}");
        let path = |key: &str| Path::new("metadata").child("labels").key(key);
        if let Some(level) = namespace.label(&key)
            && !matches!(level, "privileged" | "baseline" | "restricted")
        {
            errors.invalid(path(&key), level, "must be one of privileged, baseline, restricted");
        }
        let key = format!("{key}-version");
        if let Some(version) = namespace.label(&key) {
            let minor = version
                .strip_prefix("v1.")
                .is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0')));
            if version != "latest" && !minor {
                errors.invalid(path(&key), version, "must be \"latest\" or \"v1.x\"");
            }
        }
    }
}
