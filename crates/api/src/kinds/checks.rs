//! Checks that many kinds share: numbers, ports, addresses, keys, label maps, percentages. Each says what is wrong in
//! the words that Kubernetes' clients know.

use super::values::{entries, int, member, text};
use crate::{
    field::{Errors, Path, Reason},
    names,
};
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const IP_FORM: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR_FORM: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PERCENT_FORM: &str =
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// The items of a list with their places, and whether one before has the same key. Lists come from the network, as long as a body may
/// be: what is repeated MUST be found in one pass.
pub fn distinct<'a, T, K: Eq + Hash>(items: &'a [T], key: impl Fn(&'a T) -> K) -> impl Iterator<Item = (usize, &'a T, bool)> {
    let mut known = HashSet::with_capacity(items.len());
    items.iter().enumerate().map(move |(i, item)| (i, item, !known.insert(key(item))))
}
/// The items of a list by key, to look them up for as many others; of several with one key, the first.
pub fn by_key<'a, T, K: Eq + Hash>(items: impl IntoIterator<Item = &'a T>, key: impl Fn(&'a T) -> K) -> HashMap<K, &'a T> {
    let mut all = HashMap::new();
    for item in items {
        all.entry(key(item)).or_insert(item);
    }
    all
}
/// The same by name.
pub fn by_name<'a>(items: impl IntoIterator<Item = &'a Value>) -> HashMap<&'a str, &'a Value> {
    by_key(items, |item| text(item, "name"))
}

/// A number that is there must not be negative.
pub fn not_negative(parent: &Value, key: &str, path: &Path, errors: &mut Errors) {
    if let Some(number) = int(parent, key)
        && number < 0
    {
        errors.invalid(path.child(key), number, NOT_NEGATIVE);
    }
}
pub fn not_negatives(parent: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    for key in keys {
        not_negative(parent, key, path, errors);
    }
}
/// A string that is there must be one of a few.
pub fn one_of(parent: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    if let Some(Value::String(value)) = member(parent, key)
        && !supported.contains(&value.as_str())
    {
        errors.not_supported(path.child(key), value.as_str(), supported);
    }
}
/// A string must be one of a few, and nothing is none of them.
pub fn supported(parent: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    let value = text(parent, key);
    if !supported.contains(&value) {
        errors.not_supported(path.child(key), value, supported);
    }
}
/// A string must be there and be one of a few.
pub fn required_one_of(parent: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    if text(parent, key).is_empty() {
        errors.required(path.child(key), "");
    } else {
        one_of(parent, key, supported, path, errors);
    }
}
/// A string must be there. Gives whether it is.
pub fn required(parent: &Value, key: &str, path: &Path, errors: &mut Errors) -> bool {
    let missing = text(parent, key).is_empty();
    if missing {
        errors.required(path.child(key), "");
    }
    !missing
}
/// A string that is there and not empty is checked.
pub fn checked(parent: &Value, key: &str, path: &Path, check: impl Fn(&str) -> Vec<String>, errors: &mut Errors) {
    let value = text(parent, key);
    if !value.is_empty() {
        errors.invalid_all(&path.child(key), value, check(value));
    }
}
/// A string must be there and is checked.
pub fn required_checked(parent: &Value, key: &str, path: &Path, check: impl Fn(&str) -> Vec<String>, errors: &mut Errors) {
    if required(parent, key, path, errors) {
        checked(parent, key, path, check, errors);
    }
}
/// A value may not change. Empty and absent are the same.
pub fn immutable(new: Option<&Value>, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let said = |value: Option<&Value>| value.filter(|v| !super::values::is_empty(v)).cloned();
    if said(new) != said(old) {
        errors.invalid(path.clone(), new.cloned().unwrap_or(Value::Null), IMMUTABLE);
    }
}

/// The same for a structure, which is shown in the internal form of its type.
pub fn immutable_structure(type_: &str, new: Option<&Value>, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let said = |value: Option<&Value>| value.filter(|v| !super::values::is_empty(v)).cloned();
    if said(new) != said(old) {
        let shown = new.filter(|v| !v.is_null()).map_or(crate::internal::Tree::Leaf(Value::Null), |new| crate::internal::show(type_, new));
        errors.invalid_structure(path.clone(), &shown, IMMUTABLE);
    }
}

/// What is wrong with the name of a port.
pub fn port_name(name: &str) -> Vec<String> {
    let mut problems = vec![];
    if name.len() > 15 {
        problems.push("must be no more than 15 characters".into());
    }
    if name.is_empty() || !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}
pub fn is_port(number: i64) -> bool {
    (1..=65535).contains(&number)
}
/// A port number at `path`.
pub fn port_number(number: i64, path: &Path, errors: &mut Errors) {
    if !is_port(number) {
        errors.invalid(path.clone(), number, PORT_RANGE);
    }
}
/// A port by number or by name; absent counts as 0.
pub fn port_or_name(parent: &Value, key: &str, path: &Path, errors: &mut Errors) {
    let path = path.child(key);
    match parent.get(key) {
        Some(Value::String(name)) => errors.invalid_all(&path, name.as_str(), port_name(name)),
        other => port_number(other.and_then(Value::as_i64).unwrap_or(0), &path, errors),
    }
}
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// The protocol of a port, after defaults.
pub fn protocol(parent: &Value, path: &Path, errors: &mut Errors) {
    required_one_of(parent, "protocol", PROTOCOLS, path, errors);
}

/// A key of a ConfigMap or Secret.
pub fn config_key(key: &str) -> Vec<String> {
    let mut problems = vec![];
    if key.len() > 253 {
        problems.push("must be no more than 253 characters".into());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        problems.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    }
    if key == "." {
        problems.push("must not be '.'".into());
    } else if key == ".." {
        problems.push("must not be '..'".into());
    } else if key.starts_with("..") {
        problems.push("must not start with '..'".into());
    }
    problems
}
/// The name of an environment variable.
pub fn environment_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        vec![]
    } else {
        vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
    }
}
/// The name of an HTTP header.
pub fn http_header(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        vec![]
    } else {
        vec![
            "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')"
                .into(),
        ]
    }
}
/// A label: what is before and after a `*.`.
pub fn wildcard_subdomain(host: &str) -> Vec<String> {
    let form = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    match host.strip_prefix("*.") {
        Some(rest) if names::dns1123_subdomain(rest).is_empty() => vec![],
        _ => vec![form.into()],
    }
}
/// A path segment, for names that are no DNS names.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." | ".." => return vec![format!("may not be '{name}'")],
        _ => {}
    }
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}
/// Something in a list of labels: every key a qualified name, every value a label's value; errors are of the map.
pub fn labels(labels: Option<&Map<String, Value>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        errors.invalid_all(path, key.as_str(), names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(path, value, names::label_value(value));
    }
}
/// Annotations: keys are qualified names in lower case, all together within the limit.
pub fn annotations(annotations: Option<&Map<String, Value>>, path: &Path, errors: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.invalid_all(path, key.as_str(), names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > crate::limits::ANNOTATIONS_BYTES_MAX {
        errors.too_long(path.clone(), "", crate::limits::ANNOTATIONS_BYTES_MAX);
    }
}
/// A name with a domain before a slash, `example.com/thing`, where there must be one.
pub fn domain_prefixed(text: &str, path: &Path, errors: &mut Errors) {
    let Some((domain, rest)) = text.split_once('/').filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty()) else {
        return errors.invalid(path.clone(), text, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    errors.invalid_all(path, domain, names::dns1123_subdomain(domain));
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        errors.invalid(path.clone(), rest, "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')");
    }
}

/// Addresses that a load balancer reports at `path`: IP addresses, and names that are none.
/// `has_modes` says whether addresses say how they are used.
pub fn load_balancer_addresses(ingresses: &[Value], has_modes: bool, path: &Path, errors: &mut Errors) {
    for (i, ingress) in ingresses.iter().enumerate() {
        let path = path.index(i);
        let address = text(ingress, "ip");
        checked(ingress, "ip", &path, ip, errors);
        match member(ingress, "ipMode") {
            None if address.is_empty() || !has_modes => {}
            None => errors.required(path.child("ipMode"), "must be specified when `ip` is set"),
            Some(_) if address.is_empty() => errors.forbidden(path.child("ipMode"), "may not be specified when `ip` is not set"),
            Some(_) => one_of(ingress, "ipMode", &["Proxy", "VIP"], &path, errors),
        }
        let host = text(ingress, "hostname");
        if !host.is_empty() {
            errors.invalid_all(&path.child("hostname"), host, names::dns1123_subdomain(host));
            if sloppy_ip(host).is_some() {
                errors.invalid(path.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// An IP address in the forms that old objects may have (leading zeros).
pub fn sloppy_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let parts: Vec<&str> = text.split('.').collect();
    let octets =
        parts.iter().map(|p| if p.bytes().all(|b| b.is_ascii_digit()) { p.parse::<u8>().ok() } else { None }).collect::<Option<Vec<u8>>>()?;
    <[u8; 4]>::try_from(octets).ok().map(|o| IpAddr::V4(Ipv4Addr::from(o)))
}
/// What is wrong with an IP address.
pub fn ip(text: &str) -> Vec<String> {
    match (text.parse::<IpAddr>(), sloppy_ip(text)) {
        (Ok(IpAddr::V6(ip)), _) if ip.to_ipv4_mapped().is_some() => vec!["must not be an IPv4-mapped IPv6 address".into()],
        (Ok(_), _) => vec![],
        (Err(_), Some(_)) => vec!["must not have leading 0s".into()],
        (Err(_), None) => vec![IP_FORM.into()],
    }
}
/// The same, where only the one canonical way to write an address is good.
pub fn canonical_ip(text: &str) -> Vec<String> {
    let problems = ip(text);
    match text.parse::<IpAddr>() {
        Ok(ip) if problems.is_empty() && ip.to_string() != text => vec![format!("must be in canonical form (\"{ip}\")")],
        _ => problems,
    }
}
/// An address and prefix length, if that is what the text is.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let ip = sloppy_ip(address)?;
    let length = if length.bytes().all(|b| b.is_ascii_digit()) { length.parse::<u8>().ok()? } else { return None };
    (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, length))
}
/// The network's own address.
pub fn network_of(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0))),
    }
}
/// What is wrong with a network in CIDR form.
pub fn cidr(text: &str) -> Vec<String> {
    let Some((ip, length)) = parse_cidr(text) else { return vec![CIDR_FORM.into()] };
    let (address, digits) = text.split_once('/').unwrap_or_default();
    let problem = match ip {
        _ if address.parse::<IpAddr>().is_err() || (digits.len() > 1 && digits.starts_with('0')) => "must not have leading 0s in IP or prefix length",
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => "must not have an IPv4-mapped IPv6 address",
        _ if network_of(ip, length) != ip => "must not have bits set beyond the prefix length",
        _ => return vec![],
    };
    vec![problem.into()]
}
/// The same, where only the one canonical way to write a network is good.
pub fn canonical_cidr(text: &str) -> Vec<String> {
    let problems = cidr(text);
    match parse_cidr(text).map(|(ip, length)| format!("{ip}/{length}")) {
        Some(canonical) if problems.is_empty() && canonical != text => vec![format!("must be in canonical form ({canonical:?})")],
        _ => problems,
    }
}
/// An address that endpoints may not have: loopback, link-local and the like.
pub fn not_special_ip(text: &str) -> Vec<String> {
    let Some(ip) = sloppy_ip(text) else { return vec![] };
    let (unspecified, loopback, link_local, link_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_unspecified(), ip.is_loopback(), ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unspecified(), ip.is_loopback(), ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xffcf == 0xff02),
    };
    let mut problems = vec![];
    if unspecified {
        problems.push(format!("may not be unspecified ({text})"));
    }
    if loopback {
        problems.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    if link_local {
        problems.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if link_multicast {
        problems.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
    problems
}

/// What is odd about an address that is good.
pub fn ip_warning(text: &str, path: &Path) -> Option<String> {
    let ip = sloppy_ip(text)?;
    let usual = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    if usual != ip || text.parse::<IpAddr>().is_err() {
        return Some(format!("{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use \"{usual}\""));
    }
    (ip.to_string() != text).then(|| format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{ip}\")"))
}
/// The same of a network.
pub fn cidr_warning(text: &str, path: &Path) -> Option<String> {
    let (ip, length) = parse_cidr(text)?;
    let network = network_of(ip, length);
    let address = text.split('/').next().unwrap_or_default();
    if address.parse::<IpAddr>().is_err() || network != ip {
        let use_ = format!("{network}/{length}");
        return Some(format!("{path}: non-standard CIDR value {text:?} will be considered invalid in a future Kubernetes release: use {use_:?}"));
    }
    let canonical = format!("{network}/{length}");
    (ip.is_ipv6() && canonical != text).then(|| format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"))
}

/// The percentage that a string like `25%` says.
pub fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
}
/// A count or a percentage, not negative.
pub fn count_or_percent(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::String(text) if percent(value).is_none() => errors.invalid(path.clone(), text.as_str(), PERCENT_FORM),
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => errors.invalid(path.clone(), value.clone(), NOT_NEGATIVE),
        _ => {}
    }
}
/// A percentage is not more than 100.
pub fn not_over_100_percent(value: &Value, path: &Path, errors: &mut Errors) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.invalid(path.clone(), value.clone(), "must not be greater than 100%");
    }
}
/// The number that a count or percentage says, the percent sign left out; absent is 0, and so is what is no number.
pub fn plain_number(value: Option<&Value>) -> i64 {
    let plain = |v: &Value| v.as_str()?.parse().ok();
    value.map_or(0, |v| v.as_i64().or_else(|| percent(v)).or_else(|| plain(v)).unwrap_or(0))
}

/// A quantity at `path` that must not be negative. Gives it, if it is a quantity.
pub fn quantity_not_negative(value: &Value, path: &Path, errors: &mut Errors) -> Option<crate::quantity::Quantity> {
    let quantity = crate::quantity::Quantity::from_value(value).ok()?;
    if quantity.sign() < 0 {
        errors.invalid(path.clone(), quantity.to_string(), NOT_NEGATIVE);
    }
    Some(quantity)
}

/// `Not found` of a name, with the value shown.
pub fn not_found(path: Path, name: &str, detail: &str, errors: &mut Errors) {
    errors.push(Reason::NotFound, path, Some(name.into()), detail);
}
/// Every string of a map member as an entry (keys that hold odd values are skipped).
pub fn text_entries<'a>(parent: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    entries(parent, key).map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_repeated_is_told_once_for_each_time() {
        let items = ["a", "b", "a", "c", "a"];
        let repeated: Vec<usize> = distinct(&items, |item| *item).filter(|(.., again)| *again).map(|(i, ..)| i).collect();
        assert_eq!(repeated, [2, 4]);
        let items = [json!({"name": "a", "x": 1}), json!({"name": "b"}), json!({"name": "a", "x": 2}), json!({"x": 3})];
        let named = by_name(&items);
        assert_eq!((named.len(), &named["a"]["x"], &named[""]["x"]), (3, &json!(1), &json!(3)));
    }
}
