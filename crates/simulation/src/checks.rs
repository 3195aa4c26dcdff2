//! What must be so all the time, and at the end.
//!
//! | checker | says |
//! |---|---|
//! | live | an endpoint that is ready and whose node is well is not dropped by a node that is well, for longer than the bound |
//! | dead | an endpoint that is not ready, or whose node is off, is not kept by a node that is well beyond the bound, while there is another |
//! | emptied | a Service of which an endpoint was in use that has been ready for a while is never left with none, unless the API takes its node for lost |
//! | deleted | what was deleted and dropped does not come back, unless only its owner had said so and is not heard any more, or nothing else is left; what a node has seen go never starts there again ([`crate::pods`]) |
//! | leader | at most one leads ([`crate::server`]) |
//! | kernel | no transaction is refused ([`crate::kernel`]) |
//! | members | nobody well is taken for dead; who is off is lost to all within a bound; a minority calls nobody dead |
//! | records | a version of an owner's words never goes back, and is known to all who are well within a bound |
//! | nodes | no node that is well is marked as lost in the API |
//! | end | after the last fault all converge: routes, names, members, records, nodes, one leader |
//!
//! *Well* is a node that runs and reaches more than half of all, both ways, and that no fault has touched for a while. Where two
//! nodes and the link between them are well, what happens to their other links is no reason either. A slow disk is one for coming
//! late to what the API says, not to what the peers say.

use crate::{
    api::Api,
    sabotage::Sabotage,
    world::{DISK_MS, SERVICES, State, World, host_of, node_name, service_address},
};
use hickory_proto::rr::{Name, RData, RecordType};
use membership::{Health, View, view::Member};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};
use tokio::time::Instant;

/// After a fault that touches a node, nothing is asked of it for this long.
const SETTLE: Duration = Duration::from_millis(4_000);
/// A node that is off is lost to others after this at the latest; and when packets are lost, or the machine lags.
const DEATH_KNOWN: Duration = Duration::from_millis(3_000);
const DEATH_KNOWN_BADLY: Duration = Duration::from_millis(4_500);
/// A changed word of an owner is known to everybody who is well after this at the latest.
const CHANGE_KNOWN: Duration = Duration::from_millis(5_000);
/// From what a node knows to what its kernel has.
const APPLY: Duration = Duration::from_millis(600);
/// A live endpoint may be missing for this long.
const DROPPED: Duration = Duration::from_millis(500);
/// A node must have been well for this long to be marked as lost by mistake.
const WELL_FOR: Duration = Duration::from_millis(12_000);

/// How a pod is, in truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    /// Ready.
    Live,
    /// Its node has no power.
    Off,
    /// Its node runs and knows that it is not ready.
    Unready,
    /// Nobody could know better.
    Unclear,
}

struct Fact {
    service: usize,
    host: usize,
    address: Option<Ipv4Addr>,
    truth: Truth,
    since: Instant,
}

/// Durations that were measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From a power cut to the last use of an endpoint there, by node.
    pub dead_ms: Vec<u64>,
    /// From the loss of readiness to the same.
    pub unready_ms: Vec<u64>,
    /// From an owner's word to the last one who hears it.
    pub told_ms: Vec<u64>,
    /// Packets between members, and nodes times seconds.
    pub packets: u64,
    /// See `packets`.
    pub node_seconds: u64,
}

impl Figures {
    /// Adds those of another world.
    pub fn add(&mut self, other: Figures) {
        self.dead_ms.extend(other.dead_ms);
        self.unready_ms.extend(other.unready_ms);
        self.told_ms.extend(other.told_ms);
        self.packets += other.packets;
        self.node_seconds += other.node_seconds;
    }

    /// One line.
    pub fn text(&mut self) -> String {
        let line = |name: &str, values: &mut Vec<u64>| {
            values.sort_unstable();
            let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(0);
            format!("{name}: {} seen, p50 {} ms, p99 {} ms, most {} ms", values.len(), at(0.5), at(0.99), at(1.0))
        };
        let packets = self.packets as f64 / self.node_seconds.max(1) as f64;
        let dead = line("endpoints of a dead node gone at a node", &mut self.dead_ms);
        let unready = line("an endpoint that is not ready gone at a node", &mut self.unready_ms);
        let told = line("a word of a node known to all", &mut self.told_ms);
        format!("{dead}; {unready}; {told}; {packets:.1} packets sent per second and node")
    }

    /// As words that [`Figures::read`] reads.
    pub fn write(&self) -> String {
        let list = |values: &[u64]| values.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("{};{};{};{};{}", list(&self.dead_ms), list(&self.unready_ms), list(&self.told_ms), self.packets, self.node_seconds)
    }

    /// See [`Figures::write`].
    pub fn read(text: &str) -> Figures {
        let parts: Vec<&str> = text.split(';').collect();
        let list =
            |index: usize| parts.get(index).into_iter().flat_map(|part| part.split(',')).filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        let one = |index: usize| list(index).first().copied().unwrap_or(0);
        Figures { dead_ms: list(0), unready_ms: list(1), told_ms: list(2), packets: one(3), node_seconds: one(4) }
    }
}

/// Looks at the world.
pub struct Checker {
    facts: BTreeMap<String, Fact>,
    /// What each node's routes held at the last look: by host and Service.
    used: Vec<Vec<BTreeSet<Ipv4Addr>>>,
    /// Since when a live endpoint is missing: (host, UID).
    missing: BTreeMap<(usize, String), Instant>,
    /// Deleted endpoints that a host has dropped: in which start of its agent, and whether only the owner had said so. The peers' words
    /// are not on the disk, so an agent that starts anew may believe an old EndpointSlice until it has heard them.
    dropped: BTreeMap<(usize, String), (u64, bool)>,
    versions: BTreeMap<(usize, usize), (u64, (u64, u64))>,
    /// The newest words of each owner, and those that not all have heard of: whose, which, since when.
    newest: Vec<Option<(u64, u64)>>,
    said: Vec<(usize, (u64, u64), Instant)>,
    well_since: Vec<Option<Instant>>,
    off_since: Vec<Option<Instant>>,
    was_ready: Vec<bool>,
    all_well_since: Option<Instant>,
    sides: Option<Vec<bool>>,
    figures: Figures,
}

fn addresses_of<'a>(facts: impl Iterator<Item = &'a Fact>) -> BTreeSet<Ipv4Addr> {
    facts.filter_map(|fact| fact.address).collect()
}

/// Whether an EndpointSlice in the API still has this address.
fn named_in(api: &Api, address: Ipv4Addr) -> bool {
    let endpoints = api.all("endpointslices").filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let mut addresses = endpoints.filter_map(|endpoint| endpoint["addresses"].as_array()).flatten().filter_map(|text| text.as_str());
    addresses.any(|text| text.parse() == Ok(address))
}

fn ready_in(api: &Api, host: usize) -> bool {
    let node = api.get("nodes", "", &node_name(host));
    let conditions = node.and_then(|node| node["status"]["conditions"].as_array());
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

impl Checker {
    /// For this world.
    pub fn new(world: &World) -> Checker {
        let count = world.shape.hosts;
        Checker {
            facts: BTreeMap::new(),
            used: vec![vec![BTreeSet::new(); SERVICES]; count],
            missing: BTreeMap::new(),
            dropped: BTreeMap::new(),
            versions: BTreeMap::new(),
            newest: vec![None; count],
            said: Vec::new(),
            well_since: vec![None; count],
            off_since: vec![None; count],
            was_ready: vec![true; count],
            all_well_since: None,
            sides: None,
            figures: Figures::default(),
        }
    }

    /// What was measured.
    pub fn figures(&self, world: &World) -> Figures {
        let state = world.lock();
        Figures { packets: state.packets, node_seconds: state.now_ms() / 1000 * world.shape.hosts as u64, ..self.figures.clone() }
    }

    /// All that must be so at every moment.
    pub fn look(&mut self, world: &World) {
        let mut state = world.lock();
        let now = Instant::now();
        self.learn(&state, now);
        let count = world.shape.hosts;
        let is_member = |host: usize| state.hosts[host].member.is_some() || world.sabotage == Some(Sabotage::Membership);
        let runs = |host: usize| state.hosts[host].agent.runs && !state.is_paused(host) && is_member(host);
        let running: Vec<usize> = (0..count).filter(|host| runs(*host)).collect();
        let central = |host: usize| runs(host) && 2 * running.iter().filter(|other| state.linked(host, **other)).count() > count;
        let well: Vec<bool> = (0..count).map(|host| central(host) && state.hosts[host].touched + SETTLE <= now).collect();
        for (host, is_well) in well.iter().enumerate() {
            self.well_since[host] = is_well.then(|| self.well_since[host].unwrap_or(now));
            self.off_since[host] = (!state.hosts[host].is_on).then(|| self.off_since[host].unwrap_or(now));
        }
        let is_whole = |a: usize, b: usize| state.linked(a, b) && state.turned[a][b].max(state.turned[b][a]) + SETTLE <= now;
        let is_calm = |host: usize| central(host) && state.hosts[host].jolted + SETTLE <= now;
        let pairs: Vec<Vec<bool>> = (0..count)
            .map(|a| (0..count).map(|b| (well[a] && well[b] && state.linked(a, b)) || (is_calm(a) && is_calm(b) && is_whole(a, b))).collect())
            .collect();
        let mut found = Vec::new();
        found.extend(self.endpoints(world, &state, &well, &pairs, now));
        found.extend(self.members(world, &state, &well, now));
        found.extend(self.words(&state, &well, now));
        found.extend(self.sides(world, &state, now));
        found.extend(self.nodes(&state, now));
        found.into_iter().for_each(|failure| state.fail(failure));
    }

    /// How the pods are.
    fn learn(&mut self, state: &State, now: Instant) {
        let mut present = BTreeSet::new();
        for pod in state.api.all("pods") {
            let (Some(uid), Some(host)) = (pod["metadata"]["uid"].as_str(), pod["spec"]["nodeName"].as_str().and_then(host_of)) else { continue };
            let service = pod["metadata"]["labels"]["app"].as_str().and_then(|app| app.strip_prefix("app-")?.parse().ok()).unwrap_or(0);
            if pod["metadata"]["deletionTimestamp"].is_null() {
                present.insert(uid.to_owned());
            }
            self.facts.entry(uid.to_owned()).or_insert(Fact { service, host, address: None, truth: Truth::Unclear, since: now });
        }
        for (uid, fact) in &mut self.facts {
            let host = &state.hosts[fact.host];
            fact.address = host.runtime.address(uid).or(fact.address);
            let truth = match (host.is_on, host.runtime.is_ready(uid)) {
                (false, _) => Truth::Off,
                _ if state.is_paused(fact.host) => Truth::Unclear,
                (true, true) if present.contains(uid) => Truth::Live,
                (true, false) if host.agent.runs => Truth::Unready,
                _ => Truth::Unclear,
            };
            if truth != fact.truth {
                (fact.truth, fact.since) = (truth, now);
            }
            // It may be ready again between two looks.
            fact.since = fact.since.max(host.runtime.turned.get(uid).copied().unwrap_or(fact.since));
        }
    }

    /// `pairs`: whether two nodes are well as far as they have to do with each other.
    fn endpoints(&mut self, world: &World, state: &State, well: &[bool], pairs: &[Vec<bool>], now: Instant) -> Option<String> {
        let is_bad = world.shape.is_bad();
        for host in 0..world.shape.hosts {
            for service in 0..SERVICES {
                let used = state.hosts[host].kernel.routes.get(&service_address(service)).cloned().unwrap_or_default();
                let before = std::mem::replace(&mut self.used[host][service], used.clone());
                if !state.hosts[host].is_on {
                    continue;
                }
                // There is another, and this node can know and reach it.
                let is_other = |fact: &&Fact| {
                    fact.service == service && fact.truth == Truth::Live && pairs[host][fact.host] && now - fact.since > CHANGE_KNOWN + APPLY
                };
                let others = addresses_of(self.facts.values().filter(is_other));
                // Never emptied, whoever looks, and whatever is cut. (A word that says of a pod that it is not ready, and was true when
                // it was said, may still be on its way; and the pods of a node that the API takes for lost are not ready there, as
                // Kubernetes has it.)
                let known = |fact: &&Fact| {
                    let is_live = fact.service == service && fact.truth == Truth::Live && now - fact.since > CHANGE_KNOWN;
                    is_live && ready_in(&state.api, fact.host)
                };
                if used.is_empty()
                    && let Some(kept) = before.intersection(&addresses_of(self.facts.values().filter(known))).next()
                {
                    return Some(format!("the Service app-{service} is emptied on {}, though {kept} was in use and is ready", node_name(host)));
                }
                for (uid, fact) in self.facts.iter().filter(|(_, fact)| fact.service == service) {
                    let Some(address) = fact.address else { continue };
                    let (is_used, was_used) = (used.contains(&address), before.contains(&address));
                    let key = (host, uid.clone());
                    let is_slow = state.hosts[host].disk_ms > DISK_MS;
                    if state.api.deleted.contains(uid) {
                        let start = state.hosts[host].agent.number;
                        // Where the API still names it, the word of its owner counts as long as that is heard and something else is left.
                        let is_heard = |known: u64| known == start && pairs[host][fact.host] && !others.is_empty();
                        if is_used && self.dropped.get(&key).is_some_and(|(known, by_word)| !by_word || is_heard(*known)) {
                            return Some(format!("{address} of {uid}, which was deleted, comes back on {}", node_name(host)));
                        }
                        // Whoever was cut off may have dropped it for that alone, and know nothing of the deletion; a slow disk may not have it.
                        if !is_used && !is_slow && pairs[host][fact.host] {
                            self.dropped.insert(key.clone(), (start, named_in(&state.api, address)));
                        }
                    }
                    if was_used && !is_used && well[host] {
                        let measured = u64::try_from((now - fact.since).as_millis()).unwrap_or(0);
                        match fact.truth {
                            Truth::Off => self.figures.dead_ms.push(measured),
                            Truth::Unready => self.figures.unready_ms.push(measured),
                            _ => {}
                        }
                    }
                    if is_used || fact.truth != Truth::Live || !pairs[host][fact.host] || is_slow {
                        self.missing.remove(&key);
                    } else if was_used || self.missing.contains_key(&key) {
                        let since = *self.missing.entry(key).or_insert(now);
                        if now - since > DROPPED {
                            let missing = (now - since).as_millis();
                            return Some(format!(
                                "{address} on node-{}, which is ready and well, is dropped by {} for {missing} ms",
                                fact.host,
                                node_name(host)
                            ));
                        }
                    }
                    let touched = state.hosts[host].touched.max(fact.since);
                    let (bound, from) = match fact.truth {
                        Truth::Off => (if is_bad { DEATH_KNOWN_BADLY } else { DEATH_KNOWN } + APPLY, touched),
                        Truth::Unready if well[fact.host] => (CHANGE_KNOWN + APPLY, touched.max(state.hosts[fact.host].touched)),
                        _ => continue,
                    };
                    if is_used && well[host] && now - from > bound && used.intersection(&others).next().is_some() {
                        let kept = (now - fact.since).as_millis();
                        return Some(format!(
                            "{address} on node-{}, which is {:?}, is kept by {} for {kept} ms",
                            fact.host,
                            fact.truth,
                            node_name(host)
                        ));
                    }
                }
            }
        }
        None
    }

    fn members(&mut self, world: &World, state: &State, well: &[bool], now: Instant) -> Option<String> {
        let bound = if world.shape.is_bad() { DEATH_KNOWN_BADLY } else { DEATH_KNOWN };
        for a in 0..world.shape.hosts {
            let Some(member) = state.hosts[a].member.as_ref().filter(|_| !state.is_paused(a)) else { continue };
            let member = member.lock();
            for b in (0..world.shape.hosts).filter(|b| *b != a) {
                let name = node_name(b);
                if let Some(known) = member.known(&name) {
                    let start = state.hosts[a].agent.number;
                    let entry = self.versions.entry((a, b)).or_insert((start, known));
                    if entry.0 == start && known < entry.1 {
                        return Some(format!("at {} the records of {name} go back from {:?} to {known:?}", node_name(a), entry.1));
                    }
                    *entry = (start, known);
                }
                // What the member believes, and what the other parts of the node were told.
                let shown = state.hosts[a].views.borrow().as_ref().and_then(|view| view.nodes.get(&name).cloned());
                let Some(seen) = member.view().nodes.get(&name) else { continue };
                for seen in [Some(seen), shown.as_ref()].into_iter().flatten().filter(|_| well[a] && well[b]) {
                    if seen.health == Health::Dead || !seen.reachable {
                        let Member { health, reachable, .. } = seen;
                        return Some(format!("{} takes {name} for {health:?} (reachable: {reachable}), which is alive and well", node_name(a)));
                    }
                }
                let Some(off) = self.off_since[b].filter(|_| well[a]) else { continue };
                if seen.reachable && now - off.max(state.hosts[a].touched) > bound {
                    return Some(format!(
                        "{} takes {name} for {:?}, which has been off for {} ms",
                        node_name(a),
                        seen.health,
                        (now - off).as_millis()
                    ));
                }
            }
        }
        None
    }

    /// What an owner says is soon known to everybody who is well.
    fn words(&mut self, state: &State, well: &[bool], now: Instant) -> Option<String> {
        let known = |at: usize, of: usize| state.hosts[at].member.as_ref()?.lock().known(&node_name(of));
        for owner in 0..well.len() {
            let newest = known(owner, owner);
            if self.newest[owner] != newest {
                self.newest[owner] = newest;
                self.said.extend(newest.map(|version| (owner, version, now)));
            }
        }
        let mut late = None;
        let told_ms = &mut self.figures.told_ms;
        self.said.retain(|(owner, version, at)| {
            if !well[*owner] || state.hosts[*owner].touched > *at {
                return false;
            }
            let behind = |host: &usize| well[*host] && known(*host, *owner).is_none_or(|known| known < *version);
            let mut waits = (0..well.len()).filter(behind).peekable();
            if waits.peek().is_none() {
                told_ms.push(u64::try_from((now - *at).as_millis()).unwrap_or(0));
                return false;
            }
            let is_late = |host: &usize| now - state.hosts[*host].touched.max(*at) > CHANGE_KNOWN;
            if let Some(host) = waits.find(is_late) {
                late = Some(format!("{} has not heard {version:?} of node-{owner} for {} ms", node_name(host), (now - *at).as_millis()));
            }
            true
        });
        late
    }

    /// A side with half of all nodes or less calls nobody of the other dead, when all were well before the partition.
    fn sides(&mut self, world: &World, state: &State, now: Instant) -> Option<String> {
        let count = world.shape.hosts;
        let all_run = (0..count).all(|host| state.hosts[host].member.is_some() && !state.is_paused(host));
        let whole = state.cut.iter().flatten().all(|cut| !cut);
        if all_run && whole {
            self.all_well_since.get_or_insert(now);
            self.sides = None;
            return None;
        }
        let was_well = self.all_well_since.take().is_some_and(|since| now - since > Duration::from_secs(9));
        if was_well && all_run {
            self.sides = Some((0..count).map(|b| state.cut[0][b] || state.cut[b][0]).collect());
        }
        let Some(sides) = self.sides.clone().filter(|_| all_run) else {
            self.sides = None;
            return None;
        };
        let is_partition = (0..count).all(|a| (0..count).all(|b| state.cut[a][b] == (sides[a] != sides[b])));
        for a in (0..count).filter(|_| is_partition) {
            let side = sides.iter().filter(|side| **side == sides[a]).count();
            let Some(member) = state.hosts[a].member.as_ref().filter(|_| 2 * side <= count) else { continue };
            for b in (0..count).filter(|b| sides[*b] != sides[a]) {
                if member.lock().view().nodes.get(&node_name(b)).is_some_and(|seen| seen.health == Health::Dead) {
                    return Some(format!("{}, with {side} of {count} nodes, calls {} dead", node_name(a), node_name(b)));
                }
            }
        }
        None
    }

    /// No node that is well is marked as lost.
    fn nodes(&mut self, state: &State, now: Instant) -> Option<String> {
        for host in 0..state.hosts.len() {
            let is_ready = ready_in(&state.api, host);
            let was_ready = std::mem::replace(&mut self.was_ready[host], is_ready);
            if was_ready && !is_ready && self.well_since[host].is_some_and(|since| now - since > WELL_FOR) {
                return Some(format!("{} is marked as not ready, though it is alive and well", node_name(host)));
            }
        }
        None
    }

    /// What must be so when nothing has happened for a while.
    pub fn end(&mut self, world: &World) -> Result<(), String> {
        let state = world.lock();
        let count = world.shape.hosts;
        let runs = |host: usize| state.hosts[host].is_on && state.hosts[host].agent.runs;
        let running: Vec<usize> = (0..count).filter(|host| runs(*host)).collect();
        if state.leaders.iter().filter(|(host, number)| state.hosts[*host].server.runs && state.hosts[*host].server.number == *number).count() != 1 {
            return Err(format!("{:?} lead instead of one", state.leaders));
        }
        for host in 0..count {
            if ready_in(&state.api, host) != runs(host) {
                return Err(format!("the API takes {} for the contrary of what it is; it runs: {}", node_name(host), runs(host)));
            }
        }
        for &a in &running {
            let Some(member) = &state.hosts[a].member else { return Err(format!("{} is no member", node_name(a))) };
            let member = member.lock();
            for b in 0..count {
                let found = member.view().nodes.get(&node_name(b)).map(|seen| (seen.health, seen.reachable));
                let wanted = match (state.hosts[b].is_on, runs(b)) {
                    (true, true) => (Health::Alive, true),
                    (true, false) => (Health::AgentDown, true),
                    _ if 2 * running.len() > count => (Health::Dead, false),
                    _ => (found.map_or(Health::Suspect, |(health, _)| health), false),
                };
                if found != Some(wanted) {
                    return Err(format!("{} takes {} for {found:?} instead of {wanted:?}", node_name(a), node_name(b)));
                }
                if a == b || !runs(b) {
                    continue;
                }
                let words = |view: &View| (view.endpoints.get(&node_name(b)).cloned(), view.complete.contains(&node_name(b)));
                let (heard, said) = (words(member.view()), state.hosts[b].member.as_ref().map(|own| words(own.lock().view())));
                if said.as_ref() != Some(&heard) || !heard.1 {
                    return Err(format!("{} has heard of {}'s endpoints {heard:?} instead of {said:?}", node_name(a), node_name(b)));
                }
                if !member.view().nodes.get(&node_name(b)).is_some_and(|seen| seen.api_reachable) {
                    return Err(format!("{} believes that {} does not reach the API", node_name(a), node_name(b)));
                }
            }
            drop(member);
            self.converged(&state, a)?;
        }
        Ok(())
    }

    fn converged(&self, state: &State, host: usize) -> Result<(), String> {
        for service in 0..SERVICES {
            let live = addresses_of(self.facts.values().filter(|fact| fact.service == service && fact.truth == Truth::Live));
            let used = &self.used[host][service];
            if !live.is_empty() && *used != live {
                return Err(format!("{} sends app-{service} to {used:?} instead of {live:?}", node_name(host)));
            }
            let Some(zone) = &state.hosts[host].names else { continue };
            let answered = names_in(&zone.read(), service);
            if !live.is_empty() && answered != live {
                return Err(format!("{} resolves named-{service} to {answered:?} instead of {live:?}", node_name(host)));
            }
        }
        Ok(())
    }
}

/// What DNS says of the Service without an address that has the same pods.
fn names_in(zone: &dns::zone::Zone, service: usize) -> BTreeSet<Ipv4Addr> {
    let Ok(name) = Name::from_ascii(format!("named-{service}.default.svc.cluster.local.")) else { return BTreeSet::new() };
    let dns::zone::Answer::Here(records) = zone.answer(&name, RecordType::A) else { return BTreeSet::new() };
    let addresses = records.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    addresses.collect()
}
