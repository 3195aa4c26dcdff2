//! Misbehaviour below a request: HTTP/2 frames that a well-meaning client never sends, heads and bodies that never end.

use super::*;
use tokio::time::Instant;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The payload of a frame that is sent without asking.
const FRAME_BYTES: usize = 16_384;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A head without compression: literal fields, never indexed.
fn fields(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let authorization = format!("Bearer {TOKEN}");
    let pseudo = [(":method", method), (":scheme", "https"), (":path", path), (":authority", "x"), ("authorization", &authorization)];
    let mut out = vec![];
    for (name, value) in pseudo.iter().chain(more) {
        out.push(0x10);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte of length");
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

async fn connect_h2(address: SocketAddr) -> TlsStream<TcpStream> {
    let mut config = pki::tls::trusting_client(None).expect("a client");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.expect("a connection");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("h2");
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("a preface");
    stream
}

/// What came of a flood: how much the server took, and the kinds of frames that it sent, until it closed or all was sent.
struct Flood {
    written: usize,
    closed: bool,
    frames: Vec<u8>,
}

async fn flood(address: SocketAddr, pieces: impl Iterator<Item = Vec<u8>>) -> Flood {
    let (mut reader, mut writer) = tokio::io::split(connect_h2(address).await);
    let write = async {
        let mut written = 0;
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                return (written, true);
            }
            written += piece.len();
        }
        (written, writer.flush().await.is_err())
    };
    let read = async {
        let (mut answer, mut piece) = (vec![], vec![0; 1 << 16]);
        while let Ok(length) = reader.read(&mut piece).await {
            if length == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..length]);
        }
        answer
    };
    tokio::pin!(write, read);
    // All is sent, and the server may have said nothing about it; or it hung up.
    let exchange = async {
        tokio::select! {
            (written, closed) = &mut write => {
                let answer = tokio::time::timeout(Duration::from_secs(2), &mut read).await;
                (written, closed || answer.is_ok(), answer.unwrap_or_default())
            }
            answer = &mut read => (0, true, answer),
        }
    };
    let (written, closed, answer) = tokio::time::timeout(PATIENCE, exchange).await.expect("the server takes it or hangs up");
    let mut frames = vec![];
    let mut rest = answer.as_slice();
    while let [a, b, c, kind, ..] = *rest {
        frames.push(kind);
        rest = rest.get(9 + u32::from_be_bytes([0, a, b, c]) as usize..).unwrap_or_default();
    }
    Flood { written, closed, frames }
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
}

async fn still_answers(address: SocketAddr) {
    assert_eq!(sent(address, head("GET", "/api/v1/namespaces", "").as_bytes()).await, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_and_nothing_else() {
    const MEMORY_BYTES: usize = 256 << 20;
    let (address, _stop) = listening().await;
    still_answers(address).await;
    let before = resident();
    let get = fields("GET", "/api/v1/namespaces", &[]);

    // Requests that are taken back as soon as they are made.
    let reset = (0..20_000u32).map(|i| {
        let stream = 2 * i + 1;
        [frame(HEADERS, END_STREAM | END_HEADERS, stream, &get), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
    let rapid_reset = flood(address, reset).await;
    still_answers(address).await;
    assert!(
        rapid_reset.closed && rapid_reset.frames.contains(&GOAWAY),
        "rapid reset: {} bytes, {:?}",
        rapid_reset.written,
        rapid_reset.frames.last()
    );

    // A head that goes on for ever.
    let padding: Vec<u8> = (0..FRAME_BYTES / 128).flat_map(|_| [&[0x10, 1, b'x', 124][..], &[b'y'; 124]].concat()).take(FRAME_BYTES).collect();
    let endless = std::iter::once(frame(HEADERS, END_STREAM, 1, &get)).chain((0..4_000).map(|_| frame(CONTINUATION, 0, 1, &padding)));
    let continuation = flood(address, endless).await;
    still_answers(address).await;
    assert!(continuation.closed && continuation.written < 32 << 20, "continuations: {} bytes were taken", continuation.written);

    // More requests at a time than are allowed, all of which want to send a body.
    let post = fields("POST", "/api/v1/namespaces/default/configmaps", &[("content-type", "application/json")]);
    let open = (0..5_000u32).map(|i| frame(HEADERS, END_HEADERS, 2 * i + 1, &post));
    let streams = flood(address, open).await;
    still_answers(address).await;
    assert!(streams.closed || streams.frames.contains(&RST_STREAM), "too many streams: {:?}", streams.frames);

    // A body on a stream that nobody opened, frames that are no frames, settings that are nonsense.
    for nonsense in [frame(DATA, 0, 7, b"x"), vec![0xff; 4096], frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), frame(SETTINGS, 0, 3, &[1])] {
        let answer = flood(address, std::iter::once(nonsense)).await;
        assert!(answer.closed, "{:?}", answer.frames);
    }
    still_answers(address).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < MEMORY_BYTES, "{} MiB more than before the floods", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bodies_that_are_too_long_cost_little_memory() {
    const SENDERS: usize = 12;
    const MEMORY_BYTES: usize = 256 << 20;
    let (address, _stop) = listening().await;
    let before = resident();
    let body = vec![b' '; api::limits::REQUEST_BODY_BYTES_MAX + (1 << 20)];
    let request = Bytes::from(with_body("POST", "/api/v1/namespaces/default/configmaps", "application/json", &body));
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..SENDERS {
        let request = request.clone();
        senders.spawn(async move { sent(address, &request).await });
    }
    while let Some(code) = senders.join_next().await {
        let code = code.expect("no panic");
        assert!(code.is_none_or(|code| code == 413 || code == 429), "{code:?}");
    }
    still_answers(address).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < MEMORY_BYTES, "{} MiB more than before", grown >> 20);
}

/// How long until the server ends a connection on which `bytes` were sent and no more; the first line of what it answered before.
///
/// The clock stands still but for what is waited for, so that a minute passes at once.
async fn ends_after(what: &str, address: SocketAddr, mut stream: TlsStream<TcpStream>, bytes: &[u8]) -> (Duration, String) {
    stream.write_all(bytes).await.expect("half a request");
    stream.flush().await.expect("half a request");
    // What was sent has arrived when a later request has been answered.
    still_answers(address).await;
    tokio::time::pause();
    let started = Instant::now();
    let mut answer = vec![];
    let mut piece = [0; 4096];
    let read = async {
        while let Ok(length) = stream.read(&mut piece).await {
            if length == 0 {
                break;
            }
            // An answer alone is no end: the connection must go too.
            answer.extend_from_slice(&piece[..length]);
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(600), read).await;
    let took = started.elapsed();
    tokio::time::resume();
    assert!(ended.is_ok(), "{what}: the server keeps a connection on which nothing happens, after {:?}", String::from_utf8_lossy(&answer));
    (took, String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().into())
}

/// Longer than any of the server's patience with one request.
const TOO_LONG: Duration = Duration::from_secs(100);

#[tokio::test]
async fn who_never_goes_on_is_cut_off() {
    let (address, _stop) = listening().await;
    let half_body = with_body("POST", "/api/v1/namespaces", "application/json", &[b'{'; 1000]);
    // Who says that the connection shall be kept is no better.
    let kept = String::from_utf8_lossy(&half_body).replace("Connection: close\r\n", "").into_bytes();
    let unread = head("GET", "/api/v1/namespaces", "Content-Length: 1000\r\n").replace("Connection: close\r\n", "");
    let chunk = head("PUT", "/api/v1/namespaces/default", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n") + "ff\r\n{";
    let cases: [(&str, &[u8]); 6] = [
        ("nothing after the handshake", b""),
        ("half a head", b"GET /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nX-Half: "),
        ("half a body", &half_body[..half_body.len() - 500]),
        ("half a body on a connection to keep", &kept[..kept.len() - 500]),
        ("half a body that nobody reads", unread.as_bytes()),
        ("half a chunk", chunk.as_bytes()),
    ];
    for (what, bytes) in cases {
        let (took, answer) = ends_after(what, address, connect(address).await, bytes).await;
        assert!(took < TOO_LONG, "{what}: cut off after {took:?}");
        assert!(answer.is_empty() || refused_line(&answer), "{what}: {answer}");
    }
    // Over HTTP/2: half a preface is sent by hand, and a whole one with nothing behind it.
    let mut config = pki::tls::trusting_client(None).expect("a client");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").expect("a name"), tcp).await.expect("h2");
    let (took, _) = ends_after("half a preface", address, stream, &PREFACE[..10]).await;
    assert!(took < TOO_LONG, "half a preface: cut off after {took:?}");
    let (took, _) = ends_after("a preface alone", address, connect_h2(address).await, b"").await;
    assert!(took < TOO_LONG, "a preface with nothing behind it: cut off after {took:?}");
}

fn refused_line(line: &str) -> bool {
    line.split_whitespace().nth(1).is_some_and(|code| matches!(code, "200" | "400" | "408" | "504"))
}

#[tokio::test]
async fn what_would_cost_much_is_refused_before_it_does() {
    let (address, _stop) = listening().await;
    let started = std::time::Instant::now();
    let definition = |name: &str, a: Value| {
        let spec = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": a}}}});
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{name}s.example.com")},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": format!("{name}s"), "singular": name, "kind": name, "listKind": format!("{name}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": spec}}]},
        })
    };
    let cubed = "self.all(x, self.all(y, self.all(z, x + y == z)))";
    let texts = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": cubed}]});
    let matched = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": "self.all(x, x.matches('(a{1,1000}){1,1000}'))"}]});
    for (what, bad) in [
        ("a pattern that is huge when it is compiled", definition("huge", json!({"type": "string", "pattern": "(a{1,1000}){1,1000}"}))),
        ("a rule of cubic cost", definition("cubic", texts)),
        ("a huge pattern in a rule", definition("matched", matched)),
        (
            "a rule that is nested without end",
            definition("nested", json!({"type": "string", "x-kubernetes-validations": [{"rule": "(".repeat(50_000)}]})),
        ),
        (
            "a schema that is nested without end",
            definition("deep", (0..150).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}))),
        ),
    ] {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let code = sent(address, &with_body("POST", path, "application/json", bad.to_string().as_bytes())).await;
        // What is merely deep may be taken: it costs no more than its length.
        assert!(refused(code) || what.starts_with("a schema"), "{what}: {code:?}");
    }
    let selector = format!("/api/v1/pods?labelSelector={}", "a%20in%20(b),".repeat(4_000));
    assert!(sent(address, head("GET", &selector, "").as_bytes()).await.is_some());
    still_answers(address).await;
    assert!(started.elapsed() < PATIENCE, "all of it took {:?}", started.elapsed());
}
