//! Clusters in a few words, for tests: `node("n1", "cpu=4 memory=8Gi pods=10 zone=a taint=k:v:NoSchedule")`,
//! `pod("p", "cpu=1 priority=5 label=app:web node=n1")`.
//!
//! Anything that has no word here goes in as JSON with `patch={...}` as the last word.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::pod::PodInfo;

fn words(spec: &str) -> Vec<(&str, &str)> {
    let (words, patch) = match spec.split_once("patch=") {
        Some((words, patch)) => (words, Some(patch)),
        None => (spec, None),
    };
    let pairs = words.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, "true")));
    pairs.chain(patch.map(|patch| ("patch", patch))).collect()
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

/// A node.
pub fn node(name: &str, spec: &str) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"taints": []}, "status": {"allocatable": {}, "images": []},
    });
    for (key, value) in words(spec) {
        match key {
            "zone" => node["metadata"]["labels"]["topology.kubernetes.io/zone"] = value.into(),
            "label" => {
                let (key, value) = value.split_once(':').expect("label=key:value");
                node["metadata"]["labels"][key] = value.into();
            }
            "taint" => {
                let parts: Vec<_> = value.split(':').collect();
                let taint = json!({"key": parts[0], "value": parts[1], "effect": parts[2]});
                node["spec"]["taints"].as_array_mut().expect("a list").push(taint);
            }
            "image" => {
                let image = json!({"names": [value], "sizeBytes": 500 * 1024 * 1024});
                node["status"]["images"].as_array_mut().expect("a list").push(image);
            }
            "cordoned" => node["spec"]["unschedulable"] = true.into(),
            "patch" => merge(&mut node, serde_json::from_str(value).expect("JSON")),
            resource => node["status"]["allocatable"][resource] = value.into(),
        }
    }
    Arc::new(serde_json::from_value(node).expect("a node"))
}

/// A pod object.
pub fn pod_object(name: &str, spec: &str) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {}},
        "spec": {"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {}}, "ports": []}],
                 "schedulingGates": [], "tolerations": []},
        "status": {},
    });
    for (key, value) in words(spec) {
        match key {
            "label" => {
                let (key, value) = value.split_once(':').expect("label=key:value");
                pod["metadata"]["labels"][key] = value.into();
            }
            "namespace" => pod["metadata"]["namespace"] = value.into(),
            "priority" => pod["spec"]["priority"] = value.parse::<i32>().expect("a number").into(),
            "node" => pod["spec"]["nodeName"] = value.into(),
            "gate" => pod["spec"]["schedulingGates"] = json!([{"name": value}]),
            "image" => pod["spec"]["containers"][0]["image"] = value.into(),
            "selector" => {
                let (key, value) = value.split_once(':').expect("selector=key:value");
                pod["spec"]["nodeSelector"][key] = value.into();
            }
            "tolerate" => pod["spec"]["tolerations"] = json!([{"key": value, "operator": "Exists"}]),
            "port" => {
                let port = value.parse::<i32>().expect("a number");
                pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port, "hostPort": port}]);
            }
            "started" => pod["status"]["startTime"] = value.into(),
            "patch" => merge(&mut pod, serde_json::from_str(value).expect("JSON")),
            resource => pod["spec"]["containers"][0]["resources"]["requests"][resource] = value.into(),
        }
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// A pod, parsed.
pub fn pod(name: &str, spec: &str) -> Arc<PodInfo> {
    PodInfo::of(pod_object(name, spec))
}
