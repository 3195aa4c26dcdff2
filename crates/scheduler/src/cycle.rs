//! One scheduling cycle: (snapshot, pod, random numbers) -> where the pod goes, or why it goes nowhere.
//!
//! Filters judge nodes until enough have been found (a share of the cluster that shrinks as it grows, searched round
//! robin from where the last cycle stopped), scores compare those, chance decides among equals.
//!
//! What must stay true: a pure function. It changes nothing, and the same input gives the same answer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use rand::Rng;

use crate::framework::{Filter, Filtering, Plugin, Refusal, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// A cluster up to this size is searched whole.
const NODES_SEARCHED_MIN: usize = 100;
/// At least this share of a larger one, in percent.
const SHARE_SEARCHED_MIN_PERCENT: usize = 5;

/// The plugins of a profile.
pub struct Profile {
    plugins: Vec<Box<dyn Plugin>>,
}

/// Where one cycle stopped searching, for the next to go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(usize);

/// Why a pod goes nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// What each node says; empty where a whole plugin said no.
    pub refusals: BTreeMap<String, Refusal>,
    /// Why no node at all can do, whatever it is.
    pub overall: Option<String>,
    /// The plugins that refused, by their place in the profile.
    pub plugins: BTreeSet<usize>,
}

impl Unschedulable {
    /// The message that users see.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        summary(self.nodes, self.overall.as_deref(), self.refusals.values().flat_map(|refusal| &refusal.reasons))
    }
}

/// `0/4 nodes are available: 1 reason, 3 other reason.`
pub fn summary<'a>(nodes: usize, overall: Option<&str>, reasons: impl Iterator<Item = &'a String>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut message = format!("0/{nodes} nodes are available");
    if let Some(overall) = overall {
        message += &format!(": {overall}.");
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    if !parts.is_empty() {
        message += &format!(": {}.", parts.join(", "));
    }
    message
}

/// All filters of one cycle.
pub struct Filters<'a> {
    list: Vec<(usize, Box<dyn Filter<'a> + 'a>)>,
    /// The only nodes that can do, and the plugins that say so.
    among: Option<(HashSet<String>, Vec<&'static str>)>,
}

impl<'a> Filters<'a> {
    /// Judges a node as it is.
    fn check(&self, node: &NodeInfo) -> Result<(), (usize, Refusal)> {
        verdict(self.list.iter().map(|(plugin, filter)| (*plugin, filter.as_ref())), node)
    }

    /// A copy of `node` to ask what-if questions of.
    pub fn what_if<'f>(&'f self, node: &NodeInfo) -> WhatIf<'f, 'a> {
        WhatIf { filters: self, copies: self.list.iter().map(|(_, filter)| filter.what_if()).collect(), node: node.clone() }
    }

    /// Judges a node with the pods for which room is being made there, if they come first, and without them: they may
    /// never arrive, and the pod must be right either way.
    pub fn check_with_nominated(&self, snapshot: &Snapshot, pod: &PodInfo, node: &NodeInfo) -> Result<(), (usize, Refusal)> {
        let mut expected = snapshot.nominated_to(&node.name).iter();
        let first = expected.by_ref().find(|other| other.priority >= pod.priority && other.uid != pod.uid);
        if let Some(first) = first {
            let mut what_if = self.what_if(node);
            what_if.add(first);
            for other in expected.filter(|other| other.priority >= pod.priority && other.uid != pod.uid) {
                what_if.add(other);
            }
            what_if.check()?;
        }
        self.check(node)
    }
}

fn verdict<'r, 'a: 'r>(filters: impl Iterator<Item = (usize, &'r (dyn Filter<'a> + 'a))>, node: &NodeInfo) -> Result<(), (usize, Refusal)> {
    for (plugin, filter) in filters {
        if let Verdict::Refused(refusal) = filter.check(node) {
            return Err((plugin, refusal));
        }
    }
    Ok(())
}

/// A node as it would be.
pub struct WhatIf<'f, 'a> {
    filters: &'f Filters<'a>,
    copies: Vec<Option<Box<dyn Filter<'a> + 'a>>>,
    /// The node with the changes so far.
    pub node: NodeInfo,
}

impl WhatIf<'_, '_> {
    /// What if `pod` were there too?
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        self.node.add(pod);
        for copy in self.copies.iter_mut().flatten() {
            copy.add(pod, &self.node);
        }
    }

    /// What if `pod` were gone?
    pub fn remove(&mut self, pod: &PodInfo) {
        if self.node.remove(&pod.uid).is_some() {
            for copy in self.copies.iter_mut().flatten() {
                copy.remove(pod, &self.node);
            }
        }
    }

    /// Could the node then take the pod?
    pub fn check(&self) -> Result<(), (usize, Refusal)> {
        let pairs = self.filters.list.iter().zip(&self.copies);
        let filters = pairs.map(|((plugin, filter), copy)| match copy {
            Some(copy) => (*plugin, copy.as_ref()),
            None => (*plugin, filter.as_ref()),
        });
        verdict(filters, &self.node)
    }
}

impl Default for Profile {
    fn default() -> Self {
        Profile { plugins: crate::plugins::all() }
    }
}

impl Profile {
    /// The plugins.
    pub fn plugins(&self) -> &[Box<dyn Plugin>] {
        &self.plugins
    }

    /// Why the pod must not enter the queue yet, and by which plugin's will.
    pub fn gate(&self, pod: &PodInfo) -> Option<String> {
        self.plugins.iter().find_map(|plugin| plugin.gate(pod))
    }

    /// Prepares all filters for a pod.
    pub fn filters<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Result<Filters<'a>, Unschedulable> {
        let mut filters = Filters { list: Vec::new(), among: None };
        for (position, plugin) in self.plugins.iter().enumerate() {
            match plugin.filter(snapshot, pod) {
                Filtering::Skip => {}
                Filtering::Never(refusal) => {
                    return Err(Unschedulable {
                        nodes: snapshot.nodes().len(),
                        overall: Some(refusal.reasons.join(", ")),
                        plugins: [position].into(),
                        ..Unschedulable::default()
                    });
                }
                Filtering::Each(filter) => filters.list.push((position, filter)),
                Filtering::Among(names, filter) => {
                    filters.list.push((position, filter));
                    let names: HashSet<String> = names.into_iter().collect();
                    filters.among = Some(match filters.among {
                        None => (names, vec![plugin.name()]),
                        Some((before, mut plugins)) => {
                            plugins.push(plugin.name());
                            (before.intersection(&names).cloned().collect(), plugins)
                        }
                    });
                }
            }
        }
        Ok(filters)
    }

    /// The node for `pod`, or why there is none.
    pub fn decide(&self, snapshot: &Snapshot, pod: &PodInfo, cursor: &mut Cursor, rng: &mut impl Rng) -> Result<String, Unschedulable> {
        let total = snapshot.nodes().len();
        if total == 0 {
            return Err(Unschedulable::default());
        }
        let filters = self.filters(snapshot, pod)?;

        let nominated = snapshot.nomination_of(&pod.uid).and_then(|name| snapshot.node(name));
        if let Some(node) = nominated
            && filters.check_with_nominated(snapshot, pod, node).is_ok()
        {
            return Ok(node.name.clone());
        }

        let mut unschedulable = Unschedulable { nodes: total, ..Unschedulable::default() };
        let mut feasible = Vec::new();
        let wanted = nodes_to_find(total);
        let mut searched = 0;
        let candidates: Box<dyn Iterator<Item = &NodeInfo>> = match &filters.among {
            Some((names, _)) => Box::new(names.iter().filter_map(|name| snapshot.node(name))),
            None => Box::new((0..total).map(|step| &snapshot.nodes()[(cursor.0 + step) % total])),
        };
        for node in candidates {
            searched += 1;
            match filters.check_with_nominated(snapshot, pod, node) {
                Ok(()) => feasible.push(node),
                Err((plugin, refusal)) => {
                    unschedulable.plugins.insert(plugin);
                    unschedulable.refusals.insert(node.name.clone(), refusal);
                }
            }
            if feasible.len() >= wanted {
                break;
            }
        }
        if let Some((names, plugins)) = &filters.among {
            if feasible.is_empty() {
                let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
                let refusal = Refusal { reasons: vec![reason], resolvable: false };
                for node in snapshot.nodes().iter().filter(|node| !names.contains(&node.name)) {
                    unschedulable.refusals.insert(node.name.clone(), refusal.clone());
                }
                let blamed = self.plugins.iter().enumerate().filter(|(_, plugin)| plugins.contains(&plugin.name()));
                unschedulable.plugins.extend(blamed.map(|(position, _)| position));
            }
        } else {
            cursor.0 = (cursor.0 + searched) % total;
        }
        match feasible.as_slice() {
            [] => Err(unschedulable),
            [node] => Ok(node.name.clone()),
            _ => Ok(self.best(snapshot, pod, &feasible, rng).name.clone()),
        }
    }

    /// The best of several nodes; chance decides among equals.
    fn best<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, nodes: &[&'a NodeInfo], rng: &mut impl Rng) -> &'a NodeInfo {
        let mut totals = vec![0; nodes.len()];
        for plugin in &self.plugins {
            if let Some(score) = plugin.score(snapshot, pod, nodes) {
                let mut scores: Vec<i64> = nodes.iter().map(|node| score.score(node)).collect();
                score.normalize(nodes, &mut scores);
                for (total, score) in totals.iter_mut().zip(scores) {
                    *total += score * plugin.weight();
                }
            }
        }
        let mut best = 0;
        let mut equals = 1;
        for position in 1..nodes.len() {
            if totals[position] > totals[best] {
                best = position;
                equals = 1;
            } else if totals[position] == totals[best] {
                equals += 1;
                if rng.random_range(0..equals) == 0 {
                    best = position;
                }
            }
        }
        nodes[best]
    }
}

/// How many feasible nodes are enough.
fn nodes_to_find(total: usize) -> usize {
    if total < NODES_SEARCHED_MIN {
        return total;
    }
    let percent = 50_usize.saturating_sub(total / 125).max(SHARE_SEARCHED_MIN_PERCENT);
    (total * percent / 100).max(NODES_SEARCHED_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_searched_shrinks() {
        assert_eq!(nodes_to_find(99), 99);
        assert_eq!(nodes_to_find(100), 100);
        assert_eq!(nodes_to_find(500), 230);
        assert_eq!(nodes_to_find(6000), 300);
    }

    #[test]
    fn reasons_are_counted_and_sorted() {
        let reasons = ["b".to_owned(), "a".to_owned(), "b".to_owned()];
        assert_eq!(summary(4, None, reasons.iter()), "0/4 nodes are available: 1 a, 2 b.");
        assert_eq!(summary(4, None, [].iter()), "0/4 nodes are available");
    }
}
