//! A worker's clock jumps ten minutes forward, back past where it was, and home again.
//!
//! All nodes share this machine's clock, and a time namespace leaves the time of day alone. So the worker's components read theirs
//! through Debian's libfaketime, which moves the time of day of a process, and nothing else, by what a file says.

use super::{CLOCKS, VICTIM, without_master::container};
use crate::{Result, expectation::Expectation::RecoveredWithin, scenario::Scenario, stage::Stage};
use std::time::Instant;

pub const SCENARIO: Scenario = Scenario {
    name: "clock-jumps",
    shows: "A worker's clock jumps ten minutes forward and twenty back: no pod is touched, the node stays Ready, and a container that crashes meanwhile runs again as soon as ever.",
    kubernetes: "a clock that is set back holds up what waits for a time of day: back-off, leases and tokens (kubelet and client-go compare wall clocks).",
    topology: CLOCKS,
    sabotage: "the agent of the node is halted while the clock jumps",
    expects: &[RecoveredWithin(90_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// How long a crashed container may take: Kubernetes' second delay is 10 s.
const CRASH_MAX_S: u64 = 45;

/// Sets how far the node's clock is off, as libfaketime reads it.
fn set(stage: &Stage, offset: &str) -> Result<()> {
    let file = stage.disk(VICTIM)?.join("clock-offset").display().to_string();
    // In one step: a file that is read half would be another time.
    stage.on_node(VICTIM, &format!("echo '{offset}' > {file}.new && mv {file}.new {file}")).map(|_| ())
}

/// The container ends twice, so that the second start waits for its delay.
async fn crash(stage: &Stage) -> Result<()> {
    let pod = stage.pod_on(VICTIM)?;
    for round in 1..=2 {
        let before = restarts(stage, &pod.uid);
        let began = Instant::now();
        let id = container(stage, &pod, "nginx")?;
        stage.fault(format!("the container of {} is killed", pod.name));
        stage.on_node(VICTIM, &format!("ctr -n k8s.io tasks kill -s KILL {id}"))?;
        let uid = pod.uid.clone();
        let again = move |view: &crate::timeline::View| match view.pods.get(&uid) {
            Some(pod) if pod.ready && pod.restarts > before => Ok(()),
            other => Err(format!("{other:?}")),
        };
        stage.wait("the crashed container to run again", CRASH_MAX_S, again).await?;
        stage.figure(format!("crash {round}: ready again after"), format!("{:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

fn restarts(stage: &Stage, uid: &str) -> i32 {
    stage.view().pods.get(uid).map_or(0, |pod| pod.restarts)
}

async fn steps(stage: &Stage) -> Result<()> {
    let node_stays = |stage: &Stage, what: &str| {
        let ready = stage.view().nodes.get(VICTIM).map(|node| node.ready.clone()).unwrap_or_default();
        stage.check(format!("{VICTIM} is Ready {what}"), ready == "True", ready);
    };
    if stage.sabotaged() {
        stage.pause(VICTIM, "kubelet")?;
    }
    stage.step(format!("the clock of {VICTIM} jumps ten minutes forward"));
    set(stage, "+600s")?;
    stage.hold(25).await;
    node_stays(stage, "with a clock ten minutes fast");
    stage.step(format!("the clock of {VICTIM} jumps twenty minutes back"));
    set(stage, "-600s")?;
    stage.hold(25).await;
    node_stays(stage, "with a clock ten minutes slow");
    stage.check_same_pods();
    stage.step("a container crashes twice, and twice again when the clock has jumped back once more");
    crash(stage).await?;
    set(stage, "-4200s")?;
    crash(stage).await?;
    stage.heal("the clock is right again");
    set(stage, "+0s")?;
    stage.recovered().await?;
    stage.hold(10).await;
    node_stays(stage, "with its clock right again");
    Ok(())
}
