//! What the cluster must do, one file per theme. A scenario is one function and one line in its file's list.

mod access;
mod client;
mod clients;
mod failures;
mod healing;
mod kube_client;
mod manifests;
mod many_masters;
mod network;
mod objects;
mod pods;
mod resize;
mod volumes;
mod without_a_server;
mod workloads;

use super::Scenario;

/// Every scenario.
pub const ALL: [&[Scenario]; 13] = [
    network::SCENARIOS,
    client::SCENARIOS,
    clients::SCENARIOS,
    healing::SCENARIOS,
    workloads::SCENARIOS,
    volumes::SCENARIOS,
    pods::SCENARIOS,
    resize::SCENARIOS,
    manifests::SCENARIOS,
    objects::SCENARIOS,
    access::SCENARIOS,
    failures::SCENARIOS,
    without_a_server::SCENARIOS,
];

/// Those that need several servers.
pub const MANY_MASTERS: [&[Scenario]; 1] = [many_masters::SCENARIOS];

/// A Deployment of nginx with a readiness probe every second, whose readiness is a file in its page directory.
pub fn nginx(name: &str, replicas: u32, image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
      containers:
      - name: nginx
        image: {image}
        imagePullPolicy: IfNotPresent
        ports: [{{containerPort: 80, name: http}}]
        lifecycle: {{preStop: {{exec: {{command: [sleep, "2"]}}}}}}
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
"#
    )
}

/// A busybox pod that runs a shell command.
pub fn busybox(name: &str, command: &str, restart: &str) -> String {
    let command = serde_json::Value::from(command);
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  restartPolicy: {restart}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sh, -c, {command}]}}]
"#
    )
}
