//! `regent sandbox`: a cluster of many nodes on this machine.

use crate::progress::Progress;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use sandbox::{
    cluster::{DEFAULT_DIRECTORY, Sandbox},
    plan::{Options, StoreKind},
};
use std::{os::unix::process::CommandExt, path::PathBuf};

#[derive(Args)]
pub struct Sandboxed {
    /// Where the sandbox lives: the disks of its nodes, its certificates, its logs.
    #[arg(long, global = true, default_value = DEFAULT_DIRECTORY)]
    dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a cluster, or start what is missing of it.
    Up {
        #[arg(long, default_value_t = 1)]
        servers: usize,
        #[arg(long, default_value_t = 3)]
        workers: usize,
        /// What the API servers keep their objects in: sqlite, or etcd with a member on each server [default: etcd for several servers].
        #[arg(long, value_parser = ["sqlite", "etcd"])]
        store: Option<String>,
        /// Put etcd on this many nodes of its own instead of on the servers.
        #[arg(long, default_value_t = 0, value_name = "NODES")]
        etcd: usize,
        /// The directory of images for the sandbox's registry, made by `make images`.
        #[arg(long, default_value = "target/images")]
        images: PathBuf,
        /// A further flag for one component on every node that runs it, as COMPONENT=FLAG; can be repeated.
        #[arg(long = "flag", value_name = "COMPONENT=FLAG")]
        flags: Vec<String>,
    },
    /// Stop every node and remove all traces of it.
    Down {
        /// Keep the disks, for a later `up`.
        #[arg(long)]
        keep: bool,
    },
    /// Which nodes and components run.
    Status,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Cut a node's power, or stop one component of it (apiserver, scheduler, controller-manager, etcd, kubelet, proxy, dns, containerd).
    Stop {
        node: String,
        component: Option<String>,
        /// End the component by SIGKILL.
        #[arg(long, requires = "component")]
        kill: bool,
    },
    /// Power a node on, or start one component of it.
    Start { node: String, component: Option<String> },
    /// Halt one component where it stands (SIGSTOP), as if the machine hung.
    Pause { node: String, component: String },
    /// Let a halted component go on.
    Resume { node: String, component: String },
    /// Cut a node's power and power it on again.
    Reboot { node: String },
    /// Break a node's cable: to the nodes named, or to everyone.
    Cut { node: String, peers: Vec<String> },
    /// Heal what `cut` broke.
    Heal { node: String, peers: Vec<String> },
    /// Run a command inside a node.
    Exec {
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print the log of a component.
    Logs {
        node: String,
        component: String,
        /// Go on printing as it grows.
        #[arg(short, long)]
        follow: bool,
    },
}

pub fn run(arguments: Sandboxed) -> Result<()> {
    let directory = std::path::absolute(&arguments.dir)?;
    if let Action::Up { servers, workers, store, etcd, images, flags } = arguments.action {
        let store = match store.as_deref() {
            Some("sqlite") => StoreKind::Sqlite,
            Some(_) => StoreKind::Etcd,
            None if servers > 1 || etcd > 0 => StoreKind::Etcd,
            None => StoreKind::Sqlite,
        };
        let options = Options { servers, workers, store, etcd_nodes: etcd, extra_flags: extra_flags(flags)? };
        return up(&directory, options, images);
    }
    let sandbox = Sandbox::open(&directory)?;
    match arguments.action {
        Action::Up { .. } => {}
        Action::Down { keep } => {
            let progress = Progress::start("Taking the sandbox down");
            sandbox.down(keep)?;
            progress.finish();
            println!("The sandbox is gone{}.", if keep { "; its disks are kept" } else { "" });
        }
        Action::Status => status(&sandbox),
        Action::Kubeconfig => println!("{}", sandbox.kubeconfig().display()),
        Action::Stop { node, component, kill } => sandbox.stop(&node, component.as_deref(), kill)?,
        Action::Start { node, component } => sandbox.start(&node, component.as_deref())?,
        Action::Pause { node, component } => sandbox.set_paused(&node, &component, true)?,
        Action::Resume { node, component } => sandbox.set_paused(&node, &component, false)?,
        Action::Reboot { node } => sandbox.reboot(&node)?,
        Action::Cut { node, peers } => sandbox.set_cut(&node, &peers, true)?,
        Action::Heal { node, peers } => sandbox.set_cut(&node, &peers, false)?,
        Action::Exec { node, command } => return Err(sandbox.command(&node, &command)?.exec()).context("running nsenter (package util-linux)"),
        Action::Logs { node, component, follow } => {
            let log = sandbox.node(&node)?.log(&component);
            let mut tail = std::process::Command::new("tail");
            tail.arg("-n").arg("+1").args(follow.then_some("-F")).arg(log);
            return Err(tail.exec()).context("running tail");
        }
    }
    Ok(())
}

/// `COMPONENT=FLAG` each.
fn extra_flags(flags: Vec<String>) -> Result<Vec<(String, String)>> {
    let split = |flag: String| {
        let (component, flag) = flag.split_once('=').with_context(|| format!("--flag {flag}: expected COMPONENT=FLAG"))?;
        Ok((component.to_string(), flag.to_string()))
    };
    flags.into_iter().map(split).collect()
}

fn up(directory: &std::path::Path, options: Options, images: PathBuf) -> Result<()> {
    let nodes = options.servers + options.workers;
    let progress = Progress::start("Bringing the sandbox up");
    let images = std::path::absolute(images)?;
    let sandbox = Sandbox::up(directory, options, Some(&images), |step| progress.step(step))?;
    progress.finish();
    println!("{nodes} nodes are on. Next:\n  export KUBECONFIG={}\n  kubectl get nodes", sandbox.kubeconfig().display());
    Ok(())
}

fn status(sandbox: &Sandbox) {
    println!("{:<12} {:<14} {:<9} COMPONENTS", "NODE", "ADDRESS", "INIT");
    for node in sandbox.status() {
        let init = node.init.map_or("off".to_string(), |pid| pid.to_string());
        let describe = |c: &sandbox::supervisor::State| match c.pid {
            Some(pid) => format!("{} ({pid}{})", c.name, if c.starts > 1 { format!(", {} starts", c.starts) } else { String::new() }),
            None => format!("{} ({})", c.name, if c.wanted { "restarting" } else { "stopped" }),
        };
        println!("{:<12} {:<14} {:<9} {}", node.name, node.address, init, node.components.iter().map(describe).collect::<Vec<_>>().join(" "));
    }
}
