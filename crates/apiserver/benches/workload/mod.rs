//! The pods that every measurement of the API server stores and asks for: the benchmarks in one process, and `make load`.

use serde_json::{Value, json};

pub const NAMESPACES: usize = 10;
/// One pod in so many has the label that is selected by.
const SHARDS: usize = 100;

pub fn namespace(i: usize) -> String {
    format!("bench-{}", i % NAMESPACES)
}

pub fn path(i: usize) -> String {
    format!("/api/v1/namespaces/{}/pods/web-{i:06}", namespace(i))
}

/// A pod of two containers, as a Deployment makes them: about 4.8 KB when it is stored.
pub fn pod(i: usize) -> Value {
    let probe = |period_s: u32| json!({"httpGet": {"path": "/healthz", "port": 80, "scheme": "HTTP"}, "periodSeconds": period_s, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3});
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{i:06}"), "namespace": namespace(i),
            "labels": {"app": "web", "pod-template-hash": "6d4cf56db6", "shard": format!("s{}", i % SHARDS), "tier": "frontend"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "kubectl.kubernetes.io/restartedAt": "2026-11-22T00:00:00Z"}},
        "spec": {"nodeName": format!("node-{}", i % 500), "automountServiceAccountToken": false, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [
                {"name": "web", "image": "docker.io/library/nginx:1.27", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}, {"name": "LOG_LEVEL", "value": "info"},
                        {"name": "REGION", "value": "eu-central-1"}, {"name": "SERVICE", "value": "web"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
                    "readinessProbe": probe(5), "livenessProbe": probe(10),
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/nginx/conf.d", "readOnly": true}, {"name": "cache", "mountPath": "/var/cache/nginx"}]},
                {"name": "metrics", "image": "docker.io/library/exporter:0.11", "ports": [{"name": "metrics", "containerPort": 9113, "protocol": "TCP"}],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}],
            "volumes": [{"name": "config", "configMap": {"name": "nginx-conf"}}, {"name": "cache", "emptyDir": {}}],
            "tolerations": [tolerate("node.kubernetes.io/not-ready"), tolerate("node.kubernetes.io/unreachable")]}})
}
