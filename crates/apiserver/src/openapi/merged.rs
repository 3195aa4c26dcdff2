//! The OpenAPI v2 documents of servers behind this one, made part of its own: clients that ask for one document find all groups in it.
//!
//! Of another server's document only what is about its own group and version is taken, and the types that this refers to. A type that
//! has the name of another but says something else is renamed (`NAME_v2`), as Kubernetes does it. What must stay true: no path and no
//! type of this server's is changed by what another server says.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

const TYPES: &str = "#/definitions/";
const PARAMETERS: &str = "#/parameters/";
const KINDS: &str = "x-kubernetes-group-version-kind";

/// What another server's document says of one group and version: `paths` and `definitions`. `None` if it says nothing of it.
pub fn part(document: &Value, group: &str, version: &str) -> Option<Value> {
    let prefix = format!("/apis/{group}/{version}/");
    let parameters = document.get("parameters").and_then(Value::as_object);
    let mut paths = Map::new();
    for (path, item) in document.get("paths")?.as_object()?.iter().filter(|(path, _)| path.starts_with(&prefix)) {
        let mut item = item.clone();
        // What is told once for many paths is told again with each.
        replace(&mut item, &mut |reference| parameters?.get(reference.strip_prefix(PARAMETERS)?).cloned());
        paths.insert(path.clone(), item);
    }
    if paths.is_empty() {
        return None;
    }
    let paths = Value::Object(paths);
    let all = document.get("definitions").and_then(Value::as_object);
    let (mut wanted, mut definitions) = (referred(&paths), Map::new());
    while let Some(name) = wanted.pop_first() {
        let Some(definition) = all.and_then(|all| all.get(&name)).filter(|_| !definitions.contains_key(&name)) else { continue };
        wanted.extend(referred(definition));
        definitions.insert(name, definition.clone());
    }
    Some(json!({"paths": paths, "definitions": definitions}))
}

/// Puts such a part into this server's document.
pub fn merge(document: &mut Value, part: &Value) {
    let empty = Map::new();
    let section = |key: &str| part.get(key).and_then(Value::as_object).unwrap_or(&empty);
    let Some(known) = document.get_mut("definitions").and_then(Value::as_object_mut) else { return };
    let mut renamed = BTreeMap::new();
    for (name, definition) in section("definitions") {
        match known.get_mut(name) {
            None => {}
            Some(same) if without_kinds(same) == without_kinds(definition) => {
                add_kinds(same, definition);
                renamed.insert(name.clone(), None);
            }
            Some(_) => {
                let free = (2..).map(|i| format!("{name}_v{i}")).find(|name| !known.contains_key(name) && !section("definitions").contains_key(name));
                renamed.insert(name.clone(), free);
            }
        }
    }
    let mut rename = |reference: &str| {
        let name = renamed.get(reference.strip_prefix(TYPES)?)?.as_ref()?;
        Some(json!({"$ref": format!("{TYPES}{name}")}))
    };
    for (name, definition) in section("definitions") {
        let name = match renamed.get(name) {
            None => name,
            Some(None) => continue,
            Some(Some(other)) => other,
        };
        let mut definition = definition.clone();
        replace(&mut definition, &mut rename);
        known.insert(name.clone(), definition);
    }
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in section("paths") {
        paths.entry(path.clone()).or_insert_with(|| {
            let mut item = item.clone();
            replace(&mut item, &mut rename);
            item
        });
    }
}

/// A type but for which kinds it is of.
fn without_kinds(definition: &Value) -> Map<String, Value> {
    definition.as_object().into_iter().flatten().filter(|(key, _)| *key != KINDS).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn add_kinds(known: &mut Value, other: &Value) {
    for kind in other.get(KINDS).and_then(Value::as_array).into_iter().flatten() {
        match known.get_mut(KINDS).and_then(Value::as_array_mut) {
            Some(kinds) if kinds.contains(kind) => {}
            Some(kinds) => kinds.push(kind.clone()),
            None => known[KINDS] = json!([kind]),
        }
    }
}

/// The types that something refers to.
fn referred(value: &Value) -> BTreeSet<String> {
    fn look(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix(TYPES)).map(String::from));
                map.values().for_each(|below| look(below, found));
            }
            Value::Array(list) => list.iter().for_each(|below| look(below, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    look(value, &mut found);
    found
}

/// Puts what `with` has for it in the place of each reference.
fn replace(value: &mut Value, with: &mut impl FnMut(&str) -> Option<Value>) {
    if let Some(other) = value.get("$ref").and_then(Value::as_str).and_then(&mut *with) {
        *value = other;
        return;
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|below| replace(below, with)),
        Value::Array(list) => list.iter_mut().for_each(|below| replace(below, with)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind() -> Value {
        json!({
            "paths": {
                "/apis/colours.dev/v1/colours": {"get": {"parameters": [{"$ref": "#/parameters/limit-1"}],
                    "responses": {"200": {"schema": {"$ref": "#/definitions/dev.Colour"}}}}},
                "/apis/colours.dev/": {"get": {}}, "/apis/other.dev/v1/things": {"get": {}}},
            "parameters": {"limit-1": {"name": "limit", "in": "query"}},
            "definitions": {
                "dev.Colour": {"properties": {"metadata": {"$ref": "#/definitions/meta.ObjectMeta"}, "when": {"$ref": "#/definitions/meta.Time"}}},
                "meta.ObjectMeta": {"description": "older", "properties": {"owner": {"$ref": "#/definitions/meta.ObjectMeta"}}},
                "meta.Time": {"type": "string", KINDS: [{"kind": "B"}]}, "dev.Other": {}}})
    }

    #[test]
    fn only_what_a_server_serves_is_taken() {
        assert_eq!(part(&behind(), "nobody.dev", "v1"), None);
        let part = part(&behind(), "colours.dev", "v1").unwrap();
        assert_eq!(part["paths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["/apis/colours.dev/v1/colours"]);
        assert_eq!(part["definitions"].as_object().unwrap().keys().collect::<Vec<_>>(), ["dev.Colour", "meta.ObjectMeta", "meta.Time"]);
        assert_eq!(part["paths"]["/apis/colours.dev/v1/colours"]["get"]["parameters"], json!([{"name": "limit", "in": "query"}]));
    }

    #[test]
    fn what_is_the_same_is_shared_and_what_is_not_is_renamed() {
        let own = json!({"properties": {"name": {"type": "string"}}});
        let mut document = json!({"paths": {"/apis/apps/v1/x": {}}, "definitions": {"meta.ObjectMeta": own,
            "meta.Time": {"type": "string", KINDS: [{"kind": "A"}]}}});
        merge(&mut document, &part(&behind(), "colours.dev", "v1").unwrap());
        let types = &document["definitions"];
        assert_eq!(types["meta.ObjectMeta"], own);
        assert_eq!(types["meta.ObjectMeta_v2"]["properties"]["owner"]["$ref"], "#/definitions/meta.ObjectMeta_v2");
        assert_eq!(types["dev.Colour"]["properties"]["metadata"]["$ref"], "#/definitions/meta.ObjectMeta_v2");
        assert_eq!(types["dev.Colour"]["properties"]["when"]["$ref"], "#/definitions/meta.Time");
        assert_eq!(types["meta.Time"][KINDS], json!([{"kind": "A"}, {"kind": "B"}]));
        assert_eq!(document["paths"].as_object().unwrap().len(), 2);
    }
}
