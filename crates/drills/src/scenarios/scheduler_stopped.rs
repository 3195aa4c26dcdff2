//! Seed 004, "Scheduler failure": new pods wait, running ones serve.

use super::{SERVER, SINGLE};
use crate::{Result, expectation::Expectation::NoFailedRequest, scenario::Scenario, stage::Stage, workload::APP};

pub const SCENARIO: Scenario = Scenario {
    name: "scheduler-stopped",
    shows: "With the scheduler stopped, scaling up leaves the new pods Pending; started again, it places them.",
    kubernetes: "\"We see new pods stucking in pending state since the scheduler is not available.\" (seed 004): the same.",
    topology: SINGLE,
    sabotage: "the scheduler is not started again",
    expects: &[NoFailedRequest],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let (before, twice) = (stage.replicas(), stage.replicas() * 2);
    stage.fault("the scheduler is stopped");
    stage.stop(SERVER, "scheduler")?;
    stage.step(format!("the workload is scaled from {before} to {twice}"));
    stage.scale(twice)?;
    let pending = move |view: &crate::timeline::View| view.living(APP).filter(|pod| pod.phase == "Pending" && pod.node.is_empty()).count();
    stage.wait("the new pods to be Pending", 20, |view| if pending(view) == twice - before { Ok(()) } else { Err(view.describe()) }).await?;
    stage.hold(4).await;
    let view = stage.view();
    stage.check(
        "new pods stay Pending, the others serve",
        pending(&view) == twice - before && view.ready(APP).count() == before,
        format!("{} Pending, {} ready", pending(&view), view.ready(APP).count()),
    );
    stage.heal("the scheduler is started");
    if !stage.sabotaged() {
        stage.start(SERVER, "scheduler")?;
    }
    let took = stage.ready_pods(twice, 60).await?;
    stage.figure("from its start to all pods ready", format!("{:.1} s", took.as_secs_f64()));
    stage.step(format!("the workload is scaled back to {before}"));
    stage.scale(before)?;
    stage.recovered().await
}
