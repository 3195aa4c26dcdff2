//! Field paths and the errors that name them, as `Invalid` Statuses carry them.

use crate::{internal::Tree, kinds::checks, limits::ERRORS_BYTES_MAX};
use serde_json::Value;
use std::fmt;

/// The longest path that is kept in place, in bytes. Nearly all are shorter, and nearly none is ever printed: checks of a write
/// make hundreds of them.
const SHORT_BYTES_MAX: usize = 79;
/// A list has fewer items than numbers with so many digits can count.
const INDEX_DIGITS_MAX: usize = 20;

/// A path such as `spec.containers[0].name` or `metadata.labels[app]`. Cheap to extend, printed on demand.
#[derive(Clone)]
pub struct Path(Text);

#[derive(Clone)]
enum Text {
    /// So many bytes of these, which are UTF-8.
    Short(u8, [u8; SHORT_BYTES_MAX]),
    Long(String),
}

impl Path {
    pub fn root() -> Path {
        Path(Text::Short(0, [0; SHORT_BYTES_MAX]))
    }
    pub fn new(first: &str) -> Path {
        Path::root().then([first, "", ""])
    }
    pub fn child(&self, name: &str) -> Path {
        self.then([if self.is_empty() { "" } else { "." }, name, ""])
    }
    pub fn index(&self, i: usize) -> Path {
        let (mut digits, mut at, mut rest) = ([b'0'; INDEX_DIGITS_MAX], INDEX_DIGITS_MAX - 1, i);
        while rest >= 10 {
            digits[at] = b'0' + (rest % 10) as u8;
            (at, rest) = (at - 1, rest / 10);
        }
        digits[at] = b'0' + rest as u8;
        self.then(["[", std::str::from_utf8(&digits[at..]).unwrap_or_default(), "]"])
    }
    pub fn key(&self, key: &str) -> Path {
        self.then(["[", key, "]"])
    }

    fn then(&self, parts: [&str; 3]) -> Path {
        let more: usize = parts.iter().map(|part| part.len()).sum();
        match &self.0 {
            Text::Short(length, bytes) if usize::from(*length) + more <= SHORT_BYTES_MAX => {
                let (mut bytes, mut at) = (*bytes, usize::from(*length));
                for part in parts {
                    bytes[at..at + part.len()].copy_from_slice(part.as_bytes());
                    at += part.len();
                }
                Path(Text::Short(at as u8, bytes))
            }
            _ => Path(Text::Long([self.as_str(), parts[0], parts[1], parts[2]].concat())),
        }
    }
    fn is_empty(&self) -> bool {
        matches!(&self.0, Text::Short(0, _))
    }
    fn as_str(&self) -> &str {
        match &self.0 {
            Text::Short(length, bytes) => std::str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default(),
            Text::Long(text) => text,
        }
    }
}

impl Default for Path {
    fn default() -> Path {
        Path::root()
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Path) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Path {}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Path").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "<nil>" } else { self.as_str() })
    }
}

/// The reasons of `StatusCause`s about fields, under Kubernetes' own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

impl Reason {
    /// The reason of a StatusCause.
    pub fn cause(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
            Reason::Internal => "InternalError",
        }
    }
    fn label(self) -> &'static str {
        match self {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Duplicate => "Duplicate value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
            Reason::NotFound => "Not found",
            Reason::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub reason: Reason,
    pub field: Path,
    pub value: Option<Value>,
    /// The value where it is a structure that is shown in the internal form, as text.
    pub structure: Option<String>,
    pub detail: String,
}

impl Error {
    /// The message without the field: `Invalid value: -1: must be greater than or equal to 0`.
    pub fn body(&self) -> String {
        let label = self.reason.label();
        let shown = match self.reason {
            Reason::Required | Reason::Forbidden | Reason::TooLong | Reason::Internal => None,
            // Without a value the detail alone is shown.
            _ => self.structure.clone().or_else(|| self.value.as_ref().map(shown)),
        };
        match (shown, self.detail.is_empty()) {
            (None, true) => label.to_string(),
            (None, false) => format!("{label}: {}", self.detail),
            (Some(value), true) => format!("{label}: {value}"),
            (Some(value), false) => format!("{label}: {value}: {}", self.detail),
        }
    }
}

fn one_of(supported: &[&str]) -> String {
    let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
    format!("supported values: {list}")
}

/// A value as messages show it: texts in quotes as Go writes them, structures as Go's JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) | Value::Object(_) => escaped(&value.to_string()),
        other => other.to_string(),
    }
}
/// A text in quotes, as Go's `%q` writes it.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            '\u{80}'..='\u{a0}' | '\u{ad}' | '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", c as u32))
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
/// JSON as Go writes it: what means something in HTML is escaped.
pub fn escaped(json: &str) -> String {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json.to_string();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            c => escaped.push(c),
        }
    }
    escaped
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// What validation collects. Validation goes on after an error, so that a user sees all of them at once; but what is found when
/// [`ERRORS_BYTES_MAX`] are full is left out.
#[derive(Clone, Debug, Default)]
pub struct Errors(pub Vec<Error>, usize);

/// Bytes of a value, roughly.
fn weight(value: &Value) -> usize {
    const VALUE: usize = 8;
    VALUE
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(weight).sum(),
            Value::Object(members) => members.iter().map(|(key, value)| key.len() + weight(value)).sum(),
            _ => 0,
        }
}

impl Errors {
    pub fn push(&mut self, reason: Reason, field: Path, value: Option<Value>, detail: impl Into<String>) {
        self.add(Error { reason, field, value, structure: None, detail: detail.into() });
    }
    /// An error about a structure in the internal form.
    pub fn push_structure(&mut self, reason: Reason, field: Path, structure: &Tree, detail: impl Into<String>) {
        if !self.is_full() {
            self.add(Error { reason, field, value: None, structure: Some(structure.to_string()), detail: detail.into() });
        }
    }
    fn add(&mut self, error: Error) {
        if !self.is_full() {
            let shown = error.value.as_ref().map_or(0, weight) + error.structure.as_ref().map_or(0, String::len);
            self.1 += error.field.as_str().len() + error.detail.len() + shown;
            self.0.push(error);
        }
    }
    /// Whether nothing more is collected. Who finds the same large thing wrong again and again MUST ask.
    pub fn is_full(&self) -> bool {
        self.1 > ERRORS_BYTES_MAX
    }
    pub fn invalid_structure(&mut self, field: Path, structure: &Tree, detail: &str) {
        self.push_structure(Reason::Invalid, field, structure, detail);
    }
    pub fn duplicate_structure(&mut self, field: Path, structure: &Tree) {
        self.push_structure(Reason::Duplicate, field, structure, "");
    }
    pub fn not_supported_structure(&mut self, field: Path, structure: &Tree, supported: &[&str]) {
        self.push_structure(Reason::NotSupported, field, structure, one_of(supported));
    }
    pub fn required(&mut self, field: Path, detail: &str) {
        self.push(Reason::Required, field, None, detail);
    }
    pub fn invalid(&mut self, field: Path, value: impl Into<Value>, detail: &str) {
        self.push(Reason::Invalid, field, Some(value.into()), detail);
    }
    pub fn forbidden(&mut self, field: Path, detail: &str) {
        self.push(Reason::Forbidden, field, None, detail);
    }
    pub fn duplicate(&mut self, field: Path, value: impl Into<Value>) {
        self.push(Reason::Duplicate, field, Some(value.into()), "");
    }
    pub fn not_supported(&mut self, field: Path, value: impl Into<Value>, supported: &[&str]) {
        self.push(Reason::NotSupported, field, Some(value.into()), one_of(supported));
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// `may not be more than MAX bytes`.
    pub fn too_long(&mut self, field: Path, value: impl Into<Value>, max: usize) {
        self.push(Reason::TooLong, field, Some(value.into()), format!("may not be more than {max} bytes"));
    }
    /// `must have at most MAX items`.
    pub fn too_many(&mut self, field: Path, count: usize, max: usize) {
        self.push(Reason::TooMany, field, Some(count.into()), format!("must have at most {max} items"));
    }
    pub fn not_found(&mut self, field: Path, value: impl Into<Value>) {
        self.push(Reason::NotFound, field, Some(value.into()), "");
    }
    pub fn type_invalid(&mut self, field: Path, value: impl Into<Value>, detail: &str) {
        self.push(Reason::TypeInvalid, field, Some(value.into()), detail);
    }
    pub fn internal(&mut self, field: Path, detail: &str) {
        self.push(Reason::Internal, field, None, detail);
    }
    pub fn extend(&mut self, other: Errors) {
        other.0.into_iter().for_each(|error| self.add(error));
    }
    /// Every message in `problems` as an `Invalid` of the same field and value (the shape of name checks).
    pub fn invalid_all(&mut self, field: &Path, value: impl Into<Value>, problems: Vec<String>) {
        let value = value.into();
        for problem in problems {
            self.invalid(field.clone(), value.clone(), &problem);
        }
    }
}

impl fmt::Display for Errors {
    /// One message as it is, several in brackets; each only once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(Error::to_string).collect();
        let messages: Vec<&str> = checks::distinct(&all, |message| message).filter(|(.., again)| !again).map(|(_, message, _)| &**message).collect();
        match messages.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_collected_up_to_a_limit() {
        let mut errors = Errors::default();
        let large = "x".repeat(1000);
        for i in 0..10_000 {
            errors.invalid(Path::new("items").index(i), large.as_str(), "must be short");
        }
        assert!(errors.is_full() && errors.0.len() < 10_000, "{}", errors.0.len());
        assert!(errors.to_string().starts_with("[items[0]: Invalid value: \"xxx"));
    }
}
