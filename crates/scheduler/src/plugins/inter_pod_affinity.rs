//! InterPodAffinity: which pods a pod must, must not, would rather and would rather not share a place with. A place is
//! the set of nodes with one value of a node label. Pods already there refuse newcomers too (their anti-affinity), and
//! their preferences count when nodes are compared.

use std::collections::HashMap;

use crate::framework::{Causes, Filter, Filtering, Happening, Plugin, SCORE_MAX, Score, Verdict};
use crate::pod::{AffinityTerm, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct InterPodAffinity;

/// How much a required affinity of a pod already there counts for a newcomer that it is about.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// A number per place: label key, then label value.
#[derive(Clone, Default)]
struct Places(HashMap<String, HashMap<String, i64>>);

impl Places {
    fn add(&mut self, key: &str, node: &NodeInfo, amount: i64) {
        let Some(value) = node.labels().get(key) else {
            return;
        };
        if !self.0.contains_key(key) {
            self.0.insert(key.to_owned(), HashMap::new());
        }
        if let Some(values) = self.0.get_mut(key) {
            match values.get_mut(value) {
                Some(sum) => *sum += amount,
                None => {
                    values.insert(value.clone(), amount);
                }
            }
        }
    }

    fn at(&self, key: &str, node: &NodeInfo) -> i64 {
        let value = node.labels().get(key);
        value.and_then(|value| self.0.get(key)?.get(value)).copied().unwrap_or(0)
    }

    fn any_at(&self, node: &NodeInfo) -> bool {
        self.0.iter().any(|(key, values)| node.labels().get(key).and_then(|value| values.get(value)).is_some_and(|count| *count > 0))
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(|values| values.values().all(|count| *count == 0))
    }
}

#[derive(Clone)]
struct Rules<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    /// Places where a pod is that refuses this one.
    refusing: Places,
    /// Places where a pod is that this one must be with.
    with: Places,
    /// Places where a pod is that this one must not be with.
    apart: Places,
}

impl Rules<'_> {
    fn count(&mut self, other: &PodInfo, node: &NodeInfo, amount: i64) {
        for term in &other.affinity.required_anti {
            if term.matches(self.pod, self.snapshot) {
                self.refusing.add(&term.topology_key, node, amount);
            }
        }
        let wanted = &self.pod.affinity.required;
        if !wanted.is_empty() && wanted.iter().all(|term| term.matches(other, self.snapshot)) {
            for term in wanted {
                self.with.add(&term.topology_key, node, amount);
            }
        }
        for term in &self.pod.affinity.required_anti {
            if term.matches(other, self.snapshot) {
                self.apart.add(&term.topology_key, node, amount);
            }
        }
    }

    fn has_company(&self, node: &NodeInfo) -> bool {
        let wanted = &self.pod.affinity.required;
        if !wanted.iter().all(|term| node.labels().contains_key(&term.topology_key)) {
            return false;
        }
        if wanted.iter().all(|term| self.with.at(&term.topology_key, node) > 0) {
            return true;
        }
        // The first of a group that wants to be together may be anywhere.
        self.with.is_empty() && wanted.iter().all(|term| term.matches(self.pod, self.snapshot))
    }
}

impl<'a> Filter<'a> for Rules<'a> {
    fn check(&self, node: &NodeInfo) -> Verdict {
        if !self.has_company(node) {
            return Verdict::unresolvable("node(s) didn't match pod affinity rules");
        }
        if self.pod.affinity.required_anti.iter().any(|term| self.apart.at(&term.topology_key, node) > 0) {
            return Verdict::refused("node(s) didn't match pod anti-affinity rules");
        }
        if self.refusing.any_at(node) {
            return Verdict::refused("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Verdict::Pass
    }

    fn add(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, 1);
    }

    fn remove(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, -1);
    }

    fn what_if(&self) -> Option<Box<dyn Filter<'a> + 'a>> {
        Some(Box::new(self.clone()))
    }
}

struct Preferences(Places);

impl Score for Preferences {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.0.keys().map(|key| self.0.at(key, node)).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let most = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = if most > least { SCORE_MAX * (*score - least) / (most - least) } else { 0 };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        let own = !pod.affinity.required.is_empty() || !pod.affinity.required_anti.is_empty();
        let mut rules = Rules { snapshot, pod, refusing: Places::default(), with: Places::default(), apart: Places::default() };
        for node in snapshot.nodes() {
            if own || node.pods_with_anti_affinity > 0 {
                for other in &node.pods {
                    if own || !other.affinity.required_anti.is_empty() {
                        rules.count(other, node, 1);
                    }
                }
            }
        }
        if !own && rules.refusing.is_empty() {
            return Filtering::Skip;
        }
        Filtering::Each(Box::new(rules))
    }

    fn score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        let own = pod.affinity.has_preferences();
        let mut places = Places::default();
        for node in snapshot.nodes() {
            if !own && node.pods_with_affinity == 0 {
                continue;
            }
            for other in &node.pods {
                let mut weigh = |terms: &[(i64, AffinityTerm)], about: &PodInfo, sign: i64| {
                    for (weight, term) in terms {
                        if term.matches(about, snapshot) {
                            places.add(&term.topology_key, node, sign * weight);
                        }
                    }
                };
                weigh(&pod.affinity.preferred, other, 1);
                weigh(&pod.affinity.preferred_anti, other, -1);
                weigh(&other.affinity.preferred, pod, 1);
                weigh(&other.affinity.preferred_anti, pod, -1);
                for term in &other.affinity.required {
                    if term.matches(pod, snapshot) {
                        places.add(&term.topology_key, node, HARD_AFFINITY_WEIGHT);
                    }
                }
            }
        }
        let any = !places.is_empty();
        any.then(|| Box::new(Preferences(places)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn unblocked_by(&self) -> Causes {
        Causes::POD_BOUND.and(Causes::POD_LABELS).and(Causes::POD_FREED).and(Causes::NODE_ADDED).and(Causes::NODE_LABELS).and(Causes::POD_ITSELF)
    }

    fn could_unblock(&self, pod: &PodInfo, happening: &Happening) -> bool {
        // A newly bound pod only helps those who want company.
        let only_bound = !happening.causes.meets(Causes::POD_FREED.and(Causes::POD_LABELS).and(Causes::POD_ITSELF));
        !(happening.pod.is_some() && only_bound && pod.affinity.required.is_empty())
    }
}
