//! The audit policy: how much is written of which request. Pure.

use crate::User;
use api::{
    Value,
    object::ObjectExt,
    request::RequestInfo,
    structure::{self, Encoding},
};

/// How much is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and what came of it.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
    fn parse(text: &str) -> Option<Level> {
        [Level::None, Level::Metadata, Level::Request, Level::RequestResponse].into_iter().find(|level| level.name() == text)
    }
}

/// When it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    /// The head of an answer that goes on is sent.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
    fn parse(text: &str) -> Option<Stage> {
        [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic].into_iter().find(|stage| stage.name() == text)
    }
}

/// What is to be done about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

/// A Policy of audit.k8s.io/v1.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    choice: Choice,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    /// Groups with resources and names.
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

impl Policy {
    /// Reads a policy; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let policy = structure::parse_object(text.as_bytes(), Encoding::Yaml)?;
        if policy.kind() != "Policy" || policy.api_version() != "audit.k8s.io/v1" {
            return Err("it is no Policy of audit.k8s.io/v1".into());
        }
        let rules = policy.list_at("rules");
        if rules.is_empty() {
            return Err("it has no rules, so nothing would ever be written".into());
        }
        let common = (stages(&policy, "omitStages")?, policy.bool_at("omitManagedFields").unwrap_or(false));
        let rules = rules.iter().enumerate().map(|(i, rule)| Rule::read(rule, &common).map_err(|why| format!("rules[{i}]: {why}")));
        Ok(Policy { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What is to be done about a request: as the first rule that matches says; nothing if none does.
    pub fn choose(&self, user: &User, request: &RequestInfo) -> Choice {
        let found = self.rules.iter().find(|rule| rule.matches(user, request));
        found.map_or(Choice { level: Level::None, omit_stages: vec![], omit_managed_fields: false }, |rule| rule.choice.clone())
    }
}

impl Rule {
    fn read(rule: &Value, (omit_stages, omit_managed_fields): &(Vec<Stage>, bool)) -> Result<Rule, String> {
        let level = rule.str_at("level").unwrap_or_default();
        let level = Level::parse(level).ok_or_else(|| format!("the level {level:?} is not None, Metadata, Request or RequestResponse"))?;
        let mut omit_stages = omit_stages.clone();
        omit_stages.extend(stages(rule, "omitStages")?);
        let resources = |of: &Value| Resources {
            group: of.str_at("group").unwrap_or_default().into(),
            resources: texts(of, "resources"),
            names: texts(of, "resourceNames"),
        };
        let read = Rule {
            choice: Choice { level, omit_stages, omit_managed_fields: rule.bool_at("omitManagedFields").unwrap_or(*omit_managed_fields) },
            users: texts(rule, "users"),
            groups: texts(rule, "userGroups"),
            verbs: texts(rule, "verbs"),
            resources: rule.list_at("resources").iter().map(resources).collect(),
            namespaces: texts(rule, "namespaces"),
            paths: texts(rule, "nonResourceURLs"),
        };
        if !read.paths.is_empty() && (!read.resources.is_empty() || !read.namespaces.is_empty()) {
            return Err("it speaks of nonResourceURLs and of resources or namespaces; a rule is about one of both".into());
        }
        Ok(read)
    }

    fn matches(&self, user: &User, request: &RequestInfo) -> bool {
        let one_of = |wanted: &[String], text: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == text);
        if !one_of(&self.users, &user.name)
            || !(self.groups.is_empty() || self.groups.iter().any(|group| user.in_group(group)))
            || !one_of(&self.verbs, &request.verb)
        {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return request.is_resource
                && one_of(&self.namespaces, &request.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|resources| resources.matches(request)));
        }
        if !self.paths.is_empty() {
            return !request.is_resource && self.paths.iter().any(|path| is_path(path, &request.path));
        }
        true
    }
}

impl Resources {
    fn matches(&self, request: &RequestInfo) -> bool {
        if self.group != request.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        (self.names.is_empty() || self.names.contains(&request.name))
            && self.resources.iter().any(|rule| match (rule.as_str(), rule.split_once('/')) {
                ("*", _) => true,
                (whole, None) => whole == request.resource && request.subresource.is_empty(),
                (_, Some((whole, part))) => {
                    !request.subresource.is_empty()
                        && [request.resource.as_str(), "*"].contains(&whole)
                        && [request.subresource.as_str(), "*"].contains(&part)
                }
            })
    }
}

fn is_path(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => rule == path,
    }
}

fn stages(of: &Value, key: &str) -> Result<Vec<Stage>, String> {
    let read = |text: &String| Stage::parse(text).ok_or_else(|| format!("{key}: there is no stage {text:?}"));
    texts(of, key).iter().map(read).collect()
}

fn texts(value: &Value, path: &str) -> Vec<String> {
    value.list_at(path).iter().filter_map(|text| text.as_str().map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
  resources: [{group: "", resources: [endpoints, services]}]
- level: None
  userGroups: ["system:authenticated"]
  nonResourceURLs: ["/api*", "/version"]
- level: Request
  resources: [{group: "", resources: [configmaps]}]
  namespaces: [kube-system]
- level: Metadata
  omitManagedFields: true
  resources: [{group: "", resources: [secrets, "pods/*"], resourceNames: [one]}]
- level: RequestResponse
  omitStages: [ResponseStarted]
  resources: [{group: apps}, {group: "", resources: ["*/scale"]}]
- level: Metadata
"#;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(POLICY).unwrap();
        let level = |user: &str, method: &str, path: &str, query: &str| {
            policy.choose(&User::new(user, &["system:authenticated"]), &RequestInfo::parse(method, path, query)).level
        };
        assert_eq!(level("system:kube-proxy", "GET", "/api/v1/services", "watch=1"), Level::None);
        assert_eq!(level("system:kube-proxy", "GET", "/api/v1/services", ""), Level::Metadata);
        assert_eq!(level("jane", "GET", "/version", ""), Level::None);
        assert_eq!(level("jane", "GET", "/api/v1", ""), Level::None);
        assert_eq!(level("jane", "PUT", "/api/v1/namespaces/kube-system/configmaps/x", ""), Level::Request);
        assert_eq!(level("jane", "PUT", "/api/v1/namespaces/default/configmaps/x", ""), Level::Metadata);
        assert_eq!(level("jane", "POST", "/apis/apps/v1/namespaces/a/deployments", ""), Level::RequestResponse);
        assert_eq!(level("jane", "PUT", "/api/v1/namespaces/a/replicationcontrollers/x/scale", ""), Level::RequestResponse);
        let of = |path: &str| policy.choose(&User::new("jane", &[]), &RequestInfo::parse("GET", path, "")).omit_managed_fields;
        assert!(of("/api/v1/namespaces/a/pods/one/log") && of("/api/v1/namespaces/a/secrets/one"));
        assert!(!of("/api/v1/namespaces/a/pods/one") && !of("/api/v1/namespaces/a/secrets/two"));
        let choice = policy.choose(&User::new("jane", &[]), &RequestInfo::parse("GET", "/apis/apps/v1/deployments", ""));
        assert_eq!(choice.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
    }

    #[test]
    fn a_bad_policy_says_why() {
        for (text, why) in [
            ("kind: Other", "no Policy"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy", "no rules"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]", "rules[0]"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, omitStages: [X]}]", "no stage"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/b]}]", "one of both"),
        ] {
            assert!(Policy::parse(text).unwrap_err().contains(why), "{text}");
        }
    }
}
