//! What the node has set aside for each of its pods, and what the runtime was told of it: in memory and in the checkpoint.
//!
//! A pod is taken on with what it wants. When its spec changes later, it gets what it then wants as soon as that fits
//! ([`Allocations::review`]); until then it has what it had, also over a restart of the agent and with no server.
//!
//! What must stay true: what is set aside changes here alone, under one lock, so that two pods never get the same room; what
//! follows from a pod's resources on this node follows from [`Allocations::applied`], never from the pod as the API has it.

use crate::{
    resize::{self, Refusal, Room},
    spec::{self, PodId},
};
use client::checkpoint::{Secrecy, Shelf};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// One pod's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Set aside for each container, by name.
    containers: BTreeMap<String, ResourceRequirements>,
    /// Set aside for the pod as a whole, if it says so.
    pod: Option<ResourceRequirements>,
    /// The pod's generation of which that is.
    generation: Option<i64>,
    /// What running containers were given in place, by id; all others have what they were made with.
    told: BTreeMap<String, ResourceRequirements>,
    /// Since when the pod waits for more.
    waiting_since: Option<Timestamp>,
    /// Why it waits. Not kept: it is found out anew.
    #[serde(skip)]
    refusal: Option<Refusal>,
}

impl Record {
    fn of(pod: &Pod) -> Record {
        let spec = spec::spec_of(pod);
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        Record {
            containers: all.map(|container| (container.name.clone(), container.resources.clone().unwrap_or_default())).collect(),
            pod: spec.resources.clone(),
            generation: pod.metadata.generation,
            ..Default::default()
        }
    }

    /// Whether the pod wants nothing else than it has.
    fn suits(&self, pod: &Pod) -> bool {
        let spec = spec::spec_of(pod);
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        resize::differing(self.pod.as_ref(), spec.resources.as_ref()).is_empty()
            && all.all(|container| resize::differing(self.containers.get(&container.name), container.resources.as_ref()).is_empty())
    }

    fn apply(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some(spec) = &mut pod.spec {
            for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
                if let Some(own) = self.containers.get(&container.name) {
                    container.resources = Some(own.clone());
                }
            }
            if self.pod.is_some() {
                spec.resources = self.pod.clone();
            }
        }
        pod
    }
}

/// What a review has come to for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has what it wants now.
    Granted,
    /// It goes on with what it has.
    Refused(Refusal),
}

/// What is known about a pod's resize beside its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub refusal: Option<Refusal>,
    /// The generation of what was set aside.
    pub generation: Option<i64>,
}

/// All pods'. Shared.
pub struct Allocations {
    records: Mutex<BTreeMap<String, Record>>,
    disk: Option<Shelf>,
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn is_active(pod: &Pod) -> bool {
    !pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")))
}

impl Allocations {
    pub fn new(checkpoint: Option<&client::Checkpoint>) -> Allocations {
        let disk = checkpoint.map(|checkpoint| checkpoint.shelf("allocations", Secrecy::Open));
        let records = disk.iter().flat_map(Shelf::load_json::<Record>).collect();
        Allocations { records: Mutex::new(records), disk }
    }

    fn keep(&self, uid: &str, record: &Record) {
        if let Some(disk) = &self.disk {
            disk.put_json(uid, record);
        }
    }

    /// Takes a pod on with what it wants; one that is known keeps what it has.
    pub fn admit(&self, pod: &Pod) {
        let mut records = self.records.lock();
        if !records.contains_key(uid_of(pod)) {
            let record = Record::of(pod);
            self.keep(uid_of(pod), &record);
            records.insert(uid_of(pod).to_owned(), record);
        }
    }

    /// The pod with what was set aside for it.
    pub fn applied(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.records.lock().get(uid_of(pod)) {
            Some(record) if !record.suits(pod) => Arc::new(record.apply(pod)),
            _ => pod.clone(),
        }
    }

    /// How far a pod's resize has come.
    pub fn standing(&self, pod: &Pod) -> Standing {
        let records = self.records.lock();
        let Some(record) = records.get(uid_of(pod)) else { return Standing::default() };
        Standing { refusal: record.refusal.clone().filter(|_| !record.suits(pod)), generation: record.generation }
    }

    /// What a running container was given in place, if it was.
    pub fn told(&self, uid: &str, container_id: &str) -> Option<ResourceRequirements> {
        self.records.lock().get(uid)?.told.get(container_id).cloned()
    }

    /// Notes what a running container was given in place.
    pub fn note_told(&self, uid: &str, container_id: &str, resources: ResourceRequirements) {
        let mut records = self.records.lock();
        if let Some(record) = records.get_mut(uid) {
            record.told.insert(container_id.to_owned(), resources);
            self.keep(uid, record);
        }
    }

    /// Forgets containers that are not there any more.
    pub fn retain_containers(&self, uid: &str, is_there: impl Fn(&str) -> bool) {
        let mut records = self.records.lock();
        let Some(record) = records.get_mut(uid) else { return };
        let before = record.told.len();
        record.told.retain(|id, _| is_there(id));
        if record.told.len() != before {
            self.keep(uid, record);
        }
    }

    /// Gives to those that wait, in their order, what fits. Answers for which pods something has changed.
    pub fn review(&self, pods: &[Arc<Pod>], whole: Room, now: Timestamp) -> Vec<(Arc<Pod>, Outcome)> {
        let mut records = self.records.lock();
        let mut waiting = Vec::new();
        for pod in pods.iter().filter(|pod| is_active(pod) && pod.metadata.deletion_timestamp.is_none()) {
            let Some(record) = records.get_mut(uid_of(pod)) else { continue };
            if record.suits(pod) {
                if record.waiting_since.is_some() || record.generation != pod.metadata.generation {
                    (record.refusal, record.waiting_since) = (None, None);
                    // The same amounts, perhaps in other words: these are the ones to show.
                    *record = Record { told: std::mem::take(&mut record.told), ..Record::of(pod) };
                    self.keep(uid_of(pod), record);
                }
                continue;
            }
            let since = *record.waiting_since.get_or_insert(now);
            let (wanted, given) = (Room::of(pod), Room::of(&record.apply(pod)));
            waiting.push((resize::place(pod, wanted, given, since), pod, wanted, given));
        }
        waiting.sort_by_key(|one| one.0);
        let mut out = Vec::new();
        for (_, pod, wanted, given) in waiting {
            let others = pods.iter().filter(|other| uid_of(other) != uid_of(pod) && is_active(other));
            let given_to = |other: &Arc<Pod>| records.get(uid_of(other)).map_or_else(|| Room::of(other), |record| Room::of(&record.apply(other)));
            let used = others.map(given_to).fold(Room::default(), Room::add);
            let verdict = resize::judge(wanted, given, used, whole);
            let Some(record) = records.get_mut(uid_of(pod)) else { continue };
            match verdict {
                Ok(()) => {
                    *record = Record { told: std::mem::take(&mut record.told), ..Record::of(pod) };
                    out.push((pod.clone(), Outcome::Granted));
                }
                Err(refusal) if record.refusal.as_ref() == Some(&refusal) => continue,
                Err(refusal) => {
                    record.refusal = Some(refusal.clone());
                    out.push((pod.clone(), Outcome::Refused(refusal)));
                }
            }
            tracing::info!(pod = %PodId::of(pod), refusal = ?record.refusal, "a resize was looked at");
            self.keep(uid_of(pod), record);
        }
        out
    }

    pub fn forget(&self, uid: &str) {
        if self.records.lock().remove(uid).is_some()
            && let Some(disk) = &self.disk
        {
            disk.remove(uid);
        }
    }

    /// Forgets what belongs to no pod of the node.
    pub fn retain(&self, known: &HashSet<String>) {
        let gone: Vec<String> = self.records.lock().keys().filter(|uid| !known.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.forget(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        let spec = json!({ "priority": priority, "containers": [{ "name": "a", "resources": { "requests": { "cpu": cpu } } }] });
        let mut pod = spec::testing::pod(spec);
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    fn cpu_of(pod: &Pod) -> i64 {
        Room::of(pod).cpu_milli
    }

    const WHOLE: Room = Room { cpu_milli: 2000, memory: 1 << 30 };

    #[test]
    fn a_pod_has_what_it_had_until_there_is_room_and_the_more_important_comes_first() {
        let all = Allocations::new(None);
        let pods = [pod("low", "500m", 0), pod("high", "500m", 10), pod("other", "800m", 0)];
        pods.iter().for_each(|pod| all.admit(pod));
        let wanted = [pod("low", "1", 0), pod("high", "1", 10), pods[2].clone()];
        let now = Timestamp::from_second(1).unwrap();
        let said = all.review(&wanted, WHOLE, now);
        assert!(said.iter().all(|(_, outcome)| matches!(outcome, Outcome::Refused(Refusal::Deferred(_)))), "{said:?}");
        assert_eq!(said[0].0.metadata.uid.as_deref(), Some("high"), "the more important is looked at first");
        assert_eq!(cpu_of(&all.applied(&wanted[0])), 500);
        assert!(all.review(&wanted, WHOLE, now).is_empty(), "nothing is said twice");
        // The third pod leaves: one of the two fits, and it is the more important one.
        let said = all.review(&wanted[..2], Room { cpu_milli: 1500, ..WHOLE }, now);
        assert_eq!(said[0], (wanted[1].clone(), Outcome::Granted));
        assert_eq!((cpu_of(&all.applied(&wanted[0])), cpu_of(&all.applied(&wanted[1]))), (500, 1000));
        let said = all.review(&wanted[..2], WHOLE, now);
        assert_eq!(said, [(wanted[0].clone(), Outcome::Granted)]);
        assert_eq!(all.standing(&wanted[0]), Standing { refusal: None, generation: Some(1) });
    }

    #[test]
    fn what_was_set_aside_outlives_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (small, large) = (pod("u", "500m", 0), pod("u", "3", 0));
        runtime.block_on(async {
            let checkpoint = client::Checkpoint::open(directory.path(), "node").unwrap();
            let all = Allocations::new(Some(&checkpoint));
            all.admit(&small);
            all.note_told("u", "c1", small.spec.as_ref().unwrap().containers[0].resources.clone().unwrap());
            assert!(all.disk.as_ref().unwrap().written().await);
        });
        runtime.block_on(async {
            let checkpoint = client::Checkpoint::open(directory.path(), "node").unwrap();
            let all = Allocations::new(Some(&checkpoint));
            all.admit(&large);
            assert_eq!(cpu_of(&all.applied(&large)), 500, "a wish is no allocation, though the agent was restarted in between");
            assert!(all.told("u", "c1").is_some());
            let said = all.review(std::slice::from_ref(&large), WHOLE, Timestamp::UNIX_EPOCH);
            let message = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
            assert_eq!(said, [(large.clone(), Outcome::Refused(Refusal::Infeasible(message.into())))]);
            // Taking the wish back ends it.
            assert!(all.review(std::slice::from_ref(&small), WHOLE, Timestamp::UNIX_EPOCH).is_empty());
            assert_eq!(all.standing(&small).refusal, None);
        });
    }
}
