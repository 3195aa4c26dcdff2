//! How much of each zone is gone, and how fast pods may be evicted from its nodes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::common::owner::labels_of;

/// Below this many nodes gone, a zone counts as normal whatever their share.
const GONE_MIN: usize = 3;

/// The zone of a node: its region and zone labels.
pub(super) fn of(node: &Node) -> String {
    let label = |name: &str| labels_of(node).get(name).map(String::as_str).unwrap_or_default();
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Normal,
    /// Most nodes are gone.
    Partial,
    /// All are.
    Full,
}

#[derive(Debug)]
struct Zone {
    health: Health,
    /// Evictions per second.
    rate: f64,
    /// Evictions that may happen now; at most one is saved up.
    allowance: f64,
    refilled: Timestamp,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Zones(BTreeMap<String, Zone>);

impl Zones {
    /// Takes in which nodes of which zones are ready.
    pub(super) fn judge(&mut self, nodes: impl Iterator<Item = (String, bool)>, now: Timestamp, options: &crate::Options) {
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (zone, ready) in nodes {
            let (here, gone) = counts.entry(zone).or_default();
            *if ready { here } else { gone } += 1;
        }
        self.0.retain(|zone, _| counts.contains_key(zone));
        for (zone, (here, gone)) in counts {
            let total = here + gone;
            let health = if here == 0 && gone > 0 {
                Health::Full
            } else if gone >= GONE_MIN && gone as f64 / total as f64 >= options.unhealthy_zone_threshold {
                Health::Partial
            } else {
                Health::Normal
            };
            let rate = match health {
                Health::Normal | Health::Full => options.node_eviction_rate,
                Health::Partial if total > options.large_cluster_size_threshold => options.secondary_node_eviction_rate,
                Health::Partial => 0.0,
            };
            let zone = self.0.entry(zone).or_insert(Zone { health, rate, allowance: 1.0, refilled: now });
            let past_s = now.duration_since(zone.refilled).as_secs_f64().max(0.0);
            zone.allowance = (zone.allowance + past_s * zone.rate).min(1.0);
            (zone.refilled, zone.health, zone.rate) = (now, health, rate);
        }
    }

    /// Whether every node of every zone is gone: then nobody is evicted.
    pub(super) fn all_gone(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|zone| zone.health == Health::Full)
    }

    /// Whether pods may be evicted from one more node of the zone now.
    pub(super) fn grant(&mut self, zone: &str) -> bool {
        let Some(zone) = self.0.get_mut(zone) else { return false };
        let granted = zone.rate > 0.0 && zone.allowance >= 1.0;
        if granted {
            zone.allowance -= 1.0;
        }
        granted
    }
}
