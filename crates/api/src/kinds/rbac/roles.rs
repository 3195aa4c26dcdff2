//! Role of rbac.authorization.k8s.io.

use super::rules;
use crate::{
    field::Errors,
    kind::{Hooks, Kind, NameRule},
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("rbac.authorization.k8s.io", "v1", "Role", "roles").names(NameRule::PathSegment).create_on_update().hooks(Roles)
}

struct Roles;

impl Hooks for Roles {
    fn default(&self, role: &mut Value) {
        rules::default_role(role);
    }
    fn validate(&self, role: &Value, _old: Option<&Value>, errors: &mut Errors) {
        rules::validate_rules(role, true, errors);
    }
}
