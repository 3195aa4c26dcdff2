//! Statuses as users see them, one situation a test.

use super::*;
use crate::{pod::Sandbox, spec::testing::pod as pod_of};
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn seen(name: &str, attempt: u32, state: State, exit_code: i32) -> Container {
    Container {
        state,
        started_at: Some(at(1)),
        finished_at: (state == State::Exited).then(|| at(5)),
        exit_code,
        image: "docker.io/library/nginx:latest".into(),
        image_id: "sha256:1".into(),
        ..Container::running(format!("{name}{attempt}"), name, "s0", attempt, at(0))
    }
}

struct Case {
    pod: Pod,
    containers: Vec<Container>,
    probed: BTreeMap<String, Probed>,
    failures: BTreeMap<String, StartFailure>,
    crash_loops: BTreeMap<String, String>,
    end: Option<pod::End>,
    done: bool,
    resize: Standing,
    resizing: Option<Option<&'static str>>,
    before: PodStatus,
}

impl Case {
    fn new(spec: Value, containers: Vec<Container>) -> Case {
        let probed = containers.iter().map(|c| (c.id.clone(), Probed { started: true, ready: true, failed: None })).collect();
        Case {
            pod: pod_of(spec),
            containers,
            probed,
            failures: BTreeMap::new(),
            crash_loops: BTreeMap::new(),
            end: None,
            done: false,
            resize: Standing::default(),
            resizing: None,
            before: PodStatus::default(),
        }
    }

    fn status(&self) -> PodStatus {
        let sandbox = Sandbox { id: "s0".into(), attempt: 0, ready: !self.done, created_at: at(0), ips: vec!["10.244.0.2".into()] };
        let observed = Observed { sandboxes: vec![sandbox], containers: self.containers.clone(), cgroup: None }.sorted();
        compute(&Inputs {
            pod: &self.pod,
            observed: &observed,
            probed: &self.probed,
            failures: &self.failures,
            crash_loops: &self.crash_loops,
            starting: None,
            end: self.end.as_ref(),
            stopped: self.done,
            done: self.done,
            host_ips: &["192.0.2.1".to_owned()],
            pod_ips: &["10.244.0.2".to_owned()],
            messages: &BTreeMap::new(),
            resize: &self.resize,
            resizing: self.resizing,
            before: &self.before,
            now: at(10),
        })
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }
}

fn condition(status: &PodStatus, type_: &str) -> (String, Option<String>, Option<String>) {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap().clone();
    (found.status, found.reason, found.message)
}

fn one() -> Value {
    json!({ "containers": [{ "name": "a", "image": "nginx" }] })
}

#[test]
fn a_pod_being_made_is_pending() {
    let status = Case::new(one(), vec![]).status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(container.image, "nginx");
    let expected = ("False".to_owned(), Some("ContainersNotReady".to_owned()), Some("containers with unready status: [a]".to_owned()));
    assert_eq!(condition(&status, "Ready"), expected);
    assert_eq!(condition(&status, "Initialized").0, "True");
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_pod_that_was_refused_has_no_containers() {
    let mut case = Case::new(one(), vec![]);
    case.end = Some(pod::End { grace_s: 0, deleted: false, reason: "OutOfcpu".into(), message: "Pod was rejected: no room".into() });
    for _ in 0..2 {
        let status = case.status();
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
        assert_eq!((&status.container_statuses, &status.conditions, status.qos_class.as_deref()), (&None, &None, Some("BestEffort")));
        assert!(status.start_time.is_some());
        // Reported, and said again by an agent that has forgotten why.
        (case.before, case.end) = (status, None);
    }
}

#[test]
fn a_running_pod_is_ready_and_keeps_its_times() {
    let mut case = Case::new(one(), vec![seen("a", 1, State::Running, 0), seen("a", 0, State::Exited, 1)]);
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready").0, "True");
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!((container.restart_count, container.ready, container.started), (1, true, Some(true)));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().reason.as_deref(), Some("Error"));
    case.before = status.clone();
    case.before.conditions.as_mut().unwrap().push(PodCondition { type_: "example.com/mine".into(), status: "True".into(), ..Default::default() });
    let again = case.status();
    assert_eq!(again.conditions.as_ref().unwrap().last().unwrap().type_, "example.com/mine");
    case.before = again.clone();
    assert_eq!(case.status(), again);
}

#[test]
fn a_crash_loop_shows_as_waiting_with_its_last_end() {
    let mut case = Case::new(one(), vec![seen("a", 2, State::Exited, 3)]);
    case.crash_loops.insert("a".into(), "back-off".into());
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
}

#[test]
fn a_missing_image_shows_as_waiting() {
    let mut case = Case::new(one(), vec![]);
    let failure = StartFailure { retry_at: at(20), reason: "ImagePullBackOff".into(), message: "Back-off".into() };
    case.failures.insert("a".into(), failure);
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("ImagePullBackOff"));
}

#[test]
fn init_containers_hold_the_pod_back() {
    let spec = json!({ "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] });
    let status = Case::new(spec.clone(), vec![seen("i", 0, State::Running, 0)]).status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&status, "Initialized").2.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(status.container_statuses.unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("PodInitializing"));
    let status = Case::new(spec, vec![seen("i", 0, State::Exited, 0), seen("a", 0, State::Running, 0)]).status();
    assert_eq!(condition(&status, "Initialized").0, "True");
    assert!(status.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn ends_are_final() {
    let never = json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }] });
    let mut case = Case::new(never.clone(), vec![seen("a", 0, State::Exited, 0)]);
    case.done = true;
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(condition(&status, "Ready").1.as_deref(), Some("PodCompleted"));
    case.containers[0].exit_code = 2;
    assert_eq!(case.phase(), "Failed");
    case.before = status;
    assert_eq!(case.phase(), "Succeeded");
    // The runtime has lost the record: the end that was reported stays.
    case.containers.clear();
    let kept = case.status();
    assert_eq!(kept.container_statuses.unwrap()[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
}

#[test]
fn an_evicted_pod_fails_with_its_reason() {
    let mut case = Case::new(one(), vec![seen("a", 0, State::Exited, 137)]);
    case.done = true;
    case.end = Some(pod::End { grace_s: 0, deleted: false, reason: "Evicted".into(), message: "low".into() });
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()), (Some("Failed"), Some("Evicted"), Some("low")));
    assert_eq!(condition(&status, "DisruptionTarget").1.as_deref(), Some("TerminationByKubelet"));
}

#[test]
fn a_resize_is_told_until_it_is_over() {
    let block = |cpu: &str| json!({ "requests": { "cpu": cpu }, "limits": { "cpu": cpu } });
    let mut running = seen("a", 0, State::Running, 0);
    running.resources = Some(serde_json::from_value(block("1")).unwrap());
    let mut case = Case::new(json!({ "containers": [{ "name": "a", "resources": block("2") }] }), vec![running]);
    case.resize = Standing { refusal: Some(crate::resize::Refusal::Deferred("no room".into())), generation: Some(3) };
    case.resizing = Some(Some("it failed"));
    let status = case.status();
    let find = |status: &PodStatus, type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_).cloned();
    let pending = find(&status, "PodResizePending").unwrap();
    assert_eq!((pending.status.as_str(), pending.reason.as_deref(), pending.message.as_deref()), ("True", Some("Deferred"), Some("no room")));
    let under_way = find(&status, "PodResizeInProgress").unwrap();
    assert_eq!((under_way.reason.as_deref(), under_way.message.as_deref()), (Some("Error"), Some("it failed")));
    assert_eq!(under_way.observed_generation, Some(3));
    let own = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(own.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1", "what it has");
    assert_eq!(own.allocated_resources.as_ref().unwrap()["cpu"].0, "2", "what is set aside");
    (case.before, case.resize, case.resizing) = (status, Standing::default(), None);
    let status = case.status();
    assert!(find(&status, "PodResizePending").is_none() && find(&status, "PodResizeInProgress").is_none());
}
