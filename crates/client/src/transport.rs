//! Ways to the API server: TLS as a kubeconfig says, or straight into a server in the same process.
//!
//! In-process there is neither socket nor TLS nor HTTP framing: a request is a value handed to the server's service.
//! Everything above the transport is the same code in both cases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::ServiceBuilder;

/// A connection that is not made within this time counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What was sent and is not acknowledged for this long ends its connection.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// A connection on which nothing moves is probed after this time,
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// and again at this pace, until an answer comes or [`SILENCE_MAX`] is over.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// An unused connection is kept this long.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be read or understood.
    #[error("the kubeconfig {path} cannot be used")]
    Kubeconfig {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The client cannot be built from it (certificates, keys).
    #[error("no client can be made from the kubeconfig {path}")]
    Client {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

/// A client as the kubeconfig's current context says.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, Error> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|source| Error::Kubeconfig { path: path.into(), source })?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| Error::Kubeconfig { path: path.into(), source })?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Retries are decided by those who know what they are asking for.
    config.default_retry = false;
    over_tls(&config).map_err(|source| Error::Client { path: path.into(), source })
}

/// A client whose connections notice a server that is gone without a word (a power cut, a cut cable): what is sent must be
/// acknowledged in time, and a quiet connection (a watch) is probed.
fn over_tls(config: &kube::Config) -> Result<kube::Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_tcp_user_timeout(Some(SILENCE_MAX));
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let connections: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_MAX).pool_timer(TokioTimer::new()).build(connector);
    let service =
        ServiceBuilder::new().layer(config.base_uri_layer()).option_layer(config.auth_layer()?).map_err(tower::BoxError::from).service(connections);
    Ok(kube::client::ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// A client that talks to a service in this process. Request URIs are paths, without scheme or host.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: tower::Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    kube::Client::new(service, "default")
}
