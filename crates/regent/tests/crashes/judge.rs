//! What clients were told, what watchers saw and what is there in the end, against one another. Pure.
//!
//! Tokens are unique, so one names the write that made it. What watchers saw is turned into the store's own events and judged as those are.

use super::etcd::history::{Action, Answer, Operation, linearizable, watched};
use k8s_openapi::api::core::v1::ConfigMap;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use store::{Event, Revision};

/// What all clients share and leave behind.
#[derive(Default)]
pub struct Record {
    pub over: AtomicBool,
    pub next_token: AtomicU64,
    pub unknown: AtomicU64,
    /// The newest revision that a client was told of.
    pub acknowledged: AtomicU64,
    clock: AtomicU64,
    told: parking_lot::Mutex<Told>,
}

#[derive(Default)]
struct Told {
    operations: HashMap<String, Vec<Operation>>,
    /// Every acknowledged write; a deletion's revision is not told.
    acknowledged: Vec<(String, u64, Option<u64>)>,
    newest: HashMap<String, u64>,
    refused: HashSet<u64>,
}

impl Record {
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    pub fn note(&self, name: &str, called: u64, action: Action, answer: Answer) {
        let operation = Operation { called, returned: self.tick(), action, answer };
        self.told.lock().operations.entry(name.into()).or_default().push(operation);
    }

    pub fn acknowledge(&self, name: &str, token: u64, revision: Option<u64>) {
        let mut told = self.told.lock();
        if let Some(revision) = revision {
            self.acknowledged.fetch_max(revision, SeqCst);
            let newest = told.newest.entry(name.into()).or_default();
            *newest = (*newest).max(revision);
        }
        told.acknowledged.push((name.into(), token, revision));
    }

    pub fn refuse(&self, token: u64) {
        self.told.lock().refused.insert(token);
    }

    pub fn newest_of(&self, name: &str) -> Option<u64> {
        self.told.lock().newest.get(name).copied()
    }

    pub fn count(&self) -> u64 {
        self.told.lock().acknowledged.len() as u64
    }

    pub fn refused(&self) -> usize {
        self.told.lock().refused.len()
    }
}

/// What an object says of itself.
pub struct Read {
    pub token: u64,
    /// The token of what stood there when it was written.
    pub after: Option<u64>,
    pub revision: u64,
}

pub fn token_of(object: &ConfigMap) -> Option<u64> {
    object.data.as_ref()?.get("token")?.parse().ok()
}

/// Reads an object; one that is half of one write and half of another, or cut, is an error.
pub fn read(object: &ConfigMap) -> Result<Read, String> {
    let token = token_of(object).ok_or_else(|| format!("an object without a token: {object:?}"))?;
    let data = |key: &str| object.data.as_ref().and_then(|data| data.get(key)).map(String::as_str).unwrap_or_default();
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get("token")).map(String::as_str);
    if annotation != Some(data("token")) || data("padding") != format!("{token};").repeat(200) {
        return Err(format!("an object is half there: {object:?}"));
    }
    let revision = object.metadata.resource_version.as_deref().and_then(|text| text.parse().ok());
    let revision = revision.ok_or_else(|| format!("an object without a revision: {object:?}"))?;
    Ok(Read { token, after: data("after").parse().ok(), revision })
}

/// What one watcher saw, over all its watches.
pub struct Followed {
    pub events: Vec<Event>,
    pub reached: u64,
    pub ends: usize,
    /// From where to where it was told that the past is gone.
    pub gaps: Vec<(u64, u64)>,
    births: HashMap<String, u64>,
    /// The revision at which each write was seen.
    seen: HashMap<u64, Revision>,
}

impl Followed {
    pub fn new(from: u64) -> Followed {
        Followed { events: Vec::new(), reached: from, ends: 0, gaps: Vec::new(), births: HashMap::new(), seen: HashMap::new() }
    }

    pub fn take(&mut self, what: &str, object: &ConfigMap) -> Result<(), String> {
        let read = read(object)?;
        if read.revision <= self.reached {
            return Err(format!("a watch shows revision {} after {}", read.revision, self.reached));
        }
        self.reached = read.revision;
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let text = |token: u64| bytes::Bytes::from(token.to_string());
        // A write that was never seen stands at no revision.
        let at = |seen: &HashMap<u64, Revision>, token: u64| seen.get(&token).copied().unwrap_or(Revision(u64::MAX));
        let (value, previous) = match what {
            "ADDED" => (Some(text(read.token)), None),
            "MODIFIED" => (Some(text(read.token)), read.after.map(|token| at(&self.seen, token))),
            _ => (None, Some(at(&self.seen, read.token))),
        };
        if value.is_some() {
            self.seen.insert(read.token, Revision(read.revision));
        }
        if what == "ADDED" && self.births.insert(uid.clone(), read.revision).is_some() {
            return Err(format!("the object {uid} was added twice"));
        }
        self.events.push(Event {
            revision: Revision(read.revision),
            key: object.metadata.name.clone().unwrap_or_default(),
            value,
            previous,
            created: Revision(self.births.get(&uid).copied().unwrap_or_default()),
        });
        Ok(())
    }

    pub fn gap(&mut self, to: u64) {
        self.gaps.push((self.reached, to));
        self.reached = self.reached.max(to);
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// The verdict. The first watcher must have seen everything.
pub fn judge(record: &Record, standing: &[ConfigMap], followed: &[Followed]) -> Result<(), String> {
    let told = record.told.lock();
    for (name, operations) in &told.operations {
        linearizable(operations).map_err(|why| format!("{name}: {why}"))?;
    }
    let whole = followed.iter().find(|one| one.gaps.is_empty()).ok_or("every watcher was told that its past is gone")?;
    watched(&whole.events)?;
    for other in followed {
        let in_gap = |event: &&Event| !other.gaps.iter().any(|(from, to)| event.revision.0 > *from && event.revision.0 <= *to);
        let seen = other.events.iter().map(|event| (event.revision, &event.key, &event.value));
        if !seen.eq(whole.events.iter().filter(in_gap).map(|event| (event.revision, &event.key, &event.value))) {
            return Err("two watchers saw different things".into());
        }
    }
    let mut written: HashMap<u64, &Event> = HashMap::new();
    let mut deleted: HashSet<u64> = HashSet::new();
    let mut tokens: HashMap<Revision, u64> = HashMap::new();
    let mut state: BTreeMap<&str, (u64, Revision)> = BTreeMap::new();
    for event in &whole.events {
        let token = event.value.as_deref().map(number);
        if let Some(twice) = token.and_then(|token| written.insert(token, event)) {
            return Err(format!("one write took place twice: {twice:?} and {event:?}"));
        }
        match token {
            Some(token) if told.refused.contains(&token) => return Err(format!("a write that was refused took place: {event:?}")),
            Some(token) => {
                tokens.insert(event.revision, token);
                state.insert(&event.key, (token, event.revision));
            }
            None => {
                deleted.insert(event.previous.and_then(|revision| tokens.get(&revision).copied()).unwrap_or(u64::MAX));
                state.remove(event.key.as_str());
            }
        }
    }
    for (name, token, revision) in &told.acknowledged {
        match (revision, written.get(token)) {
            (Some(revision), Some(event)) if event.revision.0 == *revision && event.key == *name => {}
            (Some(revision), seen) => return Err(format!("{name} was acknowledged at {revision}, but watchers saw {seen:?}")),
            (None, _) => {}
        }
    }
    let removed = told.operations.values().flatten().filter(|operation| operation.answer == Answer::Done);
    for token in removed.filter_map(|operation| if let Action::Delete(token) = operation.action { Some(token) } else { None }) {
        if !deleted.contains(&token) {
            return Err(format!("an acknowledged deletion of what write {token} left was not seen"));
        }
    }
    let mut there = BTreeMap::new();
    for object in standing {
        let read = read(object)?;
        there.insert(object.metadata.name.as_deref().unwrap_or_default(), (read.token, Revision(read.revision)));
    }
    if there != state {
        let differs = there.iter().find(|(name, value)| state.get(*name) != Some(value)).map(|(name, _)| *name);
        let differs = differs.or_else(|| state.keys().find(|name| !there.contains_key(*name)).copied()).unwrap_or_default();
        return Err(format!("in the end {differs} is {:?}, but watchers saw {:?}", there.get(differs), state.get(differs)));
    }
    Ok(())
}
