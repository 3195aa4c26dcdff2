//! NodeUnschedulable: a cordoned node takes no pod, except one that tolerates the cordon's taint.

use client::taints::tolerates;
use k8s_openapi::api::core::v1::Taint;

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct NodeUnschedulable;

struct Cordons;

impl Filter<'_> for Cordons {
    fn check(&self, node: &NodeInfo) -> Verdict {
        if node.is_unschedulable() {
            return Verdict::unresolvable("node(s) were unschedulable");
        }
        Verdict::Pass
    }
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter<'a>(&self, _snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        let taint = Taint { key: "node.kubernetes.io/unschedulable".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        if pod.tolerations().iter().any(|toleration| tolerates(toleration, &taint)) {
            return Filtering::Skip;
        }
        Filtering::Each(Box::new(Cordons))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::NODE_ADDED.and(Causes::NODE_TAINTS).and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, _pod: &PodInfo, happening: &Happening) -> bool {
        happening.node.as_ref().is_none_or(|node| !node.is_unschedulable())
    }
}
