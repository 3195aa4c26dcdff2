//! The disk that a pod may fill: the `sizeLimit` of its emptyDirs and the `ephemeral-storage` limits of its containers.
//!
//! Who exceeds one is evicted (<https://kubernetes.io/docs/concepts/storage/ephemeral-storage/>). [`excess`] compares; [`measure`] looks at
//! the disk, for those pods alone that have a limit ([`is_limited`]). Volumes in memory are not looked at: their size is their mount's.

use crate::spec::{self, Role, resources::value};
use api::quantity::Format;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

/// Bytes on disk of one pod.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// Of each emptyDir.
    pub volumes: BTreeMap<String, u64>,
    /// Of each container: what it wrote outside volumes, and its logs.
    pub containers: BTreeMap<String, u64>,
}

impl Used {
    /// In all, bytes.
    pub fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).sum()
    }
}

/// The bytes of disk that the pod has asked for.
pub fn asked(pod: &Pod) -> u64 {
    let request = |container: &Container| Some(bytes(container.resources.as_ref()?.requests.as_ref()?.get("ephemeral-storage")?));
    of_containers(pod, |container| request(container).unwrap_or(0))
}

/// What all containers come to: init containers run one after the other, before the others.
fn of_containers(pod: &Pod, of: impl Fn(&Container) -> u64) -> u64 {
    let (first, rest): (Vec<_>, Vec<_>) = spec::containers(pod).into_iter().partition(|(role, _)| *role == Role::Init);
    let rest: u64 = rest.iter().map(|(_, container)| of(container)).sum();
    rest.max(first.iter().map(|(_, container)| of(container)).max().unwrap_or(0))
}

fn limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")
}

fn bytes(limit: &Quantity) -> u64 {
    value(limit).max(0).unsigned_abs()
}

/// The emptyDirs on disk.
fn directories(pod: &Pod) -> Vec<&Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))).collect()
}

fn size_limit(volume: &Volume) -> Option<&Quantity> {
    volume.empty_dir.as_ref()?.size_limit.as_ref().filter(|limit| bytes(limit) > 0)
}

/// Whether anything limits the disk that the pod fills.
pub fn is_limited(pod: &Pod) -> bool {
    directories(pod).into_iter().any(|volume| size_limit(volume).is_some())
        || spec::containers(pod).iter().any(|(_, container)| limit(container).is_some())
}

/// Which limit the pod exceeds, in the kubelet's words.
pub fn excess(pod: &Pod, used: &Used) -> Option<String> {
    let of_volume = directories(pod).into_iter().find_map(|volume| {
        let limit = size_limit(volume)?;
        let exceeds = used.volumes.get(&volume.name).is_some_and(|used| *used > bytes(limit));
        exceeds.then(|| format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ", volume.name, limit.0))
    });
    let containers = spec::containers(pod);
    let limits = || containers.iter().filter_map(|(_, container)| Some((container, limit(container)?)));
    let of_pod = || {
        limits().next()?;
        let total = of_containers(pod, |container| limit(container).map_or(0, bytes));
        (used.total() > total).then(|| {
            let total = api::quantity::Quantity::from_units(i64::try_from(total).unwrap_or(i64::MAX), Format::BinarySi);
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}. ")
        })
    };
    let of_container = || {
        let (container, limit) = limits().find(|(container, limit)| used.containers.get(&container.name).is_some_and(|used| *used > bytes(limit)))?;
        Some(format!("Container {} exceeded its local ephemeral storage limit \"{}\". ", container.name, limit.0))
    };
    of_volume.or_else(of_pod).or_else(of_container)
}

/// Looks at the disk. `place` says where a volume is, `logs` is the pod's directory of logs, `written` what each container wrote. Blocks.
pub fn measure(pod: &Pod, place: impl Fn(&Volume) -> Option<PathBuf>, logs: &Path, written: &BTreeMap<String, u64>) -> Used {
    let volumes = directories(pod).into_iter().filter_map(|volume| Some((volume.name.clone(), on_disk(&place(volume)?))));
    let containers = spec::containers(pod).into_iter().map(|(_, container)| {
        let written = written.get(&container.name).copied().unwrap_or(0);
        let used = written + on_disk(&logs.join(&container.name));
        (container.name, used)
    });
    Used { volumes: volumes.collect(), containers: containers.collect() }
}

/// What a directory fills on its own disk, in bytes. What goes away while it is looked at, or cannot be read, is not counted.
fn on_disk(directory: &Path) -> u64 {
    let Ok(root) = fs::symlink_metadata(directory) else { return 0 };
    let (mut sum, mut open) = (0, vec![directory.to_path_buf()]);
    while let Some(directory) = open.pop() {
        let entries: io::Result<Vec<_>> = fs::read_dir(&directory).and_then(Iterator::collect);
        for entry in entries.unwrap_or_default() {
            let Ok(about) = entry.metadata() else { continue };
            sum += about.blocks() * 512;
            if about.is_dir() && about.dev() == root.dev() {
                open.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        spec::testing::pod(json!({
            "volumes": [{"name": "free", "emptyDir": {}}, {"name": "tight", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}, {"name": "b", "resources": {"limits": {"ephemeral-storage": "4Mi"}}}],
        }))
    }

    fn used(volumes: &[(&str, u64)], containers: &[(&str, u64)]) -> Used {
        let owned = |all: &[(&str, u64)]| all.iter().map(|(name, mebibytes)| (name.to_string(), mebibytes << 20)).collect();
        Used { volumes: owned(volumes), containers: owned(containers) }
    }

    #[test]
    fn each_limit_is_named_that_is_exceeded() {
        assert_eq!(
            excess(&pod(), &used(&[("free", 3), ("tight", 1), ("memory", 9)], &[("a", 1), ("b", 1)])),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 6Mi. ".into())
        );
        assert_eq!(excess(&pod(), &used(&[("tight", 1)], &[("a", 2), ("b", 3)])), None);
        assert_eq!(excess(&pod(), &used(&[("tight", 2)], &[])).as_deref(), Some("Usage of EmptyDir volume \"tight\" exceeds the limit \"1Mi\". "));
        assert_eq!(excess(&pod(), &used(&[], &[("a", 3)])).as_deref(), Some("Container a exceeded its local ephemeral storage limit \"2Mi\". "));
        let unlimited = spec::testing::pod(json!({"volumes": [{"name": "free", "emptyDir": {}}], "containers": [{"name": "a"}]}));
        assert!(is_limited(&pod()) && !is_limited(&unlimited));
        assert_eq!(excess(&unlimited, &used(&[("free", 1 << 20)], &[("a", 1 << 20)])), None);
    }

    #[test]
    fn init_containers_ask_for_what_comes_after_them_too() {
        let asks = |name: &str, amount: &str| json!({"name": name, "resources": {"requests": {"ephemeral-storage": amount}}});
        let pod = |first: &str| {
            let containers = [asks("a", "2Mi"), asks("b", "1Mi"), json!({"name": "c"})];
            spec::testing::pod(json!({"initContainers": [asks("first", first)], "containers": containers}))
        };
        assert_eq!([asked(&pod("1Mi")), asked(&pod("5Mi"))], [3 << 20, 5 << 20]);
        assert_eq!(used(&[("v", 1)], &[("a", 2)]).total(), 3 << 20);
    }

    #[test]
    fn the_disk_is_measured_with_logs_and_without_memory() {
        let directory = tempfile::tempdir().unwrap();
        let file = |path: &str, bytes: usize| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; bytes]).unwrap();
        };
        file("free/deep/down", 10_000);
        file("memory/much", 50_000);
        file("logs/a/0.log", 5_000);
        let place = |volume: &Volume| Some(directory.path().join(&volume.name));
        let found = measure(&pod(), place, &directory.path().join("logs"), &BTreeMap::from([("b".to_string(), 7)]));
        assert!(
            (10_000..30_000).contains(&found.volumes["free"]) && found.volumes["tight"] == 0 && !found.volumes.contains_key("memory"),
            "{found:?}"
        );
        assert!((5_000..20_000).contains(&found.containers["a"]) && found.containers["b"] == 7, "{found:?}");
    }
}
