//! Seed 004, "Failure of a worker node": the kubelet stops, and its node is given up.

use super::{SINGLE, VICTIM};
use crate::{
    Result,
    expectation::Expectation::{DetectedWithin, NoFailedRequest, ReplacedWithin},
    scenario::Scenario,
    stage::Stage,
    timeline::View,
    workload::APP,
};

pub const SCENARIO: Scenario = Scenario {
    name: "kubelet-stopped",
    shows: "A node whose kubelet stops is NotReady after the grace period, its pods are replaced elsewhere after their toleration; back again, the old pod goes and nothing moves back.",
    kubernetes: "\"It will take 5 minutes by design and it is controlled by the --pod-eviction-timeout of the controller manager.\" (seed 004): the same, after 40 to 50 s until NotReady.",
    topology: SINGLE,
    sabotage: "the kubelet is started again before anybody notices",
    expects: &[NoFailedRequest, DetectedWithin(35_000), ReplacedWithin(70_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let victim = stage.pod_on(VICTIM)?;
    stage.fault(format!("the kubelet of {VICTIM} is stopped"));
    stage.stop(VICTIM, "kubelet")?;
    if stage.sabotaged() {
        stage.start(VICTIM, "kubelet")?;
    }
    given_up(stage).await?;
    let old = stage.view().pods.get(&victim.uid).cloned();
    stage.check(
        "the old pod shows as on its way out, for nobody can say that it is gone",
        old.as_ref().is_some_and(|pod| pod.terminating),
        format!("{old:?}"),
    );
    stage.heal("the kubelet is started");
    stage.start(VICTIM, "kubelet")?;
    returned(stage, &victim.uid).await
}

/// Waits until the node is NotReady and its pods run elsewhere.
pub(super) async fn given_up(stage: &Stage) -> Result<()> {
    let ready = |view: &View| view.nodes.get(VICTIM).map(|node| node.ready.clone()).unwrap_or_default();
    stage.wait(&format!("{VICTIM} to be NotReady"), 70, |view| if ready(view) != "True" { Ok(()) } else { Err(view.describe()) }).await?;
    let replicas = stage.replicas();
    let elsewhere = |view: &View| {
        let well = view.ready(APP).filter(|pod| pod.node != VICTIM).count();
        if well == replicas { Ok(()) } else { Err(view.describe()) }
    };
    stage.wait("the pods to run elsewhere", 90, elsewhere).await?;
    stage.replaced("its pods run elsewhere");
    Ok(())
}

/// Waits until the node is back, the old pod is gone and all is as before; nothing may move back.
pub(super) async fn returned(stage: &Stage, old: &str) -> Result<()> {
    let placed = |view: &View| view.ready(APP).map(|pod| (pod.uid.clone(), pod.node.clone())).collect::<std::collections::BTreeMap<_, _>>();
    let before: std::collections::BTreeMap<_, _> = placed(&stage.view()).into_iter().filter(|(_, node)| node != VICTIM).collect();
    stage.wait("the old pod to go", 60, |view| if view.pods.contains_key(old) { Err(view.describe()) } else { Ok(()) }).await?;
    stage.recovered().await?;
    stage.hold(5).await;
    let after = placed(&stage.view());
    stage.check("nothing moves back", before == after, stage.view().describe());
    Ok(())
}
