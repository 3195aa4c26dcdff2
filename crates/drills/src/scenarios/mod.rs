//! The drills. One is one file and one line here.

mod agent_restarted_without_master;
mod api_server_stopped;
mod asymmetric_partition;
mod backup_and_restore;
mod certificate_expiry;
mod clock_jumps;
mod container_crashes_without_master;
mod controller_manager_stopped;
mod deleted_before_outage_stays_deleted;
mod dns_restarted;
mod drain_and_uncordon;
mod every_node_reboots_without_master;
mod external_etcd_member_lost;
mod kubelet_stopped;
mod leader_killed;
mod long_outage;
mod master_link_cut;
mod master_power_cut;
mod master_returns_after_reboots;
mod master_with_workloads_dies;
mod masters;
mod masters_restored;
mod one_of_three_masters_lost;
mod pod_out_of_memory;
mod pod_unready_without_master;
mod proxy_and_dns_restarted_without_master;
mod proxy_restarted;
mod quorum_lost;
mod random_link_cuts;
mod recover_on_another_node;
mod rolling_restart_of_masters;
mod scheduler_stopped;
mod second_node_dies_without_master;
mod server_killed_under_load;
mod snapshots;
mod store_corrupted;
mod without_master;
mod worker_power_cut;
mod worker_reboots_without_master;

use crate::scenario::{Scenario, Store, Topology};

/// Every drill, in the order in which a person would meet it.
pub const ALL: &[&Scenario] = &[
    &api_server_stopped::SCENARIO,
    &scheduler_stopped::SCENARIO,
    &controller_manager_stopped::SCENARIO,
    &proxy_restarted::SCENARIO,
    &dns_restarted::SCENARIO,
    &drain_and_uncordon::SCENARIO,
    &kubelet_stopped::SCENARIO,
    &worker_power_cut::SCENARIO,
    &server_killed_under_load::SCENARIO,
    &backup_and_restore::SCENARIO,
    &store_corrupted::SCENARIO,
    &certificate_expiry::SCENARIO,
    &leader_killed::SCENARIO,
    &one_of_three_masters_lost::SCENARIO,
    &rolling_restart_of_masters::SCENARIO,
    &quorum_lost::SCENARIO,
    &masters_restored::SCENARIO,
    &external_etcd_member_lost::SCENARIO,
    &master_power_cut::SCENARIO,
    &proxy_and_dns_restarted_without_master::SCENARIO,
    &agent_restarted_without_master::SCENARIO,
    &container_crashes_without_master::SCENARIO,
    &pod_unready_without_master::SCENARIO,
    &second_node_dies_without_master::SCENARIO,
    &worker_reboots_without_master::SCENARIO,
    &every_node_reboots_without_master::SCENARIO,
    &master_with_workloads_dies::SCENARIO,
    &recover_on_another_node::SCENARIO,
    &master_returns_after_reboots::SCENARIO,
    &deleted_before_outage_stays_deleted::SCENARIO,
    &long_outage::SCENARIO,
    &master_link_cut::SCENARIO,
    &asymmetric_partition::SCENARIO,
    &random_link_cuts::SCENARIO,
    &pod_out_of_memory::SCENARIO,
    &clock_jumps::SCENARIO,
];

/// The drill of this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// Waiting times that Kubernetes sets to minutes, shortened: silence until NotReady (50 s), and how long pods stay on such
/// a node (300 s).
const SHORTENED: &[&str] = &[
    "controller-manager=--node-monitor-grace-period=20s",
    "apiserver=--default-not-ready-toleration-seconds=5",
    "apiserver=--default-unreachable-toleration-seconds=5",
];

/// One server on SQLite and three workers: what most drills need.
const SINGLE: Topology = Topology { servers: 1, workers: 3, store: Store::Sqlite, flags: SHORTENED };

/// The same, where certificates are signed for two minutes.
const SHORT_LIVED: Topology = Topology { flags: &["controller-manager=--cluster-signing-duration=2m"], ..SINGLE };

/// The same, where three nodes have a copy of the server's store, and all reach the API through their balancers.
const RECOVERABLE: Topology = Topology {
    flags: &[
        "controller-manager=--node-monitor-grace-period=20s",
        "apiserver=--default-not-ready-toleration-seconds=5",
        "apiserver=--default-unreachable-toleration-seconds=5",
        "apiserver=--store-copy-nodes=server-1,worker-1,worker-2",
        "kubelet=--api-servers=https://172.30.0.11:6443",
        "kubelet=--balancer-address=127.0.0.1:6444",
        "proxy=--api-servers=https://172.30.0.11:6443",
        "proxy=--balancer-address=127.0.0.1:6444",
        "dns=--api-servers=https://172.30.0.11:6443",
        "dns=--balancer-address=127.0.0.1:6444",
    ],
    ..SINGLE
};

/// The same, where the time of day of the nodes' components follows a file on each node's disk (Debian's libfaketime).
const CLOCKS: Topology = Topology {
    flags: &[
        "controller-manager=--node-monitor-grace-period=20s",
        "apiserver=--default-not-ready-toleration-seconds=5",
        "apiserver=--default-unreachable-toleration-seconds=5",
        "kubelet=env:LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "kubelet=env:FAKETIME_TIMESTAMP_FILE={disk}/clock-offset",
        "kubelet=env:FAKETIME_NO_CACHE=1",
        "kubelet=env:FAKETIME_DONT_FAKE_MONOTONIC=1",
        "proxy=env:LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "proxy=env:FAKETIME_TIMESTAMP_FILE={disk}/clock-offset",
        "proxy=env:FAKETIME_NO_CACHE=1",
        "proxy=env:FAKETIME_DONT_FAKE_MONOTONIC=1",
        "dns=env:LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "dns=env:FAKETIME_TIMESTAMP_FILE={disk}/clock-offset",
        "dns=env:FAKETIME_NO_CACHE=1",
        "dns=env:FAKETIME_DONT_FAKE_MONOTONIC=1",
    ],
    ..SINGLE
};

/// Three servers, each with a member of etcd, behind a real HAProxy, and two workers.
const MASTERS: Topology = Topology { servers: 3, workers: 2, store: Store::Etcd, flags: SHORTENED };

/// Two servers, and three members of etcd on nodes of their own.
const EXTERNAL: Topology = Topology { servers: 2, workers: 2, store: Store::ExternalEtcd, flags: SHORTENED };

/// The only server of [`SINGLE`].
const SERVER: &str = "server-1";
/// The worker that is broken, where one is.
const VICTIM: &str = "worker-2";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_drill_says_what_it_is_and_can_fail() {
        let names: BTreeSet<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len(), "two drills of one name");
        for scenario in ALL {
            let name = scenario.name;
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}: lower case and dashes");
            for (what, text) in [("shows", scenario.shows), ("kubernetes", scenario.kubernetes), ("sabotage", scenario.sabotage)] {
                assert!(text.len() > 15 && !text.contains('\n'), "{name}: {what} is one sentence");
            }
            assert!(scenario.shows.ends_with('.'), "{name}: a sentence ends");
            assert!(scenario.topology.workers >= 1, "{name}: a drill needs a worker");
            for flag in scenario.topology.flags {
                assert!(flag.contains("=--") || flag.contains("=env:"), "{name}: {flag} is not COMPONENT=FLAG");
            }
        }
    }
}
