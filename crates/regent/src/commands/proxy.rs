//! `regent proxy`: the routing of Services on one node, alone.

use super::balancer::{self, BalancerFlags};
use anyhow::Result;
use clap::Args;
use client::Informers;
use network::services::Config;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tokio_util::sync::CancellationToken;

/// The proxy's user. A node that routes by itself acts as it where it must see more than a node does.
pub const USER: &str = "system:kube-proxy";

/// What the proxy is told, alone or in `regent agent`.
#[derive(Clone)]
pub struct Routing {
    pub node_name: String,
    pub node_ip: Option<Ipv4Addr>,
    pub cluster_cidr: ipnet::Ipv4Net,
    pub service_cidr: ipnet::Ipv4Net,
    pub cluster_dns: Ipv4Addr,
    pub membership: crate::peers::MembershipFlags,
}

#[derive(Args)]
pub struct Proxy {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The node's name [default: the machine's].
    #[arg(long)]
    hostname_override: Option<String>,
    #[arg(long)]
    node_ip: Option<Ipv4Addr>,
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: ipnet::Ipv4Net,
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cluster_ip_range: ipnet::Ipv4Net,
    /// The cluster DNS' address, which every node serves itself.
    #[arg(long, default_value = "10.96.0.10")]
    cluster_dns: Ipv4Addr,
    /// Where the node keeps its state.
    #[arg(long, default_value = crate::checkpoint::ROOT_DIR)]
    root_dir: PathBuf,
    #[command(flatten)]
    balancer: BalancerFlags,
    #[command(flatten)]
    membership: crate::peers::MembershipFlags,
}

pub fn run(arguments: Proxy) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let way = arguments.balancer.way(&arguments.kubeconfig, arguments.node_ip.map(Into::into), &shutdown).await?;
        let routing = Routing {
            node_name: arguments.hostname_override.clone().unwrap_or_else(crate::runtime::host_name),
            node_ip: arguments.node_ip.or_else(super::kubelet::machine_address),
            cluster_cidr: arguments.cluster_cidr,
            service_cidr: arguments.service_cluster_ip_range,
            cluster_dns: arguments.cluster_dns,
            membership: arguments.membership.clone(),
        };
        let informers = crate::checkpoint::informers(way.client, &arguments.root_dir, "proxy");
        balancer::follow(way.balancer, &informers, &arguments.root_dir, &shutdown);
        route(informers.clone(), informers, routing, shutdown).await
    })
}

/// Routes Services and enforces network policies until the shutdown. What policies are about is `seen` by the proxy's own user.
pub async fn route(informers: Informers, seen: Informers, routing: Routing, shutdown: CancellationToken) -> Result<()> {
    let config = Config {
        node_name: routing.node_name,
        node_ip: routing.node_ip,
        informers,
        cluster_cidr: Some(routing.cluster_cidr),
        service_cidr: Some(routing.service_cidr),
        left_alone: vec![routing.cluster_dns],
        view: routing.membership.view(&shutdown),
        health_address: Some(SocketAddr::from(([127, 0, 0, 1], 10256))),
    };
    let policies = network::policy::Config { node_name: config.node_name.clone(), informers: seen };
    tokio::spawn(network::service_health::run(config.informers.clone(), config.node_name.clone(), shutdown.clone()));
    tokio::spawn(network::policy::run(policies, network::nft::Nft::default(), shutdown.clone()));
    Ok(network::services::run(config, shutdown).await?)
}
