//! What each kind refuses, drops and keeps, where Kubernetes' rules are not as one would guess: an object and what is said of it.

use api::{Catalogue, Kind, Value, field::Errors, object::ObjectExt};
use serde_json::json;
use std::sync::Arc;

/// The object as it would be stored, and what is wrong with it.
fn run(kind: &Kind, object: Value, old: Option<Value>) -> (Value, String) {
    let named = |mut object: Value| {
        object.set("metadata.name", "a");
        if kind.namespaced_scope() {
            object.set("metadata.namespace", "d");
        }
        kind.hooks.default(&mut object);
        object
    };
    let (mut object, old) = (named(object), old.map(named));
    match &old {
        Some(old) => kind.hooks.prepare_update(&mut object, old),
        None => kind.hooks.prepare_create(&mut object),
    }
    let mut errors = Errors::default();
    kind.hooks.validate(&object, old.as_ref(), &mut errors);
    (object, errors.to_string())
}

fn known(group: &str, resource: &str) -> Arc<Kind> {
    Catalogue::built_in().resource(group, resource).cloned().expect("a known kind")
}
/// What is said of a new object.
fn created(group: &str, resource: &str, object: Value) -> String {
    run(&known(group, resource), object, None).1
}
/// What is said of an object that was another.
fn updated(group: &str, resource: &str, old: Value, object: Value) -> String {
    run(&known(group, resource), object, Some(old)).1
}

#[test]
fn an_empty_string_is_something_said_where_go_has_a_pointer() {
    let class = |key: &str| json!({"provisioner": "p", key: ""});
    assert_eq!(
        created("storage.k8s.io", "storageclasses", class("volumeBindingMode")),
        r#"volumeBindingMode: Unsupported value: "": supported values: "Immediate", "WaitForFirstConsumer""#
    );
    assert_eq!(created("storage.k8s.io", "storageclasses", class("reclaimPolicy")), "[]");
    assert_eq!(
        created("storage.k8s.io", "csidrivers", json!({"spec": {"fsGroupPolicy": ""}})),
        r#"spec.fsGroupPolicy: Unsupported value: "": supported values: "File", "None", "ReadWriteOnceWithFSType""#
    );
    assert_eq!(
        created("networking.k8s.io", "networkpolicies", json!({"spec": {"ingress": [{"ports": [{"protocol": ""}]}]}})),
        r#"spec.ingress[0].ports[0].protocol: Unsupported value: "": supported values: "TCP", "UDP", "SCTP""#
    );
    let parameters = |key: &str| json!({"spec": {"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", key: ""}}});
    assert_eq!(
        created("networking.k8s.io", "ingressclasses", parameters("scope")),
        r#"spec.parameters.scope: Unsupported value: "": supported values: "Cluster", "Namespace""#
    );
    let found = created("networking.k8s.io", "ingressclasses", parameters("apiGroup"));
    assert!(found.starts_with(r#"spec.parameters.apiGroup: Invalid value: "": a lowercase RFC 1123 subdomain"#), "{found}");
    assert_eq!(created("scheduling.k8s.io", "priorityclasses", json!({"preemptionPolicy": ""})), "preemptionPolicy: Required value");
    let found = created("apps", "deployments", json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": ""}}}}));
    assert!(found.contains(r#"spec.strategy.rollingUpdate.maxSurge: Invalid value: "": a valid percent string"#), "{found}");
    let hook = json!({"name": "a.b.c", "sideEffects": "", "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://a"}});
    assert_eq!(
        created("admissionregistration.k8s.io", "validatingwebhookconfigurations", json!({"webhooks": [hook]})),
        r#"webhooks[0].sideEffects: Unsupported value: "": supported values: "None", "NoneOnDryRun""#
    );
}

#[test]
fn what_a_scaler_may_grow_to_and_what_it_scales() {
    let scaler = |maximum: i64, target: Value| json!({"spec": {"maxReplicas": maximum, "scaleTargetRef": target}});
    let of = |kind: &str, version: &str| json!({"kind": kind, "name": "d", "apiVersion": version});
    let said = |object: Value| created("autoscaling", "horizontalpodautoscalers", object);
    let minimum = "spec.maxReplicas: Invalid value: ";
    assert_eq!(
        said(scaler(0, of("Deployment", "apps/v1"))),
        format!("[spec.maxReplicas: Required value: must be set and greater than 0, {minimum}0: must be greater than or equal to `minReplicas`]")
    );
    assert_eq!(
        said(scaler(-1, of("Deployment", "apps/v1"))),
        format!("[{minimum}-1: must be greater than or equal to 1, {minimum}-1: must be greater than or equal to `minReplicas`]")
    );
    let version = "spec.scaleTargetRef.apiVersion: Invalid value: ";
    assert_eq!(said(scaler(1, of("Deployment", "v1"))), format!("{version}\"v1\": apiVersion must specify API group"));
    assert_eq!(said(scaler(1, of("Deployment", "a/b/c"))), format!("{version}\"a/b/c\": unexpected GroupVersion string: a/b/c"));
    assert_eq!(said(scaler(1, of("ReplicationController", "v1"))), "[]");
    assert!(said(scaler(1, of("", ""))).contains(version));
    // What has been so may stay so.
    let before = scaler(1, of("Deployment", "v1"));
    assert_eq!(updated("autoscaling", "horizontalpodautoscalers", before.clone(), scaler(2, of("Deployment", "v1"))), "[]");
    let found = updated("autoscaling", "horizontalpodautoscalers", before, scaler(2, of("Other", "v1")));
    assert_eq!(found, format!("{version}\"v1\": apiVersion must specify API group"));

    let metric = |version: &str| {
        let object = json!({"describedObject": {"kind": "K", "name": "n", "apiVersion": version}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "1"}});
        let mut scaler = scaler(1, of("Deployment", "apps/v1"));
        scaler.set("spec.metrics", json!([{"type": "Object", "object": object}]));
        scaler
    };
    assert_eq!(said(metric("")), "[]");
    assert!(said(metric("a/b/c")).ends_with("unexpected GroupVersion string: a/b/c"));
    assert_eq!(updated("autoscaling", "horizontalpodautoscalers", metric("a/b/c"), metric("d/e/f")), "[]");
}

#[test]
fn ranges_of_addresses_are_written_in_one_way() {
    let said = |range: &str| created("networking.k8s.io", "servicecidrs", json!({"spec": {"cidrs": [range]}}));
    for (range, problem) in [
        ("192.0.2.0/024", "must not have leading 0s in IP or prefix length"),
        ("192.00.2.0/24", "must not have leading 0s in IP or prefix length"),
        ("::ffff:192.0.2.0/120", "must not have an IPv4-mapped IPv6 address"),
        ("192.0.2.1/24", "must not have bits set beyond the prefix length"),
        ("2001:DB8::/64", "must be in canonical form (\"2001:db8::/64\")"),
        ("192.0.2.0/33", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
    ] {
        assert_eq!(said(range), format!("spec.cidrs[0]: Invalid value: {range:?}: {problem}"));
    }
}

#[test]
fn a_service_range_gets_at_most_a_second_family() {
    let range = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
    let said = |old: &[&str], new: &[&str]| updated("networking.k8s.io", "servicecidrs", range(old), range(new));
    let (four, six) = ("192.0.2.0/24", "2001:db8::/64");
    assert_eq!(said(&[four], &[four, six]), "[]");
    assert_eq!(said(&[four], &[six, four]), "spec.cidrs[0]: Invalid value: \"2001:db8::/64\": field is immutable");
    assert_eq!(
        said(&[four], &[four, "198.51.100.0/24"]),
        "spec.cidrs: Invalid value: [\"192.0.2.0/24\",\"198.51.100.0/24\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
    );
    assert_eq!(said(&[four, six], &[four]), "spec.cidrs: Invalid value: [\"192.0.2.0/24\"]: field is immutable");
    // What is said of a range's state is the writer's, even where the range is made.
    let kind = known("networking.k8s.io", "servicecidrs");
    let status = json!({"conditions": [{"type": "Ready"}]});
    let mut new = range(&[four]);
    new.set("status", status.clone());
    assert_eq!(run(&kind, new, None).0["status"], status);
}

#[test]
fn topologies_are_the_same_in_whatever_order_and_none_is_none() {
    let class = |terms: Value| json!({"provisioner": "p", "allowedTopologies": terms});
    let said = |terms: Value| created("storage.k8s.io", "storageclasses", class(terms));
    let term = |values: Value| json!({"matchLabelExpressions": [{"key": "zone", "values": values}]});
    let again = |i: usize| format!("allowedTopologies[{i}].matchLabelExpressions: Duplicate value: \"\"");
    assert_eq!(said(json!([term(json!(["a", "b"])), term(json!(["b", "a"]))])), again(1));
    assert_eq!(said(json!([term(json!(["a", "b"])), term(json!(["b"]))])), "[]");
    assert_eq!(said(json!([{}])), again(0));
}

#[test]
fn odd_addresses_in_a_status_are_warned_of() {
    let pod = json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "2001:DB8::1"}], "hostIPs": [{"ip": "::ffff:10.0.0.2"}]}});
    let warnings = known("", "pods").hooks.status_warnings(&pod);
    assert!(warnings[0].starts_with("status.podIPs[1].ip: IPv6 address \"2001:DB8::1\" should be in RFC 5952"), "{warnings:?}");
    assert!(warnings[1].starts_with("status.hostIPs[0].ip: non-standard IP address"), "{warnings:?}");
    let service = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "h"}, {"ip": "010.0.0.1"}]}}});
    let warnings = known("", "services").hooks.status_warnings(&service);
    assert!(warnings.len() == 1 && warnings[0].starts_with("status.loadBalancer.ingress[1]: non-standard"), "{warnings:?}");
}

#[test]
fn the_server_says_when_the_phase_of_a_volume_changed() {
    let kind = known("", "persistentvolumes");
    let status = |phase: &str, time: Option<&str>| json!({"status": {"phase": phase, "lastPhaseTransitionTime": time}});
    let stamped = |old: Value, mut new: Value| {
        kind.hooks.stamp(&mut new, &old, "now");
        new.str_at("status.lastPhaseTransitionTime").unwrap_or_default().to_string()
    };
    assert_eq!(stamped(status("Pending", None), status("Bound", None)), "now");
    assert_eq!(stamped(status("Pending", Some("then")), status("Bound", Some("then"))), "now");
    assert_eq!(stamped(status("Pending", Some("then")), status("Bound", Some("later"))), "later", "who changes it may say");
    assert_eq!(stamped(status("Bound", Some("then")), status("Bound", None)), "then", "kept");
}

#[test]
fn a_range_without_a_name_is_called_as_its_identity() {
    let kind = known("", "limitranges");
    let mut range = json!({"metadata": {"uid": "u"}});
    kind.hooks.prepare_create(&mut range);
    assert_eq!(range.name(), "u");
}

#[test]
fn nodes_are_no_longer_set_up_through_their_status() {
    let kind = known("", "nodes");
    let mut node = json!({"status": {"config": {"error": "e"}, "phase": "Running"}});
    kind.hooks.prepare_status(&mut node, &json!({}));
    assert_eq!(node["status"], json!({"phase": "Running"}));
}

#[test]
fn pods_of_a_job_that_waits_may_be_made_to_ask_for_something_else() {
    let job = |name: &str, cpu: &str, suspend: bool| {
        let container = json!({"name": name, "image": "i", "resources": {"requests": {"cpu": cpu}}, "terminationMessagePolicy": "File", "imagePullPolicy": "Always"});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [container]}});
        json!({"spec": {"suspend": suspend, "manualSelector": true, "selector": {"matchLabels": {"a": "b"}}, "template": template}})
    };
    let said = |old: Value, new: Value| updated("batch", "jobs", old, new);
    assert_eq!(said(job("c", "1", true), job("c", "2", true)), "[]");
    assert_eq!(said(job("c", "1", true), job("c", "2", false)), "[]", "and be let go at once");
    let found = said(job("c", "1", true), job("d", "2", true));
    assert!(found.starts_with("spec.template.spec: Invalid value: {") && found.ends_with(": field is immutable"), "{found}");
    let found = said(job("c", "1", false), job("c", "2", false));
    assert!(found.starts_with("spec.template: Invalid value: {") && found.ends_with(": field is immutable"), "{found}");
    let mut has_pods = job("c", "1", true);
    has_pods.set("status.active", 1);
    let found = said(has_pods, job("c", "2", true));
    assert!(found.starts_with("spec.template: Invalid value: {"), "{found}");
}

#[test]
fn a_set_whose_selector_is_none_has_no_template_to_check() {
    let spec = |operator: &str| {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": operator, "values": ["b"]}]});
        json!({"spec": {"serviceName": "s", "selector": selector, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"restartPolicy": "Never"}}}})
    };
    let found = created("apps", "statefulsets", spec("In"));
    assert!(
        found.contains("spec.template.metadata.labels: Invalid value") && found.contains("spec.template.spec.containers: Required value"),
        "{found}"
    );
    let found = created("apps", "statefulsets", spec("Near"));
    assert!(!found.contains("spec.template.metadata") && !found.contains("spec.template.spec.containers"), "{found}");
    assert!(found.contains(r#"spec.selector.matchExpressions[0].operator: Invalid value: "Near": not a valid selector operator"#), "{found}");
    assert!(found.contains(r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#), "{found}");
}

#[test]
fn what_is_said_of_a_device_goes_with_the_device() {
    let kind = known("resource.k8s.io", "resourceclaims");
    let device = |name: &str| json!({"driver": "d", "pool": "p", "device": name});
    let claim = |allocated: &[&str]| {
        let results: Vec<_> = allocated.iter().map(|name| device(name)).collect();
        json!({"status": {"allocation": {"devices": {"results": results}}, "devices": [device("kept"), device("given-back"), device("unknown")]}})
    };
    let mut new = claim(&["kept"]);
    kind.hooks.prepare_status(&mut new, &claim(&["kept", "given-back"]));
    assert_eq!(new["status"]["devices"], json!([device("kept"), device("unknown")]), "the last is to be refused");
}

#[test]
fn a_mutation_is_never_about_what_goes() {
    let matched = |operation: &str| {
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": [operation]});
        json!({"spec": {"policyName": "p", "matchResources": {"resourceRules": [rule]}}})
    };
    let said = |operation: &str| created("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", matched(operation));
    assert_eq!(said("CREATE"), "[]");
    assert_eq!(
        said("DELETE"),
        r#"spec.matchResources.resourceRules.operations: Unsupported value: "DELETE": supported values: "*", "CONNECT", "CREATE", "UPDATE""#
    );
}

#[test]
fn conditions_of_signing_requests_get_their_times() {
    let old = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "lastTransitionTime": "then"}]}});
    let mut new =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True", "lastUpdateTime": "its"}]}});
    known("certificates.k8s.io", "certificatesigningrequests").hooks.stamp(&mut new, &old, "now");
    assert_eq!(
        new["status"]["conditions"],
        json!([{"type": "Approved", "status": "True", "lastUpdateTime": "now", "lastTransitionTime": "then"},
            {"type": "Failed", "status": "True", "lastUpdateTime": "its", "lastTransitionTime": "now"}])
    );
}

#[test]
fn a_daemon_set_counts_its_templates_from_what_its_maker_says() {
    let kind = known("apps", "daemonsets");
    let counted = |said: Option<&str>| {
        let set = json!({"metadata": {"annotations": {"deprecated.daemonset.template.generation": said}}});
        run(&kind, set, None).0.annotation("deprecated.daemonset.template.generation").map(str::to_string)
    };
    for (said, kept) in [(None, "1"), (Some("0"), "1"), (Some("-2"), "1"), (Some("7"), "7")] {
        assert_eq!(counted(said).as_deref(), Some(kept), "{said:?}");
    }
}

#[test]
fn slices_of_endpoints_are_warned_of_once_and_not_the_servers_own() {
    let kind = known("discovery.k8s.io", "endpointslices");
    let slice = |manager: &str, kind: &str, address: &str| json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": manager}}, "addressType": kind, "endpoints": [{"addresses": [address]}]});
    let named = slice("me", "FQDN", "a.b");
    assert_eq!(kind.hooks.warnings(&named, None), ["spec.addressType: FQDN endpoints are deprecated"]);
    assert!(kind.hooks.warnings(&named, Some(&named)).is_empty());
    let odd = "fd00:0::1";
    assert_eq!(kind.hooks.warnings(&slice("me", "IPv6", odd), None).len(), 1);
    assert!(kind.hooks.warnings(&slice("endpointslice-controller.k8s.io", "IPv6", odd), None).is_empty());
}

#[test]
fn formats_that_nobody_knows_are_told_of_once() {
    let kind = known("apiextensions.k8s.io", "customresourcedefinitions");
    let definition = |format: &str| {
        let field = json!({"type": "string", "anyOf": [{"format": format}], "default": {"type": "x", "format": "none"}});
        let schema = json!({"type": "object", "properties": {"format": field}});
        json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}})
    };
    assert_eq!(kind.hooks.warnings(&definition("odd"), None), [r#"unrecognized format "odd""#]);
    assert!(kind.hooks.warnings(&definition("date-time"), None).is_empty());
    assert!(kind.hooks.warnings(&definition("odd"), Some(&definition("odd"))).is_empty());
    assert_eq!(kind.hooks.warnings(&definition("odder"), Some(&definition("odd"))), [r#"unrecognized format "odder""#]);
}

#[test]
fn names_of_what_a_server_reads_from_files_are_warned_of() {
    for resource in [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "validatingwebhookconfigurations",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
        "mutatingwebhookconfigurations",
    ] {
        let kind = known("admissionregistration.k8s.io", resource);
        let told = |name: &str| kind.hooks.warnings(&json!({"metadata": {"name": name}}), None);
        assert!(told("a.static.k8s.io.b").is_empty());
        assert!(told("a.static.k8s.io")[0].starts_with(r#"metadata.name: names ending with ".static.k8s.io" are reserved"#), "{resource}");
    }
}
