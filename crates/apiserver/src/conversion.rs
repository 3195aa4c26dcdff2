//! Custom resources from one version into another by a webhook, where their definition says so (ConversionReview).
//!
//! Objects are stored in one version and shown in the one that is asked for. Reads convert what the cache holds before it is
//! shown; writes work in the version of the request, and convert last, before the commit. Definitions without a webhook
//! never come here: they change `apiVersion` alone.
//!
//! What must stay true: a webhook that fails fails the request, and nothing half converted is stored or shown; of the
//! metadata it may change labels and annotations alone.

use crate::{
    Server,
    admission::webhooks,
    cache::{Entry, encode_stored},
    encode::View,
};
use api::{Kind, Status, Value, custom::Conversion, object::ObjectExt};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
const OBJECTS_MAX: usize = 200;

/// How a kind is converted, if by a webhook: its client configuration and the versions of ConversionReview that it reads.
fn webhook(kind: &Kind) -> Option<(&Value, &[String])> {
    match &kind.custom.as_ref()?.conversion {
        Conversion::Webhook { client_config, review_versions } => Some((client_config, review_versions)),
        Conversion::None => None,
    }
}

/// Whether a kind's objects are converted by a webhook.
pub fn is_by_webhook(kind: &Kind) -> bool {
    webhook(kind).is_some()
}

/// An entry in the version that a view shows.
pub async fn entry(server: &Arc<Server>, view: &View, entry: Arc<Entry>) -> Result<Arc<Entry>, Status> {
    let converted = entries(server, view, vec![entry]).await?;
    converted.into_iter().next().ok_or_else(|| Status::internal("a conversion has lost an object"))
}

/// Entries in the version that a view shows.
pub async fn entries(server: &Arc<Server>, view: &View, mut entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
    if !is_by_webhook(&view.kind) {
        return Ok(entries);
    }
    let wanted = view.api_version();
    let foreign: Vec<usize> = (0..entries.len()).filter(|&i| !entries[i].is_in(&wanted)).collect();
    for places in foreign.chunks(OBJECTS_MAX) {
        let given = places.iter().map(|&i| entries[i].value()).collect();
        for (&i, object) in places.iter().zip(convert(server, &view.kind, given, &view.version).await?) {
            let stored = encode_stored(&object).into();
            let shown = Entry::of(&entries[i].place, &stored, &object, entries[i].revision, Some(&view.kind));
            entries[i] = Arc::new(shown.ok_or_else(|| Status::internal("a converted object cannot be read"))?);
        }
    }
    Ok(entries)
}

/// One object in another version of its kind; as it is, if it is in that one.
pub async fn object(server: &Arc<Server>, kind: &Kind, object: Value, version: &str) -> Result<Value, Status> {
    if !is_by_webhook(kind) || object.is_null() || object.api_version() == format!("{}/{version}", kind.group) {
        return Ok(object);
    }
    let converted = convert(server, kind, vec![object], version).await?;
    converted.into_iter().next().ok_or_else(|| Status::internal("a conversion has lost an object"))
}

async fn convert(server: &Arc<Server>, kind: &Kind, objects: Vec<Value>, version: &str) -> Result<Vec<Value>, Status> {
    let Some((client, review_versions)) = webhook(kind) else { return Ok(objects) };
    let from = objects.first().map(|object| object.api_version().to_string()).unwrap_or_default();
    let failed = |why: String| Status::unknown(format!("conversion webhook for {from}, Kind={} {why}", kind.kind));
    let desired = format!("{}/{version}", kind.group);
    let uid = uuid::Uuid::new_v4().to_string();
    let speaks = review_versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1")).map_or("v1", String::as_str);
    let api_version = format!("apiextensions.k8s.io/{speaks}");
    let request = json!({"uid": uid, "desiredAPIVersion": desired, "objects": objects});
    let review = json!({"kind": "ConversionReview", "apiVersion": api_version, "request": request});
    let query = format!("?timeout={}s", TIMEOUT.as_secs());
    let answer = webhooks::post(server, client, &query, &review, TIMEOUT).await.map_err(|why| failed(format!("failed: {why}")))?;
    let mut converted = read(&answer, &api_version, &uid, &desired, &objects).map_err(failed)?;
    // What the version's own schema does not know goes, and what it has defaults for comes.
    let view = kind.view(version).map_or(kind, |view| &**view);
    converted.iter_mut().for_each(|object| view.hooks.from_stored(version, object));
    Ok(converted)
}

/// The objects in a webhook's answer, or what is wrong with it.
fn read(answer: &Value, api_version: &str, uid: &str, desired: &str, objects: &[Value]) -> Result<Vec<Value>, String> {
    let invalid = |why: String| format!("failed: invalid response: {why}");
    if answer.kind() != "ConversionReview" || answer.api_version() != api_version {
        let (version, kind) = (answer.api_version(), answer.kind());
        return Err(invalid(format!("expected webhook response of {api_version}, Kind=ConversionReview, got {version}, Kind={kind}")));
    }
    let response = answer.get("response").filter(|response| response.is_object());
    let response = response.ok_or_else(|| invalid("no response provided".into()))?;
    // The oldest form of the review leaves the uid out.
    if response.str_at("uid") != Some(uid) && api_version.ends_with("/v1") {
        return Err(invalid(format!("expected response.uid={uid:?}, got {:?}", response.str_at("uid").unwrap_or_default())));
    }
    if response.str_at("result.status") != Some("Success") {
        return Err(match response.str_at("result.message").filter(|message| !message.is_empty()) {
            Some(message) => format!("failed: {message}"),
            None => format!(
                "failed: invalid response: response.result.status was '{}', not 'Success'",
                response.str_at("result.status").unwrap_or_default()
            ),
        });
    }
    let converted = response.list_at("convertedObjects");
    if converted.len() != objects.len() {
        return Err(format!("returned {} objects, expected {}", converted.len(), objects.len()));
    }
    let pairs = objects.iter().zip(converted).enumerate();
    pairs
        .map(|(i, (before, after))| restored(before, after, desired).map_err(|why| format!("returned invalid converted object at index {i}: {why}")))
        .collect()
}

/// A converted object with the metadata that it had, but for labels and annotations. The error says what it may not differ in.
fn restored(before: &Value, after: &Value, desired: &str) -> Result<Value, String> {
    if after.api_version() != desired {
        return Err(format!("invalid groupVersion (expected {desired}, received {})", after.api_version()));
    }
    if after.kind() != before.kind() {
        return Err(format!("invalid kind (expected {}, received {})", before.kind(), after.kind()));
    }
    if after.get("metadata").is_none_or(|metadata| !metadata.is_object()) {
        return Err("missing metadata".into());
    }
    for key in ["name", "namespace", "uid"] {
        let of = |object: &Value| object.str_at(&format!("metadata.{key}")).unwrap_or_default().to_string();
        if of(before) != of(after) {
            return Err(format!("metadata.{key} was changed from {:?} to {:?}", of(before), of(after)));
        }
    }
    let mut object = after.clone();
    let mut metadata = before.get("metadata").cloned().unwrap_or_else(|| json!({}));
    for key in ["labels", "annotations"] {
        match after.at(&format!("metadata.{key}")).filter(|map| map.is_object()) {
            Some(map) => metadata.set(key, map.clone()),
            None => drop(metadata.remove(key)),
        }
    }
    object.set("metadata", metadata);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": {"name": "a", "uid": "1", "generation": 3, "labels": {"a": "b"}}})
    }
    fn answer(objects: Value, status: &str) -> Value {
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": "u", "convertedObjects": objects, "result": {"status": status, "message": "no"}}})
    }
    fn judge(answer: &Value) -> Result<Vec<Value>, String> {
        read(answer, "apiextensions.k8s.io/v1", "u", "example.com/v2", &[object("v1")])
    }

    #[test]
    fn labels_and_annotations_are_all_that_a_conversion_may_change_of_the_metadata() {
        let mut changed = object("v2");
        changed.set("metadata.generation", 9);
        changed.set("metadata.labels", json!({"c": "d"}));
        let converted = judge(&answer(json!([changed]), "Success")).unwrap();
        assert_eq!((converted[0].generation(), converted[0].label("c"), converted[0].label("a")), (3, Some("d"), None));
        changed.set("metadata.name", "other");
        assert!(judge(&answer(json!([changed]), "Success")).unwrap_err().ends_with("metadata.name was changed from \"a\" to \"other\""));
    }

    #[test]
    fn an_answer_that_is_none_fails() {
        assert_eq!(judge(&answer(json!([]), "Failed")).unwrap_err(), "failed: no");
        assert_eq!(judge(&answer(json!([]), "Success")).unwrap_err(), "returned 0 objects, expected 1");
        assert!(judge(&answer(json!([object("v1")]), "Success")).unwrap_err().contains("invalid groupVersion"));
        assert!(judge(&json!({"kind": "Status"})).is_err());
    }
}
