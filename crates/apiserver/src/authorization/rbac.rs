//! Role-based access control: roles say what, bindings say who.
//!
//! [`Index`] is the cluster's roles and bindings in the form that a check needs: by subject. It is made anew when one of
//! the four kinds has changed since, where every object that has not changed keeps its parsed form; in between, a check
//! is a few hash look-ups and comparisons, and takes no lock that a writer holds for long.

use super::{Attributes, Decision};
use crate::authentication::service_accounts::user_name;
use crate::cache::{Entry, ResourceCache};
use crate::{Server, User};
use api::{Value, object::ObjectExt};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};
use store::Revision;

pub const GROUP: &str = "rbac.authorization.k8s.io";
/// The kinds that the index is made of: roles, then bindings; cluster scope first.
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// The rules of a Role or ClusterRole.
    pub fn of_role(role: &Value) -> Vec<Rule> {
        let texts = |rule: &Value, key| rule.list_at(key).iter().filter_map(Value::as_str).map(String::from).collect();
        role.list_at("rules")
            .iter()
            .map(|rule| Rule {
                verbs: texts(rule, "verbs"),
                api_groups: texts(rule, "apiGroups"),
                resources: texts(rule, "resources"),
                resource_names: texts(rule, "resourceNames"),
                non_resource_urls: texts(rule, "nonResourceURLs"),
            })
            .collect()
    }

    /// Whether the rule is about these attributes.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if !attributes.is_resource() {
            return self.non_resource_urls.iter().any(|url| path_matches(url, attributes.path));
        }
        has(&self.api_groups, attributes.group)
            && self.resources.iter().any(|resource| resource_matches(resource, attributes.resource, attributes.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == attributes.name))
    }

    /// As SelfSubjectRulesReview shows it.
    pub fn to_value(&self) -> Value {
        let mut rule = serde_json::Map::new();
        rule.insert("verbs".into(), json!(self.verbs));
        let lists = [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            rule.insert(key.into(), json!(list));
        }
        Value::Object(rule)
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

pub(super) fn path_matches(rule: &str, path: &str) -> bool {
    rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((rule_resource, rule_subresource)) => {
            !subresource.is_empty() && rule_subresource == subresource && (rule_resource == "*" || rule_resource == resource)
        }
    }
}

/// A RoleBinding or ClusterRoleBinding, of which one subject matched.
#[derive(Debug)]
struct Binding {
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    name: String,
    role: RoleReference,
    subjects: Vec<Subject>,
    revision: Revision,
}

/// What a binding refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleReference {
    pub kind: String,
    pub name: String,
}

#[derive(Debug)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// One way in which someone has a role: a binding and which of its subjects it was.
#[derive(Clone, Debug)]
struct Grant {
    binding: Arc<Binding>,
    subject: usize,
    /// The binding's place in the list of all bindings.
    order: usize,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { namespace, name, role, subjects, .. } = &*self.binding;
        match namespace.as_str() {
            "" => write!(f, "ClusterRoleBinding {name:?}")?,
            namespace => write!(f, "RoleBinding {:?}", format!("{name}/{namespace}"))?,
        }
        write!(f, " of {} {:?} to ", role.kind, role.name)?;
        let subject = &subjects[self.subject];
        match subject.kind.as_str() {
            "ServiceAccount" => write!(f, "ServiceAccount {:?}", format!("{}/{}", subject.name, subject.namespace)),
            kind => write!(f, "{kind} {:?}", subject.name),
        }
    }
}

#[derive(Debug, Default)]
struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

struct Role {
    rules: Arc<[Rule]>,
    revision: Revision,
}

/// Roles by namespace (empty: cluster roles) and name; grants by namespace (empty: everywhere) and subject.
#[derive(Default)]
struct Index {
    versions: [Revision; 4],
    roles: HashMap<String, HashMap<String, Role>>,
    grants: HashMap<String, Grants>,
    /// Every parsed binding by resource and place, to be reused.
    bindings: HashMap<(usize, Arc<str>), Arc<Binding>>,
}

/// The index that belongs to the cache's present state.
#[derive(Default)]
pub struct Rbac {
    /// Where the four kinds are.
    caches: OnceLock<[Arc<ResourceCache>; 4]>,
    index: ArcSwapOption<Index>,
    making: Mutex<()>,
}

/// The rules that someone has in a place.
#[derive(Debug, Default)]
pub struct Held {
    pub rules: Vec<Rule>,
    /// Roles that bindings name and that are not there.
    pub errors: Vec<String>,
}

impl Rbac {
    fn index(&self, server: &Server) -> Arc<Index> {
        let caches = self.caches.get_or_init(|| RESOURCES.map(|resource| server.cache.resource(GROUP, resource)));
        let current = |index: &Index| caches.iter().zip(&index.versions).all(|(cache, version)| cache.changed() == *version);
        if let Some(index) = self.index.load_full().filter(|index| current(index)) {
            return index;
        }
        let _making = self.making.lock();
        let old = self.index.load_full();
        if let Some(index) = old.clone().filter(|index| current(index)) {
            return index;
        }
        let index = Arc::new(Index::make(
            [0, 1, 2, 3].map(|i| {
                let snapshot = caches[i].snapshot();
                (snapshot.revision, snapshot.entries(None).cloned().collect())
            }),
            old.as_deref(),
        ));
        self.index.store(Some(index.clone()));
        index
    }

    /// All that a user may in a namespace (empty: at cluster scope).
    pub fn held(&self, server: &Server, user: &User, namespace: &str) -> Held {
        let index = self.index(server);
        let mut grants: Vec<&Grant> = index.grants_of(user, namespace).collect();
        grants.sort_by_key(|grant| (!grant.binding.namespace.is_empty(), grant.order));
        grants.dedup_by_key(|grant| (grant.binding.namespace.is_empty(), grant.order));
        let mut held = Held::default();
        for grant in grants {
            match index.rules(&grant.binding) {
                Ok(rules) => held.rules.extend(rules.iter().cloned()),
                Err(missing) => held.errors.push(missing),
            }
        }
        held
    }

    /// The rules of a role; the error is what is missing.
    pub fn role(&self, server: &Server, role: &RoleReference, namespace: &str) -> Option<Arc<[Rule]>> {
        self.index(server).role(role, namespace).cloned()
    }
}

impl Index {
    fn make(resources: [(Revision, Vec<Arc<Entry>>); 4], old: Option<&Index>) -> Index {
        let mut index = Index { versions: [0, 1, 2, 3].map(|i| resources[i].0), ..Index::default() };
        for (i, (_, entries)) in resources.into_iter().enumerate() {
            for (order, entry) in entries.iter().enumerate() {
                if i < 2 { index.add_role(entry, old) } else { index.add_binding(i, order, entry, old) }
            }
        }
        index
    }

    fn add_role(&mut self, entry: &Entry, old: Option<&Index>) {
        let known = old.and_then(|old| old.roles.get(entry.namespace())?.get(entry.name())).filter(|role| role.revision == entry.revision);
        let rules = known.map_or_else(|| Rule::of_role(&entry.value()).into(), |role| role.rules.clone());
        self.roles.entry(entry.namespace().into()).or_default().insert(entry.name().into(), Role { rules, revision: entry.revision });
    }

    fn add_binding(&mut self, resource: usize, order: usize, entry: &Entry, old: Option<&Index>) {
        let key = (resource, entry.place.clone());
        let known = old.and_then(|old| old.bindings.get(&key)).filter(|binding| binding.revision == entry.revision).cloned();
        let binding = known.unwrap_or_else(|| Arc::new(Binding::of(&entry.value(), entry.namespace(), entry.name(), entry.revision)));
        let grants = self.grants.entry(entry.namespace().into()).or_default();
        for (i, subject) in binding.subjects.iter().enumerate() {
            let grant = Grant { binding: binding.clone(), subject: i, order };
            match subject.kind.as_str() {
                "User" => grants.users.entry(subject.name.clone()).or_default().push(grant),
                "Group" => grants.groups.entry(subject.name.clone()).or_default().push(grant),
                "ServiceAccount" if !subject.namespace.is_empty() => {
                    grants.users.entry(user_name(&subject.namespace, &subject.name)).or_default().push(grant);
                }
                _ => {}
            }
        }
        self.bindings.insert(key, binding);
    }

    fn grants_of<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let everywhere = self.grants.get("");
        let here = if namespace.is_empty() { None } else { self.grants.get(namespace) };
        everywhere.into_iter().chain(here).flat_map(move |grants| {
            let by_name = grants.users.get(&user.name);
            let by_group = user.groups.iter().filter_map(|group| grants.groups.get(group));
            by_name.into_iter().chain(by_group).flatten()
        })
    }

    fn role(&self, role: &RoleReference, namespace: &str) -> Option<&Arc<[Rule]>> {
        let namespace = if role.kind == "ClusterRole" { "" } else { namespace };
        Some(&self.roles.get(namespace)?.get(&role.name)?.rules)
    }

    fn rules(&self, binding: &Binding) -> Result<&Arc<[Rule]>, String> {
        let missing = || format!("{}.{GROUP} {:?} not found", binding.role.kind.to_lowercase(), binding.role.name);
        self.role(&binding.role, &binding.namespace).ok_or_else(missing)
    }

    fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        let mut errors: Vec<String> = Vec::new();
        for grant in self.grants_of(user, attributes.namespace) {
            match self.rules(&grant.binding) {
                Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => return Decision::Allow(format!("RBAC: allowed by {grant}")),
                Ok(_) => {}
                Err(missing) if errors.contains(&missing) => {}
                Err(missing) => errors.push(missing),
            }
        }
        Decision::NoOpinion(match errors.is_empty() {
            true => String::new(),
            false => format!("RBAC: {}", aggregate(&errors)),
        })
    }
}

/// Several messages as one: a single one as it is, more in brackets.
pub fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl RoleReference {
    pub fn of_binding(binding: &Value) -> RoleReference {
        let text = |path| binding.str_at(path).unwrap_or_default().to_string();
        RoleReference { kind: text("roleRef.kind"), name: text("roleRef.name") }
    }
}

impl Binding {
    fn of(value: &Value, namespace: &str, name: &str, revision: Revision) -> Binding {
        let subject = |subject: &Value| {
            let text = |key| subject.str_at(key).unwrap_or_default().to_string();
            // In a RoleBinding, a service account without a namespace is one of the binding's own.
            let named = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
            Subject { kind: text("kind"), name: text("name"), namespace: named.unwrap_or_else(|| namespace.into()) }
        };
        Binding {
            namespace: namespace.into(),
            name: name.into(),
            role: RoleReference::of_binding(value),
            subjects: value.list_at("subjects").iter().map(subject).collect(),
            revision,
        }
    }
}

/// What roles and bindings say of a request.
pub(super) fn authorize(server: &Server, user: &User, attributes: &Attributes<'_>) -> Decision {
    server.authorizer.rbac.index(server).authorize(user, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(place: &str, revision: u64, value: Value) -> Arc<Entry> {
        let stored = Bytes::from(crate::cache::encode_stored(&value));
        Arc::new(Entry::of(place, &stored, &value, Revision(revision), None).unwrap())
    }

    fn role(rules: Value) -> Value {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": rules})
    }

    fn binding(kind: &str, name: &str, subjects: Value) -> Value {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
            "roleRef": {"apiGroup": GROUP, "kind": kind, "name": name}, "subjects": subjects})
    }

    fn index() -> Index {
        let reader = role(json!([
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["*"], "resourceNames": ["web"], "verbs": ["*"]},
            {"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["update"]}
        ]));
        let viewer = role(
            json!([{"nonResourceURLs": ["/healthz", "/only/*"], "verbs": ["get"]}, {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]),
        );
        Index::make(
            [
                (Revision(5), vec![entry("viewer", 1, viewer)]),
                (Revision(5), vec![entry("n/reader", 2, reader)]),
                (Revision(5), vec![entry("view", 3, binding("ClusterRole", "viewer", json!([{"kind": "Group", "name": "devs"}])))]),
                (
                    Revision(5),
                    vec![
                        entry("n/gone", 4, binding("Role", "gone", json!([{"kind": "User", "name": "amy"}]))),
                        entry(
                            "n/read",
                            5,
                            binding("Role", "reader", json!([{"kind": "User", "name": "bob"}, {"kind": "ServiceAccount", "name": "sa"}])),
                        ),
                        entry("n/view", 5, binding("ClusterRole", "viewer", json!([{"kind": "User", "name": "eve"}]))),
                    ],
                ),
            ],
            None,
        )
    }

    /// One line per decision: who, verb, group, resource[/sub], namespace, name => the answer.
    #[test]
    fn decisions() {
        let index = index();
        let sa = user_name("n", "sa");
        let allowed = |who: &str, what: [&str; 5]| {
            let (resource, subresource) = what[2].split_once('/').unwrap_or((what[2], ""));
            let attributes =
                Attributes { verb: what[0], group: what[1], resource, subresource, namespace: what[3], name: what[4], ..Attributes::default() };
            index.authorize(&User::new(who, &[]), &attributes)
        };
        let reader = r#"RBAC: allowed by RoleBinding "read/n" of Role "reader" to User "bob""#;
        let yes = [
            ["get", "", "pods", "n", "x"],
            ["list", "", "pods", "n", ""],
            ["get", "", "pods/log", "n", "x"],
            ["delete", "apps", "deployments", "n", "web"],
            ["update", "apps", "deployments/scale", "n", "other"],
        ];
        for what in yes {
            assert_eq!(allowed("bob", what), Decision::Allow(reader.into()), "{what:?}");
            assert!(matches!(allowed(&sa, what), Decision::Allow(reason) if reason.ends_with(r#"to ServiceAccount "sa/n""#)), "{what:?}");
        }
        let no = [
            ["watch", "", "pods", "n", ""],
            ["get", "", "pods", "other", "x"],
            ["get", "", "pods", "", ""],
            ["get", "", "pods/exec", "n", "x"],
            ["get", "apps", "pods", "n", "x"],
            ["delete", "apps", "deployments", "n", "other"],
            ["list", "apps", "deployments", "n", ""],
        ];
        for what in no {
            assert_eq!(allowed("bob", what), Decision::NoOpinion(String::new()), "{what:?}");
        }
        assert_eq!(allowed("amy", yes[0]), Decision::NoOpinion(r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#.into()));
        assert!(matches!(allowed("eve", ["get", "", "nodes", "n", "x"]), Decision::Allow(_)));
        assert_eq!(allowed("eve", ["get", "", "nodes", "", "x"]), Decision::NoOpinion(String::new()), "a RoleBinding gives nothing at cluster scope");
    }

    #[test]
    fn paths() {
        let index = index();
        let get = |path| index.authorize(&User::new("x", &["devs"]), &Attributes { verb: "get", path, ..Attributes::default() });
        let reason = r#"RBAC: allowed by ClusterRoleBinding "view" of ClusterRole "viewer" to Group "devs""#;
        assert_eq!(get("/healthz"), Decision::Allow(reason.into()));
        assert!(matches!(get("/only/here"), Decision::Allow(_)));
        assert_eq!(get("/only"), Decision::NoOpinion(String::new()));
        assert_eq!(get("/healthz/x"), Decision::NoOpinion(String::new()));
    }

    #[test]
    fn what_has_not_changed_keeps_its_parsed_form() {
        let old = index();
        let kept = |index: &Index| index.roles["n"]["reader"].rules.clone();
        let again = Index::make(
            [(Revision(6), vec![]), (Revision(6), vec![entry("n/reader", 2, role(json!([])))]), (Revision(6), vec![]), (Revision(6), vec![])],
            Some(&old),
        );
        assert!(Arc::ptr_eq(&kept(&old), &kept(&again)));
        let changed = Index::make(
            [(Revision(7), vec![]), (Revision(7), vec![entry("n/reader", 7, role(json!([])))]), (Revision(7), vec![]), (Revision(7), vec![])],
            Some(&old),
        );
        assert!(kept(&changed).is_empty());
    }
}
