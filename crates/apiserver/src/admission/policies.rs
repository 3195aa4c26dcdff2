//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: expressions that refuse or change objects, bound by bindings, with
//! parameters.
//!
//! Compiled policies are kept by their version, so a write pays only for what its policies compute. Where there is no binding,
//! a write pays one look at two empty caches.

use super::{
    AdmissionContext, Operation, Plugin, connections,
    expressions::{self, Asker, Input},
    matching,
};
use crate::cache::{Entry, ResourceCache};
use api::{
    Status, Value, apply,
    cel::{Program, Type, Val, policy::Scope},
    merge,
    object::ObjectExt,
    selector::LabelSelector,
};
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};
use store::Revision;

const GROUP: &str = "admissionregistration.k8s.io";
/// What all expressions of one policy may cost on one request.
const POLICY_COST_MAX: u64 = 10_000_000;
/// Objects that one binding may take its parameters from.
const PARAMS_MAX: usize = 1000;
/// Characters of one annotation of the audit log.
const NOTE_CHARS_MAX: usize = 10 * 1024;
/// Under which name the audit log is told what policies with the action `Audit` found.
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// A policy, compiled.
struct Policy {
    name: String,
    spec: Value,
    fails: bool,
    conditions: Vec<(String, Option<Program>)>,
    variables: Vec<(String, Option<Program>)>,
    checks: Vec<Check>,
    /// Keys and expressions of what the audit log is told.
    notes: Vec<(String, Option<Program>)>,
    mutations: Vec<(bool, Option<Program>)>,
}

struct Check {
    expression: String,
    program: Option<Program>,
    message: String,
    message_expression: Option<Program>,
    reason: String,
}

impl Policy {
    fn of(policy: &Value) -> Policy {
        let spec = policy.get("spec").cloned().unwrap_or_default();
        let text = |value: &Value, key: &str| value.str_at(key).unwrap_or_default().to_string();
        let mut scope = Scope { params: spec.at("paramKind").is_some(), authorizer: true, namespace_object: true, ..Scope::default() };
        let compile = |scope: &Scope, source: &str, wanted: &[Type]| scope.check(source, wanted).ok();
        let conditions =
            spec.list_at("matchConditions").iter().map(|c| (text(c, "name"), compile(&scope, &text(c, "expression"), &[Type::Bool]))).collect();
        let mut variables = vec![];
        for variable in spec.list_at("variables") {
            let program = scope.compile(&text(variable, "expression")).ok();
            scope.variables.push((text(variable, "name"), program.as_ref().map_or(Type::Dyn, |program| program.type_.clone())));
            variables.push((text(variable, "name"), program));
        }
        let checks = spec.list_at("validations").iter().map(|check| {
            let expression = text(check, "expression");
            Check {
                program: compile(&scope, &expression, &[Type::Bool]),
                message: text(check, "message"),
                message_expression: check.str_at("messageExpression").and_then(|source| compile(&scope, source, &[Type::String])),
                reason: text(check, "reason"),
                expression,
            }
        });
        let checks = checks.collect();
        let notes =
            spec.list_at("auditAnnotations").iter().map(|note| (text(note, "key"), scope.compile(&text(note, "valueExpression")).ok())).collect();
        let mutating = Scope { mutation: true, ..scope.clone() };
        let mutations = spec.list_at("mutations").iter().map(|mutation| {
            let is_patch = mutation.str_at("patchType") == Some("JSONPatch");
            let source = mutation.str_at(if is_patch { "jsonPatch.expression" } else { "applyConfiguration.expression" });
            (is_patch, source.and_then(|source| mutating.compile(source).ok()))
        });
        let mutations = mutations.collect();
        Policy { name: policy.name().into(), fails: text(&spec, "failurePolicy") != "Ignore", conditions, variables, checks, notes, mutations, spec }
    }
}

/// Policies of one sort and what is bound to them.
struct Sort {
    policies: &'static str,
    bindings: &'static str,
    caches: OnceLock<(Arc<ResourceCache>, Arc<ResourceCache>)>,
    compiled: Mutex<HashMap<String, (Revision, Arc<Policy>)>>,
}

impl Sort {
    fn new(policies: &'static str, bindings: &'static str) -> Sort {
        Sort { policies, bindings, caches: OnceLock::new(), compiled: Mutex::default() }
    }

    fn caches(&self, cx: &AdmissionContext<'_>) -> &(Arc<ResourceCache>, Arc<ResourceCache>) {
        self.caches.get_or_init(|| (cx.server.cache.resource(GROUP, self.policies), cx.server.cache.resource(GROUP, self.bindings)))
    }

    /// Whether there are any at all.
    fn any(&self, cx: &AdmissionContext<'_>) -> bool {
        let (policies, bindings) = self.caches(cx);
        !policies.is_empty() && !bindings.is_empty()
    }

    fn policy(&self, entry: &Entry) -> Arc<Policy> {
        let mut compiled = self.compiled.lock();
        if let Some((revision, policy)) = compiled.get(entry.name())
            && *revision == entry.revision
        {
            return policy.clone();
        }
        let policy = Arc::new(Policy::of(&entry.value()));
        compiled.insert(entry.name().to_string(), (entry.revision, policy.clone()));
        policy
    }

    /// All policies with their bindings, in order of names.
    fn bound(&self, cx: &AdmissionContext<'_>) -> Vec<(Arc<Policy>, Vec<Value>)> {
        let (policies, bindings) = self.caches(cx);
        if policies.is_empty() || bindings.is_empty() || matching::is_exempt(cx) {
            return vec![];
        }
        let bindings: Vec<Value> = bindings.snapshot().entries(None).map(|entry| entry.value()).collect();
        let snapshot = policies.snapshot();
        let all = snapshot.entries(None).filter_map(|entry| {
            let own: Vec<Value> = bindings.iter().filter(|binding| binding.str_at("spec.policyName") == Some(entry.name())).cloned().collect();
            (!own.is_empty()).then(|| (self.policy(entry), own))
        });
        all.collect()
    }
}

/// The objects that a binding takes its parameters from; null where the policy has none.
fn params(cx: &AdmissionContext<'_>, policy: &Policy, binding: &Value) -> Result<Vec<Value>, String> {
    let Some(kind) = policy.spec.get("paramKind") else { return Ok(vec![Value::Null]) };
    let Some(reference) = binding.at("spec.paramRef") else { return Ok(vec![Value::Null]) };
    let (group, _) = kind.api_version().rsplit_once('/').unwrap_or(("", kind.api_version()));
    let catalogue = cx.server.catalogue.load();
    let Some(record) = catalogue.kind(group, kind.kind()) else {
        return Err(format!("failed to find resource referenced by paramKind: '{}, Kind={}'", kind.api_version(), kind.kind()));
    };
    let namespace = match (record.namespaced_scope(), reference.str_at("namespace")) {
        (false, _) => "",
        (true, Some(namespace)) if !namespace.is_empty() => namespace,
        (true, _) if cx.namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, _) => cx.namespace,
    };
    let cache = cx.server.cache.of(record);
    let found: Vec<Value> = match reference.str_at("name").filter(|name| !name.is_empty()) {
        Some(name) => cache.get(namespace, name).map(|entry| entry.value()).into_iter().collect(),
        None => {
            let selector = reference.get("selector").map(LabelSelector::from_value).transpose()?.unwrap_or_default();
            let snapshot = cache.snapshot();
            let entries = snapshot.entries(Some(namespace).filter(|namespace| !namespace.is_empty()));
            entries.filter(|entry| selector.matches(|key| entry.label(key))).take(PARAMS_MAX).map(|entry| entry.value()).collect()
        }
    };
    match (found.is_empty(), reference.str_at("parameterNotFoundAction")) {
        (true, Some("Allow")) => Ok(vec![]),
        (true, _) => Err("no params found for policy binding with `Deny` parameterNotFoundAction".into()),
        _ => Ok(found),
    }
}

/// Whether policy and binding are about the request, and in which version the policy wants to see it.
fn concerns(policy: &Policy, binding: &Value, cx: &AdmissionContext<'_>, object: &Value) -> Option<String> {
    let version =
        policy.spec.get("matchConstraints").map_or(Some(cx.request_version().to_string()), |m| matching::matches(m, "resourceRules", cx, object))?;
    match binding.at("spec.matchResources") {
        Some(resources) => matching::matches(resources, "resourceRules", cx, object).map(|_| version),
        None => Some(version),
    }
}

/// What a policy finds wrong: the message, and the reason of the answer.
struct Finding {
    message: String,
    reason: String,
    /// Which of the policy's validations.
    index: Option<usize>,
}

pub struct ValidatingPolicies(Sort);

impl Default for ValidatingPolicies {
    fn default() -> ValidatingPolicies {
        ValidatingPolicies(Sort::new("validatingadmissionpolicies", "validatingadmissionpolicybindings"))
    }
}

/// All that one policy with one set of parameters finds. Errors of a policy that may fail are no findings. `notes` takes what the audit
/// log is told, by key.
fn judge(
    policy: &Policy,
    cx: &AdmissionContext<'_>,
    object: &Value,
    version: &str,
    params: Value,
    notes: &mut BTreeMap<String, Vec<String>>,
) -> Vec<Finding> {
    let input = Input::of(cx, object, version, params);
    let asker = Asker::new(cx);
    let names = expressions::variables(&input, Some(&asker));
    let mut budget = POLICY_COST_MAX;
    let failed = |message: String| if policy.fails { vec![Finding { message, reason: "Invalid".into(), index: None }] } else { vec![] };
    match expressions::conditions_hold(&policy.conditions, &names, &mut budget) {
        Ok(true) => {}
        Ok(false) => return vec![],
        Err(why) => return failed(why),
    }
    let names = expressions::with_computed(names, &policy.variables, &mut budget);
    let mut findings = vec![];
    for (index, check) in policy.checks.iter().enumerate() {
        let expression = check.expression.trim();
        let Some(program) = &check.program else {
            findings.extend(failed(format!("expression '{expression}' resulted in error: it cannot be compiled")));
            continue;
        };
        match expressions::run(program, &names, &mut budget) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => {
                let computed = check.message_expression.as_ref().and_then(|program| match expressions::run(program, &names, &mut budget) {
                    Ok(Val::String(text)) if !text.trim().is_empty() && !text.contains('\n') => Some(text.trim().to_string()),
                    _ => None,
                });
                let given = Some(check.message.trim().to_string()).filter(|message| !message.is_empty());
                let message = computed.or(given).unwrap_or_else(|| format!("failed expression: {expression}"));
                let reason = if check.reason.is_empty() { "Invalid".to_string() } else { check.reason.clone() };
                findings.push(Finding { message, reason, index: Some(index) });
            }
            Err(why) => findings.extend(failed(format!("expression '{expression}' resulted in error: {why}"))),
        }
    }
    for (key, program) in &policy.notes {
        let value =
            program.as_ref().ok_or_else(|| "it cannot be compiled".to_string()).and_then(|program| expressions::run(program, &names, &mut budget));
        match value {
            Ok(Val::String(text)) => {
                let (said, text) = (notes.entry(key.clone()).or_default(), text.trim());
                if !text.is_empty() && !said.iter().any(|known| known == text) {
                    said.push(text.chars().take(NOTE_CHARS_MAX).collect());
                }
            }
            Ok(_) => {}
            Err(why) => findings.extend(failed(format!("auditAnnotation {key:?} resulted in error: {why}"))),
        }
    }
    findings
}

fn refuse(cx: &AdmissionContext<'_>, object: &Value, what: &str, finding: &Finding) -> Status {
    let said = format!("{what} denied request: {}", finding.message);
    let mut status = cx.forbidden(object, &said);
    let (code, reason) = match finding.reason.as_str() {
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        "Unauthorized" => (401, "Unauthorized"),
        _ => (422, "Invalid"),
    };
    status.code = code;
    status.reason = reason.into();
    status.with_cause("", said, "")
}

#[async_trait::async_trait]
impl Plugin for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }
    fn shows(&self, cx: &AdmissionContext<'_>) -> bool {
        self.0.any(cx)
    }
    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let mut audited = Vec::new();
        for (policy, bindings) in self.0.bound(cx) {
            for binding in bindings {
                let Some(version) = concerns(&policy, &binding, cx, object) else { continue };
                let what = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.name, binding.name());
                let mut notes = BTreeMap::new();
                let findings: Vec<Finding> = match params(cx, &policy, &binding) {
                    Ok(all) => all.into_iter().flat_map(|params| judge(&policy, cx, object, &version, params, &mut notes)).collect(),
                    Err(why) if policy.fails => {
                        vec![Finding { message: format!("failed to configure binding: {why}"), reason: "Invalid".into(), index: None }]
                    }
                    Err(_) => vec![],
                };
                for (key, said) in notes {
                    cx.warnings.annotate(&format!("{}/{key}", policy.name), &said.join(", "));
                }
                let acts = |action: &str| binding.list_at("spec.validationActions").iter().any(|known| known == action);
                if acts("Audit") && !findings.is_empty() {
                    audited.extend(findings.iter().map(|finding| failure(&policy, &binding, finding)));
                    cx.warnings.annotate(FAILURES, &Value::Array(audited.clone()).to_string());
                }
                for finding in &findings {
                    if acts("Warn") {
                        cx.warnings.add(format!("Validation failed for {what}: {}", finding.message));
                    }
                    if acts("Deny") {
                        return Err(refuse(cx, object, &what, finding));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A finding as the audit log is told of it.
fn failure(policy: &Policy, binding: &Value, finding: &Finding) -> Value {
    json!({
        "message": finding.message, "policy": policy.name, "binding": binding.name(), "expressionIndex": finding.index.unwrap_or_default(),
        "validationActions": binding.list_at("spec.validationActions"),
    })
}

pub struct MutatingPolicies(Sort);

impl Default for MutatingPolicies {
    fn default() -> MutatingPolicies {
        MutatingPolicies(Sort::new("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"))
    }
}

/// The object after one policy's mutations; `None` if its conditions leave it alone.
fn mutated(policy: &Policy, cx: &AdmissionContext<'_>, object: &Value, version: &str, params: Value) -> Result<Option<Value>, String> {
    let mut shown = cx.shown(object, version);
    for (is_patch, program) in &policy.mutations {
        let input = Input { object: shown.clone(), ..Input::of(cx, object, version, params.clone()) };
        let asker = Asker::new(cx);
        let names = expressions::variables(&input, Some(&asker));
        let mut budget = POLICY_COST_MAX;
        if !expressions::conditions_hold(&policy.conditions, &names, &mut budget)? {
            return Ok(None);
        }
        let names = expressions::with_computed(names, &policy.variables, &mut budget);
        let program = program.as_ref().ok_or("its expression cannot be compiled")?;
        let made = expressions::run(program, &names, &mut budget)?;
        let made = made.to_json().ok_or("its expression gives no object")?;
        shown = if *is_patch {
            let operations: Vec<Value> = made.as_array().cloned().unwrap_or_default();
            let why = |status: Status| merge::json_patch_problem(&shown, &operations).unwrap_or(status.message);
            merge::json_patch(&shown, &bytes::Bytes::from(json!(operations).to_string())).map_err(|status| format!("JSON Patch: {}", why(status)))?
        } else {
            let forbidden = ["apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.uid"];
            if let Some(field) = forbidden.iter().find(|field| made.at(field).is_some_and(|value| Some(value) != shown.at(field))) {
                return Err(format!("error applying patch: invalid ApplyConfiguration: may not mutate {field}"));
            }
            apply::merged(&shown, &made, cx.kind, version).map_err(|why| format!("error applying patch: {why}"))?
        };
    }
    Ok(Some(cx.stored(shown, version)))
}

#[async_trait::async_trait]
impl Plugin for MutatingPolicies {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }
    fn asks_outside(&self) -> bool {
        true
    }
    fn shows(&self, cx: &AdmissionContext<'_>) -> bool {
        self.0.any(cx)
    }
    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if matches!(cx.operation, Operation::Delete | Operation::Connect) || connections::is_posted(cx) {
            return Ok(());
        }
        for (policy, bindings) in self.0.bound(cx) {
            for binding in bindings {
                let who = format!("policy {} {}", policy.name, binding.name());
                if !cx.rounds.concern(&who) {
                    continue;
                }
                let Some(version) = concerns(&policy, &binding, cx, object) else { continue };
                let all = match params(cx, &policy, &binding) {
                    Ok(all) => all,
                    Err(why) if policy.fails => {
                        return Err(failed_policy(cx, object, &policy, &binding, &format!("failed to configure binding: {why}")));
                    }
                    Err(_) => continue,
                };
                for params in all {
                    match mutated(&policy, cx, object, &version, params) {
                        Ok(Some(mut changed)) => {
                            cx.kind.hooks.default(&mut changed);
                            if changed != *object {
                                *object = changed;
                                cx.rounds.changed();
                            }
                        }
                        Ok(None) => {}
                        Err(why) if policy.fails => return Err(failed_policy(cx, object, &policy, &binding, &why)),
                        Err(_) => {}
                    }
                }
                if policy.spec.str_at("reinvocationPolicy") == Some("IfNeeded") {
                    cx.rounds.asked(who);
                }
            }
        }
        Ok(())
    }
}

fn failed_policy(cx: &AdmissionContext<'_>, object: &Value, policy: &Policy, binding: &Value, why: &str) -> Status {
    let message = why.to_string();
    let what = format!("policy '{}' with binding '{}'", policy.name, binding.name());
    let status = refuse(cx, object, &what, &Finding { message, reason: "Invalid".into(), index: None });
    // Kubernetes keeps the code of a refusal here, whatever the reason, and does not say what is refused.
    Status { code: 403, message: format!("{what} denied request: {why}"), ..status }
}
