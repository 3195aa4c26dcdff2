//! The node's part of the pod network: CNI configuration, routes to the other nodes' pods, masquerading, hostPorts.
//!
//! Runs inside the kubelet component. It waits for this node's pod range (from its Node object), then keeps the kernel
//! and the CNI configuration as the Node objects and this node's pods say. The CNI configuration is written last, when
//! routes and rules are in place: containerd then reports the network as ready.
//!
//! What must stay true: a Node object that lacks its address or range for a moment takes no route away that works (a route
//! goes only when its node is gone or has another range); nothing here is undone when the component stops, so that pods go on.

pub mod cni;
pub mod plan;
pub mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use client::{Change, Informer, Informers, Key, Selection};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use plan::Mode;

use crate::links::{self, Hop, Links, OwnLink, Tunnel};
use crate::nft::Nft;
use crate::table::Table;
use crate::{addresses, limits};

/// The table that this component owns, in family `ip`.
pub const TABLE: &str = "regent-pods";

/// The name, network identifier and UDP port of the tunnel between nodes that share no link.
const TUNNEL: (&str, u32, u16) = ("regent.vxlan", 213, 8472);

/// What the pod network needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// This node's address.
    pub node_ip: Ipv4Addr,
    /// The process' informers.
    pub informers: Informers,
    /// Where containerd looks for its CNI configuration (`/etc/cni/net.d`).
    pub cni_conf_dir: PathBuf,
    /// Where containerd looks for CNI plugins (`/usr/lib/cni`); our own is linked there.
    pub cni_bin_dir: PathBuf,
    /// The `regent` binary, which is our plugin under another name; usually `std::env::current_exe()`.
    pub binary: PathBuf,
    /// Where the node's addresses are kept (`network/` below it).
    pub data_dir: PathBuf,
    /// How other nodes' pods are reached.
    pub mode: Mode,
    /// The range of all pods; what leaves it is masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// Addresses that something on this node serves itself (the cluster DNS).
    pub left_alone: Vec<Ipv4Addr>,
}

/// Why the pod network ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The informers have ended under it.
    #[error("the informers have ended")]
    InformersEnded,
}

/// Why one attempt to bring the node up to date failed; it is repeated.
#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error("routes")]
    Links(#[from] links::Error),
    #[error("rules")]
    Nft(#[from] crate::nft::Error),
    #[error("CNI configuration")]
    Cni(#[source] std::io::Error),
    #[error("addresses")]
    Addresses(#[from] addresses::Error),
}

/// Keeps this node's part of the pod network until `shutdown`. Everything stays in the kernel after that.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    links::set_sysctl("net/ipv4/ip_forward", "1");
    links::set_sysctl("net/ipv4/conf/all/route_localnet", "1");
    let nodes = config.informers.all::<Node>();
    let here = Selection { fields: Some(format!("spec.nodeName={}", config.node_name)), ..Selection::default() };
    let pods = config.informers.selected::<Pod>(here);
    let (mut node_changes, mut pod_changes) = (nodes.subscribe(), pods.subscribe());
    let mut network = Network { config, nodes, pods, places: BTreeMap::new(), range: None, table: None, whole: true, failures: 0 };

    let mut due: Option<Instant> = None;
    let mut upkeep = tokio::time::interval(limits::TABLE_CHECK_PERIOD);
    upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    upkeep.reset();
    loop {
        let soon = || Some(Instant::now() + Duration::from_millis(limits::SYNC_GATHER_MS));
        tokio::select! {
            biased;
            _ = shutdown.cancelled() => return Ok(()),
            _ = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                while let Some(change) = pod_changes.try_next() { network.pod(&change); }
                while let Some(change) = node_changes.try_next() { network.node(&change); }
                due = network.sync().await;
            }
            change = node_changes.next() => {
                if network.node(&change.ok_or(Error::InformersEnded)?) {
                    due = due.or_else(soon);
                }
            }
            change = pod_changes.next() => {
                if network.pod(&change.ok_or(Error::InformersEnded)?) {
                    due = due.or_else(soon);
                }
            }
            _ = upkeep.tick() => {
                if network.upkeep().await {
                    due = due.or_else(soon);
                }
            }
        }
    }
}

struct Network {
    config: Config,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    places: BTreeMap<String, plan::Place>,
    /// This node's own range, once it is known.
    range: Option<Ipv4Net>,
    /// The table for that range.
    table: Option<Table<Key>>,
    whole: bool,
    failures: u32,
}

impl Network {
    /// A Node has changed. Says whether anything is to be done.
    fn node(&mut self, change: &Change<Node>) -> bool {
        let node = change.object();
        let Some(name) = node.metadata.name.clone() else { return false };
        if name == self.config.node_name {
            let range = plan::pod_range(node);
            if let (Change::Applied { .. }, Some(range)) = (change, range)
                && self.range != Some(range)
            {
                self.range = Some(range);
                self.table = Some(self.new_table(range));
                self.whole = true;
                return true;
            }
            return false;
        }
        match change {
            Change::Deleted(_) => self.places.remove(&name).is_some(),
            // Without address or range it keeps the last ones known.
            Change::Applied { new, .. } => match plan::place(new) {
                Some(place) => self.places.insert(name, place.clone()) != Some(place),
                None => false,
            },
        }
    }

    /// A pod of this node has changed. Says whether anything is to be done.
    fn pod(&mut self, change: &Change<Pod>) -> bool {
        let Some(table) = &mut self.table else { return false };
        set_ports(table, change.object(), matches!(change, Change::Deleted(_)))
    }

    fn new_table(&self, range: Ipv4Net) -> Table<Key> {
        let mut table = Table::new(TABLE, cni::base(range, self.config.cluster_cidr, &self.config.left_alone));
        for pod in self.pods.list() {
            set_ports(&mut table, &pod, false);
        }
        table
    }

    /// Brings the node up to date; says when to come again.
    async fn sync(&mut self) -> Option<Instant> {
        match self.attempt().await {
            Ok(()) => {
                self.failures = 0;
                None
            }
            Err(error) => {
                let wait = crate::services::retry_ms(self.failures);
                tracing::error!(error = &error as &dyn std::error::Error, wait_ms = wait, "the pod network is not up to date");
                self.failures = self.failures.saturating_add(1);
                self.whole = true;
                Some(Instant::now() + Duration::from_millis(wait))
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Attempt> {
        let (Some(range), Some(table)) = (self.range, &mut self.table) else { return Ok(()) };
        let transaction = if self.whole { Some(table.whole()) } else { table.changes() };
        if let Some(transaction) = transaction {
            Nft::default().apply(&transaction).await?;
        }
        table.committed();
        self.whole = false;

        let own = self.routes(range).await?;
        let folder = self.config.data_dir.join("network");
        let text = cni::configuration(range, &folder, own.mtu);
        cni::provide_plugins(&self.config.cni_bin_dir, &self.config.binary).map_err(Attempt::Cni)?;
        cni::write_configuration(&self.config.cni_conf_dir, &text).map_err(Attempt::Cni)
    }

    async fn routes(&self, range: Ipv4Net) -> Result<Facts, Attempt> {
        let links = Links::open()?;
        let own = links.link_of(self.config.node_ip).await?;
        let network = own.and_then(|own| Ipv4Net::new(self.config.node_ip, own.prefix_length).ok()).map(|net| net.trunc());
        let places: Vec<plan::Place> = self.places.values().cloned().collect();
        let wanted = plan::routes(&self.config.node_name, range, network, self.config.mode, &places);

        let mut tunnel_index = None;
        if let (true, Some(own)) = (wanted.values().any(|hop| matches!(hop, Hop::Tunnel { .. })), own) {
            tunnel_index = Some(links.tunnel(&self.tunnel(own, range)).await?);
        }
        let known = links.own_routes().await?;
        for (destination, hop) in &wanted {
            if let (Hop::Tunnel { inner, hardware, outer }, Some(index)) = (hop, tunnel_index) {
                links.tunnel_peer(index, *inner, *hardware, *outer).await?;
            }
            links.route(*destination, hop, tunnel_index).await?;
        }
        // Only when it is certain that a node is gone, its route goes too.
        if self.nodes.is_synced() {
            for (destination, route) in known.into_iter().filter(|(destination, _)| !wanted.contains_key(destination)) {
                links.remove_route(destination, route).await?;
            }
        }
        let mtu = own.map_or(1500, |own| own.mtu);
        Ok(Facts { mtu: if self.config.mode == Mode::Routes { mtu } else { self.pod_mtu(mtu, &wanted) } })
    }

    fn tunnel(&self, own: OwnLink, range: Ipv4Net) -> Tunnel {
        Tunnel {
            name: TUNNEL.0,
            network_identifier: TUNNEL.1,
            port: TUNNEL.2,
            over: own,
            outer: self.config.node_ip,
            inner: range.network(),
            hardware: plan::hardware(self.config.node_ip),
        }
    }

    /// Pods' packets must fit through the narrowest way that they may take.
    fn pod_mtu(&self, link_mtu: u32, wanted: &BTreeMap<Ipv4Net, Hop>) -> u32 {
        let tunnelled = self.config.mode == Mode::Vxlan || wanted.values().any(|hop| matches!(hop, Hop::Tunnel { .. }));
        if tunnelled { link_mtu.saturating_sub(links::VXLAN_OVERHEAD_BYTES) } else { link_mtu }
    }

    /// Now and then: forgets addresses of pods that have left, and sees whether the table is still there.
    async fn upkeep(&mut self) -> bool {
        if self.range.is_none() {
            return false;
        }
        if self.pods.is_synced() {
            let present: BTreeSet<String> = self.pods.list().iter().flat_map(|pod| uids(pod)).collect();
            let folder = self.config.data_dir.join("network");
            let kept = tokio::task::spawn_blocking(move || addresses::retain(&folder, &present)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!(error = &error as &dyn std::error::Error, "addresses of pods that have left were not returned");
            }
        }
        match Nft::default().has_chain(TABLE, "nat-prerouting").await {
            Ok(false) => {
                tracing::warn!("somebody has removed the table {TABLE}: making it anew");
                self.whole = true;
                true
            }
            // Routes may have gone with a link that went down and up again.
            Ok(true) => true,
            Err(error) => {
                tracing::warn!(%error, "the table {TABLE} could not be checked");
                false
            }
        }
    }
}

struct Facts {
    mtu: u32,
}

fn set_ports(table: &mut Table<Key>, pod: &Pod, gone: bool) -> bool {
    let fragment = if gone { None } else { ports::fragment(pod) };
    table.set(&Key::of(pod), fragment)
}

/// The UIDs under which a pod may have asked for its address: its own, and for a static pod the one its file gave it.
fn uids(pod: &Pod) -> Vec<String> {
    let own = pod.metadata.uid.clone();
    let from_file = pod.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.hash").cloned());
    own.into_iter().chain(from_file).collect()
}
