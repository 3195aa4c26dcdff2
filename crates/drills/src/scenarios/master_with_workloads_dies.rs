//! Seed 001, its own scenario: the only master also runs pods of the application, and dies.

use super::{SERVER, SINGLE, without_master::master_off};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
    workload::{APP, NAMESPACE},
};

pub const SCENARIO: Scenario = Scenario {
    name: "master-with-workloads-dies",
    shows: "The only master, which also ran pods of the application, loses power: every node stops routing to them within 3 s.",
    kubernetes: "\"kube-proxy will keep routing `Service` traffic to that node\" (seed 000); a request \"fails half of the time\" (seed 001), for as long as no master is back.",
    topology: SINGLE,
    sabotage: "the proxies stand still",
    expects: &[RoutedAroundWithin(3_000), RecoveredWithin(90_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// As many pods on the master as on all workers together, behind the same Service.
fn half_on_the_master(replicas: usize) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: on-master, namespace: {NAMESPACE}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {APP}, place: master}}}}
  template:
    metadata: {{labels: {{app: {APP}, place: master}}}}
    spec:
      terminationGracePeriodSeconds: 15
      nodeSelector: {{kubernetes.io/hostname: {SERVER}}}
      tolerations: [{{operator: Exists}}]
      containers:
      - name: nginx
        image: nginx:1.22
        imagePullPolicy: IfNotPresent
        ports: [{{containerPort: 80, name: http}}]
        lifecycle: {{preStop: {{exec: {{command: [sleep, "5"]}}}}}}
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
        volumeMounts: [{{name: site, mountPath: /etc/nginx/conf.d}}]
      volumes: [{{name: site, configMap: {{name: site}}}}]
"#
    )
}

async fn steps(stage: &Stage) -> Result<()> {
    let replicas = stage.replicas();
    stage.step("half of the pods run on the master");
    stage.kubectl_with(&["apply", "-f", "-"], &half_on_the_master(replicas))?;
    stage.ready_pods(replicas * 2, 60).await?;
    stage.hold(3).await;
    if stage.sabotaged() {
        for worker in stage.workers() {
            stage.pause(&worker, "proxy")?;
        }
    }
    master_off(stage).await?;
    stage.hold(15).await;
    stage.heal("the master is powered on");
    stage.power_on(SERVER).await?;
    stage.api_ready(60).await?;
    stage.ready_pods(replicas * 2, 60).await?;
    stage.kubectl(&format!("delete deployment -n {NAMESPACE} on-master --wait=false"))?;
    stage.recovered().await
}
