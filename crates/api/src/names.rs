//! The rules for names: objects, labels, annotations, finalizers. Each check gives what is wrong, in Kubernetes' words.

use crate::kind::NameRule;

/// What is wrong with a name under a rule; empty if nothing. `prefix` is for `generateName`, whose end may be a hyphen.
pub fn check_name(_rule: NameRule, _name: &str, _prefix: bool) -> Vec<String> {
    vec![]
}
/// RFC 1123 label.
pub fn dns1123_label(_text: &str) -> Vec<String> {
    vec![]
}
/// RFC 1123 subdomain.
pub fn dns1123_subdomain(_text: &str) -> Vec<String> {
    vec![]
}
/// RFC 1035 label.
pub fn dns1035_label(_text: &str) -> Vec<String> {
    vec![]
}
/// `prefix/name`, as keys of labels and annotations, finalizers, conditions, resources.
pub fn qualified_name(_text: &str) -> Vec<String> {
    vec![]
}
/// Value of a label.
pub fn label_value(_text: &str) -> Vec<String> {
    vec![]
}
