//! An outage with all that can happen in it, and a calm return.

use super::{
    SINGLE, VICTIM,
    without_master::{answers, container, master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "long-outage",
    shows: "An outage of two minutes (a day, shortened) with a reboot, a crash and a restarted proxy in it: the return restarts nothing and empties nothing.",
    kubernetes: "\"the workers will wait and wait until the Manager comes back.\" (seed 000)",
    topology: SINGLE,
    sabotage: "the workload's containers are killed at the return",
    expects: &[RoutedAroundWithin(4_000), RecoveredWithin(40_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let (rebooted, crashed) = (stage.pod_on(VICTIM)?, stage.pod_on("worker-3")?);
    master_off(stage).await?;
    stage.fault(format!("{VICTIM} loses power"));
    stage.power_off(VICTIM)?;
    stage.hold(8).await;
    stage.heal(format!("{VICTIM} is powered on"));
    stage.power_on(VICTIM).await?;
    answers(stage, &rebooted, 60).await?;
    let id = container(stage, &crashed, "nginx")?;
    stage.fault(format!("the container of {} is killed", crashed.name));
    stage.on_node("worker-3", &format!("ctr -n k8s.io tasks kill -s KILL {id}"))?;
    answers(stage, &crashed, 30).await?;
    stage.step("the proxy of worker-1 is restarted");
    stage.stop("worker-1", "proxy")?;
    stage.start("worker-1", "proxy")?;
    stage.hold(70).await;
    if stage.sabotaged() {
        stage.on_node("worker-1", "ctr -n k8s.io tasks list -q | xargs -r -n 1 ctr -n k8s.io tasks kill -s KILL")?;
    }
    master_on(stage).await?;
    let view = stage.view();
    let restarts = |uid: &str| view.pods.get(uid).map(|pod| pod.restarts);
    stage.check("the crash is counted once", restarts(&crashed.uid) == Some(1), format!("{:?}", restarts(&crashed.uid)));
    let others: Vec<_> = view.living(crate::workload::APP).filter(|pod| ![&rebooted.uid, &crashed.uid].contains(&&pod.uid)).collect();
    stage.check("the return restarts nothing", others.iter().all(|pod| pod.restarts == 0), view.describe());
    let same = stage.before().pods.keys().all(|uid| view.pods.contains_key(uid));
    stage.check("the very same pods run", same, view.describe());
    Ok(())
}
