//! Functions of strings, `format` among them.

use super::{Error, Outcome, Val, double_text, failed, limits, text, wrong};
use crate::custom::pattern;
use std::borrow::Cow;

pub(super) fn string_function(name: &str) -> bool {
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
            | "format"
            | "find"
            | "findAll"
    )
}

pub(super) fn strings<'a>(name: &str, receiver: &Cow<'a, str>, args: &[Val<'a>], values: &[Val<'a>]) -> Outcome<'a> {
    let whole = |value: &Val<'_>| if let Val::Int(number) = value { Some(*number) } else { None };
    let chars = || receiver.chars().collect::<Vec<char>>();
    let regex = |pattern: &str| pattern::compiled(pattern).map_err(Error::Failed);
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
                places().rfind(|at| offset.is_none_or(|offset| *at <= offset))
            };
            Val::Int(found.map_or(-1, |found| found as i64))
        }
        ("lowerAscii", []) => Val::string(receiver.to_ascii_lowercase()),
        ("upperAscii", []) => Val::string(receiver.to_ascii_uppercase()),
        ("trim", []) => Val::string(receiver.trim().to_string()),
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
