//! One directory of snapshots: names, the list, and how many are kept.
//!
//! A name says when and where a snapshot was taken: `scheduled-server-1-2026-11-22T06-41-56Z.snapshot`. Only scheduled ones
//! of the same server are ever removed; what a person took stays until a person removes it.

use crate::{Result, at, stamp};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};
use store::snapshot::{Status, read_status};

const SUFFIX: &str = ".snapshot";

/// Who asked for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Schedule,
    Person,
}

/// The name of a new snapshot.
pub fn name(reason: Reason, node: &str, at_s: u64) -> String {
    format!("{}{}{SUFFIX}", prefix(reason, node), stamp(at_s))
}

fn prefix(reason: Reason, node: &str) -> String {
    let reason = match reason {
        Reason::Schedule => "scheduled",
        Reason::Person => "on-demand",
    };
    format!("{reason}-{node}-")
}

/// Whether a file name is of a scheduled snapshot of this node.
pub fn is_scheduled(file_name: &str, node: &str) -> bool {
    let time = file_name.strip_prefix(&prefix(Reason::Schedule, node)).and_then(|rest| rest.strip_suffix(SUFFIX));
    // Another node's name may go on where this one's ends.
    time.is_some_and(|time| time.len() == "2026-11-22T06-41-56Z".len())
}

/// Those of `names` that are beyond the newest `keep` scheduled ones of this node.
pub fn surplus(mut names: Vec<String>, node: &str, keep: usize) -> Vec<String> {
    names.retain(|name| is_scheduled(name, node));
    names.sort_unstable();
    names.truncate(names.len().saturating_sub(keep));
    names
}

/// A file in the list.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub path: PathBuf,
    /// What it is, or why it is of no use.
    #[serde(flatten)]
    pub state: State,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Whole(Status),
    Unusable(String),
}

/// Makes the directory, which only root may enter.
pub fn create(directory: &Path) -> Result<()> {
    pki::files::create_directory(directory).map_err(|error| crate::Error::Refused(format!("making {}: {error}", directory.display())))
}

/// All snapshots in the directory, each read to its end, oldest first. An absent directory has none.
pub fn list(directory: &Path) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = paths(directory)?
        .into_iter()
        .map(|path| {
            let state = read_status(&path).map_or_else(|error| State::Unusable(error.to_string()), State::Whole);
            Entry { path, state }
        })
        .collect();
    let made = |entry: &Entry| match &entry.state {
        State::Whole(status) => status.header.created_at_s,
        State::Unusable(_) => 0,
    };
    entries.sort_by(|a, b| made(a).cmp(&made(b)).then_with(|| a.path.cmp(&b.path)));
    Ok(entries)
}

fn paths(directory: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", directory.display());
    let found = match fs::read_dir(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(reading())(error)),
    };
    let mut paths = Vec::new();
    for entry in found {
        let path = entry.map_err(at(reading()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(SUFFIX) && !name.starts_with('.') {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Removes scheduled snapshots of this node beyond the newest `keep`; returns their names.
pub fn prune(directory: &Path, node: &str, keep: usize) -> Result<Vec<String>> {
    let names = paths(directory)?.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect();
    let gone = surplus(names, node, keep);
    for name in &gone {
        let path = directory.join(name);
        fs::remove_file(&path).map_err(at(format!("removing {}", path.display())))?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheduled_ones_of_the_same_node_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut all: Vec<String> = (0..5).map(|i| name(Reason::Schedule, "a", 1_000_000 + i * 3600)).collect();
        all.push(name(Reason::Schedule, "a-b", 1));
        all.push(name(Reason::Person, "a", 1));
        all.push("notes.txt".into());
        for name in &all {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(prune(directory.path(), "a", 3).unwrap(), all[..2]);
        assert_eq!(prune(directory.path(), "a", 3).unwrap(), Vec::<String>::new());
        assert_eq!(list(directory.path()).unwrap().len(), 5);
        assert!(list(&directory.path().join("none")).unwrap().is_empty());
    }
}
