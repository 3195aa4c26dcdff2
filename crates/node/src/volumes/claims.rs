//! Volumes that a pod reaches through a claim: the claim names a PersistentVolume, and that a place on this node.
//!
//! A volume of the sort `hostPath` or `local` is that place; sorts that need a driver are refused with the sort's name. What a
//! claim stands for never changes once it is bound, so it is taken from the node's memory where no server answers.

use super::{Error, Volumes};
use crate::{objects, spec};
use client::volumes::{claim_of_pod, is_bound, is_for, volume_of_claim};
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, Pod, Volume};

/// Whether the pod may only read what the volume of this name stands for.
pub(super) fn is_read_only(pod: &Pod, name: &str) -> bool {
    let spec = spec::spec_of(pod);
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
    let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
    claim.and_then(|claim| claim.read_only).unwrap_or(false)
}

/// A volume of this node with the same content; `Err` says why there is none.
fn stand_in(name: &str, volume: &PersistentVolume) -> Result<Volume, String> {
    let Some(source) = &volume.spec else { return Err("no volume plugin matched".to_owned()) };
    if source.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "volume {} is a block device, which this node does not give to pods",
            volume.metadata.name.as_deref().unwrap_or_default()
        ));
    }
    let host_path = match (&source.host_path, &source.local) {
        (Some(host), _) => host.clone(),
        (None, Some(local)) => HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".to_owned()) },
        _ => return Err("no volume plugin matched: this node knows PersistentVolumes of the sorts hostPath and local".to_owned()),
    };
    Ok(Volume { name: name.to_owned(), host_path: Some(host_path), ..Volume::default() })
}

impl Volumes {
    /// The pod's volumes, with what its claims stand for in their place.
    pub(super) async fn volumes_of(&self, pod: &Pod) -> Result<Vec<Volume>, Error> {
        let mut volumes = Vec::new();
        for volume in spec::spec_of(pod).volumes.iter().flatten() {
            volumes.push(match claim_of_pod(pod, volume) {
                Some((claim, _)) => {
                    self.claimed(pod, &volume.name, &claim).await.map_err(|message| Error { volume: volume.name.clone(), message })?
                }
                None => volume.clone(),
            });
        }
        Ok(volumes)
    }

    async fn claimed(&self, pod: &Pod, name: &str, claim_name: &str) -> Result<Volume, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let claim = self.objects.claim(&namespace, claim_name, objects::KEPT).await.map_err(|error| error.to_string())?;
        let claim = match claim {
            // It may have been bound a moment ago.
            Some(claim) if !is_bound(&claim) => {
                self.objects.claim(&namespace, claim_name, objects::FRESH).await.map_err(|error| error.to_string())?
            }
            claim => claim,
        };
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{claim_name}\" not found"))?;
        let volume = volume_of_claim(&claim).filter(|_| is_bound(&claim)).ok_or_else(|| format!("PVC {namespace}/{claim_name} is not bound"))?;
        let found = self.objects.volume(volume, objects::KEPT).await.map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
        if !is_for(&found, &claim) {
            return Err(format!("persistentvolume \"{volume}\" is bound to another claim than {namespace}/{claim_name}"));
        }
        stand_in(name, &found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, expected: Result<(&str, &str), &str>) {
        let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap();
        let made = stand_in("data", &volume);
        match (made, expected) {
            (Ok(made), Ok((path, sort))) => {
                let host = made.host_path.unwrap();
                assert_eq!((made.name.as_str(), host.path.as_str(), host.type_.as_deref().unwrap_or_default()), ("data", path, sort));
            }
            (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
            (made, expected) => panic!("{made:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_is_on_this_node_stands_in() {
        check(json!({"hostPath": {"path": "/data", "type": "DirectoryOrCreate"}}), Ok(("/data", "DirectoryOrCreate")));
        check(json!({"local": {"path": "/mnt/a"}}), Ok(("/mnt/a", "Directory")));
        check(json!({"local": {"path": "/dev/b"}, "volumeMode": "Block"}), Err("block device"));
        check(json!({"nfs": {"server": "s", "path": "/"}}), Err("no volume plugin matched"));
    }
}
