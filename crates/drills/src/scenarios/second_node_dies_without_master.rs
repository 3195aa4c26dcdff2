//! A worker dies while no server is there to notice.

use super::{
    SINGLE, VICTIM,
    without_master::{master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "second-node-dies-without-master",
    shows: "With the only master gone, a worker loses power too: every other node stops routing to it within 3 s.",
    kubernetes: "\"The cluster will not be able to respond to node failures\" (seed 000): its endpoints stay, and their share of the requests fails, until a master is back.",
    topology: SINGLE,
    sabotage: "the proxies of the other nodes stand still",
    expects: &[RoutedAroundWithin(3_000), RecoveredWithin(90_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    master_off(stage).await?;
    if stage.sabotaged() {
        for worker in stage.workers().iter().filter(|worker| *worker != VICTIM) {
            stage.pause(worker, "proxy")?;
        }
    }
    stage.fault(format!("{VICTIM} loses power too"));
    stage.power_off(VICTIM)?;
    stage.hold(12).await;
    stage.heal(format!("{VICTIM} is powered on"));
    stage.power_on(VICTIM).await?;
    stage.hold(15).await;
    master_on(stage).await
}
