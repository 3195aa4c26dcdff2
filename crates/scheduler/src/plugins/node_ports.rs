//! NodePorts: two pods on one node can't take the same host port.

use client::placement::{HostPort, PORTS_REFUSED};

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Filter<'_> for Wanted<'_> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        let taken = |port: &HostPort| node.host_ports.iter().any(|each| each.conflicts(port));
        if self.0.iter().any(taken) {
            return Verdict::refused(PORTS_REFUSED);
        }
        Verdict::Pass
    }
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        if pod.host_ports.is_empty() {
            return Filtering::Skip;
        }
        Filtering::Each(Box::new(Wanted(&pod.host_ports)))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::POD_FREED.and(Causes::NODE_ADDED)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        happening.pod.as_ref().is_none_or(|gone| gone.host_ports.iter().any(|freed| pod.host_ports.iter().any(|wanted| wanted.conflicts(freed))))
    }
}
