//! Connections: to a node over TLS as the API server, or to a pod in the clear.

use super::target::NodeAddress;
use crate::{Body, Error, Server, body};
use api::Status;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pki::Issued;
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// How long connecting to a node may take, TLS included. Beyond it the request fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a node's refusal that are passed on.
const REFUSAL_BYTES_MAX: usize = 8 * 1024;

/// How nodes are reached.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// With what the server goes to nodes; without, logs and exec are not available.
    pub client: Option<Issued>,
    /// The same certificate in files that may be renewed: new connections use what they hold.
    pub client_files: Option<Arc<pki::reload::CertificateFiles>>,
    /// Who signs the nodes' serving certificates; by default the authority that issued `client`.
    pub authorities_pem: Option<String>,
}

/// The way to nodes.
pub struct Nodes {
    connector: Option<TlsConnector>,
}

/// Why a node could not be asked. The text goes to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("this API server has no credentials for nodes")]
    NoCredentials,
    #[error("dial tcp {place}: {source}")]
    Dial { place: String, source: std::io::Error },
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(String),
    #[error("{0} is not a name that can be certified")]
    Name(String),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
}

impl Nodes {
    pub fn new(config: &crate::Config) -> Result<Nodes, Error> {
        let Some(issued) = &config.tunnel.client else { return Ok(Nodes { connector: None }) };
        let authorities = config.tunnel.authorities_pem.as_deref().unwrap_or(&issued.authority_pem);
        let tls = match &config.tunnel.client_files {
            Some(files) => pki::tls::client_of(authorities, files.clone()),
            None => pki::tls::client(authorities, Some(issued)),
        };
        let tls = tls.map_err(|error| Error::Configuration(error.to_string()))?;
        Ok(Nodes { connector: Some(TlsConnector::from(Arc::new(tls))) })
    }

    /// Sends one request to a node on a connection of its own, which may be upgraded.
    pub(super) async fn send(&self, _server: &Server, node: &NodeAddress, request: Request<Body>) -> Result<Response<Incoming>, ConnectError> {
        let connector = self.connector.as_ref().ok_or(ConnectError::NoCredentials)?;
        let name = ServerName::try_from(node.host.clone()).map_err(|_| ConnectError::Name(node.host.clone()))?;
        let connect = async {
            let tcp = dial(node).await?;
            connector.connect(name, tcp).await.map_err(|source| ConnectError::Dial { place: node.to_string(), source })
        };
        let tls = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| ConnectError::Timeout(node.to_string()))??;
        send_on(tls, node, request).await
    }
}

/// Sends one request to a pod or other plain HTTP server.
pub(super) async fn send_plain(place: &NodeAddress, request: Request<Body>) -> Result<Response<Incoming>, ConnectError> {
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, dial(place)).await.map_err(|_| ConnectError::Timeout(place.to_string()))??;
    send_on(tcp, place, request).await
}

async fn dial(place: &NodeAddress) -> Result<TcpStream, ConnectError> {
    let tcp =
        TcpStream::connect((place.host.as_str(), place.port)).await.map_err(|source| ConnectError::Dial { place: place.to_string(), source })?;
    // Keystrokes should not wait for each other. Failing to say so costs only latency.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

async fn send_on(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    place: &NodeAddress,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, ConnectError> {
    if let Ok(host) = HeaderValue::from_str(&place.to_string()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// A node's answer as the body of ours.
pub(super) fn incoming(body: Incoming) -> Body {
    Body::new(body)
}

/// What a node's refusal is to the client: its words, with its code.
pub(super) async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status();
    let text = match body::read(incoming(response.into_body()), REFUSAL_BYTES_MAX).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_string(),
        Err(_) => String::new(),
    };
    if let Some(status) = serde_json::from_str(&text).ok().as_ref().and_then(Status::from_value) {
        return status;
    }
    let text = if text.is_empty() { format!("the node answered {code}") } else { text };
    match code.as_u16() {
        400 => Status::bad_request(text),
        404 => Status::custom(404, "NotFound", text),
        401 | 403 => Status::internal(format!("the node refused the API server: {text}")),
        500.. => Status::internal(text),
        code => Status::custom(code, "", text),
    }
}
