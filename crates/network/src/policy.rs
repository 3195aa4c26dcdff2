//! NetworkPolicies: what pods of this node may send and receive, as an nftables table of its own.
//!
//! ```text
//! policies --(any at all?)--> pods, namespaces --rules (pure)--> Table --transaction--> nft
//! ```
//!
//! As long as there is no policy nothing else is watched, and the table is empty. Only pods that are on this node have chains
//! here: what comes to them, and what goes from them, is judged where they are.
//!
//! What must stay true: the kernel's table is untouched until policies (and, where there are any, pods and namespaces) are
//! known, so that a restarted agent opens nothing that was closed; a transaction goes in whole or not at all.

pub mod rules;

use std::collections::BTreeSet;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::rules::{Seen, World};
use crate::limits;
use crate::nft::Nft;
use crate::services::retry_ms;
use crate::table::Table;

/// The table that this component owns, in family `ip`.
pub const TABLE: &str = "regent-policies";

/// What it needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// The process' informers.
    pub informers: Informers,
}

/// A pod's UID.
type Owner = String;

/// Keeps the table as the policies say, until `shutdown`. It stays in the kernel after that.
pub async fn run(config: Config, nft: Nft, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = enforce(config, nft) => {}
    }
}

async fn enforce(config: Config, nft: Nft) {
    let policies = config.informers.all::<NetworkPolicy>();
    policies.synced().await;
    let mut policy_changes = policies.subscribe();
    while policies.count() == 0 {
        // A table that an earlier run has left is emptied too.
        settle(&nft, &mut Table::<Owner>::new(TABLE, rules::base()), true).await;
        if policy_changes.next().await.is_none() {
            return;
        }
    }
    let (pods, namespaces) = (config.informers.all::<Pod>(), config.informers.all::<Namespace>());
    tokio::join!(pods.synced(), namespaces.synced());
    let (mut pod_changes, mut namespace_changes) = (pods.subscribe(), namespaces.subscribe());
    let mut table = Table::new(TABLE, rules::base());
    let mut whole = true;
    loop {
        // Whatever comes at once belongs to one transaction.
        let gathered = Instant::now() + Duration::from_millis(limits::SYNC_PERIOD_MIN_MS);
        let mut open = true;
        while open {
            tokio::select! {
                () = sleep_until(gathered) => open = false,
                Some(_) = policy_changes.next() => {}
                Some(_) = namespace_changes.next() => {}
                Some(_) = pod_changes.next() => {}
            }
        }
        let world = World {
            policies: policies.list().iter().map(|policy| (**policy).clone()).collect(),
            pods: pods.list().iter().filter_map(|pod| Seen::of(pod)).collect(),
            namespaces: namespaces
                .list()
                .iter()
                .filter_map(|each| Some((each.metadata.name.clone()?, each.metadata.labels.clone().unwrap_or_default())))
                .collect(),
        };
        wish(&mut table, &world, &config.node_name);
        settle(&nft, &mut table, whole).await;
        whole = false;
        tokio::select! {
            Some(_) = policy_changes.next() => {}
            Some(_) = namespace_changes.next() => {}
            Some(_) = pod_changes.next() => {}
            else => return,
        }
    }
}

/// What every pod of this node wants in the table.
fn wish(table: &mut Table<Owner>, world: &World, node_name: &str) {
    let mut wishing: BTreeSet<Owner> = BTreeSet::new();
    if !world.policies.is_empty() {
        for pod in world.pods.iter().filter(|pod| pod.node == node_name) {
            if let Some(fragment) = rules::fragment(pod, world) {
                table.set(&pod.uid, Some(fragment));
                wishing.insert(pod.uid.clone());
            }
        }
    }
    let gone: Vec<Owner> = table.owners().filter(|owner| !wishing.contains(*owner)).cloned().collect();
    for owner in gone {
        table.set(&owner, None);
    }
}

/// Brings the table into the kernel, however often that must be tried.
async fn settle(nft: &Nft, table: &mut Table<Owner>, mut whole: bool) {
    let mut failures = 0;
    loop {
        let transaction = if whole { Some(table.whole()) } else { table.changes() };
        let result = match &transaction {
            Some(transaction) => nft.apply(transaction).await,
            None => Ok(()),
        };
        match result {
            Ok(()) => return table.committed(),
            Err(error) => {
                let wait = retry_ms(failures);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    wait_ms = wait,
                    "network policies are not up to date; the kernel keeps what it has"
                );
                failures = failures.saturating_add(1);
                whole = true;
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_of_this_node_have_chains_and_leave_none_behind() {
        let pod = |name: &str, node: &str, last: u8| {
            let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "ns"}, "spec": {"nodeName": node, "containers": []},
                "status": {"podIP": format!("10.0.0.{last}")}});
            Seen::of(&serde_json::from_value(pod).unwrap()).unwrap()
        };
        let closed: NetworkPolicy =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"podSelector": {}}})).unwrap();
        let mut world = World { policies: vec![closed], pods: vec![pod("a", "here", 1), pod("b", "there", 2)], ..World::default() };
        let mut table = Table::new(TABLE, rules::base());
        wish(&mut table, &world, "here");
        let text = table.whole();
        assert!(text.contains("10.0.0.1") && !text.contains("10.0.0.2"), "{text}");
        table.committed();
        world.policies.clear();
        wish(&mut table, &world, "here");
        assert_eq!(table.owners().count(), 0);
        assert!(table.changes().is_some());
    }
}
