//! The structure of an object of which most is known to be right: only what differs from the stored object is read anew.
//!
//! A patch changes little, and what it leaves alone has been read by the same schema before. The quick way says yes or
//! nothing: whatever is unknown, of a wrong type or not worth a rule here is left to [`super::check_patched`], which finds
//! the right words for it.

use super::{Decoder, Place, Reader, Step, finish, group_version};
use crate::{
    Kind, Value,
    object::ObjectExt,
    schema::{Schema, Type},
};

/// Brings what differs from `standing` into the form that [`super::check_patched`] gives the whole. False if that has to look:
/// then some of it may have been brought into form already, which changes no answer.
pub fn conforms(object: &mut Value, standing: &Value, kind: &Kind, version: &str) -> bool {
    if kind.custom.is_some() || object.api_version() != group_version(&kind.group, version) || object.kind() != kind.kind {
        return false;
    }
    kind.schema(version).is_some_and(|schema| fits(object, standing, &schema, &Place::ROOT))
}

fn fits(value: &mut Value, standing: &Value, schema: &Schema, place: &Place<'_>) -> bool {
    match (schema.type_, &mut *value, standing) {
        (Type::Object, Value::Object(map), Value::Object(standing)) if !schema.preserve_unknown => {
            for (key, value) in map.iter_mut() {
                let before = standing.get(key);
                if before.is_some_and(|before| before == value) {
                    continue;
                }
                let Some(field) = schema.field(key) else { return false };
                let place = place.then(Step::Field(&field.name, schema.short_name()));
                if !fits(value, before.unwrap_or(&Value::Null), &field.schema, &place) {
                    return false;
                }
            }
            map.retain(|key, value| !value.is_null() || schema.field(key).is_some_and(|field| field.schema.nullable));
            finish(map, schema, false);
            true
        }
        (Type::Map, Value::Object(map), Value::Object(standing)) => {
            let Some(items) = schema.items.as_deref() else { return false };
            map.iter_mut().all(|(key, value)| {
                let before = standing.get(key);
                before.is_some_and(|before| before == value)
                    || (!value.is_null() && fits(value, before.unwrap_or(&Value::Null), items, &place.then(Step::Key(key))))
            })
        }
        (Type::Array, Value::Array(list), Value::Array(standing)) => {
            let Some(items) = schema.items.as_deref() else { return false };
            list.iter_mut().enumerate().all(|(i, value)| {
                let before = standing.get(i);
                before.is_some_and(|before| before == value)
                    || (!value.is_null() && fits(value, before.unwrap_or(&Value::Null), items, &place.then(Step::Index(i))))
            })
        }
        _ => {
            let text = value.to_string();
            let mut decoder = Decoder { problems: vec![], type_error: None };
            let Ok(read) = decoder.value(&mut Reader::new(text.as_bytes()), schema, place) else { return false };
            *value = read.unwrap_or(Value::Null);
            decoder.problems.is_empty() && decoder.type_error.is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Catalogue, request::FieldValidation, structure};
    use serde_json::json;

    fn pod() -> Value {
        let given = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"hostNetwork": true,
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}, {"name": "d", "image": "i"}]}});
        let catalogue = Catalogue::built_in();
        let kind = catalogue.resource("", "pods").unwrap();
        structure::check_object(given, kind, "v1", FieldValidation::Strict).unwrap().0
    }

    #[test]
    fn the_quick_way_says_what_the_long_way_says_or_nothing() {
        let catalogue = Catalogue::built_in();
        let kind = catalogue.resource("", "pods").unwrap();
        let changes: &[(&str, Value, bool)] = &[
            ("metadata.labels.x", json!("z"), true),
            ("metadata.labels", json!({"n": "m"}), true),
            ("metadata.labels", json!(null), true),
            ("metadata.labels", json!({}), true),
            ("metadata.labels.x", json!(null), false),
            ("metadata.labels.x", json!(1), false),
            ("metadata.deletionTimestamp", json!("2026-01-01T00:00:00.5Z"), true),
            ("spec.hostNetwork", json!(false), true),
            ("spec.hostNetwork", json!("yes"), false),
            ("spec.nodeName", json!("n"), true),
            ("spec.unknown", json!("n"), false),
            ("spec.tolerations", json!([{"key": "a", "tolerationSeconds": 3, "operator": ""}]), true),
            ("spec.tolerations", json!([{"key": "a", "tolerationSecond": 3}]), false),
            ("spec.containers", json!([{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1000m"}}}]), true),
            ("spec.containers", json!([null]), false),
            ("spec.containers", json!([{"name": "c", "image": "j", "env": [{"name": "E", "value": ""}]}, {"name": "d", "image": "i"}]), true),
            ("status", json!({"phase": "Running", "conditions": []}), true),
            ("status", json!(7), false),
            ("kind", json!("Node"), false),
        ];
        for (path, value, quick) in changes {
            let standing = pod();
            let mut changed = standing.clone();
            changed.set(path, value.clone());
            let long = structure::check_object(changed.clone(), kind, "v1", FieldValidation::Strict);
            let said = conforms(&mut changed, &standing, kind, "v1");
            assert_eq!(said, *quick, "{path}: {value}");
            if said {
                assert_eq!(changed, long.unwrap().0, "{path}: {value}");
            }
        }
    }
}
