//! The string formats that schemas of custom resources may name, and whether a string has one.

use crate::{
    names,
    structure::{Precision, canonical_base64, canonical_time},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// Whether `text` has the format; true for one that is not known.
pub fn matches(format: &str, text: &str) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match format {
        "bsonobjectid" => text.len() == 24 && hex(text),
        "byte" => canonical_base64(text).is_ok(),
        "cidr" => cidr(text),
        "creditcard" => {
            let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
            (12..=19).contains(&digits.len())
                && text.chars().all(|c| c.is_ascii_digit() || matches!(c, ' ' | '-'))
                && digits.iter().rev().enumerate().map(|(i, d)| if i % 2 == 1 { d * 2 / 10 + d * 2 % 10 } else { *d }).sum::<u32>() % 10 == 0
        }
        "date" => text.len() == 10 && canonical_time(&format!("{text}T00:00:00Z"), Precision::Seconds).is_ok(),
        "date-time" | "datetime" => canonical_time(&text.to_ascii_uppercase(), Precision::Seconds).is_ok(),
        "duration" => duration_ns(text).is_some(),
        "email" => text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@') && !text.contains(char::is_whitespace) && !host.starts_with('.')
        }),
        "hexcolor" => hex(text.strip_prefix('#').unwrap_or(text)) && matches!(text.trim_start_matches('#').len(), 3 | 6),
        "hostname" => {
            text.len() <= 253
                && text.split('.').all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                })
        }
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "k8s-long-name" => names::dns1123_subdomain(text).is_empty(),
        "k8s-short-name" => names::dns1123_label(text).is_empty(),
        "mac" => mac(text),
        "rgbcolor" => text
            .trim_start_matches("rgb(")
            .strip_suffix(')')
            .is_some_and(|inner| text.starts_with("rgb(") && inner.split(',').filter(|part| part.trim().parse::<u8>().is_ok()).count() == 3),
        "ssn" => {
            let parts: Vec<&str> = text.split(['-', ' ']).collect();
            parts.len() == 3 && parts.iter().zip([3, 2, 4]).all(|(part, length)| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))
        }
        "uri" => {
            let scheme = text.split(':').next().unwrap_or_default();
            let absolute = text.contains(':') && scheme.starts_with(|c: char| c.is_ascii_alphabetic());
            (absolute || text.starts_with('/')) && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid(format, text),
        _ => true,
    }
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let fits = |max: u8| bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|bits| bits <= max);
    (address.parse::<Ipv4Addr>().is_ok() && fits(32)) || (address.parse::<Ipv6Addr>().is_ok() && fits(128))
}

fn uuid(format: &str, text: &str) -> bool {
    let digits: String = text.to_ascii_lowercase().replace('-', "");
    let shaped = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && (text.len() == 32 || text.len() == 36);
    let version = digits.chars().nth(12);
    shaped
        && match format {
            "uuid3" => version == Some('3'),
            "uuid4" => version == Some('4') && digits.chars().nth(16).is_some_and(|c| "89ab".contains(c)),
            "uuid5" => version == Some('5') && digits.chars().nth(16).is_some_and(|c| "89ab".contains(c)),
            _ => true,
        }
}

fn mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn isbn10(text: &str) -> bool {
    let digits: Vec<u32> =
        text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| if c == 'X' { 10 } else { c.to_digit(10).unwrap_or(99) }).collect();
    digits.len() == 10 && digits.iter().all(|d| *d <= 10) && digits.iter().zip((1..=10).rev()).map(|(d, w)| d * w).sum::<u32>() % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10).unwrap_or(99)).collect();
    digits.len() == 13
        && digits.iter().all(|d| *d <= 9)
        && digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { d * 3 }).sum::<u32>() % 10 == 0
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

fn worded_duration_ns(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let amount: f64 = text[..digits].parse().ok()?;
    let seconds = match text[digits..].trim() {
        "ns" | "nano" | "nanoseconds" => 1e-9,
        "us" | "µs" | "micro" | "microseconds" => 1e-6,
        "ms" | "milli" | "milliseconds" => 1e-3,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        "w" | "wk" | "week" | "weeks" => 604800.0,
        _ => return None,
    };
    Some((amount * seconds * 1e9) as i64)
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
        ] {
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("nonsense", "anything"));
        assert_eq!(go_duration_ns("-1.5s"), Some(-1_500_000_000));
    }
}
