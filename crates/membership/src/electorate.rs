//! Which standings are deaths: told from partitions by a majority of the last agreed list of members. Pure.
//!
//! Before anybody is called dead, everybody is called up (a roll call): only who has given a sign of life since it began
//! counts. With more than half of the agreed list present, who does not answer is dead; otherwise it is more likely this
//! node that is cut off, and nobody is. A death that has stood for a while is agreed: the list shrinks by it, so that of
//! four nodes three, then two can go one after the other; who answers again is on the list again.
//!
//! A node that was cut off for long and hears of a majority again condemns nobody for a moment: it has not heard of all yet.
//!
//! What must stay true: on a side that holds half of the list or less, nobody new is ever called dead.

use crate::{NodeId, limits, view::Standing};
use std::collections::{BTreeMap, BTreeSet};

/// What is seen of one peer.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// How it stands.
    pub standing: Standing,
    /// When it last gave a sign of life, or its host did.
    pub evidence_ms: Option<u64>,
    /// For how long it has been suspected or worse.
    pub doubtful_for_ms: u64,
    /// Whether others reach it while packets between it and this node, which used to pass, are lost.
    pub cut: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Electorate {
    agreed: BTreeSet<NodeId>,
    dead: BTreeMap<NodeId, u64>,
    roll_since_ms: Option<u64>,
    majority: bool,
    /// From when on somebody may be condemned.
    condemns_from_ms: u64,
}

impl Electorate {
    /// Only these are members; new ones are voters at once.
    pub fn roster(&mut self, before: &BTreeSet<NodeId>, now: &BTreeSet<NodeId>) {
        self.agreed.retain(|id| now.contains(id));
        self.agreed.extend(now.difference(before));
        self.dead.retain(|id, _| now.contains(id));
    }

    /// Looks at everybody else.
    pub fn step(&mut self, now_ms: u64, peers: &BTreeMap<NodeId, Sight>) {
        let doubtful = |id: &NodeId, sight: &Sight| match sight.standing {
            Standing::Down => !self.dead.contains_key(id),
            Standing::Suspect => sight.doubtful_for_ms >= limits::ROLL_CALL_AFTER_MS,
            Standing::Unknown | Standing::Alive | Standing::AgentDown => false,
        };
        if peers.iter().any(|(id, sight)| doubtful(id, sight)) {
            self.roll_since_ms.get_or_insert(now_ms);
        } else {
            self.roll_since_ms = None;
        }
        self.dead.retain(|id, _| peers.get(id).is_some_and(|sight| sight.standing == Standing::Down));
        for (id, sight) in peers {
            if sight.standing == Standing::Alive {
                self.agreed.insert(*id);
            }
        }
        let Some(since) = self.roll_since_ms else {
            self.majority = true;
            self.agree(now_ms);
            return;
        };
        let after = since.max(now_ms.saturating_sub(limits::EVIDENCE_HOLDS_MS));
        let present = |id: &NodeId| peers.get(id).and_then(|sight| sight.evidence_ms).is_some_and(|at| at >= after);
        let others = self.agreed.iter().filter(|id| peers.contains_key(id));
        // This node is a voter too.
        let (voters, votes) = others.fold((1, 1), |(voters, votes), id| (voters + 1, votes + usize::from(present(id))));
        let was_cut_off = !self.majority && now_ms - since >= limits::CUT_OFF_AFTER_MS;
        self.majority = 2 * votes > voters;
        if self.majority && was_cut_off {
            self.condemns_from_ms = now_ms + limits::BACK_FOR_MS;
        }
        if self.majority && now_ms >= self.condemns_from_ms.max(since + limits::ROLL_CALL_MIN_MS) {
            for (id, sight) in peers {
                if sight.standing == Standing::Down {
                    self.dead.entry(*id).or_insert(now_ms);
                }
            }
        }
        if self.majority {
            self.agree(now_ms);
        }
    }

    fn agree(&mut self, now_ms: u64) {
        for (id, since) in &self.dead {
            if now_ms.saturating_sub(*since) >= limits::AGREED_AFTER_MS {
                self.agreed.remove(id);
            }
        }
    }

    /// Whether the member is dead.
    pub fn is_dead(&self, id: NodeId) -> bool {
        self.dead.contains_key(&id)
    }

    /// Whether everybody is being called up now.
    pub fn is_calling(&self) -> bool {
        self.roll_since_ms.is_some()
    }

    /// Whether this node is on the side of the majority, as far as it has had reason to count.
    pub fn has_majority(&self) -> bool {
        self.majority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(states: &[(u64, Standing, Option<u64>)]) -> BTreeMap<NodeId, Sight> {
        let sight = |(id, standing, evidence_ms): &(u64, Standing, Option<u64>)| {
            (NodeId(*id), Sight { standing: *standing, evidence_ms: *evidence_ms, doubtful_for_ms: 1_000, cut: false })
        };
        states.iter().map(sight).collect()
    }

    fn of(peers: u64) -> Electorate {
        let mut electorate = Electorate::default();
        electorate.roster(&BTreeSet::new(), &(1..=peers).map(NodeId).collect());
        electorate
    }

    use Standing::{Alive, Down, Suspect};

    #[test]
    fn a_death_needs_a_majority_that_has_just_answered() {
        let mut five = of(4);
        five.step(0, &world(&[(1, Suspect, None), (2, Alive, None), (3, Alive, None), (4, Alive, None)]));
        assert!(five.is_calling());
        five.step(1_000, &world(&[(1, Down, None), (2, Alive, Some(100)), (3, Alive, None), (4, Alive, None)]));
        assert!(!five.is_dead(NodeId(1)) && !five.has_majority(), "two of five have answered");
        five.step(1_100, &world(&[(1, Down, None), (2, Alive, Some(100)), (3, Alive, Some(1_050)), (4, Alive, None)]));
        assert!(five.is_dead(NodeId(1)) && five.has_majority());
        five.step(1_200, &world(&[(1, Alive, Some(1_150)), (2, Alive, None), (3, Alive, None), (4, Alive, None)]));
        assert!(!five.is_dead(NodeId(1)) && !five.is_calling());
    }

    #[test]
    fn who_was_cut_off_waits_for_the_others_to_be_heard_again() {
        let mut five = of(4);
        for now in (0..10_000).step_by(200) {
            five.step(now, &world(&[(1, Down, None), (2, Down, None), (3, Down, None), (4, Alive, Some(now))]));
        }
        assert!(!five.has_majority());
        five.step(10_000, &world(&[(1, Alive, Some(10_000)), (2, Down, None), (3, Down, None), (4, Alive, Some(10_000))]));
        assert!(five.has_majority() && !five.is_dead(NodeId(2)), "the others may answer next");
        let later = world(&[(1, Alive, Some(11_000)), (2, Alive, Some(11_000)), (3, Down, None), (4, Alive, Some(11_000))]);
        five.step(11_000, &later);
        five.step(10_000 + limits::BACK_FOR_MS, &later);
        assert!(!five.is_dead(NodeId(2)) && five.is_dead(NodeId(3)));
    }

    #[test]
    fn half_of_the_list_kills_nobody() {
        let mut four = of(3);
        for now in [0, 500, 5_000, 50_000] {
            four.step(now, &world(&[(1, Down, None), (2, Down, None), (3, Alive, Some(now))]));
        }
        assert!(!four.is_dead(NodeId(1)) && !four.has_majority());
    }

    #[test]
    fn agreed_deaths_shrink_the_list_one_after_the_other() {
        let mut four = of(3);
        for now in (0..6_000).step_by(500) {
            four.step(now, &world(&[(1, Down, None), (2, Alive, Some(now)), (3, Alive, Some(now))]));
        }
        assert!(four.is_dead(NodeId(1)));
        for now in (6_000..7_000).step_by(100) {
            four.step(now, &world(&[(1, Down, None), (2, Down, None), (3, Alive, Some(now))]));
        }
        assert!(four.is_dead(NodeId(2)), "two of the remaining three have answered");
    }
}
