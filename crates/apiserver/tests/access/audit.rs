//! The audit log: what is written of whom, and what is not.

use super::*;

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  nonResourceURLs: ["/livez*"]
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: RequestResponse
  omitManagedFields: true
  namespaces: [default]
  resources: [{group: "", resources: [configmaps]}]
- level: Metadata
  omitStages: [RequestReceived]
"#;

#[tokio::test]
async fn the_log_tells_who_did_what_and_keeps_secrets_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.log");
    let log = apiserver::audit::Settings { path: path.clone(), age_days_max: 0, backups_max: 0, size_megabytes_max: 0 };
    let cluster = cluster_with(|config, _| config.audit = Some(apiserver::audit::Config { policy: POLICY.into(), log })).await;
    let admin = cluster.certificate(&Identity::admin());
    let jane = cluster.certificate(&Identity::client("jane", &["devs"]));
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "seen"}, "data": {"a": "b"}});
    let (code, _) = cluster.call(Some(&admin), "POST", maps, &[("audit-id", "my-own-id")], Some(map)).await;
    assert_eq!(code, StatusCode::CREATED);
    let secret = json!({"metadata": {"name": "hidden"}, "stringData": {"password": "correct-horse"}});
    let (code, _) = cluster.call(Some(&admin), "POST", "/api/v1/namespaces/default/secrets", &[], Some(secret)).await;
    assert_eq!(code, StatusCode::CREATED);
    let (code, _) = cluster.call(Some(&jane), "GET", "/api/v1/nodes", &[], None).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let (code, _) = cluster.call(None, "GET", "/livez", &[], None).await;
    assert_eq!(code, StatusCode::OK);
    let (code, _) = cluster.call(None, "GET", "/api/v1/pods", &[("authorization", "Bearer wrong")], None).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED);
    let headers = [("impersonate-user", "joe"), ("user-agent", "a-test/1")];
    cluster.call(Some(&admin), "GET", "/api/v1/namespaces/default", &headers, None).await;
    cluster.call(Some(&admin), "GET", "/api/v1/services?watch=true&timeoutSeconds=1", &[], None).await;

    cluster.server.audit.as_ref().expect("an audit log").flush().await;
    let text = std::fs::read_to_string(&path).expect("the log");
    assert!(!text.contains("correct-horse") && !text.contains("Y29ycmVjdC1ob3JzZQ"), "a secret is in the log");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect();
    let find = |stage: &str, is: &dyn Fn(&Value) -> bool| {
        events.iter().find(|event| event["stage"] == stage && is(event)).unwrap_or_else(|| panic!("no such {stage} in\n{text}")).clone()
    };
    let own = |event: &Value| event["auditID"] == "my-own-id";
    let received = find("RequestReceived", &own);
    assert_eq!(
        (received["kind"].as_str(), received["apiVersion"].as_str(), received["level"].as_str()),
        (Some("Event"), Some("audit.k8s.io/v1"), Some("RequestResponse"))
    );
    assert!(received.get("requestObject").is_none() && received.get("responseStatus").is_none());
    let created = find("ResponseComplete", &own);
    assert_eq!(created["verb"], "create");
    assert_eq!(created["user"]["username"], "kubernetes-admin");
    assert_eq!(created["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(created["objectRef"], json!({"resource": "configmaps", "namespace": "default", "name": "seen", "apiVersion": "v1"}));
    assert_eq!(created["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(created["requestObject"]["data"], json!({"a": "b"}));
    assert_eq!(created["responseObject"]["data"], json!({"a": "b"}));
    assert!(created["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(created["annotations"]["authorization.k8s.io/decision"], "allow");
    let secret = find("ResponseComplete", &|event| event["objectRef"]["resource"] == "secrets" && event["user"]["username"] == "kubernetes-admin");
    assert!(secret["level"] == "Metadata" && secret.get("requestObject").is_none() && secret.get("responseObject").is_none());
    let refused = find("ResponseComplete", &|event| event["objectRef"]["resource"] == "nodes" && event["user"]["username"] == "jane");
    assert_eq!((refused["responseStatus"]["code"].as_u64(), refused["responseStatus"]["reason"].as_str()), (Some(403), Some("Forbidden")));
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert!(!text.contains("/livez"), "what the policy leaves out");
    find("ResponseComplete", &|event| event["responseStatus"]["code"] == 401 && event["user"] == json!({}));
    let as_joe = find("ResponseComplete", &|event| event["impersonatedUser"]["username"] == "joe");
    assert_eq!((as_joe["user"]["username"].as_str(), as_joe["userAgent"].as_str()), (Some("kubernetes-admin"), Some("a-test/1")));
    let watched = |event: &Value| event["verb"] == "watch" && event["objectRef"]["resource"] == "services";
    find("ResponseStarted", &watched);
    find("ResponseComplete", &watched);
    assert!(!events.iter().any(|event| event["stage"] == "RequestReceived" && watched(event)), "a stage that is left out");
}
