//! A node's agent, as `regent agent` puts it together: one checkpoint, shared informers, peers, pods, routing, DNS, a lease.

use crate::{
    kernel::Hands,
    member, pods,
    sabotage::Sabotage,
    way::{Process, Way},
    world::{World, address, member_address, node_name},
};
use client::{Checkpoint, Informers, Selection, checkpoint::Disk};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use membership::{Health, View, view::Member};
use network::{conntrack::Flusher, health, services};
use node::{
    peers::{self, Board},
    reporter::Reporter,
};
use parking_lot::RwLock;
use rand::Rng;
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the lease is renewed; an answer is waited for this long.
const LEASE_EVERY: Duration = Duration::from_secs(10);
const LEASE_RETRY: Duration = Duration::from_secs(1);

/// Starts the agent of a host that has power.
pub fn start(world: &World, host: usize) {
    let Some((process, stop)) = world.start_process(host, false) else { return };
    let directory = world.disk(host);
    let (checkpoint, disk) = match Checkpoint::open_with_disk(&directory, "agent") {
        Ok(opened) => opened,
        Err(error) => {
            world.lock().fail(format!("the checkpoint of node-{host} does not open: {error}: {:?}", std::error::Error::source(&error)));
            return;
        }
    };
    if !checkpoint.report().damage.is_empty() {
        world.tell(|| format!("node-{host}: {:?}", checkpoint.report().damage));
        world.lock().hosts[host].gone.clear();
    }
    let checkpoint = checkpoint.keeping::<Pod>().keeping::<Node>().keeping::<Service>().keeping::<EndpointSlice>();
    tokio::spawn(write(process.clone(), disk, stop.clone()));
    let informers = Informers::with_checkpoint(Way::start(&process).client(), checkpoint.clone());
    let (board, reporter) = (Arc::new(Board::default()), Arc::new(Reporter::new(informers.client(), Some(&checkpoint))));
    tokio::spawn(reporter.clone().run(stop.clone()));
    let config = peers::Config {
        listen: member_address(host),
        socket: directory.join("m.sock"),
        directory: directory.join("membership"),
        clock: world.clock(host),
        start: {
            let (process, stop) = (process.clone(), stop.clone());
            Arc::new(move |config, _| {
                let handle = member::start(&process, &config, stop.clone());
                tokio::spawn(show(process.clone(), handle.view(), stop.clone()));
                Ok(handle)
            })
        },
    };
    let ip = IpAddr::V4(address(host));
    let words = if world.sabotage == Some(Sabotage::Words) { Arc::default() } else { board.clone() };
    if world.sabotage != Some(Sabotage::Membership) {
        tokio::spawn(peers::run(config, node_name(host), ip, informers.clone(), words, stop.clone()));
    }
    let own_pods = informers.selected::<Pod>(Selection { fields: Some(format!("spec.nodeName={}", node_name(host))), ..Selection::default() });
    tokio::spawn(pods::run(process.clone(), own_pods, reporter, board.clone(), stop.clone()));
    tokio::spawn(renew(process.clone(), informers.clone(), board, stop.clone()));
    route(&process, &informers, &stop);
    resolve(&process, &informers, &stop);
}

/// The way of the membership's word to the other parts of the node.
async fn show(process: Process, mut view: watch::Receiver<Arc<View>>, stop: CancellationToken) {
    let mut before = Arc::new(View::default());
    loop {
        let now = tampered(process.world.sabotage, view.borrow_and_update().clone());
        process.gate().await;
        for (name, seen) in now.nodes.iter().filter(|(name, seen)| before.nodes.get(*name) != Some(seen)) {
            let Member { health, reachable, cut, api_reachable, .. } = seen;
            let told = format!("node-{} sees {name} {health:?}, reachable {reachable}, cut {cut}, API {api_reachable}", process.host);
            process.world.tell(|| format!("{told}; majority {}", now.majority));
        }
        before = now.clone();
        process.world.lock().hosts[process.host].views.send_replace(Some(now));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}

/// The view without one of its mechanisms.
fn tampered(sabotage: Option<Sabotage>, view: Arc<View>) -> Arc<View> {
    let mut new = (*view).clone();
    match sabotage {
        Some(Sabotage::Refutation) => {
            for member in new.nodes.values_mut().filter(|member| member.health == Health::Suspect) {
                (member.health, member.reachable) = (Health::Dead, false);
            }
        }
        Some(Sabotage::LastEndpoint) => {
            let lost: Vec<String> = new.nodes.keys().filter(|node| new.lost(node)).cloned().collect();
            for node in lost {
                if let Some(endpoints) = new.endpoints.get_mut(&node) {
                    Arc::make_mut(endpoints).values_mut().for_each(|endpoint| (endpoint.ready, endpoint.serving) = (false, false));
                }
            }
        }
        _ => return view,
    }
    Arc::new(new)
}

fn route(process: &Process, informers: &Informers, stop: &CancellationToken) {
    let (world, host) = (&process.world, process.host);
    let config = services::Config {
        node_name: node_name(host),
        node_ip: Some(address(host)),
        informers: informers.clone(),
        cluster_cidr: None,
        service_cidr: None,
        left_alone: Vec::new(),
        health_address: None::<SocketAddr>,
        view: Some(world.lock().hosts[host].views.subscribe()),
    };
    let (flusher, mut flushes) = Flusher::queue();
    tokio::spawn(async move { while flushes.recv().await.is_some() {} });
    let hands = Hands { world: world.clone(), process: process.clone() };
    let stop = stop.clone();
    tokio::spawn(async move {
        let _ = services::route(config, hands, flusher, health::Health::default(), stop).await;
    });
}

fn resolve(process: &Process, informers: &Informers, stop: &CancellationToken) {
    let (world, host) = (&process.world, process.host);
    let Some(zone) = dns::zone::Zone::new("cluster.local") else { return };
    let zone = Arc::new(RwLock::new(zone));
    let views = {
        let mut state = world.lock();
        state.hosts[host].names = Some(zone.clone());
        state.hosts[host].views.subscribe()
    };
    let (informers, stop) = (informers.clone(), stop.clone());
    tokio::spawn(async move {
        let (ready, _kept) = watch::channel(false);
        tokio::select! {
            () = stop.cancelled() => {}
            _ = dns::follow(&informers, Some(views), &zone, &ready) => {}
        }
    });
}

/// Keeps the node's lease, and says that the node is ready where the API says otherwise.
async fn renew(process: Process, informers: Informers, board: Arc<Board>, stop: CancellationToken) {
    let client = informers.client();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(client);
    let all = informers.all::<Node>();
    let name = node_name(process.host);
    loop {
        process.gate().await;
        let now = process.world.clock(process.host).now();
        let answer = board.exchange(timed(async {
            let mut lease = leases.get_opt(&name).await?.unwrap_or_default();
            let is_new = lease.metadata.name.is_none();
            lease.metadata = ObjectMeta { name: Some(name.clone()), namespace: Some("kube-node-lease".into()), ..lease.metadata };
            let spec = lease.spec.get_or_insert_default();
            (spec.holder_identity, spec.lease_duration_seconds, spec.renew_time) = (Some(name.clone()), Some(40), Some(MicroTime(now)));
            if is_new { leases.create(&PostParams::default(), &lease).await } else { leases.replace(&name, &PostParams::default(), &lease).await }
        }));
        let is_renewed = tokio::select! {
            biased;
            answer = answer => answer.is_ok(),
            () = board.returned() => continue,
        };
        if is_renewed {
            let is_ready = all.get(&client::Key::new("", &name)).is_some_and(|node| ready(&node) == Some("True"));
            if !is_ready {
                let condition = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
                let patch = json!({"status": {"conditions": [condition]}});
                let _ = timeout(LEASE_EVERY, nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))).await;
            }
        }
        let away = all.get(&client::Key::new("", &name)).is_some_and(|node| ready(&node) != Some("True"));
        let pause = if is_renewed && !away { LEASE_EVERY } else { LEASE_RETRY };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = board.returned() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Gives up after a while.
async fn timed<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    timeout(LEASE_EVERY, request).await.unwrap_or_else(|elapsed| Err(kube::Error::Service(Box::new(elapsed))))
}

/// The condition Ready of a node.
pub fn ready(node: &Node) -> Option<&str> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}

/// The disk: takes its time, and writes what is pending.
async fn write(process: Process, mut disk: Disk, stop: CancellationToken) {
    let (world, host) = (process.world.clone(), process.host);
    let writes = async {
        loop {
            disk.wanted().await;
            let takes = Duration::from_millis(world.lock().hosts[host].disk_ms);
            sleep(takes).await;
            process.gate().await;
            if !disk.write() {
                world.lock().fail(format!("the checkpoint of node-{host} cannot be written"));
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = writes => {}
    }
    // A process that is dead writes nothing more. If the power has gone, that may be in the middle of a commit that nobody had been
    // told of.
    let is_torn = {
        let mut state = world.lock();
        !state.hosts[host].is_on && state.chance(0.5)
    };
    if is_torn {
        // Every commit before this one was synced.
        let synced = lengths(&world.disk(host));
        disk.write();
        drop(disk);
        tear(&world, host, &synced);
    }
}

fn lengths(directory: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_string_lossy().into_owned(), entry.metadata().ok()?.len()))).collect()
}

/// Leaves of what was not synced an end that is cut, or filled with something else.
fn tear(world: &World, host: usize, synced: &BTreeMap<String, u64>) {
    let mut state = world.lock();
    for (name, synced) in synced {
        let path = world.disk(host).join(name);
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let safe = usize::try_from(*synced).unwrap_or(usize::MAX);
        if name.ends_with("-wal") && bytes.len() > safe {
            let cut = state.rng.random_range(safe..=bytes.len());
            match state.rng.random_range(0..3) {
                0 => bytes.truncate(cut),
                1 => bytes[cut..].fill(0),
                _ => state.rng.fill(&mut bytes[cut..]),
            }
            let _ = std::fs::write(&path, bytes);
        }
    }
}

/// Takes a node's disk away.
pub fn wipe(world: &World, host: usize) {
    let _ = std::fs::remove_dir_all(world.disk(host));
    let mut state = world.lock();
    state.hosts[host].gone.clear();
}

/// Copies a disk, for the sabotage that brings it back.
pub fn copy_disk(world: &World, host: usize, back: bool) {
    let (mut from, mut to) = (world.disk(host), world.place.join(format!("copy-{host}")));
    if back {
        std::mem::swap(&mut from, &mut to);
    }
    if !from.is_dir() {
        return;
    }
    let _ = std::fs::remove_dir_all(&to);
    let _ = std::fs::create_dir_all(to.join("membership"));
    for part in ["", "membership"] {
        for entry in std::fs::read_dir(from.join(part)).into_iter().flatten().flatten().filter(|entry| entry.path().is_file()) {
            let _ = std::fs::copy(entry.path(), to.join(part).join(entry.file_name()));
        }
    }
}
