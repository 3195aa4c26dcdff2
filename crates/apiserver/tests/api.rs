//! The API as a client sees it: `kube` over the in-process service, on the memory store.

use apiserver::{Config, Server, User};
use futures::{StreamExt, TryStreamExt};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use store::memory::Memory;

#[path = "api/admission.rs"]
mod admission;
#[path = "api/aggregation.rs"]
mod aggregation;
#[path = "api/behind.rs"]
mod behind;
#[path = "api/conversion.rs"]
mod conversion;
#[path = "api/custom.rs"]
mod custom;
#[path = "api/life.rs"]
mod life;
#[path = "api/resource_metrics.rs"]
mod resource_metrics;

/// A server with the namespace `test`, and a client that may do all.
async fn server() -> (Arc<Server>, Client) {
    let server = Server::new(Config::new(Arc::new(Memory::default()))).await.expect("the server starts");
    let admin = User::new("kubernetes-admin", &["system:masters", "system:authenticated"]);
    let client = Client::new(server.local_service(admin), "default");
    tokio::time::timeout(Duration::from_secs(20), async {
        while !server.health.is_bootstrapped() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the first objects are made in time");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": "test"}}))).await.expect("the namespace is made");
    (server, client)
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a well-formed object")
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    object(json!({"metadata": {"name": name, "labels": {"app": value}}, "data": {"k": value}}))
}

fn deployment(name: &str) -> Deployment {
    object(json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}}))
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": "p"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}], "automountServiceAccountToken": false}});
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    object(pod)
}

/// The service account that pods of the namespace run as, which a controller makes in a whole cluster.
async fn with_service_account(client: &Client) {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "test");
    accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}}))).await.expect("the account is made");
}

/// A request as it is, and its answer.
async fn raw(
    server: &Arc<Server>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<String>,
) -> (StatusCode, http::HeaderMap, Vec<u8>) {
    use tower::Service;
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::from(body.into()));
    let admin = User::new("kubernetes-admin", &["system:masters"]);
    let answer = server.local_service(admin).call(request.body(body).expect("a well-formed request")).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    (parts.status, parts.headers, bytes.to_vec())
}

async fn raw_json(server: &Arc<Server>, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<String>) -> (StatusCode, Value) {
    let (code, _, bytes) = raw(server, method, path, headers, body).await;
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&bytes))))
}

fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("not an API error: {other}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    let made = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(made.uid().is_some() && made.resource_version().is_some() && made.creation_timestamp().is_some());
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap_err()), (409, "AlreadyExists".into()));
    let read = maps.get("a").await.unwrap();
    assert_eq!(read, made);
    let mut changed = read.clone();
    changed.data.as_mut().unwrap().insert("k".into(), "2".into());
    let written = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(written.resource_version(), made.resource_version());
    assert_eq!(code(maps.replace("a", &PostParams::default(), &changed).await.unwrap_err()), (409, "Conflict".into()));
    let same = maps.replace("a", &PostParams::default(), &written).await.unwrap();
    assert_eq!(same.resource_version(), written.resource_version(), "a write that changes nothing makes no version");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await.unwrap_err()), (404, "NotFound".into()));
}

#[tokio::test]
async fn names_are_generated() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    let made = maps.create(&PostParams::default(), &object(json!({"metadata": {"generateName": "web-"}}))).await.unwrap();
    assert!(made.name_any().starts_with("web-") && made.name_any().len() == 9, "{}", made.name_any());
    assert_eq!(code(maps.create(&PostParams::default(), &object(json!({"metadata": {}}))).await.unwrap_err()).0, 422);
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("Not_A_Name", "1")).await.unwrap_err()).0, 422);
}

#[tokio::test]
async fn lists_come_in_pages_of_one_version() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    for i in 0..7 {
        maps.create(&PostParams::default(), &config_map(&format!("m{i}"), if i % 2 == 0 { "even" } else { "odd" })).await.unwrap();
    }
    let first = maps.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(first.items.len(), 3);
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    maps.delete("m4", &DeleteParams::default()).await.unwrap();
    let second = maps.list(&ListParams::default().limit(3).continue_token(first.metadata.continue_.as_deref().unwrap())).await.unwrap();
    assert_eq!(second.items.iter().map(|m| m.name_any()).collect::<Vec<_>>(), ["m3", "m4", "m5"], "the page shows the version of the first");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let third = maps.list(&ListParams::default().limit(3).continue_token(second.metadata.continue_.as_deref().unwrap())).await.unwrap();
    assert_eq!((third.items.len(), third.metadata.continue_), (1, None));
    let even = maps.list(&ListParams::default().labels("app in (even)")).await.unwrap();
    assert_eq!(even.items.len(), 3);
    let one = maps.list(&ListParams::default().fields("metadata.name=m1")).await.unwrap();
    assert_eq!(one.items.len(), 1);
    let bad = maps.list(&ListParams::default().fields("data.k=x")).await.unwrap_err();
    assert_eq!(code(bad).0, 400);
}

#[tokio::test]
async fn a_watch_sees_every_change_once() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let from = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let selected = WatchParams::default().labels("app=2").timeout(5);
    let mut all = maps.watch(&WatchParams::default().timeout(5), &from).await.unwrap().boxed();
    let mut some = maps.watch(&selected, &from).await.unwrap().boxed();
    let patch = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"app": value}}}));
    maps.patch("a", &PatchParams::default(), &patch("2")).await.unwrap();
    maps.patch("a", &PatchParams::default(), &patch("3")).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let name = |event: WatchEvent<ConfigMap>| match event {
        WatchEvent::Added(object) => format!("ADDED {}", object.labels()["app"]),
        WatchEvent::Modified(object) => format!("MODIFIED {}", object.labels()["app"]),
        WatchEvent::Deleted(object) => format!("DELETED {}", object.labels()["app"]),
        other => format!("{other:?}"),
    };
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(name(all.try_next().await.unwrap().unwrap()));
    }
    assert_eq!(seen, ["MODIFIED 2", "MODIFIED 3", "DELETED 3"]);
    let seen = [name(some.try_next().await.unwrap().unwrap()), name(some.try_next().await.unwrap().unwrap())];
    assert_eq!(seen, ["ADDED 2", "DELETED 2"], "what leaves the selection is deleted for its watchers");
}

#[tokio::test]
async fn a_watch_can_begin_with_what_is_there() {
    let (server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let path = "/api/v1/namespaces/test/configmaps?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let (code, _, bytes) = raw(&server, "GET", path, &[], "").await;
    assert_eq!(code, 200);
    let events: Vec<Value> = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!((&events[0]["type"], &events[0]["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn patches_of_every_kind_apply() {
    let (_server, client) = server().await;
    let deployments: Api<Deployment> = Api::namespaced(client, "test");
    let made = deployments.create(&PostParams::default(), &deployment("web")).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let merged = deployments.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}}))).await.unwrap();
    assert_eq!((merged.spec.as_ref().unwrap().replicas, merged.metadata.generation), (Some(2), Some(2)));
    let operations: json_patch::Patch =
        object(json!([{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "replace", "path": "/spec/replicas", "value": 3}]));
    let patched = deployments.patch("web", &PatchParams::default(), &Patch::<()>::Json(operations)).await.unwrap();
    assert_eq!(patched.spec.as_ref().unwrap().replicas, Some(3));
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "busybox"}]}}}});
    let both = deployments.patch("web", &PatchParams::default(), &Patch::Strategic(strategic)).await.unwrap();
    assert_eq!(both.spec.unwrap().template.spec.unwrap().containers.len(), 2);
    let stale = json!({"metadata": {"resourceVersion": made.resource_version()}, "spec": {"replicas": 9}});
    assert_eq!(code(deployments.patch("web", &PatchParams::default(), &Patch::Merge(stale)).await.unwrap_err()), (409, "Conflict".into()));
}

#[tokio::test]
async fn appliers_own_what_they_say() {
    let (server, client) = server().await;
    let path = "/api/v1/namespaces/test/configmaps/shared";
    let apply = [("content-type", "application/apply-patch+yaml")];
    let config = |value: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: shared\ndata:\n  k: {value}\n");
    let (code, _) = raw_json(&server, "PATCH", path, &apply, config("a")).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "an apply names its manager");
    let (code, made) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=one"), &apply, config("a")).await;
    assert_eq!((code, &made["metadata"]["managedFields"][0]["manager"]), (StatusCode::CREATED, &json!("one")), "{made}");
    let (code, again) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=one"), &apply, config("a")).await;
    assert_eq!(
        (code, &again["metadata"]["resourceVersion"]),
        (StatusCode::OK, &made["metadata"]["resourceVersion"]),
        "the same again is no new version"
    );
    let (code, refused) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=two"), &apply, config("b")).await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (StatusCode::CONFLICT, &json!(".data.k")), "{refused}");
    let (code, forced) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=two&force=true"), &apply, config("b")).await;
    assert_eq!((code, &forced["data"]["k"]), (StatusCode::OK, &json!("b")));

    // Others own what they change, and a write that says nothing new is no new version.
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    let mut map = maps.get("shared").await.unwrap();
    map.data.get_or_insert_default().insert("k".into(), "c".into());
    let manager = PostParams { field_manager: Some("three".into()), ..Default::default() };
    let changed = maps.replace("shared", &manager, &map).await.unwrap();
    assert!(changed.managed_fields().iter().all(|entry| entry.manager.as_deref() != Some("two")), "{changed:?}");
    let mut bare = changed.clone();
    bare.metadata.managed_fields = None;
    let same = maps.replace("shared", &manager, &bare).await.unwrap();
    assert_eq!((same.resource_version(), same.managed_fields()), (changed.resource_version(), changed.managed_fields()));
}

#[tokio::test]
async fn a_dry_run_leaves_no_trace() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let would = maps.create(&dry, &config_map("a", "1")).await.unwrap();
    assert!(would.uid().is_some() && would.resource_version().is_none());
    assert_eq!(code(maps.get("a").await.unwrap_err()).0, 404);
    let made = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let mut changed = made.clone();
    changed.data.as_mut().unwrap().insert("k".into(), "2".into());
    assert_eq!(maps.replace("a", &dry, &changed).await.unwrap().data, changed.data);
    maps.delete("a", &DeleteParams::default().dry_run()).await.unwrap();
    assert_eq!(maps.get("a").await.unwrap(), made);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    let held = object(json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}}));
    maps.create(&PostParams::default(), &held).await.unwrap();
    let marked = maps.delete("a", &DeleteParams::default()).await.unwrap().left().expect("the object, not a Status");
    assert!(marked.metadata.deletion_timestamp.is_some());
    let error = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap_err();
    assert!(error.to_string().contains("object is being deleted"), "{error}");
    maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}}))).await.unwrap();
    assert_eq!(code(maps.get("a").await.unwrap_err()).0, 404);
    maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    let foreground = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    maps.delete("b", &foreground).await.unwrap();
    assert_eq!(maps.get("b").await.unwrap().finalizers(), ["foregroundDeletion"]);
}

#[tokio::test]
async fn the_status_is_written_on_its_own_path() {
    let (_server, client) = server().await;
    let deployments: Api<Deployment> = Api::namespaced(client, "test");
    deployments.create(&PostParams::default(), &deployment("web")).await.unwrap();
    let both = json!({"spec": {"replicas": 7}, "status": {"replicas": 4, "observedGeneration": 1}});
    let written = deployments.patch_status("web", &PatchParams::default(), &Patch::Merge(both.clone())).await.unwrap();
    assert_eq!((written.spec.unwrap().replicas, written.status.unwrap().replicas), (Some(1), Some(4)));
    let written =
        deployments.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 7}, "status": {"replicas": 9}}))).await.unwrap();
    assert_eq!((written.spec.unwrap().replicas, written.status.unwrap().replicas), (Some(7), Some(4)));
    let scale = deployments.get_scale("web").await.unwrap();
    assert_eq!(
        (scale.spec.unwrap().replicas, scale.status.clone().unwrap().replicas, scale.status.unwrap().selector),
        (Some(7), 4, Some("app=web".into()))
    );
    deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}}))).await.unwrap();
    assert_eq!(deployments.get("web").await.unwrap().spec.unwrap().replicas, Some(2));
}

#[tokio::test]
async fn pods_are_bound_and_deleted_with_grace() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let pods: Api<Pod> = Api::namespaced(client, "test");
    pods.create(&PostParams::default(), &pod("waiting", None)).await.unwrap();
    pods.delete("waiting", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(pods.get("waiting").await.unwrap_err()).0, 404, "a pod without a node goes at once");
    pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}).to_string();
    let (code_, answer) =
        raw_json(&server, "POST", "/api/v1/namespaces/test/pods/p/binding", &[("content-type", "application/json")], binding.clone()).await;
    assert_eq!((code_.as_u16(), answer["status"].as_str()), (201, Some("Success")), "{answer}");
    let (code_, _) = raw_json(&server, "POST", "/api/v1/namespaces/test/pods/p/binding", &[("content-type", "application/json")], binding).await;
    assert_eq!(code_, 409);
    assert_eq!(pods.get("p").await.unwrap().spec.unwrap().node_name.as_deref(), Some("n1"));
    assert_eq!(pods.list(&ListParams::default().fields("spec.nodeName=n1")).await.unwrap().items.len(), 1);
    let marked = pods.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(pods.get("p").await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn evictions_ask_the_budget() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "test");
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> = Api::namespaced(client, "test");
    budgets
        .create(
            &PostParams::default(),
            &object(json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}})),
        )
        .await
        .unwrap();
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    budgets.patch_status("b", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    for name in ["p1", "p2"] {
        pods.create(&PostParams::default(), &pod(name, Some("n"))).await.unwrap();
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(running)).await.unwrap();
    }
    let evict = async |name: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}).to_string();
        raw_json(&server, "POST", &format!("/api/v1/namespaces/test/pods/{name}/eviction"), &[("content-type", "application/json")], body).await
    };
    let (code_, answer) = evict("p1").await;
    assert_eq!(code_, 201, "{answer}");
    let (code_, answer) = evict("p2").await;
    assert_eq!((code_.as_u16(), answer["message"].as_str()), (429, Some("Cannot evict pod as it would violate the pod's disruption budget.")));
    assert!(pods.get("p1").await.unwrap().metadata.deletion_timestamp.is_some());
    assert!(pods.get("p2").await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn namespaces_end_when_they_are_finalized() {
    let (server, client) = server().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let marked = namespaces.delete("test", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap_err()).0, 403);
    let body = json!({"metadata": {"name": "test"}, "spec": {"finalizers": []}}).to_string();
    let (code_, _) = raw_json(&server, "PUT", "/api/v1/namespaces/test/finalize", &[("content-type", "application/json")], body).await;
    assert_eq!(code_, 200);
    assert_eq!(code(namespaces.get("test").await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn tables_and_metadata_are_made_on_demand() {
    let (server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let path = "/api/v1/namespaces/test/configmaps";
    let (_, table) = raw_json(&server, "GET", path, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "").await;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")), "{table}");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let (_, list) = raw_json(&server, "GET", path, &[("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")], "").await;
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("PartialObjectMetadataList"), &json!("a")));
    let (_, plain) = raw_json(&server, "GET", path, &[], "").await;
    assert_eq!((&plain["kind"], plain["items"][0].get("kind")), (&json!("ConfigMapList"), None));
    let (_, headers, text) = raw(&server, "GET", &format!("{path}/a"), &[("accept", "application/yaml")], "").await;
    assert_eq!(headers[header::CONTENT_TYPE], "application/yaml");
    assert!(String::from_utf8(text).unwrap().contains("kind: ConfigMap"));
}

#[tokio::test]
async fn bodies_are_checked_field_by_field() {
    let (server, _client) = server().await;
    let path = "/api/v1/namespaces/test/configmaps";
    let body = json!({"metadata": {"name": "a"}, "dataz": {"k": "v"}}).to_string();
    let json_type = [("content-type", "application/json")];
    let (code, answer) = raw_json(&server, "POST", &format!("{path}?fieldValidation=Strict"), &json_type, body.clone()).await;
    assert_eq!(code, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("unknown field \"dataz\""), "{answer}");
    let (code, headers, _) = raw(&server, "POST", path, &json_type, body).await;
    assert_eq!(code, 201);
    assert_eq!(headers[header::WARNING], "299 - \"unknown field \\\"dataz\\\"\"");
    let (code, _) = raw_json(&server, "POST", path, &json_type, "{\"metadata\": 3}").await;
    assert_eq!(code, 400);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\ndata:\n  k: v\n";
    let (code, answer) = raw_json(&server, "POST", path, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!((code.as_u16(), &answer["data"]["k"]), (201, &json!("v")));
    let (code, answer) = raw_json(&server, "POST", path, &json_type, " ".repeat(4 << 20)).await;
    assert_eq!(code, 413, "{answer}");
}

#[tokio::test]
async fn what_is_not_there_is_refused_as_kubernetes_does() {
    let (server, _client) = server().await;
    for (method, path, wanted, reason) in [
        ("GET", "/api/v1/namespaces/test/foos", 404, "NotFound"),
        ("GET", "/apis/apps/v9/deployments", 404, "NotFound"),
        ("GET", "/api/v1/namespaces/test/nodes", 404, "NotFound"),
        ("PUT", "/api/v1/namespaces/test/configmaps", 405, "MethodNotAllowed"),
        ("POST", "/api/v1/namespaces/test/configmaps/a", 405, "MethodNotAllowed"),
        ("BREW", "/api/v1/namespaces/test/configmaps", 405, "MethodNotAllowed"),
        ("DELETE", "/api/v1/namespaces", 405, "MethodNotAllowed"),
    ] {
        let (code, answer) = raw_json(&server, method, path, &[], "").await;
        assert_eq!((code.as_u16(), answer["reason"].as_str()), (wanted, Some(reason)), "{method} {path}");
    }
    let (code, _, text) = raw(&server, "GET", "/apis/example.com/v1/foos", &[], "").await;
    assert_eq!((code.as_u16(), text.as_slice()), (404, b"404 page not found\n".as_slice()));
    let (code, _) = raw_json(&server, "GET", "/api/v1/pods", &[("accept", "image/png")], "").await;
    assert_eq!(code, 406);
    let (code, _) = raw_json(&server, "POST", "/api/v1/namespaces/test/configmaps", &[("content-type", "text/plain")], "x").await;
    assert_eq!(code, 415);
    let (code, _, text) = raw(&server, "GET", "/readyz?verbose", &[], "").await;
    assert!(code == 200 && text.ends_with(b"readyz check passed\n"));
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "test");
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        maps.create(&PostParams::default(), &config_map(name, label)).await.unwrap();
    }
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=x")).await.unwrap();
    let left = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.iter().map(|map| map.name_any()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn discovery_is_that_of_kubernetes() {
    let (server, _client) = server().await;
    let golden: Value = serde_json::from_str(include_str!("../../api/facts/discovery.json")).unwrap();
    assert!(golden.is_object() || golden.is_array());
    let (_, groups) = raw_json(&server, "GET", "/apis", &[], "").await;
    assert_eq!(groups["groups"][1]["name"], "apps");
    let (_, headers, bytes) =
        raw(&server, "GET", "/apis", &[("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")], "")
            .await;
    assert_eq!(headers[header::CONTENT_TYPE], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(document["items"][1]["metadata"]["name"], "apps");
    let (_, index) = raw_json(&server, "GET", "/openapi/v3", &[], "").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (_, document) = raw_json(&server, "GET", url, &[], "").await;
    assert!(document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"].is_object());
    assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"].is_object());
}
