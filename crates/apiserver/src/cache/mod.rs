//! The watch cache: every object in memory, ordered, versioned and watched; fed by one watch of the store.
//!
//! All reads are answered from here. [`Cache::reached`] says up to which revision the store's changes have been taken in;
//! a read that must be consistent asks the store for its revision and waits until the cache has reached it.
//!
//! If the store's watch breaks so that changes may have been missed, everything is loaded anew and every running watch is
//! ended: clients then start again, and are told 410 if they ask for what was missed.
//! While the store cannot be reached at all, reads go on from what is here. One task asks the store all the time whether it
//! answers; as long as it does not, nobody else waits for it: reads are answered at once, writes refused at once.
//! Not so while a snapshot is brought back into it: what is here is then of a past that is over, and nothing is answered from it
//! until everything has been loaded anew.

mod entry;
mod labels;
mod queue;
mod resource;

pub use entry::{Encoded, Entry, encode, encode_stored, encode_with_books};
pub use queue::{Receiver, Wakes};
pub use resource::{Change, ChangeKind, Draft, From, Message, ResourceCache, Selection, Snapshot, TooOld, Watch, frame};

use crate::{Error, keys};
use api::{Catalogue, Kind, Status, Value, limits};
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use std::{collections::HashMap, sync::Arc, time::Duration};
use store::{Revision, Store, Watched};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Objects per page when everything is loaded.
const LOAD_PAGE_OBJECTS: usize = 1000;
/// How many changes before the newest are read back at start, so that watches resume over a restart.
const RESUME_REVISIONS: u64 = 2000;
/// Pauses between attempts to reach the store, growing from the first to the last.
const RETRY_MS: (u64, u64) = (50, 2000);
/// The longest pause while a snapshot is brought back: nothing is answered until it is seen to be done.
const RESTORE_LOOK_MS: u64 = 200;
/// How long the store may take to say how far it is, before reads are answered without its word.
const STORE_WAIT: Duration = Duration::from_secs(3);
/// How often the store is asked whether it answers, while it does and while it does not.
const STORE_PROBE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(300));

/// The cache of everything.
pub struct Cache {
    store: Arc<dyn Store>,
    catalogue: ArcSwap<Catalogue>,
    resources: RwLock<HashMap<String, Arc<ResourceCache>>>,
    reached: watch::Sender<Revision>,
    /// What is being written by this server, by key.
    drafts: Mutex<HashMap<String, (Bytes, Draft)>>,
    /// Why the store does not answer; `None` if it does.
    lost: ArcSwapOption<String>,
    /// Whether the store is being restored, or has been and was not loaded anew yet.
    past: watch::Sender<bool>,
}

impl Cache {
    /// Loads everything and starts the feed, which runs until `shutdown`.
    pub async fn start(store: Arc<dyn Store>, catalogue: Arc<Catalogue>, shutdown: CancellationToken) -> Result<Arc<Cache>, Error> {
        let cache = Arc::new(Cache {
            store,
            catalogue: ArcSwap::new(catalogue),
            resources: RwLock::default(),
            reached: watch::Sender::new(Revision(0)),
            drafts: Mutex::default(),
            lost: ArcSwapOption::empty(),
            past: watch::Sender::new(false),
        });
        let newest = cache.store.revision().await?;
        let from = Revision(newest.0.saturating_sub(RESUME_REVISIONS).max(1));
        let loaded = match cache.load(Some(from)).await {
            // The past may be sealed with a key that is gone, when all that is now is sealed with another.
            Err(store::Error::Compacted { .. } | store::Error::Undecryptable(_)) => cache.load(None).await?,
            other => other?,
        };
        tokio::spawn(feed(cache.clone(), loaded, shutdown.clone()));
        tokio::spawn(probe(cache.clone(), shutdown));
        cache.reach(newest).await.map_err(|status| Error::Configuration(status.to_string()))?;
        Ok(cache)
    }

    /// The cache of a resource; empty for one that has no objects.
    pub fn resource(&self, group: &str, resource: &str) -> Arc<ResourceCache> {
        let prefix = keys::prefix(group, resource);
        if let Some(found) = self.resources.read().get(&prefix) {
            return found.clone();
        }
        let kind = self.catalogue.load().resource(group, resource).cloned();
        let mut resources = self.resources.write();
        // Nothing of it has been stored since the load, or it would be there.
        let loaded = *self.reached.borrow();
        resources.entry(prefix).or_insert_with(|| Arc::new(ResourceCache::new(kind, loaded))).clone()
    }

    /// Puts another catalogue in the place of the one before. Objects of kinds whose record is another one are read anew.
    pub fn set_catalogue(&self, catalogue: Arc<Catalogue>) {
        self.catalogue.store(catalogue.clone());
        let resources: Vec<_> = self.resources.read().iter().map(|(prefix, cache)| (prefix.clone(), cache.clone())).collect();
        for (prefix, cache) in resources {
            let any = format!("{prefix}x");
            let Some((group, resource, _)) = keys::parse(&any) else { continue };
            let kind = catalogue.resource(group, resource).cloned();
            let same = match (&kind, &cache.kind()) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (None, None) => true,
                _ => false,
            };
            if !same {
                cache.set_kind(kind);
            }
        }
    }

    /// The cache of the objects that a kind shows.
    pub fn of(&self, kind: &Kind) -> Arc<ResourceCache> {
        let (group, resource) = keys::stored(kind);
        self.resource(group, resource)
    }

    /// Everything there is, by (group, resource), for metrics.
    pub fn resources(&self) -> Vec<(String, Arc<ResourceCache>)> {
        let mut all: Vec<_> = self
            .resources
            .read()
            .iter()
            .map(|(prefix, cache)| (prefix.trim_start_matches(keys::ROOT).trim_end_matches('/').to_string(), cache.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The revision up to which every change of the store is in the cache.
    pub fn reached(&self) -> Revision {
        *self.reached.borrow()
    }

    /// Waits until the cache has reached a revision; 504 if it does not in time.
    pub async fn reach(&self, wanted: Revision) -> Result<(), Status> {
        if self.reached() >= wanted {
            return Ok(());
        }
        let mut reached = self.reached.subscribe();
        let wait = reached.wait_for(|reached| *reached >= wanted);
        match tokio::time::timeout(Duration::from_secs(limits::CACHE_FRESH_WAIT_S), wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::too_large_resource_version(wanted.0, self.reached().0, 1)),
        }
    }

    /// Waits until the cache shows everything that was acknowledged before now. A store that cannot be reached does not
    /// stop reads: they go on from what is here.
    pub async fn fresh(&self) -> Result<(), Status> {
        match self.newest().await {
            Ok(newest) => self.reach(newest).await,
            Err(store::Error::Unavailable(_)) if !self.store.is_being_restored() => Ok(()),
            Err(error @ store::Error::Unavailable(_)) => Err(crate::write::store_failure(error)),
            Err(error) => Err(Status::internal(error)),
        }
    }

    /// The same for what must not go on from an old state: a store that cannot be reached is a 503.
    pub async fn certain(&self) -> Result<(), Status> {
        let newest = self.newest().await.map_err(crate::write::store_failure)?;
        self.reach(newest).await
    }

    /// Waits while a snapshot is brought back into the store, until what is here is what was brought back; 503 if that takes long.
    pub async fn not_past(&self) -> Result<(), Status> {
        if !*self.past.borrow() {
            return Ok(());
        }
        let mut past = self.past.subscribe();
        let over = past.wait_for(|past| !past);
        match tokio::time::timeout(Duration::from_secs(limits::CACHE_FRESH_WAIT_S), over).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(crate::write::store_failure(store::Error::Unavailable("a snapshot is being restored; it goes on when that is done".into()))),
        }
    }

    /// Why the store does not answer now, if it does not: then what is read here may be old.
    pub fn lost(&self) -> Option<Arc<String>> {
        self.lost.load_full()
    }

    /// How far the store is. Bounded, and without waiting while it is known not to answer.
    async fn newest(&self) -> Result<Revision, store::Error> {
        match self.lost() {
            Some(why) => Err(store::Error::Unavailable(why.to_string())),
            None => self.ask().await,
        }
    }

    async fn ask(&self) -> Result<Revision, store::Error> {
        let answer = tokio::time::timeout(STORE_WAIT, self.store.revision()).await;
        let answer = answer.unwrap_or_else(|_| Err(store::Error::Unavailable(format!("it has not answered for {} s", STORE_WAIT.as_secs()))));
        match &answer {
            Err(store::Error::Unavailable(why)) => {
                if self.lost.swap(Some(Arc::new(why.clone()))).is_none() {
                    tracing::error!(why, "the store does not answer: reads go on from what is known here, writes are refused");
                }
            }
            _ => {
                if self.lost.swap(None).is_some() {
                    tracing::info!("the store answers again");
                }
            }
        }
        answer
    }

    /// All objects that a kind shows, and the version they show.
    pub fn snapshot_of(&self, kind: &Kind) -> Snapshot {
        let reached = self.reached();
        let mut snapshot = self.of(kind).snapshot();
        snapshot.revision = snapshot.revision.max(reached);
        snapshot
    }

    async fn load(&self, at: Option<Revision>) -> Result<Revision, store::Error> {
        let mut entries: HashMap<String, Vec<Arc<Entry>>> = HashMap::new();
        let (mut after, mut at): (Option<String>, Option<Revision>) = (None, at);
        let revision = loop {
            let page = self.store.list(keys::ROOT, after.as_deref(), LOAD_PAGE_OBJECTS, at).await?;
            at = Some(page.revision);
            after = page.items.last().map(|item| item.key.clone());
            for item in page.items {
                let Some((group, resource, place)) = keys::parse(&item.key) else { continue };
                let cache = self.resource(group, resource);
                match Entry::read(place, &item.value, item.modified, cache.kind().as_deref()) {
                    Some(entry) => entries.entry(keys::prefix(group, resource)).or_default().push(Arc::new(entry)),
                    None => tracing::error!(key = item.key, "a stored value is not an object; it is left out"),
                }
            }
            if !page.more {
                break page.revision;
            }
        };
        let resources: Vec<_> = self.resources.read().iter().map(|(prefix, cache)| (prefix.clone(), cache.clone())).collect();
        for (prefix, cache) in resources {
            cache.replace(entries.remove(&prefix).unwrap_or_default(), revision);
        }
        self.reached.send_replace(revision);
        if self.past.send_replace(false) {
            // It has just answered; the next probe need not be waited for.
            self.lost.store(None);
        }
        Ok(revision)
    }

    /// Keeps an object that is about to be written until the guard is dropped, so that it need not be read when it comes back.
    pub fn draft(self: &Arc<Self>, kind: &Kind, key: &str, stored: &Encoded, object: &Value) -> Option<DraftGuard> {
        let (_, _, place) = keys::parse(key)?;
        let draft = self.of(kind).draft(place, stored, object)?;
        self.drafts.lock().insert(key.to_string(), (stored.bytes.clone(), draft));
        Some(DraftGuard { cache: self.clone(), key: key.to_string(), stored: stored.bytes.clone() })
    }

    /// The draft of what has come back, if it is the one.
    fn drafted(&self, key: &str, value: &Bytes) -> Option<Draft> {
        let mut drafts = self.drafts.lock();
        if drafts.get(key).is_none_or(|(stored, _)| stored != value) {
            return None;
        }
        drafts.remove(key).map(|(_, draft)| draft)
    }

    fn take(&self, watched: Watched) {
        let reached = match watched {
            Watched::Progress(revision) => revision,
            Watched::Events(events) => {
                // Woken when all of it is in the queues.
                let mut wakes = Wakes::default();
                for event in &events {
                    if let Some((group, resource, place)) = keys::parse(&event.key) {
                        let draft = event.value.as_ref().and_then(|value| self.drafted(&event.key, value));
                        self.resource(group, resource).apply(place, event.revision, event.value.as_ref(), draft, &mut wakes);
                    }
                }
                let Some(last) = events.last() else { return };
                last.revision
            }
        };
        self.reached.send_if_modified(|current| {
            let newer = reached > *current;
            *current = (*current).max(reached);
            newer
        });
    }
}

/// Takes a draft back when its write is over, whatever became of it.
pub struct DraftGuard {
    cache: Arc<Cache>,
    key: String,
    stored: Bytes,
}

impl Drop for DraftGuard {
    fn drop(&mut self) {
        self.cache.drafted(&self.key, &self.stored);
    }
}

/// Asks the store for ever whether it answers.
async fn probe(cache: Arc<Cache>, shutdown: CancellationToken) {
    loop {
        // What it answers is noted where it is asked.
        let _ = cache.ask().await;
        let pause = if cache.lost().is_none() { STORE_PROBE.0 } else { STORE_PROBE.1 };
        tokio::select! { () = shutdown.cancelled() => return, () = tokio::time::sleep(pause) => {} }
    }
}

/// Follows the store until `shutdown`. Nobody is told of anything after that, so it ends all watches.
async fn feed(cache: Arc<Cache>, loaded: Revision, shutdown: CancellationToken) {
    follow_on(&cache, loaded, shutdown).await;
    cache.resources().into_iter().for_each(|(_, resource)| resource.end_watches());
}

async fn follow_on(cache: &Cache, loaded: Revision, shutdown: CancellationToken) {
    let mut from = loaded;
    let mut pause_ms = RETRY_MS.0;
    loop {
        let error = tokio::select! {
            () = shutdown.cancelled() => return,
            error = follow(cache, &mut from, &mut pause_ms) => error,
        };
        tracing::warn!(%error, from = from.0, "the watch of the store ended");
        if cache.store.is_being_restored() {
            cache.past.send_replace(true);
        }
        if *cache.past.borrow() {
            pause_ms = pause_ms.min(RESTORE_LOOK_MS);
        }
        // What came before the failure is in the cache, so a watch from there misses nothing unless that past is gone.
        if matches!(error, store::Error::Compacted { .. } | store::Error::Future { .. }) {
            match cache.load(None).await {
                Ok(loaded) => from = loaded,
                Err(error) => tracing::warn!(%error, "the cache could not be loaded anew"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(pause_ms)) => pause_ms = (pause_ms * 2).min(RETRY_MS.1),
        }
    }
}

async fn follow(cache: &Cache, from: &mut Revision, pause_ms: &mut u64) -> store::Error {
    let mut watch = match cache.store.watch(keys::ROOT, *from).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    loop {
        match watch.next().await {
            Some(Ok(watched)) => {
                cache.take(watched);
                cache.past.send_if_modified(std::mem::take);
                *from = (*from).max(cache.reached());
                *pause_ms = RETRY_MS.0;
            }
            Some(Err(error)) => return error,
            None => return store::Error::Unavailable("the watch ended".into()),
        }
    }
}
