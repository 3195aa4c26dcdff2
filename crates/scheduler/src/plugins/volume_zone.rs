//! VolumeZone: a volume that says in its labels which zone or region it is in ties its pods to nodes there.

use crate::framework::{Causes, Filter, Filtering, Plugin, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct VolumeZone;

/// The labels that say so, each with its older name.
const LABELS: [[&str; 2]; 2] = [
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"],
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"],
];

/// A label, by either name, and the values that will do.
struct Places(Vec<([&'static str; 2], Vec<String>)>);

impl Filter<'_> for Places {
    fn check(&self, node: &NodeInfo) -> Verdict {
        let value = |names: &[&str; 2]| names.iter().find_map(|name| node.labels().get(*name));
        // A cluster that knows no zones has none to be wrong about.
        let zoned = LABELS.iter().any(|names| value(names).is_some());
        let fits = |(names, values): &([&'static str; 2], Vec<String>)| value(names).is_some_and(|value| values.contains(value));
        if !zoned || self.0.iter().all(fits) { Verdict::Pass } else { Verdict::unresolvable("node(s) had no available volume zone") }
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        let Ok(needs) = snapshot.volumes.needs(pod) else { return Filtering::Skip };
        let mut places = Vec::new();
        for volume in needs.bound() {
            let labels = volume.metadata.labels.iter().flatten();
            for (name, value) in labels {
                if let Some(names) = LABELS.iter().find(|names| names.contains(&name.as_str())) {
                    places.push((*names, value.split("__").map(str::to_owned).collect()));
                }
            }
        }
        if places.is_empty() { Filtering::Skip } else { Filtering::Each(Box::new(Places(places))) }
    }

    fn unblocked_by(&self) -> Causes {
        Causes::VOLUMES.and(Causes::NODE_ADDED).and(Causes::NODE_LABELS)
    }
}
