//! Every kind survives whatever JSON it is given, and defaulting twice is defaulting once.

use api::{Catalogue, Kind, Value, field::Errors};
use serde_json::json;

/// Values that no schema would let through.
fn odd() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(i64::MAX),
        json!(1.5),
        json!(""),
        json!("x"),
        json!("é%/[]="),
        json!([]),
        json!([null, 1, "x", {}, []]),
        json!({}),
        json!({"": null, "a/b": {"c": []}}),
    ]
}

/// Names of members that hooks look at.
const MEMBERS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "template",
    "jobTemplate",
    "containers",
    "initContainers",
    "volumes",
    "ports",
    "selector",
    "resources",
    "limits",
    "requests",
    "rules",
    "subjects",
    "roleRef",
    "data",
    "stringData",
    "subsets",
    "endpoints",
    "addresses",
    "conditions",
    "taints",
    "strategy",
    "updateStrategy",
    "rollingUpdate",
    "metrics",
    "behavior",
    "policyTypes",
    "ingress",
    "egress",
    "tls",
    "schedule",
    "timeZone",
    "affinity",
    "tolerations",
    "securityContext",
    "env",
    "lifecycle",
    "livenessProbe",
    "dnsConfig",
    "webhooks",
    "versions",
    "names",
    "podCIDR",
    "podCIDRs",
    "clusterIP",
    "clusterIPs",
    "labels",
    "annotations",
    "involvedObject",
    "series",
    "capacity",
    "hard",
    "limited",
    "volumeClaimTemplates",
    "podFailurePolicy",
    "successPolicy",
    "parameters",
    "service",
    "devices",
];

fn run(kind: &Kind, object: &Value) {
    let mut new = object.clone();
    kind.hooks.to_stored(kind.version(), &mut new);
    kind.hooks.default(&mut new);
    let once = new.clone();
    kind.hooks.default(&mut new);
    assert_eq!(new, once, "{}: defaults of {object}", kind.group_resource());
    kind.hooks.prepare_create(&mut new);
    let mut errors = Errors::default();
    kind.hooks.validate(&new, None, &mut errors);
    kind.hooks.validate(&new, Some(object), &mut errors);
    kind.hooks.validate(object, Some(&new), &mut errors);
    kind.hooks.validate_status(&new, object, &mut errors);
    kind.hooks.validate_status(object, &new, &mut errors);
    for (a, b) in [(&new, object), (object, &new)] {
        for change in [api::kind::Hooks::prepare_update, api::kind::Hooks::prepare_status] {
            change(kind.hooks.as_ref(), &mut a.clone(), b);
        }
        for subresource in &kind.subresources {
            kind.hooks.prepare_view(subresource.name(), &mut a.clone(), b);
            kind.hooks.validate_view(subresource.name(), a, b, &mut errors);
        }
    }
    assert!(!format!("{errors}").is_empty());
    for field in &kind.selectable_fields {
        kind.hooks.selectable_value(object, field);
    }
    kind.hooks.warnings(&new, Some(object));
    for version in &kind.versions {
        kind.hooks.from_stored(version, &mut new.clone());
    }
    let cells = kind.hooks.cells(&new, i64::MAX);
    if !kind.is_virtual() && new.is_object() {
        assert_eq!(cells.len(), kind.columns.len() + kind.unnamed_cells, "{}: cells {cells:?}", kind.group_resource());
    }
}

#[test]
fn no_hook_panics_on_odd_objects() {
    for kind in Catalogue::built_in().iter() {
        for value in odd() {
            run(kind, &value);
            run(kind, &json!({"metadata": value, "spec": value, "status": value}));
        }
        for value in [json!(true), json!([null, 1, "x", {}, []]), json!({"": null, "a/b": {"c": []}})] {
            for member in MEMBERS {
                run(kind, &json!({*member: value}));
                run(kind, &json!({"spec": {*member: value}, "status": {*member: value}, "metadata": {*member: value}}));
                run(
                    kind,
                    &json!({"spec": {"template": {"spec": {"containers": [{*member: value}], "volumes": [{*member: value}], *member: value}}}, "rules": [{*member: value}], "webhooks": [{*member: value}]}),
                );
                run(kind, &json!({"spec": {*member: [{*member: value}], "containers": [{*member: [{*member: value}]}]}}));
            }
        }
    }
}

#[test]
fn cells_of_what_is_rarely_shown() {
    let catalogue = Catalogue::built_in();
    let rows = [
        (
            "",
            "services",
            "External-IP",
            json!({"spec": {"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]}, "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "b"}, {"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}, {}]}}}),
            json!("1.1.1.1,2.2.2.2,b,9.9.9.9"),
        ),
        ("", "services", "External-IP", json!({"spec": {"type": "LoadBalancer"}}), json!("<pending>")),
        (
            "networking.k8s.io",
            "ingresses",
            "Hosts",
            json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {}, {"host": "c"}, {}]}}),
            json!("a,b,c + 2 more..."),
        ),
        ("networking.k8s.io", "ingresses", "Hosts", json!({"spec": {"rules": [{}, {}]}}), json!("*")),
        (
            "networking.k8s.io",
            "ingresses",
            "Address",
            json!({"status": {"loadBalancer": {"ingress": [{"hostname": "z"}, {"ip": "1.1.1.1"}]}}}),
            json!("1.1.1.1,z"),
        ),
        (
            "networking.k8s.io",
            "ingressclasses",
            "Parameters",
            json!({"spec": {"parameters": {"kind": "K", "name": "n", "apiGroup": "g"}}}),
            json!("K.g/n"),
        ),
        ("discovery.k8s.io", "endpointslices", "Ports", json!({"ports": [{"name": "a"}, {"port": 1}, {}]}), json!("a,1,*")),
        ("discovery.k8s.io", "endpointslices", "Ports", json!({"ports": [{"name": ""}]}), json!("<unset>")),
        ("", "persistentvolumeclaims", "Capacity", json!({"spec": {"volumeName": "v"}}), json!("0")),
        (
            "storage.k8s.io",
            "volumeattributesclasses",
            "Name",
            json!({"metadata": {"name": "v", "annotations": {"volumeattributesclass.alpha.kubernetes.io/is-default-class": "true"}}}),
            json!("v (default)"),
        ),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            "Targets",
            json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageValue": "1"}}}]}, "status": {"currentMetrics": [{"type": "Resource", "resource": {"current": {"averageUtilization": 3}}}]}}),
            json!("cpu: <nil>/1"),
        ),
    ];
    for (group, resource, column, object, expected) in rows {
        let kind = catalogue.resource(group, resource).unwrap();
        let place = kind.columns.iter().position(|known| known.name == column).unwrap();
        assert_eq!(api::table::cells(kind, &object, 0)[place], expected, "{resource} {column} of {object}");
    }
}

#[test]
fn what_is_odd_is_told() {
    let catalogue = Catalogue::built_in();
    let check = |group: &str, resource: &str, object: Value, wanted: &[&str]| {
        let said = catalogue.resource(group, resource).unwrap().hooks.warnings(&object, None);
        assert_eq!(said, wanted, "{resource}: {object}");
    };
    let range = "non-standard CIDR value \"10.0.0.1/8\" will be considered invalid in a future Kubernetes release: use \"10.0.0.0/8\"";
    let address = "non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"";
    let old = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    check("", "nodes", json!({"spec": {"podCIDRs": ["10.0.0.1/8"]}}), &[&format!("spec.podCIDRs[0]: {range}")]);
    let block = json!({"ipBlock": {"cidr": "10.0.0.1/8", "except": ["10.0.0.1/8"]}});
    let at = "spec.egress[0].to[0].ipBlock";
    let wanted = [format!("{at}.cidr: {range}"), format!("{at}.except[0]: {range}")];
    check("networking.k8s.io", "networkpolicies", json!({"spec": {"egress": [{"to": [block]}]}}), &wanted.each_ref().map(String::as_str));
    let subsets = json!([{"notReadyAddresses": [{"ip": "010.0.0.1"}]}]);
    check("", "endpoints", json!({"subsets": subsets}), &[old, &format!("subsets[0].notReadyAddresses[0].ip: {address}")]);
    let managed = json!({"metadata": {"labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}}, "subsets": subsets});
    check("", "endpoints", managed, &[old]);
    let mountable = "kubernetes.io/enforce-mountable-secrets";
    let why = format!("metadata.annotations[{mountable}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets");
    check("", "serviceaccounts", json!({"metadata": {"annotations": {mountable: "true"}}}), &[&why]);
    let indexed = json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001});
    let many = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
    check("batch", "jobs", json!({"spec": indexed}), &[&format!("spec: {many}")]);
    check("batch", "cronjobs", json!({"spec": {"jobTemplate": {"spec": indexed}}}), &[&format!("spec.jobTemplate.spec: {many}")]);
}
