//! Who may do what.
//!
//! Three authorizers are asked in order: the group `system:masters` may everything, [`node`] knows what a node needs for the
//! pods bound to it, [`rbac`] knows roles and their bindings. The first that allows, allows; if none does, the request is
//! refused with what they had to say. No decision touches the store: all of them look at the cache.

pub mod escalation;
pub mod node;
pub mod rbac;

use crate::{Error, Server, User};
use api::{Status, request::RequestInfo, selector::FieldSelector};

/// The group whose members may everything, whatever roles say.
pub const MASTERS_GROUP: &str = "system:masters";

/// Which authorizers are asked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Lets everyone do everything (`--authorization-mode=AlwaysAllow`).
    pub always_allow: bool,
}

/// The authorizers in the order they are asked.
pub struct Authorizer {
    always_allow: bool,
    pub(crate) rbac: rbac::Rbac,
    node_rules: Vec<rbac::Rule>,
}

impl Authorizer {
    pub fn new(config: &crate::Config) -> Result<Authorizer, Error> {
        Ok(Authorizer { always_allow: config.authorization.always_allow, rbac: rbac::Rbac::default(), node_rules: node::rules()? })
    }
}

/// What an authorizer says, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    NoOpinion(String),
}

/// What is to be done, as authorizers see it. A path makes it a request that is not about objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The URL's path; empty for requests about objects.
    pub path: &'a str,
    /// Which objects a list is about; `None` if the request does not say.
    pub fields: Option<&'a FieldSelector>,
}

impl<'a> Attributes<'a> {
    pub fn of(request: &'a RequestInfo) -> Attributes<'a> {
        if !request.is_resource {
            return Attributes { verb: &request.verb, path: &request.path, ..Attributes::default() };
        }
        Attributes {
            verb: &request.verb,
            group: &request.group,
            version: &request.version,
            resource: &request.resource,
            subresource: &request.subresource,
            namespace: &request.namespace,
            name: &request.name,
            path: "",
            fields: request.fields.as_ref(),
        }
    }
    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }
    /// `pods` or `pods/log`.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() { self.resource.into() } else { format!("{}/{}", self.resource, self.subresource) }
    }
}

/// Asks every authorizer about a request; the first that decides, decides.
pub fn authorize(server: &Server, user: &User, request: &RequestInfo) -> Decision {
    decide(server, user, &Attributes::of(request))
}

/// The same about anything.
pub fn decide(server: &Server, user: &User, attributes: &Attributes<'_>) -> Decision {
    let authorizer = &server.authorizer;
    if authorizer.always_allow || user.in_group(MASTERS_GROUP) {
        return Decision::Allow(String::new());
    }
    let mut reasons = Vec::new();
    let authorizers: [fn(&Server, &User, &Attributes<'_>) -> Decision; 2] = [node::authorize, rbac::authorize];
    for authorize in authorizers {
        match authorize(server, user, attributes) {
            Decision::NoOpinion(reason) if reason.is_empty() => {}
            Decision::NoOpinion(reason) => reasons.push(reason),
            decided => return decided,
        }
    }
    Decision::NoOpinion(reasons.join("\n"))
}

/// Whether a user may; for checks inside the server that need no reason.
pub fn allowed(server: &Server, user: &User, attributes: &Attributes<'_>) -> bool {
    matches!(decide(server, user, attributes), Decision::Allow(_))
}

/// The 403 for a request that no authorizer allowed.
pub fn forbidden(user: &User, request: &RequestInfo, reason: &str) -> Status {
    refusal(user, &Attributes::of(request), reason)
}

/// The 403 for anything that no authorizer allowed.
pub fn refusal(user: &User, attributes: &Attributes<'_>, reason: &str) -> Status {
    let (verb, name) = (attributes.verb, &user.name);
    let mut message = if !attributes.is_resource() {
        format!("User {name:?} cannot {verb} path {:?}", attributes.path)
    } else {
        let place = match attributes.namespace {
            "" => "at the cluster scope".to_string(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {name:?} cannot {verb} resource {:?} in API group {:?} {place}", attributes.full_resource(), attributes.group)
    };
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    Status::forbidden((attributes.group, attributes.resource), attributes.name, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_kubernetes_words() {
        let jane = User::new("jane", &[]);
        let check = |attributes: Attributes<'_>, reason: &str, expected: &str| assert_eq!(refusal(&jane, &attributes, reason).message, expected);
        let pods = Attributes { verb: "list", resource: "pods", namespace: "default", ..Attributes::default() };
        check(pods, "", r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#);
        check(
            Attributes { verb: "get", subresource: "log", name: "p", ..pods },
            "why",
            r#"pods "p" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the namespace "default": why"#,
        );
        check(
            Attributes { verb: "list", group: "apps", resource: "deployments", ..Attributes::default() },
            "",
            r#"deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group "apps" at the cluster scope"#,
        );
        check(Attributes { verb: "get", path: "/metrics", ..Attributes::default() }, "", r#"forbidden: User "jane" cannot get path "/metrics""#);
    }
}
