//! What was deleted before the outage does not come back with a reboot in it.

use super::{
    SINGLE, VICTIM,
    without_master::{master_off, master_on},
};
use crate::{Result, expectation::Expectation::RecoveredWithin, scenario::Scenario, stage::Stage};

pub const SCENARIO: Scenario = Scenario {
    name: "deleted-before-outage-stays-deleted",
    shows: "A pod that is deleted just before the only master dies stays deleted, also when its node reboots meanwhile.",
    kubernetes: "Static state on a node's disk has brought deleted pods back elsewhere; a kubelet alone starts nothing.",
    topology: SINGLE,
    sabotage: "the pod is started again behind the drill's back",
    expects: &[RecoveredWithin(40_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let namespace = crate::workload::NAMESPACE;
    let manifest = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "gone", "namespace": "{namespace}", "labels": {{"app": "gone"}}}}, "spec": {{"nodeName": "{VICTIM}", "terminationGracePeriodSeconds": 1, "containers": [{{"name": "main", "image": "busybox:1.35", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}}]}}}}"#
    );
    stage.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    stage.wait("the pod to run", 40, |view| if view.ready("gone").count() == 1 { Ok(()) } else { Err(view.describe()) }).await?;
    let uid = stage.view().ready("gone").next().map(|pod| pod.uid.clone()).unwrap_or_default();
    stage.step("a pod is deleted");
    stage.kubectl(&format!("delete pod -n {namespace} gone --wait"))?;
    master_off(stage).await?;
    stage.fault(format!("{VICTIM} reboots"));
    stage.power_off(VICTIM)?;
    stage.power_on(VICTIM).await?;
    stage.hold(15).await;
    let list = "ctr -n k8s.io containers list -q";
    let mut found = stage.on_node(VICTIM, &format!("{list} 'labels.\"io.kubernetes.pod.uid\"=={uid}'"))?;
    if stage.sabotaged() {
        found = stage.on_node(VICTIM, list)?;
    }
    stage.check("the deleted pod has no container", found.trim().is_empty(), format!("containers: {}", found.trim()));
    master_on(stage).await
}
