//! The world that a seed makes: nodes with members in them, links between them, clocks, and what is under way.

use crate::faults::Fault;
use membership::{Member, NodeId, Peer, detector::Way};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{Ipv4Addr, SocketAddr},
};

/// Packets that a paused process' socket holds; more are dropped.
const SOCKET_PACKETS: usize = 300;
const TICK_MS: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Up,
    AgentDown,
    Off,
}

pub struct Node {
    pub name: String,
    pub member: Option<Member>,
    pub host: Host,
    /// When its state or its links were last touched by a fault.
    pub touched: u64,
    pub paused_until: u64,
    /// What its clock shows beside the true time.
    pub clock_off: i64,
    pub starts: u64,
    last_epoch: u64,
    inbox: Vec<(usize, Vec<u8>)>,
    /// Its endpoints: address, ready.
    pub pods: BTreeMap<String, (Ipv4Addr, bool)>,
    pub api: bool,
}

enum What {
    Tick { node: usize, start: u64 },
    Packet { to: usize, from: usize, bytes: Vec<u8>, way: Way },
    Refusal { to: usize, about: usize },
    Fault(Fault),
}

struct Event {
    at: u64,
    order: u64,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub seed: u64,
    pub rng: Xoshiro256PlusPlus,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub loss: f64,
    pub jitter_ms: u64,
    pub lag_ms: u64,
    /// Links that carry nothing, by direction.
    pub cut: Vec<Vec<bool>>,
    pub packets: u64,
    /// Endpoints that were changed at running nodes: when, where, which.
    pub changes: Vec<(u64, usize, String)>,
    events: BinaryHeap<Reverse<Event>>,
    order: u64,
    by_id: BTreeMap<NodeId, usize>,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([172, 30, 0, node as u8 + 10], 7946))
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let count: usize = match seed % 50 {
            49 => 50,
            40..=48 => rng.random_range(10..=20),
            _ => rng.random_range(3..=9),
        };
        let of = |rng: &mut Xoshiro256PlusPlus, choices: &[u64]| choices[rng.random_range(0..choices.len())];
        let loss = of(&mut rng, &[0, 1, 5]) as f64 / 100.0;
        let (jitter_ms, lag_ms) = (of(&mut rng, &[1, 10, 50]), of(&mut rng, &[1, 20, 100]));
        let nodes: Vec<Node> = (0..count)
            .map(|i| Node {
                name: format!("node-{i}"),
                member: None,
                host: Host::Off,
                touched: 0,
                paused_until: 0,
                clock_off: 0,
                starts: 0,
                last_epoch: 0,
                inbox: Vec::new(),
                pods: BTreeMap::new(),
                api: true,
            })
            .collect();
        let by_id = nodes.iter().enumerate().map(|(i, node)| (NodeId::of(&node.name), i)).collect();
        let cut = vec![vec![false; count]; count];
        let (events, now) = (BinaryHeap::new(), 0);
        let mut world = World { seed, rng, now, nodes, loss, jitter_ms, lag_ms, cut, packets: 0, changes: Vec::new(), events, order: 0, by_id };
        for node in 0..count {
            for pod in 0..3 {
                let uid = format!("pod-{node}-{pod}");
                world.nodes[node].pods.insert(uid, (Ipv4Addr::new(10, 244, node as u8, pod + 2), true));
            }
            world.start(node, false);
        }
        world
    }

    pub fn describe(&self) -> String {
        let (nodes, loss, jitter, lag) = (self.nodes.len(), self.loss, self.jitter_ms, self.lag_ms);
        format!("seed {} ({nodes} nodes, loss {loss}, jitter {jitter} ms, lag {lag} ms)", self.seed)
    }

    pub fn schedule_fault(&mut self, at: u64, fault: Fault) {
        self.push(at, What::Fault(fault));
    }

    fn push(&mut self, at: u64, what: What) {
        self.order += 1;
        self.events.push(Reverse(Event { at: at.max(self.now), order: self.order, what }));
    }

    fn unix_ms(&self, node: usize) -> u64 {
        1_800_000_000_000_u64.saturating_add(self.now).saturating_add_signed(self.nodes[node].clock_off)
    }

    fn lag(&mut self) -> u64 {
        self.rng.random_range(0..=self.lag_ms)
    }

    /// The agent starts; with `forgetful`, its disk was lost.
    pub fn start(&mut self, node: usize, forgetful: bool) {
        let unix_ms = self.unix_ms(node);
        let before = if forgetful { 0 } else { self.nodes[node].last_epoch };
        let epoch = unix_ms.max(before + 1);
        let seed = self.rng.random();
        let mut member = Member::new(&self.nodes[node].name, address(node), epoch, seed);
        let peers = (0..self.nodes.len()).map(|i| Peer { name: self.nodes[i].name.clone(), address: address(i) }).collect();
        member.set_peers(self.now, unix_ms, peers);
        for (uid, (ip, ready)) in &self.nodes[node].pods {
            member.publish(uid, Some((*ip, *ready, *ready))).expect("a valid endpoint");
        }
        member.set_api_reachable(self.nodes[node].api);
        let start = self.nodes[node].starts + 1;
        let own = &mut self.nodes[node];
        (own.member, own.host, own.last_epoch, own.starts, own.paused_until) = (Some(member), Host::Up, epoch, start, 0);
        own.inbox.clear();
        own.touched = self.now;
        let offset = self.rng.random_range(0..TICK_MS);
        self.push(self.now + offset, What::Tick { node, start });
    }

    pub fn stop(&mut self, node: usize, host: Host) {
        let own = &mut self.nodes[node];
        (own.member, own.host, own.touched) = (None, host, self.now);
        own.inbox.clear();
    }

    pub fn pause(&mut self, node: usize, for_ms: u64) {
        self.nodes[node].paused_until = self.now + for_ms;
        self.nodes[node].touched = self.now + for_ms;
    }

    pub fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        if self.cut[from][to] != cut {
            self.cut[from][to] = cut;
            for node in [from, to] {
                self.nodes[node].touched = self.nodes[node].touched.max(self.now);
            }
        }
    }

    /// An endpoint of this node changes.
    pub fn change_pod(&mut self, node: usize, uid: &str, pod: Option<(Ipv4Addr, bool)>) {
        match pod {
            Some(pod) => self.nodes[node].pods.insert(uid.into(), pod),
            None => self.nodes[node].pods.remove(uid),
        };
        if let Some(member) = &mut self.nodes[node].member {
            member.publish(uid, pod.map(|(ip, ready)| (ip, ready, ready))).expect("a valid endpoint");
            self.changes.push((self.now, node, uid.to_owned()));
        }
    }

    pub fn set_api(&mut self, node: usize, reachable: bool) {
        self.nodes[node].api = reachable;
        if let Some(member) = &mut self.nodes[node].member {
            member.set_api_reachable(reachable);
        }
    }

    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].member.is_some()
    }

    pub fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].paused_until > self.now
    }

    pub fn run_until(&mut self, end: u64) {
        while self.events.peek().is_some_and(|Reverse(event)| event.at <= end) {
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.now = event.at;
            self.handle(event.what);
        }
        self.now = end;
    }

    fn handle(&mut self, what: What) {
        match what {
            What::Fault(fault) => fault.strike(self),
            What::Tick { node, start } => {
                if self.nodes[node].starts != start || self.nodes[node].member.is_none() {
                    return;
                }
                if self.is_paused(node) {
                    let at = self.nodes[node].paused_until;
                    self.push(at, What::Tick { node, start });
                    return;
                }
                for (from, bytes) in std::mem::take(&mut self.nodes[node].inbox) {
                    self.receive(node, from, &bytes);
                }
                let (now, unix_ms) = (self.now, self.unix_ms(node));
                if let Some(member) = &mut self.nodes[node].member {
                    member.tick(now, unix_ms);
                }
                self.send(node);
                let next = self.now + TICK_MS + self.lag();
                self.push(next, What::Tick { node, start });
            }
            What::Packet { to, from, bytes, way } => {
                if self.cut[from][to] || self.nodes[to].host == Host::Off {
                    return;
                }
                if self.nodes[to].host == Host::AgentDown {
                    if way == Way::Watch && !self.cut[to][from] {
                        let at = self.now + 1;
                        self.push(at, What::Refusal { to: from, about: to });
                    }
                    return;
                }
                if self.is_paused(to) {
                    if self.nodes[to].inbox.len() < SOCKET_PACKETS {
                        self.nodes[to].inbox.push((from, bytes));
                    }
                    return;
                }
                self.receive(to, from, &bytes);
            }
            What::Refusal { to, about } => {
                let (now, peer) = (self.now, NodeId::of(&self.nodes[about].name));
                if let Some(member) = &mut self.nodes[to].member {
                    member.refused(now, peer);
                }
            }
        }
    }

    fn receive(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let (now, sender) = (self.now, NodeId::of(&self.nodes[from].name));
        if let Some(member) = &mut self.nodes[to].member {
            member.receive(now, sender, bytes);
        }
        self.send(to);
    }

    fn send(&mut self, from: usize) {
        let Some(member) = &mut self.nodes[from].member else { return };
        for (_, output) in member.take_outputs() {
            self.packets += 1;
            let Some(to) = self.by_id.get(&output.to).copied() else { continue };
            if self.rng.random_bool(self.loss) {
                continue;
            }
            let bytes = output.message.encode();
            assert!(bytes.len() < membership::limits::PACKET_BYTES_MAX - 48, "a packet of {} bytes", bytes.len());
            let at = self.now + 1 + self.rng.random_range(0..=self.jitter_ms) + self.lag() / 2;
            self.push(at, What::Packet { to, from, bytes, way: output.way });
        }
    }
}
