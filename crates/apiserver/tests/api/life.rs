//! The life of an object of the kinds whose whole API clients go through: made, read, found by its label, patched, replaced, its
//! status patched and replaced, deleted with its like, and every change seen by who watches.

use super::*;

/// Where a kind lives, an object of it, and what a client may say of its status, if that has a path.
struct Life {
    path: &'static str,
    object: Value,
    status: Option<Value>,
}

fn lives() -> Vec<Life> {
    let life = |path, object, status| Life { path, object, status };
    let named = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let conditions =
        json!({"conditions": [{"type": "Seen", "status": "True", "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-02T03:04:05Z"}]});
    let rules = json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]});
    let hooks = json!([{"name": "a.example.dev", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "failurePolicy": "Ignore",
        "admissionReviewVersions": ["v1"], "rules": [{"apiGroups": ["example.dev"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["xs"]}]}]);
    let mutation = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{annotations: {\"a\": \"b\"}}}"}});
    vec![
        life(
            "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
            named("level", json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}})),
            Some(conditions.clone()),
        ),
        life(
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
            named("few", json!({"matchConstraints": rules, "failurePolicy": "Fail", "validations": [{"expression": "object.spec.replicas <= 100"}]})),
            Some(conditions.clone()),
        ),
        life(
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
            named("few", json!({"policyName": "none", "validationActions": ["Deny"]})),
            None,
        ),
        life(
            "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies",
            named("mark", json!({"matchConstraints": rules, "failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [mutation]})),
            None,
        ),
        life("/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings", named("mark", json!({"policyName": "none"})), None),
        life(
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            json!({"metadata": {"name": "hooks"}, "webhooks": hooks}),
            None,
        ),
        life("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", json!({"metadata": {"name": "hooks"}, "webhooks": hooks}), None),
        life(
            "/apis/events.k8s.io/v1/namespaces/test/events",
            json!({"metadata": {"name": "new"}, "reason": "Test", "action": "Do", "note": "n", "type": "Normal", "regarding": {"namespace": "test"},
                "reportingController": "c", "reportingInstance": "i", "eventTime": "2026-01-02T03:04:05.000000Z"}),
            None,
        ),
        life(
            "/api/v1/namespaces/test/events",
            json!({"metadata": {"name": "old"}, "message": "m", "reason": "Test", "type": "Normal", "involvedObject": {"namespace": "test", "kind": "Pod", "name": "x"}}),
            None,
        ),
        life("/api/v1/namespaces/test/serviceaccounts", json!({"metadata": {"name": "account"}}), None),
        life("/api/v1/namespaces/test/resourcequotas", named("quota", json!({"hard": {"pods": "5"}})), Some(json!({"hard": {"pods": "5"}}))),
        life("/apis/coordination.k8s.io/v1/namespaces/test/leases", named("lease", json!({"holderIdentity": "x"})), None),
        life(
            "/apis/policy/v1/namespaces/test/poddisruptionbudgets",
            named("budget", json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}})),
            Some(json!({"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 1, "expectedPods": 0})),
        ),
        life(
            "/apis/networking.k8s.io/v1/namespaces/test/ingresses",
            named("door", json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}})),
            Some(json!({"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}})),
        ),
        life(
            "/apis/discovery.k8s.io/v1/namespaces/test/endpointslices",
            json!({"metadata": {"name": "slice"}, "addressType": "IPv4", "endpoints": [], "ports": []}),
            None,
        ),
        life("/apis/node.k8s.io/v1/runtimeclasses", json!({"metadata": {"name": "class"}, "handler": "h"}), None),
    ]
}

#[tokio::test]
async fn whole_lives_of_objects() {
    let (server, _client) = server().await;
    let merge = [("content-type", "application/merge-patch+json")];
    for Life { path, mut object, status } in lives() {
        object["metadata"]["labels"] = json!({"life": "whole"});
        let (code, made) = raw_json(&server, "POST", path, &[], object.to_string()).await;
        assert_eq!(code, StatusCode::CREATED, "{path}: {made}");
        let named = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        let version = made["metadata"]["resourceVersion"].as_str().unwrap();
        let selected = format!("{path}?labelSelector=life%3Dwhole");
        let watch = format!("{selected}&watch=true&resourceVersion={version}&timeoutSeconds=1");
        assert_eq!(raw_json(&server, "GET", &named, &[], "").await, (StatusCode::OK, made.clone()));
        let (_, list) = raw_json(&server, "GET", &selected, &[], "").await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{path}: {list}");

        let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
        let (code, mut changed) = raw_json(&server, "PATCH", &named, &merge, patch.to_string()).await;
        assert_eq!((code, &changed["metadata"]["annotations"]["patched"]), (StatusCode::OK, &json!("true")), "{path}");
        changed["metadata"]["annotations"]["replaced"] = json!("true");
        let (code, replaced) = raw_json(&server, "PUT", &named, &[], changed.to_string()).await;
        assert_eq!((code, &replaced["metadata"]["annotations"]["replaced"]), (StatusCode::OK, &json!("true")), "{path}: {replaced}");
        let mut changes = 2;
        if let Some(status) = status {
            let (code, shown) = raw_json(&server, "PATCH", &format!("{named}/status"), &merge, json!({"status": status}).to_string()).await;
            assert_eq!(code, StatusCode::OK, "{path}: {shown}");
            let same = status.as_object().unwrap().iter().all(|(key, value)| shown["status"][key] == *value);
            assert!(same, "{path}: {shown}");
            let (_, mut whole) = raw_json(&server, "GET", &format!("{named}/status"), &[], "").await;
            whole["metadata"]["annotations"]["status"] = json!("replaced");
            let (code, answer) = raw_json(&server, "PUT", &format!("{named}/status"), &[], whole.to_string()).await;
            assert_eq!(code, StatusCode::OK, "{path}: {answer}");
            // Where a status is all that is written here, such a write is none.
            changes += 1 + usize::from(answer["metadata"]["annotations"]["status"] == "replaced");
        }
        assert_eq!(raw(&server, "DELETE", &selected, &[], "").await.0, StatusCode::OK, "{path}");
        assert_eq!(raw(&server, "GET", &named, &[], "").await.0, StatusCode::NOT_FOUND, "{path}");
        let (_, _, events) = raw(&server, "GET", &watch, &[], "").await;
        let types: Vec<Value> = String::from_utf8_lossy(&events)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("an event")["type"].clone())
            .filter(|word| word != "BOOKMARK")
            .collect();
        // Others of the server's own parts may write a status in between.
        assert!(types.len() > changes && types[..changes].iter().all(|word| word == "MODIFIED"), "{path}: {types:?}");
        assert_eq!(types.last(), Some(&json!("DELETED")), "{path}: {types:?}");
    }
}
