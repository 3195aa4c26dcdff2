//! NodeAffinity: `nodeSelector` and required node affinity say where a pod can be, preferred affinity where it would
//! rather be.

use client::placement::AFFINITY_REFUSED;

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, Score, Verdict, normalize_to_max};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodeAffinity;

struct Required<'a>(&'a PodInfo);

impl Filter<'_> for Required<'_> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        if self.0.nodes.matches(&node.name, node.labels()) {
            return Verdict::Pass;
        }
        Verdict::unresolvable(AFFINITY_REFUSED)
    }
}

struct Preferred<'a>(&'a PodInfo);

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.nodes.preference(&node.name, node.labels())
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        if !pod.nodes.is_required() {
            return Filtering::Skip;
        }
        match pod.nodes.names() {
            Some(names) => Filtering::Among(names, Box::new(Required(pod))),
            None => Filtering::Each(Box::new(Required(pod))),
        }
    }

    fn score<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        pod.nodes.has_preferences().then(|| Box::new(Preferred(pod)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn unblocked_by(&self) -> Causes {
        Causes::NODE_ADDED.and(Causes::NODE_LABELS).and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        happening.node.as_ref().is_none_or(|node| pod.nodes.matches(&node.name, node.labels()))
    }
}
