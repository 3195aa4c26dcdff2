//! The only master loses power: running applications do not notice, and neither do they notice its return.

use super::{
    SINGLE,
    without_master::{master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "master-power-cut",
    shows: "The only master loses power for half a minute and returns: no request fails, no container is restarted.",
    kubernetes: "\"life for applications will continue as normal unless nodes are rebooted, or there is a dramatic failure of some sort during this time\" (seed 000).",
    topology: SINGLE,
    sabotage: "requests of one node are dropped meanwhile",
    expects: &[NoFailedRequest, RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    master_off(stage).await?;
    if stage.sabotaged() {
        stage.block_traffic("worker-1")?;
    }
    stage.hold(25).await;
    master_on(stage).await?;
    stage.check_same_pods();
    Ok(())
}
