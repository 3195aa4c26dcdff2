//! How each peer stands: SWIM (foca) for the list, the rumours and the refutations; direct contact for the verdict.
//!
//! foca probes random members, also through others, and spreads what is found. Around it:
//!
//! - Each node pings its two successors on the ring of names, so every death is noticed within a fixed time.
//! - Whoever hears of a suspicion pings the suspect itself, tells it (so that it can refute), and asks others to vouch. Only
//!   a suspect that has answered nobody asked goes down; foca's own timer for that is not used.
//! - One other member at a time is pinged too: who answers others and not this node, though it used to, is *cut* off from it.
//! - A member that others have found to be down is pinged before that is believed, and told, so that it comes back.
//! - Who is down stands in every digest, so that a member that was away while it was told finds it out too.
//! - A host that answers that nobody listens on the port (ICMP, seen as a refused connection) has only lost its agent; unless
//!   it was down before, for then it was switched on, and its agent is yet to come.
//!
//! Pure: time and packets in, packets out. Randomness comes from the seed.

use crate::{
    clock::HeardClock,
    electorate::Sight,
    identity::{Identity, NodeId},
    limits,
    view::Standing,
    wire::{Belief, Known, Message},
};
use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, PostcardCodec, State, Timer};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

/// By which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the member's address, from ours.
    Plain,
    /// To the member's address, from a socket that learns when nobody listens there.
    Watch,
    /// Back to where the message came from that is being handled.
    Back,
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// To whom.
    pub to: NodeId,
    /// How.
    pub way: Way,
    /// What.
    pub message: Message,
}

/// What this node has had to do with a peer.
#[derive(Clone, Debug)]
struct Contact {
    standing: Standing,
    /// Its last answer to a ping.
    heard: Option<u64>,
    /// The latest epoch of it that is known.
    epoch: u64,
    /// When somebody last vouched for it.
    vouched: Option<u64>,
    /// When its host last said that nobody listens.
    refused: Option<u64>,
    /// When the oldest ping went out that it has not answered.
    probing: Option<u64>,
    unanswered: u32,
    pinged: Option<u64>,
    asked: Option<u64>,
    /// The numbers of the last pings.
    tokens: [u32; 8],
    /// Since when SWIM says anything but alive.
    doubtful: Option<u64>,
    /// See [`Contact::is_cut`], as it was at the last look.
    cut: bool,
    /// Who would like to know whether it answers, and since when.
    waiters: BTreeMap<NodeId, u64>,
}

impl Contact {
    fn new(now: u64) -> Contact {
        Contact {
            standing: Standing::Unknown,
            heard: None,
            epoch: 0,
            vouched: None,
            refused: None,
            probing: None,
            unanswered: 0,
            pinged: None,
            asked: None,
            tokens: [0; 8],
            doubtful: Some(now),
            cut: false,
            waiters: BTreeMap::new(),
        }
    }

    fn evidence(&self) -> Option<u64> {
        self.heard.max(self.vouched)
    }

    /// The pure verdict. `swim`: what SWIM believes; `patience`: see [`HeardClock::patience`].
    fn judge(&self, swim: Option<Belief>, now: u64, patience: u64) -> Standing {
        if swim == Some(Belief::Alive) {
            return Standing::Alive;
        }
        let since = self.doubtful.unwrap_or(now);
        let evidence = self.evidence().filter(|at| *at >= since);
        if evidence.is_some_and(|at| now - at < limits::EVIDENCE_HOLDS_MS) {
            return Standing::Alive;
        }
        // A host that was down and answers again was switched on: what its agent last said of its pods is not so any more.
        if let Some(refused) = self.refused.filter(|at| Some(*at) > self.heard && self.standing != Standing::Down) {
            if now - refused < limits::REFUSAL_HOLDS_MS {
                return Standing::AgentDown;
            }
            if self.standing == Standing::AgentDown {
                return if self.unanswered >= 2 { Standing::Down } else { Standing::AgentDown };
            }
        }
        if self.standing == Standing::Down {
            return Standing::Down;
        }
        let (wait, pings) = match swim {
            Some(Belief::Down) => (limits::HEARSAY_TO_DOWN_MS, limits::HEARSAY_PINGS_MIN),
            Some(_) => (limits::SUSPECT_TO_DOWN_MS, limits::SUSPECT_PINGS_MIN),
            None => (limits::UNKNOWN_TO_DOWN_MS, limits::UNKNOWN_PINGS_MIN),
        };
        let quiet = now - evidence.unwrap_or(since).max(since);
        match self.standing {
            _ if quiet >= wait * patience && self.unanswered >= pings => Standing::Down,
            Standing::Unknown => Standing::Unknown,
            _ => Standing::Suspect,
        }
    }

    /// Whether others reach it while packets between it and this node, which used to pass, are lost. Once it is so, a vouch that is
    /// lost on its way changes nothing.
    fn is_cut(&self, now: u64, patience: u64) -> bool {
        let holds_ms = if self.cut { limits::CUT_VOUCH_HOLDS_MS } else { limits::EVIDENCE_HOLDS_MS };
        self.standing == Standing::Alive
            && self.heard.is_some()
            && self.unanswered >= limits::CUT_PINGS_MIN
            && self.probing.is_some_and(|since| now - since >= limits::WATCH_SUSPECT_AFTER_MS * patience)
            && self.vouched.is_some_and(|at| now - at < holds_ms)
    }

    fn is_asked_in_vain(&self, now: u64) -> bool {
        self.unanswered >= 2 && self.probing.is_some_and(|since| now - since >= limits::ASK_AFTER_MS)
    }

    fn is_vouched(&self, now: u64) -> bool {
        self.vouched.is_some_and(|at| now - at < limits::EVIDENCE_HOLDS_MS)
    }

    /// How often it is to be pinged now. `ring`: its place among those that this node watches.
    fn ping_every(&self, swim: Option<Belief>, ring: Option<usize>, calling: bool, now: u64) -> Option<u64> {
        let by_standing = match self.standing {
            Standing::Unknown => Some(limits::UNKNOWN_PING_EVERY_MS),
            Standing::Suspect => Some(limits::SUSPECT_PING_EVERY_MS),
            Standing::Alive if swim != Some(Belief::Alive) => Some(limits::SUSPECT_PING_EVERY_MS),
            Standing::Alive => None,
            Standing::AgentDown => Some(limits::AGENT_DOWN_PING_EVERY_MS),
            Standing::Down => Some(limits::DOWN_PING_EVERY_MS),
        };
        let late_for = self.probing.filter(|_| self.standing == Standing::Alive).map_or(0, |since| now - since);
        let by_lateness = match late_for {
            0..limits::WATCH_LATE_MS => None,
            limits::WATCH_LATE_MS..limits::CUT_LONG_MS => Some(limits::WATCH_HURRY_MS),
            _ => Some(limits::CUT_PING_EVERY_MS),
        };
        let by_ring = ring.map(|place| limits::WATCH_EVERY_MS * (1 + place as u64));
        let by_call = (calling && self.standing != Standing::Down).then_some(limits::ROLL_CALL_EVERY_MS);
        [by_standing, by_ring, by_lateness, by_call].into_iter().flatten().min()
    }
}

/// See the module.
pub struct Detector {
    me: NodeId,
    foca: Foca<Identity, PostcardCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    timers: BTreeMap<(u64, u8, u64), Timer<Identity>>,
    timers_made: u64,
    clock: HeardClock,
    contacts: BTreeMap<NodeId, Contact>,
    rng: Xoshiro256PlusPlus,
    outputs: Vec<Output>,
    refused_swim: u64,
    /// When the next random member is pinged.
    direct_at: u64,
}

fn config() -> foca::Config {
    let some = |count: usize| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
    foca::Config {
        probe_period: Duration::from_millis(limits::PROBE_EVERY_MS),
        probe_rtt: Duration::from_millis(limits::PROBE_RTT_MS),
        num_indirect_probes: some(3),
        max_transmissions: NonZeroU8::new(limits::TRANSMISSIONS_MAX).unwrap_or(NonZeroU8::MIN),
        // Not used: see the module.
        suspect_to_down_after: Duration::from_millis(limits::REMEMBER_DOWN_MS),
        remove_down_after: Some(Duration::from_millis(limits::REMEMBER_DOWN_MS)),
        max_packet_size: some(limits::SWIM_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: Some(foca::PeriodicParams { frequency: Duration::from_millis(limits::ANNOUNCE_EVERY_MS), num_members: some(1) }),
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(foca::PeriodicParams { frequency: Duration::from_millis(limits::GOSSIP_EVERY_MS), num_members: some(3) }),
    }
}

impl Detector {
    /// A detector that knows nobody.
    pub fn new(me: NodeId, epoch: u64, seed: u64) -> Detector {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let for_foca = Xoshiro256PlusPlus::seed_from_u64(rng.random());
        Detector {
            me,
            foca: Foca::new(Identity { node: me, epoch }, config(), for_foca, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timers_made: 0,
            clock: HeardClock::default(),
            contacts: BTreeMap::new(),
            rng,
            outputs: Vec::new(),
            refused_swim: 0,
            direct_at: 0,
        }
    }

    /// Takes in the monotonic clock. MUST be called before anything that has happened at that time is told.
    pub fn advance(&mut self, now_ms: u64) -> u64 {
        self.clock.advance(now_ms)
    }

    /// Only these are peers.
    pub fn roster(&mut self, peers: &BTreeSet<NodeId>) {
        let now = self.clock.now();
        self.contacts.retain(|id, _| peers.contains(id));
        for id in peers.iter().filter(|id| **id != self.me) {
            self.contacts.entry(*id).or_insert_with(|| Contact::new(now));
        }
    }

    /// What is to be sent.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// A number that is different each time.
    pub fn random(&mut self) -> u64 {
        self.rng.random()
    }

    /// Packets of SWIM that foca has refused.
    pub fn refused_swim(&self) -> u64 {
        self.refused_swim
    }

    /// How everybody else is seen.
    pub fn sights(&self) -> BTreeMap<NodeId, Sight> {
        let now = self.clock.now();
        let patience = self.clock.patience();
        let sight = |contact: &Contact| Sight {
            standing: contact.standing,
            evidence_ms: contact.evidence().max(contact.refused),
            doubtful_for_ms: contact.doubtful.map_or(0, |since| now - since),
            cut: contact.is_cut(now, patience),
        };
        self.contacts.iter().map(|(id, contact)| (*id, sight(contact))).collect()
    }

    /// Members that are down, with their last epoch; of many some.
    pub fn down(&mut self) -> Vec<(NodeId, u64)> {
        let down = self.contacts.iter().filter(|(_, contact)| contact.standing == Standing::Down && contact.epoch > 0);
        let mut down: Vec<(NodeId, u64)> = down.map(|(id, contact)| (*id, contact.epoch)).collect();
        if down.len() > limits::DIGEST_DOWN_MAX {
            let start = self.rng.random_range(0..down.len());
            down.rotate_left(start);
            down.truncate(limits::DIGEST_DOWN_MAX);
        }
        down
    }

    /// What a peer says of who is down. It is checked before it is believed.
    pub fn hearsay(&mut self, down: &[(NodeId, u64)]) {
        for (id, epoch) in down {
            if self.contacts.contains_key(id) && self.known(*id).is_some_and(|known| known.state != Belief::Down && known.epoch <= *epoch) {
                let member = foca::Member::down(Identity { node: *id, epoch: *epoch });
                let _ = self.foca.apply_many(std::iter::once(member), true, &mut self.runtime);
                self.after_foca();
            }
        }
    }

    /// Members that are alive, in random order; those that this node has asked in vain come last.
    pub fn some_alive(&mut self, count: usize, but: Option<NodeId>) -> Vec<NodeId> {
        let now = self.clock.now();
        let alive = self.contacts.iter().filter(|(id, contact)| contact.standing == Standing::Alive && Some(**id) != but);
        let mut alive: Vec<(bool, u32, NodeId)> = alive.map(|(id, contact)| (contact.is_asked_in_vain(now), self.rng.random(), *id)).collect();
        alive.sort_unstable();
        alive.into_iter().take(count).map(|(.., id)| id).collect()
    }

    /// A message from a peer.
    pub fn receive(&mut self, from: NodeId, message: &Message) {
        let now = self.clock.now();
        if !self.contacts.contains_key(&from) {
            return;
        }
        match message {
            Message::Swim(bytes) => {
                if self.foca.handle_data(bytes, &mut self.runtime).is_err() {
                    self.refused_swim += 1;
                }
                self.after_foca();
            }
            Message::Ping { token, epoch: _, known } => {
                if let Some(known) = known {
                    self.object(from, *known);
                }
                let epoch = self.foca.identity().epoch;
                self.outputs.push(Output { to: from, way: Way::Back, message: Message::Pong { token: *token, epoch } });
            }
            Message::Pong { token, epoch } => self.answered(from, *token, *epoch, now),
            Message::Ask { about } => self.asked(from, *about, now),
            Message::Vouch { about, epoch } => {
                let known = self.known(*about);
                if let Some(contact) = self.contacts.get_mut(about) {
                    contact.vouched = Some(now);
                    let epoch = *epoch;
                    if known.is_none_or(|known| known.epoch < epoch) {
                        self.introduce(*about, epoch);
                    }
                }
            }
            Message::Digest { .. } | Message::Delta(_) => {}
        }
    }

    /// The peer's host says that nobody listens there.
    pub fn refused(&mut self, peer: NodeId) {
        let now = self.clock.now();
        if let Some(contact) = self.contacts.get_mut(&peer) {
            contact.refused = Some(now);
            contact.unanswered = 0;
        }
    }

    /// Looks at all that is due. `calling`: everybody is to be pinged.
    pub fn tick(&mut self, calling: bool) {
        let now = self.clock.now();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            // An error here means a timer of a former identity, or that nobody is there.
            let _ = self.foca.handle_timer(timer, &mut self.runtime);
            self.after_foca();
        }
        let patience = self.clock.patience();
        let swim: BTreeMap<NodeId, Known> = self.foca.iter_membership_state().map(|member| (member.id().node, Known::from(member))).collect();
        let ring = self.ring();
        let direct = (now >= self.direct_at).then(|| {
            self.direct_at = now + limits::DIRECT_EVERY_MS;
            let alive = self.contacts.iter().filter(|(_, contact)| contact.standing == Standing::Alive);
            alive.min_by_key(|(_, contact)| contact.pinged).map(|(id, _)| *id)
        });
        let mut news = Vec::new();
        let mut doubtful = Vec::new();
        for (id, contact) in &mut self.contacts {
            let known = swim.get(id).copied();
            let belief = known.map(|known| known.state);
            contact.epoch = contact.epoch.max(known.map_or(0, |known| known.epoch));
            if belief == Some(Belief::Alive) {
                contact.doubtful = None;
            } else {
                contact.doubtful.get_or_insert(now);
            }
            contact.standing = contact.judge(belief, now, patience);
            contact.cut = contact.is_cut(now, patience);
            let place = ring.iter().position(|watched| watched == id);
            match (contact.standing, known) {
                // Others are told that it is down.
                (Standing::Down, Some(known)) if known.state == Belief::Suspect => news.push((*id, known, State::Down)),
                (Standing::Alive, Some(known)) if place.is_some() && known.state == Belief::Alive => {
                    let silent_since = contact.probing.filter(|_| contact.unanswered >= limits::WATCH_PINGS_MIN);
                    let silent = silent_since.is_some_and(|since| now - since >= limits::WATCH_SUSPECT_AFTER_MS * patience);
                    let vouched = contact.is_vouched(now);
                    let refused = contact.refused.is_some_and(|at| Some(at) > contact.heard && now - at < limits::REFUSAL_HOLDS_MS);
                    if refused || (silent && !vouched) {
                        news.push((*id, known, State::Suspect));
                    }
                }
                _ => {}
            }
            let every = contact.ping_every(belief, place, calling, now);
            if direct.flatten() == Some(*id) || every.is_some_and(|every| contact.pinged.is_none_or(|at| now - at >= every)) {
                self.outputs.push(ping(self.foca.identity().epoch, &mut self.rng, *id, contact, known, now));
            }
            let in_vain = contact.is_asked_in_vain(now);
            let open = !matches!(contact.standing, Standing::Down | Standing::AgentDown);
            let every = if contact.is_vouched(now) { limits::ASK_AGAIN_MS } else { limits::ASK_EVERY_MS };
            if in_vain && open && contact.asked.is_none_or(|at| now - at >= every) {
                contact.asked = Some(now);
                doubtful.push(*id);
            }
            contact.waiters.retain(|_, since| now - *since < limits::WAITER_FOR_MS);
        }
        for about in doubtful {
            for to in self.some_alive(limits::ASK_PEERS, Some(about)) {
                self.outputs.push(Output { to, way: Way::Plain, message: Message::Ask { about } });
            }
        }
        for (id, known, state) in news {
            let member = foca::Member::new(Identity { node: id, epoch: known.epoch }, known.incarnation, state);
            let _ = self.foca.apply_many(std::iter::once(member), true, &mut self.runtime);
            let _ = self.foca.gossip(&mut self.runtime);
            self.after_foca();
        }
    }

    /// Whom this node watches: the next two on the ring that are not known to be down.
    fn ring(&self) -> Vec<NodeId> {
        let up = |(id, contact): (&NodeId, &Contact)| (!matches!(contact.standing, Standing::Down | Standing::AgentDown)).then_some(*id);
        let after = self.contacts.range(self.me..).filter_map(up);
        after.chain(self.contacts.range(..self.me).filter_map(up)).take(2).collect()
    }

    fn known(&self, id: NodeId) -> Option<Known> {
        self.foca.iter_membership_state().find(|member| member.id().node == id).map(Known::from)
    }

    /// A peer believes something of this node that is not so.
    fn object(&mut self, to: NodeId, known: Known) {
        let own = *self.foca.identity();
        if known.epoch > own.epoch || (known.epoch == own.epoch && known.state == Belief::Down) {
            let renewed = Identity { node: self.me, epoch: known.epoch.saturating_add(1) };
            let _ = self.foca.change_identity(renewed, &mut self.runtime);
        } else if known.epoch == own.epoch && known.state == Belief::Suspect {
            let suspected = foca::Member::new(own, known.incarnation, State::Suspect);
            let _ = self.foca.apply_many(std::iter::once(suspected), true, &mut self.runtime);
        } else {
            return;
        }
        // Any message carries the new incarnation; this one goes to whoever doubted.
        let epoch = self.known(to).map(|known| known.epoch);
        if let Some(epoch) = epoch {
            let _ = self.foca.announce(Identity { node: to, epoch }, &mut self.runtime);
        }
        self.after_foca();
    }

    fn answered(&mut self, from: NodeId, token: u32, epoch: u64, now: u64) {
        let known = self.known(from);
        let Some(contact) = self.contacts.get_mut(&from).filter(|contact| token != 0 && contact.tokens.contains(&token)) else { return };
        contact.heard = Some(now);
        contact.epoch = contact.epoch.max(epoch);
        contact.probing = None;
        contact.unanswered = 0;
        let waiters = std::mem::take(&mut contact.waiters);
        for to in waiters.into_keys() {
            self.outputs.push(Output { to, way: Way::Plain, message: Message::Vouch { about: from, epoch } });
        }
        if known.is_none_or(|known| known.epoch < epoch) {
            self.introduce(from, epoch);
        }
    }

    fn asked(&mut self, from: NodeId, about: NodeId, now: u64) {
        let known = self.known(about);
        let Some(contact) = self.contacts.get_mut(&about) else { return };
        if contact.heard.is_some_and(|at| now - at < limits::VOUCH_FRESH_MS) {
            let message = Message::Vouch { about, epoch: contact.epoch };
            self.outputs.push(Output { to: from, way: Way::Plain, message });
        } else if contact.waiters.len() < limits::WAITERS_MAX {
            contact.waiters.insert(from, now);
            if contact.pinged.is_none_or(|at| now - at >= limits::WATCH_HURRY_MS) {
                self.outputs.push(ping(self.foca.identity().epoch, &mut self.rng, about, contact, known, now));
            }
        }
    }

    /// foca gets to know a member, or a later start of one.
    fn introduce(&mut self, id: NodeId, epoch: u64) {
        let member = foca::Member::alive(Identity { node: id, epoch });
        let _ = self.foca.apply_many(std::iter::once(member), true, &mut self.runtime);
        self.after_foca();
    }

    fn after_foca(&mut self) {
        let now = self.clock.now();
        while let Some((to, bytes)) = self.runtime.to_send() {
            self.outputs.push(Output { to: to.node, way: Way::Plain, message: Message::Swim(bytes.to_vec()) });
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            let order = match &timer {
                Timer::ChangeSuspectToDown { .. } => continue,
                Timer::SendIndirectProbe { .. } => 0,
                Timer::ProbeRandomMember(_) => 1,
                _ => 2,
            };
            self.timers_made += 1;
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.timers.insert((now.saturating_add(after_ms), order, self.timers_made), timer);
        }
        while self.runtime.to_notify().is_some() {}
    }
}

/// A ping to this member, noted in its contact.
fn ping(epoch: u64, rng: &mut Xoshiro256PlusPlus, to: NodeId, contact: &mut Contact, known: Option<Known>, now: u64) -> Output {
    // Nought marks an empty place.
    let token = rng.random::<u32>().max(1);
    contact.tokens.rotate_right(1);
    contact.tokens[0] = token;
    contact.pinged = Some(now);
    contact.probing.get_or_insert(now);
    contact.unanswered = contact.unanswered.saturating_add(1);
    Output { to, way: Way::Watch, message: Message::Ping { token, epoch, known } }
}
