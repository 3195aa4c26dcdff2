//! What the node reports about a pod: pure, from the pod, what is seen of it, and what is known about why.
//!
//! What must stay true: a phase that is final stays; a transition time changes only with its condition; what others
//! write into the status (their conditions, the resize they ask for) is kept; the same inputs give the same status, so
//! that nothing is written twice.

use crate::{
    allocations::Standing,
    cgroups,
    pod::{self, Container, Observed, Probed, StartFailure, State},
    spec::{self, Role, resources},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
        Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use std::collections::BTreeMap;

/// All that a status is made from.
pub struct Inputs<'a> {
    /// With the resources that are set aside for it.
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub probed: &'a BTreeMap<String, Probed>,
    pub failures: &'a BTreeMap<String, StartFailure>,
    pub crash_loops: &'a BTreeMap<String, String>,
    /// The container that is being started: it may already run, but its hook has not ended.
    pub starting: Option<&'a str>,
    pub end: Option<&'a pod::End>,
    /// Nothing runs and nothing will.
    pub stopped: bool,
    pub done: bool,
    pub host_ips: &'a [String],
    /// The pod's addresses, kept when its sandbox is gone.
    pub pod_ips: &'a [String],
    /// Messages that ended containers have left, by container id.
    pub messages: &'a BTreeMap<String, String>,
    /// How far the pod's resize has come: why it waits, if it does, and of what it is.
    pub resize: &'a Standing,
    /// Not everything has the resources yet that are set aside for it; with the words of the last attempt that failed.
    pub resizing: Option<Option<&'a str>>,
    /// What the API holds.
    pub before: &'a PodStatus,
    pub now: Timestamp,
}

/// Conditions that nobody but the node writes; what it does not say any more is not there any more.
pub const OWN_CONDITIONS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodResizePending", "PodResizeInProgress"];

/// A time as the API keeps it: whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The id of a container as the API writes it.
pub fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn terminated(seen: &Container, messages: &BTreeMap<String, String>) -> ContainerStateTerminated {
    let reason = match (seen.reason.as_str(), seen.exit_code) {
        ("", 0) => "Completed".to_owned(),
        ("", _) => "Error".to_owned(),
        (reason, _) => reason.to_owned(),
    };
    let message = messages.get(&seen.id).cloned().filter(|text| !text.is_empty());
    ContainerStateTerminated {
        container_id: Some(container_id(&seen.id)),
        exit_code: seen.exit_code,
        finished_at: seen.finished_at.map(time),
        message: message.or_else(|| Some(seen.message.clone()).filter(|text| !text.is_empty())),
        reason: Some(reason),
        signal: None,
        started_at: seen.started_at.or(Some(seen.created_at)).map(time),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState { waiting: Some(ContainerStateWaiting { message, reason: Some(reason.into()) }), ..Default::default() }
}

fn ended(state: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(state), ..Default::default() }
}

fn container_status(inputs: &Inputs<'_>, role: Role, container: &ContainerSpec, default_reason: &str) -> ContainerStatus {
    let mut attempts = inputs.observed.attempts(&container.name);
    let newest = attempts.next();
    let previous = attempts.next();
    let before = find_status(inputs.before, &container.name);
    let starting = inputs.starting == Some(container.name.as_str());
    let probed = newest.and_then(|seen| inputs.probed.get(&seen.id));
    let mut out = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        volume_mounts: volume_mounts(container),
        ..Default::default()
    };
    if let Some(seen) = newest {
        out.restart_count = i32::try_from(seen.attempt).unwrap_or(i32::MAX);
        out.container_id = Some(container_id(&seen.id));
        out.image = if seen.image.is_empty() { out.image } else { seen.image.clone() };
        out.image_id = seen.image_id.clone();
    } else if let Some(before) = before {
        out.restart_count = before.restart_count;
        out.last_state = before.last_state.clone().filter(|state| *state != ContainerState::default());
    }
    if role != Role::Ephemeral {
        out.resources = Some(actual_resources(container, newest));
        out.allocated_resources = container.resources.as_ref().and_then(|resources| resources.requests.clone());
    }
    let last_of = |seen: Option<&Container>| {
        seen.filter(|seen| seen.state == State::Exited)
            .map(|seen| ended(terminated(seen, inputs.messages)))
            .or_else(|| before.and_then(|before| before.last_state.clone()).filter(|state| *state != ContainerState::default()))
    };
    let failure = inputs.failures.get(&container.name);
    match newest {
        Some(seen) if seen.state == State::Running && !starting => {
            out.state = Some(ContainerState { running: Some(ContainerStateRunning { started_at: seen.started_at.map(time) }), ..Default::default() });
            out.last_state = last_of(previous);
            out.started = Some(probed.is_some_and(|probed| probed.started));
            out.ready = match role {
                Role::Regular | Role::Sidecar => probed.is_some_and(|probed| probed.started && probed.ready),
                Role::Init | Role::Ephemeral => false,
            };
            if role == Role::Init {
                out.started = Some(true);
            }
        }
        Some(seen) if seen.state == State::Exited => {
            let state = terminated(seen, inputs.messages);
            let restarting = !inputs.done && (starting || failure.is_some() || inputs.crash_loops.contains_key(&container.name));
            if let Some(message) = inputs.crash_loops.get(&container.name).filter(|_| restarting) {
                out.state = Some(waiting("CrashLoopBackOff", Some(message.clone())));
                out.last_state = Some(ended(state));
            } else if let Some(failure) = failure.filter(|_| restarting) {
                out.state = Some(waiting(&failure.reason, Some(failure.message.clone())));
                out.last_state = Some(ended(state));
            } else {
                out.ready = role == Role::Init && state.exit_code == 0;
                out.state = Some(ended(state));
                out.last_state = last_of(previous);
            }
            out.started = Some(false);
        }
        _ => {
            // Not made yet, being made, or made and never started.
            out.started = Some(false);
            out.last_state = last_of(newest.filter(|seen| seen.state == State::Exited).or(previous)).or(out.last_state);
            let kept = before.and_then(|before| before.state.as_ref()).and_then(|state| state.terminated.clone());
            out.state = Some(match (failure, kept) {
                // The runtime has forgotten a container that had ended; its end is still true.
                (_, Some(kept)) if inputs.done || (role == Role::Init && kept.exit_code == 0 && newest.is_none()) => {
                    out.container_id = kept.container_id.clone();
                    out.image_id = before.map(|before| before.image_id.clone()).unwrap_or_default();
                    out.ready = role == Role::Init && kept.exit_code == 0;
                    ended(kept)
                }
                (Some(failure), _) => waiting(&failure.reason, Some(failure.message.clone())),
                _ => waiting(default_reason, None),
            });
            if newest.is_some_and(|seen| seen.state == State::Created) {
                out.container_id = None;
            }
        }
    }
    out
}

/// What a container has: what the runtime was told last, with the limits that the kernel shows where it shows others.
fn actual_resources(container: &ContainerSpec, newest: Option<&Container>) -> ResourceRequirements {
    let running = newest.filter(|seen| seen.state == State::Running);
    let told = running.and_then(|seen| seen.resources.clone()).or_else(|| container.resources.clone()).unwrap_or_default();
    let mut out = ResourceRequirements { claims: None, ..told };
    let amount = resources::amount(Some(&out));
    if let Some(limits) = running.and_then(|seen| seen.cgroup) {
        let mut found = |name: &str, quantity: String| drop(out.limits.get_or_insert_default().insert(name.to_owned(), Quantity(quantity)));
        if let Some(quota) = limits.cpu_quota.filter(|quota| amount.cpu_milli_limit > 0 && *quota != resources::cpu_quota(amount.cpu_milli_limit)) {
            found("cpu", format!("{}m", quota * 1000 / resources::QUOTA_PERIOD_US));
        }
        if let Some(limit) = limits.memory_limit.filter(|limit| amount.memory_limit > 0 && !cgroups::same_pages(*limit, amount.memory_limit)) {
            found("memory", limit.to_string());
        }
    }
    out
}

fn volume_mounts(container: &ContainerSpec) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: mount.read_only,
            recursive_read_only: mount.read_only.unwrap_or(false).then(|| "Disabled".to_owned()),
            ..Default::default()
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn find_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn terminated_of(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref().and_then(|state| state.terminated.as_ref())
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// The pod's phase from its containers' states.
fn phase(inputs: &Inputs<'_>, init: &[(Role, ContainerStatus)], regular: &[ContainerStatus]) -> &'static str {
    let policy = spec::spec_of(inputs.pod).restart_policy.clone().unwrap_or_else(|| "Always".into());
    let all_stopped = regular.iter().all(|status| terminated_of(status).is_some());
    if let Some(end) = inputs.end
        && inputs.stopped
    {
        let well = !regular.is_empty() && regular.iter().all(|status| terminated_of(status).is_some_and(|state| state.exit_code == 0));
        return if end.deleted && well { "Succeeded" } else { "Failed" };
    }
    let failed_init = init.iter().any(|(role, status)| *role == Role::Init && terminated_of(status).is_some_and(|state| state.exit_code != 0));
    let pending_init = init.iter().any(|(role, status)| match role {
        Role::Sidecar => {
            status.started != Some(true)
                && terminated_of(status).is_none()
                && regular.iter().all(|status| !is_running(status) && terminated_of(status).is_none())
        }
        _ => terminated_of(status).is_none_or(|state| state.exit_code != 0),
    });
    if failed_init && inputs.done && policy == "Never" {
        return "Failed";
    }
    let running = regular.iter().filter(|status| is_running(status)).count();
    let ever_ran = |status: &ContainerStatus| status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    if pending_init && running == 0 && !regular.iter().any(|status| ever_ran(status) || terminated_of(status).is_some()) {
        return "Pending";
    }
    let never_ran = regular.iter().filter(|status| !is_running(status) && terminated_of(status).is_none() && !ever_ran(status)).count();
    if never_ran > 0 {
        return "Pending";
    }
    if inputs.done && all_stopped && (!inputs.observed.any_running() || inputs.stopped) {
        let well = regular.iter().all(|status| terminated_of(status).is_some_and(|state| state.exit_code == 0));
        return if well { "Succeeded" } else { "Failed" };
    }
    "Running"
}

struct Conditions<'a> {
    before: &'a [PodCondition],
    generation: Option<i64>,
    now: Timestamp,
    out: Vec<PodCondition>,
}

impl Conditions<'_> {
    fn set(&mut self, type_: &str, status: bool, reason: Option<&str>, message: Option<String>) {
        let status = if status { "True" } else { "False" };
        let before = self.before.iter().find(|condition| condition.type_ == type_);
        let since = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
        self.out.push(PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.map(str::to_owned),
            message,
            last_probe_time: None,
            last_transition_time: Some(since.unwrap_or_else(|| time(self.now))),
            observed_generation: self.generation,
        });
    }
}

fn names(list: impl Iterator<Item = String>) -> String {
    list.collect::<Vec<_>>().join(" ")
}

/// The status of a pod that the node never took on: none of its containers ever was.
fn refused(inputs: &Inputs<'_>) -> Option<PodStatus> {
    let before = inputs.before;
    if !inputs.observed.containers.is_empty() {
        return None;
    }
    let now = inputs.end.filter(|end| !end.deleted && before.start_time.is_none());
    let earlier = before.phase.as_deref() == Some("Failed") && before.container_statuses.is_none() && before.start_time.is_some();
    let (reason, message) = match now {
        Some(end) => (Some(end.reason.clone()), Some(end.message.clone())),
        None if earlier => (before.reason.clone(), before.message.clone()),
        None => return None,
    };
    let ours = |condition: &&PodCondition| OWN_CONDITIONS.contains(&condition.type_.as_str()) || condition.type_ == "PodScheduled";
    let conditions: Vec<_> = before.conditions.iter().flatten().filter(|condition| !ours(condition)).cloned().collect();
    Some(PodStatus {
        phase: Some("Failed".into()),
        reason,
        message,
        conditions: (!conditions.is_empty()).then_some(conditions),
        start_time: Some(before.start_time.clone().unwrap_or_else(|| time(inputs.now))),
        qos_class: Some(before.qos_class.clone().unwrap_or_else(|| resources::qos(inputs.pod).as_str().to_owned())),
        observed_generation: inputs.pod.metadata.generation,
        ..PodStatus::default()
    })
}

/// The whole status.
pub fn compute(inputs: &Inputs<'_>) -> PodStatus {
    if let Some(refused) = refused(inputs) {
        return refused;
    }
    let spec = spec::spec_of(inputs.pod);
    let has_init = spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut init: Vec<(Role, ContainerStatus)> = Vec::new();
    let mut regular = Vec::new();
    let mut ephemeral = Vec::new();
    for (role, container) in spec::containers(inputs.pod) {
        let status = container_status(inputs, role, &container, default_reason);
        match role {
            Role::Init | Role::Sidecar => init.push((role, status)),
            Role::Regular => regular.push(status),
            Role::Ephemeral => ephemeral.push(status),
        }
    }
    let was_final = matches!(inputs.before.phase.as_deref(), Some("Succeeded" | "Failed"));
    let phase = if was_final { inputs.before.phase.clone().unwrap_or_default() } else { phase(inputs, &init, &regular).to_owned() };
    // A pod on its way out is not ready for anyone, whatever its last probe said.
    let is_final = matches!(phase.as_str(), "Succeeded" | "Failed");

    let before = inputs.before.conditions.as_deref().unwrap_or_default();
    let mut conditions = Conditions { before, generation: inputs.pod.metadata.generation, now: inputs.now, out: Vec::new() };
    conditions.set(
        "PodReadyToStartContainers",
        inputs.observed.ready_sandbox().is_some_and(|s| !s.ips.is_empty() || spec::host_network(inputs.pod)),
        None,
        None,
    );

    let uninitialized: Vec<String> = init
        .iter()
        .filter(|(role, status)| match role {
            Role::Sidecar => status.started != Some(true),
            _ => terminated_of(status).is_none_or(|state| state.exit_code != 0),
        })
        .map(|(_, status)| status.name.clone())
        .collect();
    let began = regular.iter().any(|status| is_running(status) || terminated_of(status).is_some() || status.last_state.is_some());
    if phase == "Succeeded" {
        conditions.set("Initialized", true, Some("PodCompleted"), None);
    } else if uninitialized.is_empty() || began {
        conditions.set("Initialized", true, None, None);
    } else {
        let message = format!("containers with incomplete status: [{}]", uninitialized.join(" "));
        conditions.set("Initialized", false, Some("ContainersNotInitialized"), Some(message));
    }

    let sidecars = init.iter().filter(|(role, _)| *role == Role::Sidecar).map(|(_, status)| status);
    let unready = names(sidecars.chain(&regular).filter(|status| !status.ready).map(|status| status.name.clone()));
    let (containers_ready, reason, message) = match phase.as_str() {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if !unready.is_empty() => (false, Some("ContainersNotReady"), Some(format!("containers with unready status: [{unready}]"))),
        _ => (true, None, None),
    };
    let gate = (!is_final)
        .then(|| {
            spec.readiness_gates.iter().flatten().find_map(|gate| {
                let kind = &gate.condition_type;
                match before.iter().find(|condition| condition.type_ == *kind) {
                    None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
                    Some(found) if found.status != "True" => {
                        Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", found.status))
                    }
                    _ => None,
                }
            })
        })
        .flatten();
    match gate.filter(|_| containers_ready) {
        Some(message) => conditions.set("Ready", false, Some("ReadinessGatesNotReady"), Some(message)),
        None => conditions.set("Ready", containers_ready, reason, message.clone()),
    }
    conditions.set("ContainersReady", containers_ready, reason, message);
    if let Some(scheduled) = before.iter().find(|condition| condition.type_ == "PodScheduled") {
        let mut scheduled = scheduled.clone();
        scheduled.observed_generation = inputs.pod.metadata.generation.or(scheduled.observed_generation);
        conditions.out.push(scheduled);
    } else {
        conditions.set("PodScheduled", true, None, None);
    }
    if let Some(end) = inputs.end.filter(|end| !end.deleted && end.reason == "Evicted") {
        conditions.set("DisruptionTarget", true, Some("TerminationByKubelet"), Some(end.message.clone()));
    }
    if !is_final && let Some(refusal) = &inputs.resize.refusal {
        conditions.set("PodResizePending", true, Some(refusal.reason()), Some(refusal.message().to_owned()));
    }
    if !is_final && let Some(error) = inputs.resizing {
        conditions.generation = inputs.resize.generation.or(conditions.generation);
        conditions.set("PodResizeInProgress", true, error.map(|_| "Error"), error.map(str::to_owned));
    }
    let mut all = conditions.out;
    let ours_alone = |condition: &&PodCondition| OWN_CONDITIONS.contains(&condition.type_.as_str());
    let foreign =
        before.iter().filter(|condition| !ours_alone(condition) && !all.iter().any(|own| own.type_ == condition.type_)).cloned().collect::<Vec<_>>();
    all.extend(foreign);

    let (mut reason, mut message) = (inputs.before.reason.clone(), inputs.before.message.clone());
    if let Some(end) = inputs.end.filter(|end| inputs.stopped && !end.reason.is_empty()) {
        (reason, message) = (Some(end.reason.clone()), Some(end.message.clone()));
    }
    let list = |items: Vec<ContainerStatus>| (!items.is_empty()).then_some(items);
    PodStatus {
        phase: Some(phase),
        reason,
        message,
        conditions: Some(all),
        container_statuses: list(regular),
        init_container_statuses: list(init.into_iter().map(|(_, status)| status).collect()),
        ephemeral_container_statuses: list(ephemeral),
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: inputs.pod_ips.first().cloned(),
        pod_ips: (!inputs.pod_ips.is_empty()).then(|| inputs.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: Some(inputs.before.start_time.clone().unwrap_or_else(|| time(inputs.now))),
        qos_class: Some(inputs.before.qos_class.clone().unwrap_or_else(|| resources::qos(inputs.pod).as_str().to_owned())),
        observed_generation: inputs.pod.metadata.generation,
        ..inputs.before.clone()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
