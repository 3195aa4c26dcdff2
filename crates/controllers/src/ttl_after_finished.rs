//! Deletes Jobs that have ended, `ttlSecondsAfterFinished` after their end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, Deletion, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::PropagationPolicy;

use crate::Context;

struct TtlAfterFinished {
    jobs: Informer<Job>,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(TtlAfterFinished { jobs: context.informers.all(), clock: context.clock.clone() })
}

/// How long the Job may still stay; `None` if it has not ended, has no such limit, or is being deleted.
fn remaining(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = Duration::from_secs(u64::try_from(job.spec.as_ref()?.ttl_seconds_after_finished?).ok()?);
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))?;
    let passed = Duration::try_from(now.duration_since(end.last_transition_time.as_ref()?.0)).unwrap_or(Duration::ZERO);
    Some(ttl.saturating_sub(passed))
}

#[async_trait]
impl Controller for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.jobs);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(job) = self.jobs.get(key) else { return Ok(Next::Done) };
        match remaining(&job, self.clock.now()) {
            None => Ok(Next::Done),
            Some(left) if !left.is_zero() => Ok(Next::After(left)),
            Some(_) => {
                // The limit may have been changed a moment ago: only this very version goes.
                let exactly = Deletion { resource_version: job.metadata.resource_version.clone(), ..Deletion::of(&*job) };
                match self.jobs.delete(key, &exactly.propagating(PropagationPolicy::Foreground)).await {
                    Ok(()) => Ok(Next::Done),
                    Err(error) if error.is_not_found() => Ok(Next::Done),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn check(ttl: Option<i32>, ended_at: Option<i64>, now: i64, expected_s: Option<u64>) {
        let condition = ended_at.map(|s| JobCondition {
            type_: "Failed".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(s))),
            ..Default::default()
        });
        let job = Job {
            spec: Some(JobSpec { ttl_seconds_after_finished: ttl, ..Default::default() }),
            status: Some(JobStatus { conditions: condition.map(|c| vec![c]), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(remaining(&job, at(now)).map(|d| d.as_secs()), expected_s);
    }

    #[test]
    fn the_time_is_counted_from_the_end() {
        check(None, Some(10), 20, None);
        check(Some(30), None, 20, None);
        check(Some(30), Some(10), 20, Some(20));
        check(Some(30), Some(10), 50, Some(0));
        check(Some(0), Some(10), 10, Some(0));
    }
}
