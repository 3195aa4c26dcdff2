//! `regent`: a whole Kubernetes in one binary. Flags, configuration and wiring; no logic.
//!
//! One file per command in `commands/`. Two names are taken before the command line is read: called as `regent-ipam` the
//! binary is a CNI plugin, and `sandbox-launch`/`sandbox-init` run before any thread exists, for they make namespaces.

mod commands;
mod progress;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// A whole Kubernetes that outlives its master.
#[derive(Parser)]
#[command(name = "regent", version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster of many nodes on this machine, for trying, testing and breaking things.
    Sandbox(commands::sandbox::Sandboxed),
    #[command(hide = true)]
    SandboxLaunch { configuration: PathBuf },
    #[command(hide = true)]
    SandboxInit { configuration: PathBuf },
}

fn main() -> std::process::ExitCode {
    match start() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("regent: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let called_as = std::env::args_os().next().unwrap_or_default();
    if Path::new(&called_as).file_name().is_some_and(|name| name == "regent-ipam") {
        std::process::exit(network::ipam_main());
    }
    match CommandLine::parse().command {
        Command::SandboxLaunch { configuration } => Ok(sandbox::launch::launch(&configuration)?),
        Command::SandboxInit { configuration } => Ok(sandbox::supervisor::run(&configuration)?),
        Command::Sandbox(arguments) => commands::sandbox::run(arguments),
    }
}
