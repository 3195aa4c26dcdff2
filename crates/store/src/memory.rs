//! A store in memory, for tests: the shortest thing that passes the suite.

use crate::{Error, Event, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Write, hub::Hub};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

struct State {
    revision: Revision,
    compacted: Revision,
    current: BTreeMap<String, KeyValue>,
    log: Vec<Logged>,
}

/// A change, and what stood there before it.
struct Logged {
    event: Event,
    before: Option<KeyValue>,
}

/// A store that forgets everything when it is dropped.
pub struct Memory {
    state: Arc<Mutex<State>>,
    hub: Arc<Hub>,
}

impl Default for Memory {
    fn default() -> Self {
        let state = State { revision: Revision(1), compacted: Revision(0), current: BTreeMap::new(), log: Vec::new() };
        Memory { state: Arc::new(Mutex::new(state)), hub: Arc::new(Hub::new(Revision(1))) }
    }
}

impl State {
    /// The keys as they stood at `at`: replays the log backwards from now.
    fn at(&self, at: Revision) -> Result<BTreeMap<String, KeyValue>> {
        check_readable(at, self.compacted, self.revision)?;
        let mut view = self.current.clone();
        for Logged { event, before } in self.log.iter().rev().take_while(|logged| logged.event.revision > at) {
            match before {
                None => view.remove(&event.key),
                Some(before) => view.insert(event.key.clone(), before.clone()),
            };
        }
        Ok(view)
    }
}

/// Whether a list at `at` can be answered by a store that has compacted up to `compacted` and stands at `newest`.
pub(crate) fn check_readable(at: Revision, compacted: Revision, newest: Revision) -> Result<()> {
    if at < compacted {
        return Err(Error::Compacted { asked: at, oldest: compacted });
    }
    if at > newest {
        return Err(Error::Future { asked: at, newest });
    }
    Ok(())
}

#[async_trait::async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(self.state.lock().current.get(key).cloned())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let state = self.state.lock();
        let revision = at.unwrap_or(state.revision);
        let view = state.at(revision)?;
        let mut items: Vec<KeyValue> =
            view.into_values().filter(|kv| kv.key.starts_with(prefix) && after.is_none_or(|after| kv.key.as_str() > after)).collect();
        let more = limit > 0 && items.len() > limit;
        if more {
            items.truncate(limit);
        }
        Ok(Page { items, revision, more })
    }

    async fn commit(&self, write: Write) -> Result<Outcome> {
        let mut state = self.state.lock();
        let standing = state.current.get(write.key()).cloned();
        let (key, value): (String, Option<Bytes>) = match write {
            Write::Create { key, value } if standing.is_none() => (key, Some(value)),
            Write::Update { key, value, expected } if standing.as_ref().is_some_and(|kv| kv.modified == expected) => (key, Some(value)),
            Write::Delete { key, expected } if standing.as_ref().is_some_and(|kv| kv.modified == expected) => (key, None),
            _ => return Ok(Outcome::Conflict(standing)),
        };
        let revision = Revision(state.revision.0 + 1);
        state.revision = revision;
        let created = standing.as_ref().map_or(revision, |kv| kv.created);
        match &value {
            Some(value) => {
                state.current.insert(key.clone(), KeyValue { key: key.clone(), value: value.clone(), created, modified: revision });
            }
            None => {
                state.current.remove(&key);
            }
        }
        let event = Event { revision, key, value, previous: standing.as_ref().map(|kv| kv.modified), created };
        state.log.push(Logged { event: event.clone(), before: standing });
        // Published under the state's lock, so that events leave in revision order.
        self.hub.publish(&[event]);
        Ok(Outcome::Committed(revision))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let compacted = self.state.lock().compacted;
        if from < compacted {
            return Err(Error::Compacted { asked: from, oldest: compacted });
        }
        let (state, wanted) = (self.state.clone(), prefix.to_string());
        Ok(self.hub.watch(prefix, from, move |published| async move {
            let state = state.lock();
            let in_range = |e: &&Event| e.revision > from && e.revision <= published && e.key.starts_with(&wanted);
            Ok(state.log.iter().map(|logged| &logged.event).filter(in_range).cloned().collect())
        }))
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.state.lock().revision)
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        let mut state = self.state.lock();
        check_readable(at, state.compacted, state.revision)?;
        state.compacted = at;
        state.log.retain(|logged| logged.event.revision > at);
        Ok(())
    }
}
