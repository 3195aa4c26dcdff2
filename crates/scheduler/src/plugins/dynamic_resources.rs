//! DynamicResources: a pod goes where the devices of its ResourceClaims can be used, and claims without devices get some that can be
//! used on its node ([`crate::devices`]).

use crate::devices::Needs;
use crate::framework::{Causes, Filter, Filtering, Plugin, Refusal, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct DynamicResources;

struct Wanted(Needs);

impl Filter<'_> for Wanted {
    fn check(&self, node: &NodeInfo) -> Verdict {
        match self.0.on(node) {
            Ok(_) => Verdict::Pass,
            Err(reason) => Verdict::unresolvable(reason),
        }
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    /// Nothing can be said of a pod whose claims are not made yet.
    fn gate(&self, pod: &PodInfo) -> Option<String> {
        pod.devices.iter().any(|used| used.claim.is_none()).then(|| format!("pod \"{}\": ResourceClaim not created yet", pod.full_name()))
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        if pod.devices.is_empty() {
            return Filtering::Skip;
        }
        match snapshot.devices.needs(pod) {
            Ok(needs) if needs.is_empty() => Filtering::Skip,
            Ok(needs) => Filtering::Each(Box::new(Wanted(needs))),
            Err(reason) => Filtering::Never(Refusal { reasons: vec![reason], resolvable: false }),
        }
    }

    fn unblocked_by(&self) -> Causes {
        Causes::DEVICES.and(Causes::NODE_ADDED).and(Causes::NODE_LABELS).and(Causes::POD_ITSELF)
    }
}
