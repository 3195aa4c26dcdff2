//! A container takes more memory than it may.

use super::{SINGLE, VICTIM};
use crate::{Result, expectation::Expectation::NoFailedRequest, scenario::Scenario, stage::Stage, workload::NAMESPACE};

pub const SCENARIO: Scenario = Scenario {
    name: "pod-out-of-memory",
    shows: "A container over its memory limit is killed, said to be OOMKilled, and restarted with back-off; its neighbours notice nothing.",
    kubernetes: "The same: the kernel kills the container, and the kubelet restarts it with back-off.",
    topology: SINGLE,
    sabotage: "the pod has no limit and takes little",
    expects: &[NoFailedRequest],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    let (limits, command) = if stage.sabotaged() { ("{}", "sleep 3600") } else { (r#"{"limits": {"memory": "24Mi"}}"#, "sleep 1; tail /dev/zero") };
    let pod = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "greedy", "namespace": "{NAMESPACE}", "labels": {{"app": "greedy"}}}}, "spec": {{"nodeName": "{VICTIM}", "terminationGracePeriodSeconds": 1, "containers": [{{"name": "main", "image": "busybox:1.35", "imagePullPolicy": "IfNotPresent", "resources": {limits}, "command": ["sh", "-c", "{command}"]}}]}}}}"#
    );
    stage.fault(format!("a pod on {VICTIM} takes more memory than it may"));
    stage.kubectl_with(&["apply", "-f", "-"], &pod)?;
    let seen = stage
        .wait("two restarts", 60, |view| {
            let restarts = view.pods.values().find(|pod| pod.app == "greedy").map(|pod| pod.restarts);
            if restarts >= Some(2) { Ok(()) } else { Err(format!("{restarts:?} restarts")) }
        })
        .await;
    let said = stage.kubectl(&format!("get pod -n {NAMESPACE} greedy -o jsonpath={{..reason}}"));
    stage.kubectl(&format!("delete pod -n {NAMESPACE} greedy --wait=false"))?;
    seen?;
    let said = said?;
    stage.check("it is said to be OOMKilled", said.contains("OOMKilled"), said);
    stage.heal("it is deleted");
    stage.wait("it to go", 30, |view| if view.pods.values().all(|pod| pod.app != "greedy") { Ok(()) } else { Err(view.describe()) }).await?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}
