//! The loop over seeds, for every simulation: how many, on all processors, with progress; of a failure the command that repeats it.
//!
//! `REGENT_SEEDS=1000` runs that many, `REGENT_SEED=17` that one and tells what happens in it, `REGENT_ONLY=world` one simulation
//! of the list.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// After so many failures no further seed is begun.
const FAILURES_MAX: usize = 5;

/// Whether one seed alone was asked for, which is told in full.
pub fn is_told() -> bool {
    std::env::var("REGENT_SEED").is_ok()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds that are asked for; `by_default` says how many that are where nobody asks. Answers what each gave, by seed.
pub fn run<T: Send>(what: &str, by_default: u64, simulate: impl Fn(u64) -> Result<T, String> + Sync) -> Result<Vec<T>, String> {
    let (first, count) = match number("REGENT_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("REGENT_SEEDS").unwrap_or(by_default)),
    };
    let (next, begun) = (AtomicU64::new(first), Instant::now());
    let results = Mutex::new((Vec::new(), Vec::new()));
    let is_terminal = std::io::stderr().is_terminal();
    let shows_progress = is_terminal || std::env::var("REGENT_PROGRESS").is_ok();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || results.lock().unwrap_or_else(PoisonError::into_inner).1.len() >= FAILURES_MAX {
                        return;
                    }
                    let outcome = simulate(seed);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(result) => results.0.push((seed, result)),
                        Err(failure) => results.1.push((seed, failure)),
                    }
                    let done = results.0.len() + results.1.len();
                    // A line that moves on a terminal, elsewhere a line now and then.
                    let (every, begin, end) = if is_terminal { (25, "\r", "") } else { (250, "", "\n") };
                    if shows_progress && done.is_multiple_of(every) {
                        let (seconds, failed) = (begun.elapsed().as_secs(), results.1.len());
                        let _ = write!(std::io::stderr(), "{begin}{what}: {done} of {count} seeds in {seconds} s, {failed} failed {end}");
                    }
                }
            });
        }
    });
    let (mut good, mut failures) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    if is_terminal {
        let _ = writeln!(std::io::stderr());
    }
    good.sort_by_key(|(seed, _)| *seed);
    failures.sort();
    println!("{what}: {count} seeds in {:.0} s", begun.elapsed().as_secs_f64());
    for (seed, failure) in &failures {
        println!("{what}, seed {seed}: {failure}\n  again: make simulate only={what} seed={seed}");
    }
    match failures.first() {
        None => Ok(good.into_iter().map(|(_, result)| result).collect()),
        Some((seed, failure)) => Err(format!("{} of {count} seeds of {what} failed, first {seed}: {failure}", failures.len())),
    }
}
