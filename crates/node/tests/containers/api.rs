//! A stand-in for the API server, in memory: enough of GET, LIST, WATCH, POST, PATCH and DELETE for a node agent.
//!
//! It knows no kinds. What must stay true: a watch shows every change after its version, and a status patch with an old
//! resourceVersion is a conflict, as on the real one.

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};
use tokio::sync::watch;

type Key = (String, String, String);
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, &'static str, Key, Value)>,
}

/// The stand-in. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

fn body(status: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn failure(code: u16, reason: &str) -> Answer {
    let value = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code });
    body(StatusCode::from_u16(code).unwrap(), &value)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// Resource, namespace, name and subresource in a path.
fn parse(path: &str) -> (String, String, String, String) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let get = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
    if get(0) == "namespaces" && rest.len() > 2 { (get(2), get(1), get(3), get(4)) } else { (get(0), String::new(), get(1), get(2)) }
}

impl Api {
    pub fn new() -> Api {
        Api { state: Arc::default(), changed: Arc::new(watch::channel(0).0) }
    }

    /// A client of this API.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        client::transport::in_process(tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        }))
    }

    fn put(&self, state: &mut State, type_: &'static str, key: Key, mut object: Value) -> Value {
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        if type_ == "DELETED" {
            state.objects.remove(&key);
        } else {
            state.objects.insert(key.clone(), object.clone());
        }
        state.log.push((state.revision, type_, key, object.clone()));
        self.changed.send_replace(state.revision);
        object
    }

    /// Creates an object as a user does.
    pub fn create(&self, resource: &str, mut object: Value) -> Value {
        let mut state = self.state.lock();
        let text = |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text(&object, "namespace"), text(&object, "name"));
        if text(&object, "uid").is_empty() {
            object["metadata"]["uid"] = format!("uid-{}", state.revision + 1).into();
        }
        object["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z".into();
        self.put(&mut state, "ADDED", key, object)
    }

    /// The object as it is now.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.state.lock().objects.iter().filter(|(key, _)| key.0 == resource).map(|(_, object)| object.clone()).collect()
    }

    /// Marks a pod for deletion, as the API server does for `kubectl delete`.
    pub fn delete_gracefully(&self, namespace: &str, name: &str, seconds: i64) {
        let mut state = self.state.lock();
        let key = ("pods".to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = state.objects[&key].clone();
        object["metadata"]["deletionTimestamp"] = jiff::Timestamp::now().to_string().into();
        object["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
        self.put(&mut state, "MODIFIED", key, object);
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, payload) = request.into_parts();
        let payload = payload.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let (resource, namespace, name, subresource) = parse(head.uri.path());
        let key = (resource.clone(), namespace.clone(), name.clone());
        let read = || serde_json::from_slice::<Value>(&payload).unwrap_or_default();
        match head.method {
            Method::GET if !name.is_empty() => match self.get(&resource, &namespace, &name) {
                Some(object) => body(StatusCode::OK, &object),
                None => failure(404, "NotFound"),
            },
            Method::GET if query.contains("watch=true") => {
                let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).and_then(|text| text.parse().ok()).unwrap_or(0);
                self.watch(resource, from)
            }
            Method::GET => {
                let revision = self.state.lock().revision.to_string();
                body(
                    StatusCode::OK,
                    &json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": revision }, "items": self.list(&resource) }),
                )
            }
            Method::POST if subresource == "token" => {
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
                let mut answer = read();
                answer["status"] = json!({ "token": "a-token", "expirationTimestamp": expires.to_string() });
                body(StatusCode::CREATED, &answer)
            }
            Method::POST => {
                let mut object = read();
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if self.get(&resource, &namespace, &name).is_some() {
                    return failure(409, "AlreadyExists");
                }
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = namespace.into();
                }
                body(StatusCode::CREATED, &self.create(&resource, object))
            }
            Method::PATCH => {
                let patch = read();
                let mut state = self.state.lock();
                let Some(mut object) = state.objects.get(&key).cloned() else { return failure(404, "NotFound") };
                let expected = &patch["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != object["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict");
                }
                merge(&mut object, &patch);
                body(StatusCode::OK, &self.put(&mut state, "MODIFIED", key, object))
            }
            Method::DELETE => {
                let mut state = self.state.lock();
                let Some(object) = state.objects.get(&key).cloned() else { return failure(404, "NotFound") };
                let uid = &read()["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                body(StatusCode::OK, &self.put(&mut state, "DELETED", key, object))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn watch(&self, resource: String, from: u64) -> Answer {
        let (state, changed) = (self.state.clone(), self.changed.subscribe());
        let events = stream::unfold((state, changed, from), move |(state, mut changed, from)| {
            let resource = resource.clone();
            async move {
                loop {
                    changed.borrow_and_update();
                    let (mut text, mut newest) = (String::new(), from);
                    for (revision, type_, key, object) in state.lock().log.iter().filter(|entry| entry.0 > from) {
                        newest = *revision;
                        if key.0 == resource {
                            text.push_str(&json!({ "type": type_, "object": object }).to_string());
                            text.push('\n');
                        }
                    }
                    if !text.is_empty() {
                        return Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), (state, changed, newest)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(events.boxed())))
    }
}
