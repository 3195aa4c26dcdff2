//! `regent dns`: the cluster DNS of one node, alone.

use anyhow::Result;
use clap::Args;
use client::Informers;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
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
}

pub fn run(arguments: Dns) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        resolve(Informers::new(client), arguments.cluster_dns, &arguments.cluster_domain, arguments.upstreams.clone(), shutdown).await
    })
}

/// Answers questions until the shutdown.
pub async fn resolve(informers: Informers, address: Ipv4Addr, domain: &str, upstreams: Vec<SocketAddr>, shutdown: CancellationToken) -> Result<()> {
    let config = dns::Config {
        informers,
        listen: SocketAddr::from((address, 53)),
        add_address: true,
        cluster_domain: domain.to_string(),
        upstreams,
        resolv_conf: "/etc/resolv.conf".into(),
    };
    Ok(dns::run(config, shutdown).await?)
}
