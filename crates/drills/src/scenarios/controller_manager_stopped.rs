//! Seed 004, "Controller Manager failure": what is deleted is not replaced, until the controllers are back.

use super::{SERVER, SINGLE};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
    workload::{APP, NAMESPACE},
};

pub const SCENARIO: Scenario = Scenario {
    name: "controller-manager-stopped",
    shows: "With the controllers stopped, deleted pods are not replaced and requests leave them all the same; started again, they are replaced.",
    kubernetes: "\"But the controller failure prevents it\" (seed 004); and as nobody updates the endpoints either, requests go on to the deleted pods.",
    topology: SINGLE,
    sabotage: "the controller manager is not started again",
    expects: &[NoFailedRequest, RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let replicas = stage.replicas();
    stage.fault("the controller manager is stopped");
    stage.stop(SERVER, "controller-manager")?;
    let victims: Vec<String> = stage.before().ready(APP).take(replicas - 1).map(|pod| pod.name.clone()).collect();
    stage.step(format!("{} pods are deleted", victims.len()));
    stage.kubectl(&format!("delete pod -n {NAMESPACE} --wait=false {}", victims.join(" ")))?;
    stage.ready_pods(1, 40).await?;
    stage.hold(4).await;
    let left = stage.view().living(APP).count();
    stage.check("deleted pods are not replaced", left == 1, format!("{left} of {replicas} are left"));
    stage.heal("the controller manager is started");
    if !stage.sabotaged() {
        stage.start(SERVER, "controller-manager")?;
    }
    stage.ready_pods(replicas, 60).await?;
    stage.recovered().await
}
