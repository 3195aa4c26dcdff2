//! CustomResourceDefinition of apiextensions.k8s.io. What it makes is in [`crate::custom`]; here is what it may say.

use crate::{
    cel,
    custom::{CLEANUP_FINALIZER, props::Props, structural},
    field::{Errors, Path},
    internal::{self, Tree},
    kind::{Hooks, Kind},
    kinds::{
        admissionregistration::rules,
        base64, checks, pem,
        values::{each, fill, fill_absent, flag, has, is_empty, list, made, member, put, strings, text, within},
        workload,
    },
    names,
    object::ObjectExt,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};

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
const WARNING_BYTES_MAX: usize = 256;

impl Hooks for CustomResourceDefinitions {
    fn default(&self, definition: &mut Value) {
        let spec = made(definition, "spec");
        let names = made(spec, "names");
        let kind = text(names, "kind").to_string();
        if !kind.is_empty() {
            fill(names, "singular", kind.to_lowercase());
            fill(names, "listKind", format!("{kind}List"));
        }
        fill_absent(spec, "conversion", json!({"strategy": "None"}));
        let conversion = made(spec, "conversion");
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
        let is_established = |definition: &Value| {
            let mut conditions = list(workload::status(definition), "conditions").iter();
            conditions.any(|condition| text(condition, "type") == "Established" && text(condition, "status") == "True")
        };
        let established = old.is_some_and(is_established);
        validate_spec(spec, old.map(workload::spec), &path, errors);
        let conversion = |spec: &Value| spec.get("conversion").cloned().unwrap_or_default();
        let former = old.filter(|_| established).map(|old| conversion(workload::spec(old)));
        let (now, at) = (conversion(spec), path.child("conversion"));
        if flag(spec, "preserveUnknownFields") && text(&now, "strategy") != "None" {
            errors.invalid(at.child("strategy"), text(&now, "strategy"), "must be None if spec.preserveUnknownFields is true");
        }
        validate_conversion(&now, former.as_ref(), &at, errors);
        if let Some(old) = old {
            immutable(spec, workload::spec(old), established, &path, errors);
        }
        stored_versions(definition, errors);
        approval(definition, old, errors);
        if flag(spec, "preserveUnknownFields") && !old.is_some_and(|old| flag(workload::spec(old), "preserveUnknownFields")) {
            errors.invalid(
                path.child("preserveUnknownFields"),
                true,
                "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            );
        }
    }
    fn validate_status(&self, definition: &Value, _old: &Value, errors: &mut Errors) {
        let accepted = workload::status(definition).get("acceptedNames").unwrap_or(&Value::Null);
        validate_names(accepted, &Path::new("status").child("acceptedNames"), errors);
    }
    fn warnings(&self, definition: &Value, old: Option<&Value>) -> Vec<String> {
        let before = old.map(unknown_formats).unwrap_or_default();
        let formats = unknown_formats(definition);
        formats.iter().filter(|format| !before.contains(format)).map(|format| format!("unrecognized format {format:?}")).collect()
    }
    fn cells(&self, definition: &Value, _now_unix_s: i64) -> Vec<Value> {
        vec![json!(definition.name()), json!(definition.creation_timestamp())]
    }
}

/// The formats in the schemas of all versions that nobody knows.
fn unknown_formats(definition: &Value) -> Vec<String> {
    let mut formats = vec![];
    for version in list(workload::spec(definition), "versions") {
        if let Some(Value::Object(schema)) = version.at("schema.openAPIV3Schema") {
            structural::unknown_formats(schema, &mut formats);
        }
    }
    formats
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
/// All that versions share, by key.
type Shared<'a> = BTreeMap<&'static str, &'a Value>;

fn shared(versions: &[Value]) -> Shared<'_> {
    let keys = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];
    keys.into_iter().filter_map(|key| Some((key, hoisted(versions, key)?))).collect()
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
    let versions = list(spec, "versions");
    for (i, _) in versions.iter().enumerate().filter(|(_, version)| version.at("schema.openAPIV3Schema").is_none()) {
        errors.required(path.child("versions").index(i).child("schema").child("openAPIV3Schema"), "");
    }
    let keeps_all = flag(spec, "preserveUnknownFields");
    if keeps_all && versions.iter().filter_map(|version| version.at("schema.openAPIV3Schema")).any(|schema| Props::read(schema).has_defaults) {
        errors.invalid(path.child("preserveUnknownFields"), true, "must be false in order to use defaults in the schema");
    }
    let shared = shared(versions);
    for (i, version) in versions.iter().enumerate() {
        validate_version(version, &shared, &path.child("versions").index(i), errors);
    }
    let refuse = |errors: &mut Errors, detail: &str| errors.invalid_structure(path.child("versions"), &shown_versions(versions, &shared), detail);
    let distinct: BTreeSet<&str> = versions.iter().map(|version| text(version, "name")).collect();
    if distinct.len() != versions.len() {
        refuse(errors, "must contain unique version names");
    }
    if versions.iter().filter(|version| flag(version, "storage")).count() != 1 {
        refuse(errors, "must have exactly one version marked as storage version");
    }
    let (given, at) = (spec.get("names").unwrap_or(&Value::Null), path.child("names"));
    for key in ["plural", "singular", "kind", "listKind"] {
        checks::required(given, key, &at, errors);
    }
    validate_names(given, &at, errors);
    // What was accepted once is not checked again: definitions outlive the rules for them.
    let before = |key: &str| old.and_then(|old| hoisted(list(old, "versions"), key));
    if let Some(schema) = shared.get("schema").filter(|schema| before("schema") != Some(**schema)) {
        let with_status = versions.iter().any(has_status);
        validate_schema(schema, with_status, &path.child("validation"), errors);
    }
    if let Some(subresources) = shared.get("subresources") {
        validate_subresources(subresources, &path.child("subresources"), errors);
    }
    if let Some(columns) = shared.get("additionalPrinterColumns") {
        validate_columns(columns, &path.child("additionalPrinterColumns"), errors);
    }
    if let Some(fields) = shared.get("selectableFields") {
        // They are the same in all versions, and so is mostly what they lead to.
        let schemas: Vec<_> =
            if shared.contains_key("schema") { vec![shared["schema"]] } else { versions.iter().filter_map(|v| v.get("schema")).collect() };
        let before = errors.0.len();
        for schema in schemas {
            if errors.0.len() == before {
                validate_selectable(fields, Some(schema), &path.child("selectableFields"), errors);
            }
        }
    }
}

fn has_status(version: &Value) -> bool {
    version.get("subresources").is_some_and(|subresources| has(subresources, "status"))
}

/// Versions as messages show them: without what they all share.
fn shown_versions(versions: &[Value], shared: &Shared) -> Tree {
    let own = |version: &Value, key: &str| version.get(key).filter(|_| !shared.contains_key(key)).cloned().unwrap_or_default();
    let show = |version: &Value| {
        internal::fields([
            ("Name", json!(text(version, "name"))),
            ("Served", json!(flag(version, "served"))),
            ("Storage", json!(flag(version, "storage"))),
            ("Deprecated", json!(flag(version, "deprecated"))),
            ("DeprecationWarning", version.get("deprecationWarning").cloned().unwrap_or_default()),
            ("Schema", own(version, "schema")),
            ("Subresources", own(version, "subresources")),
            ("AdditionalPrinterColumns", own(version, "additionalPrinterColumns")),
            ("SelectableFields", own(version, "selectableFields")),
        ])
    };
    if versions.is_empty() { Tree::Leaf(Value::Null) } else { Tree::List(versions.iter().map(show).collect()) }
}

/// Versions in which objects may be stored: the one to store in now is one of them, and none of them is gone.
fn stored_versions(definition: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("storedVersions");
    let stored: Vec<&str> = strings(workload::status(definition), "storedVersions").collect();
    let known: HashSet<&str> = stored.iter().copied().collect();
    if stored.is_empty() {
        return errors.invalid(path, Value::Null, "must have at least one stored version");
    }
    let versions = list(workload::spec(definition), "versions");
    let served = checks::by_name(versions);
    for version in versions.iter().filter(|version| flag(version, "storage") && !known.contains(text(version, "name"))) {
        errors.invalid(path.clone(), json!(stored), &format!("must have the storage version {}", text(version, "name")));
    }
    for (i, name) in stored.iter().enumerate().filter(|(_, name)| !served.contains_key(*name)) {
        let detail = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.invalid(path.index(i), *name, &detail);
    }
}

fn validate_version(version: &Value, shared: &Shared, path: &Path, errors: &mut Errors) {
    let name = text(version, "name");
    let problems = names::dns1035_label(name);
    if !problems.is_empty() {
        errors.invalid(path.child("name"), name, &problems.join(","));
    }
    if let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) {
        deprecation_warning(warning, flag(version, "deprecated"), &path.child("deprecationWarning"), errors);
    }
    let own = |key: &str| version.get(key).filter(|_| !shared.contains_key(key));
    if let Some(schema) = own("schema") {
        validate_schema(schema, has_status(version), &path.child("schema"), errors);
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

fn deprecation_warning(warning: &str, deprecated: bool, path: &Path, errors: &mut Errors) {
    let mut refuse = |detail: &str| errors.invalid(path.clone(), warning, detail);
    if !deprecated {
        return refuse("can only be set for deprecated versions");
    }
    if warning.len() > WARNING_BYTES_MAX {
        refuse(&format!("must be <= {WARNING_BYTES_MAX} characters long"));
    }
    if warning.is_empty() {
        refuse("must not be an empty string");
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| c.is_control() || c.is_whitespace() && *c != ' ') {
        refuse(&format!("must only contain printable UTF-8 characters; non-printable character found at index {index}"));
    }
}

fn validate_schema(schema: &Value, with_status: bool, path: &Path, errors: &mut Errors) {
    let path = path.child("openAPIV3Schema");
    let Some(schema) = schema.get("openAPIV3Schema").filter(|schema| schema.is_object()) else { return };
    if with_status {
        root_of_status(schema, &path, errors);
    }
    if flag(schema, "nullable") {
        errors.forbidden(path.child("nullable"), "nullable cannot be true at the root");
    }
    structural::validate(schema, false, &path, errors);
}

/// With a status of its own, the schema says little at its root: the status is taken out from below it.
fn root_of_status(schema: &Value, path: &Path, errors: &mut Errors) {
    const KEYS: &[&str] = &[
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    let type_ = text(schema, "type");
    let odd = |key: &str| has(schema, key) && !KEYS.contains(&key) && !is_empty(&schema[key]) && schema[key] != json!(false);
    let first = ["id", "$schema", "$ref"].into_iter().any(odd);
    if !first && !type_.is_empty() && type_ != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(path.child("type"), type_, detail);
    } else if schema.as_object().is_some_and(|schema| schema.keys().any(|key| odd(key))) {
        // Go's names of the fields.
        let names: Vec<String> = KEYS
            .iter()
            .map(|key| match key.strip_prefix("x-kubernetes-") {
                Some("validations") => "XValidations".into(),
                Some(_) => "XPreserveUnknownFields".into(),
                None => format!("{}{}", key[..1].to_uppercase(), &key[1..]),
            })
            .collect();
        let detail = format!("only [{}] fields are allowed at the root of the schema if the status subresource is enabled", names.join(" "));
        errors.invalid(path.clone(), schema.clone(), &detail);
    }
}

fn validate_names(given: &Value, path: &Path, errors: &mut Errors) {
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
    let all = |key: &str, errors: &mut Errors| {
        for (i, name) in strings(given, key).enumerate() {
            let problems = names::dns1035_label(name);
            if !problems.is_empty() {
                errors.invalid(path.child(key).index(i), name, &problems.join(","));
            }
        }
    };
    all("shortNames", errors);
    if !text(given, "kind").is_empty() && text(given, "kind") == text(given, "listKind") {
        errors.invalid(path.child("listKind"), text(given, "listKind"), "kind and listKind may not be the same");
    }
    all("categories", errors);
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
    let Some(schema) = schema.and_then(|schema| schema.get("openAPIV3Schema")).filter(|schema| schema.is_object()) else {
        return errors.invalid(path.clone(), "", "may only be set when `version.schema.openAPIV3Schema` is not included");
    };
    let (props, mut distinct) = (Props::read(schema), BTreeSet::new());
    for (i, field) in fields.iter().enumerate() {
        let at = path.index(i).child("jsonPath");
        let given = text(field, "jsonPath");
        if given.is_empty() {
            errors.required(at, "");
            continue;
        }
        let (path, here) = match cel::rule::selectable(&props, given) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(at, given, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        let shown = path.to_string();
        if shown == "metadata" || shown.starts_with("metadata.") || shown.starts_with("metadata[") {
            errors.invalid(at.clone(), given, "must not point to fields in metadata");
        }
        if !matches!(here.types.as_slice(), [type_] if matches!(type_.as_str(), "string" | "integer" | "boolean")) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.invalid(at.clone(), given, detail);
        }
        if !distinct.insert(shown) {
            errors.duplicate(at, given);
        }
    }
    if distinct.len() > FIELDS_MAX {
        errors.too_many(path.clone(), distinct.len(), FIELDS_MAX);
    }
}

/// What is wrong with authorities that a webhook is checked by. They need only be some when they were before.
fn bundle_problem(bundle: &str) -> Option<String> {
    let text = base64::decode(bundle).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let blocks: Vec<_> = pem::blocks(&text).collect();
    let certificates: Vec<_> = blocks.iter().filter(|block| block.label == "CERTIFICATE" && !block.has_headers).collect();
    // DER begins with a sequence.
    if certificates.iter().any(|block| block.bytes.first() == Some(&0x30)) {
        return None;
    }
    let why = match (blocks.is_empty(), certificates.is_empty()) {
        (true, _) => "unable to parse bytes as PEM block",
        (false, true) => "no valid certificate authority data seen",
        (false, false) => "failed to parse certificate: x509: malformed certificate",
    };
    Some(format!("unable to load root certificates: {why}"))
}

/// Clients are told of the members of `webhook` by the names that these once had. `former` is what was said before by a definition that
/// is in use.
fn validate_conversion(conversion: &Value, former: Option<&Value>, path: &Path, errors: &mut Errors) {
    checks::required_one_of(conversion, "strategy", &["None", "Webhook"], path, errors);
    let webhook = conversion.get("webhook").unwrap_or(&Value::Null);
    let (client, at) = (member(webhook, "clientConfig"), path.child("webhookClientConfig"));
    let (reviewed, reviewed_at) = (strings(webhook, "conversionReviewVersions").collect::<Vec<_>>(), path.child("conversionReviewVersions"));
    if text(conversion, "strategy") != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.forbidden(at, detail);
        }
        if !reviewed.is_empty() {
            errors.forbidden(reviewed_at, detail);
        }
        return;
    }
    match client {
        None => errors.required(at, "required when strategy is set to Webhook"),
        Some(client) => {
            rules::client(client, &at, errors);
            let bundle_of = |conversion: &Value| conversion.str_at("webhook.clientConfig.caBundle").unwrap_or_default().to_string();
            let may_be_wrong = former.is_none_or(|former| {
                Some(bundle_of(former)).filter(|bundle| !bundle.is_empty()).is_some_and(|bundle| bundle_problem(&bundle).is_some())
            });
            let bundle = bundle_of(conversion);
            if let Some(why) = (!bundle.is_empty() && !may_be_wrong).then(|| bundle_problem(&bundle)).flatten() {
                errors.invalid(at.child("caBundle"), bundle, &why);
            }
        }
    }
    rules::review_versions(&reviewed, "", reviewed_at, errors);
}

/// Who has objects keeps their kind and scope; no one can move to another group or be renamed.
fn immutable(spec: &Value, old: &Value, established: bool, path: &Path, errors: &mut Errors) {
    let of = |spec: &Value, key: &str| match key.split_once('.') {
        Some((parent, key)) => spec.get(parent).map(|parent| text(parent, key).to_string()).unwrap_or_default(),
        None => text(spec, key).to_string(),
    };
    let kept: &[&str] = if established { &["scope", "names.kind", "group", "names.plural"] } else { &["group", "names.plural"] };
    for key in kept {
        let (new, was) = (of(spec, key), of(old, key));
        if new != was {
            let path = key.split('.').fold(path.clone(), |path, part| path.child(part));
            errors.invalid(path, new, checks::IMMUTABLE);
        }
    }
}

/// Groups of Kubernetes' own need somebody's approval. Who did without it still can.
fn approval(definition: &Value, old: Option<&Value>, errors: &mut Errors) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    #[derive(PartialEq)]
    enum State {
        Missing,
        Bypassed,
        Approved,
        Invalid,
    }
    let state = |definition: &Value| match definition.annotation(ANNOTATION) {
        None | Some("") => State::Missing,
        Some(text) if text.starts_with("unapproved") => State::Bypassed,
        Some(text) => match text.split_once("://") {
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/') => State::Approved,
            _ => State::Invalid,
        },
    };
    let group = text(workload::spec(definition), "group");
    let protected = group == "k8s.io" || group == "kubernetes.io" || group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io");
    let now = state(definition);
    if !protected || old.is_some_and(|old| state(old) == now) {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    let wanted = format!("protected groups must have approval annotation \"{ANNOTATION}\"");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match now {
        State::Missing => errors.required(path, &format!("{wanted}, {see}")),
        State::Invalid => {
            let detail = format!("{wanted} with either a URL or a reason starting with \"unapproved\", {see}");
            errors.invalid(path, definition.annotation(ANNOTATION).unwrap_or_default(), &detail);
        }
        State::Bypassed | State::Approved => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(version: Value) -> Value {
        let mut whole = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"},
                "m": {"type": "object", "additionalProperties": {"type": "string"}}}}}}}});
        whole.as_object_mut().unwrap().extend(version.as_object().unwrap().clone());
        let mut definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [whole]}, "status": {"storedVersions": ["v1"]}});
        CustomResourceDefinitions.default(&mut definition);
        definition
    }
    fn complaints(definition: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Errors::default();
        CustomResourceDefinitions.validate(definition, old, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selectable_fields_are_fields_with_values() {
        let fields = |paths: &[&str]| {
            let fields: Vec<Value> = paths.iter().map(|path| json!({"jsonPath": path})).collect();
            complaints(&definition(json!({"selectableFields": fields})), None)
        };
        assert_eq!(fields(&[".spec.a", ".spec.n", ".spec.m.x"]), [] as [&str; 0]);
        for (path, why) in [
            (".spec.b", "is an invalid path: does not refer to a valid field"),
            ("spec.a", "is an invalid path: expected [ or . but got: spec"),
            (".spec['a']", "is an invalid path: array notation is not allowed"),
            (".spec.", "is an invalid path: unexpected end of JSON path"),
            (".spec.a[0]", "is an invalid path: array notation is not allowed"),
            (".spec.o", "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."),
        ] {
            assert_eq!(fields(&[path]), [format!("spec.selectableFields[0].jsonPath: Invalid value: {path:?}: {why}")]);
        }
        assert_eq!(fields(&[".spec.a", ".spec.a"]), ["spec.selectableFields[1].jsonPath: Duplicate value: \".spec.a\""]);
        let many: Vec<String> = (0..9).map(|i| format!(".spec.m.k{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(fields(&many), ["spec.selectableFields: Too many: 9: must have at most 8 items"]);
    }

    #[test]
    fn authorities_that_were_some_stay_some() {
        let with = |bundle: &str, established: bool| {
            let mut definition = definition(json!({}));
            definition["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://example.com", "caBundle": base64::encode(bundle.as_bytes())}}});
            definition["status"]["conditions"] = json!([{"type": "Established", "status": if established { "True" } else { "False" }}]);
            definition
        };
        let right = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        assert_eq!(complaints(&with("odd", true), None), [] as [&str; 0]);
        assert_eq!(complaints(&with("odd", true), Some(&with(right, false))), [] as [&str; 0]);
        assert_eq!(complaints(&with("odd", true), Some(&with("other", true))), [] as [&str; 0]);
        assert_eq!(complaints(&with(right, true), Some(&with(right, true))), [] as [&str; 0]);
        assert_eq!(
            complaints(&with("odd", true), Some(&with(right, true))),
            [
                "spec.conversion.webhookClientConfig.caBundle: Invalid value: \"b2Rk\": unable to load root certificates: unable to parse bytes as PEM block"
            ]
        );
    }
}
