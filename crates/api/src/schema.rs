//! Schemas: what fields an object may have, of what type, and how lists and maps in it merge.
//!
//! The facts of every built-in type are text in the binary (`facts/schema.json`, the OpenAPI v2 definitions without prose).
//! One scan at first use finds where each definition starts; a definition becomes a [`Schema`] when something first asks for
//! it, and stays. A server that serves twenty kinds holds the schemas of twenty kinds. Field names point into the text.
//!
//! What Go's types say beyond OpenAPI is in `facts/go-types.json`, taken from what a real server answers: `omitted` are
//! optional fields that an object loses when they are zero (no pointer in Go), `always` are fields that are shown even when
//! nobody set them, `types` are strings with a type of their own, which errors name.
//!
//! One form serves built-in kinds and CustomResourceDefinitions alike; nothing outside this file reads the facts.

mod fields;

pub use fields::Fields;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, LazyLock, OnceLock},
};

static FACTS: &str = include_str!("../facts/schema.json");
static GO_FACTS: &str = include_str!("../facts/go-types.json");

/// What JSON a value may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// Anything at all, kept as it is.
    #[default]
    Any,
    /// Fields by name. Unknown ones are pruned unless [`Schema::preserve_unknown`].
    Object,
    /// Any keys, values of one type.
    Map,
    Array,
    String,
    /// Base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Integer {
        bits: u8,
    },
    Number,
    Boolean,
    Quantity,
    IntOrString,
}

/// How a list merges in server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// As one value.
    #[default]
    Atomic,
    /// By value.
    Set,
    /// By these keys of its items.
    Map(Vec<Cow<'static, str>>),
}

/// How a strategic merge patch changes a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists: merge items instead of replacing the list.
    pub merge: bool,
    /// Objects: replace instead of merging.
    pub replace: bool,
    /// The patch may say which keys remain (`$retainKeys`).
    pub retain_keys: bool,
}

/// A value that Go shows for a field that nobody set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    Null,
    Object,
    Text,
    Number,
    False,
}

impl Zero {
    pub fn value(self) -> serde_json::Value {
        match self {
            Zero::Null => serde_json::Value::Null,
            Zero::Object => serde_json::Value::Object(Default::default()),
            Zero::Text => serde_json::Value::String(String::new()),
            Zero::Number => 0.into(),
            Zero::False => false.into(),
        }
    }
}

/// One type.
#[derive(Debug, Default)]
pub struct Schema {
    /// The full name of a definition, `io.k8s.api.core.v1.PodSpec`; empty for a type without a name.
    pub name: Cow<'static, str>,
    pub type_: Type,
    /// Fields of an object, in order of names.
    pub fields: Fields,
    /// Type of a list's items or a map's values.
    pub items: Option<Link>,
    pub list: ListType,
    /// Whether server-side apply treats an object or map as one value.
    pub atomic: bool,
    /// Whether fields that are not known are kept.
    pub preserve_unknown: bool,
    /// Whether `null` is a value like others (only in custom resources).
    pub nullable: bool,
    pub default: Option<serde_json::Value>,
    /// The field that identifies an item in a strategic merge patch; empty for none.
    pub merge_key: Cow<'static, str>,
    pub patch: PatchStrategy,
    /// What Go calls a string with a type of its own, `v1.PullPolicy`; empty for a plain one.
    pub go_name: &'static str,
    /// Group, version and kind if it is a kind.
    pub kinds: Vec<(String, String, String)>,
}

/// A field of an object.
#[derive(Debug)]
pub struct Field {
    pub name: Cow<'static, str>,
    pub schema: Link,
    pub required: bool,
    /// Not kept when zero.
    pub omit_zero: bool,
    /// Shown even when nobody set it.
    pub always: Option<Zero>,
    pub patch: PatchStrategy,
    /// Overrides [`Schema::atomic`] where the field says otherwise than its type.
    pub atomic: Option<bool>,
}

impl Field {
    pub fn is_atomic(&self) -> bool {
        self.atomic.unwrap_or(self.schema.atomic)
    }
}

/// A type in another: its own, or a definition that is resolved when it is looked at (definitions refer to themselves).
#[derive(Clone)]
pub enum Link {
    Inline(Arc<Schema>),
    Definition(usize),
}

impl std::ops::Deref for Link {
    type Target = Schema;
    fn deref(&self) -> &Schema {
        match self {
            Link::Inline(schema) => schema,
            Link::Definition(index) => DEFINITIONS.built(*index),
        }
    }
}

impl std::fmt::Debug for Link {
    /// Definitions by name only: they may contain themselves.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Link::Inline(schema) => schema.fmt(f),
            Link::Definition(index) => f.write_str(DEFINITIONS.names[*index]),
        }
    }
}

impl Schema {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }
    /// The last part of the name: `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
    /// The schema under a name or in a map, as a path of an object goes.
    pub fn child(&self, key: &str) -> Option<&Schema> {
        match self.type_ {
            Type::Object => self.field(key).map(|field| &*field.schema),
            Type::Map => self.items.as_deref(),
            _ => None,
        }
    }
    /// What Go calls the type, as its decoding errors do: `[]v1.Container`.
    pub fn go_type(&self) -> String {
        let items = || self.items.as_ref().map_or_else(|| "interface {}".to_string(), |items| items.go_type());
        match self.type_ {
            Type::Any if self.name.is_empty() => "interface {}".into(),
            Type::Map => format!("map[string]{}", items()),
            Type::Array => format!("[]{}", items()),
            Type::String if !self.go_name.is_empty() => self.go_name.into(),
            Type::String => "string".into(),
            Type::Bytes => "[]uint8".into(),
            Type::Integer { bits } => format!("int{bits}"),
            Type::IntOrString => "int32".into(),
            Type::Number => "float64".into(),
            Type::Boolean => "bool".into(),
            Type::Quantity => "resource.Quantity".into(),
            Type::Any | Type::Object | Type::Time | Type::MicroTime => {
                let mut parts = self.name.rsplit('.');
                let kind = parts.next().unwrap_or_default();
                format!("{}.{kind}", parts.next().unwrap_or_default())
            }
        }
    }
    /// An object of any fields, with the metadata of Kubernetes: a custom resource without a schema of its own.
    pub fn custom() -> Arc<Schema> {
        static CUSTOM: LazyLock<Arc<Schema>> = LazyLock::new(|| {
            let text = || Link::Inline(Arc::new(Schema { type_: Type::String, ..Schema::default() }));
            let field = |name: &'static str, schema| Field {
                name: name.into(),
                schema,
                required: false,
                omit_zero: false,
                always: None,
                patch: PatchStrategy::default(),
                atomic: None,
            };
            let mut fields = vec![field("apiVersion", text()), field("kind", text())];
            if let Some(index) = DEFINITIONS.index("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
                fields.push(field("metadata", Link::Definition(index)));
            }
            Arc::new(Schema { type_: Type::Object, fields: fields.into(), preserve_unknown: true, ..Schema::default() })
        });
        CUSTOM.clone()
    }
}

/// A definition as it stands in the facts.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "$ref")]
    reference: Option<&'a str>,
    #[serde(rename = "type")]
    type_: Option<&'a str>,
    format: Option<&'a str>,
    #[serde(borrow, default)]
    properties: BTreeMap<&'a str, Raw<'a>>,
    #[serde(borrow, default)]
    required: Vec<&'a str>,
    #[serde(borrow)]
    items: Option<Box<Raw<'a>>>,
    #[serde(rename = "additionalProperties", borrow)]
    values: Option<Box<Raw<'a>>>,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: Option<&'a str>,
    #[serde(rename = "x-kubernetes-list-map-keys", borrow, default)]
    list_map_keys: Vec<&'a str>,
    #[serde(rename = "x-kubernetes-map-type")]
    map_type: Option<&'a str>,
    #[serde(rename = "x-kubernetes-patch-merge-key", default)]
    merge_key: &'a str,
    #[serde(rename = "x-kubernetes-patch-strategy", default)]
    patch_strategy: &'a str,
    #[serde(rename = "x-kubernetes-group-version-kind", borrow, default)]
    kinds: Vec<RawKind<'a>>,
}

#[derive(Deserialize)]
struct RawKind<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
}

#[derive(Deserialize)]
struct GoFacts<'a> {
    #[serde(borrow)]
    omitted: BTreeMap<&'a str, &'a str>,
    #[serde(borrow)]
    always: BTreeMap<&'a str, BTreeMap<&'a str, serde_json::Value>>,
    #[serde(borrow)]
    types: BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>,
}

/// Where everything is in the facts, and what has been read of it.
struct Definitions {
    names: Vec<&'static str>,
    texts: Vec<&'static str>,
    built: Vec<OnceLock<Arc<Schema>>>,
    /// Group, version, kind to the definition.
    kinds: BTreeMap<(&'static str, &'static str, &'static str), usize>,
    go: GoFacts<'static>,
}

/// The facts are part of the program: a test reads all of them, so what cannot be read here is a programmer's error.
static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(|| {
    let all: BTreeMap<&'static str, &'static RawValue> = serde_json::from_str(FACTS).expect("facts/schema.json is JSON");
    let names: Vec<_> = all.keys().copied().collect();
    let texts: Vec<_> = all.values().map(|raw| raw.get()).collect();
    #[derive(Deserialize)]
    struct Kinds<'a> {
        #[serde(rename = "x-kubernetes-group-version-kind", borrow, default)]
        kinds: Vec<RawKind<'a>>,
    }
    let mut kinds = BTreeMap::new();
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| text.contains("\"x-kubernetes-group-version-kind\"")) {
        let found: Kinds<'static> = serde_json::from_str(text).expect("a definition of facts/schema.json has kinds");
        for kind in found.kinds {
            kinds.insert((kind.group, kind.version, kind.kind), i);
        }
    }
    let built = names.iter().map(|_| OnceLock::new()).collect();
    Definitions { names, texts, built, kinds, go: serde_json::from_str(GO_FACTS).expect("facts/go-types.json is JSON") }
});

impl Definitions {
    fn index(&self, name: &str) -> Option<usize> {
        self.names.binary_search(&name).ok()
    }
    fn built(&self, index: usize) -> &Arc<Schema> {
        self.built[index].get_or_init(|| {
            let raw: Raw<'static> = serde_json::from_str(self.texts[index]).expect("a definition of facts/schema.json is a schema");
            Arc::new(self.schema(self.names[index], raw))
        })
    }
    fn link(&self, raw: Raw<'static>) -> Link {
        match raw.reference {
            Some(reference) => {
                let name = reference.rsplit('/').next().unwrap_or_default();
                Link::Definition(self.index(name).expect("a reference of facts/schema.json leads to a definition"))
            }
            None => Link::Inline(Arc::new(self.schema("", raw))),
        }
    }

    fn schema(&self, name: &'static str, raw: Raw<'static>) -> Schema {
        let short = last_parts(name, 3);
        let type_ = match (name.rsplit('.').next().unwrap_or_default(), raw.type_, raw.format) {
            ("RawExtension" | "FieldsV1" | "Patch", _, _) => Type::Any,
            ("Quantity", _, _) => Type::Quantity,
            ("IntOrString", _, _) => Type::IntOrString,
            ("MicroTime", _, _) => Type::MicroTime,
            ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool", _, _) => Type::Any,
            (_, Some("string"), Some("date-time")) => Type::Time,
            (_, Some("string"), Some("byte")) => Type::Bytes,
            (_, Some("string"), _) => Type::String,
            (_, Some("integer"), Some("int32")) => Type::Integer { bits: 32 },
            (_, Some("integer"), _) => Type::Integer { bits: 64 },
            (_, Some("number"), _) => Type::Number,
            (_, Some("boolean"), _) => Type::Boolean,
            (_, Some("array"), _) => Type::Array,
            (_, Some("object"), _) if raw.values.is_some() => Type::Map,
            (_, Some("object"), _) => Type::Object,
            _ => Type::Any,
        };
        let omitted: Vec<&str> = self.go.omitted.get(short).map(|names| names.split(' ').collect()).unwrap_or_default();
        let (always, types) = (self.go.always.get(short), self.go.types.get(short));
        let fields: Vec<Field> = (raw.properties.into_iter())
            .map(|(field, property)| Field {
                name: field.into(),
                required: raw.required.contains(&field),
                omit_zero: omitted.contains(&field),
                always: always.and_then(|always| always.get(field)).map(zero),
                patch: patch_strategy(property.patch_strategy),
                atomic: if property.reference.is_some() { property.map_type.map(|t| t == "atomic") } else { None },
                schema: match types.and_then(|types| types.get(field)) {
                    Some(go_name) => Link::Inline(Arc::new(Schema { go_name, ..self.schema("", property) })),
                    None => self.link(property),
                },
            })
            .collect();
        Schema {
            name: name.into(),
            type_,
            fields: fields.into(),
            items: match name.rsplit('.').next() {
                // The facts do not say that these are schemas unless they are lists or flags.
                Some("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool") => {
                    self.index("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").map(Link::Definition)
                }
                _ => raw.items.or(raw.values).map(|items| self.link(*items)),
            },
            list: match raw.list_type {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(raw.list_map_keys.into_iter().map(Cow::Borrowed).collect()),
                _ => ListType::Atomic,
            },
            atomic: raw.map_type == Some("atomic"),
            merge_key: raw.merge_key.into(),
            patch: patch_strategy(raw.patch_strategy),
            kinds: raw.kinds.into_iter().map(|k| (k.group.into(), k.version.into(), k.kind.into())).collect(),
            ..Schema::default()
        }
    }
}

fn zero(value: &serde_json::Value) -> Zero {
    match value {
        serde_json::Value::Object(_) => Zero::Object,
        serde_json::Value::String(_) => Zero::Text,
        serde_json::Value::Number(_) => Zero::Number,
        serde_json::Value::Bool(_) => Zero::False,
        _ => Zero::Null,
    }
}

fn patch_strategy(text: &str) -> PatchStrategy {
    let has = |word| text.split(',').any(|part| part == word);
    PatchStrategy { merge: has("merge"), replace: has("replace"), retain_keys: has("retainKeys") }
}

/// The last `count` parts of a name with dots.
fn last_parts(name: &str, count: usize) -> &str {
    name.rmatch_indices('.').nth(count - 1).map_or(name, |(at, _)| &name[at + 1..])
}

/// The schema of a built-in kind.
pub fn of(group: &str, version: &str, kind: &str) -> Option<Arc<Schema>> {
    DEFINITIONS.kinds.get(&(group, version, kind)).map(|index| DEFINITIONS.built(*index).clone())
}

/// Whether a kind is known by its facts, without reading its schema.
pub fn is_known(group: &str, version: &str, kind: &str) -> bool {
    DEFINITIONS.kinds.contains_key(&(group, version, kind))
}

/// A definition of the OpenAPI document by its full name, `io.k8s.api.core.v1.PodSpec`.
pub fn definition(name: &str) -> Option<Arc<Schema>> {
    DEFINITIONS.index(name).map(|index| DEFINITIONS.built(index).clone())
}

/// The same as a link in another schema.
pub fn definition_link(name: &str) -> Option<Link> {
    DEFINITIONS.index(name).map(Link::Definition)
}

/// All definitions: full name and OpenAPI v2 text, in order of names.
pub fn definitions() -> impl Iterator<Item = (&'static str, &'static str)> {
    DEFINITIONS.names.iter().copied().zip(DEFINITIONS.texts.iter().copied())
}

/// The OpenAPI v2 text of one definition.
pub fn definition_text(name: &str) -> Option<&'static str> {
    DEFINITIONS.index(name).map(|index| DEFINITIONS.texts[index])
}

/// What the definitions that custom resources are made of say of themselves and of their fields: by definition and field, the
/// definition itself under the empty name.
static DESCRIPTIONS: LazyLock<BTreeMap<String, BTreeMap<String, String>>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../facts/descriptions.json")).expect("facts/descriptions.json is JSON"));

/// Adds what is to be read of a definition, where that is known, to its OpenAPI. `wrapped` is whether references stand in
/// `allOf` beside their description, as version 3 wants them.
pub fn describe(name: &str, schema: &mut serde_json::Value, wrapped: bool) {
    for (field, text) in DESCRIPTIONS.get(name).into_iter().flatten() {
        if field.is_empty() {
            schema["description"] = text.as_str().into();
        } else if let Some(property) = schema.get_mut("properties").and_then(|properties| properties.get_mut(field)) {
            if wrapped && property.get("$ref").is_some() {
                *property = serde_json::json!({"allOf": [property.take()]});
            }
            property["description"] = text.as_str().into();
        }
    }
}

/// The full definition name of a kind.
pub fn definition_name(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    DEFINITIONS.kinds.get(&(group, version, kind)).map(|index| DEFINITIONS.names[*index])
}

/// The names of all definitions that `names` refer to, themselves included: what an OpenAPI document of some kinds must hold.
pub fn closure<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'static str> {
    let mut found = std::collections::BTreeSet::new();
    let mut queue: Vec<usize> = names.into_iter().filter_map(|name| DEFINITIONS.index(name)).collect();
    while let Some(index) = queue.pop() {
        if found.insert(index) {
            let references = DEFINITIONS.texts[index].split("\"#/definitions/").skip(1).filter_map(|rest| rest.split('"').next());
            queue.extend(references.filter_map(|name| DEFINITIONS.index(name)));
        }
    }
    found.into_iter().map(|index| DEFINITIONS.names[index]).collect()
}

/// A definition in the form of OpenAPI v3: the same but for where references lead, and for two string formats.
pub fn openapi_v3(name: &str) -> Option<serde_json::Value> {
    let mut value: serde_json::Value = serde_json::from_str(definition_text(name)?).ok()?;
    relink(&mut value);
    if name.ends_with(".IntOrString") {
        value = serde_json::json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
    } else if name.ends_with(".Quantity") {
        value = serde_json::json!({"oneOf": [{"type": "string"}, {"type": "number"}]});
    }
    Some(value)
}

/// A definition that is not among the facts in the form of OpenAPI v3.
pub fn relinked(text: &str) -> serde_json::Value {
    let mut value = serde_json::from_str(text).unwrap_or_else(|_| serde_json::json!({}));
    relink(&mut value);
    value
}

/// Definitions of v2 to components of v3. A reference with siblings goes into `allOf`, since v3 ignores siblings of `$ref`.
fn relink(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.values_mut().for_each(relink);
            if let Some(serde_json::Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replace("#/definitions/", "#/components/schemas/");
                if map.len() > 1
                    && let Some(reference) = map.remove("$ref")
                {
                    map.insert("allOf".into(), serde_json::json!([{"$ref": reference}]));
                }
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(relink),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_can_be_read() {
        let mut count = 0;
        for (name, text) in definitions() {
            let schema = definition(name).unwrap();
            assert_eq!(schema.name, name);
            assert!(text.starts_with('{'));
            assert!(openapi_v3(name).is_some());
            count += 1;
        }
        assert!(count > 700, "{count}");
    }

    #[test]
    fn every_fact_of_go_is_about_a_field() {
        let fields = |short: &str| -> Vec<String> {
            let found = DEFINITIONS.names.iter().filter(|name| last_parts(name, 3) == short);
            found.flat_map(|name| definition(name).unwrap().fields.iter().map(|f| f.name.to_string()).collect::<Vec<_>>()).collect()
        };
        for (short, names) in &DEFINITIONS.go.omitted {
            names.split(' ').for_each(|name| assert!(fields(short).iter().any(|f| f == name), "{short}.{name}"));
        }
        for (short, names) in &DEFINITIONS.go.always {
            names.keys().for_each(|name| assert!(fields(short).iter().any(|f| f == name), "{short}.{name}"));
        }
        for (short, names) in &DEFINITIONS.go.types {
            names.keys().for_each(|name| assert!(fields(short).iter().any(|f| f == name), "{short}.{name}"));
        }
    }

    #[test]
    fn schemas_say_how_things_merge() {
        let deployment = of("apps", "v1", "Deployment").unwrap();
        let pod = deployment.child("spec").and_then(|s| s.child("template")).and_then(|s| s.child("spec")).unwrap();
        let containers = pod.field("containers").unwrap();
        assert_eq!((containers.schema.merge_key.as_ref(), containers.schema.patch.merge), ("name", true));
        assert_eq!(containers.schema.list, ListType::Map(vec!["name".into()]));
        assert_eq!(containers.schema.go_type(), "[]v1.Container");
        assert!(deployment.child("spec").unwrap().field("strategy").unwrap().patch.retain_keys);
        assert!(pod.field("volumes").unwrap().patch.retain_keys && pod.field("hostNetwork").unwrap().omit_zero);
        assert_eq!(pod.field("terminationGracePeriodSeconds").unwrap().schema.type_, Type::Integer { bits: 64 });
        assert!(of("", "v1", "Nothing").is_none());
    }

    #[test]
    fn a_closure_holds_what_its_members_refer_to() {
        let names = closure([definition_name("", "v1", "ConfigMap").unwrap()]);
        assert!(names.contains(&"io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference") && !names.contains(&"io.k8s.api.core.v1.PodSpec"));
    }
}
