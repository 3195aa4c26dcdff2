//! Cluster DNS, on every node: the cluster's zone from the node's informers, everything else from the resolvers above.
//!
//! ```text
//! informers --changes--> Zone (pure: question -> answer)
//! UDP, TCP --question--> server --in the zone--> Zone
//!                               \--elsewhere---> forward (upstreams, small cache)
//! ```
//!
//! Every node binds the cluster's one DNS address on its own loopback, so a pod's question never leaves its node, and is
//! answered with every server dead. [`zone`] decides, [`server`] speaks UDP and TCP, [`forward`] asks others, [`wire`] reads
//! the little of a message that is needed to pass it on as it is.
//!
//! What must stay true: before the first whole list a question for the zone waits (a name that exists must never be
//! answered with NXDOMAIN); a name known once is never answered with SERVFAIL; it never asks itself; work waiting for
//! others is bounded, so that a flood of foreign names leaves the zone's own alone.
//!
//! What this crate does not know: storage, HTTP serving, how Services are routed.

pub mod forward;
pub mod limits;
pub mod server;
pub mod wire;
pub mod zone;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use client::Informers;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use membership::View;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use zone::Zone;

/// What the DNS server needs to know.
#[derive(Clone)]
pub struct Config {
    /// The process' informers.
    pub informers: Informers,
    /// The address that pods ask, usually `10.96.0.10:53`.
    pub listen: SocketAddr,
    /// Whether that address is to be added to the loopback link first.
    pub add_address: bool,
    /// The cluster's domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// The resolvers for everything else; when empty, those of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Usually `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// What the cluster's membership says, as it changes; `None` (`--membership=false`) is to take only the API's word.
    pub view: Option<watch::Receiver<Option<Arc<View>>>>,
    /// Sockets that outlive this process; without them it opens its own.
    pub inherited: Option<Arc<Inherited>>,
}

/// Why the DNS server ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's domain is no domain name.
    #[error("{0:?} is no domain name")]
    Domain(String),
    /// The informers have ended under it.
    #[error("the informers have ended")]
    InformersEnded,
}

/// Answers questions until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let zone = Zone::new(&config.cluster_domain).ok_or_else(|| Error::Domain(config.cluster_domain.clone()))?;
    let zone = Arc::new(RwLock::new(zone));
    let (ready, is_ready) = watch::channel(false);
    let upstreams = if config.upstreams.is_empty() {
        forward::upstreams(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default(), config.listen.ip())
    } else {
        config.upstreams.iter().copied().filter(|upstream| *upstream != config.listen).collect()
    };
    if upstreams.is_empty() {
        tracing::warn!("no resolver above: only the cluster's own names are answered");
    }
    let server = Arc::new(server::Server::new(zone.clone(), is_ready, forward::Forwarder::new(upstreams)));
    tokio::select! {
        _ = shutdown.cancelled() => Ok(()),
        result = follow(&config.informers, config.view.clone(), &zone, &ready) => result,
        () = listen(&config, &server, &shutdown) => Ok(()),
    }
}

/// Keeps the zone as the informers say; `ready` becomes true when that is all that there is.
pub async fn follow(
    informers: &Informers,
    mut views: Option<watch::Receiver<Option<Arc<View>>>>,
    zone: &RwLock<Zone>,
    ready: &watch::Sender<bool>,
) -> Result<(), Error> {
    let (services, slices) = (informers.all::<Service>(), informers.all::<EndpointSlice>());
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    tokio::join!(services.synced(), slices.synced());
    loop {
        {
            let mut zone = zone.write();
            while let Some(change) = service_changes.try_next() {
                zone.service(&change);
            }
            while let Some(change) = slice_changes.try_next() {
                zone.slice(&change);
            }
        }
        ready.send_replace(true);
        tokio::select! {
            change = service_changes.next() => zone.write().service(&change.ok_or(Error::InformersEnded)?),
            change = slice_changes.next() => zone.write().slice(&change.ok_or(Error::InformersEnded)?),
            view = membership::local::newest(&mut views) => zone.write().view(view),
        }
    }
}

/// Has the address, listens on it, and does both again should it be lost.
async fn listen(config: &Config, server: &Arc<server::Server>, shutdown: &CancellationToken) {
    loop {
        if let (true, IpAddr::V4(address)) = (config.add_address, config.listen.ip())
            && let Err(error) = add_to_loopback(address).await
        {
            tracing::warn!(%address, %error, "the DNS address could not be added to lo");
        }
        let sockets = match &config.inherited {
            Some(inherited) => inherited.again(),
            None => bind(config.listen).await,
        };
        match sockets {
            Ok((udp, tcp)) => {
                tracing::info!(listen = %config.listen, "answering");
                let upkeep = async {
                    let mut period = tokio::time::interval(limits::ADDRESS_CHECK_PERIOD);
                    loop {
                        period.tick().await;
                        if let (true, IpAddr::V4(address)) = (config.add_address, config.listen.ip())
                            && let Err(error) = add_to_loopback(address).await
                        {
                            tracing::warn!(%address, %error, "the DNS address could not be kept on lo");
                        }
                    }
                };
                tokio::select! {
                    () = server.serve(udp, tcp, shutdown.clone()) => return,
                    () = upkeep => return,
                }
            }
            Err(error) => {
                tracing::error!(listen = %config.listen, %error, "cannot listen; trying again");
                tokio::time::sleep(limits::BIND_RETRY).await;
            }
        }
    }
}

async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(address).await?;
    // With port 0 (tests) both protocols have the same one.
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    Ok((udp, tcp))
}

/// Sockets that somebody else holds open (systemd, or the init of a sandbox's node): questions that come while this process
/// is away wait in them, and none is refused.
#[derive(Debug)]
pub struct Inherited {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Inherited {
    /// Those given to this process by systemd's protocol (sd_listen_fds(3)): a datagram socket, then a listening one. `None` if
    /// it was given none. To be called once, before threads are started that could read the environment.
    pub fn take() -> std::io::Result<Option<Inherited>> {
        let mut given = listenfd::ListenFd::from_env();
        if given.len() == 0 {
            return Ok(None);
        }
        let missing = |what| std::io::Error::other(format!("the sockets given to this process have no {what}"));
        let udp = given.take_udp_socket(0)?.ok_or_else(|| missing("datagram socket in the first place"))?;
        let tcp = given.take_tcp_listener(1)?.ok_or_else(|| missing("listening socket in the second place"))?;
        // They are for this process alone, not for those that it starts.
        rustix::io::fcntl_setfd(&udp, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::fcntl_setfd(&tcp, rustix::io::FdFlags::CLOEXEC)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Some(Inherited { udp, tcp }))
    }

    fn again(&self) -> std::io::Result<(UdpSocket, TcpListener)> {
        Ok((UdpSocket::from_std(self.udp.try_clone()?)?, TcpListener::from_std(self.tcp.try_clone()?)?))
    }
}

/// Adds the address to `lo`; one that is there already is left as it is.
async fn add_to_loopback(address: Ipv4Addr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use futures::TryStreamExt;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = async {
        let mut links = handle.link().get().match_name("lo".to_owned()).execute();
        let link = links.try_next().await?.ok_or("there is no link lo")?;
        handle.address().add(link.header.index, IpAddr::V4(address), 32).replace().execute().await?;
        Ok(())
    }
    .await;
    connection.abort();
    result
}
