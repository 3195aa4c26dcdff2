//! Writing through an informer: the API's answer is shown to this process' readers at once (see [`crate::store`]).
//!
//! One place for what every write needs: the path from the object's own metadata, a deadline, and the note to the store.
//! A write that fails changes nothing here; the caller returns the error and is called again.

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde::Serialize;
use std::sync::Arc;

use crate::error::ErrorExt;
use crate::informer::{Informer, Key, Object};
use crate::typed::{Api, Deleted};

/// How to delete an object.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// Only the object of this UID.
    pub uid: Option<String>,
    /// Only in this version.
    pub resource_version: Option<String>,
    /// Other than the object's own grace period.
    pub grace_period_seconds: Option<u32>,
    /// What becomes of its dependents.
    pub propagation: Option<PropagationPolicy>,
}

impl Deletion {
    /// Deletes exactly this object: not one of the same name that came later.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        Deletion { uid: object.meta().uid.clone(), ..Default::default() }
    }

    /// With this propagation.
    pub fn propagating(self, policy: PropagationPolicy) -> Self {
        Deletion { propagation: Some(policy), ..self }
    }
}

impl<K: Object> Informer<K> {
    fn api(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn note(&self, mut object: K) -> Arc<K> {
        object.meta_mut().managed_fields = None;
        self.wrote(object)
    }

    /// Reads the object from the API itself: for decisions that must not rest on a cache.
    pub async fn live(&self, key: &Key) -> Result<Option<K>, kube::Error> {
        match self.api(&key.namespace).get(&key.name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the object in its own namespace.
    pub async fn create(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let key = Key::of(object);
        Ok(self.note(self.api(&key.namespace).create(object).await?))
    }

    /// Replaces the object. Its resourceVersion, if set, must still be the current one.
    pub async fn replace(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let key = Key::of(object);
        Ok(self.note(self.api(&key.namespace).replace(&key.name, object).await?))
    }

    /// Replaces the object's status. Its resourceVersion, if set, must still be the current one.
    pub async fn replace_status(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let key = Key::of(object);
        Ok(self.note(self.api(&key.namespace).replace_status(&key.name, object).await?))
    }

    /// Changes the object by a patch (merge patches suit controllers best).
    pub async fn patch<P: Serialize>(&self, key: &Key, patch: &Patch<P>) -> Result<Arc<K>, kube::Error> {
        Ok(self.note(self.api(&key.namespace).patch(&key.name, &PatchParams::default(), patch).await?))
    }

    /// Changes the object's status by a patch.
    pub async fn patch_status<P: Serialize>(&self, key: &Key, patch: &Patch<P>) -> Result<Arc<K>, kube::Error> {
        Ok(self.note(self.api(&key.namespace).patch_status(&key.name, &PatchParams::default(), patch).await?))
    }

    /// Server-side apply of all that `manager` wants of the object, whoever else wants something else.
    pub async fn apply(&self, key: &Key, manager: &str, object: &serde_json::Value) -> Result<Arc<K>, kube::Error> {
        let params = PatchParams::apply(manager).force();
        Ok(self.note(self.api(&key.namespace).patch(&key.name, &params, &Patch::Apply(object)).await?))
    }

    /// The same for its status.
    pub async fn apply_status(&self, key: &Key, manager: &str, object: &serde_json::Value) -> Result<Arc<K>, kube::Error> {
        let params = PatchParams::apply(manager).force();
        Ok(self.note(self.api(&key.namespace).patch_status(&key.name, &params, &Patch::Apply(object)).await?))
    }

    /// Deletes the object. Where it goes on existing for its grace period or its finalizers, that state is noted.
    pub async fn delete(&self, key: &Key, deletion: &Deletion) -> Result<(), kube::Error> {
        let params = DeleteParams {
            grace_period_seconds: deletion.grace_period_seconds,
            propagation_policy: deletion.propagation.clone(),
            preconditions: (deletion.uid.is_some() || deletion.resource_version.is_some())
                .then(|| Preconditions { uid: deletion.uid.clone(), resource_version: deletion.resource_version.clone() }),
            ..DeleteParams::default()
        };
        match self.api(&key.namespace).delete(&key.name, &params).await? {
            Deleted::Gone(uid) => {
                if let Some(uid) = uid.as_deref().or(deletion.uid.as_deref()) {
                    self.removed(key, uid);
                }
            }
            Deleted::Going(object) => {
                let meta = object.meta();
                let gone = meta.deletion_timestamp.is_none()
                    || (meta.finalizers.as_ref().is_none_or(Vec::is_empty) && meta.deletion_grace_period_seconds.is_none_or(|s| s == 0));
                match (gone, meta.uid.clone()) {
                    (true, Some(uid)) => self.removed(key, &uid),
                    _ => drop(self.note(*object)),
                }
            }
        }
        Ok(())
    }
}
