//! Who may let a policy read what.

use super::*;

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

fn policy(name: &str, kind: Option<&str>) -> Value {
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    let mut spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]});
    if let Some(kind) = kind {
        spec["paramKind"] = json!({"apiVersion": "v1", "kind": kind});
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn binding(name: &str, policy: &str, mut reference: Value) -> Value {
    reference["namespace"] = json!("default");
    reference["parameterNotFoundAction"] = json!("Deny");
    json!({"metadata": {"name": name}, "spec": {"policyName": policy, "validationActions": ["Deny"], "paramRef": reference}})
}

#[tokio::test]
async fn nobody_lets_a_policy_read_what_they_may_not() {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let cluster = cluster().await;
    let rules = json!([
        {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    ]);
    let role = json!({"metadata": {"name": "author"}, "rules": rules});
    let subject = json!({"kind": "User", "apiGroup": RBAC, "name": "jane"});
    let bound =
        json!({"metadata": {"name": "author"}, "subjects": [subject], "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "author"}});
    for (resource, object) in [("clusterroles", role), ("clusterrolebindings", bound)] {
        cluster.server.create_internal(RBAC, resource, "", object).await.expect("the object is made");
    }
    let jane = cluster.certificate(&Identity::client("jane", &["devs"]));
    let admin = cluster.certificate(&Identity::admin());
    let plain = || cluster.call(Some(&jane), "POST", POLICIES, &[], Some(policy("plain", None)));
    tokio::time::timeout(Duration::from_secs(20), async { while plain().await.0 == StatusCode::FORBIDDEN {} })
        .await
        .expect("the role is known in time");

    let post = async |who: &Issued, path: &str, object: Value| {
        let (code, answer) = cluster.call(Some(who), "POST", path, &[], Some(object)).await;
        (code.as_u16(), answer["details"]["causes"][0]["message"].as_str().unwrap_or_default().to_string())
    };
    assert_eq!(post(&jane, POLICIES, policy("maps", Some("ConfigMap"))).await.0, 201);
    let (code, why) = post(&jane, POLICIES, policy("secrets", Some("Secret"))).await;
    let who = "user &{jane  [devs system:authenticated] map[";
    assert!(code == 422 && why.starts_with(&format!("Forbidden: {who}")), "{why}");
    assert!(why.ends_with(r#"must have "get" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)"#), "{why}");
    assert_eq!(post(&admin, POLICIES, policy("secrets", Some("Secret"))).await.0, 201);

    let named = || json!({"name": "one"});
    assert_eq!(post(&jane, BINDINGS, binding("one", "maps", named())).await.0, 201);
    for (policy, reference, why) in [
        ("maps", json!({"selector": {}}), r#"does not have "list" permission on the object referenced by paramRef"#),
        ("secrets", named(), r#"does not have "get" permission on the object referenced by paramRef"#),
        ("none", named(), r#"does not have "get" permission for all groups, versions and resources"#),
    ] {
        let (code, found) = post(&jane, BINDINGS, binding("other", policy, reference.clone())).await;
        assert!(code == 422 && found.ends_with(why), "{found}");
        assert_eq!(post(&admin, BINDINGS, binding(&format!("of-{policy}"), policy, reference)).await.0, 201);
    }
}
