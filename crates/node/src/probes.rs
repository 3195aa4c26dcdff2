//! Probes: how a container is asked whether it has started, lives, and is ready.
//!
//! One task per probe of a running container asks; [`Counter`] (pure) turns answers into verdicts by the thresholds; the
//! pod's worker reads the verdicts in [`Probes::verdicts`] and is woken when one changes. What must stay true: nothing
//! is asked before its initial delay, liveness and readiness only after startup, and a container that was ready before
//! the agent restarted is ready until a probe says otherwise.

use crate::{
    http,
    pod::{Container, Observed, Probed, State},
    spec::{self, Role},
};
use client::events::{Recorder, Warning};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container as ContainerSpec, HTTPGetAction, Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;

/// The three questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events and metrics name it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    fn of(self, container: &ContainerSpec) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure(String),
    /// The question could not be asked; it counts as a failure.
    Error(String),
}

/// Counts equal answers in a row against the thresholds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    last: Option<bool>,
    run: i32,
}

impl Counter {
    /// Notes an answer; the verdict if its threshold is reached.
    pub fn note(&mut self, success: bool, success_threshold: i32, failure_threshold: i32) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            (self.last, self.run) = (Some(success), 1);
        }
        let threshold = if success { success_threshold } else { failure_threshold };
        (self.run >= threshold.max(1)).then_some(success)
    }
}

/// A port by number or by the name that the container gives it.
pub fn port(reference: &IntOrString, container: &ContainerSpec) -> Option<u16> {
    let number = match reference {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name)) {
            Some(port) => port.container_port,
            None => name.parse().ok()?,
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// The request that an `httpGet` means.
pub fn http_request(action: &HTTPGetAction, container: &ContainerSpec, pod_ip: &str) -> Option<http::Request> {
    let path = action.path.clone().unwrap_or_default();
    Some(http::Request {
        host: action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| pod_ip.to_owned()),
        port: port(&action.port, container)?,
        tls: action.scheme.as_deref() == Some("HTTPS"),
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

/// What a task needs to ask its question.
#[derive(Clone)]
struct Question {
    cri: cri::Client,
    probe: Probe,
    container: ContainerSpec,
    container_id: String,
    pod_ip: String,
}

async fn ask(question: &Question) -> Outcome {
    let limit = Duration::from_secs(question.probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
    match tokio::time::timeout(limit + Duration::from_millis(200), ask_unbounded(question, limit)).await {
        Ok(outcome) => outcome,
        Err(_) if question.probe.exec.is_some() => {
            let command = question.probe.exec.as_ref().and_then(|exec| exec.command.clone()).unwrap_or_default();
            Outcome::Failure(format!("command timed out: \"{}\" timed out after {}s", command.join(" "), limit.as_secs()))
        }
        Err(_) => Outcome::Failure(match question.probe.http_get.as_ref().and_then(|get| http_request(get, &question.container, &question.pod_ip)) {
            Some(request) => format!("Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)", request.url()),
            None => "timeout: failed to connect service within its time: context deadline exceeded".into(),
        }),
    }
}

async fn ask_unbounded(question: &Question, limit: Duration) -> Outcome {
    let probe = &question.probe;
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match question.cri.exec_sync(&question.container_id, command, limit).await {
            Ok(output) if output.exit_code == 0 => Outcome::Success,
            Ok(output) => Outcome::Failure(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).chars().take(1024).collect()),
            Err(error @ cri::Error::Timeout { .. }) => Outcome::Failure(error.to_string()),
            Err(error) => Outcome::Error(error.to_string()),
        };
    }
    if let Some(get) = &probe.http_get {
        let Some(request) = http_request(get, &question.container, &question.pod_ip) else {
            return Outcome::Error("invalid port".into());
        };
        return match http::get(&request).await {
            Ok((200..400, _)) => Outcome::Success,
            Ok((code, _)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
            Err(error) => Outcome::Failure(format!("Get \"{}\": {error}", request.url())),
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        let Some(port) = port(&socket.port, &question.container) else { return Outcome::Error("invalid port".into()) };
        let host = socket.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| question.pod_ip.clone());
        return match tokio::net::TcpStream::connect((host.as_str(), port)).await {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::Failure(http::dial_error(&format!("{host}:{port}"), &error)),
        };
    }
    if let Some(grpc) = &probe.grpc {
        let Ok(port) = u16::try_from(grpc.port) else { return Outcome::Error("invalid port".into()) };
        return match http::grpc_health(&question.pod_ip, port, grpc.service.as_deref().unwrap_or_default()).await {
            Ok(true) => Outcome::Success,
            Ok(false) => Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".into()),
            Err(error) => Outcome::Failure(error),
        };
    }
    Outcome::Error("missing probe handler".into())
}

#[derive(Default)]
struct Shared {
    verdicts: Mutex<BTreeMap<String, Probed>>,
}

/// The probes of one pod's containers.
pub struct Probes {
    cri: cri::Client,
    recorder: Recorder,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
    tasks: HashMap<(String, Kind), tokio::task::JoinHandle<()>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.abort());
    }
}

impl Probes {
    pub fn new(cri: cri::Client, recorder: Recorder, wake: Arc<Notify>) -> Probes {
        Probes { cri, recorder, wake, shared: Arc::default(), tasks: HashMap::new() }
    }

    /// What is known now, by container id.
    pub fn verdicts(&self) -> BTreeMap<String, Probed> {
        self.shared.verdicts.lock().clone()
    }

    /// Starts the probes of containers that run, ends those of containers that do not. `ending` leaves only readiness.
    pub fn follow(&mut self, pod: &Pod, observed: &Observed, starting: Option<&str>, ending: bool) {
        let pod_ip = observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first().cloned());
        let pod_ip = pod_ip.or_else(|| pod.status.as_ref().and_then(|status| status.pod_ip.clone())).unwrap_or_else(|| "127.0.0.1".into());
        let running: HashMap<&str, &Container> =
            observed.containers.iter().filter(|seen| seen.state == State::Running).map(|seen| (seen.id.as_str(), seen)).collect();
        self.shared.verdicts.lock().retain(|id, _| running.contains_key(id.as_str()));
        self.tasks.retain(|(id, kind), task| {
            let keep = running.contains_key(id.as_str()) && !task.is_finished() && (!ending || *kind == Kind::Readiness);
            if !keep {
                task.abort();
            }
            keep || (running.contains_key(id.as_str()) && !ending)
        });
        for (role, container) in spec::containers(pod) {
            let Some(seen) = observed.newest(&container.name).filter(|seen| seen.state == State::Running) else { continue };
            if starting == Some(container.name.as_str()) || matches!(role, Role::Ephemeral) {
                continue;
            }
            let fresh = !self.shared.verdicts.lock().contains_key(&seen.id);
            if fresh {
                let probed = initial(pod, &container, &seen.id);
                self.shared.verdicts.lock().insert(seen.id.clone(), probed);
            }
            for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                let Some(probe) = kind.of(&container) else { continue };
                let slot = (seen.id.clone(), kind);
                if self.tasks.contains_key(&slot) || (ending && kind != Kind::Readiness) {
                    continue;
                }
                let question = Question {
                    cri: self.cri.clone(),
                    probe: probe.clone(),
                    container: container.clone(),
                    container_id: seen.id.clone(),
                    pod_ip: pod_ip.clone(),
                };
                let reference = crate::worker::container_reference(pod, role, &container.name);
                let started_at = seen.started_at.unwrap_or_else(Timestamp::now);
                let task = watch(question, kind, started_at, self.shared.clone(), self.wake.clone(), self.recorder.clone(), reference);
                self.tasks.insert(slot, tokio::spawn(task));
            }
        }
    }
}

/// What is taken for true of a container before its probes have spoken: what the API knew of this very container, or
/// that whatever has no probe is well.
fn initial(pod: &Pod, container: &ContainerSpec, id: &str) -> Probed {
    let known = pod.status.as_ref().and_then(|status| {
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let own = lists.into_iter().flatten().flatten().find(|status| status.name == container.name)?;
        (own.container_id.as_deref() == Some(&crate::status::container_id(id))).then(|| (own.started.unwrap_or(false), own.ready))
    });
    let (started, ready) = known.unwrap_or((false, false));
    Probed { started: started || container.startup_probe.is_none(), ready: ready || container.readiness_probe.is_none(), failed: None }
}

async fn watch(
    question: Question,
    kind: Kind,
    started_at: Timestamp,
    shared: Arc<Shared>,
    wake: Arc<Notify>,
    recorder: Recorder,
    reference: k8s_openapi::api::core::v1::ObjectReference,
) {
    let probe = question.probe.clone();
    let id = question.container_id.clone();
    let started = || shared.verdicts.lock().get(&id).is_some_and(|probed| probed.started);
    if kind == Kind::Startup && started() {
        return;
    }
    let since_start = Timestamp::now().duration_since(started_at).unsigned_abs();
    let delay = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0).unsigned_abs().into());
    tokio::time::sleep(delay.saturating_sub(since_start)).await;
    let mut counter = Counter::default();
    let mut every = tokio::time::interval(Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1).unsigned_abs().into()));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if kind != Kind::Startup {
            // The startup probe comes first; look often, so that readiness follows it at once.
            while !started() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let outcome = ask(&question).await;
        let success = outcome == Outcome::Success;
        crate::probe_counts::count(&reference, &question.container.name, kind, &outcome);
        match &outcome {
            Outcome::Success => {}
            Outcome::Failure(text) => recorder.event(&reference, Warning, "Unhealthy", "", format!("{} probe failed: {text}", kind.title())),
            Outcome::Error(text) => {
                recorder.event(&reference, Warning, "Unhealthy", "", format!("{} probe errored and resulted in unknown state: {text}", kind.title()))
            }
        }
        let verdict = counter.note(success, probe.success_threshold.unwrap_or(1), probe.failure_threshold.unwrap_or(3));
        let Some(verdict) = verdict else { continue };
        let changed = {
            let mut verdicts = shared.verdicts.lock();
            let Some(probed) = verdicts.get_mut(&id) else { return };
            let before = probed.clone();
            match (kind, verdict) {
                (Kind::Startup, true) => probed.started = true,
                (Kind::Startup, false) => probed.failed = Some(("startup", probe.termination_grace_period_seconds)),
                (Kind::Liveness, true) => {}
                (Kind::Liveness, false) => probed.failed = Some(("liveness", probe.termination_grace_period_seconds)),
                (Kind::Readiness, ready) => probed.ready = ready,
            }
            *probed != before
        };
        if changed {
            wake.notify_one();
        }
        if (kind == Kind::Startup && verdict) || (kind != Kind::Readiness && !verdict) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    #[test]
    fn thresholds_count_in_a_row() {
        let mut counter = Counter::default();
        let verdicts: Vec<_> = [false, false, true, false, false, false, true].into_iter().map(|success| counter.note(success, 1, 3)).collect();
        assert_eq!(verdicts, [None, None, Some(true), None, None, Some(false), Some(true)]);
    }

    #[test]
    fn ports_have_names() {
        let pod = pod(json!({ "containers": [{ "name": "a", "ports": [{ "name": "web", "containerPort": 8080 }] }] }));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(port(&IntOrString::String("web".into()), container), Some(8080));
        assert_eq!(port(&IntOrString::Int(80), container), Some(80));
        assert_eq!(port(&IntOrString::String("no".into()), container), None);
        let action = HTTPGetAction { port: IntOrString::Int(80), path: Some("x".into()), ..Default::default() };
        assert_eq!(http_request(&action, container, "10.0.0.1").unwrap().url(), "http://10.0.0.1:80/x");
    }

    #[test]
    fn readiness_survives_the_agent() {
        let mut pod = pod(json!({ "containers": [{ "name": "a", "readinessProbe": {} }] }));
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        assert!(!initial(&pod, &container, "c1").ready);
        pod.status = serde_json::from_value(json!({ "containerStatuses": [{ "name": "a", "containerID": "containerd://c1", "ready": true, "started": true, "image": "", "imageID": "", "restartCount": 0 }] })).unwrap();
        assert!(initial(&pod, &container, "c1").ready);
        assert!(!initial(&pod, &container, "c2").ready);
    }
}
