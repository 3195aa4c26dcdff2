//! One of three masters loses power, the one that leads: the cluster goes on by itself.

use super::{
    MASTERS,
    masters::{CONTROLLERS, SCHEDULER, all_ready, holder, must_lead, other_leader},
};
use crate::{
    Result,
    expectation::Expectation::{ApiWritesAgainWithin, DetectedWithin, NoFailedRequest},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "one-of-three-masters-lost",
    shows: "When the master that leads loses power, API writes succeed again within 3 s, scheduler and controllers lead elsewhere within the lease, and no request to the applications fails.",
    kubernetes: "The others go on (seed 002); clients wait for the health checks of their load balancer.",
    topology: MASTERS,
    sabotage: "a second master loses power too",
    expects: &[NoFailedRequest, ApiWritesAgainWithin(3_000), DetectedWithin(25_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let victim = must_lead(stage, CONTROLLERS)?;
    let (controllers, scheduler) = (holder(stage, CONTROLLERS), holder(stage, SCHEDULER));
    stage.fault(format!("{victim}, which leads, loses power"));
    stage.power_off(&victim)?;
    if stage.sabotaged()
        && let Some(second) = stage.servers().into_iter().find(|server| *server != victim)
    {
        stage.power_off(&second)?;
    }
    let took = other_leader(stage, CONTROLLERS, &controllers).await?;
    stage.figure("controllers lead again", format!("{:.1} s", took.as_secs_f64()));
    if scheduler.starts_with(&victim) {
        other_leader(stage, SCHEDULER, &scheduler).await?;
    }
    // The proof that both work: what is asked for now is made and placed.
    let replicas = stage.replicas();
    stage.scale(replicas + 1)?;
    stage.ready_pods(replicas + 1, 60).await?;
    stage.replaced("a further pod is made, placed and ready");
    stage.scale(replicas)?;
    stage.ready_pods(replicas, 60).await?;
    stage.heal(format!("{victim} is powered on"));
    stage.power_on(&victim).await?;
    all_ready(stage, 60).await?;
    stage.recovered().await
}
