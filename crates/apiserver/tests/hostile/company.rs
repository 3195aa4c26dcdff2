//! Many watchers on one HTTP/2 connection, and among them some who do not read and some who leave.

use super::*;
use futures::{StreamExt, stream};
use hyper::{Method, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

type Requests = http2::SendRequest<Full<Bytes>>;

/// So many read all the time, so many never until all is over, and so many leave in between.
const READERS: usize = 8;
const SILENT: usize = 3;
const LEAVING: usize = 3;
/// More changes than a watcher's queue, what the server sends ahead, and what a client takes without reading hold together.
const CHANGES: usize = 3072;
const STREAM_WINDOW_BYTES: u32 = 65_535;

async fn requests(address: SocketAddr) -> Requests {
    let mut config = pki::tls::trusting_client(None).expect("a client");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.expect("a connection");
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("h2");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(64 << 20);
    let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    requests
}

async fn ask(requests: &Requests, method: Method, path: &str, body: String) -> Response<Incoming> {
    let request = Request::builder().method(method).uri(format!("https://127.0.0.1{path}")).header(header::AUTHORIZATION, format!("Bearer {TOKEN}"));
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body.into())).expect("a request");
    requests.clone().send_request(request).await.expect("an answer")
}

/// Reads events until the watch ends or `CHANGES` have come: their versions, in the order in which they came.
async fn versions(mut body: Incoming) -> Vec<u64> {
    let (mut text, mut seen) = (Vec::new(), Vec::new());
    while seen.len() < CHANGES
        && let Some(Ok(frame)) = body.frame().await
    {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).expect("an event");
            assert_eq!(event["type"], "ADDED");
            seen.push(event["object"]["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).expect("a version"));
        }
        text.drain(..whole);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_or_leaves_takes_nothing_from_the_watchers_beside_it() {
    let (address, _stop) = listening().await;
    let (watching, writing) = (requests(address).await, requests(address).await);
    let list = ask(&watching, Method::GET, "/api/v1/namespaces/default/configmaps?limit=1", String::new()).await;
    let list: Value = serde_json::from_slice(&list.into_body().collect().await.expect("a list").to_bytes()).expect("JSON");
    let from = list["metadata"]["resourceVersion"].as_str().expect("a version");
    let path = format!("/api/v1/namespaces/default/configmaps?watch=1&labelSelector=company&resourceVersion={from}");
    let mut watches = stream::iter(0..READERS + SILENT + LEAVING)
        .then(async |_| ask(&watching, Method::GET, &path, String::new()).await.into_body())
        .collect::<Vec<Incoming>>()
        .await;
    let leaving = watches.split_off(READERS + SILENT);
    let silent = watches.split_off(READERS);
    let readers: Vec<_> = watches.into_iter().map(|body| tokio::spawn(versions(body))).collect();

    let create = async |i: usize| {
        let object = json!({"metadata": {"name": format!("company-{i}"), "labels": {"company": ""}}, "data": {"fill": "x".repeat(256)}});
        let answer = ask(&writing, Method::POST, "/api/v1/namespaces/default/configmaps", object.to_string()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.into_body().collect().await.expect("an answer");
    };
    stream::iter(0..CHANGES / 2).map(create).buffer_unordered(16).collect::<Vec<()>>().await;
    drop(leaving);
    stream::iter(CHANGES / 2..CHANGES).map(create).buffer_unordered(16).collect::<Vec<()>>().await;

    let mut all = Vec::new();
    for reader in readers {
        let seen = tokio::time::timeout(PATIENCE, reader).await.expect("who reads gets everything").expect("events");
        assert_eq!(seen.len(), CHANGES);
        assert!(seen.is_sorted_by(|a, b| a < b), "in order, and each once");
        all = seen;
    }
    for body in silent {
        let seen = tokio::time::timeout(PATIENCE, versions(body)).await.expect("who did not read gets an end");
        assert!(seen.len() < CHANGES && all.starts_with(&seen), "up to its end nothing is missing: {} events", seen.len());
    }
}
