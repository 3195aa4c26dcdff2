//! The catalogue beside the discovery documents of Kubernetes v1.36: every kind, every fact, nothing more.

use api::{Catalogue, Kind, kind::Subresource};
use serde_json::Value;
use std::collections::BTreeSet;

const DISCOVERY: &str = include_str!("../facts/discovery.json");

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

fn set(list: &[String]) -> BTreeSet<String> {
    list.iter().cloned().collect()
}

fn subresource_facts(kind: &Kind) -> BTreeSet<String> {
    let line = |name: &str, (group, version, kind): (&str, &str, &str), verbs: &[&str]| {
        format!("{name} {group}/{version}/{kind} {}", verbs.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(","))
    };
    let write = ["get", "patch", "update"];
    (kind.subresources.iter())
        .map(|subresource| match subresource {
            Subresource::Status => line("status", ("", "", &kind.kind), &write),
            Subresource::Scale { .. } => line("scale", ("autoscaling", "v1", "Scale"), &write),
            Subresource::Connect { name, group_version_kind, verbs } => line(name, *group_version_kind, verbs),
        })
        .collect()
}

#[test]
fn the_catalogue_says_what_discovery_says() {
    let groups: Vec<Value> = serde_json::from_str(DISCOVERY).expect("the facts are JSON");
    let catalogue = Catalogue::built_in();
    let mut seen = BTreeSet::new();
    for group in &groups {
        let name = group["metadata"]["name"].as_str().unwrap_or_default();
        for version in group["versions"].as_array().into_iter().flatten() {
            let version_name = version["version"].as_str().unwrap_or_default();
            for resource in version["resources"].as_array().into_iter().flatten() {
                let plural = resource["resource"].as_str().unwrap_or_default();
                let at = format!("{name}/{version_name}/{plural}");
                let kind = catalogue.resource(name, plural).unwrap_or_else(|| panic!("{at} is missing"));
                assert!(kind.versions.iter().any(|v| v == version_name), "{at}: versions are {:?}", kind.versions);
                assert_eq!(kind.kind, resource["responseKind"]["kind"].as_str().unwrap_or_default(), "{at}: kind");
                assert_eq!(kind.singular, resource["singularResource"].as_str().unwrap_or_default(), "{at}: singular");
                assert_eq!(kind.namespaced_scope(), resource["scope"] == "Namespaced", "{at}: scope");
                assert_eq!(set(&kind.verbs), strings(&resource["verbs"]), "{at}: verbs");
                assert_eq!(set(&kind.short_names), strings(&resource["shortNames"]), "{at}: short names");
                assert_eq!(set(&kind.categories), strings(&resource["categories"]), "{at}: categories");
                let golden: BTreeSet<String> = (resource["subresources"].as_array().into_iter().flatten())
                    .map(|s| {
                        let text = |key: &str| s["responseKind"][key].as_str().unwrap_or_default().to_string();
                        let verbs = strings(&s["verbs"]).into_iter().collect::<Vec<_>>().join(",");
                        format!("{} {}/{}/{} {verbs}", s["subresource"].as_str().unwrap_or_default(), text("group"), text("version"), text("kind"))
                    })
                    .collect();
                assert_eq!(subresource_facts(kind), golden, "{at}: subresources");
                seen.insert((name.to_string(), version_name.to_string(), plural.to_string()));
            }
        }
    }
    for kind in catalogue.iter() {
        for version in &kind.versions {
            let key = (kind.group.clone(), version.clone(), kind.resource.clone());
            assert!(seen.contains(&key), "{key:?} is not a resource of Kubernetes");
        }
        if let Some((group, resource)) = &kind.stored_as {
            assert!(catalogue.resource(group, resource).is_some(), "{} is stored as an unknown kind", kind.group_resource());
        }
    }
}
