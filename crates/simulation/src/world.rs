//! The world that a seed makes: hosts with what they keep through a restart, links between them, an API, and time.
//!
//! Everything is behind one lock that is never held over an await; there is one thread.

use crate::{
    agent,
    api::{Api, BEGIN_S},
    kernel::Kernel,
    member,
    pods::Runtime,
    sabotage::Sabotage,
    seeds, server,
    way::Process,
};
use jiff::Timestamp;
use membership::{Member, View};
use parking_lot::{Mutex, MutexGuard};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The namespace that all pods and Services are in.
pub const NAMESPACE: &str = "default";

/// How big a world is, and how bad its network.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes.
    pub hosts: usize,
    /// How many of them, the first, are servers too.
    pub servers: usize,
    /// Of a hundred packets so many are lost.
    pub loss_percent: u32,
    /// Packets take up to this much longer.
    pub jitter_ms: u64,
    /// Processes come to their turn up to this much late.
    pub lag_ms: u64,
}

impl Shape {
    fn of(seed: u64, rng: &mut StdRng) -> Shape {
        let hosts = match seed % 100 {
            99 => 50,
            90..=98 => rng.random_range(9..=16),
            _ => rng.random_range(3..=6),
        };
        Shape {
            hosts,
            servers: if rng.random_bool(0.6) { 1 } else { 3 },
            loss_percent: [0, 0, 1, 5][rng.random_range(0..4)],
            jitter_ms: [1, 10, 50][rng.random_range(0..3)],
            lag_ms: [1, 20, 60][rng.random_range(0..3)],
        }
    }

    /// Whether the network or the machines are bad enough to make everything slower.
    pub fn is_bad(&self) -> bool {
        self.loss_percent > 0 || self.lag_ms > 20
    }
}

/// One process of a host: how often it was started, and whether it runs.
#[derive(Default)]
pub struct Life {
    /// The number of its newest start.
    pub number: u64,
    /// Whether it runs.
    pub runs: bool,
    /// Ends its tasks.
    pub stop: CancellationToken,
}

/// One machine.
pub struct Host {
    /// Whether it has power.
    pub is_on: bool,
    /// Nothing of it runs before.
    pub paused_until: Instant,
    /// What its clock shows beside the true time.
    pub clock_off_ms: i64,
    /// When its state or its links were last touched by a fault.
    pub touched: Instant,
    /// When its state was.
    pub jolted: Instant,
    /// The node's agent.
    pub agent: Life,
    /// The server, where there is one.
    pub server: Life,
    /// The server takes requests and does not answer.
    pub hangs: bool,
    /// What runs.
    pub runtime: Runtime,
    /// What the kernel has.
    pub kernel: Kernel,
    /// The agent's member, while it runs, and the packets that came while it was paused.
    pub member: Option<Arc<Mutex<Member>>>,
    /// See `member`.
    pub inbox: Vec<(usize, Vec<u8>)>,
    /// What the host's processes know of the membership.
    pub views: watch::Sender<Option<Arc<View>>>,
    /// The disk takes this long for a commit.
    pub disk_ms: u64,
    /// What DNS answers for each Service, by its zone.
    pub names: Option<Arc<parking_lot::RwLock<dns::zone::Zone>>>,
    /// What the agent has seen go and may never start again, as long as its disk is there.
    pub gone: BTreeSet<String>,
}

impl Host {
    /// A fault touches the host itself, until then.
    pub fn jolt(&mut self, until: Instant) {
        (self.touched, self.jolted) = (self.touched.max(until), self.jolted.max(until));
    }
}

/// Everything that changes.
pub struct State {
    /// All chance of the world.
    pub rng: StdRng,
    /// What all servers share.
    pub api: Api,
    /// The machines.
    pub hosts: Vec<Host>,
    /// Links that carry nothing, by direction.
    pub cut: Vec<Vec<bool>>,
    /// When each link was last cut or mended, by direction.
    pub turned: Vec<Vec<Instant>>,
    /// Who leads at the moment: host and life of the server.
    pub leaders: Vec<(usize, u64)>,
    /// What was wrong, in the order in which it was found.
    pub failures: Vec<String>,
    /// What depends on the seed alone, summed up.
    pub trace: DefaultHasher,
    /// Packets between members.
    pub packets: u64,
    began: Instant,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    /// Its seed.
    pub seed: u64,
    /// How it is made.
    pub shape: Shape,
    /// The disks.
    pub place: Arc<PathBuf>,
    /// The store has a new version.
    pub revised: Arc<watch::Sender<u64>>,
    /// Something has happened to hosts or links.
    pub struck: Arc<watch::Sender<u64>>,
    /// A runtime has changed, by host.
    pub ran: Arc<Vec<Notify>>,
    /// What is switched off.
    pub sabotage: Option<Sabotage>,
}

impl State {
    /// Milliseconds since the world began.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds to what two runs of a seed must have in common.
    pub fn note(&mut self, text: &str) {
        self.now_ms().hash(&mut self.trace);
        text.hash(&mut self.trace);
    }

    /// Something is wrong.
    pub fn fail(&mut self, failure: String) {
        let at = self.now_ms();
        self.failures.push(format!("at {at} ms {failure}"));
    }

    /// True as often as the share says.
    pub fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    /// Whether packets from one host come to the other now.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to] && self.hosts[from].is_on && self.hosts[to].is_on
    }

    /// Whether both hosts reach each other.
    pub fn linked(&self, a: usize, b: usize) -> bool {
        a == b || (!self.cut[a][b] && !self.cut[b][a])
    }

    /// Whether nothing runs on the host at the moment.
    pub fn is_paused(&self, host: usize) -> bool {
        self.hosts[host].paused_until > Instant::now()
    }

    /// Milliseconds of Unix time, as this host's clock shows it.
    pub fn unix_ms(&self, host: usize) -> u64 {
        let true_ms = u64::try_from(BEGIN_S).unwrap_or(0) * 1000 + self.now_ms();
        true_ms.saturating_add_signed(self.hosts[host].clock_off_ms)
    }
}

/// The address of a host.
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, u8::try_from(host).unwrap_or(0) + 10)
}

/// Where a host's member listens.
pub fn member_address(host: usize) -> SocketAddr {
    SocketAddr::from((address(host), node::peers::PORT))
}

/// The name of a host's node.
pub fn node_name(host: usize) -> String {
    format!("node-{host}")
}

/// The host of that node.
pub fn host_of(name: &str) -> Option<usize> {
    name.strip_prefix("node-")?.parse().ok()
}

impl World {
    /// Makes the world of this seed, with its disks there; nothing runs yet.
    pub fn new(seed: u64, place: &Path, sabotage: Option<Sabotage>) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = Shape::of(seed, &mut rng);
        let began = Instant::now();
        let hosts = (0..shape.hosts).map(|_| Host {
            is_on: true,
            paused_until: began,
            clock_off_ms: 0,
            touched: began,
            jolted: began,
            agent: Life::default(),
            server: Life::default(),
            hangs: false,
            runtime: Runtime::default(),
            kernel: Kernel::default(),
            member: None,
            inbox: Vec::new(),
            views: watch::Sender::new(None),
            disk_ms: DISK_MS,
            names: None,
            gone: BTreeSet::new(),
        });
        let state = State {
            rng,
            api: Api::default(),
            hosts: hosts.collect(),
            cut: vec![vec![false; shape.hosts]; shape.hosts],
            turned: vec![vec![began; shape.hosts]; shape.hosts],
            leaders: Vec::new(),
            failures: Vec::new(),
            trace: DefaultHasher::new(),
            packets: 0,
            began,
        };
        let ran = Arc::new((0..shape.hosts).map(|_| Notify::new()).collect());
        let (revised, struck) = (Arc::new(watch::Sender::new(0)), Arc::new(watch::Sender::new(0)));
        let world = World { state: Arc::new(Mutex::new(state)), seed, shape, place: Arc::new(place.to_owned()), revised, struck, ran, sabotage };
        world.populate();
        world
    }

    /// The state.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The disk of a host.
    pub fn disk(&self, host: usize) -> PathBuf {
        self.place.join(node_name(host))
    }

    /// A host's clock.
    pub fn clock(&self, host: usize) -> client::Clock {
        let world = self.clone();
        client::Clock::from_fn(move || {
            let ms = i64::try_from(world.lock().unix_ms(host)).unwrap_or(i64::MAX);
            Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
        })
    }

    /// Tells what happens, when one seed alone is run.
    pub fn tell(&self, text: impl FnOnce() -> String) {
        if seeds::is_told() {
            let now = self.lock().now_ms();
            println!("  {now:>6} ms {}", text());
        }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let Shape { hosts, servers, loss_percent, jitter_ms, lag_ms } = self.shape;
        format!("{hosts} nodes, {servers} of them servers, loss {loss_percent} %, jitter {jitter_ms} ms, lag {lag_ms} ms")
    }

    fn populate(&self) {
        let mut state = self.lock();
        let State { api, rng, .. } = &mut *state;
        let keys = "07".repeat(32);
        let keys: String = data_encoding(&keys);
        api.create_object("secrets", json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "kube-system", "name": "regent-membership"}, "data": {"keys": keys}}));
        for host in 0..self.shape.hosts {
            api.create_object(
                "nodes",
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(host)}, "spec": {},
                "status": {"addresses": [{"type": "InternalIP", "address": address(host).to_string()}],
                    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}),
            );
        }
        for service in 0..SERVICES {
            let spec = json!({"clusterIP": service_address(service).to_string(), "clusterIPs": [service_address(service).to_string()], "type": "ClusterIP", "selector": {"app": format!("app-{service}")},
                "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]});
            api.create_object(
                "services",
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": format!("app-{service}")}, "spec": spec}),
            );
            let named = json!({"clusterIP": "None", "clusterIPs": ["None"], "type": "ClusterIP", "selector": {"app": format!("app-{service}")}, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]});
            api.create_object("services", json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": format!("named-{service}")}, "spec": named}));
            let pods = if service == 0 { self.shape.hosts.min(8) } else { 2 };
            for pod in 0..pods {
                let host = rng.random_range(0..self.shape.hosts);
                api.create_object("pods", pod_of(service, &format!("app-{service}-{pod}"), host));
            }
        }
    }

    /// Something has been written to the store from outside.
    pub fn wrote(&self) {
        let revision = self.lock().api.revision();
        self.revised.send_replace(revision);
    }

    /// Switches everything on.
    pub fn begin(&self) {
        for host in 0..self.shape.hosts {
            if host < self.shape.servers {
                server::start(self, host);
            }
            agent::start(self, host);
        }
    }

    /// Notes that a fault has touched these hosts themselves.
    pub fn touch(&self, hosts: impl IntoIterator<Item = usize>) {
        {
            let mut state = self.lock();
            hosts.into_iter().for_each(|host| state.hosts[host].jolt(Instant::now()));
        }
        self.struck.send_modify(|count| *count += 1);
    }

    /// What the first host sends, the other does not get, or gets again.
    pub fn set_cut(&self, from: usize, to: usize, cut: bool) {
        {
            let mut state = self.lock();
            if from == to || std::mem::replace(&mut state.cut[from][to], cut) == cut {
                return;
            }
            let now = Instant::now();
            state.turned[from][to] = now;
            for host in [from, to] {
                state.hosts[host].touched = state.hosts[host].touched.max(now);
            }
        }
        self.struck.send_modify(|count| *count += 1);
    }

    /// Begins a process of a host, its server or its agent: that start of it, and what ends it. `None`: there is no power, or it runs.
    pub fn start_process(&self, host: usize, is_server: bool) -> Option<(Process, CancellationToken)> {
        let stop = CancellationToken::new();
        let number = {
            let mut state = self.lock();
            let own = &mut state.hosts[host];
            let life = if is_server { &mut own.server } else { &mut own.agent };
            if life.runs || !own.is_on {
                return None;
            }
            (life.number, life.runs, life.stop) = (life.number + 1, true, stop.clone());
            life.number
        };
        self.touch([host]);
        Some((Process { world: self.clone(), host, number, is_server }, stop))
    }

    /// Ends the agent as `kill -9` does; what runs goes on.
    pub fn kill_agent(&self, host: usize) {
        let mut state = self.lock();
        let own = &mut state.hosts[host];
        own.agent.runs = false;
        own.agent.stop.cancel();
        (own.member, own.names) = (None, None);
        own.inbox.clear();
        let number = own.agent.number;
        drop(state);
        // Whoever reads the membership notices after a while that nobody publishes it any more.
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(membership::limits::PUBLISHER_GONE_MS)).await;
            let state = world.lock();
            if state.hosts[host].agent.number == number {
                state.hosts[host].views.send_if_modified(|view| match view {
                    Some(known) => {
                        let known = Arc::make_mut(known);
                        (known.stale, known.endpoints) = (true, BTreeMap::new());
                        true
                    }
                    None => false,
                });
            }
        });
        self.touch([host]);
    }

    /// Ends the server process.
    pub fn kill_server(&self, host: usize) {
        {
            let mut state = self.lock();
            state.hosts[host].server.runs = false;
            state.hosts[host].hangs = false;
            state.hosts[host].server.stop.cancel();
        }
        self.touch([host]);
    }

    /// The host loses its power.
    pub fn power_off(&self, host: usize) {
        if !self.lock().hosts[host].is_on {
            return;
        }
        self.kill_agent(host);
        self.kill_server(host);
        {
            let mut state = self.lock();
            let now = state.unix_ms(host);
            let own = &mut state.hosts[host];
            own.is_on = false;
            own.kernel = Kernel::default();
            own.paused_until = Instant::now();
            own.views.send_replace(None);
            own.runtime.lose_power(now);
        }
        self.touch([host]);
    }

    /// Whether more than half of the servers' hosts can be reached from this one, itself counted.
    pub fn has_quorum(&self, state: &State, host: usize) -> bool {
        let serves = |other: usize| state.hosts[other].is_on && state.hosts[other].server.runs && state.linked(host, other);
        2 * (0..self.shape.servers).filter(|other| serves(*other)).count() > self.shape.servers
    }

    /// A number that makes the same packets take another time.
    pub fn delay(&self, state: &mut State) -> Duration {
        Duration::from_micros(1_000 * (1 + state.rng.random_range(0..=self.shape.jitter_ms)) + 500 * state.rng.random_range(0..=self.shape.lag_ms))
    }

    /// Whether the next packet is lost.
    pub fn loses(&self, state: &mut State) -> bool {
        state.rng.random_range(0..100) < self.shape.loss_percent
    }

    /// The process of the agent's newest start.
    pub fn agent_of(&self, host: usize) -> Process {
        let number = self.lock().hosts[host].agent.number;
        Process { world: self.clone(), host, number, is_server: false }
    }

    /// Gives the member of this agent what came while it was paused, and lets it look at its timers.
    pub fn wake_member(&self, host: usize) {
        member::drain(self, host);
    }
}

/// How long a disk takes for a commit when it is well.
pub const DISK_MS: u64 = 10;

/// How many Services there are.
pub const SERVICES: usize = 3;

/// A Service's address.
pub fn service_address(service: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, u8::try_from(service).unwrap_or(0) + 20)
}

/// A pod of a Service, bound to a node.
pub fn pod_of(service: usize, name: &str, host: usize) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"app": format!("app-{service}")}},
        "spec": {"nodeName": node_name(host), "restartPolicy": "Always", "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "x", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Pending"}})
}

/// Base64, for the one Secret.
fn data_encoding(text: &str) -> String {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec()))
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
