//! What happened in a drill, and when: events, the state that follows from them, and the recorder that both go into.
//!
//! Observations come from several API servers at once, each with its own delay. The recorder keeps an observation only if
//! its object's revision is newer than what it has of that object, so that an event stands at the time when it was first
//! visible anywhere, and never twice.

use crate::{limits, now_ms, request::Request};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::sync::watch;

/// Why a moment is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The drill breaks something.
    Fault,
    /// The drill mends it.
    Heal,
    /// What was lost runs elsewhere.
    Replaced,
    /// All is as before.
    Recovered,
    /// A step that neither breaks nor mends.
    Step,
}

/// A pod of the workload, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub uid: String,
    pub name: String,
    /// Empty while it is not scheduled.
    pub node: String,
    pub phase: String,
    pub ready: bool,
    pub terminating: bool,
    pub restarts: i32,
    pub address: String,
    /// Its label `app`.
    pub app: String,
}

/// A node, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// The condition Ready: True, False or Unknown.
    pub ready: String,
    pub cordoned: bool,
    /// Keys of its taints, except the control plane's own.
    pub taints: Vec<String>,
}

/// The endpoints of a Service, summed over its slices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub slice: String,
    pub service: String,
    pub ready: Vec<String>,
    pub not_ready: Vec<String>,
}

/// One thing that was seen or done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    Pod(Pod),
    PodGone { uid: String, name: String, node: String },
    Node(Node),
    Leader { lease: String, holder: String },
    Endpoints(Endpoints),
    Mark { mark: Mark, text: String },
}

/// Something, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: What,
}

/// The newest state of all that is watched.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By UID.
    pub pods: BTreeMap<String, Pod>,
    pub nodes: BTreeMap<String, Node>,
    /// Holders by lease.
    pub leaders: BTreeMap<String, String>,
    /// By slice.
    pub endpoints: BTreeMap<String, Endpoints>,
}

impl View {
    /// Takes an event in.
    pub fn apply(&mut self, what: &What) {
        match what {
            What::Pod(pod) => drop(self.pods.insert(pod.uid.clone(), pod.clone())),
            What::PodGone { uid, .. } => drop(self.pods.remove(uid)),
            What::Node(node) => drop(self.nodes.insert(node.name.clone(), node.clone())),
            What::Leader { lease, holder } => drop(self.leaders.insert(lease.clone(), holder.clone())),
            What::Endpoints(endpoints) => drop(self.endpoints.insert(endpoints.slice.clone(), endpoints.clone())),
            What::Mark { .. } => {}
        }
    }

    /// The pods of an application that are not on their way out.
    pub fn living<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.values().filter(move |pod| pod.app == app && !pod.terminating && pod.phase != "Succeeded" && pod.phase != "Failed")
    }

    /// Those of them that are ready.
    pub fn ready<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.living(app).filter(|pod| pod.ready && pod.phase == "Running")
    }

    /// Addresses of a Service's ready endpoints.
    pub fn ready_endpoints(&self, service: &str) -> Vec<&str> {
        self.endpoints.values().filter(|e| e.service == service).flat_map(|e| e.ready.iter().map(String::as_str)).collect()
    }

    /// One line per pod and per node that is not as usual: what an error shows.
    pub fn describe(&self) -> String {
        let pods = self.pods.values().map(|pod| {
            let state = if pod.terminating { "Terminating" } else { &pod.phase };
            format!("{} {state}{} on {}", pod.name, if pod.ready { " ready" } else { "" }, if pod.node.is_empty() { "no node" } else { &pod.node })
        });
        let nodes = self.nodes.values().filter(|node| node.ready != "True" || node.cordoned || !node.taints.is_empty());
        let nodes = nodes.map(|node| format!("{} Ready={} {}", node.name, node.ready, node.taints.join(",")));
        pods.chain(nodes).collect::<Vec<_>>().join("; ")
    }
}

/// All that a drill has logged.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub events: Vec<Event>,
    pub requests: Vec<Request>,
    /// Requests and events beyond the limits.
    pub dropped: u64,
}

#[derive(Default)]
struct Inner {
    view: View,
    log: Log,
    /// The newest revision seen, by UID or name.
    revisions: HashMap<String, u64>,
}

/// Where observations, marks and requests are collected. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder { inner: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Recorder {
    /// Notes what was observed of an object at a revision, unless something newer of it is known.
    pub fn observe(&self, object: &str, revision: u64, what: What) {
        {
            let mut inner = self.inner.lock();
            let gone = matches!(what, What::PodGone { .. });
            match inner.revisions.get(object) {
                // The end of an object may come with the revision of its last state.
                Some(known) if *known > revision || (*known == revision && !gone) => return,
                _ => {}
            }
            if let What::PodGone { uid, .. } = &what
                && !inner.view.pods.contains_key(uid)
            {
                return;
            }
            inner.revisions.insert(object.to_owned(), revision);
            inner.take(what);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Marks this moment.
    pub fn mark(&self, mark: Mark, text: impl Into<String>) {
        self.inner.lock().take(What::Mark { mark, text: text.into() });
        self.changed.send_modify(|n| *n += 1);
    }

    /// Keeps a request.
    pub fn request(&self, request: Request) {
        let mut inner = self.inner.lock();
        if inner.log.requests.len() < limits::REQUESTS_MAX {
            inner.log.requests.push(request);
        } else {
            inner.log.dropped += 1;
        }
    }

    /// Forgets the requests so far: what is sent while traffic finds its way is not the drill's.
    pub fn forget_requests(&self) {
        self.inner.lock().log.requests.clear();
    }

    /// The newest state.
    pub fn view(&self) -> View {
        self.inner.lock().view.clone()
    }

    /// A look at the log so far.
    pub fn with_log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.inner.lock().log)
    }

    /// All that was logged; the recorder is empty afterwards.
    pub fn take_log(&self) -> Log {
        std::mem::take(&mut self.inner.lock().log)
    }

    /// Changes of the view.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Inner {
    fn take(&mut self, what: What) {
        let known = match &what {
            What::Pod(pod) => self.view.pods.get(&pod.uid) == Some(pod),
            What::Node(node) => self.view.nodes.get(&node.name) == Some(node),
            What::Leader { lease, holder } => self.view.leaders.get(lease) == Some(holder),
            What::Endpoints(endpoints) => self.view.endpoints.get(&endpoints.slice) == Some(endpoints),
            What::PodGone { .. } | What::Mark { .. } => false,
        };
        if known {
            return;
        }
        self.view.apply(&what);
        if self.log.events.len() < limits::EVENTS_MAX {
            self.log.events.push(Event { at_ms: now_ms(), what });
        } else {
            self.log.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: bool) -> What {
        What::Pod(Pod { uid: "u1".into(), name: "web-1".into(), app: "web".into(), phase: "Running".into(), ready, ..Pod::default() })
    }

    #[test]
    fn an_older_observation_is_dropped_and_the_same_is_not_told_twice() {
        let recorder = Recorder::default();
        recorder.observe("u1", 5, pod(true));
        recorder.observe("u1", 4, pod(false));
        recorder.observe("u1", 6, pod(true));
        assert_eq!(recorder.with_log(|log| log.events.len()), 1);
        assert_eq!(recorder.view().ready("web").count(), 1);
        recorder.observe("u1", 7, pod(false));
        assert_eq!(recorder.view().ready("web").count(), 0);
    }

    #[test]
    fn what_is_gone_stays_gone_until_a_restore_brings_it_back_with_a_newer_revision() {
        let recorder = Recorder::default();
        let gone = || What::PodGone { uid: "u1".into(), name: "web-1".into(), node: String::new() };
        recorder.observe("u1", 5, pod(true));
        recorder.observe("u1", 8, gone());
        recorder.observe("u1", 6, pod(false));
        recorder.observe("u1", 8, gone());
        assert!(recorder.view().pods.is_empty());
        assert_eq!(recorder.with_log(|log| log.events.len()), 2);
        recorder.observe("u1", 1000, pod(true));
        assert_eq!(recorder.view().pods.len(), 1);
    }
}
