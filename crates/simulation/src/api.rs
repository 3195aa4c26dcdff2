//! An API server's answers in front of a store that all servers share: plain REST over JSON objects, with watches from a log.
//!
//! As much of Kubernetes as nodes and controllers here ask for: versions and conflicts, preconditions, graceful deletion of pods,
//! status as a part of its own, merge patches (a strategic one merges conditions by type), field selectors by name and node,
//! watches that say 410 when their version was compacted away.
//!
//! What must stay true: a version is given once and never goes back; what was answered is in the store; a deleted UID is never
//! seen again.

use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Events that a watch can still be given; older ones are compacted away.
const LOG_MAX: usize = 600;
/// 2027-01-15T08:00:00Z, when every simulated day begins, in seconds of Unix time.
pub const BEGIN_S: i64 = 1_800_000_000;

/// Resource, namespace, name.
type Place = (String, String, String);

/// One version of an object.
#[derive(Debug)]
pub struct Stored {
    /// As it is.
    pub value: Value,
    bytes: Bytes,
}

struct Event {
    revision: u64,
    resource: String,
    namespace: String,
    kind: &'static str,
    object: Arc<Stored>,
}

/// Everything that the cluster's store holds.
#[derive(Default)]
pub struct Api {
    revision: u64,
    objects: BTreeMap<Place, Arc<Stored>>,
    log: VecDeque<Event>,
    uids: u64,
    /// Every UID that was deleted, ever.
    pub deleted: BTreeSet<String>,
    /// Milliseconds since the world began, as of the last request.
    pub now_ms: u64,
}

/// What a request asks about.
#[derive(Clone, Debug, Default)]
pub struct Target {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
    fields: Vec<(String, String)>,
    /// The version to watch from.
    pub watch_from: Option<u64>,
}

impl Target {
    /// Reads path and query.
    pub fn of(uri: &http::Uri) -> Target {
        let segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let rest = match segments.first() {
            Some(&"api") => segments.get(2..),
            Some(&"apis") => segments.get(3..),
            _ => Some(&segments[..]),
        };
        let rest = rest.unwrap_or_default();
        let at = |index: usize| rest.get(index).map(|text| (*text).to_owned()).unwrap_or_default();
        let mut target = if rest.first() == Some(&"namespaces") && rest.len() > 2 {
            Target { namespace: at(1), resource: at(2), name: at(3), subresource: at(4), ..Target::default() }
        } else {
            Target { resource: at(0), name: at(1), subresource: at(2), ..Target::default() }
        };
        let (mut watches, mut version) = (false, 0);
        for (key, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
            let value = value.replace("%3D", "=").replace("%2C", ",");
            match key {
                "watch" => watches = value == "true" || value == "1",
                "resourceVersion" => version = value.parse().unwrap_or(0),
                "fieldSelector" => {
                    target.fields = value
                        .split(',')
                        .filter_map(|term| term.split_once('='))
                        .map(|(k, v)| (k.to_owned(), v.trim_start_matches('=').to_owned()))
                        .collect();
                }
                _ => {}
            }
        }
        target.watch_from = watches.then_some(version);
        target
    }

    fn place(&self) -> Place {
        (self.resource.clone(), self.namespace.clone(), self.name.clone())
    }

    fn holds(&self, namespace: &str, value: &Value) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace)
            && self.fields.iter().all(|(field, wanted)| {
                let found = match field.as_str() {
                    "metadata.name" => &value["metadata"]["name"],
                    "spec.nodeName" => &value["spec"]["nodeName"],
                    _ => &Value::Null,
                };
                found.as_str() == Some(wanted)
            })
    }
}

/// A code and a body.
pub type Answer = (u16, Bytes);

fn bytes_of(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// A Status that refuses.
pub fn failure(code: u16, reason: &str) -> Answer {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": reason});
    (code, bytes_of(&status))
}

impl Api {
    /// The newest version.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The objects of one resource.
    pub fn all<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((kind, ..), _)| kind == resource).map(|(_, stored)| &stored.value)
    }

    /// One object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).map(|stored| &stored.value)
    }

    /// Answers a request that is no watch.
    pub fn answer(&mut self, method: &Method, target: &Target, strategic: bool, body: &[u8]) -> Answer {
        if target.resource == "version" {
            let info = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
            return (200, bytes_of(&info));
        }
        if target.resource == "events" {
            // Taken, and not kept: nobody here reads them.
            return (201, Bytes::copy_from_slice(body));
        }
        let sent = || serde_json::from_slice::<Value>(body).ok();
        match (method.as_str(), target.name.as_str()) {
            ("GET", "") => self.list(target),
            ("GET", _) => self.objects.get(&target.place()).map_or_else(|| failure(404, "NotFound"), |stored| (200, stored.bytes.clone())),
            ("POST", "") => sent().map_or_else(|| failure(400, "BadRequest"), |value| self.create(target, value)),
            ("PUT", _) => sent().map_or_else(|| failure(400, "BadRequest"), |value| self.replace(target, value)),
            ("PATCH", _) => sent().map_or_else(|| failure(400, "BadRequest"), |value| self.patch(target, value, strategic)),
            ("DELETE", _) => self.delete(target, &sent().unwrap_or_default()),
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, target: &Target) -> Answer {
        let mut body = format!(r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"{}"}},"items":["#, self.revision).into_bytes();
        let of_kind = self.objects.range((target.resource.clone(), String::new(), String::new())..);
        let mut is_first = true;
        for ((_, namespace, _), stored) in of_kind.take_while(|((kind, ..), _)| *kind == target.resource) {
            if target.holds(namespace, &stored.value) {
                if !std::mem::take(&mut is_first) {
                    body.push(b',');
                }
                body.extend_from_slice(&stored.bytes);
            }
        }
        body.extend_from_slice(b"]}");
        (200, Bytes::from(body))
    }

    /// Creates an object as a user would.
    pub fn create_object(&mut self, resource: &str, value: Value) -> Answer {
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        self.create(&Target { resource: resource.to_owned(), namespace, ..Target::default() }, value)
    }

    /// Deletes an object as a user would.
    pub fn delete_object(&mut self, resource: &str, namespace: &str, name: &str) -> Answer {
        self.delete(&Target { resource: resource.into(), namespace: namespace.into(), name: name.into(), ..Target::default() }, &Value::Null)
    }

    fn create(&mut self, target: &Target, mut value: Value) -> Answer {
        let metadata = &mut value["metadata"];
        if metadata["name"].as_str().is_none_or(str::is_empty) {
            let prefix = metadata["generateName"].as_str().unwrap_or_default().to_owned();
            self.uids += 1;
            metadata["name"] = format!("{prefix}{:05}", self.uids).into();
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        if !target.namespace.is_empty() {
            metadata["namespace"] = target.namespace.clone().into();
        }
        let place = (target.resource.clone(), target.namespace.clone(), name);
        if self.objects.contains_key(&place) {
            return failure(409, "AlreadyExists");
        }
        self.uids += 1;
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{}", self.uids).into();
        }
        metadata["creationTimestamp"] = self.time().into();
        (201, self.store(place, value, "ADDED"))
    }

    fn replace(&mut self, target: &Target, mut value: Value) -> Answer {
        let Some(old) = self.objects.get(&target.place()).cloned() else { return failure(404, "NotFound") };
        let version = &value["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|version| !version.is_empty()) && *version != old.value["metadata"]["resourceVersion"] {
            return failure(409, "Conflict");
        }
        if target.subresource == "status" {
            let status = value["status"].take();
            value = old.value.clone();
            value["status"] = status;
        } else {
            value["metadata"]["uid"] = old.value["metadata"]["uid"].clone();
            if !old.value["status"].is_null() {
                value["status"] = old.value["status"].clone();
            }
        }
        (200, self.store(target.place(), value, "MODIFIED"))
    }

    fn patch(&mut self, target: &Target, patch: Value, strategic: bool) -> Answer {
        let Some(old) = self.objects.get(&target.place()).cloned() else { return failure(404, "NotFound") };
        for precondition in ["uid", "resourceVersion"] {
            let wanted = &patch["metadata"][precondition];
            if !wanted.is_null() && *wanted != old.value["metadata"][precondition] {
                return failure(409, "Conflict");
            }
        }
        let mut value = old.value.clone();
        merge(&mut value, &patch, strategic);
        if value == old.value {
            return (200, old.bytes.clone());
        }
        (200, self.store(target.place(), value, "MODIFIED"))
    }

    fn delete(&mut self, target: &Target, options: &Value) -> Answer {
        let place = target.place();
        let Some(old) = self.objects.get(&place).cloned() else { return failure(404, "NotFound") };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != old.value["metadata"]["uid"] {
            return failure(409, "Conflict");
        }
        let own = &old.value["spec"]["terminationGracePeriodSeconds"];
        let grace = options["gracePeriodSeconds"].as_i64().or(own.as_i64()).unwrap_or(30);
        if target.resource == "pods" && grace > 0 {
            let mut value = old.value.clone();
            if value["metadata"]["deletionTimestamp"].is_null() {
                value["metadata"]["deletionTimestamp"] = self.time().into();
                value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
                return (200, self.store(place, value, "MODIFIED"));
            }
            return (200, old.bytes.clone());
        }
        let uid = old.value["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.store(place.clone(), old.value.clone(), "DELETED");
        self.objects.remove(&place);
        self.deleted.insert(uid.clone());
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": {"uid": uid}});
        (200, bytes_of(&status))
    }

    fn time(&self) -> String {
        let second = BEGIN_S + i64::try_from(self.now_ms / 1000).unwrap_or(0);
        jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::MAX).to_string()
    }

    fn store(&mut self, place: Place, mut value: Value, kind: &'static str) -> Bytes {
        self.revision += 1;
        value["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let bytes = bytes_of(&value);
        let stored = Arc::new(Stored { value, bytes: bytes.clone() });
        let (resource, namespace) = (place.0.clone(), place.1.clone());
        self.log.push_back(Event { revision: self.revision, resource, namespace, kind, object: stored.clone() });
        if self.log.len() > LOG_MAX {
            self.log.pop_front();
        }
        self.objects.insert(place, stored);
        bytes
    }

    /// Forgets what happened up to now: a watch from before must list anew.
    pub fn compact(&mut self) {
        self.log.clear();
    }

    /// Whether a watch from this version can be served.
    pub fn is_known(&self, version: u64) -> bool {
        version == self.revision || self.log.front().is_some_and(|oldest| oldest.revision <= version + 1)
    }

    /// What a watch is to be told of after this version: lines, and the version that they lead to.
    pub fn events(&self, target: &Target, after: u64) -> (Vec<u8>, u64) {
        let mut lines = Vec::new();
        let skip = self.log.partition_point(|event| event.revision <= after);
        for event in self.log.iter().skip(skip) {
            if event.resource == target.resource && target.holds(&event.namespace, &event.object.value) {
                lines.extend_from_slice(format!(r#"{{"type":"{}","object":"#, event.kind).as_bytes());
                lines.extend_from_slice(&event.object.bytes);
                lines.extend_from_slice(b"}\n");
            }
        }
        (lines, self.revision)
    }
}

/// RFC 7386, and for a strategic patch conditions by their type.
fn merge(into: &mut Value, patch: &Value, strategic: bool) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, change) in fields {
        match change {
            Value::Null => {
                if let Some(into) = into.as_object_mut() {
                    into.remove(key);
                }
            }
            Value::Array(new) if strategic && key == "conditions" => {
                let mut all = into[key].as_array().cloned().unwrap_or_default();
                for condition in new {
                    match all.iter_mut().find(|known| known["type"] == condition["type"]) {
                        Some(known) => merge(known, condition, strategic),
                        None => all.push(condition.clone()),
                    }
                }
                into[key] = Value::Array(all);
            }
            change => merge(&mut into[key], change, strategic),
        }
    }
}
