//! One member: detector, electorate and records together. Time, packets and own words in; packets and a view out. Pure.

use crate::{
    Endpoint, NodeId,
    detector::{Detector, Output, Way},
    electorate::Electorate,
    limits,
    records::{self, Applied, Records},
    view::{self, Health, Standing, View},
    wire::Message,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where its member listens.
    pub address: SocketAddr,
}

/// What of the network was of no use, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Messages of nodes that are not on the list.
    pub unknown_senders: u64,
    /// Messages that were none.
    pub malformed: u64,
    /// Records that were not valid.
    pub invalid_records: u64,
}

/// How a peer stands, as last seen.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    health: Health,
    reachable: bool,
    cut: bool,
    since_unix_ms: u64,
}

/// See the module.
pub struct Member {
    me: NodeId,
    name: String,
    detector: Detector,
    electorate: Electorate,
    records: Records,
    /// An own endpoint was refused.
    has_unnamed: bool,
    peers: BTreeMap<NodeId, Peer>,
    seen: BTreeMap<NodeId, Seen>,
    outputs: Vec<Output>,
    /// Up to which own version the peers have been told; when to tell them next, from which version on.
    told: u64,
    push_at: Option<u64>,
    push_again: Vec<(u64, u64)>,
    digest_at: u64,
    digests: usize,
    view: View,
    changed: bool,
    /// Since when this node reaches the API again.
    api_since_ms: u64,
    refusals: Refusals,
}

impl Member {
    /// A member of this name. `epoch` MUST be higher than that of any start before.
    pub fn new(name: &str, address: SocketAddr, epoch: u64, seed: u64) -> Member {
        let me = NodeId::of(name);
        let mut member = Member {
            me,
            name: name.to_owned(),
            detector: Detector::new(me, epoch, seed),
            electorate: Electorate::default(),
            records: Records::new(me, epoch),
            has_unnamed: false,
            peers: BTreeMap::from([(me, Peer { name: name.to_owned(), address })]),
            seen: BTreeMap::new(),
            outputs: Vec::new(),
            told: 0,
            push_at: None,
            push_again: Vec::new(),
            digest_at: 0,
            digests: 0,
            view: View::default(),
            changed: true,
            api_since_ms: 0,
            refusals: Refusals::default(),
        };
        member.look(0, 0);
        member
    }

    /// Its number.
    pub fn id(&self) -> NodeId {
        self.me
    }

    /// The nodes of the cluster; this one may be among them.
    pub fn set_peers(&mut self, now_ms: u64, unix_ms: u64, peers: Vec<Peer>) {
        let heard_ms = self.detector.advance(now_ms);
        let own = self.peers.remove(&self.me);
        let before: BTreeSet<NodeId> = self.peers.keys().copied().collect();
        let mut all: BTreeMap<NodeId, Peer> =
            peers.into_iter().filter(|peer| peer.name != self.name).take(limits::MEMBERS_MAX).map(|peer| (NodeId::of(&peer.name), peer)).collect();
        let now: BTreeSet<NodeId> = all.keys().copied().collect();
        self.detector.roster(&now);
        self.electorate.roster(&before, &now);
        self.records.roster(&now);
        self.seen.retain(|id, _| now.contains(id));
        all.extend(own.map(|own| (self.me, own)));
        self.peers = all;
        self.changed = true;
        self.look(heard_ms, unix_ms);
    }

    /// An own endpoint is like this, or (`None`) is no more: address, ready, serving.
    pub fn publish(&mut self, uid: &str, endpoint: Option<(Ipv4Addr, bool, bool)>) -> Result<(), records::Error> {
        match self.records.publish(uid, endpoint) {
            Ok(true) => self.said(),
            Ok(false) => {}
            Err(error) => {
                self.has_unnamed = true;
                self.set_complete(false);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether this node reaches the API.
    pub fn set_api_reachable(&mut self, reachable: bool) {
        if self.records.set_api(reachable) {
            self.said();
        }
    }

    /// Whether every own endpoint was published: one that was not is no more. Never so after one was refused.
    pub fn set_complete(&mut self, complete: bool) {
        if self.records.set_complete(complete && !self.has_unnamed) {
            self.said();
        }
    }

    fn said(&mut self) {
        self.changed = true;
        self.push_at.get_or_insert(0);
    }

    /// A message has come.
    pub fn receive(&mut self, now_ms: u64, from: NodeId, bytes: &[u8]) {
        let now = self.detector.advance(now_ms);
        if !self.peers.contains_key(&from) || from == self.me {
            self.refusals.unknown_senders += 1;
            return;
        }
        let Ok(message) = Message::decode(bytes) else {
            self.refusals.malformed += 1;
            return;
        };
        match message {
            Message::Digest { known, whole, down, answer } => {
                self.detector.hearsay(&down);
                let (deltas, lacking) = self.records.compare(&known, whole);
                for delta in deltas {
                    self.send(from, Message::Delta(delta));
                }
                if answer && lacking {
                    self.send_digest(from, false);
                }
            }
            Message::Delta(delta) => match self.records.apply(delta) {
                Ok(Applied::Changed) => self.changed = true,
                Ok(Applied::Nothing) => {}
                Ok(Applied::OwnIsBehind(epoch)) => {
                    self.records.raise(epoch);
                    self.told = 0;
                    self.said();
                }
                Err(_) => self.refusals.invalid_records += 1,
            },
            message => self.detector.receive(from, &message),
        }
        self.outputs.extend(self.detector.take_outputs());
        let _ = now;
    }

    /// The member's host says that nobody listens there.
    pub fn refused(&mut self, now_ms: u64, peer: NodeId) {
        self.detector.advance(now_ms);
        self.detector.refused(peer);
    }

    /// Looks at all that is due. MUST be called every [`limits::TICK_MS`], after what has come has been told.
    pub fn tick(&mut self, now_ms: u64, unix_ms: u64) {
        let now = self.detector.advance(now_ms);
        self.detector.tick(self.electorate.is_calling());
        self.outputs.extend(self.detector.take_outputs());
        self.electorate.step(now, &self.detector.sights());
        self.tell(now);
        self.look(now, unix_ms);
    }

    /// Spreads own news, and asks for others'.
    fn tell(&mut self, now: u64) {
        let version = self.records.known(self.me).map_or(0, |(_, version)| version);
        match self.push_at {
            Some(0) => self.push_at = Some(now + limits::PUSH_GATHER_MS),
            Some(at) if at <= now => {
                self.push(self.told);
                self.push_again.extend(limits::PUSH_AGAIN_MS.map(|after| (now + after, self.told)));
                self.told = version;
                self.push_at = None;
            }
            _ => {}
        }
        let due: Vec<u64> = self.push_again.iter().filter(|(at, _)| *at <= now).map(|(_, from)| *from).collect();
        if let Some(from) = due.into_iter().min() {
            self.push_again.retain(|(at, _)| *at > now);
            self.push(from);
        }
        if now >= self.digest_at {
            self.digest_at = now + limits::DIGEST_EVERY_MS;
            if let Some(to) = self.detector.some_alive(1, None).first().copied() {
                self.send_digest(to, true);
            }
        }
    }

    fn push(&mut self, from: u64) {
        let deltas = self.records.own_since(from);
        let down: BTreeSet<NodeId> = self.detector.sights().into_iter().filter(|(_, s)| s.standing == Standing::Down).map(|(id, _)| id).collect();
        let to: Vec<NodeId> = self.peers.keys().filter(|id| **id != self.me && !down.contains(id)).copied().collect();
        for to in to {
            for delta in &deltas {
                self.send(to, Message::Delta(delta.clone()));
            }
        }
    }

    fn send_digest(&mut self, to: NodeId, answer: bool) {
        self.digests = self.digests.wrapping_add(limits::DIGEST_OWNERS_MAX);
        let (known, whole) = self.records.digest(self.digests);
        let down = self.detector.down();
        self.send(to, Message::Digest { known, whole, down, answer });
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.outputs.push(Output { to, way: Way::Plain, message });
    }

    /// Makes the view anew, if anything in it has changed.
    fn look(&mut self, now: u64, unix_ms: u64) {
        let has_api = self.records.api_reachable(self.me);
        if !has_api {
            self.api_since_ms = now;
        }
        let api_is_new = now < self.api_since_ms + limits::API_CATCHES_UP_MS;
        let mut fresh = Vec::new();
        for (id, sight) in self.detector.sights() {
            let dead = self.electorate.is_dead(id);
            let health = match sight.standing {
                Standing::Alive => Health::Alive,
                Standing::AgentDown => Health::AgentDown,
                Standing::Down if dead => Health::Dead,
                Standing::Down | Standing::Suspect | Standing::Unknown => Health::Suspect,
            };
            let reachable = sight.standing != Standing::Down;
            let before = self.seen.get(&id).copied();
            let since_unix_ms = before.filter(|before| before.health == health).map_or(unix_ms, |before| before.since_unix_ms);
            // Who was out of reach when the API came back stays of no use here until the API has had time to find it out.
            let was_missed = before.is_some_and(|before| before.cut && !before.reachable);
            let is_missed = !reachable && (!has_api || (was_missed && api_is_new));
            let seen = Seen { health, reachable, cut: sight.cut || is_missed, since_unix_ms };
            if before != Some(seen) {
                let comes_back = reachable && before.is_some_and(|before| !before.reachable);
                self.seen.insert(id, seen);
                self.changed = true;
                if comes_back || (health == Health::Alive && self.records.known(id).is_none()) {
                    fresh.push(id);
                }
            }
        }
        for id in fresh {
            self.send_digest(id, true);
        }
        if self.view.majority != self.electorate.has_majority() {
            self.changed = true;
        }
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut view = View { me: self.name.clone(), majority: self.electorate.has_majority(), ..View::default() };
        for (id, peer) in &self.peers {
            let Seen { health, reachable, cut, since_unix_ms } = self.seen.get(id).copied().unwrap_or_else(|| {
                let since_unix_ms = self.view.nodes.get(&peer.name).map_or(unix_ms, |member| member.since_unix_ms);
                Seen { health: Health::Alive, reachable: true, cut: false, since_unix_ms }
            });
            let api_reachable = self.records.api_reachable(*id);
            view.nodes.insert(peer.name.clone(), view::Member { health, reachable, cut, address: peer.address, api_reachable, since_unix_ms });
            if let Some(endpoints) = self.records.endpoints(*id) {
                view.endpoints.insert(peer.name.clone(), endpoints);
            }
            if self.records.is_complete(*id) {
                view.complete.insert(peer.name.clone());
            }
        }
        self.view = view;
    }

    /// What this node believes.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What is to be sent, and where the receiver is.
    pub fn take_outputs(&mut self) -> Vec<(SocketAddr, Output)> {
        let outputs = std::mem::take(&mut self.outputs);
        outputs.into_iter().filter_map(|output| Some((self.peers.get(&output.to)?.address, output))).collect()
    }

    /// What was of no use.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// Start and version up to which an owner's records are known here.
    pub fn known(&self, owner: &str) -> Option<(u64, u64)> {
        self.records.known(NodeId::of(owner))
    }

    /// An own endpoint as last published.
    pub fn own(&self, uid: &str) -> Option<Endpoint> {
        self.records.endpoints(self.me)?.get(uid).cloned()
    }
}
