//! PersistentVolumes and claims brought together: a claim gets the smallest volume that does, for good; a volume whose claim
//! is gone is released and kept, or left to whoever made it to delete.
//!
//! A key without a namespace is a volume's, one with is a claim's. The two ends of a binding are written one after the
//! other (first the volume's `claimRef`, then the claim), so whoever is interrupted goes on where it stopped.
//!
//! A claim of a class with `WaitForFirstConsumer` is left alone until the scheduler has put its name on a volume or a node's
//! name on it. Volumes are made and deleted by the provisioner that their class names; this controller only asks it.
//!
//! What must stay true: a volume is bound to one claim, known by its UID; a claim that was bound never changes its volume.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Recorder};
use client::volumes::{claim_of_volume, claim_uid, class_of_claim, class_of_volume, is_bound, volume_change, volume_of_claim};
use client::{Change, Informer, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use self::plan::{ClaimStep, VolumeStep};
use crate::Context;
use crate::common::owner::{name_of, uid_of};
use crate::common::patch;

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.informers;
    Arc::new(Binder {
        volumes: informers.all(),
        claims: informers.all(),
        classes: informers.all(),
        recorder: context.recorder_for("persistentvolume-controller"),
    })
}

struct Binder {
    volumes: Informer<PersistentVolume>,
    claims: Informer<PersistentVolumeClaim>,
    classes: Informer<StorageClass>,
    recorder: Recorder,
}

/// The claims that may want a volume, or a volume of the class.
fn waiting(claims: &Informer<PersistentVolumeClaim>, class: Option<&str>) -> Vec<Key> {
    let open = claims.list().into_iter().filter(|claim| !is_bound(claim) && class_of_claim(claim) == class.unwrap_or_default());
    open.map(|claim| Key::of(&*claim)).collect()
}

#[async_trait]
impl Controller for Binder {
    fn name(&self) -> &'static str {
        "persistentvolume-binder-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.volumes);
        inputs.primary(&self.claims);
        let claims = self.claims.clone();
        inputs.mapped(&self.volumes, move |change| {
            let volume = change.object();
            match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                Some(claim) => vec![Key::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default())],
                None if matches!(change, Change::Applied { .. }) => waiting(&claims, Some(class_of_volume(volume))),
                None => Vec::new(),
            }
        });
        inputs.mapped(&self.claims, |change| volume_of_claim(change.object()).map(|name| Key::new("", name)).into_iter().collect());
        // A claim that has gone is known to its volume by the volume's own word.
        let volumes = self.volumes.clone();
        inputs.mapped(&self.claims, move |change| match change {
            Change::Deleted(claim) => {
                let of_claim = |volume: &Arc<PersistentVolume>| claim_uid(volume) == Some(uid_of(&**claim));
                volumes.list().into_iter().filter(of_claim).map(|volume| Key::of(&*volume)).collect()
            }
            Change::Applied { .. } => Vec::new(),
        });
        let claims = self.claims.clone();
        inputs.mapped(&self.classes, move |change| waiting(&claims, Some(name_of(&**change.object()))));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        if key.namespace.is_empty() { self.volume(key).await } else { self.claim(key).await }
    }

    fn workers(&self) -> usize {
        // One after the other: two claims never look for a volume at once.
        1
    }
}

impl Binder {
    async fn claim(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Next::Done) };
        let class = self.classes.get(&Key::new("", class_of_claim(&claim)));
        match plan::claim_step(&claim, &self.volumes.list(), class.as_deref()) {
            ClaimStep::Bind(volume) => self.bind(&claim, volume).await?,
            ClaimStep::Lost(why) => {
                self.recorder.about(&*claim, EventType::Warning, "ClaimLost", why);
                self.set_claim_phase(&claim, "Lost").await?;
            }
            ClaimStep::Provision(provisioner) => {
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. \
                     If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                self.recorder.about(&*claim, EventType::Normal, "ExternalProvisioning", message);
                let annotations = claim.metadata.annotations.clone().unwrap_or_default();
                if plan::PROVISIONER.iter().any(|name| annotations.get(*name) != Some(&provisioner)) {
                    let wanted = plan::PROVISIONER.map(|name| (name, provisioner.as_str()));
                    let wanted: std::collections::BTreeMap<_, _> = wanted.into_iter().collect();
                    patch::write(&self.claims, &*claim, json!({"metadata": {"annotations": wanted}})).await?;
                }
                self.set_claim_phase(&claim, "Pending").await?;
            }
            ClaimStep::Wait(reason, why) => {
                self.recorder.about(&*claim, EventType::Normal, reason, why);
                self.set_claim_phase(&claim, "Pending").await?;
            }
            ClaimStep::Pending => self.set_claim_phase(&claim, "Pending").await?,
            ClaimStep::Nothing => {}
        }
        Ok(Next::Done)
    }

    /// First the volume, then the claim; each write only if it is not done yet.
    async fn bind(&self, claim: &Arc<PersistentVolumeClaim>, volume: Arc<PersistentVolume>) -> Result<(), Error> {
        let mut volume = volume;
        if let Some(change) = volume_change(&volume, claim) {
            volume = patch::write(&self.volumes, &*volume, change).await?;
        }
        self.set_volume_phase(&volume, "Bound", None).await?;
        let mut claim = claim.clone();
        if let Some(change) = plan::claim_change(&claim, &volume) {
            claim = patch::write(&self.claims, &*claim, change).await?;
        }
        let status = plan::bound_status(&claim, &volume);
        patch::write_status(&self.claims, &claim, claim.status.as_ref(), &status).await?;
        Ok(())
    }

    async fn set_claim_phase(&self, claim: &Arc<PersistentVolumeClaim>, phase: &str) -> Result<(), Error> {
        let mut status = claim.status.clone().unwrap_or_default();
        status.phase = Some(phase.to_owned());
        patch::write_status(&self.claims, claim, claim.status.as_ref(), &status).await.map(drop)
    }

    async fn set_volume_phase(&self, volume: &Arc<PersistentVolume>, phase: &str, message: Option<String>) -> Result<(), Error> {
        let mut status = volume.status.clone().unwrap_or_default();
        if status.phase.as_deref() != Some(phase) {
            status.last_phase_transition_time = None;
        }
        status.phase = Some(phase.to_owned());
        status.message = message;
        patch::write_status(&self.volumes, volume, volume.status.as_ref(), &status).await.map(drop)
    }

    async fn volume(&self, key: &Key) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Next::Done) };
        let mut claim = None;
        if let Some(claim_key) = claim_of_volume(&volume) {
            claim = self.claims.get(&claim_key);
            // A volume is let go for good: what the cache does not know is asked for.
            if claim.as_ref().is_none_or(|claim| Some(uid_of(&**claim)) != claim_uid(&volume)) {
                claim = self.claims.live(&claim_key).await?.map(Arc::new);
            }
        }
        match plan::volume_step(&volume, claim.as_deref()) {
            VolumeStep::Phase(phase) => self.set_volume_phase(&volume, phase, None).await?,
            VolumeStep::Failed(reason, why) => {
                if volume.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Failed") {
                    self.recorder.about(&*volume, EventType::Warning, reason, why.clone());
                }
                self.set_volume_phase(&volume, "Failed", Some(why)).await?;
            }
            VolumeStep::LetGo(change) => {
                let volume = patch::write(&self.volumes, &*volume, change).await?;
                self.set_volume_phase(&volume, "Available", None).await?;
            }
            VolumeStep::Nothing => {}
        }
        Ok(Next::Done)
    }
}
