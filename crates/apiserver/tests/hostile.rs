//! What an API server meets that nobody means well with: over real sockets with TLS, and as bytes of every sort to every verb.
//!
//! Each gets a clear 4xx or a closed connection, and a client beside them is answered all the while.

#[path = "hostile/company.rs"]
mod company;
#[path = "hostile/wire.rs"]
mod wire;

use apiserver::{Config, Server, User, authentication::StaticToken, serve::LocalService};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};
use store::memory::Memory;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// What the pipeline says when a handler panicked.
const GAVE_UP: &str = "failed in an unexpected way";
const TOKEN: &str = "hostile";
/// How long an answer may take while others misbehave.
const PATIENCE: Duration = Duration::from_secs(20);

async fn started() -> Arc<Server> {
    let mut config = Config::new(Arc::new(Memory::default()));
    let user = User::new("hostile", &["system:masters", "system:authenticated"]);
    config.authentication.static_tokens = vec![StaticToken { token: TOKEN.into(), user }];
    let server = Server::new(config).await.expect("the server starts");
    tokio::time::timeout(PATIENCE, async {
        while !server.health.is_bootstrapped() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the first objects are made in time");
    server
}

/// A server on a port of its own, until the token is dropped.
async fn listening() -> (SocketAddr, tokio_util::sync::DropGuard) {
    let server = started().await;
    let authority = pki::Authority::generate("hostile").expect("an authority");
    let issued = authority.issue(&pki::Identity::server("server", vec!["127.0.0.1".into()])).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(listener, pki::tls::server(&issued).expect("TLS"), stop.clone()));
    (address, stop.drop_guard())
}

async fn connect(address: SocketAddr) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(pki::tls::trusting_client(None).expect("a client")));
    let stream = TcpStream::connect(address).await.expect("a connection");
    connector.connect(ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("a handshake")
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n{more}\r\n")
}

/// Sends bytes as they are; the status of the answer, or `None` if the connection was closed without one.
async fn sent(address: SocketAddr, bytes: &[u8]) -> Option<u16> {
    let exchange = async {
        let stream = connect(address).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        // A server that has seen enough closes while this is still writing.
        let write = async {
            let _ = writer.write_all(bytes).await;
            let _ = writer.flush().await;
        };
        let read = async {
            let mut answer = vec![];
            let mut piece = [0; 4096];
            while let Ok(length) = reader.read(&mut piece).await {
                answer.extend_from_slice(&piece[..length]);
                if length == 0 || answer.windows(4).any(|four| four == b"\r\n\r\n") {
                    break;
                }
            }
            answer
        };
        tokio::join!(write, read).1
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or an end in time");
    String::from_utf8_lossy(&answer).split_whitespace().nth(1).and_then(|code| code.parse().ok())
}

fn with_body(method: &str, path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let more = format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
    [head(method, path, &more).as_bytes(), body].concat()
}

fn refused(code: Option<u16>) -> bool {
    code.is_none_or(|code| (400..500).contains(&code))
}

#[tokio::test]
async fn what_is_too_much_or_no_request_is_refused() {
    let (address, _stop) = listening().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let padding = "x".repeat(api::limits::REQUEST_BODY_BYTES_MAX);
    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": padding}}).to_string();
    let text = |bytes: &[u8]| [br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":""#, bytes, br#""}}"#].concat();
    let long_header = head("GET", maps, &format!("X-Long: {}\r\n", "x".repeat(1 << 20)));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a body beyond the limit", with_body("POST", maps, "application/json", large.as_bytes())),
        (
            "a chunk without a length",
            [head("POST", maps, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n").as_bytes(), b"zz\r\n{}\r\n"].concat(),
        ),
        ("a length that is none", head("POST", maps, "Content-Length: many\r\n").into_bytes()),
        ("two lengths", head("POST", maps, "Content-Length: 1\r\nContent-Length: 2\r\n").into_bytes()),
        // In JSON each such byte is taken for U+FFFD, as Go does.
        ("text that is no UTF-8", with_body("POST", maps, "application/yaml", &text(b"\xff\xfe\xc3"))),
        ("half a character", with_body("POST", maps, "application/yaml", &text(b"\xe2\x82"))),
        ("half a surrogate pair in a name", with_body("POST", &maps.replace("default", "\\ud800"), "application/json", &text(b"a"))),
        ("a header without end", long_header.into_bytes()),
        ("no HTTP", b"\x00\x01\x02 what?\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in cases {
        let code = sent(address, &bytes).await;
        assert!(refused(code), "{what}: {code:?}");
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_object = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}},"data":{deep}}}"#);
    for (method, path, content_type) in [
        ("POST", maps, "application/json"),
        ("POST", maps, "application/yaml"),
        ("PATCH", "/api/v1/namespaces/default", "application/merge-patch+json"),
        ("PATCH", "/api/v1/namespaces/default", "application/json-patch+json"),
        ("PATCH", "/api/v1/namespaces/default", "application/strategic-merge-patch+json"),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a?fieldManager=m", "application/apply-patch+yaml"),
        ("DELETE", "/api/v1/namespaces/default/configmaps/a", "application/json"),
    ] {
        for body in [&deep, &deep_object] {
            let code = sent(address, &with_body(method, path, content_type, body.as_bytes())).await;
            assert!(refused(code), "{method} {content_type}: {code:?}");
        }
    }
    // And it still answers.
    assert_eq!(sent(address, head("GET", maps, "").as_bytes()).await, Some(200));
}

#[tokio::test]
async fn connections_that_say_nothing_or_half_of_it_stop_nobody() {
    const SILENT: usize = 200;
    let (address, _stop) = listening().await;
    let mut held = vec![];
    for _ in 0..SILENT {
        held.push(TcpStream::connect(address).await.expect("a connection"));
    }
    // Half a head, half a body.
    let mut halves = vec![];
    for half in [&b"GET /api/v1/namespaces HT"[..], &with_body("POST", "/api/v1/namespaces", "application/json", &[b'{'; 1000])[..700]] {
        let mut stream = connect(address).await;
        stream.write_all(half).await.expect("half a request");
        stream.flush().await.expect("half a request");
        halves.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(sent(address, head("GET", "/api/v1/namespaces", "").as_bytes()).await, Some(200));
    }
    drop((held, halves));
}

static SERVER: LazyLock<(Runtime, LocalService)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(started());
    let service = server.local_service(User::new("hostile", &["system:masters", "system:authenticated"]));
    (runtime, service)
});

fn answer(method: &str, path: &str, content_type: &str, body: Vec<u8>) -> (StatusCode, String) {
    let (runtime, service) = &*SERVER;
    runtime.block_on(async {
        let request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, content_type).header(header::ACCEPT, "application/json");
        let request = request.body(Full::new(Bytes::from(body))).expect("a well-formed request");
        let answer = tokio::time::timeout(PATIENCE, service.clone().call(request)).await.expect("an answer in time").expect("an answer");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a whole body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    })
}

/// A document that is nearly one: cut, with a byte changed, or with something else in its place.
fn nearly(document: Value) -> impl Strategy<Value = Vec<u8>> {
    let bytes = document.to_string().into_bytes();
    let length = bytes.len();
    (0..length, any::<u8>(), 0..4u8, "\\PC{0,20}").prop_map(move |(at, byte, how, text)| {
        let mut bytes = bytes.clone();
        match how {
            0 => bytes.truncate(at),
            1 => bytes[at] = byte,
            2 => drop(bytes.splice(at..at, text.into_bytes())),
            _ => bytes.insert(at, byte),
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_body_is_the_servers_fault(
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            nearly(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "y"}, "managedFields": []}, "data": {"k": "v"}})),
            nearly(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}]}})),
            nearly(json!({"metadata": {"labels": {"$patch": "replace"}, "finalizers": ["a/b"]}, "$setElementOrder/x": [1]})),
            nearly(json!([{"op": "replace", "path": "/metadata/labels", "value": {"a": "b"}}, {"op": "move", "from": "/data", "path": "/x"}])),
        ],
        verb in 0..6usize,
        content_type in 0..7usize,
    ) {
        let (method, path) = [
            ("POST", "/api/v1/namespaces/default/configmaps"),
            ("POST", "/api/v1/namespaces/default/pods?dryRun=All"),
            ("PUT", "/api/v1/namespaces/kube-system?dryRun=All"),
            ("PATCH", "/api/v1/namespaces/kube-system?dryRun=All"),
            ("PATCH", "/api/v1/namespaces/default/configmaps/x?fieldManager=m&dryRun=All"),
            ("DELETE", "/api/v1/namespaces/default/configmaps/none"),
        ][verb];
        let content_type = [
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
            "application/merge-patch+json",
            "application/json-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ][content_type];
        // Some nonsense is answered with 500 and Kubernetes' own words; what must not be is a handler that gave up.
        let (status, text) = answer(method, path, content_type, body.clone());
        prop_assert!(!text.contains(GAVE_UP), "{method} {content_type} {}: {text}", String::from_utf8_lossy(&body));
        prop_assert!(status.as_u16() <= 500, "{status}");
    }
}
