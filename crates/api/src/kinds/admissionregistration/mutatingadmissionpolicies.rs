//! MutatingAdmissionPolicy of admissionregistration.k8s.io. Its expressions are compiled where they are run.

use super::rules;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{has, list, text},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .hooks(MutatingAdmissionPolicies)
}

struct MutatingAdmissionPolicies;

impl Hooks for MutatingAdmissionPolicies {
    fn default(&self, policy: &mut Value) {
        rules::default_policy(policy);
    }
    fn validate(&self, policy: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(policy), Path::new("spec"));
        rules::validate_policy(spec, &path, errors);
        let scope = rules::policy_scope(spec, &path, errors);
        let mutations = list(spec, "mutations");
        if mutations.is_empty() {
            errors.required(path.child("mutations"), "mutations must contain at least one item");
        }
        for (i, mutation) in mutations.iter().enumerate() {
            let path = path.child("mutations").index(i);
            let (member, other) = match text(mutation, "patchType") {
                "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
                "JSONPatch" => ("jsonPatch", "applyConfiguration"),
                "" => {
                    errors.required(path.child("patchType"), "");
                    continue;
                }
                kind => {
                    errors.not_supported(path.child("patchType"), kind, &["ApplyConfiguration", "JSONPatch"]);
                    continue;
                }
            };
            if !has(mutation, member) {
                errors.required(path.child(member), &format!("must be specified when patchType is {}", text(mutation, "patchType")));
            }
            let source = mutation.get(member).map(|member| text(member, "expression")).unwrap_or_default();
            if !source.trim().is_empty()
                && let Err(why) = scope.compile(source)
            {
                errors.invalid(path.child(member).child("expression"), source, &format!("compilation failed: {why}"));
            }
            if has(mutation, other) {
                errors.forbidden(path.child(other), &format!("must not be specified when patchType is {}", text(mutation, "patchType")));
            }
        }
        match text(spec, "reinvocationPolicy") {
            "" => errors.required(path.child("reinvocationPolicy"), ""),
            _ => checks::one_of(spec, "reinvocationPolicy", &["Never", "IfNeeded"], &path, errors),
        }
    }
    fn cells(&self, policy: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(policy);
        vec![table::name(policy), json!(list(spec, "mutations").len()), json!(rules::param_kind(spec)), table::age(policy, now_unix_s)]
    }
}
