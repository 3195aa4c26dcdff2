//! Which PersistentVolume suits which claim: facts that the controller of volumes and the scheduler must agree on, and by
//! which a node finds what a pod's claim stands for. Functions of their arguments.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource;
use kube::Resource;
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

use crate::Key;

/// On a claim: its binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On either end: a controller (or the scheduler) has chosen the other one, not a person.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node of the pod that waits for it.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner that makes nothing.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The older way to name a class.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// One annotation of an object.
pub fn annotation<'a, K: Resource>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// The class that a claim names; empty if none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(claim, CLASS).or(spec).unwrap_or_default()
}

/// The class of a volume; empty if none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(volume, CLASS).or(spec).unwrap_or_default()
}

/// Whether a claim's binding is complete.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    annotation(claim, BIND_COMPLETED).is_some() && volume_of_claim(claim).is_some()
}

/// The volume that a claim names.
pub fn volume_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The claim that a volume names.
pub fn claim_of_volume(volume: &PersistentVolume) -> Option<Key> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default()))
}

/// The UID of the claim that a volume is bound to; `None` while it only names one.
pub fn claim_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref().filter(|uid| !uid.is_empty())
}

/// Whether a volume is this claim's: by UID, or by name where no UID is said yet.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let same = claim_uid(volume).is_none_or(|uid| claim.metadata.uid.as_deref() == Some(uid));
    same && claim_of_volume(volume).is_some_and(|key| key == Key::of(claim))
}

/// The name of the claim that a pod's volume stands for, and whether it is made for the pod.
pub fn claim_of_pod(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name), true))
}

fn storage(list: Option<&BTreeMap<String, resource::Quantity>>) -> i64 {
    list.and_then(|list| list.get("storage")).and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value())
}

/// How many bytes a volume holds.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// How many bytes a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// Whether the volume could serve the claim, whoever has it; `Err` says why not.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    let (Some(spec), Some(wanted)) = (&volume.spec, &claim.spec) else { return Err("it has no specification") };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
    if capacity(volume) < requested(claim) {
        return Err("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Err("storageClassName does not match");
    }
    if mode(&spec.volume_mode) != mode(&wanted.volume_mode) {
        return Err("incompatible volumeMode");
    }
    if attributes(&spec.volume_attributes_class_name) != attributes(&wanted.volume_attributes_class_name) {
        return Err("volumeAttributesClassName does not match");
    }
    let offered = spec.access_modes.as_deref().unwrap_or_default();
    if !wanted.access_modes.iter().flatten().all(|mode| offered.contains(mode)) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// The volumes that a claim could get, the best first: those that name it, then the free ones by size. With `only_named`
/// those alone that name it.
pub fn candidates<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>,
    only_named: bool,
) -> Vec<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.clone()).map(Selector::try_from);
    let selected = |volume: &PersistentVolume| match &selector {
        None => true,
        Some(Ok(selector)) => selector.matches(volume.metadata.labels.as_ref().unwrap_or(&BTreeMap::new())),
        Some(Err(_)) => false,
    };
    let free = |volume: &PersistentVolume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        claim_of_volume(volume).is_none() && !matches!(phase, Some("Released" | "Failed")) && selected(volume)
    };
    let usable = |volume: &PersistentVolume| is_for(volume, claim) || (!only_named && free(volume));
    let alive = volumes.filter(|volume| volume.metadata.deletion_timestamp.is_none());
    let mut found: Vec<_> = alive.filter(|volume| suits(volume, claim).is_ok() && usable(volume)).cloned().collect();
    found.sort_by_cached_key(|volume| (!is_for(volume, claim), capacity(volume), volume.metadata.name.clone()));
    found
}

/// What a volume must still be told so that it is the claim's.
pub fn volume_change(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    if claim_uid(volume).is_some_and(|uid| claim.metadata.uid.as_deref() == Some(uid)) {
        return None;
    }
    let reference = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace, "name": claim.metadata.name,
        "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
    });
    let mut change = json!({"metadata": {}, "spec": {"claimRef": reference}});
    // Whom a person has named is not forgotten when the claim goes.
    if claim_of_volume(volume).is_none() {
        change["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_volume_names_its_claim() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"containers": [], "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "b", "ephemeral": {}}, {"name": "c", "emptyDir": {}}]}}))
        .expect("a pod");
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
        let claims: Vec<_> = volumes.iter().map(|volume| claim_of_pod(&pod, volume)).collect();
        assert_eq!(claims, [Some(("data".into(), false)), Some(("web-b".into(), true)), None]);
    }

    #[test]
    fn both_must_agree() {
        let volume =
            |spec: Value| -> PersistentVolume { serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).expect("a volume") };
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "c"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .expect("a claim");
        let check = |spec: Value| suits(&volume(spec), &claim);
        assert_eq!(check(json!({"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]})), Ok(()));
        assert_eq!(check(json!({"capacity": {"storage": "1G"}, "accessModes": ["ReadWriteOnce"]})), Err("requested PV is too small"));
        assert_eq!(check(json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"]})), Err("incompatible accessMode"));
        assert_eq!(check(json!({"capacity": {"storage": "1Gi"}, "volumeMode": "Block"})), Err("incompatible volumeMode"));
        assert_eq!(check(json!({"capacity": {"storage": "1Gi"}, "storageClassName": "x"})), Err("storageClassName does not match"));
    }
}
