//! From bytes to an object of the right structure: parse, check types, prune, name what is unknown or double.
//!
//! One pass over the text, led by the schema. The result is what a Go server would hold after decoding and show after
//! encoding: nulls are gone, quantities and times are canonical, optional zero values are left out, and what is always shown
//! is there. So two objects that mean the same are equal as JSON.
//!
//! Errors keep Kubernetes' order and words: bad syntax first, then a wrong kind, then the first wrong type in document
//! order; unknown and double fields are collected, for the caller to refuse, to warn about or to ignore.

mod changed;
mod json;
mod scalars;
mod yaml;

use crate::{
    Kind, Value,
    custom::shape,
    field, limits,
    object::ObjectExt,
    quantity::Quantity,
    request::FieldValidation,
    schema::{self, Schema, Type},
    status::{Result, Status},
};
pub use changed::conforms;
use json::{Next, Reader, number_value};
pub use scalars::{Precision, canonical_base64, canonical_time, time};
use serde_json::Map;
use std::borrow::Cow;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// The media types of bodies, as errors list them.
pub const READABLE_MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Encoding {
    /// From a `Content-Type` header; an empty one is JSON. `None` for what cannot be read (415).
    pub fn of(content_type: &str) -> Option<Encoding> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "" | "application/json" => Some(Encoding::Json),
            "application/yaml" => Some(Encoding::Yaml),
            _ => None,
        }
    }
}

/// An object and what is strictly wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.replicaz"`, `duplicate field "spec.x"`, in document order.
    pub problems: Vec<String>,
}

/// What Go shows of the struct that it peeks at kind and version with.
const GO_TYPE_META: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

fn text_of(bytes: &[u8], encoding: Encoding) -> Result<Cow<'_, [u8]>, String> {
    match encoding {
        Encoding::Json => Ok(Cow::Borrowed(bytes)),
        Encoding::Yaml => yaml::to_json(bytes).map(|text| Cow::Owned(text.into_bytes())),
    }
}

/// Parses without a schema. The error is text in Go's words.
pub fn parse(bytes: &[u8], encoding: Encoding) -> Result<Value, String> {
    let text = text_of(bytes, encoding)?;
    let mut reader = Reader::new(&text);
    let value = reader.value()?;
    reader.end()?;
    Ok(value)
}

/// Reads what this program has written: a stored object. Its fractions are those that were written, to the last bit: the quick
/// parser may read one of many digits as its neighbour, so that a document with fractions is read by the exact one.
pub fn stored(bytes: &[u8]) -> Option<Value> {
    fn has_fraction(value: &Value) -> bool {
        match value {
            Value::Number(number) => number.is_f64(),
            Value::Array(list) => list.iter().any(has_fraction),
            Value::Object(map) => map.values().any(has_fraction),
            _ => false,
        }
    }
    let value: Value = serde_json::from_slice(bytes).ok()?;
    if has_fraction(&value) { parse(bytes, Encoding::Json).ok() } else { Some(value) }
}

/// Parses an object without a schema; anything but an object (or null) is an error in Go's words.
pub fn parse_object(bytes: &[u8], encoding: Encoding) -> Result<Value, String> {
    let text = text_of(bytes, encoding)?;
    let mut reader = Reader::new(&text);
    let next = reader.peek()?;
    let value = reader.value()?;
    reader.end()?;
    if matches!(next, Next::Object | Next::Null) {
        Ok(value)
    } else {
        Err(format!("json: cannot unmarshal {} into Go value of type {GO_TYPE_META}", next.word()))
    }
}

/// Names the keys that an untyped document (a patch) says twice: `duplicate field "data.k"`.
pub fn duplicates(bytes: &[u8]) -> Vec<String> {
    let mut decoder = Decoder { problems: vec![], type_error: None };
    let mut reader = Reader::new(bytes);
    match decoder.any(&mut reader, &Place::ROOT) {
        Ok(_) => decoder.problems,
        Err(_) => vec![],
    }
}

/// A decoded document, or what is wrong with it.
struct Outcome {
    decoded: Decoded,
    type_error: Option<String>,
}

fn run(text: &[u8], schema: &Schema) -> Result<Outcome, String> {
    let mut decoder = Decoder { problems: vec![], type_error: None };
    let mut reader = Reader::new(text);
    let value = decoder.value(&mut reader, schema, &Place::ROOT)?.unwrap_or_else(|| zero(schema));
    reader.end()?;
    Ok(Outcome { decoded: Decoded { value, problems: decoder.problems }, type_error: decoder.type_error })
}

/// Parses by a schema: wrong types are the error; unknown fields are dropped and named.
pub fn decode(bytes: &[u8], encoding: Encoding, schema: &Schema) -> Result<Decoded, String> {
    let outcome = run(&text_of(bytes, encoding)?, schema)?;
    outcome.type_error.map_or(Ok(outcome.decoded), Err)
}

/// The same for a value that is already parsed (a patched object).
pub fn check(value: Value, schema: &Schema) -> Result<Decoded, String> {
    decode(value.to_string().as_bytes(), Encoding::Json, schema)
}

/// The body of a create or update of `kind` in `version`: sets apiVersion and kind, refuses other kinds, and treats strict
/// problems as asked. Gives the object and the warnings for the client.
pub fn decode_object(bytes: &[u8], encoding: Encoding, kind: &Kind, version: &str, validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    let unrecognized = |why: String| {
        Status::bad_request(format!("the object provided is unrecognized (must be of type {}): {why} ({})", kind.kind, shown_body(bytes)))
    };
    let text = text_of(bytes, encoding).map_err(unrecognized)?;
    let unreadable = |why: String| unrecognized(format!("couldn't get version/kind; json parse error: {why}"));
    let schema = read_by(kind, version);
    let top = Reader::new(&text).peek().map_err(unreadable)?;
    let outcome = run(&text, &schema).map_err(unreadable)?;
    if !matches!(top, Next::Object | Next::Null) {
        return Err(unreadable(format!("json: cannot unmarshal {} into Go value of type {GO_TYPE_META}", top.word())));
    }
    let mut object = outcome.decoded.value;
    let (given_version, given_kind) = (object.api_version().to_string(), object.kind().to_string());
    let expected = group_version(&kind.group, version);
    if given_version.matches('/').count() > 1 {
        return Err(unrecognized(format!("unexpected GroupVersion string: {given_version}")));
    }
    let (shown_kind, shown_version) = (or(&given_kind, &kind.kind), or(&given_version, &expected));
    let handled = |why: &str| {
        let short = shown_version.rsplit('/').next().unwrap_or_default();
        Status::bad_request(format!("{shown_kind} in version {short:?} cannot be handled as a {}: {why}", kind.kind))
    };
    if kind.custom.is_some() {
        if given_kind.is_empty() {
            return Err(unrecognized(format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(&text))));
        }
        if let Some(why) = custom_problem(&object, outcome.type_error.as_deref(), kind, version) {
            return Err(handled(&why));
        }
        if given_version != expected {
            return Err(Status::bad_request(other_version(&given_version, &expected)));
        }
        check_type_meta(&object, kind, &expected)?;
    } else {
        check_kind(kind, version, &expected, shown_kind, shown_version).map_err(|wrong| match wrong {
            WrongKind::Version(why) => Status::bad_request(why),
            WrongKind::Kind(why) => handled(&why),
        })?;
        if let Some(why) = outcome.type_error {
            return Err(handled(&why));
        }
    }
    let mut problems = outcome.decoded.problems;
    problems.extend(fit(&mut object, kind, version, true));
    if validation == FieldValidation::Strict && !problems.is_empty() {
        let all = if encoding == Encoding::Yaml { with_yaml_lines(bytes, &problems) } else { problems.join(", ") };
        return Err(handled(&format!("strict decoding error: {all}")));
    }
    if encoding == Encoding::Yaml {
        let (doubled, others) = yaml_lines(bytes, &problems);
        problems = doubled.into_iter().chain(others).collect();
    }
    object.set("apiVersion", expected);
    object.set("kind", kind.kind.as_str());
    Ok((object, if validation == FieldValidation::Warn { problems } else { vec![] }))
}

/// The same for an object that a patch has made. `patched` is refused as a whole, as Kubernetes does.
pub fn check_object(value: Value, kind: &Kind, version: &str, validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    check_patched(value, kind, version, validation, None, vec![])
}

/// The same. `shown` is what an error shows as the offending value (by default the object's JSON): a strategic merge patch
/// shows itself ([`crate::merge::go_text`]), and what it says of kind and version does not count. `problems` are what was
/// already wrong with the patch's own text ([`duplicates`]).
pub fn check_patched(
    value: Value,
    kind: &Kind,
    version: &str,
    validation: FieldValidation,
    shown: Option<String>,
    mut problems: Vec<String>,
) -> Result<(Value, Vec<String>)> {
    let schema = read_by(kind, version);
    let text = value.to_string();
    let refuse = |why: String| {
        let mut errors = field::Errors::default();
        errors.invalid(field::Path::new("patch"), shown.clone().unwrap_or_else(|| text.clone()), &why);
        Status::invalid("", "", "", &errors)
    };
    let outcome = run(text.as_bytes(), &schema).map_err(refuse)?;
    let mut object = outcome.decoded.value;
    let expected = group_version(&kind.group, version);
    if kind.custom.is_some() {
        if object.kind().is_empty() {
            return Err(refuse(format!("Object 'Kind' is missing in '{text}'")));
        }
        if let Some(why) = custom_problem(&object, outcome.type_error.as_deref(), kind, version) {
            return Err(refuse(why));
        }
        check_type_meta(&object, kind, &expected)?;
    } else if shown.is_none() {
        check_kind(kind, version, &expected, or(value.kind(), &kind.kind), or(value.api_version(), &expected)).map_err(|wrong| match wrong {
            WrongKind::Version(why) => Status::bad_request(why),
            WrongKind::Kind(why) => refuse(why),
        })?;
    }
    if let Some(why) = outcome.type_error {
        return Err(refuse(why));
    }
    problems.extend(outcome.decoded.problems);
    problems.extend(fit(&mut object, kind, version, true));
    if validation == FieldValidation::Strict && !problems.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", problems.join(", "))));
    }
    object.set("apiVersion", expected);
    object.set("kind", kind.kind.as_str());
    Ok((object, if validation == FieldValidation::Warn { problems } else { vec![] }))
}

/// The same for what an apply has made: nothing is strict, the error is text in Go's words.
pub fn conform(value: Value, kind: &Kind, version: &str) -> Result<Value, String> {
    let mut object = check(value, &read_by(kind, version))?.value;
    fit(&mut object, kind, version, false);
    Ok(object)
}

/// The schema by which the text of an object is read. Custom resources are read as they are; their own schema says later
/// what is wrong with them.
fn read_by(kind: &Kind, version: &str) -> std::sync::Arc<Schema> {
    match &kind.custom {
        Some(_) => Schema::custom(),
        None => kind.schema(version).unwrap_or_else(Schema::custom),
    }
}

/// Prunes a custom resource. Names what was unknown. `nulls` is whether nulls are as if not said.
fn fit(object: &mut Value, kind: &Kind, version: &str, nulls: bool) -> Vec<String> {
    let Some(custom) = kind.custom.as_ref().and_then(|custom| custom.version(version)) else { return vec![] };
    shape::whole_numbers(object);
    let unknown = shape::fit(&custom.props, object);
    if nulls {
        shape::drop_nulls(&custom.props, object);
    }
    unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect()
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

fn split_group_version(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("", text))
}

/// What the group's package is called in Go, as conversion errors name it.
fn go_group(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() }
}

/// How an object is not of the kind that the URL says.
enum WrongKind {
    /// The right kind in another version that Kubernetes knows.
    Version(String),
    Kind(String),
}

fn check_kind(kind: &Kind, version: &str, expected: &str, given_kind: &str, given_version: &str) -> Result<(), WrongKind> {
    let (group, given) = split_group_version(given_version);
    if given_kind == kind.kind && group == kind.group {
        if given == version {
            return Ok(());
        }
        // Kubernetes still knows the old versions of its groups, though it no longer serves them.
        let was_served = !group.is_empty() && (given.contains("alpha") || given.contains("beta"));
        if was_served || kind.versions.iter().any(|v| v == given) {
            return Err(WrongKind::Version(other_version(given_version, expected)));
        }
    }
    let known = schema::is_known(group, given, given_kind) || (group.is_empty() && given == "v1" && matches!(given_kind, "List" | "Status"));
    Err(WrongKind::Kind(if known {
        format!("converting ({given}.{given_kind}) to ({}.{}): unknown conversion", go_group(&kind.group), kind.kind)
    } else {
        format!("no kind {given_kind:?} is registered for version {given_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"")
    }))
}

fn other_version(given: &str, expected: &str) -> String {
    format!("the API version in the data ({given}) does not match the expected API version ({expected})")
}

/// A custom resource says by itself what it is; that it is something else is an error of its fields.
fn check_type_meta(object: &Value, kind: &Kind, expected: &str) -> Result<()> {
    let mut errors = field::Errors::default();
    if object.kind() != kind.kind {
        errors.invalid(field::Path::new("kind"), object.kind(), &format!("must be {}", kind.kind));
    } else if object.api_version() != expected {
        errors.invalid(field::Path::new("apiVersion"), object.api_version(), &format!("must be {expected}"));
    }
    let (group, _) = split_group_version(object.api_version());
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(group, object.kind(), object.name(), &errors)) }
}

/// Why a custom resource cannot be read: its own metadata, which are read apart from the rest, or those of an object within it.
fn custom_problem(object: &Value, type_error: Option<&str>, kind: &Kind, version: &str) -> Option<String> {
    let Some(why) = type_error else {
        let custom = kind.custom.as_ref()?.version(version)?;
        return shape::embedded_problem(&custom.props, object, true, &field::Path::root());
    };
    match why.split_once(" into Go struct field ") {
        Some((found, field)) if field.starts_with(".metadata of type") => Some(format!("{found} into Go value of type v1.ObjectMeta")),
        Some((found, field)) => Some(format!("{found} into Go struct field {}", field.replacen(".metadata.", ".", 1))),
        None => Some(why.to_string()),
    }
}

/// The beginning of a body as errors quote it: text of JSON objects, hexadecimal for everything else.
fn shown_body(bytes: &[u8]) -> String {
    const MAX: usize = 30;
    if bytes.is_empty() {
        return "<empty>".into();
    }
    let start = bytes.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(0);
    let printable =
        bytes.get(start) == Some(&b'{') && bytes.iter().take(MAX).all(|&b| (0x20..0x7f).contains(&b) || b == b'\n' || b == b'\t' || b == b'\r');
    let cut = &bytes[..bytes.len().min(MAX)];
    let shown = if printable { String::from_utf8_lossy(cut).into_owned() } else { cut.iter().map(|b| format!("{b:02x}")).collect() };
    if bytes.len() > MAX { format!("{shown} ...") } else { shown }
}

/// What a YAML document says twice: `line 4: key "a" already set in map`.
pub fn yaml_duplicates(bytes: &[u8]) -> Vec<String> {
    text_of(bytes, Encoding::Yaml).map(|text| yaml_lines(bytes, &duplicates(&text)).0).unwrap_or_default()
}

/// YAML reports its double keys by line; everything else stays as it is.
fn with_yaml_lines(bytes: &[u8], problems: &[String]) -> String {
    let (lines, mut others) = yaml_lines(bytes, problems);
    if !lines.is_empty() {
        others.insert(0, format!("yaml: unmarshal errors:\n{}", lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")));
    }
    others.join(", ")
}

/// The double keys among what is wrong with a YAML document, by their lines, and everything else.
fn yaml_lines(bytes: &[u8], problems: &[String]) -> (Vec<String>, Vec<String>) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = vec![];
    let mut others = vec![];
    for problem in problems {
        let key = problem.strip_prefix("duplicate field \"").and_then(|p| p.strip_suffix('"')).and_then(|p| p.rsplit('.').next());
        let line = key.and_then(|key| {
            let is_key = |line: &str| {
                line.trim_start()
                    .trim_start_matches("- ")
                    .trim_matches('"')
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.trim_start_matches('"').starts_with(':'))
            };
            text.lines().enumerate().filter(|(_, line)| is_key(line)).nth(1).map(|(i, _)| (i + 1, key))
        });
        match line {
            Some((line, key)) => lines.push(format!("line {line}: key {key:?} already set in map")),
            None => others.push(problem.clone()),
        }
    }
    (lines, others)
}

/// Where the decoder is. Lives on the stack; becomes text only when something is wrong.
struct Place<'p> {
    parent: Option<&'p Place<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root,
    /// A field, and the name of the struct that has it.
    Field(&'p str, &'p str),
    Key(&'p str),
    Index(usize),
}

impl Place<'_> {
    const ROOT: Place<'static> = Place { parent: None, step: Step::Root };

    fn then<'p>(&'p self, step: Step<'p>) -> Place<'p> {
        Place { parent: Some(self), step }
    }
    /// `spec.containers[1].name`.
    fn path(&self) -> String {
        let mut path = self.parent.map(Place::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Field(name, _) | Step::Key(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Step::Index(i) => path.push_str(&format!("[{i}]")),
        }
        path
    }
    /// Fields only, and the innermost struct: `DeploymentSpec.spec.replicas`.
    fn go_path(&self) -> String {
        let (mut names, mut owner, mut place) = (vec![], "", Some(self));
        while let Some(here) = place {
            if let Step::Field(name, of) = here.step {
                names.push(name);
                if owner.is_empty() {
                    owner = of;
                }
            }
            place = here.parent;
        }
        names.push(owner);
        names.reverse();
        names.join(".")
    }
}

struct Decoder {
    problems: Vec<String>,
    /// The first value of a wrong type. Reading goes on, since bad syntax further on matters more.
    type_error: Option<String>,
}

impl Decoder {
    fn problem(&mut self, what: &str, place: &Place<'_>) {
        if self.problems.len() < limits::STRICT_PROBLEMS_MAX {
            let problem = format!("{what} field {:?}", place.path());
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
    }
    fn wrong(&mut self, error: impl FnOnce() -> String) {
        if self.type_error.is_none() {
            self.type_error = Some(error());
        }
    }
    fn mismatch(&mut self, found: &str, schema: &Schema, place: &Place<'_>) {
        self.wrong(|| match place.go_path().as_str() {
            "" => format!("json: cannot unmarshal {found} into Go value of type {}", schema.go_type()),
            path => format!("json: cannot unmarshal {found} into Go struct field {path} of type {}", schema.go_type()),
        });
    }

    /// Any value, kept as it is but for double keys, which are named.
    fn any(&mut self, reader: &mut Reader<'_>, place: &Place<'_>) -> Result<Value, String> {
        match reader.peek()? {
            Next::Array => {
                let mut list = vec![];
                reader.array(|reader, i| {
                    list.push(self.any(reader, &place.then(Step::Index(i)))?);
                    Ok(())
                })?;
                Ok(Value::Array(list))
            }
            Next::Object => {
                let mut map = Map::new();
                reader.object(|reader, key| {
                    let place = place.then(Step::Key(&key));
                    let value = self.any(reader, &place)?;
                    if map.contains_key(key.as_ref()) {
                        self.problem("duplicate", &place);
                    }
                    map.insert(key.into_owned(), value);
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
            _ => reader.value(),
        }
    }

    /// A value by its schema. `None` for null and for what is of a wrong type.
    fn value(&mut self, reader: &mut Reader<'_>, schema: &Schema, place: &Place<'_>) -> Result<Option<Value>, String> {
        let next = reader.peek()?;
        if next == Next::Null {
            reader.null()?;
            return Ok(schema.nullable.then_some(Value::Null));
        }
        Ok(match (schema.type_, next) {
            // Only custom resources are strict inside what has no schema.
            (Type::Any, _) if schema.name.is_empty() => Some(self.any(reader, place)?),
            (Type::Any, Next::Object) if schema.items.is_some() => {
                let Some(items) = &schema.items else { return Ok(None) };
                self.value(reader, items, place)?
            }
            (Type::Any, _) => Some(reader.value()?),
            (Type::Object, Next::Object) => Some(self.object(reader, schema, place)?),
            (Type::Map, Next::Object) => Some(self.map(reader, schema, place)?),
            (Type::Array, Next::Array) => Some(self.array(reader, schema, place)?),
            (Type::String, Next::String) | (Type::IntOrString, Next::String) => Some(Value::String(reader.string()?.into_owned())),
            (Type::Boolean, Next::Bool) => Some(Value::Bool(reader.bool()?)),
            (Type::Integer { .. } | Type::IntOrString, Next::Number) => {
                let text = reader.number()?;
                let bits = if let Type::Integer { bits } = schema.type_ { bits } else { 32 };
                let number = text.parse::<i64>().ok().filter(|n| bits == 64 || i32::try_from(*n).is_ok());
                if number.is_none() {
                    self.mismatch(&format!("number {text}"), schema, place);
                }
                number.map(Value::from)
            }
            (Type::Number, Next::Number) => Some(number_value(reader.number()?)?),
            (Type::Quantity, Next::String) => self.quantity(reader.string()?.trim(), place),
            (Type::Quantity, Next::Number) => self.quantity(reader.number()?, place),
            (Type::Quantity, _) => {
                reader.skip()?;
                self.quantity("?", place)
            }
            (Type::Bytes, Next::String) => self.scalar(scalars::canonical_base64(&reader.string()?)),
            (Type::Time, Next::String) => self.scalar(scalars::canonical_time(&reader.string()?, Precision::Seconds)),
            (Type::MicroTime, Next::String) => self.scalar(scalars::canonical_time(&reader.string()?, Precision::Micros)),
            (Type::Time | Type::MicroTime, found) => {
                reader.skip()?;
                self.wrong(|| format!("json: cannot unmarshal {} into Go value of type string", found.word()));
                None
            }
            (_, found) => {
                reader.skip()?;
                self.mismatch(found.word(), schema, place);
                None
            }
        })
    }

    fn scalar(&mut self, text: Result<String, String>) -> Option<Value> {
        match text {
            Ok(text) => Some(Value::String(text)),
            Err(why) => {
                self.wrong(|| why);
                None
            }
        }
    }

    /// In canonical form. Resource lists (maps of quantities) know nothing finer than a thousandth.
    fn quantity(&mut self, text: &str, place: &Place<'_>) -> Option<Value> {
        let in_list = matches!(place.step, Step::Key(_));
        self.scalar(
            Quantity::parse(text)
                .map(|q| as_written(if in_list { q.round_to_milli() } else { q }.to_string(), text))
                .map_err(|error| error.to_string()),
        )
    }

    fn array(&mut self, reader: &mut Reader<'_>, schema: &Schema, place: &Place<'_>) -> Result<Value, String> {
        let mut list = vec![];
        let any = Schema::default();
        let items = schema.items.as_deref().unwrap_or(&any);
        reader.array(|reader, i| {
            let item = self.value(reader, items, &place.then(Step::Index(i)))?;
            list.push(item.unwrap_or_else(|| zero(items)));
            Ok(())
        })?;
        Ok(Value::Array(list))
    }

    fn map(&mut self, reader: &mut Reader<'_>, schema: &Schema, place: &Place<'_>) -> Result<Value, String> {
        let mut map = Map::new();
        let any = Schema::default();
        let items = schema.items.as_deref().unwrap_or(&any);
        reader.object(|reader, key| {
            let place = place.then(Step::Key(&key));
            let value = self.value(reader, items, &place)?.unwrap_or_else(|| zero(items));
            if map.contains_key(key.as_ref()) {
                self.problem("duplicate", &place);
            }
            map.insert(key.into_owned(), value);
            Ok(())
        })?;
        Ok(Value::Object(map))
    }

    fn object(&mut self, reader: &mut Reader<'_>, schema: &Schema, place: &Place<'_>) -> Result<Value, String> {
        let mut map = Map::new();
        // Fields that were null are not in the map, but are double all the same when they come again.
        let mut seen = 0u128;
        reader.object(|reader, key| {
            let Some(index) = schema.fields.place(&key) else {
                let place = place.then(Step::Key(&key));
                if schema.preserve_unknown {
                    let value = self.any(reader, &place)?;
                    if map.contains_key(key.as_ref()) {
                        self.problem("duplicate", &place);
                    }
                    map.insert(key.into_owned(), value);
                } else {
                    self.problem("unknown", &place);
                    reader.skip()?;
                }
                return Ok(());
            };
            let known = &schema.fields[index];
            let place = place.then(Step::Field(&known.name, schema.short_name()));
            // No built-in type has more fields than there are bits.
            let bit = u32::try_from(index).ok().and_then(|index| 1u128.checked_shl(index));
            if bit.map_or_else(|| map.contains_key(key.as_ref()), |bit| seen & bit != 0) {
                self.problem("duplicate", &place);
            }
            seen |= bit.unwrap_or_default();
            if let Some(value) = self.value(reader, &known.schema, &place)? {
                map.insert(key.into_owned(), value);
            }
            Ok(())
        })?;
        finish(&mut map, schema, false);
        Ok(Value::Object(map))
    }
}

/// What Go has for an item or a map's value that is null.
fn zero(schema: &Schema) -> Value {
    match schema.type_ {
        Type::Object => {
            let mut map = Map::new();
            finish(&mut map, schema, false);
            Value::Object(map)
        }
        Type::String => "".into(),
        Type::Quantity => "0".into(),
        Type::Integer { .. } | Type::Number | Type::IntOrString => 0.into(),
        Type::Boolean => false.into(),
        Type::Any | Type::Map | Type::Array | Type::Bytes | Type::Time | Type::MicroTime => Value::Null,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Whether an empty list that a client sends is not as if it had said nothing: its default is for those who say nothing.
fn counts_when_empty(schema: &Schema, field: &str) -> bool {
    field == "policies" && schema.name.ends_with(".HPAScalingRules")
}

/// Leaves out of one object what Go would not show, and adds what it always shows. An empty list that is always shown is not
/// yet null when it has just been read (`is_stored` false): whoever sends it has set it.
fn finish(map: &mut Map<String, Value>, schema: &Schema, is_stored: bool) {
    // Few objects have a zero value in them.
    if map.values().any(is_zero) {
        map.retain(|key, value| {
            !is_zero(value)
                || (value.is_array() && counts_when_empty(schema, key))
                || schema.field(key).is_none_or(|field| {
                    !field.omit_zero
                        && (field.required || field.always.is_some() || !matches!(field.schema.type_, Type::Map | Type::Array | Type::Bytes))
                        && (field.always != Some(schema::Zero::Null) || (!is_stored && matches!(value, Value::Array(_))))
                })
        });
    }
    for field in schema.fields.always_shown() {
        if let Some(always) = field.always
            && !map.contains_key(field.name.as_ref())
        {
            let value = if always == schema::Zero::Object { zero(&field.schema) } else { always.value() };
            map.insert(field.name.to_string(), value);
        }
    }
}

/// The same for a whole object that was changed after it was decoded (by defaults, admission, controllers): nulls go, zero
/// values that are not shown go, what is always shown comes. Idempotent. Does nothing without a built-in schema.
pub fn complete(value: &mut Value, schema: &Schema) {
    match (schema.type_, value) {
        (Type::Object, Value::Object(map)) if !schema.fields.is_empty() => {
            if map.values().any(Value::is_null) {
                map.retain(|key, value| !value.is_null() || schema.field(key).is_none_or(|field| field.schema.nullable));
            }
            for (key, value) in map.iter_mut().filter(|(_, value)| value.is_object() || value.is_array()) {
                if let Some(field) = schema.field(key) {
                    complete(value, &field.schema);
                }
            }
            finish(map, schema, true);
        }
        (Type::Map, Value::Object(map)) => {
            if let Some(items) = &schema.items {
                map.values_mut().for_each(|value| complete(value, items));
            }
        }
        (Type::Array, Value::Array(list)) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|value| complete(value, items));
            }
        }
        _ => {}
    }
}

/// The same for an object that has taken the place of `standing`, which was complete: its members that are as they were still are.
pub fn complete_changed(value: &mut Value, standing: &Value, schema: &Schema) {
    let (Value::Object(map), Type::Object, false) = (value, schema.type_, schema.fields.is_empty()) else { return };
    map.retain(|key, value| !value.is_null() || schema.field(key).is_none_or(|field| field.schema.nullable));
    for (key, value) in map.iter_mut() {
        if let Some(field) = schema.field(key)
            && standing.get(key) != Some(&*value)
        {
            complete(value, &field.schema);
        }
    }
    finish(map, schema, true);
}

/// A quantity that is written oddly, but with the digits and the unit of its canonical form, stays as it is written.
fn as_written(canonical: String, text: &str) -> String {
    let plain = text.strip_prefix('+').unwrap_or(text);
    let usual = plain.strip_suffix('.').unwrap_or(plain).replace('E', "e");
    // `E` after the digits is a unit; before digits, an exponent.
    let is_unit = plain.ends_with('E');
    if !is_unit && usual == canonical { text.to_string() } else { canonical }
}

#[cfg(test)]
mod tests;
