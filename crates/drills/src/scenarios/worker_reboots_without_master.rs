//! A worker reboots while no server is there to tell it what to run.

use super::{
    SINGLE, VICTIM,
    without_master::{answers, master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, ReturnedWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "worker-reboots-without-master",
    shows: "With the only master gone, a worker reboots: its pods come back by themselves with their addresses, and Services and names work on it.",
    kubernetes: "\"rebooting a node would cause DNS queries and in fact probably all pod and service networking functionality\" to fail \"until at least one master comes back online\" (seed 000).",
    topology: SINGLE,
    sabotage: "the node's checkpoints are removed while it is off",
    expects: &[RoutedAroundWithin(3_000), ReturnedWithin(12_000), RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let pod = stage.pod_on(VICTIM)?;
    master_off(stage).await?;
    stage.fault(format!("{VICTIM} loses power"));
    stage.power_off(VICTIM)?;
    stage.hold(5).await;
    if stage.sabotaged() {
        let data = stage.disk(VICTIM)?.join("data");
        stage.shell(&format!("find {} -name checkpoint -prune -exec rm -rf {{}} +", data.display()))?;
    }
    stage.heal(format!("{VICTIM} is powered on"));
    stage.power_on(VICTIM).await?;
    let took = answers(stage, &pod, 40).await?;
    stage.figure("its pod answers again", format!("{:.1} s after power on", took.as_secs_f64()));
    stage.check("its pod answers within 12 s", took.as_secs() < 12, format!("{:.1} s", took.as_secs_f64()));
    stage.hold(5).await;
    master_on(stage).await?;
    let now = stage.view().pods.get(&pod.uid).cloned();
    let same = now.as_ref().is_some_and(|now| now.address == pod.address && now.ready);
    stage.check("it is the same pod with the same address", same, format!("{now:?}"));
    Ok(())
}
