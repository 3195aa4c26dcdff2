//! ResourceClaimTemplate of resource.k8s.io.

use super::resourceclaims::default_spec;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{checks, values::made},
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates").hooks(ResourceClaimTemplates)
}

struct ResourceClaimTemplates;

impl Hooks for ResourceClaimTemplates {
    fn default(&self, template: &mut Value) {
        default_spec(made(made(template, "spec"), "spec"));
    }
    fn validate(&self, template: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            checks::immutable(template.get("spec"), old.get("spec"), &Path::new("spec"), errors);
        }
    }
}
