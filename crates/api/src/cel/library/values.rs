//! Kubernetes' own values: URLs, addresses, versions, quantities, formats, and questions to the authorizer.

use super::{Outcome, failed, text, wrong};
use crate::{
    cel::value::{Opaque, Question, Url, Val, equal},
    custom::formats,
    names,
    quantity::Quantity,
    request::percent_decode,
};
use std::{cmp::Ordering, net::IpAddr, rc::Rc};

pub(super) fn parse_url(text: &str) -> Option<Url> {
    if !formats::matches("uri", text) {
        return None;
    }
    let text = text.split('#').next().unwrap_or_default();
    let (before_query, query) = text.split_once('?').unwrap_or((text, ""));
    let (scheme, rest) = if before_query.starts_with('/') { ("", before_query) } else { before_query.split_once(':')? };
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
        // What follows a scheme without a slash is no path.
        None => ("", if rest.starts_with('/') { rest } else { "" }),
    };
    let host = host.rsplit('@').next().unwrap_or_default();
    Some(Url { scheme: scheme.to_ascii_lowercase(), host: host.into(), path: path.into(), query: query.into() })
}

/// A path with everything escaped that must be. What is escaped already stays as it is.
fn escaped_path(path: &str) -> String {
    if path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&byte)) {
        return path.to_string();
    }
    let plain = percent_decode(path, false);
    let escape = |byte: u8| match byte {
        b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    plain.bytes().map(escape).collect()
}

fn port(host: &str) -> Option<&str> {
    let after = host.rfind(']').map_or(host, |at| &host[at..]);
    after.rsplit_once(':').map(|(_, port)| port)
}

pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    // Addresses of the one family written as the other are refused.
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        other => Some(other),
    }
}

pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
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
pub(crate) fn parse_semver(text: &str, lenient: bool) -> Option<(u64, u64, u64, String)> {
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

pub(super) const FORMATS: &[&str] = &[
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

pub(super) fn opaque<'a>(name: &str, receiver: &Rc<Opaque<'a>>, args: &[Val<'a>], values: &[Val<'a>]) -> Outcome<'a> {
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
        ("getEscapedPath", Opaque::Url(url), _) => string(escaped_path(&url.path)),
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
                (Some(Opaque::Quantity(other)), _) => *other,
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
