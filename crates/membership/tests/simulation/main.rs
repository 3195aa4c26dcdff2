//! Membership under a seed: the real core of 3 to 50 nodes in one process, on a network and clocks that a seed makes.
//!
//! Every seed is a cluster, a network (loss, jitter), machines (lag) and a list of faults; the checkers run all the time. A
//! failure prints its seed and the command that repeats it. `REGENT_SEEDS=1000` runs that many, `REGENT_SEED=17` that one.

mod checks;
mod faults;
mod world;

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};
use world::World;

/// Seeds that every run of the tests goes through.
const SEEDS_DEFAULT: u64 = 60;

#[test]
fn seeds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("REGENT_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("REGENT_SEEDS").unwrap_or(SEEDS_DEFAULT)),
    };
    let next = AtomicU64::new(first);
    let results = Mutex::new((Vec::new(), checks::Figures::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || results.lock().is_ok_and(|r| r.0.len() >= 5) {
                        return;
                    }
                    let outcome = run(seed);
                    if let Ok(mut results) = results.lock() {
                        match outcome {
                            Ok(figures) => results.1.add(figures),
                            Err(failure) => results.0.push((seed, failure)),
                        }
                    }
                }
            });
        }
    });
    let (failures, mut figures) = results.into_inner().expect("no checker panics");
    println!("{count} seeds: {}", figures.text());
    for (seed, failure) in &failures {
        println!("seed {seed}: {failure}\n  again: REGENT_SEED={seed} cargo test -p membership --test simulation -- --nocapture");
    }
    assert!(failures.is_empty(), "{} of {count} seeds failed, first {}", failures.len(), failures[0].0);
}

fn run(seed: u64) -> Result<checks::Figures, String> {
    let mut world = World::new(seed);
    let told = std::env::var("REGENT_SEED").is_ok();
    if told {
        println!("{}", world.describe());
    }
    let (plan, end) = faults::plan(&mut world);
    for (at, fault) in &plan {
        if told {
            println!("  {at:>6} ms {fault:?}");
        }
        world.schedule_fault(*at, fault.clone());
    }
    let mut checker = checks::Checker::new(&world);
    while world.now < end {
        world.run_until((world.now + 50).min(end));
        checker.look(&world).map_err(|failure| format!("at {} ms of {}: {failure}", world.now, world.describe()))?;
    }
    checker.end(&world).map_err(|failure| format!("at the end of {}: {failure}", world.describe()))?;
    Ok(checker.figures)
}
