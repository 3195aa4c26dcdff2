//! Which requests a webhook or policy is about: operations, resources, scopes, and labels of object and namespace.
//!
//! Under `matchPolicy: Equivalent` a rule for one version of a kind is about requests in its other versions too; the object is
//! then shown in the version that the rule names.

use super::{AdmissionContext, Operation, connections};
use api::{Value, object::ObjectExt, selector::LabelSelector};

/// How requests name an operation.
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn has(rule: &Value, key: &str, wanted: &str) -> bool {
    rule.list_at(key).iter().any(|known| known == "*" || known == wanted)
}

/// The version in which a rule is about the request; `None` if it is not.
fn rule_matches(rule: &Value, cx: &AdmissionContext<'_>, equivalent: bool) -> Option<String> {
    if !has(rule, "operations", operation_name(cx.operation)) || !has(rule, "apiGroups", &cx.kind.group) {
        return None;
    }
    let resource = rule.list_at("resources").iter().filter_map(Value::as_str).any(|known| match (known.split_once('/'), cx.subresource) {
        (None, "") => known == "*" || known == cx.kind.resource,
        (None, _) | (Some(_), "") => known == "*/*" && cx.subresource.is_empty(),
        (Some((name, sub)), subresource) => (name == "*" || name == cx.kind.resource) && (sub == "*" || sub == subresource),
    });
    // Of a namespace itself the scope is that of the cluster.
    let scope = match rule.str_at("scope") {
        Some("Cluster") => cx.namespace.is_empty(),
        Some("Namespaced") => !cx.namespace.is_empty(),
        _ => true,
    };
    let names = rule.list_at("resourceNames");
    let named = names.is_empty() || names.iter().any(|name| name == cx.name);
    if !(resource && scope && named) {
        return None;
    }
    let asked = cx.request_version();
    if has(rule, "apiVersions", asked) {
        return Some(asked.to_string());
    }
    let other = cx.kind.versions.iter().find(|version| has(rule, "apiVersions", version));
    other.filter(|_| equivalent).cloned()
}

fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(selector) = selector else { return true };
    LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches_map(labels.and_then(Value::as_object)))
}

/// The labels by which a namespace selector decides: of the namespace of the request, or of the namespace that it is about.
fn namespace_labels(cx: &AdmissionContext<'_>, object: &Value) -> Option<Value> {
    let is_namespace = cx.kind.group.is_empty() && cx.kind.resource == "namespaces";
    if is_namespace && cx.operation != Operation::Delete {
        return object.at("metadata.labels").cloned();
    }
    let name = if is_namespace { cx.name } else { cx.namespace };
    let entry = cx.server.lookup("", "namespaces", "", name).ok().flatten()?;
    Some(Value::Object(entry.labels.iter().map(|(key, value)| (key.to_string(), Value::from(value.as_ref()))).collect()))
}

/// The version in which `matcher` (a webhook, or the match resources of a policy) is about the request. `rules` is under which
/// keys it keeps its rules, `None` for none: then it is about everything.
pub fn matches(matcher: &Value, rules: &str, cx: &AdmissionContext<'_>, object: &Value) -> Option<String> {
    let equivalent = matcher.str_at("matchPolicy") != Some("Exact");
    let given = matcher.list_at(rules);
    let version = if given.is_empty() && rules == "resourceRules" {
        cx.request_version().to_string()
    } else {
        given.iter().find_map(|rule| rule_matches(rule, cx, equivalent))?
    };
    if matcher.list_at("excludeResourceRules").iter().any(|rule| rule_matches(rule, cx, equivalent).is_some()) {
        return None;
    }
    let selector = matcher.at("namespaceSelector").filter(|selector| selector.as_object().is_some_and(|map| !map.is_empty()));
    let cluster_wide = cx.namespace.is_empty() && !(cx.kind.group.is_empty() && cx.kind.resource == "namespaces");
    if let Some(selector) = selector.filter(|_| !cluster_wide)
        && !selects(Some(selector), namespace_labels(cx, object).as_ref())
    {
        return None;
    }
    let selector = matcher.at("objectSelector").filter(|selector| selector.as_object().is_some_and(|map| !map.is_empty()));
    let labels = |object: &Value| object.at("metadata.labels").cloned();
    let new = !object.is_null() && selects(selector, labels(object).as_ref());
    let old = cx.old.is_some_and(|old| selects(selector, labels(old).as_ref()));
    (selector.is_none() || new || old).then_some(version)
}

/// Configurations of admission are beyond its reach, lest one locks everybody out; and nobody is asked twice about one request.
pub fn is_exempt(cx: &AdmissionContext<'_>) -> bool {
    // What is asked is not changed by being asked.
    let is_review = matches!(cx.kind.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io");
    cx.kind.group == "admissionregistration.k8s.io" || is_review || connections::follows(cx)
}
