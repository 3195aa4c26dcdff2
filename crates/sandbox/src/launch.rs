//! Powering a node on: new namespaces, an init in them, its mounts; and off: the death of that init.
//!
//! `launch` (a process of its own) unshares and starts the init, which is PID 1 of the new PID namespace; then it ends.
//! The init outlives it and waits for the machine to plug in its link ([`crate::links`]) before it boots.

use crate::{Doing, Error, Result, plan::Node, run};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{Pid, Signal, kill_process},
    thread::UnshareFlags,
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long a node's init may take to answer, or to be gone, in seconds.
const PATIENCE_S: u64 = 20;

/// Which process is a node's init: its PID on the machine, and when it started (PIDs are used again).
#[derive(serde::Serialize, serde::Deserialize, PartialEq, Eq, Debug)]
struct Identity {
    pid: i32,
    started_ticks: u64,
}

/// When a process started, in clock ticks since boot; `None` if it is gone or a zombie.
fn started_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The PID of the node's init on the machine, if the node is on.
pub fn init_pid(node: &Node) -> Option<i32> {
    let text = fs::read_to_string(node.directory.join("init.json")).ok()?;
    let identity: Identity = serde_json::from_str(&text).ok()?;
    (started_ticks(identity.pid) == Some(identity.started_ticks)).then_some(identity.pid)
}

/// Starts the node's init and waits until it listens. Does nothing if the node is on.
pub fn power_on(node: &Node, regent: &Path) -> Result<i32> {
    if let Some(pid) = init_pid(node) {
        return Ok(pid);
    }
    let configuration = node.directory.join("node.json");
    let text = serde_json::to_string_pretty(node).map_err(|e| Error::Refused(e.to_string()))?;
    fs::create_dir_all(node.directory.join("log")).doing(|| format!("making {}", node.directory.display()))?;
    fs::write(&configuration, text).doing(|| format!("writing {}", configuration.display()))?;
    let _ = fs::remove_file(node.control_socket());
    let output = Command::new(regent)
        .arg("sandbox-launch")
        .arg(&configuration)
        .stdin(Stdio::null())
        .output()
        .doing(|| format!("starting {}", regent.display()))?;
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let pid: i32 = answer.parse().map_err(|_| {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Error::Command { command: format!("regent sandbox-launch {}", configuration.display()), output }
    })?;
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    while !node.control_socket().exists() {
        if started_ticks(pid).is_none() || Instant::now() > deadline {
            let log = fs::read_to_string(node.log("init")).unwrap_or_default();
            return Err(Error::Refused(format!(
                "{}: its init did not come up; its log ends: {}",
                node.name,
                log.lines().last().unwrap_or("(empty)")
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let identity = Identity { pid, started_ticks: started_ticks(pid).unwrap_or(0) };
    let text = serde_json::to_string(&identity).map_err(|e| Error::Refused(e.to_string()))?;
    fs::write(node.directory.join("init.json"), text).doing(|| "noting the init's PID".to_string())?;
    Ok(pid)
}

/// Cuts the node's power: kills its init, and with it every process of the node, and waits until all are gone.
pub fn power_off(node: &Node) -> Result<()> {
    if let Some(pid) = init_pid(node).and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
        while init_pid(node).is_some() {
            if Instant::now() > deadline {
                return Err(Error::Refused(format!("{}: its init (PID {}) does not die", node.name, pid.as_raw_nonzero())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = fs::remove_file(node.control_socket());
    let _ = fs::remove_file(node.directory.join("init.json"));
    remove_cgroups(&node.cgroup_root());
    Ok(())
}

/// Removes a cgroup and all below it, in every hierarchy (v1) or the one (v2). They empty soon after the node is off: the
/// last of its processes may still be on its way out.
pub fn remove_cgroups(path: &str) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        if let [_, at, "cgroup" | "cgroup2", ..] = fields[..] {
            let cgroup = Path::new(at).join(path.trim_start_matches('/'));
            remove_tree(&cgroup);
            while cgroup.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
                remove_tree(&cgroup);
            }
        }
    }
}

fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// The body of `regent sandbox-launch FILE`: makes the namespaces, starts the init in them, prints its PID and ends.
pub fn launch(configuration: &Path) -> Result<()> {
    let node = read(configuration)?;
    let spaces = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: this process has one thread and shares no file table; nothing but the spawn below follows.
    unsafe { rustix::thread::unshare_unsafe(spaces) }.doing(|| "making the node's namespaces (is this root?)".to_string())?;
    let log = fs::File::options().create(true).append(true).open(node.log("init")).doing(|| "opening the init's log".to_string())?;
    let errors = log.try_clone().doing(|| "opening the init's log".to_string())?;
    let regent = std::env::current_exe().doing(|| "finding this program".to_string())?;
    let mut command = Command::new(regent);
    command.arg("sandbox-init").arg(configuration).current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    // SAFETY: `setsid` is async-signal-safe; the init gets a session of its own, so that no terminal's end reaches it.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into));
    }
    let child = command.spawn().doing(|| "starting the node's init".to_string())?;
    println!("{}", child.id());
    Ok(())
}

/// Reads a node's `node.json`.
pub fn read(configuration: &Path) -> Result<Node> {
    let text = fs::read(configuration).doing(|| format!("reading {}", configuration.display()))?;
    serde_json::from_slice(&text).map_err(|error| Error::Refused(format!("{}: {error}", configuration.display())))
}

/// What the init does first: the node's own view of the machine. Its disk is a directory, its `/run` is memory.
pub fn furnish(node: &Node) -> Result<()> {
    let name = &node.name;
    rustix::system::sethostname(name.as_bytes()).doing(|| format!("naming the node {name}"))?;
    let everything = MountPropagationFlags::REC;
    mount_change("/", everything | MountPropagationFlags::PRIVATE).doing(|| "parting from the machine's mounts".to_string())?;
    mount_change("/", everything | MountPropagationFlags::SHARED).doing(|| "sharing the node's mounts with its pods".to_string())?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None).doing(|| "mounting /proc".to_string())?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755")).doing(|| "mounting /run".to_string())?;
    if node.role.is_cluster_node() {
        for (own, path) in [
            ("data", "/var/lib/regent"),
            ("containerd", "/var/lib/containerd"),
            ("log/pods", "/var/log/pods"),
            ("log/containers", "/var/log/containers"),
            ("cni", "/etc/cni/net.d"),
        ] {
            let own = node.directory.join(own);
            fs::create_dir_all(&own).doing(|| format!("making {}", own.display()))?;
            fs::create_dir_all(path).doing(|| format!("making {path}"))?;
            mount_bind(&own, path).doing(|| format!("mounting {path}"))?;
        }
    }
    for (file, text) in [("hosts", node.hosts.clone()), ("hostname", format!("{name}\n"))] {
        let own = node.directory.join(file);
        let path = format!("/etc/{file}");
        fs::write(&own, text).doing(|| format!("writing {}", own.display()))?;
        if Path::new(&path).exists() {
            mount_bind(&own, &path).doing(|| format!("mounting {path}"))?;
        }
    }
    run("ip", &["link", "set", "lo", "up"])?;
    Ok(())
}
