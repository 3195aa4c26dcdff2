//! The simulations under many seeds: `make simulate`.
//!
//! Every world runs in a process of its own (this program again), so that whatever is static in a process is new in each, and so
//! that a seed is the same run wherever it stands in the list. This is also where the C library's `getrandom` is given by the
//! seed; see `simulation::chance`.

use simulation::{checks::Figures, faults, sabotage::Sabotage, seeds};
use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

/// Worlds that a run goes through.
const WORLDS_DEFAULT: u64 = 40;
/// Seeds that a sabotage may take to be found.
const SABOTAGED_MAX: u64 = 60;
/// A world that has not ended by then hangs.
const WORLD_MAX: Duration = Duration::from_secs(300);
/// Says to this program which world it is.
const WORLD: &str = "REGENT_SIMULATED_WORLD";

/// The C library's source of randomness, for all of this program: `HashMap`s, tokio and `rand` ask it.
///
/// # Safety
/// As getrandom(2): `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller says so.
    simulation::chance::fill(unsafe { std::slice::from_raw_parts_mut(buffer, length) });
    isize::try_from(length).unwrap_or(isize::MAX)
}

fn main() -> ExitCode {
    if let Ok(seed) = std::env::var(WORLD) {
        return one(seed.parse().expect("a seed is a number"));
    }
    // As with other tests, a word on the command line says which.
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let only = std::env::var("REGENT_ONLY").ok().filter(|only| !only.is_empty()).or(word).unwrap_or_default();
    let is_wanted = |name: &str| only.is_empty() || only == name;
    let mut failures = Vec::new();
    if is_wanted("world") {
        failures.extend(worlds().err());
    }
    if is_wanted("again") && std::env::var("REGENT_SEED").is_err() {
        failures.extend(again().err());
    }
    if is_wanted("sabotage") && std::env::var("REGENT_SEED").is_err() {
        failures.extend(sabotaged().err());
    }
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This process is one world.
fn one(seed: u64) -> ExitCode {
    simulation::chance::seed(seed);
    let shared = PathBuf::from("/dev/shm");
    let root = if shared.is_dir() { shared } else { std::env::temp_dir() };
    // Not a random name: nothing random may depend on anything but the seed.
    let place = root.join(format!("regent-world-{}", std::process::id()));
    let outcome = std::panic::catch_unwind(|| faults::run(seed, &place, Sabotage::asked()));
    let _ = std::fs::remove_dir_all(&place);
    match outcome {
        Ok(Ok(outcome)) => {
            println!("well {:016x} {}", outcome.trace, outcome.figures.write());
            ExitCode::SUCCESS
        }
        Ok(Err(failure)) => {
            println!("failure {}", failure.replace('\n', "\\n"));
            ExitCode::FAILURE
        }
        Err(_) => {
            println!("failure a panic");
            ExitCode::FAILURE
        }
    }
}

/// Runs a world in its own process: its trace and its figures.
fn simulate(seed: u64, sabotage: Option<&str>) -> Result<(String, Figures), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.env(WORLD, seed.to_string()).stdout(Stdio::piped());
    match sabotage {
        Some(name) => command.env("REGENT_SABOTAGE", name).env_remove("REGENT_SEED"),
        None => &mut command,
    };
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let id = child.id();
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stdout) = stdout {
            let _ = std::io::Read::read_to_string(&mut stdout, &mut text);
        }
        text
    });
    let begun = std::time::Instant::now();
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if begun.elapsed() > WORLD_MAX {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_dir_all(format!("/dev/shm/regent-world-{id}"));
            return Err(format!("it has not ended after {} s", WORLD_MAX.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = reader.join().unwrap_or_default();
    let (told, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
    if seeds::is_told() && sabotage.is_none() {
        println!("{told}");
    }
    match last.strip_prefix("well ").and_then(|rest| rest.split_once(' ')) {
        Some((trace, figures)) => Ok((trace.to_owned(), Figures::read(figures))),
        None => Err(last.strip_prefix("failure ").unwrap_or("it has ended without a word").replace("\\n", "\n")),
    }
}

fn worlds() -> Result<(), String> {
    let results = seeds::run("world", WORLDS_DEFAULT, |seed| simulate(seed, None))?;
    let mut figures = Figures::default();
    results.into_iter().for_each(|(_, one)| figures.add(one));
    println!("  {}", figures.text());
    Ok(())
}

/// The same seed is the same run.
fn again() -> Result<(), String> {
    for seed in [3, 8, 21, 95] {
        let (first, second) = (simulate(seed, None)?, simulate(seed, None)?);
        if first.0 != second.0 {
            return Err(format!("two runs of seed {seed} differ"));
        }
    }
    println!("again: two runs of a seed are the same");
    Ok(())
}

/// Every checker fails when the mechanism is switched off that it is there for.
fn sabotaged() -> Result<(), String> {
    let mut missed = Vec::new();
    for (_, name, words) in Sabotage::ALL {
        let found = (0..SABOTAGED_MAX).find_map(|seed| {
            let failure = simulate(seed, Some(name)).err()?;
            words.iter().any(|word| failure.contains(word)).then_some((seed, failure))
        });
        match found {
            Some((seed, failure)) => println!("sabotage {name}: found with seed {seed}: {}", failure.lines().next().unwrap_or_default()),
            None => missed.push(format!("the sabotage {name} is not found in {SABOTAGED_MAX} seeds")),
        }
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("\n")) }
}
