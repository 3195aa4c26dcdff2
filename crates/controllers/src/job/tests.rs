//! The plan, played through: a small world in which pods end and the plan's writes come true.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec, SuccessPolicy, SuccessPolicyRule};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Plan, View, decide};
use super::{FINALIZER, INDEX, INDEX_FAILURES, new_pod};
use crate::common::owner::{Owner, name_of};
use crate::common::testing::at;

struct World {
    job: Job,
    pods: Vec<Pod>,
    now: i64,
    made: usize,
    events: Vec<String>,
}

impl World {
    fn new(spec: JobSpec) -> World {
        let mut job = Job { spec: Some(spec), ..Default::default() };
        job.metadata.name = Some("work".into());
        World { job, pods: Vec::new(), now: 1000, made: 0, events: Vec::new() }
    }

    fn plan(&self) -> Plan {
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        decide(&View { job: &self.job, spec: self.job.spec.as_ref().unwrap(), pods: &pods, now: at(self.now) })
    }

    /// Plans and carries out, until nothing changes.
    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = self.plan();
            if super::is_job_finished(&self.job)
                || (self.job.status.as_ref() == Some(&plan.status) && plan.create.is_empty() && plan.let_go.is_empty())
            {
                return;
            }
            self.job.status = Some(plan.status.clone());
            self.events.extend(plan.events.iter().map(|(_, reason, _)| reason.clone()));
            let uids = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.metadata.uid.clone()).collect::<BTreeSet<_>>();
            let (freed, dropped, deleted) = (uids(&plan.let_go), uids(&plan.drop), uids(&plan.delete));
            for pod in &mut self.pods {
                if freed.contains(&pod.metadata.uid) || dropped.contains(&pod.metadata.uid) {
                    pod.metadata.finalizers = None;
                }
                if deleted.contains(&pod.metadata.uid) {
                    pod.metadata.deletion_timestamp = Some(Time(at(self.now)));
                    pod.status.get_or_insert_default().phase = Some("Failed".into()); // It stops at once.
                }
            }
            self.pods.retain(|pod| !dropped.contains(&pod.metadata.uid));
            for wanted in &plan.create {
                let mut pod = new_pod(self.job.spec.as_ref().unwrap(), &Owner::of(&self.job), wanted);
                assert_eq!(pod.metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
                pod.metadata.name = Some(format!("p{}", self.made));
                pod.metadata.uid = Some(format!("uid-{}", self.made));
                pod.metadata.creation_timestamp = Some(Time(at(self.now)));
                self.made += 1;
                self.pods.push(pod);
            }
        }
        panic!("does not settle: {:?}", self.job.status);
    }

    fn end(&mut self, name: &str, phase: &str) {
        let pod = self.pods.iter_mut().find(|pod| name_of(*pod) == name).expect("there is such a pod");
        let status = pod.status.get_or_insert_default();
        status.phase = Some(phase.into());
        status.conditions = Some(vec![k8s_openapi::api::core::v1::PodCondition {
            type_: "Ready".into(),
            status: "False".into(),
            last_transition_time: Some(Time(at(self.now))),
            ..Default::default()
        }]);
    }

    fn check(&mut self, expected: &str) {
        self.settle();
        let status = self.job.status.clone().unwrap_or_default();
        let conditions: Vec<String> = status
            .conditions
            .iter()
            .flatten()
            .filter(|condition| condition.status == "True")
            .map(|condition| format!("{}={}", condition.type_, condition.reason.as_deref().unwrap_or("")))
            .collect();
        let got = format!(
            "active {} succeeded {} failed {} [{}] {}",
            status.active.unwrap_or(0),
            status.succeeded.unwrap_or(0),
            status.failed.unwrap_or(0),
            status.completed_indexes.as_deref().unwrap_or(""),
            conditions.join(" ")
        );
        assert_eq!(got.trim_end(), expected);
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        assert_eq!((uncounted.succeeded, uncounted.failed), (None, None), "all are counted");
    }
}

fn spec(completions: Option<i32>, parallelism: i32) -> JobSpec {
    JobSpec { completions, parallelism: Some(parallelism), backoff_limit: Some(2), ..Default::default() }
}

fn indexed(completions: i32, parallelism: i32) -> JobSpec {
    JobSpec { completion_mode: Some("Indexed".into()), ..spec(Some(completions), parallelism) }
}

#[test]
fn a_job_runs_to_completion() {
    let mut world = World::new(spec(Some(3), 2));
    world.check("active 2 succeeded 0 failed 0 []");
    world.end("p0", "Succeeded");
    world.check("active 2 succeeded 1 failed 0 []");
    world.end("p1", "Succeeded");
    world.end("p2", "Succeeded");
    world.check("active 0 succeeded 3 failed 0 [] SuccessCriteriaMet=CompletionsReached Complete=CompletionsReached");
    assert_eq!(world.events, ["Completed"]);
    assert!(world.job.status.as_ref().unwrap().completion_time.is_some());
    assert!(world.pods.iter().all(|pod| pod.metadata.finalizers.is_none()));
}

#[test]
fn failures_are_retried_after_a_pause_up_to_the_limit() {
    let mut world = World::new(spec(Some(1), 1));
    world.check("active 1 succeeded 0 failed 0 []");
    world.end("p0", "Failed");
    world.check("active 0 succeeded 0 failed 1 []");
    assert_eq!(world.plan().next.map(|d| d.as_secs()), Some(10));
    world.now += 10;
    world.check("active 1 succeeded 0 failed 1 []");
    world.end("p1", "Failed");
    world.now += 20;
    world.check("active 1 succeeded 0 failed 2 []");
    world.end("p2", "Failed");
    world.check("active 0 succeeded 0 failed 3 [] FailureTarget=BackoffLimitExceeded Failed=BackoffLimitExceeded");
    assert_eq!(world.events, ["BackoffLimitExceeded"]);
}

#[test]
fn a_deadline_ends_it_all() {
    let mut world = World::new(JobSpec { active_deadline_seconds: Some(30), ..spec(Some(2), 2) });
    world.check("active 2 succeeded 0 failed 0 []");
    assert_eq!(world.plan().next.map(|d| d.as_secs()), Some(30));
    world.now += 30;
    world.check("active 0 succeeded 0 failed 2 [] FailureTarget=DeadlineExceeded Failed=DeadlineExceeded");
}

#[test]
fn without_completions_one_success_is_enough() {
    let mut world = World::new(spec(None, 2));
    world.check("active 2 succeeded 0 failed 0 []");
    world.end("p0", "Succeeded");
    world.check("active 1 succeeded 1 failed 0 []");
    world.end("p1", "Succeeded");
    world.check("active 0 succeeded 2 failed 0 [] SuccessCriteriaMet=CompletionsReached Complete=CompletionsReached");
}

#[test]
fn suspending_takes_the_pods_away_uncounted() {
    let mut world = World::new(spec(Some(2), 2));
    world.check("active 2 succeeded 0 failed 0 []");
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.check("active 0 succeeded 0 failed 0 [] Suspended=JobSuspended");
    assert!(world.job.status.as_ref().unwrap().start_time.is_none());
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.now += 50;
    world.check("active 2 succeeded 0 failed 0 []");
    assert_eq!(world.job.status.as_ref().unwrap().start_time, Some(Time(at(1050))));
    assert_eq!(world.events, ["Suspended", "Resumed"]);
}

#[test]
fn every_index_succeeds_once() {
    let mut world = World::new(indexed(3, 2));
    world.check("active 2 succeeded 0 failed 0 []");
    assert_eq!(world.pods[1].metadata.labels.as_ref().unwrap()[INDEX], "1");
    world.end("p0", "Succeeded");
    world.check("active 2 succeeded 1 failed 0 [0]");
    world.end("p1", "Failed");
    world.now += 10;
    world.check("active 2 succeeded 1 failed 1 [0]");
    world.end("p2", "Succeeded");
    world.end("p3", "Succeeded");
    world.check("active 0 succeeded 3 failed 1 [0-2] SuccessCriteriaMet=CompletionsReached Complete=CompletionsReached");
}

#[test]
fn an_index_may_fail_alone() {
    let mut spec = indexed(2, 2);
    spec.backoff_limit_per_index = Some(1);
    spec.backoff_limit = Some(i32::MAX);
    let mut world = World::new(spec);
    world.check("active 2 succeeded 0 failed 0 []");
    world.end("p0", "Failed");
    world.now += 10;
    world.check("active 2 succeeded 0 failed 1 []");
    assert_eq!(world.pods[2].metadata.annotations.as_ref().unwrap()[INDEX_FAILURES], "1");
    world.end("p2", "Failed");
    world.check("active 1 succeeded 0 failed 2 []");
    assert_eq!(world.job.status.as_ref().unwrap().failed_indexes.as_deref(), Some("0"));
    world.end("p1", "Succeeded");
    world.check("active 0 succeeded 1 failed 2 [1] FailureTarget=FailedIndexes Failed=FailedIndexes");
}

#[test]
fn a_success_policy_ends_it_early() {
    let mut spec = indexed(3, 3);
    spec.success_policy = Some(SuccessPolicy { rules: vec![SuccessPolicyRule { succeeded_count: None, succeeded_indexes: Some("1".into()) }] });
    let mut world = World::new(spec);
    world.settle();
    world.end("p1", "Succeeded");
    world.settle();
    let status = world.job.status.clone().unwrap();
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "Complete" && c.reason.as_deref() == Some("SuccessPolicy")));
}

#[test]
fn fewer_in_parallel_means_fewer_pods() {
    let mut world = World::new(spec(Some(5), 3));
    world.check("active 3 succeeded 0 failed 0 []");
    world.job.spec.as_mut().unwrap().parallelism = Some(1);
    world.check("active 1 succeeded 0 failed 0 []");
}

#[test]
fn a_pod_that_nobody_adopts_is_not_held() {
    let mut job = World::new(spec(Some(1), 1)).job;
    let selector = serde_json::json!({"matchLabels": {"job-name": "work"}});
    job.spec.as_mut().unwrap().selector = serde_json::from_value(selector).unwrap();
    let mut pod = Pod::default();
    pod.metadata.labels = Some([("job-name".to_owned(), "work".to_owned())].into());
    assert!(super::adopts(&job, &pod));
    job.metadata.deletion_timestamp = Some(Time(at(1)));
    assert!(!super::adopts(&job, &pod), "a Job that goes adopts nothing");
    job.metadata.deletion_timestamp = None;
    pod.metadata.labels = None;
    assert!(!super::adopts(&job, &pod), "it was released");
}
