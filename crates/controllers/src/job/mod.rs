//! Jobs: pods that run to their end, until enough of them have succeeded or too many have failed.
//!
//! Reads Jobs and their pods; owns the pods and the Jobs' status. [`plan::decide`] looks at both and says what to write;
//! see there how every pod is counted exactly once.

mod failure;
mod indexes;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Warning};
use client::{Clock, ErrorExt, Informer, Key};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use self::plan::{NewPod, Plan, View, decide};
use crate::Context;
use crate::common::owner::{Owner, controller_of, labels_of};
use crate::common::pods::{PodControl, from_template, slow_start};
use crate::common::{claim, patch};

pub use plan::is_finished as is_job_finished;

/// The finalizer that a pod carries until it is counted.
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The label and annotation of a pod's completion index.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often a pod's index had failed before it.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Jobs that name another manager are left to it.
const MANAGER: &str = "kubernetes.io/job-controller";

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

struct Jobs {
    jobs: Informer<Job>,
    pods: PodControl,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Jobs { jobs: context.informers.all(), pods: PodControl::new(context, "job-controller"), clock: context.clock.clone() })
}

#[async_trait]
impl Controller for Jobs {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.jobs);
        inputs.owned(self.pods.pods(), "Job");
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let job = self.jobs.get(key);
        let Some((job, spec)) = job.as_ref().and_then(|job| Some((job, job.spec.as_ref()?))) else {
            self.let_orphans_go(key, None).await?;
            return Ok(Next::Done);
        };
        if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
            return Ok(Next::Done);
        }
        if is_job_finished(job) {
            self.let_orphans_go(key, None).await?;
            return Ok(Next::Done);
        }
        let owner = Owner::of(&**job);
        self.let_orphans_go(key, Some(owner.uid())).await?;
        let selector = spec.selector.clone().and_then(|selector| Selector::try_from(selector).ok()).filter(|selector| !selector.selects_all());
        let pods = claim::claim(&self.jobs, &owner, self.pods.pods(), selector.as_ref(), has_finalizer).await?;
        let plan = decide(&View { job, spec, pods: &pods, now: self.clock.now() });
        self.apply(job, spec, &owner, plan).await
    }
}

impl Jobs {
    async fn apply(&self, job: &Arc<Job>, spec: &JobSpec, owner: &Owner, plan: Plan) -> Result<Next, Error> {
        // The status first: only what it accounts for may be let go.
        patch::write_status(&self.jobs, job, job.status.as_ref(), &plan.status).await?;
        for (is_warning, reason, message) in &plan.events {
            self.pods.recorder().event(&owner.about, if *is_warning { Warning } else { Normal }, reason, "", message.clone());
        }
        let let_go = futures::future::join_all(plan.let_go.iter().chain(&plan.drop).map(|pod| self.remove_finalizer(pod))).await;
        let_go.into_iter().collect::<Result<Vec<()>, _>>()?;
        let deleted = futures::future::join_all(plan.drop.iter().chain(&plan.delete).map(|pod| self.pods.delete(owner, pod))).await;
        deleted.into_iter().collect::<Result<Vec<()>, _>>()?;
        let (_, created) = slow_start(plan.create.len(), |n| {
            let pod = new_pod(spec, owner, &plan.create[n]);
            async move {
                match self.pods.create(owner, &pod).await {
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    created => created.map(drop),
                }
            }
        })
        .await;
        created?;
        Ok(plan.next.map_or(Next::Done, Next::After))
    }

    async fn remove_finalizer(&self, pod: &Pod) -> Result<(), Error> {
        if !has_finalizer(pod) {
            return Ok(());
        }
        let rest: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != FINALIZER).collect();
        match patch::write(self.pods.pods(), pod, json!({ "metadata": { "finalizers": rest } })).await {
            Ok(_) => Ok(()),
            Err(Error::Api(error)) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Pods of a Job that is gone, has ended or was replaced by another of its name are counted by nobody: they may go. So may
    /// those that belong to nobody any more, unless a Job is about to adopt them.
    async fn let_orphans_go(&self, key: &Key, except_uid: Option<&str>) -> Result<(), Error> {
        for pod in self.pods.pods().in_namespace(&key.namespace).into_iter().filter(|pod| has_finalizer(pod)) {
            let orphan = match controller_of(&*pod) {
                Some(owner) => owner.kind == "Job" && owner.name == key.name && Some(owner.uid.as_str()) != except_uid,
                None => !self.jobs.in_namespace(&key.namespace).iter().any(|job| adopts(job, &pod)),
            };
            if orphan {
                self.remove_finalizer(&pod).await?;
            }
        }
        Ok(())
    }
}

/// Whether the Job will make the pod its own.
fn adopts(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.clone()).and_then(|selector| Selector::try_from(selector).ok());
    let selects = selector.is_some_and(|selector| !selector.selects_all() && selector.matches(labels_of(pod)));
    selects && job.metadata.deletion_timestamp.is_none() && !is_job_finished(job) && pod.metadata.deletion_timestamp.is_none()
}

/// A pod of the Job.
fn new_pod(spec: &JobSpec, owner: &Owner, wanted: &NewPod) -> Pod {
    let mut pod = from_template(&spec.template, owner);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
    let Some(index) = wanted.index else { return pod };
    pod.metadata.generate_name = Some(format!("{}-{index}-", owner.name()));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = wanted.index_failures {
        annotations.insert(INDEX_FAILURES.into(), failures.to_string());
    }
    let body = pod.spec.get_or_insert_default();
    body.hostname = Some(format!("{}-{index}", owner.name()));
    let tell = |container: &mut Container| {
        let env = container.env.get_or_insert_default();
        if env.iter().all(|variable| variable.name != INDEX_VARIABLE) {
            let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
            env.push(EnvVar {
                name: INDEX_VARIABLE.into(),
                value: None,
                value_from: Some(EnvVarSource { field_ref: Some(field), ..Default::default() }),
            });
        }
    };
    body.containers.iter_mut().chain(body.init_containers.iter_mut().flatten()).for_each(tell);
    pod
}
