//! Pressure: when memory, disk or process numbers run low, which pods must go, and what the node says of itself.
//!
//! Pure but for the readings: [`pressures`] compares, [`rank`] chooses. Pods that use more than they asked for go first,
//! then by priority, then by how much more; critical and already ending pods never. One at a time, so that the effect of
//! one is seen before the next.

use crate::spec::resources::{self, Qos};
use k8s_openapi::api::core::v1::Pod;
use std::{collections::BTreeMap, sync::Arc};

/// When resources count as low. The defaults are Kubernetes'.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    pub memory_available_bytes: u64,
    /// Shares of the whole, 0 to 1.
    pub disk_available: f64,
    pub inodes_free: f64,
    pub pids_available: f64,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds { memory_available_bytes: 100 * 1024 * 1024, disk_available: 0.10, inodes_free: 0.05, pids_available: 0.0 }
    }
}

/// What there is left.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    pub memory_available_bytes: u64,
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
    let below = |left: u64, whole: u64, share: f64| whole > 0 && (left as f64) < whole as f64 * share;
    Pressures {
        memory: readings.memory_available_bytes > 0 && readings.memory_available_bytes < thresholds.memory_available_bytes,
        disk: readings.disk.is_some_and(|(total, free, inodes, inodes_free)| {
            below(free, total, thresholds.disk_available) || below(inodes_free, inodes, thresholds.inodes_free)
        }),
        pids: readings.pids.is_some_and(|(max, used)| below(max.saturating_sub(used), max, thresholds.pids_available)),
    }
}

/// Reads what there is left.
pub fn read(data_dir: &std::path::Path) -> Readings {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let running = std::fs::read_to_string("/proc/loadavg").ok();
    let tasks = running.and_then(|text| text.split_whitespace().nth(3)?.split('/').nth(1)?.parse::<u64>().ok());
    Readings {
        memory_available_bytes: crate::machine::memory_field(&memory, "MemAvailable").unwrap_or(0).unsigned_abs(),
        disk: crate::machine::disk(data_dir),
        pids: number("/proc/sys/kernel/pid_max").zip(tasks),
    }
}

fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    priority >= 2_000_000_000 || pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
}

/// The pods that may go, first the one that should.
pub fn rank(pods: &[Arc<Pod>], memory_used: &BTreeMap<String, u64>) -> Vec<Arc<Pod>> {
    let mut out: Vec<_> = pods
        .iter()
        .filter(|pod| !is_critical(pod) && pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| !pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))))
        .map(|pod| {
            let used = memory_used.get(pod.metadata.uid.as_deref().unwrap_or_default()).copied().unwrap_or(0);
            let asked = resources::pod_amount(pod).0.memory_request.max(0).unsigned_abs();
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            let over = i128::from(used) - i128::from(asked);
            ((over <= 0, priority, -over), pod.clone())
        })
        .collect();
    out.sort_by_key(|(a, _)| *a);
    out.into_iter().map(|(_, pod)| pod).collect()
}

/// Whether a pod may be started while the node is short of memory: only one that has asked for some.
pub fn admits(pod: &Pod, pressures: Pressures) -> bool {
    if is_critical(pod) {
        return true;
    }
    !pressures.disk && !pressures.pids && (!pressures.memory || resources::qos(pod) != Qos::BestEffort)
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
        let order: Vec<_> = rank(&pods, &used).iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect();
        assert_eq!(order, ["greedier", "greedy", "dear", "modest"]);
    }

    #[test]
    fn what_cannot_be_read_is_not_low() {
        let thresholds = Thresholds::default();
        assert_eq!(pressures(&Readings::default(), &thresholds), Pressures::default());
        let low = Readings { memory_available_bytes: 1, disk: Some((100, 9, 100, 50)), pids: None };
        assert_eq!(pressures(&low, &thresholds), Pressures { memory: true, disk: true, pids: false });
    }
}
