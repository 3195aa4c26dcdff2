//! NodeName: a pod that names its node can be nowhere else.

use client::placement::NAME_REFUSED;

use crate::framework::{Causes, Filter, Filtering, Plugin, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodeName;

struct Named<'a>(&'a str);

impl Filter<'_> for Named<'_> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        if node.name == self.0 {
            return Verdict::Pass;
        }
        Verdict::unresolvable(NAME_REFUSED)
    }
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        pod.node_name().map_or(Filtering::Skip, |name| Filtering::Each(Box::new(Named(name))))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::NODE_ADDED
    }
}
