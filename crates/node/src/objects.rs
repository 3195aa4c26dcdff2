//! ConfigMaps, Secrets, claims and volumes that pods name, read one by one: a node may see those of its own pods and no others.
//!
//! A short memory keeps many pods from asking the same at once. All that pods of this node refer to is also in the node's
//! checkpoint (Secrets encrypted), so that a container starts with no server alive, after a reboot too. What a server has
//! said is gone is gone; what could not be asked is not.

use crate::{contact::Contact, spec::referred};
use client::{
    Api, Json,
    checkpoint::{Secrecy, Shelf as Disk},
    error::ErrorExt,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// How old an object may be when a pod or container starts: it must see what was there before.
pub const FRESH: Duration = Duration::from_millis(500);
/// How old it may be when a running pod's volumes are brought up to date.
pub const KEPT: Duration = Duration::from_secs(20);
/// How long a server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one may take that does not seem to be there, for what is not known here.
const AWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// An object that could not be read; not the same as one that does not exist.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read {kind} {namespace}/{name}: {message}")]
pub struct Error {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub message: String,
}

type Slot = (String, String);

struct Kept<K> {
    object: Arc<K>,
    read_at: Timestamp,
}

/// What is known of one kind: as many as the node's pods refer to, see [`Objects::retain`].
struct Shelf<K> {
    kind: &'static str,
    known: Mutex<HashMap<Slot, Kept<K>>>,
    disk: Option<Disk>,
}

impl<K> Shelf<K>
where
    K: Json,
{
    fn new(kind: &'static str, disk: Option<Disk>) -> Shelf<K> {
        let loaded = disk.iter().flat_map(Disk::load_objects::<K>);
        let known = loaded.filter_map(|(key, object)| {
            let (namespace, name) = key.split_once('/')?;
            Some(((namespace.to_owned(), name.to_owned()), Kept { object: Arc::new(object), read_at: Timestamp::UNIX_EPOCH }))
        });
        Shelf { kind, known: Mutex::new(known.collect()), disk }
    }

    fn keep(&self, slot: &Slot, object: Arc<K>) {
        if let Some(disk) = &self.disk {
            disk.put_object(&format!("{}/{}", slot.0, slot.1), &*object);
        }
        self.known.lock().insert(slot.clone(), Kept { object, read_at: Timestamp::now() });
    }

    fn forget(&self, slot: &Slot) {
        if let Some(disk) = &self.disk {
            disk.remove(&format!("{}/{}", slot.0, slot.1));
        }
        self.known.lock().remove(slot);
    }

    fn retain(&self, referred: &HashSet<Slot>) {
        let unused: Vec<Slot> = self.known.lock().keys().filter(|slot| !referred.contains(*slot)).cloned().collect();
        unused.iter().for_each(|slot| self.forget(slot));
    }
}

/// The reader. Cheap to share.
pub struct Objects {
    client: kube::Client,
    contact: Contact,
    config_maps: Shelf<ConfigMap>,
    secrets: Shelf<Secret>,
    claims: Shelf<PersistentVolumeClaim>,
    volumes: Shelf<PersistentVolume>,
}

impl Objects {
    pub fn new(client: kube::Client, contact: Contact, checkpoint: Option<&client::Checkpoint>) -> Objects {
        let disk = |name: &str, secrecy| checkpoint.map(|checkpoint| checkpoint.shelf(name, secrecy));
        Objects {
            client,
            contact,
            config_maps: Shelf::new("ConfigMap", disk("configmaps", Secrecy::Open)),
            secrets: Shelf::new("Secret", disk("secrets", Secrecy::Sealed)),
            claims: Shelf::new("PersistentVolumeClaim", disk("persistentvolumeclaims", Secrecy::Open)),
            volumes: Shelf::new("PersistentVolume", disk("persistentvolumes", Secrecy::Open)),
        }
    }

    /// The ConfigMap, `None` if there is none.
    pub async fn config_map(&self, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.read(&self.config_maps, Api::namespaced(self.client.clone(), namespace), namespace, name, age_max).await
    }

    /// The Secret, `None` if there is none.
    pub async fn secret(&self, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<Secret>>, Error> {
        self.read(&self.secrets, Api::namespaced(self.client.clone(), namespace), namespace, name, age_max).await
    }

    /// The claim, `None` if there is none.
    pub async fn claim(&self, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        self.read(&self.claims, Api::namespaced(self.client.clone(), namespace), namespace, name, age_max).await
    }

    /// The volume, `None` if there is none.
    pub async fn volume(&self, name: &str, age_max: Duration) -> Result<Option<Arc<PersistentVolume>>, Error> {
        self.read(&self.volumes, Api::all(self.client.clone()), "", name, age_max).await
    }

    /// Brings all that the pod refers to up to date. What cannot be read stays as it was.
    pub async fn refresh(&self, pod: &Pod) {
        let referred = referred::objects(pod);
        for (namespace, name) in &referred.config_maps {
            let _ = self.config_map(namespace, name, KEPT).await;
        }
        for (namespace, name) in &referred.secrets {
            let _ = self.secret(namespace, name, KEPT).await;
        }
    }

    /// Forgets what no pod refers to.
    pub fn retain(&self, referred: &referred::Referred) {
        self.config_maps.retain(&referred.config_maps);
        self.secrets.retain(&referred.secrets);
        self.claims.retain(&referred.claims);
        let volumes = self.claims.known.lock();
        let volumes = volumes.values().filter_map(|kept| client::volumes::volume_of_claim(&kept.object));
        let volumes = volumes.map(|name| (String::new(), name.to_owned())).collect();
        self.volumes.retain(&volumes);
    }

    async fn read<K>(&self, shelf: &Shelf<K>, api: Api<K>, namespace: &str, name: &str, age_max: Duration) -> Result<Option<Arc<K>>, Error>
    where
        K: client::Object,
    {
        let slot = (namespace.to_owned(), name.to_owned());
        let now = Timestamp::now();
        let known = shelf.known.lock().get(&slot).map(|kept| (kept.object.clone(), now.duration_since(kept.read_at).unsigned_abs() <= age_max));
        if let Some((object, true)) = known {
            return Ok(Some(object));
        }
        let is_there = self.contact.is_there().await;
        if let (Some((object, _)), false) = (&known, is_there) {
            return Ok(Some(object.clone()));
        }
        let answer = tokio::time::timeout(if is_there { ANSWER_TIMEOUT } else { AWAY_TIMEOUT }, api.get(name)).await;
        let failure = match answer {
            Ok(Ok(mut object)) => {
                object.meta_mut().managed_fields = None;
                let object = Arc::new(object);
                shelf.keep(&slot, object.clone());
                return Ok(Some(object));
            }
            Ok(Err(error)) if error.is_not_found() => {
                shelf.forget(&slot);
                return Ok(None);
            }
            // A server that refuses is believed; one that cannot be reached leaves things as they were.
            Ok(Err(error)) if error.is_answer() && !error.is_trouble() => error.short(),
            Ok(Err(error)) => match known {
                Some((object, _)) => return Ok(Some(object)),
                None => error.short(),
            },
            Err(_) => match known {
                Some((object, _)) => return Ok(Some(object)),
                None => "the API server does not answer".to_owned(),
            },
        };
        Err(Error { kind: shelf.kind, namespace: namespace.to_owned(), name: name.to_owned(), message: failure })
    }
}
