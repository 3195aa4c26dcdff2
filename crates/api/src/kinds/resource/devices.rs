//! What the kinds of dynamic resource allocation share: names of drivers, pools and attributes, selectors in CEL, parameters,
//! taints and tolerations.

use crate::{
    cel::{Fields, Libraries, Program, Type, Val, eval::Variables, library::parse_semver, limits, value::Opaque},
    field::{Errors, Path},
    kinds::{
        checks,
        values::{is_empty, member, text},
    },
    names,
    quantity::Quantity,
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
    sync::{Arc, LazyLock},
};

const DRIVER_BYTES_MAX: usize = 63;
const POOL_BYTES_MAX: usize = 253;
const IDENTIFIER_BYTES_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
pub const SELECTORS_MAX: usize = 32;
pub const CONFIGS_MAX: usize = 32;
const BINDING_CONDITIONS_MAX: usize = 4;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// The name of a driver, where it must be one.
pub fn driver_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    if name.len() > DRIVER_BYTES_MAX {
        errors.too_long(path.clone(), "", DRIVER_BYTES_MAX);
    }
    errors.invalid_all(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}
/// The name of a pool: subdomains with slashes between them.
pub fn pool_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    if name.len() > POOL_BYTES_MAX {
        errors.too_long(path.clone(), "", POOL_BYTES_MAX);
    }
    for part in name.split('/') {
        errors.invalid_all(path, part, names::dns1123_subdomain(part));
    }
}
/// A label, empty not being one.
pub fn label(name: &str, path: &Path, errors: &mut Errors) {
    errors.invalid_all(path, name, names::dns1123_label(name));
}
/// The name of a device class.
pub fn class_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path.clone(), "");
    } else {
        errors.invalid_all(path, name, names::dns1123_subdomain(name));
    }
}

fn identifier(name: &str, path: &Path, errors: &mut Errors) {
    if name.len() > IDENTIFIER_BYTES_MAX {
        errors.too_long(path.clone(), "", IDENTIFIER_BYTES_MAX);
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
        errors.invalid(
            path.clone(),
            name,
            "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')",
        );
    }
}
/// The name of an attribute or capacity, with a domain or without.
pub fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [name] => identifier(name, path, errors),
        [domain, name] => {
            if domain.is_empty() {
                errors.invalid(path.clone(), "", "the domain must not be empty");
            } else {
                driver_name(domain, path, errors);
            }
            if name.is_empty() {
                errors.invalid(path.clone(), "", "the name must not be empty");
            } else {
                identifier(name, path, errors);
            }
        }
        _ => {}
    }
}
/// The same where the domain is needed.
pub fn fully_qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    qualified_name(name, path, errors);
    if !name.contains('/') {
        errors.invalid(path.clone(), name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// Checks a list: its size, or else each item.
pub fn each(list: &[Value], max: usize, path: &Path, errors: &mut Errors, check: impl Fn(&Value, &Path, &mut Errors)) {
    if list.len() > max {
        return errors.too_many(path.clone(), list.len(), max);
    }
    for (i, item) in list.iter().enumerate() {
        check(item, &path.index(i), errors);
    }
}
/// The same for a list without duplicates. `key` is what may come once.
pub fn each_once(
    list: &[Value],
    max: usize,
    path: &Path,
    errors: &mut Errors,
    key: impl Fn(&Value) -> Value,
    check: impl Fn(&Value, &Path, &mut Errors),
) {
    each(list, max, path, errors, check);
    if list.len() > max {
        return;
    }
    for (i, item, _) in checks::distinct(list, &key).filter(|(.., again)| *again) {
        errors.duplicate(path.index(i), key(item));
    }
}
/// Checks keys and values of a map.
pub fn each_entry(
    map: Option<&Map<String, Value>>,
    max: usize,
    path: &Path,
    errors: &mut Errors,
    check_key: impl Fn(&str, &Path, &mut Errors),
    check: impl Fn(&Value, &Path, &mut Errors),
) {
    let Some(map) = map else { return };
    if map.len() > max {
        return errors.too_many(path.clone(), map.len(), max);
    }
    for (key, value) in map {
        check_key(key, path, errors);
        check(value, &path.key(key), errors);
    }
}

/// What an expression may speak of: `device`.
static DEVICE: LazyLock<Type> = LazyLock::new(|| {
    let by_domain = |values: Type| {
        let names = Type::Map(Box::new(Type::String), Box::new(values));
        Type::Map(Box::new(Type::String), Box::new(names))
    };
    let fields: BTreeMap<String, Type> = [
        ("driver", Type::String),
        ("attributes", by_domain(Type::Dyn)),
        ("capacity", by_domain(Type::Opaque("kubernetes.Quantity"))),
        ("allowMultipleAllocations", Type::Bool),
    ]
    .into_iter()
    .map(|(name, type_)| (name.to_string(), type_))
    .collect();
    Type::Object(Arc::new(Fields { name: "kubernetes.DRADevice".into(), fields }))
});

/// A selector of devices, compiled.
#[derive(Debug)]
pub struct Selector(Program);

impl Selector {
    /// Of the expression; the error is in words.
    pub fn compile(source: &str) -> Result<Selector, String> {
        Program::compile_with(source, &[("device", DEVICE.clone())], Libraries { bindings: true, ..Libraries::default() }).map(Selector)
    }

    /// Whether it selects a device of a driver. `device` is as a ResourceSlice has it. What the device does not tell of itself does not
    /// select it.
    pub fn selects(&self, driver: &str, device: &Value) -> Result<bool, String> {
        let names = Variables::new().with("device", device_value(driver, device));
        match self.0.run(&names, &mut limits::CALL_COST_MAX.clone()) {
            Ok(value) => Ok(matches!(value, Val::Bool(true))),
            Err(error) if error.to_string().starts_with("no such key") => Ok(false),
            Err(error) => Err(format!("CEL runtime error: {error}")),
        }
    }
}

/// A device as expressions see it: attributes and capacities by domain, which is the driver's where none is said.
fn device_value<'a>(driver: &'a str, device: &'a Value) -> Val<'a> {
    let by_domain = |key: &str, read: fn(&'a Value) -> Option<Val<'a>>| {
        let mut domains: BTreeMap<&'a str, Vec<(Val<'a>, Val<'a>)>> = BTreeMap::from([(driver, vec![])]);
        for (name, value) in device.get(key).and_then(Value::as_object).into_iter().flatten() {
            let (domain, name) = name.split_once('/').unwrap_or((driver, name));
            if let Some(value) = read(value) {
                domains.entry(domain).or_default().push((Val::string(name), value));
            }
        }
        Val::Map(Rc::new(domains.into_iter().map(|(domain, names)| (Val::string(domain), Val::Map(Rc::new(names)))).collect()))
    };
    let shared = device.get("allowMultipleAllocations").and_then(Value::as_bool).unwrap_or_default();
    Val::Map(Rc::new(vec![
        (Val::string("driver"), Val::string(driver)),
        (Val::string("attributes"), by_domain("attributes", attribute)),
        (
            Val::string("capacity"),
            by_domain("capacity", |value| Some(Val::opaque(Opaque::Quantity(Quantity::from_value(value.get("value")?).ok()?)))),
        ),
        (Val::string("allowMultipleAllocations"), Val::Bool(shared)),
    ]))
}

fn attribute(value: &Value) -> Option<Val<'_>> {
    if let Some(version) = value.get("version").and_then(Value::as_str) {
        let (major, minor, patch, pre) = parse_semver(version, false)?;
        return Some(Val::opaque(Opaque::Semver(major, minor, patch, pre)));
    }
    ["string", "int", "bool", "strings", "ints", "bools"].iter().find_map(|key| value.get(key)).map(|value| Val::json(value, None))
}

fn expression(source: &str, path: &Path, errors: &mut Errors) {
    if source.len() > EXPRESSION_BYTES_MAX {
        return errors.too_long(path.clone(), "", EXPRESSION_BYTES_MAX);
    }
    match Selector::compile(source).map(|selector| selector.0) {
        Err(why) => errors.invalid(path.clone(), source, &format!("compilation failed: {why}")),
        Ok(program) if !matches!(program.type_, Type::Bool | Type::Dyn | Type::Param(_)) => {
            errors.invalid(path.clone(), source, &format!("must evaluate to bool or the unknown type, not {}", program.type_));
        }
        Ok(_) => {}
    }
}
/// Selectors of devices. `stored` ones have been checked when they came.
pub fn selectors(list: &[Value], stored: bool, path: &Path, errors: &mut Errors) {
    each(list, SELECTORS_MAX, path, errors, |selector, path, errors| match member(selector, "cel") {
        None => errors.required(path.child("cel"), ""),
        Some(cel) if !stored => expression(text(cel, "expression"), &path.child("cel").child("expression"), errors),
        Some(_) => {}
    });
}
/// The configuration of a device by what only its driver knows.
pub fn configuration(config: &Value, stored: bool, path: &Path, errors: &mut Errors) {
    let at = path.child("opaque");
    let Some(opaque) = member(config, "opaque") else { return errors.required(at, "") };
    driver_name(text(opaque, "driver"), &at.child("driver"), errors);
    let max = if stored { usize::MAX } else { PARAMETERS_BYTES_MAX };
    raw_object(opaque.get("parameters"), max, &at.child("parameters"), errors);
}
/// Any JSON object.
pub fn raw_object(raw: Option<&Value>, bytes_max: usize, path: &Path, errors: &mut Errors) {
    match raw {
        None | Some(Value::Null) => errors.required(path.clone(), ""),
        Some(raw) if raw.to_string().len() > bytes_max => errors.too_long(path.clone(), "", bytes_max),
        Some(Value::Object(_)) => {}
        Some(_) => errors.invalid(path.clone(), "<value omitted>", "must be a valid JSON object"),
    }
}

/// A taint of a device.
pub fn taint(taint: &Value, path: &Path, errors: &mut Errors) {
    let (key, value) = (text(taint, "key"), text(taint, "value"));
    errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
    if !value.is_empty() {
        errors.invalid_all(&path.child("value"), value, names::label_value(value));
    }
    checks::required_one_of(taint, "effect", EFFECTS, path, errors);
}
/// A toleration of such taints.
pub fn toleration(toleration: &Value, path: &Path, errors: &mut Errors) {
    checks::checked(toleration, "key", path, names::qualified_name, errors);
    let value = text(toleration, "value");
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => errors.invalid(path.child("value"), value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => errors.invalid_all(&path.child("value"), value, names::label_value(value)),
        "" => errors.required(path.child("operator"), ""),
        other => errors.not_supported(path.child("operator"), other, &["Equal", "Exists"]),
    }
    if !text(toleration, "effect").is_empty() {
        checks::one_of(toleration, "effect", EFFECTS, path, errors);
    }
}

/// Conditions for which binding waits, and those that make it fail: both or none, and none in both.
pub fn binding_conditions(parent: &Value, path: &Path, errors: &mut Errors) {
    let (wanted, failures) = ("bindingConditions", "bindingFailureConditions");
    let list = |key: &str| crate::kinds::values::list(parent, key);
    for key in [wanted, failures] {
        each(list(key), BINDING_CONDITIONS_MAX, &path.child(key), errors, |name, path, errors| {
            let name = name.as_str().unwrap_or_default();
            errors.invalid_all(path, name, names::qualified_name(name));
        });
    }
    for (key, other) in [(wanted, None), (failures, Some(wanted))] {
        let others: HashSet<&Value> = other.into_iter().flat_map(list).collect();
        for (i, name, again) in checks::distinct(list(key), |name| name) {
            let at = path.child(key).index(i);
            if again {
                errors.duplicate(at.clone(), name.clone());
            }
            if others.contains(name) {
                errors.invalid(at, name.clone(), "bindingFailureConditions must not overlap with bindingConditions");
            }
        }
    }
    for (key, other) in [(wanted, failures), (failures, wanted)] {
        if list(key).is_empty() && !list(other).is_empty() {
            errors.invalid(path.child(key), Value::Null, &format!("{key} are required to use {other}"));
        }
    }
}

/// Whether two values say the same, absent and empty being alike.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let said = |value: Option<&Value>| value.filter(|v| !is_empty(v)).cloned();
    said(a) == said(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_are_selected_by_what_they_tell_of_themselves() {
        let device = json!({"name": "d", "attributes": {"model": {"string": "a100"}, "other.dev/firmware": {"version": "1.2.3"}, "cores": {"int": 8}},
            "capacity": {"memory": {"value": "40Gi"}}});
        let selects = |source: &str| Selector::compile(source).unwrap().selects("gpu.example.com", &device);
        for source in [
            "device.driver == 'gpu.example.com' && !device.allowMultipleAllocations",
            "device.attributes['gpu.example.com'].model == 'a100' && device.attributes['gpu.example.com'].cores > 4",
            "device.attributes['other.dev'].firmware.isGreaterThan(semver('1.2.0'))",
            "device.capacity['gpu.example.com'].memory.compareTo(quantity('32Gi')) > 0",
        ] {
            assert_eq!(selects(source), Ok(true), "{source}");
        }
        assert_eq!(selects("device.attributes['gpu.example.com'].unknown == 'x'"), Ok(false));
        assert_eq!(selects("device.attributes['nobody.dev'].model == 'x'"), Ok(false));
        assert!(selects("device.attributes['gpu.example.com'].model > 4").is_err());
        assert!(Selector::compile("device.nothing").is_err());
    }
}
