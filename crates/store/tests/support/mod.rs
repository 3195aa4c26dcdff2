//! Real etcd for tests: a cluster of any size on loopback addresses of its own, with TLS and client certificates, whose members can be
//! killed, paused, cut off and started again. Used by other crates' tests too, with `#[path]`.
//!
//! What must stay true: nothing is left behind, neither processes nor files, also when a test panics.

#![allow(dead_code)]

pub mod history;
pub mod proxy;

use pki::{Authority, Identity, Issued};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt, chown},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use store::{
    Store,
    etcd::{Config, Etcd, flags},
};

/// How long a cluster may take to start or to elect a leader, in seconds.
pub const PATIENCE_S: u64 = 30;

/// A running etcd cluster.
pub struct Cluster {
    directory: tempfile::TempDir,
    credentials: Credentials,
    members: Vec<Process>,
    extra_flags: Vec<String>,
    /// The table of nftables that cuts members off, once one has been.
    cuts: Option<String>,
}

struct Credentials {
    authority: Authority,
    client: Issued,
}

/// One member; its process may be dead.
pub struct Process {
    pub name: String,
    pub address: Ipv4Addr,
    state: String,
    initial_cluster: String,
    /// The user that it runs as, if we may choose: so that the kernel can tell its packets from the others'.
    user: Option<u32>,
    child: Option<Child>,
}

impl Process {
    pub fn client_url(&self) -> String {
        format!("https://{}:2379", self.address)
    }

    pub fn peer_url(&self) -> String {
        format!("https://{}:2380", self.address)
    }
}

/// A loopback address that no other test process uses: the process's number picks the network, a counter the host.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = NEXT.fetch_update(Relaxed, Relaxed, |n| Some(if n >= 250 { 1 } else { n + 1 })).unwrap_or(1);
    Ipv4Addr::new(127, 16 + high % 200, low, host)
}

/// Splitmix64: a stream of numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What etcd says of itself.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| match Command::new("etcd").arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => panic!("etcd cannot be run ({error}); install it: apt-get install etcd-server"),
    })
}

fn notify(every_s: u64) -> String {
    format!("notify-interval={every_s}s")
}

fn nft(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft is needed: apt-get install nftables");
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses: {rules}");
}

impl Cluster {
    /// Starts `count` members and waits until they serve.
    pub async fn start(count: usize) -> Cluster {
        Cluster::start_with(count, &[]).await
    }

    /// The same with further flags for etcd.
    pub async fn start_with(count: usize, extra_flags: &[&str]) -> Cluster {
        let authority = Authority::generate("etcd-ca").unwrap();
        let client = authority.issue(&Identity::apiserver_etcd_client()).unwrap();
        let mut cluster = Cluster {
            directory: tempfile::Builder::new().prefix("regent-etcd-").tempdir().unwrap(),
            credentials: Credentials { authority, client },
            members: Vec::new(),
            extra_flags: extra_flags.iter().map(|flag| flag.to_string()).collect(),
            cuts: None,
        };
        std::fs::set_permissions(cluster.directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        for i in 0..count {
            cluster.place(&format!("etcd-{}", i + 1), "new");
        }
        let all: Vec<String> = cluster.members.iter().map(|member| format!("{}={}", member.name, member.peer_url())).collect();
        for i in 0..count {
            cluster.members[i].initial_cluster = all.join(",");
            cluster.launch(i);
        }
        cluster.wait_ready().await;
        cluster
    }

    fn place(&mut self, name: &str, state: &str) -> usize {
        let address = address();
        let issued = self.credentials.authority.issue(&Identity::etcd_member(name, &[IpAddr::V4(address)])).unwrap();
        for (file, text) in [("crt", &issued.certificate_pem), ("key", &issued.key_pem), ("ca", &issued.authority_pem)] {
            std::fs::write(self.path(name, file), text).unwrap();
        }
        std::fs::create_dir(self.path(name, "data")).unwrap();
        std::fs::set_permissions(self.path(name, "data"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let [.., network, host] = address.octets();
        let user = geteuid().is_root().then(|| 100_000 + (u32::from(address.octets()[1]) << 16) + (u32::from(network) << 8) + u32::from(host));
        if let Some(user) = user {
            for file in ["crt", "key", "ca", "data"] {
                chown(self.path(name, file), Some(user), Some(user)).unwrap();
            }
        }
        let member = Process { name: name.into(), address, state: state.into(), initial_cluster: String::new(), user, child: None };
        self.members.push(member);
        self.members.len() - 1
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.{kind}"))
    }

    fn launch(&mut self, i: usize) {
        let member = &self.members[i];
        let file = |kind: &str| self.path(&member.name, kind).display().to_string();
        let (client, peer) = (member.client_url(), member.peer_url());
        let log = std::fs::File::options().create(true).append(true).open(file("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &member.name, "--data-dir", &file("data")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &member.initial_cluster, "--initial-cluster-state", &member.state])
            .args(["--cert-file", &file("crt"), "--key-file", &file("key"), "--trusted-ca-file", &file("ca"), "--client-cert-auth"])
            .args(["--peer-cert-file", &file("crt"), "--peer-key-file", &file("key"), "--peer-trusted-ca-file", &file("ca")])
            .arg("--peer-client-cert-auth")
            .args(flags::tuning_of(version()).iter().map(|flag| flag.replace(&notify(flags::PROGRESS_NOTIFY_S), &notify(1))))
            // Sooner than the defaults, so that a test sees many elections.
            .args(["--heartbeat-interval=50", "--election-timeout=500"])
            .args(&self.extra_flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(user) = member.user {
            command.uid(user).gid(user);
        }
        // SAFETY: one system call between fork and exec, which touches no memory of ours. So etcd dies with a test that is killed.
        unsafe { command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let child = command.spawn().unwrap_or_else(|error| panic!("etcd cannot be started ({error}); install it: apt-get install etcd-server"));
        self.members[i].child = Some(child);
    }

    /// Waits until a majority answers.
    pub async fn wait_ready(&self) {
        let store = self.connect().await;
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
        loop {
            match store.revision().await {
                Ok(_) => return,
                Err(error) if Instant::now() > deadline => panic!("etcd does not serve: {error}\n{}", self.logs()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The last lines of every member's log.
    pub fn logs(&self) -> String {
        let tail = |member: &Process| {
            let text = std::fs::read_to_string(self.path(&member.name, "log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(12).collect();
            format!("--- {}\n{}", member.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.members.iter().map(tail).collect::<Vec<_>>().join("\n")
    }

    /// What a client needs to know.
    pub fn config(&self) -> Config {
        Config {
            endpoints: self.members.iter().map(Process::client_url).collect(),
            ca_pem: Some(self.credentials.client.authority_pem.clone()),
            certificate_pem: Some(self.credentials.client.certificate_pem.clone()),
            key_pem: Some(self.credentials.client.key_pem.clone()),
            prefix: String::new(),
        }
    }

    /// The certificate that clients show.
    pub fn client(&self) -> &Issued {
        &self.credentials.client
    }

    /// A store on this cluster.
    pub async fn connect(&self) -> Arc<Etcd> {
        Arc::new(Etcd::connect(self.config()).await.unwrap())
    }

    /// A store that knows one member only.
    pub async fn connect_to(&self, i: usize) -> Arc<Etcd> {
        Arc::new(Etcd::connect(Config { endpoints: vec![self.members[i].client_url()], ..self.config() }).await.unwrap())
    }

    pub fn members(&self) -> &[Process] {
        &self.members
    }

    /// The number of the member with this name.
    pub fn index(&self, name: &str) -> usize {
        self.members.iter().position(|member| member.name == name).unwrap_or_else(|| panic!("no member {name}"))
    }

    fn signal(&self, i: usize, signal: Signal) {
        if let Some(child) = &self.members[i].child {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.members[i].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn alive(&self, i: usize) -> bool {
        self.members[i].child.is_some()
    }

    /// Starts a killed member again on its data.
    pub fn restart(&mut self, i: usize) {
        if self.members[i].child.is_none() {
            self.launch(i);
        }
    }

    /// Stops a member in its tracks: its connections stay, but nothing answers.
    pub fn pause(&self, i: usize) {
        self.signal(i, Signal::STOP);
    }

    pub fn resume(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    /// Cuts a member off from the other members: nothing that it sends them arrives. Clients reach it still.
    pub fn cut(&mut self, i: usize) {
        let user = self.members[i].user.expect("cutting members off needs root: run the tests as root");
        if self.cuts.is_none() {
            let [_, a, b, c] = self.members[0].address.octets();
            let table = format!("etcd_cut_{a}_{b}_{c}");
            nft(&format!("add table inet {table}\nadd chain inet {table} output {{ type filter hook output priority 0; policy accept; }}"));
            self.cuts = Some(table);
        }
        let table = self.cuts.as_deref().unwrap_or_default();
        nft(&format!(
            "add rule inet {table} output meta skuid {user} tcp dport 2380 drop\nadd rule inet {table} output meta skuid {user} tcp sport 2380 drop"
        ));
    }

    /// Takes back all cuts.
    pub fn mend(&mut self) {
        if let Some(table) = &self.cuts {
            nft(&format!("flush chain inet {table} output"));
        }
    }

    /// A place for a further member, which is not started yet: its number.
    pub fn prepare_member(&mut self, name: &str) -> usize {
        self.place(name, "existing")
    }

    /// Starts a member that the others have added.
    pub fn start_member(&mut self, i: usize) {
        let known = self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url()));
        self.members[i].initial_cluster = known.collect::<Vec<_>>().join(",");
        self.launch(i);
    }

    /// Takes a removed member out of the list.
    pub fn forget(&mut self, i: usize) {
        self.kill(i);
        self.members.remove(i);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(table) = self.cuts.take() {
            let _ = Command::new("nft").args(["delete", "table", "inet", &table]).status();
        }
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
