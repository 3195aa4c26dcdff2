//! What the drills of lost state share: a snapshot of the only server, and the way back to it.

use super::SERVER;
use crate::{Result, stage::Stage};
use std::path::PathBuf;

/// Where the server of a sandbox keeps its things, as flags of `regent snapshot`.
fn place(stage: &Stage) -> Result<[String; 2]> {
    let disk = stage.disk(SERVER)?;
    Ok([format!("--data-dir={}", disk.display()), format!("--pki-dir={}", disk.join("pki").display())])
}

/// Saves a snapshot of the running server and checks that its status can be read.
pub(super) fn save(stage: &Stage) -> Result<PathBuf> {
    let file = stage.scratch().join("cluster.snapshot");
    let _ = std::fs::remove_file(&file);
    let (path, [data, pki]) = (file.display().to_string(), place(stage)?);
    stage.step("regent snapshot save");
    stage.regent_on(SERVER, &["snapshot", "save", &path, &data, &pki])?;
    let status = stage.regent_on(SERVER, &["snapshot", "status", &path])?;
    stage.figure("snapshot", status.lines().next().unwrap_or_default().to_owned());
    Ok(file)
}

/// Stops the API server, brings its store back to the snapshot by one command, and starts it.
pub(super) async fn restore(stage: &Stage, file: &std::path::Path) -> Result<()> {
    stage.stop(SERVER, "apiserver")?;
    let (path, [data, pki]) = (file.display().to_string(), place(stage)?);
    stage.step("regent snapshot restore");
    let began = std::time::Instant::now();
    stage.regent_on(SERVER, &["snapshot", "restore", &path, &data, &pki])?;
    stage.figure("restore took", format!("{:.1} s", began.elapsed().as_secs_f64()));
    stage.heal("the API server is started on the restored store");
    stage.start(SERVER, "apiserver")?;
    stage.api_ready(30).await
}
