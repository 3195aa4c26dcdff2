//! Nodes rebooted, and one died, while the master was away: its return disturbs nothing and learns all.

use super::{
    SINGLE, VICTIM,
    without_master::{answers, master_off},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
    timeline::{Mark, View, What},
    workload::APP,
};

pub const SCENARIO: Scenario = Scenario {
    name: "master-returns-after-reboots",
    shows: "The master returns after one worker rebooted and another died: no healthy container is restarted, no Service is emptied, and the death is learnt.",
    kubernetes: "Nodes are NotReady and endpoints emptied until every kubelet has reported; in the field, healthy pods were killed at that moment.",
    topology: SINGLE,
    sabotage: "the containers of the node that did nothing are killed at the return",
    expects: &[RoutedAroundWithin(4_000), RecoveredWithin(120_000)],
    steps: |stage| Box::pin(steps(stage)),
};

const DEAD: &str = "worker-3";

async fn steps(stage: &Stage) -> Result<()> {
    let (rebooted, untouched) = (stage.pod_on(VICTIM)?, stage.pod_on("worker-1")?);
    master_off(stage).await?;
    stage.fault(format!("{VICTIM} reboots"));
    stage.power_off(VICTIM)?;
    stage.power_on(VICTIM).await?;
    answers(stage, &rebooted, 60).await?;
    stage.fault(format!("{DEAD} loses power"));
    stage.power_off(DEAD)?;
    stage.hold(8).await;
    stage.heal("the master is powered on");
    let back = crate::now_ms();
    stage.power_on(super::SERVER).await?;
    if stage.sabotaged() {
        stage.on_node("worker-1", "ctr -n k8s.io tasks list -q | xargs -r -n 1 ctr -n k8s.io tasks kill -s KILL")?;
    }
    stage.api_ready(60).await?;
    let is_lost = |view: &View| if view.nodes.get(DEAD).is_some_and(|node| node.ready != "True") { Ok(()) } else { Err(view.describe()) };
    let learnt = stage.wait(&format!("{DEAD} to be NotReady"), 70, is_lost).await?;
    stage.figure("the death is learnt", format!("{:.1} s after the return", learnt.as_secs_f64()));
    let well = |view: &View| view.ready(APP).filter(|pod| pod.node != DEAD).count();
    let replicas = stage.replicas();
    stage.wait("all pods to run elsewhere", 90, |view| if well(view) == replicas { Ok(()) } else { Err(view.describe()) }).await?;
    stage.replaced("the dead node's pods run elsewhere");
    let fewest = stage.recorder.with_log(|log| {
        let after = log.events.iter().filter(|event| event.at_ms >= back);
        after.filter_map(|event| if let What::Endpoints(endpoints) = &event.what { Some(endpoints.ready.len()) } else { None }).min()
    });
    stage.check("no Service is emptied at the return", fewest.is_none_or(|fewest| fewest > 0), format!("at least {fewest:?} ready endpoints"));
    let now = stage.view().pods.get(&untouched.uid).map(|pod| pod.restarts);
    stage.check("no healthy container is restarted", now == Some(untouched.restarts), format!("{now:?}"));
    stage.recorder.mark(Mark::Heal, format!("{DEAD} is powered on"));
    stage.power_on(DEAD).await?;
    stage.recovered().await
}
