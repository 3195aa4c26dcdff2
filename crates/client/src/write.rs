//! Writing through an informer: the API's answer is shown to this process' readers at once (see [`crate::store`]).
//!
//! One place for what every write needs: the path from the object's own metadata, a deadline, and the note to the store.
//! A write that fails changes nothing here; the caller returns the error and is called again.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::timeout;

use crate::informer::{Informer, Key, Object};
use crate::limits;
use crate::reflector::timed_out;

/// An object that can be written as well as read.
pub trait WritableObject: Object + Serialize {}
impl<K: Object + Serialize> WritableObject for K {}

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

impl<K: WritableObject> Informer<K> {
    fn request(&self, namespace: Option<&str>) -> Request {
        Request::new(K::url_path(&(), namespace.filter(|ns| !ns.is_empty())))
    }

    async fn send<T: DeserializeOwned>(&self, request: Result<http::Request<Vec<u8>>, kube::core::request::Error>) -> Result<T, kube::Error> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        timeout(limits::REQUEST_TIMEOUT, self.client.request(request)).await.map_err(|_| timed_out(&K::kind(&())))?
    }

    async fn send_and_note(&self, request: Result<http::Request<Vec<u8>>, kube::core::request::Error>) -> Result<Arc<K>, kube::Error> {
        let mut object: K = self.send(request).await?;
        object.meta_mut().managed_fields = None;
        Ok(self.wrote(object))
    }

    /// Reads the object from the API itself: for decisions that must not rest on a cache.
    pub async fn live(&self, key: &Key) -> Result<Option<K>, kube::Error> {
        use crate::error::ErrorExt;
        match self.send(self.request(key.namespace()).get(&key.name, &Default::default())).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the object in its own namespace.
    pub async fn create(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = encode(object)?;
        self.send_and_note(self.request(object.meta().namespace.as_deref()).create(&PostParams::default(), body)).await
    }

    /// Replaces the object. Its resourceVersion, if set, must still be the current one.
    pub async fn replace(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = encode(object)?;
        let key = Key::of(object);
        self.send_and_note(self.request(key.namespace()).replace(&key.name, &PostParams::default(), body)).await
    }

    /// Replaces the object's status. Its resourceVersion, if set, must still be the current one.
    pub async fn replace_status(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = encode(object)?;
        let key = Key::of(object);
        self.send_and_note(self.request(key.namespace()).replace_subresource("status", &key.name, &PostParams::default(), body)).await
    }

    /// Changes the object by a patch (merge patches suit controllers best).
    pub async fn patch<P: Serialize>(&self, key: &Key, patch: &Patch<P>) -> Result<Arc<K>, kube::Error> {
        self.send_and_note(self.request(key.namespace()).patch(&key.name, &PatchParams::default(), patch)).await
    }

    /// Changes the object's status by a patch.
    pub async fn patch_status<P: Serialize>(&self, key: &Key, patch: &Patch<P>) -> Result<Arc<K>, kube::Error> {
        self.send_and_note(self.request(key.namespace()).patch_subresource("status", &key.name, &PatchParams::default(), patch)).await
    }

    /// Server-side apply of all that `manager` wants of the object, whoever else wants something else.
    pub async fn apply(&self, key: &Key, manager: &str, object: &serde_json::Value) -> Result<Arc<K>, kube::Error> {
        let params = PatchParams::apply(manager).force();
        self.send_and_note(self.request(key.namespace()).patch(&key.name, &params, &Patch::Apply(object))).await
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
        let answer: serde_json::Value = self.send(self.request(key.namespace()).delete(&key.name, &params)).await?;
        let kind = answer.get("kind").and_then(serde_json::Value::as_str);
        if kind == Some("Status") {
            if let Some(uid) = answer.pointer("/details/uid").and_then(serde_json::Value::as_str).or(deletion.uid.as_deref()) {
                self.removed(key, uid);
            }
        } else if let Ok(mut object) = serde_json::from_value::<K>(answer) {
            object.meta_mut().managed_fields = None;
            let meta = object.meta();
            let gone = meta.deletion_timestamp.is_none()
                || (meta.finalizers.as_ref().is_none_or(Vec::is_empty) && meta.deletion_grace_period_seconds.is_none_or(|s| s == 0));
            match (gone, meta.uid.clone()) {
                (true, Some(uid)) => self.removed(key, &uid),
                _ => {
                    self.wrote(object);
                }
            }
        }
        Ok(())
    }
}

fn encode<K: Serialize>(object: &K) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(object).map_err(kube::Error::SerdeError)
}
