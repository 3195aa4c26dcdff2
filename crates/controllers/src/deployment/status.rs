//! A Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure with Kubernetes' reasons.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Facts;
use super::sets::Model;
use crate::common::owner::name_of;

const PROGRESSING: &str = "Progressing";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The status in the making.
pub(super) struct Status {
    name: String,
    generation: Option<i64>,
    old: DeploymentStatus,
    new: DeploymentStatus,
    conditions: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Status {
    pub(super) fn of(deployment: &Deployment, now: Timestamp) -> Self {
        let old = deployment.status.clone().unwrap_or_default();
        Status {
            name: name_of(deployment).to_owned(),
            generation: deployment.metadata.generation,
            conditions: old.conditions.clone().unwrap_or_default(),
            new: old.clone(),
            old,
            now,
        }
    }

    fn progressing(&self) -> Option<&DeploymentCondition> {
        self.conditions.iter().find(|condition| condition.type_ == PROGRESSING)
    }

    fn progress_reason(&self) -> &str {
        self.progressing().and_then(|condition| condition.reason.as_deref()).unwrap_or_default()
    }

    fn set(&mut self, type_: &str, value: &str, reason: &str, message: String) {
        set_condition(&mut self.conditions, type_, value, reason, message, self.now);
    }

    fn remove(&mut self, type_: &str) {
        self.conditions.retain(|condition| condition.type_ != type_);
    }

    /// Pausing stops the clock of the progress deadline, resuming starts it again.
    pub(super) fn note_paused(&mut self, facts: &Facts) {
        if facts.progress_deadline_seconds.is_none() || self.progress_reason() == TIMED_OUT {
            return;
        }
        let noted = self.progress_reason() == PAUSED;
        if facts.paused && !noted {
            self.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".into());
        } else if !facts.paused && noted {
            self.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    }

    pub(super) fn note_found(&mut self, facts: &Facts, set: &str) {
        if facts.progress_deadline_seconds.is_some() && self.progressing().is_none() {
            self.set(PROGRESSING, "True", "FoundNewReplicaSet", format!("Found new replica set {set:?}"));
        }
    }

    pub(super) fn note_created(&mut self, facts: &Facts, set: &str) {
        if facts.progress_deadline_seconds.is_some() {
            self.set(PROGRESSING, "True", "NewReplicaSetCreated", format!("Created new replica set {set:?}"));
        }
    }

    /// Counts the sets, and says whether enough is available.
    pub(super) fn count(&mut self, facts: &Facts, model: &Model) {
        let statuses: Vec<_> = model.all().map(super::sets::Set::status).collect();
        let available = model.available();
        let counted = |count: i32| (count != 0).then_some(count);
        self.new = DeploymentStatus {
            observed_generation: self.generation,
            replicas: counted(statuses.iter().map(|s| s.replicas).sum()),
            updated_replicas: counted(model.new.as_ref().map_or(0, |set| set.status().replicas)),
            ready_replicas: counted(statuses.iter().filter_map(|s| s.ready_replicas).sum()),
            available_replicas: counted(available),
            unavailable_replicas: counted((model.total() - available).max(0)),
            terminating_replicas: Some(statuses.iter().filter_map(|s| s.terminating_replicas).sum()),
            collision_count: self.old.collision_count,
            conditions: None,
        };
        if available >= facts.replicas - facts.max_unavailable {
            self.set("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into());
        } else {
            self.set("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".into());
        }
    }

    /// Whether everything is as wanted, and nothing else is left.
    pub(super) fn is_complete(&self, facts: &Facts) -> bool {
        let is = |count: Option<i32>| count.unwrap_or(0) == facts.replicas;
        is(self.new.updated_replicas) && is(self.new.replicas) && is(self.new.available_replicas)
    }

    fn has_moved(&self) -> bool {
        let count = |count: Option<i32>| count.unwrap_or(0);
        let left = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
        count(self.new.updated_replicas) > count(self.old.updated_replicas)
            || left(&self.new) < left(&self.old)
            || count(self.new.ready_replicas) > count(self.old.ready_replicas)
            || count(self.new.available_replicas) > count(self.old.available_replicas)
    }

    /// Says how the rollout goes.
    pub(super) fn note_progress(&mut self, facts: &Facts, model: &Model) {
        let new_set = model.new.as_ref().map(|set| set.name().to_owned());
        let subject = new_set.as_ref().map_or_else(|| format!("Deployment {:?}", self.name), |set| format!("ReplicaSet {set:?}"));
        // Once done, a rollout stays done: later scaling and failing pods are no rollout.
        let was_done = self.new.replicas == self.new.updated_replicas && self.progress_reason() == DONE;
        if facts.progress_deadline_seconds.is_none() {
            self.remove(PROGRESSING);
        } else if !was_done {
            if self.is_complete(facts) {
                self.set(PROGRESSING, "True", DONE, format!("{subject} has successfully progressed."));
            } else if self.has_moved() {
                // The time of the last update is what the deadline counts from: it must move with every step.
                let since = self.progressing().filter(|c| c.status == "True").and_then(|c| c.last_transition_time.clone());
                self.remove(PROGRESSING);
                self.set(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
                if let (Some(since), Some(condition)) = (since, self.conditions.iter_mut().find(|c| c.type_ == PROGRESSING)) {
                    condition.last_transition_time = Some(since);
                }
            } else if self.until_deadline(facts) == Some(Duration::ZERO) {
                self.set(PROGRESSING, "False", TIMED_OUT, format!("{subject} has timed out progressing."));
            }
        }
        let failure = model
            .new
            .iter()
            .chain(&model.old)
            .find_map(|set| set.status().conditions.into_iter().flatten().find(|condition| condition.type_ == "ReplicaFailure"));
        match failure {
            Some(failure) => {
                let (reason, message) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
                self.set("ReplicaFailure", &failure.status, &reason, message);
            }
            None => self.remove("ReplicaFailure"),
        }
    }

    /// How long the rollout may still go without a move; `None` if it is not being watched.
    pub(super) fn until_deadline(&self, facts: &Facts) -> Option<Duration> {
        let deadline = Duration::from_secs(u64::try_from(facts.progress_deadline_seconds?).ok()?);
        let condition = self.progressing()?;
        if facts.paused || matches!(condition.reason.as_deref(), Some(DONE | TIMED_OUT | PAUSED)) {
            return None;
        }
        let since = condition.last_update_time.as_ref()?.0;
        let passed = Duration::try_from(self.now.duration_since(since)).unwrap_or(Duration::ZERO);
        Some(deadline.saturating_sub(passed))
    }

    pub(super) fn finish(mut self) -> DeploymentStatus {
        self.new.conditions = (!self.conditions.is_empty()).then_some(self.conditions);
        self.new
    }
}

/// Notes on a status that the new ReplicaSet was refused.
pub(super) fn note_failed_create(status: &mut DeploymentStatus, message: &str, now: Timestamp) {
    set_condition(status.conditions.get_or_insert_default(), PROGRESSING, "False", "ReplicaSetCreateError", message.to_owned(), now);
}

/// Sets a condition. One that already says the same is left alone; the transition time moves only with the value.
fn set_condition(conditions: &mut Vec<DeploymentCondition>, type_: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let now = Time(client::clock::whole_seconds(now));
    let current = conditions.iter().find(|condition| condition.type_ == type_);
    if current.is_some_and(|current| current.status == value && current.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = current.filter(|current| current.status == value).and_then(|current| current.last_transition_time.clone());
    let condition = DeploymentCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: since.or(Some(now)),
    };
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(condition);
}
