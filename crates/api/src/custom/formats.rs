//! The string formats that schemas of custom resources may name, and whether a string has one.

use crate::{
    names,
    structure::{Precision, canonical_time},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use regex::Regex;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

/// The formats that are known. Others are allowed, mean nothing, and are warned about.
pub const KNOWN: &[&str] = &[
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "date-time",
    "datetime",
    "double",
    "duration",
    "email",
    "float",
    "hexcolor",
    "hostname",
    "int32",
    "int64",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8s-long-name",
    "k8s-short-name",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// A format's name without the dashes, which do not count in it.
fn plain(format: &str) -> String {
    format.replace('-', "")
}

/// Whether a format is known.
pub fn is_known(format: &str) -> bool {
    let format = plain(format);
    KNOWN.iter().any(|known| plain(known) == format)
}

/// The formats that are a shape and nothing else, by their plain names.
const SHAPES: &[(&str, &str)] = &[
    ("bsonobjectid", "^[0-9a-fA-F]{24}$"),
    ("byte", "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$"),
    ("hexcolor", "^#?(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    ("rgbcolor", r"^rgb\(\s*(?:0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5])\s*(?:,\s*(?:0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5])\s*){2}\)$"),
    ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
    ("uuid", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
    ("uuid3", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
    ("uuid4", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
    ("uuid5", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
    // One label with at most one dash, behind its first character; or labels and a top level domain of letters.
    (
        "hostname",
        r"^(?:[a-zA-Z0-9\p{S}\p{L}](?:-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?|(?:[a-zA-Z0-9\p{S}\p{L}](?:[a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?\.)+[a-zA-Z\p{L}]{2,63})$",
    ),
    ("timeofday", r"^(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:.\d+)?(?:z|[+-]\d{2}:\d{2})$"),
    ("cardnumber", r"^(?:4\d{12}(?:\d{3})?|5[1-5]\d{14}|6(?:011|5\d\d)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|(?:2131|1800|35\d{3})\d{11})$"),
];

static COMPILED: LazyLock<BTreeMap<&str, Regex>> =
    LazyLock::new(|| SHAPES.iter().map(|(name, shape)| (*name, Regex::new(shape).expect("our own shapes compile"))).collect());

fn has_shape(name: &str, text: &str) -> bool {
    COMPILED.get(name).is_none_or(|shape| shape.is_match(text))
}

/// Whether `text` has the format; true for one that is not known.
pub fn matches(format: &str, text: &str) -> bool {
    let format = plain(format);
    match format.as_str() {
        "cidr" => cidr(text),
        "creditcard" => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            let numbers = digits.bytes().rev().map(|digit| u32::from(digit - b'0')).enumerate();
            has_shape("cardnumber", &digits) && numbers.map(|(i, d)| if i % 2 == 1 { d * 2 / 10 + d * 2 % 10 } else { d }).sum::<u32>() % 10 == 0
        }
        "date" => date(text),
        "datetime" => {
            let text = text.to_ascii_lowercase();
            text.split_once('t').is_some_and(|(day, time)| date(day) && has_shape("timeofday", time))
        }
        "duration" => duration_ns(text).is_some(),
        "email" => email(text),
        "hostname" => text.len() <= 255 && text.split('.').all(|label| label.len() <= 63) && has_shape("hostname", text),
        "ipv4" => text.contains('.') && text.parse::<IpAddr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<IpAddr>().is_ok(),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "mac" => mac(text),
        "uri" => uri(text),
        shape if KNOWN.contains(&shape) => has_shape(shape, text),
        _ => true,
    }
}

fn date(text: &str) -> bool {
    text.len() == 10 && canonical_time(&format!("{text}T00:00:00Z"), Precision::Seconds).is_ok()
}

/// `user@host`, also as `Some Body <user@host>`.
fn email(text: &str) -> bool {
    let address = match text.trim().strip_suffix('>').map(|inner| inner.rsplit_once('<')) {
        Some(Some((_, address))) => address,
        Some(None) => return false,
        None => text.trim(),
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || "()<>[]:;@\\,\"".contains(c);
    address.rsplit_once('@').is_some_and(|(user, host)| {
        [user, host].iter().all(|part| !part.is_empty() && !part.contains(odd) && part.split('.').all(|atom| !atom.is_empty()))
    })
}

/// An absolute URI, or a path from the root.
fn uri(text: &str) -> bool {
    let escapes =
        |text: &str| text.split('%').skip(1).all(|after| after.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)));
    let scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let rest = match text.split_once(':') {
        _ if text.starts_with('/') => text,
        Some((name, rest)) if scheme(name) => rest,
        _ => return false,
    };
    let host = rest.strip_prefix("//").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default()).filter(|_| !text.starts_with('/'));
    !text.contains(char::is_control) && escapes(rest) && host.is_none_or(host_and_port)
}

/// `user@host:port`, with a number as port.
fn host_and_port(text: &str) -> bool {
    let host = text.rsplit('@').next().unwrap_or_default();
    let after = host.rfind(']').map_or(host, |at| &host[at + 1..]);
    let port = after.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    let closed = host.starts_with('[') == host.contains(']') && (!host.starts_with('[') || after.is_empty() || after.starts_with(':'));
    closed && port.bytes().all(|byte| byte.is_ascii_digit()) && !text.contains([' ', '<', '>', '"'])
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let fits = |max: u8| bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|bits| bits <= max);
    (address.parse::<Ipv4Addr>().is_ok() && fits(32)) || (address.parse::<Ipv6Addr>().is_ok() && fits(128))
}

/// Six, eight or twenty bytes, in pairs of digits or (with dots) in fours.
fn mac(text: &str) -> bool {
    let (separator, digits) = if text.contains('.') { ('.', 4) } else { (if text.contains('-') { '-' } else { ':' }, 2) };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len() * digits / 2, 6 | 8 | 20) && parts.iter().all(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The characters of a book's number, without what separates them.
fn book_number(text: &str) -> Vec<char> {
    text.chars().filter(|c| *c != '-' && !c.is_whitespace()).collect()
}

fn isbn10(text: &str) -> bool {
    let number = book_number(text);
    let digit = |(i, c): (usize, &char)| if *c == 'X' && i == 9 { Some(10) } else { c.to_digit(10) };
    let digits: Option<Vec<u32>> = number.iter().enumerate().map(digit).collect();
    digits.is_some_and(|digits| digits.len() == 10 && digits.iter().zip((1..=10).rev()).map(|(d, w)| d * w).sum::<u32>() % 11 == 0)
}

fn isbn13(text: &str) -> bool {
    let digits: Option<Vec<u32>> = book_number(text).into_iter().map(|c| c.to_digit(10)).collect();
    digits.is_some_and(|digits| {
        digits.len() == 13 && digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { d * 3 }).sum::<u32>() % 10 == 0
    })
}

/// The bytes of a base64 text.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}
/// Bytes as base64.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A duration as Go writes it (`1h30m`, `-1.5s`, `0`) or in words (`2 weeks`), in nanoseconds.
pub fn duration_ns(text: &str) -> Option<i64> {
    go_duration_ns(text).or_else(|| worded_duration_ns(text))
}

/// A duration as Go writes it, in nanoseconds.
pub fn go_duration_ns(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..end].parse().ok().filter(|_| rest[..end].bytes().any(|b| b.is_ascii_digit()))?;
        rest = &rest[end..];
        let units = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
        let (unit, factor) = units
            .iter()
            .find(|(unit, _)| rest.starts_with(unit) && rest[unit.len()..].chars().next().is_none_or(|c| c.is_ascii_digit() || c == '.'))?;
        total += amount * factor;
        rest = &rest[unit.len()..];
    }
    (total <= i64::MAX as f64).then_some(if negative { -total } else { total } as i64)
}

/// The sum of all that has a unit in a text, whatever else stands there.
fn worded_duration_ns(text: &str) -> Option<i64> {
    // The last word of a unit may go on: `minutes`.
    const UNITS: &[(&[&str], i64)] = &[
        (&["ns", "nano"], 1),
        (&["us", "µs", "micro"], 1_000),
        (&["ms", "milli"], 1_000_000),
        (&["s", "sec"], 1_000_000_000),
        (&["m", "min"], 60_000_000_000),
        (&["h", "hr", "hour"], 3_600_000_000_000),
        (&["d", "day"], 86_400_000_000_000),
        (&["w", "wk", "week"], 604_800_000_000_000),
    ];
    let mut total: Option<i64> = None;
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (amount, after) = rest.split_at(digits);
        let after = after.trim_start();
        let word = after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len());
        let unit = after[..word].to_lowercase();
        for (words, factor) in UNITS.iter().filter(|_| !unit.is_empty()) {
            if words.contains(&unit.as_str()) || words.last().is_some_and(|last| unit.starts_with(last)) {
                let amount: i64 = amount.parse().ok()?;
                total = Some(total.unwrap_or(0).wrapping_add(amount.wrapping_mul(*factor)));
            }
        }
        rest = &after[word..];
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2024-01-01T00:00:00.5+02:00", "yesterday"),
            ("date", "2024-02-29", "2024-13-01"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "xyz"),
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("cidr", "fd00::/8", "1.2.3.4"),
            ("byte", "AAE=", "!!"),
            ("duration", "1h30m", "long"),
            ("duration", "2 weeks", "h"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("k8s-short-name", "abc", "A_b"),
            ("isbn", "0-306-40615-2", "0-306-40615-3"),
            ("uri", "http://a.b/", "a b"),
            ("uri", "foo:bar", "http://a b/"),
            ("uri", "/a b", "/%zz"),
            ("uri", "https://u:p@[::1]:80/a b?c#d", "https://a:b:c/"),
            ("date-time", "2024-01-01T23:59:59.123z", "2024-01-01T24:00:00Z"),
            ("datetime", "2024-01-01t00:00:00+99:99", "2024-01-01T00:00:60Z"),
            ("hostname", "f-oobar", "foo-bar"),
            ("hostname", "a.example.com", "1.2.3.4"),
            ("ipv4", "::ffff:1.2.3.4", "::1"),
            ("ipv6", "::ffff:1.2.3.4", "1.2.3.4"),
            ("byte", "AAEC", ""),
            ("ssn", "123456789", "12-345-6789"),
            ("uuid", "123e4567e89b-12d3-a456-426614174000", "123e-4567e89b-12d3-a456-426614174000"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("rgbcolor", "rgb(1, 2,255)", "rgb(1,2,3,4)"),
            ("mac", "0011.2233.4455", "0011.2233"),
            ("duration", "about 1 day 2 hours", "1 fortnight"),
            ("email", "Some Body <a@b>", "a@b@c"),
            ("isbn10", "0-8044-2957-X", "X-8044-2957-0"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("k8sshortname", "abc", "a.b"),
        ] {
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("nonsense", "anything"));
        assert_eq!(go_duration_ns("-1.5s"), Some(-1_500_000_000));
    }
}
