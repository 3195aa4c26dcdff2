//! Functions of strings, `format` among them.

use super::{Error, Outcome, Val, failed, format, limits, wrong};
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
        ("format", [list]) => Val::string(format::formatted(receiver, &list.items().ok_or_else(|| Error::failed("format takes a list"))?)?),
        _ => return wrong(name, values),
    })
}

/// `strings.quote`: a text as one would write it in an expression.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn texts_are_written_as_in_expressions() {
        assert_eq!(super::escaped("a\u{7}\u{8}\u{b}\u{c}\n\r\t\\\"'\u{200b}é"), "\"a\\a\\b\\v\\f\\n\\r\\t\\\\\\\"'\u{200b}é\"");
    }
}
