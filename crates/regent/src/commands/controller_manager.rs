//! `regent controller-manager`: the controllers alone.

use super::{
    apiserver::read,
    election::{Election, duration},
};
use crate::{component, peers::MembershipFlags};
use anyhow::Result;
use clap::Args;
use controllers::{ClusterCa, Config, Options};
use std::{net::IpAddr, path::PathBuf, time::Duration};
use tokio_util::sync::CancellationToken;

/// What the controllers are told, alone or in `regent server`.
#[derive(Args, Clone)]
pub struct ControllerFlags {
    /// Which controllers run: `*` is all, `foo` adds one, `-foo` takes one out.
    #[arg(long, default_value = "*", value_delimiter = ',', allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    /// The range of all pods' addresses.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: ipnet::Ipv4Net,
    /// The size of a node's share of it.
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// How often nodes are looked at.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it is NotReady.
    #[arg(long, default_value = "50s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// Nodes per second from which pods are evicted when their nodes fail.
    #[arg(long, default_value_t = 0.1)]
    pub node_eviction_rate: f64,
    /// The same while most of a zone's nodes are gone; smaller zones are left alone then.
    #[arg(long, default_value_t = 0.01)]
    pub secondary_node_eviction_rate: f64,
    /// The share of a zone's nodes that must be gone for that.
    #[arg(long, default_value_t = 0.55)]
    pub unhealthy_zone_threshold: f64,
    /// The number of nodes above which a zone is not small.
    #[arg(long, default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    /// How long a node may take to report for the first time before it is NotReady.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub node_startup_grace_period: Duration,
    /// How long pods that say nothing of it stay on a lost node [default: what the API server gave them, 5m].
    #[arg(long, value_parser = duration)]
    pub pod_eviction_timeout: Option<Duration>,
    /// How long a certificate is good that is signed for a node or client, unless it asks for less.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// Terminated pods that are kept.
    #[arg(long, default_value_t = 12500)]
    pub terminated_pod_gc_threshold: usize,
}

#[derive(Args)]
pub struct ControllerManager {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    flags: ControllerFlags,
    #[command(flatten)]
    election: Election,
    #[command(flatten)]
    membership: MembershipFlags,
    /// The authority that signs nodes' certificates.
    #[arg(long)]
    cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long)]
    cluster_signing_key_file: Option<PathBuf>,
    /// The authority that pods trust, published as kube-root-ca.crt.
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    /// Where /healthz and /metrics are served.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: IpAddr,
    /// On which port; 0: not at all.
    #[arg(long, default_value_t = component::CONTROLLER_MANAGER_PORT)]
    secure_port: u16,
}

pub fn run(arguments: ControllerManager) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let certificate = arguments.root_ca_file.as_deref().or(arguments.cluster_signing_cert_file.as_deref()).map(read).transpose()?;
        let ca = ClusterCa {
            certificate_pem: certificate.unwrap_or_default(),
            key_pem: arguments.cluster_signing_key_file.as_deref().map(read).transpose()?,
        };
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        let (name, address, port) = ("kube-controller-manager", arguments.bind_address, arguments.secure_port);
        tokio::spawn(component::serve(name, address, port, client.clone(), shutdown.clone()));
        control(client, &arguments.flags, &arguments.election, &arguments.membership, ca, shutdown).await
    })
}

/// Runs the controllers until the shutdown. A lost lease is an error: the process ends, and its supervisor starts it anew.
pub async fn control(
    client: kube::Client,
    flags: &ControllerFlags,
    election: &Election,
    membership: &MembershipFlags,
    ca: ClusterCa,
    shutdown: CancellationToken,
) -> Result<()> {
    let options = Options {
        cluster_cidr: flags.cluster_cidr.into(),
        node_cidr_mask_size: flags.node_cidr_mask_size,
        node_monitor_period: flags.node_monitor_period,
        node_monitor_grace_period: flags.node_monitor_grace_period,
        node_eviction_rate: flags.node_eviction_rate,
        secondary_node_eviction_rate: flags.secondary_node_eviction_rate,
        unhealthy_zone_threshold: flags.unhealthy_zone_threshold,
        large_cluster_size_threshold: flags.large_cluster_size_threshold,
        node_startup_grace_period: flags.node_startup_grace_period,
        pod_eviction_timeout: flags.pod_eviction_timeout,
        terminated_pod_gc_threshold: flags.terminated_pod_gc_threshold,
        ca,
        cluster_signing_duration: flags.cluster_signing_duration,
        membership: membership.view(&shutdown),
    };
    let config = Config { client, controllers: flags.controllers.clone(), options, election: election.config("kube-controller-manager") };
    Ok(controllers::run(config, shutdown).await?)
}
