//! Many cuts of links to the master, one after another, chosen at random.

use super::{SERVER, SINGLE};
use crate::{Result, expectation::Expectation::RoutedAroundWithin, scenario::Scenario, stage::Stage};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

pub const SCENARIO: Scenario = Scenario {
    name: "random-link-cuts",
    shows: "Whichever links to the master are cut, of one worker or of several, in one direction or both, for a moment or for longer than the grace period: no node becomes NotReady, no endpoint changes and no pod is evicted.",
    kubernetes: "Each cut that outlasts the grace period makes its nodes NotReady and empties their endpoints; each that outlasts the tolerations evicts their pods.",
    topology: SINGLE,
    sabotage: "one of the workers is cut from everyone",
    expects: &[RoutedAroundWithin(3_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// Cuts of one run.
const CUTS: usize = 10;
/// How long they stand, in seconds: the longest outlasts the grace period (20 s here).
const SHORTEST_S: u64 = 2;
const LONGEST_S: u64 = 24;

/// In which direction frames are lost.
#[derive(Clone, Copy)]
enum Lost {
    Both,
    ToMaster,
    FromMaster,
}

async fn steps(stage: &Stage) -> Result<()> {
    let seed = rand::random::<u32>();
    stage.figure("seed of the cuts", seed.to_string());
    let mut random = StdRng::seed_from_u64(seed.into());
    for at in 1..=CUTS {
        let cuts = choose(&mut random, stage.workers());
        // Squared, so that most are short and some outlast the grace period.
        let long = random.random::<f64>().powi(2) * (LONGEST_S - SHORTEST_S) as f64;
        let held_s = SHORTEST_S + long.round() as u64;
        let told: Vec<String> = cuts.iter().map(|(worker, lost)| lost.between(worker)).collect();
        stage.fault(format!("{at} of {CUTS}, for {held_s} s: lost are frames {}", told.join(", ")));
        for (worker, lost) in &cuts {
            set(stage, worker, *lost, true)?;
        }
        if stage.sabotaged() {
            stage.cut(&cuts[0].0, &[])?;
        }
        stage.hold(held_s).await;
        stage.heal("they are mended");
        for (worker, lost) in &cuts {
            set(stage, worker, *lost, false)?;
        }
        stage.hold(SHORTEST_S).await;
    }
    stage.recovered().await?;
    stage.check_nothing_changed();
    stage.check_same_pods();
    Ok(())
}

/// Some of the workers, never all: who has no way to any endpoint cannot be served.
fn choose(random: &mut StdRng, mut workers: Vec<String>) -> Vec<(String, Lost)> {
    workers.shuffle(random);
    workers.truncate(random.random_range(1..workers.len().max(2)));
    let lost = [Lost::Both, Lost::ToMaster, Lost::FromMaster];
    workers.into_iter().map(|worker| (worker, lost[random.random_range(0..lost.len())])).collect()
}

impl Lost {
    fn between(self, worker: &str) -> String {
        match self {
            Lost::Both => format!("between {worker} and {SERVER}"),
            Lost::ToMaster => format!("from {worker} to {SERVER}"),
            Lost::FromMaster => format!("from {SERVER} to {worker}"),
        }
    }
}

fn set(stage: &Stage, worker: &str, lost: Lost, cut: bool) -> Result<()> {
    let one_way = |from, to| if cut { stage.cut_one_way(from, to) } else { stage.mend_one_way(from, to) };
    match lost {
        Lost::Both if cut => stage.cut(worker, &[SERVER.into()]),
        Lost::Both => stage.mend(worker, &[SERVER.into()]),
        Lost::ToMaster => one_way(worker, SERVER),
        Lost::FromMaster => one_way(SERVER, worker),
    }
}
