//! PersistentVolume.

use super::persistentvolumeclaims::{BETA_CLASS, class, short_modes, unset};
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        pod::{defaults, scheduling, volumes, warnings},
        values::{fill, list, made, map, member, put, shown, strings, text},
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

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Sources that only a PersistentVolume has; the others are those of pods.
const OWN_SOURCES: &[&str] = &["local", "csi"];

struct PersistentVolumes;

impl Hooks for PersistentVolumes {
    fn default(&self, volume: &mut Value) {
        let spec = made(volume, "spec");
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill(spec, "volumeMode", "Filesystem");
        defaults::source(spec);
    }
    fn prepare_create(&self, volume: &mut Value) {
        let mut status = json!({"phase": "Pending"});
        if let Some(now) = volume.creation_timestamp() {
            put(&mut status, "lastPhaseTransitionTime", now);
        }
        put(volume, "status", status);
    }
    fn validate(&self, volume: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(volume), Path::new("spec"));
        access_modes(spec, &path, errors);
        capacity(spec, &path, errors);
        checks::one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &path, errors);
        if let Some(required) = spec.at("nodeAffinity.required").filter(|r| !r.is_null()) {
            scheduling::node_selector(required, &path.child("nodeAffinity").child("required"), errors);
        } else if member(spec, "nodeAffinity").is_some() {
            errors.required(path.child("nodeAffinity").child("required"), "must specify required node constraints");
        }
        let mut count = 0;
        for (name, value) in spec.as_object().into_iter().flatten().filter(|(_, value)| value.is_object()) {
            let mut found = Errors::default();
            let at = path.child(name);
            if OWN_SOURCES.contains(&name.as_str()) {
                own_source(name, value, spec, &at, &mut found);
            } else if !volumes::source(name, value, &at, &mut found) {
                continue;
            }
            count += 1;
            if count > 1 {
                errors.forbidden(at, "may not specify more than 1 volume type");
            } else {
                errors.extend(found);
            }
        }
        if count == 0 {
            errors.required(path.clone(), "must specify a volume type");
        }
        if spec.str_at("hostPath.path") == Some("/") && text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
            errors.forbidden(path.child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'");
        }
        checks::checked(spec, "storageClassName", &path, names::dns1123_subdomain, errors);
        checks::one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, errors);
        checks::checked(spec, "volumeAttributesClassName", &path, names::dns1123_subdomain, errors);
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

fn access_modes(spec: &Value, path: &Path, errors: &mut Errors) {
    let modes: Vec<&str> = strings(spec, "accessModes").collect();
    let path = path.child("accessModes");
    if modes.is_empty() {
        errors.required(path.clone(), "");
    }
    for mode in &modes {
        if !MODES.contains(mode) {
            errors.not_supported(path.clone(), *mode, MODES);
        }
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
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
        if let Ok(quantity) = Quantity::from_value(value)
            && quantity.sign() <= 0
        {
            errors.invalid(path.key(name), quantity.to_string(), "must be greater than zero");
        }
    }
}

fn own_source(name: &str, source: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    if name == "local" {
        if checks::required(source, "path", path, errors) {
            volumes::no_backsteps(text(source, "path"), &path.child("path"), errors);
        }
        if member(spec, "nodeAffinity").is_none() {
            errors.required(Path::new("metadata").child("annotations"), "Local volume requires node affinity");
        }
        return;
    }
    if checks::required(source, "driver", path, errors) {
        errors.invalid_all(&path.child("driver"), text(source, "driver"), volumes::csi_driver(text(source, "driver")));
    }
    checks::required(source, "volumeHandle", path, errors);
    for key in ["controllerPublishSecretRef", "nodePublishSecretRef", "nodeStageSecretRef", "controllerExpandSecretRef", "nodeExpandSecretRef"] {
        if let Some(secret) = member(source, key) {
            checks::required(secret, "name", &path.child(key), errors);
            checks::required(secret, "namespace", &path.child(key), errors);
        }
    }
}

fn validate_update(spec: &Value, old: &Value, errors: &mut Errors) {
    let source = |spec: &Value| {
        let mut source = spec.as_object().cloned().unwrap_or_default();
        source.retain(|name, value| value.is_object() && !matches!(name.as_str(), "capacity" | "claimRef" | "nodeAffinity"));
        source
    };
    if source(spec) != source(old) {
        let path = Path::new("spec").child("persistentvolumesource");
        let difference = internal::difference("core.v1.PersistentVolumeSource", old, spec);
        errors.forbidden(path, &format!("spec.persistentvolumesource is immutable after creation{difference}"));
    }
    checks::immutable(spec.get("volumeMode"), old.get("volumeMode"), &Path::new("volumeMode"), errors);
    if member(old, "nodeAffinity").is_some() && member(spec, "nodeAffinity") != member(old, "nodeAffinity") {
        let shown = member(spec, "nodeAffinity").map_or(internal::Tree::Leaf(Value::Null), |a| internal::show("core.v1.VolumeNodeAffinity", a));
        errors.invalid_structure(Path::new("nodeAffinity"), &shown, "field is immutable, except for updating from beta label to GA");
    }
}
