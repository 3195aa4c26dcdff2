//! The client of `cargo xtask load`: HTTP/2 over TLS to one server on loopback, many requests at a time on a few connections.
//!
//! It spends little itself, and asks only for what is measured: bytes are counted, not parsed.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a client lets the server send ahead, per stream and per connection, in bytes.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const JSON: &str = "application/json";

/// Some connections to one server.
pub struct Client {
    port: u16,
    token: String,
    connections: Vec<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Connects `connections` times. `authority` is the file with the cluster's CA.
    pub async fn connect(port: u16, token: &str, authority: &Path, connections: usize) -> Result<Client> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority).with_context(|| format!("reading {}", authority.display()))? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let mut made = Vec::with_capacity(connections);
        for _ in 0..connections {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
            let mut builder = Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
            let (requests, connection) = builder.handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            made.push(requests);
        }
        Ok(Client { port, token: token.into(), connections: made })
    }

    /// Sends the request number `i`: those are dealt to the connections in turn.
    pub async fn send(&self, i: usize, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{}{path}", self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::ACCEPT, JSON);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let mut connection = self.connections[i % self.connections.len()].clone();
        connection.ready().await?;
        Ok(connection.send_request(request.body(Full::new(body))?).await?)
    }

    /// The same, to the end of the answer; how many bytes that had.
    pub async fn call(&self, i: usize, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<usize> {
        let answer = self.send(i, method, path, content_type, body).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        let (mut length, mut first) = (0, Bytes::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                length += data.len();
                if first.is_empty() {
                    first = data;
                }
            }
        }
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&first));
        }
        Ok(length)
    }

    pub async fn get(&self, i: usize, path: &str) -> Result<usize> {
        self.call(i, Method::GET, path, "", Bytes::new()).await
    }

    /// The whole body of a GET.
    pub async fn read(&self, path: &str) -> Result<Bytes> {
        Ok(self.send(0, Method::GET, path, "", Bytes::new()).await?.into_body().collect().await?.to_bytes())
    }
}
