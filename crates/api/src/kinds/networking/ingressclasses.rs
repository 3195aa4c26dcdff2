//! IngressClass of networking.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{fill_absent, member, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "IngressClass", "ingressclasses").generation().hooks(IngressClasses)
}

const CONTROLLER_CHARS_MAX: usize = 250;

struct IngressClasses;

/// A reference to an object by group, kind and name.
pub fn typed_reference(reference: &Value, path: &Path, errors: &mut Errors) {
    if let Some(group) = member(reference, "apiGroup").and_then(Value::as_str) {
        errors.invalid_all(&path.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
    checks::required_checked(reference, "kind", path, checks::path_segment, errors);
    checks::required_checked(reference, "name", path, checks::path_segment, errors);
}

impl Hooks for IngressClasses {
    fn default(&self, class: &mut Value) {
        within(class, "spec", |spec| within(spec, "parameters", |parameters| fill_absent(parameters, "scope", "Cluster")));
    }
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(class), Path::new("spec"));
        if let Some(old) = old {
            checks::immutable(spec.get("controller"), workload::spec(old).get("controller"), &path.child("controller"), errors);
        }
        let controller = text(spec, "controller");
        if controller.len() > CONTROLLER_CHARS_MAX {
            errors.too_long(path.child("controller"), "", CONTROLLER_CHARS_MAX);
        }
        if checks::required(spec, "controller", &path, errors) {
            checks::domain_prefixed(controller, &path.child("controller"), errors);
        }
        if let Some(parameters) = member(spec, "parameters") {
            let path = path.child("parameters");
            typed_reference(parameters, &path, errors);
            let scope = text(parameters, "scope");
            match (scope, member(parameters, "namespace").and_then(Value::as_str)) {
                ("Namespace", None) => errors.required(path.child("namespace"), "`parameters.scope` is set to 'Namespace'"),
                ("Namespace", Some(namespace)) => errors.invalid_all(&path.child("namespace"), namespace, names::dns1123_label(namespace)),
                ("Cluster", Some(_)) => errors.forbidden(path.child("namespace"), "`parameters.scope` is set to 'Cluster'"),
                ("Cluster", None) => {}
                _ => errors.not_supported(path.child("scope"), scope, &["Cluster", "Namespace"]),
            }
        }
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(class);
        let parameters = match member(spec, "parameters") {
            None => "<none>".to_string(),
            Some(p) => {
                let group = p.str_at("apiGroup").map(|group| format!(".{group}")).unwrap_or_default();
                let kind = format!("{}{group}", text(p, "kind"));
                format!("{kind}/{}", text(p, "name"))
            }
        };
        vec![table::name(class), json!(text(spec, "controller")), json!(parameters), table::age(class, now_unix_s)]
    }
}
