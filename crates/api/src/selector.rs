//! Label and field selectors: parsed once, matched against many objects.

use crate::{Value, field, status::Result};

/// A conjunction of requirements on labels. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl LabelSelector {
    /// From a query: `a=b,c in (d,e),!f`. The error is a BadRequest.
    pub fn parse(_text: &str) -> Result<LabelSelector> {
        Ok(Default::default())
    }
    /// From a LabelSelector object (`matchLabels`, `matchExpressions`): null selects nothing, `{}` everything.
    pub fn from_value(_selector: &Value) -> Result<LabelSelector, String> {
        Ok(Default::default())
    }
    /// From a plain map of labels (a Service's or ReplicationController's): absent or empty selects nothing.
    pub fn from_map(_labels: Option<&serde_json::Map<String, Value>>) -> LabelSelector {
        Default::default()
    }
    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: vec![], nothing: true }
    }
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    pub fn matches<'a>(&self, _labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        true
    }
    /// On the labels of an object's JSON (`metadata.labels`).
    pub fn matches_map(&self, labels: Option<&serde_json::Map<String, Value>>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

/// A conjunction of (in)equalities on fields. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, whether it must be equal (or must not), value.
    pub terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// `metadata.name=x,status.phase!=Running`. The error is a BadRequest.
    pub fn parse(_text: &str) -> Result<FieldSelector> {
        Ok(Default::default())
    }
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
    /// A field that the object lacks counts as empty.
    pub fn matches<'a>(&self, _fields: impl Fn(&str) -> Option<&'a str>) -> bool {
        true
    }
    /// The value that `field` must have, if the selector says so (`metadata.name=x` makes a list a get).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, equal, _)| *equal && f == field).map(|(_, _, v)| v.as_str())
    }
}

impl std::fmt::Display for FieldSelector {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

/// Checks a LabelSelector object, as validation of many kinds needs it.
pub fn validate(_selector: &Value, _path: &field::Path, _errors: &mut field::Errors) {}
