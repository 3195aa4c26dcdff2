//! NodeResourcesFit: what the pods on a node ask for must not exceed what the node can give; emptier nodes are better
//! (LeastAllocated over CPU and memory, with an assumption for pods that ask for nothing).

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, Refusal, SCORE_MAX, Score, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodeResourcesFit;

struct Fit<'a>(&'a PodInfo);

impl Filter<'_> for Fit<'_> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        let mut reasons = Vec::new();
        let mut resolvable = true;
        if node.pods.len() as i64 + 1 > node.pods_max {
            reasons.push("Too many pods".to_owned());
        }
        let wanted = &self.0.requests;
        let named = [("cpu", wanted.cpu_milli), ("memory", wanted.memory), ("ephemeral-storage", wanted.ephemeral_storage)];
        let others = wanted.others.iter().map(|(name, amount)| (name.as_str(), *amount));
        for (name, amount) in named.into_iter().chain(others) {
            let allocatable = node.allocatable.get(name);
            if amount > 0 && amount > allocatable - node.requested.get(name) {
                reasons.push(format!("Insufficient {name}"));
                // A node that is too small even when empty is not worth evicting anyone from.
                resolvable &= amount <= allocatable;
            }
        }
        if reasons.is_empty() {
            return Verdict::Pass;
        }
        Verdict::Refused(Refusal { reasons, resolvable })
    }
}

struct LeastAllocated<'a>(&'a PodInfo);

impl Score for LeastAllocated<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let capacities = [node.allocatable.cpu_milli, node.allocatable.memory];
        let used = [node.assumed.0 + self.0.assumed.0, node.assumed.1 + self.0.assumed.1];
        let mut sum = 0;
        let mut count = 0;
        for (capacity, used) in capacities.into_iter().zip(used) {
            if capacity > 0 {
                count += 1;
                if used <= capacity {
                    sum += ((i128::from(capacity - used)) * i128::from(SCORE_MAX) / i128::from(capacity)) as i64;
                }
            }
        }
        if count == 0 { 0 } else { sum / count }
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        Filtering::Each(Box::new(Fit(pod)))
    }

    fn score<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(LeastAllocated(pod)))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::POD_FREED.and(Causes::NODE_ADDED).and(Causes::NODE_ALLOCATABLE).and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        happening.node.as_ref().is_none_or(|node| Fit(pod).check(node) == Verdict::Pass)
    }
}
