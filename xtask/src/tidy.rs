//! The house rules that no compiler checks: file headers, crate arrows, banned calls, file lengths.

use crate::shell::sh;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{collections::BTreeMap, fs};

/// Which crate of the workspace may use which. What is not here is not allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("cri", &[]),
    ("pki", &[]),
    ("membership", &[]),
    ("store", &[]),
    ("fuzz", &[]),
    ("backup", &["api", "pki", "store"]),
    ("client", &["api", "membership"]),
    ("sandbox", &["pki"]),
    ("apiserver", &["api", "store", "pki"]),
    ("scheduler", &["api", "client"]),
    ("controllers", &["api", "client", "membership", "pki"]),
    ("node", &["api", "client", "cri", "membership", "pki"]),
    ("network", &["api", "client", "membership"]),
    ("dns", &["api", "client", "membership"]),
    ("drills", &["api", "client", "sandbox"]),
    ("simulation", &["client", "controllers", "dns", "membership", "network", "node"]),
    (
        "regent",
        &[
            "api",
            "apiserver",
            "backup",
            "client",
            "controllers",
            "cri",
            "dns",
            "drills",
            "membership",
            "network",
            "node",
            "pki",
            "sandbox",
            "scheduler",
            "store",
        ],
    ),
    ("xtask", &[]),
];
/// Text that may not stand in any source file, and why.
const BANNED: &[(&str, &str)] = &[
    (concat!("to", "do!("), "finish it, or leave it out"),
    (concat!("unimple", "mented!("), "finish it, or leave it out"),
    (concat!("FIX", "ME"), "mend it, or write down what is so"),
    (concat!("#[ig", "nore"), "a test that does not run proves nothing"),
];
/// Lines after which a reader no longer knows the room.
const LINES_MAX: usize = 1000;

pub fn run() -> Result<()> {
    let mut faults = Vec::new();
    let files = source_files()?;
    for file in files.lines().filter(|f| f.ends_with(".rs")) {
        let Ok(text) = fs::read_to_string(file) else { continue };
        if !text.starts_with("//!") {
            faults.push(format!("{file}: does not open with `//!`: its purpose, its place, what must stay true"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{file}: {lines} lines; split it (at most {LINES_MAX})"));
        }
        for (word, why) in BANNED {
            if text.contains(word) {
                faults.push(format!("{file}: `{word}`: {why}"));
            }
        }
    }
    faults.extend(bad_arrows()?);
    if !faults.is_empty() {
        bail!("{} fault(s):\n{}", faults.len(), faults.join("\n"));
    }
    println!("tidy: {} source files, no fault", files.lines().filter(|f| f.ends_with(".rs")).count());
    Ok(())
}

fn source_files() -> Result<String> {
    sh("git", &["ls-files", "--cached", "--others", "--exclude-standard"])
}

fn bad_arrows() -> Result<Vec<String>> {
    let metadata: Value = serde_json::from_str(&sh("cargo", &["metadata", "--format-version=1", "--no-deps"])?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            faults.push(format!("crate {name} is not in the list of arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null()) {
            let target = dependency["name"].as_str().unwrap_or_default();
            if names.contains(&target) && !allowed.contains(&target) {
                faults.push(format!("crate {name} may not use {target}"));
            }
        }
    }
    Ok(faults)
}
