//! The node's way to the API servers: a TCP balancer on this node's loopback, over all of them.
//!
//! ```text
//! kubelet, proxy, dns --TLS--> 127.0.0.1:6443 --the same bytes--> a living API server
//!                                    ^ choice
//!              flags, kept file, EndpointSlice default/kubernetes --> Servers (pure) <--verdicts-- one Checker per server
//! ```
//!
//! TLS goes through untouched, from the client to the server whose certificate also names 127.0.0.1. [`servers`] decides,
//! [`check`] finds out, [`kept`] remembers over a reboot; here is what moves bytes.
//!
//! What must stay true: a client that connects reaches a server if any can be reached; connections to a server that died
//! without a word are cut within a second, if another is ready, so that clients come again at once; where no other is
//! ready nothing is cut, and the kernel's own timeouts end what is dead; a server that has come back gets its share slowly.
//!
//! Several processes of a node may each run one on the same address: the first has it, the others stand by and take over
//! as soon as the address is free. So the proxy still hears of the cluster when the kubelet is stopped.
//!
//! Way rejected: a list in every client. Each would have to find out alone, and kubectl on the node could not use it.

mod address;
pub mod check;
pub mod kept;
pub mod servers;

pub use address::{NotAServer, Server};
pub use check::Probe;
pub use servers::Health;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client::{Change, Informers, Selection};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use check::Checker;
use servers::{Action, QUIET_AFTER, Servers, Verdict};

/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How often every server is checked,
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// and how often one that has been dead for a while.
const CHECK_DEAD_EVERY: Duration = Duration::from_secs(1);
/// How many checks in a row find a server dead before they become rarer.
const CHECKS_BEFORE_RARER: u32 = 40;
/// How long a connection to one server may take before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a client waits for a server at most; then its connection is closed, and it may try again.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is seen whether a long-lived connection should move.
const REBALANCE_EVERY: Duration = Duration::from_secs(2);
/// How often a process that stands by tries for the address.
const STANDBY_RETRY: Duration = Duration::from_millis(200);
/// What is sent to a server and not acknowledged for this long ends the connection.
const SILENCE_MAX_MS: u32 = 8_000;
/// A quiet connection is probed by the kernel after, and at, these paces.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
/// Bytes on the way per connection and direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// What the balancer needs to know.
#[derive(Clone)]
pub struct Config {
    /// Where it listens: an address that only this node reaches.
    pub address: SocketAddr,
    /// The servers that flags name.
    pub servers: Vec<Server>,
    /// How servers are checked.
    pub probe: Probe,
    /// This node's address: a server here is preferred.
    pub local: Option<IpAddr>,
    /// The file in which the servers are kept.
    pub kept_in: Option<PathBuf>,
}

/// A running balancer. Cheap to clone; it ends with its shutdown token.
#[derive(Clone)]
pub struct Balancer {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    state: Mutex<State>,
    /// Rises when the list of servers has changed.
    listed: watch::Sender<u64>,
    /// Whether the address is served, here or by another process of this node.
    listening: watch::Sender<bool>,
    /// Whether this process has the address.
    active: AtomicBool,
    /// Whether any server answers; none before the first checks.
    reachable: watch::Sender<Option<bool>>,
    started: Instant,
}

struct State {
    servers: Servers,
    connections: HashMap<u64, Connection>,
    next_id: u64,
}

struct Connection {
    server: Server,
    cut: CancellationToken,
    /// Milliseconds after the start at which a byte last passed.
    moved_ms: Arc<AtomicU64>,
}

impl Balancer {
    /// Starts; returns at once.
    pub fn start(config: Config, shutdown: CancellationToken) -> Balancer {
        let kept = config.kept_in.as_deref().map(kept::read).unwrap_or_default();
        let servers = Servers::new(&config.servers, &kept, config.local, Instant::now());
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(State { servers, connections: HashMap::new(), next_id: 0 }),
            listed: watch::Sender::new(0),
            listening: watch::Sender::new(false),
            active: AtomicBool::new(false),
            reachable: watch::Sender::new(None),
            started: Instant::now(),
        });
        tokio::spawn(run(shared.clone(), shutdown));
        Balancer { shared }
    }

    /// The address that it serves.
    pub fn address(&self) -> SocketAddr {
        self.shared.config.address
    }

    /// What to put into a kubeconfig.
    pub fn url(&self) -> String {
        format!("https://{}", self.shared.config.address)
    }

    /// Waits until the address is served, by this process or by another one of this node.
    pub async fn listening(&self) {
        let _ = self.shared.listening.subscribe().wait_for(|listening| *listening).await;
    }

    /// Whether any server answers; `None` before that is known, or while another process serves the address.
    pub fn reachable(&self) -> watch::Receiver<Option<bool>> {
        self.shared.reachable.subscribe()
    }

    /// Every server with its health and its connections.
    pub fn servers(&self) -> Vec<(Server, Health, usize)> {
        self.shared.state.lock().servers.view()
    }

    /// The cluster's own list. An empty one changes nothing.
    pub fn learn(&self, named: &[Server]) {
        let learned = {
            let mut state = self.shared.state.lock();
            if !state.servers.learn(named, Instant::now()) {
                return;
            }
            state.servers.learned()
        };
        tracing::info!(servers = %learned.iter().map(Server::to_string).collect::<Vec<_>>().join(","), "the API servers, as the cluster names them");
        self.shared.listed.send_modify(|version| *version += 1);
        self.shared.keep(learned);
    }

    /// Learns from the endpoints of the Service `kubernetes` until the shutdown. The informers may well use this balancer.
    pub async fn follow(&self, informers: &Informers, shutdown: CancellationToken) {
        let slices = informers.selected::<EndpointSlice>(Selection::named(Some("default"), "kubernetes"));
        let mut changes = slices.subscribe();
        loop {
            let change = tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.next() => change,
            };
            match change {
                Some(Change::Applied { new, .. }) => self.learn(&servers_of(&new)),
                // A cluster without servers is none: somebody has deleted the slice, and a server makes it anew.
                Some(Change::Deleted(_)) => {}
                None => return,
            }
        }
    }
}

impl Shared {
    /// Keeps the list on the disk. Only the process that has the address does, so that no two write at a time.
    fn keep(&self, learned: Vec<Server>) {
        if let Some(path) = self.config.kept_in.clone().filter(|_| self.active.load(Ordering::Acquire) && !learned.is_empty()) {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = kept::write(&path, &learned) {
                    tracing::warn!(path = %path.display(), %error, "the list of API servers could not be kept");
                }
            });
        }
    }
}

/// The servers that the slice of the Service `kubernetes` names.
fn servers_of(slice: &EndpointSlice) -> Vec<Server> {
    let ports = slice.ports.iter().flatten();
    let port = ports.filter(|port| port.name.as_deref().is_none_or(|name| name.is_empty() || name == "https")).find_map(|port| port.port);
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) else { return Vec::new() };
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false));
    ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| Some(Server::at(address.parse().ok()?, port))).collect()
}

async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let Some(listener) = bind(&shared, &shutdown).await else { return };
    tracing::info!(address = %shared.config.address, "the way to the API servers is open");
    shared.active.store(true, Ordering::Release);
    shared.listening.send_replace(true);
    let learned = shared.state.lock().servers.learned();
    shared.keep(learned);
    let checks = tokio::spawn(check_all(shared.clone(), shutdown.clone()));
    let moves = tokio::spawn(rebalance(shared.clone(), shutdown.clone()));
    accept(&shared, listener, &shutdown).await;
    checks.abort();
    moves.abort();
    let connections: Vec<CancellationToken> = shared.state.lock().connections.values().map(|connection| connection.cut.clone()).collect();
    connections.iter().for_each(CancellationToken::cancel);
}

async fn bind(shared: &Shared, shutdown: &CancellationToken) -> Option<TcpListener> {
    let address = shared.config.address;
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(error) => {
                let taken = error.kind() == io::ErrorKind::AddrInUse;
                if !said {
                    said = true;
                    if taken {
                        tracing::info!(%address, "another process of this node balances over the API servers; this one stands by");
                    } else {
                        tracing::error!(%address, %error, "the balancer cannot listen; it is tried again (see --balancer-address)");
                    }
                }
                if taken {
                    shared.listening.send_replace(true);
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(STANDBY_RETRY) => {}
        }
    }
}

/// One task of checks for every server of the list, as long as it is listed.
async fn check_all(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut listed = shared.listed.subscribe();
    let mut running: HashMap<Server, tokio::task::AbortHandle> = HashMap::new();
    loop {
        let wanted = shared.state.lock().servers.all();
        running.retain(|server, task| {
            let keep = wanted.contains(server);
            if !keep {
                task.abort();
            }
            keep
        });
        for server in wanted {
            running.entry(server.clone()).or_insert_with(|| tokio::spawn(check(shared.clone(), server)).abort_handle());
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            // Former servers leave the list without a change of it.
            _ = tokio::time::timeout(REBALANCE_EVERY, listed.changed()) => {}
        }
    }
    running.values().for_each(tokio::task::AbortHandle::abort);
}

async fn check(shared: Arc<Shared>, server: Server) {
    let mut checker = Checker::new(server.clone(), shared.config.probe.clone());
    let mut dead = 0u32;
    loop {
        let verdict = checker.check().await;
        dead = if verdict == Verdict::Gone { dead.saturating_add(1) } else { 0 };
        report(&shared, &server, verdict);
        let pause = if dead > CHECKS_BEFORE_RARER { CHECK_DEAD_EVERY } else { CHECK_EVERY };
        // Not in step with the other nodes.
        let jitter = chance() % (u64::try_from(pause.as_millis()).unwrap_or(250) / 5);
        tokio::time::sleep(pause - Duration::from_millis(jitter)).await;
    }
}

/// Takes a verdict, and does what follows from it.
fn report(shared: &Shared, server: &Server, verdict: Verdict) {
    let mut state = shared.state.lock();
    let actions = state.servers.checked(server, verdict, Instant::now());
    let alive = state.servers.any_alive();
    for action in actions {
        match action {
            Action::Changed(server, health) => match health {
                Health::Ready => tracing::info!(%server, "the API server is ready"),
                health => tracing::warn!(%server, ?health, "the API server is not used while others are better"),
            },
            Action::Cut(server) => {
                let connections = state.connections.values().filter(|connection| connection.server == server);
                let cut = connections.map(|connection| connection.cut.cancel()).count();
                tracing::warn!(%server, connections = cut, "connections to a dead API server are cut; their clients come again");
            }
        }
    }
    drop(state);
    shared.reachable.send_if_modified(|reachable| reachable.replace(alive) != Some(alive));
}

/// Now and then moves one quiet connection from the busiest server, by closing it.
async fn rebalance(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        let pause = REBALANCE_EVERY + Duration::from_millis(chance() % 1_000);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let state = shared.state.lock();
        let Some(server) = state.servers.overloaded(Instant::now()) else { continue };
        let now_ms = elapsed_ms(shared.started);
        let quiet_ms = u64::try_from(QUIET_AFTER.as_millis()).unwrap_or(u64::MAX);
        let quiet = state
            .connections
            .values()
            .find(|connection| connection.server == server && now_ms.saturating_sub(connection.moved_ms.load(Ordering::Relaxed)) >= quiet_ms);
        if let Some(connection) = quiet {
            tracing::debug!(%server, "a quiet connection moves");
            connection.cut.cancel();
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener, shutdown: &CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = tokio::select! {
            () = shutdown.cancelled() => return,
            place = places.clone().acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let (shared, shutdown) = (shared.clone(), shutdown.clone());
                tokio::spawn(async move {
                    serve(&shared, client, &shutdown).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the balancer could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(shared: &Arc<Shared>, client: TcpStream, shutdown: &CancellationToken) {
    let chosen = tokio::select! {
        () = shutdown.cancelled() => return,
        chosen = tokio::time::timeout(CHOICE_TIMEOUT, reach(shared)) => chosen,
    };
    let Ok(Some((server, upstream))) = chosen else {
        tracing::debug!("no API server could be reached");
        return;
    };
    prepare(&client, &upstream);
    let (cut, moved_ms) = (CancellationToken::new(), Arc::new(AtomicU64::new(elapsed_ms(shared.started))));
    let id = {
        let mut state = shared.state.lock();
        state.servers.opened(&server);
        state.next_id += 1;
        let id = state.next_id;
        state.connections.insert(id, Connection { server: server.clone(), cut: cut.clone(), moved_ms: moved_ms.clone() });
        id
    };
    let (client_reads, client_writes) = client.into_split();
    let (upstream_reads, upstream_writes) = upstream.into_split();
    let both = async {
        tokio::try_join!(
            pass(client_reads, upstream_writes, &moved_ms, shared.started),
            pass(upstream_reads, client_writes, &moved_ms, shared.started),
        )
    };
    tokio::select! {
        () = cut.cancelled() => {}
        _ = both => {}
    }
    let mut state = shared.state.lock();
    state.connections.remove(&id);
    state.servers.closed(&server);
}

/// Connects to the best server that takes the connection.
async fn reach(shared: &Shared) -> Option<(Server, TcpStream)> {
    let mut tried = Vec::new();
    loop {
        let server = shared.state.lock().servers.choose(&tried, chance(), Instant::now())?;
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((server.host(), server.port()))).await {
            Ok(Ok(stream)) => return Some((server, stream)),
            Ok(Err(error)) => tracing::debug!(%server, %error, "the API server refused a connection"),
            Err(_) => tracing::debug!(%server, "the API server did not take a connection in time"),
        }
        report(shared, &server, Verdict::Gone);
        tried.push(server);
    }
}

/// Small answers should not wait for more bytes, and the kernel should notice a server that is gone without a word. A socket
/// that refuses these still works.
fn prepare(client: &TcpStream, upstream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(upstream, SILENCE_MAX_MS);
    for stream in [client, upstream] {
        let _ = sockopt::set_socket_keepalive(stream, true);
        let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER);
        let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EVERY);
        let _ = sockopt::set_tcp_keepcnt(stream, 2);
    }
}

/// Passes bytes on until one side ends, and passes on the end.
async fn pass(from: OwnedReadHalf, mut to: OwnedWriteHalf, moved_ms: &AtomicU64, started: Instant) -> io::Result<()> {
    let mut buffer = vec![0u8; 0];
    loop {
        from.readable().await?;
        // A connection that waits holds no buffer.
        buffer.resize(BUFFER_BYTES, 0);
        loop {
            match from.try_read(&mut buffer) {
                Ok(0) => {
                    let _ = to.shutdown().await;
                    return Ok(());
                }
                Ok(read) => {
                    moved_ms.store(elapsed_ms(started), Ordering::Relaxed);
                    to.write_all(buffer.get(..read).unwrap_or_default()).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        buffer = Vec::new();
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A number that nobody else draws at the same time.
fn chance() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Its keys differ in every process and with every call.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
