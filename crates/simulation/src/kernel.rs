//! A node's kernel, as far as Service routing sees it: it takes nft's transactions, whole or not at all, and is strict.
//!
//! It outlives the agent, and loses all with the power. A transaction that a real kernel would refuse (it names a chain that is not
//! there, deletes what is not there, leaves a map that leads nowhere) is refused here, and that is a failure of the world: the
//! proxy must never write one.

use crate::{sabotage::Sabotage, way::Process, world::World};
use network::nft::{Error, Tables};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

/// What the kernel has.
#[derive(Clone, Default)]
pub struct Kernel {
    is_made: bool,
    chains: BTreeMap<String, Vec<String>>,
    base_chains: BTreeSet<String>,
    sets: BTreeSet<String>,
    elements: BTreeMap<(String, String), String>,
    /// Where each Service's address leads: made anew with every transaction.
    pub routes: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>>,
}

impl Kernel {
    fn apply(&mut self, transaction: &str) -> Result<(), String> {
        let mut is_base = false;
        for line in transaction.lines() {
            if is_base {
                is_base = line != "}";
                if let Some(name) = line.trim().strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
                    self.base_chains.insert(name.to_owned());
                }
                continue;
            }
            let mut words = line.splitn(5, ' ');
            let (verb, what, _family, _table, rest) = (words.next(), words.next(), words.next(), words.next(), words.next());
            let rest = rest.unwrap_or_default();
            let (name, body) = rest.split_once(' ').unwrap_or((rest, ""));
            match (verb.unwrap_or_default(), what.unwrap_or_default()) {
                ("add", "table") => {}
                ("delete", "table") => *self = Kernel::default(),
                ("table", _) => (is_base, self.is_made) = (true, true),
                ("add", "chain") => drop(self.chains.entry(name.to_owned()).or_default()),
                ("flush", "chain") => self.chains.get_mut(name).ok_or_else(|| format!("no chain {name} to flush"))?.clear(),
                ("delete", "chain") => drop(self.chains.remove(name).ok_or_else(|| format!("no chain {name} to delete"))?),
                ("add", "rule") => self.chains.get_mut(name).ok_or_else(|| format!("no chain {name} for a rule"))?.push(body.to_owned()),
                ("add", "set") => drop(self.sets.insert(name.to_owned())),
                ("delete", "set") => drop(self.sets.remove(name)),
                (verb @ ("add" | "delete"), "element") => {
                    let list = body.trim_start_matches("{ ").trim_end_matches(" }");
                    for element in list.split(", ") {
                        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                        let key = (name.to_owned(), key.to_owned());
                        if verb == "add" {
                            if self.elements.get(&key).is_some_and(|known| known != value) {
                                return Err(format!("{key:?} leads elsewhere already"));
                            }
                            self.elements.insert(key, value.to_owned());
                        } else if self.elements.remove(&key).is_none() {
                            return Err(format!("no element {key:?} to delete"));
                        }
                    }
                }
                _ => return Err(format!("{line:?} is not understood")),
            }
        }
        let rules = self.chains.values().flatten();
        for target in rules.chain(self.elements.values()).filter_map(|text| text.split("goto ").nth(1)?.split(' ').next()) {
            if !self.chains.contains_key(target) && !self.base_chains.contains(target) {
                return Err(format!("something leads to {target}, which is not there"));
            }
        }
        self.routes = self.elements.iter().filter(|((map, _), _)| map == "service-ips").filter_map(|((_, key), to)| self.route(key, to)).collect();
        Ok(())
    }

    fn route(&self, key: &str, to: &str) -> Option<(Ipv4Addr, BTreeSet<Ipv4Addr>)> {
        let address = key.split(' ').next()?.parse().ok()?;
        let mut chain = to.strip_prefix("goto ")?;
        loop {
            let rules = self.chains.get(chain)?;
            if let Some(rule) = rules.iter().find(|rule| rule.contains("dnat to")) {
                let words = rule.split("dnat to").nth(1)?.split([' ', ':', ',']);
                return Some((address, words.filter_map(|word| word.parse().ok()).collect()));
            }
            chain = rules.last()?.strip_prefix("goto ")?;
        }
    }
}

/// A process' way to its node's kernel.
pub struct Hands {
    /// The world.
    pub world: World,
    /// Who writes.
    pub process: Process,
}

impl Tables for Hands {
    async fn apply(&self, transaction: &str) -> Result<(), Error> {
        tokio::time::sleep(Duration::from_millis(3)).await;
        self.process.gate().await;
        let mut state = self.world.lock();
        let host = self.process.host;
        state.note(&format!("kernel {host} {transaction}"));
        let mut kernel = state.hosts[host].kernel.clone();
        let half = match self.world.sabotage {
            Some(Sabotage::Kernel) if state.chance(0.2) => transaction.lines().count().div_ceil(2),
            _ => usize::MAX,
        };
        let text: Vec<&str> = transaction.lines().take(half).collect();
        match kernel.apply(&text.join("\n")) {
            Ok(()) => {
                let before = std::mem::replace(&mut state.hosts[host].kernel, kernel);
                let after = state.hosts[host].kernel.routes.clone();
                drop(state);
                for (service, to) in after.iter().filter(|(service, to)| before.routes.get(*service) != Some(to)) {
                    self.world.tell(|| format!("node-{host} sends {service} to {to:?}"));
                }
                Ok(())
            }
            Err(why) => {
                state.fail(format!("the kernel of node-{host} has refused a transaction: {why}\n{transaction}"));
                Err(Error::Refused(why))
            }
        }
    }

    async fn has_chain(&self, _: &str, _: &str) -> Result<bool, Error> {
        self.process.gate().await;
        Ok(self.world.lock().hosts[self.process.host].kernel.is_made)
    }
}
