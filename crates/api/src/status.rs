//! `Status`: Kubernetes' form of an answer that is not an object, made in one table.
//!
//! Every refusal of the API server is made by a constructor here, named after what went wrong, so that code, reason,
//! wording and details always belong together. Clients decide by `code` and `reason`, people by `message`.

use crate::field;
use serde_json::{Map, Value, json};
use std::{borrow::Cow, fmt};

/// API group and plural of a resource, as errors name them.
pub type GroupResource<'a> = (&'a str, &'a str);

/// An answer that is not an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes' StatusReason; empty where Kubernetes gives none.
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Details>,
    /// `metadata.continue` and the like, which a few answers carry.
    pub metadata: Map<String, Value>,
}

/// What the refusal is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource (or, for `Invalid`, the kind).
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    /// Seconds after which the client should try again; 0 for none. Also the `Retry-After` header.
    pub retry_after_s: u32,
}

/// One of several reasons.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    pub reason: Cow<'static, str>,
    pub message: String,
    pub field: String,
}

impl Details {
    fn of((group, resource): GroupResource<'_>, name: &str) -> Details {
        Details { name: name.into(), group: group.into(), kind: resource.into(), ..Details::default() }
    }
    fn to_value(&self) -> Value {
        let mut details = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                details.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            details.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_s > 0 {
            details.insert("retryAfterSeconds".into(), json!(self.retry_after_s));
        }
        Value::Object(details)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        for (key, text) in [("reason", self.reason.as_ref()), ("message", self.message.as_str()), ("field", self.field.as_str())] {
            if !text.is_empty() {
                cause.insert(key.into(), json!(text));
            }
        }
        Value::Object(cause)
    }
}

/// `pods "x"` or `deployments.apps "x"`, or without a name the resource alone.
fn subject((group, resource): GroupResource<'_>, name: &str) -> String {
    let resource = qualified(group, resource);
    if name.is_empty() { resource } else { format!("{resource} {name:?}") }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Status {
        Status { code, reason: Cow::Borrowed(reason), message: message.into(), details: None, metadata: Map::new() }
    }
    fn about(mut self, details: Details) -> Status {
        self.details = Some(details);
        self
    }
    fn retry(mut self, retry_after_s: u32) -> Status {
        self.details.get_or_insert_default().retry_after_s = retry_after_s;
        self
    }
    /// Puts `metadata.uid` of the object concerned into the details.
    pub fn with_uid(mut self, uid: &str) -> Status {
        self.details.get_or_insert_default().uid = uid.into();
        self
    }
    /// Adds a cause to the details.
    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Status {
        let cause = Cause { reason: Cow::Borrowed(reason), message: message.into(), field: field.into() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// 404: no object of that name.
    pub fn not_found(resource: GroupResource<'_>, name: &str) -> Status {
        let message = format!("{} {name:?} not found", qualified(resource.0, resource.1));
        Status::new(404, "NotFound", message).about(Details::of(resource, name))
    }
    /// 404: no such path or resource at all.
    pub fn path_not_found() -> Status {
        Status::new(404, "NotFound", "the server could not find the requested resource").about(Details::default())
    }
    /// 409 on create.
    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> Status {
        let message = format!("{} {name:?} already exists", qualified(resource.0, resource.1));
        Status::new(409, "AlreadyExists", message).about(Details::of(resource, name))
    }
    /// 409 on create while the object of that name is on its way out.
    pub fn already_exists_deleting(resource: GroupResource<'_>, name: &str) -> Status {
        let mut status = Status::already_exists(resource, name);
        status.message.insert_str(0, "object is being deleted: ");
        status
    }
    /// 409 after `generateName` found no free name.
    pub fn generate_name_exhausted(resource: GroupResource<'_>, name: &str) -> Status {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            qualified(resource.0, resource.1)
        );
        Status::new(409, "AlreadyExists", message).about(Details::of(resource, name)).retry(1)
    }
    /// 409: the write was based on something that is no longer so.
    pub fn conflict(resource: GroupResource<'_>, name: &str, detail: &str) -> Status {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {detail}", qualified(resource.0, resource.1));
        Status::new(409, "Conflict", message).about(Details::of(resource, name))
    }
    /// 409 in the words for an update with an old `resourceVersion`.
    pub fn modified(resource: GroupResource<'_>, name: &str) -> Status {
        Status::conflict(resource, name, "the object has been modified; please apply your changes to the latest version and try again")
    }
    /// 409 of server-side apply: `causes` are (message, field) per field that another manager owns.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<(String, String)>) -> Status {
        let causes = causes.into_iter().map(|(message, field)| Cause { reason: Cow::Borrowed("FieldManagerConflict"), message, field }).collect();
        Status::new(409, "Conflict", message).about(Details { causes, ..Details::default() })
    }
    /// 422: the object says what may not be. `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &field::Errors) -> Status {
        let causes =
            errors.0.iter().map(|e| Cause { reason: Cow::Borrowed(e.reason.cause()), message: e.body(), field: e.field.to_string() }).collect();
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        let mut message = format!("{} {name:?} is invalid", qualified(group, kind));
        if !errors.is_empty() {
            message = format!("{message}: {errors}");
        }
        Status::new(422, "Invalid", message).about(details)
    }
    /// 422 with one message and no field (a JSON patch that cannot be applied).
    pub fn unprocessable(message: impl Into<String>) -> Status {
        Status::new(422, "Invalid", message).about(Details::default())
    }
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", message)
    }
    /// 403 about an object or resource.
    pub fn forbidden(resource: GroupResource<'_>, name: &str, message: impl fmt::Display) -> Status {
        let message = match (resource.1.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {message}"),
            (false, _) => format!("{} is forbidden: {message}", subject(resource, name)),
        };
        Status::new(403, "Forbidden", message).about(Details::of(resource, name))
    }
    /// 401.
    pub fn unauthorized() -> Status {
        Status::new(401, "Unauthorized", "Unauthorized")
    }
    /// 410: the version asked for is compacted. Clients list again.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::new(410, "Expired", message)
    }
    /// 410 of a `continue` token whose version is compacted; `fresh` is a token that goes on in the newest version.
    pub fn continue_expired(fresh: &str) -> Status {
        let mut status = Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        if !fresh.is_empty() {
            status.metadata.insert("continue".into(), json!(fresh));
        }
        status
    }
    /// 410: gone for good.
    pub fn gone(message: impl Into<String>) -> Status {
        Status::new(410, "Gone", message)
    }
    /// 504: the server gave up waiting; whether it was done is not known.
    pub fn timeout(message: impl fmt::Display, retry_after_s: u32) -> Status {
        Status::new(504, "Timeout", format!("Timeout: {message}")).about(Details::default()).retry(retry_after_s)
    }
    /// 504 of the cache that did not catch up to `wanted`.
    pub fn too_large_resource_version(wanted: u64, current: u64, retry_after_s: u32) -> Status {
        Status::timeout(format!("Too large resource version: {wanted}, current: {current}"), retry_after_s).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }
    /// 500: the operation took too long, try again.
    pub fn server_timeout(resource: GroupResource<'_>, operation: &str, retry_after_s: u32) -> Status {
        let message =
            format!("The {operation} operation against {} could not be completed at this time, please try again.", qualified(resource.0, resource.1));
        let mut details = Details::of(resource, "");
        details.name = operation.into();
        Status::new(500, "ServerTimeout", message).about(details).retry(retry_after_s)
    }
    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Status {
        Status::new(429, "TooManyRequests", message).about(Details::default()).retry(retry_after_s)
    }
    /// 500: our fault.
    pub fn internal(error: impl fmt::Display) -> Status {
        let cause = Cause { message: error.to_string(), ..Cause::default() };
        Status::new(500, "InternalError", format!("Internal error occurred: {error}")).about(Details { causes: vec![cause], ..Details::default() })
    }
    /// 500 without a reason: how Kubernetes answers where an error has no API form.
    pub fn unknown(message: impl Into<String>) -> Status {
        Status::new(500, "", message)
    }
    /// 405 for a resource that does not do that.
    pub fn method_not_supported(resource: GroupResource<'_>, verb: &str) -> Status {
        let message = format!("{verb} is not supported on resources of kind {:?}", qualified(resource.0, resource.1));
        Status::new(405, "MethodNotAllowed", message).about(Details::of(resource, ""))
    }
    /// 405 for a path that knows no such method.
    pub fn method_not_allowed() -> Status {
        Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource").about(Details::default())
    }
    /// 406; `accepted` are the media types that could be served.
    pub fn not_acceptable(accepted: &[&str]) -> Status {
        Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {}", accepted.join(", ")))
    }
    /// 406 in other words.
    pub fn not_acceptable_because(message: impl Into<String>) -> Status {
        Status::new(406, "NotAcceptable", message)
    }
    /// 415; `accepted` are the media types that could be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        Status::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", ")),
        )
    }
    /// 413.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Status {
        Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }
    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Status {
        Status::new(503, "ServiceUnavailable", message)
    }
    /// Any other: a code and a reason chosen elsewhere (an admission webhook's, an aggregated server's).
    pub fn custom(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Status {
        Status { code, reason: reason.into(), message: message.into(), details: None, metadata: Map::new() }
    }
    /// 200: done, and there is no object to show (the answer to most deletes).
    pub fn success(resource: GroupResource<'_>, name: &str, uid: &str) -> Status {
        let mut details = Details::of(resource, name);
        details.uid = uid.into();
        Status::new(200, "", "").about(details)
    }
    /// 200 or 201 without details (binding, eviction).
    pub fn done(code: u16) -> Status {
        Status::new(code, "", "")
    }

    /// Whether it says that all went well.
    pub fn is_success(&self) -> bool {
        self.code < 300
    }
    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }
    /// Seconds for the `Retry-After` header, if there is to be one.
    pub fn retry_after_s(&self) -> Option<u32> {
        self.details.as_ref().map(|d| d.retry_after_s).filter(|&s| s > 0)
    }
    /// As the API shows it.
    pub fn to_value(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), json!("Status"));
        status.insert("apiVersion".into(), json!("v1"));
        status.insert("metadata".into(), Value::Object(self.metadata.clone()));
        status.insert("status".into(), json!(if self.is_success() { "Success" } else { "Failure" }));
        if !self.message.is_empty() {
            status.insert("message".into(), json!(self.message));
        }
        if !self.reason.is_empty() {
            status.insert("reason".into(), json!(self.reason));
        }
        if let Some(details) = &self.details {
            status.insert("details".into(), details.to_value());
        }
        if !self.is_success() || self.details.is_none() {
            status.insert("code".into(), json!(self.code));
        }
        Value::Object(status)
    }
    pub fn to_bytes(&self) -> bytes::Bytes {
        let mut text = self.to_value().to_string();
        text.push('\n');
        text.into()
    }
    /// Reads what another server answered. Whatever is missing or of the wrong type stays empty.
    pub fn from_value(value: &Value) -> Option<Status> {
        if value.get("kind")?.as_str()? != "Status" {
            return None;
        }
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let failed = value.get("status").and_then(Value::as_str) == Some("Failure");
        let code = value.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok());
        let details = value.get("details").map(|d| Details {
            name: text(d, "name"),
            group: text(d, "group"),
            kind: text(d, "kind"),
            uid: text(d, "uid"),
            causes: (d.get("causes").and_then(Value::as_array).into_iter().flatten())
                .map(|c| Cause { reason: text(c, "reason").into(), message: text(c, "message"), field: text(c, "field") })
                .collect(),
            retry_after_s: d.get("retryAfterSeconds").and_then(Value::as_u64).and_then(|s| u32::try_from(s).ok()).unwrap_or_default(),
        });
        let metadata = value.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        Some(Status {
            code: code.unwrap_or(if failed { 500 } else { 200 }),
            reason: text(value, "reason").into(),
            message: text(value, "message"),
            details,
            metadata,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { write!(f, "{} {}", self.code, self.reason) } else { f.write_str(&self.message) }
    }
}

impl std::error::Error for Status {}

/// The common result of the API machinery.
pub type Result<T, E = Status> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn statuses_read_as_kubernetes_ones() {
        assert_eq!(
            Status::not_found(("", "pods"), "x").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "pods \"x\" not found", "reason": "NotFound", "details": {"name": "x", "kind": "pods"}, "code": 404})
        );
        assert_eq!(Status::already_exists(("apps", "deployments"), "x").message, "deployments.apps \"x\" already exists");
        assert_eq!(
            Status::modified(("", "pods"), "x").message,
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to the latest version and try again"
        );
        assert_eq!(
            Status::success(("", "configmaps"), "a", "u").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": {"name": "a", "kind": "configmaps", "uid": "u"}})
        );
        assert_eq!(Status::path_not_found().to_value()["details"], json!({}));
        assert_eq!(Status::forbidden(("", "services"), "web", "no").message, "services \"web\" is forbidden: no");
        assert_eq!(Status::forbidden(("", "services"), "", "no").message, "services is forbidden: no");
        assert_eq!(
            Status::forbidden(("", ""), "", "User \"bob\" cannot get path \"/api\"").message,
            "forbidden: User \"bob\" cannot get path \"/api\""
        );
        assert_eq!(Status::too_many_requests("later", 3).retry_after_s(), Some(3));
    }

    #[test]
    fn invalid_names_every_field_once() {
        let mut errors = field::Errors::default();
        errors.invalid(Path::new("spec").child("replicas"), -1, "must be greater than or equal to 0");
        errors.required(Path::new("spec").child("selector"), "");
        let status = Status::invalid("apps", "Deployment", "x", &errors);
        assert_eq!(
            status.message,
            "Deployment.apps \"x\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.selector: Required value]"
        );
        assert_eq!(
            status.to_value()["details"],
            json!({"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "spec.replicas"},
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"}]})
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        let status = Status::internal("broken").with_uid("u");
        assert_eq!(Status::from_value(&status.to_value()), Some(status));
        assert_eq!(Status::from_value(&json!({"kind": "Pod"})), None);
        assert_eq!(Status::from_value(&json!({"kind": "Status", "status": "Failure", "code": "x"})).map(|s| s.code), Some(500));
    }
}
