//! ValidatingAdmissionPolicy of admissionregistration.k8s.io. Its expressions are compiled where they are run.

use super::rules;
use crate::{
    cel::Type,
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        values::{list, put, text},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .status()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(ValidatingAdmissionPolicies)
}

struct ValidatingAdmissionPolicies;

impl Hooks for ValidatingAdmissionPolicies {
    fn default(&self, policy: &mut Value) {
        rules::default_policy(policy);
    }
    fn prepare_create(&self, policy: &mut Value) {
        put(policy, "status", json!({}));
    }
    fn validate(&self, policy: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(policy), Path::new("spec"));
        rules::validate_policy(spec, &path, errors);
        let scope = rules::policy_scope(spec, &path, errors);
        let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            for key in ["validations", "auditAnnotations"] {
                errors.required(path.child(key), "validations or auditAnnotations must contain at least one item");
            }
        }
        for (i, annotation) in annotations.iter().enumerate() {
            let path = path.child("auditAnnotations").index(i);
            // The annotation's name in the audit log is the policy's name before this one.
            let key = text(annotation, "key");
            let whole = format!("{}/{key}", policy.name());
            errors.invalid_all(&path.child("key"), whole.as_str(), names::qualified_name(&whole));
            let source = text(annotation, "valueExpression");
            if source.trim().is_empty() {
                errors.required(path.child("valueExpression"), "valueExpression is not specified");
            } else {
                rules::expression(source, &scope, &[Type::String, Type::Null], path.child("valueExpression"), errors);
            }
            if annotations[..i].iter().any(|other| text(other, "key") == key) {
                errors.duplicate(path.child("key"), key);
            }
        }
        for (i, validation) in validations.iter().enumerate() {
            let path = path.child("validations").index(i);
            if text(validation, "expression").trim().is_empty() {
                errors.required(path.child("expression"), "expression is not specified");
            } else {
                rules::expression(text(validation, "expression"), &scope, &[Type::Bool], path.child("expression"), errors);
            }
            let message = text(validation, "messageExpression");
            if !message.trim().is_empty() {
                rules::expression(message, &scope, &[Type::String], path.child("messageExpression"), errors);
            }
            if text(validation, "message").contains('\n') {
                errors.invalid(path.child("message"), text(validation, "message"), "must not contain line breaks");
            }
            checks::one_of(validation, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], &path, errors);
        }
    }
    fn cells(&self, policy: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(policy);
        vec![table::name(policy), json!(list(spec, "validations").len()), json!(rules::param_kind(spec)), table::age(policy, now_unix_s)]
    }
}
