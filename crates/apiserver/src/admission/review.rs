//! A request as webhooks and policies see it: the AdmissionRequest, and the objects in the version that they ask for.

use super::{AdmissionContext, Operation, Options, connections, matching::operation_name};
use crate::{conversion, encode::View, write};
use api::{Status, Value, object::ObjectExt, request::Propagation};
use serde_json::json;
use std::sync::Arc;

impl AdmissionContext<'_> {
    /// The version in which the client speaks.
    pub fn request_version(&self) -> &str {
        if self.request.version.is_empty() { self.kind.version() } else { &self.request.version }
    }
    fn view(&self, version: &str) -> View {
        View { kind: Arc::new(self.kind.clone()), version: version.to_string() }
    }
    /// An object in the form of a version.
    pub fn shown(&self, object: &Value, version: &str) -> Value {
        let mut object = object.clone();
        // What a webhook converts is seen as the request has it; see [`AdmissionContext::converted`].
        if !object.is_null() && !connections::is_of_another_kind(self) && !conversion::is_by_webhook(self.kind) {
            self.view(version).show(&mut object);
            write::complete(&mut object);
        }
        object
    }
    /// The same where a webhook converts the kind.
    pub async fn converted(&self, object: &Value, version: &str) -> Result<Value, Status> {
        if conversion::is_by_webhook(self.kind) && !connections::is_of_another_kind(self) {
            return conversion::object(self.server, self.kind, object.clone(), version).await;
        }
        Ok(self.shown(object, version))
    }
    /// The reverse.
    pub fn stored(&self, mut object: Value, version: &str) -> Value {
        let view = self.view(version);
        if !view.is_stored_form() && !connections::is_of_another_kind(self) {
            self.kind.hooks.to_stored(version, &mut object);
        }
        object
    }
}

/// What the client has said beside the object, as an object of its own.
fn options(cx: &AdmissionContext<'_>) -> Value {
    let kind = match cx.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"apiVersion": "meta.k8s.io/v1", "kind": kind});
    if cx.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    match cx.options {
        Options::None => {}
        Options::Query(query) => {
            for key in ["fieldManager", "fieldValidation"] {
                if let Some(value) = query.get(key).filter(|value| !value.is_empty()) {
                    options[key] = json!(value);
                }
            }
        }
        Options::Delete(given) => {
            if let Some(seconds) = given.grace_period_s {
                options["gracePeriodSeconds"] = json!(seconds);
            }
            for (key, value) in [("uid", &given.uid), ("resourceVersion", &given.resource_version)] {
                if let Some(value) = value {
                    options["preconditions"][key] = json!(value);
                }
            }
            if let Some(orphan) = given.orphan_dependents {
                options["orphanDependents"] = json!(orphan);
            }
            if let Some(propagation) = given.propagation {
                options["propagationPolicy"] = json!(match propagation {
                    Propagation::Orphan => "Orphan",
                    Propagation::Background => "Background",
                    Propagation::Foreground => "Foreground",
                });
            }
        }
    }
    options
}

/// The request, without its objects. `version` is the one in which the objects are shown.
pub fn request(cx: &AdmissionContext<'_>, uid: &str, version: &str, object: &Value) -> Value {
    let kind = |version: &str| {
        let (group, version, kind) = connections::shown_kind(cx, version);
        json!({"group": group, "version": version, "kind": kind})
    };
    // A name that the server has made is nobody's word yet.
    let is_generated = cx.operation == Operation::Create && cx.subresource.is_empty() && cx.name != object.name();
    let name = if is_generated { "" } else { cx.name };
    let resource = |version: &str| json!({"group": cx.kind.group, "version": version, "resource": cx.kind.resource});
    let mut user = json!({"username": cx.user.name, "groups": cx.user.groups});
    if !cx.user.uid.is_empty() {
        user["uid"] = json!(cx.user.uid);
    }
    if !cx.user.extra.is_empty() {
        user["extra"] = json!(cx.user.extra);
    }
    let mut request = json!({
        "uid": uid,
        "kind": kind(version),
        "resource": resource(version),
        "requestKind": kind(cx.request_version()),
        "requestResource": resource(cx.request_version()),
        "operation": operation_name(cx.operation),
        "userInfo": user,
        "dryRun": cx.dry_run,
        "options": options(cx),
    });
    for (key, value) in [("subResource", cx.subresource), ("requestSubResource", cx.subresource), ("name", name), ("namespace", cx.namespace)] {
        if !value.is_empty() {
            request[key] = json!(value);
        }
    }
    request
}
