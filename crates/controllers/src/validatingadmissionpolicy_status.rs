//! The status of ValidatingAdmissionPolicies: what is wrong with their expressions for the kinds that they match, found by the types that
//! OpenAPI tells of. It only warns: a policy does what it does.
//!
//! What must stay true: a generation is looked at once; a type that cannot be known is left out; what could not be asked is asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::cel::openapi::Types;
use api::cel::policy::{Declared, Scope};
use api::cel::{Program, Type};
use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{ErrorExt, Informer, Key};
use k8s_openapi::api::admissionregistration::v1::{NamedRuleWithOperations, ParamKind, ValidatingAdmissionPolicy};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::Context;

/// Results of one rule that are looked at.
const TYPES_PER_RULE_MAX: usize = 10;
/// The biggest documents are some megabytes.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(PolicyStatus { policies: context.informers.all(), client: context.client.clone() })
}

struct PolicyStatus {
    policies: Informer<ValidatingAdmissionPolicy>,
    client: kube::Client,
}

#[async_trait]
impl Controller for PolicyStatus {
    fn name(&self) -> &'static str {
        "validatingadmissionpolicy-status-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.policies);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(policy) = self.policies.get(key) else { return Ok(Next::Done) };
        let generation = policy.metadata.generation.unwrap_or_default();
        let observed = policy.status.as_ref().and_then(|status| status.observed_generation).unwrap_or_default();
        if generation <= observed {
            return Ok(Next::Done);
        }
        let mut world = World { client: &self.client, kinds: BTreeMap::new(), documents: BTreeMap::new() };
        let matched = world.matched(&policy).await?;
        let params = match policy.spec.as_ref().and_then(|spec| spec.param_kind.as_ref()).and_then(param_kind) {
            Some(kind) => world.type_of(&kind).await?,
            None => None,
        };
        let mut types = Vec::with_capacity(matched.len());
        for kind in matched {
            if let Some(type_) = world.type_of(&kind).await? {
                types.push((kind, type_));
            }
        }
        let warnings = decide(&policy, &types, params.as_ref());
        let status = json!({"observedGeneration": generation, "typeChecking": if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) }});
        let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": key.name}, "status": status});
        match self.policies.apply_status(key, "validatingadmissionpolicy-status", &object).await {
            Err(error) if error.is_not_found() => Ok(Next::Done),
            outcome => Ok(outcome.map(|_| Next::Done)?),
        }
    }
}

/// What is asked of the API for one policy, each once.
struct World<'a> {
    client: &'a kube::Client,
    /// The kinds of the resources of a group and version.
    kinds: BTreeMap<(String, String), BTreeMap<String, String>>,
    documents: BTreeMap<(String, String), Value>,
}

impl World<'_> {
    /// The kinds that a policy names, in order.
    async fn matched(&mut self, policy: &ValidatingAdmissionPolicy) -> Result<BTreeSet<Matched>, Error> {
        let mut all = BTreeSet::new();
        let constraints = policy.spec.as_ref().and_then(|spec| spec.match_constraints.as_ref());
        for rule in constraints.into_iter().flat_map(|constraints| constraints.resource_rules.iter().flatten()) {
            let mut found = 0;
            for (group, version, resource) in named(rule) {
                let Some(kind) = self.kind_of(&group, &version, &resource).await? else { continue };
                all.insert(Matched { group, version, kind });
                found += 1;
                // All that was found so far is looked at, and no more of any rule: Kubernetes' own bound.
                if found == TYPES_PER_RULE_MAX {
                    return Ok(all);
                }
            }
        }
        Ok(all)
    }

    async fn kind_of(&mut self, group: &str, version: &str, resource: &str) -> Result<Option<String>, Error> {
        let key = (group.to_owned(), version.to_owned());
        if !self.kinds.contains_key(&key) {
            let answer = if group.is_empty() {
                self.client.list_core_api_resources(version).await
            } else {
                self.client.list_api_group_resources(&format!("{group}/{version}")).await
            };
            let kinds = match answer {
                Ok(list) => list.resources.into_iter().map(|each| (each.name, each.kind)).collect(),
                Err(error) if error.is_not_found() => BTreeMap::new(),
                Err(error) => return Err(error.into()),
            };
            self.kinds.insert(key.clone(), kinds);
        }
        Ok(self.kinds.get(&key).and_then(|kinds| kinds.get(resource)).cloned())
    }

    async fn type_of(&mut self, kind: &Matched) -> Result<Option<Type>, Error> {
        let key = (kind.group.clone(), kind.version.clone());
        if !self.documents.contains_key(&key) {
            let prefix = if kind.group.is_empty() { "api".to_owned() } else { format!("apis/{}", kind.group) };
            let request = http::Request::get(format!("/openapi/v3/{prefix}/{}", kind.version)).body(Vec::new());
            let request = request.map_err(|error| Error::NotYet(error.to_string()))?;
            let late = |_| kube::Error::Service("no answer in time".into());
            let document = match timeout(DOCUMENT_TIMEOUT, self.client.request::<Value>(request)).await.map_err(late)? {
                Ok(document) => document,
                Err(error) if error.is_not_found() => Value::Null,
                Err(error) => return Err(error.into()),
            };
            self.documents.insert(key.clone(), document);
        }
        Ok(self.documents.get(&key).and_then(|document| Types::of(document).of_kind(&kind.group, &kind.version, &kind.kind)))
    }
}

/// A kind that a policy matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Matched {
    group: String,
    version: String,
    kind: String,
}

impl std::fmt::Display for Matched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.group.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}, Kind={}", self.group, self.version, self.kind)
    }
}

fn param_kind(kind: &ParamKind) -> Option<Matched> {
    let api_version = kind.api_version.as_deref()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Some(Matched { group: group.to_owned(), version: version.to_owned(), kind: kind.kind.clone()? })
}

/// The resources that a rule names exactly, in order; none if its groups or versions are left open.
fn named(rule: &NamedRuleWithOperations) -> Vec<(String, String, String)> {
    let sorted = |names: &Option<Vec<String>>| {
        let mut names = names.clone().unwrap_or_default();
        names.sort();
        names
    };
    let (groups, versions) = (sorted(&rule.api_groups), sorted(&rule.api_versions));
    if groups.iter().chain(&versions).any(|name| name.contains('*')) {
        return Vec::new();
    }
    let resources: Vec<String> = sorted(&rule.resources).into_iter().filter(|resource| !resource.contains(['*', '/'])).collect();
    let mut all = Vec::new();
    for group in &groups {
        for version in &versions {
            all.extend(resources.iter().map(|resource| (group.clone(), version.clone(), resource.clone())));
        }
    }
    all
}

/// What is wrong with a policy's expressions for each of these types.
fn decide(policy: &ValidatingAdmissionPolicy, types: &[(Matched, Type)], params: Option<&Type>) -> Vec<Value> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let scopes: Vec<(&Matched, Scope)> = types
        .iter()
        .map(|(kind, type_)| {
            let mut scope = Scope {
                object: Some(type_.clone()),
                params: spec.param_kind.is_some(),
                params_type: params.cloned(),
                authorizer: true,
                namespace_object: true,
                variables: Declared::default(),
                mutation: false,
            };
            for variable in spec.variables.iter().flatten() {
                let of = scope.compile(&variable.expression).map_or(Type::Dyn, |Program { type_, .. }| type_);
                scope.variables.push((variable.name.clone(), of));
            }
            (kind, scope)
        })
        .collect();
    let mut warnings = Vec::new();
    let mut look = |place: String, source: &str| {
        let complaints: Vec<String> =
            scopes.iter().filter_map(|(kind, scope)| scope.compile(source).err().map(|why| format!("{kind}: {why}\n"))).collect();
        if !complaints.is_empty() {
            warnings.push(json!({"fieldRef": place, "warning": complaints.join("\n")}));
        }
    };
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        look(format!("spec.validations[{i}].expression"), &validation.expression);
        if let Some(message) = validation.message_expression.as_deref().filter(|message| !message.is_empty()) {
            look(format!("spec.validations[{i}].messageExpression"), message);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> ValidatingAdmissionPolicy {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a policy")
    }

    #[test]
    fn only_what_is_named_exactly_is_looked_at() {
        let rule = |groups: &[&str], versions: &[&str], resources: &[&str]| {
            let rule = json!({"apiGroups": groups, "apiVersions": versions, "resources": resources, "operations": ["*"]});
            named(&serde_json::from_value(rule).expect("a rule")).into_iter().map(|(_, _, resource)| resource).collect::<Vec<_>>()
        };
        assert_eq!(rule(&["apps"], &["v1"], &["deployments", "*", "deployments/scale", "daemonsets"]), ["daemonsets", "deployments"]);
        assert!(rule(&["*"], &["v1"], &["deployments"]).is_empty());
        assert!(rule(&["apps"], &["v1", "*"], &["deployments"]).is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_for_each_kind() {
        let schemas = |kind: &str, field: &str| {
            json!({"type": "object", "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": kind}],
                "properties": {field: {"type": "integer"}, "name": {"type": "string"}}})
        };
        let document = json!({"components": {"schemas": {"A": schemas("A", "replicas"), "B": schemas("B", "other")}}});
        let kinds = ["A", "B"].map(|kind| Matched { group: "apps".into(), version: "v1".into(), kind: kind.into() });
        let types = kinds.map(|kind| {
            let type_ = Types::of(&document).of_kind("apps", "v1", &kind.kind).expect("a type");
            (kind, type_)
        });
        let policy = policy(json!({
            "variables": [{"name": "r", "expression": "object.name"}],
            "validations": [
                {"expression": "object.name == 'a'", "messageExpression": "'x' + object.nam"},
                {"expression": "object.replicas > 1"},
                {"expression": "variables.r > 1"}]}));
        let warnings = decide(&policy, &types, None);
        let places: Vec<_> = warnings.iter().map(|warning| warning["fieldRef"].as_str().unwrap_or_default()).collect();
        assert_eq!(places, ["spec.validations[0].messageExpression", "spec.validations[1].expression", "spec.validations[2].expression"]);
        assert_eq!(warnings[1]["warning"], "apps/v1, Kind=B: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n");
        let both = warnings[2]["warning"].as_str().unwrap_or_default();
        assert!(both.starts_with("apps/v1, Kind=A: ERROR") && both.contains("^\n\napps/v1, Kind=B: ERROR"), "{both}");
        assert!(decide(&policy, &[], None).is_empty());
    }
}
