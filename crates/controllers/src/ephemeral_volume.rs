//! Claims for pods' generic ephemeral volumes: one per volume, named `POD-VOLUME`, owned by the pod and gone with it.
//!
//! What must stay true: a claim of that name that is somebody else's is never used; the pod then says so and waits.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Recorder};
use client::volumes::claim_of_pod;
use client::{Change, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::ObjectMeta;

use crate::Context;
use crate::common::owner::{Owner, is_controlled_by, name_of, uid_of};
use crate::common::pod_state::{is_deleting, is_finished};

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(EphemeralVolumes { pods: context.informers.all(), claims: context.informers.all(), recorder: context.recorder_for("ephemeral_volume") })
}

struct EphemeralVolumes {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: Recorder,
}

/// The volumes of a pod that claims are made for.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|volume| volume.ephemeral.is_some())
}

/// The claim for a volume, as its template says.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let (name, _) = claim_of_pod(pod, volume)?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![Owner::of(pod).reference]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

#[async_trait]
impl Controller for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.mapped(&self.pods, |change| match change {
            Change::Applied { new, .. } if volumes(new).next().is_some() => vec![Key::of(&**new)],
            _ => Vec::new(),
        });
        // A claim that is deleted while its pod waits is made again.
        inputs.mapped(&self.claims, |change| {
            let Change::Deleted(claim) = change else { return Vec::new() };
            let owners = claim.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Pod");
            owners.map(|owner| Key::new(claim.metadata.namespace.clone().unwrap_or_default(), owner.name.clone())).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_deleting(pod) && !is_finished(pod)) else { return Ok(Next::Done) };
        for volume in volumes(&pod) {
            let Some(wanted) = claim(&pod, volume) else { continue };
            match self.claims.get(&Key::of(&wanted)) {
                Some(existing) if is_controlled_by(&*existing, uid_of(&*pod)) => {}
                Some(_) => {
                    let message = format!("PVC \"{}\" was not created for pod \"{}\" (pod is not owner)", name_of(&wanted), name_of(&*pod));
                    self.recorder.about(&*pod, EventType::Warning, "FailedBinding", message.clone());
                    return Err(Error::NotYet(message));
                }
                None => match self.claims.create(&wanted).await {
                    Ok(_) => {}
                    Err(error) if error.is_namespace_terminating() => return Ok(Next::Done),
                    Err(error) => {
                        let message = format!("ephemeral volume {}: create PVC {}: {}", volume.name, name_of(&wanted), error.short());
                        self.recorder.about(&*pod, EventType::Warning, "FailedBinding", message);
                        return Err(error.into());
                    }
                },
            }
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_follows_the_template_and_belongs_to_the_pod() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "plain", "emptyDir": {}}, {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}}}}]}}))
        .expect("a pod");
        let made: Vec<_> = volumes(&pod).filter_map(|volume| claim(&pod, volume)).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(name_of(&made[0]), "web-scratch");
        assert!(is_controlled_by(&made[0], "u"));
        assert_eq!(made[0].spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()), Some("fast"));
    }
}
