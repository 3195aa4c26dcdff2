//! Kinds that clients define: from the definition to the last object, through every door of the API.

use super::*;

const GADGETS: &str = "/apis/example.dev/v1/namespaces/test/gadgets";
pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gadgets.example.dev";

pub fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.replicas <= 5 || self.?color.orValue('') == 'red'", "message": "only red ones are many"}],
            "properties": {
                "replicas": {"type": "integer", "default": 1, "minimum": 0, "maximum": 10},
                "color": {"type": "string", "enum": ["red", "blue"]}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}});
    let subresources = json!({"status": {}, "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "gadgets.example.dev"},
        "spec": {"group": "example.dev", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget", "shortNames": ["gd"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": subresources},
                {"name": "v1beta1", "served": true, "storage": false, "schema": schema, "subresources": subresources,
                    "deprecated": true, "deprecationWarning": "gadgets of v1beta1 are old"}]}})
}

fn gadget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.dev/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": spec})
}

/// Asks until the answer is as wanted.
pub async fn until(server: &Arc<Server>, path: &str, wanted: impl Fn(StatusCode, &Value) -> bool) -> Value {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let (code, answer) = raw_json(server, "GET", path, &[], "").await;
            if wanted(code, &answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("{path} never answers as it should"))
}

/// A server that knows gadgets.
async fn with_gadgets() -> Arc<Server> {
    let (server, _client) = server().await;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = raw_json(&server, "POST", path, &[], definition().to_string()).await;
    assert_eq!(code, 201, "{made}");
    let is_established = |definition: &Value| {
        let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
    };
    until(&server, DEFINITION, |_, definition| is_established(definition)).await;
    assert_eq!(raw(&server, "GET", "/apis/example.dev/v1", &[], "").await.0, 200, "what is established is served");
    server
}

#[tokio::test]
async fn a_defined_kind_is_discovered_defaulted_pruned_and_validated() {
    let server = with_gadgets().await;
    let (_, group) = raw_json(&server, "GET", "/apis/example.dev", &[], "").await;
    assert_eq!((&group["preferredVersion"]["version"], group["versions"].as_array().map(Vec::len)), (&json!("v1"), Some(2)), "{group}");
    let (_, resources) = raw_json(&server, "GET", "/apis/example.dev/v1", &[], "").await;
    let names: Vec<&str> = resources["resources"].as_array().unwrap().iter().filter_map(|resource| resource["name"].as_str()).collect();
    assert!(["gadgets", "gadgets/status", "gadgets/scale"].iter().all(|name| names.contains(name)), "{names:?}");

    let odd = gadget("odd", json!({"color": "red", "unknown": 1})).to_string();
    let (code, made) = raw_json(&server, "POST", GADGETS, &[], odd.clone()).await;
    assert_eq!((code, &made["spec"]), (StatusCode::CREATED, &json!({"color": "red", "replicas": 1})), "{made}");
    assert_eq!(made["metadata"]["generation"], 1);
    let (code, refused) = raw_json(&server, "POST", &format!("{GADGETS}?fieldValidation=Strict"), &[], odd).await;
    assert_eq!(code, 400, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("unknown field \"spec.unknown\""), "{refused}");

    for (spec, field, words) in [
        (json!({"replicas": 11, "color": "red"}), "spec.replicas", "should be less than or equal to 10"),
        (json!({"color": "green"}), "spec.color", "Unsupported value: \"green\""),
        (json!({"replicas": "many"}), "spec.replicas", "must be of type integer"),
        (json!({"replicas": 6, "color": "blue"}), "spec", "only red ones are many"),
    ] {
        let (code, refused) = raw_json(&server, "POST", GADGETS, &[], gadget("bad", spec).to_string()).await;
        let causes = refused["details"]["causes"].as_array().cloned().unwrap_or_default();
        let named = causes.iter().any(|cause| cause["field"] == field && cause["message"].as_str().is_some_and(|text| text.contains(words)));
        assert!(code == 422 && named, "{code} {refused}");
    }
    let (code, many) = raw_json(&server, "POST", GADGETS, &[], gadget("many", json!({"replicas": 6, "color": "red"})).to_string()).await;
    assert_eq!(code, 201, "{many}");
}

#[tokio::test]
async fn a_defined_kind_has_status_scale_appliers_and_versions() {
    let server = with_gadgets().await;
    let path = format!("{GADGETS}/a");
    let apply = [("content-type", "application/apply-patch+yaml")];
    let config = |color: &str| gadget("a", json!({"color": color})).to_string();
    let (code, made) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=one"), &apply, config("red")).await;
    assert_eq!((code, &made["spec"]["replicas"]), (StatusCode::CREATED, &json!(1)), "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:spec": {"f:color": {}}}), "defaults are nobody's");
    let (code, refused) = raw_json(&server, "PATCH", &format!("{path}?fieldManager=two"), &apply, config("blue")).await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (StatusCode::CONFLICT, &json!(".spec.color")), "{refused}");

    let mut changed = made.clone();
    changed["spec"]["replicas"] = json!(9);
    changed["status"] = json!({"replicas": 2, "selector": "app=a"});
    let (code, reported) = raw_json(&server, "PUT", &format!("{path}/status"), &[], changed.to_string()).await;
    assert_eq!((code, &reported["spec"]["replicas"], &reported["status"]["replicas"]), (StatusCode::OK, &json!(1), &json!(2)), "{reported}");
    assert_eq!(reported["metadata"]["generation"], 1, "a status is no new generation");

    let (_, scale) = raw_json(&server, "GET", &format!("{path}/scale"), &[], "").await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]), (&json!(1), &json!({"replicas": 2, "selector": "app=a"})), "{scale}");
    let mut scaled = scale.clone();
    scaled["spec"]["replicas"] = json!(3);
    let (code, scaled) = raw_json(&server, "PUT", &format!("{path}/scale"), &[], scaled.to_string()).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (StatusCode::OK, &json!(3)), "{scaled}");

    let (code, headers, bytes) = raw(&server, "GET", &path.replace("/v1/", "/v1beta1/"), &[], "").await;
    let old: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((code, &old["apiVersion"], &old["spec"]["replicas"]), (StatusCode::OK, &json!("example.dev/v1beta1"), &json!(3)), "{old}");
    assert_eq!(old["metadata"]["generation"], 2);
    assert!(headers.get_all("warning").iter().any(|warning| warning.to_str().unwrap().contains("gadgets of v1beta1 are old")), "{headers:?}");
}

#[tokio::test]
async fn each_version_has_fields_of_its_own_to_select_by() {
    let (server, _client) = server().await;
    let mut definition = definition();
    definition["spec"]["versions"][1]["selectableFields"] = json!([{"jsonPath": ".spec.replicas"}, {"jsonPath": ".spec.color"}]);
    assert_eq!(raw(&server, "POST", DEFINITIONS, &[], definition.to_string()).await.0, 201);
    until(&server, GADGETS, |code, _| code == 200).await;
    for (name, spec) in [("a", json!({"color": "red"})), ("b", json!({"color": "blue", "replicas": 2})), ("c", json!({"color": "blue"}))] {
        assert_eq!(raw(&server, "POST", GADGETS, &[], gadget(name, spec).to_string()).await.0, 201);
    }
    let old = GADGETS.replace("/v1/", "/v1beta1/");
    for (selector, expected) in
        [("spec.color%3Dblue", vec!["b", "c"]), ("spec.color!%3Dblue", vec!["a"]), ("spec.color%3Dblue,spec.replicas%3D1", vec!["c"])]
    {
        let (_, list) = raw_json(&server, "GET", &format!("{old}?fieldSelector={selector}"), &[], "").await;
        let names: Vec<&str> = list["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
        assert_eq!(names, expected, "{selector}");
    }
    let (code, refused) = raw_json(&server, "GET", &format!("{GADGETS}?fieldSelector=spec.color%3Dblue"), &[], "").await;
    assert_eq!((code.as_u16(), &refused["message"]), (400, &json!("field label not supported: spec.color")), "{refused}");
}

#[tokio::test]
async fn a_definition_goes_after_its_objects() {
    let server = with_gadgets().await;
    let (code, _) = raw_json(&server, "POST", GADGETS, &[], gadget("a", json!({})).to_string()).await;
    assert_eq!(code, 201);
    let (code, deleted) = raw_json(&server, "DELETE", DEFINITION, &[], "").await;
    assert_eq!(code, 200, "{deleted}");
    until(&server, DEFINITION, |code, _| code == 404).await;
    // What was of the kind is not reached any more, and a kind that is defined anew begins with nothing.
    let gone = tokio::time::timeout(Duration::from_secs(20), async {
        while raw(&server, "GET", GADGETS, &[], "").await.0 != 404 {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the kind is gone");
    let (_, groups) = raw_json(&server, "GET", "/apis", &[], "").await;
    assert!(groups["groups"].as_array().unwrap().iter().all(|group| group["name"] != "example.dev"), "{groups}");
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(raw(&server, "POST", path, &[], definition().to_string()).await.0, 201);
    let list = until(&server, GADGETS, |code, _| code == 200).await;
    assert_eq!(list["items"], json!([]));
}
