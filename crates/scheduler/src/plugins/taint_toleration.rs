//! TaintToleration: no pod on a node with a NoSchedule or NoExecute taint that it does not tolerate; nodes with fewer
//! untolerated PreferNoSchedule taints are better.

use client::taints::{tolerates, untolerated};
use k8s_openapi::api::core::v1::Toleration;

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, Score, Verdict, normalize_to_max};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct TaintToleration;

const FORBIDDING: [&str; 2] = ["NoSchedule", "NoExecute"];
const DISCOURAGING: &str = "PreferNoSchedule";

struct Tolerations<'a>(&'a [Toleration]);

impl Filter<'_> for Tolerations<'_> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        match untolerated(node.taints(), self.0, &FORBIDDING) {
            None => Verdict::Pass,
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or("");
                Verdict::unresolvable(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key))
            }
        }
    }
}

struct Discouraged<'a>(Vec<&'a Toleration>);

impl Score for Discouraged<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let taints = node.taints().iter().filter(|taint| taint.effect == DISCOURAGING);
        taints.filter(|taint| !self.0.iter().any(|toleration| tolerates(toleration, taint))).count() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        Filtering::Each(Box::new(Tolerations(pod.tolerations())))
    }

    fn score<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo, nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        let any = nodes.iter().any(|node| node.taints().iter().any(|taint| taint.effect == DISCOURAGING));
        let relevant = pod.tolerations().iter().filter(|each| matches!(each.effect.as_deref().unwrap_or(""), "" | DISCOURAGING));
        any.then(|| Box::new(Discouraged(relevant.collect())) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        3
    }

    fn unblocked_by(&self) -> Causes {
        Causes::NODE_ADDED.and(Causes::NODE_TAINTS).and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        let node = happening.node.as_ref();
        node.is_none_or(|node| untolerated(node.taints(), pod.tolerations(), &FORBIDDING).is_none())
    }
}
