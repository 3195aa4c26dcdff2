//! `regent sandbox`: a cluster of many nodes on this machine.

use crate::progress::Progress;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use sandbox::{
    cluster::{DEFAULT_DIRECTORY, Sandbox},
    plan::Options,
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
    /// Cut a node's power, or stop one component of it (apiserver, scheduler, controller-manager, kubelet, proxy, dns, containerd).
    Stop {
        node: String,
        component: Option<String>,
        /// End the component by SIGKILL.
        #[arg(long, requires = "component")]
        kill: bool,
    },
    /// Power a node on, or start one component of it.
    Start { node: String, component: Option<String> },
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
    if let Action::Up { servers, workers, images, flags } = arguments.action {
        return up(&directory, servers, workers, images, flags);
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

fn up(directory: &std::path::Path, servers: usize, workers: usize, images: PathBuf, flags: Vec<String>) -> Result<()> {
    let split = |flag: String| {
        let (component, flag) = flag.split_once('=').with_context(|| format!("--flag {flag}: expected COMPONENT=FLAG"))?;
        Ok((component.to_string(), flag.to_string()))
    };
    let extra_flags = flags.into_iter().map(split).collect::<Result<_>>()?;
    let progress = Progress::start("Bringing the sandbox up");
    let images = std::path::absolute(images)?;
    let sandbox = Sandbox::up(directory, Options { servers, workers, extra_flags }, Some(&images), |step| progress.step(step))?;
    progress.finish();
    println!("{} nodes are on. Next:\n  export KUBECONFIG={}\n  kubectl get nodes", servers + workers, sandbox.kubeconfig().display());
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
