//! ValidatingAdmissionPolicy of admissionregistration.k8s.io. Its expressions are compiled where they are run.

use super::rules;
use crate::{
    cel::{Type, policy::Scope},
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks, conditions,
        values::{list, member, put, text},
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
        .status_alone()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(ValidatingAdmissionPolicies)
}

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_BYTES_MAX: usize = 5 * 1024;

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
        // Messages are made without asking who may do what.
        let message_scope = Scope { authorizer: false, ..scope.clone() };
        for (i, validation) in validations.iter().enumerate() {
            let path = path.child("validations").index(i);
            if text(validation, "expression").trim().is_empty() {
                errors.required(path.child("expression"), "expression is not specified");
            } else {
                rules::expression(text(validation, "expression"), &scope, &[Type::Bool], path.child("expression"), errors);
            }
            let (source, message) = (text(validation, "messageExpression"), text(validation, "message"));
            if !source.is_empty() && source.trim().is_empty() {
                errors.invalid(path.child("messageExpression"), source, "must be non-empty if specified");
            } else if !source.is_empty() {
                rules::expression(source, &message_scope, &[Type::String], path.child("messageExpression"), errors);
            }
            if !message.is_empty() && message.trim().is_empty() {
                errors.invalid(path.child("message"), message, "must be non-empty if specified");
            } else if message.trim().contains(['\n', '\r']) {
                errors.invalid(path.child("message"), message, "must not contain line breaks");
            }
            checks::one_of(validation, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], &path, errors);
        }
        if annotations.len() > ANNOTATIONS_MAX {
            let shown = internal::show_all("admissionregistration.v1.AuditAnnotation", annotations);
            let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
            errors.invalid_structure(path.child("auditAnnotations"), &shown, &detail);
        }
        for (i, annotation, again) in checks::distinct(annotations, |annotation| text(annotation, "key")) {
            let path = path.child("auditAnnotations").index(i);
            // The annotation's name in the audit log is the policy's name before this one.
            let key = text(annotation, "key");
            let whole = format!("{}/{key}", policy.name());
            errors.invalid_all(&path.child("key"), whole.as_str(), names::qualified_name(&whole));
            let source = text(annotation, "valueExpression");
            if source.trim().is_empty() {
                errors.required(path.child("valueExpression"), "valueExpression is not specified");
            } else if source.trim().len() > ANNOTATION_BYTES_MAX {
                let detail = format!("must not exceed {ANNOTATION_BYTES_MAX} bytes in length");
                errors.required(path.child("valueExpression"), &detail);
            } else {
                rules::expression(source, &scope, &[Type::String, Type::Null], path.child("valueExpression"), errors);
            }
            if again {
                errors.duplicate(path.child("key"), key);
            }
        }
    }
    fn validate_status(&self, policy: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(policy), Path::new("status"));
        if let Some(checked) = member(status, "typeChecking") {
            for (i, warning) in list(checked, "expressionWarnings").iter().enumerate() {
                let path = path.child("typeChecking").child("expressionWarnings").index(i);
                checks::required(warning, "warning", &path, errors);
                checks::required(warning, "fieldRef", &path, errors);
            }
        }
        conditions::validate(status, &path, errors);
    }
    fn warnings(&self, policy: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(policy)
    }
    fn cells(&self, policy: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(policy);
        vec![table::name(policy), json!(list(spec, "validations").len()), json!(rules::param_kind(spec)), table::age(policy, now_unix_s)]
    }
}
