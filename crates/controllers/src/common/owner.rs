//! Who owns what: controller references, and the owner as events and pods name it.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::Resource;
use kube::core::Selector;

/// The reference that the controller of this object holds in it, if it has one.
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object's controller is the one of this UID.
pub fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    controller_of(object).is_some_and(|owner| owner.uid == uid)
}

/// An owner, as those it owns and events about it need it.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// For owned objects.
    pub reference: OwnerReference,
    /// For events.
    pub about: ObjectReference,
    /// Its namespace.
    pub namespace: String,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Owner {
    /// From the object itself.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Owner {
        let meta = object.meta();
        Owner {
            reference: OwnerReference {
                api_version: K::api_version(&()).into_owned(),
                kind: K::kind(&()).into_owned(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            },
            about: client::events::reference(object),
            namespace: meta.namespace.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        &self.reference.uid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.reference.name
    }
}

/// A workload's selector. `None` where it is invalid or empty: such a workload selects nothing, never everything.
pub fn workload_selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok().filter(|selector| !selector.selects_all())
}

/// The object's labels, or none.
pub fn labels_of<K: Resource>(object: &K) -> &std::collections::BTreeMap<String, String> {
    static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    object.meta().labels.as_ref().unwrap_or(&NONE)
}

/// One annotation of the object.
pub fn annotation<'a, K: Resource>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// The object's name, or an empty string.
pub fn name_of<K: Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// The object's UID, or an empty string.
pub fn uid_of<K: Resource>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}
