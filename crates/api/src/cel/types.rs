//! Types of values and signatures of functions.

use super::syntax::{KEYWORDS, RESERVED};
use crate::custom::props::Props;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// The fields of an object type. Named, so that types that contain themselves can be told apart.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pub name: String,
    pub fields: BTreeMap<String, Type>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    /// Of what is wrong. It goes with everything, so that nobody is told of one mistake twice.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Type>),
    Map(Box<Type>, Box<Type>),
    Optional(Box<Type>),
    /// A type as a value.
    Kind(Box<Type>),
    Object(Arc<Fields>),
    /// A type of a library: `kubernetes.Quantity`, ...
    Opaque(&'static str),
    /// A parameter of a signature.
    Param(char),
}

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) | (Type::Kind(a), Type::Kind(b)) => a == b,
            (Type::Map(a, b), Type::Map(c, d)) => a == c && b == d,
            (Type::Object(a), Type::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Type::Duration => f.write_str("google.protobuf.Duration"),
            Type::List(items) => write!(f, "list({items})"),
            Type::Map(keys, values) => write!(f, "map({keys}, {values})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Kind(of) => write!(f, "type({of})"),
            Type::Object(fields) => f.write_str(&fields.name),
            Type::Opaque(name) => f.write_str(name),
            Type::Param(name) => write!(f, "{name}"),
        }
    }
}

/// How a field is written in an expression: names that are no identifiers are escaped. `None` for a name that cannot be written.
pub fn escape(name: &str) -> Option<String> {
    if KEYWORDS.contains(&name) || RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut escaped = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("__") {
            escaped.push_str("__underscores__");
            rest = &rest[2..];
            continue;
        }
        match c {
            '.' => escaped.push_str("__dot__"),
            '-' => escaped.push_str("__dash__"),
            '/' => escaped.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => escaped.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(escaped)
}

/// The reverse of [`escape`].
pub fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_string();
    }
    let mut text = name.to_string();
    for (from, to) in [("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")] {
        text = text.replace(from, to);
    }
    match text.strip_prefix("__").and_then(|text| text.strip_suffix("__")) {
        Some(word) if escape(word).is_some_and(|escaped| escaped == name) => word.to_string(),
        _ => text,
    }
}

/// The type of values of a schema; `None` for what rules cannot see. `root` has what every object has.
pub fn of_props(props: &Props, root: bool) -> Option<Type> {
    let metadata = || {
        let fields = ["name", "generateName"].map(|name| (name.to_string(), Type::String)).into();
        Type::Object(Arc::new(Fields { name: "object".into(), fields }))
    };
    let object = |props: &Props| {
        let mut fields: BTreeMap<String, Type> =
            props.properties.iter().filter_map(|(name, below)| Some((escape(name)?, of_props(below, below.embedded)?))).collect();
        if root {
            fields.insert("apiVersion".into(), Type::String);
            fields.insert("kind".into(), Type::String);
            fields.insert("metadata".into(), metadata());
        }
        Type::Object(Arc::new(Fields { name: "object".into(), fields }))
    };
    if props.int_or_string {
        return Some(Type::Dyn);
    }
    match props.types.first().map(String::as_str) {
        None if root => Some(object(props)),
        Some("object") => match props.additional() {
            Some(values) => Some(Type::Map(Box::new(Type::String), Box::new(of_props(values, values.embedded)?))),
            None => Some(object(props)),
        },
        Some("array") => Some(Type::List(Box::new(of_props(props.items.as_deref()?, props.items.as_deref()?.embedded)?))),
        Some("string") => Some(match props.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        }),
        Some("integer") => Some(Type::Int),
        Some("number") => Some(Type::Double),
        Some("boolean") => Some(Type::Bool),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_back() {
        for (name, escaped) in
            [("a", "a"), ("a.b-c/d", "a__dot__b__dash__c__slash__d"), ("namespace", "__namespace__"), ("a__b", "a__underscores__b")]
        {
            assert_eq!(escape(name).as_deref(), Some(escaped));
            assert_eq!(unescape(escaped), name);
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("a b"), None);
    }
}
