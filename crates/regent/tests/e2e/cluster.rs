//! The sandbox under test and the ways to reach it: `regent sandbox`, kubectl, and plain HTTP from here or from a node.

use std::{
    fmt::Display,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a condition may take unless a scenario says otherwise, in seconds.
pub const PATIENCE_S: u64 = 60;
/// Pause between two looks at a condition, in milliseconds.
const LOOK_EVERY_MS: u64 = 150;
/// Flags that make node failures quicker to watch; everything else is at its default.
const FLAGS: [&str; 1] = ["controller-manager=--node-monitor-grace-period=20s"];
/// The addresses of the sandbox's nodes.
pub const NODES: [(&str, &str); 4] =
    [("server-1", "172.30.0.11"), ("worker-1", "172.30.0.21"), ("worker-2", "172.30.0.22"), ("worker-3", "172.30.0.23")];

/// What a sandbox consists of, and where it lives below `target`.
pub struct Shape {
    directory: &'static str,
    flags: &'static [&'static str],
    nodes: usize,
}

/// One server with SQLite, three workers.
pub const ONE_SERVER: Shape = Shape { directory: "target/e2e-sandbox", flags: &[], nodes: 4 };
/// Three servers over etcd behind HAProxy, two workers.
pub const THREE_SERVERS: Shape = Shape { directory: "target/e2e-sandbox-masters", flags: &["--servers", "3", "--workers", "2"], nodes: 5 };

/// A running sandbox.
pub struct Cluster {
    directory: PathBuf,
    kubeconfig: String,
    keep: bool,
}

impl Cluster {
    /// Brings the sandbox up and waits until its nodes are Ready.
    pub fn up(shape: &Shape) -> Result<Cluster, String> {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let root = root.canonicalize().map_err(|e| e.to_string())?;
        let directory = root.join(shape.directory);
        let keep = std::env::var_os("REGENT_E2E_KEEP").is_some();
        let mut cluster = Cluster { directory, kubeconfig: String::new(), keep };
        let foreign = run("ip", &["link", "show", "rgsb0"]).is_ok() && !cluster.directory.join("sandbox.json").exists();
        if foreign {
            return Err("another sandbox is up on this machine; take it down first (`make down`)".into());
        }
        if !keep && cluster.directory.exists() {
            // A run that was interrupted left it.
            let _ = cluster.sandbox(&["down"]);
            let _ = std::fs::remove_dir_all(&cluster.directory);
        }
        let images = root.join("target/images").display().to_string();
        let mut arguments = vec!["up", "--images", &images];
        arguments.extend(shape.flags);
        for flag in FLAGS {
            arguments.extend(["--flag", flag]);
        }
        cluster.sandbox(&arguments)?;
        cluster.kubeconfig = cluster.sandbox(&["kubeconfig"])?.trim().to_string();
        cluster.wait("all nodes to be Ready", 60, || {
            let nodes = cluster.kubectl("get nodes --no-headers")?;
            expect(nodes.lines().filter(|l| l.contains(" Ready")).count() == shape.nodes, &nodes)
        })?;
        Ok(cluster)
    }

    /// Takes the sandbox down and checks that nothing of it is left.
    pub fn down(&self) -> Result<(), String> {
        if self.keep {
            println!("the sandbox stays up: export KUBECONFIG={}", self.kubeconfig);
            return Ok(());
        }
        let cgroup = self.cgroup_flag("worker-1")?.replace("--cgroup-root=", "").replace("/worker-1", "");
        self.sandbox(&["down"])?;
        let look = format!(
            "ip link show rgsb0; nft list tables | grep regent; grep rgsb /proc/net/dev; ls -d /sys/fs/cgroup{cgroup} /sys/fs/cgroup/*{cgroup}; \
             grep '[e]2e-sandbox' /proc/self/mounts; pgrep -fa '[e]2e-sandbox/nodes'; true"
        );
        let left = run("sh", &["-c", &look])?;
        expect(left.trim().is_empty(), format!("`down` left something behind:\n{left}"))
    }

    /// The flag that tells a kubelet the cgroup of this node's pods, as the node's own kubelet has it.
    pub fn cgroup_flag(&self, node: &str) -> Result<String, String> {
        let file = self.directory.join("nodes").join(node).join("node.json");
        let plan = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let flag = plan.split('"').find(|part| part.starts_with("--cgroup-root="));
        flag.map(str::to_string).ok_or_else(|| format!("{} names no --cgroup-root", file.display()))
    }

    /// `regent sandbox ARGUMENTS`.
    pub fn sandbox(&self, arguments: &[&str]) -> Result<String, String> {
        let directory = self.directory.display().to_string();
        let mut all = vec!["sandbox", "--dir", &directory];
        all.extend(arguments);
        run(env!("CARGO_BIN_EXE_regent"), &all)
    }

    /// A shell command inside a node.
    pub fn on_node(&self, node: &str, command: &str) -> Result<String, String> {
        self.sandbox(&["exec", node, "--", "sh", "-c", command])
    }

    /// `kubectl` with arguments separated by blanks. Its output, or why it failed.
    pub fn kubectl(&self, arguments: &str) -> Result<String, String> {
        self.kubectl_with(&arguments.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// `kubectl` with exact arguments and text on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        finish(self.kubectl_start(arguments)?, input).map_err(|why| format!("kubectl {}: {why}", arguments.join(" ")))
    }

    /// The same, but it must fail; its error text.
    pub fn kubectl_fails(&self, arguments: &str, input: &str) -> Result<String, String> {
        match self.kubectl_with(&arguments.split_whitespace().collect::<Vec<_>>(), input) {
            Ok(output) => Err(format!("kubectl {arguments} should have failed, but said: {output}")),
            Err(why) => Ok(why),
        }
    }

    /// Starts kubectl and lets it run.
    pub fn kubectl_start(&self, arguments: &[&str]) -> Result<Child, String> {
        Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("kubectl does not start: {e}"))
    }

    /// Applies a manifest.
    pub fn apply(&self, namespace: &str, manifest: &str) -> Result<String, String> {
        // A document that begins with a brace is taken for JSON; these are YAML in flow style.
        self.kubectl_with(&["apply", "-n", namespace, "-f", "-"], &format!("---\n{manifest}"))
    }

    /// Waits until `look` holds, at most `seconds`; the last thing it said is the error.
    pub fn wait<T>(&self, what: &str, seconds: u64, look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
        wait(what, seconds, look)
    }

    /// Waits until the output of a kubectl command satisfies `good`.
    pub fn wait_for(&self, what: &str, arguments: &str, good: impl Fn(&str) -> bool) -> Result<String, String> {
        self.wait(what, PATIENCE_S, || {
            let output = self.kubectl(arguments)?;
            expect(good(&output), &output)?;
            Ok(output)
        })
    }

    /// The page at a URL, asked for from this machine.
    pub fn get(&self, url: &str) -> Result<String, String> {
        run("curl", &["--silent", "--show-error", "--fail", "--max-time", "3", url])
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Where the sandbox lives.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// A directory for a scenario's files; it goes with the sandbox.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.directory.join("scratch").join(name);
        std::fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        Ok(path)
    }
}

/// A check that says what it saw.
pub fn expect(holds: bool, seen: impl Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("not so: {seen}")) }
}

fn wait<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > deadline => return Err(format!("waited {seconds} s for {what}; last seen: {last}")),
            Err(_) => std::thread::sleep(Duration::from_millis(LOOK_EVERY_MS)),
        }
    }
}

/// Waits until a look at the cluster shows all these parts: events and statuses follow what they tell of.
pub fn will_show(mut look: impl FnMut() -> Result<String, String>, parts: &[&str]) -> Result<(), String> {
    wait("all to be shown", PATIENCE_S, || has_all(&look()?, parts))
}

/// Whether a text has all these parts; the error says which is missing.
pub fn has_all(text: &str, parts: &[&str]) -> Result<(), String> {
    match parts.iter().find(|part| !text.contains(**part)) {
        None => Ok(()),
        Some(missing) => Err(format!("{missing:?} is missing in:\n{text}")),
    }
}

/// Runs a program to its end.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    finish(child, "").map_err(|why| format!("{program} {}: {why}", arguments.join(" ")))
}

fn finish(mut child: Child, input: &str) -> Result<String, String> {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(stdout.into_owned()) } else { Err(format!("{} {stdout}{stderr}", output.status)) }
}
