//! Which volume a claim gets, and what becomes of each, decided without I/O.

use std::sync::Arc;

use client::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, NO_PROVISIONER, SELECTED_NODE, annotation, candidates, claim_of_volume, claim_uid, class_of_claim, is_bound,
    is_for, suits, volume_of_claim,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use crate::common::owner::{name_of, uid_of};

/// On a volume: who made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make a volume, under the newer and the older name.
pub const PROVISIONER: [&str; 2] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// What to do about a claim.
#[derive(Debug)]
pub enum ClaimStep {
    /// It gets this volume, or the binding is to be completed.
    Bind(Arc<PersistentVolume>),
    /// Its volume is gone.
    Lost(String),
    /// Somebody else is asked to make a volume.
    Provision(String),
    /// It waits, for a reason worth an event.
    Wait(&'static str, String),
    /// It waits.
    Pending,
    /// All is as it should be, or it is being deleted.
    Nothing,
}

/// What to do about a volume.
#[derive(Debug, PartialEq)]
pub enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// It cannot be reclaimed as it should: reason and message.
    Failed(&'static str, String),
    /// The claim it was chosen for has taken another one.
    LetGo(Value),
    /// Its binding is still under way.
    Nothing,
}

/// What to do about a claim.
pub fn claim_step(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], class: Option<&StorageClass>) -> ClaimStep {
    let named = volume_of_claim(claim).unwrap_or_default();
    let volume = volumes.iter().find(|volume| name_of(&***volume) == named);
    if annotation(claim, BIND_COMPLETED).is_some() {
        return match volume {
            _ if named.is_empty() => ClaimStep::Lost("Bound claim has lost reference to PersistentVolume. Data on the volume is lost!".into()),
            None => ClaimStep::Lost("Bound claim has lost its PersistentVolume. Data on the volume is lost!".into()),
            Some(volume) if claim_of_volume(volume).is_none() || is_for(volume, claim) => ClaimStep::Bind(volume.clone()),
            Some(_) => ClaimStep::Lost("Two claims are bound to the same volume, this one is bound incorrectly".into()),
        };
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimStep::Nothing;
    }
    if !named.is_empty() {
        return match volume {
            None => ClaimStep::Pending,
            Some(volume) if claim_of_volume(volume).is_none() => match suits(volume, claim) {
                Ok(()) => ClaimStep::Bind(volume.clone()),
                Err(why) => ClaimStep::Wait("VolumeMismatch", format!("Cannot bind to requested volume \"{named}\": {why}")),
            },
            Some(volume) if is_for(volume, claim) => ClaimStep::Bind(volume.clone()),
            Some(_) => ClaimStep::Wait("FailedBinding", format!("volume \"{named}\" already bound to a different claim.")),
        };
    }
    let delayed = class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let waits_for_a_pod = delayed && annotation(claim, SELECTED_NODE).is_none();
    if let Some(volume) = candidates(claim, volumes.iter(), delayed).into_iter().next() {
        return ClaimStep::Bind(volume);
    }
    if waits_for_a_pod {
        return ClaimStep::Wait("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into());
    }
    match class {
        Some(class) if class.provisioner != NO_PROVISIONER => ClaimStep::Provision(class.provisioner.clone()),
        None if !class_of_claim(claim).is_empty() => {
            let message = format!("storageclass.storage.k8s.io \"{}\" not found", class_of_claim(claim));
            ClaimStep::Wait("ProvisioningFailed", message)
        }
        _ => ClaimStep::Wait("FailedBinding", "no persistent volumes available for this claim and no storage class is set".into()),
    }
}

/// What a claim must still be told so that the volume is its own.
pub fn claim_change(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let named = volume_of_claim(claim).unwrap_or_default();
    if named == name_of(volume) && is_bound(claim) {
        return None;
    }
    let mut change = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
    if named != name_of(volume) {
        change["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
        change["spec"] = json!({"volumeName": name_of(volume)});
    }
    Some(change)
}

/// The status of a claim that is bound to the volume.
pub fn bound_status(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolumeClaimStatus {
    let mut status = claim.status.clone().unwrap_or_default();
    // A volume that has grown is shown as grown by whoever has made the file system grow, not from here.
    if status.phase.as_deref() != Some("Bound") {
        status.capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.clone());
        status.access_modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.clone());
    }
    status.phase = Some("Bound".to_owned());
    status
}

/// What to do about a volume, given the claim that it names, if that is there.
pub fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(uid) = claim_uid(volume) else {
        // Free, or kept for a claim that has not come yet.
        return VolumeStep::Phase("Available");
    };
    let released = || match volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) {
        // Its maker deletes it; nobody else can.
        Some("Delete") if annotation(volume, PROVISIONED_BY).is_some() => VolumeStep::Phase("Released"),
        Some("Delete") => {
            VolumeStep::Failed("VolumeFailedDelete", "error getting deleter volume plugin for volume: no deletable volume plugin matched".into())
        }
        Some("Recycle") => VolumeStep::Failed("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        _ => VolumeStep::Phase("Released"),
    };
    let Some(claim) = claim.filter(|claim| uid_of(*claim) == uid) else { return released() };
    match volume_of_claim(claim).unwrap_or_default() {
        "" => VolumeStep::Nothing,
        name if name == name_of(volume) => VolumeStep::Phase("Bound"),
        // The claim has another volume.
        _ if annotation(volume, PROVISIONED_BY).is_some() => released(),
        _ if annotation(volume, BOUND_BY_CONTROLLER).is_some() => {
            VolumeStep::LetGo(json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}}))
        }
        _ => VolumeStep::LetGo(json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::volumes::volume_change;

    fn volume(name: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({"metadata": {"name": name, "uid": format!("v-{name}")},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
        merge(&mut volume, extra);
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    fn claim(extra: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "data", "namespace": "ns", "uid": "c"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        merge(&mut claim, extra);
        serde_json::from_value(claim).expect("a claim")
    }

    fn class(binding: &str, provisioner: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "fast"}, "provisioner": provisioner, "volumeBindingMode": binding})).expect("a class")
    }

    fn merge(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                patch.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value))
            }
            (into, patch) => *into = patch,
        }
    }

    fn step(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], class: Option<&StorageClass>) -> String {
        match claim_step(claim, volumes, class) {
            ClaimStep::Bind(volume) => format!("bind {}", name_of(&*volume)),
            ClaimStep::Lost(_) => "lost".into(),
            ClaimStep::Provision(by) => format!("provision {by}"),
            ClaimStep::Wait(reason, _) => reason.into(),
            ClaimStep::Pending => "pending".into(),
            ClaimStep::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_does() {
        let volumes = [
            volume("small", "500Mi", json!({})),
            volume("large", "5Gi", json!({})),
            volume("right", "1Gi", json!({})),
            volume("classy", "1Gi", json!({"spec": {"storageClassName": "fast"}})),
            volume("block", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
            volume("taken", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "other"}}})),
            volume("used", "1Gi", json!({"status": {"phase": "Released"}})),
        ];
        assert_eq!(step(&claim(json!({})), &volumes, None), "bind right");
        assert_eq!(step(&claim(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}})), &volumes, None), "bind large");
        assert_eq!(step(&claim(json!({"spec": {"storageClassName": "fast"}})), &volumes, None), "bind classy");
        assert_eq!(step(&claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}})), &volumes, None), "FailedBinding");
        assert_eq!(step(&claim(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})), &volumes, None), "FailedBinding");
    }

    #[test]
    fn names_on_either_side_come_first() {
        let kept = volume("kept", "9Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "data"}}}));
        let free = volume("free", "1Gi", json!({}));
        assert_eq!(step(&claim(json!({})), &[free.clone(), kept], None), "bind kept");
        assert_eq!(step(&claim(json!({"spec": {"volumeName": "free"}})), std::slice::from_ref(&free), None), "bind free");
        assert_eq!(step(&claim(json!({"spec": {"volumeName": "absent"}})), std::slice::from_ref(&free), None), "pending");
        let other = volume("free", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "older"}}}));
        assert_eq!(step(&claim(json!({"spec": {"volumeName": "free"}})), std::slice::from_ref(&other), None), "FailedBinding");
        let bound = claim(json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "free"}}));
        assert_eq!(step(&bound, &[free], None), "bind free");
        assert_eq!(step(&bound, &[other], None), "lost");
        assert_eq!(step(&bound, &[], None), "lost");
    }

    #[test]
    fn a_class_may_wait_for_a_pod_or_make_volumes() {
        let free = volume("free", "1Gi", json!({"spec": {"storageClassName": "fast"}}));
        let named = volume("named", "1Gi", json!({"spec": {"storageClassName": "fast", "claimRef": {"namespace": "ns", "name": "data"}}}));
        let wanted = claim(json!({"spec": {"storageClassName": "fast"}}));
        let (wait, local) = (class("WaitForFirstConsumer", "example.com/disk"), class("WaitForFirstConsumer", NO_PROVISIONER));
        assert_eq!(step(&wanted, std::slice::from_ref(&free), Some(&wait)), "WaitForFirstConsumer");
        assert_eq!(step(&wanted, &[free.clone(), named], Some(&wait)), "bind named");
        let chosen = claim(json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}, "spec": {"storageClassName": "fast"}}));
        assert_eq!(step(&chosen, &[free], Some(&wait)), "provision example.com/disk");
        assert_eq!(step(&wanted, &[], Some(&local)), "WaitForFirstConsumer");
        assert_eq!(step(&wanted, &[], Some(&class("Immediate", "example.com/disk"))), "provision example.com/disk");
        assert_eq!(step(&wanted, &[], None), "ProvisioningFailed");
    }

    #[test]
    fn a_volume_follows_its_claim() {
        let bound = json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c"}}});
        let with = |extra: Value| {
            let mut all = bound.clone();
            merge(&mut all, extra);
            volume("v", "1Gi", all)
        };
        let own = claim(json!({"spec": {"volumeName": "v"}}));
        assert_eq!(volume_step(&volume("v", "1Gi", json!({})), None), VolumeStep::Phase("Available"));
        assert_eq!(volume_step(&with(json!({})), Some(&own)), VolumeStep::Phase("Bound"));
        assert_eq!(volume_step(&with(json!({})), Some(&claim(json!({})))), VolumeStep::Nothing);
        assert_eq!(volume_step(&with(json!({})), None), VolumeStep::Phase("Released"));
        let again = claim(json!({"metadata": {"uid": "newer"}}));
        assert_eq!(volume_step(&with(json!({})), Some(&again)), VolumeStep::Phase("Released"));
        let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
        assert!(matches!(volume_step(&with(delete.clone()), None), VolumeStep::Failed("VolumeFailedDelete", _)));
        let mut made = delete;
        merge(&mut made, json!({"metadata": {"annotations": {PROVISIONED_BY: "example.com/disk"}}}));
        assert_eq!(volume_step(&with(made), None), VolumeStep::Phase("Released"));
        let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
        assert!(matches!(volume_step(&with(json!({})), Some(&elsewhere)), VolumeStep::LetGo(_)));
    }

    #[test]
    fn both_ends_are_written_once() {
        let (free, open) = (volume("v", "1Gi", json!({})), claim(json!({})));
        let change = volume_change(&free, &open).expect("a change");
        assert_eq!(change["spec"]["claimRef"]["uid"], "c");
        assert_eq!(change["metadata"]["annotations"][BOUND_BY_CONTROLLER], "yes");
        let bound = volume("v", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c"}}}));
        assert_eq!(volume_change(&bound, &open), None);
        let change = claim_change(&open, &bound).expect("a change");
        assert_eq!(change["spec"]["volumeName"], "v");
        let done = claim(json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "v"}}));
        assert_eq!(claim_change(&done, &bound), None);
        assert_eq!(bound_status(&done, &bound).capacity, bound.spec.as_ref().and_then(|spec| spec.capacity.clone()));
    }
}
