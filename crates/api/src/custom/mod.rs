//! Kinds that are made at run time: what a CustomResourceDefinition says, turned into a [`Kind`] like any other.
//!
//! The record of such a kind goes through the same pipeline as a built-in one. Each served version has a view of its own
//! ([`Kind::views`]), with its columns, subresources and rules; objects are stored in one version.
//!
//! What must stay true: nothing here fails on a definition that was stored; what cannot be understood is as if not said.

pub mod check;
mod dialect;
pub mod formats;
pub mod json_path;
pub mod pattern;
pub mod props;
pub mod shape;
pub mod structural;

use crate::{
    Value, cel,
    field::{Errors, Path, Reason},
    kind::{Hooks, Kind, Scope, Subresource},
    merge::go_float,
    object::ObjectExt,
    schema::Schema,
    table::{self, Column},
};
use json_path::JsonPath;
use props::Props;
use serde_json::json;
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// The finalizer that holds a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// The verbs of custom resources, in the order in which discovery lists them.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// How objects are turned from one version into another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    /// By a webhook: its `clientConfig` and the versions of ConversionReview that it reads.
    Webhook { client_config: Value, review_versions: Vec<String> },
}

/// One version of a custom kind.
#[derive(Debug)]
pub struct Version {
    pub name: String,
    /// The form by which objects are merged and applied.
    pub schema: Arc<Schema>,
    /// The form by which they are checked, pruned and defaulted.
    pub props: Props,
    /// `openAPIV3Schema` as it was written, for OpenAPI documents.
    pub raw: Value,
    pub status: bool,
    pub scale: Option<ScalePaths>,
    columns: Vec<JsonPath>,
    selectable: Vec<JsonPath>,
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
}

/// Where a Scale stands in the object.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePaths {
    pub replicas: String,
    pub status_replicas: String,
    pub selector: String,
}

/// What a definition says beyond the common record.
#[derive(Debug)]
pub struct Custom {
    /// Name and uid of the definition.
    pub definition: String,
    pub uid: String,
    pub conversion: Conversion,
    /// Whether the definition is being deleted: nothing new may be made.
    pub terminating: bool,
    pub versions: BTreeMap<String, Arc<Version>>,
}

impl Custom {
    pub fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.get(name)
    }
}

/// Orders versions as Kubernetes prefers them: `v2`, `v1`, `v1beta2`, `v1alpha1`, then others by name.
pub fn version_priority(name: &str) -> (u8, std::cmp::Reverse<u64>, std::cmp::Reverse<u64>, String) {
    let parsed = || {
        let rest = name.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (class, minor) = match &rest[digits..] {
            "" => (0, Some(0)),
            stage => {
                let (class, number) = if let Some(number) = stage.strip_prefix("beta") { (1, number) } else { (2, stage.strip_prefix("alpha")?) };
                (class, if number.is_empty() { Some(0) } else { number.parse().ok() })
            }
        };
        Some((class, major, minor?))
    };
    match parsed() {
        Some((class, major, minor)) => (class, std::cmp::Reverse(major), std::cmp::Reverse(minor), String::new()),
        None => (3, std::cmp::Reverse(0), std::cmp::Reverse(0), name.to_string()),
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.str_at(path).unwrap_or_default()
}
fn texts(value: &Value, path: &str) -> Vec<String> {
    value.list_at(path).iter().filter_map(Value::as_str).map(String::from).collect()
}

impl Version {
    fn of(version: &Value) -> Version {
        let raw =
            version.at("schema.openAPIV3Schema").cloned().unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        let props = Props::read(&raw);
        let path = |column: &Value| JsonPath::parse(text(column, "jsonPath")).unwrap_or_default();
        let scale = version.at("subresources.scale").filter(|scale| scale.is_object()).map(|scale| ScalePaths {
            replicas: text(scale, "specReplicasPath").trim_start_matches('.').into(),
            status_replicas: text(scale, "statusReplicasPath").trim_start_matches('.').into(),
            selector: text(scale, "labelSelectorPath").trim_start_matches('.').into(),
        });
        let name = text(version, "name").to_string();
        Version {
            schema: Arc::new(props.merge_schema(true)),
            props,
            raw,
            status: version.at("subresources.status").is_some_and(Value::is_object),
            scale,
            columns: match version.list_at("additionalPrinterColumns") {
                [] => vec![JsonPath::parse(".metadata.creationTimestamp").unwrap_or_default()],
                _ => printed(version).map(|(_, path)| path).collect(),
            },
            selectable: version.list_at("selectableFields").iter().map(path).collect(),
            deprecation: version
                .bool_at("deprecated")
                .filter(|deprecated| *deprecated)
                .map(|_| version.str_at("deprecationWarning").map(String::from).unwrap_or_default()),
            name,
        }
    }
}

/// The columns of a definition up to the first whose path means nothing, with their paths.
fn printed(version: &Value) -> impl Iterator<Item = (&Value, JsonPath)> {
    version.list_at("additionalPrinterColumns").iter().map_while(|column| Some((column, JsonPath::parse(text(column, "jsonPath")).ok()?)))
}

/// JSON as Go writes it: what means something in HTML is escaped.
fn escaped(json: &str) -> String {
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn columns(version: &Value) -> Vec<Column> {
    let mut columns = vec![Column::new("Name", "string", "name", 0)];
    let own = version.list_at("additionalPrinterColumns");
    if own.is_empty() {
        columns.push(Column::new("Age", "date", "", 0));
    }
    columns.extend(printed(version).map(|(column, _)| {
        let described = text(column, "description");
        let default = || format!("Custom resource definition column (in JSONPath format): {}", text(column, "jsonPath"));
        Column {
            name: text(column, "name").into(),
            type_: text(column, "type").into(),
            format: text(column, "format").into(),
            description: if described.is_empty() { default() } else { described.into() },
            priority: column.i64_at("priority").unwrap_or_default() as i32,
        }
    }));
    columns
}

/// The kind that a definition makes, under the names that were accepted. `None` if nothing of it is served.
pub fn kind(definition: &Value) -> Option<Kind> {
    let spec = definition.get("spec")?;
    let accepted = definition.at("status.acceptedNames").unwrap_or(&Value::Null);
    let group = text(spec, "group").to_string();
    let given = spec.list_at("versions");
    let stored = given.iter().find(|version| version.bool_at("storage") == Some(true))?;
    let mut served: Vec<&Value> = given.iter().filter(|version| version.bool_at("served") == Some(true)).collect();
    served.sort_by_cached_key(|version| version_priority(text(version, "name")));
    if served.is_empty() {
        return None;
    }
    let conversion = match text(spec, "conversion.strategy") {
        "Webhook" => Conversion::Webhook {
            client_config: spec.at("conversion.webhook.clientConfig").cloned().unwrap_or_default(),
            review_versions: texts(spec, "conversion.webhook.conversionReviewVersions"),
        },
        _ => Conversion::None,
    };
    let custom = Arc::new(Custom {
        definition: definition.name().into(),
        uid: definition.uid().into(),
        conversion,
        terminating: definition.deletion_timestamp().is_some(),
        versions: given.iter().map(|version| (text(version, "name").to_string(), Arc::new(Version::of(version)))).collect(),
    });
    let scope = if text(spec, "scope") == "Cluster" { Scope::Cluster } else { Scope::Namespaced };
    let plural = text(accepted, "plural");
    let new = |version: &str| match scope {
        Scope::Cluster => Kind::cluster(&group, version, text(accepted, "kind"), plural),
        Scope::Namespaced => Kind::namespaced(&group, version, text(accepted, "kind"), plural),
    };
    let view = |version: &Value| {
        let name = text(version, "name");
        let of = custom.version(name)?.clone();
        let mut kind = new(name).verbs(VERBS).conditional_update();
        kind.list_kind = text(accepted, "listKind").into();
        kind.singular = text(accepted, "singular").into();
        kind.short_names = texts(accepted, "shortNames");
        kind.categories = texts(accepted, "categories");
        kind.has_generation = true;
        kind.allow_create_on_update = true;
        kind.versions = served.iter().map(|version| text(version, "name").to_string()).collect();
        kind.stored_version = text(stored, "name").into();
        kind.columns = columns(version);
        kind.selectable_fields =
            version.list_at("selectableFields").iter().map(|field| text(field, "jsonPath").trim_start_matches('.').to_string()).collect();
        if of.status {
            kind.subresources.push(Subresource::Status);
        }
        if let Some(scale) = &of.scale {
            let [replicas, status_replicas, selector] =
                [&scale.replicas, &scale.status_replicas, &scale.selector].map(|path| Cow::Owned(path.clone()));
            kind.subresources.push(Subresource::Scale { replicas, status_replicas, selector });
        }
        kind.custom = Some(custom.clone());
        kind.hooks = Arc::new(CustomHooks {
            custom: custom.clone(),
            version: of,
            columns: kind.columns[1..].to_vec(),
            group: group.clone(),
            stored_api_version: kind.api_version(),
        });
        Some(kind)
    };
    let mut kind = view(stored)?;
    let views = served.iter().filter_map(|version| Some((text(version, "name").to_string(), Arc::new(view(version)?))));
    kind.views = views.collect();
    Some(kind)
}

/// What custom kinds do beside the common way: all of it by their schemas.
struct CustomHooks {
    custom: Arc<Custom>,
    version: Arc<Version>,
    /// The columns after the name.
    columns: Vec<Column>,
    group: String,
    stored_api_version: String,
}

impl CustomHooks {
    fn check(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let props = &self.version.props;
        let root = Path::root();
        check::check(props, object, old, &root, errors);
        if let Some(scale) = &self.version.scale
            && let Some(replicas) = object.i64_at(&scale.replicas).filter(|replicas| *replicas < 0)
        {
            errors.invalid(Path::new(&format!(".{}", scale.replicas)), replicas, "should be a non-negative integer");
        }
        check::check_embedded(props, object, true, &root, errors);
        check::check_lists(props, object, old, &root, errors);
        if !props.has_rules {
            return;
        }
        if errors.0.iter().any(|error| matches!(error.reason, Reason::Required | Reason::TooLong | Reason::TooMany | Reason::TypeInvalid)) {
            errors.invalid(
                root,
                Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            );
            return;
        }
        let mut budget = cel::limits::OBJECT_COST_MAX;
        cel::rule::check_rules(props, object, old, true, &root, &mut budget, errors);
    }
    fn column_value(column: &Column, path: &JsonPath, object: &Value, now_unix_s: i64) -> Value {
        let Some(value) = path.find(object).first().copied() else { return Value::Null };
        match (column.type_.as_str(), value) {
            ("string", Value::Null) => json!("<no value>"),
            ("string", Value::String(text)) => json!(text),
            ("string", Value::Number(number)) if number.is_f64() => json!(go_float(number.as_f64().unwrap_or_default())),
            ("string", other) => json!(escaped(&other.to_string())),
            ("integer", Value::Number(number)) => number.as_i64().or(number.as_f64().map(|number| number as i64)).map_or(Value::Null, Value::from),
            ("number", Value::Number(number)) => json!(number),
            ("boolean", Value::Bool(flag)) => json!(flag),
            ("date", Value::String(text)) => match table::unix_s(text) {
                Some(then) => json!(table::human_duration(now_unix_s.saturating_sub(then))),
                None => json!("<invalid>"),
            },
            _ => Value::Null,
        }
    }
}

impl Hooks for CustomHooks {
    fn default(&self, object: &mut Value) {
        shape::default(&self.version.props, object);
    }
    fn prepare_create(&self, object: &mut Value) {
        if self.version.status {
            object.remove("status");
        }
    }
    fn prepare_status(&self, object: &mut Value, old: &Value) {
        // Nothing but the status; of metadata not even labels.
        let status = object.remove("status");
        let books = object.at("metadata.managedFields").cloned();
        *object = old.clone();
        match status {
            Some(status) => object.set("status", status),
            None => drop(object.remove("status")),
        }
        match books {
            Some(books) => object.set("metadata.managedFields", books),
            None => drop(object.remove("metadata.managedFields")),
        }
    }
    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        self.check(object, old, errors);
    }
    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.check(object, Some(old), errors);
    }
    fn selectable_value(&self, object: &Value, field: &str) -> String {
        let path = self.version.selectable.iter().find(|path| path.fields().is_some_and(|fields| fields.join(".") == field));
        match path.and_then(|path| path.find(object).first().copied()) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }
    fn to_stored(&self, _version: &str, object: &mut Value) {
        // Rules and defaults are those of the version that is written; the form in the store is that of one version. A
        // webhook makes that form of it at the end.
        if self.custom.conversion == Conversion::None {
            object.set("apiVersion", self.stored_api_version.as_str());
        }
    }
    fn from_stored(&self, version: &str, object: &mut Value) {
        object.set("apiVersion", format!("{}/{version}", self.group));
        if let Some(version) = self.custom.version(version) {
            shape::fit(&version.props, object);
            shape::default(&version.props, object);
        }
    }
    fn revive(&self, object: &mut Value) -> bool {
        // What a webhook converts may still be stored in an older version, and is as that version has it.
        let version = object.api_version().rsplit('/').next().and_then(|version| self.custom.version(version));
        let version = version.filter(|_| self.custom.conversion != Conversion::None).unwrap_or(&self.version).clone();
        let mut changed = !shape::fit(&version.props, object).is_empty();
        changed |= shape::default(&version.props, object);
        let stored = format!("{}/{}", self.group, self.version.name);
        if self.custom.conversion == Conversion::None && object.api_version() != stored {
            object.set("apiVersion", stored);
            changed = true;
        }
        changed
    }
    fn revives(&self) -> bool {
        true
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_none() || !self.version.props.has_rules {
            return vec![];
        }
        let (mut found, mut budget) = (Errors::default(), cel::limits::OBJECT_COST_MAX);
        cel::rule::check_which(cel::rule::Which::Settled, &self.version.props, object, old, true, &Path::root(), &mut budget, &mut found);
        found.0.iter().map(ToString::to_string).collect()
    }
    fn cells(&self, object: &Value, now_unix_s: i64) -> Vec<Value> {
        let cells = self.columns.iter().zip(&self.version.columns);
        std::iter::once(table::name(object)).chain(cells.map(|(column, path)| Self::column_value(column, path, object, now_unix_s))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced", "versions": [
            {"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "properties": {"a": {"type": "string", "default": "x"}, "n": {"type": "integer", "maximum": 5}}}}}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}], "selectableFields": [{"jsonPath": ".spec.a"}]},
            {"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            "status": {"acceptedNames": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}}})
    }

    #[test]
    fn a_definition_makes_a_kind_with_a_view_per_version() {
        let kind = kind(&definition()).unwrap();
        assert_eq!((kind.versions.join(" ").as_str(), kind.version()), ("v1 v1beta1", "v1beta1"));
        let view = kind.view("v1beta1").unwrap();
        assert!(view.has_status() && view.subresource("scale").is_some() && !kind.view("v1").unwrap().has_status());
        let mut object =
            json!({"apiVersion": "example.com/v1beta1", "kind": "Thing", "metadata": {"name": "x"}, "spec": {"n": 7}, "status": {"n": 1}});
        view.hooks.default(&mut object);
        view.hooks.prepare_create(&mut object);
        assert_eq!(object["spec"], json!({"a": "x", "n": 7}));
        assert!(object.get("status").is_none());
        assert_eq!(table::cells(view, &object, 0), [json!("x"), json!("x")]);
        assert_eq!(view.hooks.selectable_value(&object, "spec.a"), "x");
        let mut errors = Errors::default();
        view.hooks.validate(&object, None, &mut errors);
        assert_eq!(errors.to_string(), "spec.n: Invalid value: 7: spec.n in body should be less than or equal to 5");
        view.hooks.from_stored("v1", &mut object);
        assert_eq!((object.api_version(), object.get("spec")), ("example.com/v1", None));
    }

    #[test]
    fn versions_are_preferred_by_maturity() {
        let mut names = ["foo", "v1", "v2beta1", "v10", "v1alpha1", "v2", "v1beta2"];
        names.sort_by_cached_key(|name| version_priority(name));
        assert_eq!(names, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
