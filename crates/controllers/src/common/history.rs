//! ControllerRevisions: what a DaemonSet's or StatefulSet's template has been, so that it can be updated step by step and
//! `kubectl rollout undo` can go back.
//!
//! The data of a revision is a strategic merge patch of the owner (that is what `kubectl` sends to go back): its template,
//! with the directive to replace the whole one.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::controller::Error;
use client::{Deletion, ErrorExt, Informer, Json, Key};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::hash::short_hash;
use super::owner::{Owner, name_of};
use super::patch;

/// The label by which a pod (and a revision) says of which revision it is.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// The data of a revision with this template.
pub fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = template.to_tree().unwrap_or_else(|_| json!({}));
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template that a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    PodTemplateSpec::from_tree(&template).ok()
}

/// Whether the revision holds this template.
pub fn holds(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|held| held == *template)
}

/// The hash by which a revision's pods are labelled.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// What to do so that there is a newest revision with the template.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The newest revision is it.
    Is(Arc<ControllerRevision>),
    /// An older revision is it (the template was taken back): give it this number.
    Renumber(Arc<ControllerRevision>, i64),
    /// Make this one.
    Create(Box<ControllerRevision>),
}

/// Decides how to get the revision of the owner's current template.
pub fn decide(
    owner: &Owner,
    labels: &std::collections::BTreeMap<String, String>,
    template: &PodTemplateSpec,
    known: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
) -> Step {
    let newest = known.iter().map(|revision| revision.revision).max().unwrap_or(0);
    let same = known.iter().filter(|revision| holds(revision, template)).max_by_key(|revision| revision.revision);
    match same {
        Some(revision) if revision.revision == newest => Step::Is(revision.clone()),
        Some(revision) => Step::Renumber(revision.clone(), newest + 1),
        None => {
            let hash = short_hash(data_of(template).to_string().as_bytes(), collisions);
            let mut labels = labels.clone();
            labels.insert(HASH_LABEL.into(), hash.clone());
            Step::Create(Box::new(ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", owner.name())),
                    namespace: Some(owner.namespace.clone()),
                    labels: Some(labels),
                    owner_references: Some(vec![owner.reference.clone()]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data_of(template))),
                revision: newest + 1,
            }))
        }
    }
}

/// The outcome of carrying out a step.
pub enum Outcome {
    /// This is the revision.
    Revision(Arc<ControllerRevision>),
    /// The name is taken by another content: count a collision and try again.
    Collision,
}

/// Carries out a step.
pub async fn apply(revisions: &Informer<ControllerRevision>, step: Step) -> Result<Outcome, Error> {
    match step {
        Step::Is(revision) => Ok(Outcome::Revision(revision)),
        Step::Renumber(revision, number) => Ok(Outcome::Revision(patch::write(revisions, &*revision, json!({ "revision": number })).await?)),
        Step::Create(revision) => match revisions.create(&revision).await {
            Ok(revision) => Ok(Outcome::Revision(revision)),
            Err(error) if error.is_already_exists() => {
                let there = revisions.live(&Key::of(&*revision)).await?;
                match there {
                    Some(there) if there.data == revision.data => Ok(Outcome::Revision(Arc::new(there))),
                    Some(_) => Ok(Outcome::Collision),
                    None => Err(Error::NotYet(format!("the revision {} has just gone", name_of(&*revision)))),
                }
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// The revisions to delete: the oldest beyond the limit, among those that neither a pod nor the owner still names.
pub fn surplus(known: &[Arc<ControllerRevision>], in_use: &BTreeSet<String>, limit: i32) -> Vec<Arc<ControllerRevision>> {
    let mut idle: Vec<_> = known.iter().filter(|r| !in_use.contains(name_of(&***r)) && !in_use.contains(hash_of(r))).cloned().collect();
    idle.sort_by_key(|revision| revision.revision);
    let keep = usize::try_from(limit.max(0)).unwrap_or(0);
    idle.truncate(idle.len().saturating_sub(keep));
    idle
}

/// Deletes revisions; those gone already are no failure.
pub async fn delete(revisions: &Informer<ControllerRevision>, list: &[Arc<ControllerRevision>]) -> Result<(), Error> {
    for revision in list {
        match revisions.delete(&Key::of(&**revision), &Deletion::of(&**revision)).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(app: &str) -> PodTemplateSpec {
        PodTemplateSpec { metadata: Some(ObjectMeta { labels: Some([("app".to_owned(), app.to_owned())].into()), ..Default::default() }), spec: None }
    }

    fn revision(app: &str, number: i64) -> Arc<ControllerRevision> {
        let Step::Create(mut revision) = decide(&Owner::default(), &Default::default(), &template(app), &[], None) else { panic!("not new") };
        revision.revision = number;
        Arc::new(*revision)
    }

    #[test]
    fn a_known_template_is_found_again_and_a_new_one_is_made() {
        let known = [revision("a", 1), revision("b", 2)];
        let step = |app: &str| match decide(&Owner::default(), &Default::default(), &template(app), &known, None) {
            Step::Is(r) => format!("is {}", r.revision),
            Step::Renumber(r, to) => format!("{} becomes {to}", r.revision),
            Step::Create(r) => format!("create {}", r.revision),
        };
        assert_eq!(step("b"), "is 2");
        assert_eq!(step("a"), "1 becomes 3");
        assert_eq!(step("c"), "create 3");
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        let revision = revision("a", 1);
        assert_eq!(template_of(&revision), Some(template("a")));
        assert_eq!(revision.data.as_ref().unwrap().0["spec"]["template"]["$patch"], "replace");
    }

    #[test]
    fn the_oldest_unused_revisions_go() {
        let known = [revision("a", 1), revision("b", 2), revision("c", 3), revision("d", 4)];
        let in_use = BTreeSet::from([hash_of(&known[0]).to_owned()]);
        let gone: Vec<i64> = surplus(&known, &in_use, 1).iter().map(|r| r.revision).collect();
        assert_eq!(gone, [2, 3]);
    }
}
