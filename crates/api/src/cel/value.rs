//! Values while an expression is computed. JSON is looked at where it stands and never copied.

use crate::{Value, custom::props::Props, quantity::Quantity};
use serde_json::Map;
use std::{borrow::Cow, cmp::Ordering, net::IpAddr, rc::Rc};

/// Who may do what: how expressions of policies ask the authorizers.
pub trait Authorizer {
    /// Whether the question is allowed, and why.
    fn check(&self, question: &Question) -> (bool, String);
}

/// What an authorizer is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The service account to ask for: namespace and name; `None` for who made the request.
    pub account: Option<(String, String)>,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub verb: String,
}

/// Values of libraries.
#[derive(Clone)]
pub enum Opaque<'a> {
    Url(Url),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Quantity(Quantity),
    Semver(u64, u64, u64, String),
    Format(&'static str),
    Authorizer(&'a dyn Authorizer, Question),
    Decision(bool, String),
}

/// The parts of a URL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Url {
    pub scheme: String,
    pub host: String,
    pub path: String,
    pub query: String,
}

/// A value.
#[derive(Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Cow<'a, str>),
    Bytes(Rc<[u8]>),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    /// Nanoseconds.
    Duration(i64),
    List(Rc<Vec<Val<'a>>>),
    Map(Rc<Vec<(Val<'a>, Val<'a>)>>),
    JsonList(&'a [Value], Option<&'a Props>),
    JsonMap(&'a Map<String, Value>, Option<&'a Props>),
    Optional(Option<Rc<Val<'a>>>),
    Type(Cow<'static, str>),
    Opaque(Rc<Opaque<'a>>),
    /// What could not be computed: an error only for who asks for it (`variables` of a policy).
    Failed(Rc<str>),
}

impl<'a> Val<'a> {
    pub fn string(text: impl Into<Cow<'a, str>>) -> Val<'a> {
        Val::String(text.into())
    }
    pub fn list(items: Vec<Val<'a>>) -> Val<'a> {
        Val::List(Rc::new(items))
    }
    pub fn some(value: Val<'a>) -> Val<'a> {
        Val::Optional(Some(Rc::new(value)))
    }
    pub fn opaque(value: Opaque<'a>) -> Val<'a> {
        Val::Opaque(Rc::new(value))
    }

    /// A JSON value, by its schema if it has one.
    pub fn json(value: &'a Value, props: Option<&'a Props>) -> Val<'a> {
        match value {
            Value::Null => Val::Null,
            Value::Bool(flag) => Val::Bool(*flag),
            Value::Number(number) => {
                let double = props.is_some_and(|props| props.is("number"));
                match (number.as_i64(), number.as_f64()) {
                    (Some(whole), _) if !double => Val::Int(whole),
                    (_, Some(number)) if props.is_some_and(|props| props.is("integer")) && number.fract() == 0.0 => Val::Int(number as i64),
                    (_, Some(number)) => Val::Double(number),
                    _ => Val::Null,
                }
            }
            Value::String(text) => match props.map(|props| props.format.as_str()) {
                Some("byte") => match crate::custom::formats::base64(text) {
                    Some(bytes) => Val::Bytes(bytes.into()),
                    None => Val::String(Cow::Borrowed(text)),
                },
                Some("date-time" | "datetime") => super::library::timestamp(text).map_or(Val::String(Cow::Borrowed(text)), Val::Timestamp),
                Some("date") => super::library::timestamp(&format!("{text}T00:00:00Z")).map_or(Val::String(Cow::Borrowed(text)), Val::Timestamp),
                Some("duration") => crate::custom::formats::duration_ns(text).map_or(Val::String(Cow::Borrowed(text)), Val::Duration),
                _ => Val::String(Cow::Borrowed(text)),
            },
            Value::Array(list) => Val::JsonList(list, props),
            Value::Object(map) => Val::JsonMap(map, props),
        }
    }

    /// What cel calls its type.
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::String(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::List(_) | Val::JsonList(..) => "list",
            Val::Failed(_) => "error",
            Val::Map(_) | Val::JsonMap(..) => "map",
            Val::Optional(_) => "optional_type",
            Val::Type(_) => "type",
            Val::Opaque(opaque) => match &**opaque {
                Opaque::Url(_) => "kubernetes.URL",
                Opaque::Ip(_) => "net.IP",
                Opaque::Cidr(..) => "net.CIDR",
                Opaque::Quantity(_) => "kubernetes.Quantity",
                Opaque::Semver(..) => "kubernetes.Semver",
                Opaque::Format(_) => "kubernetes.NamedFormat",
                Opaque::Authorizer(..) => "kubernetes.authorization.Authorizer",
                Opaque::Decision(..) => "kubernetes.authorization.Decision",
            },
        })
    }

    /// Items, characters, bytes or entries.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Val::String(text) => text.chars().count(),
            Val::Bytes(bytes) => bytes.len(),
            Val::List(items) => items.len(),
            Val::JsonList(items, _) => items.len(),
            Val::Map(entries) => entries.len(),
            Val::JsonMap(map, _) => map.len(),
            _ => return None,
        })
    }
    /// The size by which costs are counted: 1 for what has none.
    pub fn weight(&self) -> u64 {
        match self {
            Val::String(text) => text.len() as u64,
            other => other.size().unwrap_or(1) as u64,
        }
    }
    pub fn as_str(&self) -> Option<&str> {
        if let Val::String(text) = self { Some(text) } else { None }
    }

    /// The items of a list.
    pub fn items(&self) -> Option<Vec<Val<'a>>> {
        Some(match self {
            Val::List(items) => items.as_ref().clone(),
            Val::JsonList(items, props) => {
                let props = props.and_then(|props| props.items.as_deref());
                items.iter().map(|item| Val::json(item, props)).collect()
            }
            _ => return None,
        })
    }
    /// The entries of a map, keys as expressions know them.
    pub fn entries(&self) -> Option<Vec<(Val<'a>, Val<'a>)>> {
        Some(match self {
            Val::Map(entries) => entries.as_ref().clone(),
            Val::JsonMap(map, props) => map.iter().map(|(key, value)| (Val::string(key.as_str()), Val::json(value, below(*props, key)))).collect(),
            _ => return None,
        })
    }
    /// One item of a list.
    pub fn item(&self, index: usize) -> Option<Val<'a>> {
        match self {
            Val::List(items) => items.get(index).cloned(),
            Val::JsonList(items, props) => items.get(index).map(|item| Val::json(item, props.and_then(|props| props.items.as_deref()))),
            _ => None,
        }
    }
    /// One value of a map. A null that the schema does not allow is as if it were not there.
    pub fn entry(&self, key: &Val<'_>) -> Option<Val<'a>> {
        match self {
            Val::Map(entries) => entries.iter().find(|(known, _)| equal(known, key)).map(|(_, value)| value.clone()),
            Val::JsonMap(map, props) => {
                let key = key.as_str()?;
                let value = map.get(key)?;
                let schema = below(*props, key);
                (!value.is_null() || schema.is_none_or(|schema| schema.nullable)).then(|| Val::json(value, schema))
            }
            _ => None,
        }
    }

    /// As JSON, for what policies and mutations make. `None` for what has no such form.
    pub fn to_json(&self) -> Option<Value> {
        Some(match self {
            Val::Null => Value::Null,
            Val::Bool(flag) => Value::Bool(*flag),
            Val::Int(number) => Value::from(*number),
            Val::Uint(number) => Value::from(*number),
            Val::Double(number) => Value::from(*number),
            Val::String(text) => Value::from(text.as_ref()),
            Val::Bytes(bytes) => Value::from(crate::custom::formats::to_base64(bytes)),
            Val::Timestamp(_) | Val::Duration(_) => Value::from(super::library::text(self)?),
            Val::List(items) => Value::Array(items.iter().map(Val::to_json).collect::<Option<_>>()?),
            Val::Map(entries) => {
                Value::Object(entries.iter().map(|(key, value)| Some((super::library::text(key)?, value.to_json()?))).collect::<Option<Map<_, _>>>()?)
            }
            Val::JsonList(items, _) => Value::Array(items.to_vec()),
            Val::JsonMap(map, _) => Value::Object((*map).clone()),
            Val::Optional(Some(value)) => value.to_json()?,
            Val::Optional(None) => Value::Null,
            Val::Type(_) | Val::Opaque(_) | Val::Failed(_) => return None,
        })
    }
}

fn below<'a>(props: Option<&'a Props>, key: &str) -> Option<&'a Props> {
    let props = props?;
    props.properties.get(key).or_else(|| props.additional())
}

/// Numbers of different kinds are compared by value.
fn compare_numbers(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
        (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
        (Val::Double(a), Val::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Val::Int(a), Val::Double(b)) => (*a as f64).partial_cmp(b),
        (Val::Double(a), Val::Uint(b)) => a.partial_cmp(&(*b as f64)),
        (Val::Uint(a), Val::Double(b)) => (*a as f64).partial_cmp(b),
        _ => None,
    }
}

/// The order of two values; `None` for what has none.
pub fn compare(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    match (a, b) {
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        (Val::String(a), Val::String(b)) => Some(a.cmp(b)),
        (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
        (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
        (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
        (a, b) => compare_numbers(a, b),
    }
}

fn is_unordered(value: &Val<'_>) -> bool {
    matches!(value, Val::JsonList(_, Some(props)) if matches!(props.list_type.as_str(), "set" | "map"))
}

/// Whether two values are the same. Sets and lists with keys are compared without regard to order.
pub fn equal(a: &Val<'_>, b: &Val<'_>) -> bool {
    match (a, b) {
        (Val::Null, Val::Null) => true,
        (Val::JsonList(x, _), Val::JsonList(y, _)) if std::ptr::eq(*x, *y) => true,
        (Val::JsonMap(x, _), Val::JsonMap(y, _)) if std::ptr::eq(*x, *y) => true,
        (Val::List(_) | Val::JsonList(..), Val::List(_) | Val::JsonList(..)) => {
            if a.size() != b.size() {
                return false;
            }
            let (Some(left), Some(right)) = (a.items(), b.items()) else { return false };
            if is_unordered(a) || is_unordered(b) {
                return left.iter().all(|item| right.iter().any(|other| equal(item, other)));
            }
            left.iter().zip(&right).all(|(left, right)| equal(left, right))
        }
        (Val::Map(_) | Val::JsonMap(..), Val::Map(_) | Val::JsonMap(..)) => {
            a.size() == b.size()
                && a.entries().is_some_and(|entries| entries.iter().all(|(key, value)| b.entry(key).is_some_and(|other| equal(value, &other))))
        }
        (Val::Optional(a), Val::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal(a, b),
            _ => false,
        },
        (Val::Type(a), Val::Type(b)) => a == b,
        (Val::Opaque(a), Val::Opaque(b)) => match (&**a, &**b) {
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a, x), Opaque::Cidr(b, y)) => (a, x) == (b, y),
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Semver(a, b, c, d), Opaque::Semver(e, f, g, h)) => (a, b, c, d) == (e, f, g, h),
            _ => false,
        },
        (a, b) => compare(a, b) == Some(Ordering::Equal),
    }
}
