//! A container dies while no server is there.

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
    name: "container-crashes-without-master",
    shows: "With the only master gone, a container that is killed is restarted by its node and serves again within seconds.",
    kubernetes: "The same: the kubelet restarts it.",
    topology: SINGLE,
    sabotage: "the kubelet of the node is stopped before",
    expects: &[RoutedAroundWithin(4_000), RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let pod = stage.pod_on(VICTIM)?;
    master_off(stage).await?;
    if stage.sabotaged() {
        stage.stop(VICTIM, "kubelet")?;
    }
    let id = container(stage, &pod, "nginx")?;
    stage.fault(format!("the container of {} is killed", pod.name));
    stage.on_node(VICTIM, &format!("ctr -n k8s.io tasks kill -s KILL {id}"))?;
    let took = answers(stage, &pod, 30).await?;
    stage.figure("it answers again", format!("{:.1} s", took.as_secs_f64()));
    stage.hold(5).await;
    master_on(stage).await?;
    let restarts = stage.view().pods.get(&pod.uid).map(|pod| pod.restarts);
    stage.check("one restart is counted, and reported when the master is back", restarts == Some(1), format!("{restarts:?}"));
    Ok(())
}
