//! Pressure: when memory, disk or process numbers run low, which pods must go, and what the node says of itself.
//!
//! Pure but for the readings: [`pressures`] compares, [`rank`] chooses. Pods that use more than they asked for go first,
//! then by priority, then by how much more; critical and already ending pods never. One at a time, so that the effect of
//! one is seen before the next.

use crate::spec::{
    self,
    resources::{self, Qos},
};
use api::quantity::Quantity;
use client::taints;
use k8s_openapi::api::core::v1::{Pod, Taint};
use std::{collections::BTreeMap, sync::Arc};

/// When a resource counts as low: an amount, or a share (0 to 1) of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    Amount(u64),
    Share(f64),
}

impl Threshold {
    /// What that is of `whole`.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Threshold::Amount(amount) => amount,
            Threshold::Share(share) => (whole as f64 * share) as u64,
        }
    }
    /// Whether `left` of `whole` is too little; of what could not be read nothing is.
    fn is_above(self, left: u64, whole: u64) -> bool {
        whole > 0 && left < self.of(whole)
    }
}

/// When resources count as low. The defaults are Kubernetes'; the text form is that of the kubelet's `--eviction-hard`:
/// `memory.available<100Mi,nodefs.available<10%`. A signal that the text does not name keeps its default.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    pub memory_available: Threshold,
    pub disk_available: Threshold,
    pub inodes_free: Threshold,
    pub pids_available: Threshold,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            memory_available: Threshold::Amount(100 * 1024 * 1024),
            disk_available: Threshold::Share(0.10),
            inodes_free: Threshold::Share(0.05),
            pids_available: Threshold::Share(0.0),
        }
    }
}

/// A text that is not a list of thresholds.
#[derive(Debug, thiserror::Error)]
#[error("{given:?} is not a threshold: write SIGNAL<AMOUNT or SIGNAL<PERCENT%, SIGNAL being one of {}", SIGNALS.join(", "))]
pub struct NotAThreshold {
    given: String,
}

const SIGNALS: [&str; 4] = ["memory.available", "nodefs.available", "nodefs.inodesFree", "pid.available"];

impl std::str::FromStr for Thresholds {
    type Err = NotAThreshold;
    fn from_str(text: &str) -> Result<Thresholds, NotAThreshold> {
        let mut out = Thresholds::default();
        for given in text.split(',').map(str::trim).filter(|given| !given.is_empty()) {
            let wrong = || NotAThreshold { given: given.to_owned() };
            let (signal, value) = given.split_once('<').ok_or_else(wrong)?;
            let threshold = match value.strip_suffix('%') {
                Some(percent) => {
                    Threshold::Share(percent.parse::<f64>().ok().filter(|share| (0.0..=100.0).contains(share)).ok_or_else(wrong)? / 100.0)
                }
                None => Threshold::Amount(Quantity::parse(value).ok().and_then(|amount| u64::try_from(amount.value()).ok()).ok_or_else(wrong)?),
            };
            match signal {
                "memory.available" => out.memory_available = threshold,
                "nodefs.available" => out.disk_available = threshold,
                "nodefs.inodesFree" => out.inodes_free = threshold,
                "pid.available" => out.pids_available = threshold,
                _ => return Err(wrong()),
            }
        }
        Ok(out)
    }
}

/// What there is left.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Bytes left and in all; 0 of 0 when it could not be read.
    pub memory: (u64, u64),
    pub disk: Option<(u64, u64, u64, u64)>,
    pub pids: Option<(u64, u64)>,
}

/// What is low.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// Compares readings with thresholds. What could not be read is not low.
pub fn pressures(readings: &Readings, thresholds: &Thresholds) -> Pressures {
    let (memory_free, memory) = readings.memory;
    Pressures {
        memory: thresholds.memory_available.is_above(memory_free, memory),
        disk: readings.disk.is_some_and(|(total, free, inodes, inodes_free)| {
            thresholds.disk_available.is_above(free, total) || thresholds.inodes_free.is_above(inodes_free, inodes)
        }),
        pids: readings.pids.is_some_and(|(max, used)| thresholds.pids_available.is_above(max.saturating_sub(used), max)),
    }
}

/// Reads what there is left.
pub fn read(data_dir: &std::path::Path) -> Readings {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| crate::machine::memory_field(&memory, name).unwrap_or(0).unsigned_abs();
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let running = std::fs::read_to_string("/proc/loadavg").ok();
    let tasks = running.and_then(|text| text.split_whitespace().nth(3)?.split('/').nth(1)?.parse::<u64>().ok());
    Readings {
        memory: (field("MemAvailable"), field("MemTotal")),
        disk: crate::machine::disk(data_dir),
        pids: number("/proc/sys/kernel/pid_max").zip(tasks),
    }
}

/// Whether a pod is one that the node never evicts.
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    priority >= 2_000_000_000 || crate::static_pods::manifest::is_static(pod)
}

/// Whether a pod has nothing left to run.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod has nothing left to run, or is about to go.
pub fn has_ended(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || is_over(pod)
}

/// The pods that may go, first the one that should: who uses more than it has asked for, by priority, then by how much more
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>). `used` and `asked` are bytes of what is low.
pub fn rank(pods: &[Arc<Pod>], used: &BTreeMap<String, u64>, asked: impl Fn(&Pod) -> u64) -> Vec<Arc<Pod>> {
    let mut out: Vec<_> = pods
        .iter()
        .filter(|pod| !is_critical(pod) && !has_ended(pod))
        .map(|pod| {
            let used = used.get(pod.metadata.uid.as_deref().unwrap_or_default()).copied().unwrap_or(0);
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            let over = i128::from(used) - i128::from(asked(pod));
            ((over <= 0, priority, -over), pod.clone())
        })
        .collect();
    out.sort_by_key(|(a, _)| *a);
    out.into_iter().map(|(_, pod)| pod).collect()
}

/// The bytes of memory that a pod has asked for.
pub fn memory_asked(pod: &Pod) -> u64 {
    resources::pod_amount(pod).0.memory_request.max(0).unsigned_abs()
}

/// Why a pod may not be started while the node is short of something; while that is memory alone, one that has asked for
/// some may, and one that tolerates the taint that says so.
pub fn refusal(pod: &Pod, pressures: Pressures) -> Option<String> {
    let short: Vec<&str> = [(pressures.memory, "MemoryPressure"), (pressures.disk, "DiskPressure"), (pressures.pids, "PIDPressure")]
        .into_iter()
        .filter_map(|(is_low, name)| is_low.then_some(name))
        .collect();
    let spec = spec::spec_of(pod);
    let taint = Taint { key: "node.kubernetes.io/memory-pressure".into(), effect: "NoSchedule".into(), ..Default::default() };
    let tolerates = || taints::untolerated(&[taint], spec.tolerations.as_deref().unwrap_or_default(), &["NoSchedule"]).is_none();
    let is_spared = short == ["MemoryPressure"] && (resources::qos(pod) != Qos::BestEffort || tolerates());
    (!short.is_empty() && !is_critical(pod) && !is_spared).then(|| format!("The node had condition: [{}]. ", short.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, request: &str, priority: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "uid": uid },
                "spec": { "priority": priority, "containers": [{ "name": "a", "resources": { "requests": { "memory": request } } }] },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn those_over_their_request_go_first_by_priority_then_by_excess() {
        let pods = [
            pod("modest", "1Gi", 0),
            pod("greedy", "1Mi", 0),
            pod("greedier", "1Mi", 0),
            pod("dear", "1Mi", 100),
            pod("critical", "0", 2_000_000_000),
        ];
        let used = [("modest", 500 << 20), ("greedy", 100 << 20), ("greedier", 200 << 20), ("dear", 900 << 20), ("critical", 1 << 40)];
        let used = used.map(|(uid, bytes)| (uid.to_owned(), bytes)).into();
        let order: Vec<_> = rank(&pods, &used, memory_asked).iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect();
        assert_eq!(order, ["greedier", "greedy", "dear", "modest"]);
    }

    #[test]
    fn what_cannot_be_read_is_not_low() {
        let thresholds = Thresholds::default();
        assert_eq!(pressures(&Readings::default(), &thresholds), Pressures::default());
        let low = Readings { memory: (1, 100), disk: Some((100, 9, 100, 50)), pids: None };
        assert_eq!(pressures(&low, &thresholds), Pressures { memory: true, disk: true, pids: false });
    }

    #[test]
    fn thresholds_are_written_as_the_kubelet_takes_them() {
        let parsed: Thresholds = "memory.available<5%, nodefs.available<1Gi".parse().unwrap();
        assert_eq!(parsed.memory_available, Threshold::Share(0.05));
        assert_eq!(parsed.disk_available, Threshold::Amount(1 << 30));
        assert_eq!(parsed.inodes_free, Thresholds::default().inodes_free);
        for wrong in ["memory.available", "memory.available<", "memory.available<-1", "nodefs.available<101%", "swap<1Gi"] {
            assert!(wrong.parse::<Thresholds>().unwrap_err().to_string().contains(wrong));
        }
        let low = Readings { memory: (1 << 30, 16 << 30), disk: Some((100 << 30, 2 << 30, 100, 50)), pids: None };
        assert!(!pressures(&low, &"nodefs.available<1Gi".parse().unwrap()).disk, "an amount does not ask how large the disk is");
    }

    #[test]
    fn a_refusal_names_what_is_low_and_memory_is_for_those_who_asked() {
        let (modest, best_effort) = (pod("modest", "1Gi", 0), Pod::default());
        let memory = Pressures { memory: true, ..Pressures::default() };
        let both = Pressures { disk: true, ..memory };
        assert_eq!(refusal(&best_effort, Pressures::default()), None);
        assert_eq!(refusal(&modest, memory), None);
        assert_eq!(refusal(&best_effort, memory).as_deref(), Some("The node had condition: [MemoryPressure]. "));
        let toleration = json!([{ "key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule" }]);
        let tolerant = spec::testing::pod(json!({ "containers": [{ "name": "a" }], "tolerations": toleration }));
        assert_eq!(refusal(&tolerant, memory), None);
        assert!(refusal(&tolerant, both).is_some(), "it says nothing of disks");
        assert_eq!(refusal(&modest, both).as_deref(), Some("The node had condition: [MemoryPressure DiskPressure]. "));
        assert_eq!(refusal(&pod("critical", "1Gi", 2_000_000_000), both), None);
    }
}
