//! ValidatingAdmissionPolicyBinding of admissionregistration.k8s.io.

use super::rules;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        values::{strings, text},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(ValidatingAdmissionPolicyBindings)
}

struct ValidatingAdmissionPolicyBindings;

impl Hooks for ValidatingAdmissionPolicyBindings {
    fn default(&self, binding: &mut Value) {
        rules::default_binding(binding);
    }
    fn validate(&self, binding: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(binding), Path::new("spec"));
        rules::validate_binding(spec, &path, errors);
        actions(spec, &path, errors);
    }
    fn warnings(&self, binding: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(binding)
    }
    fn cells(&self, binding: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(binding);
        vec![table::name(binding), json!(text(spec, "policyName")), json!(rules::param_reference(spec)), table::age(binding, now_unix_s)]
    }
}

/// What happens on a failed validation.
fn actions(spec: &Value, path: &Path, errors: &mut Errors) {
    const ACTIONS: &[&str] = &["Audit", "Deny", "Warn"];
    let actions: Vec<&str> = strings(spec, "validationActions").collect();
    let path = path.child("validationActions");
    for (i, action, again) in checks::distinct(&actions, |action| *action) {
        if !ACTIONS.contains(action) {
            errors.not_supported(path.index(i), *action, ACTIONS);
        }
        if again {
            errors.duplicate(path.index(i), *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        errors.invalid(path.clone(), json!(actions), "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if actions.is_empty() {
        errors.required(path.clone(), "at least one validation action is required");
    }
}
