//! Telling the API: statuses of pods, and the last word about a pod that is over.
//!
//! Workers hand in the newest status and go on; it is sent beside them, again and again until it is said or replaced by
//! a newer one. What is not known to be said is on disk too: a pod that was done stays done, and is reported so, though no
//! server was there to be told and the agent was restarted since.
//!
//! What must stay true: only the newest is sent; nothing is sent that the API already holds; a pod is deleted only by its
//! UID, and only after its last status.

use crate::status::OWN_CONDITIONS;
use client::{
    Api, Json,
    checkpoint::{Secrecy, Shelf},
    error::ErrorExt,
};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// Requests under way at once.
const REQUESTS_MAX: usize = 16;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_secs(1);

struct Entry {
    /// The API's newest pod that is known, from the watch or from an answer. None while it does not show the node's (static) one.
    pod: Option<Arc<Pod>>,
    status: Option<PodStatus>,
    delete: bool,
    dirty: bool,
}

/// The reporter. Shared.
pub struct Reporter {
    client: kube::Client,
    entries: Mutex<BTreeMap<String, Entry>>,
    under_way: Mutex<HashSet<String>>,
    wake: Notify,
    /// Statuses on disk, by UID, and those found there that no worker has asked for yet.
    disk: Option<Shelf>,
    found: Mutex<HashMap<String, PodStatus>>,
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The merge patch that turns one status into another; `None` if they are the same. What is no longer there is removed.
pub fn difference(before: &Value, after: &Value) -> Option<Value> {
    let empty = Map::new();
    let (before, after) = (before.as_object().unwrap_or(&empty), after.as_object().unwrap_or(&empty));
    let mut out = Map::new();
    for (key, value) in after {
        if before.get(key) != Some(value) {
            out.insert(key.clone(), value.clone());
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        out.insert(key.clone(), Value::Null);
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

impl Reporter {
    pub fn new(client: kube::Client, checkpoint: Option<&client::Checkpoint>) -> Reporter {
        let disk = checkpoint.map(|checkpoint| checkpoint.shelf("statuses", Secrecy::Open));
        let found = disk.iter().flat_map(Shelf::load_objects::<PodStatus>).collect();
        Reporter { client, entries: Mutex::default(), under_way: Mutex::default(), wake: Notify::new(), disk, found: Mutex::new(found) }
    }

    /// The last status that the agent gave this pod before it was restarted.
    pub fn found(&self, uid: &str) -> Option<PodStatus> {
        self.found.lock().remove(uid)
    }

    /// The newest status of a pod, said or not.
    pub fn newest(&self, uid: &str) -> Option<PodStatus> {
        self.entries.lock().get(uid).and_then(|entry| entry.status.clone())
    }

    /// Whether the agent has given this pod a status, in this life or in one before.
    pub fn has_status(&self, uid: &str) -> bool {
        self.found.lock().contains_key(uid) || self.entries.lock().get(uid).is_some_and(|entry| entry.status.is_some())
    }

    /// Whether the pod has nothing left to run, as far as the node has found out.
    pub fn has_ended(&self, uid: &str) -> bool {
        let has_ended = |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        self.found.lock().get(uid).is_some_and(has_ended)
            || self.entries.lock().get(uid).and_then(|entry| entry.status.as_ref()).is_some_and(has_ended)
    }

    /// How many pods have something that the API has not been told.
    pub fn waiting(&self) -> usize {
        let under_way = self.under_way.lock().clone();
        self.entries.lock().iter().filter(|(uid, entry)| entry.dirty || under_way.contains(*uid)).count()
    }

    /// Forgets what is kept of pods that are not on the node.
    pub fn retain(&self, known: &HashSet<String>) {
        let gone: Vec<String> = self.found.lock().keys().filter(|uid| !known.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.forget(uid));
    }

    /// Takes the newest status of a pod of this UID on the node; `shown` is what the API has of it.
    pub fn report(&self, uid: &str, shown: Option<&Arc<Pod>>, status: PodStatus) {
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid.to_owned()).or_insert_with(|| Entry { pod: shown.cloned(), status: None, delete: false, dirty: false });
        let is_news = |shown: &Pod, known: &Pod| shown.metadata.uid != known.metadata.uid || version(shown) > version(known);
        match (shown, &entry.pod) {
            (Some(shown), Some(known)) if !is_news(shown, known) => {}
            (Some(shown), _) => (entry.pod, entry.dirty) = (Some(shown.clone()), true),
            (None, _) => entry.pod = None,
        }
        if entry.status.as_ref() != Some(&status) {
            if let Some(disk) = &self.disk {
                disk.put_object(uid, &status);
            }
            entry.status = Some(status);
            entry.dirty = true;
        }
        entry.dirty &= entry.pod.is_some();
        if entry.dirty {
            self.wake.notify_one();
        }
    }

    /// The pod is over on this node: take it out of the API once its status is said.
    pub fn delete(&self, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid).or_insert_with(|| Entry { pod: Some(pod.clone()), status: None, delete: false, dirty: false });
        (entry.delete, entry.dirty) = (true, true);
        self.wake.notify_one();
    }

    /// The API no longer has the pod.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
        self.found.lock().remove(uid);
        if let Some(disk) = &self.disk {
            disk.remove(uid);
        }
    }

    /// Sends until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
            }
            let due: Vec<String> = {
                let mut under_way = self.under_way.lock();
                let entries = self.entries.lock();
                let due = entries.iter().filter(|(_, entry)| entry.dirty).map(|(uid, _)| uid.clone());
                due.filter(|uid| under_way.insert(uid.clone())).collect()
            };
            for uid in due {
                let (own, slots) = (self.clone(), slots.clone());
                tokio::spawn(async move {
                    let slot = slots.acquire_owned().await;
                    own.settle(&uid).await;
                    drop(slot);
                    own.under_way.lock().remove(&uid);
                    if own.entries.lock().get(&uid).is_some_and(|entry| entry.dirty) {
                        own.wake.notify_one();
                    }
                });
            }
        }
    }

    async fn settle(&self, uid: &str) {
        let (pod, status, delete) = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(uid) else { return };
            entry.dirty = false;
            let Some(pod) = entry.pod.clone() else { return };
            (pod, entry.status.clone(), entry.delete)
        };
        match self.say(&pod, status, delete).await {
            Ok(answer) => {
                let mut entries = self.entries.lock();
                if let (Some(answer), Some(entry)) = (answer, entries.get_mut(uid))
                    && entry.pod.as_ref().is_some_and(|known| known.metadata.uid == answer.metadata.uid && version(&answer) > version(known))
                {
                    entry.pod = Some(Arc::new(answer));
                }
            }
            Err(error) if error.is_not_found() => self.not_there(uid, &pod),
            Err(error) => {
                tracing::debug!(pod = %crate::spec::PodId::of(&pod), %error, "the pod's status is not said yet");
                if error.is_conflict() {
                    self.refetch(uid, &pod).await;
                } else {
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.dirty = true;
                }
            }
        }
    }

    /// The API does not have the pod any more. If that was a static pod's mirror, the pod itself is still here.
    fn not_there(&self, uid: &str, pod: &Pod) {
        match pod.metadata.uid.as_deref() == Some(uid) {
            true => self.forget(uid),
            false => {
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.pod = None;
                }
            }
        }
    }

    /// The API's pod is newer than ours; what others wrote into its status must be kept.
    async fn refetch(&self, uid: &str, pod: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.clone().unwrap_or_default();
        match tokio::time::timeout(ANSWER_TIMEOUT, api.get(&name)).await {
            Ok(Ok(found)) if found.metadata.uid != pod.metadata.uid => self.not_there(uid, pod),
            Ok(Ok(found)) => {
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.pod = Some(Arc::new(found));
                }
            }
            Ok(Err(error)) if error.is_not_found() => self.not_there(uid, pod),
            _ => tokio::time::sleep(RETRY_AFTER).await,
        }
    }

    async fn say(&self, pod: &Pod, status: Option<PodStatus>, delete: bool) -> Result<Option<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.clone().unwrap_or_default();
        let mut answer = None;
        if let Some(status) = status {
            let held = pod.status.clone().unwrap_or_default();
            let status = keep_foreign(status, &held);
            let before = held.to_tree().map_err(kube::Error::SerdeError)?;
            let after = status.to_tree().map_err(kube::Error::SerdeError)?;
            if let Some(change) = difference(&before, &after) {
                let metadata = json!({ "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version });
                let patch = json!({ "metadata": metadata, "status": change });
                match bounded(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))).await {
                    Ok(said) => answer = Some(said),
                    // The API will never take it: say so once, and do not hold up the end of the pod for it.
                    Err(error) if error.is_invalid() => {
                        tracing::error!(pod = %crate::spec::PodId::of(pod), %error, "the API refuses the pod's status")
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if delete {
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..Default::default() };
            match bounded(api.delete(&name, &params)).await {
                Ok(_) => {}
                // Another pod has the name by now: ours is gone.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }
}

/// Conditions that others own, as the API holds them now, beside ours.
fn keep_foreign(mut status: PodStatus, held: &PodStatus) -> PodStatus {
    let is_own = |type_: &str| type_ == "PodScheduled" || OWN_CONDITIONS.contains(&type_);
    let mut conditions: Vec<_> = status.conditions.take().unwrap_or_default();
    for theirs in held.conditions.iter().flatten().filter(|condition| !is_own(&condition.type_)) {
        match conditions.iter_mut().find(|condition| condition.type_ == theirs.type_) {
            Some(own) => *own = theirs.clone(),
            None => conditions.push(theirs.clone()),
        }
    }
    status.conditions = Some(conditions);
    status
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent() {
        let before = json!({ "phase": "Pending", "message": "x", "podIP": "1" });
        assert_eq!(difference(&before, &before), None);
        assert_eq!(difference(&before, &json!({ "phase": "Running", "podIP": "1" })), Some(json!({ "phase": "Running", "message": null })));
    }
}
