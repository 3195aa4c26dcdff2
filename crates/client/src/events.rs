//! The event recorder: tells users, as `core/v1` Events on their objects, what a component has done or met.
//!
//! Recording never blocks and never fails a caller: events wait in a bounded queue, and what does not fit is dropped and
//! counted. While no server can be reached they wait in a backlog, on a node's disk too ([`Recorder::kept`]), and are sent
//! in their order when one is back; of more than [`limits::EVENT_BACKLOG_MAX`] the oldest are dropped. A repeated event counts up instead of multiplying (one patch on the first one's object), many that differ
//! only in their message are folded into one, and an object that chatters is slowed down. The decision about each event is
//! [`Correlator::observe`], without I/O.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};
use tracing::debug;

use crate::checkpoint::{Checkpoint, Secrecy, Shelf};
use crate::clock::{Clock, whole_seconds};
use crate::error::ErrorExt;
use crate::limits;

/// The two types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Somebody may have to do something.
    Warning,
}

pub use EventType::{Normal, Warning};

impl EventType {
    /// As written in the Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Normal => "Normal",
            Warning => "Warning",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug)]
struct Note {
    about: ObjectReference,
    type_: EventType,
    reason: String,
    action: String,
    message: String,
    at: Timestamp,
}

/// Records events. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
    clock: Clock,
}

impl Recorder {
    /// A recorder that writes in the name of this component, on this host (empty for none). Needs a tokio runtime.
    pub fn new(client: kube::Client, component: &str, host: &str) -> Recorder {
        Self::with_clock(client, component, host, Clock::system())
    }

    /// As [`Recorder::new`], with the clock given.
    pub fn with_clock(client: kube::Client, component: &str, host: &str, clock: Clock) -> Recorder {
        Self::begin(client, component, host, clock, None)
    }

    /// As [`Recorder::new`]; events that cannot be sent are kept in the checkpoint, and those found there are sent first.
    pub fn kept(client: kube::Client, component: &str, host: &str, checkpoint: Option<&Checkpoint>) -> Recorder {
        let disk = checkpoint.map(|checkpoint| checkpoint.shelf("events", Secrecy::Open));
        Self::begin(client, component, host, Clock::system(), disk)
    }

    fn begin(client: kube::Client, component: &str, host: &str, clock: Clock, disk: Option<Shelf>) -> Recorder {
        let (queue, notes) = mpsc::channel(limits::EVENT_QUEUE_MAX);
        let source = EventSource { component: Some(component.to_owned()), host: (!host.is_empty()).then(|| host.to_owned()) };
        let dropped = Arc::<AtomicU64>::default();
        tokio::spawn(send_all(client, source, notes, disk, dropped.clone()));
        Recorder { queue, dropped, clock }
    }

    /// A recorder whose events go nowhere (tests).
    pub fn discarding() -> Recorder {
        let (queue, _) = mpsc::channel(1);
        Recorder { queue, dropped: Arc::default(), clock: Clock::system() }
    }

    /// Tells that something has happened about the object. `action` is what was done about it, or empty.
    pub fn event(&self, about: &ObjectReference, type_: EventType, reason: &str, action: &str, message: impl Into<String>) {
        let note =
            Note { about: about.clone(), type_, reason: reason.to_owned(), action: action.to_owned(), message: message.into(), at: self.clock.now() };
        if self.queue.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells about a typed object.
    pub fn about<K: Resource<DynamicType = ()>>(&self, object: &K, type_: EventType, reason: &str, message: impl Into<String>) {
        self.event(&reference(object), type_, reason, "", message);
    }

    /// How many events were dropped because the queue or the backlog was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A reference to the object as events carry it: with UID and resourceVersion.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let mut reference = object.object_ref(&());
    reference.resource_version = object.meta().resource_version.clone();
    reference
}

/// What to do about one observation.
#[derive(Debug, PartialEq)]
enum Action {
    Create(Box<Event>),
    /// Count the existing event up.
    Count {
        namespace: String,
        name: String,
        count: i32,
        last: Timestamp,
        message: String,
    },
    Nothing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct About {
    namespace: String,
    name: String,
    kind: String,
    uid: String,
    field_path: String,
}

impl About {
    fn of(reference: &ObjectReference) -> Self {
        About {
            namespace: reference.namespace.clone().unwrap_or_default(),
            name: reference.name.clone().unwrap_or_default(),
            kind: reference.kind.clone().unwrap_or_default(),
            uid: reference.uid.clone().unwrap_or_default(),
            field_path: reference.field_path.clone().unwrap_or_default(),
        }
    }
}

type Similar = (About, &'static str, String);
type Series = (Similar, String);

/// A map that forgets its oldest entries.
struct Bounded<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    fn new() -> Self {
        Bounded { entries: HashMap::new(), order: VecDeque::new() }
    }

    fn entry(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(key) {
            while self.order.len() >= limits::EVENT_SERIES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.entries.entry(key.clone()).or_insert_with(new)
    }
}

struct Budget {
    tokens: f64,
    at: Timestamp,
}

struct Window {
    since: Timestamp,
    messages: Vec<String>,
}

struct Known {
    event: String,
    count: i32,
}

/// Decides about each event: new, counted, folded or dropped.
struct Correlator {
    source: EventSource,
    budgets: Bounded<About, Budget>,
    windows: Bounded<Similar, Window>,
    series: Bounded<Series, Known>,
}

impl Correlator {
    fn new(source: EventSource) -> Self {
        Correlator { source, budgets: Bounded::new(), windows: Bounded::new(), series: Bounded::new() }
    }

    fn observe(&mut self, note: &Note) -> Action {
        let about = About::of(&note.about);
        let budget = self.budgets.entry(&about, || Budget { tokens: limits::EVENT_BURST, at: note.at });
        let passed_s = note.at.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.tokens = (budget.tokens + passed_s / limits::EVENT_REFILL.as_secs_f64()).min(limits::EVENT_BURST);
        budget.at = note.at;
        if budget.tokens < 1.0 {
            return Action::Nothing;
        }
        budget.tokens -= 1.0;

        let similar: Similar = (about, note.type_.as_str(), note.reason.clone());
        let window = self.windows.entry(&similar, || Window { since: note.at, messages: Vec::new() });
        if note.at.duration_since(window.since).as_secs_f64() > limits::EVENT_SIMILAR_WINDOW.as_secs_f64() {
            *window = Window { since: note.at, messages: Vec::new() };
        }
        if window.messages.len() < limits::EVENT_SIMILAR_MAX && !window.messages.contains(&note.message) {
            window.messages.push(note.message.clone());
        }
        let folded = window.messages.len() >= limits::EVENT_SIMILAR_MAX;
        let message = if folded { format!("(combined from similar events): {}", note.message) } else { note.message.clone() };
        let series: Series = (similar, if folded { String::new() } else { message.clone() });

        let namespace = note.about.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into());
        let name = format!("{}.{:x}", note.about.name.as_deref().unwrap_or_default(), note.at.as_nanosecond());
        let known = self.series.entry(&series, || Known { event: name.clone(), count: 0 });
        known.count = known.count.saturating_add(1);
        if known.count > 1 {
            return Action::Count { namespace, name: known.event.clone(), count: known.count, last: note.at, message };
        }
        Action::Create(Box::new(self.event(note, namespace, name, message)))
    }

    fn event(&self, note: &Note, namespace: String, name: String, message: String) -> Event {
        let at = Time(whole_seconds(note.at));
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..Default::default() },
            involved_object: note.about.clone(),
            reason: Some(note.reason.clone()),
            action: (!note.action.is_empty()).then(|| note.action.clone()),
            message: Some(message),
            type_: Some(note.type_.as_str().to_owned()),
            source: Some(self.source.clone()),
            count: Some(1),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            ..Default::default()
        }
    }
}

/// An event on its way to the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Letter {
    event: Event,
    /// For one that is there already: what has changed.
    patch: Option<serde_json::Value>,
}

/// Letters that are not sent yet, the oldest first.
struct Backlog {
    letters: VecDeque<(u64, Letter)>,
    next: u64,
    disk: Option<Shelf>,
    /// Whether they are on disk: only while they cannot be sent.
    is_on_disk: bool,
    dropped: Arc<AtomicU64>,
}

fn letter_key(number: u64) -> String {
    format!("{number:020}")
}

impl Backlog {
    fn new(disk: Option<Shelf>, dropped: Arc<AtomicU64>) -> Backlog {
        let found = disk.iter().flat_map(Shelf::load_json::<Letter>);
        let mut letters: VecDeque<(u64, Letter)> = found.filter_map(|(key, letter)| Some((key.parse().ok()?, letter))).collect();
        letters.make_contiguous().sort_by_key(|(number, _)| *number);
        let next = letters.back().map_or(0, |(number, _)| number + 1);
        Backlog { is_on_disk: !letters.is_empty(), letters, next, disk, dropped }
    }

    fn push(&mut self, letter: Letter) {
        if self.letters.len() >= limits::EVENT_BACKLOG_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.pop();
        }
        let number = self.next;
        self.next += 1;
        if let (true, Some(disk)) = (self.is_on_disk, &self.disk) {
            disk.put_json(&letter_key(number), &letter);
        }
        self.letters.push_back((number, letter));
    }

    fn pop(&mut self) {
        let Some((number, _)) = self.letters.pop_front() else { return };
        if let (true, Some(disk)) = (self.is_on_disk, &self.disk) {
            disk.remove(&letter_key(number));
        }
        self.is_on_disk &= !self.letters.is_empty();
    }

    /// The first letter could not be sent: from now on they outlive this process.
    fn save(&mut self) {
        if self.is_on_disk {
            return;
        }
        self.is_on_disk = true;
        for (number, letter) in &self.letters {
            if let Some(disk) = &self.disk {
                disk.put_json(&letter_key(*number), letter);
            }
        }
    }
}

async fn send_all(client: kube::Client, source: EventSource, mut notes: mpsc::Receiver<Note>, disk: Option<Shelf>, dropped: Arc<AtomicU64>) {
    let mut correlator = Correlator::new(source);
    let mut backlog = Backlog::new(disk, dropped);
    let mut under_way: Option<BoxFuture<'static, bool>> = None;
    let mut failures = 0_u32;
    loop {
        if under_way.is_none()
            && let Some((_, letter)) = backlog.letters.front()
        {
            let (client, letter, pause) = (client.clone(), letter.clone(), pause_after(failures));
            under_way = Some(Box::pin(async move {
                sleep(pause).await;
                deliver(&client, letter).await
            }));
        }
        let sent = async {
            match &mut under_way {
                Some(sending) => sending.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            sent = sent => {
                under_way = None;
                if sent {
                    failures = 0;
                    backlog.pop();
                } else {
                    failures = failures.saturating_add(1);
                    backlog.save();
                    if failures == 1 {
                        debug!("events cannot be sent; they wait");
                    }
                }
            }
            note = notes.recv() => {
                let Some(note) = note else { return };
                match correlator.observe(&note) {
                    Action::Nothing => {}
                    Action::Create(event) => backlog.push(Letter { event: *event, patch: None }),
                    Action::Count { namespace, name, count, last, message } => {
                        let mut event = correlator.event(&note, namespace, name, message.clone());
                        event.count = Some(count);
                        let patch = json!({ "count": count, "lastTimestamp": Time(whole_seconds(last)), "message": message });
                        backlog.push(Letter { event, patch: Some(patch) });
                    }
                }
            }
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        more => limits::EVENT_RETRY_INITIAL.saturating_mul(1 << more.min(10)).min(limits::EVENT_RETRY_MAX),
    }
}

/// Sends one event; false if no server could be reached. A counted event that is gone is made anew.
async fn deliver(client: &kube::Client, letter: Letter) -> bool {
    let Letter { event, mut patch } = letter;
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let name = event.metadata.name.as_deref().unwrap_or_default();
    let api: kube::Api<Event> = kube::Api::namespaced(client.clone(), namespace);
    loop {
        let sent = async {
            match &patch {
                Some(patch) => api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop),
                None => api.create(&PostParams::default(), &event).await.map(drop),
            }
        };
        match tokio::time::timeout(limits::REQUEST_TIMEOUT, sent).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) if patch.is_some() && error.is_not_found() => patch = None,
            Ok(Err(error)) if error.is_answer() && !error.is_trouble() => {
                debug!(name, error = %error.short(), "an event was refused");
                return true;
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str, at_s: i64) -> Note {
        Note {
            about: ObjectReference { kind: Some("Pod".into()), name: Some("p".into()), namespace: Some("ns".into()), ..Default::default() },
            type_: Normal,
            reason: "Pulled".into(),
            action: String::new(),
            message: message.into(),
            at: Timestamp::from_second(at_s).unwrap(),
        }
    }

    fn check(notes: &[(&str, i64)], expected: &[&str]) {
        let mut correlator = Correlator::new(EventSource { component: Some("kubelet".into()), host: None });
        let got: Vec<String> = notes
            .iter()
            .map(|(message, at)| match correlator.observe(&note(message, *at)) {
                Action::Create(event) => format!("new {}", event.message.unwrap()),
                Action::Count { count, message, .. } => format!("x{count} {message}"),
                Action::Nothing => "nothing".into(),
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn repeated_events_count_up() {
        check(&[("a", 1), ("b", 2), ("a", 3), ("a", 4)], &["new a", "new b", "x2 a", "x3 a"]);
    }

    #[test]
    fn many_similar_events_are_folded() {
        let messages: Vec<String> = (0..12).map(|n| format!("m{n}")).collect();
        let notes: Vec<(&str, i64)> = messages.iter().map(|m| (m.as_str(), 1)).collect();
        let mut expected: Vec<String> = (0..9).map(|n| format!("new m{n}")).collect();
        expected.push("new (combined from similar events): m9".into());
        expected.push("x2 (combined from similar events): m10".into());
        expected.push("x3 (combined from similar events): m11".into());
        check(&notes, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn a_chatty_object_is_slowed_down() {
        let notes: Vec<(&str, i64)> = (0..27).map(|_| ("a", 1)).chain([("a", 302)]).collect();
        let mut correlator = Correlator::new(EventSource::default());
        let passed: Vec<bool> = notes.iter().map(|(m, at)| correlator.observe(&note(m, *at)) != Action::Nothing).collect();
        assert_eq!(passed.iter().filter(|p| **p).count(), 26);
        assert_eq!(passed[24..], [true, false, false, true]);
    }

    fn letter(message: &str) -> Letter {
        Letter { event: Event { message: Some(message.into()), ..Default::default() }, patch: None }
    }

    fn messages(backlog: &Backlog) -> Vec<&str> {
        backlog.letters.iter().filter_map(|(_, letter)| letter.event.message.as_deref()).collect()
    }

    #[tokio::test]
    async fn what_cannot_be_sent_outlives_the_process_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Checkpoint::open(directory.path(), "kubelet").unwrap().shelf("events", Secrecy::Open);
        {
            let mut backlog = Backlog::new(Some(open()), Arc::default());
            ["sent", "a", "b"].iter().for_each(|message| backlog.push(letter(message)));
            backlog.pop();
            backlog.save();
            backlog.push(letter("c"));
        }
        {
            let mut backlog = Backlog::new(Some(open()), Arc::default());
            assert_eq!(messages(&backlog), ["a", "b", "c"]);
            backlog.push(letter("d"));
            backlog.pop();
        }
        assert_eq!(messages(&Backlog::new(Some(open()), Arc::default())), ["b", "c", "d"]);
    }

    #[test]
    fn the_oldest_make_way() {
        let mut backlog = Backlog::new(None, Arc::default());
        (0..limits::EVENT_BACKLOG_MAX + 2).for_each(|n| backlog.push(letter(&n.to_string())));
        assert_eq!((backlog.letters.len(), messages(&backlog)[0]), (limits::EVENT_BACKLOG_MAX, "2"));
        assert_eq!(backlog.dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_event_has_what_kubectl_shows() {
        let mut correlator = Correlator::new(EventSource { component: Some("kubelet".into()), host: Some("node-1".into()) });
        let Action::Create(event) = correlator.observe(&note("a", 1)) else { panic!("not new") };
        assert_eq!(event.metadata.name.as_deref(), Some("p.3b9aca00"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("ns"));
        assert_eq!(event.type_.as_deref(), Some("Normal"));
        assert_eq!(event.first_timestamp, event.last_timestamp);
        assert_eq!(event.reporting_instance.as_deref(), Some("node-1"));
    }
}
