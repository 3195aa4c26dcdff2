//! Whose is it: what a controller owns, adopts and lets go, for every kind of owner and of owned object.
//!
//! Owned and selected: kept. Owned and no longer selected: released. Selected and without a controller: adopted, after
//! asking the API itself whether the owner is still there and not being deleted (a cache may not know yet). Everything
//! else is left alone.

use std::sync::Arc;

use client::controller::Error;
use client::{Change, ErrorExt, Informer, Key, Object};
use kube::api::Patch;
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use super::owner::{Owner, controller_of, labels_of, uid_of};

/// What to do with one object.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

fn decide<K: kube::Resource>(object: &K, owner: &Owner, selector: Option<&Selector>) -> Claim {
    let selected = selector.is_some_and(|selector| selector.matches(labels_of(object)));
    match controller_of(object) {
        Some(controller) if controller.uid != owner.uid() => Claim::Ignore,
        Some(_) if selected || owner.deleting => Claim::Keep,
        Some(_) => Claim::Release,
        None if selected && !owner.deleting && object.meta().deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The owners that may adopt an object which has appeared (or lost its controller): those whose selector matches it.
/// For [`client::controller::Inputs::mapped`].
pub fn adopters<O: Object, K: Object>(change: &Change<K>, owners: &Informer<O>, selector: impl Fn(&O) -> Option<Selector>) -> Vec<Key> {
    let Change::Applied { new: object, .. } = change else { return Vec::new() };
    if controller_of(&**object).is_some() || object.meta().deletion_timestamp.is_some() {
        return Vec::new();
    }
    let candidates = owners.in_namespace(object.meta().namespace.as_deref().unwrap_or_default());
    let matching = candidates.iter().filter(|owner| selector(owner).is_some_and(|selector| selector.matches(labels_of(&**object))));
    matching.map(|owner| Key::of(&**owner)).collect()
}

/// The objects that are the owner's, after adopting and releasing. `may_adopt` is a further condition on orphans.
pub async fn claim<O: Object, K: Object>(
    owners: &Informer<O>,
    owner: &Owner,
    objects: &Informer<K>,
    selector: Option<&Selector>,
    may_adopt: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error> {
    let mut mine = Vec::new();
    let mut asked = false;
    for object in objects.in_namespace(&owner.namespace) {
        match decide(&*object, owner, selector) {
            Claim::Ignore => {}
            Claim::Keep => mine.push(object),
            Claim::Release => release(owner, objects, &object).await?,
            Claim::Adopt if !may_adopt(&object) => {}
            Claim::Adopt => {
                if !asked {
                    let live = owners.live(&Key::new(owner.namespace.clone(), owner.name())).await?;
                    let sound = live.is_some_and(|o| uid_of(&o) == owner.uid() && o.meta().deletion_timestamp.is_none());
                    if !sound {
                        return Err(Error::NotYet(format!("{} {} is gone or being deleted; it adopts nothing", owner.reference.kind, owner.name())));
                    }
                    asked = true;
                }
                if let Some(adopted) = adopt(owner, objects, &object).await? {
                    mine.push(adopted);
                }
            }
        }
    }
    Ok(mine)
}

async fn adopt<K: Object>(owner: &Owner, objects: &Informer<K>, object: &K) -> Result<Option<Arc<K>>, Error> {
    let mut references = object.meta().owner_references.clone().unwrap_or_default();
    references.push(owner.reference.clone());
    set_references(objects, object, &references).await
}

async fn release<K: Object>(owner: &Owner, objects: &Informer<K>, object: &K) -> Result<(), Error> {
    let mut references = object.meta().owner_references.clone().unwrap_or_default();
    references.retain(|reference| reference.uid != owner.uid());
    set_references(objects, object, &references).await.map(drop)
}

/// Sets the references, only in the version that was looked at. `None` if the object is gone.
async fn set_references<K: Object>(
    objects: &Informer<K>,
    object: &K,
    references: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
) -> Result<Option<Arc<K>>, Error> {
    let meta = object.meta();
    let patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": references } });
    match objects.patch(&Key::of(object), &Patch::Merge(patch)).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::Expression;

    fn check(owner_uid: Option<&str>, label: &str, owner_deleting: bool, expected: Claim) {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), label.to_owned())].into());
        pod.metadata.owner_references = owner_uid.map(|uid| {
            vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]
        });
        let mut owner = Owner { deleting: owner_deleting, ..Default::default() };
        owner.reference.uid = "me".into();
        let selector = Selector::from(Expression::Equal("app".into(), "web".into()));
        assert_eq!(decide(&pod, &owner, Some(&selector)), expected);
    }

    #[test]
    fn decisions() {
        check(Some("me"), "web", false, Claim::Keep);
        check(Some("me"), "other", false, Claim::Release);
        check(Some("me"), "other", true, Claim::Keep);
        check(Some("them"), "web", false, Claim::Ignore);
        check(None, "web", false, Claim::Adopt);
        check(None, "web", true, Claim::Ignore);
        check(None, "other", false, Claim::Ignore);
    }
}
