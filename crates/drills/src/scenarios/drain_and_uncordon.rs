//! Seed 004, "Maintenance of a worker node": drained, its pods run elsewhere; uncordoned, nothing moves back.

use super::{SINGLE, VICTIM};
use crate::{
    Result,
    expectation::Expectation::NoFailedRequest,
    scenario::Scenario,
    stage::Stage,
    workload::{APP, NAMESPACE},
};

pub const SCENARIO: Scenario = Scenario {
    name: "drain-and-uncordon",
    shows: "A drained node's pods run elsewhere before they end here, within the disruption budget and without a failed request; uncordon moves nothing back.",
    kubernetes: "\"We see pods are not moved back to the restored node.\" (seed 004): the same.",
    topology: SINGLE,
    sabotage: "the pods are killed at once instead of evicted",
    expects: &[NoFailedRequest],
    steps: |stage| Box::pin(steps(stage)),
};

/// A budget for the workload, a DaemonSet that must stay, a pod that nobody would replace, and local data.
fn company() -> String {
    format!(
        r#"---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: {APP}, namespace: {NAMESPACE}}}
spec: {{maxUnavailable: 1, selector: {{matchLabels: {{app: {APP}}}}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: everywhere, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: everywhere}}}}
  template:
    metadata: {{labels: {{app: everywhere}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: bare, namespace: {NAMESPACE}, labels: {{app: bare}}}}
spec:
  nodeName: {VICTIM}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sleep, "3600"], volumeMounts: [{{name: data, mountPath: /data}}]}}]
  volumes: [{{name: data, emptyDir: {{}}}}]
"#
    )
}

async fn steps(stage: &Stage) -> Result<()> {
    stage.kubectl_with(&["apply", "-f", "-"], &company())?;
    let outcome = drained(stage).await;
    let kinds = "poddisruptionbudget/web daemonset/everywhere pod/bare";
    stage.kubectl(&format!("delete -n {NAMESPACE} {kinds} --ignore-not-found --wait=false"))?;
    outcome?;
    stage.wait("the company to go", 30, |view| if view.pods.values().all(|pod| pod.app == APP) { Ok(()) } else { Err(view.describe()) }).await?;
    stage.recovered().await
}

async fn drained(stage: &Stage) -> Result<()> {
    let replicas = stage.replicas();
    let present = |view: &crate::timeline::View| {
        let of = |app: &str| view.ready(app).filter(|pod| pod.node == VICTIM).count();
        if of("bare") == 1 && of("everywhere") == 1 { Ok(()) } else { Err(view.describe()) }
    };
    stage.wait("a DaemonSet's pod and a bare one there", 40, present).await?;
    // Without its flags a drain refuses, names what it would lose, and evicts nothing.
    let refusal = stage.drain(VICTIM, "").map_or_else(|error| error.to_string(), |_| "it went through".into());
    let names_all = ["--ignore-daemonsets", "--delete-emptydir-data"].iter().all(|part| refusal.contains(part));
    stage.check("a drain without flags refuses and says why", names_all && stage.view().ready(APP).count() == replicas, refusal);
    stage.fault(format!("kubectl drain {VICTIM} --force --ignore-daemonsets --delete-emptydir-data"));
    if stage.sabotaged() {
        stage.kubectl(&format!("delete pod -n {NAMESPACE} -l app={APP} --force --grace-period=0"))?;
    }
    let said = stage.drain(VICTIM, "--force --ignore-daemonsets --delete-emptydir-data --timeout=60s")?;
    stage.check("the node is drained", said.contains("drained"), said.lines().last().unwrap_or_default());
    let elsewhere = |view: &crate::timeline::View| {
        let well = view.ready(APP).filter(|pod| pod.node != VICTIM).count();
        if well == replicas { Ok(()) } else { Err(view.describe()) }
    };
    stage.wait("the pods to run elsewhere", 60, elsewhere).await?;
    stage.replaced("its pods run elsewhere");
    let view = stage.view();
    let there: Vec<&str> = view.pods.values().filter(|pod| pod.node == VICTIM).map(|pod| pod.app.as_str()).collect();
    stage.check("only the DaemonSet's pod stays", there == ["everywhere"], there.join(", "));
    let node = view.nodes.get(VICTIM).cloned().unwrap_or_default();
    stage.check(
        "the node is Ready,SchedulingDisabled",
        node.ready == "True" && node.cordoned,
        format!("Ready={}, cordoned={}", node.ready, node.cordoned),
    );
    let placed = |view: &crate::timeline::View| view.living(APP).map(|pod| pod.uid.clone()).collect::<std::collections::BTreeSet<_>>();
    let before = placed(&stage.view());
    stage.heal(format!("kubectl uncordon {VICTIM}"));
    stage.uncordon(VICTIM)?;
    stage.hold(5).await;
    let after = placed(&stage.view());
    stage.check("nothing moves back", before == after, stage.view().describe());
    Ok(())
}
