//! The Service proxy: Services and EndpointSlices become nftables maps in this node's kernel.
//!
//! ```text
//! informers --changes--> Plan (pure: dirty Services -> fragments -> Table) --transaction--> nft
//!                                     \--stale flows--------------------------------------> conntrack
//! ```
//!
//! Ways chosen: maps as kube-proxy's nftables mode has them, so that a packet's cost does not depend on the number of
//! Services; one rule with an anonymous map per port instead of a chain per endpoint, so that a changed endpoint is two
//! lines of transaction; only the Services that changed are computed anew.
//!
//! What must stay true: the kernel's table is untouched until Services, EndpointSlices and this node are known, so that a
//! restarted proxy never empties what works; a transaction goes in whole or not at all; after one was refused the next is
//! the whole table; addresses in [`Config::left_alone`] are never touched. IPv4 only.

pub mod endpoints;
mod plan;
pub mod rules;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use client::{Informers, Selection};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use membership::View;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use plan::Plan;

use crate::conntrack::{self, Flush, Flusher};
use crate::health::{self, Health};
use crate::nft::{Nft, Tables};
use crate::{limits, links};

/// The table that this component owns, in family `ip`.
pub const TABLE: &str = "regent-services";
/// The chain by which the table is known to be there.
const HOOK: &str = "nat-prerouting";

/// What the proxy needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// This node's address, the source of its own connections to Services; without it no route for Services is made.
    pub node_ip: Option<Ipv4Addr>,
    /// The process' informers.
    pub informers: Informers,
    /// The range of all pods: what does not come from there is masqueraded on its way to a ClusterIP.
    pub cluster_cidr: Option<Ipv4Net>,
    /// The range of ClusterIPs: what is sent there and belongs to no Service is refused.
    pub service_cidr: Option<Ipv4Net>,
    /// Addresses that something on this node serves itself (the cluster DNS).
    pub left_alone: Vec<Ipv4Addr>,
    /// Where `/healthz` answers; Kubernetes' port is 10256.
    pub health_address: Option<SocketAddr>,
    /// What the cluster's membership says, as it changes; `None` (`--membership=false`) is to take only the API's word.
    pub view: Option<watch::Receiver<Option<Arc<View>>>>,
}

/// What the rules depend on beside Services and their slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// This node.
    pub node: NodeFacts,
    /// See [`Config::cluster_cidr`].
    pub cluster_cidr: Option<Ipv4Net>,
    /// See [`Config::service_cidr`].
    pub service_cidr: Option<Ipv4Net>,
    /// See [`Config::left_alone`].
    pub left_alone: Vec<Ipv4Addr>,
}

/// What the choice of endpoints needs to know of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// What it believes of the others.
    pub view: Option<Arc<View>>,
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The informers have ended under it.
    #[error("the informers have ended")]
    InformersEnded,
}

/// Routes Services on this node until `shutdown`. The rules stay in the kernel after that.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let health = Health::default();
    if let Some(address) = config.health_address
        && let Some(listener) = health::listen(address).await
    {
        tokio::spawn(health::serve(listener, health.clone(), shutdown.clone()));
    }
    prepare_kernel(&config).await;
    route(config, Nft::default(), Flusher::start(shutdown.clone()), health, shutdown).await
}

/// Keeps the tables as the informers and the membership say, until `shutdown`. The rules stay after that. What a predecessor knew of
/// the peers stays in its rules until they have been heard again, so that a restart takes nothing back.
pub async fn route(config: Config, tables: impl Tables, flusher: Flusher, health: Health, shutdown: CancellationToken) -> Result<(), Error> {
    let services = config.informers.all::<Service>();
    let slices = config.informers.all::<EndpointSlice>();
    let nodes = config.informers.selected::<Node>(Selection::named(None, &config.node_name));
    tokio::select! {
        _ = shutdown.cancelled() => return Ok(()),
        _ = async { tokio::join!(services.synced(), slices.synced(), nodes.synced()) } => {}
    }
    let (mut service_changes, mut slice_changes, mut node_changes) = (services.subscribe(), slices.subscribe(), nodes.subscribe());

    let facts = Facts {
        node: NodeFacts { name: config.node_name.clone(), ..NodeFacts::default() },
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        left_alone: config.left_alone.clone(),
    };
    let mut plan = Plan::new(facts);
    let mut views = config.view.clone();
    if let Some(views) = &mut views {
        if tables.has_chain(TABLE, HOOK).await.unwrap_or(false) {
            tokio::select! {
                _ = shutdown.cancelled() => return Ok(()),
                _ = tokio::time::timeout(limits::VIEW_WAIT, views.wait_for(|view| view.as_ref().is_some_and(|view| view.is_settled()))) => {}
            }
        }
        plan.view(views.borrow_and_update().clone());
    }
    let own = config.node_ip.map(Ipv4Net::from);
    let reached = config.service_cidr.into_iter().chain(own).collect();
    let mut applier = Applier::new(tables, health, flusher, reached);
    let mut check = tokio::time::interval(limits::TABLE_CHECK_PERIOD);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    check.reset();
    let mut distrust: Option<Instant> = None;
    loop {
        let due = applier.due;
        tokio::select! {
            biased;
            _ = shutdown.cancelled() => return Ok(()),
            _ = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                // What has arrived since belongs to the same transaction.
                while let Some(change) = service_changes.try_next() { plan.service(&change); }
                while let Some(change) = slice_changes.try_next() { plan.slice(&change); }
                applier.sync(&mut plan).await;
                if applier.failures >= limits::FAILURES_BEFORE_DISTRUST && distrust.is_none() {
                    distrust = Some(Instant::now() + limits::DISTRUST_FOR);
                    if plan.view(None) {
                        tracing::error!("the kernel refuses what follows from the membership: only the API's word is taken until that works");
                    }
                }
            }
            _ = tokio::time::sleep_until(distrust.unwrap_or_else(Instant::now)), if distrust.is_some() && applier.failures == 0 => {
                distrust = None;
                if plan.view(views.as_ref().and_then(|views| views.borrow().clone())) {
                    applier.wake();
                }
            }
            // One that comes while none is trusted is the one that is taken after that.
            view = membership::local::newest(&mut views) => {
                if distrust.is_none() && plan.view(view) {
                    applier.wake();
                }
            }
            change = service_changes.next() => {
                plan.service(&change.ok_or(Error::InformersEnded)?);
                applier.wake();
            }
            change = slice_changes.next() => {
                plan.slice(&change.ok_or(Error::InformersEnded)?);
                applier.wake();
            }
            change = node_changes.next() => {
                let change = change.ok_or(Error::InformersEnded)?;
                if plan.zone(zone_of(change.object())) {
                    applier.wake();
                }
            }
            _ = check.tick() => applier.check().await,
        }
    }
}

/// Whether the rules of the Services are in the kernel.
pub async fn are_in_place() -> bool {
    Nft::default().has_chain(TABLE, HOOK).await.unwrap_or(false)
}

fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

/// Forwarding, NodePorts on loopback, and a way for the node's own packets to ClusterIPs where it has no default route.
async fn prepare_kernel(config: &Config) {
    links::set_sysctl("net/ipv4/ip_forward", "1");
    links::set_sysctl("net/ipv4/conf/all/route_localnet", "1");
    if let (Some(services), Some(node_ip)) = (config.service_cidr, config.node_ip)
        && let Err(error) = links::route_to_loopback(services, node_ip).await
    {
        tracing::warn!(%services, %error, "no route for Services: this node's own processes need a default route to reach them");
    }
}

/// When to bring the plan into the kernel, and what happened the last time.
struct Applier<T> {
    tables: T,
    health: Health,
    flusher: Flusher,
    due: Option<Instant>,
    last: Option<Instant>,
    failures: u32,
    /// The kernel's table is not what the plan believes (at the start, after a refusal, after somebody flushed it).
    whole: bool,
    flushes: Vec<Flush>,
    /// Where Services are reached.
    reached: Vec<Ipv4Net>,
}

impl<T: Tables> Applier<T> {
    fn new(tables: T, health: Health, flusher: Flusher, reached: Vec<Ipv4Net>) -> Applier<T> {
        health.waiting();
        // Also with no Service at all the table must be made.
        let due = Some(Instant::now() + Duration::from_millis(limits::SYNC_GATHER_MS));
        Applier { tables, health, flusher, due, last: None, failures: 0, whole: true, flushes: Vec::new(), reached }
    }

    fn wake(&mut self) {
        if self.due.is_none() {
            let gathered = Instant::now() + Duration::from_millis(limits::SYNC_GATHER_MS);
            let spaced = self.last.map(|last| last + Duration::from_millis(limits::SYNC_PERIOD_MIN_MS));
            self.due = Some(spaced.map_or(gathered, |spaced| spaced.max(gathered)));
            self.health.waiting();
        }
    }

    async fn sync(&mut self, plan: &mut Plan) {
        self.flushes.append(&mut plan.renew());
        // More stale flows than anybody will flush are left to expire.
        self.flushes.truncate(limits::CONNTRACK_QUEUE_MAX);
        if self.whole && !self.tables.has_chain(TABLE, HOOK).await.unwrap_or(true) {
            self.flushes.extend(self.reached.iter().copied().flat_map(conntrack::unanswered));
        }
        let transaction = if self.whole { Some(plan.table().whole()) } else { plan.table().changes() };
        let result = match &transaction {
            Some(transaction) => self.tables.apply(transaction).await,
            None => Ok(()),
        };
        self.last = Some(Instant::now());
        match result {
            Ok(()) => {
                plan.table_mut().committed();
                self.whole = false;
                self.failures = 0;
                self.due = None;
                self.health.settled();
                self.flusher.flush(std::mem::take(&mut self.flushes));
            }
            Err(error) => {
                let wait = retry_ms(self.failures);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    wait_ms = wait,
                    "Services are not up to date; the kernel keeps what it has"
                );
                self.failures = self.failures.saturating_add(1);
                self.whole = true;
                self.due = Some(Instant::now() + Duration::from_millis(wait));
            }
        }
    }

    async fn check(&mut self) {
        if self.whole {
            return;
        }
        match self.tables.has_chain(TABLE, HOOK).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("somebody has removed the table {TABLE}: making it anew");
                self.whole = true;
                self.wake();
            }
            Err(error) => tracing::warn!(%error, "the table {TABLE} could not be checked"),
        }
    }
}

/// The wait after this many failures in a row.
pub(crate) fn retry_ms(failures: u32) -> u64 {
    limits::RETRY_FIRST_MS.saturating_mul(1 << failures.min(10)).min(limits::RETRY_LONGEST_MS)
}

#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod view_tests;
