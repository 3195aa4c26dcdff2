//! The controllers: each turns what it sees into what should be, one kind of thing at a time.
//!
//! One file (or folder) per controller, one line in [`list`]. A controller declares its inputs, and a pure `decide`
//! function turns the state it sees into actions; a small apply runs them through [`client`]. The runtime owns watches,
//! queues, back-off, leadership and shutdown.
//!
//! What must stay true: reconcile gets a key and is right after a restart, a failover and a missed event; every write is
//! guarded (by UID or resourceVersion) against acting on something else; one output has one owner.
//!
//! What this crate does not know: HTTP, storage, the insides of nodes.

pub mod certificates;
pub mod clusterrole_aggregation;
pub mod common;
pub mod control_plane;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslice_mirroring;
pub mod ephemeral_volume;
pub mod garbage_collector;
pub mod horizontal_pod_autoscaler;
pub mod job;
pub mod list;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_disruption_budget;
pub mod pod_gc;
pub mod replica_set;
pub mod replication_controller;
pub mod resource_claim;
pub mod resource_quota;
pub mod root_ca;
pub mod service_cidr;
pub mod serviceaccount;
pub mod stateful_set;
pub mod taint_eviction;
pub mod token_cleaner;
pub mod ttl_after_finished;
pub mod validatingadmissionpolicy_status;
pub mod volume_binder;
pub mod volume_protection;

use std::sync::Arc;
use std::time::Duration;

use client::election::{ElectionConfig, lead};
use client::events::Recorder;
use client::{Clock, Informers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The CA that signs certificates (CertificateSigningRequests) and is published to pods.
#[derive(Clone, Default)]
pub struct ClusterCa {
    /// The CA's certificate, PEM; published as `kube-root-ca.crt`.
    pub certificate_pem: String,
    /// The CA's key, PEM; without it nothing is signed.
    pub key_pem: Option<String>,
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa").field("has_key", &self.key_pem.is_some()).finish_non_exhaustive()
    }
}

/// What the controllers need to know about the cluster. The defaults are Kubernetes' own.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pods' addresses (`--cluster-cidr`).
    pub cluster_cidr: ipnet::IpNet,
    /// The prefix length of each node's share (`--node-cidr-mask-size`).
    pub node_cidr_mask_size: u8,
    /// `--node-monitor-period`.
    pub node_monitor_period: Duration,
    /// A node that has not reported for this long is not ready (`--node-monitor-grace-period`).
    pub node_monitor_grace_period: Duration,
    /// A new node has this long for its first report (`--node-startup-grace-period`).
    pub node_startup_grace_period: Duration,
    /// Evictions per second and zone (`--node-eviction-rate`).
    pub node_eviction_rate: f64,
    /// The same in a zone where most nodes are gone (`--secondary-node-eviction-rate`).
    pub secondary_node_eviction_rate: f64,
    /// A zone is unhealthy from this share of nodes gone (`--unhealthy-zone-threshold`).
    pub unhealthy_zone_threshold: f64,
    /// Up to this many nodes a zone is small (`--large-cluster-size-threshold`).
    pub large_cluster_size_threshold: usize,
    /// How long pods with the default tolerations stay on a lost node (`--pod-eviction-timeout`), if it is not their 300 s.
    pub pod_eviction_timeout: Option<Duration>,
    /// Terminated pods beyond this many are removed (`--terminated-pod-gc-threshold`).
    pub terminated_pod_gc_threshold: usize,
    /// The CA for signing and publishing.
    pub ca: ClusterCa,
    /// How long a certificate is good that is signed here, unless it asks for less (`--cluster-signing-duration`).
    pub cluster_signing_duration: Duration,
    /// What the nodes know of each other, as this server's own node sees it; `None` (`--membership=false`) is Kubernetes' way.
    pub membership: Option<watch::Receiver<Option<Arc<membership::View>>>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cluster_cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16)),
            node_cidr_mask_size: 24,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
            pod_eviction_timeout: None,
            terminated_pod_gc_threshold: 12_500,
            ca: ClusterCa::default(),
            cluster_signing_duration: Duration::from_secs(365 * 86_400),
            membership: None,
        }
    }
}

/// What every controller is made from.
#[derive(Clone)]
pub struct Context {
    /// The API.
    pub client: kube::Client,
    /// The shared informers of this process.
    pub informers: Informers,
    /// Events in the name of the controller manager; [`Context::recorder_for`] gives one with the controller's own name.
    pub recorder: Recorder,
    /// The time of day.
    pub clock: Clock,
    /// The cluster's settings.
    pub options: Arc<Options>,
}

impl Context {
    /// A context for controllers that share this client.
    pub fn new(client: kube::Client, options: Options) -> Self {
        let recorder = Recorder::new(client.clone(), "kube-controller-manager", "");
        Context { informers: Informers::new(client.clone()), client, recorder, clock: Clock::system(), options: Arc::new(options) }
    }

    /// A recorder whose events come from this controller, as `kubectl describe` shows it (`From: deployment-controller`).
    pub fn recorder_for(&self, component: &str) -> Recorder {
        Recorder::with_clock(self.client.clone(), component, "", self.clock.clone())
    }
}

/// How to run the controller manager.
pub struct Config {
    /// The API.
    pub client: kube::Client,
    /// Which controllers (`--controllers`), as [`list::select`] reads it.
    pub controllers: Vec<String>,
    /// The cluster's settings.
    pub options: Options,
    /// How to stand for leader; `None` (`--leader-elect=false`) is to lead at once.
    pub election: Option<ElectionConfig>,
}

/// Why the controller manager ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--controllers` names something unknown.
    #[error(transparent)]
    Unknown(#[from] list::UnknownController),
    /// The leader election is misconfigured.
    #[error(transparent)]
    Election(#[from] client::election::Error),
}

/// Runs the controllers (while leading) until the shutdown.
///
/// The informers exist only while leading: a standby keeps no second copy of the cluster in memory.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let entries = list::select(&config.controllers)?;
    let (client, options) = (config.client.clone(), config.options);
    let work = |stop: CancellationToken| {
        let context = Context::new(client.clone(), options.clone());
        let controllers: Vec<_> = entries.iter().map(|entry| (entry.new)(&context)).collect();
        client::controller::run_controllers(controllers, stop)
    };
    match config.election {
        Some(election) => lead(config.client, election, shutdown, work).await?,
        None => work(shutdown).await,
    }
    Ok(())
}
