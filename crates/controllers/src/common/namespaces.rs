//! Namespaces as those controllers see them that keep one object in each.

use client::Key;
use k8s_openapi::api::core::v1::Namespace;
use kube::Resource;

/// Whether things can be created in it.
pub fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

/// The key of the object's namespace.
pub fn of<K: Resource>(object: &K) -> Vec<Key> {
    object.meta().namespace.iter().map(|namespace| Key::new("", namespace.clone())).collect()
}
