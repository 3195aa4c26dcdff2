//! Short ways to read and fill parts of an object's JSON, for the hooks of the kinds.
//!
//! Reading what is absent or of the wrong type gives nothing; filling what is not an object does nothing. So a hook
//! that is written with these cannot panic on odd input.

use serde_json::{Map, Value};

/// A string member, empty if there is none.
pub fn text<'a>(parent: &'a Value, key: &str) -> &'a str {
    parent.get(key).and_then(Value::as_str).unwrap_or_default()
}
pub fn int(parent: &Value, key: &str) -> Option<i64> {
    parent.get(key).and_then(Value::as_i64)
}
/// A boolean member, false if there is none.
pub fn flag(parent: &Value, key: &str) -> bool {
    parent.get(key).and_then(Value::as_bool).unwrap_or_default()
}
/// A list member, empty if there is none.
pub fn list<'a>(parent: &'a Value, key: &str) -> &'a [Value] {
    parent.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
/// The strings of a list member.
pub fn strings<'a>(parent: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    list(parent, key).iter().filter_map(Value::as_str)
}
pub fn map<'a>(parent: &'a Value, key: &str) -> Option<&'a Map<String, Value>> {
    parent.get(key).and_then(Value::as_object)
}
/// Keys and values of a map member.
pub fn entries<'a>(parent: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    map(parent, key).into_iter().flatten()
}
/// A member that is there and not null.
pub fn member<'a>(parent: &'a Value, key: &str) -> Option<&'a Value> {
    parent.get(key).filter(|value| !value.is_null())
}
pub fn has(parent: &Value, key: &str) -> bool {
    member(parent, key).is_some()
}
/// Whether nothing is said: null, an empty string, list or map.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
/// The member itself, null if there is none: how an error shows a value.
pub fn shown(parent: &Value, key: &str) -> Value {
    parent.get(key).cloned().unwrap_or(Value::Null)
}

/// Sets a member that is absent, null, or (for a default that is a string) empty.
pub fn fill(parent: &mut Value, key: &str, default: impl Into<Value>) {
    let Value::Object(map) = parent else { return };
    let default = default.into();
    let absent = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty() && default.is_string(),
        Some(_) => false,
    };
    if absent {
        map.insert(key.into(), default);
    }
}
/// Sets a member that is absent or null: strings that are pointers in Go, which an empty one is too.
pub fn fill_absent(parent: &mut Value, key: &str, default: impl Into<Value>) {
    if !has(parent, key) {
        put(parent, key, default);
    }
}
/// Sets a member that is absent, null or zero: numbers that Kubernetes cannot tell from unset.
pub fn fill_zero(parent: &mut Value, key: &str, default: i64) {
    let Value::Object(map) = parent else { return };
    if map.get(key).is_none_or(|value| value.is_null() || value.as_i64() == Some(0)) {
        map.insert(key.into(), default.into());
    }
}
/// Sets a member, replacing what is there.
pub fn put(parent: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = parent {
        map.insert(key.into(), value.into());
    }
}
/// Removes a member.
pub fn take(parent: &mut Value, key: &str) -> Option<Value> {
    parent.as_object_mut()?.remove(key)
}
/// Goes into a member that is an object.
pub fn within(parent: &mut Value, key: &str, change: impl FnOnce(&mut Value)) {
    if let Some(value @ Value::Object(_)) = parent.get_mut(key) {
        change(value);
    }
}
/// Goes into every object of a list member. A null item is an empty object, as in a typed list.
pub fn each(parent: &mut Value, key: &str, mut change: impl FnMut(&mut Value)) {
    for value in parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        if value.is_object() {
            change(value);
        }
    }
}
/// An object member, made if there is none or something else.
pub fn made<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let member = &mut parent[key];
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    member
}
