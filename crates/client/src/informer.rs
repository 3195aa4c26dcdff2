//! Shared informers: one watch per kind (and selection) per process, its objects in memory, everyone served from there.
//!
//! [`Informers`] is made once per process and handed to everybody; asking it twice for the same kind and [`Selection`]
//! gives the same underlying watch. An [`Informer`] reads from memory, lets others follow its changes, and (for objects
//! that can be written) writes to the API in a way that its readers see at once.
//!
//! What must stay true: managedFields are dropped on arrival (nobody here reads them, and they are half of the memory);
//! a failed watch is retried with back-off and the objects stay until the relist; the watch ends with the last handle.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use kube::Resource;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::checkpoint::{Checkpoint, Gone, Secrecy};
use crate::json::Json;
use crate::reflector::{ApiSource, reflect};
use crate::store::{Follower, Store};

/// The name of an object of a known kind: namespace (empty in cluster scope) and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The namespace; empty for an object of cluster scope.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Key {
        let meta = object.meta();
        Key { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }

    /// The namespace, or `None` for cluster scope.
    pub fn namespace(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(self.namespace.as_str())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What an informer can hold: any typed kind.
pub trait Object: Resource<DynamicType = ()> + Clone + Debug + Json + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + Json + Send + Sync + 'static> Object for K {}

/// Which objects of a kind to watch. The default is all of them.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Selection {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only what this label selector matches.
    pub labels: Option<String>,
    /// Only what this field selector matches.
    pub fields: Option<String>,
}

impl Selection {
    /// The one object of this name.
    pub fn named(namespace: Option<&str>, name: &str) -> Self {
        Selection { namespace: namespace.map(Into::into), labels: None, fields: Some(format!("metadata.name={name}")) }
    }
}

type Shelf = HashMap<(TypeId, String, Selection), Box<dyn Any + Send + Sync>>;

/// The shared informers of this process (of this client). Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    client: kube::Client,
    checkpoint: Option<Checkpoint>,
    shelf: Arc<Mutex<Shelf>>,
    stop: CancellationToken,
    alive: Arc<DropGuard>,
}

impl Informers {
    /// No watch is started before an informer is asked for.
    pub fn new(client: kube::Client) -> Informers {
        Self::with(client, None)
    }

    /// Informers of the kinds that the checkpoint keeps begin with what it holds, synced at once, and are
    /// [`Informer::is_stale`] until a server has answered.
    pub fn with_checkpoint(client: kube::Client, checkpoint: Checkpoint) -> Informers {
        Self::with(client, Some(checkpoint))
    }

    /// With a checkpoint, or without.
    pub fn with(client: kube::Client, checkpoint: Option<Checkpoint>) -> Informers {
        let stop = CancellationToken::new();
        let alive = Arc::new(stop.clone().drop_guard());
        Informers { client, checkpoint, shelf: Arc::default(), stop, alive }
    }

    /// Informers of what another user sees, as whom this one may act. They share the checkpoint, and nothing else.
    pub fn acting_as(&self, user: &str) -> Result<Informers, crate::transport::Error> {
        Ok(Self::with(crate::transport::acting_as(user, self.client.clone())?, self.checkpoint.clone()))
    }

    /// The checkpoint, if there is one.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// The client underneath.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Every object of the kind in the cluster.
    pub fn all<K: Object>(&self) -> Informer<K> {
        self.selected(Selection::default())
    }

    /// The objects of the kind that the selection names.
    pub fn selected<K: Object>(&self, selection: Selection) -> Informer<K> {
        let path = K::url_path(&(), selection.namespace.as_deref());
        self.informer(path, K::metadata_api(), selection)
    }

    /// Only the metadata of every object of a kind known at run time (garbage collection, namespace deletion).
    pub fn metadata(&self, resource: &ApiResource) -> Informer<PartialObjectMeta<DynamicObject>> {
        self.informer(DynamicObject::url_path(resource, None), true, Selection::default())
    }

    /// Every object of a kind known at run time.
    pub fn dynamic(&self, resource: &ApiResource, selection: Selection) -> Informer<DynamicObject> {
        self.informer(DynamicObject::url_path(resource, selection.namespace.as_deref()), false, selection)
    }

    /// Forgets a run-time kind (its definition is gone); its watch ends when the last handle is dropped.
    pub fn forget_metadata(&self, resource: &ApiResource) {
        let path = DynamicObject::url_path(resource, None);
        self.shelf.lock().remove(&(TypeId::of::<PartialObjectMeta<DynamicObject>>(), path, Selection::default()));
    }

    fn informer<K>(&self, path: String, metadata_only: bool, selection: Selection) -> Informer<K>
    where
        K: Resource + Clone + Debug + Json + Send + Sync + 'static,
    {
        let mut shelf = self.shelf.lock();
        let slot = (TypeId::of::<K>(), path.clone(), selection.clone());
        let core = shelf.get(&slot).and_then(|any| any.downcast_ref::<Arc<Core<K>>>()).cloned().unwrap_or_else(|| {
            let store = Arc::new(Store::new());
            let stop = self.stop.child_token();
            let (mut keeper, mut from) = (None, None);
            if let Some(checkpoint) = self.checkpoint.as_ref().filter(|checkpoint| checkpoint.keeps::<K>()) {
                let secrecy = if path.ends_with("/secrets") { Secrecy::Sealed } else { Secrecy::Open };
                let start = checkpoint.start(&kept_name(&path, &selection), secrecy);
                if let Some((objects, version)) = start.held {
                    store.replace(objects, &version);
                    from = Some(version).filter(|version| !version.is_empty());
                }
                keeper = Some(start.keeper);
            }
            let gone = keeper.as_ref().map(|keeper| keeper.gone());
            let source = ApiSource::new(self.client.clone(), path, metadata_only, selection.clone());
            tokio::spawn(reflect(source, store.clone(), keeper, from, stop.clone()));
            let core = Arc::new(Core { store, gone, _stop: stop.drop_guard() });
            shelf.insert(slot, Box::new(core.clone()));
            core
        });
        Informer { core, client: self.client.clone(), selection: Arc::new(selection), _alive: self.alive.clone() }
    }
}

/// What a checkpoint calls an informer.
fn kept_name(path: &str, selection: &Selection) -> String {
    let selector = |name: &str, selector: &Option<String>| selector.as_ref().map(|text| format!(" {name}={text}")).unwrap_or_default();
    format!("{path}{}{}", selector("labels", &selection.labels), selector("fields", &selection.fields))
}

struct Core<K> {
    store: Arc<Store<K>>,
    gone: Option<Gone>,
    /// Ends the watch when the shelf and every handle have let go.
    _stop: DropGuard,
}

/// The objects of one kind (and selection) in memory. Cheap to clone.
pub struct Informer<K> {
    core: Arc<Core<K>>,
    pub(crate) client: kube::Client,
    selection: Arc<Selection>,
    _alive: Arc<DropGuard>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { core: self.core.clone(), client: self.client.clone(), selection: self.selection.clone(), _alive: self._alive.clone() }
    }
}

impl<K: Resource> Informer<K> {
    /// The object of this key, if it is there.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.core.store.get(key)
    }

    /// All objects, in order of namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.core.store.list()
    }

    /// The objects of one namespace, in order of name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.core.store.in_namespace(namespace)
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.core.store.len()
    }

    /// Whether the first whole list has arrived.
    pub fn is_synced(&self) -> bool {
        self.core.store.is_synced()
    }

    /// Waits for the first whole list.
    pub async fn synced(&self) {
        self.core.store.synced().await;
    }

    /// Whether no server has answered since this process started: what is here is what a checkpoint held, or nothing.
    pub fn is_stale(&self) -> bool {
        !self.core.store.contact().borrow().ever
    }

    /// Waits until a server has answered.
    pub async fn fresh(&self) {
        // The sender lives as long as the store, which lives as long as self.
        let _ = self.core.store.contact().wait_for(|contact| contact.ever).await;
    }

    /// Whether a server answered when it was last asked.
    pub fn is_connected(&self) -> bool {
        self.core.store.contact().borrow().now
    }

    /// Waits until a server answers.
    pub async fn connected(&self) {
        let _ = self.core.store.contact().wait_for(|contact| contact.now).await;
    }

    /// Whether a durable informer has seen the object of this UID go, in this process or in one before it.
    pub fn has_seen_go(&self, uid: &str) -> bool {
        self.core.gone.as_ref().is_some_and(|gone| gone.contains(uid))
    }

    /// Follows the changes, from what is there now.
    ///
    /// A subscription first replays what is there as `Applied { old: None, .. }`, then follows. It never loses the last
    /// state of a key, and may merge changes of one key when its reader is slow.
    pub fn subscribe(&self) -> Changes<K> {
        Changes { follower: self.core.store.subscribe(), _informer: self.clone() }
    }

    /// Shows this process' readers what it has just written, before the watch does. `object` MUST be the API's answer.
    ///
    /// Only an informer over the whole kind can know that the object belongs into it; others leave it to the watch.
    pub fn wrote(&self, object: K) -> Arc<K> {
        if *self.selection == Selection::default() { self.core.store.wrote(object) } else { Arc::new(object) }
    }

    /// Shows this process' readers that the object of this UID is gone: the API has said so.
    pub fn removed(&self, key: &Key, uid: &str) {
        self.core.store.removed(key, uid);
    }
}

/// A change of one object.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is new (`old` is `None`) or has changed.
    Applied {
        /// What it was, as this subscription last knew it.
        old: Option<Arc<K>>,
        /// What it is.
        new: Arc<K>,
    },
    /// The object is gone; this is its last state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest state that the change carries.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }

    /// The state before, if there was one.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Applied { old, .. } => old.as_ref(),
            Change::Deleted(last) => Some(last),
        }
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Change::Applied { old, new } => Change::Applied { old: old.clone(), new: new.clone() },
            Change::Deleted(last) => Change::Deleted(last.clone()),
        }
    }
}

/// A subscription to an informer's changes.
pub struct Changes<K> {
    follower: Arc<Follower<K>>,
    _informer: Informer<K>,
}

impl<K> Changes<K> {
    /// The next change. Safe to drop and call again: nothing is lost.
    ///
    /// An informer lives as long as its subscriptions, so `None` never comes today; it is for the day when one ends.
    pub async fn next(&mut self) -> Option<Change<K>> {
        Some(self.follower.next().await)
    }

    /// The next change if there is one already.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        self.follower.try_next()
    }
}
