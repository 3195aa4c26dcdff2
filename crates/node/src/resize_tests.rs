//! The order of a resize, one situation a test.

use super::*;
use crate::{pod::Container as Seen, spec::testing::pod as pod_of};
use serde_json::{Value, json};

fn block(cpu: &str, memory: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } })
}

fn read(block: Value) -> ResourceRequirements {
    serde_json::from_value(block).unwrap()
}

fn seen(name: &str, told: Value) -> Seen {
    Seen { resources: Some(read(told)), ..Seen::running(format!("{name}-0"), name, "s", 0, Timestamp::UNIX_EPOCH) }
}

/// The plan for containers `a` and `b`: what each has, what each gets.
fn planned(a: (Value, Value), b: (Value, Value), policy: Value, ongoing: &Ongoing) -> Resize {
    let spec =
        |a: &Value, b: &Value| json!({ "containers": [{ "name": "a", "resources": a, "resizePolicy": policy }, { "name": "b", "resources": b }] });
    let (before, after) = (pod_of(spec(&a.0, &b.0)), pod_of(spec(&a.1, &b.1)));
    let observed = Observed {
        containers: vec![seen("a", a.0), seen("b", b.0)],
        cgroup: Some(Limits::from(resources::pod_limits(&before))),
        sandboxes: Vec::new(),
    };
    plan(&after, &spec::containers(&after), &observed, ongoing)
}

fn container(name: &str) -> Step {
    Step::Container { id: format!("{name}-0"), name: name.into() }
}

fn pod_step(cpu_milli: i64, memory: i64, shares_of_milli: i64) -> Step {
    Step::Pod(PodLimits {
        cpu_shares: resources::cpu_shares(shares_of_milli),
        cpu_quota: Some(resources::cpu_quota(cpu_milli)),
        memory_limit: Some(memory << 20),
    })
}

#[test]
fn a_pod_grows_before_its_containers_and_shrinks_after_them() {
    let none = Ongoing::default();
    let same = block("1", "100Mi");
    let grown = planned((same.clone(), block("2", "200Mi")), (same.clone(), same.clone()), json!([]), &none);
    assert_eq!(grown.steps, [pod_step(3000, 300, 3000), container("a")]);
    assert!(grown.grows && grown.under_way);
    let shrunk = planned((same.clone(), block("500m", "50Mi")), (same.clone(), same.clone()), json!([]), &none);
    assert_eq!(shrunk.steps, [pod_step(2000, 200, 1500), container("a"), pod_step(1500, 150, 1500)]);
    // More processors and less memory: each in its own direction. Who gives back comes first.
    let mixed = planned((same.clone(), block("2", "100Mi")), (same.clone(), block("1", "50Mi")), json!([]), &none);
    assert_eq!(mixed.steps, [pod_step(3000, 200, 3000), container("b"), container("a"), pod_step(3000, 150, 3000)]);
    let nothing = planned((same.clone(), block("1000m", "102400Ki")), (same.clone(), same), json!([]), &none);
    assert_eq!(nothing, Resize::default(), "the same amount in other words is no change");
}

#[test]
fn a_container_is_restarted_only_for_what_its_policy_names() {
    let policy =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }, { "resourceName": "cpu", "restartPolicy": "NotRequired" }]);
    let same = block("1", "100Mi");
    let cpu = planned((same.clone(), block("2", "100Mi")), (same.clone(), same.clone()), policy.clone(), &Ongoing::default());
    assert_eq!((cpu.restarts.len(), cpu.steps.last()), (0, Some(&container("a"))));
    let memory = planned((same.clone(), block("1", "50Mi")), (same.clone(), same.clone()), policy.clone(), &Ongoing::default());
    assert_eq!(memory.restarts, ["a"]);
    assert!(!memory.steps.contains(&pod_step(2000, 150, 2000)), "the pod keeps its limit while the container has the old one");
    let stopping = Ongoing { stopping: [("a-0".to_owned(), Timestamp::UNIX_EPOCH)].into(), ..Default::default() };
    let stopped = planned((same.clone(), block("1", "50Mi")), (same.clone(), same), policy, &stopping);
    assert!(stopped.restarts.is_empty() && stopped.steps.is_empty() && stopped.under_way);
}

#[test]
fn only_what_is_more_must_fit() {
    let room = |cpu_milli, memory| Room { cpu_milli, memory };
    let whole = room(1000, 1000);
    assert_eq!(judge(room(500, 500), room(400, 400), room(500, 500), whole), Ok(()));
    let refused = judge(room(600, 400), room(400, 400), room(500, 500), whole).unwrap_err();
    assert_eq!(refused, Refusal::Deferred("Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000".into()));
    // The node is over-committed in memory, and the pod gives some back.
    assert_eq!(judge(room(400, 300), room(400, 400), room(500, 900), whole), Ok(()));
    assert!(matches!(judge(room(400, 1001), room(400, 400), room(0, 0), whole), Err(Refusal::Infeasible(_))));
}
