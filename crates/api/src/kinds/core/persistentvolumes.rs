//! PersistentVolume.

use super::persistentvolumeclaims::{BETA_CLASS, class, short_modes, unset};
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        pod::{defaults, scheduling, volumes, warnings},
        values::{fill, fill_absent, list, made, map, member, put, shown, text},
        workload,
    },
    names,
    object::ObjectExt,
    quantity::Quantity,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "PersistentVolume", "persistentvolumes")
        .short(&["pv"])
        .status()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(PersistentVolumes)
}

/// In which order the sources of a volume are looked at.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

struct PersistentVolumes;

impl Hooks for PersistentVolumes {
    fn default(&self, volume: &mut Value) {
        let spec = made(volume, "spec");
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill_absent(spec, "volumeMode", "Filesystem");
        defaults::source(spec);
    }
    fn prepare_create(&self, volume: &mut Value) {
        let mut status = json!({"phase": "Pending"});
        if let Some(now) = volume.creation_timestamp() {
            put(&mut status, "lastPhaseTransitionTime", now);
        }
        put(volume, "status", status);
    }
    /// Who changes the phase may say when; who says nothing of it keeps what was said.
    fn stamp(&self, volume: &mut Value, old: &Value, now: &str) {
        const TIME: &str = "lastPhaseTransitionTime";
        let before = workload::status(old);
        let changed = text(workload::status(volume), "phase") != text(before, "phase");
        let said = member(workload::status(volume), TIME);
        match (changed, said, member(before, TIME)) {
            (true, said, before) if said.is_none() || said == before => put(made(volume, "status"), TIME, now),
            (false, None, Some(before)) => put(made(volume, "status"), TIME, before.clone()),
            _ => {}
        }
    }
    fn validate(&self, volume: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(volume), Path::new("spec"));
        if list(spec, "accessModes").is_empty() {
            errors.required(path.child("accessModes"), "");
        }
        volumes::access_modes(spec, &path, errors);
        capacity(spec, &path, errors);
        if !text(spec, "persistentVolumeReclaimPolicy").is_empty() {
            checks::one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &path, errors);
        }
        if let Some(required) = spec.at("nodeAffinity.required").filter(|r| !r.is_null()) {
            scheduling::node_selector(required, &path.child("nodeAffinity").child("required"), errors);
        } else if member(spec, "nodeAffinity").is_some() {
            errors.required(path.child("nodeAffinity").child("required"), "must specify required node constraints");
        }
        volumes::one_source(spec, SOURCES, &path, errors, |name, value, at, errors| source(name, value, volume, at, errors));
        if spec.str_at("hostPath.path").is_some_and(is_root) && text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
            errors.forbidden(path.child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'");
        }
        checks::checked(spec, "storageClassName", &path, names::dns1123_subdomain, errors);
        checks::one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, errors);
        if let Some(Value::String(class)) = member(spec, "volumeAttributesClassName") {
            let at = path.child("volumeAttributesClassName");
            if class.is_empty() {
                errors.required(at, "an empty string is disallowed");
            } else {
                errors.invalid_all(&at, class.as_str(), names::dns1123_subdomain(class));
            }
            if member(spec, "csi").is_none() {
                errors.required(path.child("csi"), "has to be specified when using volumeAttributesClassName");
            }
        }
        if let Some(old) = old {
            validate_update(spec, workload::spec(old), errors);
        }
    }
    fn warnings(&self, volume: &Value, _old: Option<&Value>) -> Vec<String> {
        let (spec, mut all) = (workload::spec(volume), vec![]);
        let annotation = Path::new("metadata").child("annotations");
        for (key, since, new) in [(BETA_CLASS, "v1.8", "storageClassName"), ("volume.beta.kubernetes.io/mount-options", "v1.31", "mountOptions")] {
            if volume.annotation(key).is_some() {
                all.push(format!("{}: deprecated since {since}; use {new:?} attribute instead", annotation.key(key)));
            }
        }
        if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
            all.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
        }
        let terms = spec.at("nodeAffinity.required").map(|required| list(required, "nodeSelectorTerms")).unwrap_or_default();
        for (i, term) in terms.iter().enumerate() {
            let path = Path::new("spec.nodeAffinity.required.nodeSelectorTerms").index(i);
            warnings::node_selector_term(term, false, &path, &mut all);
        }
        all.extend(
            warnings::OLD_VOLUMES.iter().filter(|(source, _)| member(spec, source).is_some()).map(|(source, why)| format!("spec.{source}: {why}")),
        );
        all
    }
    fn cells(&self, volume: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(volume), workload::status(volume));
        let phase = if volume.deletion_timestamp().is_some() { "Terminating" } else { text(status, "phase") };
        let claim =
            spec.get("claimRef").filter(|c| c.is_object()).map(|c| format!("{}/{}", text(c, "namespace"), text(c, "name"))).unwrap_or_default();
        let capacity = spec.at("capacity.storage").and_then(|q| Quantity::from_value(q).ok()).map_or("0".to_string(), |q| q.to_string());
        vec![
            table::name(volume),
            json!(capacity),
            json!(short_modes(spec, "accessModes")),
            json!(text(spec, "persistentVolumeReclaimPolicy")),
            json!(phase),
            json!(claim),
            json!(class(volume)),
            json!(unset(text(spec, "volumeAttributesClassName"))),
            json!(text(status, "reason")),
            table::age(volume, now_unix_s),
            json!(unset(text(spec, "volumeMode"))),
        ]
    }
}

fn capacity(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("capacity");
    let capacity = map(spec, "capacity");
    if capacity.is_none_or(serde_json::Map::is_empty) {
        errors.required(path.clone(), "");
    }
    if capacity.is_none_or(|c| c.len() != 1 || !c.contains_key("storage")) {
        errors.not_supported(path.clone(), shown(spec, "capacity"), &["storage"]);
    }
    for (name, value) in capacity.into_iter().flatten() {
        let Ok(quantity) = Quantity::from_value(value) else { continue };
        if quantity.sign() < 0 {
            errors.invalid(path.key(name), quantity.value(), "must be a valid resource quantity");
        }
        if quantity.sign() <= 0 {
            errors.invalid(path.key(name), quantity.to_string(), "must be greater than zero");
        }
    }
}

/// The spec of a volume that stands in an attachment: a CSI volume, and little else is said of it.
pub fn inline(spec: &Value, path: &Path, errors: &mut Errors) {
    const INLINE: &str = "in the context of inline volumes";
    let not = |key: &str, errors: &mut Errors| errors.forbidden(path.child(key), &format!("may not be specified {INLINE}"));
    if member(spec, "claimRef").is_some() {
        not("claimRef", errors);
    }
    if map(spec, "capacity").is_some_and(|capacity| !capacity.is_empty()) {
        not("capacity", errors);
    }
    if member(spec, "csi").is_none() {
        errors.required(path.child("csi"), &format!("has to be specified {INLINE}"));
    }
    if list(spec, "accessModes").is_empty() {
        errors.required(path.child("accessModes"), "");
    }
    volumes::access_modes(spec, path, errors);
    if !matches!(text(spec, "persistentVolumeReclaimPolicy"), "" | "Retain") {
        errors.forbidden(path.child("persistentVolumeReclaimPolicy"), &format!("may only be Retain {INLINE}"));
    }
    if member(spec, "nodeAffinity").is_some() {
        not("nodeAffinity", errors);
    }
    let nameless = json!({"spec": spec});
    volumes::one_source(spec, SOURCES, path, errors, |name, value, at, errors| source(name, value, &nameless, at, errors));
    if !text(spec, "storageClassName").is_empty() {
        not("storageClassName", errors);
    }
    if !matches!(text(spec, "volumeMode"), "" | "Filesystem") {
        errors.forbidden(path.child("volumeMode"), &format!("may not specify volumeMode other than Filesystem {INLINE}"));
    }
}

/// Whether a path leads nowhere but to `/`.
fn is_root(path: &str) -> bool {
    let mut depth = 0;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = i32::max(depth - 1, 0),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

/// A Secret that is named with its namespace.
fn secret(source: &Value, key: &str, path: &Path, strict: bool, errors: &mut Errors) {
    let Some(secret) = member(source, key) else { return };
    let path = path.child(key);
    let checked: [(&str, fn(&str) -> Vec<String>); 2] = [("name", names::dns1123_subdomain), ("namespace", names::dns1123_label)];
    for (part, check) in checked {
        if checks::required(secret, part, &path, errors) && strict {
            checks::checked(secret, part, &path, check, errors);
        }
    }
}

/// A source: one of those that pods have too, with what is different here, or one that only volumes have.
fn source(name: &str, source: &Value, volume: &Value, path: &Path, errors: &mut Errors) {
    match name {
        "local" => {
            if checks::required(source, "path", path, errors) {
                volumes::no_backsteps(text(source, "path"), &path.child("path"), errors);
            }
            if member(workload::spec(volume), "nodeAffinity").is_none() {
                errors.required(Path::new("spec").child("nodeAffinity"), "Local volume requires node affinity");
            }
        }
        "csi" => {
            volumes::csi_driver(text(source, "driver"), &path.child("driver"), errors);
            checks::required(source, "volumeHandle", path, errors);
            for key in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
                secret(source, key, path, true, errors);
            }
        }
        "cinder" => {
            checks::required(source, "volumeID", path, errors);
            secret(source, "secretRef", path, false, errors);
        }
        "storageos" => {
            checks::required_checked(source, "volumeName", path, names::dns1123_label, errors);
            checks::checked(source, "volumeNamespace", path, names::dns1123_label, errors);
            secret(source, "secretRef", path, false, errors);
        }
        "glusterfs" => {
            volumes::source(name, source, path, errors);
            match member(source, "endpointsNamespace").and_then(Value::as_str) {
                Some("") => {
                    let why = "if the endpointnamespace is set, it must be a valid namespace name";
                    errors.invalid(path.child("endpointsNamespace"), "", why);
                }
                _ => checks::checked(source, "endpointsNamespace", path, names::dns1123_label, errors),
            }
        }
        "azureFile" => {
            volumes::source(name, source, path, errors);
            if member(source, "secretNamespace").and_then(Value::as_str) == Some("") {
                errors.required(path.child("secretNamespace"), "");
            }
        }
        "iscsi" => volumes::iscsi(source, Some(volume.name()), path, errors),
        _ => {
            volumes::source(name, source, path, errors);
        }
    }
}

/// The node affinity of `spec`, in which labels that only have a newer name than in `old` have the old one.
fn with_new_labels(spec: &Value, old: &Value) -> Option<Value> {
    const EXPRESSIONS: &str = "nodeAffinity.required.nodeSelectorTerms";
    let mut changed = spec.clone();
    let before: Vec<Value> = old.at(EXPRESSIONS).and_then(Value::as_array).cloned().unwrap_or_default();
    let terms = changed.at_mut(EXPRESSIONS).and_then(Value::as_array_mut).into_iter().flatten();
    for (term, before) in terms.zip(&before) {
        let expressions = term.get_mut("matchExpressions").and_then(Value::as_array_mut).into_iter().flatten();
        for (expression, before) in expressions.zip(list(before, "matchExpressions")) {
            if warnings::new_label(text(before, "key")) == Some(text(expression, "key")) {
                put(expression, "key", text(before, "key"));
            }
        }
    }
    member(&changed, "nodeAffinity").cloned()
}

fn validate_update(spec: &Value, old: &Value, errors: &mut Errors) {
    let source = |spec: &Value| {
        let mut source = spec.as_object().cloned().unwrap_or_default();
        source.retain(|name, value| value.is_object() && SOURCES.contains(&name.as_str()));
        source
    };
    const EXPAND: &str = "controllerExpandSecretRef";
    let mut then = source(old);
    // What a driver needs to make a volume larger may be said later.
    if let (Some(was @ Value::Object(_)), Some(now)) = (then.get_mut("csi"), spec.get("csi").and_then(|csi| member(csi, EXPAND)))
        && member(was, EXPAND).is_none()
    {
        put(was, EXPAND, now.clone());
    }
    if source(spec) != then {
        let path = Path::new("spec").child("persistentvolumesource");
        let difference = internal::difference("core.v1.PersistentVolumeSource", old, spec);
        errors.forbidden(path, &format!("spec.persistentvolumesource is immutable after creation{difference}"));
    }
    checks::immutable(spec.get("volumeMode"), old.get("volumeMode"), &Path::new("volumeMode"), errors);
    if member(old, "nodeAffinity").is_some() && with_new_labels(spec, old) != member(old, "nodeAffinity").cloned() {
        let shown = member(spec, "nodeAffinity").map_or(internal::Tree::Leaf(Value::Null), |a| internal::show("core.v1.VolumeNodeAffinity", a));
        errors.invalid_structure(Path::new("nodeAffinity"), &shown, "field is immutable, except for updating from beta label to GA");
    }
    if member(old, "volumeAttributesClassName").is_some() && member(spec, "volumeAttributesClassName").is_none() {
        errors.forbidden(Path::new("spec").child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden");
    }
}
