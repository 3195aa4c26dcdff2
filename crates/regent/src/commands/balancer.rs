//! The way of a node's components to the API: straight, as their kubeconfig says, or through the node's own balancer.
//!
//! With `--api-servers` a component starts the balancer (or stands by, if another process of the node runs it already) and
//! goes to 127.0.0.1, for which every API server's certificate is good. Without, it goes where its kubeconfig says.

use anyhow::{Context, Result};
use clap::Args;
use client::Informers;
use network::balancer::{self, Balancer, Probe, Server};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Where the balancer listens if nothing else is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:6443";
/// The file of the servers as last known, below a node's directory.
pub const SERVERS_FILE: &str = "api-servers.json";

/// What a component alone is told of it.
#[derive(Args, Clone)]
pub struct BalancerFlags {
    /// Reach the API through a balancer on this node, over these servers at first and all that the cluster names later:
    /// https://10.0.0.1:6443,https://10.0.0.2:6443.
    #[arg(long, value_delimiter = ',', value_name = "URL,...")]
    pub api_servers: Vec<Server>,
    /// Where this node's balancer listens. On a server, whose API listens on every address, say another port.
    #[arg(long, default_value = DEFAULT_ADDRESS)]
    pub balancer_address: SocketAddr,
    /// Where the servers are kept as last known, for a boot without the first of them.
    #[arg(long, default_value = "/var/lib/regent/node/api-servers.json")]
    pub api_servers_file: PathBuf,
}

/// A way to the API.
pub struct Way {
    pub client: kube::Client,
    pub balancer: Option<Balancer>,
}

impl BalancerFlags {
    /// The way with this kubeconfig. `local` is the node's address: an API server there is preferred.
    pub async fn way(&self, kubeconfig: &Path, local: Option<IpAddr>, shutdown: &CancellationToken) -> Result<Way> {
        if self.api_servers.is_empty() {
            return Ok(Way { client: client::transport::from_kubeconfig(kubeconfig).await?, balancer: None });
        }
        let authorities = client::transport::authorities(kubeconfig).await?;
        let probe = probe(pki::tls::client_of_roots(&authorities).with_context(|| format!("the authority in {}", kubeconfig.display()))?);
        let config = balancer::Config {
            address: self.balancer_address,
            servers: self.api_servers.clone(),
            probe,
            local,
            kept_in: Some(self.api_servers_file.clone()),
        };
        let balancer = Balancer::start(config, shutdown.clone());
        let client = client::transport::from_kubeconfig_at(kubeconfig, Some(&balancer.url())).await?;
        Ok(Way { client, balancer: Some(balancer) })
    }
}

/// Servers are checked over TLS, so that one of another cluster does not count as alive.
pub fn probe(mut tls: rustls::ClientConfig) -> Probe {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Probe::Readyz(Arc::new(tls))
}

/// Lets the balancer learn from the cluster which servers there are, until the shutdown.
pub fn follow(balancer: Option<Balancer>, informers: &Informers, shutdown: &CancellationToken) {
    if let Some(balancer) = balancer {
        let (informers, shutdown) = (informers.clone(), shutdown.clone());
        tokio::spawn(async move { balancer.follow(&informers, shutdown).await });
    }
}
