//! The protobuf form as a Go client asks for it: objects, lists, watches, errors and metadata over the in-process service.

use api::protobuf;
use apiserver::{Body, Config, Server, User};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use store::memory::Memory;
use tower::Service;

const BOTH: &str = "application/vnd.kubernetes.protobuf,application/json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that has made its first objects.
async fn server() -> Arc<Server> {
    let server = Server::new(Config::new(Arc::new(Memory::default()))).await.expect("the server starts");
    let made = async {
        while !server.health.is_bootstrapped() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, made).await.expect("the first objects are made in time");
    server
}

async fn ask(server: &Arc<Server>, method: &str, path: &str, accept: &str, body: String) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
    let body = http_body_util::Full::new(bytes::Bytes::from(body));
    let admin = User::new("kubernetes-admin", &["system:masters"]);
    server.local_service(admin).call(request.body(body).expect("a well-formed request")).await.expect("an answer")
}

/// The code, the media type and the body of an answer.
async fn get(server: &Arc<Server>, path: &str, accept: &str) -> (StatusCode, String, Vec<u8>) {
    let (parts, body) = ask(server, "GET", path, accept, String::new()).await.into_parts();
    let media_type = parts.headers[header::CONTENT_TYPE].to_str().expect("a media type").to_string();
    (parts.status, media_type, body.collect().await.expect("a whole body").to_bytes().to_vec())
}

async fn make(server: &Arc<Server>, name: &str, content: &str) {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}}, "data": {"k": content}});
    assert_eq!(ask(server, "POST", MAPS, "application/json", object.to_string()).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn objects_lists_and_errors_are_answered_in_protobuf() {
    let server = server().await;
    let content = "x".repeat(100_000);
    for name in ["a", "b", "c"] {
        make(&server, name, &content).await;
    }
    let (code, media_type, body) = get(&server, &format!("{MAPS}/a"), BOTH).await;
    assert_eq!((code, media_type.as_str()), (StatusCode::OK, protobuf::MEDIA_TYPE));
    let object = protobuf::decode(&body).expect("an object");
    let (_, _, plain) = get(&server, &format!("{MAPS}/a"), "application/json").await;
    let plain: Value = serde_json::from_slice(&plain).expect("the object as JSON");
    assert_eq!(object["data"], plain["data"]);
    for member in ["name", "uid", "resourceVersion", "creationTimestamp", "labels"] {
        assert_eq!(object["metadata"].get(member), plain["metadata"].get(member), "{member}");
    }

    let fields = |object: &Value| object["metadata"]["managedFields"][0]["fieldsV1"].clone();
    assert_eq!(fields(&object), fields(&plain));

    // More than goes out in one piece.
    let (_, media_type, body) = get(&server, MAPS, BOTH).await;
    assert_eq!(media_type, protobuf::MEDIA_TYPE);
    let list = protobuf::decode(&body).expect("a list");
    assert_eq!(list["kind"], "ConfigMapList");
    let names: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(list["items"].as_array().expect("items").iter().all(|item| item["data"]["k"] == content.as_str()));
    let (_, _, page) = get(&server, &format!("{MAPS}?limit=1"), BOTH).await;
    let page = protobuf::decode(&page).expect("a page");
    assert_eq!(page["metadata"]["remainingItemCount"], 2);
    assert_ne!(page["metadata"]["continue"], "");

    let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, media_type, body) = get(&server, MAPS, metadata).await;
    let partial = protobuf::decode(&body).expect("metadata");
    assert_eq!((media_type.as_str(), &partial["kind"]), (protobuf::MEDIA_TYPE, &json!("PartialObjectMetadataList")));
    assert_eq!(partial["items"][2]["metadata"]["name"], "c");

    let (code, media_type, body) = get(&server, &format!("{MAPS}/missing"), BOTH).await;
    assert_eq!((code, media_type.as_str()), (StatusCode::NOT_FOUND, protobuf::MEDIA_TYPE));
    let status = protobuf::decode(&body).expect("a Status");
    assert_eq!((&status["reason"], &status["code"], &status["details"]["name"]), (&json!("NotFound"), &json!(404), &json!("missing")));

    // A Table has no message: the next that is accepted is taken, or nothing.
    let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(get(&server, MAPS, table).await.0, StatusCode::NOT_ACCEPTABLE);
    assert_eq!(get(&server, MAPS, &format!("{table},application/json")).await.1, "application/json");
}

#[tokio::test]
async fn a_watch_sends_frames_with_their_length() {
    let server = server().await;
    make(&server, "a", "1").await;
    let path = format!("{MAPS}?watch=true&resourceVersion=0&labelSelector=a");
    let response = ask(&server, "GET", &path, BOTH, String::new()).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], protobuf::WATCH_MEDIA_TYPE);
    let mut body = response.into_body();
    let mut read = Vec::new();
    make(&server, "b", "2").await;
    for name in ["a", "b"] {
        let length = |read: &[u8]| read.first_chunk::<4>().map(|head| 4 + u32::from_be_bytes(*head) as usize);
        while length(&read).is_none_or(|length| read.len() < length) {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("an event in time").expect("a running watch").expect("a whole one");
            read.extend_from_slice(&frame.into_data().expect("data"));
        }
        let frame: Vec<u8> = read.drain(..length(&read).unwrap_or_default()).skip(4).collect();
        assert!(frame.starts_with(b"\x0a\x05ADDED\x12"), "{frame:?}");
        // The object stands in its envelope, at the end.
        let object = frame.windows(4).position(|window| window == protobuf::MAGIC).expect("an envelope");
        assert_eq!(protobuf::decode(&frame[object..]).expect("an object")["metadata"]["name"], name);
    }
}

#[tokio::test]
async fn kinds_of_definitions_have_no_such_form() {
    let server = server().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(ask(&server, "POST", path, BOTH, definition.to_string()).await.status(), StatusCode::CREATED);
    let widgets = "/apis/example.com/v1/widgets";
    let served = async {
        while get(&server, widgets, BOTH).await.0 != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("the kind is served in time");
    assert_eq!(get(&server, widgets, BOTH).await.1, "application/json");
    assert_eq!(get(&server, widgets, protobuf::MEDIA_TYPE).await.0, StatusCode::NOT_ACCEPTABLE);
    let body = protobuf::envelope("example.com/v1", "Widget", b"");
    let request = Request::builder().method("POST").uri(widgets).header(header::CONTENT_TYPE, protobuf::MEDIA_TYPE);
    let request = request.body(http_body_util::Full::new(bytes::Bytes::from(body))).expect("a well-formed request");
    let admin = User::new("kubernetes-admin", &["system:masters"]);
    let answer = server.local_service(admin).call(request).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
