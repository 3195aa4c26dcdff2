//! Managers that meet, as a real server settled it.

use super::*;

fn config_map() -> Kind {
    Kind::namespaced("", "v1", "ConfigMap", "configmaps")
}
fn deployment() -> Kind {
    Kind::namespaced("apps", "v1", "Deployment", "deployments").status()
}
fn writer<'a>(kind: &'a Kind, manager: &'a str) -> Writer<'a> {
    Writer { kind, version: "v1", manager, subresource: "", now: "2024-01-01T00:00:00Z" }
}
fn data(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": data})
}
fn owned(object: &Value, manager: &str) -> Value {
    object
        .list_at("metadata.managedFields")
        .iter()
        .find(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
        .unwrap_or_default()
}

#[test]
fn appliers_share_conflict_and_force() {
    let kind = config_map();
    let one = apply(None, &data(json!({"a": "1", "b": "1"})), &writer(&kind, "m1"), false).unwrap();
    assert_eq!(owned(&one, "m1"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let two = apply(Some(&one), &data(json!({"a": "1"})), &writer(&kind, "m2"), false).unwrap();
    assert_eq!(owned(&two, "m2"), json!({"f:data": {"f:a": {}}}));
    let conflict = apply(Some(&two), &data(json!({"a": "2"})), &writer(&kind, "m2"), false).unwrap_err();
    assert_eq!((conflict.code, conflict.message.as_str()), (409, "Apply failed with 1 conflict: conflict with \"m1\": .data.a"));
    let forced = apply(Some(&two), &data(json!({"a": "2", "b": "2"})), &writer(&kind, "m2"), true).unwrap();
    assert_eq!(forced["data"], json!({"a": "2", "b": "2"}));
    assert_eq!(owned(&forced, "m1"), Value::Null);
    let several = apply(Some(&one), &data(json!({"a": "2", "b": "2"})), &writer(&kind, "m2"), false).unwrap_err();
    assert_eq!(several.message, "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .data.a\n- .data.b");
}

#[test]
fn what_is_no_longer_said_goes_unless_another_says_it() {
    let kind = config_map();
    let one = apply(None, &data(json!({"a": "1", "b": "1", "c": "1"})), &writer(&kind, "m1"), false).unwrap();
    let two = apply(Some(&one), &data(json!({"b": "1"})), &writer(&kind, "m2"), false).unwrap();
    let less = apply(Some(&two), &data(json!({"a": "1"})), &writer(&kind, "m1"), false).unwrap();
    assert_eq!(less["data"], json!({"a": "1", "b": "1"}));
    let none =
        apply(Some(&less), &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}}), &writer(&kind, "m1"), false).unwrap();
    assert_eq!((&none["data"], owned(&none, "m1")), (&json!({"b": "1"}), Value::Null));
}

#[test]
fn updates_take_what_they_change() {
    let kind = config_map();
    let mut created = data(json!({"a": "1"}));
    update(None, &mut created, &writer(&kind, "u1"));
    assert_eq!(owned(&created, "u1"), json!({"f:data": {".": {}, "f:a": {}}}));
    let mut changed = created.clone();
    changed.set("data.a", "2");
    changed.set("data.b", "1");
    update(Some(&created), &mut changed, &writer(&kind, "u2"));
    assert_eq!(owned(&changed, "u1"), json!({"f:data": {}}));
    assert_eq!(owned(&changed, "u2"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let conflict = apply(Some(&changed), &data(json!({"a": "3"})), &writer(&kind, "m"), false).unwrap_err();
    assert_eq!(conflict.message, "Apply failed with 1 conflict: conflict with \"u2\" using v1: .data.a");
    let mut same = changed.clone();
    update(Some(&changed), &mut same, &writer(&kind, "u3"));
    assert_eq!(same, changed);
    let mut reset = changed.clone();
    reset.set("metadata.managedFields", json!([{}]));
    update(Some(&changed), &mut reset, &writer(&kind, "u3"));
    assert_eq!(reset.at("metadata.managedFields"), None);
}

#[test]
fn lists_are_owned_by_item() {
    let kind = deployment();
    let make = |containers: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": {"spec": {"containers": containers}}}});
    let one = apply(
        None,
        &make(json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "1"}])),
        &writer(&kind, "m1"),
        false,
    )
    .unwrap();
    assert_eq!(
        owned(&one, "m1")["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"],
        json!({".": {}, "f:name": {}, "f:image": {}, "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}})
    );
    let two = apply(Some(&one), &make(json!([{"name": "c", "image": "1"}, {"name": "b", "image": "1"}])), &writer(&kind, "m2"), false).unwrap();
    let names: Vec<_> = two.list_at("spec.template.spec.containers").iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["a", "c", "b"]);
    let less = apply(Some(&two), &make(json!([{"name": "b", "image": "1"}])), &writer(&kind, "m1"), false).unwrap();
    let names: Vec<_> = less.list_at("spec.template.spec.containers").iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["c", "b"]);
    let twice = apply(None, &make(json!([{"name": "a"}, {"name": "a"}])), &writer(&kind, "m1"), false).unwrap_err();
    assert_eq!(
        (twice.code, twice.message.as_str()),
        (
            500,
            "failed to create typed patch object (/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
        )
    );
}

#[test]
fn kubectl_may_take_what_it_applied_from_the_client() {
    let kind = config_map();
    let mut live = data(json!({"a": "1", "b": "1"}));
    live.set_annotation(LAST_APPLIED, &data(json!({"a": "1"})).to_string());
    update(None, &mut live, &writer(&kind, "kubectl-client-side-apply"));
    assert!(apply(Some(&live), &data(json!({"a": "2"})), &writer(&kind, "other"), false).is_err());
    assert!(apply(Some(&live), &data(json!({"b": "2"})), &writer(&kind, "kubectl"), false).is_err());
    let taken = apply(Some(&live), &data(json!({"a": "2"})), &writer(&kind, "kubectl"), false).unwrap();
    assert_eq!(taken["data"], json!({"a": "2", "b": "1"}));
}

#[test]
fn many_updaters_become_one() {
    let kind = config_map();
    let mut object = data(json!({}));
    for i in 0..15 {
        let old = object.clone();
        object.set(&format!("data.k{i}"), "x");
        let (manager, now) = (format!("u{i:02}"), format!("2024-01-01T00:00:{i:02}Z"));
        update(Some(&old), &mut object, &Writer { now: &now, ..writer(&kind, &manager) });
    }
    assert_eq!(object.list_at("metadata.managedFields").len(), limits::MANAGED_FIELDS_UPDATERS_MAX);
    assert!(!owned(&object, ANCIENT).is_null());
}

#[test]
fn books_begin_with_the_first_apply() {
    let kind = config_map();
    let mut old = data(json!({"a": "1"}));
    old.set("metadata.uid", "u");
    let mut new = old.clone();
    new.set("data.a", "2");
    update(Some(&old), &mut new, &writer(&kind, "u1"));
    assert_eq!(new.at("metadata.managedFields"), None);
    let applied = apply(Some(&new), &data(json!({"b": "1"})), &writer(&kind, "m1"), false).unwrap();
    assert_eq!(owned(&applied, BEFORE_FIRST_APPLY), json!({"f:data": {".": {}, "f:a": {}}}));
    assert_eq!(owned(&applied, "m1"), json!({"f:data": {"f:b": {}}}));
}

#[test]
fn status_is_not_the_main_resources_to_change() {
    let kind = deployment();
    let status =
        |replicas: i64| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "status": {"replicas": replicas}});
    let controller = Writer { subresource: "status", ..writer(&kind, "controller") };
    let live = apply(None, &status(3), &controller, false).unwrap();
    let other = apply(Some(&live), &status(8), &writer(&kind, "m1"), false).unwrap();
    assert_eq!((owned(&other, "m1"), owned(&other, "controller")), (Value::Null, json!({"f:status": {"f:replicas": {}}})));
}

#[test]
fn what_is_asked_of_a_signer_is_nobodys() {
    let kind = crate::Catalogue::built_in().kind("certificates.k8s.io", "CertificateSigningRequest").cloned();
    let kind = kind.as_deref().unwrap();
    let spec = json!({"request": "", "signerName": "a.b/c", "usages": ["any"]});
    let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "a", "uid": "u"}, "spec": spec, "status": {}});
    let mut plain = request.clone();
    update(None, &mut plain, &writer(kind, "maker"));
    assert_eq!(plain.at("metadata.managedFields"), None);
    let mut labelled = request;
    labelled.set("metadata.labels.a", "b");
    update(None, &mut labelled, &writer(kind, "maker"));
    assert_eq!(owned(&labelled, "maker"), json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}));
    let answered = |subresource: &'static str| {
        let mut answered = labelled.clone();
        answered.set("status", json!({"certificate": "AA==", "conditions": [{"type": "Approved", "status": "True"}]}));
        update(Some(&labelled), &mut answered, &Writer { subresource, ..writer(kind, "answers") });
        owned(&answered, "answers")
    };
    assert_eq!(answered("status"), json!({"f:status": {"f:certificate": {}}}));
    let approved = json!({".": {}, "k:{\"type\":\"Approved\"}": {".": {}, "f:type": {}, "f:status": {}}});
    assert_eq!(answered("approval"), json!({"f:status": {"f:conditions": approved}}));
}

#[test]
fn books_of_a_new_object_are_the_same_as_text() {
    let pod = crate::Catalogue::built_in().kind("", "Pod").cloned();
    let pod = pod.as_deref().unwrap();
    let full = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "t",
            "labels": {"app": "x", "odd\"\\key\u{1}": "y", "\"": "", "\\\"a": ""}, "annotations": {}, "finalizers": ["f/b", "f/a", "f/a", "f/\"c"],
            "ownerReferences": [{"uid": "1", "name": "o"}]},
        "spec": {"containers": [
                {"name": "web", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP", "name": "d"}, {"containerPort": 7}],
                    "env": [{"name": "B", "value": "1"}, {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "p"}}}, {"name": "B", "value": "2"}],
                    "args": ["z", "a"], "resources": {"limits": {"cpu": "1"}, "requests": {}}, "securityContext": {}},
                {"name": "again"}, {"name": "again", "image": "j"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"k": "v"}, "tolerations": [{"key": "t"}], "hostNetwork": false,
            "unknown": {"a": {"b": [1]}, "c": null}, "imagePullSecrets": [{"name": "s"}, {}], "initContainers": [], "terminationGracePeriodSeconds": null},
        "status": {"phase": "Pending"}});
    let bare = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let odd = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": {"x": 1}, "labels": "none"}, "spec": {"containers": {"a": 1}}});
    let (config_map, deployment) = (config_map(), deployment());
    let cases = [
        (pod, full),
        (pod, bare),
        (pod, odd),
        (&config_map, data(json!({"a": "1"}))),
        (&config_map, data(json!({}))),
        (
            &deployment,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w"}, "spec": {"replicas": 3}, "status": {"replicas": 1}}),
        ),
    ];
    for (kind, object) in cases {
        for manager in ["", "kubectl \"create\""] {
            let mut expected = object.clone();
            update(None, &mut expected, &writer(kind, manager));
            let text = books_of_new(&object, &writer(kind, manager));
            let expected = expected.at("metadata.managedFields").map(Value::to_string);
            assert_eq!(text, expected, "{object}");
        }
    }
    let sent = json!({"metadata": {"name": "a", "managedFields": []}, "data": {"a": "1"}});
    assert_eq!(books_of_new(&sent, &writer(&config_map, "m")), None);
    assert_eq!(books_of_new(&data(json!({"a": "1"})), &writer(&config_map, &"m".repeat(129))), None);
}

#[test]
fn mutations_are_of_the_kind_and_of_no_whole() {
    let kind = deployment();
    let live = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a"}]}}}});
    let check = |config: Value, expected: &str| {
        let found = merged(&live, &config, &kind, "v1").map_or_else(|why| why, |merged| merged["spec"].to_string());
        assert_eq!(found, expected);
    };
    let two = r#"{"replicas":2,"template":{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}}"#;
    check(json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "b"}]}}}}), two);
    let refused = "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: ";
    check(json!({"spec": {"selector": {"matchLabels": {"l": "v"}}}}), &format!("{refused}.spec.selector"));
    let args = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "args": ["x"]}]}}}});
    check(args, &format!("{refused}.spec.template.spec.containers[0].args"));
    let unknown = "failed to convert patch object to typed object: .spec.replicasx: field not declared in schema";
    check(json!({"spec": {"replicasx": 1}}), unknown);
}
