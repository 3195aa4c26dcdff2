//! A power failure of the whole house, and the master does not come back.

use super::{
    SINGLE,
    without_master::{answers, master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, ReturnedWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "every-node-reboots-without-master",
    shows: "With the only master gone, every worker loses power at once: all pods come back with their addresses and serve, without a master.",
    kubernetes: "Nothing comes back \"until at least one master comes back online\" (seed 000).",
    topology: SINGLE,
    sabotage: "the nodes' checkpoints are removed while they are off",
    expects: &[ReturnedWithin(20_000), RecoveredWithin(40_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let pods: Vec<_> = stage.before().ready(crate::workload::APP).cloned().collect();
    master_off(stage).await?;
    stage.fault("every worker loses power");
    for worker in stage.workers() {
        stage.power_off(&worker)?;
        if stage.sabotaged() {
            let data = stage.disk(&worker)?.join("data");
            stage.shell(&format!("find {} -name checkpoint -prune -exec rm -rf {{}} +", data.display()))?;
        }
    }
    stage.hold(3).await;
    stage.heal("they are powered on");
    for worker in stage.workers() {
        stage.power_on(&worker).await?;
    }
    let mut worst = std::time::Duration::ZERO;
    for pod in &pods {
        worst = worst.max(answers(stage, pod, 60).await?);
    }
    stage.figure("every pod answers again", format!("{:.1} s after power on", worst.as_secs_f64()));
    stage.hold(5).await;
    master_on(stage).await?;
    let view = stage.view();
    let same = pods.iter().all(|pod| view.pods.get(&pod.uid).is_some_and(|now| now.address == pod.address && now.ready));
    stage.check("they are the same pods with the same addresses", same, view.describe());
    Ok(())
}
