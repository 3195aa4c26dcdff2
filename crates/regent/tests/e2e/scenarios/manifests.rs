//! A bad manifest gets Kubernetes' own kind of error or event, and nothing is half-made.

use super::nginx;
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, will_show},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "bad_manifests_are_refused_in_kubernetes_words", run: refused, alone: false },
    Scenario { name: "a_pod_that_fits_nowhere_says_why", run: unschedulable, alone: false },
];

fn refused(cluster: &Cluster, namespace: &str) -> Outcome {
    let good = nginx("web", 1, "nginx:1.22");
    let apply = |manifest: &str| cluster.kubectl_fails(&format!("apply -n {namespace} -f -"), manifest);
    let cases: [(&str, String, &[&str]); 8] = [
        ("an unknown field", good.replace("replicas:", "replicaz:"), &["strict decoding error", "unknown field \"spec.replicaz\""]),
        ("a wrong type", good.replace("replicas: 1", "replicas: many"), &["cannot be handled as a Deployment", "replicas"]),
        ("a missing field", good.replace("image: nginx:1.22", "tty: false"), &["spec.template.spec.containers[0].image: Required value"]),
        ("a bad name", good.replace("name: web, ", "name: Web_1, "), &["metadata.name: Invalid value: \"Web_1\"", "RFC 1123"]),
        ("negative replicas", good.replace("replicas: 1", "replicas: -1"), &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
        (
            "a selector that matches nothing",
            good.replace("matchLabels: {app: web}", "matchLabels: {app: other}"),
            &["`selector` does not match template `labels`"],
        ),
        ("an unknown kind", good.replace("kind: Deployment", "kind: Deploymint"), &["no matches for kind \"Deploymint\" in version \"apps/v1\""]),
        (
            "a missing namespace",
            good.replace("labels: {app: web}}\nspec:\n  replicas", "namespace: nowhere}\nspec:\n  replicas"),
            &["does not match the namespace"],
        ),
    ];
    for (what, manifest, parts) in cases {
        let error = apply(&manifest)?;
        has_all(&error, parts).map_err(|why| format!("{what}: {why}"))?;
    }
    let error = cluster.kubectl_fails("create deployment web --image=nginx -n nowhere", "")?;
    has_all(&error, &["namespaces \"nowhere\" not found"])?;
    let all = cluster.kubectl(&format!("get all -n {namespace}"))?;
    expect(all.trim().is_empty(), format!("something was half-made:\n{all}"))?;
    cluster.apply(namespace, &good)?;
    let error = apply(&good.replace("app: web", "app: new"))?;
    has_all(&error, &["spec.selector", "field is immutable"])?;
    let error = cluster.kubectl_fails(&format!("create -n {namespace} -f -"), &good)?;
    has_all(&error, &["(AlreadyExists)", "deployments.apps \"web\" already exists"])
}

fn unschedulable(cluster: &Cluster, namespace: &str) -> Outcome {
    let pod =
        "{apiVersion: v1, kind: Pod, metadata: {name: huge}, spec: {containers: [{name: main, image: nginx, resources: {requests: {cpu: \"64\"}}}]}}";
    cluster.apply(namespace, pod)?;
    let parts = ["FailedScheduling", "0/4 nodes are available", "3 Insufficient cpu", "untolerated taint {node-role.kubernetes.io/control-plane: }"];
    will_show(|| cluster.kubectl(&format!("describe pod huge -n {namespace}")), &parts)?;
    has_all(&cluster.kubectl(&format!("get pod huge -n {namespace}"))?, &["Pending"])
}
