//! The tree of cgroups above the containers: `kubepods`, one per class of service, one per pod.
//!
//! Containers' own cgroups are the runtime's; this makes their parents, with the pod's limits. Version 2 is one tree;
//! version 1 is one per controller, each mounted on its own (this is also what a hybrid machine has). What must stay
//! true: only what lies below the node's own root is ever touched.

use crate::spec::resources::{PodLimits, QUOTA_PERIOD_US, SHARES_MIN, cpu_shares, cpu_weight};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel shows its cgroups.
const MOUNT: &str = "/sys/fs/cgroup";
/// Version 1 shows no limit of memory as one that no machine has.
const UNLIMITED_BYTES: i64 = 1 << 60;

/// How cgroups are mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Layout {
    /// One tree.
    Unified(PathBuf),
    /// A tree per controller: its mount point and the controllers in it.
    PerController(Vec<(PathBuf, Vec<String>)>),
}

/// The node's cgroups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
    root: String,
    pids_max: Option<i64>,
}

/// How a cgroup's part of the processors is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// Version 1.
    Shares(i64),
    /// Version 2.
    Weight(i64),
}

/// The limits that the kernel has for a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    share: Share,
    /// Microseconds of each period ([`QUOTA_PERIOD_US`]); none if it is not limited.
    pub cpu_quota: Option<i64>,
    /// Whether the kernel can limit processors at all.
    has_bandwidth: bool,
    pub memory_limit: Option<i64>,
}

/// The kernel counts memory in pages.
const PAGE_BYTES: i64 = 4096;

/// Whether two limits of memory are the same to the kernel.
pub fn same_pages(one: i64, other: i64) -> bool {
    one / PAGE_BYTES == other / PAGE_BYTES
}

impl From<PodLimits> for Limits {
    fn from(limits: PodLimits) -> Limits {
        Limits { share: Share::Shares(limits.cpu_shares), cpu_quota: limits.cpu_quota, has_bandwidth: true, memory_limit: limits.memory_limit }
    }
}

impl Limits {
    /// These limits, as far as the kernel could have those that are wanted: what it cannot have is not missing.
    pub fn as_if_able(self, wanted: &PodLimits) -> Limits {
        Limits { cpu_quota: if self.has_bandwidth { self.cpu_quota } else { wanted.cpu_quota }, ..self }
    }

    /// Whether these limits are in place. No limit of memory is never set: whatever is there will do.
    pub fn hold(&self, wanted: &PodLimits) -> bool {
        let share = match self.share {
            Share::Shares(shares) => shares == wanted.cpu_shares,
            Share::Weight(weight) => weight == cpu_weight(wanted.cpu_shares),
        };
        let memory = wanted.memory_limit.is_none_or(|wanted| self.memory_limit.is_some_and(|limit| same_pages(limit, wanted)));
        share && memory && self.cpu_quota == wanted.cpu_quota
    }
}

/// Controllers that version 1's pods have a directory in.
const CONTROLLERS: &[&str] = &["cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb"];

fn per_controller(mounts: &str) -> Vec<(PathBuf, Vec<String>)> {
    let mut out: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, place, "cgroup", options, ..] = words.as_slice() else { continue };
        let own: Vec<String> = options.split(',').filter(|option| CONTROLLERS.contains(option)).map(str::to_owned).collect();
        if !own.is_empty() && !out.iter().any(|(known, _)| known == Path::new(place)) {
            out.push((PathBuf::from(place), own));
        }
    }
    out
}

fn put(directory: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    match fs::write(directory.join(file), value.to_string()) {
        // A kernel without that knob (no CFS bandwidth, no swap accounting) limits less; it is no reason not to run.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Cgroups {
    /// Looks at how the machine mounts cgroups. `root` is the node's own, `/` for the whole machine.
    pub fn detect(root: &str, pids_max: Option<i64>) -> io::Result<Cgroups> {
        let layout = if Path::new(MOUNT).join("cgroup.controllers").exists() {
            Layout::Unified(PathBuf::from(MOUNT))
        } else {
            Layout::PerController(per_controller(&fs::read_to_string("/proc/self/mounts")?))
        };
        Ok(Cgroups { layout, root: root.trim_end_matches('/').to_owned(), pids_max })
    }

    /// Makes the tree down to the classes of service.
    pub fn prepare(&self, cpu_milli: i64, memory_bytes: i64) -> io::Result<()> {
        let node = PodLimits { cpu_shares: cpu_shares(cpu_milli), cpu_quota: None, memory_limit: Some(memory_bytes) };
        self.make(&format!("{}/kubepods", self.root), &node, None)?;
        let class = PodLimits { cpu_shares: SHARES_MIN, cpu_quota: None, memory_limit: None };
        self.make(&format!("{}/kubepods/besteffort", self.root), &class, None)?;
        self.make(&format!("{}/kubepods/burstable", self.root), &class, None)
    }

    /// Gives the burstable class the shares that its pods together ask for.
    pub fn set_burstable(&self, cpu_milli: i64) -> io::Result<()> {
        let limits = PodLimits { cpu_shares: cpu_shares(cpu_milli), cpu_quota: None, memory_limit: None };
        self.make(&format!("{}/kubepods/burstable", self.root), &limits, None)
    }

    /// Makes a pod's cgroup with its limits, or sets them anew.
    pub fn pod(&self, path: &str, limits: &PodLimits) -> io::Result<()> {
        self.make(path, limits, self.pids_max)
    }

    fn make(&self, path: &str, limits: &PodLimits, pids_max: Option<i64>) -> io::Result<()> {
        let relative = path.trim_start_matches('/');
        match &self.layout {
            Layout::Unified(mount) => {
                let mut here = mount.clone();
                for part in relative.split('/').filter(|part| !part.is_empty()) {
                    // A parent hands on only what it was told to.
                    for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
                        let _ = fs::write(here.join("cgroup.subtree_control"), format!("+{controller}"));
                    }
                    here.push(part);
                    make_directory(&here)?;
                }
                put(&here, "cpu.weight", cpu_weight(limits.cpu_shares))?;
                match limits.cpu_quota {
                    Some(quota) => put(&here, "cpu.max", format!("{quota} {QUOTA_PERIOD_US}"))?,
                    None => put(&here, "cpu.max", format!("max {QUOTA_PERIOD_US}"))?,
                }
                if let Some(limit) = limits.memory_limit {
                    put(&here, "memory.max", limit)?;
                }
                if let Some(max) = pids_max {
                    put(&here, "pids.max", max)?;
                }
            }
            Layout::PerController(mounts) => {
                for (mount, controllers) in mounts {
                    let has = |name: &str| controllers.iter().any(|controller| controller == name);
                    let mut here = mount.clone();
                    for part in relative.split('/').filter(|part| !part.is_empty()) {
                        let parent = here.clone();
                        here.push(part);
                        make_directory(&here)?;
                        if has("cpuset") {
                            inherit_cpuset(&parent, &here)?;
                        }
                    }
                    if has("cpu") {
                        put(&here, "cpu.shares", limits.cpu_shares)?;
                        put(&here, "cpu.cfs_period_us", QUOTA_PERIOD_US)?;
                        put(&here, "cpu.cfs_quota_us", limits.cpu_quota.unwrap_or(-1))?;
                    }
                    if has("memory") {
                        put(&here, "memory.use_hierarchy", 1).or_else(|error| {
                            if error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(16) { Ok(()) } else { Err(error) }
                        })?;
                        if let Some(limit) = limits.memory_limit {
                            put(&here, "memory.limit_in_bytes", limit)?;
                        }
                    }
                    if let Some(max) = pids_max.filter(|_| has("pids")) {
                        put(&here, "pids.max", max)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a pod's cgroup with what is left below it. A process still in it has outlived its container and is killed;
    /// the removal is then an error once more, until the kernel has let go of it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let relative = path.trim_start_matches('/');
        let mounts: Vec<PathBuf> = match &self.layout {
            Layout::Unified(mount) => vec![mount.clone()],
            Layout::PerController(_) => all_hierarchies(),
        };
        for mount in &mounts {
            if remove_tree(&mount.join(relative)).is_err() {
                kill_tree(&mount.join(relative));
            }
        }
        for mount in mounts {
            remove_tree(&mount.join(relative))?;
        }
        Ok(())
    }

    /// UIDs of the pods that have a cgroup, with the path of each.
    pub fn pods(&self) -> Vec<(String, String)> {
        let mounts: Vec<PathBuf> = match &self.layout {
            Layout::Unified(mount) => vec![mount.clone()],
            Layout::PerController(mounts) => mounts.iter().map(|(mount, _)| mount.clone()).collect(),
        };
        let mut out = std::collections::BTreeMap::new();
        for mount in mounts {
            for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
                let path = format!("{}/{class}", self.root);
                for entry in fs::read_dir(mount.join(path.trim_start_matches('/'))).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if let Some(uid) = name.strip_prefix("pod") {
                        out.insert(uid.to_owned(), format!("{path}/{name}"));
                    }
                }
            }
        }
        out.into_iter().collect()
    }

    /// The limits of a cgroup; none if it is not there (or is of a kernel that has no such limits).
    pub fn limits(&self, path: &str) -> Option<Limits> {
        let number = |text: &str| text.trim().parse::<i64>().ok();
        let relative = path.trim_start_matches('/');
        let read = |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).ok();
        let mut has_bandwidth = true;
        let (share, quota, period, memory) = match &self.layout {
            Layout::Unified(mount) => {
                let here = mount.join(relative);
                let max = read(&here, "cpu.max")?;
                let (quota, period) = max.trim().split_once(' ')?;
                (Share::Weight(number(&read(&here, "cpu.weight")?)?), number(quota), number(period)?, number(&read(&here, "memory.max")?))
            }
            Layout::PerController(_) => {
                let (cpu, memory) = (self.directory("cpu", relative)?, self.directory("memory", relative)?);
                let quota = read(&cpu, "cpu.cfs_quota_us").and_then(|text| number(&text));
                has_bandwidth = quota.is_some();
                let quota = quota.filter(|quota| *quota >= 0);
                let period = read(&cpu, "cpu.cfs_period_us").and_then(|text| number(&text)).unwrap_or(QUOTA_PERIOD_US);
                let memory = number(&read(&memory, "memory.limit_in_bytes")?);
                (Share::Shares(number(&read(&cpu, "cpu.shares")?)?), quota, period, memory.filter(|limit| *limit < UNLIMITED_BYTES))
            }
        };
        let cpu_quota = quota.map(|quota| quota.saturating_mul(QUOTA_PERIOD_US) / period.max(1));
        Some(Limits { share, cpu_quota, has_bandwidth, memory_limit: memory })
    }

    /// A cgroup's directory in the hierarchy of a controller.
    fn directory(&self, controller: &str, relative: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::Unified(mount) => Some(mount.join(relative)),
            Layout::PerController(mounts) => {
                let (mount, _) = mounts.iter().find(|(_, controllers)| controllers.iter().any(|name| name == controller))?;
                Some(mount.join(relative))
            }
        }
    }

    /// Bytes of memory that a cgroup uses without what the kernel could give back at once.
    pub fn working_set(&self, path: &str) -> Option<u64> {
        let relative = path.trim_start_matches('/');
        let directory = self.directory("memory", relative)?;
        let (usage, inactive) = match &self.layout {
            Layout::Unified(_) => ("memory.current", "inactive_file"),
            Layout::PerController(_) => ("memory.usage_in_bytes", "total_inactive_file"),
        };
        let used: u64 = fs::read_to_string(directory.join(usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
        let idle = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(used.saturating_sub(idle))
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A new cpuset is empty, and nothing can run in it, until it has its parent's processors and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = fs::read_to_string(child.join(file)) else { continue };
        if own.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Every mounted hierarchy of version 1, named ones too: the runtime makes its directories in all of them.
fn all_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut out: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                [_, place, "cgroup" | "cgroup2", ..] => Some(PathBuf::from(place)),
                _ => None,
            }
        })
        .collect();
    out.dedup();
    out
}

/// Kills every process in a pod's cgroup and below.
fn kill_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_tree(&entry.path());
        }
    }
    for line in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        // Zero stands for a process of another PID namespace, which is none of ours.
        let Some(pid) = line.parse().ok().filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw) else { continue };
        tracing::warn!(pid = pid.as_raw_nonzero(), cgroup = %path.display(), "a process that outlived its container is killed");
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            tracing::debug!(%error, "it could not be killed");
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_mounted_apart_or_together_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = per_controller(mounts);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].1, ["cpu", "cpuacct"]);
    }

    #[test]
    fn limits_are_read_as_either_version_writes_them() {
        let place = tempfile::tempdir().unwrap();
        let wanted = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory_limit: Some((64 << 20) + 1) };
        let write = |directory: &str, files: &[(&str, &str)]| {
            let directory = place.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
        };
        let second = Cgroups { layout: Layout::Unified(place.path().join("2")), root: String::new(), pids_max: None };
        write("2/pod", &[("cpu.weight", &cpu_weight(512).to_string()), ("cpu.max", "100000 200000\n"), ("memory.max", "67108864\n")]);
        assert!(second.limits("/pod").unwrap().hold(&wanted));
        write("2/pod", &[("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
        let free = second.limits("/pod").unwrap();
        assert_eq!((free.cpu_quota, free.memory_limit, free.hold(&wanted)), (None, None, false));
        let mounts = ["cpu", "memory"].map(|name| (place.path().join("1").join(name), vec![name.to_owned()])).to_vec();
        let first = Cgroups { layout: Layout::PerController(mounts), root: String::new(), pids_max: None };
        write("1/cpu/pod", &[("cpu.shares", "512\n"), ("cpu.cfs_quota_us", "50000\n"), ("cpu.cfs_period_us", "100000\n")]);
        write("1/memory/pod", &[("memory.limit_in_bytes", "67108864\n")]);
        assert!(first.limits("/pod").unwrap().hold(&wanted));
        write("1/cpu/pod", &[("cpu.cfs_quota_us", "-1\n")]);
        write("1/memory/pod", &[("memory.limit_in_bytes", "9223372036854771712\n")]);
        assert!(first.limits("/pod").unwrap().hold(&PodLimits { cpu_quota: None, memory_limit: None, ..wanted }));
        assert_eq!(first.limits("/none"), None);
    }
}
