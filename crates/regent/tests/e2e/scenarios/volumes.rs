//! Volumes that outlive pods, and what follows from what pods use.

use super::busybox;
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_claim_gets_a_volume_and_keeps_its_data", run: claim, alone: false },
    Scenario { name: "a_pod_goes_where_its_local_volume_is", run: local, alone: false },
    Scenario { name: "who_fills_more_than_a_limit_of_the_disk_is_evicted", run: local_storage, alone: false },
    Scenario { name: "an_autoscaler_follows_what_pods_use", run: autoscaler, alone: false },
    Scenario { name: "network_policies_close_and_open_pods", run: policies, alone: false },
];

fn pod(name: &str, claim: &str, command: &str) -> String {
    let mut pod = busybox(name, command, "Always");
    pod = pod.replace("  containers: [{", &format!("  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]\n  containers: [{{"));
    pod.replace("{name: main,", "{name: main, volumeMounts: [{name: data, mountPath: /data}],")
}

fn claim(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {namespace}, labels: {{for: {namespace}}}}}
spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], storageClassName: "", hostPath: {{path: /var/lib/{namespace}, type: DirectoryOrCreate}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  selector: {{matchLabels: {{for: {namespace}}}}}
  resources: {{requests: {{storage: 500Mi}}}}
"#
    );
    cluster.apply(namespace, &manifest)?;
    cluster.wait_for("the claim to be bound", &format!("get pvc data -n {namespace}"), |o| o.contains("Bound") && o.contains("1Gi"))?;
    let writer = pod("writer", "data", "echo kept > /data/file; sleep 3600").replace("spec:\n", "spec:\n  nodeName: worker-1\n");
    cluster.apply(namespace, &writer)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/writer --timeout=60s"))?;
    // A claim in use stays until its pod is gone; the data stays beyond both.
    cluster.kubectl(&format!("delete pvc data -n {namespace} --wait=false"))?;
    has_all(&cluster.kubectl(&format!("get pvc data -n {namespace}"))?, &["Terminating"])?;
    cluster.kubectl(&format!("delete pod writer -n {namespace}"))?;
    cluster.wait_for("the claim to go", &format!("get pvc -n {namespace}"), |o| o.trim().is_empty())?;
    cluster.wait_for("the volume to be released", &format!("get pv {namespace}"), |o| o.contains("Released"))?;
    has_all(&cluster.on_node("worker-1", &format!("cat /var/lib/{namespace}/file; rm -r /var/lib/{namespace}"))?, &["kept"])?;
    cluster.kubectl(&format!("delete pv {namespace}")).map(|_| ())
}

fn local_storage(cluster: &Cluster, namespace: &str) -> Outcome {
    let fill = |name: &str, path: &str| busybox(name, &format!("dd if=/dev/zero of={path}/much bs=1M count=4; sleep 3600"), "Always");
    let volume = fill("volume", "/scratch")
        .replace("  containers: [{", "  volumes: [{name: scratch, emptyDir: {sizeLimit: 2Mi}}]\n  containers: [{")
        .replace("{name: main,", "{name: main, volumeMounts: [{name: scratch, mountPath: /scratch}],");
    let container = fill("container", "/tmp").replace("{name: main,", "{name: main, resources: {limits: {ephemeral-storage: 2Mi}},");
    cluster.apply(namespace, &format!("{volume}---{container}"))?;
    let ended = |name: &str, words: &str| {
        let status = format!("get pod {name} -n {namespace} -o jsonpath={{.status.phase}}/{{.status.reason}}/{{.status.message}}");
        cluster.wait_for("the eviction", &status, |o| o.contains("Failed/Evicted/") && o.contains(words))
    };
    ended("volume", "Usage of EmptyDir volume \"scratch\" exceeds the limit \"2Mi\"")?;
    ended("container", "limit")?;
    has_all(&cluster.kubectl(&format!("get events -n {namespace} --field-selector=reason=Evicted"))?, &["pod/volume", "pod/container"])
}

fn local(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.on_node("worker-2", &format!("mkdir -p /var/lib/{namespace}"))?;
    let manifest = format!(
        r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {namespace}}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {namespace}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: {namespace}
  local: {{path: /var/lib/{namespace}}}
  nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [worker-2]}}]}}]}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: near}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: {namespace}, resources: {{requests: {{storage: 1Gi}}}}}}
"#
    );
    cluster.apply(namespace, &manifest)?;
    has_all(&cluster.kubectl(&format!("get pvc near -n {namespace}"))?, &["Pending"])?;
    cluster.apply(namespace, &pod("user", "near", "echo here > /data/file; sleep 3600"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/user --timeout=60s"))?;
    has_all(&cluster.kubectl(&format!("get pod user -n {namespace} -o wide"))?, &["worker-2"])?;
    has_all(&cluster.kubectl(&format!("get pvc near -n {namespace}"))?, &["Bound"])?;
    cluster.kubectl(&format!("delete pod user -n {namespace}"))?;
    cluster.kubectl(&format!("delete pvc near -n {namespace}"))?;
    cluster.kubectl(&format!("delete pv/{namespace} storageclass/{namespace}"))?;
    has_all(&cluster.on_node("worker-2", &format!("cat /var/lib/{namespace}/file; rm -r /var/lib/{namespace}"))?, &["here"])
}

fn autoscaler(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  replicas: 1
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sleep, "3600"], resources: {requests: {memory: 16Ki}}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 50}}}]
"#;
    cluster.apply(namespace, manifest)?;
    cluster.wait("three replicas", 60, || {
        let seen = cluster.kubectl(&format!("get deployment busy -n {namespace} -o jsonpath={{.spec.replicas}}"))?;
        expect(seen == "3", &seen)
    })?;
    let told = cluster.kubectl(&format!("describe hpa busy -n {namespace}"))?;
    has_all(&told, &["SuccessfulRescale", "ValidMetricFound", "TooManyReplicas"])
}

fn policies(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &super::nginx("web", 1, "nginx:1.22"))?;
    cluster.kubectl(&format!("expose -n {namespace} deployment/web --port=80"))?;
    for name in ["friend", "stranger"] {
        cluster.apply(namespace, &busybox(name, "sleep 3600", "Always"))?;
    }
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/friend pod/stranger --timeout=60s"))?;
    let reaches = |who: &str| cluster.kubectl(&format!("exec -n {namespace} {who} -- timeout 2 wget -q -O - http://web/")).is_ok();
    cluster.wait("everybody to reach it", 10, || expect(reaches("stranger") && reaches("friend"), "not both"))?;
    let policy = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: http}]}]
"#;
    cluster.apply(namespace, policy)?;
    cluster.wait("only the friend to reach it", 20, || expect(!reaches("stranger") && reaches("friend"), "not so"))?;
    cluster.kubectl(&format!("delete networkpolicy friends -n {namespace}"))?;
    cluster.wait("everybody to reach it again", 20, || expect(reaches("stranger"), "not yet"))
}
