//! The member's hands: a UDP socket, sockets to the peers that are watched, the clock, and a thread of its own.
//!
//! A thread of its own, with a little more right to run than others, so that neither the agent's work nor a busy machine
//! makes this node look dead. Watched peers have a connected socket each: only there does the kernel say that a host
//! refuses the port (ICMP port unreachable), which tells a dead agent from a dead host. All that has come is told to the
//! core before its timers are looked at.

use crate::{
    Keys, NodeId, Peer, View,
    detector::Way,
    limits,
    member::Member,
    seal::{self, Opener, Sealer},
};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

/// What a member needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the others reach it.
    pub address: SocketAddr,
    /// MUST be higher than at any start before (see [`crate::epoch`]).
    pub epoch: u64,
    /// The cluster's keys, and those that follow.
    pub keys: watch::Receiver<Keys>,
}

/// Why a member cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    /// The machine has no room for another thread.
    #[error("cannot start the membership's thread: {0}")]
    Thread(io::Error),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] seal::Error),
}

enum Command {
    Peers(Vec<Peer>),
    Publish(String, Option<(Ipv4Addr, bool, bool)>),
    Api(bool),
    Complete(bool),
}

/// What the holders of a [`Handle`] want of its member, and where it shows them its view: the other end of a handle.
#[derive(Debug)]
pub struct Requests {
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<Arc<View>>,
}

impl Requests {
    async fn next(&mut self) -> Option<Command> {
        self.commands.recv().await
    }

    /// Tells the member all that waits. False: every handle is gone.
    pub fn obey_all(&mut self, member: &mut Member, now_ms: u64, unix_ms: u64) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => Self::obey(command, member, now_ms, unix_ms),
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(command: Command, member: &mut Member, now_ms: u64, unix_ms: u64) {
        match command {
            Command::Peers(peers) => member.set_peers(now_ms, unix_ms, peers),
            Command::Api(reachable) => member.set_api_reachable(reachable),
            Command::Complete(complete) => member.set_complete(complete),
            Command::Publish(uid, endpoint) => {
                if let Err(error) = member.publish(&uid, endpoint) {
                    tracing::warn!(uid, %error, "an endpoint of this node is not made known to the others");
                }
            }
        }
    }

    /// Shows the member's view, if it is a new one.
    pub fn show(&self, member: &Member) {
        if **self.view.borrow() != *member.view() {
            self.view.send_replace(Arc::new(member.view().clone()));
        }
    }
}

/// A running member.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Peers(_) => "Peers",
            Command::Publish(..) => "Publish",
            Command::Api(_) => "Api",
            Command::Complete(_) => "Complete",
        })
    }
}

impl Handle {
    /// A handle of this member and its other end, for whoever runs the member (on UDP, that is [`start`]).
    pub fn of(member: &Member) -> (Handle, Requests) {
        let (commands, incoming) = mpsc::channel(limits::COMMANDS_MAX);
        let (sender, view) = watch::channel(Arc::new(member.view().clone()));
        (Handle { commands, view }, Requests { commands: incoming, view: sender })
    }

    /// The cluster's nodes are these.
    pub async fn set_peers(&self, peers: Vec<Peer>) {
        // Nobody listens after the shutdown, and nobody minds.
        let _ = self.commands.send(Command::Peers(peers)).await;
    }

    /// An own endpoint is like this, or (`None`) is no more: address, ready, serving.
    pub async fn publish(&self, uid: String, endpoint: Option<(Ipv4Addr, bool, bool)>) {
        let _ = self.commands.send(Command::Publish(uid, endpoint)).await;
    }

    /// Whether this node reaches the API.
    pub async fn set_api_reachable(&self, reachable: bool) {
        let _ = self.commands.send(Command::Api(reachable)).await;
    }

    /// Whether every own endpoint has been published.
    pub async fn set_complete(&self, complete: bool) {
        let _ = self.commands.send(Command::Complete(complete)).await;
    }

    /// What this node believes, as it changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

/// Starts a member; it ends with `shutdown`.
pub fn start(config: Config, shutdown: CancellationToken) -> Result<Handle, Error> {
    let socket = std::net::UdpSocket::bind(config.listen).map_err(|source| Error::Listen { address: config.listen, source })?;
    socket.set_nonblocking(true).map_err(Error::Thread)?;
    let me = NodeId::of(&config.node_name);
    let keys = config.keys.borrow().clone();
    let (sealer, opener) = (Sealer::new(&keys, me, config.epoch)?, Opener::new(keys, me));
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::Thread(io::Error::other("the machine gives no random numbers")))?;
    let member = Member::new(&config.node_name, config.address, config.epoch, u64::from_be_bytes(random));
    let (handle, requests) = Handle::of(&member);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let work = move || {
        // The thread's own niceness; where that is not allowed, it runs like any other.
        let _ = rustix::process::nice(-10);
        runtime.block_on(async move {
            match UdpSocket::from_std(socket) {
                Ok(socket) => Shell::new(member, sealer, opener, Arc::new(socket)).run(requests, config.keys, shutdown).await,
                Err(error) => tracing::error!(%error, "the membership's socket is of no use"),
            }
        });
    };
    std::thread::Builder::new().name("membership".into()).spawn(work).map_err(Error::Thread)?;
    Ok(handle)
}

/// A socket to a watched peer, and the task that reads it.
struct Watched {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    reader: AbortHandle,
    used: Instant,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What a watched peer's socket has brought.
enum Answer {
    Packet(Vec<u8>, SocketAddr),
    Refused(NodeId),
}

struct Shell {
    member: Member,
    sealer: Sealer,
    opener: Opener,
    socket: Arc<UdpSocket>,
    watched: HashMap<NodeId, Watched>,
    answers: mpsc::Sender<Answer>,
    from_answers: Option<mpsc::Receiver<Answer>>,
    started: Instant,
    foreign: u64,
    told_foreign: u64,
}

impl Shell {
    fn new(member: Member, sealer: Sealer, opener: Opener, socket: Arc<UdpSocket>) -> Shell {
        let (answers, from_answers) = mpsc::channel(limits::ANSWERS_MAX);
        let started = Instant::now();
        let (watched, from_answers) = (HashMap::new(), Some(from_answers));
        Shell { member, sealer, opener, socket, watched, answers, from_answers, started, foreign: 0, told_foreign: 0 }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn run(mut self, mut requests: Requests, mut keys: watch::Receiver<Keys>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_millis(limits::TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Some(mut answers) = self.from_answers.take() else { return };
        let mut buffer = vec![0; limits::PACKET_BYTES_MAX + 1];
        keys.mark_unchanged();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                received = self.socket.recv_from(&mut buffer) => {
                    // An error is about a packet that was sent before; the next call goes on.
                    if let Ok((length, from)) = received {
                        self.packet(&buffer[..length], from).await;
                    }
                }
                Some(answer) = answers.recv() => self.answer(answer).await,
                command = requests.next() => match command {
                    Some(command) => {
                        let now = self.now_ms();
                        Requests::obey(command, &mut self.member, now, unix_ms());
                    }
                    None => return,
                },
                Ok(()) = keys.changed() => {
                    let new = keys.borrow_and_update().clone();
                    tracing::info!("the membership's keys have changed");
                    match self.sealer.rotate(&new) {
                        Ok(()) => self.opener.rotate(new),
                        Err(error) => tracing::error!(%error, "the old ones are kept"),
                    }
                }
                _ = ticks.tick() => {
                    self.drain(&mut buffer, &mut answers).await;
                    let now = self.now_ms();
                    requests.obey_all(&mut self.member, now, unix_ms());
                    self.member.tick(self.now_ms(), unix_ms());
                    self.watched.retain(|_, watched| watched.used.elapsed() < Duration::from_millis(limits::WATCH_SOCKET_IDLE_MS));
                    self.complain();
                }
            }
            self.send(None).await;
            requests.show(&self.member);
        }
    }

    /// All that has come while this thread did something else, or nothing.
    async fn drain(&mut self, buffer: &mut [u8], answers: &mut mpsc::Receiver<Answer>) {
        // The readers of the watched sockets get their turn.
        tokio::task::yield_now().await;
        for _ in 0..limits::PACKETS_AT_ONCE_MAX {
            match self.socket.try_recv_from(buffer) {
                Ok((length, from)) => self.packet(&buffer[..length], from).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        for _ in 0..limits::ANSWERS_MAX {
            match answers.try_recv() {
                Ok(answer) => self.answer(answer).await,
                Err(_) => break,
            }
        }
    }

    async fn packet(&mut self, packet: &[u8], from: SocketAddr) {
        let now = self.now_ms();
        match self.opener.open(packet, now) {
            Ok((sender, text)) => {
                self.member.receive(now, sender, &text);
                self.send(Some(from)).await;
            }
            Err(_) => self.foreign += 1,
        }
    }

    async fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Packet(packet, from) => self.packet(&packet, from).await,
            Answer::Refused(peer) => self.member.refused(self.now_ms(), peer),
        }
    }

    /// Sends what the core wants to have sent. `back`: where the message came from that it has just handled.
    async fn send(&mut self, back: Option<SocketAddr>) {
        for (address, output) in self.member.take_outputs() {
            let Ok(packet) = self.sealer.seal(output.to, &output.message.encode()) else { continue };
            // A packet that cannot be sent is a packet lost.
            match output.way {
                Way::Plain => {
                    let _ = self.socket.send_to(&packet, address).await;
                }
                Way::Back => {
                    let _ = self.socket.send_to(&packet, back.unwrap_or(address)).await;
                }
                Way::Watch => self.watch(output.to, address, &packet).await,
            }
        }
    }

    async fn watch(&mut self, peer: NodeId, address: SocketAddr, packet: &[u8]) {
        if self.watched.get(&peer).is_none_or(|watched| watched.address != address) {
            let Ok(watched) = self.open(peer, address).await else { return };
            self.watched.insert(peer, watched);
        }
        let Some(watched) = self.watched.get_mut(&peer) else { return };
        watched.used = Instant::now();
        if let Err(error) = watched.socket.send(packet).await
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            self.member.refused(self.now_ms(), peer);
        }
    }

    async fn open(&self, peer: NodeId, address: SocketAddr) -> io::Result<Watched> {
        // From the address that the others know, where there are several.
        let own = SocketAddr::new(self.socket.local_addr()?.ip(), 0);
        let socket = Arc::new(UdpSocket::bind(own).await?);
        socket.connect(address).await?;
        let (reading, answers) = (socket.clone(), self.answers.clone());
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; limits::PACKET_BYTES_MAX + 1];
            loop {
                let answer = match reading.recv(&mut buffer).await {
                    Ok(length) => Answer::Packet(buffer[..length].to_vec(), address),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refused(peer),
                    // A host or network that cannot be reached at the moment: silence says as much.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(limits::TICK_MS)).await;
                        continue;
                    }
                };
                if let Err(mpsc::error::TrySendError::Closed(_)) = answers.try_send(answer) {
                    return;
                }
            }
        });
        Ok(Watched { socket, address, reader: reader.abort_handle(), used: Instant::now() })
    }

    /// Once in a while, what was not for us.
    fn complain(&mut self) {
        if self.foreign >= self.told_foreign.saturating_mul(10).max(100) {
            self.told_foreign = self.foreign;
            tracing::warn!(packets = self.foreign, refused = ?self.member.refusals(), "packets that are not of this cluster, or repeated, were dropped");
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Health;

    async fn until(view: &mut watch::Receiver<Arc<View>>, what: &str, holds: impl Fn(&View) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| holds(view))).await;
        assert!(waited.is_ok_and(|view| view.is_ok()), "{what}: {:?}", view.borrow());
    }

    #[tokio::test]
    async fn two_nodes_find_each_other_tell_their_endpoints_and_notice_a_stopped_agent() {
        let listen = |last: u8| SocketAddr::from(([127, 0, 7, last], 17946));
        let peers: Vec<Peer> = [1, 2].map(|i| Peer { name: format!("node-{i}"), address: listen(i) }).to_vec();
        let (_sender, keys) = watch::channel(Keys::parse(&"a1".repeat(32)).unwrap());
        let mut handles = Vec::new();
        for i in [1, 2] {
            let config = Config { node_name: format!("node-{i}"), listen: listen(i), address: listen(i), epoch: unix_ms(), keys: keys.clone() };
            let stop = CancellationToken::new();
            let handle = start(config, stop.clone()).unwrap();
            handle.set_peers(peers.clone()).await;
            handles.push((handle, stop));
        }
        let endpoint = (Ipv4Addr::new(10, 244, 1, 2), true, true);
        handles[0].0.publish("pod".into(), Some(endpoint)).await;
        let mut view = handles[1].0.view();
        until(&mut view, "node-1 is alive and has told its endpoint", |view| {
            let alive = view.nodes.get("node-1").is_some_and(|member| member.health == Health::Alive);
            alive && view.endpoints.get("node-1").is_some_and(|all| all.get("pod").is_some_and(|e| e.ready))
        })
        .await;
        handles[0].1.cancel();
        until(&mut view, "node-1's agent is down", |view| view.nodes["node-1"].health == Health::AgentDown).await;
        assert!(view.borrow().nodes["node-1"].reachable);
        handles[1].1.cancel();
    }
}
