//! `regent`: a whole Kubernetes in one binary. Flags, configuration and wiring; no logic.
//!
//! One file per command in `commands/`. Two names are taken before the command line is read: called as `regent-ipam` the
//! binary is a CNI plugin, and `sandbox-launch`/`sandbox-init` run before any thread exists, for they make namespaces.

mod backend;
mod backups;
mod bundle;
mod checkpoint;
mod commands;
mod component;
mod copier;
mod encryption;
mod etcd;
mod fencing;
mod join;
mod moving;
mod pages;
mod peers;
mod progress;
mod recovery;
mod rotation;
mod runtime;
mod security;
mod server_join;
mod topology;
mod units;
mod voters;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// An API server lives from trees of small strings that are made and dropped with every write; what that costs against the
/// C library's allocator is in docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A whole Kubernetes that outlives its master.
#[derive(Parser)]
#[command(name = "regent", version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A whole cluster in one process, with this machine as its first node.
    Server(Box<commands::server::Server>),
    /// Join a cluster as a node.
    Agent(Box<commands::agent::Agent>),
    /// The API server alone.
    Apiserver(Box<commands::apiserver::Apiserver>),
    /// A member of etcd alone; and list, remove and tend the members.
    Etcd(Box<commands::etcd::Etcd>),
    /// The scheduler alone.
    Scheduler(commands::scheduler::Scheduler),
    /// The controllers alone.
    ControllerManager(Box<commands::controller_manager::ControllerManager>),
    /// The pods of one node, and the pod network, alone.
    Kubelet(Box<commands::kubelet::Kubelet>),
    /// The routing of Services on one node, alone.
    Proxy(commands::proxy::Proxy),
    /// The cluster DNS of one node, alone.
    Dns(commands::dns::Dns),
    /// This node's own pods, logs and commands in them, with no server needed.
    Node(commands::node::Node),
    /// How long certificates are good, and new ones.
    Certs(commands::certs::Certs),
    /// Make this machine a server or a node by systemd units; run again with a newer program, it upgrades.
    Install(commands::install::Install),
    /// Undo what `install` made; data and containers stay.
    Uninstall(commands::install::Uninstall),
    /// Make, list and revoke the tokens with which nodes join.
    Token(commands::token::Token),
    /// Which keys the stored Secrets are encrypted with; a new key; all encrypted anew.
    SecretsEncrypt(commands::secrets_encrypt::SecretsEncrypt),
    /// Move the store of a stopped server between SQLite and etcd.
    Store(commands::store::StoreCommand),
    /// Save, list and restore snapshots of the cluster.
    Snapshot(Box<commands::snapshot::Snapshot>),
    /// A cluster of many nodes on this machine, for trying, testing and breaking things.
    Sandbox(commands::sandbox::Sandboxed),
    /// Failures as runnable scenarios: what keeps working, for how long it does not, what comes back.
    Drill(commands::drill::Drill),
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
        Command::Server(arguments) => commands::server::run(*arguments),
        Command::Agent(arguments) => commands::agent::run(*arguments),
        Command::Apiserver(arguments) => commands::apiserver::run(*arguments),
        Command::Etcd(arguments) => commands::etcd::run(*arguments),
        Command::Scheduler(arguments) => commands::scheduler::run(arguments),
        Command::ControllerManager(arguments) => commands::controller_manager::run(*arguments),
        Command::Kubelet(arguments) => commands::kubelet::run(*arguments),
        Command::Proxy(arguments) => commands::proxy::run(arguments),
        Command::Dns(arguments) => commands::dns::run(arguments),
        Command::Node(arguments) => commands::node::run(arguments),
        Command::Certs(arguments) => commands::certs::run(arguments),
        Command::Install(arguments) => commands::install::install(arguments),
        Command::Uninstall(arguments) => commands::install::uninstall(arguments),
        Command::Token(arguments) => commands::token::run(arguments),
        Command::SecretsEncrypt(arguments) => commands::secrets_encrypt::run(arguments),
        Command::Store(arguments) => commands::store::run(arguments),
        Command::Snapshot(arguments) => commands::snapshot::run(*arguments),
        Command::SandboxLaunch { configuration } => Ok(sandbox::launch::launch(&configuration)?),
        Command::SandboxInit { configuration } => Ok(sandbox::supervisor::run(&configuration)?),
        Command::Sandbox(arguments) => commands::sandbox::run(arguments),
        Command::Drill(arguments) => commands::drill::run(arguments),
    }
}
