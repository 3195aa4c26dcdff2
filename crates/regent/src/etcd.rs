//! A member of etcd as a child of this process: Debian's `etcd`, configured by flags, restarted when it dies, ended cleanly.
//!
//! The child is watched by a thread of its own, because the kernel ends the child with the *thread* that started it: so
//! a `kill -9` of this process takes etcd along, and no second start ever meets a stray first one.
//!
//! What must stay true: etcd speaks TLS only, to clients and peers that its own authority has signed; it never compacts by
//! itself, because the API servers do, and they must know how far back watches can go.

use anyhow::{Context, Result, bail};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

pub const CLIENT_PORT: u16 = 2379;
pub const PEER_PORT: u16 = 2380;
/// Changes between two of etcd's own snapshots; fewer than its default, for less memory.
const SNAPSHOT_EVERY_CHANGES: u64 = 10_000;
/// How long etcd may take to end when asked; then it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The first pause before etcd is started again, doubled up to the last.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// After this long the pause is short again.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// The program.
    pub binary: PathBuf,
    pub name: String,
    pub data_dir: PathBuf,
    /// Where the others reach it.
    pub address: IpAddr,
    /// Holds `ca.crt`, `server.crt`, `server.key`, `peer.crt` and `peer.key`.
    pub certificates: PathBuf,
    /// All first members as `name=https://address:2380`, or all members there are when this one joins. Read only by a
    /// member that has no data yet.
    pub initial_cluster: Vec<String>,
    /// Whether this one joins members that are there.
    pub joining: bool,
    /// Further flags for etcd itself; they come last and so count.
    pub extra: Vec<String>,
}

/// The address of a member for clients.
pub fn client_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, CLIENT_PORT))
}

/// The address of a member for its peers.
pub fn peer_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, PEER_PORT))
}

impl Member {
    fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.certificates.join(name).display().to_string();
        let (client, peer) = (client_url(self.address), peer_url(self.address));
        let mut listen = client.clone();
        if !self.address.is_loopback() {
            listen = format!("{client},{}", client_url(Ipv4Addr::LOCALHOST.into()));
        }
        let flags = [
            ("name", self.name.clone()),
            ("data-dir", self.data_dir.display().to_string()),
            ("listen-client-urls", listen),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", self.initial_cluster.join(",")),
            ("initial-cluster-token", "regent".into()),
            ("initial-cluster-state", if self.joining { "existing" } else { "new" }.into()),
            ("client-cert-auth", "true".into()),
            ("trusted-ca-file", file("ca.crt")),
            ("cert-file", file("server.crt")),
            ("key-file", file("server.key")),
            ("peer-client-cert-auth", "true".into()),
            ("peer-trusted-ca-file", file("ca.crt")),
            ("peer-cert-file", file("peer.crt")),
            ("peer-key-file", file("peer.key")),
            ("snapshot-count", SNAPSHOT_EVERY_CHANGES.to_string()),
            ("log-level", "warn".into()),
        ];
        let own = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        own.chain(store::etcd::flags::tuning_of(&self.version())).chain(self.extra.iter().cloned()).collect()
    }

    /// What the program says of itself; nothing if it cannot be run, which starting it will tell.
    fn version(&self) -> String {
        let said = std::process::Command::new(&self.binary).arg("--version").output();
        said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    /// Whether this member has been started before.
    pub fn has_data(&self) -> bool {
        self.data_dir.join("member").exists()
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(self.arguments()).stdin(Stdio::null()).kill_on_drop(true);
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
        }
        command.spawn().with_context(|| format!("starting {} (Debian's package etcd-server has it)", self.binary.display()))
    }

    /// Runs the member until the shutdown. Fails at once if the program is not there.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let (ended, end) = tokio::sync::oneshot::channel();
        let supervise = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting etcd's supervisor");
            let outcome = runtime.and_then(|runtime| runtime.block_on(self.supervise(shutdown)));
            let _ = ended.send(outcome);
        };
        std::thread::Builder::new().name("etcd".into()).spawn(supervise).context("starting etcd's supervisor")?;
        end.await.unwrap_or_else(|_| bail!("etcd's supervisor has panicked"))
    }

    async fn supervise(self, shutdown: CancellationToken) -> Result<()> {
        std::fs::create_dir_all(&self.data_dir).with_context(|| format!("making {}", self.data_dir.display()))?;
        // etcd refuses a directory that others may read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&self.data_dir, private).with_context(|| format!("protecting {}", self.data_dir.display()))?;
        let mut pause = RESTART_PAUSE.0;
        loop {
            let started = Instant::now();
            let mut child = self.spawn()?;
            tracing::info!(member = self.name, pid = child.id(), "etcd runs");
            let status = tokio::select! {
                status = child.wait() => status.context("waiting for etcd")?,
                () = shutdown.cancelled() => return stop(child).await,
            };
            if started.elapsed() > STEADY_AFTER {
                pause = RESTART_PAUSE.0;
            }
            tracing::error!(member = self.name, %status, pause_ms = pause.as_millis() as u64, "etcd has ended and is started again; its own log says why");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RESTART_PAUSE.1),
            }
        }
    }
}

/// Asks etcd to end: it hands its leadership over first.
async fn stop(mut child: Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(STOP_GRACE, child.wait()).await.is_err() {
        tracing::warn!("etcd did not end in time and is killed");
        child.kill().await.context("killing etcd")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        let member = Member {
            binary: "etcd".into(),
            name: "a".into(),
            data_dir: "/d".into(),
            address: "10.0.0.1".parse().unwrap(),
            certificates: "/c".into(),
            initial_cluster: vec!["a=https://10.0.0.1:2380".into(), "b=https://10.0.0.2:2380".into()],
            joining: true,
            extra: vec!["--election-timeout=2000".into()],
        };
        let flags = member.arguments();
        for expected in [
            "--listen-client-urls=https://10.0.0.1:2379,https://127.0.0.1:2379",
            "--initial-cluster=a=https://10.0.0.1:2380,b=https://10.0.0.2:2380",
            "--initial-cluster-state=existing",
            "--client-cert-auth=true",
            "--peer-cert-file=/c/peer.crt",
            "--auto-compaction-retention=0",
        ] {
            assert!(flags.iter().any(|flag| flag == expected), "{expected} is not in {flags:?}");
        }
        assert_eq!(flags.last().unwrap(), "--election-timeout=2000");
        assert!(flags.iter().all(|flag| !flag.contains("http://")), "{flags:?}");
    }
}
