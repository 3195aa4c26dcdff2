//! A client of the node API, as the API server is one: mutual TLS, plain requests, and exec over WebSocket.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::{io::AsyncReadExt, net::TcpStream};

pub struct Peer {
    config: Arc<rustls::ClientConfig>,
    port: u16,
}

impl Peer {
    fn with(authority: &pki::Authority, port: u16, identity: Option<pki::Identity>) -> Peer {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity.map(|identity| authority.issue(&identity).unwrap()) {
            Some(issued) => builder.with_client_auth_cert(vec![issued.certificate().unwrap()], issued.key().unwrap()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        Peer { config: Arc::new(config), port }
    }

    /// The API server.
    pub fn new(authority: &pki::Authority, port: u16) -> Peer {
        Peer::with(authority, port, Some(pki::Identity::apiserver_kubelet_client()))
    }

    /// Someone known who has no business here.
    pub fn stranger(authority: &pki::Authority, port: u16) -> Peer {
        Peer::with(authority, port, Some(pki::Identity::node("n2")))
    }

    /// Someone without a certificate.
    pub fn anonymous(authority: &pki::Authority, port: u16) -> Peer {
        Peer::with(authority, port, None)
    }

    async fn send(&self, request: http::request::Builder) -> http::Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request.header("host", "node").body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    }

    /// Status and text of an answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(http::Request::get(path)).await;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&text).into_owned())
    }

    /// What a command wrote to its standard output, and the status word at its end, by `v4.channel.k8s.io`.
    pub async fn exec(&self, path: &str) -> (String, &'static str) {
        let request = http::Request::get(path)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "v4.channel.k8s.io");
        let answer = self.send(request).await;
        assert_eq!(answer.status(), 101, "exec is upgraded");
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let (mut output, mut status) = (Vec::new(), "none");
        // Frames of a server are not masked: two bytes of head, two more where the length needs them.
        while let Ok(head) = stream.read_u8().await {
            let short = stream.read_u8().await.unwrap() & 0x7f;
            let length = if short == 126 { usize::from(stream.read_u16().await.unwrap()) } else { usize::from(short) };
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            match (head & 0x0f, payload.split_first()) {
                (8, _) => break,
                (_, Some((1, text))) => output.extend_from_slice(text),
                (_, Some((3, text))) => status = if String::from_utf8_lossy(text).contains("\"Success\"") { "Success" } else { "Failure" },
                _ => {}
            }
        }
        (String::from_utf8_lossy(&output).into_owned(), status)
    }
}
