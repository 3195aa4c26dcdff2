//! What to do about a Job, decided from its status and its pods, without I/O.
//!
//! Every pod is counted exactly once, although counting and letting go of a pod are two writes to two objects: a pod
//! carries a finalizer until it is counted. First its UID is written into `uncountedTerminatedPods` (or its index into
//! `completedIndexes`), then its finalizer is removed, and when that is seen, the UID becomes part of the counter. A crash
//! between any two of these leaves enough to go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::failure::{self, Verdict};
use super::{INDEX, INDEX_FAILURES, has_finalizer, indexes};
use crate::common::owner::{annotation, uid_of};
use crate::common::pod_state;

/// Pods created or deleted in one reconcile at most.
const BURST_PODS: usize = 500;
/// UIDs waiting in the status at most; more wait for the next round.
const UNCOUNTED_MAX: usize = 500;

/// What there is.
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    /// The Job's own pods.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// A pod to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewPod {
    /// Its completion index, for an Indexed Job.
    pub(super) index: Option<i32>,
    /// How often that index has failed.
    pub(super) index_failures: Option<i32>,
}

/// What to do, in this order: write the status, remove finalizers, delete, create.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// Pods that the status (once written) accounts for.
    pub(super) let_go: Vec<Arc<Pod>>,
    /// Pods to delete that are not to be counted: their finalizer goes first.
    pub(super) drop: Vec<Arc<Pod>>,
    /// Pods to delete that are to be counted when they have ended.
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) create: Vec<NewPod>,
    pub(super) events: Vec<(bool, String, String)>,
    pub(super) next: Option<Duration>,
}

/// The condition of this type, if it is true.
pub(super) fn condition<'a>(conditions: &'a [JobCondition], type_: &str) -> Option<&'a JobCondition> {
    conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Whether the Job has ended.
pub fn is_finished(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    condition(conditions, "Complete").or_else(|| condition(conditions, "Failed")).is_some()
}

/// The completion index of a pod.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    annotation(pod, INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// The counting in progress.
struct Tally {
    succeeded: i32,
    failed: i32,
    uncounted_succeeded: Vec<String>,
    uncounted_failed: Vec<String>,
    completed: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// Why a pod's failure fails the whole Job.
    fatal: Option<String>,
}

impl Tally {
    fn all_succeeded(&self, indexed: bool) -> i32 {
        if indexed { len(&self.completed) } else { self.succeeded + count(self.uncounted_succeeded.len()) }
    }

    fn all_failed(&self) -> i32 {
        self.failed + count(self.uncounted_failed.len())
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn len(set: &BTreeSet<i32>) -> i32 {
    count(set.len())
}

/// Decides what to do. The Job has not ended yet.
pub(super) fn decide(view: &View<'_>) -> Plan {
    let spec = view.spec;
    let old = view.job.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let completions = spec.completions.unwrap_or(1);
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let suspended = spec.suspend.unwrap_or(false);
    let deleting = view.job.metadata.deletion_timestamp.is_some();
    // A failure policy needs to see how pods end, so it waits until they have.
    let only_ended_fail = spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some();

    let mut start_time = old.start_time.clone();
    if start_time.is_none() && !suspended {
        start_time = Some(Time(client::clock::whole_seconds(view.now)));
    }
    let ending = condition(&conditions, "FailureTarget").or_else(|| condition(&conditions, "SuccessCriteriaMet")).is_some();

    // 1. Count what has ended.
    let mut tally = tally(view, &old, indexed, completions, only_ended_fail && !ending, &mut plan);

    // 2. Is it decided how the Job ends?
    let active: Vec<&Arc<Pod>> = view.pods.iter().filter(|pod| pod_state::is_active(pod)).collect();
    let terminating = view.pods.iter().filter(|pod| pod_state::is_terminating(pod)).count();
    let succeeded = tally.all_succeeded(indexed);
    if !ending {
        let failing = why_failing(view, &tally, &active, start_time.as_ref(), suspended, &mut plan);
        let done = success(spec, &tally, indexed, completions, succeeded, active.len() + terminating);
        if let Some((reason, message)) = failing {
            set_condition(&mut conditions, "FailureTarget", "True", reason, message, view.now);
        } else if let Some((reason, message)) = done {
            set_condition(&mut conditions, "SuccessCriteriaMet", "True", reason, message, view.now);
        }
    }
    let failing = condition(&conditions, "FailureTarget").cloned();
    let succeeding = condition(&conditions, "SuccessCriteriaMet").cloned();

    // 3. The pods.
    let mut active_now = active.len();
    if failing.is_some() || succeeding.is_some() {
        plan.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
        // Everything has been let go and has ended: say so for good.
        let settled = active.is_empty()
            && terminating == 0
            && plan.let_go.is_empty()
            && tally.uncounted_failed.is_empty()
            && tally.uncounted_succeeded.is_empty();
        if settled {
            finish(&mut conditions, &mut plan, failing, succeeding, view.now);
        }
    } else if !deleting {
        if suspended {
            plan.drop = active.iter().map(|pod| Arc::clone(pod)).collect();
            active_now = 0;
            start_time = None;
        } else {
            pods(view, &tally, indexed, completions, parallelism, succeeded, &active, terminating, only_ended_fail, &mut plan);
            active_now = active_now + plan.create.len() - plan.drop.len();
        }
        note_suspension(&mut conditions, &mut plan, suspended, view.now);
        if condition(&conditions, "Suspended").is_none() && old.start_time.is_none() && !suspended {
            start_time = Some(Time(client::clock::whole_seconds(view.now)));
        }
    }

    // 4. The status.
    let complete = condition(&conditions, "Complete").is_some();
    let ready = active.iter().filter(|pod| pod_state::is_ready(pod)).count();
    let counted = |n: i32| (n != 0).then_some(n);
    if indexed {
        tally.succeeded = len(&tally.completed);
    }
    let named = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
    plan.status = JobStatus {
        active: counted(count(active_now)),
        ready: Some(count(ready)),
        terminating: Some(count(terminating)),
        succeeded: counted(tally.succeeded),
        failed: counted(tally.failed),
        completed_indexes: (indexed && !tally.completed.is_empty()).then(|| indexes::format(&tally.completed)),
        failed_indexes: (indexed && spec.backoff_limit_per_index.is_some()).then(|| indexes::format(&tally.failed_indexes)),
        uncounted_terminated_pods: Some(UncountedTerminatedPods {
            succeeded: named(tally.uncounted_succeeded),
            failed: named(tally.uncounted_failed),
        }),
        conditions: (!conditions.is_empty()).then_some(conditions),
        completion_time: if complete { Some(Time(client::clock::whole_seconds(view.now))) } else { old.completion_time },
        start_time,
    };
    plan
}

/// Moves what has been let go into the counters, and takes up what has newly ended.
fn tally(view: &View<'_>, old: &JobStatus, indexed: bool, completions: i32, only_ended_fail: bool, plan: &mut Plan) -> Tally {
    let uncounted = old.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut tally = Tally {
        succeeded: old.succeeded.unwrap_or(0),
        failed: old.failed.unwrap_or(0),
        uncounted_succeeded: uncounted.succeeded.unwrap_or_default(),
        uncounted_failed: uncounted.failed.unwrap_or_default(),
        completed: indexes::parse(old.completed_indexes.as_deref().unwrap_or_default(), completions),
        failed_indexes: indexes::parse(old.failed_indexes.as_deref().unwrap_or_default(), completions),
        fatal: None,
    };
    let held: BTreeSet<&str> = view.pods.iter().filter(|pod| has_finalizer(pod)).map(|pod| uid_of(&**pod)).collect();
    let before = tally.uncounted_succeeded.len();
    tally.uncounted_succeeded.retain(|uid| held.contains(uid.as_str()));
    tally.succeeded += count(before - tally.uncounted_succeeded.len());
    let before = tally.uncounted_failed.len();
    tally.uncounted_failed.retain(|uid| held.contains(uid.as_str()));
    tally.failed += count(before - tally.uncounted_failed.len());

    for pod in view.pods.iter().filter(|pod| has_finalizer(pod)) {
        let uid = uid_of(&**pod);
        let known = |list: &[String]| list.iter().any(|known| known == uid);
        if known(&tally.uncounted_succeeded) || known(&tally.uncounted_failed) {
            plan.let_go.push(pod.clone());
            continue;
        }
        let failed = pod_state::phase(pod) == "Failed" || (pod_state::is_terminating(pod) && !only_ended_fail);
        if !failed && pod_state::phase(pod) != "Succeeded" {
            continue;
        }
        if tally.uncounted_succeeded.len() + tally.uncounted_failed.len() >= UNCOUNTED_MAX {
            plan.next = Some(Duration::from_millis(10));
            break;
        }
        plan.let_go.push(pod.clone());
        if failed {
            take_failed(view.spec, pod, indexed, completions, &mut tally);
        } else if indexed {
            // The set of indexes says it already; nothing need wait to be counted.
            tally.completed.extend(index_of(pod).filter(|index| *index < completions));
        } else {
            tally.uncounted_succeeded.push(uid.to_owned());
        }
    }
    for index in &tally.completed {
        tally.failed_indexes.remove(index);
    }
    tally
}

fn take_failed(spec: &JobSpec, pod: &Pod, indexed: bool, completions: i32, tally: &mut Tally) {
    let index = index_of(pod).filter(|index| *index < completions);
    if indexed && index.is_none() {
        return;
    }
    match failure::judge(spec, pod) {
        Verdict::Ignore => return,
        Verdict::FailJob(why) => tally.fatal = tally.fatal.take().or(Some(why)),
        Verdict::FailIndex => tally.failed_indexes.extend(index),
        Verdict::Count => {
            if let (Some(limit), Some(index)) = (spec.backoff_limit_per_index, index)
                && index_failures(pod) >= limit
            {
                tally.failed_indexes.insert(index);
            }
        }
    }
    tally.uncounted_failed.push(uid_of(pod).to_owned());
}

/// How often the pod's index had failed before it.
fn index_failures(pod: &Pod) -> i32 {
    annotation(pod, INDEX_FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Why the Job fails, if it does.
fn why_failing(
    view: &View<'_>,
    tally: &Tally,
    active: &[&Arc<Pod>],
    start: Option<&Time>,
    suspended: bool,
    plan: &mut Plan,
) -> Option<(&'static str, String)> {
    let spec = view.spec;
    if let Some(why) = &tally.fatal {
        return Some(("PodFailurePolicy", why.clone()));
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts: i32 = active.iter().map(|pod| pod_state::restarts_total(pod)).sum();
    let on_failure = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
    let restarted_out = on_failure && if limit == 0 { restarts > 0 } else { restarts >= limit };
    if tally.all_failed() > limit || restarted_out {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
    }
    if let (Some(deadline), Some(start), false) = (spec.active_deadline_seconds, start, suspended) {
        let passed = Duration::try_from(view.now.duration_since(start.0)).unwrap_or(Duration::ZERO);
        let left = Duration::from_secs(u64::try_from(deadline).unwrap_or(0)).saturating_sub(passed);
        if left.is_zero() {
            return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
        }
        plan.next = sooner(plan.next, left);
    }
    if let Some(max) = spec.max_failed_indexes
        && len(&tally.failed_indexes) > max
    {
        return Some(("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes".into()));
    }
    let tried_all = spec.backoff_limit_per_index.is_some()
        && !tally.failed_indexes.is_empty()
        && len(&tally.failed_indexes) + len(&tally.completed) >= spec.completions.unwrap_or(1);
    tried_all.then(|| ("FailedIndexes", "Job has failed indexes".into()))
}

/// Whether enough has succeeded, and why.
fn success(spec: &JobSpec, tally: &Tally, indexed: bool, completions: i32, succeeded: i32, running: usize) -> Option<(&'static str, String)> {
    let rules = spec.success_policy.iter().flat_map(|policy| &policy.rules).enumerate();
    for (at, rule) in rules.filter(|_| indexed) {
        let counted = match &rule.succeeded_indexes {
            Some(wanted) => {
                let wanted = indexes::parse(wanted, completions);
                let done = count(wanted.intersection(&tally.completed).count());
                done >= rule.succeeded_count.unwrap_or(len(&wanted))
            }
            None => rule.succeeded_count.is_some_and(|wanted| len(&tally.completed) >= wanted),
        };
        if counted {
            return Some(("SuccessPolicy", format!("Matched rules at index {at}")));
        }
    }
    let reached = match spec.completions {
        // Without a number, one success means that the work is done, once the others have ended too.
        None => succeeded > 0,
        Some(completions) => succeeded >= completions,
    };
    (reached && running == 0).then(|| ("CompletionsReached", "Reached expected number of succeeded pods".into()))
}

/// Which pods to create and which to drop so that the right number runs.
fn pods(
    view: &View<'_>,
    tally: &Tally,
    indexed: bool,
    completions: i32,
    parallelism: i32,
    succeeded: i32,
    active: &[&Arc<Pod>],
    terminating: usize,
    only_ended_fail: bool,
    plan: &mut Plan,
) {
    let spec = view.spec;
    let running = count(active.len());
    let wanted = match spec.completions {
        None if succeeded > 0 => running.min(parallelism),
        None => parallelism,
        Some(completions) => (completions - succeeded - len(&tally.failed_indexes)).max(0).min(parallelism),
    };
    let mut surplus: Vec<Arc<Pod>> = Vec::new();
    let mut kept: Vec<Arc<Pod>> = Vec::new();
    if indexed {
        // One pod per index, none for an index that needs none.
        let mut taken = BTreeSet::new();
        let mut by_age: Vec<&&Arc<Pod>> = active.iter().collect();
        by_age.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for pod in by_age {
            let needed = index_of(pod).is_some_and(|index| index < completions && !tally.completed.contains(&index) && taken.insert(index));
            if needed { kept.push(Arc::clone(pod)) } else { surplus.push(Arc::clone(pod)) }
        }
    } else {
        kept = active.iter().map(|pod| Arc::clone(pod)).collect();
    }
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if kept.len() > wanted {
        pod_state::sort_for_deletion(&mut kept, &BTreeMap::new(), view.now);
        surplus.extend(kept.drain(..kept.len() - wanted));
    }
    surplus.truncate(BURST_PODS);
    plan.drop = surplus;
    if !plan.drop.is_empty() {
        return;
    }
    // Where only ended pods are replaced, those that are still ending hold their places.
    let held = if only_ended_fail { terminating } else { 0 };
    let missing = wanted.saturating_sub(kept.len() + held).min(BURST_PODS);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_none() {
        let pause = failure::pause(view.pods.iter().map(|pod| &**pod), view.now);
        if !pause.is_zero() {
            plan.next = sooner(plan.next, pause);
            return;
        }
    }
    if !indexed {
        plan.create = vec![NewPod { index: None, index_failures: None }; missing];
        return;
    }
    let mut busy: BTreeSet<i32> = kept.iter().filter_map(|pod| index_of(pod)).collect();
    if only_ended_fail {
        busy.extend(view.pods.iter().filter(|pod| pod_state::is_terminating(pod)).filter_map(|pod| index_of(pod)));
    }
    for index in (0..completions).filter(|index| !tally.completed.contains(index) && !tally.failed_indexes.contains(index) && !busy.contains(index)) {
        if plan.create.len() >= missing {
            break;
        }
        let mut failures = None;
        if spec.backoff_limit_per_index.is_some() {
            let of_index = view.pods.iter().map(|pod| &**pod).filter(|pod| index_of(pod) == Some(index));
            let pause = failure::pause(of_index.clone(), view.now);
            if !pause.is_zero() {
                plan.next = sooner(plan.next, pause);
                continue;
            }
            let ended = of_index.filter(|pod| pod_state::phase(pod) == "Failed" || pod_state::is_deleting(pod));
            failures = Some(ended.map(|pod| index_failures(pod) + 1).max().unwrap_or(0));
        }
        plan.create.push(NewPod { index: Some(index), index_failures: failures });
    }
}

fn note_suspension(conditions: &mut Vec<JobCondition>, plan: &mut Plan, suspended: bool, now: Timestamp) {
    let was = condition(conditions, "Suspended").is_some();
    if suspended && !was {
        set_condition(conditions, "Suspended", "True", "JobSuspended", "Job suspended".into(), now);
        plan.events.push((false, "Suspended".into(), "Job suspended".into()));
    } else if !suspended && was {
        set_condition(conditions, "Suspended", "False", "JobResumed", "Job resumed".into(), now);
        plan.events.push((false, "Resumed".into(), "Job resumed".into()));
    }
}

fn finish(conditions: &mut Vec<JobCondition>, plan: &mut Plan, failing: Option<JobCondition>, succeeding: Option<JobCondition>, now: Timestamp) {
    let said = |condition: &JobCondition| (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default());
    if let Some(failing) = failing {
        let (reason, message) = said(&failing);
        set_condition(conditions, "Failed", "True", &reason, message.clone(), now);
        plan.events.push((true, reason, message));
    } else if let Some(succeeding) = succeeding {
        let (reason, message) = said(&succeeding);
        set_condition(conditions, "Complete", "True", &reason, message, now);
        plan.events.push((false, "Completed".into(), "Job completed".into()));
    }
}

fn set_condition(conditions: &mut Vec<JobCondition>, type_: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let now = Time(client::clock::whole_seconds(now));
    let condition = JobCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    match conditions.iter_mut().find(|known| known.type_ == type_) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

fn sooner(next: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(next.map_or(other, |next| next.min(other)))
}
