//! The pods of one node: the node's own decisions and statuses, over a simulated runtime.
//!
//! [`Runtime`] is what outlives the agent: sandboxes, containers, addresses. [`run`] is the shell around `node::pod::decide` and
//! `node::status::compute` that `node::worker` is around them with a real runtime; what it makes goes to the real reporter and
//! the real board of the membership.

use crate::{
    way::Process,
    world::{World, address},
};
use client::Informer;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use node::{
    backoff::Backoffs,
    peers::Board,
    pod::{self, Action, Container, End, Observed, Ongoing, Probed, Sandbox, StartFailure, State, View},
    reporter::Reporter,
    spec::PodId,
    status,
};
use rand::Rng;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often the runtime is listed, whatever it says.
const RELIST: Duration = Duration::from_secs(1);

/// What runs on a host, by the pods' UIDs.
#[derive(Default)]
pub struct Runtime {
    pods: BTreeMap<String, Observed>,
    /// The addresses, which belong to a UID as long as its pod is on the node.
    addresses: BTreeMap<String, Ipv4Addr>,
    next_address: u8,
    /// Pods whose readiness probe fails.
    pub unready: BTreeSet<String>,
    /// When each pod was last made to be ready no more, or again.
    pub turned: BTreeMap<String, Instant>,
    made: u64,
}

impl Runtime {
    /// Whether a pod is ready in truth: its container runs, its probe succeeds.
    pub fn is_ready(&self, uid: &str) -> bool {
        let runs = self.pods.get(uid).is_some_and(|seen| seen.ready_sandbox().is_some() && seen.any_running());
        runs && !self.unready.contains(uid)
    }

    /// A pod's address.
    pub fn address(&self, uid: &str) -> Option<Ipv4Addr> {
        self.addresses.get(uid).copied()
    }

    /// The pods of which anything is there.
    pub fn uids(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// Everything that ran has ended.
    pub fn lose_power(&mut self, unix_ms: u64) {
        let at = Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(0)).unwrap_or(Timestamp::MAX);
        for seen in self.pods.values_mut() {
            exit(seen, 255, at);
            seen.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false);
        }
        self.unready.clear();
    }

    /// The container of a pod ends.
    pub fn crash(&mut self, uid: &str, at: Timestamp) {
        if let Some(seen) = self.pods.get_mut(uid) {
            exit(seen, 1, at);
            self.turned.insert(uid.to_owned(), Instant::now());
        }
    }
}

fn exit(seen: &mut Observed, code: i32, at: Timestamp) {
    for container in seen.containers.iter_mut().filter(|container| container.state == State::Running) {
        (container.state, container.exit_code, container.finished_at) = (State::Exited, code, Some(at));
    }
}

/// What the agent remembers of a pod while it runs.
struct Worker {
    pod: Arc<Pod>,
    gone: bool,
    failures: BTreeMap<String, StartFailure>,
    crashes: Backoffs,
    ongoing: Ongoing,
    reported: Option<PodStatus>,
    deleted_sent: bool,
    /// Actions under way: when they are done, and what.
    under_way: Vec<(Instant, Action)>,
}

/// Runs the pods of this node until `shutdown`.
pub async fn run(process: Process, pods: Informer<Pod>, reporter: Arc<Reporter>, board: Arc<Board>, shutdown: CancellationToken) {
    let (world, host) = (process.world.clone(), process.host);
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    let mut changes = pods.subscribe();
    pods.synced().await;
    let known: HashSet<String> = pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    reporter.retain(&known);
    loop {
        process.gate().await;
        if shutdown.is_cancelled() {
            return;
        }
        while changes.try_next().is_some() {}
        let desired: BTreeMap<String, Arc<Pod>> = pods.list().into_iter().map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), pod)).collect();
        for (uid, pod) in &desired {
            let worker = workers.entry(uid.clone()).or_insert_with(|| Worker {
                pod: pod.clone(),
                gone: false,
                failures: BTreeMap::new(),
                crashes: Backoffs::default(),
                ongoing: Ongoing::default(),
                reported: reporter.found(uid),
                deleted_sent: false,
                under_way: Vec::new(),
            });
            worker.pod = pod.clone();
        }
        for (uid, worker) in &mut workers {
            worker.gone = !desired.contains_key(uid);
        }
        note_gone(&world, host, &pods, &workers);
        let mut wake = Instant::now() + RELIST;
        let mut over = Vec::new();
        for (uid, worker) in &mut workers {
            match sync(&world, host, uid, worker, &reporter, &board) {
                Some(at) => wake = wake.min(at),
                None => over.push(uid.clone()),
            }
        }
        for uid in over {
            workers.remove(&uid);
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = changes.next() => {}
            () = world.ran[host].notified() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
        // What comes together is looked at together.
        sleep(Duration::from_millis(5)).await;
    }
}

/// What this node has seen go may never start again here; unless its disk is so slow that the node has gone on without waiting for it.
fn note_gone(world: &World, host: usize, pods: &Informer<Pod>, workers: &BTreeMap<String, Worker>) {
    let gone: Vec<String> = workers.iter().filter(|(uid, worker)| worker.gone && pods.has_seen_go(uid)).map(|(uid, _)| uid.clone()).collect();
    let own = &mut world.lock().hosts[host];
    // One commit may be under way already.
    if Duration::from_millis(own.disk_ms * 2) < client::limits::CHECKPOINT_PATIENCE {
        own.gone.extend(gone);
    }
}

/// One round of one pod; when to come back, or `None` when it is over.
fn sync(world: &World, host: usize, uid: &str, worker: &mut Worker, reporter: &Reporter, board: &Board) -> Option<Instant> {
    let now = world.clock(host).now();
    finish(world, host, uid, worker, now);
    let mut state = world.lock();
    let observed = state.hosts[host].runtime.pods.get(uid).cloned().unwrap_or_default();
    let is_unready = state.hosts[host].runtime.unready.contains(uid);
    drop(state);
    let probed: BTreeMap<String, Probed> = observed
        .containers
        .iter()
        .filter(|seen| seen.state == State::Running)
        .map(|seen| (seen.id.clone(), Probed { started: true, ready: !is_unready, failed: None }))
        .collect();
    let ends = worker.gone || worker.pod.metadata.deletion_timestamp.is_some();
    let end = ends.then(|| End { grace_s: 1, deleted: true, reason: String::new(), message: String::new() });
    let before = worker.reported.clone().or_else(|| worker.pod.status.clone()).unwrap_or_default();
    let plan = pod::decide(&View {
        pod: &worker.pod,
        observed: &observed,
        ongoing: &worker.ongoing,
        probed: &probed,
        crashes: &worker.crashes,
        failures: &worker.failures,
        sandbox_retry_at: None,
        resize_retry_at: None,
        end: end.as_ref(),
        reported_done: matches!(before.phase.as_deref(), Some("Succeeded" | "Failed")),
        now,
    });
    state = world.lock();
    for action in plan.actions.clone() {
        begin(&mut state, host, uid, worker, action, now);
    }
    let address = state.hosts[host].runtime.address(uid).filter(|_| observed.ready_sandbox().is_some());
    drop(state);
    let held = before.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    let pod_ips: Vec<String> = address.map_or(held, |address| vec![address.to_string()]);
    let status = status::compute(&status::Inputs {
        pod: &worker.pod,
        observed: &observed,
        probed: &probed,
        failures: &worker.failures,
        crash_loops: &plan.crash_loops,
        starting: worker.ongoing.start.as_deref(),
        end: end.as_ref(),
        stopped: plan.stopped,
        done: plan.done,
        host_ips: &[crate::world::address(host).to_string()],
        pod_ips: &pod_ips,
        messages: &BTreeMap::new(),
        resize: &Default::default(),
        resizing: None,
        before: &before,
        now,
    });
    if !worker.gone {
        worker.reported = Some(status.clone());
        board.report(&PodId::of(&worker.pod), &worker.pod, &status);
        reporter.report(uid, Some(&worker.pod), status);
    }
    if plan.stopped && ends && worker.under_way.is_empty() {
        if worker.gone {
            let mut state = world.lock();
            state.hosts[host].runtime.pods.remove(uid);
            state.hosts[host].runtime.addresses.remove(uid);
            drop(state);
            board.forget(&PodId::of(&worker.pod));
            reporter.forget(uid);
            return None;
        }
        if !worker.deleted_sent {
            worker.deleted_sent = true;
            reporter.delete(&worker.pod);
        }
    }
    let due = worker.under_way.iter().map(|(at, _)| *at);
    let wait = plan.wake_at.map(|at| Instant::now() + Duration::try_from(at.duration_since(now)).unwrap_or_default());
    Some(due.chain(wait).min().unwrap_or_else(|| Instant::now() + RELIST))
}

/// Takes an action up.
fn begin(state: &mut crate::world::State, host: usize, uid: &str, worker: &mut Worker, action: Action, now: Timestamp) {
    let takes = match &action {
        Action::CreateSandbox { .. } | Action::StopSandbox { .. } => {
            worker.ongoing.sandbox = true;
            state.rng.random_range(50..400)
        }
        Action::Start { name, failed_at, .. } => {
            if let Some(failed_at) = failed_at {
                worker.crashes.tried(name, *failed_at, now);
            }
            worker.ongoing.start = Some(name.clone());
            if state.hosts[host].gone.contains(uid) {
                state.fail(format!("a container of {uid} is started again on node-{host}, which has seen the pod go"));
            }
            state.rng.random_range(30..300)
        }
        Action::Stop { id, grace_s, .. } => {
            let kill_at = now.saturating_add(SignedDuration::from_secs(*grace_s)).unwrap_or(Timestamp::MAX);
            worker.ongoing.stopping.insert(id.clone(), kill_at);
            state.rng.random_range(10..900)
        }
        _ => 1,
    };
    worker.under_way.push((Instant::now() + Duration::from_millis(takes), action));
}

/// What is done by now.
fn finish(world: &World, host: usize, uid: &str, worker: &mut Worker, now: Timestamp) {
    let due = |(at, _): &(Instant, Action)| *at <= Instant::now();
    let (done, later): (Vec<_>, Vec<_>) = std::mem::take(&mut worker.under_way).into_iter().partition(due);
    worker.under_way = later;
    if done.is_empty() {
        return;
    }
    let mut state = world.lock();
    let runtime = &mut state.hosts[host].runtime;
    for (_, action) in done {
        runtime.made += 1;
        let made = runtime.made;
        let seen = runtime.pods.entry(uid.to_owned()).or_default();
        match action {
            Action::CreateSandbox { attempt, stop } => {
                worker.ongoing.sandbox = false;
                seen.sandboxes.iter_mut().filter(|sandbox| stop.contains(&sandbox.id)).for_each(|sandbox| sandbox.ready = false);
                if !runtime.addresses.contains_key(uid) {
                    runtime.next_address = runtime.next_address.wrapping_add(1).max(2);
                    let address = Ipv4Addr::new(10, 244, address(host).octets()[3], runtime.next_address);
                    runtime.addresses.insert(uid.to_owned(), address);
                }
                let ips = runtime.addresses.get(uid).map(ToString::to_string).into_iter().collect();
                seen.sandboxes.push(Sandbox { id: format!("s{made}"), attempt, ready: true, created_at: now, ips });
            }
            Action::StopSandbox { id } => {
                worker.ongoing.sandbox = false;
                seen.sandboxes.iter_mut().filter(|sandbox| sandbox.id == id).for_each(|sandbox| sandbox.ready = false);
            }
            Action::RemoveSandbox { id } => seen.sandboxes.retain(|sandbox| sandbox.id != id),
            Action::Start { name, attempt, .. } => {
                worker.ongoing.start = None;
                let Some(sandbox_id) = seen.ready_sandbox().map(|sandbox| sandbox.id.clone()) else { continue };
                seen.containers.push(Container::running(format!("c{made}"), name, sandbox_id, attempt, now));
            }
            Action::Stop { id, .. } => {
                worker.ongoing.stopping.remove(&id);
                for container in seen.containers.iter_mut().filter(|container| container.id == id && container.state == State::Running) {
                    (container.state, container.exit_code, container.finished_at) = (State::Exited, 137, Some(now));
                }
            }
            Action::Remove { id, .. } => seen.containers.retain(|container| container.id != id),
            Action::Resize { .. } => {}
        }
        let sorted = std::mem::take(seen).sorted();
        *seen = sorted;
    }
}
