//! A cluster of many nodes on one Linux machine, with nothing but what Debian has.
//!
//! A node is a set of namespaces (mount, PID, network, UTS, IPC) with an init of its own ([`supervisor`]), a private
//! `/run`, its own containerd and its own disk (a directory), joined to the others by a bridge ([`links`]). Killing its
//! init is a power cut: every process dies at once, memory is gone, the disk stays. The components of a node run as
//! separate processes under its init, so that each can be stopped alone.
//!
//! ```text
//!   cluster (up, down, stop, start, cut ...)        on the machine
//!      |  plan: which nodes, which components, with which flags
//!      |  links: bridge, veth pairs, cuts
//!      v
//!   launch -> init (PID 1 of the node) -> containerd, kubelet, proxy, dns, apiserver ...
//! ```
//!
//! What must stay true: everything made here is found again by its name and directory, so that any step can be run
//! twice and `down` leaves nothing: no process, mount, namespace, link, cgroup or nft table.
//!
//! What this crate does not know: Kubernetes objects, and what a drill proves.

mod balancer;
pub mod cluster;
pub mod containerd;
pub mod launch;
pub mod links;
pub mod plan;
pub mod registry;
pub mod supervisor;

/// What goes wrong when a sandbox is handled. The sentence says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
    #[error("{0}")]
    Refused(String),
    #[error("certificates: {0}")]
    Pki(#[from] pki::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was being done to an I/O error.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { doing: what(), source })
    }
}

impl<T> Doing<T> for std::result::Result<T, rustix::io::Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io { doing: what(), source: errno.into() })
    }
}

/// Runs a command of the machine to its end; its output is the error if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// The same with text on its standard input.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    use std::{io::Write, process::*};
    let command = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::Command { command: command(), output: format!("{error}; is its package installed?") })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early closes its input; its exit code says the rest.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().doing(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(Error::Command { command: command(), output: text.trim().to_string() })
}
