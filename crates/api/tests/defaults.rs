//! What objects say when they say nothing: where Kubernetes' defaults are not as one would guess.

use api::{Catalogue, Value};
use serde_json::json;

/// Defaults `object` and compares what is then at a JSON pointer.
fn check(group: &str, resource: &str, object: Value, wanted: &[(&str, Value)]) {
    let catalogue = Catalogue::built_in();
    let kind = catalogue.resource(group, resource).unwrap();
    let mut defaulted = object.clone();
    kind.hooks.default(&mut defaulted);
    for (pointer, value) in wanted {
        assert_eq!(defaulted.pointer(pointer).unwrap_or(&Value::Null), value, "{resource} {pointer} of {object}");
    }
}

#[test]
fn images_without_a_tag_are_pulled_where_they_are_images() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("registry:5000/a/b", "Always"),
        ("Registry.example.com/nginx", "Always"),
        ("nginx:latest@sha256:0123", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("a/Nginx", "IfNotPresent"),
        (" nginx", "IfNotPresent"),
        ("a..b", "IfNotPresent"),
        ("", "IfNotPresent"),
        ("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "IfNotPresent"),
    ] {
        let pod = json!({"spec": {"containers": [{"image": image}], "volumes": [{"image": {"reference": image}}]}});
        let wanted = [("/spec/containers/0/imagePullPolicy", json!(policy)), ("/spec/volumes/0/image/pullPolicy", json!(policy))];
        check("", "pods", pod, &wanted);
    }
}

#[test]
fn resources_of_a_whole_pod_follow_those_of_its_containers() {
    let container = json!({"resources": {"requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "limits": {"hugepages-2Mi": "4Mi"}}});
    for (resources, requests, limits) in [
        (json!({}), json!(null), json!(null)),
        // Without limits the requests are what they are.
        (json!({"requests": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}}), json!({"memory": "1Gi", "hugepages-2Mi": "4Mi"}), json!(null)),
        // Huge pages of the containers limit those of the pod, and then there is a limit.
        (json!({"requests": {"memory": "1Gi"}}), json!({"memory": "1Gi", "cpu": "1", "hugepages-2Mi": "4Mi"}), json!({"hugepages-2Mi": "4Mi"})),
        (
            json!({"limits": {"cpu": "2", "memory": "2Gi"}}),
            json!({"cpu": "1", "memory": "2Gi", "hugepages-2Mi": "4Mi"}),
            json!({"cpu": "2", "memory": "2Gi", "hugepages-2Mi": "4Mi"}),
        ),
    ] {
        let pod = json!({"spec": {"containers": [container], "resources": resources}});
        check("", "pods", pod, &[("/spec/resources/requests", requests), ("/spec/resources/limits", limits)]);
    }
}

#[test]
fn a_strategy_that_is_only_named_gets_no_parameters() {
    let set = |strategy: Value| json!({"spec": {"updateStrategy": strategy}});
    let rolling = "/spec/updateStrategy/rollingUpdate";
    check("apps", "statefulsets", set(json!({})), &[(rolling, json!({"partition": 0}))]);
    check("apps", "statefulsets", set(json!({"type": "RollingUpdate"})), &[(rolling, json!(null))]);
    check("apps", "statefulsets", set(json!({"type": "RollingUpdate", "rollingUpdate": {}})), &[(rolling, json!({"partition": 0}))]);
}

#[test]
fn only_load_balancers_have_modes_of_addresses() {
    let service = |kind: &str| json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    let mode = "/status/loadBalancer/ingress/0/ipMode";
    check("", "services", service("LoadBalancer"), &[(mode, json!("VIP"))]);
    check("", "services", service("NodePort"), &[(mode, json!(null))]);
}

#[test]
fn a_count_of_no_devices_is_one() {
    let request = json!({"exactly": {"count": 0, "tolerations": [{"key": "a"}]}});
    let claim = json!({"spec": {"devices": {"requests": [request]}},
        "status": {"allocation": {"devices": {"results": [{"tolerations": [{"key": "a"}]}]}}}});
    let wanted = [
        ("/spec/devices/requests/0/exactly/count", json!(1)),
        ("/spec/devices/requests/0/exactly/tolerations/0/operator", json!("Equal")),
        ("/status/allocation/devices/results/0/tolerations/0/operator", json!("Equal")),
    ];
    check("resource.k8s.io", "resourceclaims", claim, &wanted);
}

#[test]
fn templates_and_inline_volumes_have_the_defaults_of_what_they_are() {
    let rules = json!({"rules": [{"action": "Count", "onPodConditions": [{"type": "a"}]}]});
    let job = json!({"spec": {"jobTemplate": {"spec": {"podFailurePolicy": rules}}}});
    check("batch", "cronjobs", job, &[("/spec/jobTemplate/spec/podFailurePolicy/rules/0/onPodConditions/0/status", json!("True"))]);
    let attachment = json!({"spec": {"source": {"inlineVolumeSpec": {"iscsi": {}, "hostPath": {"path": "/a"}}}}});
    let inline = "/spec/source/inlineVolumeSpec";
    let wanted = [(format!("{inline}/iscsi/iscsiInterface"), json!("default")), (format!("{inline}/hostPath/type"), json!(""))];
    check("storage.k8s.io", "volumeattachments", attachment, &wanted.each_ref().map(|(at, value)| (at.as_str(), value.clone())));
}

#[test]
fn queues_are_filled_in_but_not_made() {
    let level = |response: Value| json!({"spec": {"type": "Limited", "limited": {"limitResponse": response}}});
    let queuing = "/spec/limited/limitResponse/queuing";
    let group = "flowcontrol.apiserver.k8s.io";
    check(group, "prioritylevelconfigurations", level(json!({"type": "Queue"})), &[(queuing, json!(null))]);
    let filled = json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50});
    check(group, "prioritylevelconfigurations", level(json!({"type": "Queue", "queuing": {}})), &[(queuing, filled)]);
}
