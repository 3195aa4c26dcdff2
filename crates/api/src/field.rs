//! Field paths and the errors that name them, as `Invalid` Statuses carry them.

use serde_json::Value;
use std::fmt;

/// A path such as `spec.containers[0].name` or `metadata.labels[app]`. Cheap to extend, printed on demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn root() -> Path {
        Path(String::new())
    }
    pub fn new(first: &str) -> Path {
        Path(first.to_string())
    }
    pub fn child(&self, name: &str) -> Path {
        Path(if self.0.is_empty() { name.to_string() } else { format!("{}.{name}", self.0) })
    }
    pub fn index(&self, i: usize) -> Path {
        Path(format!("{}[{i}]", self.0))
    }
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
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

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub reason: Reason,
    pub field: Path,
    pub value: Option<Value>,
    pub detail: String,
}

/// What validation collects. Validation goes on after an error, so that a user sees all of them at once.
#[derive(Clone, Debug, Default)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    pub fn push(&mut self, reason: Reason, field: Path, value: Option<Value>, detail: impl Into<String>) {
        self.0.push(Error { reason, field, value, detail: detail.into() });
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
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        self.push(Reason::NotSupported, field, Some(value.into()), format!("supported values: {list}"));
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
