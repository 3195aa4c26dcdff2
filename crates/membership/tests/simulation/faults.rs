//! The faults that a seed plans: one kind of life per seed, and a calm end in which all must converge.

use crate::world::{Host, World};
use rand::RngExt;
use std::net::Ipv4Addr;

#[derive(Clone, Debug)]
pub enum Fault {
    PowerOff(usize),
    StopAgent(usize),
    Start {
        node: usize,
        forgetful: bool,
    },
    Pause {
        node: usize,
        for_ms: u64,
    },
    /// These on one side, all others on the other.
    Partition(Vec<usize>),
    /// What one sends, the other does not get.
    CutOneWay(usize, usize),
    Cut(usize, usize),
    Heal,
    ClockJump {
        node: usize,
        by_ms: i64,
    },
    Pod {
        node: usize,
        uid: String,
        pod: Option<(Ipv4Addr, bool)>,
    },
    Api {
        node: usize,
        reachable: bool,
    },
}

impl Fault {
    pub fn strike(self, world: &mut World) {
        match self {
            Fault::PowerOff(node) => world.stop(node, Host::Off),
            Fault::StopAgent(node) => {
                if world.is_running(node) {
                    world.stop(node, Host::AgentDown);
                }
            }
            Fault::Start { node, forgetful } => {
                if !world.is_running(node) {
                    world.start(node, forgetful);
                }
            }
            Fault::Pause { node, for_ms } => world.pause(node, for_ms),
            Fault::Partition(side) => {
                for a in 0..world.nodes.len() {
                    for b in 0..world.nodes.len() {
                        if side.contains(&a) != side.contains(&b) {
                            world.set_cut(a, b, true);
                        }
                    }
                }
            }
            Fault::CutOneWay(a, b) => world.set_cut(a, b, true),
            Fault::Cut(a, b) => {
                world.set_cut(a, b, true);
                world.set_cut(b, a, true);
            }
            Fault::Heal => {
                for a in 0..world.nodes.len() {
                    for b in 0..world.nodes.len() {
                        world.set_cut(a, b, false);
                    }
                }
            }
            Fault::ClockJump { node, by_ms } => world.nodes[node].clock_off += by_ms,
            Fault::Pod { node, uid, pod } => world.change_pod(node, &uid, pod),
            Fault::Api { node, reachable } => world.set_api(node, reachable),
        }
    }
}

/// When all is mended before the end, and how long the end is.
pub const CALM_MS: u64 = 12_000;

/// The plan, and when the world ends.
pub fn plan(world: &mut World) -> (Vec<(u64, Fault)>, u64) {
    let count = world.nodes.len();
    let rng = &mut world.rng;
    let mut plan = Vec::new();
    let mut at: u64 = 6_000;
    let strikes = if count > 20 { 2 } else { 5 };
    for strike in 0..strikes {
        let node = rng.random_range(0..count);
        let other = (node + rng.random_range(1..count)) % count;
        at += rng.random_range(500..9_000);
        let lasts = rng.random_range(1_000..9_000);
        match rng.random_range(0..12) {
            0 | 1 => {
                plan.push((at, Fault::PowerOff(node)));
                plan.push((at + lasts, Fault::Start { node, forgetful: rng.random_bool(0.2) }));
            }
            2 => {
                plan.push((at, Fault::StopAgent(node)));
                plan.push((at + lasts, Fault::Start { node, forgetful: false }));
            }
            // An agent that is stopped, and then its host.
            3 => {
                plan.push((at, Fault::StopAgent(node)));
                plan.push((at + lasts / 2, Fault::PowerOff(node)));
                plan.push((at + lasts + 4_000, Fault::Start { node, forgetful: false }));
            }
            4 | 5 => {
                let size = rng.random_range(1..=count / 2);
                let side = (0..size).map(|i| (node + i) % count).collect();
                plan.push((at, Fault::Partition(side)));
                plan.push((at + lasts, Fault::Heal));
            }
            6 => {
                plan.push((at, Fault::Cut(node, other)));
                plan.push((at + lasts, Fault::Heal));
            }
            7 => {
                plan.push((at, Fault::CutOneWay(node, other)));
                plan.push((at + lasts, Fault::Heal));
            }
            8 => plan.push((at, Fault::Pause { node, for_ms: rng.random_range(100..8_000) })),
            9 => {
                plan.push((at, Fault::ClockJump { node, by_ms: rng.random_range(-100_000_000..100_000_000) }));
                plan.push((at, Fault::StopAgent(node)));
                plan.push((at + 300, Fault::Start { node, forgetful: rng.random_bool(0.3) }));
            }
            10 => {
                plan.push((at, Fault::PowerOff(node)));
                plan.push((at + rng.random_range(0..3_000), Fault::PowerOff(other)));
                plan.push((at + lasts + 3_000, Fault::Start { node, forgetful: false }));
                plan.push((at + lasts + 3_000, Fault::Start { node: other, forgetful: false }));
            }
            // Stays off to the end.
            _ if strike == strikes - 1 => plan.push((at, Fault::PowerOff(node))),
            _ => {}
        }
        for _ in 0..rng.random_range(0..6) {
            let node = rng.random_range(0..count);
            let when = at + rng.random_range(0..lasts);
            let uid = format!("pod-{node}-{}", rng.random_range(0..8));
            let pod = rng.random_bool(0.8).then(|| (Ipv4Addr::new(10, 244, node as u8, rng.random_range(2..250)), rng.random_bool(0.5)));
            plan.push((when, Fault::Pod { node, uid, pod }));
            if rng.random_bool(0.3) {
                plan.push((when, Fault::Api { node, reachable: rng.random_bool(0.5) }));
            }
        }
        at += lasts;
    }
    plan.push((at + 5_000, Fault::Heal));
    plan.sort_by_key(|(at, _)| *at);
    let last = plan.last().map_or(0, |(at, _)| *at);
    (plan, last + CALM_MS)
}
