//! The node agent: what runs the pods that are bound to this node, and tells the API how they are.
//!
//! [`agent`] is the shell (and [`static_pods`] for the pods that a file on the node asks for); each pod has a [`worker`] that observes, asks the pure [`pod::decide`], acts through
//! [`runtime`] and hands what [`status::compute`] makes of it to the [`reporter`]. [`spec`] turns pods into the runtime's
//! configurations; [`admission`] says which pods the node takes; [`allocations`] and [`resize`] say which resources each pod has of those that it wants; [`volumes`],
//! [`images`], [`probes`], [`cgroups`] and [`logs`] are what containers need beside it;
//! [`node`] registers and renews, [`server`] is the node's own HTTPS API, [`eviction`] and [`stats`] watch the machine.
//!
//! What must stay true: stopping or restarting the agent touches no container; everything that it needs to go on is in
//! the runtime and on disk; no answer from the API server is ever waited for before a container that should run is
//! restarted, nor taken for "there is nothing" when it did not come.
//!
//! What this crate does not know: how the API stores things, and anything of the servers' insides. The pod network is
//! made by CNI plugins whose configuration is written elsewhere; here it is only asked whether it is ready.

mod admission;
pub mod agent;
mod allocations;
pub mod backoff;
pub mod cgroups;
mod contact;
pub mod eviction;
mod exits;
mod hooks;
mod http;
pub mod images;
pub mod local;
mod local_storage;
pub mod logs;
pub mod machine;
pub mod node;
mod objects;
pub mod peers;
pub mod pod;
mod probe_counts;
pub mod probes;
pub mod reporter;
mod resize;
mod runtime;
pub mod server;
pub mod spec;
mod static_pods;
pub use static_pods::page::Address as StaticPodsPage;
pub mod stats;
pub mod status;
mod streaming;
pub mod volumes;
mod worker;

use client::Informers;
use k8s_openapi::api::core::v1::Taint;
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How a node is set up.
#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// The address that the node reports and that pods on the host network have.
    pub node_ip: IpAddr,
    /// The process' informers; their client reads and writes the API as `system:node:NAME`.
    pub informers: Informers,
    /// The runtime's socket, such as `unix:///run/containerd/containerd.sock`.
    pub runtime_endpoint: String,
    /// Pods' directories are below it.
    pub data_dir: PathBuf,
    /// Where static pods' manifests are, if there are to be any.
    pub static_pods: Option<PathBuf>,
    /// A page of further ones.
    pub static_pods_page: Option<StaticPodsPage>,
    /// Containers' logs are below it, where collectors of logs look for them.
    pub log_dir: PathBuf,
    /// The node API's address and port.
    pub bind_address: IpAddr,
    pub port: u16,
    /// The node API's certificate. A node that joins gets it after it has registered; its API opens then.
    pub serving: watch::Receiver<Option<Serving>>,
    /// Clients of the node API are signed by this authority.
    pub client_ca_pem: String,
    /// The cgroup below which all of the node's pods are: `/`, or a node's own on a shared machine.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Vec<Taint>,
    pub max_pods: u32,
    /// Kernel parameters that pods may set beside the safe ones; one that ends in `*` stands for all that begin so.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The most processes in one pod.
    pub pod_pids_max: Option<i64>,
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    pub parallel_image_pulls: usize,
    pub eviction: eviction::Thresholds,
    pub logs: logs::Kept,
    pub lease_duration: Duration,
    pub status_update_frequency: Duration,
    /// How the node is a member of the cluster's membership; `None` (`--membership=false`) is not at all.
    pub peers: Option<peers::Config>,
    /// What this node has promised of the cluster's epoch; `None`: it has no vote.
    pub ledger: Option<Arc<membership::cluster::Ledger>>,
    /// Becomes true when the rules of the Services are in the kernel: pods wait for that (not for ever) when the agent starts.
    pub service_rules: Option<watch::Receiver<bool>>,
}

/// A certificate (or chain) and its key, PEM.
#[derive(Clone)]
pub struct Serving {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Serving {
    /// For a node that has its certificate already.
    pub fn known(certificate_pem: String, key_pem: String) -> watch::Receiver<Option<Serving>> {
        watch::channel(Some(Serving { certificate_pem, key_pem })).1
    }
}

impl Config {
    /// A configuration with Kubernetes' defaults. The authority is PEM.
    pub fn new(
        node_name: impl Into<String>,
        node_ip: IpAddr,
        informers: Informers,
        serving: watch::Receiver<Option<Serving>>,
        client_ca_pem: String,
    ) -> Config {
        Config {
            node_name: node_name.into(),
            node_ip,
            informers,
            serving,
            client_ca_pem,
            runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            data_dir: PathBuf::from("/var/lib/regent/node"),
            static_pods: None,
            static_pods_page: None,
            log_dir: PathBuf::from("/var/log/pods"),
            bind_address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            cgroup_root: "/".into(),
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".into(),
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            max_pods: 110,
            allowed_unsafe_sysctls: Vec::new(),
            pod_pids_max: None,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            parallel_image_pulls: 5,
            eviction: eviction::Thresholds::default(),
            logs: logs::Kept::default(),
            lease_duration: Duration::from_secs(40),
            status_update_frequency: Duration::from_secs(10),
            peers: None,
            ledger: None,
            service_rules: None,
        }
    }

    /// The node's addresses as text.
    pub fn node_ips(&self) -> Vec<String> {
        vec![self.node_ip.to_string()]
    }
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make {path}: {source}", path = path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot prepare the pods' cgroups: {0}")]
    Cgroups(std::io::Error),
    #[error(transparent)]
    Server(server::Error),
}

/// Runs the agent until `shutdown`. Containers go on when it ends.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    agent::run(config, shutdown).await
}

#[cfg(test)]
impl Config {
    /// A configuration for tests of pure parts; its client leads nowhere.
    fn for_tests(node_name: &str) -> Config {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a test's runtime can be made");
        let _entered = runtime.enter();
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a constant is a URI"));
        let client = kube::Client::try_from(config).expect("a client without TLS can be made");
        Config::new(node_name, IpAddr::from([192, 0, 2, 1]), Informers::new(client), Serving::known(String::new(), String::new()), String::new())
    }
}
