//! What to do about a Deployment, decided from everything that is known about it, without I/O.

use std::sync::Arc;
use std::time::Duration;

use client::controller::Next;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sets::{Model, Set, SetWrite, new_size};
use super::status::Status;
use crate::common::amounts::resolve;
use crate::common::owner::{Owner, is_controlled_by, uid_of};
use crate::common::pod_state;

/// What there is.
pub(super) struct View<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) owner: &'a Owner,
    /// The Deployment's own ReplicaSets.
    pub(super) sets: &'a [Arc<ReplicaSet>],
    /// The pods of its namespace (looked at for Recreate only).
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// What to do.
pub(super) struct Plan {
    pub(super) writes: Vec<SetWrite>,
    /// The Deployment's new revision annotation, if it changes.
    pub(super) revision: Option<String>,
    pub(super) status: DeploymentStatus,
    pub(super) next: Next,
    pub(super) progress_deadline_seconds: Option<i32>,
}

/// The Deployment's numbers, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) replicas: i32,
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
    pub(super) min_ready_seconds: i32,
    pub(super) recreate: bool,
    pub(super) paused: bool,
    pub(super) progress_deadline_seconds: Option<i32>,
    pub(super) revision_history_limit: Option<i32>,
}

/// Whether the strategy is Recreate.
pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
}

impl Facts {
    pub(super) fn of(spec: &DeploymentSpec) -> Facts {
        let replicas = spec.replicas.unwrap_or(1);
        let recreate = is_recreate(spec);
        let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
        let quarter = || IntOrString::String("25%".into());
        let max_surge = resolve(&rolling.max_surge.unwrap_or_else(quarter), replicas, true);
        let mut max_unavailable = resolve(&rolling.max_unavailable.unwrap_or_else(quarter), replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1; // Both may round to nothing; then nothing could ever move.
        }
        Facts {
            replicas,
            max_surge: if recreate { 0 } else { max_surge },
            max_unavailable: if recreate { 0 } else { max_unavailable.min(replicas) },
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            recreate,
            paused: spec.paused.unwrap_or(false),
            // Absent and the largest number both mean: no deadline.
            progress_deadline_seconds: spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX),
            revision_history_limit: spec.revision_history_limit.filter(|limit| *limit != i32::MAX),
        }
    }
}

/// Decides what to do.
pub(super) fn decide(view: &View<'_>) -> Plan {
    let spec = view.deployment.spec.clone().unwrap_or_default();
    let facts = Facts::of(&spec);
    let mut model = Model::of(view.deployment, view.sets);
    let mut status = Status::of(view.deployment, view.now);
    let mut revision = None;
    let mut complete = false;

    if view.owner.deleting {
        status.count(&facts, &model);
    } else {
        status.note_paused(&facts);
        let resized = model.all().any(|set| set.replicas > 0 && set.desired().is_some_and(|desired| desired != facts.replicas));
        if facts.paused || resized {
            revision = model.sync_new(view.deployment, &facts);
            scale(&mut model, &facts);
            if facts.paused {
                model.clean_up(facts.revision_history_limit);
            }
            status.count(&facts, &model);
        } else {
            revision = if facts.recreate { recreate(view, &facts, &mut model, &mut status) } else { roll(view, &facts, &mut model, &mut status) };
            status.count(&facts, &model);
            complete = status.is_complete(&facts);
            if complete {
                model.clean_up(facts.revision_history_limit);
            }
            status.note_progress(&facts, &model);
        }
    }
    let next = if complete { None } else { status.until_deadline(&facts) };
    Plan {
        writes: model.writes(),
        revision,
        status: status.finish(),
        next: next.map_or(Next::Done, |left: Duration| Next::After(left + Duration::from_secs(1))),
        progress_deadline_seconds: facts.progress_deadline_seconds,
    }
}

/// Finds or makes the new set.
fn ensure_new(view: &View<'_>, facts: &Facts, model: &mut Model, status: &mut Status) -> Option<String> {
    if let Some(name) = model.new.as_ref().map(|set| set.name().to_owned()) {
        status.note_found(facts, &name);
        return model.sync_new(view.deployment, facts);
    }
    let revision = model.create_new(view.deployment, view.owner, facts);
    if let Some(set) = &model.new {
        status.note_created(facts, set.name());
    }
    revision
}

/// RollingUpdate: the new set up as far as surge allows, else the old ones down as far as availability allows.
fn roll(view: &View<'_>, facts: &Facts, model: &mut Model, status: &mut Status) -> Option<String> {
    let had_new = model.new.is_some();
    let revision = ensure_new(view, facts, model, status);
    if !had_new {
        return revision;
    }
    let total = model.total();
    if let Some(new) = &mut model.new {
        let size = if new.replicas > facts.replicas { facts.replicas } else { new_size(facts, new.replicas, total) };
        if size != new.replicas {
            new.scale(size, facts);
            return revision;
        }
    }
    shrink_old(facts, model);
    revision
}

/// Takes from the old sets: first what is not available anyway, then available ones beyond the minimum.
fn shrink_old(facts: &Facts, model: &mut Model) {
    let min_available = facts.replicas - facts.max_unavailable;
    let new_unavailable = model.new.as_ref().map_or(0, |new| new.replicas - new.available());
    let mut allowed = model.total() - min_available - new_unavailable;
    if allowed <= 0 {
        return;
    }
    for set in model.old.iter_mut().filter(|set| set.replicas > 0) {
        let unhealthy = (set.replicas - set.available()).min(allowed);
        if unhealthy > 0 {
            set.scale(set.replicas - unhealthy, facts);
            allowed -= unhealthy;
        }
    }
    let mut surplus = model.available() - min_available;
    for set in model.old.iter_mut().filter(|set| set.replicas > 0) {
        let taken = set.replicas.min(surplus);
        if taken > 0 {
            set.scale(set.replicas - taken, facts);
            surplus -= taken;
        }
    }
}

/// Recreate: all old ones down, then, with the last of their pods gone, the new one up.
fn recreate(view: &View<'_>, facts: &Facts, model: &mut Model, status: &mut Status) -> Option<String> {
    let mut revision = model.sync_new(view.deployment, facts);
    let mut shrunk = false;
    for set in model.old.iter_mut().filter(|set| set.replicas > 0) {
        set.scale(0, facts);
        shrunk = true;
    }
    if shrunk || old_pods_run(view, model) {
        return revision;
    }
    revision = ensure_new(view, facts, model, status).or(revision);
    if let Some(new) = &mut model.new
        && new.replicas != facts.replicas
    {
        new.scale(facts.replicas, facts);
    }
    revision
}

fn old_pods_run(view: &View<'_>, model: &Model) -> bool {
    let runs = |set: &Set| {
        set.status().replicas > 0 || view.pods.iter().any(|pod| is_controlled_by(&**pod, uid_of(&*set.object)) && !pod_state::is_finished(pod))
    };
    model.old.iter().any(runs)
}

/// The Deployment's size has changed (or it is paused): the sets take their shares of the change, so that a rollout in
/// mid-way keeps its proportions.
fn scale(model: &mut Model, facts: &Facts) {
    let active: Vec<bool> = model.all().map(|set| set.replicas > 0).collect();
    let latest = model.all().count().checked_sub(1);
    let only = match active.iter().filter(|active| **active).count() {
        // Nothing runs: the new one, or (there being none) the youngest old one.
        0 => latest,
        1 => active.iter().position(|active| *active),
        _ => None,
    };
    if let Some(set) = only.and_then(|at| model.all_mut().nth(at)) {
        if set.replicas != facts.replicas || set.desired() != Some(facts.replicas) {
            set.scale(facts.replicas, facts);
        }
        return;
    }
    let saturated = model
        .new
        .as_ref()
        .is_some_and(|new| new.replicas == facts.replicas && new.desired() == Some(facts.replicas) && new.available() == facts.replicas);
    if saturated {
        for set in model.old.iter_mut().filter(|set| set.replicas > 0) {
            set.scale(0, facts);
        }
        return;
    }
    if !facts.recreate {
        scale_in_proportion(model, facts);
    }
}

fn scale_in_proportion(model: &mut Model, facts: &Facts) {
    let allowed = if facts.replicas > 0 { facts.replicas + facts.max_surge } else { 0 };
    let mut sets: Vec<&mut Set> = model.all_mut().filter(|set| set.replicas > 0).collect();
    let change = allowed - sets.iter().map(|set| set.replicas).sum::<i32>();
    // Growing, the larger come first, and of equal ones the younger; shrinking, of equal ones the older.
    sets.sort_by_cached_key(|set| {
        let created = set.object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        (std::cmp::Reverse(set.replicas), if change > 0 { -created } else { created })
    });
    let mut given = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &sets {
        let share = share_of(set, facts, change, given);
        given += share;
        sizes.push(set.replicas + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    for (set, size) in sets.into_iter().zip(sizes) {
        set.scale(size, facts);
    }
}

/// This set's share of the change, of which some has been given away already.
fn share_of(set: &Set, facts: &Facts, change: i32, given: i32) -> i32 {
    if change == 0 || change == given {
        return 0;
    }
    if facts.replicas == 0 {
        return -set.replicas;
    }
    let before = f64::from(set.max().unwrap_or(facts.replicas).max(1));
    let size = f64::from(set.replicas) * f64::from(facts.replicas + facts.max_surge) / before;
    // The sizes are small whole numbers: the rounded quotient fits.
    let share = size.round() as i32 - set.replicas;
    let left = change - given;
    if change > 0 { share.min(left) } else { share.max(left) }
}
