//! Ways to the API server: TLS as a kubeconfig says, or straight into a server in the same process.
//!
//! In-process there is neither socket nor TLS nor HTTP framing: a request is a value handed to the server's service.
//! Everything above the transport is the same code in both cases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Response};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A connection that is not made within this time counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
    kube::Client::try_from(config).map_err(|source| Error::Client { path: path.into(), source })
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
