//! Aggregated ClusterRoles: one with an `aggregationRule` holds the rules of all ClusterRoles that the rule selects.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Informer, Key};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::Context;
use crate::common::owner::{labels_of, name_of};

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Aggregation { roles: context.informers.all() })
}

struct Aggregation {
    roles: Informer<ClusterRole>,
}

#[async_trait]
impl Controller for Aggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        let roles = self.roles.clone();
        // A changed role may be in, or have dropped out of, any aggregate.
        inputs.mapped(&self.roles, move |_| {
            let aggregates = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregates.map(|role| Key::of(&*role)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(role) = self.roles.get(key).filter(|role| role.aggregation_rule.is_some()) else { return Ok(Next::Done) };
        let rules = decide(&role, &self.roles.list());
        if role.rules.as_deref().unwrap_or_default() != rules {
            let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": key.name}, "rules": rules});
            self.roles.apply(key, self.name(), &object).await?;
        }
        Ok(Next::Done)
    }
}

/// The rules of all selected roles, in order of their names, each rule once.
fn decide(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let selectors = role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors.filter_map(|selector| Selector::try_from(selector.clone()).ok()) {
        let mut selected: Vec<_> = roles.iter().filter(|each| name_of(&***each) != name_of(role) && selector.matches(labels_of(&***each))).collect();
        selected.sort_by_key(|each| name_of(&***each).to_owned());
        for rule in selected.iter().flat_map(|each| each.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_collected_once_and_never_from_itself() {
        let role = |name: &str, label: &str, verbs: &[&str]| -> ClusterRole {
            let rules: Vec<_> = verbs.iter().map(|verb| json!({"verbs": [verb]})).collect();
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules})).expect("a role")
        };
        let mut admin = role("admin", "admin", &["old"]);
        admin.aggregation_rule = serde_json::from_value(json!({"clusterRoleSelectors": [{"matchLabels": {"to": "admin"}}]})).expect("a rule");
        let roles = [role("b", "admin", &["get", "list"]), role("a", "admin", &["get"]), role("c", "view", &["watch"]), admin.clone()];
        let verbs: Vec<_> = decide(&admin, &roles.map(Arc::new)).into_iter().map(|rule| rule.verbs[0].clone()).collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
