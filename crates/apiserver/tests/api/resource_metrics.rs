//! `metrics.k8s.io`: served from what nodes say as soon as there is one, and given up to whoever is installed for it.

use super::{behind::behind, *};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// What a node says: each time a tenth of a second of CPU more than before, and what two pods use.
fn said(times: u64) -> Value {
    let cpu = |tenths: u64| format!("{}.{}", tenths / 10, tenths % 10);
    let containers = [("web", "main"), ("web", "side"), ("waits", "main")].map(|(pod, container)| {
        let labels = format!("{{container=\"{container}\",namespace=\"test\",pod=\"{pod}\"}}");
        format!("container_cpu_usage_seconds_total{labels} {}\ncontainer_memory_working_set_bytes{labels} 1.048576e+06\n", cpu(times))
    });
    json!(format!("node_cpu_usage_seconds_total {}\nnode_memory_working_set_bytes 4194304\n{}", cpu(10 * times), containers.concat()))
}

/// The resources that the group lists, and whether it has a place in the list of groups.
async fn discovered(server: &Arc<Server>) -> (bool, Vec<String>) {
    let (_, groups) = raw_json(server, "GET", "/apis", &[], "").await;
    let there = groups["groups"].as_array().unwrap().last().unwrap()["name"] == "metrics.k8s.io";
    let (_, _, list) = raw(server, "GET", METRICS, &[], "").await;
    let list: Value = serde_json::from_slice(&list).unwrap_or_default();
    let names = list["resources"].as_array().into_iter().flatten().map(|resource| format!("{} {}", resource["name"], resource["verbs"]));
    (there, names.collect())
}

async fn post(server: &Arc<Server>, path: &str, object: Value) {
    let (code, made) = raw_json(server, "POST", path, &[], object.to_string()).await;
    assert_eq!(code, 201, "{made}");
}

#[tokio::test]
async fn nodes_say_what_is_used_unless_somebody_else_does() {
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let node = behind("127.0.0.1", move |parts, _| match parts.uri.path() {
        "/metrics/resource" => (StatusCode::OK, said(count.fetch_add(1, SeqCst))),
        _ => (StatusCode::NOT_FOUND, Value::Null),
    })
    .await;
    let mut config = Config::new(Arc::new(Memory::default()));
    let authority = pki::Authority::generate("kubernetes").expect("an authority");
    config.tunnel.client = Some(authority.issue(&pki::Identity::apiserver_kubelet_client()).expect("a certificate"));
    config.tunnel.authorities_pem = Some(node.authority.clone());
    config.resource_metrics.enabled = true;
    let server = Server::new(config).await.expect("the server starts");
    custom::until(&server, "/api/v1/namespaces/default", |code, _| code == 200 && server.health.is_bootstrapped()).await;
    post(&server, "/api/v1/namespaces", json!({"metadata": {"name": "test"}})).await;

    // Without a node it is the API that Kubernetes has without an add-on.
    assert_eq!(discovered(&server).await, (false, vec![]));
    assert_eq!(raw(&server, "GET", SERVICE, &[], "").await.0, StatusCode::NOT_FOUND);

    let port = node.address.port();
    post(&server, "/api/v1/nodes", json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}})).await;
    post(&server, "/api/v1/nodes", json!({"metadata": {"name": "silent"}})).await;
    let status =
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    let patch = [("content-type", "application/merge-patch+json")];
    assert_eq!(raw(&server, "PATCH", "/api/v1/nodes/n1/status", &patch, status.to_string()).await.0, StatusCode::OK);
    custom::until(&server, SERVICE, |code, service| code == 200 && service["status"]["conditions"][0]["reason"] == "Local").await;
    custom::until(&server, "/apis/metrics.k8s.io", |code, group| code == 200 && group["preferredVersion"]["version"] == "v1beta1").await;
    let listed = [r#""nodes" ["get","list"]"#, r#""pods" ["get","list"]"#].map(String::from).to_vec();
    custom::until(&server, &format!("{METRICS}/nodes"), |code, _| code == 200).await;
    assert_eq!(discovered(&server).await, (true, listed.clone()));
    let (code, role) = raw_json(&server, "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader", &[], "").await;
    assert_eq!((code, &role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"]), (StatusCode::OK, &json!("true")));

    // What clients explain and check by.
    let (_, document) = raw_json(&server, "GET", "/openapi/v3/apis/metrics.k8s.io/v1beta1", &[], "").await;
    let schemas = &document["components"]["schemas"];
    const PREFIX: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";
    assert_eq!(schemas[format!("{PREFIX}.PodMetrics")]["x-kubernetes-group-version-kind"][0]["kind"], "PodMetrics", "{document}");
    for name in
        [&format!("{PREFIX}.ContainerMetrics"), "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "io.k8s.apimachinery.pkg.api.resource.Quantity"]
    {
        assert!(schemas.get(name).is_some(), "{name}");
    }
    let (_, document) = raw_json(&server, "GET", "/openapi/v2", &[], "").await;
    let answer = &document["paths"]["/apis/metrics.k8s.io/v1beta1/nodes"]["get"]["responses"]["200"]["schema"]["$ref"];
    assert_eq!(answer, &format!("#/definitions/{PREFIX}.NodeMetricsList"));
    assert!(document["definitions"].get(format!("{PREFIX}.NodeMetrics")).is_some());

    // Nodes: the one that answers, measured over the time between two answers.
    let (_, list) = raw_json(&server, "GET", &format!("{METRICS}/nodes"), &[], "").await;
    assert_eq!((&list["kind"], &list["items"].as_array().unwrap().len()), (&json!("NodeMetricsList"), &1));
    let shown = &list["items"][0];
    assert_eq!(
        (&shown["metadata"]["name"], &shown["metadata"]["labels"]["zone"], &shown["usage"]["memory"]),
        (&json!("n1"), &json!("a"), &json!("4Mi"))
    );
    let cpu = api::quantity::Quantity::from_value(&shown["usage"]["cpu"]).unwrap().milli();
    assert!((1..=1000).contains(&cpu), "a second of CPU in at least a second: {cpu}");
    assert_eq!(asked.load(SeqCst), 2, "what is known serves all");
    let none = format!("{METRICS}/nodes?labelSelector=zone%3Db");
    assert_eq!(raw_json(&server, "GET", &none, &[], "").await.1["items"], json!([]));
    let (code, missing) = raw_json(&server, "GET", &format!("{METRICS}/nodes/silent"), &[], "").await;
    assert_eq!((code, &missing["message"]), (StatusCode::NOT_FOUND, &json!("nodemetrics.metrics.k8s.io \"silent\" not found")));

    // Pods: those that run.
    let pods = "/api/v1/namespaces/test/pods";
    for (name, phase) in [("web", "Running"), ("waits", "Pending"), ("unknown", "Running")] {
        post(&server, "/api/v1/namespaces/test/serviceaccounts", json!({"metadata": {"name": name}})).await;
        post(
            &server,
            pods,
            json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "main", "image": "x"}]}}),
        )
        .await;
        let status = json!({"status": {"phase": phase}});
        assert_eq!(raw(&server, "PATCH", &format!("{pods}/{name}/status"), &patch, status.to_string()).await.0, StatusCode::OK);
    }
    let (_, list) = raw_json(&server, "GET", &format!("{METRICS}/pods"), &[], "").await;
    let items = list["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["metadata"]["name"], &items[0]["metadata"]["namespace"]), (1, &json!("web"), &json!("test")));
    let (code, one) = raw_json(&server, "GET", &format!("{METRICS}/namespaces/test/pods/web"), &[], "").await;
    assert_eq!((code, &one["kind"], &one["containers"][1]["name"]), (StatusCode::OK, &json!("PodMetrics"), &json!("side")));
    assert_eq!(one["containers"][1]["usage"]["memory"], "1Mi");
    let (_, selected) = raw_json(&server, "GET", &format!("{METRICS}/namespaces/test/pods?fieldSelector=metadata.name%3Dwaits"), &[], "").await;
    assert_eq!(selected["items"], json!([]));
    let (code, missing) = raw_json(&server, "GET", &format!("{METRICS}/namespaces/test/pods/waits"), &[], "").await;
    assert_eq!((code, &missing["message"]), (StatusCode::NOT_FOUND, &json!("podmetrics.metrics.k8s.io \"test/waits\" not found")));
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, table) = raw_json(&server, "GET", &format!("{METRICS}/namespaces/test/pods"), &table, "").await;
    let columns: Vec<&str> = table["columnDefinitions"].as_array().unwrap().iter().filter_map(|column| column["name"].as_str()).collect();
    assert_eq!((columns, &table["rows"][0]["cells"][2]), (vec!["Name", "cpu", "memory", "Window"], &json!("2Mi")));
    for (method, path) in [("DELETE", "pods/web"), ("POST", "pods"), ("GET", "pods?watch=1")] {
        let (code, ..) = raw(&server, method, &format!("{METRICS}/namespaces/test/{path}"), &[], "").await;
        assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }

    // Somebody installs metrics-server: its Service is asked, and nobody here answers any more.
    let theirs = json!({"spec": {"service": {"name": "metrics-server", "namespace": "kube-system"}, "insecureSkipTLSVerify": true}});
    assert_eq!(raw(&server, "PATCH", SERVICE, &patch, theirs.to_string()).await.0, StatusCode::OK);
    let refused = async {
        while raw(&server, "GET", &format!("{METRICS}/nodes"), &[], "").await.0 != StatusCode::SERVICE_UNAVAILABLE {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("the Service is asked");
    custom::until(&server, SERVICE, |_, service| service["spec"]["service"]["name"] == "metrics-server").await;
    // And removes it again.
    assert_eq!(raw(&server, "DELETE", SERVICE, &[], "").await.0, StatusCode::OK);
    custom::until(&server, SERVICE, |code, service| code == 200 && service["spec"]["service"].is_null()).await;
    custom::until(&server, &format!("{METRICS}/nodes"), |code, _| code == 200).await;
    assert_eq!(discovered(&server).await, (true, listed));
}
