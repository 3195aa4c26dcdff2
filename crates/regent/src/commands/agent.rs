//! `regent agent`: a node: pods, pod network, Service routing and DNS in one process.
//!
//! A new node holds nothing but a token. It asks the server for its authority, believes it only if the fingerprint in the
//! token fits, asks for its certificates (CertificateSigningRequests), and from then on is `system:node:NAME`.

use super::{
    dns,
    kubelet::{self, KubeletFlags, Node},
    proxy::{self, Routing},
};
use crate::join;
use anyhow::{Context, Result};
use clap::Args;
use client::Informers;
use std::path::PathBuf;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Agent {
    /// The server's address, such as https://10.0.0.1:6443.
    #[arg(long, env = "REGENT_SERVER")]
    server: String,
    /// A join token (`regent token create` on the server prints one).
    #[arg(long, env = "REGENT_TOKEN", hide_env_values = true)]
    token: String,
    #[arg(long, default_value = "/var/lib/regent")]
    data_dir: PathBuf,
    /// The range of all pods' addresses.
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: ipnet::Ipv4Net,
    /// The range of ClusterIPs.
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cluster_ip_range: ipnet::Ipv4Net,
    #[command(flatten)]
    flags: KubeletFlags,
}

pub fn run(arguments: Agent) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let (name, address) = (arguments.flags.name(), arguments.flags.address()?);
        let directory = arguments.data_dir.join("agent");
        let joined = tokio::select! {
            joined = join::join(&arguments.server, &arguments.token, &directory, &name) => joined.context("joining the cluster")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let client = client::transport::from_kubeconfig(&joined.kubeconfig).await?;
        let serving = join::serving(joined.kubeconfig.clone(), directory, name.clone(), address.into());
        let node = Node {
            name,
            address,
            root_dir: arguments.data_dir.join("node"),
            serving,
            authority_pem: joined.authority_pem,
            cluster_cidr: arguments.cluster_cidr,
        };
        run_node(client, node, arguments.flags, arguments.service_cluster_ip_range, shutdown).await
    })
}

/// Runs all that a node is, until the shutdown or until one part of it fails.
pub async fn run_node(
    client: kube::Client,
    node: Node,
    flags: KubeletFlags,
    service_cidr: ipnet::Ipv4Net,
    shutdown: CancellationToken,
) -> Result<()> {
    let informers = Informers::new(client);
    let routing = Routing {
        node_name: node.name.clone(),
        node_ip: Some(node.address),
        cluster_cidr: node.cluster_cidr,
        service_cidr,
        cluster_dns: flags.cluster_dns,
    };
    let mut parts: JoinSet<Result<()>> = JoinSet::new();
    parts.spawn(proxy::route(informers.clone(), routing, shutdown.clone()));
    let (address, domain) = (flags.cluster_dns, flags.cluster_domain.clone());
    let (names, token) = (informers.clone(), shutdown.clone());
    parts.spawn(async move { dns::resolve(names, address, &domain, Vec::new(), token).await });
    let token = shutdown.clone();
    parts.spawn(async move { kubelet::keep(informers, node, &flags, token).await });
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the node panicked")??;
    }
    Ok(())
}
