//! What to do about one pod now: the desired pod and what is seen of it in, actions out.
//!
//! Pure. The [`crate::worker`] observes, calls [`decide`], carries out what it says, and comes back when something
//! changed or [`Plan::wake_at`] has come. Nothing is remembered here: after a restart of the agent the same state gives
//! the same decision, so a healthy container is never touched.
//!
//! What must stay true:
//! - containers of one sandbox only; a new sandbox starts the pod over, init containers first;
//! - init containers in order, each to its end; sidecars start in their place among them and stop after the regular ones;
//! - a pod that is done never starts anything again;
//! - the pod's own cgroup has room for a container before that is started or grows;
//! - a stop under way is not repeated, except to shorten its grace.
//!
//! How it can still go wrong: the runtime may list a state that is a second old. Every action is therefore safe to
//! repeat, and a start is refused by the runtime if one of that name and attempt is there.

use crate::{
    backoff::{Backoffs, go_duration, has_come},
    cgroups::Limits,
    resize,
    spec::{self, Role},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, ResourceRequirements};
use std::collections::{BTreeMap, BTreeSet};

/// States of a container as the runtime tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One attempt to run a container, as seen in the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    /// How many attempts came before this one: the restart count.
    pub attempt: u32,
    pub state: State,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    pub hash: String,
    pub log_path: String,
    /// The resources that the runtime was told last; none if that was not noted.
    pub resources: Option<ResourceRequirements>,
    /// What the kernel limits a running container to.
    pub cgroup: Option<Limits>,
}

impl Container {
    /// One that runs since then, of which the runtime says no more than that.
    pub fn running(id: impl Into<String>, name: impl Into<String>, sandbox_id: impl Into<String>, attempt: u32, since: Timestamp) -> Container {
        Container {
            id: id.into(),
            name: name.into(),
            sandbox_id: sandbox_id.into(),
            attempt,
            state: State::Running,
            created_at: since,
            started_at: Some(since),
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            hash: String::new(),
            log_path: String::new(),
            resources: None,
            cgroup: None,
        }
    }
}

/// A pod sandbox as seen in the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    pub ips: Vec<String>,
}

/// All that the runtime has of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
    /// What the kernel limits the pod as a whole to.
    pub cgroup: Option<Limits>,
}

impl Observed {
    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// Attempts of one container, newest first.
    pub fn attempts<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |container| container.name == name)
    }

    /// The newest attempt of a container.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// Puts everything in order, newest first.
    pub fn sorted(mut self) -> Observed {
        self.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        self.containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        self
    }

    pub fn any_running(&self) -> bool {
        self.containers.iter().any(|container| container.state == State::Running)
    }
}

/// What probes have found out about a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// A startup or liveness probe has failed for good: which one, and the grace it asks for.
    pub failed: Option<(&'static str, Option<i64>)>,
}

/// Work that was begun and is not over.
#[derive(Clone, Debug, Default)]
pub struct Ongoing {
    /// The sandbox is being made or stopped.
    pub sandbox: bool,
    /// This container is being started.
    pub start: Option<String>,
    /// These containers (by id) are being stopped, and will be killed at that time.
    pub stopping: BTreeMap<String, Timestamp>,
    /// These containers (by id) were stopped to be started anew, whatever they ended with.
    pub replaced: BTreeSet<String>,
    /// Limits are being changed.
    pub resize: bool,
}

/// A start that failed before the container ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    pub retry_at: Timestamp,
    pub reason: String,
    pub message: String,
}

/// Why a pod must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Seconds that its containers get.
    pub grace_s: i64,
    /// The pod was deleted (or is gone from the API), and is not merely failed by the node.
    pub deleted: bool,
    /// For the status of a pod failed by the node.
    pub reason: String,
    pub message: String,
}

/// The whole input.
pub struct View<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub ongoing: &'a Ongoing,
    pub probed: &'a BTreeMap<String, Probed>,
    pub crashes: &'a Backoffs,
    pub failures: &'a BTreeMap<String, StartFailure>,
    /// When the sandbox may be tried again after it failed.
    pub sandbox_retry_at: Option<Timestamp>,
    /// When limits may be changed again after that failed.
    pub resize_retry_at: Option<Timestamp>,
    /// Set when the pod must end.
    pub end: Option<&'a End>,
    /// The pod's phase as last reported; a pod that was done stays done.
    pub reported_done: bool,
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a sandbox, after stopping these.
    CreateSandbox {
        attempt: u32,
        stop: Vec<String>,
    },
    StopSandbox {
        id: String,
    },
    /// Remove a dead sandbox that nothing is kept in.
    RemoveSandbox {
        id: String,
    },
    /// Start a container; `failed_at` says when its last attempt ended.
    Start {
        name: String,
        attempt: u32,
        failed_at: Option<Timestamp>,
    },
    /// Stop a running container.
    Stop {
        id: String,
        name: String,
        grace_s: i64,
        message: String,
        /// It is started anew afterwards, whatever it ends with.
        again: bool,
    },
    /// Change limits in place, in this order.
    Resize {
        steps: Vec<resize::Step>,
    },
    /// Remove an old attempt.
    Remove {
        id: String,
        log_path: String,
    },
}

/// What to do, and what to say about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Come back then, if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Containers that wait out a crash, and the words for it.
    pub crash_loops: BTreeMap<String, String>,
    /// Not everything has the resources yet that are set aside for it.
    pub resizing: bool,
    /// Nothing will be started any more.
    pub done: bool,
    /// Done, and nothing runs: volumes and cgroup may go.
    pub stopped: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// How many attempts of a container are kept: the newest and the one before, for `logs --previous`.
const ATTEMPTS_KEPT: usize = 2;

/// Whether a container that ended so is started again.
pub fn restarts(pod: &Pod, role: Role, container: &ContainerSpec, exit_code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        if (codes.operator == "In") == listed {
            return matches!(rule.action.as_str(), "Restart" | "RestartAllContainers");
        }
    }
    match policy_of(pod, container).as_str() {
        "Always" => role != Role::Init || exit_code != 0,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

/// The container's own restart policy, or its pod's.
fn policy_of(pod: &Pod, container: &ContainerSpec) -> String {
    let pods = || spec::spec_of(pod).restart_policy.clone().unwrap_or_else(|| "Always".into());
    container.restart_policy.clone().unwrap_or_else(pods)
}

/// The decision.
pub fn decide(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let containers = spec::containers(view.pod);
    if let Some(end) = view.end {
        plan.done = true;
        stop_all(view, &containers, &mut plan, end.grace_s);
        return plan;
    }
    if let Some(at) = deadline(view.pod)
        && view.now < at
    {
        plan.wake(at);
    }
    if view.reported_done || is_done(view, &containers) {
        plan.done = true;
        let grace_s = spec::spec_of(view.pod).termination_grace_period_seconds.unwrap_or(30);
        stop_all(view, &containers, &mut plan, grace_s);
        return plan;
    }
    clean(view, &mut plan);
    match view.observed.ready_sandbox().cloned() {
        None => create_sandbox(view, &mut plan),
        Some(sandbox) => run(view, &containers, &sandbox, &mut plan),
    }
    plan
}

/// When `activeDeadlineSeconds` is over.
pub fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let started = pod.status.as_ref()?.start_time.as_ref()?.0;
    started.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// Whether every container has ended for good.
fn is_done(view: &View<'_>, containers: &[(Role, ContainerSpec)]) -> bool {
    let ended = |role: Role, container: &ContainerSpec| {
        view.observed.newest(&container.name).is_some_and(|seen| {
            seen.state == State::Exited
                && view.ongoing.start.as_deref() != Some(&container.name)
                && !view.ongoing.replaced.contains(&seen.id)
                && !restarts(view.pod, role, container, seen.exit_code)
        })
    };
    // An init container that failed for good fails the pod.
    let failed_init = containers
        .iter()
        .filter(|(role, _)| *role == Role::Init)
        .any(|(role, container)| ended(*role, container) && view.observed.newest(&container.name).is_some_and(|seen| seen.exit_code != 0));
    let mut regular = containers.iter().filter(|(role, _)| *role == Role::Regular).peekable();
    failed_init || (regular.peek().is_some() && regular.all(|(role, container)| ended(*role, container)))
}

/// Stops what runs: regular containers first, then sidecars in reverse order, then the sandbox.
fn stop_all(view: &View<'_>, containers: &[(Role, ContainerSpec)], plan: &mut Plan, grace_s: i64) {
    let is_alive = |seen: &Container| matches!(seen.state, State::Running | State::Unknown);
    let stop = |plan: &mut Plan, seen: &Container| {
        let kill_at = view.now.saturating_add(SignedDuration::from_secs(grace_s)).unwrap_or(Timestamp::MAX);
        let shorter = match view.ongoing.stopping.get(&seen.id) {
            // A second apart is the same stop seen again.
            Some(known) => kill_at.saturating_add(SignedDuration::from_secs(2)).is_ok_and(|later| later < *known),
            None => true,
        };
        if shorter {
            let message = format!("Stopping container {}", seen.name);
            plan.actions.push(Action::Stop { id: seen.id.clone(), name: seen.name.clone(), grace_s, message, again: false });
        }
    };
    let mut waiting = view.ongoing.start.is_some();
    // Containers that the pod no longer declares are stopped with the regular ones.
    let declared_sidecars: Vec<&str> =
        containers.iter().filter(|(role, _)| *role == Role::Sidecar).map(|(_, container)| container.name.as_str()).collect();
    for seen in &view.observed.containers {
        if is_alive(seen) && !declared_sidecars.contains(&seen.name.as_str()) {
            waiting = true;
            stop(plan, seen);
        }
    }
    if !waiting {
        for name in declared_sidecars.iter().rev() {
            let alive: Vec<_> = view.observed.attempts(name).filter(|seen| is_alive(seen)).collect();
            if !alive.is_empty() {
                waiting = true;
                alive.into_iter().for_each(|seen| stop(plan, seen));
                break;
            }
        }
    }
    if waiting || view.ongoing.sandbox {
        return;
    }
    let ready: Vec<_> = view.observed.sandboxes.iter().filter(|sandbox| sandbox.ready).collect();
    if ready.is_empty() {
        plan.stopped = true;
    }
    for sandbox in ready {
        plan.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
    }
}

/// Drops attempts and sandboxes that are too old to be asked about.
fn clean(view: &View<'_>, plan: &mut Plan) {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let mut occupied: Vec<&str> = Vec::new();
    for seen in &view.observed.containers {
        let count = kept.entry(&seen.name).or_default();
        *count += 1;
        if *count > ATTEMPTS_KEPT && matches!(seen.state, State::Exited | State::Created) {
            plan.actions.push(Action::Remove { id: seen.id.clone(), log_path: seen.log_path.clone() });
        } else {
            occupied.push(&seen.sandbox_id);
        }
    }
    for sandbox in view.observed.sandboxes.iter().skip(1) {
        if !sandbox.ready && !occupied.contains(&sandbox.id.as_str()) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

fn create_sandbox(view: &View<'_>, plan: &mut Plan) {
    if view.ongoing.sandbox {
        return;
    }
    if let Some(at) = view.sandbox_retry_at.filter(|at| !has_come(*at, view.now)) {
        plan.wake(at);
        return;
    }
    let attempt = view.observed.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
    let stop = view.observed.sandboxes.iter().take(1).map(|sandbox| sandbox.id.clone()).collect();
    plan.actions.push(Action::CreateSandbox { attempt, stop });
}

/// What one container needs.
enum Need {
    /// Nothing; it runs, or has ended for good.
    Nothing,
    /// It is not (or no longer) running and may be started now.
    Start,
    /// It waits: for a crash's delay, a failed start's, or a stop under way.
    Wait,
}

/// Brings the containers of a ready sandbox on.
fn run(view: &View<'_>, containers: &[(Role, ContainerSpec)], sandbox: &Sandbox, plan: &mut Plan) {
    let here = |name: &str| view.observed.newest(name).filter(|seen| seen.sandbox_id == sandbox.id);
    // Once a regular container was made in this sandbox, initialization is behind the pod.
    let initialized = containers.iter().any(|(role, container)| *role == Role::Regular && here(&container.name).is_some());
    let resize = resize::plan(view.pod, containers, view.observed, view.ongoing);
    plan.resizing = resize.under_way || view.ongoing.resize;
    let mut may_start_regular = true;
    let mut start: Option<&ContainerSpec> = None;
    for (role, container) in containers.iter().filter(|(role, _)| matches!(role, Role::Init | Role::Sidecar)) {
        let seen = here(&container.name);
        if *role == Role::Init {
            if initialized {
                continue;
            }
            if seen.is_some_and(|seen| seen.state == State::Exited && seen.exit_code == 0) && view.ongoing.start.as_deref() != Some(&container.name) {
                continue;
            }
        }
        if matches!(need(view, *role, container, seen, &resize, plan), Need::Start) && start.is_none() {
            start = Some(container);
        }
        let up = *role == Role::Sidecar
            && view.ongoing.start.as_deref() != Some(&container.name)
            && seen.is_some_and(|seen| seen.state == State::Running && view.probed.get(&seen.id).is_some_and(|probed| probed.started));
        if !up && !initialized {
            may_start_regular = false;
            break;
        }
    }
    if may_start_regular {
        for (role, container) in containers.iter().filter(|(role, _)| matches!(role, Role::Regular | Role::Ephemeral)) {
            if matches!(need(view, *role, container, here(&container.name), &resize, plan), Need::Start) && start.is_none() {
                start = Some(container);
            }
        }
    }
    let grows = resize.grows || view.ongoing.resize;
    if !resize.steps.is_empty() && !view.ongoing.resize {
        match view.resize_retry_at.filter(|at| !has_come(*at, view.now)) {
            Some(at) => plan.wake(at),
            None => plan.actions.push(Action::Resize { steps: resize.steps }),
        }
    }
    if grows {
        return;
    }
    // One at a time and in order, as hooks of one may be what the next one waits for.
    if let (Some(container), None) = (start, &view.ongoing.start) {
        let newest = view.observed.newest(&container.name);
        let attempt = newest.map_or(0, |seen| seen.attempt + 1);
        let failed_at = newest.and_then(|seen| seen.finished_at);
        plan.actions.push(Action::Start { name: container.name.clone(), attempt, failed_at });
    }
}

fn need(view: &View<'_>, role: Role, container: &ContainerSpec, seen: Option<&Container>, resize: &resize::Resize, plan: &mut Plan) -> Need {
    if view.ongoing.start.as_deref() == Some(&container.name) {
        return Need::Wait;
    }
    let retry = |plan: &mut Plan| match view.failures.get(&container.name).filter(|failure| !has_come(failure.retry_at, view.now)) {
        Some(failure) => {
            plan.wake(failure.retry_at);
            Need::Wait
        }
        None => Need::Start,
    };
    let Some(seen) = seen else {
        // An attempt in an earlier sandbox counts for a container that must not run twice.
        let before = view.observed.newest(&container.name);
        if role != Role::Init && before.is_some_and(|seen| seen.state == State::Exited && !restarts(view.pod, role, container, seen.exit_code)) {
            return Need::Nothing;
        }
        return retry(plan);
    };
    match seen.state {
        State::Running => {
            if view.ongoing.stopping.contains_key(&seen.id) {
                return Need::Wait;
            }
            let probed = view.probed.get(&seen.id);
            let pods_grace = spec::spec_of(view.pod).termination_grace_period_seconds.unwrap_or(30);
            let stop = if !seen.hash.is_empty() && seen.hash != spec::container_hash(container) && role != Role::Ephemeral {
                Some((format!("Container {} definition changed, will be restarted", container.name), pods_grace, true))
            } else if let Some((probe, grace)) = probed.and_then(|probed| probed.failed) {
                let again = policy_of(view.pod, container) != "Never";
                let then = if again { ", will be restarted" } else { "" };
                Some((format!("Container {} failed {probe} probe{then}", container.name), grace.unwrap_or(pods_grace), again))
            } else if resize.restarts.contains(&container.name) {
                Some((format!("Container {} resize requires restart", container.name), pods_grace, true))
            } else {
                None
            };
            if let Some((message, grace_s, again)) = stop {
                plan.actions.push(Action::Stop { id: seen.id.clone(), name: container.name.clone(), grace_s, message, again });
            }
            Need::Nothing
        }
        State::Unknown => {
            if !view.ongoing.stopping.contains_key(&seen.id) {
                let message = format!("Container {} is in unknown state, will be restarted", container.name);
                plan.actions.push(Action::Stop { id: seen.id.clone(), name: container.name.clone(), grace_s: 0, message, again: true });
            }
            Need::Wait
        }
        // A container that was made and never started: the attempt was cut short, so it is made again.
        State::Created => retry(plan),
        State::Exited => {
            if !view.ongoing.replaced.contains(&seen.id) && !restarts(view.pod, role, container, seen.exit_code) {
                return Need::Nothing;
            }
            let failed_at = seen.finished_at.unwrap_or(seen.created_at);
            if let Some(waiting) = view.crashes.waiting(&container.name, failed_at, view.now) {
                let pod = spec::PodId::of(view.pod);
                let delay = go_duration(waiting.delay);
                plan.crash_loops.insert(container.name.clone(), format!("back-off {delay} restarting failed container={} pod={pod}", container.name));
                plan.wake(waiting.until);
                return Need::Wait;
            }
            retry(plan)
        }
    }
}

#[cfg(test)]
#[path = "pod_simulation.rs"]
mod simulation;
#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
