//! MutatingAdmissionPolicy of admissionregistration.k8s.io. Its expressions are compiled where they are run.

use super::rules;
use crate::{
    cel::{Type, policy::Scope},
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        values::{has, list, member, text},
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
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(MutatingAdmissionPolicies)
}

struct MutatingAdmissionPolicies;

/// Whether an expression makes what its kind of mutation is made of; the error says what it makes instead.
fn makes(member: &str, type_: &Type) -> Result<(), String> {
    let (wanted, shown) = match (member, type_) {
        (_, Type::Dyn) => return Ok(()),
        ("applyConfiguration", type_) => ("Object", type_.to_string()),
        // A list of nothing is a list of anything, and that is not what is wanted.
        (_, Type::List(items)) if matches!(**items, Type::Param(_)) => ("list(JSONPatch)", "list(dyn)".to_string()),
        (_, type_) => ("list(JSONPatch)", type_.to_string()),
    };
    if shown == wanted { Ok(()) } else { Err(format!("must evaluate to {wanted} but got {shown}")) }
}

impl Hooks for MutatingAdmissionPolicies {
    fn default(&self, policy: &mut Value) {
        rules::default_policy(policy);
    }
    fn validate(&self, policy: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(policy), Path::new("spec"));
        rules::validate_policy(spec, &path, errors);
        let scope = rules::policy_scope(spec, &path, errors);
        let scope = Scope { mutation: true, ..scope };
        let mutations = list(spec, "mutations");
        if mutations.is_empty() {
            errors.required(path.child("mutations"), "mutations must contain at least one item");
        }
        for (i, mutation) in mutations.iter().enumerate() {
            let path = path.child("mutations").index(i);
            let (own, other) = match text(mutation, "patchType") {
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
            if !has(mutation, own) {
                errors.required(path.child(own), &format!("must be specified when patchType is {}", text(mutation, "patchType")));
            }
            let source = mutation.get(own).map(|own| text(own, "expression")).unwrap_or_default();
            if !source.trim().is_empty()
                && let Err(why) =
                    scope.compile(source).map_err(|why| format!("compilation failed: {why}")).and_then(|program| makes(own, &program.type_))
            {
                errors.invalid(path.child(own).child("expression"), source, &why);
            }
            if has(mutation, other) {
                let why = format!("must not be specified when patchType is {}", text(mutation, "patchType"));
                errors.invalid(path.child(other), format!("{{{other}}}"), &why);
            }
        }
        if let Some(matched) = member(spec, "matchConstraints") {
            rules::mutable_operations(matched, &path.child("matchConstraints"), errors);
        }
        match text(spec, "reinvocationPolicy") {
            "" => errors.required(path.child("reinvocationPolicy"), ""),
            _ => checks::one_of(spec, "reinvocationPolicy", &["Never", "IfNeeded"], &path, errors),
        }
    }
    fn warnings(&self, policy: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(policy)
    }
    fn cells(&self, policy: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(policy);
        vec![table::name(policy), json!(list(spec, "mutations").len()), json!(rules::param_kind(spec)), table::age(policy, now_unix_s)]
    }
}
