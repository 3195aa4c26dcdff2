//! As much of an API server as informers need: lists and watches of whole kinds, in this process.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Objects by resource, and who watches them.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(String, String), Value>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
}

impl Api {
    /// A client that talks to it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        client::transport::in_process(tower::service_fn(move |request: http::Request<Body>| {
            let response = api.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        }))
    }

    /// Creates or changes an object.
    pub fn set(&self, resource: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["uid"] = json!(format!("uid-{name}"));
        let known = state.objects.insert((resource.to_owned(), name), object.clone());
        state.tell(resource, if known.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    /// Deletes an object.
    pub fn delete(&self, resource: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let mut object = state.objects.remove(&(resource.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        state.tell(resource, "DELETED", object);
    }

    fn answer(&self, request: &http::Request<Body>) -> http::Response<BoxBody<Bytes, Infallible>> {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let mut state = self.0.lock().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        if query.contains("watch=true") {
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok()).unwrap_or(0);
            // What has changed between list and watch.
            for ((kind, _), object) in &state.objects {
                let revision: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                if *kind == resource && revision > from {
                    let _ = sender.send(event("MODIFIED", object));
                }
            }
            state.watchers.push((resource, sender));
        } else {
            let items: Vec<&Value> = state.objects.iter().filter(|((kind, _), _)| *kind == resource).map(|(_, object)| object).collect();
            let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": state.revision.to_string() }, "items": items });
            let _ = sender.send(Bytes::from(list.to_string()));
        }
        let chunks = futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|chunk| (chunk, receiver)) });
        let frames = chunks.map(|chunk| Ok(http_body::Frame::data(chunk)));
        http::Response::builder().header("content-type", "application/json").body(BoxBody::new(StreamBody::new(frames))).unwrap()
    }
}

impl State {
    fn tell(&mut self, resource: &str, kind: &str, object: Value) {
        let line = event(kind, &object);
        self.watchers.retain(|(watched, sender)| watched != resource || sender.send(line.clone()).is_ok());
    }
}

fn event(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}
