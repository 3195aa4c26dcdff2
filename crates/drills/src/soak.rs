//! A soak: drills in random order, again and again, for as long as asked, and what they measured over all repetitions. Pure.

use crate::{
    expectation::seconds,
    outcome::Outcome,
    scenario::{Scenario, Topology},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::collections::{BTreeMap, BTreeSet};

/// The drills of one round, those of one topology together (they share a sandbox), in an order that follows from seed and round.
pub fn round(drills: &[&'static Scenario], seed: u64, round: u64) -> Vec<Vec<&'static Scenario>> {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(round));
    let mut topologies: Vec<&Topology> = drills.iter().map(|drill| &drill.topology).collect::<BTreeSet<_>>().into_iter().collect();
    topologies.shuffle(&mut random);
    let of = |topology: &Topology| drills.iter().copied().filter(|drill| drill.topology == *topology).collect::<Vec<_>>();
    let mut groups: Vec<_> = topologies.into_iter().map(of).collect();
    groups.iter_mut().for_each(|group| group.shuffle(&mut random));
    groups
}

/// One line per drill: how often it ran and failed, its traffic, and each time as the median and the 99th percentile of its runs.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut by_name: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        by_name.entry(&outcome.name).or_default().push(outcome);
    }
    let width = by_name.keys().map(|name| name.len()).max().unwrap_or(5);
    let row = |counts: [String; 5], times: [String; 6]| {
        let [name, runs, failed, requests, lost] = counts;
        let times: String = times.iter().map(|time| format!(" {time:>17}")).collect();
        format!("{name:<width$}  {runs:>4} {failed:>6} {requests:>9} {lost:>7} {times}\n")
    };
    let mut text = row(
        ["FAULT", "RUNS", "FAILED", "REQUESTS", "LOST"].map(String::from),
        ["LONGEST WAIT", "KNOWN AFTER", "ROUTED AROUND", "REPLACED", "RETURNED", "AS BEFORE"].map(String::from),
    );
    for (name, runs) in &by_name {
        let times = |of: &dyn Fn(&Outcome) -> Option<u64>| spread(runs.iter().filter_map(|run| of(run)).collect());
        let counts = [
            (*name).to_owned(),
            runs.len().to_string(),
            runs.iter().filter(|run| !run.passed()).count().to_string(),
            runs.iter().map(|run| run.figures.sent).sum::<u64>().to_string(),
            runs.iter().map(|run| run.figures.failed).sum::<u64>().to_string(),
        ];
        let times = [
            times(&|run| Some(run.figures.longest_gap_ms)),
            times(&|run| run.figures.detect_ms),
            times(&|run| (run.figures.failed > 0).then_some(run.figures.route_around_ms)),
            times(&|run| run.figures.replace_ms),
            times(&|run| run.figures.returned_ms.values().max().copied()),
            times(&|run| run.figures.recover_ms),
        ];
        text += &row(counts, times);
    }
    text += "Times: median and 99th percentile of the runs.\n";
    for (name, runs) in &by_name {
        let further: BTreeSet<&str> = runs.iter().flat_map(|run| &run.further).map(|(figure, _)| figure.as_str()).collect();
        for figure in further {
            let told = runs.iter().flat_map(|run| &run.further).filter(|(other, _)| other == figure).map(|(_, value)| value.as_str());
            text += &format!("\n{name}: {figure}: {}", told.collect::<Vec<_>>().join(", "));
        }
    }
    text += "\n";
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        text += &format!("\nFAILED {}: {}\n", outcome.name, outcome.why_failed());
    }
    text
}

/// Median and 99th percentile (nearest rank).
fn spread(mut times_ms: Vec<u64>) -> String {
    times_ms.sort_unstable();
    let at = |percent: usize| times_ms.get((times_ms.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    match (at(50), at(99)) {
        (Some(median), Some(worst)) => format!("{} / {}", seconds(median), seconds(worst)),
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::ALL;

    #[test]
    fn a_round_has_every_drill_once_and_follows_from_its_seed() {
        let drills = ALL.to_vec();
        let names = |seed, at| round(&drills, seed, at).concat().iter().map(|drill| drill.name).collect::<Vec<_>>();
        assert_eq!(names(7, 0), names(7, 0));
        assert_ne!(names(7, 0), names(7, 1));
        assert_eq!(names(7, 0).into_iter().collect::<BTreeSet<_>>().len(), ALL.len());
        for group in round(&drills, 7, 0) {
            assert!(group.iter().all(|drill| drill.topology == group[0].topology));
        }
    }

    #[test]
    fn times_are_median_and_ninety_ninth_percentile() {
        assert_eq!(spread(vec![]), "-");
        assert_eq!(spread(vec![5]), "5 ms / 5 ms");
        assert_eq!(spread((1..=200).rev().collect()), "100 ms / 198 ms");
    }
}
