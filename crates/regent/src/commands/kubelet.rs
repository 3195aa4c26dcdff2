//! `regent kubelet`: the pods of one node, and the pod network, alone.

use super::{
    apiserver::read,
    balancer::{self, BalancerFlags},
};
use crate::rotation::Rotation;
use ::node::Serving;
use anyhow::{Context, Result};
use clap::Args;
use client::Informers;
use membership::cluster::Ledger;
use network::pods::Mode;
use std::{
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How often the kernel is asked whether the rules of the Services are there, after a reboot.
const RULES_LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the kubelet is told, alone or in `regent agent`.
#[derive(Args, Clone)]
pub struct KubeletFlags {
    /// The node's name [default: the machine's].
    #[arg(long, visible_alias = "node-name")]
    pub hostname_override: Option<String>,
    /// The node's address [default: the machine's].
    #[arg(long)]
    pub node_ip: Option<Ipv4Addr>,
    /// The socket of the container runtime (CRI).
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub container_runtime_endpoint: String,
    /// The DNS server of pods.
    #[arg(long, default_value = "10.96.0.10")]
    pub cluster_dns: Ipv4Addr,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The cgroup under which pods live.
    #[arg(long, default_value = "/")]
    pub cgroup_root: String,
    /// A directory of manifests (YAML or JSON, one Pod a file) that this node runs by itself, with or without a server.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// A page with manifests (a Pod or a PodList) that this node runs in the same way.
    #[arg(long, value_name = "URL")]
    pub manifest_url: Option<String>,
    /// A header to ask for it with, as name:value.
    #[arg(long, value_name = "NAME:VALUE", value_delimiter = ',', value_parser = header)]
    pub manifest_url_header: Vec<(String, String)>,
    /// How often it is asked for.
    #[arg(long, default_value = "20s", value_parser = super::election::duration)]
    pub http_check_frequency: std::time::Duration,
    /// Labels that the node gives itself when it registers, as key=value.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints that the node gives itself when it registers, as key=value:effect.
    #[arg(long, value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// Kernel parameters that pods may set beside the safe ones, such as kernel.msg* or net.core.somaxconn.
    #[arg(long, value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// When the node is short of something and evicts pods: memory.available, nodefs.available, nodefs.inodesFree and
    /// pid.available, each with an amount or a percentage [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub eviction_hard: ::node::eviction::Thresholds,
    /// A container's log is put aside when it is larger than this many bytes (a quantity).
    #[arg(long, default_value = "10Mi", value_parser = log_size)]
    pub container_log_max_size: u64,
    /// The most log files of a container, the one being written included.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..))]
    pub container_log_max_files: u64,
    /// Where the runtime looks for its network configuration.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where the runtime looks for CNI plugins.
    #[arg(long, default_value = "/usr/lib/cni")]
    pub cni_bin_dir: PathBuf,
    /// How other nodes' pods are reached: routes, vxlan, or auto (routes where the nodes share a link).
    #[arg(long, default_value = "auto", value_parser = mode)]
    pub pod_network: Mode,
    /// Keep a copy of the only server's store on this node, for `regent server --recover` when that server is lost: auto, if
    /// the server names this node (its --store-copy-nodes); true, and say so when it does not; false, never.
    #[arg(long, value_enum, default_value = "auto", num_args = 0..=1, default_missing_value = "true")]
    pub store_copy: crate::copier::Willing,
    #[command(flatten)]
    pub membership: crate::peers::MembershipFlags,
}

#[derive(Args)]
pub struct Kubelet {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Where the node keeps its pods.
    #[arg(long, default_value = "/var/lib/regent/node")]
    root_dir: PathBuf,
    #[arg(long)]
    tls_cert_file: PathBuf,
    #[arg(long)]
    tls_private_key_file: PathBuf,
    /// The authority whose client certificates may use the node's API.
    #[arg(long)]
    client_ca_file: PathBuf,
    /// Renew the client certificate in the kubeconfig before it ends, through the certificates API.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    rotate_certificates: bool,
    /// Renew the certificate of the node's own API before it ends, through the certificates API.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    rotate_server_certificates: bool,
    /// The range of all pods' addresses.
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: ipnet::Ipv4Net,
    #[command(flatten)]
    flags: KubeletFlags,
    #[command(flatten)]
    balancer: BalancerFlags,
}

/// What makes a node this node.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    pub root_dir: PathBuf,
    pub serving: watch::Receiver<Option<Serving>>,
    pub authority_pem: String,
    pub cluster_cidr: ipnet::Ipv4Net,
}

pub fn run(arguments: Kubelet) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let address = arguments.flags.address()?;
        let way = arguments.balancer.way(&arguments.kubeconfig, Some(address.into()), &shutdown).await?;
        let rotation = Rotation {
            kubeconfig: arguments.kubeconfig,
            server: way.balancer.as_ref().map(network::balancer::Balancer::url),
            serving_certificate: arguments.tls_cert_file,
            serving_key: arguments.tls_private_key_file,
            name: arguments.flags.name(),
            address: address.into(),
            token: None,
            renew_client: arguments.rotate_certificates,
            renew_serving: arguments.rotate_server_certificates,
        };
        let node = Node {
            name: arguments.flags.name(),
            address,
            root_dir: arguments.root_dir,
            serving: rotation.start(shutdown.clone()),
            authority_pem: read(&arguments.client_ca_file)?,
            cluster_cidr: arguments.cluster_cidr,
        };
        let informers = crate::checkpoint::informers(way.client, &node.root_dir, "kubelet");
        balancer::follow(way.balancer, &informers, &node.root_dir, &shutdown);
        keep(informers, node, &arguments.flags, shutdown).await
    })
}

impl KubeletFlags {
    pub fn name(&self) -> String {
        self.hostname_override.clone().unwrap_or_else(crate::runtime::host_name)
    }
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.node_ip.or_else(machine_address).context("finding the machine's address; say --node-ip")
    }
}

/// Keeps the node's pods and its part of the pod network until the shutdown.
pub async fn keep(informers: Informers, node: Node, flags: &KubeletFlags, shutdown: CancellationToken) -> Result<()> {
    let pairs = |text: &String| text.split_once('=').map_or((text.clone(), String::new()), |(k, v)| (k.to_string(), v.to_string()));
    // Without it this node has no vote on who takes over; its pods are kept all the same.
    let ledger = match Ledger::open(&node.root_dir.join(membership::cluster::LEDGER)) {
        Ok(ledger) => Some(Arc::new(ledger)),
        Err(error) => {
            tracing::error!("this node has no vote on the cluster's epoch: {error}");
            None
        }
    };
    tokio::spawn(crate::copier::run(informers.client(), node.root_dir.clone(), flags.store_copy, shutdown.clone()));
    let pods = node::Config {
        ledger,
        node_labels: flags.node_labels.iter().map(pairs).collect(),
        register_with_taints: flags.register_with_taints.iter().map(|text| taint(text)).collect::<Result<_>>()?,
        max_pods: flags.max_pods,
        allowed_unsafe_sysctls: flags.allowed_unsafe_sysctls.clone(),
        eviction: flags.eviction_hard.clone(),
        logs: ::node::logs::Kept {
            file_bytes_max: flags.container_log_max_size,
            files_max: usize::try_from(flags.container_log_max_files).unwrap_or(usize::MAX),
        },
        cgroup_root: flags.cgroup_root.clone(),
        cluster_dns: vec![flags.cluster_dns.into()],
        cluster_domain: flags.cluster_domain.clone(),
        runtime_endpoint: flags.container_runtime_endpoint.clone(),
        data_dir: node.root_dir.clone(),
        static_pods: flags.pod_manifest_path.clone(),
        static_pods_page: match &flags.manifest_url {
            Some(url) => {
                let page = node::StaticPodsPage::parse(url, flags.manifest_url_header.clone(), flags.http_check_frequency);
                Some(page.map_err(|error| anyhow::anyhow!("--manifest-url: {error}"))?)
            }
            None => None,
        },
        peers: flags.membership.member(&node.root_dir),
        service_rules: Some(service_rules(&shutdown)),
        ..node::Config::new(&node.name, node.address.into(), informers.clone(), node.serving, node.authority_pem)
    };
    let network = network::pods::Config {
        node_name: node.name,
        node_ip: node.address,
        informers,
        cni_conf_dir: flags.cni_conf_dir.clone(),
        cni_bin_dir: flags.cni_bin_dir.clone(),
        binary: std::env::current_exe().context("finding this program")?,
        data_dir: node.root_dir,
        mode: flags.pod_network,
        cluster_cidr: node.cluster_cidr,
        left_alone: vec![flags.cluster_dns],
    };
    let mut parts: JoinSet<Result<()>> = JoinSet::new();
    let token = shutdown.clone();
    parts.spawn(async move { Ok(network::pods::run(network, token).await?) });
    let token = shutdown.clone();
    parts.spawn(async move { Ok(node::run(pods, token).await?) });
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the node panicked")??;
    }
    Ok(())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:VALUE"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn log_size(text: &str) -> Result<u64, String> {
    let quantity = api::quantity::Quantity::parse(text).map_err(|error| error.to_string())?;
    u64::try_from(quantity.value()).ok().filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text} is not a size"))
}

/// Becomes true when the rules of the Services are in the kernel.
fn service_rules(shutdown: &CancellationToken) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        while !network::services::are_in_place().await {
            tokio::select! {
                () = tokio::time::sleep(RULES_LOOK_EVERY) => {}
                () = sender.closed() => return,
                () = shutdown.cancelled() => return,
            }
        }
        sender.send_replace(true);
    });
    receiver
}

/// The address from which this machine reaches the world: that of its default route. Nothing is sent.
pub fn machine_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Any address beyond the machine's own networks; connecting a UDP socket only chooses the route.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_unspecified() => Some(address),
        _ => None,
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "auto" => Ok(Mode::Auto),
        "routes" => Ok(Mode::Routes),
        "vxlan" => Ok(Mode::Vxlan),
        other => Err(format!("{other}: say auto, routes or vxlan")),
    }
}

/// A taint as `key=value:effect` or `key:effect`.
fn taint(text: &str) -> Result<k8s_openapi::api::core::v1::Taint> {
    let (rest, effect) = text.rsplit_once(':').with_context(|| format!("{text} is not a taint; say key=value:effect"))?;
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    let value = (!value.is_empty()).then(|| value.to_string());
    Ok(k8s_openapi::api::core::v1::Taint { key: key.into(), value, effect: effect.into(), time_added: None })
}
