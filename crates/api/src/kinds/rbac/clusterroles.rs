//! ClusterRole of rbac.authorization.k8s.io.

use super::rules;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::values::{list, member},
    selector,
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
        .names(NameRule::PathSegment)
        .create_on_update()
        .hooks(ClusterRoles)
}

struct ClusterRoles;

impl Hooks for ClusterRoles {
    fn default(&self, role: &mut Value) {
        rules::default_role(role);
    }
    fn validate(&self, role: &Value, _old: Option<&Value>, errors: &mut Errors) {
        rules::validate_rules(role, false, errors);
        let Some(aggregation) = member(role, "aggregationRule") else { return };
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = list(aggregation, "clusterRoleSelectors");
        if selectors.is_empty() {
            errors.required(path.clone(), "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (i, one) in selectors.iter().enumerate() {
            let before = errors.0.len();
            selector::validate(one, &path.index(i), errors);
            if errors.0.len() > before {
                errors.invalid(path.index(i), Value::Null, "invalid label selector.");
            }
        }
    }
}
