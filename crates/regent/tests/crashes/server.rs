//! One `regent apiserver` as a process on a loopback address of its own, which can be killed and started again on its data.
//!
//! What must stay true: it dies with the test, also with one that is killed.

use super::etcd::{Cluster, address};
use pki::{Authority, Identity, Kubeconfig, ServiceAccountKeys};
use rustix::process::Signal;
use std::{
    fs,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

/// How long a start may take.
const START: Duration = Duration::from_secs(60);

/// Where the server's objects lie.
pub enum Backend {
    Sqlite,
    Etcd { url: String, issued: pki::Issued },
}

impl Backend {
    pub fn of(cluster: &Cluster) -> Backend {
        Backend::Etcd { url: cluster.members()[0].client_url(), issued: cluster.client().clone() }
    }
}

/// A server that runs, or is dead.
pub struct Process {
    directory: tempfile::TempDir,
    address: Ipv4Addr,
    flags: Vec<String>,
    kubeconfig: String,
    child: Option<Child>,
}

impl Process {
    pub fn new(backend: Backend) -> Process {
        let directory = tempfile::Builder::new().prefix("regent-crashes-").tempdir().expect("a directory");
        let address = address();
        let url = format!("https://{address}:6443");
        let file = |name: &str| directory.path().join(name).display().to_string();
        let authority = Authority::load_or_create(directory.path()).expect("an authority");
        ServiceAccountKeys::load_or_create(directory.path()).expect("keys");
        let serving = Identity::apiserver([10, 96, 0, 1].into(), "cluster.local", &[address.to_string()]);
        authority.issue_kept(directory.path(), "apiserver", &serving).expect("a certificate");
        authority.issue_kept(directory.path(), "kubelet", &Identity::apiserver_kubelet_client()).expect("a certificate");
        let admin = authority.issue(&Identity::admin()).expect("a certificate");
        let mut flags = vec![
            "apiserver".into(),
            format!("--data-dir={}", file("data")),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--kubelet-client-certificate={}", file("kubelet.crt")),
            format!("--kubelet-client-key={}", file("kubelet.key")),
        ];
        if let Backend::Etcd { url, issued } = backend {
            let files = [("crt", issued.certificate_pem), ("key", issued.key_pem), ("ca", issued.authority_pem)];
            for (end, text) in files {
                fs::write(file(&format!("etcd.{end}")), text).expect("a file");
            }
            flags.extend([
                format!("--etcd-servers={url}"),
                format!("--etcd-cafile={}", file("etcd.ca")),
                format!("--etcd-certfile={}", file("etcd.crt")),
                format!("--etcd-keyfile={}", file("etcd.key")),
            ]);
        }
        let kubeconfig = Kubeconfig::of(&url, &admin, "admin").to_yaml();
        Process { directory, address, flags, kubeconfig, child: None }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The last lines that it wrote.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    pub fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_regent"));
        command.args(&self.flags).stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        // SAFETY: one system call between fork and exec, which touches no memory of ours.
        unsafe { command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)) };
        self.child = Some(command.spawn().expect("the server starts"));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the server ended by itself, {status}:\n{}", self.log());
            }
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }

    /// Waits until it takes requests.
    pub async fn wait_ready(&mut self) {
        let deadline = Instant::now() + START;
        let client = self.client().await;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            if client.request_text(request).await.is_ok() {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none(), "the server ended by itself, {ended:?}:\n{}", self.log());
            assert!(Instant::now() < deadline, "the server does not become ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A client with connections of its own.
    pub async fn client(&self) -> kube::Client {
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&self.kubeconfig).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("a configuration");
        kube::Client::try_from(config).unwrap_or_else(|why| panic!("a client of {}: {why}", self.address))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tries until there is a value.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut done: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + START;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
