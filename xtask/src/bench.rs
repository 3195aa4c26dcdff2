//! `make bench`: the figures in the README, measured on this machine: start, memory at rest, time to serve.

use crate::shell::{self, sh, wait};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PORT: u16 = 16443;
/// How long a process is left alone before its memory is read, in seconds.
const REST_S: u64 = 20;
/// Runs of what is quick; the median is told.
const RUNS: usize = 5;

/// A process that ends with its owner.
pub struct Running(Child);

impl Running {
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(regent: &Path) -> Result<()> {
    // Absolute: a command inside a node starts at its root.
    let binary = std::path::absolute(regent)?.display().to_string();
    println!("| what | figure |\n|---|---|");
    println!("| size of the binary | {:.0} MB |", fs::metadata(regent)?.len() as f64 / 1e6);
    let mut starts = Vec::new();
    for run in 0..RUNS {
        let (server, seconds) = start(regent, "target/bench-server", PORT, &["--disable=agent"])?;
        starts.push(seconds);
        if run + 1 == RUNS {
            std::thread::sleep(Duration::from_secs(REST_S));
            println!("| memory of the idle server process (API server, scheduler, controllers, store) | {} MiB |", rss_mib(server.id())?);
        }
    }
    println!("| `regent server` to `/readyz` ok, new data directory, median of {RUNS} | {:.2} s |", median(starts));
    let directory = std::path::absolute("target/bench-sandbox")?.display().to_string();
    let sandbox = |arguments: &[&str]| {
        let mut all = vec!["sandbox", "--dir", &directory];
        all.extend(arguments);
        sh(&binary, &all)
    };
    let outcome = in_sandbox(&sandbox, &binary);
    let down = sandbox(&["down"]);
    outcome.and(down).map(|_| ())
}

fn in_sandbox(sandbox: &dyn Fn(&[&str]) -> Result<String>, binary: &str) -> Result<String> {
    let begun = Instant::now();
    sandbox(&["up"])?;
    let kubeconfig = sandbox(&["kubeconfig"])?.trim().to_string();
    let kubectl = |arguments: &[&str]| {
        let mut all = vec!["--kubeconfig", kubeconfig.as_str()];
        all.extend(arguments);
        sh("kubectl", &all)
    };
    shell::nodes_ready(&kubeconfig)?;
    println!("| a sandbox of four nodes up and Ready (images in its registry included) | {:.1} s |", begun.elapsed().as_secs_f64());
    // The first time brings the image to the nodes.
    let mut served = Vec::new();
    for run in 0..=RUNS {
        let begun = Instant::now();
        kubectl(&["apply", "-f", "examples/nginx-deploy.yaml", "-f", "examples/nginx-svc.yaml"])?;
        kubectl(&["rollout", "status", "deployment/nginx-deploy", "--timeout=60s"])?;
        if run > 0 {
            served.push(begun.elapsed().as_secs_f64());
        }
        kubectl(&["delete", "-f", "examples/", "--wait=true"])?;
        wait(60, || if kubectl(&["get", "pods"])?.trim().is_empty() { Ok(()) } else { bail!("pods are left") })?;
    }
    println!("| `kubectl apply` of 3 nginx and a NodePort to the last pod Ready, image present, median of {RUNS} | {:.1} s |", median(served));
    // The same node as one process.
    for component in ["kubelet", "proxy", "dns"] {
        sandbox(&["stop", "worker-3", component])?;
    }
    let token = sh(binary, &["token", "--kubeconfig", &kubeconfig, "create"])?.trim().to_string();
    let directory = sandbox(&["kubeconfig"])?.trim().trim_end_matches("/admin.kubeconfig").to_string();
    let cni = format!("--cni-bin-dir={directory}/nodes/worker-3/cni-bin");
    let plan = fs::read_to_string(format!("{directory}/nodes/worker-3/node.json"))?;
    let cgroup = plan.split('"').find(|part| part.starts_with("--cgroup-root=")).context("the node's plan names no --cgroup-root")?;
    let flags = ["--server=https://172.30.0.11:6443", "--node-name=worker-3", "--node-ip=172.30.0.23", cgroup, &cni];
    let log = fs::File::create(format!("{directory}/agent.log"))?;
    let mut command = Command::new(binary);
    command.args(["sandbox", "--dir", &directory, "exec", "worker-3", "--", binary, "agent"]).args(flags);
    let agent = Running(command.env("REGENT_TOKEN", token).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    wait(60, || {
        let log = fs::read_to_string(format!("{directory}/agent.log"))?;
        if log.contains("joined the cluster") { Ok(()) } else { bail!("{log}") }
    })?;
    std::thread::sleep(Duration::from_secs(REST_S));
    // nsenter forks for the PID namespace: the agent is its child.
    let child = sh("pgrep", &["-P", &agent.0.id().to_string()]).unwrap_or_default();
    let pid = child.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or(agent.0.id());
    println!("| memory of an idle agent process (kubelet, proxy, DNS) | {} MiB |", rss_mib(pid)?);
    let _ = sh("kill", &[&pid.to_string()]);
    Ok(String::new())
}

/// Starts a server with a new data directory (`data` in `directory`) and waits until it is ready; how long that took, in seconds.
pub fn start(regent: &Path, directory: &str, port: u16, flags: &[&str]) -> Result<(Running, f64)> {
    let directory = Path::new(directory);
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)?;
    let log = fs::File::create(directory.join("log"))?;
    let begun = Instant::now();
    let child = Command::new(regent)
        .args(["server", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        .args(flags)
        .arg(format!("--secure-port={port}"))
        .arg(format!("--data-dir={}", directory.join("data").display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the server")?;
    let running = Running(child);
    let url = format!("https://127.0.0.1:{port}/readyz");
    let deadline = begun + Duration::from_secs(30);
    while shell::sh("curl", &["--silent", "--fail", "--insecure", "--max-time", "1", &url]).is_err() {
        if Instant::now() > deadline {
            bail!("the server did not become ready; see {}", directory.join("log").display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((running, begun.elapsed().as_secs_f64()))
}

/// The memory of a process that is in use now.
pub fn rss_mib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
    Ok(kib / 1024)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
