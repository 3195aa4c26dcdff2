//! Nobody gives more than they have: what one must hold to write a role or to bind one.
//!
//! A rule is covered if each of its single permissions (one verb on one resource of one group, for one name or all) is
//! covered by one of the rules held. The verbs `escalate` on a role and `bind` on a role lift the check.

use super::rbac::{GROUP, RoleReference, Rule, aggregate, path_matches};
use super::{Attributes, MASTERS_GROUP, allowed};
use crate::{Server, User};
use api::{Status, Value, object::ObjectExt};
use std::collections::BTreeSet;

/// Checks a Role or ClusterRole that a user wants to store.
pub fn check_role(server: &Server, user: &User, resource: &str, namespace: &str, role: &Value, old: Option<&Value>) -> Result<(), Status> {
    let attributes = Attributes { verb: "escalate", group: GROUP, version: "v1", resource, namespace, name: role.name(), ..Attributes::default() };
    if user.in_group(MASTERS_GROUP) || old.is_some_and(|old| only_owners_differ(role, old)) || allowed(server, user, &attributes) {
        return Ok(());
    }
    let held = server.authorizer.rbac.held(server, user, namespace);
    let aggregates = |role: &Value| role.at("aggregationRule").is_some_and(|rule| !rule.is_null());
    if resource == "clusterroles" && (aggregates(role) || old.is_some_and(aggregates)) {
        let star = || vec!["*".to_string()];
        let everything = [
            Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() },
            Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() },
        ];
        if !uncovered(&held.rules, &everything).is_empty() {
            return Err(Status::forbidden((GROUP, resource), role.name(), "must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    confirm(user, &held.rules, &held.errors, &Rule::of_role(role)).map_err(|message| Status::forbidden((GROUP, resource), role.name(), message))
}

/// Checks a RoleBinding or ClusterRoleBinding that a user wants to store.
pub fn check_binding(server: &Server, user: &User, resource: &str, namespace: &str, binding: &Value, old: Option<&Value>) -> Result<(), Status> {
    let role = RoleReference::of_binding(binding);
    let cluster = role.kind == "ClusterRole";
    let (role_resource, role_namespace) = if cluster { ("clusterroles", "") } else { ("roles", namespace) };
    // Binding a cluster role in a namespace needs the permission there only.
    let attributes =
        Attributes { verb: "bind", group: GROUP, version: "v1", resource: role_resource, namespace, name: &role.name, ..Attributes::default() };
    if user.in_group(MASTERS_GROUP) || old.is_some_and(|old| only_owners_differ(binding, old)) || allowed(server, user, &attributes) {
        return Ok(());
    }
    let Some(rules) = server.authorizer.rbac.role(server, &role, role_namespace) else {
        return Err(Status::not_found((GROUP, role_resource), &role.name));
    };
    let held = server.authorizer.rbac.held(server, user, namespace);
    confirm(user, &held.rules, &held.errors, &rules).map_err(|message| Status::forbidden((GROUP, resource), binding.name(), message))
}

/// Whether two states differ at most in what the garbage collector writes.
fn only_owners_differ(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        for path in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            object.remove(&format!("metadata.{path}"));
        }
        object
    };
    bare(new) == bare(old) && new.at("metadata.ownerReferences") != old.at("metadata.ownerReferences")
}

fn confirm(user: &User, held: &[Rule], errors: &[String], wanted: &[Rule]) -> Result<(), String> {
    let missing: BTreeSet<String> = compact(uncovered(held, wanted)).iter().map(describe).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.into_iter().collect::<Vec<_>>().join("\n");
    let mut message =
        format!("user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{missing}", user.name, list(&user.groups));
    if !errors.is_empty() {
        message = format!("{message}; resolution errors: {}", aggregate(errors));
    }
    Err(message)
}

/// The single permissions among `wanted` that no rule in `held` covers.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(single).filter(|permission| !held.iter().any(|rule| covers(rule, permission))).collect()
}

/// A rule as rules with one verb on one resource of one group for at most one name, or on one URL.
fn single(rule: &Rule) -> Vec<Rule> {
    let one = |text: &String| vec![text.clone()];
    let mut singles = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let base = Rule { api_groups: one(group), resources: one(resource), verbs: one(verb), ..Rule::default() };
                match rule.resource_names.is_empty() {
                    true => singles.push(base),
                    false => singles.extend(rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..base.clone() })),
                }
            }
        }
    }
    for url in &rule.non_resource_urls {
        singles.extend(rule.verbs.iter().map(|verb| Rule { non_resource_urls: one(url), verbs: one(verb), ..Rule::default() }));
    }
    singles
}

fn covers(held: &Rule, wanted: &Rule) -> bool {
    let all = |held: &[String], wanted: &[String]| held.iter().any(|item| item == "*") || wanted.iter().all(|item| held.contains(item));
    let resource = |resource: &String| {
        held.resources.contains(resource)
            || resource.split_once('/').is_some_and(|(_, subresource)| held.resources.iter().any(|held| held.strip_prefix("*/") == Some(subresource)))
    };
    let resources = held.resources.iter().any(|item| item == "*") || wanted.resources.iter().all(resource);
    let names = held.resource_names.is_empty()
        || (!wanted.resource_names.is_empty() && wanted.resource_names.iter().all(|name| held.resource_names.contains(name)));
    let urls = wanted.non_resource_urls.iter().all(|url| held.non_resource_urls.iter().any(|held| path_matches(held, url)));
    all(&held.verbs, &wanted.verbs) && all(&held.api_groups, &wanted.api_groups) && resources && names && urls
}

/// Puts together the verbs of single permissions on the same thing.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut compacted: Vec<Rule> = Vec::new();
    for rule in rules {
        let same = |other: &&mut Rule| {
            other.non_resource_urls.is_empty() && Rule { verbs: vec![], ..(**other).clone() } == Rule { verbs: vec![], ..rule.clone() }
        };
        match compacted.iter_mut().find(same) {
            Some(other) => other.verbs.extend(rule.verbs),
            None => compacted.push(rule),
        }
    }
    compacted
}

fn describe(rule: &Rule) -> String {
    let lists = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<_> = lists.iter().filter(|(_, texts)| !texts.is_empty()).map(|(name, texts)| format!("{name}:{}", list(texts))).collect();
    format!("{{{}}}", parts.join(", "))
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(rules: Value) -> Vec<Rule> {
        Rule::of_role(&json!({ "rules": rules }))
    }

    fn check(held: Value, wanted: Value, expected: &[&str]) {
        let bob = User::new("bob", &["system:authenticated"]);
        let head = "user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n";
        let answer = confirm(&bob, &rules(held), &[], &rules(wanted));
        match expected {
            [] => assert_eq!(answer, Ok(())),
            lines => assert_eq!(answer, Err(format!("{head}{}", lines.join("\n")))),
        }
    }

    #[test]
    fn what_is_not_held_is_named() {
        let held = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}, {"nonResourceURLs": ["/version", "/x/*"], "verbs": ["get"]}]);
        check(
            held.clone(),
            json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "delete"]}]),
            &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#, r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete"]}"#],
        );
        check(
            held.clone(),
            json!([{"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"], "verbs": ["update"]}]),
            &[r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["web"], Verbs:["update"]}"#],
        );
        check(held.clone(), json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]), &[r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#]);
        check(held.clone(), json!([{"nonResourceURLs": ["/version", "/x/y"], "verbs": ["get"]}]), &[]);
        check(held.clone(), json!([{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"], "verbs": ["list"]}]), &[]);
        check(held, json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]), &[r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#]);
    }

    #[test]
    fn wildcards_cover() {
        let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
        check(all.clone(), json!([{"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]}]), &[]);
        check(
            json!([{"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["get"]}]),
            json!([{"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]}]),
            &[],
        );
        check(all, json!([{"nonResourceURLs": ["/x"], "verbs": ["get"]}]), &[r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#]);
    }
}
