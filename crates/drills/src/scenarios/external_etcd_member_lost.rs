//! etcd on nodes of its own; one member loses power.

use super::{EXTERNAL, masters::all_ready};
use crate::{
    Result,
    expectation::Expectation::{ApiWritesAgainWithin, NoFailedRequest},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "external-etcd-member-lost",
    shows: "When a member of an external etcd loses power, API writes go on within 5 s, whichever member it was, and nothing else notices.",
    kubernetes: "\"This is less risky as a failed control plan node does not impact the ETCD Cluster\" (seed 002).",
    topology: EXTERNAL,
    sabotage: "a second member loses power too",
    expects: &[NoFailedRequest, ApiWritesAgainWithin(5_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    for member in ["etcd-1", "etcd-2", "etcd-3"] {
        stage.fault(format!("{member} loses power"));
        stage.power_off(member)?;
        if stage.sabotaged() {
            stage.power_off(if member == "etcd-1" { "etcd-2" } else { "etcd-1" })?;
        }
        stage.hold(8).await;
        stage.heal(format!("{member} is powered on"));
        stage.power_on(member).await?;
        all_ready(stage, 40).await?;
        // The next one only goes when this one has caught up.
        stage.hold(4).await;
    }
    let replicas = stage.replicas();
    stage.scale(replicas + 1)?;
    stage.ready_pods(replicas + 1, 60).await?;
    stage.scale(replicas)?;
    stage.recovered().await
}
