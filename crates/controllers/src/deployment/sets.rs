//! A Deployment's ReplicaSets as a model: which is new, which are old, and what each should become.
//!
//! The plan changes the model; [`Model::writes`] is the difference to what is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Json;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::REVISION;
use super::plan::Facts;
use crate::common::hash::short_hash;
use crate::common::owner::{Owner, annotation, name_of};

/// The label that tells one ReplicaSet's pods from another's.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// A Deployment's annotations that are its own business and not its ReplicaSets'.
const NOT_COPIED: [&str; 6] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

/// One ReplicaSet: as it is, and as it should be.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) object: Arc<ReplicaSet>,
    exists: bool,
    /// The size it should have.
    pub(super) replicas: i32,
    annotations: BTreeMap<String, String>,
    min_ready_seconds: i32,
    delete: bool,
}

/// What to write about one ReplicaSet.
#[derive(Clone, Debug)]
pub(super) enum SetWrite {
    Create(Box<ReplicaSet>),
    Update {
        set: Arc<ReplicaSet>,
        change: Value,
        /// The old and the new size, if it changes.
        scaled: Option<(i32, i32)>,
    },
    Delete(Arc<ReplicaSet>),
}

impl Set {
    fn existing(object: Arc<ReplicaSet>) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        Set {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            annotations: object.metadata.annotations.clone().unwrap_or_default(),
            exists: true,
            delete: false,
            object,
        }
    }

    pub(super) fn name(&self) -> &str {
        name_of(&*self.object)
    }

    /// The size it has now; a new one has none.
    pub(super) fn replicas_now(&self) -> i32 {
        if self.exists { self.object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1) } else { 0 }
    }

    pub(super) fn status(&self) -> k8s_openapi::api::apps::v1::ReplicaSetStatus {
        self.object.status.clone().unwrap_or_default()
    }

    pub(super) fn available(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.annotations.get(name)?.parse().ok()
    }

    pub(super) fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }

    pub(super) fn revision_text(&self) -> Option<&str> {
        self.annotations.get(REVISION).map(String::as_str)
    }

    /// The Deployment's size when this one was last scaled.
    pub(super) fn desired(&self) -> Option<i32> {
        self.number(DESIRED).and_then(|n| i32::try_from(n).ok())
    }

    /// The Deployment's size with surge when this one was last scaled.
    pub(super) fn max(&self) -> Option<i32> {
        self.number(MAX).and_then(|n| i32::try_from(n).ok()).filter(|n| *n != 0)
    }

    /// Gives it a size, and notes for which size of the Deployment.
    pub(super) fn scale(&mut self, replicas: i32, facts: &Facts) {
        self.replicas = replicas;
        self.annotations.insert(DESIRED.into(), facts.replicas.to_string());
        self.annotations.insert(MAX.into(), (facts.replicas + facts.max_surge).to_string());
    }

    fn mark_deleted(&mut self) {
        self.delete = true;
    }

    fn write(&self) -> Option<SetWrite> {
        if !self.exists {
            let mut object = (*self.object).clone();
            object.metadata.annotations = (!self.annotations.is_empty()).then(|| self.annotations.clone());
            if let Some(spec) = object.spec.as_mut() {
                spec.replicas = Some(self.replicas);
            }
            return Some(SetWrite::Create(Box::new(object)));
        }
        if self.delete {
            return Some(SetWrite::Delete(self.object.clone()));
        }
        let before = Set::existing(self.object.clone());
        let mut change = json!({});
        if before.annotations != self.annotations {
            let changed: BTreeMap<_, _> = self.annotations.iter().filter(|(name, value)| before.annotations.get(*name) != Some(*value)).collect();
            change["metadata"]["annotations"] = json!(changed);
        }
        if before.min_ready_seconds != self.min_ready_seconds {
            change["spec"]["minReadySeconds"] = json!(self.min_ready_seconds);
        }
        let scaled = (before.replicas != self.replicas).then_some((before.replicas, self.replicas));
        if scaled.is_some() {
            change["spec"]["replicas"] = json!(self.replicas);
        }
        let changed = change.as_object().is_some_and(|change| !change.is_empty());
        changed.then(|| SetWrite::Update { set: self.object.clone(), change, scaled })
    }
}

/// All ReplicaSets of one Deployment.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// The one of the current template, if there is one.
    pub(super) new: Option<Set>,
    /// All others, oldest first.
    pub(super) old: Vec<Set>,
}

impl Model {
    /// Sorts the sets by age and finds the one with the Deployment's template; of several the oldest.
    pub(super) fn of(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Model {
        let mut old: Vec<Set> = sets.iter().cloned().map(Set::existing).collect();
        old.sort_by_cached_key(|set| (set.object.metadata.creation_timestamp.as_ref().map(|time| time.0), set.name().to_owned()));
        let template = deployment.spec.as_ref().map(|spec| comparable(&spec.template));
        let new = old.iter().position(|set| template.is_some() && template_of(&set.object) == template);
        Model { new: new.map(|at| old.remove(at)), old }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Set> {
        self.old.iter_mut().chain(&mut self.new)
    }

    /// The sum of the sizes that the sets should have.
    pub(super) fn total(&self) -> i32 {
        self.all().map(|set| set.replicas).sum()
    }

    pub(super) fn available(&self) -> i32 {
        self.all().map(Set::available).sum()
    }

    /// The revision of the current template: one more than the newest old one's.
    fn next_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0) + 1
    }

    /// Brings the new set's annotations up to date with the Deployment's. Gives the revision for the Deployment, if its differs.
    pub(super) fn sync_new(&mut self, deployment: &Deployment, facts: &Facts) -> Option<String> {
        let next = self.next_revision();
        let new = self.new.as_mut()?;
        copy_annotations(deployment, &mut new.annotations);
        raise_revision(&mut new.annotations, next);
        new.min_ready_seconds = facts.min_ready_seconds;
        let revision = new.revision_text()?;
        (annotation(deployment, REVISION) != Some(revision)).then(|| revision.to_owned())
    }

    /// Adds a new set for the current template, sized as the strategy allows. Gives the revision for the Deployment.
    pub(super) fn create_new(&mut self, deployment: &Deployment, owner: &Owner, facts: &Facts) -> Option<String> {
        let spec = deployment.spec.as_ref()?;
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = short_hash(&spec.template.to_json().unwrap_or_default(), collisions);
        let mut template = spec.template.clone();
        template.metadata.get_or_insert_default().labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut selector: LabelSelector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
        let revision = self.next_revision();
        let mut annotations = BTreeMap::new();
        copy_annotations(deployment, &mut annotations);
        annotations.insert(REVISION.into(), revision.to_string());
        let object = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.name())),
                namespace: Some(owner.namespace.clone()),
                labels,
                owner_references: Some(vec![owner.reference.clone()]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: (facts.min_ready_seconds != 0).then_some(facts.min_ready_seconds),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let mut set =
            Set { object: Arc::new(object), exists: false, replicas: 0, annotations, min_ready_seconds: facts.min_ready_seconds, delete: false };
        set.scale(new_size(facts, 0, self.total()), facts);
        self.new = Some(set);
        let revision = revision.to_string();
        (annotation(deployment, REVISION) != Some(&revision)).then_some(revision)
    }

    /// Marks the oldest old sets beyond the limit for deletion, if nothing is left in them.
    pub(super) fn clean_up(&mut self, limit: Option<i32>) {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return };
        let mut alive: Vec<&mut Set> = self.old.iter_mut().filter(|set| set.object.metadata.deletion_timestamp.is_none()).collect();
        let surplus = alive.len().saturating_sub(limit);
        alive.sort_by_key(|set| set.revision());
        for set in alive.into_iter().take(surplus) {
            let status = set.status();
            let settled = set.object.metadata.generation <= status.observed_generation;
            if status.replicas == 0 && set.replicas == 0 && set.replicas_now() == 0 && settled {
                set.mark_deleted();
            }
        }
    }

    /// What to write. Sets that grow come last: what is freed is free first.
    pub(super) fn writes(&self) -> Vec<SetWrite> {
        self.all().filter_map(Set::write).collect()
    }
}

/// The size of the new set: as far up as surge allows, all at once for Recreate.
pub(super) fn new_size(facts: &Facts, current: i32, total: i32) -> i32 {
    if facts.recreate {
        return facts.replicas;
    }
    let room = facts.replicas + facts.max_surge - total;
    if room <= 0 { current } else { current + room.min(facts.replicas - current) }
}

/// The template without what tells ReplicaSets apart.
fn comparable(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = meta.labels.as_mut() {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template
}

fn template_of(set: &ReplicaSet) -> Option<PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref().map(comparable)
}

/// Whether two ReplicaSets are of the same template.
pub(super) fn same_template(a: &ReplicaSet, b: &ReplicaSet) -> bool {
    template_of(a) == template_of(b)
}

fn copy_annotations(deployment: &Deployment, annotations: &mut BTreeMap<String, String>) {
    for (name, value) in deployment.metadata.annotations.iter().flatten().filter(|(name, _)| !NOT_COPIED.contains(&name.as_str())) {
        annotations.insert(name.clone(), value.clone());
    }
}

/// Gives the set a newer revision, remembering the one it had.
fn raise_revision(annotations: &mut BTreeMap<String, String>, revision: i64) {
    let old = annotations.get(REVISION).cloned();
    let old_number = old.as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if old_number >= revision {
        return;
    }
    annotations.insert(REVISION.into(), revision.to_string());
    if let Some(old) = old.filter(|_| old_number != 0) {
        let history = annotations.entry(REVISION_HISTORY.into()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old);
    }
}
