//! What functions do: cel's standard library, its extensions for strings, lists, sets and numbers, and Kubernetes' own.

use super::{
    eval::{Error, Outcome, tenth},
    limits,
    value::{Opaque, Val, compare, equal},
};
use crate::{custom::formats, custom::pattern, merge::go_float, quantity::Quantity};
use std::{cmp::Ordering, rc::Rc};

pub mod format;
mod strings;
mod values;

use strings::{string_function, strings};
pub(crate) use values::parse_semver;
use values::{FORMATS, opaque, parse_cidr, parse_ip, parse_url};

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
        Val::Double(number) => go_float(*number),
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
        | "isURL" | "ip" | "isIP" | "cidr" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" | "charAt" | "format" | "strings.quote" => {
            values.iter().map(|value| tenth(value.weight())).sum()
        }
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
        ("or", [a @ Val::Optional(value), b]) => Ok(if value.is_some() { a.clone() } else { b.clone() }),
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
            Val::Int(if name == "indexOf" { places.next() } else { places.next_back() }.unwrap_or(-1))
        }
        ("slice", [Val::Int(start), Val::Int(end)]) => match (usize::try_from(*start), usize::try_from(*end)) {
            (Ok(start), Ok(end)) if start <= end && end <= items.len() => Val::list(items[start..end].to_vec()),
            (Ok(start), Ok(end)) if start > end => {
                return failed(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
            }
            (Ok(_), Ok(_)) => return failed(format!("cannot slice({start}, {end}), list is length {}", items.len())),
            _ => return failed(format!("cannot slice({start}, {end}), negative indexes not supported")),
        },
        ("flatten", []) => Val::list(flat(items, 1)),
        ("flatten", [Val::Int(depth)]) if *depth >= 0 => Val::list(flat(items, *depth as usize)),
        ("flatten", [Val::Int(_)]) => return failed("level must be non-negative"),
        ("unwrapOpt", []) => unwrapped(items),
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

/// What stands in options that hold something.
fn unwrapped(items: Vec<Val<'_>>) -> Val<'_> {
    Val::list(items.into_iter().filter_map(|item| if let Val::Optional(Some(value)) = item { Some((*value).clone()) } else { None }).collect())
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
        "strings.quote" => Ok(Val::string(strings::escaped(given))),
        "matches" => match values {
            [Val::String(text), Val::String(pattern)] => {
                pattern::compiled(pattern).map(|regex| Val::Bool(regex.is_match(text))).map_err(Error::Failed)
            }
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
        "optional.unwrap" => match values {
            [list] => Ok(unwrapped(list.items().unwrap_or_default())),
            _ => wrong(name, values),
        },
        _ => wrong(name, values),
    }
}
