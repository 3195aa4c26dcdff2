//! What holds of every configuration, not of chosen ones: to apply twice is to apply once, who says the same as another is in nobody's way,
//! managers of different fields do not depend on their order, and what one withdraws leaves the others' as it was.

use super::*;
use proptest::{collection::vec, option, prelude::*, sample::subsequence};
use std::collections::BTreeMap;

/// The parts of an object that one manager speaks of: managers with different parts have no field in common.
#[derive(Clone, Copy)]
struct Part {
    labels: [&'static str; 2],
    finalizers: [&'static str; 2],
    containers: [&'static str; 2],
    /// Only one may say how many replicas there are.
    replicas: bool,
}

const ONE: Part = Part { labels: ["a", "b"], finalizers: ["example.com/a", "example.com/b"], containers: ["v", "w"], replicas: true };
const OTHER: Part = Part { labels: ["c", "d"], finalizers: ["example.com/c", "example.com/d"], containers: ["x", "y"], replicas: false };

fn labels(names: [&'static str; 2]) -> impl Strategy<Value = Value> {
    (subsequence(names.to_vec(), 0..=2), vec(0..2u8, 2)).prop_map(|(names, values)| {
        names.into_iter().zip(values).map(|(name, value)| (name.to_string(), json!(value.to_string()))).collect::<Map<_, _>>().into()
    })
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    let ports = vec![
        json!({"containerPort": 80}),
        json!({"containerPort": 80, "protocol": "UDP"}),
        json!({"containerPort": 81, "protocol": "TCP", "name": "p"}),
    ];
    let environment = vec![json!({"name": "E", "value": "1"}), json!({"name": "F", "value": "2"})];
    let mounts = vec![json!({"mountPath": "/a", "name": "a"}), json!({"mountPath": "/b", "name": "a", "readOnly": true})];
    let parts =
        (option::of("[ij]"), subsequence(ports, 0..=3), subsequence(environment, 0..=2), subsequence(mounts, 0..=2), option::of(vec("[a-c]", 0..3)));
    parts.prop_map(move |(image, ports, environment, mounts, command)| {
        let mut container = json!({"name": name});
        let lists = [("ports", ports), ("env", environment), ("volumeMounts", mounts)];
        lists.into_iter().filter(|(_, list)| !list.is_empty()).for_each(|(field, list)| container[field] = json!(list));
        image.into_iter().for_each(|image| container["image"] = json!(image));
        command.into_iter().for_each(|command| container["command"] = json!(command));
        container
    })
}

/// A Deployment as somebody applies it, with what belongs to that part.
fn configuration(part: Part) -> impl Strategy<Value = Value> {
    let [first, second] = part.containers;
    let containers = (option::of(container(first)), option::of(container(second)), any::<bool>());
    let finalizers = subsequence(part.finalizers.to_vec(), 0..=2);
    let parts = (labels(part.labels), labels(part.labels), finalizers, containers, option::of(0..3u8));
    parts.prop_map(move |(labels, template_labels, finalizers, (first, second, turned), replicas)| {
        let mut containers: Vec<Value> = first.into_iter().chain(second).collect();
        if turned {
            containers.reverse();
        }
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        let said = [
            ("metadata.labels", labels),
            ("metadata.finalizers", json!(finalizers)),
            ("spec.template.metadata.labels", template_labels),
            ("spec.template.spec.containers", json!(containers)),
        ];
        said.into_iter().filter(|(_, value)| !is_empty(value)).for_each(|(path, value)| object.set(path, value));
        replicas.filter(|_| part.replicas).into_iter().for_each(|replicas| object.set("spec.replicas", replicas));
        object
    })
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn applied(live: Option<&Value>, configuration: &Value, manager: &str, force: bool) -> Result<Value, Status> {
    let kind = Kind::namespaced("apps", "v1", "Deployment", "deployments").status();
    let writer = Writer { kind: &kind, version: "v1", manager, subresource: "", now: "2024-01-01T00:00:00Z" };
    apply(live, configuration, &writer, force)
}

/// What an object says, apart from its books and from the order of its lists; what is empty is not there.
fn content(object: &Value) -> Value {
    match object {
        Value::Object(map) => {
            let fields = map.iter().filter(|(name, _)| *name != "managedFields").map(|(name, value)| (name.clone(), content(value)));
            fields.filter(|(_, value)| !is_empty(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(content).collect();
            list.sort_by_key(Value::to_string);
            list.into()
        }
        other => other.clone(),
    }
}

fn books(object: &Value) -> BTreeMap<String, Value> {
    let entries = object.list_at("metadata.managedFields").iter();
    entries.map(|entry| (entry["manager"].as_str().unwrap_or_default().to_string(), entry["fieldsV1"].clone())).collect()
}

proptest! {
    #[test]
    fn to_apply_twice_is_to_apply_once(before in option::of(configuration(ONE)), said in configuration(ONE)) {
        let live = before.map(|before| applied(None, &before, "before", false).unwrap());
        let once = applied(live.as_ref(), &said, "one", true).unwrap();
        prop_assert_eq!(&applied(Some(&once), &said, "one", false).unwrap(), &once);
    }

    #[test]
    fn who_says_what_is_so_conflicts_with_nobody(before in configuration(ONE), said in configuration(ONE)) {
        let live = applied(None, &before, "before", false).unwrap();
        let forced = applied(Some(&live), &said, "one", true).unwrap();
        let shared = applied(Some(&forced), &said, "other", false).unwrap();
        prop_assert_eq!(content(&shared), content(&forced));
        let (shared, forced) = (books(&shared), books(&forced));
        prop_assert_eq!(shared.get("other"), forced.get("one"));
    }

    #[test]
    fn managers_of_different_fields_commute(one in configuration(ONE), other in configuration(OTHER)) {
        let after = |first: (&Value, &str), second: (&Value, &str)| {
            let live = applied(None, first.0, first.1, false).unwrap();
            applied(Some(&live), second.0, second.1, false).unwrap()
        };
        let (this_way, that_way) = (after((&one, "one"), (&other, "other")), after((&other, "other"), (&one, "one")));
        prop_assert_eq!(content(&this_way), content(&that_way));
        prop_assert_eq!(books(&this_way), books(&that_way));
    }

    #[test]
    fn what_one_withdraws_leaves_the_others_as_it_was(one in configuration(ONE), other in configuration(OTHER)) {
        let alone = applied(None, &one, "one", false).unwrap();
        let both = applied(Some(&alone), &other, "other", false).unwrap();
        let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        let left = applied(Some(&both), &nothing, "other", false).unwrap();
        prop_assert_eq!(content(&left), content(&alone));
        prop_assert_eq!(books(&left), books(&alone));
    }
}
