//! ResourceClaimTemplate of resource.k8s.io.

use super::resourceclaims;
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{checks, values::made, workload},
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates").hooks(ResourceClaimTemplates)
}

struct ResourceClaimTemplates;

impl Hooks for ResourceClaimTemplates {
    fn default(&self, template: &mut Value) {
        resourceclaims::default_spec(made(made(template, "spec"), "spec"));
    }
    fn validate(&self, template: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(template), Path::new("spec"));
        match old.map(workload::spec) {
            Some(old) if old != spec => {
                errors.invalid_structure(path, &internal::show("resource.v1.ResourceClaimTemplateSpec", spec), checks::IMMUTABLE)
            }
            Some(_) => {}
            None => {
                resourceclaims::template_metadata(spec.get("metadata").unwrap_or(&Value::Null), &path.child("metadata"), errors);
                resourceclaims::validate_spec(workload::spec(spec), &path.child("spec"), errors);
            }
        }
    }
}
