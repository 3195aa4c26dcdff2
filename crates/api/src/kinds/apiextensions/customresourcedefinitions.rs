//! CustomResourceDefinition of apiextensions.k8s.io. What it makes is in [`crate::custom`]; here is what it may say.

use crate::{
    custom::{CLEANUP_FINALIZER, json_path::JsonPath, structural},
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{each, fill, flag, int, list, made, member, put, strings, text, within},
        workload,
    },
    names,
    object::ObjectExt,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
        .short(&["crd", "crds"])
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .status()
        .hooks(CustomResourceDefinitions)
}

struct CustomResourceDefinitions;

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Characters of a deprecation warning.
const WARNING_CHARS_MAX: usize = 256;

impl Hooks for CustomResourceDefinitions {
    fn default(&self, definition: &mut Value) {
        let spec = made(definition, "spec");
        let names = made(spec, "names");
        let kind = text(names, "kind").to_string();
        if !kind.is_empty() {
            fill(names, "singular", kind.to_lowercase());
            fill(names, "listKind", format!("{kind}List"));
        }
        let conversion = made(spec, "conversion");
        fill(conversion, "strategy", "None");
        within(conversion, "webhook", |webhook| {
            within(webhook, "clientConfig", |client| within(client, "service", |service| fill(service, "port", 443)))
        });
        each(spec, "versions", |version| {
            within(version, "schema", |schema| within(schema, "openAPIV3Schema", tidy_schema));
        });
    }
    fn prepare_create(&self, definition: &mut Value) {
        let stored: Vec<Value> =
            list(workload::spec(definition), "versions").iter().filter(|v| flag(v, "storage")).map(|v| json!(text(v, "name"))).collect();
        put(definition, "status", json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}));
    }
    fn prepare_update(&self, definition: &mut Value, _old: &Value) {
        // A version that becomes the stored one is remembered: objects may be stored in it from now on.
        let stored = list(workload::spec(definition), "versions").iter().find(|v| flag(v, "storage")).map(|v| text(v, "name").to_string());
        let Some(stored) = stored else { return };
        let status = made(definition, "status");
        if !strings(status, "storedVersions").any(|known| known == stored) {
            let mut all: Vec<Value> = list(status, "storedVersions").to_vec();
            all.push(json!(stored));
            put(status, "storedVersions", all);
        }
    }
    fn prepare_delete(&self, definition: &mut Value, now: &str) {
        definition.add_finalizer(CLEANUP_FINALIZER);
        set_condition(
            definition,
            "Terminating",
            true,
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            now,
        );
    }
    fn validate(&self, definition: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(definition), Path::new("spec"));
        let wanted = format!("{}.{}", text(member(spec, "names").unwrap_or(&Value::Null), "plural"), text(spec, "group"));
        // What it is made of cannot change later; who tries is told that, and not that the name is wrong.
        if old.is_none() && !definition.name().is_empty() && definition.name() != wanted {
            errors.invalid(Path::new("metadata").child("name"), definition.name(), "must be spec.names.plural+\".\"+spec.group");
        }
        validate_spec(spec, old.map(workload::spec), &path, errors);
        if let Some(old) = old {
            immutable(spec, workload::spec(old), &path, errors);
        }
        approval(definition, errors);
    }
    fn validate_status(&self, definition: &Value, _old: &Value, errors: &mut Errors) {
        let (spec, status) = (workload::spec(definition), workload::status(definition));
        let path = Path::new("status").child("storedVersions");
        let known: Vec<&str> = list(spec, "versions").iter().map(|version| text(version, "name")).collect();
        if list(status, "storedVersions").is_empty() {
            errors.invalid(path.clone(), json!([]), "must have at least one stored version");
        }
        for (i, version) in strings(status, "storedVersions").enumerate().filter(|(_, version)| !known.contains(version)) {
            errors.invalid(path.index(i), version, "must appear in spec.versions");
        }
    }
    fn warnings(&self, definition: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut formats = vec![];
        for version in list(workload::spec(definition), "versions") {
            if let Some(schema) = version.at("schema.openAPIV3Schema") {
                structural::unknown_formats(schema, &mut formats);
            }
        }
        formats.iter().map(|format| format!("unrecognized format {format:?}")).collect()
    }
    fn cells(&self, definition: &Value, _now_unix_s: i64) -> Vec<Value> {
        vec![json!(definition.name()), json!(definition.creation_timestamp())]
    }
}

/// Sets a condition of a definition. The time of the last transition stays where nothing changes.
pub fn set_condition(definition: &mut Value, type_: &str, is: bool, reason: &str, message: &str, now: &str) -> bool {
    let status = if is { "True" } else { "False" };
    let mut condition = json!({"type": type_, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    let conditions = made(definition, "status");
    if !conditions.get("conditions").is_some_and(Value::is_array) {
        put(conditions, "conditions", json!([]));
    }
    let Some(Value::Array(conditions)) = conditions.get_mut("conditions") else { return false };
    match conditions.iter_mut().find(|known| text(known, "type") == type_) {
        Some(known) => {
            if text(known, "status") == status
                && let Some(since) = known.get("lastTransitionTime")
            {
                condition["lastTransitionTime"] = since.clone();
            }
            let changed = *known != condition;
            *known = condition;
            changed
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// Leaves out what Go would not show of a schema: empty objects of properties and empty lists.
fn tidy_schema(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for key in ["properties", "patternProperties", "definitions"] {
        if map.get(key).and_then(Value::as_object).is_some_and(|below| below.is_empty()) {
            map.remove(key);
        }
        for below in map.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(|below| below.values_mut()) {
            tidy_schema(below);
        }
    }
    for key in ["additionalProperties", "items", "not"] {
        if let Some(below) = map.get_mut(key).filter(|below| below.is_object()) {
            tidy_schema(below);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for below in map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            tidy_schema(below);
        }
    }
}

/// What is the same in all versions is checked once, and stands where it once stood.
fn hoisted<'a>(versions: &'a [Value], key: &str) -> Option<&'a Value> {
    let first = versions.first()?.get(key)?;
    versions.iter().all(|version| version.get(key) == Some(first)).then_some(first)
}

fn validate_spec(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let group = text(spec, "group");
    if group.is_empty() {
        errors.required(path.child("group"), "");
    } else {
        let problems = names::dns1123_subdomain(group);
        if problems.is_empty() && !group.contains('.') {
            errors.invalid(path.child("group"), group, "should be a domain with at least one dot");
        } else if !problems.is_empty() {
            errors.invalid(path.child("group"), group, &problems.join(","));
        }
    }
    checks::required_one_of(spec, "scope", &["Cluster", "Namespaced"], path, errors);
    if flag(spec, "preserveUnknownFields") {
        errors.invalid(
            path.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    let versions = list(spec, "versions");
    if versions.is_empty() {
        errors.required(path.child("versions"), "must have at least one version");
    }
    for (i, version) in versions.iter().enumerate() {
        validate_version(version, &versions[..i], versions, &path.child("versions").index(i), errors);
    }
    let stored = versions.iter().filter(|version| flag(version, "storage")).count();
    if stored != 1 && !versions.is_empty() {
        errors.invalid(path.child("versions"), json!(versions), "must have exactly one version marked as storage version");
    }
    validate_names(spec.get("names").unwrap_or(&Value::Null), &path.child("names"), errors);
    // What was accepted once is not checked again: definitions outlive the rules for them.
    let before = |key: &str| old.and_then(|old| hoisted(list(old, "versions"), key));
    if let Some(schema) = hoisted(versions, "schema").filter(|schema| before("schema") != Some(*schema)) {
        validate_schema(schema, &path.child("validation"), errors);
    }
    if let Some(subresources) = hoisted(versions, "subresources") {
        validate_subresources(subresources, &path.child("subresources"), errors);
    }
    if let Some(columns) = hoisted(versions, "additionalPrinterColumns") {
        validate_columns(columns, &path.child("additionalPrinterColumns"), errors);
    }
    if let Some(fields) = hoisted(versions, "selectableFields") {
        validate_selectable(fields, hoisted(versions, "schema"), &path.child("selectableFields"), errors);
    }
    validate_conversion(spec.get("conversion").unwrap_or(&Value::Null), &path.child("conversion"), errors);
}

fn validate_version(version: &Value, before: &[Value], all: &[Value], path: &Path, errors: &mut Errors) {
    let name = text(version, "name");
    if before.iter().any(|other| text(other, "name") == name) {
        errors.duplicate(path.child("name"), name);
    }
    let problems = names::dns1035_label(name);
    if !problems.is_empty() {
        errors.invalid(path.child("name"), name, &problems.join(","));
    }
    if let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) {
        let at = path.child("deprecationWarning");
        if !flag(version, "deprecated") {
            errors.invalid(at.clone(), warning, "can only be set for deprecated versions");
        }
        if warning.is_empty() {
            errors.invalid(at.clone(), warning, "must not be an empty string");
        }
        if warning.chars().count() > WARNING_CHARS_MAX {
            errors.invalid(at.clone(), warning, &format!("must be <= {WARNING_CHARS_MAX} characters long"));
        }
        if let Some(index) = warning.chars().position(|c| c.is_control()) {
            errors.invalid(at, warning, &format!("must only contain printable UTF-8 characters; non-printable character found at index {index}"));
        }
    }
    let own = |key: &str| version.get(key).filter(|_| hoisted(all, key).is_none());
    if let Some(schema) = own("schema") {
        validate_schema(schema, &path.child("schema"), errors);
    } else if version.at("schema.openAPIV3Schema").is_none() {
        errors.required(path.child("schema").child("openAPIV3Schema"), "schemas are required");
    }
    if let Some(subresources) = own("subresources") {
        validate_subresources(subresources, &path.child("subresources"), errors);
    }
    if let Some(columns) = own("additionalPrinterColumns") {
        validate_columns(columns, &path.child("additionalPrinterColumns"), errors);
    }
    if let Some(fields) = own("selectableFields") {
        validate_selectable(fields, version.get("schema"), &path.child("selectableFields"), errors);
    }
}

fn validate_schema(schema: &Value, path: &Path, errors: &mut Errors) {
    match schema.get("openAPIV3Schema").filter(|schema| schema.is_object()) {
        Some(schema) => structural::validate(schema, &path.child("openAPIV3Schema"), errors),
        None => errors.required(path.child("openAPIV3Schema"), "schemas are required"),
    }
}

fn validate_names(given: &Value, path: &Path, errors: &mut Errors) {
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(given, key).is_empty() {
            errors.required(path.child(key), "");
        }
    }
    for key in ["plural", "singular"] {
        let problems = names::dns1035_label(text(given, key));
        if !text(given, key).is_empty() && !problems.is_empty() {
            errors.invalid(path.child(key), text(given, key), &problems.join(","));
        }
    }
    for key in ["kind", "listKind"] {
        let problems = names::dns1035_label(&text(given, key).to_lowercase());
        if !text(given, key).is_empty() && !problems.is_empty() {
            errors.invalid(path.child(key), text(given, key), &format!("may have mixed case, but should otherwise match: {}", problems.join(",")));
        }
    }
    for key in ["shortNames", "categories"] {
        for (i, name) in strings(given, key).enumerate() {
            let problems = names::dns1035_label(name);
            if !problems.is_empty() {
                errors.invalid(path.child(key).index(i), name, &problems.join(","));
            }
        }
    }
    if !text(given, "kind").is_empty() && text(given, "kind") == text(given, "listKind") {
        errors.invalid(path.child("listKind"), text(given, "listKind"), "kind and listKind may not be the same");
    }
}

/// A path of plain fields that begins with a dot. Answers whether it is one.
fn simple_path(path_text: &str, path: Path, errors: &mut Errors) -> bool {
    if path_text.is_empty() {
        errors.required(path, "");
        return false;
    }
    if !path_text.starts_with('.') {
        errors.invalid(path, path_text, "must be a simple json path starting with .");
        return false;
    }
    if let Err(why) = JsonPath::parse(path_text) {
        errors.invalid(path, path_text, &format!("is an invalid JSON path: {why}"));
        return false;
    }
    true
}

fn validate_subresources(subresources: &Value, path: &Path, errors: &mut Errors) {
    let Some(scale) = member(subresources, "scale") else { return };
    let path = path.child("scale");
    for (key, root) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let given = text(scale, key);
        if simple_path(given, path.child(key), errors) && !given.starts_with(&format!("{root}.")) {
            errors.invalid(path.child(key), given, &format!("should be a json path under {root}"));
        }
    }
    if let Some(given) = scale.get("labelSelectorPath").and_then(Value::as_str).filter(|given| !given.is_empty())
        && simple_path(given, path.child("labelSelectorPath"), errors)
        && !given.starts_with(".spec.")
        && !given.starts_with(".status.")
    {
        errors.invalid(path.child("labelSelectorPath"), given, "should be a json path under either .spec or .status");
    }
}

fn validate_columns(columns: &Value, path: &Path, errors: &mut Errors) {
    for (i, column) in columns.as_array().into_iter().flatten().enumerate() {
        let path = path.index(i);
        if text(column, "name").is_empty() {
            errors.required(path.child("name"), "");
        }
        let (type_, format) = (text(column, "type"), text(column, "format"));
        if type_.is_empty() {
            errors.required(path.child("type"), &format!("must be one of {}", COLUMN_TYPES.join(",")));
        } else if !COLUMN_TYPES.contains(&type_) {
            errors.invalid(path.child("type"), type_, &format!("must be one of {}", COLUMN_TYPES.join(",")));
        }
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            errors.invalid(path.child("format"), format, &format!("must be one of {}", COLUMN_FORMATS.join(",")));
        }
        let given = text(column, "jsonPath");
        if given.is_empty() {
            errors.required(path.child("JSONPath"), "");
        } else if !given.starts_with('.') {
            errors.invalid(path.child("JSONPath"), given, "must be a simple json path starting with .");
        }
    }
}

fn validate_selectable(fields: &Value, schema: Option<&Value>, path: &Path, errors: &mut Errors) {
    const FIELDS_MAX: usize = 8;
    let fields = fields.as_array().map(Vec::as_slice).unwrap_or_default();
    if fields.len() > FIELDS_MAX {
        errors.too_many(path.clone(), fields.len(), FIELDS_MAX);
    }
    for (i, field) in fields.iter().enumerate() {
        let at = path.index(i).child("jsonPath");
        let given = text(field, "jsonPath");
        if given.is_empty() {
            errors.required(at, "");
            continue;
        }
        if fields[..i].iter().any(|other| text(other, "jsonPath") == given) {
            errors.duplicate(at.clone(), given);
        }
        let parsed = JsonPath::parse(given).ok().filter(|_| given.starts_with('.'));
        let Some(names) = parsed.as_ref().and_then(JsonPath::fields) else {
            errors.invalid(at, given, "is an invalid path: must be a simple json path starting with .");
            continue;
        };
        if names.first() == Some(&"metadata") {
            errors.invalid(at, given, "must not point to fields in metadata");
            continue;
        }
        let mut here = schema.and_then(|schema| schema.get("openAPIV3Schema"));
        for name in &names {
            here = here.and_then(|here| here.get("properties")?.get(name));
        }
        match here.map(|here| text(here, "type")) {
            None => errors.invalid(at, given, "is an invalid path: does not refer to a valid field"),
            Some("string" | "integer" | "boolean") => {}
            Some(_) => errors.invalid(
                at,
                given,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
        }
    }
}

fn validate_conversion(conversion: &Value, path: &Path, errors: &mut Errors) {
    if !checks::required(conversion, "strategy", path, errors) {
        return;
    }
    checks::one_of(conversion, "strategy", &["None", "Webhook"], path, errors);
    let webhook = member(conversion, "webhook");
    let at = path.child("webhook");
    match (text(conversion, "strategy"), webhook) {
        ("Webhook", None) => errors.required(at.child("clientConfig"), "required when strategy is set to Webhook"),
        ("Webhook", Some(webhook)) => {
            match member(webhook, "clientConfig") {
                None => errors.required(at.child("clientConfig"), "required when strategy is set to Webhook"),
                Some(client) => client_config(client, &at.child("clientConfig"), errors),
            }
            let reviewed: Vec<&str> = strings(webhook, "conversionReviewVersions").collect();
            let at = at.child("conversionReviewVersions");
            if reviewed.is_empty() {
                errors.required(at, "");
            } else if !reviewed.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
                errors.invalid(at, json!(reviewed), "must include at least one of v1, v1beta1");
            }
        }
        ("None", Some(_)) => errors.forbidden(at.child("clientConfig"), "should not be set when strategy is not set to Webhook"),
        _ => {}
    }
}

fn client_config(client: &Value, path: &Path, errors: &mut Errors) {
    let (url, service) = (client.get("url").and_then(Value::as_str), member(client, "service"));
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => errors.required(path.clone(), "exactly one of url or service is required"),
        (Some(url), None) => {
            if !url.starts_with("https://") {
                errors.invalid(path.child("url"), url, "'https' is the only allowed URL scheme; desired format: https://host[/path]");
            }
        }
        (None, Some(service)) => {
            let path = path.child("service");
            for key in ["name", "namespace"] {
                if text(service, key).is_empty() {
                    errors.required(path.child(key), &format!("service {key} is required"));
                }
            }
            if let Some(port) = int(service, "port").filter(|port| !checks::is_port(*port)) {
                errors.invalid(path.child("port"), port, "port is not valid: must be between 1 and 65535, inclusive");
            }
        }
    }
}

fn immutable(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let of = |spec: &Value, key: &str| match key.split_once('.') {
        Some((parent, key)) => spec.get(parent).map(|parent| text(parent, key).to_string()).unwrap_or_default(),
        None => text(spec, key).to_string(),
    };
    for key in ["group", "scope", "names.kind", "names.plural"] {
        let (new, was) = (of(spec, key), of(old, key));
        if new != was {
            let path = key.split('.').fold(path.clone(), |path, part| path.child(part));
            errors.invalid(path, new, checks::IMMUTABLE);
        }
    }
}

/// Groups of Kubernetes' own need somebody's approval.
fn approval(definition: &Value, errors: &mut Errors) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let group = text(workload::spec(definition), "group");
    let protected = group == "k8s.io" || group == "kubernetes.io" || group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io");
    if !protected {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    match definition.annotation(ANNOTATION) {
        None | Some("") => errors.required(path, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"),
        Some(text) if text.starts_with("unapproved") || text.starts_with("https://") || text.starts_with("http://") => {}
        Some(text) => errors.invalid(
            path,
            text,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
    }
}
