//! Who owns whom, by UID, and which objects a change makes worth a look. Pure: what to do is decided elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{FOREGROUND, ORPHAN};
use crate::common::discovery::Resource;

/// Where an object is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) resource: Arc<Resource>,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Place {
    /// As events name the object of this UID.
    pub(super) fn reference(&self, uid: &str) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.resource.api.api_version.clone()),
            kind: Some(self.resource.api.kind.clone()),
            namespace: Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(self.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.resource.api.plural, self.namespace, self.name)
    }
}

/// What the graph keeps of an object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    uid: String,
    place: Place,
    owners: Vec<OwnerReference>,
    /// Being deleted, and waiting for its dependents to go.
    waits: bool,
    /// Being deleted, and waiting for its dependents to be let go.
    orphans: bool,
}

impl Object {
    /// From its metadata.
    pub(super) fn of(resource: &Arc<Resource>, meta: &ObjectMeta) -> Object {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|each| each == finalizer);
        let deleting = meta.deletion_timestamp.is_some();
        Object {
            uid: meta.uid.clone().unwrap_or_default(),
            place: Place {
                resource: resource.clone(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            waits: deleting && has(FOREGROUND),
            orphans: deleting && has(ORPHAN),
        }
    }

    /// Whether the other one is where this one's dependents are: a namespaced owner of another namespace is none.
    fn may_own(&self, dependent: &Object) -> bool {
        let elsewhere = self.place.resource.namespaced && !dependent.place.namespace.is_empty();
        !elsewhere || self.place.namespace == dependent.place.namespace
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Graph {
    objects: HashMap<String, Object>,
    /// Dependents by owner, also of owners that are not there.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Takes an object's newest state; gives what is worth a look.
    pub(super) fn set(&mut self, object: Object) -> Vec<String> {
        let uid = object.uid.clone();
        let before = self.objects.remove(&uid);
        let mut dirty = Vec::new();
        let old_owners: Vec<_> = before.iter().flat_map(|before| &before.owners).map(|owner| owner.uid.clone()).collect();
        for owner in &old_owners {
            if !object.owners.iter().any(|reference| reference.uid == *owner) {
                self.unlink(owner, &uid);
            }
        }
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        // Whoever waited for this object may have to wait no longer.
        let freed = old_owners.iter().filter(|owner| before.as_ref().is_some_and(|before| before.blocks(owner)) && !object.blocks(owner));
        dirty.extend(freed.filter(|owner| self.waits(owner)).cloned());
        let owner_trouble = object.owners.iter().any(|owner| self.objects.get(&owner.uid).is_none_or(|owner| owner.waits || !owner.may_own(&object)));
        if owner_trouble || object.waits || object.orphans {
            dirty.push(uid.clone());
        }
        if object.waits && !before.is_some_and(|before| before.waits) {
            dirty.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        self.objects.insert(uid, object);
        dirty
    }

    /// The object is gone; gives what is worth a look.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(object) = self.objects.remove(uid) else { return Vec::new() };
        let mut dirty: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
            if self.waits(&owner.uid) {
                dirty.push(owner.uid.clone());
            }
        }
        dirty
    }

    /// A kind is no longer served: its objects are out of sight.
    pub(super) fn forget(&mut self, resource: &Resource) {
        let uids: Vec<_> = self.objects.iter().filter(|(_, object)| *object.place.resource == *resource).map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            if let Some(object) = self.objects.remove(&uid) {
                for owner in &object.owners {
                    self.unlink(&owner.uid, &uid);
                }
            }
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn waits(&self, uid: &str) -> bool {
        self.objects.get(uid).is_some_and(|object| object.waits)
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.objects.get(uid))
    }

    pub(super) fn place_of(&self, uid: &str) -> Option<Place> {
        self.objects.get(uid).map(|object| object.place.clone())
    }

    pub(super) fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }

    pub(super) fn has_waiting_dependent(&self, uid: &str) -> bool {
        self.dependents_of(uid).any(|object| object.waits)
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<Place> {
        self.dependents_of(uid).map(|object| object.place.clone()).collect()
    }

    /// The dependents that an owner deleted in the foreground must wait for.
    pub(super) fn blocking_dependents(&self, uid: &str) -> Vec<Place> {
        self.dependents_of(uid).filter(|object| object.blocks(uid)).map(|object| object.place.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ApiResource;
    use serde_json::json;

    fn object(uid: &str, owners: &[&str], finalizer: Option<&str>) -> Object {
        let api = ApiResource { group: String::new(), version: "v1".into(), api_version: "v1".into(), kind: "Pod".into(), plural: "pods".into() };
        let resource = Arc::new(Resource { api, namespaced: true, verbs: Vec::new() });
        let owners: Vec<_> =
            owners.iter().map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": uid, "uid": uid, "blockOwnerDeletion": true})).collect();
        let deleted = finalizer.map(|_| "2026-01-01T00:00:00Z");
        let meta =
            json!({"name": uid, "uid": uid, "ownerReferences": owners, "deletionTimestamp": deleted, "finalizers": finalizer.map(|each| vec![each])});
        Object::of(&resource, &serde_json::from_value(meta).expect("metadata"))
    }

    #[test]
    fn dependents_of_what_is_gone_are_looked_at() {
        let mut graph = Graph::default();
        assert!(graph.set(object("owner", &[], None)).is_empty());
        assert!(graph.set(object("a", &["owner"], None)).is_empty());
        assert!(graph.set(object("b", &["a"], None)).is_empty());
        assert_eq!(graph.remove("owner"), ["a"]);
        // An owner that nobody has seen is a reason to look.
        assert_eq!(graph.set(object("c", &["nobody"], None)), ["c"]);
    }

    #[test]
    fn a_waiting_owner_wakes_its_dependents_and_they_it() {
        let mut graph = Graph::default();
        graph.set(object("owner", &[], None));
        graph.set(object("a", &["owner"], None));
        assert_eq!(graph.set(object("owner", &[], Some(FOREGROUND))), ["owner", "a"]);
        assert_eq!(graph.blocking_dependents("owner").len(), 1);
        assert_eq!(graph.remove("a"), ["owner"]);
        assert!(graph.blocking_dependents("owner").is_empty());
    }

    #[test]
    fn an_owner_of_another_namespace_is_a_reason_to_look() {
        let mut graph = Graph::default();
        let elsewhere = |mut object: Object| {
            object.place.namespace = "elsewhere".into();
            object
        };
        graph.set(elsewhere(object("owner", &[], None)));
        let near = |mut object: Object| {
            object.place.namespace = "here".into();
            object
        };
        assert_eq!(graph.set(near(object("a", &["owner"], None))), ["a"]);
        assert!(graph.set(elsewhere(object("b", &["owner"], None))).is_empty());
    }

    #[test]
    fn letting_go_of_an_owner_wakes_it() {
        let mut graph = Graph::default();
        graph.set(object("owner", &[], None));
        graph.set(object("a", &["owner"], None));
        graph.set(object("owner", &[], Some(FOREGROUND)));
        assert_eq!(graph.set(object("a", &[], None)), ["owner"]);
        assert!(!graph.has_dependents("owner"));
        assert_eq!(graph.set(object("owner", &[], Some(ORPHAN))), ["owner"]);
    }
}
