//! One pod's worker: looks, decides, acts, reports, and waits for the next thing to happen.
//!
//! The loop itself never waits for slow work: pulls, starts, stops and hooks run beside it as operations, whose being
//! under way is part of what [`pod::decide`] sees. So a deletion is seen while an image is being pulled, and a shorter
//! grace while a longer one runs.
//!
//! What must stay true: at most one operation per container and one for the sandbox; the worker ends only when the pod is
//! gone from the API and nothing of it is left on the node.

use crate::{
    agent::Context,
    backoff::Backoffs,
    pod::{self, Action, End, Observed, Ongoing, StartFailure, View},
    probes::Probes,
    runtime,
    spec::{self, PodId, Role, env},
    static_pods::{self, manifest::is_static},
    status,
};
use client::events::Warning;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How often volumes made of API objects are brought up to date.
const REFRESH_S: i64 = 30;
/// When the runtime is asked again after it did not answer.
const RUNTIME_RETRY: Duration = Duration::from_millis(500);
/// The first and the longest wait before a sandbox is tried again.
const SANDBOX_RETRY_MIN_S: i64 = 1;
const SANDBOX_RETRY_MAX_S: i64 = 20;
/// When limits that could not be changed are tried again.
const RESIZE_RETRY: SignedDuration = SignedDuration::from_secs(5);

/// What others tell a worker.
pub struct Inbox {
    pub pod: Arc<Pod>,
    /// The API has no such pod any more.
    pub gone: bool,
    /// The node wants it to end.
    pub evict: Option<End>,
    /// The node has not taken it: nothing of it was ever there.
    pub refused: bool,
}

/// A worker as others hold it.
#[derive(Clone)]
pub struct Handle {
    pub inbox: Arc<Mutex<Inbox>>,
    pub wake: Arc<Notify>,
}

impl Handle {
    pub fn new(pod: Arc<Pod>) -> Handle {
        Handle { inbox: Arc::new(Mutex::new(Inbox { pod, gone: false, evict: None, refused: false })), wake: Arc::default() }
    }

    pub fn update(&self, pod: Arc<Pod>) {
        self.inbox.lock().pod = pod;
        self.wake.notify_one();
    }

    pub fn gone(&self) {
        self.inbox.lock().gone = true;
        self.wake.notify_one();
    }

    /// Ends the pod from the node's side, unless it is ending already.
    pub fn evict(&self, end: End) {
        self.inbox.lock().evict.get_or_insert(end);
        self.wake.notify_one();
    }

    /// Fails the pod before anything of it is there.
    pub fn refuse(&self, reason: String, message: String) {
        self.inbox.lock().refused = true;
        self.evict(End { grace_s: 0, deleted: false, reason, message });
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.inbox.lock().pod.clone()
    }

    /// The pod, if the node must have room for it.
    pub fn taken_pod(&self) -> Option<Arc<Pod>> {
        let inbox = self.inbox.lock();
        (!inbox.gone && !inbox.refused).then(|| inbox.pod.clone())
    }
}

/// What events about a container point to.
pub fn container_reference(pod: &Pod, role: Role, name: &str) -> ObjectReference {
    let mut reference = client::events::reference(pod);
    reference.field_path = Some(spec::field_path(role, name));
    reference
}

/// The status to go on from: our own last one, with what others have written into the API's.
fn known_status(own: Option<&PodStatus>, held: Option<&PodStatus>) -> PodStatus {
    let held = held.cloned().unwrap_or_default();
    let Some(own) = own else { return held };
    let mut out = own.clone();
    let mine = status::OWN_CONDITIONS;
    let mut conditions: Vec<_> = out.conditions.take().into_iter().flatten().filter(|condition| mine.contains(&condition.type_.as_str())).collect();
    conditions.extend(held.conditions.into_iter().flatten().filter(|condition| !mine.contains(&condition.type_.as_str())));
    out.conditions = Some(conditions);
    if matches!(held.phase.as_deref(), Some("Succeeded" | "Failed")) {
        (out.phase, out.reason, out.message) = (held.phase, held.reason.or(out.reason), held.message.or(out.message));
    }
    out
}

/// The end of an operation.
enum Ended {
    Sandbox(Result<(), runtime::SandboxError>),
    SandboxStopped,
    Start { name: String, result: Result<(), StartFailure> },
    Stop { id: String },
    Resize(Result<(), String>),
    Housekeeping,
    Refresh,
    TornDown(Result<(), String>),
}

struct Worker {
    cx: Arc<Context>,
    id: PodId,
    handle: Handle,
    probes: Probes,
    ongoing: Ongoing,
    operations: JoinSet<Ended>,
    /// Ends starts when the pod must end.
    starts: CancellationToken,
    failures: BTreeMap<String, StartFailure>,
    crashes: Backoffs,
    crash_told: BTreeMap<String, u32>,
    messages: BTreeMap<String, String>,
    sandbox_retry_at: Option<Timestamp>,
    sandbox_delay_s: i64,
    resize_retry_at: Option<Timestamp>,
    /// The words of the last change of limits that failed.
    resize_error: Option<String>,
    /// A resize was under way at the last look.
    resizing: bool,
    refresh_at: Timestamp,
    refreshing: bool,
    housekeeping: bool,
    tearing_down: bool,
    torn_down: bool,
    deleted_sent: bool,
    deadline: Option<End>,
    /// The status that this worker made last; the API may not show it yet.
    reported: Option<PodStatus>,
    labels_seen: Option<(Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>)>,
}

/// Runs a pod until nothing of it is left, or until shutdown (which leaves its containers alone).
pub async fn run(cx: Arc<Context>, handle: Handle, shutdown: CancellationToken) {
    let id = PodId::of(&handle.pod());
    let reported = cx.reporter.found(&id.uid);
    let mut worker = Worker {
        probes: Probes::new(cx.cri.clone(), cx.recorder.clone(), handle.wake.clone()),
        cx,
        id,
        handle,
        ongoing: Ongoing::default(),
        operations: JoinSet::new(),
        starts: CancellationToken::new(),
        failures: BTreeMap::new(),
        crashes: Backoffs::default(),
        crash_told: BTreeMap::new(),
        messages: BTreeMap::new(),
        sandbox_retry_at: None,
        sandbox_delay_s: SANDBOX_RETRY_MIN_S,
        resize_retry_at: None,
        resize_error: None,
        resizing: false,
        refresh_at: Timestamp::now().saturating_add(SignedDuration::from_secs(REFRESH_S)).unwrap_or(Timestamp::MAX),
        refreshing: false,
        housekeeping: false,
        tearing_down: false,
        torn_down: false,
        deleted_sent: false,
        deadline: None,
        reported,
        labels_seen: None,
    };
    loop {
        let wait = match worker.sync().await {
            Ok(Some(wait)) => wait,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(pod = %worker.id, %error, "the runtime does not answer");
                RUNTIME_RETRY
            }
        };
        let wake = worker.handle.wake.clone();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
            Some(ended) = worker.operations.join_next() => worker.note(ended),
        }
        while let Some(ended) = worker.operations.try_join_next() {
            worker.note(ended);
        }
    }
}

impl Worker {
    /// Takes the result of an operation in.
    fn note(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let now = Timestamp::now();
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A panic in an operation: forget what was under way, and look at what is.
                tracing::error!(pod = %self.id, %error, "an operation on the pod broke");
                self.ongoing = Ongoing::default();
                (self.refreshing, self.tearing_down, self.housekeeping) = (false, false, false);
                self.sandbox_retry_at = now.checked_add(SignedDuration::from_secs(SANDBOX_RETRY_MAX_S)).ok();
                return;
            }
        };
        match ended {
            Ended::Sandbox(Ok(())) => {
                self.ongoing.sandbox = false;
                (self.sandbox_retry_at, self.sandbox_delay_s) = (None, SANDBOX_RETRY_MIN_S);
            }
            Ended::Sandbox(Err(error)) => {
                tracing::info!(pod = %self.id, %error, "the pod's sandbox could not be made");
                self.ongoing.sandbox = false;
                self.sandbox_retry_at = now.checked_add(SignedDuration::from_secs(self.sandbox_delay_s)).ok();
                let waits_for_network = matches!(error, runtime::SandboxError::Network);
                self.sandbox_delay_s = if waits_for_network { SANDBOX_RETRY_MIN_S } else { (self.sandbox_delay_s * 2).min(SANDBOX_RETRY_MAX_S) };
            }
            Ended::SandboxStopped => self.ongoing.sandbox = false,
            Ended::Start { name, result } => {
                self.ongoing.start = None;
                match result {
                    Ok(()) => drop(self.failures.remove(&name)),
                    Err(failure) => drop(self.failures.insert(name, failure)),
                }
            }
            Ended::Stop { id } => drop(self.ongoing.stopping.remove(&id)),
            Ended::Resize(result) => {
                self.ongoing.resize = false;
                self.resize_retry_at = result.is_err().then(|| now.saturating_add(RESIZE_RETRY).unwrap_or(Timestamp::MAX));
                if let Err(message) = &result
                    && self.resize_error.as_ref() != Some(message)
                {
                    self.cx.recorder.about(&*self.handle.pod(), Warning, "ResizeError", format!("Pod resize failed: {message}"));
                }
                self.resize_error = result.err();
            }
            Ended::Housekeeping => self.housekeeping = false,
            Ended::Refresh => self.refreshing = false,
            Ended::TornDown(Ok(())) => (self.tearing_down, self.torn_down) = (false, true),
            Ended::TornDown(Err(error)) => {
                tracing::warn!(pod = %self.id, error, "the pod's volumes and cgroup could not be removed yet");
                self.tearing_down = false;
            }
        }
    }

    fn facts(&self, pod: &Pod, observed: &Observed) -> env::Facts {
        env::Facts {
            node_name: self.cx.config.node_name.clone(),
            host_ips: self.cx.config.node_ips(),
            pod_ips: self.pod_ips(pod, observed),
            allocatable: self.cx.machine.allocatable(),
        }
    }

    fn pod_ips(&self, pod: &Pod, observed: &Observed) -> Vec<String> {
        if spec::host_network(pod) {
            return if observed.sandboxes.is_empty() && pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none()) {
                Vec::new()
            } else {
                self.cx.config.node_ips()
            };
        }
        match observed.ready_sandbox() {
            Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
            _ => pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| ip.ip.clone()).collect(),
        }
    }

    /// Why the pod must end, if it must.
    fn end(&mut self, pod: &Pod, gone: bool, evict: Option<End>, now: Timestamp) -> Option<End> {
        let own = spec::spec_of(pod).termination_grace_period_seconds.unwrap_or(30);
        let from_node = evict.or_else(|| self.deadline.clone());
        if gone || pod.metadata.deletion_timestamp.is_some() {
            let grace_s = pod.metadata.deletion_grace_period_seconds.unwrap_or(own).max(0);
            let (reason, message) = from_node.map(|end| (end.reason, end.message)).unwrap_or_default();
            return Some(End { grace_s, deleted: true, reason, message });
        }
        if let Some(end) = from_node {
            return Some(end);
        }
        let is_final = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
        if !is_final && pod::deadline(pod).is_some_and(|at| now >= at) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.cx.recorder.about(pod, client::events::Normal, "DeadlineExceeded", message.clone());
            self.deadline = Some(End { grace_s: own, deleted: false, reason: "DeadlineExceeded".into(), message });
        }
        self.deadline.clone()
    }

    /// One round. Returns how long to wait for the next, or `None` when the pod is over.
    async fn sync(&mut self) -> Result<Option<Duration>, cri::Error> {
        let (pod, gone, evict) = {
            let inbox = self.handle.inbox.lock();
            (inbox.pod.clone(), inbox.gone, inbox.evict.clone())
        };
        // What the API has is what is wanted. All that follows is about what was set aside.
        let (wanted, pod) = (pod.clone(), self.cx.allocations.applied(&pod));
        let observed = runtime::observe(&self.cx, &self.id, &pod, &mut self.messages).await?;
        self.ongoing.replaced.retain(|id| observed.containers.iter().any(|seen| seen.id == *id));
        self.cx.allocations.retain_containers(&self.id.uid, |id| observed.containers.iter().any(|seen| seen.id == id));
        let now = Timestamp::now();
        let end = self.end(&pod, gone, evict, now);
        if end.is_some() {
            self.starts.cancel();
        }
        self.probes.follow(&pod, &observed, self.ongoing.start.as_deref(), end.is_some());
        let probed = self.probes.verdicts();
        let before = known_status(self.reported.as_ref(), pod.status.as_ref());
        let reported_done = matches!(before.phase.as_deref(), Some("Succeeded" | "Failed"));
        let plan = pod::decide(&View {
            pod: &pod,
            observed: &observed,
            ongoing: &self.ongoing,
            probed: &probed,
            crashes: &self.crashes,
            failures: &self.failures,
            sandbox_retry_at: self.sandbox_retry_at,
            resize_retry_at: self.resize_retry_at,
            end: end.as_ref(),
            reported_done,
            now,
        });
        let facts = self.facts(&pod, &observed);
        self.tell_crashes(&pod, &observed, &plan);
        for action in plan.actions.clone() {
            self.act(&pod, &observed, &facts, action, now);
        }
        self.tell_resize(&pod, &plan);
        let stopped = plan.stopped && self.operations_are_quiet();
        let status = status::compute(&status::Inputs {
            pod: &pod,
            observed: &observed,
            probed: &probed,
            failures: &self.failures,
            crash_loops: &plan.crash_loops,
            starting: self.ongoing.start.as_deref(),
            end: end.as_ref(),
            stopped: plan.stopped,
            done: plan.done,
            host_ips: &facts.host_ips,
            pod_ips: &facts.pod_ips,
            messages: &self.messages,
            resize: &self.cx.allocations.standing(&wanted),
            resizing: plan.resizing.then_some(self.resize_error.as_deref()),
            before: &before,
            now,
        });
        if !gone {
            self.reported = Some(status.clone());
            // What the API knows of a static pod is its mirror, if it is there.
            let shown = if is_static(&wanted) { static_pods::mirror_of(&self.cx.api_pods, &wanted) } else { Some(wanted.clone()) };
            self.cx.board.report(&self.id, shown.as_ref().unwrap_or(&wanted), &status);
            self.cx.reporter.report(&self.id.uid, shown.as_ref(), status);
        }
        if stopped && !self.torn_down && !self.tearing_down {
            self.tear_down(&pod);
        }
        let ending_for_good = end.as_ref().is_some_and(|end| end.deleted);
        if stopped && self.torn_down && ending_for_good {
            if gone {
                self.remove_everything(&observed).await?;
                return Ok(None);
            }
            if !self.deleted_sent {
                self.deleted_sent = true;
                self.cx.reporter.delete(&wanted);
            }
        }
        if !plan.done {
            self.refresh(&pod, facts, now);
        }
        let mut wait = Duration::from_secs(60);
        if let Some(at) = plan.wake_at {
            wait = wait.min(at.duration_since(now).unsigned_abs().saturating_add(Duration::from_millis(5)));
        }
        if !plan.done {
            wait = wait.min(self.refresh_at.duration_since(now).unsigned_abs());
        }
        if plan.stopped && !self.torn_down {
            wait = wait.min(Duration::from_secs(1));
        }
        Ok(Some(wait))
    }

    fn operations_are_quiet(&self) -> bool {
        !self.ongoing.sandbox && self.ongoing.start.is_none() && self.ongoing.stopping.is_empty() && !self.refreshing && !self.ongoing.resize
    }

    /// Says when a resize is done.
    fn tell_resize(&mut self, pod: &Pod, plan: &pod::Plan) {
        let was = std::mem::replace(&mut self.resizing, plan.resizing);
        if was && !plan.resizing && !plan.done {
            self.resize_error = None;
            let generation = self.cx.allocations.standing(pod).generation.unwrap_or_default();
            self.cx.recorder.about(pod, client::events::Normal, "ResizeCompleted", format!("Pod resize completed: generation {generation}"));
        }
    }

    fn tell_crashes(&mut self, pod: &Pod, observed: &Observed, plan: &pod::Plan) {
        for name in plan.crash_loops.keys() {
            let attempt = observed.newest(name).map_or(0, |seen| seen.attempt);
            if self.crash_told.insert(name.clone(), attempt) != Some(attempt) {
                let role = spec::find_container(pod, name).map_or(Role::Regular, |(role, _)| role);
                let message = format!("Back-off restarting failed container {name} in pod {}", self.id);
                self.cx.recorder.event(&container_reference(pod, role, name), Warning, "BackOff", "", message);
            }
        }
    }

    /// Begins one action.
    fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, facts: &env::Facts, action: Action, now: Timestamp) {
        let cx = self.cx.clone();
        let pod = pod.clone();
        match action {
            Action::CreateSandbox { attempt, stop } => {
                if self.ongoing.sandbox {
                    return;
                }
                self.ongoing.sandbox = true;
                let facts = facts.clone();
                self.operations.spawn(async move { Ended::Sandbox(runtime::create_sandbox(&cx, &pod, attempt, stop, &facts).await) });
            }
            Action::StopSandbox { id } => {
                self.ongoing.sandbox = true;
                self.operations.spawn(async move {
                    if let Err(error) = cx.cri.stop_pod_sandbox(&id).await {
                        tracing::warn!(pod = %PodId::of(&pod), %error, "cannot stop the pod's sandbox");
                        tokio::time::sleep(RUNTIME_RETRY).await;
                    }
                    Ended::SandboxStopped
                });
            }
            Action::Start { name, attempt, failed_at } => {
                let Some((role, container)) = spec::find_container(&pod, &name) else { return };
                let Some(sandbox) = observed.ready_sandbox().cloned() else { return };
                if let Some(failed_at) = failed_at {
                    // Waiting for an image is no crash; it has a delay of its own.
                    if !self.failures.get(&name).is_some_and(|failure| failure.reason.contains("Image")) {
                        self.crashes.tried(&name, failed_at, now);
                    }
                }
                self.ongoing.start = Some(name.clone());
                let facts = facts.clone();
                let cancelled = self.starts.clone();
                self.operations.spawn(async move {
                    let work = runtime::start(&cx, &pod, role, &container, attempt, &sandbox, &facts);
                    let result = tokio::select! {
                        result = work => result,
                        () = cancelled.cancelled() => Ok(()),
                    };
                    Ended::Start { name, result }
                });
            }
            Action::Resize { steps } => {
                self.ongoing.resize = true;
                self.operations.spawn(async move { Ended::Resize(runtime::resize(&cx, &pod, &steps).await) });
            }
            Action::Stop { id, name, grace_s, message, again } => {
                if again {
                    self.ongoing.replaced.insert(id.clone());
                }
                let kill_at = now.saturating_add(SignedDuration::from_secs(grace_s)).unwrap_or(Timestamp::MAX);
                let again = self.ongoing.stopping.insert(id.clone(), kill_at).is_some();
                let (role, container) = spec::find_container(&pod, &name)
                    .unwrap_or_else(|| (Role::Regular, k8s_openapi::api::core::v1::Container { name: name.clone(), ..Default::default() }));
                self.operations.spawn(async move {
                    if !runtime::stop(&cx, &pod, role, &container, &id, grace_s, &message, again).await {
                        tokio::time::sleep(RUNTIME_RETRY).await;
                    }
                    Ended::Stop { id }
                });
            }
            Action::Remove { id, log_path } => self.clean(async move {
                if cx.cri.remove_container(&id).await.is_ok() && !log_path.is_empty() {
                    crate::logs::remove(&log_path).await;
                }
            }),
            Action::RemoveSandbox { id } => self.clean(async move {
                if let Err(error) = cx.cri.remove_pod_sandbox(&id).await {
                    tracing::debug!(%error, "cannot remove an old sandbox");
                }
            }),
        }
    }

    /// Small removals, one at a time; what is not done now is decided again.
    fn clean(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        if !self.housekeeping {
            self.housekeeping = true;
            self.operations.spawn(async move {
                work.await;
                Ended::Housekeeping
            });
        }
    }

    /// Keeps the volumes that are made of API objects up to date.
    fn refresh(&mut self, pod: &Arc<Pod>, facts: env::Facts, now: Timestamp) {
        let labels = Some((pod.metadata.labels.clone(), pod.metadata.annotations.clone()));
        let relabelled = self.labels_seen.is_some() && self.labels_seen != labels;
        self.labels_seen = labels;
        if self.refreshing || self.ongoing.sandbox || (now < self.refresh_at && !relabelled) {
            return;
        }
        self.refresh_at = now.saturating_add(SignedDuration::from_secs(REFRESH_S)).unwrap_or(Timestamp::MAX);
        self.refreshing = true;
        let (cx, pod) = (self.cx.clone(), pod.clone());
        self.operations.spawn(async move {
            for error in cx.volumes.refresh(&pod, &facts).await {
                cx.recorder.about(&*pod, Warning, "FailedMount", error.to_string());
            }
            // What only environments and pulls read is looked at too: the checkpoint must not hold yesterday's password.
            cx.objects.refresh(&pod).await;
            Ended::Refresh
        });
    }

    /// Takes volumes and cgroup away. Containers and logs stay, to be asked about.
    fn tear_down(&mut self, pod: &Arc<Pod>) {
        self.tearing_down = true;
        let (cx, pod, uid) = (self.cx.clone(), pod.clone(), self.id.uid.clone());
        self.operations.spawn(async move {
            let volumes = cx.volumes.tear_down(&uid).await.map_err(|error| error.to_string());
            let path = spec::resources::cgroup_path(&cx.config.cgroup_root, &pod);
            let cgroups = cx.cgroups.clone();
            let cgroup = match tokio::task::spawn_blocking(move || cgroups.remove(&path)).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if volumes.is_err() || cgroup.is_err() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ended::TornDown(volumes.and(cgroup))
        });
    }

    /// Removes the last traces of a pod that the API no longer knows.
    async fn remove_everything(&mut self, observed: &Observed) -> Result<(), cri::Error> {
        for seen in &observed.containers {
            self.cx.cri.remove_container(&seen.id).await?;
        }
        for sandbox in &observed.sandboxes {
            self.cx.cri.stop_pod_sandbox(&sandbox.id).await?;
            self.cx.cri.remove_pod_sandbox(&sandbox.id).await?;
        }
        let logs = self.cx.config.log_dir.join(spec::log_directory_name(&self.id));
        if let Err(error) = tokio::fs::remove_dir_all(&logs).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %self.id, %error, "cannot remove the pod's logs");
        }
        self.cx.board.forget(&self.id);
        self.cx.reporter.forget(&self.id.uid);
        self.cx.allocations.forget(&self.id.uid);
        crate::probe_counts::forget(&self.id.uid);
        Ok(())
    }
}
