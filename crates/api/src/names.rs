//! The rules for names: objects, labels, annotations, finalizers. Each check gives what is wrong, in Kubernetes' words.
//!
//! The checks are written as scans, not regular expressions: they run on every label of every write.

use crate::kind::NameRule;

const LABEL_CHARS_MAX: usize = 63;
const SUBDOMAIN_CHARS_MAX: usize = 253;

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}
fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}
/// Whether `text` begins and ends with `edge` and holds only `edge` and `inner` bytes.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&a), Some(&z)) if edge(a) && edge(z)) && bytes.iter().all(|&b| edge(b) || inner.contains(&b))
}
fn is_label(text: &str) -> bool {
    shaped(text, lower, b"-")
}

fn explain(what: &str, examples: &[&str], pattern: &str) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

/// RFC 1123 label.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut problems = too_long(text, LABEL_CHARS_MAX, "characters");
    if !is_label(text) {
        problems.push(if shaped(text, lower, b"-.") && is_subdomain(text) {
            "must not contain dots".to_string()
        } else {
            explain(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                &["my-name", "123-abc"],
                "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            )
        });
    }
    problems
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// RFC 1123 subdomain.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_CHARS_MAX, "characters");
    if !is_subdomain(text) {
        problems.push(explain(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        ));
    }
    problems
}

/// The same with underscores, which search lists of resolvers may have.
pub fn dns1123_subdomain_with_underscores(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_CHARS_MAX, "characters");
    if !text.split('.').all(|label| shaped(label.strip_prefix('_').unwrap_or(label), lower, b"-_")) {
        problems.push(explain(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        ));
    }
    problems
}

/// RFC 1035 label.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut problems = too_long(text, LABEL_CHARS_MAX, "characters");
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        problems.push(explain(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            &["my-name", "abc-123"],
            "[a-z]([-a-z0-9]*[a-z0-9])?",
        ));
    }
    problems
}

fn too_long(text: &str, max: usize, unit: &str) -> Vec<String> {
    if text.len() > max { vec![format!("must be no more than {max} {unit}")] } else { vec![] }
}

const NAME_PATTERN: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// `prefix/name`: keys of labels and annotations, finalizers, conditions, extended resources.
pub fn qualified_name(text: &str) -> Vec<String> {
    let characters = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut parts = text.split('/');
    let (prefix, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (None, name),
        (Some(prefix), Some(name), None) => (Some(prefix), name),
        _ => {
            let whole = explain(&format!("a valid label key {characters}"), &examples, NAME_PATTERN);
            return vec![format!("{whole} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    let mut problems = vec![];
    match prefix {
        Some("") => problems.push("prefix part must be non-empty".to_string()),
        Some(prefix) => problems.extend(dns1123_subdomain(prefix).into_iter().map(|p| format!("prefix part {p}"))),
        None => {}
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_CHARS_MAX {
        problems.push(format!("name part must be no more than {LABEL_CHARS_MAX} bytes"));
    }
    if !shaped(name, alphanumeric, b"-_.") {
        problems.push(explain(&format!("name part {characters}"), &examples, NAME_PATTERN));
    }
    problems
}

/// Value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut problems = too_long(text, LABEL_CHARS_MAX, "bytes");
    if !text.is_empty() && !shaped(text, alphanumeric, b"-_.") {
        problems.push(explain(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["MyValue", "my_value", "12345"],
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        ));
    }
    problems
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_CHARS_MAX, "characters");
    if text.is_empty() || !text.bytes().all(|b| alphanumeric(b) || b"-_.".contains(&b)) {
        problems.push(explain(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            &["key.name", "KEY_NAME", "key-name"],
            "[-._a-zA-Z0-9]+",
        ));
    } else if text == "." {
        problems.push("must not be '.'".into());
    } else if text == ".." {
        problems.push("must not be '..'".into());
    } else if text.starts_with("..") {
        problems.push("must not start with '..'".into());
    }
    problems
}

/// The name of a container or Service port (`http`, `metrics-2`).
pub fn port_name(text: &str) -> Vec<String> {
    let mut problems = vec![];
    if text.len() > 15 {
        problems.push("must be no more than 15 characters".to_string());
    }
    if !text.bytes().all(|b| lower(b) || b == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}

/// A path segment: anything but `.`, `..`, and text with `/` or `%`.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    path_segment_prefix(text)
}

fn path_segment_prefix(text: &str) -> Vec<String> {
    ["/", "%"].into_iter().filter(|c| text.contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// What is wrong with a name under a rule; empty if nothing. `prefix` is for `generateName`, whose end may be a hyphen.
pub fn check_name(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = match name.strip_suffix('-') {
        Some(stem) if prefix && rule != NameRule::PathSegment => {
            masked = format!("{stem}a");
            &masked
        }
        _ => name,
    };
    match rule {
        NameRule::Subdomain => dns1123_subdomain(name),
        NameRule::Label => dns1123_label(name),
        NameRule::Label1035 => dns1035_label(name),
        NameRule::PathSegment if prefix => path_segment_prefix(name),
        NameRule::PathSegment => path_segment(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_rule() {
        for (rule, good, bad) in [
            (NameRule::Subdomain, &["a", "a.b", "1-a"][..], &["", "A", "-a", "a-", "a..b", "a_b", "ä"][..]),
            (NameRule::Label, &["a", "1a"], &["a.b", "", "a-"]),
            (NameRule::Label1035, &["a", "a-1"], &["1a", "a.b", "-a"]),
            (NameRule::PathSegment, &["system:A_b", "x y"], &["..", ".", "a/b", "a%b"]),
        ] {
            assert!(good.iter().all(|n| check_name(rule, n, false).is_empty()), "{rule:?}");
            assert!(bad.iter().all(|n| !check_name(rule, n, false).is_empty()), "{rule:?}");
        }
        assert!(check_name(NameRule::Subdomain, "web-", true).is_empty());
        assert_eq!(check_name(NameRule::Label, "a.b", false), ["must not contain dots"]);
        assert_eq!(check_name(NameRule::Label, &"a".repeat(64), false), ["must be no more than 63 characters"]);
    }

    #[test]
    fn labels() {
        assert!(qualified_name("example.com/App_1").is_empty() && qualified_name("a").is_empty());
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(qualified_name("/b"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
        assert!(label_value("").is_empty() && label_value("a.b_C").is_empty() && !label_value("-x").is_empty());
    }
}
