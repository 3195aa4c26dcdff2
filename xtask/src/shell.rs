//! Running other programs, with errors that say which and why.

use anyhow::{Context, Result, bail};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Runs a command to its end; its output only shows if it fails.
pub fn sh(program: &str, arguments: &[&str]) -> Result<String> {
    sh_in(Path::new("."), program, arguments)
}

/// The same in another directory.
pub fn sh_in(directory: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{program}`; is it installed?"))?;
    if !output.status.success() {
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let end: Vec<&str> = text.lines().rev().take(15).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!("`{program} {}` failed ({}):\n{}", arguments.join(" "), output.status, end.join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command whose output the user should see.
pub fn show(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .status()
        .with_context(|| format!("cannot run `{program}`; is it installed?"))?;
    if !status.success() {
        bail!("`{program} {}` failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Whether a program is on the PATH (or in Debian's sbin directories).
pub fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).exists())
}

/// Looks again and again until it holds, at most `seconds`; the last error is the answer then.
pub fn wait(seconds: u64, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Waits until all four nodes of a sandbox are Ready.
pub fn nodes_ready(kubeconfig: &str) -> Result<()> {
    wait(60, || {
        let nodes = sh("kubectl", &["--kubeconfig", kubeconfig, "get", "nodes", "--no-headers"])?;
        if nodes.matches(" Ready").count() == 4 { Ok(()) } else { bail!("these nodes are there:\n{nodes}") }
    })
    .context("the nodes did not become Ready; see `regent sandbox logs NODE kubelet`")
}
