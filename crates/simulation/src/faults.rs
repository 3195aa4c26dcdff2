//! The faults that a seed plans, and the run of a world from its first moment to its last.

use crate::{
    agent,
    checks::{Checker, Figures},
    sabotage::Sabotage,
    server,
    world::{DISK_MS, NAMESPACE, SERVICES, Shape, World, node_name, pod_of},
};
use jiff::Timestamp;
use rand::Rng;
use std::{hash::Hasher, path::Path, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// When the first fault strikes: everything is up and knows everything.
const FIRST_MS: u64 = 14_000;
/// From the last fault to the end: a lease runs out, everything is listed anew, and all converges.
const CALM_MS: u64 = 34_000;
/// How often the checkers look.
const LOOK_MS: u64 = 100;
/// So many more looks may be taken at the end for one at which all is as it must be.
const END_LOOKS: usize = 20;
/// A pause up to this may be suspected and must not be believed: nothing is lost by it.
const BRIEF_MS: u64 = 1_000;

/// Something that happens to the world.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No power.
    PowerOff(usize),
    /// Power, and everything starts; with `wiped`, on an empty disk.
    PowerOn {
        /// Which host.
        host: usize,
        /// See there.
        wiped: bool,
    },
    /// The agent is killed.
    StopAgent(usize),
    /// And started.
    StartAgent(usize),
    /// The server is killed.
    StopServer(usize),
    /// And started.
    StartServer(usize),
    /// The server says nothing any more, or does again.
    Hang(usize, bool),
    /// Nothing on the host runs for a while.
    Pause(usize, u64),
    /// These on one side, all others on the other.
    Partition(Vec<usize>),
    /// What the first sends, the second does not get.
    CutOneWay(usize, usize),
    /// Nothing passes between the two.
    Cut(usize, usize),
    /// Nothing passes between this one and the servers.
    CutFromServers(usize),
    /// Every link is whole.
    Heal,
    /// A clock shows something else.
    Clock(usize, i64),
    /// A disk takes so long for a commit.
    Disk(usize, u64),
    /// The readiness of some pod turns.
    Readiness,
    /// Some pod's container ends.
    Crash,
    /// Somebody deletes a pod, on that host or anywhere, or makes one.
    Delete(Option<usize>),
    /// See above.
    Create(usize),
    /// The store forgets what was before.
    Compact,
}

impl Fault {
    fn strike(self, world: &World) {
        world.tell(|| format!("{self:?}"));
        world.lock().note(&format!("{self:?}"));
        let all = || 0..world.shape.hosts;
        match self {
            Fault::PowerOff(host) => {
                world.power_off(host);
            }
            Fault::PowerOn { host, wiped } => {
                if world.lock().hosts[host].is_on {
                    return;
                }
                if wiped {
                    agent::wipe(world, host);
                } else if world.sabotage == Some(Sabotage::Disk) {
                    agent::copy_disk(world, host, true);
                }
                world.lock().hosts[host].is_on = true;
                server::start(world, host);
                agent::start(world, host);
            }
            Fault::StopAgent(host) => world.kill_agent(host),
            Fault::StartAgent(host) => agent::start(world, host),
            Fault::StopServer(host) => world.kill_server(host),
            Fault::StartServer(host) => server::start(world, host),
            Fault::Hang(host, hangs) => {
                world.lock().hosts[host].hangs = hangs;
                world.touch([host]);
            }
            Fault::Pause(host, for_ms) => {
                let until = Instant::now() + Duration::from_millis(for_ms);
                world.lock().hosts[host].paused_until = until;
                if for_ms > BRIEF_MS {
                    world.lock().hosts[host].jolt(until);
                    world.touch([host]);
                }
            }
            Fault::Partition(side) => {
                for a in all() {
                    for b in all().filter(|b| side.contains(&a) != side.contains(b)) {
                        world.set_cut(a, b, true);
                    }
                }
            }
            Fault::CutOneWay(a, b) => world.set_cut(a, b, true),
            Fault::Cut(a, b) => {
                world.set_cut(a, b, true);
                world.set_cut(b, a, true);
            }
            Fault::CutFromServers(host) => {
                for server in (0..world.shape.servers).filter(|server| *server != host) {
                    world.set_cut(host, server, true);
                    world.set_cut(server, host, true);
                }
            }
            Fault::Heal => all().for_each(|a| all().for_each(|b| world.set_cut(a, b, false))),
            Fault::Clock(host, by_ms) => world.lock().hosts[host].clock_off_ms = by_ms,
            Fault::Disk(host, takes_ms) => world.lock().hosts[host].disk_ms = takes_ms,
            Fault::Readiness => {
                if let Some((host, uid)) = some_pod(world) {
                    let runtime = &mut world.lock().hosts[host].runtime;
                    runtime.turned.insert(uid.clone(), Instant::now());
                    if !runtime.unready.remove(&uid) {
                        runtime.unready.insert(uid);
                    }
                    world.ran[host].notify_one();
                }
            }
            Fault::Crash => {
                if let Some((host, uid)) = some_pod(world) {
                    let now = world.clock(host).now();
                    let at = Timestamp::from_second(now.as_second()).unwrap_or(now);
                    world.lock().hosts[host].runtime.crash(&uid, at);
                    world.ran[host].notify_one();
                }
            }
            Fault::Delete(_) | Fault::Create(_) if !is_served(world) => {}
            Fault::Delete(host) => {
                let mut state = world.lock();
                let is_there = |pod: &&serde_json::Value| host.is_none_or(|host| pod["spec"]["nodeName"] == node_name(host));
                let pods = state.api.all("pods").filter(is_there);
                let names: Vec<String> = pods.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
                // One of each Service stays, so that there is something to keep.
                let names: Vec<String> = names.into_iter().filter(|name| !name.ends_with("-0")).collect();
                if !names.is_empty() {
                    let chosen = state.rng.random_range(0..names.len());
                    state.api.now_ms = state.now_ms();
                    state.api.delete_object("pods", NAMESPACE, &names[chosen]);
                }
                drop(state);
                world.wrote();
            }
            Fault::Create(number) => {
                let mut state = world.lock();
                let host = state.rng.random_range(0..world.shape.hosts);
                let service = state.rng.random_range(0..SERVICES);
                state.api.now_ms = state.now_ms();
                state.api.create_object("pods", pod_of(service, &format!("app-{service}-new{number}"), host));
                drop(state);
                world.wrote();
            }
            Fault::Compact => world.lock().api.compact(),
        }
    }
}

/// Whether any server takes a write.
fn is_served(world: &World) -> bool {
    let state = world.lock();
    let serves = |host: usize| state.hosts[host].is_on && state.hosts[host].server.runs && !state.hosts[host].hangs;
    (0..world.shape.servers).any(|host| serves(host) && world.has_quorum(&state, host))
}

/// Some pod that runs, and where.
fn some_pod(world: &World) -> Option<(usize, String)> {
    let mut state = world.lock();
    let running: Vec<(usize, String)> = (0..world.shape.hosts)
        .filter(|host| state.hosts[*host].is_on)
        .flat_map(|host| state.hosts[host].runtime.uids().into_iter().map(move |uid| (host, uid)))
        .collect();
    if running.is_empty() {
        return None;
    }
    let chosen = state.rng.random_range(0..running.len());
    running.into_iter().nth(chosen)
}

/// The plan of a world, and when the world ends.
pub fn plan(world: &World) -> (Vec<(u64, Fault)>, u64) {
    let Shape { hosts: count, servers, .. } = world.shape;
    let rng = &mut world.lock().rng;
    let mut plan = Vec::new();
    let mut at = FIRST_MS;
    let strikes = if count > 20 { 1 } else { rng.random_range(2..=4) };
    // As often as not, the servers are away through everything.
    let without_servers = rng.random_bool(0.4);
    if without_servers {
        let is_power = rng.random_bool(0.3);
        for host in 0..servers {
            plan.push((at, if is_power { Fault::PowerOff(host) } else { Fault::StopServer(host) }));
        }
        at += rng.random_range(500..6_000);
    }
    for strike in 0..strikes {
        let host = rng.random_range(0..count);
        let other = (host + rng.random_range(1..count)) % count;
        at += rng.random_range(500..6_000);
        let lasts = rng.random_range(1_000..9_000);
        match rng.random_range(0..21) {
            0..=2 => {
                plan.push((at, Fault::PowerOff(host)));
                plan.push((at + lasts, Fault::PowerOn { host, wiped: rng.random_bool(0.1) }));
            }
            3 => {
                plan.push((at, Fault::StopAgent(host)));
                plan.push((at + lasts, Fault::StartAgent(host)));
            }
            4 => {
                plan.push((at, Fault::StopAgent(host)));
                plan.push((at + lasts / 2, Fault::PowerOff(host)));
                plan.push((at + lasts + 4_000, Fault::PowerOn { host, wiped: false }));
            }
            5 | 6 => {
                let size = rng.random_range(1..=count / 2);
                plan.push((at, Fault::Partition((0..size).map(|i| (host + i) % count).collect())));
                plan.push((at + lasts, Fault::Heal));
            }
            7 => {
                plan.push((at, Fault::Cut(host, other)));
                plan.push((at + lasts, Fault::Heal));
            }
            8 => {
                plan.push((at, Fault::CutOneWay(host, other)));
                plan.push((at + lasts, Fault::Heal));
            }
            9 => {
                plan.push((at, Fault::CutFromServers(host)));
                plan.push((at + lasts, Fault::Heal));
            }
            10 => {
                let for_ms = if rng.random_bool(0.5) { BRIEF_MS / 2..=BRIEF_MS } else { BRIEF_MS..=8_000 };
                plan.push((at, Fault::Pause(host, rng.random_range(for_ms))));
            }
            11 => {
                plan.push((at, Fault::Clock(host, rng.random_range(-100_000_000..100_000_000))));
                plan.push((at, Fault::StopAgent(host)));
                plan.push((at + 300, Fault::StartAgent(host)));
            }
            12 => {
                plan.push((at, Fault::PowerOff(host)));
                plan.push((at + rng.random_range(0..3_000), Fault::PowerOff(other)));
                plan.push((at + lasts + 3_000, Fault::PowerOn { host, wiped: false }));
                plan.push((at + lasts + 3_000, Fault::PowerOn { host: other, wiped: false }));
            }
            13 => {
                // Every node is switched off and on.
                for host in 0..count {
                    plan.push((at + rng.random_range(0..500), Fault::PowerOff(host)));
                    plan.push((at + lasts + rng.random_range(500..2_000), Fault::PowerOn { host, wiped: false }));
                }
            }
            14 | 15 => {
                let server = rng.random_range(0..servers);
                plan.push((at, Fault::StopServer(server)));
                plan.push((at + lasts, Fault::StartServer(server)));
            }
            16 => {
                let server = rng.random_range(0..servers);
                plan.push((at, Fault::Hang(server, true)));
                plan.push((at + lasts, Fault::Hang(server, false)));
            }
            17 => {
                plan.push((at, Fault::Disk(host, rng.random_range(200..3_000))));
                plan.push((at + lasts, Fault::PowerOff(host)));
                plan.push((at + lasts + 2_000, Fault::PowerOn { host, wiped: false }));
                plan.push((at + lasts + 2_000, Fault::Disk(host, DISK_MS)));
            }
            18 => plan.push((at, Fault::Compact)),
            19 => {
                // What was deleted before the servers went must stay so when its node comes back.
                plan.push((at, Fault::Delete(Some(host))));
                plan.extend((0..servers).map(|server| (at + 3_000, Fault::StopServer(server))));
                plan.push((at + 3_500, Fault::PowerOff(host)));
                plan.push((at + 3_500 + lasts, Fault::PowerOn { host, wiped: false }));
                plan.extend((0..servers).map(|server| (at + 8_500 + lasts, Fault::StartServer(server))));
                at += 8_500;
            }
            // Stays off to the end, unless that is where the servers are.
            _ if strike == strikes - 1 && host >= servers => plan.push((at, Fault::PowerOff(host))),
            _ => {}
        }
        for number in 0..rng.random_range(0..5) {
            let when = at + rng.random_range(0..lasts);
            plan.push((
                when,
                match rng.random_range(0..6) {
                    0..=2 => Fault::Readiness,
                    3 => Fault::Crash,
                    4 => Fault::Delete(None),
                    _ => Fault::Create(strike * 10 + number),
                },
            ));
        }
        at += lasts;
    }
    plan.sort_by_key(|(at, _)| *at);
    let last = plan.last().map_or(FIRST_MS, |(at, _)| *at) + 3_000;
    for server in 0..servers {
        plan.push((last, Fault::PowerOn { host: server, wiped: false }));
        plan.push((last, Fault::StartServer(server)));
        plan.push((last, Fault::Hang(server, false)));
    }
    if world.sabotage != Some(Sabotage::Heal) {
        plan.push((last, Fault::Heal));
    } else {
        plan.push((last, Fault::Cut(count - 1, 0)));
    }
    (plan, last + CALM_MS)
}

/// What a run gives.
pub struct Outcome {
    /// What was measured.
    pub figures: Figures,
    /// What two runs of a seed have in common.
    pub trace: u64,
}

/// Runs the world of this seed; its disks are made there.
pub fn run(seed: u64, place: &Path, sabotage: Option<Sabotage>) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let world = World::new(seed, place, sabotage);
        let describe = world.describe();
        world.tell(|| describe.clone());
        let (plan, end) = plan(&world);
        world.begin();
        let began = Instant::now();
        let mut plan = plan.into_iter().peekable();
        let mut checker = Checker::new(&world);
        let mut now = 0;
        while now < end {
            now += LOOK_MS;
            while let Some((at, fault)) = plan.next_if(|(at, _)| *at <= now) {
                sleep_until(began + Duration::from_millis(at)).await;
                fault.strike(&world);
            }
            sleep_until(began + Duration::from_millis(now)).await;
            if sabotage == Some(Sabotage::Disk) && now % 10_000 == 0 {
                (0..world.shape.hosts).for_each(|host| agent::copy_disk(&world, host, false));
            }
            checker.look(&world);
            if let Some(failure) = world.lock().failures.first() {
                return Err(format!("{failure} ({describe})"));
            }
        }
        // Where packets are lost somebody may be suspected at any moment, and be heard at the next.
        let mut at_the_end = checker.end(&world);
        for _ in 0..END_LOOKS {
            if at_the_end.is_ok() {
                break;
            }
            sleep(Duration::from_millis(LOOK_MS)).await;
            checker.look(&world);
            at_the_end = checker.end(&world);
        }
        at_the_end.map_err(|failure| format!("at the end {failure} ({describe})"))?;
        let trace = world.lock().trace.finish();
        Ok(Outcome { figures: checker.figures(&world), trace })
    })
}
