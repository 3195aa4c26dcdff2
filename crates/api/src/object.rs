//! What every object has, read and written on its JSON: `metadata` and paths.
//!
//! [`ObjectExt`] is implemented for [`Value`] alone. Reading something that is absent or of the wrong type gives `None`
//! or an empty string, never a panic; writing makes the objects on the way.

use serde_json::{Map, Value, json};

/// An owner as `metadata.ownerReferences` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// Access to the common parts of an object.
pub trait ObjectExt {
    /// The value at a path of object keys with dots, `spec.nodeName`. Keys that hold dots need [`Value::get`].
    fn at(&self, path: &str) -> Option<&Value>;
    /// The same, to change. Makes nothing.
    fn at_mut(&mut self, path: &str) -> Option<&mut Value>;
    /// Sets the value at a path, making objects on the way. Replaces what is not an object there.
    fn set(&mut self, path: &str, value: impl Into<Value>);
    /// Sets it only if nothing (or null) is there: the way of defaults.
    fn set_default(&mut self, path: &str, value: impl Into<Value>);
    /// Removes and returns the value at a path.
    fn remove(&mut self, path: &str) -> Option<Value>;
    fn str_at(&self, path: &str) -> Option<&str>;
    fn i64_at(&self, path: &str) -> Option<i64>;
    fn bool_at(&self, path: &str) -> Option<bool>;
    /// The list at a path; empty if there is none.
    fn list_at(&self, path: &str) -> &[Value];
    fn map_at(&self, path: &str) -> Option<&Map<String, Value>>;

    fn api_version(&self) -> &str;
    fn kind(&self) -> &str;
    fn metadata(&self) -> Option<&Map<String, Value>>;
    /// `metadata`, made if it is not there.
    fn metadata_mut(&mut self) -> &mut Map<String, Value>;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
    fn generation(&self) -> i64;
    fn creation_timestamp(&self) -> Option<&str>;
    fn deletion_timestamp(&self) -> Option<&str>;
    fn labels(&self) -> Option<&Map<String, Value>>;
    fn label(&self, key: &str) -> Option<&str>;
    fn annotations(&self) -> Option<&Map<String, Value>>;
    fn annotation(&self, key: &str) -> Option<&str>;
    fn set_label(&mut self, key: &str, value: &str);
    fn set_annotation(&mut self, key: &str, value: &str);
    fn remove_annotation(&mut self, key: &str);
    fn finalizers(&self) -> Vec<&str>;
    fn has_finalizer(&self, name: &str) -> bool;
    fn add_finalizer(&mut self, name: &str);
    fn remove_finalizer(&mut self, name: &str);
    fn owner_references(&self) -> Vec<OwnerReference<'_>>;
    /// The one owner that manages it.
    fn controller(&self) -> Option<OwnerReference<'_>>;
}

fn entry<'a>(map: &'a mut Value, key: &str) -> &'a mut Value {
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    match map {
        Value::Object(map) => {
            // Most are there: a key is made for those alone that are not.
            if !map.contains_key(key) {
                map.insert(key.into(), Value::Null);
            }
            map.get_mut(key).unwrap_or_else(|| unreachable!("put in above"))
        }
        _ => unreachable!("made an object above"),
    }
}

/// A member of the metadata.
fn in_metadata<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(key)
}

impl ObjectExt for Value {
    fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(self, |value, key| value.as_object()?.get(key))
    }
    fn at_mut(&mut self, path: &str) -> Option<&mut Value> {
        path.split('.').try_fold(self, |value, key| value.as_object_mut()?.get_mut(key))
    }
    fn set(&mut self, path: &str, value: impl Into<Value>) {
        *path.split('.').fold(self, entry) = value.into();
    }
    fn set_default(&mut self, path: &str, value: impl Into<Value>) {
        let place = path.split('.').fold(self, entry);
        if place.is_null() {
            *place = value.into();
        }
    }
    fn remove(&mut self, path: &str) -> Option<Value> {
        match path.rsplit_once('.') {
            Some((parent, key)) => self.at_mut(parent)?.as_object_mut()?.remove(key),
            None => self.as_object_mut()?.remove(path),
        }
    }
    fn str_at(&self, path: &str) -> Option<&str> {
        self.at(path)?.as_str()
    }
    fn i64_at(&self, path: &str) -> Option<i64> {
        self.at(path)?.as_i64()
    }
    fn bool_at(&self, path: &str) -> Option<bool> {
        self.at(path)?.as_bool()
    }
    fn list_at(&self, path: &str) -> &[Value] {
        self.at(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
    fn map_at(&self, path: &str) -> Option<&Map<String, Value>> {
        self.at(path)?.as_object()
    }

    fn api_version(&self) -> &str {
        self.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
    }
    fn kind(&self) -> &str {
        self.get("kind").and_then(Value::as_str).unwrap_or_default()
    }
    fn metadata(&self) -> Option<&Map<String, Value>> {
        self.get("metadata")?.as_object()
    }
    fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        let metadata = entry(self, "metadata");
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        match metadata {
            Value::Object(map) => map,
            _ => unreachable!("made an object above"),
        }
    }
    fn name(&self) -> &str {
        in_metadata(self, "name").and_then(Value::as_str).unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        in_metadata(self, "namespace").and_then(Value::as_str).unwrap_or_default()
    }
    fn uid(&self) -> &str {
        in_metadata(self, "uid").and_then(Value::as_str).unwrap_or_default()
    }
    fn resource_version(&self) -> &str {
        in_metadata(self, "resourceVersion").and_then(Value::as_str).unwrap_or_default()
    }
    fn generation(&self) -> i64 {
        in_metadata(self, "generation").and_then(Value::as_i64).unwrap_or_default()
    }
    fn creation_timestamp(&self) -> Option<&str> {
        self.str_at("metadata.creationTimestamp")
    }
    fn deletion_timestamp(&self) -> Option<&str> {
        in_metadata(self, "deletionTimestamp")?.as_str()
    }
    fn labels(&self) -> Option<&Map<String, Value>> {
        in_metadata(self, "labels")?.as_object()
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key)?.as_str()
    }
    fn annotations(&self) -> Option<&Map<String, Value>> {
        in_metadata(self, "annotations")?.as_object()
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations()?.get(key)?.as_str()
    }
    fn set_label(&mut self, key: &str, value: &str) {
        *entry(self.metadata_mut().entry("labels").or_insert(Value::Null), key) = json!(value);
    }
    fn set_annotation(&mut self, key: &str, value: &str) {
        *entry(self.metadata_mut().entry("annotations").or_insert(Value::Null), key) = json!(value);
    }
    fn remove_annotation(&mut self, key: &str) {
        if let Some(annotations) = self.at_mut("metadata.annotations").and_then(Value::as_object_mut) {
            annotations.remove(key);
            if annotations.is_empty() {
                self.remove("metadata.annotations");
            }
        }
    }
    fn finalizers(&self) -> Vec<&str> {
        self.list_at("metadata.finalizers").iter().filter_map(Value::as_str).collect()
    }
    fn has_finalizer(&self, name: &str) -> bool {
        self.list_at("metadata.finalizers").iter().any(|f| f.as_str() == Some(name))
    }
    fn add_finalizer(&mut self, name: &str) {
        if !self.has_finalizer(name) {
            match self.metadata_mut().entry("finalizers").or_insert(Value::Null) {
                Value::Array(list) => list.push(json!(name)),
                other => *other = json!([name]),
            }
        }
    }
    fn remove_finalizer(&mut self, name: &str) {
        if let Some(Value::Array(list)) = self.at_mut("metadata.finalizers") {
            list.retain(|f| f.as_str() != Some(name));
            if list.is_empty() {
                self.remove("metadata.finalizers");
            }
        }
    }
    fn owner_references(&self) -> Vec<OwnerReference<'_>> {
        let text = |owner, key| Value::get(owner, key).and_then(Value::as_str).unwrap_or_default();
        let flag = |owner, key| Value::get(owner, key).and_then(Value::as_bool).unwrap_or_default();
        (self.list_at("metadata.ownerReferences").iter())
            .map(|owner| OwnerReference {
                api_version: text(owner, "apiVersion"),
                kind: text(owner, "kind"),
                name: text(owner, "name"),
                uid: text(owner, "uid"),
                controller: flag(owner, "controller"),
                block_owner_deletion: flag(owner, "blockOwnerDeletion"),
            })
            .collect()
    }
    fn controller(&self) -> Option<OwnerReference<'_>> {
        self.owner_references().into_iter().find(|owner| owner.controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_make_what_is_missing_and_never_panic() {
        let mut object = json!({"spec": "odd"});
        object.set("spec.template.metadata.name", "x");
        assert_eq!(object.str_at("spec.template.metadata.name"), Some("x"));
        object.set_default("spec.template.metadata.name", "y");
        assert_eq!(object.str_at("spec.template.metadata.name"), Some("x"));
        assert_eq!(object.remove("spec.template.metadata.name"), Some(json!("x")));
        assert_eq!(object.remove("spec.nothing.here"), None);
        assert_eq!(Value::Null.name(), "");
        let mut odd = json!([1]);
        odd.set_label("a", "b");
        assert_eq!(odd.label("a"), Some("b"));
    }

    #[test]
    fn finalizers_are_a_set_that_goes_when_empty() {
        let mut object = json!({"metadata": {"name": "x"}});
        object.add_finalizer("a/b");
        object.add_finalizer("a/b");
        assert_eq!(object.finalizers(), ["a/b"]);
        object.remove_finalizer("a/b");
        assert_eq!(object, json!({"metadata": {"name": "x"}}));
    }
}
