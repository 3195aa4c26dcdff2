//! Seed 004, "Cluster Backup and Restore": a snapshot, a deletion, and the way back.

use super::{SINGLE, snapshots};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
    timeline::View,
    workload::{self, NAMESPACE},
};
use std::collections::BTreeSet;

pub const SCENARIO: Scenario = Scenario {
    name: "backup-and-restore",
    shows: "After a restore the deleted Deployment is back with the same UIDs, what was made since is gone, and applications that were not touched never noticed.",
    kubernetes: "\"stop the etcd service, remove the current db content and restore from the backup\", then restart everything (seed 004).",
    topology: SINGLE,
    sabotage: "the store is not restored",
    expects: &[NoFailedRequest, RecoveredWithin(90_000)],
    steps: |stage| Box::pin(steps(stage)),
};

const PODS: usize = 3;

fn uids(view: &View, app: &str) -> BTreeSet<String> {
    view.ready(app).map(|pod| pod.uid.clone()).collect()
}

async fn steps(stage: &Stage) -> Result<()> {
    let gone = |app: &'static str| move |view: &View| if view.pods.values().all(|pod| pod.app != app) { Ok(()) } else { Err(view.describe()) };
    let there = |app: &'static str, n: usize| move |view: &View| if view.ready(app).count() == n { Ok(()) } else { Err(view.describe()) };
    stage.kubectl_with(&["apply", "-f", "-"], &workload::sleepers("lost", PODS, None))?;
    stage.wait("the Deployment that will be lost", 60, there("lost", PODS)).await?;
    let uid = |stage: &Stage| stage.kubectl(&format!("get deployment -n {NAMESPACE} lost -o jsonpath={{.metadata.uid}}"));
    let (pods, of_deployment) = (uids(&stage.view(), "lost"), uid(stage)?);
    let file = snapshots::save(stage)?;
    stage.fault("the Deployment is deleted");
    stage.kubectl(&format!("delete deployment -n {NAMESPACE} lost"))?;
    stage.wait("its pods to go", 30, gone("lost")).await?;
    stage.step("another one is made");
    stage.kubectl_with(&["apply", "-f", "-"], &workload::sleepers("late", 1, None))?;
    stage.wait("the later one", 30, there("late", 1)).await?;
    if stage.sabotaged() {
        stage.heal("nothing is restored");
    } else {
        snapshots::restore(stage, &file).await?;
    }
    let restored = async {
        stage.wait("the deleted pods to be back", 60, there("lost", PODS)).await?;
        stage.check("the same pods by UID", uids(&stage.view(), "lost") == pods, stage.view().describe());
        let now = uid(stage)?;
        stage.check("the same Deployment by UID", now == of_deployment, format!("{of_deployment}, now {now}"));
        stage.wait("what was made since to go", 60, gone("late")).await
    };
    let restored = restored.await;
    stage.kubectl(&format!("delete deployment -n {NAMESPACE} lost late --ignore-not-found --wait=false"))?;
    restored?;
    stage.wait("the Deployments to go", 30, gone("lost")).await?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}
