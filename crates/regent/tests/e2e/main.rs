//! The cluster end to end: a sandbox of one server and three workers with real containers, driven by an unchanged kubectl;
//! after it another one of three servers.
//!
//! `make e2e` runs all of it, `make e2e only=WORD` what has WORD in its name. With `REGENT_E2E_KEEP=1` the sandbox is left
//! running (and found again by the next run). Scenarios that disturb nobody run side by side, each in a namespace of its own;
//! those that break things run alone, one after another. A scenario waits for conditions and never sleeps a guess.

mod cluster;
mod drills;
mod health;
mod scenarios;

use cluster::{Cluster, ONE_SERVER, Shape, THREE_SERVERS};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Scenarios that run at the same time.
const SIDE_BY_SIDE: usize = 4;

/// What a scenario says when it does not hold.
pub type Outcome = Result<(), String>;

/// One thing that the cluster must do.
pub struct Scenario {
    pub name: &'static str,
    pub run: fn(&Cluster, &str) -> Outcome,
    /// Whether it breaks what others stand on.
    pub alone: bool,
}

struct Report {
    passed: usize,
    failed: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if let [command, port] = &words[..]
        && command == health::COMMAND
    {
        let outcome = port.parse().map_err(|_| format!("{port} is not a port")).and_then(health::serve);
        return outcome.map_or_else(
            |why| {
                eprintln!("{why}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let mut passed = 0;
    let mut failed = Vec::new();
    // A sandbox that stays up leaves no room for another one.
    let room = std::env::var_os("REGENT_E2E_KEEP").is_none();
    for (shape, all) in [(&ONE_SERVER, &scenarios::ALL[..]), (&THREE_SERVERS, &scenarios::MANY_MASTERS[..])] {
        let chosen: Vec<&Scenario> =
            all.iter().copied().flatten().filter(|s| words.is_empty() || words.iter().any(|w| s.name.contains(w.as_str()))).collect();
        if chosen.is_empty() {
            continue;
        }
        match run_in(shape, chosen) {
            Ok(report) => {
                passed += report.passed;
                failed.extend(report.failed);
            }
            Err(why) => failed.push(format!("the sandbox did not come up: {why}")),
        }
        if !room {
            break;
        }
    }
    for (name, drill) in drills::ALL.iter().filter(|(name, _)| room && (words.is_empty() || words.iter().any(|w| name.contains(w.as_str())))) {
        let started = Instant::now();
        let outcome = drill();
        let seconds = started.elapsed().as_secs_f64();
        println!("test {name} ... {} ({seconds:.1} s)", if outcome.is_ok() { "ok" } else { "FAILED" });
        match outcome {
            Ok(()) => passed += 1,
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    for failure in &failed {
        println!("FAILED {failure}\n");
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Brings a sandbox up, runs scenarios in it, and takes it down.
fn run_in(shape: &Shape, chosen: Vec<&Scenario>) -> Result<Report, String> {
    let started = Instant::now();
    let cluster = Cluster::up(shape)?;
    println!("sandbox ready after {:.1} s; {} scenarios", started.elapsed().as_secs_f64(), chosen.len());
    let report = Mutex::new(Report { passed: 0, failed: Vec::new() });
    let (alone, together): (Vec<&Scenario>, Vec<&Scenario>) = chosen.into_iter().partition(|s| s.alone);
    let queue = Mutex::new(VecDeque::from(together));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    match next {
                        Some(scenario) => run(&cluster, scenario, &report),
                        None => return,
                    }
                }
            });
        }
    });
    for scenario in alone {
        run(&cluster, scenario, &report);
    }
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Err(why) = cluster.down() {
        report.failed.push(format!("taking the sandbox down: {why}"));
    }
    Ok(report)
}

fn run(cluster: &Cluster, scenario: &Scenario, report: &Mutex<Report>) {
    let started = Instant::now();
    let namespace = format!("e2e-{}", scenario.name.replace('_', "-"));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        cluster.kubectl(&format!("create namespace {namespace}"))?;
        // Made by a controller; a pod without it is refused. After a failover this takes as long as the lease.
        cluster.wait("the namespace's service account", 40, || cluster.kubectl(&format!("get serviceaccount default -n {namespace}")).map(|_| ()))?;
        (scenario.run)(cluster, &namespace)
    }))
    .unwrap_or_else(|panic| Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into())));
    let seconds = started.elapsed().as_secs_f64();
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(()) => {
            println!("test {} ... ok ({seconds:.1} s)", scenario.name);
            report.passed += 1;
            drop(report);
            let _ = cluster.kubectl(&format!("delete namespace {namespace} --wait=false"));
        }
        Err(why) => {
            println!("test {} ... FAILED ({seconds:.1} s)", scenario.name);
            let state = cluster.kubectl(&format!("get all,events -o wide -n {namespace}")).unwrap_or_else(|e| e);
            report.failed.push(format!("{}: {why}\n--- what is in {namespace}:\n{state}", scenario.name));
        }
    }
}
