//! ConfigMaps and Secrets that pods name, read one by one: a node may see those of its own pods and no others.
//!
//! A short memory keeps many pods from asking the same at once, and keeps answering when no server does. What a server
//! has said is gone is gone; what could not be asked is not.

use client::error::ErrorExt;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::Api;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

/// How old an object may be when a pod or container starts: it must see what was there before.
pub const FRESH: Duration = Duration::from_millis(500);
/// How old it may be when a running pod's volumes are brought up to date.
pub const KEPT: Duration = Duration::from_secs(20);
/// Objects that nobody has asked for in this long are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// How long a server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An object that could not be read; not the same as one that does not exist.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read {kind} {namespace}/{name}: {message}")]
pub struct Error {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub message: String,
}

struct Kept<K> {
    object: Arc<K>,
    read_at: Timestamp,
}

type Shelf<K> = Mutex<HashMap<(String, String), Kept<K>>>;

/// The reader. Cheap to share.
pub struct Objects {
    client: kube::Client,
    config_maps: Shelf<ConfigMap>,
    secrets: Shelf<Secret>,
}

impl Objects {
    pub fn new(client: kube::Client) -> Objects {
        Objects { client, config_maps: Shelf::default(), secrets: Shelf::default() }
    }

    /// The ConfigMap, `None` if there is none.
    pub async fn config_map(&self, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.read(&self.config_maps, "ConfigMap", namespace, name, age_max).await
    }

    /// The Secret, `None` if there is none.
    pub async fn secret(&self, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<Secret>>, Error> {
        self.read(&self.secrets, "Secret", namespace, name, age_max).await
    }

    async fn read<K>(&self, shelf: &Shelf<K>, kind: &'static str, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<K>>, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let slot = (namespace.to_owned(), name.to_owned());
        let now = Timestamp::now();
        let young = |kept: &Kept<K>, age: Duration| now.duration_since(kept.read_at).unsigned_abs() <= age;
        let known = {
            let mut shelf = shelf.lock();
            shelf.retain(|_, kept| young(kept, FORGOTTEN_AFTER));
            shelf.get(&slot).map(|kept| (kept.object.clone(), young(kept, age_max)))
        };
        if let Some((object, true)) = known {
            return Ok(Some(object));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, api.get(name)).await;
        let failure = match answer {
            Ok(Ok(object)) => {
                let object = Arc::new(object);
                shelf.lock().insert(slot, Kept { object: object.clone(), read_at: now });
                return Ok(Some(object));
            }
            Ok(Err(error)) if error.is_not_found() => {
                shelf.lock().remove(&slot);
                return Ok(None);
            }
            // A server that refuses is believed; one that cannot be reached leaves things as they were.
            Ok(Err(error)) if error.is_answer() => error.short(),
            Ok(Err(error)) => match known {
                Some((object, _)) => return Ok(Some(object)),
                None => error.short(),
            },
            Err(_) => match known {
                Some((object, _)) => return Ok(Some(object)),
                None => "the API server does not answer".to_owned(),
            },
        };
        Err(Error { kind, namespace: namespace.to_owned(), name: name.to_owned(), message: failure })
    }
}
