//! FlowSchemas: which request is of which flow, and to which priority level that leads.
//!
//! Pure: objects in, a list in order of precedence out; matching allocates nothing.

use crate::User;
use api::{Value, object::ObjectExt, request::RequestInfo};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a user's name begins with if it is a service account.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Stands for everything in a list of a rule.
const ALL: &str = "*";

/// One FlowSchema, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    /// The priority level that its requests go to.
    pub level: String,
    pub precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// What tells flows of one schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    ByUser,
    ByNamespace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    others: Vec<PathRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

impl Schema {
    /// Reads a FlowSchema object.
    pub fn read(object: &Value) -> Schema {
        let distinguisher = match object.str_at("spec.distinguisherMethod.type") {
            Some("ByUser") => Distinguisher::ByUser,
            Some("ByNamespace") => Distinguisher::ByNamespace,
            _ => Distinguisher::None,
        };
        Schema {
            name: object.name().into(),
            uid: object.uid().into(),
            level: object.str_at("spec.priorityLevelConfiguration.name").unwrap_or_default().into(),
            precedence: object.i64_at("spec.matchingPrecedence").unwrap_or_default(),
            distinguisher,
            rules: object.list_at("spec.rules").iter().map(Rule::read).collect(),
        }
    }

    /// Whether a request is one of this schema's.
    pub fn matches(&self, user: &User, request: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.subjects.iter().any(|subject| subject.matches(user)) && rule.covers(request))
    }

    /// The number of the flow that a request of this schema belongs to.
    pub fn flow(&self, user: &User, request: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.distinguisher {
            Distinguisher::None => {}
            Distinguisher::ByUser => user.name.hash(&mut hasher),
            Distinguisher::ByNamespace => request.namespace.hash(&mut hasher),
        }
        hasher.finish()
    }
}

impl Rule {
    fn read(rule: &Value) -> Rule {
        let resource = |rule: &Value| ResourceRule {
            verbs: texts(rule, "verbs"),
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            cluster_scope: rule.bool_at("clusterScope").unwrap_or(false),
            namespaces: texts(rule, "namespaces"),
        };
        Rule {
            subjects: rule.list_at("subjects").iter().filter_map(Subject::read).collect(),
            resources: rule.list_at("resourceRules").iter().map(resource).collect(),
            others: rule
                .list_at("nonResourceRules")
                .iter()
                .map(|rule| PathRule { verbs: texts(rule, "verbs"), paths: texts(rule, "nonResourceURLs") })
                .collect(),
        }
    }

    fn covers(&self, request: &RequestInfo) -> bool {
        if request.is_resource {
            self.resources.iter().any(|rule| rule.matches(request))
        } else {
            self.others.iter().any(|rule| any(&rule.verbs, &request.verb) && rule.paths.iter().any(|path| path_matches(path, &request.path)))
        }
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Subject> {
        let text = |path: &str| subject.str_at(path).unwrap_or_default().to_string();
        Some(match subject.str_at("kind")? {
            "User" => Subject::User(text("user.name")),
            "Group" => Subject::Group(text("group.name")),
            "ServiceAccount" => Subject::ServiceAccount { namespace: text("serviceAccount.namespace"), name: text("serviceAccount.name") },
            _ => return None,
        })
    }

    fn matches(&self, user: &User) -> bool {
        match self {
            Subject::User(name) => name == ALL || *name == user.name,
            Subject::Group(name) => name == ALL || user.in_group(name),
            Subject::ServiceAccount { namespace, name } => {
                let Some((of, account)) = user.name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':')) else { return false };
                of == namespace && (name == ALL || account == name)
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, request: &RequestInfo) -> bool {
        let place = if request.namespace.is_empty() { self.cluster_scope } else { any(&self.namespaces, &request.namespace) };
        place
            && any(&self.verbs, &request.verb)
            && any(&self.groups, &request.group)
            && self.resources.iter().any(|name| name == ALL || is_resource(name, &request.resource, &request.subresource))
    }
}

/// Whether `name`, as a rule has it (`pods` or `pods/log`), is this resource.
fn is_resource(name: &str, resource: &str, subresource: &str) -> bool {
    match name.split_once('/') {
        None => name == resource && subresource.is_empty(),
        Some((whole, part)) => whole == resource && part == subresource,
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => rule == path,
    }
}

fn any(known: &[String], wanted: &str) -> bool {
    known.iter().any(|known| known == ALL || known == wanted)
}

fn texts(value: &Value, path: &str) -> Vec<String> {
    value.list_at(path).iter().filter_map(|text| text.as_str().map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::first_objects;

    fn classify(user: &User, method: &str, path: &str) -> String {
        let mut schemas: Vec<Schema> = first_objects("apis/flowcontrol.apiserver.k8s.io/v1/flowschemas").unwrap().iter().map(Schema::read).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let request = RequestInfo::parse(method, path, "");
        schemas.iter().find(|schema| schema.matches(user, &request)).unwrap().name.clone()
    }

    #[test]
    fn the_first_schemas_know_who_is_who() {
        let known = |name: &str, groups: &[&str]| User::new(name, &[groups, &["system:authenticated"]].concat());
        let node = known("system:node:a", &["system:nodes"]);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a";
        let check = |user: &User, method: &str, path: &str, expected: &str| assert_eq!(classify(user, method, path), expected, "{method} {path}");
        check(&node, "PUT", lease, "system-node-high");
        check(&node, "PATCH", "/api/v1/nodes/a/status", "system-node-high");
        check(&node, "GET", "/api/v1/pods", "system-nodes");
        check(
            &known("system:kube-scheduler", &[]),
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler",
            "system-leader-election",
        );
        check(&known("system:kube-scheduler", &[]), "GET", "/api/v1/pods", "kube-scheduler");
        check(&known("system:serviceaccount:kube-system:x", &["system:serviceaccounts"]), "GET", "/api/v1/pods", "kube-system-service-accounts");
        check(&known("system:serviceaccount:team:x", &["system:serviceaccounts"]), "GET", "/api/v1/pods", "service-accounts");
        check(&known("jane", &[]), "GET", "/api/v1/pods", "global-default");
        check(&known("admin", &["system:masters"]), "GET", "/api/v1/pods", "exempt");
        check(&User::anonymous(), "GET", "/readyz", "probes");
        check(&User::anonymous(), "GET", "/version", "global-default");
    }

    #[test]
    fn flows_are_told_apart_as_the_schema_says() {
        let of = |method: &str| Schema::read(&serde_json::json!({"metadata": {"name": "s"}, "spec": {"distinguisherMethod": {"type": method}}}));
        let (jane, joe) = (User::new("jane", &[]), User::new("joe", &[]));
        let at = |namespace: &str| RequestInfo::parse("GET", &format!("/api/v1/namespaces/{namespace}/pods"), "");
        assert_ne!(of("ByUser").flow(&jane, &at("a")), of("ByUser").flow(&joe, &at("a")));
        assert_eq!(of("ByUser").flow(&jane, &at("a")), of("ByUser").flow(&jane, &at("b")));
        assert_ne!(of("ByNamespace").flow(&jane, &at("a")), of("ByNamespace").flow(&jane, &at("b")));
        assert_eq!(of("").flow(&jane, &at("a")), of("").flow(&joe, &at("b")));
    }

    #[test]
    fn subresources_are_named_in_full() {
        assert!(is_resource("nodes/status", "nodes", "status") && is_resource("nodes", "nodes", ""));
        assert!(!is_resource("nodes", "nodes", "status") && !is_resource("nodes/status", "nodes", ""));
        assert!(path_matches("*", "/x") && path_matches("/a/*", "/a/b") && path_matches("/a", "/a") && !path_matches("/a", "/a/b"));
    }
}
