//! Strategic merge patch: a merge patch that knows from the schema which lists merge by key, with its directives.
//!
//! - `$patch: replace | delete` in an object or in an item of a merging list;
//! - `$retainKeys: [...]`: every other key of the object goes;
//! - `$deleteFromPrimitiveList/NAME: [...]`: these values leave the list;
//! - `$setElementOrder/NAME: [...]`: the order of a merging list; what the client does not know keeps its place.
//!
//! Lists without the merge strategy are replaced, maps without a schema merge. An object with `$patch` that meets nothing to
//! change is left out; other directives that meet nothing stay, and are refused or dropped as the unknown fields that they are.

use super::go_text;
use crate::{
    Value,
    schema::{PatchStrategy, Schema},
    status::{Result, Status},
};
use serde_json::Map;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Strategic merge patch by the merge keys of the schema.
pub fn strategic_merge(target: &Value, patch: &Value, schema: &Schema) -> Result<Value> {
    let Value::Object(patch) = patch else {
        return if patch.is_null() { Ok(target.clone()) } else { Err(Status::bad_request("Invalid JSON document")) };
    };
    let original = target.as_object().cloned().unwrap_or_default();
    merge_map(original, patch.clone(), Some(schema)).map(Value::Object)
}

/// How a field of an object merges.
#[derive(Clone, Copy, Default)]
struct How<'a> {
    schema: Option<&'a Schema>,
    strategy: PatchStrategy,
    merge_key: &'a str,
}

impl<'a> How<'a> {
    fn of(schema: Option<&'a Schema>, key: &str) -> How<'a> {
        let Some(child) = schema.and_then(|schema| schema.child(key)) else { return How::default() };
        let strategy = schema.and_then(|schema| schema.field(key)).map(|field| field.patch).unwrap_or_default();
        How { schema: Some(child), strategy: PatchStrategy { merge: strategy.merge || child.patch.merge, ..strategy }, merge_key: &child.merge_key }
    }
    fn items(&self) -> Option<&'a Schema> {
        self.schema.and_then(|schema| schema.items.as_deref())
    }
}

/// A value that is taken over where there was none: without nulls, and without the objects that are directives.
fn taken(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Some(Value::Object(kept.filter_map(|(key, value)| Some((key, taken(value)?))).collect()))
        }
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(taken).collect())),
        other => Some(other),
    }
}

fn merge_map(mut original: Map<String, Value>, mut patch: Map<String, Value>, schema: Option<&Schema>) -> Result<Map<String, Value>> {
    match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
        None => {}
        Some("replace") => {
            patch.remove(PATCH);
            return Ok(patch);
        }
        Some("delete") => return Ok(Map::new()),
        Some(_) => return Err(unknown_directive(&Value::Object(patch))),
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered(&mut original, &mut patch, schema)?;
    for (key, change) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            delete_from(&mut original, list, &change)?;
            continue;
        }
        if change.is_null() {
            original.remove(&key);
            continue;
        }
        let how = How::of(schema, &key);
        let merged = match (original.remove(&key), change) {
            (Some(Value::Object(old)), Value::Object(change)) if !how.strategy.replace => Value::Object(merge_map(old, change, how.schema)?),
            (Some(Value::Array(old)), Value::Array(change)) if how.strategy.merge => Value::Array(merge_list(old, change, &how)?),
            (Some(Value::Object(_)), change @ Value::Object(_)) | (Some(Value::Array(_)), change @ Value::Array(_)) => change,
            (_, change) => match taken(change) {
                Some(change) => change,
                None => continue,
            },
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
    let Some(retain) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let invalid = || Status::bad_request("invalid patch format of retainKeys");
    let retain = retain.as_array().ok_or_else(invalid)?;
    let retained = |key: &str| retain.iter().any(|kept| kept.as_str() == Some(key));
    let beside = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !beside(key) && !retained(key)) {
        return Err(invalid());
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Takes values out of a list; null instead of values deletes the list, what is no list changes nothing.
fn delete_from(original: &mut Map<String, Value>, list: &str, values: &Value) -> Result<()> {
    match (original.get_mut(list), values) {
        (Some(_), Value::Null) => drop(original.remove(list)),
        (Some(Value::Array(old)), Value::Array(values)) => {
            check_items(old, values)?;
            old.retain(|value| !values.contains(value));
        }
        _ => {}
    }
    Ok(())
}

fn unknown_directive(map: &Value) -> Status {
    Status::unknown(format!("unknown patch type: {} in map: {}", go_text(&map[PATCH]), go_text(map)))
}

/// What Go calls the type of a value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "[]interface {}",
        Value::String(_) => "string",
        Value::Object(_) => "map[string]interface {}",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Null => "%!s(<nil>)",
    }
}

fn list_of(value: &Value) -> Result<&Vec<Value>> {
    let unexpected = || Status::unknown(format!("expected a []interface {{}}, but received a {}", go_type(value)));
    value.as_array().ok_or_else(unexpected)
}

/// The items of lists that merge must be of one type, and no lists.
fn check_items(original: &[Value], patch: &[Value]) -> Result<()> {
    let mut types = original.iter().chain(patch).map(go_type);
    let first = types.next();
    if first == Some("[]interface {}") {
        return Err(Status::unprocessable("the server rejected our request due to an error in our request"));
    }
    if types.any(|found| Some(found) != first) {
        let [original, patch] = [original, patch].map(|list| go_text(&Value::from(list.to_vec())));
        return Err(Status::unknown(format!("list element types are not identical: [{original} {patch}]")));
    }
    Ok(())
}

/// Merges the lists that the patch gives an order for, and takes them and the order out of the patch.
fn merge_ordered(original: &mut Map<String, Value>, patch: &mut Map<String, Value>, schema: Option<&Schema>) -> Result<()> {
    let names: Vec<String> = patch.keys().filter_map(|key| key.strip_prefix(ORDER).map(String::from)).collect();
    for name in names {
        let Some(order) = patch.remove(&format!("{ORDER}{name}")) else { continue };
        let how = How::of(schema, &name);
        let order = list_of(&order)?;
        let old = original.get(&name).map(list_of).transpose()?.cloned();
        let change = patch.get(&name).map(list_of).transpose()?.cloned();
        check_order(change.as_deref().unwrap_or_default(), order, how.merge_key)?;
        let merged = match (&old, change) {
            (Some(old), Some(change)) if how.strategy.merge => merge_items(old.clone(), change, &how)?.0,
            (Some(_), Some(change)) => change,
            (None, Some(change)) => change.into_iter().filter_map(taken).collect(),
            (Some(old), None) => old.clone(),
            (None, None) => continue,
        };
        patch.remove(&name);
        let ordered = reorder(merged, order, old.as_deref().unwrap_or_default(), how.merge_key)?;
        original.insert(name, Value::Array(ordered));
    }
    Ok(())
}

/// The items of a patch must come in the order that the patch gives.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if order.is_empty() {
        return Ok(());
    }
    let mut ordered = order.iter();
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let wanted = key_of(item, merge_key)?;
        loop {
            match ordered.next().map(|item| key_of(item, merge_key)).transpose()? {
                Some(found) if found == wanted => break,
                Some(_) => {}
                None => {
                    let (patch, order) = (go_text(&Value::from(patch.to_vec())), go_text(&Value::from(order.to_vec())));
                    return Err(Status::unknown(format!("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")));
                }
            }
        }
    }
    Ok(())
}

/// What identifies an item: the value of its merge key, or the whole value where there is none.
fn key_of<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value> {
    match item {
        Value::Object(map) if !merge_key.is_empty() => {
            map.get(merge_key).ok_or_else(|| Status::unknown(format!("map: {} does not contain declared merge key: {merge_key}", go_text(item))))
        }
        _ if !merge_key.is_empty() => Err(Status::unknown(format!("expected a map[string]interface {{}}, but received a {}", go_type(item)))),
        _ => Ok(item),
    }
}

/// Items merged by key or value, and whether the patch replaces the list.
fn merge_items(mut original: Vec<Value>, patch: Vec<Value>, how: &How<'_>) -> Result<(Vec<Value>, bool)> {
    check_items(&original, &patch)?;
    if !original.iter().chain(&patch).any(Value::is_object) {
        for value in patch {
            if !original.contains(&value) {
                original.push(value);
            }
        }
        return Ok((original, false));
    }
    if how.merge_key.is_empty() {
        return Err(Status::unknown("cannot merge lists without merge key for object"));
    }
    let mut changes = vec![];
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => changes.push(item),
            Some("delete") => {
                let key = key_of(&item, how.merge_key)?;
                original.retain(|old| old.get(how.merge_key) != Some(key));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(Status::unknown("merging lists cannot yet be specified in the patch")),
            Some(_) => return Err(unknown_directive(&item)),
        }
    }
    if replace {
        return Ok((changes, true));
    }
    for change in changes {
        let key = key_of(&change, how.merge_key)?;
        let place = original.iter_mut().find(|old| old.get(how.merge_key) == Some(key));
        match (place, change) {
            (Some(place), Value::Object(change)) => {
                let Value::Object(old) = place.take() else { continue };
                *place = Value::Object(merge_map(old, change, how.items())?);
            }
            (_, change) => original.push(change),
        }
    }
    Ok((original, false))
}

/// A merging list: merged items, those of the patch in the patch's order, the others where they were.
fn merge_list(original: Vec<Value>, patch: Vec<Value>, how: &How<'_>) -> Result<Vec<Value>> {
    let (merged, replaced) = merge_items(original.clone(), patch.clone(), how)?;
    if replaced {
        return Ok(merged);
    }
    let order: Vec<Value> = patch.into_iter().filter(|item| item.get(PATCH).is_none()).collect();
    reorder(merged, &order, &original, how.merge_key)
}

/// Sorts what `order` names by it, and weaves the rest in as `server` had it.
fn reorder(merged: Vec<Value>, order: &[Value], server: &[Value], merge_key: &str) -> Result<Vec<Value>> {
    let order: Vec<&Value> = order.iter().map(|item| key_of(item, merge_key)).collect::<Result<_>>()?;
    let server: Vec<&Value> = server.iter().filter_map(|item| key_of(item, merge_key).ok()).collect();
    let place = |keys: &[&Value], item: &Value| key_of(item, merge_key).ok().and_then(|key| keys.iter().position(|k| *k == key));
    let (mut known, mut others): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|item| place(&order, item).is_some());
    known.sort_by_key(|item| place(&order, item));
    others.sort_by_key(|item| place(&server, item).unwrap_or(usize::MAX));
    let mut woven = Vec::with_capacity(known.len() + others.len());
    let (mut known, mut others) = (known.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), known.peek()) {
            (Some(other), Some(next)) => matches!((place(&server, other), place(&server, next)), (Some(a), Some(b)) if a < b),
            (other, _) => other.is_some(),
        };
        match if other_first { others.next() } else { known.next() } {
            Some(item) => woven.push(item),
            None => return Ok(woven),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn pod(original: Value, patch: Value) -> Value {
        let schema = schema::of("", "v1", "Pod").unwrap();
        strategic_merge(&json!({"spec": original}), &json!({"spec": patch}), &schema)
            .map(|v| v["spec"].clone())
            .unwrap_or_else(|s| json!(format!("{} {}", s.code, s.message)))
    }
    fn check(original: Value, patch: Value, expected: Value) {
        assert_eq!(pod(original.clone(), patch.clone()), expected, "{original} + {patch}");
    }

    #[test]
    fn lists_merge_by_key() {
        let two = json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]});
        check(
            two.clone(),
            json!({"containers": [{"name": "b", "image": "2"}]}),
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]}),
        );
        check(
            two.clone(),
            json!({"containers": [{"name": "c", "image": "3"}]}),
            json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}),
        );
        check(two.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}]}), json!({"containers": [{"name": "b", "image": "1"}]}));
        check(two.clone(), json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}), json!({"containers": [{"name": "c"}]}));
        check(
            two.clone(),
            json!({"containers": [{"name": "a", "args": ["y"]}]}),
            json!({"containers": [{"name": "a", "image": "1", "args": ["y"]}, {"name": "b", "image": "1"}]}),
        );
        check(two.clone(), json!({"containers": [{"image": "x"}]}), json!("500 map: map[image:x] does not contain declared merge key: name"));
        check(two.clone(), json!({"containers": null}), json!({}));
        check(two, json!({"containers": []}), json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}));
    }

    #[test]
    fn orders_and_retained_keys() {
        let three = json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]});
        check(
            three.clone(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "s"}, {"name": "b"}, {"name": "a"}]}),
        );
        check(
            three.clone(),
            json!({"$setElementOrder/containers": [{"name": "n"}, {"name": "a"}, {"name": "b"}], "containers": [{"name": "n", "image": "i"}]}),
            json!({"containers": [{"name": "n", "image": "i"}, {"name": "a"}, {"name": "s"}, {"name": "b"}]}),
        );
        check(
            three.clone(),
            json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b", "image": "i"}]}),
            json!("500 The order in patch list:\n[map[image:i name:b]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n"),
        );
        check(
            three,
            json!({"$setElementOrder/containers": "x", "containers": [{"name": "a"}]}),
            json!("500 expected a []interface {}, but received a string"),
        );
        let volume = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        check(
            volume.clone(),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
        );
        check(volume, json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "configMap": {}}]}), json!("400 invalid patch format of retainKeys"));
    }

    #[test]
    fn directives_that_meet_nothing_and_lists_of_odd_items() {
        let one = json!({"containers": [{"name": "a", "image": "i"}]});
        for (original, patch, expected) in [
            // An object with `$patch` is left out where there is nothing to change; where there is, it is the object.
            (json!({}), json!({"securityContext": {"$patch": "replace", "runAsUser": 1}}), json!({})),
            (json!({"securityContext": {"runAsUser": 2}}), json!({"securityContext": {"$patch": "replace"}}), json!({"securityContext": {}})),
            (json!({}), json!({"containers": [{"$patch": "replace"}, {"name": "b"}]}), json!({"containers": [{"name": "b"}]})),
            (
                json!({"securityContext": {}}),
                json!({"securityContext": {"$patch": "merge"}}),
                json!("500 unknown patch type: merge in map: map[$patch:merge]"),
            ),
            (json!({"tolerations": []}), json!({"$deleteFromPrimitiveList/tolerations": null}), json!({})),
            (one.clone(), json!({"$deleteFromPrimitiveList/containers": "a"}), one.clone()),
            (
                one.clone(),
                json!({"$setElementOrder/containers": [], "containers": [{"name": "a", "image": "j"}]}),
                json!({"containers": [{"name": "a", "image": "j"}]}),
            ),
            (
                one.clone(),
                json!({"$setElementOrder/containers": ["a"], "containers": [{"name": "a"}]}),
                json!("500 expected a map[string]interface {}, but received a string"),
            ),
            (
                one.clone(),
                json!({"$setElementOrder/containers": [{"name": "a"}], "containers": null}),
                json!("500 expected a []interface {}, but received a %!s(<nil>)"),
            ),
            (one, json!({"containers": ["a"]}), json!("500 list element types are not identical: [[map[image:i name:a]] [a]]")),
        ] {
            check(original, patch, expected);
        }
    }

    #[test]
    fn maps_and_lists_of_values() {
        check(json!({"nodeSelector": {"a": "b"}}), json!({"nodeSelector": {"a": null, "c": "d", "e": null}}), json!({"nodeSelector": {"c": "d"}}));
        check(json!({"nodeSelector": {"a": "b"}}), json!({"nodeSelector": {"$patch": "replace", "c": "d"}}), json!({"nodeSelector": {"c": "d"}}));
        check(json!({"tolerations": [{"key": "a"}]}), json!({"tolerations": [{"key": "b"}]}), json!({"tolerations": [{"key": "b"}]}));
        check(
            json!({}),
            json!({"containers": [{"name": "a", "env": null}, {"name": "b", "$patch": "delete"}]}),
            json!({"containers": [{"name": "a"}]}),
        );
        let schema = schema::of("", "v1", "ConfigMap").unwrap();
        let finalizers = |old: Value, patch: Value| {
            strategic_merge(&json!({"metadata": {"finalizers": old}}), &json!({"metadata": patch}), &schema).unwrap()["metadata"]["finalizers"]
                .clone()
        };
        assert_eq!(finalizers(json!(["a", "b"]), json!({"finalizers": ["c", "a"]})), json!(["c", "a", "b"]));
        assert_eq!(finalizers(json!(["a", "b"]), json!({"$deleteFromPrimitiveList/finalizers": ["a"]})), json!(["b"]));
        assert_eq!(
            finalizers(
                json!(["a", "b"]),
                json!({"$setElementOrder/finalizers": ["b", "c"], "finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]})
            ),
            json!(["b", "c"])
        );
    }

    proptest::proptest! {
        #[test]
        fn a_patch_applied_twice_is_applied_once(names in proptest::collection::vec("[a-d]", 0..5), changed in proptest::collection::vec(("[a-e]", "[0-9]"), 0..5)) {
            let mut seen = std::collections::BTreeSet::new();
            let items: Vec<Value> = names.into_iter().filter(|n| seen.insert(n.clone())).map(|n| json!({"name": n})).collect();
            let patch = json!({"containers": changed.iter().map(|(n, i)| json!({"name": n, "image": i})).collect::<Vec<_>>()});
            let once = pod(json!({"containers": items}), patch.clone());
            proptest::prop_assert_eq!(pod(once.clone(), patch), once);
        }
    }
}
