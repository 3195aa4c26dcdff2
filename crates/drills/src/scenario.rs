//! What a drill is: a name, what it shows, the topology that it needs, what it promises, and its steps.

use crate::{Result, expectation::Expectation, stage::Stage};
use futures::future::BoxFuture;

/// Where the servers keep their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    Sqlite,
    /// An etcd member on every server.
    Etcd,
    /// etcd members on nodes of their own.
    ExternalEtcd,
}

/// The cluster that a drill needs. Drills with equal topologies share a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topology {
    pub servers: usize,
    pub workers: usize,
    pub store: Store,
    /// Further flags, as COMPONENT=FLAG. What is not here is at Kubernetes' default.
    pub flags: &'static [&'static str],
}

impl Topology {
    /// As people say it.
    pub fn describe(&self, overrides: &[String]) -> String {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let store = match self.store {
            Store::Sqlite => "SQLite",
            Store::Etcd => "etcd on the servers",
            Store::ExternalEtcd => "external etcd",
        };
        let flags = self.flags(overrides);
        let said = flags.iter().map(|(component, flag)| format!("{component} {flag}")).collect::<Vec<_>>().join(", ");
        let tail = if said.is_empty() { "all flags at their defaults".to_owned() } else { said };
        let (servers, workers) = (self.servers, self.workers);
        format!("{servers} server{}, {workers} worker{}, {store}; {tail}", plural(servers), plural(workers))
    }

    /// Its flags by component, with overrides in place of those of the same name.
    pub fn flags(&self, overrides: &[String]) -> Vec<(String, String)> {
        let split = |text: &str| text.split_once('=').map(|(component, flag)| (component.to_owned(), flag.to_owned()));
        let name = |flag: &(String, String)| (flag.0.clone(), flag.1.split('=').next().unwrap_or_default().to_owned());
        let overrides: Vec<_> = overrides.iter().filter_map(|text| split(text)).collect();
        let own = self.flags.iter().filter_map(|text| split(text));
        let mut all: Vec<_> = own.filter(|flag| !overrides.iter().any(|other| name(other) == name(flag))).collect();
        all.extend(overrides);
        all
    }
}

/// The steps of a drill.
pub type Steps = for<'a> fn(&'a Stage) -> BoxFuture<'a, Result<()>>;

/// One drill.
pub struct Scenario {
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// What Kubernetes does, and who says so.
    pub kubernetes: &'static str,
    pub topology: Topology,
    /// What is broken on purpose with `--sabotage`, which must turn the verdict.
    pub sabotage: &'static str,
    pub expects: &'static [Expectation],
    pub steps: Steps,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_takes_the_place_of_the_flag_of_its_name() {
        let flags = &["controller-manager=--node-monitor-grace-period=20s", "kubelet=--max-pods=9"];
        let topology = Topology { servers: 1, workers: 3, store: Store::Sqlite, flags };
        let set = ["controller-manager=--node-monitor-grace-period=50s".to_owned()];
        let pairs = topology.flags(&set);
        assert_eq!(pairs.len(), 2);
        assert!(pairs.contains(&("controller-manager".into(), "--node-monitor-grace-period=50s".into())));
        assert!(topology.describe(&[]).starts_with("1 server, 3 workers, SQLite; controller-manager --node"));
    }
}
