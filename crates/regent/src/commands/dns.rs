//! `regent dns`: the cluster DNS of one node, alone.

use super::balancer::{self, BalancerFlags};
use anyhow::{Context, Result};
use clap::Args;
use client::Informers;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Dns {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The address that pods ask; it is added to this node's loopback link.
    #[arg(long, default_value = "10.96.0.10")]
    cluster_dns: Ipv4Addr,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// A resolver for names outside the cluster; can be repeated [default: those of /etc/resolv.conf].
    #[arg(long = "upstream")]
    upstreams: Vec<SocketAddr>,
    /// Where the node keeps its state.
    #[arg(long, default_value = crate::checkpoint::ROOT_DIR)]
    root_dir: PathBuf,
    #[command(flatten)]
    balancer: BalancerFlags,
    #[command(flatten)]
    membership: crate::peers::MembershipFlags,
}

pub fn run(arguments: Dns) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let way = arguments.balancer.way(&arguments.kubeconfig, None, &shutdown).await?;
        let informers = crate::checkpoint::informers(way.client, &arguments.root_dir, "dns");
        balancer::follow(way.balancer, &informers, &arguments.root_dir, &shutdown);
        resolve(
            informers,
            arguments.cluster_dns,
            &arguments.cluster_domain,
            arguments.upstreams.clone(),
            arguments.membership.view(&shutdown),
            shutdown,
        )
        .await
    })
}

/// Answers questions until the shutdown.
pub async fn resolve(
    informers: Informers,
    address: Ipv4Addr,
    domain: &str,
    upstreams: Vec<SocketAddr>,
    view: Option<watch::Receiver<Option<Arc<membership::View>>>>,
    shutdown: CancellationToken,
) -> Result<()> {
    let config = dns::Config {
        informers,
        listen: SocketAddr::from((address, 53)),
        add_address: true,
        cluster_domain: domain.to_string(),
        upstreams,
        resolv_conf: "/etc/resolv.conf".into(),
        view,
        inherited: dns::Inherited::take().context("taking the sockets that were given to this process (LISTEN_FDS)")?.map(Arc::new),
    };
    Ok(dns::run(config, shutdown).await?)
}
