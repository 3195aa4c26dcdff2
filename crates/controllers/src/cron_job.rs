//! CronJobs: a Job at every time of a schedule.
//!
//! Reads CronJobs and their Jobs; owns the Jobs it makes and the CronJobs' status. [`decide`] says which Jobs to remove,
//! whether one is due, and when to look again. A Job's name is made from its time, so that no time is served twice.

use std::sync::Arc;
use std::time::Duration;

use api::cron::{self, Schedule};
use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Normal, Recorder, Warning};
use client::{Clock, Deletion, ErrorExt, Informer, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::{ObjectMeta, PropagationPolicy};

use crate::Context;
use crate::common::owner::{Owner, is_controlled_by, name_of, uid_of};
use crate::common::patch;

/// After so many missed times a user should be told.
const MISSED_TIMES_MANY: usize = 100;
/// Looking a little after the time, so that it has certainly come.
const AFTER_THE_TIME: Duration = Duration::from_millis(100);

struct CronJobs {
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: Recorder,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(CronJobs {
        cron_jobs: context.informers.all(),
        jobs: context.informers.all(),
        recorder: context.recorder_for("cronjob-controller"),
        clock: context.clock.clone(),
    })
}

/// What to do.
#[derive(Debug, Default)]
struct Plan {
    /// Ended Jobs beyond the history limits.
    forget: Vec<Arc<Job>>,
    /// Running Jobs that give way to the new one.
    replace: Vec<Arc<Job>>,
    /// The time that is to be served now.
    start: Option<Timestamp>,
    status: CronJobStatus,
    events: Vec<(EventType, &'static str, String)>,
    next: Option<Duration>,
}

fn end_of(job: &Job) -> Option<(&str, Option<Timestamp>)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))?;
    Some((end.type_.as_str(), end.last_transition_time.as_ref().map(|time| time.0)))
}

/// Decides from the CronJob and its own Jobs.
fn decide(cron_job: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let old = cron_job.status.clone().unwrap_or_default();
    plan.status.last_schedule_time = old.last_schedule_time.clone();
    plan.status.last_successful_time = old.last_successful_time.clone();

    let mut running: Vec<&Arc<Job>> = jobs.iter().filter(|job| end_of(job).is_none()).collect();
    running.sort_by_key(|job| (job.metadata.creation_timestamp.as_ref().map(|time| time.0), job.metadata.name.clone()));
    for known in old.active.iter().flatten() {
        let job = jobs.iter().find(|job| known.uid.as_deref() == Some(uid_of(&***job)));
        match job.map(|job| (job, end_of(job))) {
            Some((job, Some((how, _)))) => {
                plan.events.push((Normal, "SawCompletedJob", format!("Saw completed job: {}, condition: {how}", name_of(&**job))));
            }
            Some(_) => {}
            None => plan.events.push((Normal, "MissingJob", format!("Active job went missing: {}", known.name.as_deref().unwrap_or_default()))),
        }
    }
    plan.status.active = refer(&running);
    for (job, how) in jobs.iter().filter_map(|job| Some((job, end_of(job)?.0))) {
        let at = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if how == "Complete" && at.as_ref().map(|time| time.0) > plan.status.last_successful_time.as_ref().map(|time| time.0) {
            plan.status.last_successful_time = at;
        }
    }
    plan.forget = beyond_limit(jobs, "Complete", spec.successful_jobs_history_limit.unwrap_or(3));
    plan.forget.extend(beyond_limit(jobs, "Failed", spec.failed_jobs_history_limit.unwrap_or(1)));

    if cron_job.metadata.deletion_timestamp.is_some() || spec.suspend.unwrap_or(false) {
        return plan;
    }
    let schedule = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        Ok(schedule) => schedule,
        Err(error @ cron::Error::TimeZone(_)) => {
            plan.events.push((Warning, "UnknownTimeZone", format!("invalid timeZone: {error}")));
            return plan;
        }
        Err(error) => {
            plan.events.push((Warning, "UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule)));
            return plan;
        }
    };
    plan.next = schedule.next(now).and_then(|next| Duration::try_from(next.duration_since(now)).ok()).map(|left| left + AFTER_THE_TIME);

    let last = old.last_schedule_time.as_ref().or(cron_job.metadata.creation_timestamp.as_ref()).map_or(now, |time| time.0);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let earliest = deadline.and_then(|deadline| now.checked_sub(deadline).ok()).map_or(last, |earliest| earliest.max(last));
    let Some(due) = schedule.newest(earliest, now) else { return plan };
    if schedule.missed(earliest, now, MISSED_TIMES_MANY + 1) > MISSED_TIMES_MANY {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((Warning, "TooManyMissedTimes", message.into()));
    }
    if old.last_schedule_time.as_ref().is_some_and(|last| last.0 == due) {
        return plan;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((Normal, "JobAlreadyActive", message.into()));
            return plan;
        }
        Some("Replace") => plan.replace = running.into_iter().cloned().collect(),
        _ => {}
    }
    plan.start = Some(due);
    plan
}

fn refer(jobs: &[&Arc<Job>]) -> Option<Vec<ObjectReference>> {
    let list: Vec<ObjectReference> = jobs.iter().map(|job| reference(job)).collect();
    (!list.is_empty()).then_some(list)
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference { resource_version: job.metadata.resource_version.clone(), ..job.object_ref(&()) }
}

/// The oldest Jobs with this end, beyond the limit.
fn beyond_limit(jobs: &[Arc<Job>], how: &str, limit: i32) -> Vec<Arc<Job>> {
    let mut ended: Vec<_> = jobs.iter().filter(|job| end_of(job).is_some_and(|(end, _)| end == how)).cloned().collect();
    ended.sort_by_key(|job| (job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0), job.metadata.name.clone()));
    let keep = usize::try_from(limit.max(0)).unwrap_or(0);
    ended.truncate(ended.len().saturating_sub(keep));
    ended.retain(|job| job.metadata.deletion_timestamp.is_none());
    ended
}

/// The Job for a time of the schedule.
fn job_for(spec: &CronJobSpec, owner: &Owner, time: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let zone = Schedule::parse(&spec.schedule, spec.time_zone.as_deref()).map(|schedule| schedule.zone().clone()).unwrap_or(jiff::tz::TimeZone::UTC);
    annotations.insert("batch.kubernetes.io/cronjob-scheduled-timestamp".into(), cron::stamp(time, &zone));
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", owner.name(), time.as_second() / 60)),
            namespace: Some(owner.namespace.clone()),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

#[async_trait]
impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.cron_jobs);
        inputs.owned(&self.jobs, "CronJob");
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(cron_job) = self.cron_jobs.get(key) else { return Ok(Next::Done) };
        let spec = &cron_job.spec;
        let owner = Owner::of(&*cron_job);
        let jobs: Vec<Arc<Job>> = self.jobs.in_namespace(&key.namespace).into_iter().filter(|job| is_controlled_by(&**job, owner.uid())).collect();
        let mut plan = decide(&cron_job, spec, &jobs, self.clock.now());
        for (type_, reason, message) in plan.events.drain(..) {
            self.recorder.event(&owner.about, type_, reason, "", message);
        }
        for job in plan.forget.iter().chain(&plan.replace) {
            self.delete(&owner, job).await?;
        }
        if !plan.replace.is_empty() {
            plan.status.active = None;
        }
        let mut outcome = Ok(());
        if let Some(time) = plan.start {
            match self.start(&owner, spec, time).await {
                Ok(Some(job)) => {
                    plan.status.last_schedule_time = Some(Time(time));
                    let active = plan.status.active.get_or_insert_default();
                    if active.iter().all(|known| known.uid.as_deref() != Some(uid_of(&*job))) {
                        active.push(reference(&job));
                    }
                }
                // Served already, and over.
                Ok(None) => plan.status.last_schedule_time = Some(Time(time)),
                Err(error) => outcome = Err(error),
            }
        }
        patch::write_status(&self.cron_jobs, &cron_job, cron_job.status.as_ref(), &plan.status).await?;
        outcome?;
        Ok(plan.next.map_or(Next::Done, Next::After))
    }
}

impl CronJobs {
    async fn start(&self, owner: &Owner, spec: &CronJobSpec, time: Timestamp) -> Result<Option<Arc<Job>>, Error> {
        let job = job_for(spec, owner, time);
        match self.jobs.create(&job).await {
            Ok(job) => {
                self.recorder.event(&owner.about, Normal, "SuccessfulCreate", "", format!("Created job {}", name_of(&*job)));
                Ok(Some(job))
            }
            Err(error) if error.is_already_exists() => {
                let there = self.jobs.live(&Key::of(&job)).await?;
                match there {
                    Some(there) if is_controlled_by(&there, owner.uid()) => Ok(end_of(&there).is_none().then(|| Arc::new(there))),
                    Some(there) => Err(Error::NotYet(format!("a job {} of somebody else has the name", name_of(&there)))),
                    None => Err(error.into()),
                }
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => {
                self.recorder.event(&owner.about, Warning, "FailedCreate", "", format!("Error creating job: {}", error.short()));
                Err(error.into())
            }
        }
    }

    async fn delete(&self, owner: &Owner, job: &Job) -> Result<(), Error> {
        match self.jobs.delete(&Key::of(job), &Deletion::of(job).propagating(PropagationPolicy::Background)).await {
            Ok(()) => {
                self.recorder.event(&owner.about, Normal, "SuccessfulDelete", "", format!("Deleted job {}", name_of(job)));
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.recorder.event(&owner.about, Warning, "FailedDelete", "", format!("Deleted job: {}", error.short()));
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    fn job(name: &str, started: i64, end: Option<&str>) -> Arc<Job> {
        let condition = end.map(|type_| JobCondition {
            type_: type_.into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(started + 5))),
            ..Default::default()
        });
        Arc::new(Job {
            metadata: ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..Default::default() },
            status: Some(JobStatus {
                start_time: Some(Time(at(started))),
                completion_time: (end == Some("Complete")).then(|| Time(at(started + 5))),
                conditions: condition.map(|c| vec![c]),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// A CronJob of every minute, made at 30 s, last served at `last`.
    fn check(policy: &str, deadline: Option<i64>, last: Option<i64>, jobs: &[Arc<Job>], now: i64, expected: &str) {
        let spec = CronJobSpec {
            schedule: "* * * * *".into(),
            concurrency_policy: Some(policy.into()),
            starting_deadline_seconds: deadline,
            successful_jobs_history_limit: Some(1),
            ..Default::default()
        };
        let mut cron_job = CronJob { spec: spec.clone(), ..Default::default() };
        cron_job.metadata.creation_timestamp = Some(Time(at(30)));
        cron_job.status = Some(CronJobStatus { last_schedule_time: last.map(|s| Time(at(s))), ..Default::default() });
        let plan = decide(&cron_job, &spec, jobs, at(now));
        let names = |jobs: &[Arc<Job>]| jobs.iter().map(|job| name_of(&**job).to_owned()).collect::<Vec<_>>().join(",");
        let reasons: Vec<&str> = plan.events.iter().map(|(_, reason, _)| *reason).collect();
        let start = plan.start.map_or("-".into(), |time| time.as_second().to_string());
        let next = plan.next.map_or(0, |next| next.as_secs());
        let got = format!("start {start} next {next} replace [{}] forget [{}] {}", names(&plan.replace), names(&plan.forget), reasons.join(","));
        assert_eq!(got.trim_end(), expected);
    }

    #[test]
    fn times_are_served_once() {
        check("Allow", None, None, &[], 45, "start - next 15 replace [] forget []");
        check("Allow", None, None, &[], 61, "start 60 next 59 replace [] forget []");
        check("Allow", None, Some(60), &[], 90, "start - next 30 replace [] forget []");
        check("Allow", None, Some(60), &[], 250, "start 240 next 50 replace [] forget []");
        check("Allow", Some(5), Some(60), &[], 250, "start - next 50 replace [] forget []");
        check("Allow", None, Some(60), &[], 60 * 200, "start 12000 next 60 replace [] forget [] TooManyMissedTimes");
    }

    #[test]
    fn policies() {
        let running = [job("r", 60, None)];
        check("Allow", None, Some(60), &running, 121, "start 120 next 59 replace [] forget []");
        check("Forbid", None, Some(60), &running, 121, "start - next 59 replace [] forget [] JobAlreadyActive");
        check("Replace", None, Some(60), &running, 121, "start 120 next 59 replace [r] forget []");
    }

    #[test]
    fn history_is_limited() {
        let jobs = [job("a", 10, Some("Complete")), job("b", 20, Some("Complete")), job("c", 30, Some("Failed")), job("d", 40, Some("Failed"))];
        check("Allow", None, Some(60), &jobs, 61, "start - next 59 replace [] forget [a,c]");
    }

    #[test]
    fn a_job_is_named_by_its_minute() {
        let mut owner = Owner::default();
        owner.reference.name = "tick".into();
        let job = job_for(&CronJobSpec { schedule: "* * * * *".into(), ..Default::default() }, &owner, at(1_767_225_600));
        assert_eq!(name_of(&job), "tick-29453760");
        assert_eq!(job.metadata.annotations.unwrap()["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2026-01-01T00:00:00Z");
    }
}
