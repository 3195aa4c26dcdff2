//! Seed 004, "APIs Server failure": nobody can use the cluster, and its applications go on serving.

use super::{SERVER, SINGLE};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "api-server-stopped",
    shows: "With the API server stopped, kubectl is refused and the applications go on serving on every node; started again, all is as before.",
    kubernetes: "\"a failure in the control plane does not prevents user applications to work\" (seed 004): the same.",
    topology: SINGLE,
    sabotage: "requests of one node are dropped while the API server is down",
    expects: &[NoFailedRequest, RecoveredWithin(15_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// How long the API server stays away, in seconds.
const AWAY_S: u64 = 10;

async fn steps(stage: &Stage) -> Result<()> {
    stage.fault("the API server is stopped");
    stage.stop(SERVER, "apiserver")?;
    let refused = stage.kubectl("get all --request-timeout=3s").err().map(|error| error.to_string());
    let seen = refused.unwrap_or_else(|| "it was answered".into());
    stage.check("kubectl is refused", seen.contains("refused"), seen);
    if stage.sabotaged() {
        stage.block_traffic("worker-1")?;
    }
    stage.hold(AWAY_S).await;
    stage.heal("the API server is started");
    stage.start(SERVER, "apiserver")?;
    stage.api_ready(30).await?;
    stage.recovered().await?;
    // A return that disturbs shows soon after it.
    stage.hold(5).await;
    stage.check_same_pods();
    Ok(())
}
