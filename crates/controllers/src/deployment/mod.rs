//! Deployments: one ReplicaSet per template, and the walk from the old ones to the new one.
//!
//! Reads Deployments, their ReplicaSets and (for Recreate) their pods; owns the ReplicaSets' size and the Deployment's
//! status and revision annotation. [`plan::decide`] looks at all of it and says what to write; this shell writes it and is
//! called again when the world has moved.
//!
//! ```text
//! plan      which way: paused, scaled, Recreate or RollingUpdate
//! sets      the new and the old ReplicaSets as a model that the plan changes; sizes, annotations, revisions
//! status    counts and the conditions Available, Progressing, ReplicaFailure
//! ```

mod plan;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder, Warning};
use client::{Change, Clock, Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use self::plan::{Plan, View, decide};
use self::sets::SetWrite;
use crate::Context;
use crate::common::owner::{Owner, controller_of, name_of, workload_selector};
use crate::common::{claim, patch, pod_state};

/// The annotation that holds the revision of a Deployment and of each of its ReplicaSets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";

struct Deployments {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Deployments {
        deployments: context.informers.all(),
        sets: context.informers.all(),
        pods: context.informers.all(),
        recorder: context.recorder_for("deployment-controller"),
        clock: context.clock.clone(),
    })
}

#[async_trait]
impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.deployments);
        inputs.owned(&self.sets, "Deployment");
        let deployments = self.deployments.clone();
        inputs.mapped(&self.sets, move |change| {
            claim::adopters(change, &deployments, |deployment| deployment.spec.as_ref().and_then(|spec| workload_selector(&spec.selector)))
        });
        // A Recreate waits for the last old pod to be gone.
        let (deployments, sets) = (self.deployments.clone(), self.sets.clone());
        inputs.mapped(&self.pods, move |change| waiting_for(change, &sets, &deployments));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Next::Done) };
        let Some(spec) = deployment.spec.as_ref() else { return Ok(Next::Done) };
        let owner = Owner::of(&*deployment);
        let Some(selector) = workload_selector(&spec.selector) else {
            self.recorder.event(
                &owner.about,
                Warning,
                "SelectingAll",
                "",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Next::Done);
        };
        let sets = claim::claim(&self.deployments, &owner, &self.sets, Some(&selector), |_| true).await?;
        let pods = if plan::is_recreate(spec) { self.pods.in_namespace(&key.namespace) } else { Vec::new() };
        let plan = decide(&View { deployment: &deployment, owner: &owner, sets: &sets, pods: &pods, now: self.clock.now() });
        self.apply(deployment, &owner, plan).await
    }
}

impl Deployments {
    async fn apply(&self, mut deployment: Arc<Deployment>, owner: &Owner, plan: Plan) -> Result<Next, Error> {
        let old_status = deployment.status.clone();
        let mut status = plan.status;
        let mut problem: Option<Error> = None;
        for write in plan.writes {
            match self.write(owner, write).await {
                Ok(Written::Done) => {}
                Ok(Written::NameTaken) => {
                    // Another content has our name: count it, so that the next hash differs.
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    problem = Some(Error::NotYet("the new ReplicaSet's name is taken".into()));
                }
                Err(Error::Api(error)) if error.is_namespace_terminating() => return Ok(Next::Done),
                Err(error) => {
                    if let (Error::Api(refused), Some(deadline)) = (&error, plan.progress_deadline_seconds)
                        && refused.is_answer()
                        && !refused.is_conflict()
                        && deadline > 0
                    {
                        status::note_failed_create(&mut status, &refused.short(), self.clock.now());
                    }
                    problem = Some(error);
                }
            }
            if problem.is_some() {
                break;
            }
        }
        if problem.is_none()
            && let Some(revision) = plan.revision
        {
            let change = json!({ "metadata": { "annotations": { REVISION: revision } } });
            deployment = patch::write(&self.deployments, &*deployment, change).await?;
        }
        patch::write_status(&self.deployments, &deployment, old_status.as_ref(), &status).await?;
        match problem {
            Some(problem) => Err(problem),
            None => Ok(plan.next),
        }
    }

    async fn write(&self, owner: &Owner, write: SetWrite) -> Result<Written, Error> {
        match write {
            SetWrite::Create(set) => {
                let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
                match self.sets.create(&set).await {
                    Ok(_) => {}
                    Err(error) if error.is_already_exists() => {
                        let there = self.sets.live(&Key::of(&*set)).await?;
                        // Made by us before a crash, and not yet in view? Then it is right. Else the name is taken.
                        let ours = there
                            .is_some_and(|there| controller_of(&there).is_some_and(|o| o.uid == owner.uid()) && sets::same_template(&there, &set));
                        return Ok(if ours { Written::Done } else { Written::NameTaken });
                    }
                    Err(error) => {
                        if !error.is_namespace_terminating() {
                            let message = format!("Failed to create new replica set {:?}: {}", name_of(&*set), error.short());
                            self.recorder.event(&owner.about, Warning, "ReplicaSetCreateError", "", message);
                        }
                        return Err(error.into());
                    }
                }
                if replicas > 0 {
                    self.tell_scaled(owner, name_of(&*set), 0, replicas);
                }
            }
            SetWrite::Update { set, change, scaled } => {
                patch::write(&self.sets, &*set, change).await?;
                if let Some((from, to)) = scaled {
                    self.tell_scaled(owner, name_of(&*set), from, to);
                }
            }
            SetWrite::Delete(set) => match self.sets.delete(&Key::of(&*set), &Deletion::of(&*set)).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(Written::Done)
    }

    fn tell_scaled(&self, owner: &Owner, set: &str, from: i32, to: i32) {
        let way = if to > from { "up" } else { "down" };
        self.recorder.event(&owner.about, Normal, "ScalingReplicaSet", "", format!("Scaled {way} replica set {set} from {from} to {to}"));
    }
}

enum Written {
    Done,
    NameTaken,
}

/// The Recreate Deployment that may have waited for this pod to end.
fn waiting_for(change: &Change<Pod>, sets: &Informer<ReplicaSet>, deployments: &Informer<Deployment>) -> Vec<Key> {
    let pod = change.object();
    let ended = matches!(change, Change::Deleted(_)) || pod_state::is_finished(pod);
    let Some(owner) = controller_of(&**pod).filter(|owner| ended && owner.kind == "ReplicaSet") else { return Vec::new() };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let Some(set) = sets.get(&Key::new(namespace.clone(), owner.name.clone())) else { return Vec::new() };
    let Some(owner) = controller_of(&*set) else { return Vec::new() };
    let key = Key::new(namespace, owner.name.clone());
    let recreate = deployments.get(&key).is_some_and(|deployment| deployment.spec.as_ref().is_some_and(plan::is_recreate));
    if recreate { vec![key] } else { Vec::new() }
}
