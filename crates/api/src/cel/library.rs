//! What functions do: cel's standard library, its extensions for strings, lists, sets and numbers, and Kubernetes' own.

use super::{
    eval::{Error, Outcome, tenth},
    limits,
    value::{Opaque, Question, Url, Val, compare, equal},
};
use crate::{custom::formats, custom::props::compile, names, quantity::Quantity};
use std::{borrow::Cow, cmp::Ordering, net::IpAddr, rc::Rc};

const NANOS: i128 = 1_000_000_000;

/// A time as text, in nanoseconds since 1970.
pub fn timestamp(text: &str) -> Option<i128> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_nanosecond())
}

/// A value as text, as `string()` makes it.
pub fn text(value: &Val<'_>) -> Option<String> {
    Some(match value {
        Val::String(text) => text.to_string(),
        Val::Bool(flag) => flag.to_string(),
        Val::Int(number) => number.to_string(),
        Val::Uint(number) => number.to_string(),
        Val::Double(number) => double_text(*number),
        Val::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Val::Timestamp(nanos) => jiff::Timestamp::from_nanosecond(*nanos).ok()?.to_string(),
        Val::Duration(nanos) => duration_text(*nanos),
        Val::Opaque(opaque) => match &**opaque {
            Opaque::Ip(address) => address.to_string(),
            Opaque::Cidr(address, bits) => format!("{address}/{bits}"),
            Opaque::Url(url) => format!("{}://{}{}", url.scheme, url.host, url.path),
            Opaque::Quantity(quantity) => quantity.to_string(),
            _ => return None,
        },
        _ => return None,
    })
}

fn double_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e21 { format!("{number:.0}") } else { number.to_string() }
}

fn duration_text(nanos: i64) -> String {
    let seconds = nanos as f64 / NANOS as f64;
    format!("{}s", double_text(seconds))
}

/// What a call costs beyond one unit.
pub fn cost(name: &str, values: &[Val<'_>]) -> u64 {
    let weight = |i: usize| values.get(i).map_or(0, Val::weight);
    match name {
        "contains" | "find" | "findAll" => tenth(weight(0)) * tenth(weight(1)).max(1),
        "matches" => tenth(weight(0)).max(1) * weight(1).div_ceil(4).max(1),
        "startsWith" | "endsWith" => tenth(weight(1)),
        "_==_" | "_!=_" => {
            if values.iter().any(|value| matches!(value, Val::String(_) | Val::Bytes(_))) {
                tenth(weight(0).min(weight(1)))
            } else {
                deep_weight(values.first(), 0).min(deep_weight(values.get(1), 0))
            }
        }
        "_<_" | "_<=_" | "_>_" | "_>=_" if matches!(values.first(), Some(Val::String(_))) => tenth(weight(0).min(weight(1))),
        "_+_" if matches!(values.first(), Some(Val::String(_) | Val::Bytes(_))) => tenth(weight(0) + weight(1)),
        "_+_" => {
            if matches!(values.first(), Some(Val::List(_) | Val::JsonList(..))) {
                weight(0) + weight(1)
            } else {
                0
            }
        }
        "string" | "bytes" | "lowerAscii" | "upperAscii" | "trim" | "replace" | "split" | "substring" | "indexOf" | "lastIndexOf" | "url"
        | "isURL" | "ip" | "isIP" | "cidr" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" | "charAt" | "format" | "strings.quote"
        | "base64.encode" | "base64.decode" => values.iter().map(|value| tenth(value.weight())).sum(),
        "join" => values.first().and_then(Val::items).map_or(0, |items| items.iter().map(|item| tenth(item.weight()) + 1).sum()),
        "@in" if !matches!(values.get(1), Some(Val::Map(_) | Val::JsonMap(..))) => weight(1),
        "isSorted" | "sum" | "min" | "max" | "sort" | "distinct" | "reverse" | "flatten" | "slice" => weight(0),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => weight(0) * weight(1),
        "validate" => tenth(weight(1)).max(1) * 5,
        "check" => 350_000,
        _ => 0,
    }
}

/// All that stands inside a value.
fn deep_weight(value: Option<&Val<'_>>, depth: usize) -> u64 {
    let Some(value) = value.filter(|_| depth < 20) else { return 1 };
    match value {
        Val::List(_) | Val::JsonList(..) => {
            value.items().unwrap_or_default().iter().take(10_000).map(|item| deep_weight(Some(item), depth + 1)).sum::<u64>().max(1)
        }
        Val::Map(_) | Val::JsonMap(..) => {
            value.entries().unwrap_or_default().iter().take(10_000).map(|(_, item)| 1 + deep_weight(Some(item), depth + 1)).sum::<u64>().max(1)
        }
        other => tenth(other.weight()).max(1) - 1,
    }
}

/// What the size of a result costs.
pub fn cost_of_result(name: &str, result: &Val<'_>) -> u64 {
    match name {
        "replace" | "join" | "format" | "lists.range" | "flatten" | "split" => tenth(result.weight()),
        _ => 0,
    }
}

fn wrong<'a>(name: &str, values: &[Val<'a>]) -> Outcome<'a> {
    let types: Vec<_> = values.iter().map(|value| value.type_name().into_owned()).collect();
    Err(Error::failed(format!("no such overload: {name}({})", types.join(", "))))
}

fn failed<'a>(why: impl Into<String>) -> Outcome<'a> {
    Err(Error::failed(why))
}

const OVERFLOW: &str = "integer overflow";

/// Calls a function. The receiver of a member is the first value.
pub fn call<'a>(name: &str, values: Vec<Val<'a>>) -> Outcome<'a> {
    let flag = |flag: bool| Ok(Val::Bool(flag));
    match (name, values.as_slice()) {
        ("_==_", [a, b]) => flag(equal(a, b)),
        ("_!=_", [a, b]) => flag(!equal(a, b)),
        ("!_", [Val::Bool(a)]) => flag(!a),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => match (compare(a, b), name) {
            (Some(order), "_<_") => flag(order.is_lt()),
            (Some(order), "_<=_") => flag(order.is_le()),
            (Some(order), "_>_") => flag(order.is_gt()),
            (Some(order), _) => flag(order.is_ge()),
            (None, _) => wrong(name, &values),
        },
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(name, a, b),
        ("-_", [Val::Int(a)]) => a.checked_neg().map(Val::Int).ok_or_else(|| Error::failed(OVERFLOW)),
        ("-_", [Val::Double(a)]) => Ok(Val::Double(-a)),
        ("@in", [a, list @ (Val::List(_) | Val::JsonList(..))]) => flag(list.items().unwrap_or_default().iter().any(|item| equal(a, item))),
        ("@in", [a, map @ (Val::Map(_) | Val::JsonMap(..))]) => flag(map.entry(a).is_some()),
        ("_[_]" | "_[?_]", [of, index]) => element(of, index, name == "_[?_]"),
        ("size", [value]) => value.size().map(|size| Val::Int(size as i64)).map_or_else(|| wrong(name, &values), Ok),
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Val::Type(value.type_name())),
        ("bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint", [value]) => convert(name, value),
        ("optional.of", [value]) => Ok(Val::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => {
            let zero = matches!(value, Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) | Val::Duration(0))
                || matches!(value, Val::Double(number) if *number == 0.0)
                || value.size() == Some(0);
            Ok(if zero { Val::Optional(None) } else { Val::some(value.clone()) })
        }
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("hasValue", [Val::Optional(value)]) => flag(value.is_some()),
        ("value", [Val::Optional(Some(value))]) => Ok((**value).clone()),
        ("value", [Val::Optional(None)]) => failed("optional.none() dereference"),
        ("or" | "orOptional", [a @ Val::Optional(value), b]) => Ok(if value.is_some() { a.clone() } else { b.clone() }),
        ("orValue", [Val::Optional(value), other]) => Ok(value.as_ref().map_or_else(|| other.clone(), |value| (**value).clone())),
        (_, [Val::String(receiver), args @ ..]) if string_function(name) => strings(name, receiver, args, &values),
        (_, [Val::Timestamp(_) | Val::Duration(_), ..]) if name.starts_with("get") => times(name, &values),
        (_, [receiver @ (Val::List(_) | Val::JsonList(..)), args @ ..]) if !name.contains('.') => lists(name, receiver, args),
        (_, [Val::Opaque(receiver), args @ ..]) if !name.contains('.') => opaque(name, receiver, args, &values),
        _ => plain(name, &values),
    }
}

fn arithmetic<'a>(name: &str, a: &Val<'a>, b: &Val<'a>) -> Outcome<'a> {
    let overflow = || Error::failed(OVERFLOW);
    match (name, a, b) {
        ("_+_", Val::Int(a), Val::Int(b)) => a.checked_add(*b).map(Val::Int).ok_or_else(overflow),
        ("_-_", Val::Int(a), Val::Int(b)) => a.checked_sub(*b).map(Val::Int).ok_or_else(overflow),
        ("_*_", Val::Int(a), Val::Int(b)) => a.checked_mul(*b).map(Val::Int).ok_or_else(overflow),
        ("_/_", Val::Int(_), Val::Int(0)) | ("_/_", Val::Uint(_), Val::Uint(0)) => failed("division by zero"),
        ("_%_", Val::Int(_), Val::Int(0)) | ("_%_", Val::Uint(_), Val::Uint(0)) => failed("modulus by zero"),
        ("_/_", Val::Int(a), Val::Int(b)) => a.checked_div(*b).map(Val::Int).ok_or_else(overflow),
        ("_%_", Val::Int(a), Val::Int(b)) => a.checked_rem(*b).map(Val::Int).ok_or_else(overflow),
        ("_+_", Val::Uint(a), Val::Uint(b)) => a.checked_add(*b).map(Val::Uint).ok_or_else(|| Error::failed("unsigned integer overflow")),
        ("_-_", Val::Uint(a), Val::Uint(b)) => a.checked_sub(*b).map(Val::Uint).ok_or_else(|| Error::failed("unsigned integer overflow")),
        ("_*_", Val::Uint(a), Val::Uint(b)) => a.checked_mul(*b).map(Val::Uint).ok_or_else(|| Error::failed("unsigned integer overflow")),
        ("_/_", Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a / b)),
        ("_%_", Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a % b)),
        ("_+_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        ("_-_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a - b)),
        ("_*_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a * b)),
        ("_/_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a / b)),
        ("_+_", Val::String(a), Val::String(b)) => {
            if a.len() + b.len() > limits::VALUE_BYTES_MAX {
                return Err(Error::OutOfBudget);
            }
            Ok(Val::string(format!("{a}{b}")))
        }
        ("_+_", Val::Bytes(a), Val::Bytes(b)) => Ok(Val::Bytes([a.as_ref(), b.as_ref()].concat().into())),
        ("_+_", Val::List(_) | Val::JsonList(..), Val::List(_) | Val::JsonList(..)) => {
            let mut items = a.items().unwrap_or_default();
            items.extend(b.items().unwrap_or_default());
            Ok(Val::list(items))
        }
        ("_+_", Val::Duration(a), Val::Duration(b)) => a.checked_add(*b).map(Val::Duration).ok_or_else(overflow),
        ("_-_", Val::Duration(a), Val::Duration(b)) => a.checked_sub(*b).map(Val::Duration).ok_or_else(overflow),
        ("_+_", Val::Timestamp(a), Val::Duration(b)) | ("_+_", Val::Duration(b), Val::Timestamp(a)) => Ok(Val::Timestamp(a + i128::from(*b))),
        ("_-_", Val::Timestamp(a), Val::Duration(b)) => Ok(Val::Timestamp(a - i128::from(*b))),
        ("_-_", Val::Timestamp(a), Val::Timestamp(b)) => i64::try_from(a - b).map(Val::Duration).map_err(|_| overflow()),
        _ => wrong(name, &[a.clone(), b.clone()]),
    }
}

fn element<'a>(of: &Val<'a>, index: &Val<'a>, optional: bool) -> Outcome<'a> {
    let (of, optional) = match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => ((**inner).clone(), true),
        other => (other.clone(), optional),
    };
    let (found, why) = match (&of, index) {
        (Val::List(_) | Val::JsonList(..), index) => {
            let place = match index {
                Val::Int(place) => *place,
                Val::Uint(place) => i64::try_from(*place).unwrap_or(i64::MAX),
                Val::Double(place) if place.fract() == 0.0 => *place as i64,
                _ => return wrong("_[_]", &[of, index.clone()]),
            };
            (usize::try_from(place).ok().and_then(|place| of.item(place)), format!("index out of bounds: {place}"))
        }
        (Val::Map(_) | Val::JsonMap(..), key) => (of.entry(key), format!("no such key: {}", text(key).unwrap_or_default())),
        _ => return wrong("_[_]", &[of, index.clone()]),
    };
    match (found, optional) {
        (Some(found), true) => Ok(Val::some(found)),
        (None, true) => Ok(Val::Optional(None)),
        (Some(found), false) => Ok(found),
        (None, false) => failed(why),
    }
}

fn convert<'a>(name: &str, value: &Val<'a>) -> Outcome<'a> {
    let parse_error = |function: &str, given: &str| failed(format!("strconv.{function}: parsing {given:?}: invalid syntax"));
    match (name, value) {
        ("bool", Val::Bool(_)) | ("bytes", Val::Bytes(_)) | ("double", Val::Double(_)) | ("duration", Val::Duration(_)) => Ok(value.clone()),
        ("int", Val::Int(_)) | ("string", Val::String(_)) | ("timestamp", Val::Timestamp(_)) | ("uint", Val::Uint(_)) => Ok(value.clone()),
        ("bool", Val::String(given)) => match given.as_ref() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Val::Bool(false)),
            other => parse_error("ParseBool", other),
        },
        ("bytes", Val::String(given)) => Ok(Val::Bytes(given.as_bytes().into())),
        ("double", Val::Int(number)) => Ok(Val::Double(*number as f64)),
        ("double", Val::Uint(number)) => Ok(Val::Double(*number as f64)),
        ("double", Val::String(given)) => given.parse().map(Val::Double).or_else(|_| parse_error("ParseFloat", given)),
        ("duration", Val::String(given)) => match formats::go_duration_ns(given) {
            Some(nanos) => Ok(Val::Duration(nanos)),
            None => failed(format!("time: invalid duration {given:?}")),
        },
        ("duration", Val::Int(nanos)) => Ok(Val::Duration(*nanos)),
        ("int", Val::Uint(number)) => i64::try_from(*number).map(Val::Int).map_err(|_| Error::failed(OVERFLOW)),
        ("int", Val::Double(number)) if number.abs() < 9.2e18 => Ok(Val::Int(*number as i64)),
        ("int", Val::Double(_)) => failed(OVERFLOW),
        ("int", Val::String(given)) => given.parse().map(Val::Int).or_else(|_| parse_error("ParseInt", given)),
        ("int", Val::Timestamp(nanos)) => Ok(Val::Int((nanos / NANOS) as i64)),
        ("int", Val::Duration(nanos)) => Ok(Val::Int(*nanos)),
        ("uint", Val::Int(number)) => u64::try_from(*number).map(Val::Uint).map_err(|_| Error::failed("unsigned integer overflow")),
        ("uint", Val::Double(number)) if (0.0..1.8e19).contains(number) => Ok(Val::Uint(*number as u64)),
        ("uint", Val::Double(_)) => failed("unsigned integer overflow"),
        ("uint", Val::String(given)) => given.parse().map(Val::Uint).or_else(|_| parse_error("ParseUint", given)),
        ("timestamp", Val::String(given)) => match timestamp(given) {
            Some(nanos) => Ok(Val::Timestamp(nanos)),
            None => failed(format!("parsing time {given:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {given:?} as \"2006\"")),
        },
        ("timestamp", Val::Int(seconds)) => Ok(Val::Timestamp(i128::from(*seconds) * NANOS)),
        ("string", other) => text(other).map(Val::string).map_or_else(|| wrong(name, std::slice::from_ref(value)), Ok),
        _ => wrong(name, std::slice::from_ref(value)),
    }
}

fn string_function(name: &str) -> bool {
    matches!(
        name,
        "contains"
            | "startsWith"
            | "endsWith"
            | "matches"
            | "charAt"
            | "indexOf"
            | "lastIndexOf"
            | "lowerAscii"
            | "upperAscii"
            | "replace"
            | "split"
            | "substring"
            | "trim"
            | "reverse"
            | "format"
            | "find"
            | "findAll"
    )
}

fn strings<'a>(name: &str, receiver: &Cow<'a, str>, args: &[Val<'a>], values: &[Val<'a>]) -> Outcome<'a> {
    let whole = |value: &Val<'_>| if let Val::Int(number) = value { Some(*number) } else { None };
    let chars = || receiver.chars().collect::<Vec<char>>();
    let regex = |pattern: &str| compile(pattern).map_err(Error::Failed);
    Ok(match (name, args) {
        ("contains", [Val::String(part)]) => Val::Bool(receiver.contains(part.as_ref())),
        ("startsWith", [Val::String(part)]) => Val::Bool(receiver.starts_with(part.as_ref())),
        ("endsWith", [Val::String(part)]) => Val::Bool(receiver.ends_with(part.as_ref())),
        ("matches", [Val::String(pattern)]) => Val::Bool(regex(pattern)?.is_match(receiver)),
        ("find", [Val::String(pattern)]) => Val::string(regex(pattern)?.find(receiver).map(|found| found.as_str().to_string()).unwrap_or_default()),
        ("findAll", [Val::String(pattern), rest @ ..]) => {
            let limit = rest.first().and_then(whole).filter(|limit| *limit >= 0).map_or(usize::MAX, |limit| limit as usize);
            Val::list(regex(pattern)?.find_iter(receiver).take(limit).map(|found| Val::string(found.as_str().to_string())).collect())
        }
        ("charAt", [Val::Int(index)]) => {
            let chars = chars();
            match usize::try_from(*index).ok().filter(|index| *index <= chars.len()) {
                Some(index) => Val::string(chars.get(index).map(char::to_string).unwrap_or_default()),
                None => return failed(format!("index out of range: {index}")),
            }
        }
        ("indexOf" | "lastIndexOf", [Val::String(part), rest @ ..]) => {
            let (chars, part) = (chars(), part.chars().collect::<Vec<char>>());
            let last = chars.len().checked_sub(part.len());
            let places = || (0..=last.unwrap_or(0)).filter(|_| last.is_some()).filter(|at| chars[*at..].starts_with(&part));
            let offset = match rest.first().and_then(whole) {
                Some(offset) if offset < 0 || offset as usize > chars.len() => return failed(format!("index out of range: {offset}")),
                Some(offset) => Some(offset as usize),
                None => None,
            };
            let found = if name == "indexOf" {
                places().find(|at| offset.is_none_or(|offset| *at >= offset))
            } else {
                places().filter(|at| offset.is_none_or(|offset| *at <= offset)).last()
            };
            Val::Int(found.map_or(-1, |found| found as i64))
        }
        ("lowerAscii", []) => Val::string(receiver.to_ascii_lowercase()),
        ("upperAscii", []) => Val::string(receiver.to_ascii_uppercase()),
        ("trim", []) => Val::string(receiver.trim().to_string()),
        ("reverse", []) => Val::string(receiver.chars().rev().collect::<String>()),
        ("replace", [Val::String(from), Val::String(to), rest @ ..]) => {
            let limit = rest.first().and_then(whole).filter(|limit| *limit >= 0).map_or(usize::MAX, |limit| limit as usize);
            let count = if from.is_empty() { receiver.chars().count() + 1 } else { receiver.matches(from.as_ref()).count() }.min(limit);
            if receiver.len() + count.saturating_mul(to.len()) > limits::VALUE_BYTES_MAX {
                return Err(Error::OutOfBudget);
            }
            Val::string(receiver.replacen(from.as_ref(), to, limit))
        }
        ("split", [Val::String(separator), rest @ ..]) => {
            let limit = rest.first().and_then(whole).unwrap_or(-1);
            let parts: Vec<Val<'a>> = match (limit, separator.is_empty()) {
                (0, _) => vec![],
                (_, true) => receiver.chars().map(|c| Val::string(c.to_string())).collect(),
                (limit, false) if limit > 0 => {
                    receiver.splitn(limit as usize, separator.as_ref()).map(|part| Val::string(part.to_string())).collect()
                }
                _ => receiver.split(separator.as_ref()).map(|part| Val::string(part.to_string())).collect(),
            };
            Val::list(parts)
        }
        ("substring", [Val::Int(start), rest @ ..]) => {
            let chars = chars();
            let end = rest.first().and_then(whole).unwrap_or(chars.len() as i64);
            match (usize::try_from(*start), usize::try_from(end)) {
                (Ok(start), Ok(end)) if start <= end && end <= chars.len() => Val::string(chars[start..end].iter().collect::<String>()),
                (Ok(start), Ok(end)) if start > end => return failed(format!("invalid substring range. start: {start}, end: {end}")),
                _ => return failed(format!("index out of range: {}", if *start < 0 || *start > chars.len() as i64 { *start } else { end })),
            }
        }
        ("format", [list]) => Val::string(formatted(receiver, &list.items().ok_or_else(|| Error::failed("format takes a list"))?)?),
        _ => return wrong(name, values),
    })
}

/// `'%s is %d'.format([...])`.
fn formatted(pattern: &str, args: &[Val<'_>]) -> Result<String, Error> {
    fn shown(value: &Val<'_>) -> String {
        match value {
            Val::Null => "null".into(),
            Val::List(_) | Val::JsonList(..) => format!("[{}]", value.items().unwrap_or_default().iter().map(shown).collect::<Vec<_>>().join(", ")),
            Val::Map(_) | Val::JsonMap(..) => {
                let mut entries: Vec<String> =
                    value.entries().unwrap_or_default().iter().map(|(key, value)| format!("{}: {}", shown(key), shown(value))).collect();
                entries.sort();
                format!("{{{}}}", entries.join(", "))
            }
            Val::Type(name) => name.to_string(),
            other => text(other).unwrap_or_default(),
        }
    }
    let (mut out, mut args, mut chars) = (String::new(), args.iter(), pattern.chars().peekable());
    let mut index = 0;
    while let Some(c) = chars.next() {
        if out.len() > limits::VALUE_BYTES_MAX {
            return Err(Error::OutOfBudget);
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().map(|digits| digits.min(100));
        }
        let Some(verb) = chars.next() else { return Err(Error::failed("unexpected end of string")) };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.next() else { return Err(Error::failed(format!("index {index} out of range"))) };
        index += 1;
        let number = match arg {
            Val::Int(number) => Some(*number as f64),
            Val::Uint(number) => Some(*number as f64),
            Val::Double(number) => Some(*number),
            _ => None,
        };
        let bad = || Error::failed(format!("error during formatting: could not convert argument {} to %{verb}", arg.type_name()));
        match (verb, arg) {
            ('s', value) => out.push_str(&shown(value)),
            ('d', Val::Int(number)) => out.push_str(&number.to_string()),
            ('d', Val::Uint(number)) => out.push_str(&number.to_string()),
            ('d', Val::Double(number)) => out.push_str(&double_text(*number)),
            ('f', _) => out.push_str(&format!("{:.*}", precision.unwrap_or(6), number.ok_or_else(bad)?)),
            ('e', _) => {
                let text = format!("{:.*e}", precision.unwrap_or(6), number.ok_or_else(bad)?);
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let exponent: i32 = exponent.parse().unwrap_or(0);
                out.push_str(&format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()));
            }
            ('b', Val::Int(number)) => out.push_str(&format!("{number:b}")),
            ('b', Val::Bool(flag)) => out.push(if *flag { '1' } else { '0' }),
            ('o', Val::Int(number)) => out.push_str(&format!("{number:o}")),
            ('x', Val::Int(number)) => out.push_str(&format!("{number:x}")),
            ('X', Val::Int(number)) => out.push_str(&format!("{number:X}")),
            ('x', Val::String(text)) => out.extend(text.bytes().map(|byte| format!("{byte:02x}"))),
            ('X', Val::String(text)) => out.extend(text.bytes().map(|byte| format!("{byte:02X}"))),
            _ => return Err(bad()),
        }
    }
    Ok(out)
}

fn times<'a>(name: &str, values: &[Val<'a>]) -> Outcome<'a> {
    if let [Val::Duration(nanos)] = values {
        return Ok(Val::Int(match name {
            "getHours" => nanos / (3600 * NANOS as i64),
            "getMinutes" => nanos / (60 * NANOS as i64),
            "getSeconds" => nanos / NANOS as i64,
            _ => nanos / 1_000_000,
        }));
    }
    let (Some(Val::Timestamp(nanos)), zone) = (values.first(), values.get(1).and_then(Val::as_str)) else { return wrong(name, values) };
    let Ok(time) = jiff::Timestamp::from_nanosecond(*nanos) else { return failed("timestamp out of range") };
    let zone = match zone {
        None | Some("UTC") => jiff::tz::TimeZone::UTC,
        Some(zone) => match offset(zone).or_else(|| jiff::tz::TimeZone::get(zone).ok()) {
            Some(zone) => zone,
            None => return failed(format!("unknown time zone {zone}")),
        },
    };
    let time = time.to_zoned(zone);
    Ok(Val::Int(match name {
        "getDate" => i64::from(time.day()),
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDayOfWeek" => i64::from(time.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getFullYear" => i64::from(time.year()),
        "getHours" => i64::from(time.hour()),
        "getMilliseconds" => i64::from(time.millisecond()),
        "getMinutes" => i64::from(time.minute()),
        "getMonth" => i64::from(time.month()) - 1,
        "getSeconds" => i64::from(time.second()),
        _ => return wrong(name, values),
    }))
}

/// `-08:00`.
fn offset(zone: &str) -> Option<jiff::tz::TimeZone> {
    let (sign, rest) = match zone.as_bytes().first()? {
        b'-' => (-1, &zone[1..]),
        b'+' => (1, &zone[1..]),
        _ => (1, zone),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds = sign * (hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60);
    Some(jiff::tz::Offset::from_seconds(seconds).ok()?.to_time_zone())
}

fn lists<'a>(name: &str, receiver: &Val<'a>, args: &[Val<'a>]) -> Outcome<'a> {
    let items = receiver.items().unwrap_or_default();
    let order = |a: &Val<'_>, b: &Val<'_>| compare(a, b).unwrap_or(Ordering::Equal);
    Ok(match (name, args) {
        ("isSorted", []) => Val::Bool(items.windows(2).all(|pair| order(&pair[0], &pair[1]).is_le())),
        ("sum", []) => {
            let mut sum = match items.first() {
                Some(Val::Double(_)) => Val::Double(0.0),
                Some(Val::Uint(_)) => Val::Uint(0),
                Some(Val::Duration(_)) => Val::Duration(0),
                _ => Val::Int(0),
            };
            for item in &items {
                sum = arithmetic("_+_", &sum, item)?;
            }
            sum
        }
        ("min" | "max", []) => {
            let found = if name == "min" { items.iter().min_by(|a, b| order(a, b)) } else { items.iter().max_by(|a, b| order(a, b)) };
            found.cloned().ok_or_else(|| Error::failed(format!("{name} called on empty list")))?
        }
        ("indexOf" | "lastIndexOf", [wanted]) => {
            let mut places = items.iter().enumerate().filter(|(_, item)| equal(item, wanted)).map(|(i, _)| i as i64);
            Val::Int(if name == "indexOf" { places.next() } else { places.last() }.unwrap_or(-1))
        }
        ("slice", [Val::Int(start), Val::Int(end)]) => match (usize::try_from(*start), usize::try_from(*end)) {
            (Ok(start), Ok(end)) if start <= end && end <= items.len() => Val::list(items[start..end].to_vec()),
            _ => return failed(format!("cannot slice({start}, {end}), list is length {}", items.len())),
        },
        ("flatten", []) => Val::list(flat(items, 1)),
        ("flatten", [Val::Int(depth)]) if *depth >= 0 => Val::list(flat(items, *depth as usize)),
        ("sort", []) => {
            let mut sorted = items;
            sorted.sort_by(order);
            Val::list(sorted)
        }
        ("distinct", []) => {
            let mut kept: Vec<Val<'a>> = vec![];
            for item in items {
                if !kept.iter().any(|known| equal(known, &item)) {
                    kept.push(item);
                }
            }
            Val::list(kept)
        }
        ("reverse", []) => Val::list(items.into_iter().rev().collect()),
        ("first", []) => Val::Optional(items.into_iter().next().map(Rc::new)),
        ("last", []) => Val::Optional(items.into_iter().next_back().map(Rc::new)),
        ("join", rest) => {
            let separator = rest.first().and_then(Val::as_str).unwrap_or_default();
            let parts: Option<Vec<&str>> = items.iter().map(Val::as_str).collect();
            let parts = parts.ok_or_else(|| Error::failed("no such overload: join of what is no text"))?;
            if parts.iter().map(|part| part.len() + separator.len()).sum::<usize>() > limits::VALUE_BYTES_MAX {
                return Err(Error::OutOfBudget);
            }
            Val::string(parts.join(separator))
        }
        _ => return wrong(name, std::slice::from_ref(receiver)),
    })
}

fn flat<'a>(items: Vec<Val<'a>>, depth: usize) -> Vec<Val<'a>> {
    let mut out = vec![];
    for item in items {
        match item.items() {
            Some(inner) if depth > 0 => out.extend(flat(inner, depth - 1)),
            _ => out.push(item),
        }
    }
    out
}

fn parse_url(text: &str) -> Option<Url> {
    let (before_query, query) = text.split_once('?').unwrap_or((text, ""));
    let query = query.split('#').next().unwrap_or_default();
    let before_query = before_query.split('#').next().unwrap_or_default();
    if text.contains(|c: char| c.is_control() || c == ' ') {
        return None;
    }
    if let Some(path) = before_query.strip_prefix('/').filter(|path| !path.starts_with('/')) {
        return Some(Url { path: format!("/{path}"), query: query.into(), ..Url::default() });
    }
    let (scheme, rest) = before_query.split_once(':')?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let rest = rest.strip_prefix("//").filter(|_| valid)?;
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = host.rsplit('@').next().unwrap_or_default();
    let port_ok = port(host).is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    port_ok.then(|| Url { scheme: scheme.to_ascii_lowercase(), host: host.into(), path: path.into(), query: query.into() })
}

fn port(host: &str) -> Option<&str> {
    let after = host.rfind(']').map_or(host, |at| &host[at..]);
    after.rsplit_once(':').map(|(_, port)| port)
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    // Addresses of the one family written as the other are refused.
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        other => Some(other),
    }
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let (address, bits) = (parse_ip(address)?, bits.parse::<u8>().ok().filter(|_| bits.bytes().all(|byte| byte.is_ascii_digit()))?);
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)).to_be_bytes()),
    }
}

fn holds(network: (IpAddr, u8), address: IpAddr) -> bool {
    network.0.is_ipv4() == address.is_ipv4() && masked(network.0, network.1) == masked(address, network.1)
}

/// `major.minor.patch` and what follows; lenient forms have a `v`, leading zeros or fewer numbers.
fn parse_semver(text: &str, lenient: bool) -> Option<(u64, u64, u64, String)> {
    let text = if lenient { text.trim_start_matches('v') } else { text };
    let without_build = text.split('+').next()?;
    let (core, pre) = without_build.split_once('-').unwrap_or((without_build, ""));
    let mut numbers: Vec<&str> = core.split('.').collect();
    while lenient && numbers.len() < 3 {
        numbers.push("0");
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| digits && (lenient || text == "0" || !text.starts_with('0')))
    };
    let pre_ok = !without_build.ends_with('-') && pre.split('.').all(|part| pre.is_empty() || !part.is_empty());
    match numbers.as_slice() {
        [major, minor, patch] if pre_ok => Some((number(major)?, number(minor)?, number(patch)?, pre.to_string())),
        _ => None,
    }
}

fn order_semver(a: (&u64, &u64, &u64, &String), b: (&u64, &u64, &u64, &String)) -> Ordering {
    let pre = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => {
            for (a, b) in a.split('.').zip(b.split('.')) {
                let order = match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    _ => a.cmp(b),
                };
                if order != Ordering::Equal {
                    return order;
                }
            }
            a.split('.').count().cmp(&b.split('.').count())
        }
    };
    (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)).then_with(|| pre(a.3, b.3))
}

const FORMATS: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn format_problems(format: &str, text: &str) -> Vec<String> {
    let padded = || format!("{}a", text.trim_end_matches('-'));
    let known = |name: &str, why: &str| if formats::matches(name, text) { vec![] } else { vec![why.to_string()] };
    match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns1123_label(&padded()),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&padded()),
        "dns1035LabelPrefix" => names::dns1035_label(&padded()),
        "labelValue" => names::label_value(text),
        "uri" => {
            if parse_url(text).is_some() {
                vec![]
            } else {
                vec!["invalid URI".to_string()]
            }
        }
        "uuid" => known("uuid", "does not match the UUID format"),
        "byte" => known("byte", "invalid base64"),
        "date" => known("date", "invalid date"),
        _ => known("date-time", "invalid datetime"),
    }
}

fn opaque<'a>(name: &str, receiver: &Rc<Opaque<'a>>, args: &[Val<'a>], values: &[Val<'a>]) -> Outcome<'a> {
    let flag = |flag: bool| Ok(Val::Bool(flag));
    let string = |text: String| Ok(Val::string(text));
    let other = args.first().and_then(|value| if let Val::Opaque(opaque) = value { Some(&**opaque) } else { None });
    let given = args.first().and_then(Val::as_str);
    match (name, &**receiver, other) {
        ("getScheme", Opaque::Url(url), _) => string(url.scheme.clone()),
        ("getHost", Opaque::Url(url), _) => string(url.host.clone()),
        ("getHostname", Opaque::Url(url), _) => {
            let bare = port(&url.host).map_or(url.host.as_str(), |port| &url.host[..url.host.len() - port.len() - 1]);
            string(bare.trim_start_matches('[').trim_end_matches(']').to_string())
        }
        ("getPort", Opaque::Url(url), _) => string(port(&url.host).unwrap_or_default().to_string()),
        ("getEscapedPath", Opaque::Url(url), _) => string(url.path.clone()),
        ("getQuery", Opaque::Url(url), _) => {
            let mut map: Vec<(Val<'a>, Val<'a>)> = vec![];
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (key, value) = (Val::string(unquoted(key)), Val::string(unquoted(value)));
                match map.iter_mut().find(|(known, _)| equal(known, &key)) {
                    Some((_, values)) => *values = Val::list(values.items().unwrap_or_default().into_iter().chain([value]).collect()),
                    None => map.push((key, Val::list(vec![value]))),
                }
            }
            Ok(Val::Map(Rc::new(map)))
        }
        ("family", Opaque::Ip(address), _) => Ok(Val::Int(if address.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", Opaque::Ip(address), _) => flag(address.is_unspecified()),
        ("isLoopback", Opaque::Ip(address), _) => flag(address.is_loopback()),
        ("isLinkLocalMulticast", Opaque::Ip(address), _) => flag(link_local_multicast(*address)),
        ("isLinkLocalUnicast", Opaque::Ip(address), _) => flag(link_local(*address)),
        ("isGlobalUnicast", Opaque::Ip(address), _) => flag(
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && !link_local(*address)
                && !matches!(address, IpAddr::V4(v4) if v4.is_broadcast()),
        ),
        ("containsIP", Opaque::Cidr(address, bits), Some(Opaque::Ip(inner))) => flag(holds((*address, *bits), *inner)),
        ("containsIP", Opaque::Cidr(address, bits), None) => match given.and_then(parse_ip) {
            Some(inner) => flag(holds((*address, *bits), inner)),
            None => failed(format!("IP Address {:?} parse error during conversion from string", given.unwrap_or_default())),
        },
        ("containsCIDR", Opaque::Cidr(address, bits), inner) => {
            let inner = match inner {
                Some(Opaque::Cidr(address, bits)) => Some((*address, *bits)),
                _ => given.and_then(parse_cidr),
            };
            match inner {
                Some(inner) => flag(inner.1 >= *bits && holds((*address, *bits), inner.0)),
                None => failed(format!("network address parse error during conversion from string: {:?}", given.unwrap_or_default())),
            }
        }
        ("ip", Opaque::Cidr(address, _), _) => Ok(Val::opaque(Opaque::Ip(*address))),
        ("masked", Opaque::Cidr(address, bits), _) => Ok(Val::opaque(Opaque::Cidr(masked(*address, *bits), *bits))),
        ("prefixLength", Opaque::Cidr(_, bits), _) => Ok(Val::Int(i64::from(*bits))),
        ("string", _, _) => text(&Val::Opaque(receiver.clone())).map(Val::string).map_or_else(|| wrong(name, values), Ok),
        ("isInteger", Opaque::Quantity(quantity), _) => flag(quantity.is_whole()),
        ("asInteger", Opaque::Quantity(quantity), _) if quantity.is_whole() => Ok(Val::Int(quantity.value())),
        ("asInteger", Opaque::Quantity(_), _) => failed("cannot convert value to integer"),
        ("asApproximateFloat", Opaque::Quantity(quantity), _) => Ok(Val::Double(quantity.as_f64())),
        ("sign", Opaque::Quantity(quantity), _) => Ok(Val::Int(i64::from(quantity.sign()))),
        ("add" | "sub", Opaque::Quantity(quantity), _) => {
            let other = match (other, args.first()) {
                (Some(Opaque::Quantity(other)), _) => other.clone(),
                (_, Some(Val::Int(number))) => Quantity::from_units(*number, quantity.format()),
                _ => return wrong(name, values),
            };
            Ok(Val::opaque(Opaque::Quantity(if name == "add" { quantity.add(&other) } else { quantity.sub(&other) })))
        }
        ("compareTo", Opaque::Quantity(a), Some(Opaque::Quantity(b))) => Ok(Val::Int(a.cmp(b) as i64)),
        ("isGreaterThan", Opaque::Quantity(a), Some(Opaque::Quantity(b))) => flag(a > b),
        ("isLessThan", Opaque::Quantity(a), Some(Opaque::Quantity(b))) => flag(a < b),
        ("major", Opaque::Semver(number, ..), _) => Ok(Val::Int(*number as i64)),
        ("minor", Opaque::Semver(_, number, ..), _) => Ok(Val::Int(*number as i64)),
        ("patch", Opaque::Semver(_, _, number, _), _) => Ok(Val::Int(*number as i64)),
        ("compareTo" | "isGreaterThan" | "isLessThan", Opaque::Semver(a, b, c, d), Some(Opaque::Semver(e, f, g, h))) => {
            let order = order_semver((a, b, c, d), (e, f, g, h));
            match name {
                "compareTo" => Ok(Val::Int(order as i64)),
                "isGreaterThan" => flag(order.is_gt()),
                _ => flag(order.is_lt()),
            }
        }
        ("validate", Opaque::Format(format), _) => {
            let problems = format_problems(format, given.unwrap_or_default());
            Ok(if problems.is_empty() { Val::Optional(None) } else { Val::some(Val::list(problems.into_iter().map(Val::string).collect())) })
        }
        ("allowed", Opaque::Decision(allowed, _), _) => flag(*allowed),
        ("reason", Opaque::Decision(_, reason), _) => string(reason.clone()),
        ("errored", Opaque::Decision(..), _) => flag(false),
        ("error", Opaque::Decision(..), _) => string(String::new()),
        ("check", Opaque::Authorizer(authorizer, question), _) => {
            let (allowed, reason) = authorizer.check(&Question { verb: given.unwrap_or_default().into(), ..question.clone() });
            Ok(Val::opaque(Opaque::Decision(allowed, reason)))
        }
        (_, Opaque::Authorizer(authorizer, question), _) => {
            let mut question = question.clone();
            let given = given.unwrap_or_default().to_string();
            match name {
                "path" => question.path = given,
                "group" => question.group = given,
                "resource" => question.resource = given,
                "subresource" => question.subresource = given,
                "namespace" => question.namespace = given,
                "name" => question.name = given,
                "serviceAccount" => question.account = Some((given, args.get(1).and_then(Val::as_str).unwrap_or_default().to_string())),
                "fieldSelector" | "labelSelector" => {}
                _ => return wrong(name, values),
            }
            Ok(Val::opaque(Opaque::Authorizer(*authorizer, question)))
        }
        _ => wrong(name, values),
    }
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn unquoted(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Functions without a receiver.
fn plain<'a>(name: &str, values: &[Val<'a>]) -> Outcome<'a> {
    let flag = |flag: bool| Ok(Val::Bool(flag));
    let given = values.first().and_then(Val::as_str).unwrap_or_default();
    let lenient = matches!(values.get(1), Some(Val::Bool(true)));
    let unknown = |why: String| failed(why);
    match name {
        "url" => parse_url(given)
            .map(|url| Val::opaque(Opaque::Url(url)))
            .map_or_else(|| unknown(format!("URL parse error during conversion from string: parse {given:?}: invalid URI for request")), Ok),
        "isURL" => flag(parse_url(given).is_some()),
        "ip" => parse_ip(given).map(|address| Val::opaque(Opaque::Ip(address))).map_or_else(
            || unknown(format!("IP Address {given:?} parse error during conversion from string: ParseAddr({given:?}): unable to parse IP")),
            Ok,
        ),
        "isIP" => flag(parse_ip(given).is_some()),
        "ip.isCanonical" => match parse_ip(given) {
            Some(address) => flag(address.to_string() == given),
            None => unknown(format!("IP Address {given:?} parse error during conversion from string: ParseAddr({given:?}): unable to parse IP")),
        },
        "cidr" => parse_cidr(given)
            .map(|(address, bits)| Val::opaque(Opaque::Cidr(address, bits)))
            .map_or_else(|| unknown(format!("network address parse error during conversion from string: netip.ParsePrefix({given:?})")), Ok),
        "isCIDR" => flag(parse_cidr(given).is_some()),
        "quantity" => match Quantity::parse(given) {
            Ok(quantity) => Ok(Val::opaque(Opaque::Quantity(quantity))),
            Err(error) => failed(error.to_string()),
        },
        "isQuantity" => flag(Quantity::parse(given).is_ok()),
        "semver" => match parse_semver(given, lenient) {
            Some((a, b, c, d)) => Ok(Val::opaque(Opaque::Semver(a, b, c, d))),
            None => failed(format!("invalid semantic version {given:?}")),
        },
        "isSemver" => flag(parse_semver(given, lenient).is_some()),
        "format.named" => {
            Ok(FORMATS.iter().find(|known| **known == given).map_or(Val::Optional(None), |known| Val::some(Val::opaque(Opaque::Format(known)))))
        }
        _ if name.starts_with("format.") => {
            let known = FORMATS.iter().find(|known| Some(**known) == name.strip_prefix("format."));
            known.map(|known| Val::opaque(Opaque::Format(known))).map_or_else(|| wrong(name, values), Ok)
        }
        "jsonpatch.escapeKey" => Ok(Val::string(given.replace('~', "~0").replace('/', "~1"))),
        "base64.encode" => match values {
            [Val::Bytes(bytes)] => Ok(Val::string(formats::to_base64(bytes))),
            _ => wrong(name, values),
        },
        "base64.decode" => formats::base64(given).map(|bytes| Val::Bytes(bytes.into())).map_or_else(|| failed("illegal base64 data"), Ok),
        "strings.quote" => Ok(Val::string(format!("{given:?}"))),
        "matches" => match values {
            [Val::String(text), Val::String(pattern)] => compile(pattern).map(|regex| Val::Bool(regex.is_match(text))).map_err(Error::Failed),
            _ => wrong(name, values),
        },
        "lists.range" => match values {
            [Val::Int(count)] if (0..=100_000).contains(count) => Ok(Val::list((0..*count).map(Val::Int).collect())),
            [Val::Int(_)] => Err(Error::OutOfBudget),
            _ => wrong(name, values),
        },
        "sets.contains" | "sets.equivalent" | "sets.intersects" => {
            let [a, b] = values else { return wrong(name, values) };
            let (Some(a), Some(b)) = (a.items(), b.items()) else { return wrong(name, values) };
            let has = |list: &[Val<'_>], wanted: &Val<'_>| list.iter().any(|item| equal(item, wanted));
            flag(match name {
                "sets.contains" => b.iter().all(|item| has(&a, item)),
                "sets.intersects" => b.iter().any(|item| has(&a, item)),
                _ => b.iter().all(|item| has(&a, item)) && a.iter().all(|item| has(&b, item)),
            })
        }
        "math.greatest" | "math.least" => {
            let all = match values {
                [list @ (Val::List(_) | Val::JsonList(..))] => list.items().unwrap_or_default(),
                _ => values.to_vec(),
            };
            let order = |a: &&Val<'_>, b: &&Val<'_>| compare(a, b).unwrap_or(Ordering::Equal);
            let found = if name == "math.greatest" { all.iter().max_by(order) } else { all.iter().min_by(order) };
            found.cloned().map_or_else(|| failed(format!("{name}() argument must not be empty")), Ok)
        }
        _ if name.starts_with("math.") => match (name, values) {
            ("math.abs", [Val::Int(number)]) => number.checked_abs().map(Val::Int).ok_or_else(|| Error::failed(OVERFLOW)),
            ("math.sign", [Val::Int(number)]) => Ok(Val::Int(number.signum())),
            (_, [Val::Double(number)]) => Ok(match name {
                "math.ceil" => Val::Double(number.ceil()),
                "math.floor" => Val::Double(number.floor()),
                "math.round" => Val::Double(number.round()),
                "math.trunc" => Val::Double(number.trunc()),
                "math.abs" => Val::Double(number.abs()),
                "math.sign" => Val::Double(if *number == 0.0 { 0.0 } else { number.signum() }),
                "math.isNaN" => Val::Bool(number.is_nan()),
                "math.isInf" => Val::Bool(number.is_infinite()),
                "math.isFinite" => Val::Bool(number.is_finite()),
                _ => return wrong(name, values),
            }),
            _ => wrong(name, values),
        },
        _ => wrong(name, values),
    }
}
