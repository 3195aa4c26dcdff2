//! Keeps a [`Store`] equal to what a source says: list once, then watch, for ever.
//!
//! ```text
//! list --ok--> watch from its version --ended, silent, unreachable--> watch again from the newest version seen
//!  ^                                  --the server refuses that version--> list
//! ```
//!
//! Goals: no change is missed; a dead connection is noticed (a healthy watch carries bookmarks, so silence is a sign);
//! an outage costs one cheap resumption, not a relist of everything; nothing is removed because something failed.
//!
//! A durable informer has a [`Keeper`]: every change is on disk before the store shows it, and the version with which a
//! start begins is the disk's.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use kube::Resource;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::checkpoint::{Keeper, Kept};
use crate::error::ErrorExt;
use crate::informer::Selection;
use crate::json::Json;
use crate::limits;
use crate::store::Store;
use crate::typed::Api;

/// Where the objects of a store come from.
#[async_trait]
pub(crate) trait Source<K>: Send + Sync {
    /// What to call it in the log.
    fn name(&self) -> &str;
    /// All objects, and the version at which that was so.
    async fn list(&self) -> Result<(Vec<K>, String), kube::Error>;
    /// What has happened after this version.
    async fn watch(&self, from: &str) -> Result<BoxStream<'static, Result<WatchEvent<K>, kube::Error>>, kube::Error>;
}

/// The API as a source.
pub(crate) struct ApiSource<K> {
    api: Api<K>,
    path: String,
    metadata_only: bool,
    selection: Selection,
}

impl<K: Json> ApiSource<K> {
    pub(crate) fn new(client: kube::Client, path: String, metadata_only: bool, selection: Selection) -> Self {
        ApiSource { api: Api::at(client, path.clone()), path, metadata_only, selection }
    }
}

#[async_trait]
impl<K> Source<K> for ApiSource<K>
where
    K: Resource + Clone + Debug + Json + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.path
    }

    async fn list(&self) -> Result<(Vec<K>, String), kube::Error> {
        let mut params = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            limit: Some(limits::LIST_PAGE_OBJECTS),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            match self.api.list(&params, self.metadata_only).await {
                Ok((page, said)) => {
                    objects.extend(page);
                    match said.continue_.filter(|token| !token.is_empty()) {
                        Some(token) => params.continue_token = Some(token),
                        None => return Ok((objects, said.resource_version.unwrap_or_default())),
                    }
                }
                Err(error) if error.is_expired() && params.continue_token.is_some() => {
                    // The pages' version was compacted away under us: take it all in one.
                    objects.clear();
                    params.continue_token = None;
                    params.limit = None;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn watch(&self, from: &str) -> Result<BoxStream<'static, Result<WatchEvent<K>, kube::Error>>, kube::Error> {
        let longest = limits::WATCH_TIMEOUT.as_secs() as u32;
        let params = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(rand::random_range(longest - longest / 5..=longest)),
            bookmarks: true,
            send_initial_events: false,
        };
        Ok(self.api.watch(&params, from, self.metadata_only).await?.boxed())
    }
}

/// How a watch ended.
#[derive(Debug)]
enum End {
    /// It ran its time, or the server closed it: resume.
    Closed,
    /// Nothing came for too long: resume on a new connection.
    Silent,
    /// It broke: resume after a pause.
    Broken(kube::Error),
    /// The server does not serve this version (any more): list, after a pause.
    Refused(kube::Error),
}

/// Keeps the store equal to the source until stopped. `from` is the version that the store holds already, if it can be
/// resumed from.
pub(crate) async fn reflect<K, S>(source: S, store: Arc<Store<K>>, keeper: Option<Keeper<K>>, from: Option<String>, stop: CancellationToken)
where
    K: Resource + Clone + Debug + Json + Send + Sync + 'static,
    S: Source<K>,
{
    tokio::select! {
        () = stop.cancelled() => {}
        () = reflect_for_ever(&source, &store, keeper.as_ref(), from) => {}
    }
}

async fn reflect_for_ever<K, S>(source: &S, store: &Store<K>, keeper: Option<&Keeper<K>>, mut version: Option<String>)
where
    K: Resource + Clone + Debug + Json + Send + Sync + 'static,
    S: Source<K>,
{
    let mut pause = Pause::default();
    loop {
        let Some(from) = &mut version else {
            match source.list().await {
                Ok((mut objects, listed)) => {
                    for object in &mut objects {
                        slim(object);
                    }
                    debug!(source = source.name(), objects = objects.len(), version = listed, "listed");
                    if let Some(keeper) = keeper {
                        keeper.replaced(&objects, &store.missing_from(&objects), &listed).await;
                    }
                    store.replace(objects, &listed);
                    store.heard(true);
                    version = Some(listed);
                    pause.reset();
                }
                Err(error) => {
                    store.heard(false);
                    pause.complain(source.name(), "list", &error);
                    pause.take().await;
                }
            }
            continue;
        };
        let (end, received) = follow(source, store, keeper, from).await;
        if received {
            pause.reset();
        }
        if matches!(end, End::Broken(_) | End::Silent) {
            store.heard(false);
        }
        match end {
            End::Closed if received => {}
            End::Closed => pause.take().await,
            End::Silent => warn!(source = source.name(), silent_s = limits::WATCH_SILENCE.as_secs(), "the watch has gone quiet; resuming it"),
            End::Broken(error) => {
                pause.complain(source.name(), "watch", &error);
                pause.take().await;
            }
            End::Refused(error) => {
                debug!(source = source.name(), %error, "the watch's version is refused; listing again");
                version = None;
                pause.take().await;
            }
        }
    }
}

/// Watches once, keeping `version` at the newest seen. The flag says whether anything came.
async fn follow<K, S>(source: &S, store: &Store<K>, keeper: Option<&Keeper<K>>, version: &mut String) -> (End, bool)
where
    K: Resource + Clone + Debug + Json + Send + Sync + 'static,
    S: Source<K>,
{
    let mut received = false;
    let mut events = match source.watch(version).await {
        Ok(events) => events,
        Err(error) if error.is_answer() => return (End::Refused(error), received),
        Err(error) => return (End::Broken(error), received),
    };
    store.heard(true);
    loop {
        let Ok(mut next) = timeout(limits::WATCH_SILENCE, events.next()).await else { return (End::Silent, received) };
        // What is there together goes to the disk together.
        let mut batch = Vec::new();
        let end = loop {
            match next {
                None => break Some(End::Closed),
                Some(Err(kube::Error::SerdeError(error))) => {
                    // Resuming would bring the same event again for ever; one object that cannot be read must not hide all others.
                    error!(source = source.name(), %error, "an event cannot be read and is skipped");
                    received = true;
                }
                Some(Err(error)) => break Some(End::Broken(error)),
                Some(Ok(WatchEvent::Error(status))) => {
                    received = true;
                    break Some(End::Refused(kube::Error::Api(status)));
                }
                Some(Ok(event)) => {
                    received = true;
                    batch.push(event);
                }
            }
            if batch.len() >= limits::WATCH_BATCH_MAX {
                break None;
            }
            match events.next().now_or_never() {
                Some(ready) => next = ready,
                None => break None,
            }
        };
        take_in(batch, store, keeper, version).await;
        if let Some(end) = end {
            return (end, received);
        }
    }
}

/// Puts a batch of events on disk, then into the store.
async fn take_in<K>(mut batch: Vec<WatchEvent<K>>, store: &Store<K>, keeper: Option<&Keeper<K>>, version: &mut String)
where
    K: Resource + Clone + Debug + Json + Send + Sync + 'static,
{
    let before = version.clone();
    let mut kept = Vec::new();
    for event in &mut batch {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                slim(object);
                note(version, object.meta().resource_version.as_deref());
                kept.push(Kept::Applied(&*object));
            }
            WatchEvent::Deleted(object) => {
                slim(object);
                note(version, object.meta().resource_version.as_deref());
                kept.push(Kept::Deleted(&*object));
            }
            WatchEvent::Bookmark(bookmark) => note(version, Some(&bookmark.metadata.resource_version)),
            WatchEvent::Error(_) => {}
        }
    }
    if let Some(keeper) = keeper {
        if !kept.is_empty() {
            keeper.changed(&kept, version).await;
        } else if *version != before {
            keeper.progress(version);
        }
    }
    for event in batch {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => store.apply(object),
            WatchEvent::Deleted(object) => store.delete(object),
            WatchEvent::Bookmark(bookmark) => store.progress(&bookmark.metadata.resource_version),
            WatchEvent::Error(_) => {}
        }
    }
}

fn note(version: &mut String, seen: Option<&str>) {
    if let Some(seen) = seen.filter(|seen| !seen.is_empty() && *seen != version.as_str()) {
        seen.clone_into(version);
    }
}

/// Drops what nobody reads.
fn slim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Doubling, jittered pauses.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn reset(&mut self) {
        self.failures = 0;
    }

    fn complain(&self, source: &str, verb: &str, error: &kube::Error) {
        // The first failure and every 32nd: an outage must not fill the log.
        if self.failures.is_multiple_of(32) {
            warn!(source, verb, failures = self.failures, error = %error.short(), "cannot reach the objects; those in memory stay");
        }
    }

    async fn take(&mut self) {
        let pause = pause_after(self.failures).mul_f64(rand::random_range(0.5..=1.0));
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(pause).await;
    }
}

fn pause_after(failures: u32) -> Duration {
    limits::WATCH_RETRY_INITIAL.saturating_mul(1 << failures.min(16)).min(limits::WATCH_RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::informer::{Change, Key};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use kube::core::Status;
    use parking_lot::Mutex;
    use std::collections::VecDeque;

    enum Step {
        List(Vec<ConfigMap>, &'static str),
        ListFails,
        /// The version expected, and the events; then the end (true) or silence (false).
        Watch(&'static str, Vec<WatchEvent<ConfigMap>>, bool),
        WatchRefused(u16),
    }

    struct Script(Mutex<VecDeque<Step>>);

    fn failure(code: u16) -> kube::Error {
        let mut status = Status::failure("no", "Expired");
        status.code = code;
        kube::Error::Api(Box::new(status))
    }

    #[async_trait]
    impl Source<ConfigMap> for Script {
        fn name(&self) -> &str {
            "script"
        }
        async fn list(&self) -> Result<(Vec<ConfigMap>, String), kube::Error> {
            let step = self.0.lock().pop_front();
            match step {
                Some(Step::List(objects, version)) => Ok((objects, version.into())),
                Some(Step::ListFails) => Err(crate::typed::timed_out("list")),
                Some(_) => panic!("listed, though a watch was expected"),
                None => std::future::pending().await,
            }
        }
        async fn watch(&self, from: &str) -> Result<BoxStream<'static, Result<WatchEvent<ConfigMap>, kube::Error>>, kube::Error> {
            let step = self.0.lock().pop_front();
            match step {
                Some(Step::Watch(expected, events, ends)) => {
                    assert_eq!(from, expected);
                    let events = futures::stream::iter(events.into_iter().map(Ok));
                    Ok(if ends { events.boxed() } else { events.chain(futures::stream::pending()).boxed() })
                }
                Some(Step::WatchRefused(code)) => Err(failure(code)),
                Some(_) => panic!("watched, though a list was expected"),
                None => std::future::pending().await,
            }
        }
    }

    fn object(name: &str, version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(name.into()),
                resource_version: Some(version.into()),
                managed_fields: Some(Vec::new()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// Runs the script to its end and gives what a follower was told.
    async fn told(script: Vec<Step>, changes: usize) -> Vec<String> {
        let store = Arc::new(Store::new());
        let follower = store.subscribe();
        let stop = CancellationToken::new();
        let task = tokio::spawn(reflect(Script(Mutex::new(script.into())), store.clone(), None, None, stop.clone()));
        let mut lines = Vec::new();
        for _ in 0..changes {
            match timeout(Duration::from_secs(3600), follower.next()).await {
                Ok(Change::Applied { new, .. }) => {
                    lines.push(format!("{} {}", Key::of(&*new), new.metadata.resource_version.as_deref().unwrap_or("")))
                }
                Ok(Change::Deleted(last)) => lines.push(format!("{} gone", Key::of(&*last))),
                Err(_) => lines.push("nothing".into()),
            }
        }
        stop.cancel();
        task.await.unwrap();
        lines
    }

    #[tokio::test(start_paused = true)]
    async fn lists_then_watches_and_resumes_from_the_newest_version() {
        let lines = told(
            vec![
                Step::ListFails,
                Step::List(vec![object("a", "3")], "5"),
                Step::Watch("5", vec![WatchEvent::Added(object("b", "6"))], true),
                Step::Watch("6", vec![], false), // Silent: resumed, not listed.
                Step::Watch("6", vec![WatchEvent::Deleted(object("a", "9"))], true),
                Step::WatchRefused(410),
                Step::List(vec![object("c", "10")], "11"),
            ],
            5,
        )
        .await;
        assert_eq!(lines, ["ns/a 3", "ns/b 6", "ns/a gone", "ns/c 10", "ns/b gone"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_source_empties_nothing() {
        let mut script = vec![Step::List(vec![object("a", "3")], "5"), Step::WatchRefused(410)];
        script.extend((0..40).map(|_| Step::ListFails));
        script.push(Step::List(vec![object("a", "3")], "7"));
        script.push(Step::Watch("7", vec![WatchEvent::Modified(object("a", "8"))], false));
        let lines = told(script, 2).await;
        assert_eq!(lines, ["ns/a 3", "ns/a 8"]);
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<u128> = (0..7).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
