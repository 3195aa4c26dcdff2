//! What a scheduling plugin is, and what the cycle asks of it.
//!
//! A plugin answers for one pod at a time: [`Plugin::filter`] looks at the pod and the snapshot once and gives a
//! [`Filter`] that then judges single nodes; [`Plugin::score`] likewise gives a [`Score`]. A plugin that has nothing to
//! say about a pod says so once and costs nothing after. It also names the changes that can unblock a pod it refused.
//!
//! What must stay true: plugins are pure. They read the snapshot and their own configuration, nothing else, and keep
//! nothing between cycles.

use std::sync::Arc;

use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The best score that a plugin gives.
pub const SCORE_MAX: i64 = 100;

/// A set of kinds of change in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes(u16);

impl Causes {
    /// Nothing.
    pub const NONE: Causes = Causes(0);
    /// A node came.
    pub const NODE_ADDED: Causes = Causes(1);
    /// A node can give more or other resources.
    pub const NODE_ALLOCATABLE: Causes = Causes(1 << 1);
    /// A node's labels changed.
    pub const NODE_LABELS: Causes = Causes(1 << 2);
    /// A node's taints changed, or it was cordoned or uncordoned.
    pub const NODE_TAINTS: Causes = Causes(1 << 3);
    /// A pod was bound to a node.
    pub const POD_BOUND: Causes = Causes(1 << 4);
    /// A bound pod's labels changed.
    pub const POD_LABELS: Causes = Causes(1 << 5);
    /// A bound pod went or finished, or needs less.
    pub const POD_FREED: Causes = Causes(1 << 6);
    /// The waiting pod itself changed.
    pub const POD_ITSELF: Causes = Causes(1 << 7);
    /// A claim, a volume or a class of volumes came or changed.
    pub const VOLUMES: Causes = Causes(1 << 8);
    /// A claim of devices, a class or a slice of them came or changed.
    pub const DEVICES: Causes = Causes(1 << 9);
    /// Any of them.
    pub const ANY: Causes = Causes(u16::MAX);

    /// Both.
    pub const fn and(self, other: Causes) -> Causes {
        Causes(self.0 | other.0)
    }

    /// Whether the two have any in common.
    pub const fn meets(self, other: Causes) -> bool {
        self.0 & other.0 != 0
    }
}

/// Something that happened in the cluster.
#[derive(Clone, Debug)]
pub struct Happening {
    /// What kinds of change it is.
    pub causes: Causes,
    /// The node it happened to, as it is now.
    pub node: Option<NodeInfo>,
    /// The pod it happened to, as it is now.
    pub pod: Option<Arc<PodInfo>>,
}

/// What a filter says about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod can be there.
    Pass,
    /// It can't.
    Refused(Refusal),
}

/// Why a node can't take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words; each is counted over all nodes in the message that users see.
    pub reasons: Vec<String>,
    /// Whether evicting pods from the node could change it.
    pub resolvable: bool,
}

impl Verdict {
    /// Refused, and evicting pods could change that.
    pub fn refused(reason: impl Into<String>) -> Verdict {
        Verdict::Refused(Refusal { reasons: vec![reason.into()], resolvable: true })
    }

    /// Refused, whatever is evicted.
    pub fn unresolvable(reason: impl Into<String>) -> Verdict {
        Verdict::Refused(Refusal { reasons: vec![reason.into()], resolvable: false })
    }
}

/// Judges nodes for one pod.
pub trait Filter<'a> {
    /// Whether the pod can be on `node`. The node may be a clone with pods added or taken away, of which the filter
    /// has been told by [`Filter::add`] and [`Filter::remove`].
    fn check(&self, node: &NodeInfo) -> Verdict;

    /// What if `pod` were on `node` too? Only for filters that look beyond the node they judge.
    fn add(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}

    /// What if `pod` were no longer on `node`?
    fn remove(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}

    /// A copy to ask what-if questions of; `None` when there is nothing to tell it.
    fn what_if(&self) -> Option<Box<dyn Filter<'a> + 'a>> {
        None
    }
}

/// How a plugin filters for a pod.
pub enum Filtering<'a> {
    /// Any node will do.
    Skip,
    /// No node at all will do, for this reason.
    Never(Refusal),
    /// Nodes must be judged one by one.
    Each(Box<dyn Filter<'a> + 'a>),
    /// Only the named nodes can do, and are still judged.
    Among(Vec<String>, Box<dyn Filter<'a> + 'a>),
}

/// Compares nodes for one pod.
pub trait Score {
    /// The raw score of a node; the higher the better, unless [`Score::normalize`] turns it round.
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings all nodes' raw scores to 0 ..= [`SCORE_MAX`]. `nodes` and `scores` run in parallel.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// A plugin.
pub trait Plugin: Send + Sync {
    /// Kubernetes' name for it.
    fn name(&self) -> &'static str;

    /// Why the pod must not even enter the queue yet.
    fn gate(&self, _pod: &PodInfo) -> Option<String> {
        None
    }

    /// Looks at a pod before its nodes are judged.
    fn filter<'a>(&self, _snapshot: &'a Snapshot, _pod: &'a PodInfo) -> Filtering<'a> {
        Filtering::Skip
    }

    /// Looks at a pod and the nodes that can take it before they are compared. `None`: nothing to compare.
    fn score<'a>(&self, _snapshot: &'a Snapshot, _pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How much its score counts.
    fn weight(&self) -> i64 {
        1
    }

    /// What can unblock a pod that it refused.
    fn unblocked_by(&self) -> Causes {
        Causes::NONE
    }

    /// Whether this very happening could unblock `pod`. Saying yes in vain only costs a cycle.
    fn could_unblock(&self, _pod: &PodInfo, _happening: &Happening) -> bool {
        true
    }
}

/// Stretches scores so that the best gets [`SCORE_MAX`]; `reverse` makes the least the best.
pub fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let best = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        if best == 0 {
            *score = if reverse { SCORE_MAX } else { 0 };
            continue;
        }
        *score = *score * SCORE_MAX / best;
        if reverse {
            *score = SCORE_MAX - *score;
        }
    }
}
