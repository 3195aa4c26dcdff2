//! Groups that another API server serves: discovered, asked in the user's name, refused while nobody answers.

use super::{behind::behind, *};
use apiserver::keys;
use base64::{Engine, engine::general_purpose::STANDARD};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const GROUP: &str = "/apis/colours.example.dev/v1";

async fn put(server: &Arc<Server>, group: &str, resource: &str, object: Value) {
    // As it is: what leads to this machine itself would be refused.
    let key = keys::object(group, resource, "test", object["metadata"]["name"].as_str().unwrap());
    server.store.commit(store::Write::Create { key, value: object.to_string().into() }).await.expect("it is stored");
}

fn available(service: &Value) -> (String, String) {
    let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let condition = conditions.into_iter().find(|condition| condition["type"] == "Available").unwrap_or_default();
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_string();
    (text("status"), text("reason"))
}

/// A server with a front-proxy certificate, and the certificate's directory.
async fn server_with_front_proxy() -> (Arc<Server>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = pki::Authority::load_or_create_named(directory.path(), "front-proxy-ca", "front-proxy-ca").expect("an authority");
    authority.issue_kept(directory.path(), "front-proxy-client", &pki::Identity::front_proxy_client()).expect("a certificate");
    let file = |end: &str| directory.path().join(format!("front-proxy-client.{end}"));
    let mut config = Config::new(Arc::new(Memory::default()));
    config.aggregation.client_files = Some(Arc::new(pki::reload::CertificateFiles::open(&file("crt"), &file("key"), "").expect("files")));
    config.aggregation.authority_pem = Some(authority.certificate_pem().into());
    config.authentication.client_authorities_pem = Some(pki::Authority::generate("kubernetes").expect("an authority").certificate_pem().into());
    let server = Server::new(config).await.expect("the server starts");
    custom::until(&server, "/api/v1/namespaces/default", |code, _| code == 200 && server.health.is_bootstrapped()).await;
    assert_eq!(raw(&server, "POST", "/api/v1/namespaces", &[], json!({"metadata": {"name": "test"}}).to_string()).await.0, 201);
    (server, directory)
}

#[tokio::test]
async fn own_groups_and_those_of_definitions_are_local_and_available() {
    let (server, _client) = server().await;
    let apps = custom::until(&server, &format!("{SERVICES}/v1.apps"), |code, service| code == 200 && available(service).0 == "True").await;
    assert_eq!((available(&apps).1.as_str(), &apps["spec"]["groupPriorityMinimum"]), ("Local", &json!(17800)));
    custom::until(&server, &format!("{SERVICES}/v1."), |code, _| code == 200).await;
    let (code, made) = raw_json(&server, "POST", custom::DEFINITIONS, &[], custom::definition().to_string()).await;
    assert_eq!(code, 201, "{made}");
    let of_definition = format!("{SERVICES}/v1.example.dev");
    custom::until(&server, &of_definition, |code, service| code == 200 && available(service).0 == "True").await;
    assert_eq!(raw(&server, "DELETE", &format!("{}/gadgets.example.dev", custom::DEFINITIONS), &[], "").await.0, 200);
    custom::until(&server, &of_definition, |code, _| code == 404).await;
}

#[tokio::test]
async fn another_server_answers_for_its_group() {
    let (server, _directory) = server_with_front_proxy().await;
    let behind = behind("paint.test.svc", |parts, body| match parts.uri.path() {
        GROUP => (
            StatusCode::OK,
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "colours.example.dev/v1", "resources": [
                {"name": "colours", "singularName": "colour", "namespaced": false, "kind": "Colour", "verbs": ["get", "create"]}]}),
        ),
        "/openapi/v3" => (
            StatusCode::OK,
            json!({"paths": {"apis/colours.example.dev/v1": {"serverRelativeURL": "/openapi/v3/apis/colours.example.dev/v1?hash=1"}}}),
        ),
        "/openapi/v3/apis/colours.example.dev/v1" => (StatusCode::OK, json!({"openapi": "3.0.0"})),
        "/openapi/v2" => (
            StatusCode::OK,
            json!({"swagger": "2.0", "definitions": {"dev.Colour": {"type": "object"}}, "paths": {
                "/apis/colours.example.dev/v1/colours": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/dev.Colour"}}}}},
                "/api/v1/pods": {"get": {"operationId": "notIts"}}}}),
        ),
        _ => (StatusCode::IM_A_TEAPOT, json!({"kind": "Colour", "got": body})),
    })
    .await;
    let service = json!({"metadata": {"name": "v1.colours.example.dev"}, "spec": {"group": "colours.example.dev", "version": "v1", "groupPriorityMinimum": 900,
        "versionPriority": 10, "caBundle": STANDARD.encode(&behind.authority), "service": {"namespace": "test", "name": "paint", "port": 443}}});
    assert_eq!(raw(&server, "POST", SERVICES, &[], service.to_string()).await.0, 201);
    let path = format!("{SERVICES}/v1.colours.example.dev");
    custom::until(&server, &path, |_, service| available(service) == ("False".into(), "ServiceNotFound".into())).await;
    let (code, _, text) = raw(&server, "GET", &format!("{GROUP}/colours/red"), &[], "").await;
    assert_eq!((code, text.as_slice()), (StatusCode::SERVICE_UNAVAILABLE, b"service unavailable\n".as_slice()));

    let metadata = |name: &str| json!({"name": name, "namespace": "test", "uid": name, "labels": {"kubernetes.io/service-name": "paint"}});
    put(
        &server,
        "",
        "services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("paint"), "spec": {"type": "ClusterIP", "ports": [{"port": 443}]}}),
    )
    .await;
    custom::until(&server, &path, |_, service| available(service) == ("False".into(), "EndpointsNotFound".into())).await;
    put(&server, "discovery.k8s.io", "endpointslices", json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("paint-1"),
        "addressType": "IPv4", "ports": [{"port": behind.address.port()}], "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]})).await;
    custom::until(&server, &path, |_, service| available(service) == ("True".into(), "Passed".into())).await;

    // Discovery tells of it, in both forms, behind the server's own groups.
    let (_, groups) = raw_json(&server, "GET", "/apis", &[], "").await;
    assert_eq!(groups["groups"].as_array().unwrap().last().unwrap()["name"], "colours.example.dev");
    let (code, group) = raw_json(&server, "GET", "/apis/colours.example.dev", &[], "").await;
    assert_eq!((code, &group["preferredVersion"]["version"]), (StatusCode::OK, &json!("v1")));
    let aggregated = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let (_, list) = raw_json(&server, "GET", "/apis", &aggregated, "").await;
    let version = &list["items"].as_array().unwrap().last().unwrap()["versions"][0];
    assert_eq!((&version["freshness"], &version["resources"][0]["resource"]), (&json!("Current"), &json!("colours")));
    let (_, index) = raw_json(&server, "GET", "/openapi/v3", &[], "").await;
    let place = index["paths"]["apis/colours.example.dev/v1"]["serverRelativeURL"].as_str().unwrap().to_string();
    assert_eq!(raw_json(&server, "GET", &place, &[], "").await.1["openapi"], "3.0.0");
    let in_one =
        |document: &Value| (document["paths"]["/apis/colours.example.dev/v1/colours"].is_object(), document["definitions"]["dev.Colour"].is_object());
    let (_, document) = raw_json(&server, "GET", "/openapi/v2", &[], "").await;
    assert_eq!(
        (in_one(&document), &document["paths"]["/api/v1/pods"]["get"]["operationId"]),
        ((true, true), &json!("listCoreV1PodForAllNamespaces"))
    );

    // A request goes there as it is, but for who asks.
    behind.asked.lock().clear();
    let headers = [
        ("authorization", "Bearer secret"),
        ("x-remote-user", "somebody-else"),
        ("impersonate-user", "jane"),
        ("impersonate-group", "system:masters"),
        ("content-type", "application/json"),
    ];
    let (code, answer) = raw_json(&server, "POST", &format!("{GROUP}/colours?dryRun=All"), &headers, r#"{"a":1}"#).await;
    assert_eq!((code, &answer["got"]["a"]), (StatusCode::IM_A_TEAPOT, &json!(1)), "{answer}");
    let asked = behind.asked.lock().pop().expect("it was asked");
    assert_eq!(
        (asked.line.as_str(), asked.certificate.as_deref()),
        ("POST /apis/colours.example.dev/v1/colours?dryRun=All", Some("front-proxy-client"))
    );
    let all = |name: &str| asked.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-remote-user"), all("x-remote-group")), (vec!["jane"], vec!["system:masters", "system:authenticated"]));
    assert!(all("authorization").is_empty() && all("impersonate-user").is_empty());

    // Who may not ask here is not passed on.
    let (code, _) = raw_json(&server, "GET", &format!("{GROUP}/colours/red"), &[("impersonate-user", "nobody")], "").await;
    assert_eq!(code, 403);
    let (_, map) = raw_json(&server, "GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication", &[], "").await;
    assert_eq!(map["data"]["requestheader-allowed-names"], r#"["front-proxy-client"]"#);

    // When it goes, its answers go with it.
    drop(behind);
    custom::until(&server, &path, |_, service| available(service).0 == "True").await;
    assert_eq!(raw(&server, "GET", &format!("{GROUP}/colours/red"), &[], "").await.0, 503);
    assert_eq!(raw(&server, "DELETE", &path, &[], "").await.0, 200);
    let gone = async {
        while raw(&server, "GET", &format!("{GROUP}/colours/red"), &[], "").await.0 != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("a group that nobody serves is not found");
    custom::until(&server, "/openapi/v2", |_, document| in_one(document) == (false, false)).await;
}
