//! The store of the only server is damaged: it says so, serves nothing, and is brought back from a snapshot.

use super::{SERVER, SINGLE, snapshots};
use crate::{
    Error, Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "store-corrupted",
    shows: "A damaged store is never served as if it were whole: the server says in one sentence what is wrong and what helps, and one command brings it back.",
    kubernetes: "\"your entire cluster state data is gone and the admins would want to restore it from backups as early as possible\" (seed 000).",
    topology: SINGLE,
    sabotage: "the store is left whole",
    expects: &[NoFailedRequest, RecoveredWithin(60_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let file = snapshots::save(stage)?;
    stage.fault("the API server is stopped, and the middle of its store is overwritten");
    stage.stop(SERVER, "apiserver")?;
    let directory = stage.disk(SERVER)?.join("server/store");
    if !stage.sabotaged() {
        damage(&directory)?;
    }
    stage.start(SERVER, "apiserver")?;
    stage.hold(6).await;
    let answer = stage.kubectl("get nodes --request-timeout=3s");
    stage.check("a damaged store is not served", answer.is_err(), answer.unwrap_or_else(|error| error.to_string()));
    let said = stage.log_tail(SERVER, "apiserver", 40)?;
    let sentence = said.lines().rev().find(|line| line.contains("snapshot restore") || line.contains("store restore")).map(str::to_owned);
    stage.check(
        "its log names the command that helps",
        sentence.is_some(),
        sentence.unwrap_or_else(|| said.lines().last().unwrap_or_default().to_owned()),
    );
    snapshots::restore(stage, &file).await?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}

/// Overwrites every page but the first of each file of the store.
fn damage(directory: &std::path::Path) -> Result<()> {
    const PAGE: usize = 4096;
    let entries = std::fs::read_dir(directory).map_err(Error::io(format!("reading {}", directory.display())))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_store = path.extension().is_some_and(|extension| extension == "db" || extension == "sqlite" || extension == "db-wal");
        if is_store && path.is_file() {
            let mut bytes = std::fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))?;
            bytes.iter_mut().skip(PAGE).step_by(7).for_each(|byte| *byte ^= 0x5a);
            std::fs::write(&path, bytes).map_err(Error::io(format!("damaging {}", path.display())))?;
        }
    }
    Ok(())
}
