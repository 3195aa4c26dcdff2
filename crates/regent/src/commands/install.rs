//! `regent install` and `regent uninstall`: this program as a service of systemd, and that undone.
//!
//! What is installed is written down in `/etc/regent/installed.json` with the hash of each file: a second install (an upgrade)
//! replaces its own files only, refuses to touch one that it did not make, and an uninstall removes exactly these. Data and
//! containers stay, unless `--purge` says otherwise.
//!
//! An upgrade is the same command with the new program: the program is replaced in one step, under the running one, and then
//! the units are restarted in their order. Containers run on: they are containerd's children, not ours.

use crate::units::{self, Role, Settings, Unit};
use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser};
use pki::{Authority, Identity, Kubeconfig, ServiceAccountKeys};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

const PROGRAM: &str = "usr/local/bin/regent";
const FOLDER: &str = "etc/regent";

#[derive(Args)]
pub struct Install {
    /// What this machine becomes.
    role: Role,
    /// Install below this directory instead of `/`; nothing is started then.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// One unit per component instead of one for all (servers only).
    #[arg(long)]
    per_component: bool,
    /// Install, and have it start at the next boot, but do not start it now.
    #[arg(long)]
    no_start: bool,
    /// The flags of `regent server` or `regent agent`. An upgrade without any keeps those of before.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

#[derive(Args)]
pub struct Uninstall {
    /// The directory below which it was installed.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Remove the data directory as well: the cluster's objects, keys and certificates on this machine.
    #[arg(long)]
    purge: bool,
}

/// What an install has made.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Installed {
    version: String,
    role: Option<Role>,
    per_component: bool,
    flags: Vec<String>,
    data_dir: PathBuf,
    /// Units in the order in which they start.
    units: Vec<String>,
    /// Every file, from the root, with the hash of its content; of a link, where it leads.
    files: BTreeMap<PathBuf, String>,
}

/// A file to be made, from the root.
struct Planned {
    path: PathBuf,
    content: Content,
}

enum Content {
    Text { text: String, mode: u32 },
    Program(PathBuf),
    Link(PathBuf),
}

pub fn install(arguments: Install) -> Result<()> {
    install_program(arguments, &std::env::current_exe().context("finding this program")?)
}

fn install_program(arguments: Install, program: &Path) -> Result<()> {
    let before = read(&arguments.root)?;
    if let Some(other) = before.role.filter(|role| *role != arguments.role) {
        bail!("this machine is installed as {}; `regent uninstall` first", other.name());
    }
    let (flags, environment, per_component) = if arguments.flags.is_empty() && before.role.is_some() {
        let kept = std::fs::read_to_string(arguments.root.join(environment_file(arguments.role))).unwrap_or_default();
        (before.flags.clone(), kept, before.per_component)
    } else {
        let all = units::joined(&arguments.flags, |name| is_switch(arguments.role, name));
        check_flags(arguments.role, &all)?;
        let (flags, environment) = units::without_secrets(&all);
        (flags, environment, arguments.per_component)
    };
    if per_component && arguments.role == Role::Agent {
        bail!("--per-component: an agent joins the cluster as one process; only servers have a unit per component");
    }
    let (settings, flags) = settings(arguments.role, flags);
    let units = if per_component { units::per_component(&settings, takes).map_err(anyhow::Error::msg)? } else { units::single(&settings) };
    let planned = plan(&settings, &units, environment, program);
    refuse_foreign(&arguments.root, &planned, &before)?;
    if per_component {
        credentials(&arguments.root, &settings)?;
    }
    let mut after = Installed {
        version: env!("CARGO_PKG_VERSION").into(),
        role: Some(arguments.role),
        per_component,
        flags,
        data_dir: settings.data_dir.clone(),
        units: units.iter().map(|unit| unit.name.clone()).collect(),
        files: BTreeMap::new(),
    };
    for file in &planned {
        let hash = put(&arguments.root, file).with_context(|| format!("writing {}", arguments.root.join(&file.path).display()))?;
        after.files.insert(file.path.clone(), hash);
        println!("{}", Path::new("/").join(&file.path).display());
    }
    for (path, hash) in before.files.iter().filter(|(path, _)| !after.files.contains_key(*path)) {
        remove(&arguments.root, path, hash)?;
    }
    let record = serde_json::to_string_pretty(&after)?;
    pki::files::replace(&arguments.root.join(FOLDER).join("installed.json"), &record, pki::files::Access::Public)?;
    if has_systemd(&arguments.root) {
        systemctl(&["daemon-reload"])?;
        for unit in after.units.iter().filter(|_| !arguments.no_start) {
            systemctl(&[if units::is_socket(unit) { "start" } else { "restart" }, unit])?;
            println!("{unit}: started");
        }
    }
    Ok(())
}

pub fn uninstall(arguments: Uninstall) -> Result<()> {
    let installed = read(&arguments.root)?;
    if installed.role.is_none() {
        bail!("nothing is installed here ({} is missing)", arguments.root.join(FOLDER).join("installed.json").display());
    }
    let live = has_systemd(&arguments.root);
    if live {
        // Those who need others first.
        for unit in installed.units.iter().rev() {
            systemctl(&["stop", unit])?;
        }
    }
    let mut kept = 0;
    for (path, hash) in &installed.files {
        if remove(&arguments.root, path, hash)? {
            println!("{}: removed", Path::new("/").join(path).display());
        } else {
            kept += 1;
        }
    }
    std::fs::remove_file(arguments.root.join(FOLDER).join("installed.json"))?;
    // Empty now, unless somebody keeps something there.
    let _ = std::fs::remove_dir(arguments.root.join(FOLDER));
    if live {
        systemctl(&["daemon-reload"])?;
    }
    let data = below(&arguments.root, &installed.data_dir);
    if arguments.purge {
        if data.exists() {
            std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
        }
        println!("{}: removed", data.display());
    } else {
        println!("The data in {} stays (`--purge` removes it), and so do the containers.", data.display());
    }
    if kept > 0 {
        bail!("{kept} file(s) were changed since they were installed, and stay");
    }
    Ok(())
}

fn environment_file(role: Role) -> PathBuf {
    PathBuf::from(FOLDER).join(format!("regent-{}.env", role.name()))
}

/// The settings, and the flags as they are remembered. `--data-dir` is one of the settings.
fn settings(role: Role, flags: Vec<String>) -> (Settings, Vec<String>) {
    let data_dir = flags.iter().find_map(|flag| flag.strip_prefix("--data-dir=")).unwrap_or("/var/lib/regent").into();
    let others = flags.iter().filter(|flag| !flag.starts_with("--data-dir=")).cloned().collect();
    let absolute = |path: PathBuf| Path::new("/").join(path);
    let settings = Settings { role, binary: absolute(PROGRAM.into()), environment_file: absolute(environment_file(role)), data_dir, flags: others };
    (settings, flags)
}

/// A flag that is wrong is said now, and not by a service that does not start.
fn check_flags(role: Role, flags: &[String]) -> Result<()> {
    let words = ["regent", role.name()].into_iter().chain(flags.iter().map(String::as_str));
    crate::CommandLine::try_parse_from(words).map(drop).map_err(|error| anyhow::anyhow!("{}", error.to_string().trim_start_matches("error: ").trim()))
}

fn argument(command: &str, name: &str) -> Option<clap::Arg> {
    let all = crate::CommandLine::command();
    all.find_subcommand(command)?.get_arguments().find(|argument| argument.get_long_and_visible_aliases().is_some_and(|l| l.contains(&name))).cloned()
}

/// Where a server is reached: the API server's, though scheduler and controllers have flags of these names for their own metrics.
const PLACE_FLAGS: [&str; 2] = ["bind-address", "secure-port"];

/// Whether a component knows a flag of a server's.
fn takes(command: &str, name: &str) -> bool {
    let another = matches!(command, "scheduler" | "controller-manager") && PLACE_FLAGS.contains(&name);
    !another && argument(command, name).is_some()
}

/// Whether a flag stands alone.
fn is_switch(role: Role, name: &str) -> bool {
    argument(role.name(), name)
        .is_some_and(|argument| !argument.get_action().takes_values() || argument.get_num_args().is_some_and(|n| n.min_values() == 0))
}

fn plan(settings: &Settings, units: &[Unit], environment: String, program: &Path) -> Vec<Planned> {
    let mut planned = vec![
        Planned { path: PROGRAM.into(), content: Content::Program(program.into()) },
        Planned { path: environment_file(settings.role), content: Content::Text { text: environment, mode: 0o600 } },
    ];
    let folder = units::directory(Path::new(""));
    for unit in units {
        planned.push(Planned { path: folder.join(&unit.name), content: Content::Text { text: unit.text.clone(), mode: 0o644 } });
        let wanted = folder.join(format!("{}.wants", unit.wanted_by())).join(&unit.name);
        planned.push(Planned { path: wanted, content: Content::Link(Path::new("/").join(&folder).join(&unit.name)) });
    }
    planned
}

/// What another has put there, or somebody has changed since, is not replaced.
fn refuse_foreign(root: &Path, planned: &[Planned], before: &Installed) -> Result<()> {
    let mut foreign = Vec::new();
    for file in planned {
        let Some(found) = hash_of(&root.join(&file.path))? else { continue };
        let own = before.files.get(&file.path).is_some_and(|hash| *hash == found);
        let same = match &file.content {
            Content::Text { text, .. } => found == hash(text.as_bytes()),
            Content::Link(target) => found == link(target),
            Content::Program(program) => hash_of(program)?.is_some_and(|hash| hash == found),
        };
        if !own && !same {
            foreign.push(Path::new("/").join(&file.path).display().to_string());
        }
    }
    if !foreign.is_empty() {
        bail!("not made by `regent install`, or changed since: {}; move them away first", foreign.join(", "));
    }
    Ok(())
}

/// The keys, certificates and kubeconfigs of a server whose components are processes of their own. What is there stays.
fn credentials(root: &Path, settings: &Settings) -> Result<()> {
    let directory = below(root, &units::pki(settings));
    let value = |name: &str| settings.flags.iter().find_map(|flag| flag.strip_prefix(&format!("--{name}=")).map(str::to_owned));
    let name = value("node-name").or_else(|| value("hostname-override")).unwrap_or_else(crate::runtime::host_name);
    let address: std::net::IpAddr = match value("advertise-address") {
        Some(text) => text.parse().with_context(|| format!("--advertise-address={text}"))?,
        None => super::kubelet::machine_address().context("finding the machine's address; say --advertise-address")?.into(),
    };
    let node_address = value("node-ip").map_or(Ok(address), |text| text.parse().with_context(|| format!("--node-ip={text}")))?;
    let port = value("secure-port").unwrap_or_else(|| "6443".into());
    let services: ipnet::IpNet =
        value("service-cluster-ip-range").unwrap_or_else(|| "10.96.0.0/16".into()).parse().context("--service-cluster-ip-range")?;
    let service = services.hosts().next().context("--service-cluster-ip-range holds no address")?;
    let url = format!("https://{address}:{port}");
    let authority = Authority::load_or_create(&directory)?;
    authority.issue_kept(&directory, "apiserver", &Identity::apiserver(service, "cluster.local", &[name.clone(), address.to_string()]))?;
    authority.issue_kept(&directory, "apiserver-kubelet-client", &Identity::apiserver_kubelet_client())?;
    authority.issue_kept(&directory, "kubelet", &Identity::node_serving(&name, &[node_address]))?;
    ServiceAccountKeys::load_or_create(&directory)?;
    let clients = [
        (directory.join("controller-manager.kubeconfig"), Identity::controller_manager()),
        (directory.join("scheduler.kubeconfig"), Identity::scheduler()),
        (directory.join("kubelet.kubeconfig"), Identity::node(&name)),
        (directory.join("proxy.kubeconfig"), Identity::proxy()),
        (directory.join("dns.kubeconfig"), Identity::dns()),
        (below(root, &settings.data_dir).join("admin.kubeconfig"), Identity::admin()),
    ];
    for (path, identity) in clients {
        if !path.exists() {
            Kubeconfig::of(&url, &authority.issue(&identity)?, &identity.common_name).write(&path)?;
        }
    }
    Ok(())
}

fn read(root: &Path) -> Result<Installed> {
    let path = root.join(FOLDER).join("installed.json");
    match pki::files::read(&path)? {
        Some(text) => serde_json::from_str(&text).with_context(|| format!("{} cannot be read as what was installed", path.display())),
        None => Ok(Installed::default()),
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Writes a file; says its hash.
fn put(root: &Path, file: &Planned) -> Result<String> {
    let path = root.join(&file.path);
    std::fs::create_dir_all(path.parent().unwrap_or(root))?;
    match &file.content {
        Content::Text { text, mode } => {
            let access = if *mode == 0o600 { pki::files::Access::Private } else { pki::files::Access::Public };
            pki::files::replace(&path, text, access)?;
            Ok(hash(text.as_bytes()))
        }
        Content::Link(target) => {
            if std::fs::symlink_metadata(&path).is_ok() {
                std::fs::remove_file(&path)?;
            }
            symlink(target, &path)?;
            Ok(link(target))
        }
        Content::Program(program) => {
            let found = hash_of(program)?.context("this program's file is gone")?;
            if hash_of(&path)?.as_ref() != Some(&found) {
                // Beside it and then in its place: the running program is not written into.
                let beside = path.with_extension("new");
                let mut to = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&beside)?;
                std::io::copy(&mut std::fs::File::open(program)?, &mut to)?;
                to.set_permissions(std::fs::Permissions::from_mode(0o755))?;
                to.sync_all()?;
                std::fs::rename(&beside, &path)?;
            }
            Ok(found)
        }
    }
}

/// Removes a file that is as it was made. Says whether it is gone.
fn remove(root: &Path, path: &Path, made: &str) -> Result<bool> {
    let full = root.join(path);
    match hash_of(&full)? {
        None => Ok(true),
        Some(found) if found == made => {
            std::fs::remove_file(&full).with_context(|| format!("removing {}", full.display()))?;
            Ok(true)
        }
        Some(_) => {
            eprintln!("{}: changed since it was installed; it stays", full.display());
            Ok(false)
        }
    }
}

fn hash_of(path: &Path) -> Result<Option<String>> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
        Ok(found) if found.is_symlink() => Ok(Some(link(&std::fs::read_link(path)?))),
        Ok(_) => Ok(Some(hash(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?))),
    }
}

fn link(target: &Path) -> String {
    format!("-> {}", target.display())
}

fn hash(bytes: &[u8]) -> String {
    pki::sha256(bytes)
}

/// Whether this is the machine itself, and systemd runs it.
fn has_systemd(root: &Path) -> bool {
    root == Path::new("/") && Path::new("/run/systemd/system").exists()
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let status = Command::new("systemctl").args(arguments).status().context("running systemctl")?;
    if !status.success() {
        bail!("`systemctl {}` failed; `journalctl -xe` may say why", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn install_at(root: &Path, role: Role, per_component: bool, flags: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("regent");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let arguments = Install { role, root: root.into(), per_component, no_start: true, flags: words(flags) };
        install_program(arguments, &program)
    }

    fn files(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn where_a_server_is_reached_is_said_to_its_api_server_alone() {
        for flag in PLACE_FLAGS {
            let knows: Vec<&str> = ["apiserver", "scheduler", "controller-manager"].into_iter().filter(|command| takes(command, flag)).collect();
            assert_eq!(knows, ["apiserver"], "{flag}");
        }
    }

    #[test]
    fn an_agent_is_installed_upgraded_and_removed_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        install_at(root.path(), Role::Agent, false, "--server https://10.0.0.1:6443 --token abcdef.0123456789abcdef --max-pods=50").unwrap();
        let unit = std::fs::read_to_string(root.path().join("etc/systemd/system/regent-agent.service")).unwrap();
        assert!(unit.contains("--max-pods=50") && !unit.contains("abcdef"), "{unit}");
        let environment = root.path().join("etc/regent/regent-agent.env");
        assert_eq!(std::fs::metadata(&environment).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&environment).unwrap().contains("REGENT_TOKEN=abcdef.0123456789abcdef"));

        let before = files(root.path());
        install_at(root.path(), Role::Agent, false, "").unwrap();
        assert_eq!(files(root.path()), before);
        assert_eq!(std::fs::read_to_string(root.path().join("etc/systemd/system/regent-agent.service")).unwrap(), unit, "flags are kept");
        assert!(std::fs::read_to_string(&environment).unwrap().contains("REGENT_TOKEN"));
        assert!(install_at(root.path(), Role::Server, false, "").unwrap_err().to_string().contains("uninstall"));

        std::fs::create_dir_all(root.path().join("var/lib/regent")).unwrap();
        std::fs::write(root.path().join("var/lib/regent/data"), "x").unwrap();
        uninstall(Uninstall { root: root.path().into(), purge: false }).unwrap();
        assert_eq!(files(root.path()), ["var/lib/regent/data"]);
        assert!(uninstall(Uninstall { root: root.path().into(), purge: false }).is_err());
    }

    #[test]
    fn what_others_made_is_neither_replaced_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("etc/systemd/system/regent-agent.service");
        std::fs::create_dir_all(unit.parent().unwrap()).unwrap();
        std::fs::write(&unit, "mine").unwrap();
        let error = install_at(root.path(), Role::Agent, false, "--server https://10.0.0.1:6443").unwrap_err().to_string();
        assert!(error.contains("regent-agent.service"), "{error}");
        assert_eq!(files(root.path()).len(), 1, "nothing is half-made");

        std::fs::remove_file(&unit).unwrap();
        install_at(root.path(), Role::Agent, false, "--server https://10.0.0.1:6443").unwrap();
        std::fs::write(&unit, "changed").unwrap();
        assert!(install_at(root.path(), Role::Agent, false, "").is_err());
        assert!(uninstall(Uninstall { root: root.path().into(), purge: false }).is_err());
        assert_eq!(files(root.path()), ["etc/systemd/system/regent-agent.service"]);
    }

    #[test]
    fn a_wrong_flag_is_refused_at_once() {
        let root = tempfile::tempdir().unwrap();
        let error = install_at(root.path(), Role::Agent, false, "--sever https://10.0.0.1").unwrap_err().to_string();
        assert!(error.contains("--sever"), "{error}");
        assert!(install_at(root.path(), Role::Agent, true, "--server https://10.0.0.1").unwrap_err().to_string().contains("servers"));
        assert!(files(root.path()).is_empty());
    }

    #[test]
    fn a_server_has_a_unit_per_component_that_systemd_accepts() {
        let root = tempfile::tempdir().unwrap();
        let flags = "--advertise-address=10.0.0.1 --node-ip=10.0.0.1 --node-name s1 --cluster-cidr 10.244.0.0/16 --leader-elect-lease-duration=15s";
        install_at(root.path(), Role::Server, true, flags).unwrap();
        let folder = root.path().join("etc/systemd/system");
        let text = |unit: &str| std::fs::read_to_string(folder.join(unit)).unwrap();
        assert!(text("kube-apiserver.service").contains("  --tls-cert-file=/var/lib/regent/server/pki/apiserver.crt"));
        assert!(text("kube-scheduler.service").contains("--leader-elect-lease-duration=15s"));
        assert!(text("kube-controller-manager.service").contains("--cluster-cidr=10.244.0.0/16"));
        assert!(text("kubelet.service").contains("--node-name=s1"));
        assert!(root.path().join("var/lib/regent/server/pki/scheduler.kubeconfig").exists());
        for unit in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kube-dns"] {
            verify(root.path(), &format!("{unit}.service"));
        }
        uninstall(Uninstall { root: root.path().into(), purge: true }).unwrap();
        assert!(files(root.path()).is_empty());
    }

    #[test]
    fn one_unit_runs_a_whole_server() {
        let root = tempfile::tempdir().unwrap();
        install_at(root.path(), Role::Server, false, "--cluster-init --data-dir=/srv/regent").unwrap();
        let text = std::fs::read_to_string(root.path().join("etc/systemd/system/regent-server.service")).unwrap();
        assert_eq!(text.matches("--data-dir").count(), 1, "{text}");
        assert!(text.contains("--data-dir=/srv/regent") && text.contains("--cluster-init"), "{text}");
        verify(root.path(), "regent-server.service");
    }

    /// `systemd-analyze verify`, where there is one (the tests' set-up installs it).
    fn verify(root: &Path, unit: &str) {
        let text = std::fs::read_to_string(root.join("etc/systemd/system").join(unit)).unwrap();
        // The verifier wants the program to be there; it is below the root.
        let program = root.join(PROGRAM).display().to_string();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join(unit);
        std::fs::write(&copy, text.replace("ExecStart=/usr/local/bin/regent", &format!("ExecStart={program}"))).unwrap();
        match Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&copy).output() {
            Ok(output) => {
                // Units of others on this machine may have faults of their own.
                let said = String::from_utf8_lossy(&output.stderr);
                let faults: Vec<&str> = said.lines().filter(|line| line.contains(unit)).collect();
                assert!(faults.is_empty(), "{faults:?}");
            }
            Err(error) => println!("systemd-analyze does not run here: {error}"),
        }
    }
}
