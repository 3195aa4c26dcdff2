//! Making room: which pods of lower priority must go so that a pod that fits nowhere can run (DefaultPreemption).
//!
//! For every node where eviction could help, all pods of lower priority are taken away in thought; if the pod then
//! fits, as many as possible are put back, first those whose going would break a disruption budget. Among the nodes the
//! least harm wins: fewest broken budgets, lowest highest priority, lowest sum, fewest pods, youngest.
//!
//! What must stay true: a pure function; it only proposes. A pod never loses its place to one of its own priority.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand::Rng;

use crate::cycle::{Filters, Profile, Unschedulable, summary};
use crate::framework::Refusal;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// At least this many nodes are tried, or all.
const CANDIDATES_MIN: usize = 100;
/// At least this share of the nodes is tried, in percent.
const CANDIDATES_MIN_PERCENT: usize = 10;

/// Who must go, and from where.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The node.
    pub node: String,
    /// The pods that must go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// Pods of lower priority for which room was being made there: they must look elsewhere.
    pub superseded: Vec<Arc<PodInfo>>,
}

struct Candidate<'a> {
    node: &'a NodeInfo,
    victims: Vec<Arc<PodInfo>>,
    budgets_broken: usize,
}

/// Proposes whom to evict for `pod`, after its cycle ended with `unschedulable`; or says why not, in the words that
/// follow `preemption: `.
pub fn propose(profile: &Profile, snapshot: &Snapshot, pod: &PodInfo, unschedulable: &Unschedulable, rng: &mut impl Rng) -> Result<Proposal, String> {
    eligible(snapshot, pod, unschedulable)?;
    let mut reasons: BTreeMap<&str, Refusal> = BTreeMap::new();
    let unhelpful = |reason: &str| Refusal { reasons: vec![reason.to_owned()], resolvable: false };
    let mut hopeful = Vec::new();
    for node in snapshot.nodes() {
        match unschedulable.refusals.get(&node.name) {
            Some(refusal) if refusal.resolvable => hopeful.push(node),
            _ => {
                reasons.insert(&node.name, unhelpful("Preemption is not helpful for scheduling"));
            }
        }
    }
    let nobody = |reasons: &BTreeMap<&str, Refusal>| summary(snapshot.nodes().len(), None, reasons.values().flat_map(|refusal| &refusal.reasons));
    if hopeful.is_empty() {
        return Err(nobody(&reasons));
    }
    let filters = profile.filters(snapshot, pod).map_err(|never| never.message())?;
    let enough = CANDIDATES_MIN.max(snapshot.nodes().len() * CANDIDATES_MIN_PERCENT / 100);
    let offset = rng.random_range(0..hopeful.len());
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for step in 0..hopeful.len() {
        let node = hopeful[(offset + step) % hopeful.len()];
        match victims_on(&filters, snapshot, pod, node) {
            Ok(candidate) => candidates.push(candidate),
            Err(refusal) => {
                reasons.insert(&node.name, refusal);
            }
        }
        if candidates.len() >= enough {
            break;
        }
    }
    let Some(best) = candidates.into_iter().min_by_key(harm) else {
        return Err(nobody(&reasons));
    };
    let superseded = snapshot.nominated_to(&best.node.name).iter().filter(|other| other.priority < pod.priority);
    Ok(Proposal { node: best.node.name.clone(), superseded: superseded.cloned().collect(), victims: best.victims })
}

fn eligible(snapshot: &Snapshot, pod: &PodInfo, unschedulable: &Unschedulable) -> Result<(), String> {
    let policy = pod.pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let nominated = snapshot.nomination_of(&pod.uid).and_then(|name| snapshot.node(name));
    let hopeful = |node: &&NodeInfo| unschedulable.refusals.get(&node.name).is_none_or(|refusal| refusal.resolvable);
    if let Some(node) = nominated.filter(hopeful)
        && node.pods.iter().any(|other| other.is_terminating() && other.priority < pod.priority)
    {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    Ok(())
}

/// The more important pod first: higher priority, then longer running.
fn importance(pod: &PodInfo) -> (Reverse<i32>, Option<jiff::Timestamp>) {
    (Reverse(pod.priority), started(pod))
}

fn started(pod: &PodInfo) -> Option<jiff::Timestamp> {
    let status = pod.pod.status.as_ref();
    let time = status.and_then(|status| status.start_time.as_ref()).or(pod.pod.metadata.creation_timestamp.as_ref());
    time.map(|time| time.0)
}

/// What evicting would cost; the least wins.
fn harm(candidate: &Candidate<'_>) -> (usize, i32, i64, usize, Reverse<Option<jiff::Timestamp>>) {
    let highest = candidate.victims.iter().map(|pod| pod.priority).max().unwrap_or(i32::MIN);
    // Shifted, so that many pods of negative priority cost more than one.
    let sum = candidate.victims.iter().map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1).sum();
    let oldest = candidate.victims.iter().filter(|pod| pod.priority == highest).filter_map(|pod| started(pod)).min();
    (candidate.budgets_broken, highest, sum, candidate.victims.len(), Reverse(oldest))
}

/// The least set of pods that must leave `node`, or why that would not help.
fn victims_on<'a>(filters: &Filters<'_>, snapshot: &Snapshot, pod: &PodInfo, node: &'a NodeInfo) -> Result<Candidate<'a>, Refusal> {
    let mut lower: Vec<_> = node.pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        let reason = "No preemption victims found for incoming pod".to_owned();
        return Err(Refusal { reasons: vec![reason], resolvable: false });
    }
    lower.sort_by_key(|other| importance(other));
    let mut what_if = filters.what_if(node);
    let expected = snapshot.nominated_to(&node.name).iter();
    for other in expected.filter(|other| other.priority >= pod.priority && other.uid != pod.uid) {
        what_if.add(other);
    }
    for other in &lower {
        what_if.remove(other);
    }
    what_if.check().map_err(|(_, refusal)| refusal)?;

    let (breaking, harmless) = split_by_budgets(snapshot, lower);
    let mut victims = Vec::new();
    let mut budgets_broken = 0;
    for (others, breaks) in [(breaking, true), (harmless, false)] {
        for other in others {
            what_if.add(&other);
            if what_if.check().is_err() {
                what_if.remove(&other);
                victims.push(other);
                budgets_broken += usize::from(breaks);
            }
        }
    }
    victims.sort_by_key(|other| importance(other));
    Ok(Candidate { node, victims, budgets_broken })
}

/// Splits pods into those whose eviction would break a disruption budget and the others, counting the budgets down.
fn split_by_budgets(snapshot: &Snapshot, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let budgets: Vec<_> = snapshot.budgets().collect();
    let mut left: HashMap<usize, i64> = budgets.iter().enumerate().map(|(position, budget)| (position, budget.disruptions_allowed)).collect();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for (position, budget) in budgets.iter().enumerate() {
            let covers = budget.namespace == pod.namespace
                && !budget.selector.selects_all()
                && budget.selector.matches(pod.labels())
                && !budget.disrupted.contains(&pod.name);
            if covers && let Some(left) = left.get_mut(&position) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    })
}
