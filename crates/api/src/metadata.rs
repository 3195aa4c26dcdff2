//! Checks of `metadata` that are the same for every kind, and what an update may not change in it.

use crate::{
    Kind, Value,
    field::{Errors, Path},
    internal,
    kind::{MetadataAgain, NameRule},
    limits, names,
    object::ObjectExt,
    request,
};

const FINALIZERS_OF_KUBERNETES: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// On create: names, labels, annotations, finalizers, owners, managed fields.
pub fn validate_create(object: &Value, kind: &Kind, errors: &mut Errors) {
    validate(object, kind.name_rule, kind.namespaced_scope(), &Path::new("metadata"), errors);
}

/// The metadata of any object, also of a template's; `path` is where it stands.
fn validate(object: &Value, rule: NameRule, namespaced: bool, path: &Path, errors: &mut Errors) {
    let text = |key: &str| object.metadata().and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default();
    let (name, generate_name, namespace) = (text("name"), text("generateName"), text("namespace"));
    if !generate_name.is_empty() {
        errors.invalid_all(&path.child("generateName"), generate_name, names::check_name(rule, generate_name, true));
    }
    if name.is_empty() {
        errors.required(path.child("name"), "name or generateName is required");
    } else {
        errors.invalid_all(&path.child("name"), name, names::check_name(rule, name, false));
    }
    match (namespaced, namespace) {
        (true, "") => errors.required(path.child("namespace"), ""),
        (true, namespace) => errors.invalid_all(&path.child("namespace"), namespace, names::dns1123_label(namespace)),
        (false, "") => {}
        (false, _) => errors.forbidden(path.child("namespace"), "not allowed on this type"),
    }
    if object.generation() < 0 {
        errors.invalid(path.child("generation"), object.generation(), "must be greater than or equal to 0");
    }
    labels(object.at("metadata.labels"), &path.child("labels"), errors);
    annotations(object.at("metadata.annotations"), &path.child("annotations"), errors);
    owners(object, &path.child("ownerReferences"), errors);
    finalizers(object, &path.child("finalizers"), errors);
    managed_fields(object, &path.child("managedFields"), errors);
}

/// A map of labels.
pub fn labels(labels: Option<&Value>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.invalid_all(path, key.as_str(), names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(path, value, names::label_value(value));
    }
}

/// A map of annotations: keys are like those of labels but may have capitals in the prefix; values are any text.
pub fn annotations(annotations: Option<&Value>, path: &Path, errors: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        errors.invalid_all(path, key.as_str(), names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > limits::ANNOTATIONS_BYTES_MAX {
        errors.too_long(path.clone(), "", limits::ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(object: &Value, path: &Path, errors: &mut Errors) {
    let owners = object.owner_references();
    for (i, owner) in owners.iter().enumerate() {
        if owner.api_version.is_empty() || owner.api_version.matches('/').count() > 1 || owner.api_version.ends_with('/') {
            errors.invalid(path.child("apiVersion"), owner.api_version, "version must not be empty");
        }
        for (field, value) in [("kind", owner.kind), ("name", owner.name), ("uid", owner.uid)] {
            if value.is_empty() {
                errors.invalid(path.child(field), value, "must not be empty");
            }
        }
        if (owner.api_version, owner.kind) == ("v1", "Event") {
            let shown = internal::show("meta.v1.OwnerReference", &object.list_at("metadata.ownerReferences")[i]);
            errors.invalid_structure(path.clone(), &shown, "/v1, Kind=Event is disallowed from being an owner");
        }
    }
    let mut controllers = owners.iter().filter(|owner| owner.controller);
    if let Some(first) = controllers.next() {
        for other in controllers {
            if errors.is_full() {
                break;
            }
            let why = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                first.kind, first.name, other.kind, other.name
            );
            errors.invalid_structure(path.clone(), &internal::show_all("meta.v1.OwnerReference", object.list_at("metadata.ownerReferences")), &why);
        }
    }
}

fn finalizers(object: &Value, path: &Path, errors: &mut Errors) {
    let finalizers = object.finalizers();
    for (i, name) in finalizers.iter().enumerate() {
        errors.invalid_all(&path.index(i), *name, names::qualified_name(name));
        if !name.contains('/') && !FINALIZERS_OF_KUBERNETES.contains(name) {
            errors.invalid(path.index(i), *name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        errors.invalid(path.clone(), finalizers, "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

fn managed_fields(object: &Value, path: &Path, errors: &mut Errors) {
    for (i, entry) in object.list_at("metadata.managedFields").iter().enumerate() {
        let path = path.index(i);
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        if !matches!(text("operation"), "Apply" | "Update") {
            errors.invalid(path.child("operation"), text("operation"), "must be `Apply` or `Update`");
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.invalid(path.child("fieldsType"), text("fieldsType"), "must be `FieldsV1`");
        }
        if text("manager").len() > limits::FIELD_MANAGER_CHARS_MAX {
            errors.too_long(path.child("manager"), text("manager"), limits::FIELD_MANAGER_CHARS_MAX);
        }
        if let Some(problem) = request::unprintable(text("manager")) {
            errors.invalid(path.child("manager"), text("manager"), &problem);
        }
        if text("subresource").len() > 256 {
            errors.too_long(path.child("subresource"), text("subresource"), 256);
        }
    }
}

/// On update: the same, and what may not change. `object` MUST already have what an update takes over from `old`.
pub fn validate_update(object: &Value, old: &Value, kind: &Kind, errors: &mut Errors) {
    let path = Path::new("metadata");
    // A name that was good once stays good, whatever the rule says today.
    validate(object, NameRule::PathSegment, kind.namespaced_scope(), &path, errors);
    if old.deletion_timestamp().is_some() {
        let new: Vec<String> = object.finalizers().into_iter().filter(|name| !old.has_finalizer(name)).map(|name| format!("{name:?}")).collect();
        if !new.is_empty() {
            let why = format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", new.join(", "));
            errors.forbidden(path.child("finalizers"), &why);
        }
    }
    if object.generation() < old.generation() {
        errors.invalid(path.child("generation"), object.generation(), "must not be decremented");
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let value = |object: &Value| object.metadata().and_then(|m| m.get(field)).cloned().unwrap_or(Value::Null);
        if value(object) != value(old) {
            errors.invalid(path.child(field), value(object), "field is immutable");
        }
    }
    if errors.is_empty() {
        return;
    }
    // Kubernetes checks these once more for an update, and clients see each cause again.
    labels(object.at("metadata.labels"), &path.child("labels"), errors);
    annotations(object.at("metadata.annotations"), &path.child("annotations"), errors);
    owners(object, &path.child("ownerReferences"), errors);
    managed_fields(object, &path.child("managedFields"), errors);
}

/// What a kind's own check of an update finds wrong with metadata beside what [`validate_update`] has put into `errors`.
pub fn validate_update_again(object: &Value, kind: &Kind, errors: &mut Errors) {
    if errors.is_empty() {
        return;
    }
    match kind.metadata_again {
        MetadataAgain::AsUpdate => errors.extend(errors.clone()),
        MetadataAgain::AsCreate => validate_create(object, kind, errors),
        MetadataAgain::Never => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn create(metadata: Value) -> String {
        let mut errors = Errors::default();
        validate_create(&json!({"metadata": metadata}), &Kind::namespaced("", "v1", "ConfigMap", "configmaps"), &mut errors);
        errors.0.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn creates() {
        assert_eq!(create(json!({"name": "a", "namespace": "d", "labels": {"x/y": "z"}, "finalizers": ["a.b/c", "orphan"]})), "");
        assert_eq!(create(json!({"namespace": "d"})), "metadata.name: Required value: name or generateName is required");
        assert_eq!(
            create(json!({"name": "a", "namespace": "d", "finalizers": ["bad"]})),
            "metadata.finalizers[0]: Invalid value: \"bad\": name is neither a standard finalizer name nor is it fully qualified"
        );
        assert!(
            create(json!({"name": "a", "namespace": "d", "labels": {"a b": "c/d"}}))
                .starts_with("metadata.labels: Invalid value: \"a b\": name part must consist")
        );
        assert_eq!(
            create(json!({"name": "a", "namespace": "d", "annotations": {"a": "x".repeat(300_000)}})),
            "metadata.annotations: Too long: may not be more than 262144 bytes"
        );
        let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid, "controller": true});
        assert_eq!(
            create(json!({"name": "a", "namespace": "d", "ownerReferences": [owner("")]})),
            "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"
        );
        assert!(
            create(json!({"name": "a", "namespace": "d", "ownerReferences": [owner("1"), owner("2")]}))
                .ends_with("Found \"true\" in references for ConfigMap/o and ConfigMap/o")
        );
    }

    #[test]
    fn updates() {
        let old = json!({"metadata": {"name": "a", "namespace": "d", "uid": "1", "deletionTimestamp": "2024-01-01T00:00:00Z"}});
        let mut new = old.clone();
        new.add_finalizer("example.com/late");
        new.set("metadata.uid", "2");
        let mut errors = Errors::default();
        validate_update(&new, &old, &Kind::namespaced("", "v1", "ConfigMap", "configmaps"), &mut errors);
        assert_eq!(
            errors.to_string(),
            "[metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/late\"}, metadata.uid: Invalid value: \"2\": field is immutable]"
        );
    }
}
