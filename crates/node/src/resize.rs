//! In-place resize of a pod, pure: what may be given, to whom first, and in which order the kernel is told.
//!
//! A pod's spec says what is wanted. What the node has set aside ([`crate::allocations`]) follows it as soon as there is room;
//! all else here sees the pod with what was set aside for it. What the runtime was told last stands beside each container; where
//! the two differ, [`plan`] says what to do.
//!
//! What must stay true: what all pods of a node have been given fits into it; the cgroup of a pod is never smaller than that of
//! one of its containers, so it grows before them and shrinks after them; a container is restarted only if its policy says so.

use crate::{
    cgroups::Limits,
    pod::{Observed, Ongoing, State},
    spec::{
        self, Role,
        resources::{self, PodLimits, Qos},
    },
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

/// The resources that can change while a container runs.
pub const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What the node can give to pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub cpu_milli: i64,
    pub memory: i64,
}

impl Room {
    /// What a pod asks for.
    pub fn of(pod: &Pod) -> Room {
        let (amount, ..) = resources::pod_amount(pod);
        Room { cpu_milli: amount.cpu_milli_request, memory: amount.memory_request }
    }

    pub fn add(self, other: Room) -> Room {
        Room { cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli), memory: self.memory.saturating_add(other.memory) }
    }

    fn named(self) -> [(&'static str, i64); 2] {
        [("cpu", self.cpu_milli), ("memory", self.memory)]
    }
}

/// Why a pod does not get what it wants now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As soon as others leave room.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

impl Refusal {
    /// The reason of the condition `PodResizePending`.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Deferred(_) => "Deferred",
            Refusal::Infeasible(_) => "Infeasible",
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Refusal::Deferred(message) | Refusal::Infeasible(message) => message,
        }
    }
}

/// Whether a pod may have what it wants. `used` is what the node's other pods have been given.
pub fn judge(wanted: Room, given: Room, used: Room, whole: Room) -> Result<(), Refusal> {
    let rows = || wanted.named().into_iter().zip(given.named()).zip(used.named().into_iter().zip(whole.named()));
    for (((name, wanted), _), (_, (_, whole))) in rows() {
        if wanted > whole {
            return Err(Refusal::Infeasible(format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {whole}")));
        }
    }
    for (((name, wanted), (_, given)), ((_, used), (_, whole))) in rows() {
        // Who asks for less is never in anybody's way.
        if wanted > given && used.saturating_add(wanted) > whole {
            return Err(Refusal::Deferred(format!("Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {whole}")));
        }
    }
    Ok(())
}

/// A pod's place among those that wait, smallest first: who asks for no more than it has, then the more important, then the
/// better class of service, then who waits longer.
pub fn place(pod: &Pod, wanted: Room, given: Room, since: Timestamp) -> (bool, std::cmp::Reverse<i32>, std::cmp::Reverse<Qos>, Timestamp) {
    let asks_for_more = wanted.cpu_milli > given.cpu_milli || wanted.memory > given.memory;
    let priority = spec::spec_of(pod).priority.unwrap_or(0);
    (asks_for_more, std::cmp::Reverse(priority), std::cmp::Reverse(resources::qos(pod)), since)
}

/// The resources in which two blocks differ in amount, however they are written.
pub fn differing(one: Option<&ResourceRequirements>, other: Option<&ResourceRequirements>) -> Vec<&'static str> {
    let amounts = |block: Option<&ResourceRequirements>, name: &str| {
        let of = |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|list| list.get(name)).map(resources::milli);
        (of(block.and_then(|block| block.requests.as_ref())), of(block.and_then(|block| block.limits.as_ref())))
    };
    RESIZABLE.into_iter().filter(|name| amounts(one, name) != amounts(other, name)).collect()
}

/// One thing that is told to the kernel or the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The limits of the pod's own cgroup.
    Pod(PodLimits),
    /// The limits of a running container.
    Container { id: String, name: String },
}

/// How far a pod's containers are from what was set aside for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// In this order.
    pub steps: Vec<Step>,
    /// Containers that are started anew to get theirs.
    pub restarts: Vec<String>,
    /// The pod's cgroup must grow first: nothing starts before.
    pub grows: bool,
    /// Something is not yet as it was set aside.
    pub under_way: bool,
}

fn larger(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    // None is without a limit.
    Some(one?.max(other?))
}

fn restarts(container: &Container, differing: &[&str]) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|policy| policy.restart_policy == "RestartContainer" && differing.contains(&policy.resource_name.as_str()))
}

/// What is left to do for a pod (with what was set aside for it in its spec).
pub fn plan(pod: &Pod, containers: &[(Role, Container)], observed: &Observed, ongoing: &Ongoing) -> Resize {
    let mut out = Resize::default();
    let mut in_place: Vec<(i64, Step)> = Vec::new();
    let mut changing = false;
    for (_, container) in containers.iter().filter(|(role, _)| matches!(role, Role::Regular | Role::Sidecar)) {
        let Some(seen) = observed.newest(&container.name).filter(|seen| seen.state == State::Running) else { continue };
        let Some(told) = &seen.resources else { continue };
        let differing = differing(Some(told), container.resources.as_ref());
        if differing.is_empty() {
            continue;
        }
        out.under_way = true;
        if ongoing.stopping.contains_key(&seen.id) {
            changing = true;
        } else if restarts(container, &differing) {
            changing = true;
            out.restarts.push(container.name.clone());
        } else {
            let (had, gets) = (resources::amount(Some(told)), resources::amount(container.resources.as_ref()));
            let growth = (gets.memory_limit - had.memory_limit).saturating_add(gets.cpu_milli_limit - had.cpu_milli_limit);
            in_place.push((growth, Step::Container { id: seen.id.clone(), name: container.name.clone() }));
        }
    }
    // First those that give something back.
    in_place.sort_by_key(|(growth, _)| *growth);
    let target = resources::pod_limits(pod);
    let now = observed.cgroup.map(|now| now.as_if_able(&target));
    let between = now.map(|now| PodLimits {
        cpu_quota: larger(now.cpu_quota, target.cpu_quota),
        memory_limit: larger(now.memory_limit, target.memory_limit),
        ..target
    });
    if let (Some(now), Some(between)) = (now, between)
        && !now.hold(&between)
    {
        out.grows = true;
        out.steps.push(Step::Pod(between));
    }
    out.steps.extend(in_place.into_iter().map(|(_, step)| step));
    if between.is_some_and(|between| !Limits::from(between).hold(&target)) && !changing {
        out.steps.push(Step::Pod(target));
    }
    out.under_way |= !out.steps.is_empty();
    out
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
