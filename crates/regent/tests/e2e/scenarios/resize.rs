//! A running pod gets more and less: in place, by a restart where its policy asks for one, when there is room, or never.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_running_pod_is_resized_in_its_cgroup", run: in_place, alone: false },
    Scenario { name: "a_resize_waits_for_room_and_is_refused_where_there_is_none", run: room, alone: false },
];

/// Sends a patch to the pod's `resize`.
fn resize(cluster: &Cluster, namespace: &str, pod: &str, container: &str, resources: &str) -> Result<String, String> {
    let patch = format!(r#"{{"spec":{{"containers":[{{"name":"{container}","resources":{resources}}}]}}}}"#);
    cluster.kubectl_with(&["patch", "pod", pod, "-n", namespace, "--subresource", "resize", "--patch", &patch], "")
}

fn of_container(field: &str, container: &str) -> String {
    format!("{{.status.containerStatuses[?(@.name==\"{container}\")].{field}}}")
}

fn in_place(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: elastic}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: steady
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {cpu: 200m, memory: 64Mi}}
  - name: stiff
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
    resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/elastic --timeout=60s"))?;
    let field = |path: &str| cluster.kubectl(&format!("get pod elastic -n {namespace} -o jsonpath={path}"));
    let limits = |container: &str| {
        let look = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null; true";
        let text = cluster.kubectl_with(&["exec", "-n", namespace, "elastic", "-c", container, "--", "sh", "-c", look], "")?;
        Ok::<_, String>(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    };
    expect(limits("steady")? == "67108864 20000", limits("steady")?)?;
    let first_id = field(&of_container("containerID", "steady"))?;
    let settled = |container: &str, wanted: &str| {
        cluster.wait(&format!("{container} to have {wanted}"), 60, || {
            let has = field(&of_container("resources.limits", container))?;
            expect(has.contains(wanted), &has)?;
            let conditions = field("{.status.conditions[*].type}")?;
            expect(!conditions.contains("PodResize"), &conditions)
        })
    };
    resize(cluster, namespace, "elastic", "steady", r#"{"requests":{"cpu":"30m"},"limits":{"cpu":"400m","memory":"96Mi"}}"#)?;
    settled("steady", r#""memory":"96Mi""#)?;
    expect(limits("steady")? == "100663296 40000", limits("steady")?)?;
    // The pod's own cgroup grew with it.
    let (node, uid) = (field("{.spec.nodeName}")?, field("{.metadata.uid}")?);
    let look = format!("find /sys/fs/cgroup -path '*pod{uid}/memory.limit_in_bytes' -o -path '*pod{uid}/memory.max' | head -1 | xargs cat");
    let whole = cluster.on_node(&node, &look)?;
    expect(whole.trim() == "134217728", whole)?;
    resize(cluster, namespace, "elastic", "steady", r#"{"limits":{"cpu":"100m","memory":"48Mi"}}"#)?;
    settled("steady", r#""memory":"48Mi""#)?;
    expect(limits("steady")? == "50331648 10000", limits("steady")?)?;
    let whole = cluster.on_node(&node, &look)?;
    expect(whole.trim() == "83886080", whole)?;
    let counted = field("{.metadata.generation}{.status.observedGeneration}")?;
    expect(counted == "33", counted)?;
    expect(field(&of_container("containerID", "steady"))? == first_id, "a container was restarted that could be resized in place")?;

    resize(cluster, namespace, "elastic", "stiff", r#"{"limits":{"memory":"40Mi"}}"#)?;
    settled("stiff", r#""memory":"40Mi""#)?;
    cluster.wait("the container to run again", 60, || {
        let restarts = field(&of_container("restartCount", "stiff"))?;
        expect(restarts == "1", restarts)?;
        let running = field(&of_container("state", "stiff"))?;
        expect(running.contains("running"), running)
    })?;
    expect(limits("stiff")?.starts_with("41943040 "), limits("stiff")?)?;
    expect(field(&of_container("restartCount", "steady"))? == "0", "the other container was restarted too")?;

    let refused = resize(cluster, namespace, "elastic", "steady", r#"{"requests":{"cpu":"100m","memory":"48Mi"}}"#);
    expect(refused.is_ok(), "one container that is guaranteed does not make the pod so")?;
    let why = resize(cluster, namespace, "elastic", "stiff", r#"{"requests":{"cpu":"200m","memory":"40Mi"}}"#).err().unwrap_or_default();
    has_all(&why, &["Pod QOS Class may not change as a result of resizing"])
}

fn room(cluster: &Cluster, namespace: &str) -> Outcome {
    let pod = |name: &str, node: &str, cpu_milli: i64| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: \"busybox:1.35\", imagePullPolicy: IfNotPresent, command: [sleep, \"3600\"], resources: {{requests: {{cpu: {cpu_milli}m}}}}}}]}}}}"
        )
    };
    let node = "worker-2";
    let cpus: i64 = cluster.kubectl(&format!("get node {node} -o jsonpath={{.status.allocatable.cpu}}"))?.parse().map_err(|e| format!("{e}"))?;
    cluster.apply(namespace, &pod("eager", node, 50))?;
    cluster.apply(namespace, &pod("large", node, cpus * 500))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/eager pod/large --timeout=60s"))?;
    let pending = |wanted: &str| {
        cluster.wait(&format!("the resize to be {wanted}"), 60, || {
            let path = "{.status.conditions[?(@.type==\"PodResizePending\")].reason}";
            let reason = cluster.kubectl(&format!("get pod eager -n {namespace} -o jsonpath={path}"))?;
            expect(reason == wanted, reason)
        })
    };
    resize(cluster, namespace, "eager", "main", r#"{"requests":{"cpu":"1000"}}"#)?;
    pending("Infeasible")?;
    let wish = cpus * 500 + 200;
    resize(cluster, namespace, "eager", "main", &format!(r#"{{"requests":{{"cpu":"{wish}m"}}}}"#))?;
    pending("Deferred")?;
    let has = |wanted: &str| {
        let text = cluster.kubectl(&format!("get pod eager -n {namespace} -o jsonpath={}", of_container("allocatedResources.cpu", "main")))?;
        expect(text == wanted, text)
    };
    has("50m")?;
    cluster.kubectl(&format!("delete pod large -n {namespace}"))?;
    cluster.wait("the room that was left to be given", 60, || has(&format!("{wish}m")))?;
    pending("")
}
