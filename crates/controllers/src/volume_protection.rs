//! A volume in use does not go: the finalizers `kubernetes.io/pvc-protection` and `kubernetes.io/pv-protection` come off a
//! claim when no pod uses it any more, and off a volume when it is bound to no claim; `kubernetes.io/vac-protection` off a
//! VolumeAttributesClass when no volume and no claim has it or wants it.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::volumes::claim_of_pod;
use client::{Change, Informer, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::json;

use crate::Context;
use crate::common::patch;
use crate::common::pod_state::is_finished;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

/// Makes the controller of claims.
pub fn new_of_claims(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Claims { claims: context.informers.all(), pods: context.informers.all() })
}

/// Makes the controller of volumes.
pub fn new_of_volumes(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Volumes { volumes: context.informers.all() })
}

/// Makes the controller of VolumeAttributesClasses.
pub fn new_of_classes(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Classes { classes: context.informers.all(), volumes: context.informers.all(), claims: context.informers.all() })
}

/// The finalizers that the object should have, if not what it has.
fn finalizers(have: &[String], ours: &str, deleting: bool, in_use: bool) -> Option<Vec<String>> {
    let has_ours = have.iter().any(|each| each == ours);
    match (deleting, has_ours) {
        (true, true) if !in_use => Some(have.iter().filter(|each| *each != ours).cloned().collect()),
        (false, false) => Some(have.iter().cloned().chain([ours.to_owned()]).collect()),
        _ => None,
    }
}

/// The claims that a pod uses, by name: as volumes, and those made for it.
fn claims_of(pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| claim_of_pod(pod, volume)).map(|(name, _)| name);
    names.map(|name| Key::new(namespace.clone(), name)).collect()
}

struct Claims {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

#[async_trait]
impl Controller for Claims {
    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.claims);
        inputs.mapped(&self.pods, |change| match change {
            Change::Applied { new, .. } if !is_finished(new) => Vec::new(),
            change => claims_of(change.object()),
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Next::Done) };
        let deleting = claim.metadata.deletion_timestamp.is_some();
        let uses =
            |pod: &Arc<Pod>| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) && !is_finished(pod) && claims_of(pod).contains(key);
        let in_use = deleting && self.pods.in_namespace(&key.namespace).iter().any(uses);
        let have = claim.metadata.finalizers.as_deref().unwrap_or_default();
        if let Some(wanted) = finalizers(have, CLAIM, deleting, in_use) {
            patch::write(&self.claims, &*claim, json!({"metadata": {"finalizers": wanted}})).await?;
        }
        Ok(Next::Done)
    }
}

struct Volumes {
    volumes: Informer<PersistentVolume>,
}

#[async_trait]
impl Controller for Volumes {
    fn name(&self) -> &'static str {
        "persistentvolume-protection-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.volumes);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Next::Done) };
        let deleting = volume.metadata.deletion_timestamp.is_some();
        let in_use = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let have = volume.metadata.finalizers.as_deref().unwrap_or_default();
        if let Some(wanted) = finalizers(have, VOLUME, deleting, in_use) {
            patch::write(&self.volumes, &*volume, json!({"metadata": {"finalizers": wanted}})).await?;
        }
        Ok(Next::Done)
    }
}

struct Classes {
    classes: Informer<VolumeAttributesClass>,
    volumes: Informer<PersistentVolume>,
    claims: Informer<PersistentVolumeClaim>,
}

/// The class that a volume has.
fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

/// The classes that a claim wants, has and is on its way to.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let has = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target = status.and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref());
    [wanted, has, target].into_iter().flatten()
}

fn class_key(name: &str) -> Key {
    Key::new("", name)
}

#[async_trait]
impl Controller for Classes {
    fn name(&self) -> &'static str {
        "volumeattributesclass-protection-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.classes);
        // Whatever let go of a class may have been the last.
        inputs.mapped(&self.volumes, |change| {
            let before = change.old().or(Some(change.object()));
            before.and_then(|volume| class_of_volume(volume)).map(class_key).into_iter().collect()
        });
        inputs.mapped(&self.claims, |change| {
            let before = change.old().or(Some(change.object()));
            before.into_iter().flat_map(|claim| classes_of_claim(claim)).map(class_key).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(class) = self.classes.get(key) else { return Ok(Next::Done) };
        let deleting = class.metadata.deletion_timestamp.is_some();
        let in_use = deleting
            && (self.volumes.list().iter().any(|volume| class_of_volume(volume) == Some(&key.name))
                || self.claims.list().iter().any(|claim| classes_of_claim(claim).any(|name| name == key.name)));
        let have = class.metadata.finalizers.as_deref().unwrap_or_default();
        if let Some(wanted) = finalizers(have, CLASS, deleting, in_use) {
            patch::write(&self.classes, &*class, json!({"metadata": {"finalizers": wanted}})).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_comes_and_goes() {
        let have = |list: &[&str]| list.iter().map(|each| (*each).to_owned()).collect::<Vec<_>>();
        assert_eq!(finalizers(&have(&["a"]), CLAIM, false, false), Some(have(&["a", CLAIM])));
        assert_eq!(finalizers(&have(&["a", CLAIM]), CLAIM, true, true), None);
        assert_eq!(finalizers(&have(&["a", CLAIM]), CLAIM, true, false), Some(have(&["a"])));
        assert_eq!(finalizers(&have(&["a"]), CLAIM, true, false), None);
    }

    #[test]
    fn a_claim_holds_on_to_all_classes_that_it_has_to_do_with() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": {"volumeAttributesClassName": "wanted"},
            "status": {"currentVolumeAttributesClassName": "had", "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "next"}},
        }))
        .expect("a claim");
        assert_eq!(classes_of_claim(&claim).collect::<Vec<_>>(), ["wanted", "had", "next"]);
        assert_eq!(classes_of_claim(&PersistentVolumeClaim::default()).count(), 0);
        let volume: PersistentVolume = serde_json::from_value(json!({"spec": {"volumeAttributesClassName": "gold"}})).expect("a volume");
        assert_eq!(class_of_volume(&volume), Some("gold"));
    }
}
