//! Storage keys: `/registry/<group or "core">/<resource>/<namespace>/<name>`, without a namespace at cluster scope.
//! Nothing else in the workspace builds or reads one.

use api::Kind;

/// What all keys begin with.
pub const ROOT: &str = "/registry/";

/// The prefix of all objects of a resource.
pub fn prefix(group: &str, resource: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{resource}/")
}

/// The key of one object; `namespace` is empty at cluster scope.
pub fn object(group: &str, resource: &str, namespace: &str, name: &str) -> String {
    format!("{}{}", prefix(group, resource), place(namespace, name))
}

/// The part of a key that tells objects of one resource apart.
pub fn place(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_string() } else { format!("{namespace}/{name}") }
}

/// Group and resource under which a kind's objects are stored.
pub fn stored(kind: &Kind) -> (&str, &str) {
    kind.stored_as.as_ref().map_or((&kind.group, &kind.resource), |(group, resource)| (group, resource))
}

/// Takes a key apart into group, resource and place. `None` for a key that is not an object's.
pub fn parse(key: &str) -> Option<(&str, &str, &str)> {
    let mut parts = key.strip_prefix(ROOT)?.splitn(3, '/');
    let (group, resource, place) = (parts.next()?, parts.next()?, parts.next()?);
    let well_formed = !resource.is_empty() && !place.is_empty() && place.matches('/').count() <= 1;
    well_formed.then_some((if group == "core" { "" } else { group }, resource, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_built() {
        assert_eq!(parse(&object("", "pods", "default", "a")), Some(("", "pods", "default/a")));
        assert_eq!(parse(&object("apps", "deployments", "x", "a")), Some(("apps", "deployments", "x/a")));
        assert_eq!(parse(&object("", "nodes", "", "n")), Some(("", "nodes", "n")));
        assert_eq!(parse("/registry/core/pods/"), None);
        assert_eq!(parse("/elsewhere/core/pods/a"), None);
    }
}
