//! All objects of one resource: a persistent ordered map, the recent changes, and who watches them.
//!
//! What must stay true: a change is put into the map, into the history and into every watcher's queue under one lock, so
//! that a watch that starts from a snapshot or from a version sees every later change exactly once.

use super::{
    entry::{Encoded, Entry, Unversioned},
    labels::Labels,
    queue::{self, Wakes},
};
use crate::keys;
use api::{
    Kind, Value, limits,
    selector::{FieldSelector, LabelSelector},
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rpds::RedBlackTreeMapSync;
use std::{
    collections::VecDeque,
    ops::Bound,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use store::Revision;

/// Bytes of past changes kept per resource; older ones go, and a watch from before them answers 410.
pub const HISTORY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a version that a `continue` token names can be read on.
pub const PAGES_KEPT: Duration = Duration::from_secs(300);
/// Versions kept for `continue` tokens per resource; the oldest goes first.
pub const PAGES_MAX: usize = 64;
/// Bytes of states that are over which such versions may hold: so many, or a quarter of all that is stored of the resource.
/// A version that would hold more goes, and its token is answered with 410 and one to go on with.
const PAGES_BYTES_MAX: usize = 16 * 1024 * 1024;

type Map = RedBlackTreeMapSync<Arc<str>, Arc<Entry>>;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    /// As a watch event's `type`.
    pub fn name(self) -> &'static str {
        match self {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        }
    }
}

/// One change, shared by history and watchers.
#[derive(Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// The new state; for a deletion the last state under the deletion's version.
    pub entry: Arc<Entry>,
    /// The state before a modification.
    pub previous: Option<Arc<Entry>>,
    /// The version of the last state before a deletion.
    was: Revision,
    frame: OnceLock<Bytes>,
}

impl Change {
    fn new(entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> Change {
        let kind = if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        Change { kind, entry, previous, was: Revision(0), frame: OnceLock::new() }
    }
    /// The end of an object. Its last state is kept once, under the new version.
    fn deletion(last: &Entry, revision: Revision) -> Change {
        Change { kind: ChangeKind::Deleted, entry: Arc::new(last.at(revision)), previous: None, was: last.revision, frame: OnceLock::new() }
    }
    /// The state that the change has ended.
    fn before(&self) -> Option<Arc<Entry>> {
        match self.kind {
            ChangeKind::Deleted => Some(Arc::new(self.entry.at(self.was))),
            _ => self.previous.clone(),
        }
    }
    /// The change as a line of a JSON watch, made once and shared by all who watch.
    pub fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| frame(self.kind.name(), &self.entry.bytes)).clone()
    }
}

/// A line of a JSON watch.
pub fn frame(kind: &str, object: &[u8]) -> Bytes {
    [br#"{"type":""#, kind.as_bytes(), br#"","object":"#, object, b"}\n"].concat().into()
}

/// Which objects a list or watch is about.
#[derive(Clone, Default)]
pub struct Selection {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// The kind as the reader sees it; where that is stored as another kind, or has versions with fields of their own, its fields are read
    /// from the object.
    pub kind: Option<Arc<Kind>>,
    /// Whether the kind's own fields are only known once the object has been converted: then they select nothing here.
    pub fields_later: bool,
}

impl Selection {
    pub fn matches(&self, entry: &Entry) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| entry.namespace() == namespace)
            && self.name.as_deref().is_none_or(|name| entry.name() == name)
            && self.labels.matches(|key| entry.label(key))
            && (self.fields.is_everything() || self.matches_fields(entry))
    }
    fn matches_fields(&self, entry: &Entry) -> bool {
        let Some(kind) = &self.kind else { return self.fields.matches(|path| own_field(entry, path)) };
        if self.fields_later {
            let own = |field: &str| matches!(field, "metadata.name" | "metadata.namespace");
            let known = FieldSelector { terms: self.fields.terms.iter().filter(|(field, ..)| own(field)).cloned().collect() };
            return known.matches(|path| own_field(entry, path));
        }
        if kind.stored_as.is_none() && kind.custom.is_none() {
            let position = |path: &str| kind.selectable_fields.iter().position(|field| field == path);
            return self.fields.matches(|path| own_field(entry, path).or_else(|| entry.fields.get(position(path)?).map(|text| &**text)));
        }
        if !self.fields.terms.iter().all(|(field, equal, value)| !equal || own_field(entry, field).is_some() || may_hold(&entry.bytes, value)) {
            return false;
        }
        let object = entry.value();
        let values: Vec<(&str, String)> =
            self.fields.terms.iter().map(|(field, _, _)| (field.as_str(), kind.hooks.selectable_value(&object, field))).collect();
        self.fields
            .matches(|path| own_field(entry, path).or_else(|| values.iter().find(|(field, _)| *field == path).map(|(_, value)| value.as_str())))
    }
    /// Whether every object of the resource is meant.
    pub fn is_everything(&self) -> bool {
        self.namespace.is_none() && self.name.is_none() && self.labels.is_everything() && self.fields.is_everything()
    }
    /// How a change looks to someone who sees only these objects.
    fn see(&self, change: &Change) -> Option<ChangeKind> {
        if self.is_everything() {
            return Some(change.kind);
        }
        // A deletion shows the last state as it was.
        let before = if change.kind == ChangeKind::Deleted { Some(&*change.entry) } else { change.previous.as_deref() };
        let before = before.is_some_and(|entry| self.matches(entry));
        let after = change.kind != ChangeKind::Deleted && self.matches(&change.entry);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
        }
    }
}

/// Whether an object's bytes can have a field with this value: to look for the text is cheaper than to read the object.
fn may_hold(bytes: &[u8], value: &str) -> bool {
    let is_written_as_it_is = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
    !is_written_as_it_is || bytes.windows(value.len()).any(|window| window == value.as_bytes())
}

/// The fields that every object can be selected by.
fn own_field<'a>(entry: &'a Entry, path: &str) -> Option<&'a str> {
    match path {
        "metadata.name" => Some(entry.name()),
        "metadata.namespace" => Some(entry.namespace()),
        _ => None,
    }
}

/// What comes out of a running watch.
#[derive(Clone, Debug)]
pub enum Message {
    /// An object that was there when the watch began.
    Initial(Arc<Entry>),
    /// A change, as this watcher sees it.
    Change(ChangeKind, Arc<Change>),
}

impl Message {
    pub fn kind(&self) -> ChangeKind {
        match self {
            Message::Initial(_) => ChangeKind::Added,
            Message::Change(kind, _) => *kind,
        }
    }
    /// The object to show. One that left the selection is shown as it last was in it, under the new version.
    pub fn entry(&self) -> Arc<Entry> {
        match self {
            Message::Initial(entry) => entry.clone(),
            Message::Change(ChangeKind::Deleted, change) if change.kind != ChangeKind::Deleted => match &change.previous {
                Some(previous) => Arc::new(previous.at(change.entry.revision)),
                None => change.entry.clone(),
            },
            Message::Change(_, change) => change.entry.clone(),
        }
    }
    /// The line of a JSON watch.
    pub fn frame(&self) -> Bytes {
        match self {
            Message::Change(kind, change) if *kind == change.kind => change.frame(),
            other => frame(other.kind().name(), &other.entry().bytes),
        }
    }
}

/// The receiving end of a watch. Ends when the watcher was too slow or the cache was rebuilt.
pub struct Watch {
    /// What comes before the live changes.
    pub past: VecDeque<Message>,
    pub live: queue::Receiver,
    /// The version that `past` leads up to.
    pub revision: Revision,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With all objects there are.
    Now,
    /// After a version.
    After(Revision),
}

/// The version asked for is older than what is kept.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: Revision,
}

struct Watcher {
    selection: Selection,
    after: Revision,
    queue: queue::Sender,
}

#[derive(Default)]
struct Inner {
    map: Map,
    labels: Labels,
    /// The revision of the last change of this resource.
    changed: Revision,
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    /// Every change after this revision is in the history.
    complete_after: Revision,
    watchers: Vec<Watcher>,
    /// Versions that pages are read from.
    pages: VecDeque<Kept>,
    /// Bytes of all objects, and of all states of them that were ever over.
    bytes: usize,
    over_bytes: usize,
}

/// A version that is kept for pages.
struct Kept {
    since: Instant,
    /// What was over then.
    over_bytes: usize,
    snapshot: Snapshot,
}

impl Inner {
    /// Takes note of one state that takes another's place, and forgets the versions that keep too much that is over.
    fn weigh(&mut self, before: Option<&Entry>, after: Option<&Entry>, now: Instant) {
        let length = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.bytes.len());
        self.bytes = (self.bytes + length(after)).saturating_sub(length(before));
        self.over_bytes += length(before);
        let most = PAGES_BYTES_MAX.max(self.bytes / 4);
        while self.pages.front().is_some_and(|kept| self.over_bytes - kept.over_bytes > most || now.duration_since(kept.since) >= PAGES_KEPT) {
            self.pages.pop_front();
        }
    }
}

impl Inner {
    /// The objects among which a selection's are, if a label leads to them.
    fn labelled<'a>(&'a self, selection: &Selection) -> Option<impl Iterator<Item = &'a Arc<Entry>> + use<'a>> {
        let places = self.labels.candidates(&selection.labels)?;
        Some(places.iter().filter_map(|place| self.map.get(place)))
    }
}

/// A version of all objects of a resource. Cheap to keep.
#[derive(Clone, Default)]
pub struct Snapshot {
    map: Map,
    pub revision: Revision,
}

impl Snapshot {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.map.get(keys::place(namespace, name).as_str()).cloned()
    }
    pub fn len(&self) -> usize {
        self.map.size()
    }
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
    /// All objects, of one namespace if given, in key order.
    pub fn entries<'a>(&'a self, namespace: Option<&str>) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + Send + 'a> {
        self.entries_from(namespace, None)
    }
    /// The same, from a place on (that itself included).
    pub fn entries_from<'a>(&'a self, namespace: Option<&str>, start: Option<&str>) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + Send + 'a> {
        // `0` is the byte after `/`.
        let bounds = namespace.map(|namespace| (format!("{namespace}/"), format!("{namespace}0")));
        let low: Arc<str> = match (&bounds, start) {
            (None, None) => return Box::new(self.map.values()),
            (Some((low, _)), Some(start)) => start.max(low.as_str()).into(),
            (Some((low, _)), None) => low.as_str().into(),
            (None, Some(start)) => start.into(),
        };
        let high = match bounds {
            Some((_, high)) if *low >= *high => return Box::new(std::iter::empty()),
            Some((_, high)) => Bound::Excluded(Arc::from(high)),
            None => Bound::Unbounded,
        };
        Box::new(self.map.range::<Arc<str>, _>((Bound::Included(low), high)).map(|(_, entry)| entry))
    }
}

/// An object on its way to the store, as its writer knows it: what comes back need not be read again.
pub struct Draft {
    pub(super) kind: Option<Arc<Kind>>,
    pub(super) entry: Unversioned,
}

fn is_same(a: &Option<Arc<Kind>>, b: &Option<Arc<Kind>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// The cache of one resource.
pub struct ResourceCache {
    /// The kind whose objects these are; `None` for what is stored but not served (yet).
    kind: RwLock<Option<Arc<Kind>>>,
    inner: Mutex<Inner>,
}

impl ResourceCache {
    pub(super) fn new(kind: Option<Arc<Kind>>, loaded: Revision) -> ResourceCache {
        let inner = Inner { changed: loaded, complete_after: loaded, ..Inner::default() };
        ResourceCache { kind: RwLock::new(kind), inner: Mutex::new(inner) }
    }

    /// The kind whose objects these are; `None` for what is stored but not served (yet).
    pub fn kind(&self) -> Option<Arc<Kind>> {
        self.kind.read().clone()
    }

    /// Puts another record in the place of the kind: every object is read anew under it, and who watches has to begin anew.
    pub(super) fn set_kind(&self, kind: Option<Arc<Kind>>) {
        let mut inner = self.inner.lock();
        *self.kind.write() = kind.clone();
        let mut map = Map::new_sync();
        for entry in inner.map.values() {
            let entry = entry.under(kind.as_deref()).map_or_else(|| entry.clone(), Arc::new);
            map.insert_mut(entry.place.clone(), entry);
        }
        let changed = inner.changed;
        let labels = Labels::of(map.values());
        let bytes = map.values().map(|entry| entry.bytes.len()).sum();
        *inner = Inner { map, labels, bytes, changed, complete_after: changed, ..Inner::default() };
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.inner.lock().map.get(keys::place(namespace, name).as_str()).cloned()
    }

    /// What will be stored, read by its writer. `None` for what is shown in another form than it is stored in.
    pub(super) fn draft(&self, place: &str, stored: &Encoded, object: &Value) -> Option<Draft> {
        let kind = self.kind();
        if kind.as_ref().is_some_and(|kind| kind.hooks.revives()) {
            return None;
        }
        let entry = Unversioned::new(place, stored, object, kind.as_deref())?;
        Some(Draft { kind, entry })
    }

    /// All objects as they are now. `revision` is that of the last change of this resource; see [`super::Cache::snapshot_of`].
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.inner.lock();
        Snapshot { map: inner.map.clone(), revision: inner.changed }
    }

    /// The objects of a selection as they are now, without a look at all the others, and the version they show: `None` if it
    /// names no label by which they could be found.
    pub fn labelled(&self, selection: &Selection) -> Option<(Vec<Arc<Entry>>, Revision)> {
        let inner = self.inner.lock();
        let entries = inner.labelled(selection)?.filter(|entry| selection.matches(entry)).cloned().collect();
        Some((entries, inner.changed))
    }

    /// The revision of the last change of this resource.
    pub fn changed(&self) -> Revision {
        self.inner.lock().changed
    }

    pub fn len(&self) -> usize {
        self.inner.lock().map.size()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether there is no object in a namespace.
    pub fn is_without(&self, namespace: &str) -> bool {
        let inner = self.inner.lock();
        inner.map.is_empty() || Snapshot { map: inner.map.clone(), revision: inner.changed }.entries(Some(namespace)).next().is_none()
    }
    /// Running watches.
    pub fn watchers(&self) -> usize {
        self.inner.lock().watchers.len()
    }

    /// Keeps a version for the pages that will follow.
    pub fn keep(&self, snapshot: &Snapshot, now: Instant) {
        let mut inner = self.inner.lock();
        inner.pages.retain(|kept| now.duration_since(kept.since) < PAGES_KEPT && kept.snapshot.revision != snapshot.revision);
        if inner.pages.len() == PAGES_MAX {
            inner.pages.pop_front();
        }
        let kept = Kept { since: now, over_bytes: inner.over_bytes, snapshot: snapshot.clone() };
        inner.pages.push_back(kept);
    }

    /// The version that a `continue` token names, if it is still kept.
    pub fn kept(&self, revision: Revision, now: Instant) -> Option<Snapshot> {
        let inner = self.inner.lock();
        let kept = inner.pages.iter().find(|kept| kept.snapshot.revision == revision && now.duration_since(kept.since) < PAGES_KEPT);
        kept.map(|kept| kept.snapshot.clone())
    }

    /// All objects as they were at a past version, if the history reaches back there.
    pub fn past(&self, revision: Revision) -> Option<Snapshot> {
        let inner = self.inner.lock();
        if revision < inner.complete_after {
            return None;
        }
        let mut map = inner.map.clone();
        for change in inner.history.iter().rev().take_while(|change| change.entry.revision > revision) {
            match change.before() {
                Some(before) => map.insert_mut(before.place.clone(), before),
                None => {
                    map.remove_mut(&change.entry.place);
                }
            }
        }
        Some(Snapshot { map, revision })
    }

    /// Starts a watch. `reached` is the version that the whole cache has surely reached.
    pub fn watch(&self, selection: Selection, from: From, reached: Revision) -> Result<Watch, TooOld> {
        let (queue, live) = queue::queue(limits::WATCH_BUFFER_EVENTS_MAX);
        let mut inner = self.inner.lock();
        let revision = reached.max(inner.changed);
        let (past, after) = match from {
            From::Now => {
                let initial = |entry: &Arc<Entry>| selection.matches(entry).then(|| Message::Initial(entry.clone()));
                let found: VecDeque<Message> = match inner.labelled(&selection) {
                    Some(entries) => entries.filter_map(initial).collect(),
                    None => {
                        let snapshot = Snapshot { map: inner.map.clone(), revision };
                        snapshot.entries(selection.namespace.as_deref()).filter_map(initial).collect()
                    }
                };
                (found, Revision(0))
            }
            From::After(after) if after < inner.complete_after => return Err(TooOld { oldest: inner.complete_after }),
            From::After(after) => {
                let begin = inner.history.partition_point(|change| change.entry.revision <= after);
                let found = inner.history.range(begin..).filter_map(|change| Some(Message::Change(selection.see(change)?, change.clone()))).collect();
                (found, after)
            }
        };
        inner.watchers.retain(|watcher| !watcher.queue.is_closed());
        inner.watchers.push(Watcher { selection, after, queue });
        Ok(Watch { past, live, revision })
    }

    /// Runs `then` between two changes: whatever it is given is a version up to which every watcher's queue is complete.
    pub fn between_changes<T>(&self, then: impl FnOnce(Revision) -> T) -> T {
        let inner = self.inner.lock();
        then(inner.changed)
    }

    /// Ends all running watches.
    pub(super) fn end_watches(&self) {
        let ended = std::mem::take(&mut self.inner.lock().watchers);
        drop(ended);
    }

    /// Takes in one change. `stored` is the new state, `None` for a deletion; `draft` is the same as its writer has read it.
    /// Who watches has it in their queue then, and is to be woken.
    pub(super) fn apply(&self, place: &str, revision: Revision, stored: Option<&Bytes>, draft: Option<Draft>, wakes: &mut Wakes) {
        let kind = self.kind();
        let read = stored.map(|stored| match draft {
            Some(draft) if is_same(&draft.kind, &kind) => Some(draft.entry.at(revision)),
            _ => Entry::read(place, stored, revision, kind.as_deref()),
        });
        let mut inner = self.inner.lock();
        let current = self.kind();
        let moved = !is_same(&kind, &current);
        let read = if moved { stored.map(|stored| Entry::read(place, stored, revision, current.as_deref())) } else { read };
        if revision <= inner.changed && !inner.history.is_empty() {
            return;
        }
        inner.changed = revision;
        let previous = inner.map.get(place).cloned();
        let change = match (read, previous) {
            (Some(Some(mut entry)), previous) => {
                if let Some(previous) = &previous {
                    entry.share(previous);
                }
                let entry = Arc::new(entry);
                inner.labels.change(previous.as_deref(), Some(&entry));
                inner.map.insert_mut(entry.place.clone(), entry.clone());
                Change::new(entry, previous)
            }
            (Some(None), _) => {
                tracing::error!(place, %revision, "a stored value is not an object; it is left out");
                return;
            }
            (None, Some(previous)) => {
                inner.map.remove_mut(place);
                inner.labels.change(Some(&previous), None);
                Change::deletion(&previous, revision)
            }
            (None, None) => return,
        };
        let change = Arc::new(change);
        match change.kind {
            ChangeKind::Deleted => inner.weigh(Some(&change.entry), None, Instant::now()),
            _ => inner.weigh(change.previous.as_deref(), Some(&change.entry), Instant::now()),
        }
        inner.history_bytes += change.entry.bytes.len();
        inner.history.push_back(change.clone());
        while inner.history.len() > limits::WATCH_HISTORY_EVENTS_MAX || inner.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = inner.history.pop_front() else { break };
            inner.history_bytes -= oldest.entry.bytes.len();
            inner.complete_after = oldest.entry.revision;
        }
        inner.watchers.retain(|watcher| {
            if watcher.after >= revision {
                return true;
            }
            match watcher.selection.see(&change) {
                Some(kind) => watcher.queue.put(Message::Change(kind, change.clone()), wakes),
                None => !watcher.queue.is_closed(),
            }
        });
    }

    /// Starts over: everything is replaced, and who watches has to begin anew.
    pub(super) fn replace(&self, entries: Vec<Arc<Entry>>, revision: Revision) {
        let mut map = Map::new_sync();
        for entry in entries {
            map.insert_mut(entry.place.clone(), entry);
        }
        let labels = Labels::of(map.values());
        let bytes = map.values().map(|entry| entry.bytes.len()).sum();
        let mut inner = self.inner.lock();
        *inner = Inner { map, labels, bytes, changed: revision, complete_after: revision, ..Inner::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::encode_stored;
    use serde_json::json;

    fn stored(name: &str, app: &str) -> Bytes {
        encode_stored(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n", "labels": {"app": app}}})).into()
    }
    fn apply(cache: &ResourceCache, place: &str, revision: Revision, stored: Option<&Bytes>) {
        cache.apply(place, revision, stored, None, &mut Wakes::default());
    }
    /// `a` is made at 11, changed at 12 and deleted at 14; `b` is made at 13.
    fn cache() -> ResourceCache {
        let cache = ResourceCache::new(None, Revision(10));
        apply(&cache, "n/a", Revision(11), Some(&stored("a", "x")));
        apply(&cache, "n/a", Revision(12), Some(&stored("a", "y")));
        apply(&cache, "n/b", Revision(13), Some(&stored("b", "x")));
        apply(&cache, "n/a", Revision(14), None);
        cache
    }
    fn with_label(app: &str) -> Selection {
        Selection { labels: LabelSelector::parse(&format!("app={app}")).unwrap(), ..Selection::default() }
    }
    fn told(messages: impl IntoIterator<Item = Message>) -> Vec<String> {
        let line = |message: Message| format!("{} {} {}", message.kind().name(), message.entry().name(), message.entry().revision);
        messages.into_iter().map(line).collect()
    }

    #[test]
    fn a_watch_from_a_version_sees_every_later_change_once() {
        let cache = cache();
        let mut watch = cache.watch(Selection::default(), From::After(Revision(11)), Revision(14)).ok().unwrap();
        apply(&cache, "n/c", Revision(15), Some(&stored("c", "x")));
        assert_eq!(told(watch.past.drain(..)), ["MODIFIED a 12", "ADDED b 13", "DELETED a 14"]);
        assert_eq!(told(watch.live.take()), ["ADDED c 15"]);
        let mut ahead = cache.watch(Selection::default(), From::After(Revision(16)), Revision(15)).ok().unwrap();
        apply(&cache, "n/c", Revision(16), None);
        apply(&cache, "n/d", Revision(17), Some(&stored("d", "x")));
        assert_eq!(told(std::iter::from_fn(|| ahead.live.take())), ["ADDED d 17"]);
    }

    #[test]
    fn what_enters_and_leaves_a_selection_is_added_and_deleted() {
        let watch = cache().watch(with_label("x"), From::After(Revision(10)), Revision(14)).ok().unwrap();
        assert_eq!(told(watch.past), ["ADDED a 11", "DELETED a 12", "ADDED b 13"]);
        let watch = cache().watch(with_label("y"), From::After(Revision(10)), Revision(14)).ok().unwrap();
        assert_eq!(told(watch.past), ["ADDED a 12", "DELETED a 14"]);
        let watch = cache().watch(with_label("x"), From::Now, Revision(14)).ok().unwrap();
        assert_eq!(told(watch.past), ["ADDED b 13"]);
    }

    #[test]
    fn the_past_is_known_as_far_as_the_history_goes() {
        let cache = cache();
        let names = |revision| {
            cache
                .past(Revision(revision))
                .map(|past| past.entries(Some("n")).map(|entry| format!("{}@{}", entry.name(), entry.revision)).collect::<Vec<_>>())
        };
        assert_eq!(names(10), Some(vec![]));
        assert_eq!(names(12), Some(vec!["a@12".to_string()]));
        assert_eq!(names(13), Some(vec!["a@12".to_string(), "b@13".to_string()]));
        assert_eq!(names(14), Some(vec!["b@13".to_string()]));
        assert_eq!(names(9), None);
        let too_old = cache.watch(Selection::default(), From::After(Revision(9)), Revision(14));
        assert_eq!(too_old.err(), Some(TooOld { oldest: Revision(10) }));
    }

    #[test]
    fn versions_for_pages_go_when_they_keep_too_much() {
        let cache = ResourceCache::new(None, Revision(1));
        let large = |fill: &str| -> Bytes {
            encode_stored(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": fill}})).into()
        };
        let (now, fill) = (Instant::now(), "x".repeat(PAGES_BYTES_MAX / 4));
        apply(&cache, "n/a", Revision(2), Some(&large(&fill)));
        cache.keep(&cache.snapshot(), now);
        for i in 3..=5 {
            apply(&cache, "n/a", Revision(i), Some(&large(&fill)));
        }
        assert!(cache.kept(Revision(2), now).is_some());
        apply(&cache, "n/a", Revision(6), Some(&large(&fill)));
        assert!(cache.kept(Revision(2), now).is_none());
        cache.keep(&cache.snapshot(), now);
        assert!(cache.kept(Revision(6), now).is_some() && cache.kept(Revision(6), now + PAGES_KEPT).is_none());
    }

    #[test]
    fn a_slow_watcher_is_dropped_and_the_others_go_on() {
        let cache = ResourceCache::new(None, Revision(1));
        let mut slow = cache.watch(Selection::default(), From::Now, Revision(1)).ok().unwrap();
        for i in 0..=limits::WATCH_BUFFER_EVENTS_MAX as u64 {
            apply(&cache, "n/a", Revision(2 + i), Some(&stored("a", "x")));
        }
        let received = std::iter::from_fn(|| slow.live.take()).count();
        assert_eq!(received, limits::WATCH_BUFFER_EVENTS_MAX);
        assert!(slow.live.is_closed());
        assert_eq!(cache.watchers(), 0);
    }

    #[test]
    fn namespaces_are_ranges_of_the_order_of_keys() {
        let cache = ResourceCache::new(None, Revision(1));
        for (i, place) in ["a-b/x", "a/x", "a/y", "a0/x"].iter().enumerate() {
            apply(&cache, place, Revision(2 + i as u64), Some(&stored("x", "x")));
        }
        let places = |namespace, start| cache.snapshot().entries_from(namespace, start).map(|entry| entry.place.to_string()).collect::<Vec<_>>();
        assert_eq!(places(Some("a"), None), ["a/x", "a/y"]);
        assert_eq!(places(None, Some("a/x\0")), ["a/y", "a0/x"]);
        assert_eq!(places(Some("a"), Some("a/x\0")), ["a/y"]);
        assert_eq!(places(Some("a"), Some("b")), [] as [&str; 0]);
    }
}
