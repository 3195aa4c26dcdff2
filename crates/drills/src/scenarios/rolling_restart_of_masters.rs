//! Every master is restarted, one after the other, as an upgrade does it.

use super::{MASTERS, masters::all_ready};
use crate::{
    Result,
    expectation::Expectation::{NoFailedApiCall, NoFailedRequest},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "rolling-restart-of-masters",
    shows: "All masters are restarted one after the other, and no API call fails beyond one retry, no application request at all.",
    kubernetes: "The same, with a load balancer and care (seed 002).",
    topology: MASTERS,
    sabotage: "all masters are restarted at once, and stay away for twelve seconds",
    expects: &[NoFailedRequest, NoFailedApiCall],
    steps: |stage| Box::pin(steps(stage)),
};

/// What a master runs beside its node's own parts, in the order in which it stops.
const PARTS: [&str; 4] = ["scheduler", "controller-manager", "apiserver", "etcd"];

async fn steps(stage: &Stage) -> Result<()> {
    let stop = |server: &str| PARTS.iter().try_for_each(|part| stage.stop(server, part));
    let start = |server: &str| PARTS.iter().rev().try_for_each(|part| stage.start(server, part));
    if stage.sabotaged() {
        stage.fault("all masters stop");
        stage.servers().iter().try_for_each(|server| stop(server))?;
        stage.hold(12).await;
        stage.servers().iter().try_for_each(|server| start(server))?;
        stage.heal("all masters start");
    } else {
        for server in stage.servers() {
            stage.fault(format!("{server} stops"));
            stop(&server)?;
            stage.hold(2).await;
            stage.heal(format!("{server} starts"));
            start(&server)?;
            // The next one only goes when this one serves.
            all_ready(stage, 60).await?;
        }
    }
    stage.recovered().await?;
    stage.hold(3).await;
    stage.check_same_pods();
    Ok(())
}
