//! FlowSchema of flowcontrol.apiserver.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        values::{fill_zero, flag, has, int, list, made, member, put, text},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas").generation().status().hooks(FlowSchemas)
}

const PRECEDENCE_DEFAULT: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;

struct FlowSchemas;

impl Hooks for FlowSchemas {
    fn default(&self, schema: &mut Value) {
        fill_zero(made(schema, "spec"), "matchingPrecedence", PRECEDENCE_DEFAULT);
    }
    fn prepare_create(&self, schema: &mut Value) {
        put(schema, "status", json!({}));
    }
    fn validate(&self, schema: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(schema), Path::new("spec"));
        let precedence = int(spec, "matchingPrecedence").unwrap_or(0);
        if precedence <= 0 {
            errors.invalid(path.child("matchingPrecedence"), precedence, "must be a positive value");
        } else if precedence > PRECEDENCE_MAX {
            errors.invalid(path.child("matchingPrecedence"), precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if let Some(method) = member(spec, "distinguisherMethod") {
            let kind = text(method, "type");
            if !matches!(kind, "ByUser" | "ByNamespace") {
                errors.not_supported(path.child("distinguisherMethod").child("type"), json!({"Type": kind}), &["ByNamespace", "ByUser"]);
            }
        }
        if spec.str_at("priorityLevelConfiguration.name").unwrap_or_default().is_empty() {
            errors.required(path.child("priorityLevelConfiguration").child("name"), "must reference a priority level");
        }
        for (i, rule) in list(spec, "rules").iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
    }
    fn cells(&self, schema: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(schema), workload::status(schema));
        let dangling = list(status, "conditions").iter().find(|c| text(c, "type") == "Dangling").map_or("?", |c| text(c, "status"));
        vec![
            table::name(schema),
            json!(spec.str_at("priorityLevelConfiguration.name").unwrap_or("<none>")),
            json!(int(spec, "matchingPrecedence").unwrap_or(0)),
            json!(spec.str_at("distinguisherMethod.type").unwrap_or("<none>")),
            table::age(schema, now_unix_s),
            json!(dangling),
        ]
    }
}

/// Kinds of subjects, and the members that describe them.
const SUBJECTS: &[(&str, &str)] = &[("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];

fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    if list(rule, "subjects").is_empty() {
        errors.required(path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, subject) in list(rule, "subjects").iter().enumerate() {
        let path = path.child("subjects").index(i);
        let kind = text(subject, "kind");
        if !SUBJECTS.iter().any(|(known, _)| *known == kind) {
            errors.not_supported(path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
            continue;
        }
        for (known, key) in SUBJECTS {
            match (*known == kind, has(subject, key)) {
                (true, false) => errors.required(path.child(key), &format!("{key} is required when subject kind is '{kind}'")),
                (false, true) => errors.forbidden(path.child(key), &format!("{key} is forbidden when subject kind is not '{known}'")),
                _ => {}
            }
        }
    }
    if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
        errors.required(path.clone(), "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, resource) in list(rule, "resourceRules").iter().enumerate() {
        let path = path.child("resourceRules").index(i);
        for (key, detail) in [
            ("verbs", "verbs must contain at least one value"),
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if list(resource, key).is_empty() {
                errors.required(path.child(key), detail);
            }
        }
        if list(resource, "namespaces").is_empty() && !flag(resource, "clusterScope") {
            errors.required(path.child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace");
        }
    }
    for (i, other) in list(rule, "nonResourceRules").iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        for (key, detail) in
            [("verbs", "verbs must contain at least one value"), ("nonResourceURLs", "nonResourceURLs must contain at least one value")]
        {
            if list(other, key).is_empty() {
                errors.required(path.child(key), detail);
            }
        }
    }
}
