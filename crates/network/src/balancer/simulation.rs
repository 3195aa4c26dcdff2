//! The balancer's decisions under a seed: servers that die, hang, return and change, and clients that come and go. The checkers
//! run after every step.
//!
//! - A client that connects reaches a server if any takes connections, at whatever moment.
//! - A connection is cut only where its server is dead and another one is ready for it.
//! - The list is never empty; what it counts is what there is.
//! - When nothing has changed for a while, the connections are spread, and nothing goes to a server that is not well.
//!
//! `REGENT_SEEDS=1000` runs that many, `REGENT_SEED=17` that one.

use super::Server;
use super::servers::{Action, HANGS_AFTER, Health, SLOW_START, Servers, Verdict};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Seeds that every run of the tests goes through.
const SEEDS_DEFAULT: u64 = 100;
const STEP: Duration = Duration::from_millis(250);

/// How a server truly is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Up,
    Unready,
    /// Takes connections and says nothing.
    Hangs,
    Off,
}

struct World {
    rng: StdRng,
    now: Instant,
    servers: Servers,
    truth: BTreeMap<Server, Truth>,
    named: Vec<Server>,
    /// Where each connection goes.
    connections: Vec<Server>,
    told: bool,
}

fn server(number: u8) -> Server {
    Server::at([10, 0, 0, number].into(), 6443)
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..=5);
        let truth: BTreeMap<Server, Truth> = (1..=count).map(|number| (server(number), Truth::Up)).collect();
        let named: Vec<Server> = truth.keys().cloned().collect();
        let local = rng.random_bool(0.2).then(|| [10, 0, 0, 1].into());
        let now = Instant::now();
        let seeds = &named[..rng.random_range(1..=named.len())];
        let mut servers = Servers::new(seeds, &[], local, now);
        servers.learn(&named, now);
        World { rng, now, servers, truth, named, connections: Vec::new(), told: std::env::var("REGENT_SEED").is_ok() }
    }

    fn truth_of(&self, server: &Server) -> Truth {
        self.truth.get(server).copied().unwrap_or(Truth::Off)
    }

    fn take(&mut self, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            let Action::Cut(cut) = action else { continue };
            let view = self.servers.view();
            let health = |server: &Server| view.iter().find(|(known, ..)| known == server).map(|(_, health, _)| *health);
            if health(&cut) != Some(Health::Dead) || !view.iter().any(|(other, health, _)| *other != cut && *health == Health::Ready) {
                return Err(format!("connections to {cut} are cut, though nobody else can take them: {view:?}"));
            }
            self.connections.retain(|server| *server != cut);
            while self.servers.view().iter().any(|(server, _, connections)| *server == cut && *connections > 0) {
                self.servers.closed(&cut);
            }
        }
        Ok(())
    }

    fn check_all(&mut self) -> Result<(), String> {
        for server in self.servers.all() {
            let verdict = match self.truth_of(&server) {
                Truth::Up => Verdict::Ready,
                Truth::Unready => Verdict::Unready,
                Truth::Hangs => Verdict::Slow,
                Truth::Off => Verdict::Gone,
            };
            let actions = self.servers.checked(&server, verdict, self.now);
            self.take(actions)?;
        }
        Ok(())
    }

    /// As the balancer does it: one server after the other, until one takes the connection.
    fn connect(&mut self) -> Result<(), String> {
        let mut tried = Vec::new();
        while let Some(chosen) = self.servers.choose(&tried, self.rng.random(), self.now) {
            if tried.contains(&chosen) {
                return Err(format!("{chosen} is chosen twice"));
            }
            if self.truth_of(&chosen) != Truth::Off {
                self.servers.opened(&chosen);
                self.connections.push(chosen);
                return Ok(());
            }
            let actions = self.servers.checked(&chosen, Verdict::Gone, self.now);
            self.take(actions)?;
            tried.push(chosen);
        }
        match self.truth.iter().find(|(server, truth)| **truth == Truth::Up && self.named.contains(server)) {
            Some((up, _)) => Err(format!("no server is found, though {up} is up; tried {tried:?}")),
            None => Ok(()),
        }
    }

    fn disconnect(&mut self) {
        if !self.connections.is_empty() {
            let index = self.rng.random_range(0..self.connections.len());
            let gone = self.connections.swap_remove(index);
            self.servers.closed(&gone);
        }
    }

    fn rebalance(&mut self) -> Result<(), String> {
        if let Some(from) = self.servers.overloaded(self.now)
            && let Some(index) = self.connections.iter().position(|server| *server == from)
        {
            self.connections.swap_remove(index);
            self.servers.closed(&from);
            self.connect()?;
        }
        Ok(())
    }

    fn strike(&mut self) {
        let all: Vec<Server> = self.truth.keys().cloned().collect();
        let struck = all[self.rng.random_range(0..all.len())].clone();
        let what = match self.rng.random_range(0..8) {
            0 | 1 => Truth::Off,
            2 => Truth::Hangs,
            3 => Truth::Unready,
            4 => {
                // A further server, or one that leaves for good.
                if self.rng.random_bool(0.5) && all.len() < 8 {
                    self.truth.insert(server(all.len() as u8 + 1), Truth::Up);
                }
                self.named = self.truth.keys().filter(|_| self.rng.random_bool(0.8)).cloned().collect();
                let named = self.named.clone();
                self.servers.learn(&named, self.now);
                return;
            }
            _ => Truth::Up,
        };
        if self.told {
            println!("  {struck} is {what:?}");
        }
        self.truth.insert(struck, what);
    }

    fn look(&self) -> Result<(), String> {
        let view = self.servers.view();
        if view.is_empty() {
            return Err("the list is empty".into());
        }
        for (server, _, connections) in &view {
            let there = self.connections.iter().filter(|other| *other == server).count();
            if there != *connections {
                return Err(format!("{server} is said to have {connections} connections, and has {there}"));
            }
        }
        match self.connections.iter().find(|server| !view.iter().any(|(known, ..)| known == *server)) {
            Some(lost) => Err(format!("a connection goes to {lost}, which is not on the list")),
            None => Ok(()),
        }
    }

    /// When nothing has changed for a while.
    fn settled(&mut self) -> Result<(), String> {
        let well: Vec<Server> = self.named.iter().filter(|server| self.truth_of(server) == Truth::Up).cloned().collect();
        if well.is_empty() {
            return Ok(());
        }
        let astray = self.connections.iter().find(|server| matches!(self.truth_of(server), Truth::Off | Truth::Hangs));
        if let Some(astray) = astray {
            return Err(format!("a connection still goes to {astray}, which is {:?}, though {well:?} are up", self.truth_of(astray)));
        }
        let before = self.connections.len();
        self.connect()?;
        let chosen = self.connections.get(before).ok_or("a connection went nowhere")?;
        if self.truth_of(chosen) != Truth::Up {
            return Err(format!("a new connection goes to {chosen}, which is {:?}", self.truth_of(chosen)));
        }
        Ok(())
    }
}

fn run(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    for round in 0..12 {
        world.strike();
        for step in 0..world.rng.random_range(1..80) {
            let at = |failure: String| format!("round {round}, step {step}: {failure}");
            // Checks and clients are not in step.
            for _ in 0..world.rng.random_range(0..4) {
                world.connect().map_err(at)?;
            }
            for _ in 0..world.rng.random_range(0..4) {
                world.disconnect();
            }
            world.check_all().map_err(at)?;
            if step % 8 == 0 {
                world.rebalance().map_err(at)?;
            }
            world.look().map_err(at)?;
            world.now += STEP;
        }
    }
    let calm = (HANGS_AFTER + SLOW_START).as_millis() / STEP.as_millis() + 8 * 100;
    for step in 0..calm {
        world.check_all()?;
        if step % 8 == 0 {
            world.rebalance()?;
        }
        world.look()?;
        world.now += STEP;
    }
    world.settled()
}

#[test]
fn seeds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("REGENT_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("REGENT_SEEDS").unwrap_or(SEEDS_DEFAULT)),
    };
    let failures: Vec<(u64, String)> = (first..first + count).filter_map(|seed| run(seed).err().map(|failure| (seed, failure))).collect();
    for (seed, failure) in &failures {
        println!("seed {seed}: {failure}\n  again: REGENT_SEED={seed} cargo test -p network --lib balancer::simulation -- --nocapture");
    }
    assert!(failures.is_empty(), "{} of {count} seeds failed, first {}", failures.len(), failures[0].0);
}
