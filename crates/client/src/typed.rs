//! The API for one kind, object by object: what [`kube::Api`] is, by way of [`crate::json`] and with a deadline on each call.

use futures::future::ready;
use futures::{AsyncBufReadExt, Stream, StreamExt};
use kube::Resource;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ListMeta, Request, Status};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::marker::PhantomData;
use tokio::time::timeout;

use crate::json::Json;
use crate::limits;

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// The objects of one kind: of the cluster, or of one namespace.
#[derive(Clone)]
pub struct Api<K> {
    client: kube::Client,
    request: Request,
    kind: PhantomData<fn() -> K>,
}

/// What is left of a deleted object.
#[derive(Debug)]
pub enum Deleted<K> {
    /// It is there until its grace period, or its finalizers, are over.
    Going(Box<K>),
    /// It is gone; the UID, if the server said it.
    Gone(Option<String>),
}

impl<K: Resource<DynamicType = ()> + Json> Api<K> {
    /// Of all namespaces, or of a kind that has none.
    pub fn all(client: kube::Client) -> Api<K> {
        Self::at(client, K::url_path(&(), None))
    }

    /// Of one namespace; of the cluster, if it is empty.
    pub fn namespaced(client: kube::Client, namespace: &str) -> Api<K> {
        Self::at(client, K::url_path(&(), Some(namespace).filter(|namespace| !namespace.is_empty())))
    }
}

impl<K: Json> Api<K> {
    /// At this path.
    pub(crate) fn at(client: kube::Client, path: String) -> Api<K> {
        Api { client, request: Request::new(path), kind: PhantomData }
    }

    async fn text(&self, built: Built) -> Result<String, kube::Error> {
        let built = built.map_err(kube::Error::BuildRequest)?;
        timeout(limits::REQUEST_TIMEOUT, self.client.request_text(built)).await.map_err(|_| timed_out(&self.request.url_path))?
    }

    async fn send(&self, built: Built) -> Result<K, kube::Error> {
        K::from_json(&self.text(built).await?).map_err(kube::Error::SerdeError)
    }

    /// The object of this name.
    pub async fn get(&self, name: &str) -> Result<K, kube::Error> {
        self.send(self.request.get(name, &Default::default())).await
    }

    /// One page of the list (the metadata alone, if so asked), and what the server says of it.
    pub async fn list(&self, params: &ListParams, metadata_only: bool) -> Result<(Vec<K>, ListMeta), kube::Error> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(default)]
            metadata: ListMeta,
            #[serde(default, borrow)]
            items: Option<Vec<&'a RawValue>>,
        }
        let built = if metadata_only { self.request.list_metadata(params) } else { self.request.list(params) };
        let text = self.text(built).await?;
        let page: Page = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
        let items = page.items.unwrap_or_default().into_iter().map(|item| K::from_json(item.get()));
        Ok((items.collect::<Result<_, _>>().map_err(kube::Error::SerdeError)?, page.metadata))
    }

    /// What happens after a version. The deadline is on the beginning of the answer alone.
    pub async fn watch(
        &self,
        params: &WatchParams,
        from: &str,
        metadata_only: bool,
    ) -> Result<impl Stream<Item = Result<WatchEvent<K>, kube::Error>> + Send + use<K>, kube::Error> {
        let built = if metadata_only { self.request.watch_metadata(params, from) } else { self.request.watch(params, from) };
        let mut built = built.map_err(kube::Error::BuildRequest)?;
        // Each event shall be there when it is sent, not when a compressor has enough of them.
        built.headers_mut().insert(http::header::ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
        let begun = timeout(limits::REQUEST_TIMEOUT, self.client.request_stream(built)).await.map_err(|_| timed_out(&self.request.url_path))??;
        Ok(begun.lines().filter_map(|line| ready(line.map_or_else(broken, |line| event(&line)))))
    }

    /// Creates the object.
    pub async fn create(&self, object: &K) -> Result<K, kube::Error> {
        let body = object.to_json().map_err(kube::Error::SerdeError)?;
        self.send(self.request.create(&PostParams::default(), body)).await
    }

    /// Replaces the object. Its resourceVersion, if set, must still be the current one.
    pub async fn replace(&self, name: &str, object: &K) -> Result<K, kube::Error> {
        let body = object.to_json().map_err(kube::Error::SerdeError)?;
        self.send(self.request.replace(name, &PostParams::default(), body)).await
    }

    /// Replaces the object's status. Its resourceVersion, if set, must still be the current one.
    pub async fn replace_status(&self, name: &str, object: &K) -> Result<K, kube::Error> {
        let body = object.to_json().map_err(kube::Error::SerdeError)?;
        self.send(self.request.replace_subresource("status", name, &PostParams::default(), body)).await
    }

    /// Changes the object by a patch.
    pub async fn patch<P: Serialize>(&self, name: &str, params: &PatchParams, patch: &Patch<P>) -> Result<K, kube::Error> {
        self.send(self.request.patch(name, params, patch)).await
    }

    /// Changes the object's status by a patch.
    pub async fn patch_status<P: Serialize>(&self, name: &str, params: &PatchParams, patch: &Patch<P>) -> Result<K, kube::Error> {
        self.send(self.request.patch_subresource("status", name, params, patch)).await
    }

    /// Deletes the object.
    pub async fn delete(&self, name: &str, params: &DeleteParams) -> Result<Deleted<K>, kube::Error> {
        #[derive(Deserialize)]
        struct Answer {
            kind: Option<String>,
            details: Option<Details>,
        }
        #[derive(Deserialize)]
        struct Details {
            uid: Option<String>,
        }
        let text = self.text(self.request.delete(name, params)).await?;
        let answer: Answer = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
        if answer.kind.as_deref() == Some("Status") {
            return Ok(Deleted::Gone(answer.details.and_then(|details| details.uid)));
        }
        K::from_json(&text).map(|object| Deleted::Going(Box::new(object))).map_err(kube::Error::SerdeError)
    }
}

/// One line of a watch; nothing, if it was cut off.
fn event<K: Json>(line: &str) -> Option<Result<WatchEvent<K>, kube::Error>> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let read = || -> Result<_, serde_json::Error> {
        let line: Line = serde_json::from_str(line)?;
        let text = line.object.get();
        Ok(match &*line.kind {
            "ADDED" => WatchEvent::Added(K::from_json(text)?),
            "MODIFIED" => WatchEvent::Modified(K::from_json(text)?),
            "DELETED" => WatchEvent::Deleted(K::from_json(text)?),
            "BOOKMARK" => WatchEvent::Bookmark(serde_json::from_str(text)?),
            _ => WatchEvent::Error(serde_json::from_str(text)?),
        })
    };
    match read() {
        Ok(event) => Some(Ok(event)),
        Err(error) if error.is_eof() => None,
        Err(error) => Some(Err(match serde_json::from_str::<Status>(line) {
            Ok(status) => kube::Error::Api(Box::new(status)),
            Err(_) => kube::Error::SerdeError(error),
        })),
    }
}

/// How a watch broke; nothing, if the other side has merely closed the connection.
fn broken<T>(error: std::io::Error) -> Option<Result<T, kube::Error>> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        let io = this.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof) || this.to_string().contains("unexpected EOF during chunk") {
            return None;
        }
        // An I/O error's own source is what is behind the error that it wraps.
        cause = match io.and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => this.source(),
        };
    }
    Some(Err(kube::Error::ReadEvents(error)))
}

pub(crate) fn timed_out(what: &str) -> kube::Error {
    kube::Error::Service(format!("{what}: no answer within {} s", limits::REQUEST_TIMEOUT.as_secs()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::TryStreamExt;
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::ConfigMap;

    /// A server that answers everything with this.
    fn answering(body: &'static str) -> Api<ConfigMap> {
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| async move {
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(body.as_bytes()))))
        });
        Api::namespaced(crate::transport::in_process(service), "ns")
    }

    #[tokio::test]
    async fn lists_are_read_object_by_object() {
        let list = r#"{"kind":"ConfigMapList","metadata":{"resourceVersion":"7","continue":"more"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#;
        let (items, said) = answering(list).list(&ListParams::default(), false).await.unwrap();
        assert_eq!(items.iter().filter_map(|map| map.metadata.name.as_deref()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((said.resource_version.as_deref(), said.continue_.as_deref()), (Some("7"), Some("more")));
        let (none, _) = answering(r#"{"items":null}"#).list(&ListParams::default(), false).await.unwrap();
        assert!(none.is_empty());
        assert!(matches!(answering(r#"{"items":[{"metadata":3}]}"#).list(&ListParams::default(), false).await, Err(kube::Error::SerdeError(_))));
    }

    #[tokio::test]
    async fn a_watch_is_read_line_by_line_in_any_order_of_its_fields_and_its_cut_off_end_is_dropped() {
        let lines = concat!(
            r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#,
            "\n",
            r#"{"object":{"metadata":{"name":"b"}},"type":"DELETED"}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}"#,
            "\n",
            r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old","status":"Failure"}}"#,
            "\n",
            r#"{"type":"ADDED","object":{"metada"#,
        );
        let events = answering(lines).watch(&WatchParams::default(), "1", false).await.unwrap();
        let events: Vec<WatchEvent<ConfigMap>> = events.try_collect().await.unwrap();
        let told: Vec<String> = events
            .iter()
            .map(|event| match event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) => format!("+{}", map.metadata.name.as_deref().unwrap()),
                WatchEvent::Deleted(map) => format!("-{}", map.metadata.name.as_deref().unwrap()),
                WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version.clone(),
                WatchEvent::Error(status) => status.code.to_string(),
            })
            .collect();
        assert_eq!(told, ["+a", "-b", "9", "410"]);
    }

    #[tokio::test]
    async fn what_is_left_of_a_deleted_object_is_told_apart() {
        let gone = answering(r#"{"kind":"Status","status":"Success","details":{"name":"a","uid":"u"}}"#);
        assert!(matches!(gone.delete("a", &DeleteParams::default()).await.unwrap(), Deleted::Gone(Some(uid)) if uid == "u"));
        let going = answering(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#);
        assert!(
            matches!(going.delete("a", &DeleteParams::default()).await.unwrap(), Deleted::Going(map) if map.metadata.name.as_deref() == Some("a"))
        );
    }

    #[test]
    fn a_connection_that_was_closed_is_no_failure() {
        let closed = std::io::Error::other(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        assert!(broken::<()>(closed).is_none());
        assert!(broken::<()>(std::io::Error::other("no route")).is_some());
    }
}
