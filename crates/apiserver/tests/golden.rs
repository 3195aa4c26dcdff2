//! What the server says of itself beside what Kubernetes v1.36 says: discovery in both forms, the columns of tables, the types
//! of OpenAPI. The facts are data of the project (`crates/api/facts`); here they are compared with what clients are given.

use apiserver::{Config, Server, User};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use store::memory::Memory;

const AGGREGATED: &str = include_str!("../../api/facts/discovery.json");
const DOCUMENTS: &str = include_str!("../../api/facts/discovery-documents.json");
const COLUMNS: &str = include_str!("../../api/facts/table-columns.json");
const SCHEMA: &str = include_str!("../../api/facts/schema.json");
const PATHS: &str = include_str!("../../api/facts/paths.json");

async fn server() -> Arc<Server> {
    let server = Server::new(Config::new(Arc::new(Memory::default()))).await.expect("the server starts");
    let ready = async {
        while !server.health.is_bootstrapped() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("the first objects are made in time");
    server
}

async fn get(server: &Arc<Server>, path: &str, accept: &str) -> Value {
    use tower::Service;
    let request = Request::get(path).header("accept", accept).body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a well-formed request");
    let answer = server.local_service(User::new("admin", &["system:masters"])).call(request).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    assert_eq!(parts.status, 200, "{path}: {}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{path} is not JSON"))
}

fn facts<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("the facts are JSON")
}

/// Each difference of two documents by its path: a failure that shows two whole documents shows nothing.
fn differences(path: &str, wanted: &Value, given: &Value, found: &mut Vec<String>) {
    match (wanted, given) {
        (Value::Object(wanted), Value::Object(given)) => {
            let keys: BTreeSet<&String> = wanted.keys().chain(given.keys()).collect();
            for key in keys {
                differences(&format!("{path}.{key}"), wanted.get(key).unwrap_or(&Value::Null), given.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(wanted), Value::Array(given)) if wanted.len() == given.len() => {
            wanted.iter().zip(given).enumerate().for_each(|(i, (wanted, given))| differences(&format!("{path}[{i}]"), wanted, given, found));
        }
        (wanted, given) if wanted == given => {}
        (wanted, given) => found.push(format!("{path}: wanted {wanted}, given {given}")),
    }
}

fn assert_same(what: &str, wanted: &Value, given: &Value) {
    let mut found = vec![];
    differences(what, wanted, given, &mut found);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.iter().take(20).cloned().collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn discovery_is_the_same_in_both_forms() {
    let server = server().await;
    for (path, wanted) in facts::<Map<String, Value>>(DOCUMENTS) {
        assert_same(&path, &wanted, &get(&server, &path, "application/json").await);
    }
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut groups = vec![];
    for path in ["/api", "/apis"] {
        let document = get(&server, path, accept).await;
        assert_eq!((&document["kind"], &document["apiVersion"]), (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2")));
        groups.extend(document["items"].as_array().cloned().unwrap_or_default());
    }
    assert_same("aggregated", &facts::<Value>(AGGREGATED), &Value::Array(groups));
}

#[tokio::test]
async fn every_table_has_the_columns_of_kubernetes_and_a_cell_for_each() {
    let server = server().await;
    let (catalogue, mut rows_seen) = (api::catalogue::Catalogue::built_in(), 0);
    for (resource, wanted) in facts::<BTreeMap<String, Value>>(COLUMNS) {
        let path = if resource.matches('/').count() == 1 { format!("/api/{resource}") } else { format!("/apis/{resource}") };
        let table = get(&server, &path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
        let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
        let given: Vec<Value> = columns.iter().map(|column| json!([column["name"], column["type"], column["format"], column["priority"]])).collect();
        assert_same(&resource, &wanted, &Value::Array(given));
        let mut parts = resource.rsplit('/');
        let (name, _, group) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
        let unnamed = catalogue.resource(group, name).map_or(0, |kind| kind.unnamed_cells);
        for row in table["rows"].as_array().into_iter().flatten() {
            rows_seen += 1;
            assert_eq!(row["cells"].as_array().map(Vec::len), Some(columns.len() + unnamed), "{resource}: {row}");
        }
    }
    assert!(rows_seen > 100, "the objects of a new cluster are rows: {rows_seen}");
}

/// The fields of a type: name to what it is, references by the name of the type alone.
fn fields(schema: &Value) -> BTreeMap<String, String> {
    fn of(schema: &Value) -> String {
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        match (reference, schema["type"].as_str().unwrap_or_default()) {
            (Some(reference), _) => reference.rsplit('/').next().unwrap_or_default().to_string(),
            (None, "array") => format!("[{}]", of(&schema["items"])),
            (None, "object") if schema["additionalProperties"].is_object() => format!("map of {}", of(&schema["additionalProperties"])),
            (None, type_) => type_.to_string(),
        }
    }
    schema["properties"].as_object().into_iter().flatten().map(|(name, field)| (name.clone(), of(field))).collect()
}

#[tokio::test]
async fn open_api_knows_every_type_with_its_fields() {
    let server = server().await;
    let wanted: BTreeMap<String, Value> = facts(SCHEMA);
    let v2 = get(&server, "/openapi/v2", "application/json").await;
    let given = v2["definitions"].as_object().cloned().unwrap_or_default();
    assert_eq!(given.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, schema) in &wanted {
        assert_eq!(fields(&given[name]), fields(schema), "{name}");
    }
    // Version 3 has a document for each group and version, and each is whole: every reference leads somewhere.
    let index = get(&server, "/openapi/v3", "application/json").await;
    let mut kinds_seen = BTreeSet::new();
    for (name, place) in index["paths"].as_object().into_iter().flatten() {
        let document = get(&server, place["serverRelativeURL"].as_str().unwrap_or_default(), "application/json").await;
        let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
        for (type_, schema) in &schemas {
            assert_eq!(Some(fields(schema)), wanted.get(type_).map(fields), "{name}: {type_}");
            kinds_seen.extend(schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten().map(Value::to_string));
        }
        for reference in document.to_string().split("#/components/schemas/").skip(1) {
            let type_ = reference.split('"').next().unwrap_or_default();
            assert!(schemas.contains_key(type_), "{name} refers to {type_}");
        }
    }
    for group in facts::<Vec<Value>>(AGGREGATED) {
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                let kind = json!({"group": name, "kind": resource["responseKind"]["kind"], "version": version["version"]}).to_string();
                assert!(kinds_seen.contains(&kind), "{kind} has no type");
            }
        }
    }
}

/// Code generators make a function of each.
#[tokio::test]
async fn open_api_knows_every_path_with_what_can_be_done_there() {
    let server = server().await;
    let v2 = get(&server, "/openapi/v2", "application/json").await;
    let wanted: BTreeMap<String, BTreeMap<String, Option<String>>> = facts(PATHS);
    let (mut given, mut ids) = (BTreeMap::new(), BTreeSet::new());
    for (path, item) in v2["paths"].as_object().into_iter().flatten() {
        let operations = item.as_object().into_iter().flatten().filter(|(method, _)| *method != "parameters");
        for (method, operation) in operations {
            assert!(ids.insert(operation["operationId"].to_string()), "{method} {path}: {} is there already", operation["operationId"]);
            let action = operation["x-kubernetes-action"].as_str().map(String::from);
            given.entry(path.clone()).or_insert_with(BTreeMap::new).insert(method.clone(), action);
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|(path, can)| given.get(*path) != Some(can)).collect();
    let other: Vec<_> = given.iter().filter(|(path, can)| wanted.get(*path) != Some(can)).collect();
    assert!(missing.is_empty() && other.is_empty(), "wanted are {missing:?}, there are {other:?}");
    let exec = &v2["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"]["parameters"];
    let names: Vec<_> = exec.as_array().into_iter().flatten().filter_map(|parameter| parameter["name"].as_str()).collect();
    assert_eq!(names, ["command", "container", "name", "namespace", "stderr", "stdin", "stdout", "tty"]);
}
