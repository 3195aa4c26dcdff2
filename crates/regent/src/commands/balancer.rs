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
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Where the balancer listens if nothing else is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:6443";
/// How often it is looked whether this node has promised itself to another server.
const EPOCH_LOOK_EVERY: Duration = Duration::from_millis(500);
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

/// Lets the balancer learn from the cluster which servers there are, until the shutdown; and from what this node has promised
/// (below `root_dir`) which server has taken over from one that can say nothing any more.
pub fn follow(balancer: Option<Balancer>, informers: &Informers, root_dir: &Path, shutdown: &CancellationToken) {
    if let Some(balancer) = balancer {
        let (informers, told, following) = (informers.clone(), shutdown.clone(), balancer.clone());
        tokio::spawn(async move { following.follow(&informers, told).await });
        tokio::spawn(follow_epoch(balancer, root_dir.join(membership::cluster::LEDGER), shutdown.clone()));
    }
}

/// Every process of the node that may be the balancer reads what one of them, the kubelet, has promised.
async fn follow_epoch(balancer: Balancer, ledger: PathBuf, shutdown: CancellationToken) {
    let mut known = None;
    let mut seen = None;
    loop {
        let changed = std::fs::metadata(&ledger).and_then(|metadata| metadata.modified()).ok();
        if changed != seen {
            seen = changed;
            if let Ok(Some(epoch)) = membership::cluster::read(&ledger)
                && known.as_ref() != Some(&epoch)
            {
                match epoch.server.parse::<Server>() {
                    Ok(server) => balancer.learn(&[server]),
                    Err(error) => tracing::warn!(server = epoch.server, %error, "the server of the newest epoch cannot be used"),
                }
                known = Some(epoch);
            }
        }
        tokio::select! { () = shutdown.cancelled() => return, () = tokio::time::sleep(EPOCH_LOOK_EVERY) => {} }
    }
}
