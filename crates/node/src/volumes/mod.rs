//! Pods' volumes on the node's disk: made before the first container, kept up to date, taken away at the end.
//!
//! Layout: `pods/UID/volumes/PLUGIN/NAME`, so that the place of a volume follows from its pod and needs no memory. Files
//! made of API objects lie on a tmpfs (secrets never touch the disk) and are swapped whole ([`atomic`]). A `subPath` is
//! opened without leaving its volume and bound to a place of its own ([`subpath`]), whatever links the pod puts there.
//!
//! What must stay true: taking down never deletes through a mount, so nothing is removed while anything is mounted below.

pub mod atomic;
mod claims;
mod host;
mod sources;
pub mod subpath;
pub mod tokens;

use crate::{
    objects::{self, Objects},
    spec::{self, container::Bind, env},
};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokens::Tokens;

/// A volume that could not be made; its message follows `MountVolume.SetUp failed for volume "NAME" : `.
#[derive(Debug, Clone, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub struct Error {
    pub volume: String,
    pub message: String,
}

/// The node's volumes.
pub struct Volumes {
    pods: PathBuf,
    objects: Arc<Objects>,
    tokens: Tokens,
}

/// What a volume is backed by, as it names its directory; `None` if the node knows no such sort.
fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.empty_dir.is_some() {
        Some("kubernetes.io~empty-dir")
    } else if volume.config_map.is_some() {
        Some("kubernetes.io~configmap")
    } else if volume.secret.is_some() {
        Some("kubernetes.io~secret")
    } else if volume.downward_api.is_some() {
        Some("kubernetes.io~downward-api")
    } else if volume.projected.is_some() {
        Some("kubernetes.io~projected")
    } else if volume.host_path.is_some() {
        Some("kubernetes.io~host-path")
    } else {
        None
    }
}

/// Gives a tree to a group, which may then read it (and write it, if `writable`), as `fsGroup` asks.
pub(crate) fn own_by_group(path: &Path, group: i64, writable: bool) -> io::Result<()> {
    let Ok(group_id) = u32::try_from(group) else { return Ok(()) };
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(group_id))?;
    let rights = if writable { 0o660 } else { 0o440 };
    let rights = if meta.is_dir() { rights | 0o2110 } else { rights };
    fs::set_permissions(path, fs::Permissions::from_mode((meta.mode() | rights) & 0o7777))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own_by_group(&entry?.path(), group, writable)?;
        }
    }
    Ok(())
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Volumes {
    pub fn new(pods: PathBuf, objects: Arc<Objects>, tokens: Tokens) -> Volumes {
        Volumes { pods, objects, tokens }
    }

    /// Forgets the tokens of pods that are not on the node.
    pub fn retain_tokens(&self, known: &HashSet<String>) {
        self.tokens.retain(known);
    }

    /// The directory of one pod.
    pub fn pod_directory(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// Where a volume is on the node.
    pub fn place(&self, uid: &str, volume: &Volume) -> Option<PathBuf> {
        if let Some(host) = &volume.host_path {
            return Some(PathBuf::from(&host.path));
        }
        Some(self.pod_directory(uid).join("volumes").join(plugin(volume)?).join(&volume.name))
    }

    /// Makes all volumes of the pod. Done twice it changes nothing.
    pub async fn set_up(&self, pod: &Pod, facts: &env::Facts) -> Result<(), Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let group = spec::spec_of(pod).security_context.as_ref().and_then(|context| context.fs_group);
        let directory = self.pod_directory(&uid);
        blocking(move || fs::create_dir_all(directory)).await.map_err(|error| Error { volume: String::new(), message: error.to_string() })?;
        for volume in &self.volumes_of(pod).await? {
            let failed = |message: String| Error { volume: volume.name.clone(), message };
            if let Some(payload) = self.payload(pod, volume, facts, objects::FRESH).await? {
                self.write(&uid, volume, payload, group).await.map_err(|error| failed(error.to_string()))?;
                continue;
            }
            let place = self.place(&uid, volume);
            let source = volume.clone();
            let made = blocking(move || match (&source.empty_dir, &source.host_path, place) {
                (Some(empty), _, Some(place)) => host::empty_dir(&place, empty, group),
                (_, Some(host), _) => host::host_path(host),
                _ => Err(io::Error::new(io::ErrorKind::Unsupported, "no volume plugin matched")),
            });
            made.await.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Brings the files made of API objects up to date. Returns what could not be, and leaves that as it was.
    pub async fn refresh(&self, pod: &Pod, facts: &env::Facts) -> Vec<Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let group = spec::spec_of(pod).security_context.as_ref().and_then(|context| context.fs_group);
        let mut failures = Vec::new();
        for volume in spec::spec_of(pod).volumes.iter().flatten() {
            match self.payload(pod, volume, facts, objects::KEPT).await {
                Ok(None) => {}
                Ok(Some(payload)) => {
                    if let Err(error) = self.write(&uid, volume, payload, group).await {
                        failures.push(Error { volume: volume.name.clone(), message: error.to_string() });
                    }
                }
                Err(error) => failures.push(error),
            }
        }
        failures
    }

    async fn write(&self, uid: &str, volume: &Volume, payload: atomic::Payload, group: Option<i64>) -> io::Result<bool> {
        let Some(place) = self.place(uid, volume) else { return Ok(false) };
        blocking(move || {
            fs::create_dir_all(&place)?;
            if !host::is_mount_point(&place)? {
                host::mount_tmpfs(&place, None)?;
            }
            fs::set_permissions(&place, fs::Permissions::from_mode(0o777 | if group.is_some() { 0o2000 } else { 0o1000 }))?;
            atomic::write(&place, &payload, group)
        })
        .await
    }

    /// What a container mounts, in its order. `expand` resolves `subPathExpr`, or says what is missing.
    pub async fn binds(&self, pod: &Pod, container: &Container, expand: impl Fn(&str) -> Result<String, String>) -> Result<Vec<Bind>, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let volumes = self.volumes_of(pod).await.map_err(|error| error.to_string())?;
        let volumes: HashMap<&str, &Volume> = volumes.iter().map(|volume| (volume.name.as_str(), volume)).collect();
        let mut binds = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = volumes
                .get(mount.name.as_str())
                .ok_or_else(|| format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name))?;
            let place = self.place(&uid, volume).ok_or_else(|| format!("volume \"{}\" is of a sort that this node does not know", mount.name))?;
            let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
                (Some(expression), _) if !expression.is_empty() => expand(expression)?,
                (_, Some(path)) => path.clone(),
                _ => String::new(),
            };
            let host_path = if sub_path.is_empty() {
                place
            } else {
                let target = self.pod_directory(&uid).join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
                let name = mount.name.clone();
                blocking(move || subpath::bind(&place, &sub_path, &target).map(|()| target))
                    .await
                    .map_err(|error| format!("failed to prepare subPath for volumeMount \"{name}\" of container \"{}\": {error}", container.name))?
            };
            // A volume made of API objects is never written to by a container.
            let managed = volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some() || volume.projected.is_some();
            binds.push(Bind {
                host_path: host_path.to_string_lossy().into_owned(),
                container_path: absolute(&mount.mount_path),
                read_only: mount.read_only.unwrap_or(false) || managed || claims::is_read_only(pod, &mount.name),
                propagation: mount.mount_propagation.clone(),
            });
        }
        Ok(binds)
    }

    /// Takes away everything of the pod. Done twice is done.
    pub async fn tear_down(&self, uid: &str) -> io::Result<()> {
        self.tokens.forget(uid);
        let directory = self.pod_directory(uid);
        blocking(move || host::remove_tree(&directory)).await
    }

    /// UIDs of the pods that have a directory.
    pub async fn known(&self) -> io::Result<Vec<String>> {
        let pods = self.pods.clone();
        blocking(move || {
            let mut out = Vec::new();
            for entry in fs::read_dir(&pods)? {
                out.push(entry?.file_name().to_string_lossy().into_owned());
            }
            Ok(out)
        })
        .await
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
