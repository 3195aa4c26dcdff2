//! `regent agent`: a node: pods, pod network, Service routing and DNS in one process.
//!
//! A new node holds nothing but a token. It asks the server for its authority, believes it only if the fingerprint in the
//! token fits, asks for its certificates (CertificateSigningRequests), and from then on is `system:node:NAME`. All that it
//! says to the API goes through its own balancer over all servers.

use super::{
    balancer, dns,
    kubelet::{self, KubeletFlags, Node},
    proxy::{self, Routing},
};
use crate::{join, rotation::Rotation};
use anyhow::{Context, Result};
use clap::Args;
use network::balancer::{Balancer, Config, Server};
use pki::JoinToken;
use std::{net::SocketAddr, path::PathBuf};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Agent {
    /// The servers' addresses, such as https://10.0.0.1:6443,https://10.0.0.2:6443. One is enough: the cluster names the others.
    #[arg(long, env = "REGENT_SERVER", value_delimiter = ',', required = true)]
    server: Vec<Server>,
    /// A join token (`regent token create` on a server prints one). A node that has joined needs none.
    #[arg(long, env = "REGENT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where this node's balancer over the API servers listens.
    #[arg(long, default_value = balancer::DEFAULT_ADDRESS)]
    balancer_address: SocketAddr,
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
        let token = arguments.token.as_deref().map(JoinToken::parse).transpose()?;
        let config = Config {
            address: arguments.balancer_address,
            servers: arguments.server.clone(),
            probe: balancer::probe(join::trust(&directory, token.as_ref())?),
            local: Some(address.into()),
            kept_in: Some(arguments.data_dir.join("node").join(balancer::SERVERS_FILE)),
        };
        let balancer = Balancer::start(config, shutdown.clone());
        let url = balancer.url();
        let joined = tokio::select! {
            joined = join::join(&url, token.as_ref(), &directory, &name) => joined.context("joining the cluster")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let client = client::transport::from_kubeconfig_at(&joined.kubeconfig, Some(&url)).await?;
        let rotation = Rotation {
            kubeconfig: joined.kubeconfig,
            server: Some(url),
            serving_certificate: directory.join("kubelet.crt"),
            serving_key: directory.join("kubelet.key"),
            name: name.clone(),
            address: address.into(),
            token,
            renew_client: true,
            renew_serving: true,
        };
        let serving = rotation.start(shutdown.clone());
        let node = Node {
            name,
            address,
            root_dir: arguments.data_dir.join("node"),
            serving,
            authority_pem: joined.authority_pem,
            cluster_cidr: arguments.cluster_cidr,
        };
        run_node(client, Some(balancer), node, arguments.flags, arguments.service_cluster_ip_range, shutdown).await
    })
}

/// Runs all that a node is, until the shutdown or until one part of it fails.
pub async fn run_node(
    client: kube::Client,
    balancer: Option<Balancer>,
    node: Node,
    flags: KubeletFlags,
    service_cidr: ipnet::Ipv4Net,
    shutdown: CancellationToken,
) -> Result<()> {
    let informers = crate::checkpoint::informers(client, &node.root_dir, "agent");
    balancer::follow(balancer, &informers, &node.root_dir, &shutdown);
    let routing = Routing {
        node_name: node.name.clone(),
        node_ip: Some(node.address),
        cluster_cidr: node.cluster_cidr,
        service_cidr,
        cluster_dns: flags.cluster_dns,
        membership: flags.membership.clone(),
    };
    let mut parts: JoinSet<Result<()>> = JoinSet::new();
    parts.spawn(proxy::route(informers.clone(), informers.acting_as(proxy::USER)?, routing, shutdown.clone()));
    let (address, domain) = (flags.cluster_dns, flags.cluster_domain.clone());
    let (names, token, view) = (informers.clone(), shutdown.clone(), flags.membership.view(&shutdown));
    parts.spawn(async move { dns::resolve(names, address, &domain, Vec::new(), view, token).await });
    let token = shutdown.clone();
    parts.spawn(async move { kubelet::keep(informers, node, &flags, token).await });
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the node panicked")??;
    }
    Ok(())
}
