//! Defined kinds whose versions a webhook converts: every verb in every version, and a webhook that fails.

use super::{behind::behind, *};
use base64::{Engine, engine::general_purpose::STANDARD};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn path(version: &str) -> String {
    format!("/apis/example.dev/{version}/namespaces/test/ropes")
}

/// `v1` has a length as text, `v2` as a number of metres.
fn definition(address: std::net::SocketAddr, authority: &str) -> Value {
    let schema = |length: &str| json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "required": ["length"], "properties": {"length": {"type": length}}}}}});
    let client = json!({"url": format!("https://{address}/convert"), "caBundle": STANDARD.encode(authority)});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ropes.example.dev"},
        "spec": {"group": "example.dev", "scope": "Namespaced", "names": {"plural": "ropes", "kind": "Rope"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client}},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema("string")},
                {"name": "v2", "served": true, "storage": false, "schema": schema("integer"), "selectableFields": [{"jsonPath": ".spec.length"}]}]}})
}

/// What the webhook answers. A rope of the length 13 m cannot be converted.
fn converted(review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let mut failed = false;
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let length = &object["spec"]["length"];
            let length = match wanted {
                "example.dev/v2" => json!(length.as_str().unwrap().trim_end_matches('m').parse::<i64>().unwrap()),
                _ => json!(format!("{length}m")),
            };
            failed |= length == json!(13) || length == json!("13m");
            object["spec"]["length"] = length;
            object["apiVersion"] = json!(wanted);
            object["metadata"]["labels"] = json!({"converted": "yes"});
            object
        })
        .collect();
    let result = if failed { json!({"status": "Failed", "message": "it brings bad luck"}) } else { json!({"status": "Success"}) };
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {"uid": request["uid"], "convertedObjects": objects, "result": result}})
}

fn rope(version: &str, name: &str, length: Value) -> String {
    json!({"apiVersion": format!("example.dev/{version}"), "kind": "Rope", "metadata": {"name": name}, "spec": {"length": length}}).to_string()
}

#[tokio::test]
async fn every_version_shows_every_object() {
    let (server, _client) = server().await;
    let hook = behind("127.0.0.1", |_, review| (StatusCode::OK, converted(review))).await;
    let (code, made) = raw_json(&server, "POST", CRDS, &[], definition(hook.address, &hook.authority).to_string()).await;
    assert_eq!(code, 201, "{made}");
    custom::until(&server, &path("v2"), |code, _| code == 200).await;

    assert_eq!(raw(&server, "POST", &path("v1"), &[], rope("v1", "old", json!("3m"))).await.0, 201);
    assert!(hook.asked.lock().is_empty(), "what is stored as it came needs no webhook");
    let (code, made) = raw_json(&server, "POST", &path("v2"), &[], rope("v2", "new", json!(5))).await;
    assert_eq!((code, &made["apiVersion"], &made["spec"]["length"]), (StatusCode::CREATED, &json!("example.dev/v2"), &json!(5)), "{made}");

    let read = async |version: &str, name: &str| raw_json(&server, "GET", &format!("{}/{name}", path(version)), &[], "").await.1;
    let old = read("v2", "old").await;
    assert_eq!(
        (&old["apiVersion"], &old["spec"]["length"], &old["metadata"]["labels"]["converted"]),
        (&json!("example.dev/v2"), &json!(3), &json!("yes"))
    );
    assert_eq!(read("v1", "new").await["spec"]["length"], "5m");
    let (_, list) = raw_json(&server, "GET", &path("v2"), &[], "").await;
    let lengths: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["spec"]["length"]).collect();
    assert_eq!(lengths, [&json!(5), &json!(3)], "{list}");

    // Changes, each in a version of its own.
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, patched) = raw_json(&server, "PATCH", &format!("{}/old", path("v2")), &merge, r#"{"spec":{"length":4}}"#).await;
    assert_eq!((code, &patched["spec"]["length"]), (StatusCode::OK, &json!(4)), "{patched}");
    assert_eq!(read("v1", "old").await["spec"]["length"], "4m");
    let (code, refused) = raw_json(&server, "PATCH", &format!("{}/old", path("v2")), &merge, r#"{"spec":{"length":"4"}}"#).await;
    assert_eq!(code, 422, "each version has rules of its own: {refused}");
    let apply = [("content-type", "application/apply-patch+yaml")];
    let (code, applied) =
        raw_json(&server, "PATCH", &format!("{}/new?fieldManager=m&force=true", path("v2")), &apply, rope("v2", "new", json!(6))).await;
    assert_eq!((code, &applied["spec"]["length"]), (StatusCode::OK, &json!(6)), "{applied}");
    assert_eq!(read("v1", "new").await["spec"]["length"], "6m");

    // Fields select in the form of the version that is asked for.
    let names = async |length: &str| {
        let (_, list) = raw_json(&server, "GET", &format!("{}?fieldSelector=spec.length%3D{length}", path("v2")), &[], "").await;
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!((names("6").await, names("6m").await), (vec!["new".into()], vec![]));
    let since = made["metadata"]["resourceVersion"].as_str().unwrap();
    let selected = format!("{}?watch=true&timeoutSeconds=1&resourceVersion={since}&fieldSelector=spec.length%3D3", path("v2"));
    let (_, _, lines) = raw(&server, "GET", &selected, &[], "").await;
    let events: Vec<Value> = String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        events.iter().map(|event| (&event["type"], &event["object"]["metadata"]["name"], &event["object"]["spec"]["length"])).collect();
    assert_eq!(told, [(&json!("DELETED"), &json!("old"), &json!(3))], "it has left the selection, and the other was never in it");

    // A watch sees them in its version.
    let (_, _, lines) = raw(&server, "GET", &format!("{}?watch=true&timeoutSeconds=1", path("v2")), &[], "").await;
    let events: Vec<Value> = String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.len() == 2 && events.iter().all(|event| event["object"]["spec"]["length"].is_i64()), "{events:?}");
    let (code, _) = raw_json(&server, "DELETE", &format!("{}/old", path("v2")), &[], "").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn what_cannot_be_converted_fails_alone() {
    let (server, _client) = server().await;
    let hook = behind("127.0.0.1", |_, review| (StatusCode::OK, converted(review))).await;
    assert_eq!(raw(&server, "POST", CRDS, &[], definition(hook.address, &hook.authority).to_string()).await.0, 201);
    custom::until(&server, &path("v2"), |code, _| code == 200).await;
    assert_eq!(raw(&server, "POST", &path("v1"), &[], rope("v1", "unlucky", json!("13m"))).await.0, 201);
    let (code, refused) = raw_json(&server, "GET", &format!("{}/unlucky", path("v2")), &[], "").await;
    assert_eq!(code, 500);
    assert_eq!(refused["message"], "conversion webhook for example.dev/v1, Kind=Rope failed: it brings bad luck");
    assert_eq!(raw(&server, "GET", &format!("{}/unlucky", path("v1")), &[], "").await.0, 200);
    // Nothing is stored that could not be converted, and what stands stays.
    assert_eq!(raw(&server, "POST", &path("v2"), &[], rope("v2", "other", json!(13))).await.0, 500);
    assert_eq!(raw(&server, "GET", &format!("{}/other", path("v1")), &[], "").await.0, 404);
    drop(hook);
}
