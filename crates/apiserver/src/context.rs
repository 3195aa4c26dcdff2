//! What every room of the API server shares: the [`Server`], who asks ([`User`], [`Identity`]), and the verbs that the
//! server's own parts (admission, bootstrap, authorizers) use on objects without going through HTTP.
//!
//! What must stay true: in-process reads are answered from the watch cache and never touch the store; in-process writes
//! take the same way as a client's, only without authentication and authorization.

use crate::{
    admission, aggregation, allocation, audit, authentication, authorization, bootstrap, cache, copies, definitions, flow, health, metrics, presence,
    resource_metrics, tunnel,
};
use api::{Catalogue, Kind, Status, Value};
use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, sync::Arc};
use store::Store;
use tokio_util::sync::CancellationToken;

pub use crate::cache::Entry;

/// Why the server cannot start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the listener failed")]
    Listen(#[source] std::io::Error),
    #[error("the configuration cannot be used: {0}")]
    Configuration(String),
    #[error("the first objects could not be made: {0}")]
    Bootstrap(String),
}

/// Where a joining server gets the cluster's keys.
pub const SERVER_BUNDLE_PATH: &str = "/regent/v1/server-bundle";

/// Collects what a joining server is given; the error says why it cannot join.
pub type ServerBundle = Arc<dyn Fn() -> Result<Value, String> + Send + Sync>;

/// What the server is told when it starts. Each room has its own part.
#[derive(Clone)]
pub struct Config {
    pub store: Arc<dyn Store>,
    /// The address that goes into discovery and into the endpoints of the Service `kubernetes`.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    pub service_cidr: ipnet::IpNet,
    pub node_ports: RangeInclusive<u16>,
    pub authentication: authentication::Config,
    pub authorization: authorization::Config,
    pub admission: admission::Config,
    pub tunnel: tunnel::Config,
    pub aggregation: aggregation::Config,
    pub bootstrap: bootstrap::Config,
    pub flow: flow::Config,
    pub resource_metrics: resource_metrics::Config,
    /// What is written of requests; without, nothing.
    pub audit: Option<audit::Config>,
    /// How long a server goes on answering after it has said that it is not ready any more.
    pub shutdown_delay: std::time::Duration,
    /// Metrics of what else runs in this process.
    pub more_metrics: Option<metrics::More>,
    /// The store again, if it seals values: for looking at its keys and changing them.
    pub encryption: Option<store::encryption::Encrypted>,
    /// What further servers are given; without, none can join through this one.
    pub server_bundle: Option<ServerBundle>,
    /// What copies of the store are given; without, none can be had.
    pub store_copy: Option<Arc<dyn copies::Source>>,
    /// Stops the server's own background tasks (cache feed, bookmarks).
    pub shutdown: CancellationToken,
}

impl Config {
    /// The defaults of a cluster on the given store.
    pub fn new(store: Arc<dyn Store>) -> Config {
        Config {
            store,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            secure_port: 6443,
            service_cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert([10, 96, 0, 0].into(), 16)),
            node_ports: 30000..=32767,
            authentication: Default::default(),
            authorization: Default::default(),
            admission: Default::default(),
            tunnel: Default::default(),
            aggregation: Default::default(),
            bootstrap: Default::default(),
            flow: Default::default(),
            resource_metrics: Default::default(),
            audit: None,
            shutdown_delay: std::time::Duration::ZERO,
            more_metrics: None,
            encryption: None,
            server_bundle: None,
            store_copy: None,
            shutdown: CancellationToken::new(),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn new(name: &str, groups: &[&str]) -> User {
        User { name: name.into(), groups: groups.iter().map(|g| g.to_string()).collect(), ..User::default() }
    }
    /// The server itself.
    pub fn system() -> User {
        User::new("system:apiserver", &["system:masters", "system:authenticated"])
    }
    /// A request without credentials.
    pub fn anonymous() -> User {
        User::new("system:anonymous", &["system:unauthenticated"])
    }
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What the transport knows of the caller before authentication.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A connection from outside, with the certificates that TLS verified to be the peer's own (not yet whom they name).
    Peer(Option<Arc<Vec<CertificateDer<'static>>>>),
    /// A component in this process, trusted to be who it says.
    Local(Arc<User>),
}

/// Pause before the first objects are tried again.
const BOOTSTRAP_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// The API server. One per process, shared as `Arc<Server>`.
pub struct Server {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub catalogue: ArcSwap<Catalogue>,
    /// The catalogue without definitions.
    pub built_in: Arc<Catalogue>,
    pub definitions: definitions::Definitions,
    pub cache: Arc<cache::Cache>,
    pub authenticators: authentication::Authenticators,
    pub authorizer: authorization::Authorizer,
    pub admission: admission::Chain,
    pub nodes: tunnel::Nodes,
    pub aggregation: aggregation::Services,
    pub flow: flow::Flow,
    pub resource_metrics: resource_metrics::ResourceMetrics,
    pub audit: Option<Arc<audit::Audit>>,
    pub health: health::Health,
    pub metrics: metrics::Metrics,
    pub copies: copies::Copies,
    pub openapi: crate::openapi::Documents,
}

impl Server {
    /// Loads the cache, starts its feed, and makes the objects that every cluster has. The server answers from then on;
    /// `/readyz` says ok when the first objects are there.
    pub async fn new(config: Config) -> Result<Arc<Server>, Error> {
        if config.node_ports.is_empty() {
            return Err(Error::Configuration("the range of node ports is empty".into()));
        }
        let catalogue = Arc::new(Catalogue::built_in());
        let cache = cache::Cache::start(config.store.clone(), catalogue.clone(), config.shutdown.clone()).await?;
        let server = Arc::new(Server {
            store: config.store.clone(),
            built_in: catalogue.clone(),
            catalogue: ArcSwap::new(catalogue),
            definitions: Default::default(),
            cache,
            authenticators: authentication::Authenticators::new(&config)?,
            authorizer: authorization::Authorizer::new(&config)?,
            admission: admission::Chain::new(&config)?,
            nodes: tunnel::Nodes::new(&config)?,
            aggregation: Default::default(),
            flow: flow::Flow::new(config.flow.clone())?,
            resource_metrics: Default::default(),
            audit: config.audit.as_ref().map(audit::Audit::new).transpose()?.map(Arc::new),
            health: health::Health::default(),
            metrics: metrics::Metrics::default(),
            copies: copies::Copies::default(),
            openapi: Default::default(),
            config,
        });
        tokio::spawn(allocation::look_after(server.clone()));
        definitions::start(&server)?;
        aggregation::start(&server)?;
        flow::start(&server);
        let starting = server.clone();
        tokio::spawn(async move {
            // Another server may be at it too, or the store away for a moment; both pass.
            while let Err(error) = bootstrap::run(&starting).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the first objects could not be made; will try again");
                tokio::select! {
                    () = starting.config.shutdown.cancelled() => return,
                    () = tokio::time::sleep(BOOTSTRAP_RETRY) => {}
                }
            }
            starting.health.bootstrapped();
            presence::run(starting).await;
        });
        Ok(server)
    }

    /// Says that this server is about to stop: `/readyz` fails from here on, and the Service `kubernetes` leads elsewhere if
    /// there is another server. Requests are still answered.
    pub async fn retire(self: &Arc<Self>) {
        self.health.retire();
        presence::retire(self).await;
    }

    /// The record of a resource, or the 404 that an unknown path gets.
    pub fn kind(&self, group: &str, resource: &str) -> Result<Arc<Kind>, Status> {
        self.catalogue.load().resource(group, resource).cloned().ok_or_else(Status::path_not_found)
    }

    /// The newest cached state of one object. `namespace` is empty at cluster scope.
    pub fn lookup(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<Option<Arc<Entry>>, Status> {
        Ok(self.cache.resource(group, resource).get(namespace, name))
    }

    /// All cached objects of a resource, of one namespace if given, in key order.
    pub fn entries(&self, group: &str, resource: &str, namespace: Option<&str>) -> Result<Vec<Arc<Entry>>, Status> {
        let snapshot = self.cache.resource(group, resource).snapshot();
        Ok(snapshot.entries(namespace).cloned().collect())
    }
}
