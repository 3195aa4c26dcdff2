//! Seed 002: scheduler and controller manager run on every master, one of each acts, and its end is not the work's end.

use super::{
    MASTERS,
    masters::{CONTROLLERS, LEASE_MAX_S, SCHEDULER, component, holder, must_lead, other_leader},
};
use crate::{
    Result,
    expectation::Expectation::{NoFailedApiCall, NoFailedRequest},
    scenario::Scenario,
    stage::Stage,
    workload::APP,
};
use std::collections::BTreeSet;

pub const SCENARIO: Scenario = Scenario {
    name: "leader-killed",
    shows: "A killed leader (scheduler or controller manager) is followed by another within the lease, a stopped one within 2 s, and no pod is made or placed twice.",
    kubernetes: "The same by Leases of 15 s, renewed within 10 s, tried every 2 s (seed 002).",
    topology: MASTERS,
    sabotage: "the other candidates are stopped before",
    expects: &[NoFailedRequest, NoFailedApiCall],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let replicas = stage.replicas();
    let more = replicas + 2;
    for lease in [SCHEDULER, CONTROLLERS] {
        let (server, old) = (must_lead(stage, lease)?, holder(stage, lease));
        if stage.sabotaged() {
            for other in stage.servers().iter().filter(|other| **other != server) {
                stage.stop(other, component(lease))?;
            }
        }
        stage.fault(format!("the {} of {server}, which leads, is killed", component(lease)));
        stage.kill(&server, component(lease))?;
        let took = other_leader(stage, lease, &old).await?;
        stage.figure(format!("{} killed: another leads", component(lease)), format!("{:.1} s", took.as_secs_f64()));
        stage.check(
            format!("another {} leads within the lease", component(lease)),
            took.as_secs() < LEASE_MAX_S,
            format!("{:.1} s", took.as_secs_f64()),
        );
        stage.heal("it is started again");
        stage.start(&server, component(lease))?;
        works(stage, replicas, more).await?;
    }
    for lease in [SCHEDULER, CONTROLLERS] {
        let (server, old) = (must_lead(stage, lease)?, holder(stage, lease));
        stage.fault(format!("the {} of {server}, which leads, is stopped", component(lease)));
        stage.stop(&server, component(lease))?;
        let took = other_leader(stage, lease, &old).await?;
        stage.figure(format!("{} stopped: another leads", component(lease)), format!("{:.1} s", took.as_secs_f64()));
        stage.check(
            format!("a stopped {} hands over within 2 s", component(lease)),
            took.as_millis() <= 2500,
            format!("{:.1} s", took.as_secs_f64()),
        );
        stage.heal("it is started again");
        stage.start(&server, component(lease))?;
    }
    works(stage, replicas, more).await?;
    stage.recovered().await
}

/// Up and down again: exactly the pods that are needed are made.
async fn works(stage: &Stage, replicas: usize, more: usize) -> Result<()> {
    let before: BTreeSet<String> = stage.view().living(APP).map(|pod| pod.uid.clone()).collect();
    stage.step(format!("the workload is scaled to {more} and back"));
    stage.scale(more)?;
    stage.ready_pods(more, 60).await?;
    let made = stage.view().living(APP).filter(|pod| !before.contains(&pod.uid)).count();
    stage.check("exactly the pods that are needed are made", made == more - replicas, format!("{made} were made"));
    stage.scale(replicas)?;
    stage.ready_pods(replicas, 60).await.map(|_| ())
}
