//! PodTopologySpread: pods of a kind are spread evenly over the values of node labels. Required constraints filter,
//! the others weigh; a pod without any is spread over zones and nodes with the other pods of its Services and owner
//! (the default cluster constraints).

use std::collections::{BTreeMap, HashMap};

use client::taints::untolerated;

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, SCORE_MAX, Score, Verdict};
use crate::pod::{Labels, PodInfo, PodSelector, SpreadConstraint};
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct PodTopologySpread;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn has_all_keys<'a>(node: &NodeInfo, mut constraints: impl Iterator<Item = &'a SpreadConstraint>) -> bool {
    constraints.all(|constraint| node.labels().contains_key(&constraint.topology_key))
}

/// Whether a node's pods are counted for the constraint.
fn is_counted(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let affinity = !constraint.honor_affinity || pod.nodes.matches(&node.name, node.labels());
    let taints = || untolerated(node.taints(), pod.tolerations(), &["NoSchedule", "NoExecute"]).is_none();
    affinity && (!constraint.honor_taints || taints())
}

fn matches(constraint: &SpreadConstraint, pod: &PodInfo, other: &PodInfo) -> bool {
    !other.is_terminating() && other.namespace == pod.namespace && constraint.selector.matches(other.labels())
}

fn count(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> i64 {
    // An empty selector counts nothing, as in Kubernetes.
    if constraint.selector.selects_all() {
        return 0;
    }
    node.pods.iter().filter(|other| matches(constraint, pod, other)).count() as i64
}

#[derive(Clone)]
struct Required<'a> {
    pod: &'a PodInfo,
    /// Each constraint with the number of matching pods per place, and the least of these.
    constraints: Vec<(&'a SpreadConstraint, HashMap<String, i64>, i64)>,
}

impl<'a> Required<'a> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, amount: i64) {
        if !has_all_keys(node, self.constraints.iter().map(|(constraint, ..)| *constraint)) {
            return;
        }
        for (constraint, counts, least) in &mut self.constraints {
            if !is_counted(constraint, self.pod, node) || !matches(constraint, self.pod, other) {
                continue;
            }
            if let Some(count) = node.labels().get(&constraint.topology_key).and_then(|value| counts.get_mut(value)) {
                *count += amount;
                *least = least_of(constraint, counts);
            }
        }
    }
}

fn least_of(constraint: &SpreadConstraint, counts: &HashMap<String, i64>) -> i64 {
    if (counts.len() as i64) < constraint.min_domains {
        return 0;
    }
    counts.values().copied().min().unwrap_or(i64::from(i32::MAX))
}

impl<'a> Filter<'a> for Required<'a> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        for (constraint, counts, least) in &self.constraints {
            let Some(value) = node.labels().get(&constraint.topology_key) else {
                return Verdict::unresolvable("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let itself = i64::from(constraint.selector.matches(self.pod.labels()));
            let there = counts.get(value).copied().unwrap_or(0);
            if there + itself - least > constraint.max_skew {
                return Verdict::refused("node(s) didn't match pod topology spread constraints");
            }
        }
        Verdict::Pass
    }

    fn add(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, 1);
    }

    fn remove(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, -1);
    }

    fn what_if(&self) -> Option<Box<dyn Filter<'a> + 'a>> {
        Some(Box::new(self.clone()))
    }
}

struct Preferred<'a> {
    pod: &'a PodInfo,
    constraints: Vec<Weighed>,
    /// Whether a node without all labels gets nothing.
    all_keys_needed: bool,
}

struct Weighed {
    constraint: SpreadConstraint,
    counts: BTreeMap<String, i64>,
    weight: f64,
}

impl Preferred<'_> {
    fn is_left_out(&self, node: &NodeInfo) -> bool {
        self.all_keys_needed && !has_all_keys(node, self.constraints.iter().map(|each| &each.constraint))
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.is_left_out(node) {
            return 0;
        }
        let mut sum = 0.0;
        for Weighed { constraint, counts, weight } in &self.constraints {
            if let Some(value) = node.labels().get(&constraint.topology_key) {
                let there =
                    if constraint.topology_key == HOSTNAME { count(constraint, self.pod, node) } else { counts.get(value).copied().unwrap_or(0) };
                sum += there as f64 * weight + (constraint.max_skew - 1) as f64;
            }
        }
        sum.round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let counted: Vec<bool> = nodes.iter().map(|node| !self.is_left_out(node)).collect();
        let among = || scores.iter().zip(&counted).filter(|(_, counted)| **counted).map(|(score, _)| *score);
        let least = among().min().unwrap_or(0);
        let most = among().max().unwrap_or(0);
        for (score, counted) in scores.iter_mut().zip(&counted) {
            *score = match (counted, most) {
                (false, _) => 0,
                (true, 0) => SCORE_MAX,
                (true, most) => SCORE_MAX * (most + least - *score) / most,
            };
        }
    }
}

/// The constraints of a pod that has none of its own, if anything says which pods are like it.
fn default_constraints(snapshot: &Snapshot, pod: &PodInfo) -> Vec<SpreadConstraint> {
    let owner = pod.pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let mut selector = PodSelector::of(None);
    for workload in snapshot.workloads(&pod.namespace) {
        let is_owner = || owner.is_some_and(|owner| owner.kind == workload.kind && owner.name == workload.name);
        let is_service = workload.kind == "Service" && workload.selector.matches(pod.labels());
        if is_service || is_owner() {
            selector.and(&workload.selector);
        }
    }
    if !selector.selects_any() || selector.selects_all() {
        return Vec::new();
    }
    let constraint = |max_skew, topology_key: &str| SpreadConstraint {
        max_skew,
        topology_key: topology_key.to_owned(),
        required: false,
        min_domains: 1,
        selector: selector.clone(),
        honor_affinity: true,
        honor_taints: false,
    };
    vec![constraint(3, HOSTNAME), constraint(5, ZONE)]
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        let required: Vec<_> = pod.spread.iter().filter(|constraint| constraint.required).collect();
        if required.is_empty() {
            return Filtering::Skip;
        }
        let mut constraints: Vec<_> = required.iter().map(|each| (*each, HashMap::new(), 0)).collect();
        for node in snapshot.nodes() {
            if !has_all_keys(node, required.iter().copied()) {
                continue;
            }
            for (constraint, counts, _) in &mut constraints {
                if is_counted(constraint, pod, node)
                    && let Some(value) = node.labels().get(&constraint.topology_key)
                {
                    *counts.entry(value.clone()).or_insert(0) += count(constraint, pod, node);
                }
            }
        }
        for (constraint, counts, least) in &mut constraints {
            *least = least_of(constraint, counts);
        }
        Filtering::Each(Box::new(Required { pod, constraints }))
    }

    fn score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        let own = !pod.spread.is_empty();
        let constraints: Vec<SpreadConstraint> =
            if own { pod.spread.iter().filter(|constraint| !constraint.required).cloned().collect() } else { default_constraints(snapshot, pod) };
        if constraints.is_empty() {
            return None;
        }
        let candidates = nodes.iter().filter(|node| !own || has_all_keys(node, constraints.iter()));
        let candidates: Vec<_> = candidates.collect();
        let value_of = |labels: &Labels, constraint: &SpreadConstraint| labels.get(&constraint.topology_key).cloned();
        let mut weighed = Vec::new();
        for constraint in &constraints {
            let by_place = constraint.topology_key != HOSTNAME;
            let mut counts = BTreeMap::new();
            if by_place {
                let values = candidates.iter().filter_map(|node| value_of(node.labels(), constraint));
                counts = values.map(|value| (value, 0)).collect();
                for node in snapshot.nodes() {
                    if (own && !has_all_keys(node, constraints.iter())) || !is_counted(constraint, pod, node) {
                        continue;
                    }
                    let value = node.labels().get(&constraint.topology_key);
                    if let Some(sum) = value.and_then(|value| counts.get_mut(value)) {
                        *sum += count(constraint, pod, node);
                    }
                }
            }
            let places = if by_place { counts.len() } else { candidates.len() };
            let weight = ((places + 2) as f64).ln();
            weighed.push(Weighed { constraint: constraint.clone(), counts, weight });
        }
        Some(Box::new(Preferred { pod, constraints: weighed, all_keys_needed: own }))
    }

    fn weight(&self) -> i64 {
        2
    }

    fn unblocked_by(&self) -> Causes {
        Causes::POD_BOUND
            .and(Causes::POD_LABELS)
            .and(Causes::POD_FREED)
            .and(Causes::NODE_ADDED)
            .and(Causes::NODE_LABELS)
            .and(Causes::NODE_TAINTS)
            .and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        happening.pod.as_ref().is_none_or(|other| other.uid == pod.uid || other.namespace == pod.namespace)
    }
}
