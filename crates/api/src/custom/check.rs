//! Whether a value fits an OpenAPI schema, in the words and the order of Kubernetes.
//!
//! On an update what did not change is not checked again (ratcheting): an object that was accepted under an older schema can
//! still be changed elsewhere. List items are matched with their former selves by key where the list has keys.

use super::{
    formats,
    props::{Additional, Props},
};
use crate::{
    Value,
    field::{Error, Errors, Path, Reason},
    kinds::checks,
    merge::go_float,
};
use serde_json::json;
use std::collections::BTreeMap;

/// Errors that one object is told about; what follows is left out.
const ERRORS_MAX: usize = 200;

/// Checks `value`. `at` is where it stands, `old` its former self.
pub fn check(props: &Props, value: &Value, old: Option<&Value>, at: &Path, errors: &mut Errors) {
    let checker = Checker { at };
    let mut found = vec![];
    checker.value(props, value, old, "", &mut found);
    found.truncate(ERRORS_MAX);
    errors.0.extend(found);
}

struct Checker<'a> {
    at: &'a Path,
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

impl Checker<'_> {
    fn path(&self, path: &str) -> Path {
        if path.is_empty() { self.at.clone() } else { self.at.child(path) }
    }
    fn push(&self, found: &mut Vec<Error>, reason: Reason, path: &str, value: Option<Value>, detail: String) {
        found.push(Error { reason, field: self.path(path), value, structure: None, detail });
    }
    fn invalid(&self, found: &mut Vec<Error>, path: &str, value: Value, detail: String) {
        self.push(found, Reason::Invalid, path, Some(value), detail);
    }
    /// An error that Go's validator does not tie to a field.
    fn unplaced(&self, found: &mut Vec<Error>, detail: String) {
        self.invalid(found, "", json!(""), detail);
    }

    fn value(&self, props: &Props, value: &Value, old: Option<&Value>, path: &str, found: &mut Vec<Error>) {
        if found.len() >= ERRORS_MAX || old.is_some_and(|old| old == value) {
            return;
        }
        self.type_(props, value, path, found);
        if value.is_null() {
            self.enumerated(props, value, path, found);
            return;
        }
        self.combined(props, value, path, found);
        match value {
            Value::String(text) => {
                self.string(props, text, path, found);
                if !props.format.is_empty()
                    && !matches!(props.format.as_str(), "int32" | "int64" | "float" | "double")
                    && !formats::matches(&props.format, text)
                {
                    let detail = format!("{path} in body must be of type {}: {text:?}", props.format);
                    self.push(found, Reason::TypeInvalid, path, Some(json!(text)), detail);
                }
            }
            Value::Number(_) => self.number(props, value, path, found),
            Value::Array(items) => self.array(props, items, old, path, found),
            _ => {}
        }
        self.enumerated(props, value, path, found);
        if let Value::Object(_) = value {
            self.object(props, value, old, path, found);
        }
    }

    fn type_(&self, props: &Props, value: &Value, path: &str, found: &mut Vec<Error>) {
        if props.types.is_empty() || (value.is_null() && props.nullable) {
            return;
        }
        let is = type_of(value);
        let fits = props.is(is) || (props.is("integer") && is_whole(value)) || (props.is("number") && is == "integer");
        // A format speaks for strings and lists itself.
        let by_format = !props.format.is_empty() && !props.is("integer") && !props.is("number") && matches!(is, "string" | "array");
        if fits || by_format {
            return;
        }
        let detail = format!("{path} in body must be of type {}: {is:?}", props.types.join(","));
        self.push(found, Reason::TypeInvalid, path, Some(json!(is)), detail);
    }

    fn enumerated(&self, props: &Props, value: &Value, path: &str, found: &mut Vec<Error>) {
        let same = |known: &Value| known == value || (known.is_number() && known.as_f64() == value.as_f64());
        let is_allowed = props.values.is_empty() || props.values.iter().any(same) || (value.is_null() && props.nullable);
        if !is_allowed {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
            let known: Vec<String> = props.values.iter().map(|value| format!("{:?}", text(value))).collect();
            self.push(found, Reason::NotSupported, path, Some(value.clone()), format!("supported values: {}", known.join(", ")));
        }
    }

    fn string(&self, props: &Props, text: &str, path: &str, found: &mut Vec<Error>) {
        let length = text.chars().count() as i64;
        if let Some(max) = props.max_length.filter(|max| length > *max) {
            return self.push(found, Reason::TooLong, path, Some(json!(text)), format!("may not be more than {max} bytes"));
        }
        if let Some(min) = props.min_length.filter(|min| length < *min) {
            return self.invalid(found, path, json!(text), format!("{path} in body should be at least {min} chars long"));
        }
        if let Some((pattern, Some(regex))) = &props.pattern
            && !regex.is_match(text)
        {
            self.invalid(found, path, json!(text), format!("{path} in body should match '{pattern}'"));
        }
    }

    fn number(&self, props: &Props, value: &Value, path: &str, found: &mut Vec<Error>) {
        let Some(number) = value.as_f64() else { return };
        let integer = value.as_i64();
        if props.is("integer") && !props.int_or_string {
            let fits = match (integer, props.format.as_str()) {
                (Some(whole), "int32") => i32::try_from(whole).is_ok(),
                (Some(_), _) => true,
                (None, _) => is_whole(value) && number.abs() < 9.3e18,
            };
            if !fits {
                let format = if props.format.is_empty() { "(default format)".to_string() } else { format!("with format {}", props.format) };
                self.unplaced(found, format!("Checked value must be of type integer {format} in {path}"));
            }
        }
        // Whole numbers are compared as whole numbers, bounds cut to such.
        let bound = |bound: f64| if integer.is_some() { bound.trunc() } else { bound };
        let bound_text = |bound: f64| if integer.is_some() { format!("{bound:.0}") } else { go_float(bound) };
        if let Some(factor) = props.multiple_of {
            let factor = bound(factor);
            if factor <= 0.0 {
                self.invalid(
                    found,
                    path,
                    json!(factor as i64),
                    format!("factor MultipleOf declared for {path} must be positive: {}", bound_text(factor)),
                );
            } else {
                let multiple = if factor < 1.0 { 1.0 / factor * number } else { number / factor };
                if (multiple - multiple.round()).abs() > 1e-9 {
                    self.invalid(found, path, value.clone(), format!("{path} in body should be a multiple of {}", bound_text(factor)));
                }
            }
        }
        if let Some(minimum) = props.minimum.map(bound)
            && (number < minimum || (props.exclusive_minimum && number <= minimum))
        {
            let or_equal = if props.exclusive_minimum { "" } else { " or equal to" };
            self.invalid(found, path, value.clone(), format!("{path} in body should be greater than{or_equal} {}", bound_text(minimum)));
        }
        if let Some(maximum) = props.maximum.map(bound)
            && (number > maximum || (props.exclusive_maximum && number >= maximum))
        {
            let or_equal = if props.exclusive_maximum { "" } else { " or equal to" };
            self.invalid(found, path, value.clone(), format!("{path} in body should be less than{or_equal} {}", bound_text(maximum)));
        }
    }

    fn array(&self, props: &Props, items: &[Value], old: Option<&Value>, path: &str, found: &mut Vec<Error>) {
        if let Some(schema) = &props.items {
            let former = Former::of(props, old);
            for (i, item) in items.iter().enumerate() {
                self.value(schema, item, former.item(item), &format!("{path}[{i}]"), found);
            }
        }
        let count = items.len() as i64;
        if let Some(min) = props.min_items.filter(|min| count < *min) {
            self.invalid(found, path, json!(count), format!("{path} in body should have at least {min} items"));
        }
        if let Some(max) = props.max_items.filter(|max| count > *max) {
            self.push(found, Reason::TooMany, path, Some(json!(count)), format!("must have at most {max} items"));
        }
        if props.unique_items && checks::distinct(items, |item| item).any(|(.., again)| again) {
            self.push(found, Reason::Duplicate, path, Some(Value::Array(items.to_vec())), String::new());
        }
    }

    fn object(&self, props: &Props, value: &Value, old: Option<&Value>, path: &str, found: &mut Vec<Error>) {
        let Some(map) = value.as_object() else { return };
        let count = map.len() as i64;
        if let Some(min) = props.min_properties.filter(|min| count < *min) {
            return self.invalid(found, path, json!(count), format!("{path} in body should have at least {min} properties"));
        }
        if let Some(max) = props.max_properties.filter(|max| count > *max) {
            return self.push(found, Reason::TooMany, path, Some(json!(count)), format!("must have at most {max} items"));
        }
        let former = |key: &str| old.and_then(|old| old.get(key));
        let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        for (key, schema) in &props.properties {
            if let Some(value) = map.get(key) {
                self.value(schema, value, former(key), &below(key), found);
            }
        }
        for key in props.required.iter().filter(|key| !map.contains_key(*key)) {
            self.push(found, Reason::Required, &below(key), None, String::new());
        }
        for (key, value) in map.iter().filter(|(key, _)| !props.properties.contains_key(*key)) {
            match &props.additional {
                Additional::Values(schema) => self.value(schema, value, former(key), &below(key), found),
                Additional::Allowed(false) if !props.preserve_unknown => {
                    self.invalid(found, &below(key), json!(""), format!("{} in body is a forbidden property", below(key)));
                }
                _ => {}
            }
        }
    }

    /// `anyOf`, `oneOf`, `allOf` and `not`.
    fn combined(&self, props: &Props, value: &Value, path: &str, found: &mut Vec<Error>) {
        let tried = |schema: &Props| {
            let mut found = vec![];
            self.value(schema, value, None, path, &mut found);
            found
        };
        if !props.any_of.is_empty() {
            let outcomes: Vec<_> = props.any_of.iter().map(tried).collect();
            if !outcomes.iter().any(Vec::is_empty) {
                self.unplaced(found, format!("{path:?} must validate at least one schema (anyOf)"));
                found.extend(outcomes.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !props.one_of.is_empty() {
            let outcomes: Vec<_> = props.one_of.iter().map(tried).collect();
            match outcomes.iter().filter(|outcome| outcome.is_empty()).count() {
                1 => {}
                0 => {
                    self.unplaced(found, format!("{path:?} must validate one and only one schema (oneOf). Found none valid"));
                    found.extend(outcomes.into_iter().min_by_key(Vec::len).unwrap_or_default());
                }
                several => {
                    self.unplaced(found, format!("{path:?} must validate one and only one schema (oneOf). Found {several} valid alternatives"));
                }
            }
        }
        if !props.all_of.is_empty() {
            let outcomes: Vec<_> = props.all_of.iter().map(tried).collect();
            let valid = outcomes.iter().filter(|outcome| outcome.is_empty()).count();
            found.extend(outcomes.into_iter().flatten());
            if valid < props.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.unplaced(found, format!("{path:?} must validate all the schemas (allOf){none}"));
            }
        }
        if let Some(not) = &props.not
            && tried(not).is_empty()
        {
            self.unplaced(found, format!("{path:?} must not validate the schema (not)"));
        }
    }
}

/// The former items of a list, found by key. Lists without keys have no former items: order says nothing.
pub struct Former<'a> {
    keys: &'a [String],
    by_key: BTreeMap<String, &'a Value>,
    set: bool,
}

impl<'a> Former<'a> {
    pub fn of(props: &'a Props, old: Option<&'a Value>) -> Former<'a> {
        let (keyed, set) = (props.list_type == "map", props.list_type == "set");
        let keys: &[String] = if keyed { &props.list_keys } else { &[] };
        let mut former = Former { keys, by_key: BTreeMap::new(), set };
        if keyed || set {
            for item in old.and_then(Value::as_array).into_iter().flatten() {
                former.by_key.insert(former.key(item), item);
            }
        }
        former
    }
    fn key(&self, item: &Value) -> String {
        if self.set {
            return item.to_string();
        }
        let values: Vec<&Value> = self.keys.iter().map(|key| item.get(key).unwrap_or(&Value::Null)).collect();
        serde_json::to_string(&values).unwrap_or_default()
    }
    pub fn item(&self, item: &Value) -> Option<&'a Value> {
        if self.by_key.is_empty() { None } else { self.by_key.get(&self.key(item)).copied() }
    }
}

/// That sets hold no value twice and lists with keys no key twice.
pub fn check_lists(props: &Props, value: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    if old.is_some_and(|old| old == value) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let former = old.and_then(|old| old.get(key));
                match (props.properties.get(key), props.additional()) {
                    (Some(schema), _) => check_lists(schema, below, former, &path.child(key), errors),
                    (None, Some(schema)) => check_lists(schema, below, former, &path.key(key), errors),
                    (None, None) => {}
                }
            }
        }
        Value::Array(items) => {
            let shown = |item: &Value| match props.list_type.as_str() {
                "set" => Some(item.clone()),
                "map" => Some(Value::Object(props.list_keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect())),
                _ => None,
            };
            let mut seen = std::collections::BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                if let Some(key) = shown(item)
                    && !seen.insert(key.to_string())
                {
                    errors.duplicate(path.index(i), key);
                }
            }
            if let Some(schema) = &props.items {
                let former = Former::of(props, old);
                for (i, item) in items.iter().enumerate() {
                    check_lists(schema, item, former.item(item), &path.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

/// That objects within objects (`x-kubernetes-embedded-resource`) say what they are.
pub fn check_embedded(props: &Props, value: &Value, root: bool, path: &Path, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            if props.embedded && !root {
                for key in ["apiVersion", "kind"] {
                    match map.get(key).and_then(Value::as_str) {
                        None => errors.required(path.child(key), "must not be empty"),
                        Some("") => errors.required(path.child(key), "must not be empty"),
                        Some(text) if key == "apiVersion" && text.matches('/').count() > 1 => {
                            errors.invalid(path.child(key), text, &format!("unexpected GroupVersion string: {text}"));
                        }
                        Some(_) => {}
                    }
                }
            }
            for (key, below) in map {
                match (props.properties.get(key), props.additional()) {
                    (Some(schema), _) => check_embedded(schema, below, false, &path.child(key), errors),
                    (None, Some(schema)) => check_embedded(schema, below, false, &path.key(key), errors),
                    (None, None) => {}
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                if let Some(schema) = &props.items {
                    check_embedded(schema, item, false, &path.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = Errors::default();
        let props = Props::read(&schema);
        check(&props, &value, old.as_ref(), &Path::root(), &mut errors);
        check_lists(&props, &value, old.as_ref(), &Path::root(), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_is_named_as_kubernetes_does() {
        let schema = json!({"type": "object", "required": ["r"], "properties": {
            "n": {"type": "integer", "minimum": 2, "maximum": 9, "multipleOf": 2}, "s": {"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^a"},
            "l": {"type": "array", "items": {"type": "string"}, "maxItems": 1, "x-kubernetes-list-type": "set"},
            "m": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1}, "r": {}}});
        let wrong = json!({"n": 1, "s": "b", "l": ["x", "x"], "m": {}});
        assert_eq!(
            complaints(schema.clone(), wrong.clone(), None),
            [
                "l: Too many: 2: must have at most 1 items",
                "m: Invalid value: 0: m in body should have at least 1 properties",
                "n: Invalid value: 1: n in body should be a multiple of 2",
                "n: Invalid value: 1: n in body should be greater than or equal to 2",
                "s: Invalid value: \"b\": s in body should be at least 2 chars long",
                "r: Required value",
                "l[1]: Duplicate value: \"x\"",
            ]
        );
        // What has not changed is not checked again.
        let mut later = wrong.clone();
        later["s"] = json!("ab");
        assert_eq!(complaints(schema, later, Some(wrong)), ["r: Required value"]);
    }

    #[test]
    fn alternatives() {
        let schema = json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}});
        assert_eq!(complaints(schema.clone(), json!({"a": 1}), None), [] as [&str; 0]);
        assert_eq!(
            complaints(schema.clone(), json!({"a": 1, "b": 1}), None),
            ["<nil>: Invalid value: \"\": \"\" must validate one and only one schema (oneOf). Found 2 valid alternatives"]
        );
        assert_eq!(complaints(schema, json!({"a": 1, "c": 1}), None), ["<nil>: Invalid value: \"\": \"\" must not validate the schema (not)"]);
    }
}
