//! MutatingAdmissionPolicyBinding of admissionregistration.k8s.io.

use super::rules;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        values::{member, text},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(MutatingAdmissionPolicyBindings)
}

struct MutatingAdmissionPolicyBindings;

impl Hooks for MutatingAdmissionPolicyBindings {
    fn default(&self, binding: &mut Value) {
        rules::default_binding(binding);
    }
    fn validate(&self, binding: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(binding), Path::new("spec"));
        rules::validate_binding(spec, &path, errors);
        if let Some(matched) = member(spec, "matchResources") {
            rules::mutable_operations(matched, &path.child("matchResources"), errors);
        }
    }
    fn warnings(&self, binding: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(binding)
    }
    fn cells(&self, binding: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(binding);
        vec![table::name(binding), json!(text(spec, "policyName")), json!(rules::param_reference(spec)), table::age(binding, now_unix_s)]
    }
}
