//! The pod's decisions, one situation a test: a pod, what is seen, and what is to be done.

use super::*;
use crate::spec::testing::pod as pod_of;
use serde_json::json;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn seen(name: &str, attempt: u32, state: State, exit_code: i32) -> Container {
    let finished_at = (state == State::Exited).then(|| at(5));
    Container { state, finished_at, exit_code, ..Container::running(format!("{name}-{attempt}"), name, "s0", attempt, at(0)) }
}

fn sandbox(attempt: u32, ready: bool) -> Sandbox {
    Sandbox { id: format!("s{attempt}"), attempt, ready, created_at: at(0), ips: vec!["10.244.0.2".into()] }
}

struct Case {
    pod: Pod,
    observed: Observed,
    ongoing: Ongoing,
    probed: BTreeMap<String, Probed>,
    crashes: Backoffs,
    end: Option<End>,
}

impl Case {
    fn new(spec: serde_json::Value, containers: Vec<Container>) -> Case {
        let probed = containers.iter().map(|c| (c.id.clone(), Probed { started: true, ready: true, failed: None })).collect();
        let observed = Observed { sandboxes: vec![sandbox(0, true)], containers, cgroup: None }.sorted();
        Case { pod: pod_of(spec), observed, ongoing: Ongoing::default(), probed, crashes: Backoffs::default(), end: None }
    }

    fn plan(&self) -> Plan {
        decide(&View {
            pod: &self.pod,
            observed: &self.observed,
            ongoing: &self.ongoing,
            probed: &self.probed,
            crashes: &self.crashes,
            failures: &BTreeMap::new(),
            sandbox_retry_at: None,
            resize_retry_at: None,
            end: self.end.as_ref(),
            reported_done: false,
            now: at(10),
        })
    }

    fn starts(&self) -> Vec<(String, u32)> {
        self.plan()
            .actions
            .into_iter()
            .filter_map(|action| match action {
                Action::Start { name, attempt, .. } => Some((name, attempt)),
                _ => None,
            })
            .collect()
    }

    fn stops(&self) -> Vec<String> {
        self.plan()
            .actions
            .into_iter()
            .filter_map(|action| match action {
                Action::Stop { id, .. } => Some(id),
                _ => None,
            })
            .collect()
    }
}

fn two() -> serde_json::Value {
    json!({ "containers": [{ "name": "a" }, { "name": "b" }] })
}

#[test]
fn a_new_pod_gets_a_sandbox_first() {
    let mut case = Case::new(two(), vec![]);
    case.observed.sandboxes.clear();
    assert_eq!(case.plan().actions, [Action::CreateSandbox { attempt: 0, stop: vec![] }]);
    case.ongoing.sandbox = true;
    assert!(case.plan().actions.is_empty());
}

#[test]
fn containers_start_one_after_the_other() {
    assert_eq!(Case::new(two(), vec![]).starts(), [("a".to_owned(), 0)]);
    assert_eq!(Case::new(two(), vec![seen("a", 0, State::Running, 0)]).starts(), [("b".to_owned(), 0)]);
}

#[test]
fn nothing_is_done_to_a_healthy_pod() {
    let case = Case::new(two(), vec![seen("a", 0, State::Running, 0), seen("b", 3, State::Running, 0)]);
    assert_eq!(case.plan(), Plan::default());
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let spec =
        json!({ "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }, { "name": "s", "restartPolicy": "Always" }, { "name": "j" }] });
    assert_eq!(Case::new(spec.clone(), vec![]).starts(), [("i".to_owned(), 0)]);
    assert_eq!(Case::new(spec.clone(), vec![seen("i", 0, State::Running, 0)]).starts(), []);
    assert_eq!(Case::new(spec.clone(), vec![seen("i", 0, State::Exited, 0)]).starts(), [("s".to_owned(), 0)]);
    let done = || vec![seen("i", 0, State::Exited, 0), seen("s", 0, State::Running, 0)];
    assert_eq!(Case::new(spec.clone(), done()).starts(), [("j".to_owned(), 0)]);
    let mut not_started = Case::new(spec.clone(), done());
    not_started.probed.get_mut("s-0").unwrap().started = false;
    assert_eq!(not_started.starts(), []);
    let mut all = done();
    all.push(seen("j", 0, State::Exited, 0));
    assert_eq!(Case::new(spec.clone(), all.clone()).starts(), [("a".to_owned(), 0)]);
    all.push(seen("a", 0, State::Running, 0));
    all[1] = seen("s", 0, State::Exited, 1);
    assert_eq!(Case::new(spec, all).starts(), [("s".to_owned(), 1)]);
}

#[test]
fn a_failed_init_container_is_tried_again_or_fails_the_pod() {
    let spec = json!({ "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] });
    assert_eq!(Case::new(spec, vec![seen("i", 0, State::Exited, 1)]).starts(), [("i".to_owned(), 1)]);
    let never = json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] });
    assert!(Case::new(never, vec![seen("i", 0, State::Exited, 1)]).plan().done);
}

#[test]
fn a_crash_waits_out_its_delay() {
    let mut case = Case::new(json!({ "containers": [{ "name": "a" }] }), vec![seen("a", 1, State::Exited, 1)]);
    assert_eq!(case.starts(), [("a".to_owned(), 2)]);
    case.crashes.tried("a", at(0), at(0));
    let plan = case.plan();
    assert_eq!(plan.actions, []);
    assert_eq!(plan.wake_at, Some(at(15)));
    assert_eq!(plan.crash_loops["a"], "back-off 10s restarting failed container=a pod=web_default(u-1)");
}

#[test]
fn restart_policies_end_a_pod() {
    let ended = |policy: &str, code: i32| {
        let spec = json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] });
        Case::new(spec, vec![seen("a", 0, State::Exited, code)]).plan().done
    };
    assert_eq!([ended("Always", 0), ended("OnFailure", 0), ended("OnFailure", 1), ended("Never", 1)], [false, true, false, true]);
}

#[test]
fn a_done_pod_stops_its_sidecars_and_then_its_sandbox() {
    let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }], "initContainers": [{ "name": "s", "restartPolicy": "Always" }] });
    let case = Case::new(spec.clone(), vec![seen("a", 0, State::Exited, 0), seen("s", 0, State::Running, 0)]);
    assert_eq!(case.stops(), ["s-0"]);
    let case = Case::new(spec, vec![seen("a", 0, State::Exited, 0), seen("s", 0, State::Exited, 0)]);
    assert_eq!(case.plan().actions, [Action::StopSandbox { id: "s0".into() }]);
    assert!(!case.plan().stopped);
}

#[test]
fn a_dead_sandbox_is_replaced_and_the_pod_starts_over() {
    let mut case = Case::new(two(), vec![seen("a", 0, State::Exited, 0)]);
    case.observed.sandboxes = vec![sandbox(0, false)];
    assert_eq!(case.plan().actions, [Action::CreateSandbox { attempt: 1, stop: vec!["s0".into()] }]);
    case.observed.sandboxes = vec![sandbox(1, true), sandbox(0, false)];
    assert_eq!(case.starts(), [("a".to_owned(), 1)]);
}

#[test]
fn failed_liveness_and_changed_images_restart_a_container() {
    let mut case = Case::new(two(), vec![seen("a", 0, State::Running, 0), seen("b", 0, State::Running, 0)]);
    case.probed.get_mut("a-0").unwrap().failed = Some(("liveness", Some(3)));
    let message = "Container a failed liveness probe, will be restarted".to_owned();
    assert_eq!(case.plan().actions, [Action::Stop { id: "a-0".into(), name: "a".into(), grace_s: 3, message, again: true }]);
    case.ongoing.stopping.insert("a-0".into(), at(40));
    assert!(case.plan().actions.is_empty());
    case.observed.containers[1].hash = "old".into();
    assert_eq!(case.stops(), ["b-0"]);
}

#[test]
fn deletion_stops_once_and_only_shortens() {
    let mut case = Case::new(two(), vec![seen("a", 0, State::Running, 0), seen("b", 0, State::Exited, 0)]);
    case.end = Some(End { grace_s: 30, deleted: true, reason: String::new(), message: String::new() });
    assert_eq!(case.stops(), ["a-0"]);
    case.ongoing.stopping.insert("a-0".into(), at(35));
    assert_eq!(case.stops(), [] as [String; 0]);
    case.end.as_mut().unwrap().grace_s = 1;
    assert_eq!(case.stops(), ["a-0"]);
    case.observed.containers = vec![seen("a", 0, State::Exited, 137)];
    case.observed.sandboxes = vec![sandbox(0, false)];
    assert!(case.plan().stopped);
}

#[test]
fn old_attempts_are_removed() {
    let case = Case::new(
        json!({ "containers": [{ "name": "a" }] }),
        vec![seen("a", 2, State::Running, 0), seen("a", 1, State::Exited, 1), seen("a", 0, State::Exited, 1)],
    );
    assert_eq!(case.plan().actions, [Action::Remove { id: "a-0".into(), log_path: String::new() }]);
}

#[test]
fn exit_code_rules_come_before_the_policy() {
    let spec = json!({ "restartPolicy": "Never", "containers": [{
        "name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }],
    }] });
    let pod = pod_of(spec);
    let container = &pod.spec.as_ref().unwrap().containers[0];
    assert!(restarts(&pod, Role::Regular, container, 42));
    assert!(!restarts(&pod, Role::Regular, container, 1));
}

#[test]
fn what_was_stopped_to_be_started_anew_is_started_whatever_it_ended_with() {
    let spec = json!({ "restartPolicy": "OnFailure", "containers": [{ "name": "a" }] });
    let mut case = Case::new(spec, vec![seen("a", 0, State::Exited, 0)]);
    assert!(case.plan().done, "it has ended well by itself");
    case.ongoing.replaced.insert("a-0".into());
    assert_eq!(case.starts(), [("a".to_owned(), 1)]);
}

#[test]
fn a_container_that_never_restarts_is_stopped_for_its_probe_and_stays_so() {
    let mut case = Case::new(json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }] }), vec![seen("a", 0, State::Running, 0)]);
    case.probed.insert("a-0".into(), Probed { started: true, ready: false, failed: Some(("liveness", None)) });
    let message = "Container a failed liveness probe".to_owned();
    assert_eq!(case.plan().actions, [Action::Stop { id: "a-0".into(), name: "a".into(), grace_s: 30, message, again: false }]);
}

#[test]
fn nothing_starts_before_the_pod_has_room_for_it() {
    let block = |cpu: &str| json!({ "requests": { "cpu": cpu }, "limits": { "cpu": cpu } });
    let mut running = seen("a", 0, State::Running, 0);
    running.resources = Some(serde_json::from_value(block("1")).unwrap());
    let spec = json!({ "containers": [{ "name": "a", "resources": block("2") }, { "name": "b", "resources": block("1") }] });
    let mut case = Case::new(spec, vec![running]);
    let small = pod_of(json!({ "containers": [{ "name": "a", "resources": block("1") }, { "name": "b", "resources": block("1") }] }));
    case.observed.cgroup = Some(Limits::from(spec::resources::pod_limits(&small)));
    let plan = case.plan();
    assert!(matches!(&plan.actions[..], [Action::Resize { steps }] if steps.len() == 2), "{plan:?}");
    assert!(plan.resizing);
    case.ongoing.resize = true;
    assert!(case.plan().actions.is_empty());
}
