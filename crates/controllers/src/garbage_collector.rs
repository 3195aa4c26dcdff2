//! The garbage collector: an object goes when the last of its owners has gone.
//!
//! ```text
//! every kind's metadata --(informers, found by discovery)--> graph (owners, dependents) --> what to look at
//! look: the object and its owners as the API has them now --decide--> leave, drop references, delete, orphan, finish
//! ```
//!
//! Background: the owner is gone, its dependents follow. Foreground: the owner waits (finalizer `foregroundDeletion`) until
//! no dependent that blocks it is left. Orphan: the owner waits (finalizer `orphan`) until no dependent names it any more.
//!
//! What must stay true: the graph only says where to look. Nothing is deleted before the API itself has confirmed that
//! every owner is gone (or waits for this very deletion), and only in the version that was looked at. An owner that can't be
//! found out about, because its kind is not served just now, keeps its dependents.

mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Recorder};
use client::queue::Queue;
use client::{Change, ErrorExt, Informers, Key};
use futures::FutureExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::graph::{Graph, Object, Place};
use crate::Context;
use crate::common::discovery::{self, Discovered, Metadata, Resource};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// How often new kinds are looked for, where no definition tells of them.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// How long after such news: others come with them.
const NEWS_PAUSE: Duration = Duration::from_secs(1);
/// Whose objects tell of new kinds.
const DEFINING: [&str; 2] = ["customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"];
/// How long the first lists of all kinds may take before looking begins without the rest.
const FIRST_LISTS_MAX: Duration = Duration::from_secs(30);
/// How long until an object is looked at again whose owner's kind is not served.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_secs(60);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(GarbageCollector {
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder_for("garbage-collector-controller"),
        known: Arc::default(),
    })
}

/// What all parts share.
#[derive(Default)]
struct Known {
    graph: Mutex<Graph>,
    discovered: RwLock<Arc<Discovered>>,
    /// Objects that name an owner of a kind that is not known, or was not.
    unsettled: Mutex<HashSet<String>>,
    /// Kinds may have come or gone.
    news: Notify,
}

struct GarbageCollector {
    client: kube::Client,
    informers: Informers,
    recorder: Recorder,
    known: Arc<Known>,
}

#[async_trait]
impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        let (client, informers, known) = (self.client.clone(), self.informers.clone(), self.known.clone());
        inputs.fed(move |queue| feed(client, informers, known, queue).boxed());
    }

    fn workers(&self) -> usize {
        20
    }

    /// The key is a UID.
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let uid = &key.name;
        let Some(place) = self.known.graph.lock().place_of(uid) else { return Ok(Next::Done) };
        let live = discovery::get(&self.client, &place.resource, &place.namespace, &place.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_ref() == Some(uid)) else {
            // The informer will say so too, and wake the dependents; they ask for themselves.
            return Ok(Next::Done);
        };
        if live.metadata.deletion_timestamp.is_some() {
            let has = |finalizer: &str| live.metadata.finalizers.iter().flatten().any(|each| each == finalizer);
            return match () {
                () if has(ORPHAN) => self.orphan(uid, &place, &live).await,
                () if has(FOREGROUND) => self.finish_foreground(uid, &place, &live).await,
                () => Ok(Next::Done),
            };
        }
        self.look(uid, &place, &live).await
    }
}

impl GarbageCollector {
    /// Looks whether the object still has an owner.
    async fn look(&self, uid: &str, place: &Place, live: &Metadata) -> Result<Next, Error> {
        let references = live.metadata.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(Next::Done);
        }
        let mut owners = Vec::new();
        for reference in &references {
            let state = self.state_of(reference, place).await?;
            if state.is_none_or(|state| state == OwnerState::Gone) && self.is_elsewhere(reference, place) {
                let owner = format!(
                    "[{}/{}, namespace: {}, name: {}, uid: {}]",
                    reference.api_version, reference.kind, place.namespace, reference.name, reference.uid
                );
                let message = format!("ownerRef {owner} does not exist in namespace \"{}\"", place.namespace);
                self.recorder.event(&place.reference(uid), EventType::Warning, "OwnerRefInvalidNamespace", "", message);
            }
            match state {
                Some(state) => owners.push((reference.uid.clone(), state)),
                None => {
                    self.known.unsettled.lock().insert(uid.to_owned());
                    return Ok(Next::After(UNKNOWN_KIND_PAUSE));
                }
            }
        }
        let has_dependents = self.known.graph.lock().has_dependents(uid);
        match decide(&owners, live, has_dependents) {
            Act::Leave => Ok(Next::Done),
            Act::Drop(uids) => {
                let left: Vec<_> = references.into_iter().filter(|reference| !uids.contains(&reference.uid)).collect();
                self.set_owners(place, live, &left).await
            }
            Act::Delete(policy) => {
                let waiting_below = self.known.graph.lock().has_waiting_dependent(uid);
                if policy == PropagationPolicy::Foreground && waiting_below && references.iter().any(|each| each.block_owner_deletion == Some(true)) {
                    // A circle of owners that all wait: this one stops holding up its owners.
                    let freed = references.into_iter().map(|each| OwnerReference { block_owner_deletion: Some(false), ..each });
                    return self
                        .set_owners(place, live, &freed.collect::<Vec<_>>())
                        .await
                        .and(Err(Error::NotYet("references freed; looking again".to_owned())));
                }
                info!(object = %place, ?policy, "deleting: no owner is left");
                let preconditions = Preconditions { uid: live.metadata.uid.clone(), resource_version: live.metadata.resource_version.clone() };
                let params = DeleteParams { propagation_policy: Some(policy), preconditions: Some(preconditions), ..DeleteParams::default() };
                match discovery::delete(&self.client, &place.resource, &place.namespace, &place.name, &params).await {
                    Err(error) if !error.is_not_found() => Err(error.into()),
                    _ => Ok(Next::Done),
                }
            }
        }
    }

    /// Whether an owner is in another namespace than what names it, so that it is none.
    fn is_elsewhere(&self, reference: &OwnerReference, dependent: &Place) -> bool {
        let known = self.known.graph.lock().place_of(&reference.uid);
        match known {
            Some(owner) => owner.resource.namespaced && owner.namespace != dependent.namespace,
            None => {
                let discovered = self.known.discovered.read().clone();
                dependent.namespace.is_empty()
                    && discovered.of_kind(&reference.api_version, &reference.kind).is_some_and(|resource| resource.namespaced)
            }
        }
    }

    /// What has become of an owner; `None` if that can't be found out now.
    async fn state_of(&self, reference: &OwnerReference, dependent: &Place) -> Result<Option<OwnerState>, Error> {
        let discovered = self.known.discovered.read().clone();
        let Some(resource) = discovered.of_kind(&reference.api_version, &reference.kind) else {
            debug!(object = %dependent, owner = reference.kind, "the owner's kind is not served");
            return Ok(None);
        };
        if resource.namespaced && dependent.namespace.is_empty() {
            warn!(object = %dependent, owner = reference.kind, "an object of the whole cluster can't be owned by one of a namespace");
            return Ok(None);
        }
        let owner = discovery::get(&self.client, resource, &dependent.namespace, &reference.name).await?;
        let Some(owner) = owner.filter(|owner| owner.metadata.uid.as_ref() == Some(&reference.uid)) else {
            return Ok(Some(OwnerState::Gone));
        };
        let waits = owner.metadata.deletion_timestamp.is_some() && owner.metadata.finalizers.iter().flatten().any(|each| each == FOREGROUND);
        Ok(Some(if waits { OwnerState::Waiting } else { OwnerState::There }))
    }

    /// The owner goes when no dependent that blocks it is left.
    async fn finish_foreground(&self, uid: &str, place: &Place, live: &Metadata) -> Result<Next, Error> {
        let blocking = self.known.graph.lock().blocking_dependents(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(place, live, FOREGROUND).await;
        }
        // Each was made dirty with its owner; their going wakes the owner again.
        Ok(Next::Done)
    }

    /// Lets the dependents go, then the owner.
    async fn orphan(&self, uid: &str, place: &Place, live: &Metadata) -> Result<Next, Error> {
        let dependents = self.known.graph.lock().dependents(uid);
        for dependent in dependents {
            let found = discovery::get(&self.client, &dependent.resource, &dependent.namespace, &dependent.name).await?;
            let Some(found) = found else { continue };
            let references = found.metadata.owner_references.clone().unwrap_or_default();
            if references.iter().any(|reference| reference.uid == *uid) {
                let left: Vec<_> = references.into_iter().filter(|reference| reference.uid != *uid).collect();
                self.set_owners(&dependent, &found, &left).await?;
            }
        }
        self.remove_finalizer(place, live, ORPHAN).await
    }

    async fn set_owners(&self, place: &Place, live: &Metadata, owners: &[OwnerReference]) -> Result<Next, Error> {
        self.patch(place, live, json!({"ownerReferences": owners})).await
    }

    async fn remove_finalizer(&self, place: &Place, live: &Metadata, finalizer: &str) -> Result<Next, Error> {
        let left: Vec<_> = live.metadata.finalizers.iter().flatten().filter(|each| *each != finalizer).collect();
        self.patch(place, live, json!({"finalizers": left})).await
    }

    /// Patches the metadata, only in the version that was looked at.
    async fn patch(&self, place: &Place, live: &Metadata, mut metadata: serde_json::Value) -> Result<Next, Error> {
        metadata["uid"] = json!(live.metadata.uid);
        metadata["resourceVersion"] = json!(live.metadata.resource_version);
        match discovery::patch(&self.client, &place.resource, &place.namespace, &place.name, json!({"metadata": metadata})).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Next::Done),
        }
    }
}

/// What has become of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerState {
    There,
    Gone,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
}

/// What to do about an object.
#[derive(Debug, PartialEq)]
enum Act {
    Leave,
    /// Remove the references to these UIDs.
    Drop(Vec<String>),
    Delete(PropagationPolicy),
}

fn decide(owners: &[(String, OwnerState)], object: &Metadata, has_dependents: bool) -> Act {
    let is = |state: OwnerState| move |owner: &&(String, OwnerState)| owner.1 == state;
    if owners.iter().any(|(_, state)| *state == OwnerState::There) {
        let gone: Vec<_> = owners.iter().filter(|owner| !is(OwnerState::There)(owner)).map(|(uid, _)| uid.clone()).collect();
        return if gone.is_empty() { Act::Leave } else { Act::Drop(gone) };
    }
    if has_dependents && owners.iter().any(|(_, state)| *state == OwnerState::Waiting) {
        return Act::Delete(PropagationPolicy::Foreground);
    }
    let has = |finalizer: &str| object.metadata.finalizers.iter().flatten().any(|each| each == finalizer);
    Act::Delete(match () {
        () if has(ORPHAN) => PropagationPolicy::Orphan,
        () if has(FOREGROUND) => PropagationPolicy::Foreground,
        () => PropagationPolicy::Background,
    })
}

/// Whether the collector can and should do its work on the resource. Events are too many and own nothing.
fn is_collected(resource: &Resource) -> bool {
    resource.can(&["get", "list", "watch", "patch", "delete"]) && resource.api.plural != "events"
}

/// Keeps the graph up and says what to look at, over all kinds that come and go. Never ends.
async fn feed(client: kube::Client, informers: Informers, known: Arc<Known>, queue: Queue) {
    let mut followers: HashMap<String, (Arc<Resource>, tokio::task::AbortHandle)> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        match discovery::discover(&client).await {
            Ok(found) => {
                let wanted: Vec<_> = found.resources.iter().filter(|resource| is_collected(resource)).cloned().collect();
                // A group that could not be asked just now keeps its followers.
                if found.failed.is_empty() {
                    followers.retain(|_, (resource, follower)| {
                        let stays = wanted.contains(resource);
                        if !stays {
                            follower.abort();
                            informers.forget_metadata(&resource.api);
                            known.graph.lock().forget(resource);
                        }
                        stays
                    });
                    *known.discovered.write() = Arc::new(found);
                } else {
                    debug!(failed = ?found.failed, "not everything could be asked");
                    if known.discovered.read().resources.is_empty() {
                        *known.discovered.write() = Arc::new(found);
                    }
                }
                let fresh: Vec<_> = wanted.into_iter().filter(|resource| !followers.contains_key(&resource.group_resource())).collect();
                let opened: Vec<_> = fresh.iter().map(|resource| informers.metadata(&resource.api)).collect();
                let all_synced = futures::future::join_all(opened.iter().map(|informer| informer.synced()));
                if timeout(FIRST_LISTS_MAX, all_synced).await.is_err() {
                    warn!("some kinds could not be listed in time; their objects are learned of later");
                }
                // All owners first, so that none is asked for only because its kind came later.
                for (resource, informer) in fresh.iter().zip(&opened) {
                    let mut graph = known.graph.lock();
                    for object in informer.list() {
                        graph.set(Object::of(resource, &object.metadata));
                    }
                }
                if !fresh.is_empty() {
                    known.unsettled.lock().drain().for_each(|uid| queue.add(Key::new("", uid)));
                }
                for (resource, informer) in fresh.into_iter().zip(opened) {
                    let follower = tasks.spawn(follow(resource.clone(), informer.subscribe(), known.clone(), queue.clone()));
                    followers.insert(resource.group_resource(), (resource, follower));
                }
                while tasks.try_join_next().is_some() {}
            }
            Err(error) => debug!(error = %error.short(), "discovery failed"),
        }
        if timeout(DISCOVERY_PERIOD, known.news.notified()).await.is_ok() {
            sleep(NEWS_PAUSE).await;
        }
    }
}

/// Follows one kind.
async fn follow(resource: Arc<Resource>, mut changes: client::Changes<Metadata>, known: Arc<Known>, queue: Queue) {
    let is_news = DEFINING.contains(&resource.group_resource().as_str());
    while let Some(change) = changes.next().await {
        if is_news {
            known.news.notify_one();
        }
        let dirty = {
            let mut graph = known.graph.lock();
            match &change {
                Change::Deleted(object) => graph.remove(object.metadata.uid.as_deref().unwrap_or_default()),
                Change::Applied { old, new } => {
                    let replaced = old.as_ref().filter(|old| old.metadata.uid != new.metadata.uid);
                    let mut dirty = replaced.map(|old| graph.remove(old.metadata.uid.as_deref().unwrap_or_default())).unwrap_or_default();
                    dirty.extend(graph.set(Object::of(&resource, &new.metadata)));
                    dirty
                }
            }
        };
        for uid in dirty {
            queue.add(Key::new("", uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(owners: &[OwnerState], finalizers: &[&str], has_dependents: bool, expected: Act) {
        let owners: Vec<_> = owners.iter().enumerate().map(|(number, state)| (number.to_string(), *state)).collect();
        let object: Metadata = serde_json::from_value(json!({"metadata": {"finalizers": finalizers}})).expect("metadata");
        assert_eq!(decide(&owners, &object, has_dependents), expected, "{owners:?} {finalizers:?}");
    }

    #[test]
    fn an_object_stays_while_one_owner_does() {
        use OwnerState::{Gone, There, Waiting};
        check(&[There], &[], true, Act::Leave);
        check(&[There, Gone, Waiting], &[], true, Act::Drop(vec!["1".to_owned(), "2".to_owned()]));
        check(&[Gone], &[], true, Act::Delete(PropagationPolicy::Background));
        check(&[Gone, Waiting], &[], true, Act::Delete(PropagationPolicy::Foreground));
        check(&[Waiting], &[], false, Act::Delete(PropagationPolicy::Background));
        check(&[Gone], &[ORPHAN], false, Act::Delete(PropagationPolicy::Orphan));
        check(&[Gone], &[FOREGROUND], false, Act::Delete(PropagationPolicy::Foreground));
    }
}
