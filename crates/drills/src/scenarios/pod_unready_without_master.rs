//! A pod becomes unready while no server is there to pass it on.

use super::{
    SINGLE, VICTIM,
    without_master::{answers, container, exec, master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "pod-unready-without-master",
    shows: "With the only master gone, a pod whose readiness probe fails leaves its Service on every node within a second of that, and returns when it is well.",
    kubernetes: "Never: its endpoint stays until a master is back.",
    topology: SINGLE,
    sabotage: "the proxies stand still",
    expects: &[RoutedAroundWithin(5_500), RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

const PAGE: &str = "/usr/share/nginx/html/index.html";

async fn steps(stage: &Stage) -> Result<()> {
    let pod = stage.pod_on(VICTIM)?;
    master_off(stage).await?;
    if stage.sabotaged() {
        for worker in stage.workers() {
            stage.pause(&worker, "proxy")?;
        }
    }
    // Found before: on a busy machine that alone takes a second.
    let id = container(stage, &pod, "nginx")?;
    // Three probes, one a second, must fail before it is unready.
    stage.fault(format!("the page of {} is gone: its probe fails", pod.name));
    exec(stage, &pod, &id, &format!("mv {PAGE} {PAGE}.away"))?;
    stage.hold(12).await;
    stage.heal("the page is back");
    exec(stage, &pod, &id, &format!("mv {PAGE}.away {PAGE}"))?;
    answers(stage, &pod, 20).await?;
    master_on(stage).await?;
    stage.check_same_pods();
    Ok(())
}
