//! What must be so all the time, and at the end.
//!
//! - Nobody who runs and reaches more than half of all who run, undisturbed for a while, is dead or lost to another such one.
//! - Whoever is off is lost to everybody who runs, within a bound, and dead to everybody on a side with a majority.
//! - On a side with half of all nodes or less, nobody of the other side is ever called dead when all were well before.
//! - A changed endpoint is known to everybody who is well, within a bound.
//! - An owner's (epoch, version) never goes back at a running node.
//! - After the last fault all agree with what is so: who is alive, who is dead, every endpoint.

use crate::world::{Host, World};
use membership::{Health, View};
use std::collections::BTreeMap;

/// After a fault that touches a node, nothing is asked of it for this long.
const SETTLE_MS: u64 = 3_500;
/// A node that is off is lost to others after this at the latest.
const DEATH_KNOWN_MS: u64 = 3_000;
/// The same when packets are lost, or the machine lags.
const DEATH_KNOWN_BADLY_MS: u64 = 4_500;
/// A changed endpoint is known to everybody who is well after this at the latest.
const CHANGE_KNOWN_MS: u64 = 4_000;

#[derive(Default)]
pub struct Figures {
    deaths_ms: Vec<u64>,
    changes_ms: Vec<u64>,
    packets: u64,
    node_seconds: u64,
}

impl Figures {
    pub fn add(&mut self, other: Figures) {
        self.deaths_ms.extend(other.deaths_ms);
        self.changes_ms.extend(other.changes_ms);
        self.packets += other.packets;
        self.node_seconds += other.node_seconds;
    }

    pub fn text(&mut self) -> String {
        let line = |name: &str, values: &mut Vec<u64>| {
            values.sort_unstable();
            let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(0);
            format!("{name}: {} seen, p50 {} ms, p99 {} ms, most {} ms", values.len(), at(0.5), at(0.99), at(1.0))
        };
        let packets = self.packets as f64 / self.node_seconds.max(1) as f64;
        let deaths = line("a death known at a node", &mut self.deaths_ms);
        format!("{deaths}; {}; {packets:.1} packets sent per second and node", line("a changed endpoint", &mut self.changes_ms))
    }
}

pub struct Checker {
    pub figures: Figures,
    /// Since when each pair (observer, observed) has been in a wrong state.
    versions: BTreeMap<(usize, String), (u64, (u64, u64))>,
    dead_since: Vec<Option<u64>>,
    known: BTreeMap<(usize, usize), bool>,
    off_since: Vec<Option<u64>>,
    all_well_since: Option<u64>,
    /// How many changes of endpoints were taken in, and which of them not all have heard of.
    changes_seen: usize,
    pending: Vec<(u64, usize, String)>,
    sides: Option<Vec<bool>>,
}

fn health(view: &View, name: &str) -> Option<(Health, bool)> {
    view.nodes.get(name).map(|member| (member.health, member.reachable))
}

impl Checker {
    pub fn new(world: &World) -> Checker {
        let none = vec![None; world.nodes.len()];
        Checker {
            figures: Figures::default(),
            versions: BTreeMap::new(),
            dead_since: none.clone(),
            known: BTreeMap::new(),
            off_since: none,
            all_well_since: None,
            changes_seen: 0,
            pending: Vec::new(),
            sides: None,
        }
    }

    pub fn look(&mut self, world: &World) -> Result<(), String> {
        let count = world.nodes.len();
        let linked = |a: usize, b: usize| a == b || (!world.cut[a][b] && !world.cut[b][a]);
        let runs = |i: usize| world.is_running(i) && !world.is_paused(i);
        let running: Vec<usize> = (0..count).filter(|i| runs(*i)).collect();
        let neighbours = |a: usize| running.iter().filter(|b| linked(a, **b)).count();
        let central = |a: usize| runs(a) && 2 * neighbours(a) > count;
        let settled = |a: usize| world.nodes[a].touched + SETTLE_MS <= world.now;
        for i in 0..count {
            if world.nodes[i].host == Host::Off {
                self.off_since[i].get_or_insert(world.now);
            } else {
                self.off_since[i] = None;
                self.dead_since[i] = None;
                self.known.retain(|(_, of), _| *of != i);
            }
        }
        for &a in &running {
            let Some(member) = &world.nodes[a].member else { continue };
            let view = member.view();
            // Records never go back.
            for node in &world.nodes {
                let Some(known) = member.known(&node.name) else { continue };
                let entry = self.versions.entry((a, node.name.clone())).or_insert((world.nodes[a].starts, known));
                if entry.0 == world.nodes[a].starts && known < entry.1 {
                    return Err(format!("at {} the records of {} went back from {:?} to {known:?}", world.nodes[a].name, node.name, entry.1));
                }
                *entry = (world.nodes[a].starts, known);
            }
            for b in (0..count).filter(|b| *b != a) {
                let name = &world.nodes[b].name;
                let Some((health, reachable)) = health(view, name) else { return Err(format!("{name} is not in a view")) };
                // The living are left alone.
                if central(a) && central(b) && settled(a) && settled(b) && (health == Health::Dead || !reachable) {
                    return Err(format!("{} takes {name} for {health:?} (reachable: {reachable}), which is alive and well", world.nodes[a].name));
                }
                if !central(a) || !settled(a) {
                    continue;
                }
                let Some(off) = self.off_since[b] else { continue };
                let waited = world.now - off.max(world.nodes[a].touched);
                let bound = if world.loss > 0.0 || world.lag_ms > 20 { DEATH_KNOWN_BADLY_MS } else { DEATH_KNOWN_MS };
                if !reachable && off >= world.nodes[a].touched + SETTLE_MS && self.known.insert((a, b), true).is_none() {
                    self.figures.deaths_ms.push(world.now - off);
                }
                if reachable && waited > bound {
                    return Err(format!("{} takes {name} for {health:?}, which has been off for {} ms", world.nodes[a].name, world.now - off));
                }
            }
        }
        let well: Vec<usize> = running.iter().copied().filter(|a| central(*a) && settled(*a)).collect();
        self.changes(world, &well)?;
        self.sides(world)
    }

    fn changes(&mut self, world: &World, well: &[usize]) -> Result<(), String> {
        self.pending.extend(world.changes[self.changes_seen..].iter().cloned());
        self.changes_seen = world.changes.len();
        let mut late = None;
        self.pending.retain(|(at, owner, uid)| {
            let superseded = world.changes.iter().any(|(later, node, other)| later > at && node == owner && other == uid);
            if superseded || !well.contains(owner) || world.nodes[*owner].touched > *at {
                return false;
            }
            let node = &world.nodes[*owner];
            let wanted = node.pods.get(uid).copied();
            let has_it = |a: &usize| {
                let told = world.nodes[*a].member.as_ref().and_then(|member| member.view().endpoints.get(&node.name)?.get(uid).cloned());
                told.map(|endpoint| (endpoint.address, endpoint.ready)) == wanted
            };
            match well.iter().find(|a| !has_it(a)) {
                None => {
                    self.figures.changes_ms.push(world.now - at);
                    false
                }
                Some(a) => {
                    if world.now - at > CHANGE_KNOWN_MS {
                        late = Some(format!("{} has not heard of a change of {uid} for {} ms", world.nodes[*a].name, world.now - at));
                    }
                    true
                }
            }
        });
        late.map_or(Ok(()), Err)
    }

    /// A side with half of all nodes or less kills nobody, when all were well before the partition.
    fn sides(&mut self, world: &World) -> Result<(), String> {
        let count = world.nodes.len();
        let all_run = (0..count).all(|i| world.is_running(i) && !world.is_paused(i));
        let whole = world.cut.iter().flatten().all(|cut| !cut);
        if all_run && whole {
            self.all_well_since.get_or_insert(world.now);
            self.sides = None;
            return Ok(());
        }
        let was_well = self.all_well_since.take().is_some_and(|since| world.now - since > 9_000);
        if was_well && all_run {
            self.sides = Some((0..count).map(|b| world.cut[0][b] || world.cut[b][0]).collect());
        }
        let Some(sides) = self.sides.clone().filter(|_| all_run) else {
            self.sides = None;
            return Ok(());
        };
        let is_partition = (0..count).all(|a| (0..count).all(|b| world.cut[a][b] == (sides[a] != sides[b])));
        if !is_partition {
            return Ok(());
        }
        for a in 0..count {
            let side = sides.iter().filter(|side| **side == sides[a]).count();
            let Some(member) = world.nodes[a].member.as_ref().filter(|_| 2 * side <= count) else { continue };
            for b in (0..count).filter(|b| sides[*b] != sides[a]) {
                if health(member.view(), &world.nodes[b].name).is_some_and(|(health, _)| health == Health::Dead) {
                    return Err(format!("{}, with {side} of {count} nodes, calls {} dead", world.nodes[a].name, world.nodes[b].name));
                }
            }
        }
        Ok(())
    }

    pub fn end(&mut self, world: &World) -> Result<(), String> {
        self.figures.packets = world.packets;
        self.figures.node_seconds = world.now / 1000 * world.nodes.len() as u64;
        let count = world.nodes.len();
        let running = (0..count).filter(|i| world.is_running(*i)).count();
        for a in (0..count).filter(|i| world.is_running(*i)) {
            let Some(member) = &world.nodes[a].member else { continue };
            for b in 0..count {
                let node = &world.nodes[b];
                let found = health(member.view(), &node.name);
                let wanted = match node.host {
                    // Where packets are lost, somebody is suspected for a moment now and then.
                    Host::Up => (found.filter(|found| *found == (Health::Suspect, true)).map_or(Health::Alive, |(health, _)| health), true),
                    Host::AgentDown => (Health::AgentDown, true),
                    Host::Off if 2 * running > count => (Health::Dead, false),
                    Host::Off => (found.map_or(Health::Suspect, |(health, _)| health), false),
                };
                if found != Some(wanted) {
                    return Err(format!("{} takes {} for {found:?}, not for {wanted:?}", world.nodes[a].name, node.name));
                }
                if node.host != Host::Up {
                    continue;
                }
                let told: BTreeMap<String, _> = member
                    .view()
                    .endpoints
                    .get(&node.name)
                    .into_iter()
                    .flat_map(|all| all.iter())
                    .map(|(uid, e)| (uid.clone(), (e.address, e.ready)))
                    .collect();
                if told != node.pods {
                    return Err(format!("{} has of {}'s endpoints {told:?}, not {:?}", world.nodes[a].name, node.name, node.pods));
                }
                if member.view().nodes[&node.name].api_reachable != node.api {
                    return Err(format!("{} does not know whether {} reaches the API", world.nodes[a].name, node.name));
                }
            }
        }
        Ok(())
    }
}
