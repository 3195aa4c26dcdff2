//! The node's own address management: which pod has which address, kept on disk, bound to the pod's UID.
//!
//! containerd's CNI calls us as a plugin: the `regent` binary under the name `regent-ipam` runs [`ipam_main`]. The state is
//! one small JSON file beside a lock file; every call takes the lock, reads, decides ([`Pool`], pure), writes the file anew
//! and renames it into place, synced, before the address is handed out.
//!
//! Why not `host-local`: it gives a pod whose sandbox is made anew another address. Here an address belongs to the pod's
//! UID from the first sandbox until the pod has left the node ([`retain`]), so that a rebooted pod keeps its address and
//! endpoints that others remember stay right, with no server alive.
//!
//! What must stay true: two UIDs never hold one address; taking a sandbox down does not give its address away; a node whose
//! range has run out of fresh addresses reuses the one that has been without a sandbox longest, rather than fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::limits;

/// The name under which the binary is a CNI plugin.
pub const PLUGIN: &str = "regent-ipam";

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every address of the range is in use by a sandbox.
    #[error("no address is left in {0}")]
    Exhausted(Ipv4Net),
    /// The state on disk could not be read or written.
    #[error("{path}: {what}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The state on disk is not ours, or damaged.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The caller's request makes no sense.
    #[error("{0}")]
    Request(String),
}

/// One pod's hold on an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The sandbox that uses it now; `None` while the pod has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// `namespace/name`, for people.
    #[serde(default)]
    pub pod: String,
    /// Seconds of the epoch when it was last taken or let go.
    #[serde(default)]
    pub touched_seconds: u64,
}

/// All leases of a node, by the pod's UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Who holds what.
    pub leases: BTreeMap<String, Lease>,
    /// The address given last: the search for a fresh one goes on behind it, so that addresses return late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Ipv4Addr>,
}

/// The first usable address of the range: the gateway's.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
}

impl Pool {
    /// The address of the pod `uid`, for its sandbox `sandbox`: the one it has, or a fresh one.
    pub fn allocate(&mut self, range: Ipv4Net, uid: &str, sandbox: &str, pod: &str, now_seconds: u64) -> Result<Ipv4Addr, Error> {
        // The node may have been given another range since.
        self.leases.retain(|_, lease| range.contains(&lease.address));
        if let Some(lease) = self.leases.get_mut(uid) {
            lease.sandbox = Some(sandbox.to_owned());
            lease.touched_seconds = now_seconds;
            return Ok(lease.address);
        }
        let address = match self.fresh(range) {
            Some(address) => address,
            None => self.oldest_without_sandbox().ok_or(Error::Exhausted(range))?,
        };
        self.last = Some(address);
        let lease = Lease { address, sandbox: Some(sandbox.to_owned()), pod: pod.to_owned(), touched_seconds: now_seconds };
        self.leases.insert(uid.to_owned(), lease);
        Ok(address)
    }

    /// The sandbox is gone; its pod keeps the address.
    pub fn release(&mut self, sandbox: &str, now_seconds: u64) {
        for lease in self.leases.values_mut().filter(|lease| lease.sandbox.as_deref() == Some(sandbox)) {
            lease.sandbox = None;
            lease.touched_seconds = now_seconds;
        }
    }

    /// Forgets the pods that have left the node: not in `present`, without a sandbox, and quiet for a while.
    pub fn retain(&mut self, present: &BTreeSet<String>, now_seconds: u64) {
        self.leases.retain(|uid, lease| {
            let quiet = now_seconds.saturating_sub(lease.touched_seconds) >= limits::ADDRESS_QUIET_SECONDS;
            present.contains(uid) || lease.sandbox.is_some() || !quiet
        });
    }

    fn fresh(&self, range: Ipv4Net) -> Option<Ipv4Addr> {
        let taken: BTreeSet<u32> = self.leases.values().map(|lease| u32::from(lease.address)).collect();
        // Without the network's, the gateway's and the broadcast address.
        let first = u32::from(range.network()).checked_add(2)?;
        let end = u32::from(range.broadcast());
        let after = self.last.filter(|last| range.contains(last)).map_or(first, |last| u32::from(last) + 1).max(first);
        let candidate = (after..end).chain(first..after.min(end)).find(|address| !taken.contains(address));
        candidate.map(Ipv4Addr::from)
    }

    fn oldest_without_sandbox(&mut self) -> Option<Ipv4Addr> {
        let unused = self.leases.iter().filter(|(_, lease)| lease.sandbox.is_none());
        let uid = unused.min_by_key(|(_, lease)| lease.touched_seconds).map(|(uid, _)| uid.clone())?;
        self.leases.remove(&uid).map(|lease| lease.address)
    }
}

/// The pool on disk, in this folder, held by one caller at a time.
fn with_pool<T>(folder: &Path, work: impl FnOnce(&mut Pool) -> Result<T, Error>) -> Result<T, Error> {
    let disk = |path: &Path, what: &'static str| {
        let path = path.to_owned();
        move |source: std::io::Error| Error::Disk { path, what, source }
    };
    std::fs::create_dir_all(folder).map_err(disk(folder, "cannot be made"))?;
    let lock_path = folder.join("lock");
    let lock = std::fs::File::create(&lock_path).map_err(disk(&lock_path, "cannot be opened"))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| disk(&lock_path, "cannot be locked")(e.into()))?;

    let path = folder.join("leases.json");
    let mut pool = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Damaged { path: path.clone(), source })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Pool::default(),
        Err(error) => return Err(disk(&path, "cannot be read")(error)),
    };
    let before = pool.clone();
    let result = work(&mut pool)?;
    if pool != before {
        let bytes = serde_json::to_vec_pretty(&pool).map_err(|source| Error::Damaged { path: path.clone(), source })?;
        write_durably(&path, &bytes).map_err(disk(&path, "cannot be written"))?;
    }
    Ok(result)
}

/// Writes the file anew beside itself and renames it into place; on disk when this returns.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = folder.join(name);
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(folder)?.sync_all()
}

/// Forgets the addresses of pods that have left the node; `present` are the UIDs of those that belong here.
pub fn retain(folder: &Path, present: &BTreeSet<String>) -> Result<(), Error> {
    with_pool(folder, |pool| {
        pool.retain(present, now_seconds());
        Ok(())
    })
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether this process was started as the CNI plugin, by its name.
pub fn is_ipam_invocation() -> bool {
    let zeroth = std::env::args_os().next().unwrap_or_default();
    Path::new(&zeroth).file_name().is_some_and(|name| name == PLUGIN)
}

/// The CNI plugin: reads `CNI_COMMAND`, `CNI_ARGS` and the configuration on standard input, answers on standard output.
/// Gives the exit code.
pub fn ipam_main() -> i32 {
    let mut input = String::new();
    let read = std::io::stdin().lock().take(limits::IPAM_INPUT_BYTES_MAX).read_to_string(&mut input);
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let call = Call {
        command: variable("CNI_COMMAND"),
        sandbox: variable("CNI_CONTAINERID"),
        arguments: variable("CNI_ARGS"),
        configuration: match read {
            Ok(_) => input,
            Err(error) => {
                println!("{}", failure("1.0.0", &Error::Request(format!("standard input: {error}"))));
                return 1;
            }
        },
    };
    match call.answer(now_seconds()) {
        Ok(answer) => {
            if let Some(answer) = answer {
                println!("{answer}");
            }
            0
        }
        Err((version, error)) => {
            println!("{}", failure(&version, &error));
            1
        }
    }
}

fn failure(version: &str, error: &Error) -> Value {
    // CNI's own codes: 4 invalid environment, 5 I/O failure, 6 content, 11 try again later.
    let code = match error {
        Error::Exhausted(_) => 11,
        Error::Disk { .. } => 5,
        Error::Damaged { .. } => 6,
        Error::Request(_) => 4,
    };
    let details = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    json!({ "cniVersion": version, "code": code, "msg": error.to_string(), "details": details })
}

/// One CNI call.
struct Call {
    command: String,
    sandbox: String,
    arguments: String,
    configuration: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default = "oldest_version")]
    cni_version: String,
    ipam: Option<Ipam>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    range: String,
    folder: PathBuf,
}

fn oldest_version() -> String {
    "0.1.0".to_owned()
}

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl Call {
    fn answer(&self, now_seconds: u64) -> Result<Option<Value>, (String, Error)> {
        if self.command == "VERSION" {
            return Ok(Some(json!({ "cniVersion": "1.0.0", "supportedVersions": VERSIONS })));
        }
        let configuration: Configuration = serde_json::from_str(&self.configuration)
            .map_err(|e| ("1.0.0".to_owned(), Error::Request(format!("the network configuration is not understood: {e}"))))?;
        let version = configuration.cni_version.clone();
        self.work(configuration, now_seconds).map_err(|error| (version, error))
    }

    fn work(&self, configuration: Configuration, now_seconds: u64) -> Result<Option<Value>, Error> {
        let version = configuration.cni_version.clone();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Error::Request(format!("CNI version {version:?} is not supported")));
        }
        let ipam = configuration.ipam.ok_or_else(|| Error::Request("the network configuration has no ipam".into()))?;
        let range: Ipv4Net = ipam.range.parse().map_err(|_| Error::Request(format!("ipam.range {:?} is no IPv4 range", ipam.range)))?;
        if self.sandbox.is_empty() {
            return Err(Error::Request("CNI_CONTAINERID is missing".into()));
        }
        match self.command.as_str() {
            "ADD" => {
                let (owner, pod) = self.owner();
                let address = with_pool(&ipam.folder, |pool| pool.allocate(range, &owner, &self.sandbox, &pod, now_seconds))?;
                let mut ip = json!({
                    "address": format!("{address}/{}", range.prefix_len()),
                    "gateway": gateway(range).to_string(),
                });
                if version.starts_with("0.") {
                    ip["version"] = json!("4");
                }
                Ok(Some(json!({
                    "cniVersion": version,
                    "ips": [ip],
                    "routes": [{ "dst": "0.0.0.0/0", "gw": gateway(range).to_string() }],
                    "dns": {},
                })))
            }
            "DEL" => {
                with_pool(&ipam.folder, |pool| {
                    pool.release(&self.sandbox, now_seconds);
                    Ok(())
                })?;
                Ok(None)
            }
            "CHECK" => {
                let holds = with_pool(&ipam.folder, |pool| Ok(pool.leases.values().any(|lease| lease.sandbox.as_deref() == Some(&self.sandbox))))?;
                if holds { Ok(None) } else { Err(Error::Request(format!("sandbox {} has no address", self.sandbox))) }
            }
            command => Err(Error::Request(format!("CNI_COMMAND {command:?} is not supported"))),
        }
    }

    /// Who the address is for: the pod's UID, or what comes nearest.
    fn owner(&self) -> (String, String) {
        let arguments: BTreeMap<&str, &str> = self.arguments.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let argument = |name: &str| arguments.get(name).copied().filter(|value| !value.is_empty());
        let pod = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => String::new(),
        };
        let owner = match argument("K8S_POD_UID") {
            Some(uid) => uid.to_owned(),
            None if !pod.is_empty() => pod.clone(),
            None => self.sandbox.clone(),
        };
        (owner, pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: &str = "10.244.1.0/29";

    fn allocate(pool: &mut Pool, uid: &str, sandbox: &str, now: u64) -> Result<String, Error> {
        pool.allocate(RANGE.parse().unwrap(), uid, sandbox, "default/x", now).map(|a| a.to_string())
    }

    #[test]
    fn an_address_stays_with_its_pod_through_new_sandboxes() {
        let mut pool = Pool::default();
        assert_eq!(allocate(&mut pool, "a", "s1", 1).unwrap(), "10.244.1.2");
        assert_eq!(allocate(&mut pool, "b", "s2", 1).unwrap(), "10.244.1.3");
        pool.release("s1", 2);
        assert_eq!(allocate(&mut pool, "c", "s3", 3).unwrap(), "10.244.1.4");
        assert_eq!(allocate(&mut pool, "a", "s4", 4).unwrap(), "10.244.1.2");
        // The old sandbox is taken down late: the new one keeps the address.
        pool.release("s1", 5);
        assert_eq!(pool.leases["a"].sandbox.as_deref(), Some("s4"));
    }

    #[test]
    fn an_address_returns_only_after_its_pod_has_left_and_late() {
        let mut pool = Pool::default();
        allocate(&mut pool, "a", "s1", 0).unwrap();
        pool.release("s1", 100);
        pool.retain(&BTreeSet::from(["a".to_owned()]), 1000);
        assert!(pool.leases.contains_key("a"));
        pool.retain(&BTreeSet::new(), 110);
        assert!(pool.leases.contains_key("a"), "not quiet long enough");
        pool.retain(&BTreeSet::new(), 1000);
        assert!(pool.leases.is_empty());
        assert_eq!(allocate(&mut pool, "b", "s2", 1000).unwrap(), "10.244.1.3");
    }

    #[test]
    fn a_full_range_takes_the_address_longest_without_a_sandbox_and_then_fails() {
        let mut pool = Pool::default();
        for (i, uid) in ["a", "b", "c", "d", "e"].iter().enumerate() {
            allocate(&mut pool, uid, &format!("s{uid}"), i as u64).unwrap();
        }
        assert!(matches!(allocate(&mut pool, "f", "sf", 9), Err(Error::Exhausted(_))));
        pool.release("sc", 10);
        pool.release("sb", 11);
        assert_eq!(allocate(&mut pool, "f", "sf", 12).unwrap(), "10.244.1.4");
        assert!(!pool.leases.contains_key("c"));
    }

    #[test]
    fn another_range_forgets_the_old_one() {
        let mut pool = Pool::default();
        allocate(&mut pool, "a", "s1", 0).unwrap();
        let other: Ipv4Net = "10.244.7.0/24".parse().unwrap();
        assert_eq!(pool.allocate(other, "a", "s2", "", 1).unwrap().to_string(), "10.244.7.2");
    }

    #[test]
    fn the_plugin_answers_as_cni_wants() {
        let folder = tempfile::tempdir().unwrap();
        let call = |command: &str, sandbox: &str| {
            let configuration = json!({
                "cniVersion": "1.0.0", "name": "regent", "type": "ptp",
                "ipam": { "type": PLUGIN, "range": "10.244.1.0/24", "folder": folder.path() },
            });
            Call {
                command: command.into(),
                sandbox: sandbox.into(),
                arguments: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1".into(),
                configuration: configuration.to_string(),
            }
            .answer(5)
            .map_err(|(_, e)| e.to_string())
        };
        let wanted = json!({
            "cniVersion": "1.0.0",
            "ips": [{ "address": "10.244.1.2/24", "gateway": "10.244.1.1" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }],
            "dns": {},
        });
        assert_eq!(call("ADD", "s1"), Ok(Some(wanted.clone())));
        assert_eq!(call("CHECK", "s1"), Ok(None));
        assert_eq!(call("DEL", "s1"), Ok(None));
        assert!(call("CHECK", "s1").is_err());
        assert_eq!(call("ADD", "s2"), Ok(Some(wanted)));
        assert!(call("GROW", "s2").is_err());
    }
}
