//! VolumeBinding: a pod goes where the volumes of its claims can be reached, and claims that wait for their pod are given
//! volumes that can be reached from its node ([`crate::volumes`]).

use crate::framework::{Causes, Filter, Filtering, Plugin, Refusal, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::volumes::Needs;

/// The plugin.
pub struct VolumeBinding;

struct Wanted(Needs);

impl Filter<'_> for Wanted {
    fn check(&self, node: &NodeInfo) -> Verdict {
        match self.0.on(node) {
            Ok(_) => Verdict::Pass,
            Err(reason) => Verdict::unresolvable(reason),
        }
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        match snapshot.volumes.needs(pod) {
            Ok(needs) if needs.is_empty() => Filtering::Skip,
            Ok(needs) => Filtering::Each(Box::new(Wanted(needs))),
            Err(reason) => Filtering::Never(Refusal { reasons: vec![reason], resolvable: false }),
        }
    }

    fn unblocked_by(&self) -> Causes {
        Causes::VOLUMES.and(Causes::NODE_ADDED).and(Causes::NODE_LABELS)
    }
}
