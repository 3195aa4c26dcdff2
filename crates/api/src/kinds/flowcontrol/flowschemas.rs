//! FlowSchema of flowcontrol.apiserver.k8s.io.

use crate::{
    field::{Errors, Path, Reason},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        values::{fill_zero, flag, has, int, list, made, member, put, strings, text},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas")
        .generation()
        .status_alone()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(FlowSchemas)
}

const PRECEDENCE_DEFAULT: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;
const EXEMPT: &str = "exempt";
/// Schemas and levels that every cluster has.
pub const MANDATORY: &[&str] = &[EXEMPT, "catch-all"];
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

struct FlowSchemas;

impl Hooks for FlowSchemas {
    fn default(&self, schema: &mut Value) {
        fill_zero(made(schema, "spec"), "matchingPrecedence", PRECEDENCE_DEFAULT);
    }
    fn prepare_create(&self, schema: &mut Value) {
        put(schema, "status", json!({}));
    }
    fn validate(&self, schema: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(schema), Path::new("spec"));
        let precedence = int(spec, "matchingPrecedence").unwrap_or(0);
        if precedence <= 0 {
            errors.invalid(path.child("matchingPrecedence"), precedence, "must be a positive value");
        } else if precedence > PRECEDENCE_MAX {
            errors.invalid(path.child("matchingPrecedence"), precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if precedence == 1 && schema.name() != EXEMPT {
            errors.invalid(path.child("matchingPrecedence"), precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        if let Some(method) = member(spec, "distinguisherMethod") {
            let kind = text(method, "type");
            if !matches!(kind, "ByUser" | "ByNamespace") {
                errors.not_supported(path.child("distinguisherMethod").child("type"), json!({"Type": kind}), &["ByNamespace", "ByUser"]);
            }
        }
        let level = spec.get("priorityLevelConfiguration").unwrap_or(&Value::Null);
        let at = path.child("priorityLevelConfiguration");
        if text(level, "name").is_empty() {
            errors.required(at.child("name"), "must reference a priority level");
        }
        checks::checked(level, "name", &at, names::dns1123_subdomain, errors);
        for (i, rule) in list(spec, "rules").iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
        // What every cluster has stays as it came.
        if let Some(old) = old
            && MANDATORY.contains(&schema.name())
            && workload::spec(old) != spec
        {
            let shown = internal::show("flowcontrol.v1.FlowSchemaSpec", spec);
            errors.invalid_structure(path, &shown, &format!("spec of '{}' must equal the fixed value", schema.name()));
        }
    }
    fn validate_status(&self, schema: &Value, _old: &Value, errors: &mut Errors) {
        validate_conditions(schema, errors);
    }
    fn row_place(&self, schema: &Value) -> i64 {
        int(workload::spec(schema), "matchingPrecedence").unwrap_or(0)
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

/// Conditions of a status have types, each another.
pub fn validate_conditions(object: &Value, errors: &mut Errors) {
    for (i, condition, again) in checks::distinct(list(workload::status(object), "conditions"), |condition| text(condition, "type")) {
        let path = Path::new("status").child("conditions").index(i).child("type");
        let kind = text(condition, "type");
        if again {
            errors.duplicate(path.clone(), kind);
        }
        if kind.is_empty() {
            errors.required(path, "must not be empty");
        }
    }
}

/// Kinds of subjects, and the members that describe them.
const SUBJECTS: &[(&str, &str)] = &[("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    if list(rule, "subjects").is_empty() {
        errors.required(path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, subject) in list(rule, "subjects").iter().enumerate() {
        let path = path.child("subjects").index(i);
        let kind = text(subject, "kind");
        let Some((_, key)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
            errors.not_supported(path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
            continue;
        };
        let at = path.child(key);
        match member(subject, key) {
            None => errors.required(at, &format!("{key} is required when subject kind is '{kind}'")),
            Some(own) => {
                let name = text(own, "name");
                if checks::required(own, "name", &at, errors) && *key == "serviceAccount" && name != "*" {
                    errors.invalid_all(&at.child("name"), name, names::dns1123_subdomain(name));
                }
                if *key == "serviceAccount" {
                    if text(own, "namespace").is_empty() {
                        errors.required(at.child("namespace"), "must specify namespace for service account");
                    }
                    checks::checked(own, "namespace", &at, names::dns1123_label, errors);
                }
            }
        }
        for (other, key) in SUBJECTS.iter().filter(|(other, key)| *other != kind && has(subject, key)) {
            errors.forbidden(path.child(key), &format!("{key} is forbidden when subject kind is not '{other}'"));
        }
    }
    if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
        errors.required(path.clone(), "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, resource) in list(rule, "resourceRules").iter().enumerate() {
        let path = path.child("resourceRules").index(i);
        verbs(resource, &path, errors);
        star_alone(resource, "apiGroups", "resource rules must supply at least one api group", "api groups", &path, errors);
        star_alone(resource, "resources", "resource rules must supply at least one resource", "resources", &path, errors);
        let namespaces: Vec<&str> = strings(resource, "namespaces").collect();
        let at = path.child("namespaces");
        if namespaces.is_empty() {
            if !flag(resource, "clusterScope") {
                errors.required(at, "resource rules that are not cluster scoped must supply at least one namespace");
            }
        } else if namespaces.contains(&"*") {
            if namespaces.len() > 1 {
                errors.invalid(at, json!(namespaces), "if '*' is present, must not specify other namespaces");
            }
        } else {
            for (i, name) in namespaces.iter().enumerate() {
                for problem in names::dns1123_label(name) {
                    let detail = format!("each member of this list must be '*' or a DNS-1123 label; {problem}");
                    errors.invalid(at.index(i), *name, &detail);
                }
            }
        }
    }
    for (i, other) in list(rule, "nonResourceRules").iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(other, &path, errors);
        let missing = "nonResourceURLs must contain at least one value";
        if star_alone(other, "nonResourceURLs", missing, "non-resource URLs", &path, errors) {
            for (i, url) in strings(other, "nonResourceURLs").enumerate() {
                url_path(url, &path.child("nonResourceURLs").index(i), errors);
            }
        }
    }
}

/// Verbs of a rule: all, or some that there are.
fn verbs(rule: &Value, path: &Path, errors: &mut Errors) {
    let known = |verb: &str| VERBS.contains(&verb);
    if star_alone(rule, "verbs", "verbs must contain at least one value", "verbs", path, errors) && !strings(rule, "verbs").all(known) {
        let supported = VERBS.iter().map(|verb| format!("{verb:?}")).collect::<Vec<_>>().join(", ");
        let shown = rule.get("verbs").cloned();
        errors.push(Reason::NotSupported, path.child("verbs"), shown, format!("supported values: {supported}"));
    }
}
/// A list that must not be empty, and in which a star stands alone. Gives whether the rest of it is to be looked at.
fn star_alone(rule: &Value, key: &str, missing: &str, others: &str, path: &Path, errors: &mut Errors) -> bool {
    let values: Vec<&str> = strings(rule, key).collect();
    let star = values.contains(&"*");
    if values.is_empty() {
        errors.required(path.child(key), missing);
    } else if star && values.len() > 1 {
        errors.invalid(path.child(key), json!(values), &format!("if '*' is present, must not specify other {others}"));
    }
    !values.is_empty() && !star
}
fn url_path(url: &str, path: &Path, errors: &mut Errors) {
    let stars = url.matches('*').count();
    let problem = match url {
        "" => "must not be empty",
        "/" => return,
        _ if !url.starts_with('/') => "must start with slash",
        _ if url.contains(' ') => "must not contain white-space",
        _ if url.contains("//") => "must not contain double slash",
        _ if stars > 1 || stars == 1 && !url.ends_with("/*") => "wildcard can only do suffix matching",
        _ => return,
    };
    errors.invalid(path.clone(), url, problem);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(rule: Value) -> String {
        let mut errors = Errors::default();
        validate_rule(&rule, &Path::new("rule"), &mut errors);
        errors.to_string()
    }

    #[test]
    fn a_star_stands_alone_and_names_are_names() {
        let rule = json!({
            "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"namespace": "A", "name": "*"}}],
            "resourceRules": [{"verbs": ["*", "get"], "apiGroups": ["*"], "resources": ["pods"], "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["peek"], "nonResourceURLs": ["/healthz", "/a*b"]}],
        });
        let text = errors(rule);
        assert!(text.contains("rule.subjects[0].serviceAccount.namespace: Invalid value: \"A\": a lowercase RFC 1123 label"), "{text}");
        assert!(text.contains("resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs"), "{text}");
        assert!(text.contains("nonResourceRules[0].verbs: Unsupported value: [\"peek\"]: supported values: \"create\", "), "{text}");
        assert!(text.ends_with("nonResourceURLs[1]: Invalid value: \"/a*b\": wildcard can only do suffix matching]"), "{text}");
    }
}
