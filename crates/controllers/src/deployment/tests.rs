//! The plan, told as text: a Deployment and its ReplicaSets in, sizes and conditions out.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, DeploymentStrategy, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::plan::{Facts, Plan, View, decide};
use super::sets::SetWrite;
use crate::common::owner::{Owner, name_of};
use crate::common::testing::{at, pod};

fn template(image: &str) -> PodTemplateSpec {
    let labels = [("app".to_owned(), "web".to_owned()), ("image".to_owned(), image.to_owned())];
    PodTemplateSpec { metadata: Some(ObjectMeta { labels: Some(labels.into()), ..Default::default() }), spec: None }
}

fn deployment(replicas: i32, image: &str) -> Deployment {
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("d".into()),
            generation: Some(1),
            ..Default::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            template: template(image),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(1),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment { max_surge: Some(IntOrString::Int(1)), max_unavailable: Some(IntOrString::Int(0)) }),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

/// `created` also serves as the revision.
fn set(image: &str, created: i64, replicas: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
    let note = |name: &str, value: i64| (format!("deployment.kubernetes.io/{name}"), value.to_string());
    Arc::new(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("web-{image}")),
            namespace: Some("ns".into()),
            uid: Some(format!("rs-{image}")),
            creation_timestamp: Some(Time(at(created))),
            annotations: Some(
                [note("revision", created), note("desired-replicas", desired.into()), note("max-replicas", i64::from(desired) + 1)].into(),
            ),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec { replicas: Some(replicas), template: Some(template(image)), ..Default::default() }),
        status: Some(ReplicaSetStatus { replicas, ready_replicas: Some(available), available_replicas: Some(available), ..Default::default() }),
    })
}

fn plan_at(deployment: &Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<k8s_openapi::api::core::v1::Pod>], now: i64) -> Plan {
    decide(&View { deployment, owner: &Owner::of(deployment), sets, pods, now: at(now) })
}

fn shown(plan: &Plan) -> String {
    let mut lines: Vec<String> = plan
        .writes
        .iter()
        .filter_map(|write| match write {
            SetWrite::Create(set) => Some(format!("new:{}", set.spec.as_ref()?.replicas?)),
            SetWrite::Update { set, scaled: Some((from, to)), .. } => Some(format!("{}:{from}->{to}", name_of(&**set))),
            SetWrite::Update { .. } => None,
            SetWrite::Delete(set) => Some(format!("{}:x", name_of(&**set))),
        })
        .collect();
    for condition in plan.status.conditions.iter().flatten() {
        lines.push(format!("{}={}", condition.type_, condition.reason.as_deref().unwrap_or("")));
    }
    lines.join(" ")
}

fn check(deployment: &Deployment, sets: &[Arc<ReplicaSet>], expected: &str) {
    assert_eq!(shown(&plan_at(deployment, sets, &[], 1000)), expected);
}

#[test]
fn a_new_deployment_gets_its_set_at_once() {
    let plan = plan_at(&deployment(3, "a"), &[], &[], 1000);
    assert_eq!(shown(&plan), "new:3 Progressing=NewReplicaSetCreated Available=MinimumReplicasUnavailable");
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(plan.status.unavailable_replicas, Some(3));
    let [SetWrite::Create(set)] = &plan.writes[..] else { panic!("{:?}", plan.writes) };
    let hash = set.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    assert_eq!(name_of(&**set), format!("web-{hash}"));
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"], hash);
    assert_eq!(set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/max-replicas"], "4");
}

#[test]
fn a_rolling_update_goes_step_by_step() {
    let d = deployment(3, "b");
    check(&d, &[set("a", 1, 3, 3, 3)], "new:1 Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
    // The new one is not available yet: nothing moves.
    check(&d, &[set("a", 1, 3, 3, 3), set("b", 2, 1, 0, 3)], "Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
    check(&d, &[set("a", 1, 3, 3, 3), set("b", 2, 1, 1, 3)], "web-a:3->2 Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
    check(&d, &[set("a", 1, 2, 2, 3), set("b", 2, 1, 1, 3)], "web-b:1->2 Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
    check(&d, &[set("a", 1, 0, 0, 3), set("b", 2, 3, 3, 3)], "Available=MinimumReplicasAvailable Progressing=NewReplicaSetAvailable");
}

#[test]
fn broken_old_pods_go_before_good_ones() {
    let d = deployment(3, "b");
    // One of the old ones is down, so with a new one coming up nothing available may go, but the broken one may.
    check(&d, &[set("a", 1, 4, 3, 3), set("b", 2, 0, 0, 3)], "web-a:4->3 Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
}

#[test]
fn rolling_back_takes_the_old_set_again_with_a_new_revision() {
    let d = deployment(3, "a");
    let plan = plan_at(&d, &[set("a", 1, 0, 0, 3), set("b", 2, 3, 3, 3)], &[], 1000);
    assert_eq!(plan.revision.as_deref(), Some("3"));
    assert!(shown(&plan).starts_with("web-a:0->1 "), "{}", shown(&plan));
    let change = plan.writes.iter().find_map(|write| match write {
        SetWrite::Update { set, change, .. } if name_of(&**set) == "web-a" => Some(change.clone()),
        _ => None,
    });
    let annotations = &change.unwrap()["metadata"]["annotations"];
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn scaling_in_mid_rollout_keeps_the_proportions() {
    let d = deployment(15, "b");
    // 10 wanted with surge 1, at 8 old and 3 new; now 15.
    check(&d, &[set("a", 1, 8, 8, 10), set("b", 2, 3, 0, 10)], "web-a:8->12 web-b:3->4 Available=MinimumReplicasUnavailable");
    check(&deployment(5, "a"), &[set("a", 1, 3, 3, 3)], "web-a:3->5 Available=MinimumReplicasUnavailable");
    check(&deployment(0, "a"), &[set("a", 1, 3, 3, 3)], "web-a:3->0 Available=MinimumReplicasAvailable");
}

#[test]
fn paused_means_no_rollout_but_scaling() {
    let mut d = deployment(4, "b");
    d.spec.as_mut().unwrap().paused = Some(true);
    check(&d, &[set("a", 1, 3, 3, 3)], "web-a:3->4 Progressing=DeploymentPaused Available=MinimumReplicasUnavailable");
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut d = deployment(2, "b");
    d.spec.as_mut().unwrap().strategy = Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    check(&d, &[set("a", 1, 2, 2, 2)], "web-a:2->0 Available=MinimumReplicasAvailable Progressing=ReplicaSetUpdated");
    let mut last = pod("p", "n", "Running", Some(1));
    last.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        uid: "rs-a".into(),
        controller: Some(true),
        ..Default::default()
    }]);
    let waiting = plan_at(&d, &[set("a", 1, 0, 0, 2)], &[Arc::new(last)], 1000);
    assert!(waiting.writes.is_empty());
    let gone = plan_at(&d, &[set("a", 1, 0, 0, 2)], &[], 1000);
    assert!(shown(&gone).starts_with("new:2 "), "{}", shown(&gone));
}

#[test]
fn a_stuck_rollout_is_said_to_be() {
    let mut d = deployment(1, "a");
    let condition = DeploymentCondition {
        type_: "Progressing".into(),
        status: "True".into(),
        reason: Some("ReplicaSetUpdated".into()),
        last_update_time: Some(Time(at(1000))),
        last_transition_time: Some(Time(at(900))),
        message: None,
    };
    d.status = Some(DeploymentStatus { replicas: Some(1), updated_replicas: Some(1), conditions: Some(vec![condition]), ..Default::default() });
    let sets = [set("a", 1, 1, 0, 1)];
    let plan = plan_at(&d, &sets, &[], 1500);
    assert_eq!(plan.next, client::controller::Next::After(std::time::Duration::from_secs(101)));
    let plan = plan_at(&d, &sets, &[], 1601);
    assert!(shown(&plan).contains("Progressing=ProgressDeadlineExceeded"), "{}", shown(&plan));
    assert_eq!(plan.next, client::controller::Next::Done);
}

#[test]
fn old_sets_beyond_the_limit_are_removed_when_done() {
    let d = deployment(1, "d");
    let sets = [set("a", 1, 0, 0, 1), set("b", 2, 0, 0, 1), set("c", 3, 0, 0, 1), set("d", 4, 1, 1, 1)];
    check(&d, &sets, "web-a:x web-b:x Available=MinimumReplicasAvailable Progressing=NewReplicaSetAvailable");
}

#[test]
fn shares_are_resolved_so_that_something_can_move() {
    let mut spec = DeploymentSpec { replicas: Some(3), ..Default::default() };
    let facts = Facts::of(&spec);
    assert_eq!((facts.max_surge, facts.max_unavailable), (1, 0));
    spec.strategy = Some(DeploymentStrategy {
        type_: None,
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(0)),
            max_unavailable: Some(IntOrString::String("10%".into())),
        }),
    });
    let facts = Facts::of(&spec);
    assert_eq!((facts.max_surge, facts.max_unavailable), (0, 1));
}
