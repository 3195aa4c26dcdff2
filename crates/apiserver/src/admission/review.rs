//! A request as webhooks and policies see it: the AdmissionRequest, and the objects in the version that they ask for.

use super::{AdmissionContext, Operation, matching::operation_name};
use crate::{conversion, encode::View};
use api::{Status, Value};
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
        if !object.is_null() && !conversion::is_by_webhook(self.kind) {
            self.view(version).show(&mut object);
        }
        object
    }
    /// The same where a webhook converts the kind.
    pub async fn converted(&self, object: &Value, version: &str) -> Result<Value, Status> {
        if conversion::is_by_webhook(self.kind) {
            return conversion::object(self.server, self.kind, object.clone(), version).await;
        }
        Ok(self.shown(object, version))
    }
    /// The reverse.
    pub fn stored(&self, mut object: Value, version: &str) -> Value {
        let view = self.view(version);
        if !view.is_stored_form() {
            self.kind.hooks.to_stored(version, &mut object);
        }
        object
    }
}

/// The request, without its objects. `version` is the one in which the objects are shown.
pub fn request(cx: &AdmissionContext<'_>, uid: &str, version: &str) -> Value {
    let kind = |version: &str| json!({"group": cx.kind.group, "version": version, "kind": cx.kind.kind});
    let resource = |version: &str| json!({"group": cx.kind.group, "version": version, "resource": cx.kind.resource});
    let options = match cx.operation {
        Operation::Create => json!({"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"}),
        Operation::Update => json!({"apiVersion": "meta.k8s.io/v1", "kind": "UpdateOptions"}),
        Operation::Delete => json!({"apiVersion": "meta.k8s.io/v1", "kind": "DeleteOptions"}),
        Operation::Connect => Value::Null,
    };
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
        "options": options,
    });
    for (key, value) in [("subResource", cx.subresource), ("requestSubResource", cx.subresource), ("name", cx.name), ("namespace", cx.namespace)] {
        if !value.is_empty() {
            request[key] = json!(value);
        }
    }
    request
}
