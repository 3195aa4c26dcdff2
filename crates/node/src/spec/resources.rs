//! Requests and limits as the kernel is told them, and the quality of service that follows from them.
//!
//! The figures are Kubernetes' own: 1024 shares per CPU and at least 2, a quota per 100 ms and at least 1 ms, an
//! OOM score that falls as the share of memory asked for rises.

use cri::v1::LinuxContainerResources;
use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

pub const SHARES_PER_CPU: i64 = 1024;
pub const SHARES_MIN: i64 = 2;
pub const SHARES_MAX: i64 = 262_144;
pub const QUOTA_PERIOD_US: i64 = 100_000;
pub const QUOTA_MIN_US: i64 = 1_000;

/// A pod's class, derived from its requests and limits alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// Thousandths of the unit; what cannot be read counts as nothing (the API server has checked it).
pub fn milli(quantity: &Quantity) -> i64 {
    api::quantity::Quantity::parse(&quantity.0).map(|q| q.milli().clamp(0, i64::MAX)).unwrap_or(0)
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    api::quantity::Quantity::parse(&quantity.0).map(|q| q.value().clamp(0, i64::MAX)).unwrap_or(0)
}

type Amounts = Option<BTreeMap<String, Quantity>>;

fn positive<'a>(amounts: &'a Amounts, name: &str) -> Option<&'a Quantity> {
    amounts.as_ref()?.get(name).filter(|quantity| milli(quantity) > 0)
}

/// CPU and memory that a container asks for and may have at most; zero where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub cpu_milli_request: i64,
    pub cpu_milli_limit: i64,
    pub memory_request: i64,
    pub memory_limit: i64,
}

/// The amounts in one `resources` block. A limit without a request asks for the limit.
pub fn amount(resources: Option<&ResourceRequirements>) -> Amount {
    let Some(resources) = resources else { return Amount::default() };
    let cpu_milli_limit = positive(&resources.limits, "cpu").map(milli).unwrap_or(0);
    let memory_limit = positive(&resources.limits, "memory").map(value).unwrap_or(0);
    let requested = |name: &str| resources.requests.as_ref().and_then(|requests| requests.get(name));
    Amount {
        cpu_milli_request: requested("cpu").map(milli).unwrap_or(cpu_milli_limit),
        cpu_milli_limit,
        memory_request: requested("memory").map(value).unwrap_or(memory_limit),
        memory_limit,
    }
}

/// The pod's quality of service class.
pub fn qos(pod: &Pod) -> Qos {
    let Some(spec) = &pod.spec else { return Qos::BestEffort };
    let blocks: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(resources) => vec![Some(resources)],
        None => spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.resources.as_ref()).collect(),
    };
    let mut guaranteed = true;
    let mut any = false;
    for block in blocks {
        for name in ["cpu", "memory"] {
            let limit = block.and_then(|block| positive(&block.limits, name));
            let request = block.and_then(|block| positive(&block.requests, name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= match (limit, request) {
                (Some(limit), Some(request)) => milli(limit) == milli(request),
                (Some(_), None) => true,
                _ => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

pub fn cpu_shares(cpu_milli: i64) -> i64 {
    (cpu_milli * SHARES_PER_CPU / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

/// The quota per period for a CPU limit, zero for none.
pub fn cpu_quota(cpu_milli: i64) -> i64 {
    if cpu_milli == 0 { 0 } else { (cpu_milli * QUOTA_PERIOD_US / 1000).max(QUOTA_MIN_US) }
}

/// cgroup v2's weight for cgroup v1's shares.
pub fn cpu_weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// How willing the kernel is to kill this container when memory runs out: critical pods last, best-effort ones first.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= 2_000_000_000);
    if critical {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = amount(container.resources.as_ref()).memory_request;
            let score = 1000 - 1000 * request / node_memory_bytes.max(1);
            score.clamp(3, 999)
        }
    }
}

/// The limits of one container's cgroup.
pub fn container_resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> LinuxContainerResources {
    let amount = amount(container.resources.as_ref());
    LinuxContainerResources {
        cpu_period: QUOTA_PERIOD_US,
        cpu_quota: cpu_quota(amount.cpu_milli_limit),
        cpu_shares: cpu_shares(amount.cpu_milli_request),
        memory_limit_in_bytes: amount.memory_limit,
        oom_score_adj: oom_score_adj(pod, container, node_memory_bytes),
        ..Default::default()
    }
}

/// The limits of the pod's own cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    pub cpu_shares: i64,
    /// None when some container has no CPU limit.
    pub cpu_quota: Option<i64>,
    /// None when some container has no memory limit.
    pub memory_limit: Option<i64>,
}

/// What a pod as a whole asks for: its containers and sidecars together, or its largest init container if that is
/// more, plus the overhead of its runtime class.
pub fn pod_amount(pod: &Pod) -> (Amount, bool, bool) {
    let Some(spec) = &pod.spec else { return Default::default() };
    let (mut sum, mut sidecars, mut peak) = (Amount::default(), Amount::default(), Amount::default());
    let (mut cpu_limited, mut memory_limited) = (true, true);
    let add = |a: Amount, b: Amount| Amount {
        cpu_milli_request: a.cpu_milli_request + b.cpu_milli_request,
        cpu_milli_limit: a.cpu_milli_limit + b.cpu_milli_limit,
        memory_request: a.memory_request + b.memory_request,
        memory_limit: a.memory_limit + b.memory_limit,
    };
    let max = |a: Amount, b: Amount| Amount {
        cpu_milli_request: a.cpu_milli_request.max(b.cpu_milli_request),
        cpu_milli_limit: a.cpu_milli_limit.max(b.cpu_milli_limit),
        memory_request: a.memory_request.max(b.memory_request),
        memory_limit: a.memory_limit.max(b.memory_limit),
    };
    for container in spec.init_containers.iter().flatten() {
        let own = amount(container.resources.as_ref());
        cpu_limited &= own.cpu_milli_limit > 0;
        memory_limited &= own.memory_limit > 0;
        if super::init_role(container) == super::Role::Sidecar {
            sidecars = add(sidecars, own);
            peak = max(peak, sidecars);
        } else {
            peak = max(peak, add(sidecars, own));
        }
    }
    for container in &spec.containers {
        let own = amount(container.resources.as_ref());
        cpu_limited &= own.cpu_milli_limit > 0;
        memory_limited &= own.memory_limit > 0;
        sum = add(sum, own);
    }
    let mut total = max(add(sum, sidecars), peak);
    if let Some(resources) = &spec.resources {
        let own = amount(Some(resources));
        if own.cpu_milli_request > 0 {
            total.cpu_milli_request = own.cpu_milli_request;
        }
        if own.memory_request > 0 {
            total.memory_request = own.memory_request;
        }
        if own.cpu_milli_limit > 0 {
            (total.cpu_milli_limit, cpu_limited) = (own.cpu_milli_limit, true);
        }
        if own.memory_limit > 0 {
            (total.memory_limit, memory_limited) = (own.memory_limit, true);
        }
    }
    if let Some(overhead) = &spec.overhead {
        let cpu = overhead.get("cpu").map(milli).unwrap_or(0);
        let memory = overhead.get("memory").map(value).unwrap_or(0);
        total.cpu_milli_request += cpu;
        total.memory_request += memory;
        total.cpu_milli_limit += if cpu_limited { cpu } else { 0 };
        total.memory_limit += if memory_limited { memory } else { 0 };
    }
    (total, cpu_limited, memory_limited)
}

/// The limits of the pod's cgroup.
pub fn pod_limits(pod: &Pod) -> PodLimits {
    let (total, cpu_limited, memory_limited) = pod_amount(pod);
    let best_effort = qos(pod) == Qos::BestEffort;
    PodLimits {
        cpu_shares: if best_effort { SHARES_MIN } else { cpu_shares(total.cpu_milli_request) },
        cpu_quota: (cpu_limited && !best_effort).then(|| cpu_quota(total.cpu_milli_limit)),
        memory_limit: (memory_limited && !best_effort).then_some(total.memory_limit),
    }
}

/// The pod's cgroup below the node's root, as cgroupfs names it.
pub fn cgroup_path(cgroup_root: &str, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let root = cgroup_root.trim_end_matches('/');
    match qos(pod) {
        Qos::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    fn one(resources: serde_json::Value) -> Pod {
        pod(json!({ "containers": [{ "name": "a", "resources": resources }] }))
    }

    #[test]
    fn class_follows_from_requests_and_limits() {
        assert_eq!(qos(&one(json!({}))), Qos::BestEffort);
        assert_eq!(qos(&one(json!({ "requests": { "cpu": "100m" } }))), Qos::Burstable);
        let both = json!({ "cpu": "1", "memory": "1Gi" });
        assert_eq!(qos(&one(json!({ "requests": both, "limits": both }))), Qos::Guaranteed);
        assert_eq!(qos(&one(json!({ "limits": both }))), Qos::Guaranteed);
        assert_eq!(qos(&one(json!({ "limits": { "memory": "1Gi" } }))), Qos::Burstable);
    }

    #[test]
    fn kernel_figures_are_kubernetes_own() {
        let pod = one(json!({ "requests": { "cpu": "250m", "memory": "64Mi" }, "limits": { "cpu": "500m", "memory": "128Mi" } }));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let figures = container_resources(&pod, container, 8 << 30);
        assert_eq!((figures.cpu_shares, figures.cpu_quota, figures.memory_limit_in_bytes), (256, 50_000, 134_217_728));
        assert_eq!(figures.oom_score_adj, 1000 - 1000 * (64 << 20) / (8 << 30));
        assert_eq!(cpu_shares(0), 2);
        assert_eq!(cpu_quota(5), 1000);
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let limited = json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
        let two = pod(json!({ "containers": [{ "name": "a", "resources": limited }, { "name": "b" }] }));
        assert_eq!(pod_limits(&two).memory_limit, None);
        assert_eq!(pod_limits(&one(limited)).memory_limit, Some(1 << 30));
        assert_eq!(cgroup_path("/regent/worker-1", &two), "/regent/worker-1/kubepods/burstable/podu-1");
        assert_eq!(cgroup_path("/", &one(json!({}))), "/kubepods/besteffort/podu-1");
    }
}
