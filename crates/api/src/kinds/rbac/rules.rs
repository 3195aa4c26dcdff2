//! What the four kinds of RBAC share: rules of roles, role references and subjects of bindings.

use crate::{
    field::{Errors, Path},
    internal,
    kinds::{
        checks,
        values::{each, fill, list, made, put, text},
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

/// A role shows its rules even if it has none.
pub fn default_role(role: &mut Value) {
    if role.get("rules").is_none_or(Value::is_null) {
        put(role, "rules", Value::Null);
    }
}
/// Groups that can only be one.
pub fn default_binding(binding: &mut Value) {
    fill(made(binding, "roleRef"), "apiGroup", GROUP);
    each(binding, "subjects", |subject| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            fill(subject, "apiGroup", GROUP);
        }
    });
}

/// Checks the rules of a role.
pub fn validate_rules(role: &Value, namespaced: bool, errors: &mut Errors) {
    for (i, rule) in list(role, "rules").iter().enumerate() {
        let path = Path::new("rules").index(i);
        if list(rule, "verbs").is_empty() {
            errors.required(path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = list(rule, "nonResourceURLs");
        if !urls.is_empty() {
            let at = path.child("nonResourceURLs");
            if namespaced {
                errors.invalid(at.clone(), Value::from(urls.to_vec()), "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|key| !list(rule, key).is_empty()) {
                errors.invalid(at, Value::from(urls.to_vec()), "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            errors.required(path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if list(rule, "resources").is_empty() {
            errors.required(path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

/// Checks a binding. `kinds` are the roles that it may refer to.
pub fn validate_binding(binding: &Value, old: Option<&Value>, kinds: &[&str], namespaced: bool, errors: &mut Errors) {
    let nothing = Value::Null;
    let reference = binding.get("roleRef").unwrap_or(&nothing);
    let path = Path::new("roleRef");
    if text(reference, "apiGroup") != GROUP {
        errors.not_supported(path.child("apiGroup"), text(reference, "apiGroup"), &[GROUP]);
    }
    if !kinds.contains(&text(reference, "kind")) {
        errors.not_supported(path.child("kind"), text(reference, "kind"), kinds);
    }
    checks::required_checked(reference, "name", &path, checks::path_segment, errors);
    for (i, subject) in list(binding, "subjects").iter().enumerate() {
        let path = Path::new("subjects").index(i);
        let (kind, group) = (text(subject, "kind"), text(subject, "apiGroup"));
        let named = checks::required(subject, "name", &path, errors);
        match kind {
            "ServiceAccount" => {
                if named {
                    checks::checked(subject, "name", &path, crate::names::dns1123_subdomain, errors);
                }
                if !group.is_empty() {
                    errors.not_supported(path.child("apiGroup"), group, &[""]);
                }
                if !namespaced && text(subject, "namespace").is_empty() {
                    errors.required(path.child("namespace"), "");
                }
            }
            "User" | "Group" if group != GROUP => errors.not_supported(path.child("apiGroup"), group, &[GROUP]),
            "User" | "Group" => {}
            other => errors.not_supported(path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
    if let Some(old) = old
        && old.get("roleRef") != binding.get("roleRef")
    {
        errors.invalid_structure(path, &internal::show("rbac.v1.RoleRef", reference), "cannot change roleRef");
    }
}

/// The cells of a binding.
pub fn binding_cells(binding: &Value, now_unix_s: i64) -> Vec<Value> {
    let of = |kind: &str, name: &dyn Fn(&Value) -> String| {
        let names: Vec<String> = list(binding, "subjects").iter().filter(|s| text(s, "kind") == kind).map(name).collect();
        json!(names.join(", "))
    };
    let name = |subject: &Value| text(subject, "name").to_string();
    let account = |subject: &Value| format!("{}/{}", text(subject, "namespace"), text(subject, "name"));
    let role = format!("{}/{}", binding.str_at("roleRef.kind").unwrap_or_default(), binding.str_at("roleRef.name").unwrap_or_default());
    vec![table::name(binding), json!(role), table::age(binding, now_unix_s), of("User", &name), of("Group", &name), of("ServiceAccount", &account)]
}
