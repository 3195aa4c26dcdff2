//! NodeResourcesBalancedAllocation: nodes on which CPU and memory would be used in like proportion are better.

use crate::framework::{Plugin, SCORE_MAX, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodeResourcesBalancedAllocation;

struct Balance<'a>(&'a PodInfo);

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let share = |used: i64, capacity: i64| (capacity > 0).then(|| (used as f64 / capacity as f64).min(1.0));
        let wanted = &self.0.requests;
        let cpu = share(node.requested.cpu_milli + wanted.cpu_milli, node.allocatable.cpu_milli);
        let memory = share(node.requested.memory + wanted.memory, node.allocatable.memory);
        let deviation = match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * SCORE_MAX as f64) as i64
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        // A pod that asks for nothing changes no balance.
        let asks = pod.requests.cpu_milli > 0 || pod.requests.memory > 0;
        asks.then(|| Box::new(Balance(pod)) as Box<dyn Score>)
    }
}
