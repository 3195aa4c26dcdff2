//! Asking the nodes for their votes on the cluster's epoch: `/regent/v1/epoch` of each node's own API, all at once.
//!
//! The nodes answer whoever has a certificate of the API server towards nodes. What does not answer in time is silent.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use membership::cluster::{EPOCH_BYTES_MAX, Epoch, Vote};
use serde::Deserialize;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes that are asked at a time.
const AT_ONCE_MAX: usize = 64;

/// What a node says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// The highest epoch that it has promised.
    pub epoch: Option<Epoch>,
    /// Whether it reaches a server.
    #[serde(default)]
    pub api_reachable: bool,
}

/// How the nodes are asked.
#[derive(Clone)]
pub struct Voters {
    tls: Arc<rustls::ClientConfig>,
}

impl Voters {
    /// With the certificate of an API server towards nodes.
    pub fn new(authorities_pem: &str, certificate: Arc<dyn rustls::client::ResolvesClientCert>) -> Result<Voters> {
        Ok(Voters { tls: Arc::new(pki::tls::client_of(authorities_pem, certificate)?) })
    }

    /// With a certificate that is in memory alone.
    pub fn with(authorities_pem: &str, client: &pki::Issued) -> Result<Voters> {
        Ok(Voters { tls: Arc::new(pki::tls::client(authorities_pem, Some(client))?) })
    }

    /// Asks each node what it has promised.
    pub async fn ask(&self, nodes: &BTreeMap<String, SocketAddr>) -> BTreeMap<String, Said> {
        self.all(nodes, None).await
    }

    /// Asks each node to promise this epoch; answers with what each one has promised now.
    pub async fn promise(&self, nodes: &BTreeMap<String, SocketAddr>, epoch: &Epoch) -> BTreeMap<String, Said> {
        self.all(nodes, Some(epoch)).await
    }

    async fn all(&self, nodes: &BTreeMap<String, SocketAddr>, epoch: Option<&Epoch>) -> BTreeMap<String, Said> {
        let slots = Arc::new(tokio::sync::Semaphore::new(AT_ONCE_MAX));
        let mut asked = JoinSet::new();
        for (name, address) in nodes {
            let (tls, name, address, epoch, slots) = (self.tls.clone(), name.clone(), *address, epoch.cloned(), slots.clone());
            asked.spawn(async move {
                let _slot = slots.acquire_owned().await;
                let said = tokio::time::timeout(ANSWER_TIMEOUT, one(tls, address, epoch.as_ref())).await;
                match said.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not answer in time"))) {
                    Ok(said) => Some((name, said)),
                    Err(error) => {
                        tracing::debug!(node = name, "no vote: {error:#}");
                        None
                    }
                }
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }
}

/// The votes in what was said; who said nothing is silent.
pub fn votes(said: &BTreeMap<String, Said>) -> BTreeMap<String, Vote> {
    said.iter().map(|(name, said)| (name.clone(), Vote::Knows(said.epoch.clone()))).collect()
}

async fn one(tls: Arc<rustls::ClientConfig>, address: SocketAddr, epoch: Option<&Epoch>) -> Result<Said> {
    let stream = tokio::net::TcpStream::connect(address).await.context("connecting")?;
    let name = rustls::pki_types::ServerName::from(address.ip());
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.context("it is not a node of this cluster")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::builder().uri("/regent/v1/epoch").header(http::header::HOST, address.to_string());
    let request = match epoch {
        None => request.body(Full::default())?,
        Some(epoch) => request.method(http::Method::POST).body(Full::new(Bytes::from(serde_json::to_vec(epoch)?)))?,
    };
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 2 * EPOCH_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    // 409: it has promised a higher one, and says which.
    if !status.is_success() && status != http::StatusCode::CONFLICT {
        bail!("it answers {status}: {}", String::from_utf8_lossy(&body));
    }
    let said: Said = serde_json::from_slice(&body).context("it answers with something else")?;
    if said.epoch.as_ref().is_some_and(|epoch| !epoch.is_sensible()) {
        bail!("it names an epoch that is none");
    }
    Ok(said)
}
