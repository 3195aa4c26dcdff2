//! Questions about permissions and identity: SubjectAccessReview and its kin, SelfSubjectRulesReview, SelfSubjectReview.
//!
//! They are answered by the same authorizers that requests pass, and never stored.

use crate::authorization::{Attributes, Decision, decide, node, rbac};
use crate::connect::{Answer, Call};
use crate::{Server, User};
use api::{
    Status, Value, field, internal,
    object::ObjectExt,
    selector::{self, FieldSelector},
};
use http::StatusCode;
use serde_json::{Map, json};
use std::collections::BTreeMap;

const GROUP: &str = "authorization.k8s.io";

/// May this one do that, anywhere?
pub async fn subject_access_review(mut call: Call) -> Answer {
    let review = call.review(GROUP, "v1", "SubjectAccessReview").await?;
    let mut errors = field::Errors::default();
    check_attributes(&review, &mut errors);
    check_user(&review, &mut errors);
    check_selectors(&review, &mut errors);
    check_metadata(&review, &[], "must be empty except for managedFields", &mut errors);
    refuse_invalid(&errors)?;
    let user = subject(&review);
    answer_review(&call, review, &user)
}

/// The same within one namespace, for those who may ask only there.
pub async fn local_subject_access_review(mut call: Call) -> Answer {
    let mut review = call.review(GROUP, "v1", "LocalSubjectAccessReview").await?;
    let namespace = call.info.namespace.clone();
    match review.namespace() {
        "" => review.set("metadata.namespace", namespace.as_str()),
        given if given == namespace => {}
        _ => return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request")),
    }
    let mut errors = field::Errors::default();
    check_attributes(&review, &mut errors);
    check_user(&review, &mut errors);
    check_selectors(&review, &mut errors);
    check_metadata(&review, &["namespace"], "must be empty except for namespace and managedFields", &mut errors);
    let spec = field::Path::new("spec");
    let asked = review.str_at("spec.resourceAttributes.namespace").unwrap_or_default();
    if given(&review, "spec.resourceAttributes") && asked != namespace {
        errors.invalid(spec.child("resourceAttributes").child("namespace"), asked, "must match metadata.namespace");
    }
    if given(&review, "spec.nonResourceAttributes") {
        errors.invalid(spec.child("nonResourceAttributes"), path_attributes(&review), "disallowed on this kind of request");
    }
    refuse_invalid(&errors)?;
    let user = subject(&review);
    answer_review(&call, review, &user)
}

/// May I do that?
pub async fn self_subject_access_review(mut call: Call) -> Answer {
    let review = call.review(GROUP, "v1", "SelfSubjectAccessReview").await?;
    let mut errors = field::Errors::default();
    check_attributes(&review, &mut errors);
    check_selectors(&review, &mut errors);
    check_metadata(&review, &[], "must be empty except for managedFields", &mut errors);
    refuse_invalid(&errors)?;
    let user = call.user.clone();
    answer_review(&call, review, &user)
}

/// What may I do in a namespace?
pub async fn self_subject_rules_review(mut call: Call) -> Answer {
    let review = call.object(GROUP, "v1", "SelfSubjectRulesReview").await?;
    let namespace = review.str_at("spec.namespace").unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let held = call.server.authorizer.rbac.held(&call.server, &call.user, namespace);
    let (mut resource_rules, mut path_rules) = (Vec::new(), Vec::new());
    for rule in &held.rules {
        if !rule.resources.is_empty() {
            resource_rules.push(rbac::Rule { non_resource_urls: vec![], ..rule.clone() }.to_value());
        }
        if !rule.non_resource_urls.is_empty() {
            path_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut errors = held.errors;
    let incomplete = node::node_name(&call.user).is_some();
    if incomplete {
        errors.push("node authorizer does not support user rule resolution".into());
    }
    let mut status = json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": incomplete});
    if !errors.is_empty() {
        status["evaluationError"] = rbac::aggregate(&errors).into();
    }
    let review = json!({"kind": "SelfSubjectRulesReview", "apiVersion": review.api_version(), "metadata": {}, "spec": {}, "status": status});
    Ok(call.answer(StatusCode::CREATED, &review))
}

/// Who am I?
pub async fn self_subject_review(mut call: Call) -> Answer {
    let review = call.object("authentication.k8s.io", "v1", "SelfSubjectReview").await?;
    let answer = json!({
        "kind": "SelfSubjectReview",
        "apiVersion": review.api_version(),
        "metadata": {"creationTimestamp": now()},
        "status": {"userInfo": user_info(&call.user)},
    });
    Ok(call.answer(StatusCode::CREATED, &answer))
}

/// The present time as objects state it.
pub(crate) fn now() -> String {
    time_text(pki::now_unix_s())
}

/// A time as objects state it.
pub(crate) fn time_text(unix_s: i64) -> String {
    jiff::Timestamp::from_second(unix_s).map(|time| time.to_string()).unwrap_or_default()
}

/// A user as reviews show it.
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    let mut put = |key: &str, value: Value, empty: bool| {
        if !empty {
            info.insert(key.into(), value);
        }
    };
    put("username", json!(user.name), user.name.is_empty());
    put("uid", json!(user.uid), user.uid.is_empty());
    put("groups", json!(user.groups), user.groups.is_empty());
    put("extra", json!(user.extra), user.extra.is_empty());
    Value::Object(info)
}

fn given(review: &Value, path: &str) -> bool {
    review.at(path).is_some_and(|value| !value.is_null())
}

/// What a review says of a path, as Go prints it in errors.
fn path_attributes(review: &Value) -> Value {
    let text = |key: &str| review.str_at(&format!("spec.nonResourceAttributes.{key}")).unwrap_or_default();
    json!({"Path": text("path"), "Verb": text("verb")})
}

fn check_attributes(review: &Value, errors: &mut field::Errors) {
    let spec = field::Path::new("spec");
    match (given(review, "spec.resourceAttributes"), given(review, "spec.nonResourceAttributes")) {
        (true, true) => {
            errors.invalid(spec.child("nonResourceAttributes"), path_attributes(review), "cannot be specified in combination with resourceAttributes")
        }
        (false, false) => errors.invalid(
            spec.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
}

fn check_user(review: &Value, errors: &mut field::Errors) {
    if review.str_at("spec.user").unwrap_or_default().is_empty() && review.list_at("spec.groups").is_empty() {
        errors.invalid(field::Path::new("spec").child("user"), "", "at least one of user or group must be specified");
    }
}

/// Requests that are restricted by a selector: in one of its two forms, and such as can be.
fn check_selectors(review: &Value, errors: &mut field::Errors) {
    let path = field::Path::new("spec").child("resourceAttributes");
    for (name, of_labels) in [("fieldSelector", false), ("labelSelector", true)] {
        let Some(asked) = review.at(&format!("spec.resourceAttributes.{name}")).filter(|asked| !asked.is_null()) else { continue };
        let path = path.child(name);
        let (raw, requirements) = (asked.str_at("rawSelector").unwrap_or_default(), asked.list_at("requirements"));
        match (raw.is_empty(), requirements.is_empty()) {
            (false, false) => errors.invalid(path.child("rawSelector"), raw, "may not specified at the same time as requirements"),
            (true, true) => {
                errors.required(path.child("requirements"), &format!("when {path} is specified, requirements or rawSelector is required"))
            }
            _ => {}
        }
        for (i, requirement) in requirements.iter().enumerate() {
            selector::validate_asked(requirement, of_labels, &path.child("requirements").index(i), errors);
        }
    }
}

/// A review is not stored, and has no name or labels; `allowed` is what it may say.
fn check_metadata(review: &Value, allowed: &[&str], detail: &str, errors: &mut field::Errors) {
    // What the server would set is as if not said.
    const OF_THE_SERVER: &[&str] = &["managedFields", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];
    let mut metadata = review.at("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.retain(|key, value| key == "managedFields" || !OF_THE_SERVER.contains(&key.as_str()) && !is_nothing(value));
    if metadata.keys().any(|key| key != "managedFields" && !allowed.contains(&key.as_str())) {
        errors.invalid_structure(field::Path::new("metadata"), &internal::show("meta.v1.ObjectMeta", &Value::Object(metadata)), detail);
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        other => other == &json!(0),
    }
}

fn refuse_invalid(errors: &field::Errors) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, "", "", errors)) }
}

/// The one that a review is about.
fn subject(review: &Value) -> User {
    let text = |path| review.str_at(path).unwrap_or_default().to_string();
    let texts = |list: &[Value]| list.iter().filter_map(Value::as_str).map(String::from).collect::<Vec<_>>();
    let extra: BTreeMap<_, _> = review
        .map_at("spec.extra")
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.to_lowercase(), texts(values.as_array().map(Vec::as_slice).unwrap_or_default())))
        .collect();
    User { name: text("spec.user"), uid: text("spec.uid"), groups: texts(review.list_at("spec.groups")), extra }
}

fn answer_review(call: &Call, mut review: Value, user: &User) -> Answer {
    let (decision, problem) = decide_review(&call.server, user, &review);
    let mut status = Map::new();
    let (allowed, denied, reason) = match decision {
        Decision::Allow(reason) => (true, false, reason),
        Decision::Deny(reason) => (false, true, reason),
        Decision::NoOpinion(reason) => (false, false, reason),
    };
    status.insert("allowed".into(), json!(allowed));
    if denied {
        status.insert("denied".into(), json!(true));
    }
    for (key, text) in [("reason", reason), ("evaluationError", problem)] {
        if !text.is_empty() {
            status.insert(key.into(), json!(text));
        }
    }
    review["status"] = Value::Object(status);
    let metadata = review.metadata_mut();
    if !call.kind.namespaced_scope() {
        metadata.remove("namespace");
    }
    Ok(call.answer(StatusCode::CREATED, &review))
}

fn decide_review(server: &Server, user: &User, review: &Value) -> (Decision, String) {
    if let Some(attributes) = review.at("spec.nonResourceAttributes").filter(|attributes| !attributes.is_null()) {
        let text = |key| attributes.str_at(key).unwrap_or_default();
        // An empty path is no request about objects either.
        let path = Some(text("path")).filter(|path| !path.is_empty()).unwrap_or("/");
        return (decide(server, user, &Attributes { verb: text("verb"), path, ..Attributes::default() }), String::new());
    }
    let text = |key: &str| review.str_at(&format!("spec.resourceAttributes.{key}")).unwrap_or_default();
    let (fields, problem) = fields(review.at("spec.resourceAttributes.fieldSelector"));
    let attributes = Attributes {
        verb: text("verb"),
        group: text("group"),
        version: text("version"),
        resource: text("resource"),
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
        path: "",
        fields: fields.as_ref(),
    };
    (decide(server, user, &attributes), problem)
}

/// A field selector as reviews state it, raw or as requirements. One that cannot be read is left out and reported.
fn fields(selector: Option<&Value>) -> (Option<FieldSelector>, String) {
    let Some(selector) = selector.filter(|selector| !selector.is_null()) else { return (None, String::new()) };
    let read = match selector.str_at("rawSelector").filter(|raw| !raw.is_empty()) {
        Some(raw) => FieldSelector::parse(raw).ok(),
        None => {
            let term = |requirement: &Value| {
                let equal = match requirement.str_at("operator")? {
                    "In" => true,
                    "NotIn" => false,
                    _ => return None,
                };
                match requirement.list_at("values") {
                    [value] => Some((requirement.str_at("key")?.to_string(), equal, value.as_str()?.to_string())),
                    _ => None,
                }
            };
            let terms: Option<Vec<_>> = selector.list_at("requirements").iter().map(term).collect();
            terms.map(|terms| FieldSelector { terms })
        }
    };
    let problem = if read.is_none() { "spec.resourceAttributes.fieldSelector ignored due to parse error".into() } else { String::new() };
    (read, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors_are_read_in_both_forms() {
        let equal = |value: Value| fields(Some(&value)).0.and_then(|fields| fields.exact("spec.nodeName").map(String::from));
        assert_eq!(equal(json!({"rawSelector": "spec.nodeName=n1"})).as_deref(), Some("n1"));
        assert_eq!(equal(json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]})).as_deref(), Some("n1"));
        let odd = json!({"requirements": [{"key": "spec.nodeName", "operator": "Gt", "values": ["n1"]}]});
        assert_eq!(fields(Some(&odd)), (None, "spec.resourceAttributes.fieldSelector ignored due to parse error".into()));
        assert_eq!(fields(None), (None, String::new()));
    }

    #[test]
    fn a_review_needs_someone_and_something() {
        let mut errors = field::Errors::default();
        let review = json!({"spec": {}});
        check_attributes(&review, &mut errors);
        check_user(&review, &mut errors);
        let message = refuse_invalid(&errors).unwrap_err().message;
        assert!(message.starts_with(r#".authorization.k8s.io "" is invalid: ["#), "{message}");
        assert!(message.contains(r#"spec.user: Invalid value: "": at least one of user or group must be specified"#), "{message}");
    }
}
