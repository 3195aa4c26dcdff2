//! What the drills of lost state share: a snapshot, and the way back to it.

use super::SERVER;
use crate::{Result, stage::Stage};
use std::path::{Path, PathBuf};

/// Runs `regent snapshot` on the first server of the sandbox, with the flags that say where it keeps its things.
fn snapshot(stage: &Stage, arguments: &[&str]) -> Result<String> {
    let disk = stage.disk(SERVER)?;
    let mut flags = vec![format!("--data-dir={}", disk.display()), format!("--pki-dir={}", disk.join("pki").display())];
    let components = &stage.sandbox.node(SERVER)?.components;
    let command = components.iter().filter(|component| component.name == "apiserver").flat_map(|component| &component.command);
    flags.extend(command.filter(|flag| flag.starts_with("--etcd-")).cloned());
    let flags = flags.iter().map(String::as_str);
    stage.regent_on(SERVER, &["snapshot"].into_iter().chain(arguments.iter().copied()).chain(flags).collect::<Vec<_>>())
}

/// Saves a snapshot of the running cluster and checks that its status can be read.
pub(super) fn save(stage: &Stage) -> Result<PathBuf> {
    let file = stage.scratch().join("cluster.snapshot");
    let _ = std::fs::remove_file(&file);
    let path = file.display().to_string();
    stage.step("regent snapshot save");
    snapshot(stage, &["save", &path])?;
    let status = stage.regent_on(SERVER, &["snapshot", "status", &path])?;
    stage.figure("snapshot", status.lines().next().unwrap_or_default().to_owned());
    Ok(file)
}

/// Brings the store back to the snapshot by one command. Servers of an etcd go on meanwhile; an only server must be stopped.
pub(super) fn bring_back(stage: &Stage, file: &Path) -> Result<()> {
    stage.step("regent snapshot restore");
    let began = std::time::Instant::now();
    snapshot(stage, &["restore", &file.display().to_string()])?;
    stage.figure("restore took", format!("{:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Stops the API server, brings its store back to the snapshot, and starts it.
pub(super) async fn restore(stage: &Stage, file: &Path) -> Result<()> {
    stage.stop(SERVER, "apiserver")?;
    bring_back(stage, file)?;
    stage.heal("the API server is started on the restored store");
    stage.start(SERVER, "apiserver")?;
    stage.api_ready(30).await
}
