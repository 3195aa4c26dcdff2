//! What OpenAPI says of an operation beside its types: the name by which code generators call it, its group's tag, media types and codes.

use api::Kind;
use serde_json::{Map, Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON_STREAM: &str = "application/json;stream=watch";
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const PATCHES: &[&str] =
    &["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// The part of a pod that is text.
pub const LOG: &str = "log";
/// The end of a path that goes on as it likes.
pub const REST: &str = "/{path}";

pub fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// The group in one word: `RbacAuthorization`; Kubernetes' own groups go without their common end.
pub fn group_word(kind: &Kind) -> String {
    match kind.group.as_str() {
        "" => "Core".to_string(),
        group => group.strip_suffix(".k8s.io").unwrap_or(group).split('.').map(capital).collect(),
    }
}

/// `apps_v1`.
pub fn tag(kind: &Kind, version: &str) -> String {
    format!("{}_{version}", group_tag(kind))
}

/// `apps`.
pub fn group_tag(kind: &Kind) -> String {
    let word = group_word(kind);
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// `listAppsV1NamespacedDeployment`. `part` is the rest of the path behind the name, `everywhere` means the list of all namespaces.
pub fn id(kind: &Kind, version: &str, method: &str, action: &str, part: &str, everywhere: bool) -> String {
    let verb = match action {
        "list" => "list",
        "post" => "create",
        "get" => "read",
        "put" => "replace",
        "patch" => "patch",
        "delete" | "deletecollection" => "delete",
        "watchlist" => "watch",
        other => other,
    };
    let mut id = format!("{verb}{}{}", group_word(kind), capital(version));
    match action {
        "deletecollection" => id.push_str("Collection"),
        "connect" => id.push_str(&capital(method)),
        _ => {}
    }
    if kind.namespaced_scope() && !everywhere {
        id.push_str("Namespaced");
    }
    id.push_str(&kind.kind);
    match part.strip_suffix(REST) {
        Some(part) => id.extend([&capital(part), "WithPath"]),
        None => id.push_str(&capital(part)),
    }
    if action == "watchlist" {
        id.push_str("List");
    }
    if everywhere {
        id.push_str("ForAllNamespaces");
    }
    id
}

/// What it does, in a few words.
pub fn description(kind: &Kind, action: &str, part: &str) -> String {
    let part = part.strip_suffix(REST).unwrap_or(part);
    let list = if kind.custom.is_some() { "list" } else { "list or watch" };
    let of = if part.is_empty() { kind.kind.clone() } else { format!("{part} of the specified {}", kind.kind) };
    let (new, known) = if part.is_empty() { ("a ", "the specified ") } else { ("", "") };
    match action {
        "list" => format!("{list} objects of kind {of}"),
        "post" => format!("create {new}{of}"),
        "get" => format!("read {known}{of}"),
        "put" => format!("replace {known}{of}"),
        "patch" => format!("partially update {known}{of}"),
        "delete" => format!("delete {new}{of}"),
        "deletecollection" => format!("delete collection of {of}"),
        "watch" => format!("watch changes to an object of kind {of}"),
        "watchlist" => format!("watch individual changes to a list of {of}"),
        _ => format!("connect requests to {of}"),
    }
}

/// What fields are when nobody sets them: scalars that are always there, and metadata.
pub fn defaults(schema: &mut Value) {
    let required: Vec<String> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect();
    for (name, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let is_reference = field.get("$ref").is_some() || field.get("allOf").is_some();
        let default = match field.get("type").and_then(Value::as_str) {
            Some("string") if required.contains(name) => json!(""),
            Some("integer" | "number") if required.contains(name) => json!(0),
            Some("boolean") if required.contains(name) => json!(false),
            _ if name == "metadata" && is_reference => json!({}),
            _ => continue,
        };
        // Beside a reference nothing is heeded.
        if field.get("$ref").is_some() {
            *field = json!({"allOf": [field.take()]});
        }
        if field.get("default").is_none() {
            field["default"] = default;
        }
    }
}

/// In which media types it is answered.
pub fn answers(custom: bool, action: &str, part: &str) -> &'static [&'static str] {
    match action {
        _ if part == LOG => &["text/plain", JSON, PROTOBUF, YAML],
        _ if custom => &[JSON, YAML],
        "connect" => &["*/*"],
        "list" | "watch" | "watchlist" => &[JSON, JSON_STREAM, PROTOBUF, PROTOBUF_STREAM, YAML],
        _ => &[JSON, PROTOBUF, YAML],
    }
}

/// In which media types a body may be.
pub fn bodies(custom: bool, action: &str) -> &'static [&'static str] {
    match action {
        // The last is for types that are compiled in.
        "patch" if custom => &PATCHES[..PATCHES.len() - 1],
        "patch" => PATCHES,
        _ if custom => &[JSON, YAML],
        _ => &["*/*"],
    }
}

/// The same type in each media type.
pub fn content(media_types: &[&str], schema: &Value) -> Value {
    Value::Object(media_types.iter().map(|media_type| (media_type.to_string(), json!({"schema": schema}))).collect::<Map<_, _>>())
}

/// The codes of success.
pub fn codes(custom: bool, action: &str) -> &'static [(&'static str, &'static str)] {
    match action {
        "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "patch" if custom => &[("200", "OK")],
        "put" | "patch" => &[("200", "OK"), ("201", "Created")],
        "delete" => &[("200", "OK"), ("202", "Accepted")],
        _ => &[("200", "OK")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_there_has_a_default() {
        let mut schema = json!({"required": ["s", "n"], "properties": {"s": {"type": "string"}, "n": {"type": "integer", "default": 5},
            "o": {"type": "string"}, "metadata": {"$ref": "#/x"}, "spec": {"$ref": "#/y"}}});
        defaults(&mut schema);
        let expected = json!({"s": {"type": "string", "default": ""}, "n": {"type": "integer", "default": 5}, "o": {"type": "string"},
            "metadata": {"allOf": [{"$ref": "#/x"}], "default": {}}, "spec": {"$ref": "#/y"}});
        assert_eq!(schema["properties"], expected);
    }

    #[test]
    fn operations_have_the_names_that_generated_clients_have() {
        let deployments = Kind::namespaced("apps", "v1", "Deployment", "deployments");
        let check = |kind: &Kind, method: &str, action: &str, part: &str, everywhere: bool, expected: &str| {
            assert_eq!(id(kind, "v1", method, action, part, everywhere), expected);
        };
        check(&deployments, "get", "list", "", false, "listAppsV1NamespacedDeployment");
        check(&deployments, "get", "list", "", true, "listAppsV1DeploymentForAllNamespaces");
        check(&deployments, "delete", "deletecollection", "", false, "deleteAppsV1CollectionNamespacedDeployment");
        check(&deployments, "put", "put", "scale", false, "replaceAppsV1NamespacedDeploymentScale");
        check(&deployments, "get", "watch", "", false, "watchAppsV1NamespacedDeployment");
        check(&deployments, "get", "watchlist", "", false, "watchAppsV1NamespacedDeploymentList");
        check(&deployments, "get", "watchlist", "", true, "watchAppsV1DeploymentListForAllNamespaces");
        let pods = Kind::namespaced("", "v1", "Pod", "pods");
        check(&pods, "post", "connect", "exec", false, "connectCoreV1PostNamespacedPodExec");
        check(&pods, "get", "connect", "proxy/{path}", false, "connectCoreV1GetNamespacedPodProxyWithPath");
        check(
            &Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
            "post",
            "post",
            "",
            false,
            "createRbacAuthorizationV1ClusterRole",
        );
        let things = Kind::namespaced("stable.example.com", "v1", "Thing", "things");
        check(&things, "patch", "patch", "", false, "patchStableExampleComV1NamespacedThing");
        assert_eq!((tag(&things, "v1"), tag(&deployments, "v1")), ("stableExampleCom_v1".into(), "apps_v1".into()));
    }
}
