//! The kubelets start again while no server is there to ask.

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
    name: "agent-restarted-without-master",
    shows: "With the only master gone, the kubelet of every worker is killed and starts again: no container is restarted, no request fails.",
    kubernetes: "Containers go on, but a restarted kubelet starts none before it has reached a master.",
    topology: SINGLE,
    sabotage: "the containers of one node are killed too",
    expects: &[NoFailedRequest, RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    master_off(stage).await?;
    for worker in stage.workers() {
        stage.fault(format!("the kubelet of {worker} is killed"));
        stage.kill(&worker, "kubelet")?;
        if stage.sabotaged() {
            stage.on_node(&worker, "ctr -n k8s.io tasks list -q | xargs -r -n 1 ctr -n k8s.io tasks kill -s KILL")?;
        }
        stage.start(&worker, "kubelet")?;
        stage.step("and started");
        stage.hold(4).await;
    }
    master_on(stage).await?;
    stage.check_same_pods();
    Ok(())
}
