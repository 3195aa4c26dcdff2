//! Ways to the API server: TLS as a kubeconfig says, or straight into a server in the same process.
//!
//! In-process there is neither socket nor TLS nor HTTP framing: a request is a value handed to the server's service.
//! Everything above the transport is the same code in both cases.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use tokio::time::Instant;
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
/// How often it is seen whether the kubeconfig has changed, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    /// The user's name cannot stand in a request.
    #[error("no request can be made as the user {name:?}: name a user in visible ASCII characters")]
    UserName {
        /// The name.
        name: String,
    },
}

/// A client as the kubeconfig's current context says. Its credentials are renewed as the file is: see [`Renewed`].
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, Error> {
    from_kubeconfig_at(path, None).await
}

/// The same, but the server is elsewhere than the kubeconfig says (at this node's balancer).
pub async fn from_kubeconfig_at(path: &Path, server: Option<&str>) -> Result<kube::Client, Error> {
    let source = Source { path: path.into(), server: server.map(str::to_owned) };
    let (config, stamps) = source.read().await?;
    let failed = |source| Error::Client { path: path.into(), source };
    let current = Current { connections: connections(&config).map_err(failed)?, stamps, looked_at: Instant::now() };
    let renewed = Renewed { source: Arc::new(source), current: Arc::new(Mutex::new(current)) };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(failed)?)
        .map_err(tower::BoxError::from)
        .service(named(&component(path), renewed));
    Ok(kube::client::ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// Which of Kubernetes' components a kubeconfig is for, by the user that it names.
fn component(path: &Path) -> String {
    let user = Kubeconfig::read_from(path).ok().and_then(|kubeconfig| {
        let current = kubeconfig.current_context?;
        kubeconfig.contexts.into_iter().find(|named| named.name == current)?.context?.user
    });
    component_of(&user.unwrap_or_default())
}

/// Which of Kubernetes' components a user is: `kube-scheduler`, `kubelet`; everybody else is Regent itself.
pub fn component_of(user: &str) -> String {
    match user.strip_prefix("system:") {
        Some(node) if node.starts_with("node:") => "kubelet".into(),
        Some(component) => component.into(),
        None => "regent".into(),
    }
}

/// The authorities (DER) that the kubeconfig trusts for its server.
pub async fn authorities(path: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let (config, _) = Source { path: path.into(), server: None }.read().await?;
    Ok(config.root_cert.unwrap_or_default())
}

type Connections = hyper_util::client::legacy::Client<hyper_rustls::HttpsConnector<HttpConnector>, Body>;

/// Connections that notice a server that is gone without a word (a power cut, a cut cable): what is sent must be
/// acknowledged in time, and a quiet connection (a watch) is probed.
fn connections(config: &kube::Config) -> Result<Connections, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_tcp_user_timeout(Some(SILENCE_MAX));
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_MAX).pool_timer(TokioTimer::new()).build(connector))
}

/// Where a client's configuration comes from.
struct Source {
    path: PathBuf,
    server: Option<String>,
}

/// What tells one content of a file from another without reading it.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

impl Source {
    async fn read(&self) -> Result<(kube::Config, Vec<(PathBuf, Stamp)>), Error> {
        let failed = |source| Error::Kubeconfig { path: self.path.clone(), source };
        // Taken before the content, so that a change in between is seen the next time.
        let own = (self.path.clone(), stamp(&self.path));
        let mut kubeconfig = Kubeconfig::read_from(&self.path).map_err(failed)?;
        if let Some(server) = &self.server {
            kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()).for_each(|cluster| cluster.server = Some(server.clone()));
        }
        let infos = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
        let named = infos.flat_map(|info| [&info.client_certificate, &info.client_key]).flatten().map(PathBuf::from);
        let stamps = std::iter::once(own).chain(named.map(|file| (file.clone(), stamp(&file)))).collect();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Retries are decided by those who know what they are asking for.
        config.default_retry = false;
        Ok((config, stamps))
    }
}

struct Current {
    connections: Connections,
    stamps: Vec<(PathBuf, Stamp)>,
    looked_at: Instant,
}

/// Connections whose certificate is the one that the kubeconfig holds now. When a file has changed, new requests go over new
/// connections with the new certificate; what runs on the old ones (a watch) goes on until it ends by itself. A file that
/// cannot be used changes nothing.
#[derive(Clone)]
struct Renewed {
    source: Arc<Source>,
    current: Arc<Mutex<Current>>,
}

impl Renewed {
    async fn connections(&self) -> Connections {
        {
            let mut current = self.current.lock();
            if current.looked_at.elapsed() < LOOK_EVERY {
                return current.connections.clone();
            }
            current.looked_at = Instant::now();
            if current.stamps.iter().all(|(path, known)| stamp(path) == *known) {
                return current.connections.clone();
            }
        }
        let made = match self.source.read().await {
            Ok((config, stamps)) => connections(&config).map(|made| (made, stamps)).map_err(|error| error.to_string()),
            Err(error) => Err(std::error::Error::source(&error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))),
        };
        let mut current = self.current.lock();
        match made {
            Ok((made, stamps)) => {
                tracing::info!(kubeconfig = %self.source.path.display(), "the credentials have been renewed");
                (current.connections, current.stamps) = (made, stamps);
            }
            Err(error) => {
                tracing::warn!(kubeconfig = %self.source.path.display(), %error, "the kubeconfig cannot be used; the one before is used on")
            }
        }
        current.connections.clone()
    }
}

impl tower::Service<Request<Body>> for Renewed {
    type Response = Response<hyper::body::Incoming>;
    type Error = tower::BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let renewed = self.clone();
        Box::pin(async move { renewed.connections().await.request(request).await.map_err(Into::into) })
    }
}

/// A service whose requests say which of Kubernetes' components makes them: by this the API server knows who has set what.
pub fn named<S, B>(
    component: &str,
    service: S,
) -> impl tower::Service<Request<Body>, Response = Response<B>, Error = S::Error, Future = S::Future> + Clone + Send + 'static
where
    S: tower::Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
{
    let agent = http::HeaderValue::try_from(format!("{component}/regent")).ok();
    ServiceBuilder::new()
        .map_request(move |mut request: Request<Body>| {
            if let Some(agent) = &agent {
                request.headers_mut().entry(http::header::USER_AGENT).or_insert_with(|| agent.clone());
            }
            request
        })
        .service(service)
}

/// A client whose requests are made in another user's name, as far as RBAC lets them. A name that no request can carry is
/// refused, so that nothing is done in this one's own name by mistake.
pub fn acting_as(user: &str, client: kube::Client) -> Result<kube::Client, Error> {
    let named = http::HeaderValue::try_from(user).ok().filter(|name| !name.is_empty());
    let user = named.ok_or_else(|| Error::UserName { name: user.to_owned() })?;
    let namespace = client.default_namespace().to_owned();
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Request<Body>| {
            request.headers_mut().insert("impersonate-user", user.clone());
            request
        })
        .service(tower::service_fn(move |request| {
            let client = client.clone();
            async move { client.send(request).await }
        }));
    Ok(kube::Client::new(service, namespace))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_acts_as_a_user_whose_name_no_request_can_carry() {
        let seen = tower::service_fn(|request: Request<Body>| async move {
            let user = request.headers().get("impersonate-user").cloned().expect("a user");
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(user.as_bytes().to_vec())))
        });
        let client = || in_process(seen);
        let acting = acting_as("system:kube-proxy", client()).expect("a name");
        assert_eq!(acting.request_text(Request::new(Vec::new())).await.expect("an answer"), "system:kube-proxy");
        for name in ["", "two\nlines", "\u{7f}"] {
            assert!(matches!(acting_as(name, client()), Err(Error::UserName { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_user_names_its_component() {
        for (user, component) in [("system:kube-scheduler", "kube-scheduler"), ("system:node:worker-1", "kubelet"), ("kubernetes-admin", "regent")] {
            assert_eq!(component_of(user), component, "{user}");
        }
    }
}
