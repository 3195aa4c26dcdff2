//! RoleBinding of rbac.authorization.k8s.io.

use super::rules;
use crate::{
    field::Errors,
    kind::{Hooks, Kind, NameRule},
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
        .names(NameRule::PathSegment)
        .create_on_update()
        .hooks(RoleBindings)
}

struct RoleBindings;

impl Hooks for RoleBindings {
    fn default(&self, binding: &mut Value) {
        rules::default_binding(binding);
    }
    fn validate(&self, binding: &Value, old: Option<&Value>, errors: &mut Errors) {
        rules::validate_binding(binding, old, &["Role", "ClusterRole"], true, errors);
    }
    fn cells(&self, binding: &Value, now_unix_s: i64) -> Vec<Value> {
        rules::binding_cells(binding, now_unix_s)
    }
}
