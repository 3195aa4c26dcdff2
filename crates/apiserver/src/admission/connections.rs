//! What passes admission beside writes of objects. Of connections to pods, services and nodes (`exec`, `attach`, `portforward`, `proxy`)
//! webhooks and policies see the options as the object, whether or not what is connected to is there; of what is posted to an object
//! (Binding, Eviction, TokenRequest) just that, and not what comes of it; of a change by `scale` the Scale.

use super::{AdmissionContext, Operation, Options, Rounds};
use crate::connect::Call;
use api::{Status, Value, kind::Subresource, object::ObjectExt, request::Query};
use serde_json::json;

/// Options that are yes or no.
const FLAGS: [&str; 4] = ["stdin", "stdout", "stderr", "tty"];

/// The kind of a connection's options; `None` if the request is no connection.
pub(super) fn options_kind<'a>(kind: &'a api::Kind, subresource: &str) -> Option<&'a str> {
    match kind.subresource(subresource)? {
        Subresource::Connect { group_version_kind: (_, _, kind), .. } if kind.ends_with("Options") => Some(kind),
        _ => None,
    }
}

/// Whether the object of the request is not of its resource's own kind, but was posted to one of these.
pub(super) fn is_posted(cx: &AdmissionContext<'_>) -> bool {
    cx.operation == Operation::Create && !cx.subresource.is_empty()
}

/// Whether webhooks and policies see the object of the request as it is, and not in a version of its resource's kind.
pub(super) fn is_of_another_kind(cx: &AdmissionContext<'_>) -> bool {
    cx.operation == Operation::Connect || is_posted(cx) || matches!(cx.kind.subresource(cx.subresource), Some(Subresource::Scale { .. }))
}

/// Whether a change only follows from something posted, which has been admitted as such.
pub(super) fn follows(cx: &AdmissionContext<'_>) -> bool {
    let posted = matches!(cx.subresource, "binding" | "eviction") || cx.request.resource == "bindings";
    cx.operation != Operation::Create && cx.concerns("", "pods") && posted
}

/// Group, version and kind of the object that webhooks and policies see.
pub(super) fn shown_kind<'a>(cx: &'a AdmissionContext<'_>, version: &'a str) -> (&'a str, &'a str, &'a str) {
    let own = (cx.kind.group.as_str(), version, cx.kind.kind.as_str());
    match cx.kind.subresource(cx.subresource) {
        Some(Subresource::Connect { group_version_kind: (group, version, kind), .. }) if is_posted(cx) || cx.operation == Operation::Connect => {
            // One of the same group and version does not name them.
            if group.is_empty() { (own.0, own.1, kind) } else { (group, version, kind) }
        }
        Some(Subresource::Scale { .. }) => ("autoscaling", "v1", "Scale"),
        _ => own,
    }
}

/// A request, as far as it says nothing else.
fn context(call: &Call, operation: Operation) -> AdmissionContext<'_> {
    AdmissionContext {
        server: &call.server,
        request: &call.info,
        user: &call.user,
        operation,
        kind: &call.kind,
        namespace: call.namespace(),
        name: &call.info.name,
        subresource: &call.info.subresource,
        old: None,
        dry_run: false,
        options: Options::None,
        rounds: Rounds::default(),
        warnings: &call.warnings,
    }
}

/// Admits what is posted to a subresource, or a Binding; it may be changed by that.
pub async fn admit_posted(call: &Call, object: &mut Value, dry_run: bool) -> Result<(), Status> {
    // A Binding of the collection has its name in itself.
    let name = object.name().to_string();
    let name = if call.info.name.is_empty() { &name } else { &call.info.name };
    let cx = AdmissionContext { name, dry_run, options: Options::Query(&call.query), ..context(call, Operation::Create) };
    call.server.admission.admit(&cx, object).await?;
    call.server.admission.validate(&cx, object).await
}

/// Admits the request if it is a connection.
pub async fn admit(call: &Call) -> Result<(), Status> {
    let Some(kind) = options_kind(&call.kind, &call.info.subresource) else { return Ok(()) };
    let mut object = options(kind, &call.query, call.info.parts.get(3..).unwrap_or_default());
    let cx = context(call, Operation::Connect);
    call.server.admission.admit(&cx, &mut object).await?;
    call.server.admission.validate(&cx, &object).await
}

/// What the query says, as an object.
fn options(kind: &str, query: &Query, path: &[String]) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match kind {
        "PodExecOptions" | "PodAttachOptions" => {
            for flag in FLAGS.iter().filter(|flag| query.flag(flag) == Some(true)) {
                options[*flag] = json!(true);
            }
            if let Some(container) = query.get("container").filter(|name| !name.is_empty()) {
                options["container"] = json!(container);
            }
            let command: Vec<&str> = query.all("command").collect();
            if kind == "PodExecOptions" && !command.is_empty() {
                options["command"] = json!(command);
            }
        }
        "PodPortForwardOptions" => {
            let ports: Vec<i64> = query.all("ports").flat_map(|ports| ports.split(',')).filter_map(|port| port.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ => options["path"] = json!(format!("/{}", path.join("/"))),
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, query: &str, path: &[&str], expected: Value) {
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        let mut expected = expected;
        expected["kind"] = json!(kind);
        expected["apiVersion"] = json!("v1");
        assert_eq!(options(kind, &Query::parse(query), &path), expected);
    }

    #[test]
    fn what_is_asked_for_is_an_object() {
        let expected = json!({"stdin": true, "container": "c", "command": ["sh", "-c"]});
        check("PodExecOptions", "stdin=true&tty=false&container=c&command=sh&command=-c", &[], expected);
        check("PodAttachOptions", "stdout=1&command=sh", &[], json!({"stdout": true}));
        check("PodPortForwardOptions", "ports=80,81&ports=x", &[], json!({"ports": [80, 81]}));
        check("ServiceProxyOptions", "", &["a", "b"], json!({"path": "/a/b"}));
        check("NodeProxyOptions", "", &[], json!({"path": "/"}));
    }

    #[test]
    fn only_connections_have_options() {
        let kind = api::Kind::namespaced("", "v1", "Pod", "pods").connect("exec", ("", "", "PodExecOptions"), &["create", "get"]).connect(
            "log",
            ("", "", "Pod"),
            &["get"],
        );
        assert_eq!(options_kind(&kind, "exec"), Some("PodExecOptions"));
        assert_eq!((options_kind(&kind, "log"), options_kind(&kind, "")), (None, None));
    }
}
