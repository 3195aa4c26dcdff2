//! `Impersonate-*` headers: asking as someone else, as far as one may.
//!
//! Every part of the wanted identity needs its own permission. Two ways give it: the verb `impersonate` on users, groups,
//! serviceaccounts, uids and userextras; or the narrower `impersonate:user-info`, which in addition needs
//! `impersonate-on:user-info:VERB` on what the request itself is about.

use super::service_accounts::{groups as service_account_groups, split_user_name};
use super::{AUTHENTICATED_GROUP, UNAUTHENTICATED_GROUP};
use crate::authorization::{Attributes, Decision, decide, refusal};
use crate::{Server, User};
use api::{Status, request::RequestInfo};
use std::collections::BTreeMap;
use std::fmt::Write;

const GROUP: &str = "authentication.k8s.io";
/// The verb of the narrower way.
const NARROW: &str = "impersonate:user-info";

/// Applies `Impersonate-*` headers, if there are any and the user may.
pub async fn impersonate(server: &Server, parts: &http::request::Parts, request: &RequestInfo, user: User) -> Result<User, Status> {
    let Some(wanted) = requested(parts)? else { return Ok(user) };
    let refuse = |attributes: &Attributes<'_>| match decide(server, &user, attributes) {
        Decision::Allow(_) => None,
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Some(refusal(&user, attributes, &reason)),
    };
    let refused = permissions(&wanted, false).iter().find_map(|permission| refuse(&permission.attributes()));
    let Some(refused) = refused else { return Ok(impersonated(wanted)) };
    // Who may take on anybody the narrow way, but not all that is wanted, is told what is missing there.
    if !server.authorizer.rbac.held(server, &user, "").rules.iter().any(|rule| rule.verbs.iter().any(|verb| verb == NARROW)) {
        return Err(refused);
    }
    if let Some(refused) = permissions(&wanted, true).iter().find_map(|permission| refuse(&permission.attributes())) {
        return Err(refused);
    }
    let verb = format!("impersonate-on:user-info:{}", request.verb);
    match refuse(&Attributes { verb: &verb, ..Attributes::of(request) }) {
        Some(refused) => Err(refused),
        None => Ok(impersonated(wanted)),
    }
}

/// What the headers ask for. `None` without any; 400 if they name no user.
fn requested(parts: &http::request::Parts) -> Result<Option<User>, Status> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name: &str| parts.headers.get(name).map(text).unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &parts.headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    let wanted = User {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: parts.headers.get_all("impersonate-group").iter().map(text).collect(),
        extra,
    };
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted == User::default() {
        return Ok(None);
    }
    Err(Status::bad_request(format!("requested {} without impersonating a user name", go_syntax(&wanted))))
}

/// A user as Go prints its struct: clients see this.
fn go_syntax(user: &User) -> String {
    let list = |texts: &[String]| match texts.is_empty() {
        true => "[]string(nil)".to_string(),
        false => format!("[]string{{{}}}", texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")),
    };
    let extra = match user.extra.is_empty() {
        true => "map[string][]string(nil)".to_string(),
        false => format!("map[string][]string{{{}}}", user.extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect::<Vec<_>>().join(", ")),
    };
    let mut out = String::new();
    let _ = write!(out, "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{}, Extra:{extra}}}", user.name, user.uid, list(&user.groups));
    out
}

/// Undoes percent-encoding; what is not well-formed stays as it is.
fn unescape(key: &str) -> String {
    let bytes = key.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let Some(byte) = key.get(i + 1..i + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()) else { return key.into() };
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.into())
}

/// One thing that the caller must be allowed.
struct Permission {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

impl Permission {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: self.verb,
            group: self.group,
            version: "v1",
            resource: self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            ..Attributes::default()
        }
    }
}

/// What taking on an identity needs, the user first.
fn permissions(wanted: &User, narrow: bool) -> Vec<Permission> {
    let verb = if narrow { NARROW } else { "impersonate" };
    let plain = if narrow { GROUP } else { "" };
    let permission =
        |group, resource, name: &str| Permission { verb, group, resource, subresource: String::new(), namespace: String::new(), name: name.into() };
    let mut all = vec![match split_user_name(&wanted.name) {
        Some((namespace, name)) if !narrow => Permission { namespace: namespace.into(), ..permission(plain, "serviceaccounts", name) },
        _ => permission(plain, "users", &wanted.name),
    }];
    all.extend(wanted.groups.iter().map(|group| permission(plain, "groups", group)));
    for (key, values) in &wanted.extra {
        all.extend(values.iter().map(|value| Permission { subresource: key.clone(), ..permission(GROUP, "userextras", value) }));
    }
    if !wanted.uid.is_empty() {
        all.push(permission(GROUP, "uids", &wanted.uid));
    }
    all
}

/// The user as whom the request goes on.
fn impersonated(mut user: User) -> User {
    if user.groups.is_empty()
        && let Some((namespace, _)) = split_user_name(&user.name)
    {
        user.groups = service_account_groups(namespace);
    }
    if !user.in_group(AUTHENTICATED_GROUP) && !user.in_group(UNAUTHENTICATED_GROUP) {
        let anonymous = user.name == User::anonymous().name;
        user.groups.push(if anonymous { UNAUTHENTICATED_GROUP } else { AUTHENTICATED_GROUP }.into());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> http::request::Parts {
        let builder = headers.iter().fold(http::Request::builder(), |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn headers_without_a_user_are_refused_in_gos_words() {
        let check = |headers: &[(&str, &str)], expected: &str| assert_eq!(requested(&parts(headers)).unwrap_err().message, expected);
        check(
            &[("Impersonate-Group", "devs")],
            r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"devs"}, Extra:map[string][]string(nil)} without impersonating a user name"#,
        );
        check(
            &[("Impersonate-Extra-Team", "red"), ("Impersonate-Group", "devs")],
            r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"devs"}, Extra:map[string][]string{"team":[]string{"red"}}} without impersonating a user name"#,
        );
        assert_eq!(requested(&parts(&[("Impersonate-User", "")])).unwrap(), None);
    }

    #[test]
    fn an_impersonated_user_gets_the_groups_of_its_sort() {
        let check = |name: &str, groups: &[&str], expected: &[&str]| assert_eq!(impersonated(User::new(name, groups)).groups, expected);
        check("bob", &[], &["system:authenticated"]);
        check("bob", &["devs"], &["devs", "system:authenticated"]);
        check("system:anonymous", &[], &["system:unauthenticated"]);
        check("bob", &["system:unauthenticated"], &["system:unauthenticated"]);
    }

    #[test]
    fn keys_are_unescaped_if_they_can_be() {
        assert_eq!(unescape("example.com%2Fproject"), "example.com/project");
        assert_eq!(unescape("bad%zz"), "bad%zz");
        assert_eq!(unescape("bad%"), "bad%");
    }
}
