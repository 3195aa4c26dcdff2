//! StatefulSets: pods with a name, a number and claims of their own, which keep them for as long as the set lives.
//!
//! Reads StatefulSets, their pods, claims and revisions; owns the pods, makes the claims, and owns revisions and status.
//! [`plan::decide`] walks the ordinals and says what to do next; [`identity`] says what a pod of an ordinal is like.
//! Nothing but the names ties a pod to its claims, so a pod that comes back finds its data.

mod identity;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder, Warning};
use client::{Clock, Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::json;

use self::plan::{Step, View, decide};
use crate::Context;
use crate::common::history::{self, HASH_LABEL, Outcome};
use crate::common::owner::{Owner, labels_of, name_of, uid_of, workload_selector};
use crate::common::{claim, patch, pod_state};

struct StatefulSets {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    recorder: Recorder,
    clock: Clock,
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(StatefulSets {
        sets: context.informers.all(),
        pods: context.informers.all(),
        claims: context.informers.all(),
        revisions: context.informers.all(),
        recorder: context.recorder_for("statefulset-controller"),
        clock: context.clock.clone(),
    })
}

#[async_trait]
impl Controller for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.sets);
        inputs.owned(&self.pods, "StatefulSet");
        inputs.owned(&self.revisions, "StatefulSet");
        inputs.read(&self.claims);
        let sets = self.sets.clone();
        inputs.mapped(&self.pods, move |change| {
            claim::adopters(change, &sets, |set| set.spec.as_ref().and_then(|spec| workload_selector(&spec.selector)))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else { return Ok(Next::Done) };
        let Some(spec) = set.spec.as_ref() else { return Ok(Next::Done) };
        let owner = Owner::of(&*set);
        let Some(selector) = workload_selector(&spec.selector) else { return Ok(Next::Done) };
        let known = claim::claim(&self.sets, &owner, &self.revisions, Some(&selector), |_| true).await?;
        let pods =
            claim::claim(&self.sets, &owner, &self.pods, Some(&selector), |pod| identity::ordinal_of(owner.name(), name_of(pod)).is_some()).await?;

        let template_labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let old_status = set.status.clone().unwrap_or_default();
        let update = if owner.deleting {
            known.iter().find(|revision| Some(name_of(&***revision)) == old_status.update_revision.as_deref()).cloned()
        } else {
            let step = history::decide(&owner, &template_labels, &spec.template, &known, old_status.collision_count);
            match history::apply(&self.revisions, step).await? {
                Outcome::Revision(revision) => Some(revision),
                Outcome::Collision => {
                    let status = StatefulSetStatus { collision_count: Some(old_status.collision_count.unwrap_or(0) + 1), ..old_status.clone() };
                    patch::write_status(&self.sets, &set, set.status.as_ref(), &status).await?;
                    return Err(Error::NotYet("the new revision's name is taken".into()));
                }
            }
        };
        let Some(update) = update else { return Ok(Next::Done) };
        let current = known.iter().find(|revision| Some(name_of(&***revision)) == old_status.current_revision.as_deref()).unwrap_or(&update).clone();

        let now = self.clock.now();
        let plan = decide(&View {
            spec,
            name: owner.name(),
            generation: set.metadata.generation,
            deleting: owner.deleting,
            status: &old_status,
            current: name_of(&*current),
            update: name_of(&*update),
            pods: &pods,
            now,
        });
        let mut outcome = Ok(());
        for step in &plan.steps {
            outcome = self.run(spec, &owner, step, &current, &update).await;
            if outcome.is_err() {
                break;
            }
        }
        patch::write_status(&self.sets, &set, set.status.as_ref(), &plan.status).await?;
        outcome?;
        if !owner.deleting {
            self.keep_claims(&set, spec, &owner, &pods).await?;
            let mut in_use: BTreeSet<String> = pods.iter().filter_map(|pod| labels_of(&**pod).get(HASH_LABEL).cloned()).collect();
            in_use.extend([name_of(&*current).to_owned(), name_of(&*update).to_owned()]);
            history::delete(&self.revisions, &history::surplus(&known, &in_use, spec.revision_history_limit.unwrap_or(10))).await?;
        }
        let soonest = pod_state::next_available(pods.iter().map(|pod| &**pod), spec.min_ready_seconds.unwrap_or(0), now);
        Ok(soonest.map_or(Next::Done, Next::After))
    }
}

impl StatefulSets {
    async fn run(
        &self,
        spec: &StatefulSetSpec,
        owner: &Owner,
        step: &Step,
        current: &ControllerRevision,
        update: &ControllerRevision,
    ) -> Result<(), Error> {
        match step {
            Step::Create { ordinal, from_update } => {
                let revision = if *from_update { update } else { current };
                let template = history::template_of(revision).unwrap_or_else(|| spec.template.clone());
                self.make_claims(spec, owner, *ordinal).await?;
                let pod = identity::pod(spec, &template, owner, *ordinal, name_of(revision));
                let name = name_of(&pod);
                match self.pods.create(&pod).await {
                    Ok(_) => self.tell(owner, Normal, "SuccessfulCreate", format!("create Pod {name} in StatefulSet {} successful", owner.name())),
                    Err(error) if error.is_namespace_terminating() => {}
                    Err(error) => {
                        let message = format!("create Pod {name} in StatefulSet {} failed error: {}", owner.name(), error.short());
                        self.tell(owner, Warning, "FailedCreate", message);
                        return Err(error.into());
                    }
                }
            }
            Step::Delete { pod, recreating } => {
                let name = name_of(&**pod);
                if let Some(what) = recreating {
                    let reason = if *what == "failed" { "RecreatingFailedPod" } else { "RecreatingTerminatedPod" };
                    self.tell(owner, Warning, reason, format!("StatefulSet {}/{} is recreating {what} Pod {name}", owner.namespace, owner.name()));
                }
                match self.pods.delete(&Key::of(&**pod), &Deletion::of(&**pod)).await {
                    Ok(()) => self.tell(owner, Normal, "SuccessfulDelete", format!("delete Pod {name} in StatefulSet {} successful", owner.name())),
                    Err(error) if error.is_not_found() || error.is_conflict() => {}
                    Err(error) => {
                        let message = format!("delete Pod {name} in StatefulSet {} failed error: {}", owner.name(), error.short());
                        self.tell(owner, Warning, "FailedDelete", message);
                        return Err(error.into());
                    }
                }
            }
            Step::Label { pod, ordinal } => {
                let change = json!({ "metadata": { "labels": identity::labels(name_of(&**pod), *ordinal) } });
                patch::write(&self.pods, &**pod, change).await?;
            }
        }
        Ok(())
    }

    fn tell(&self, owner: &Owner, type_: client::events::EventType, reason: &str, message: String) {
        self.recorder.event(&owner.about, type_, reason, "", message);
    }

    async fn make_claims(&self, spec: &StatefulSetSpec, owner: &Owner, ordinal: i32) -> Result<(), Error> {
        for claim in identity::claims(spec, owner, ordinal) {
            let name = name_of(&claim).to_owned();
            match self.claims.get(&Key::of(&claim)) {
                Some(there) if there.metadata.deletion_timestamp.is_some() => {
                    return Err(Error::NotYet(format!("the claim {name} is being deleted")));
                }
                Some(_) => continue,
                None => {}
            }
            let pod = identity::pod_name(owner.name(), ordinal);
            match self.claims.create(&claim).await {
                Ok(_) => {
                    self.tell(owner, Normal, "SuccessfulCreate", format!("create Claim {name} Pod {pod} in StatefulSet {} success", owner.name()))
                }
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = format!("create Claim {name} for Pod {pod} in StatefulSet {} failed error: {}", owner.name(), error.short());
                    self.tell(owner, Warning, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Gives claims the owners that the retention policy asks for: then the garbage collector removes them with those.
    async fn keep_claims(&self, set: &StatefulSet, spec: &StatefulSetSpec, owner: &Owner, pods: &[Arc<Pod>]) -> Result<(), Error> {
        if spec.volume_claim_templates.as_ref().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        for pod in pods {
            let Some(ordinal) = identity::ordinal_of(owner.name(), name_of(&**pod)) else { continue };
            let condemned = !plan::ordinals(spec).contains(&ordinal);
            for claim in identity::claims(spec, owner, ordinal) {
                let Some(there) = self.claims.get(&Key::of(&claim)) else { continue };
                let old = there.metadata.owner_references.clone().unwrap_or_default();
                let mut references: Vec<_> =
                    old.iter().filter(|reference| reference.uid != uid_of(set) && reference.uid != uid_of(&**pod)).cloned().collect();
                references.extend(identity::claim_owner(spec, owner, pod, condemned));
                if references != old {
                    patch::write(&self.claims, &*there, json!({ "metadata": { "ownerReferences": references } })).await?;
                }
            }
        }
        Ok(())
    }
}
