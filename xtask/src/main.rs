//! Developer tasks behind `make`: what is more than one line of shell.

mod bench;
mod clients;
mod images;
mod load;
mod setup;
mod shell;
mod tidy;
mod up;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer tasks; `make help` lists the usual ones.
#[derive(Parser)]
#[command(name = "xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing from Debian's packages, and a kubectl if there is none.
    Setup {
        /// What the build that follows takes under `target`, in GB.
        #[arg(long, default_value_t = 5)]
        room_gb: u64,
    },
    /// Fetch the clients that the end-to-end tests use into target/clients.
    Clients,
    /// Build the container images from Debian packages into target/images.
    Images,
    /// Check the house rules: file headers, crate arrows, banned calls.
    Tidy,
    /// Measure start, memory and time to serve, as a table for the README.
    Bench {
        #[arg(long, default_value = "target/release/regent")]
        regent: std::path::PathBuf,
    },
    /// Drive the API server over HTTPS, phase by phase: CPU per operation and memory, as tables for docs/performance.md.
    Load(load::Load),
    /// Bring a sandbox up, run nginx in it, and show that it answers.
    Up {
        /// The `regent` binary to use.
        #[arg(long, default_value = "target/release/regent")]
        regent: std::path::PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    match CommandLine::parse().task {
        Task::Setup { room_gb } => setup::run(room_gb),
        Task::Clients => clients::run(),
        Task::Images => images::build(),
        Task::Tidy => tidy::run(),
        Task::Bench { regent } => bench::run(&regent),
        Task::Load(load) => load::run(&load),
        Task::Up { regent } => up::run(&regent),
    }
}
