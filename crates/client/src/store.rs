//! The objects of one informer in memory, and those who follow their changes.
//!
//! Filled by a source (the [`crate::reflector`]; a checkpoint on disk can fill it before that) through `replace`,
//! `apply`, `delete` and `progress`, and by this process' own successful writes through `wrote` and `removed`.
//!
//! Own writes are shown at once and remembered until the source has passed their version, so that a controller never
//! decides on a view older than what it did itself. Versions are compared as numbers only between an own write and the
//! source of the same kind; where the source jumps back (a restored store), the source is right and own writes are
//! forgotten.
//!
//! What must stay true: a follower never loses the last state of a key; the source's word, once it has passed a
//! version, stands; nothing is removed because something failed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};

use kube::Resource;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::informer::{Change, Key};

/// A resourceVersion as the number it is, if it is one.
pub(crate) fn version_number(version: Option<&str>) -> Option<u64> {
    version?.parse().ok()
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// The newest version that the source has shown (by list, event or bookmark).
    progress: u64,
    /// Own writes that the source has not shown yet: the version of each.
    pending: HashMap<Key, u64>,
    /// UIDs that this process has seen go, and that the source may still mention.
    gone: HashSet<String>,
    followers: Vec<Weak<Follower<K>>>,
}

/// What is known of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// It has answered since this process started.
    pub(crate) ever: bool,
    /// It answered the last time that it was asked.
    pub(crate) now: bool,
}

/// See the module.
pub(crate) struct Store<K> {
    state: Mutex<State<K>>,
    synced: watch::Sender<bool>,
    contact: watch::Sender<Contact>,
}

impl<K: Resource> Store<K> {
    pub(crate) fn new() -> Self {
        Store {
            state: Mutex::new(State { objects: BTreeMap::new(), progress: 0, pending: HashMap::new(), gone: HashSet::new(), followers: Vec::new() }),
            synced: watch::Sender::new(false),
            contact: watch::Sender::default(),
        }
    }

    /// The source has answered, or has not.
    pub(crate) fn heard(&self, answered: bool) {
        self.contact.send_if_modified(|contact| {
            let now = Contact { ever: contact.ever || answered, now: answered };
            std::mem::replace(contact, now) != now
        });
    }

    pub(crate) fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    /// The UIDs of what is here and not among these.
    pub(crate) fn missing_from(&self, objects: &[K]) -> Vec<String> {
        let named: HashSet<&str> = objects.iter().filter_map(|object| object.meta().uid.as_deref()).collect();
        let state = self.state.lock();
        let uids = state.objects.values().filter_map(|object| object.meta().uid.clone());
        uids.filter(|uid| !named.contains(uid.as_str())).collect()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.lock().objects.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.state.lock().objects.values().cloned().collect()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.state.lock();
        let from = Key::new(namespace, "");
        state.objects.range(from..).take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().objects.len()
    }

    pub(crate) fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(crate) async fn synced(&self) {
        // The sender lives in self, so the wait cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub(crate) fn subscribe(&self) -> Arc<Follower<K>> {
        let mut state = self.state.lock();
        let follower = Arc::new(Follower { pending: Mutex::new(Waiting { order: VecDeque::new(), changes: HashMap::new() }), wake: Notify::new() });
        for (key, object) in &state.objects {
            follower.push(key.clone(), Change::Applied { old: None, new: object.clone() });
        }
        state.followers.retain(|f| f.strong_count() > 0);
        state.followers.push(Arc::downgrade(&follower));
        follower
    }

    /// The source's whole state at `version`.
    pub(crate) fn replace(&self, objects: Vec<K>, version: &str) {
        let mut state = self.state.lock();
        let number = version_number(Some(version)).unwrap_or(0);
        if number < state.progress {
            // The source went back in time: it is another, or a restored store. What we wrote to the old one is history.
            state.pending.clear();
            state.gone.clear();
        }
        state.progress = number;
        let mut fresh: BTreeMap<Key, Arc<K>> = objects.into_iter().map(|object| (Key::of(&object), Arc::new(object))).collect();
        state.pending.retain(|_, written| *written > number);
        let still_named: HashSet<String> = fresh.values().filter_map(|o| o.meta().uid.clone()).filter(|uid| state.gone.contains(uid)).collect();
        fresh.retain(|_, object| !object.meta().uid.as_ref().is_some_and(|uid| still_named.contains(uid)));
        state.gone = still_named;
        for key in state.pending.keys() {
            if let Some(object) = state.objects.get(key) {
                fresh.insert(key.clone(), object.clone());
            }
        }
        let old = std::mem::replace(&mut state.objects, fresh);
        let mut changes = Vec::new();
        for (key, object) in &state.objects {
            match old.get(key) {
                Some(before) if before.meta().resource_version == object.meta().resource_version && before.meta().uid == object.meta().uid => {}
                before => changes.push((key.clone(), Change::Applied { old: before.cloned(), new: object.clone() })),
            }
        }
        for (key, object) in old {
            if !state.objects.contains_key(&key) {
                changes.push((key, Change::Deleted(object)));
            }
        }
        for (key, change) in changes {
            state.tell(key, change);
        }
        drop(state);
        self.synced.send_replace(true);
    }

    /// The source says that the object is now this.
    pub(crate) fn apply(&self, object: K) {
        let key = Key::of(&object);
        let mut state = self.state.lock();
        let version = version_number(object.meta().resource_version.as_deref()).unwrap_or(0);
        state.passed(version);
        if state.pending.get(&key).is_some_and(|written| *written > version) {
            return;
        }
        if object.meta().uid.as_ref().is_some_and(|uid| state.gone.contains(uid)) {
            return;
        }
        state.put(key, object);
    }

    /// The source says that the object is gone.
    pub(crate) fn delete(&self, object: K) {
        let key = Key::of(&object);
        let mut state = self.state.lock();
        if let Some(uid) = &object.meta().uid {
            state.gone.remove(uid);
        }
        let version = version_number(object.meta().resource_version.as_deref()).unwrap_or(0);
        state.passed(version);
        if state.pending.get(&key).is_some_and(|written| *written > version) {
            return; // A newer object of this name is ours.
        }
        if let Some(before) = state.objects.get(&key)
            && before.meta().uid == object.meta().uid
        {
            state.objects.remove(&key);
            state.tell(key, Change::Deleted(Arc::new(object)));
        }
    }

    /// The source has shown everything up to this version.
    pub(crate) fn progress(&self, version: &str) {
        if let Some(version) = version_number(Some(version)) {
            let mut state = self.state.lock();
            state.passed(version);
        }
    }

    /// This process has written the object, and the API has answered with this.
    pub(crate) fn wrote(&self, object: K) -> Arc<K> {
        let key = Key::of(&object);
        let mut state = self.state.lock();
        let version = version_number(object.meta().resource_version.as_deref());
        let known_gone = object.meta().uid.as_ref().is_some_and(|uid| state.gone.contains(uid));
        match version {
            Some(version) if version > state.progress && !known_gone => {
                if state.pending.get(&key).is_some_and(|newest| *newest > version) {
                    return Arc::new(object);
                }
                if object.meta().resource_version == state.objects.get(&key).and_then(|o| o.meta().resource_version.clone()) {
                    return Arc::new(object); // A write that changed nothing.
                }
                state.pending.insert(key.clone(), version);
                state.put(key, object)
            }
            // The source has passed this version: what it shows is as new, or newer.
            _ => Arc::new(object),
        }
    }

    /// This process has deleted the object of this UID, and the API has said that it is gone.
    pub(crate) fn removed(&self, key: &Key, uid: &str) {
        let mut state = self.state.lock();
        if let Some(object) = state.objects.get(key).filter(|o| o.meta().uid.as_deref() == Some(uid)).cloned() {
            state.objects.remove(key);
            state.pending.remove(key);
            state.gone.insert(uid.to_owned());
            state.tell(key.clone(), Change::Deleted(object));
        }
    }
}

impl<K: Resource> State<K> {
    fn passed(&mut self, version: u64) {
        if version > self.progress {
            self.progress = version;
            if !self.pending.is_empty() {
                self.pending.retain(|_, written| *written > version);
            }
        }
    }

    fn put(&mut self, key: Key, object: K) -> Arc<K> {
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old
            && old.meta().uid == new.meta().uid
            && old.meta().resource_version == new.meta().resource_version
        {
            return new; // The source confirms what we wrote.
        }
        self.tell(key, Change::Applied { old, new: new.clone() });
        new
    }

    fn tell(&mut self, key: Key, change: Change<K>) {
        self.followers.retain(|follower| match follower.upgrade() {
            Some(follower) => {
                follower.push(key.clone(), change.clone());
                true
            }
            None => false,
        });
    }
}

/// The changes that one follower has not taken yet: at most one per key, so it is bounded by the number of objects.
pub(crate) struct Follower<K> {
    pending: Mutex<Waiting<K>>,
    wake: Notify,
}

struct Waiting<K> {
    order: VecDeque<Key>,
    changes: HashMap<Key, Change<K>>,
}

impl<K> Follower<K> {
    fn push(&self, key: Key, change: Change<K>) {
        let mut waiting = self.pending.lock();
        let merged = match (waiting.changes.remove(&key), change) {
            (None, change) => {
                waiting.order.push_back(key.clone());
                change
            }
            (Some(Change::Applied { old, .. }), Change::Applied { new, .. }) => Change::Applied { old, new },
            (Some(Change::Deleted(old)), Change::Applied { new, .. }) => Change::Applied { old: Some(old), new },
            (Some(_), Change::Deleted(last)) => Change::Deleted(last),
        };
        waiting.changes.insert(key, merged);
        drop(waiting);
        self.wake.notify_one();
    }

    fn pop(&self) -> Option<Change<K>> {
        let mut waiting = self.pending.lock();
        let key = waiting.order.pop_front()?;
        waiting.changes.remove(&key)
    }

    pub(crate) async fn next(&self) -> Change<K> {
        loop {
            if let Some(change) = self.pop() {
                return change;
            }
            self.wake.notified().await;
        }
    }

    pub(crate) fn try_next(&self) -> Option<Change<K>> {
        self.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn shown(store: &Store<ConfigMap>) -> String {
        let show = |o: &Arc<ConfigMap>| {
            format!(
                "{}/{}@{}",
                o.metadata.name.as_deref().unwrap_or(""),
                o.metadata.uid.as_deref().unwrap_or(""),
                o.metadata.resource_version.as_deref().unwrap_or("")
            )
        };
        store.list().iter().map(show).collect::<Vec<_>>().join(" ")
    }

    fn told(follower: &Follower<ConfigMap>) -> String {
        let version = |o: &Arc<ConfigMap>| o.metadata.resource_version.clone().unwrap_or_default();
        let mut lines = Vec::new();
        while let Some(change) = follower.try_next() {
            lines.push(match change {
                Change::Applied { old, new } => format!("{}->{}", old.as_ref().map_or("-".into(), version), version(&new)),
                Change::Deleted(last) => format!("x{}", version(&last)),
            });
        }
        lines.join(" ")
    }

    #[test]
    fn own_create_is_shown_until_the_source_has_passed_it() {
        let store = Store::new();
        store.replace(vec![object("a", "1", 3)], "5");
        store.wrote(object("b", "2", 9));
        assert_eq!(shown(&store), "a/1@3 b/2@9");
        store.replace(vec![object("a", "1", 3)], "7"); // A list from before our write.
        assert_eq!(shown(&store), "a/1@3 b/2@9");
        store.progress("9"); // The source has passed it; a list without it now means that it is gone.
        store.replace(vec![object("a", "1", 3)], "10");
        assert_eq!(shown(&store), "a/1@3");
    }

    #[test]
    fn older_events_do_not_undo_an_own_write() {
        let store = Store::new();
        store.replace(vec![object("a", "1", 3)], "5");
        store.wrote(object("a", "1", 9));
        store.apply(object("a", "1", 7));
        assert_eq!(shown(&store), "a/1@9");
        store.apply(object("a", "1", 9));
        store.apply(object("a", "1", 11));
        assert_eq!(shown(&store), "a/1@11");
        store.wrote(object("a", "1", 10)); // An answer that arrives after the event that follows it.
        assert_eq!(shown(&store), "a/1@11");
    }

    #[test]
    fn own_delete_is_shown_and_late_events_do_not_revive() {
        let store = Store::new();
        store.replace(vec![object("a", "1", 3)], "5");
        store.removed(&Key::new("ns", "a"), "1");
        store.apply(object("a", "1", 6));
        assert_eq!(shown(&store), "");
        store.replace(vec![object("a", "1", 6)], "6");
        assert_eq!(shown(&store), "");
        store.delete(object("a", "1", 8));
        store.apply(object("a", "2", 9));
        assert_eq!(shown(&store), "a/2@9");
    }

    #[test]
    fn a_source_that_goes_back_in_time_is_right() {
        let store = Store::new();
        store.replace(vec![object("a", "1", 90)], "100");
        store.wrote(object("b", "2", 120));
        store.replace(vec![object("a", "1", 30)], "40");
        assert_eq!(shown(&store), "a/1@30");
        store.apply(object("a", "1", 41));
        assert_eq!(shown(&store), "a/1@41");
    }

    #[test]
    fn a_slow_follower_gets_the_last_state_once() {
        let store = Store::new();
        store.replace(vec![object("a", "1", 3)], "5");
        let follower = store.subscribe();
        assert_eq!(told(&follower), "-->3");
        store.apply(object("a", "1", 6));
        store.apply(object("a", "1", 7));
        store.apply(object("b", "2", 8));
        store.delete(object("b", "2", 9));
        assert_eq!(told(&follower), "3->7 x9");
        store.replace(vec![object("c", "3", 10)], "11");
        assert_eq!(told(&follower), "-->10 x7");
        store.replace(vec![object("c", "3", 10)], "12");
        assert_eq!(told(&follower), "");
    }
}
