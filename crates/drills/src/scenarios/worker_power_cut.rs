//! A worker loses power: Services leave it within seconds, its pods are replaced, and its return changes nothing.

use super::{
    SINGLE, VICTIM,
    kubelet_stopped::{given_up, returned},
};
use crate::{
    Result,
    expectation::Expectation::{DetectedWithin, ReplacedWithin, ReturnedWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "worker-power-cut",
    shows: "When a worker loses power, every other node stops routing to it within 3 s; its pods are replaced; powered on again, the old pod goes and nothing moves back.",
    kubernetes: "\"a worker nodes can fail\" (seed 004): requests to its pods fail for 40 to 50 s, until the node is NotReady.",
    topology: SINGLE,
    sabotage: "a second worker loses power two seconds after the first, and a third node's requests are dropped",
    expects: &[RoutedAroundWithin(3_000), DetectedWithin(30_000), ReplacedWithin(60_000), ReturnedWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let victim = stage.pod_on(VICTIM)?;
    stage.fault(format!("{VICTIM} loses power"));
    stage.power_off(VICTIM)?;
    if stage.sabotaged() {
        stage.hold(2).await;
        stage.power_off("worker-3")?;
        stage.block_traffic("worker-1")?;
    }
    given_up(stage).await?;
    stage.heal(format!("{VICTIM} is powered on"));
    stage.power_on(VICTIM).await?;
    returned(stage, &victim.uid).await
}
