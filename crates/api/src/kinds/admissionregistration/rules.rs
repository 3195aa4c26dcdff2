//! What webhooks and admission policies share: which requests they are about.

use crate::{
    cel::{
        Program, Type,
        policy::{Scope, is_identifier},
    },
    field::{Errors, Path},
    kinds::{
        checks,
        values::{each, fill, fill_absent, list, made, member, strings, text, within},
    },
    names,
    object::ObjectExt,
    selector,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CONDITIONS_MAX: usize = 64;
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// Defaults of the rules in `parent`.
pub fn default_rules(parent: &mut Value, key: &str) {
    each(parent, key, |rule| fill_absent(rule, "scope", "*"));
}
/// Defaults of the match resources in `parent`.
pub fn default_match(parent: &mut Value) {
    fill_absent(parent, "matchPolicy", "Equivalent");
    made(parent, "namespaceSelector");
    made(parent, "objectSelector");
    default_rules(parent, "resourceRules");
    default_rules(parent, "excludeResourceRules");
}

fn alone(values: &[&str], star: &str, what: &str, path: &Path, errors: &mut Errors) {
    if values.is_empty() {
        errors.required(path.clone(), "");
    }
    if values.len() > 1 && values.contains(&star) {
        errors.invalid(path.clone(), json!(values), &format!("if '{star}' is present, must not specify other {what}"));
    }
}

/// Checks one rule.
pub fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let of = |key: &str| strings(rule, key).collect::<Vec<_>>();
    for (i, name, again) in checks::distinct(&of("resourceNames"), |name| *name) {
        let at = path.child("resourceNames").index(i);
        errors.invalid_all(&at, *name, checks::path_segment(name));
        if again {
            errors.duplicate(at, *name);
        }
    }
    let operations = of("operations");
    alone(&operations, "*", "operations", &path.child("operations"), errors);
    for (i, operation) in operations.iter().enumerate() {
        if !OPERATIONS.contains(operation) {
            errors.not_supported(path.child("operations").index(i), *operation, OPERATIONS);
        }
    }
    alone(&of("apiGroups"), "*", "API groups", &path.child("apiGroups"), errors);
    let versions = of("apiVersions");
    alone(&versions, "*", "API versions", &path.child("apiVersions"), errors);
    for (i, _) in versions.iter().enumerate().filter(|(_, v)| v.is_empty()) {
        errors.required(path.child("apiVersions").index(i), "");
    }
    resources(&of("resources"), &path.child("resources"), errors);
    checks::one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

fn resources(resources: &[&str], path: &Path, errors: &mut Errors) {
    if resources.is_empty() {
        errors.required(path.clone(), "");
    }
    // Wildcards hold for what comes after them.
    let (mut whole_names, mut whole_subresources, mut plain) = (BTreeSet::new(), BTreeSet::new(), false);
    for (i, resource) in resources.iter().enumerate() {
        let at = path.index(i);
        if resource.is_empty() {
            errors.required(at, "");
            continue;
        }
        let Some((name, subresource)) = resource.split_once('/') else {
            plain = *resource != "*";
            continue;
        };
        if whole_names.contains(name) {
            errors.invalid(at.clone(), *resource, &format!("if '{name}/*' is present, must not specify {resource}"));
        }
        if whole_subresources.contains(subresource) {
            errors.invalid(at, *resource, &format!("if '*/{subresource}' is present, must not specify {resource}"));
        }
        if subresource == "*" {
            whole_names.insert(name);
        }
        if name == "*" {
            whole_subresources.insert(subresource);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        errors.invalid(path.clone(), json!(resources), "if '*/*' is present, must not specify other resources");
    }
    if resources.contains(&"*") && plain {
        errors.invalid(path.clone(), json!(resources), "if '*' is present, must not specify other resources without subresources");
    }
}

/// Checks selectors and rules of match resources.
pub fn validate_match(parent: &Value, path: &Path, errors: &mut Errors) {
    checks::one_of(parent, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    validate_selectors(parent, path, errors);
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in list(parent, key).iter().enumerate() {
            validate_rule(rule, &path.child(key).index(i), errors);
        }
    }
}

/// That nothing is to be changed in what goes; the rule's own place is not named.
pub fn mutable_operations(matched: &Value, path: &Path, errors: &mut Errors) {
    let changing = OPERATIONS.iter().copied().filter(|operation| *operation != "DELETE").collect::<Vec<_>>();
    for operation in list(matched, "resourceRules").iter().flat_map(|rule| strings(rule, "operations")).filter(|o| !changing.contains(o)) {
        errors.not_supported(path.child("resourceRules").child("operations"), operation, &changing);
    }
}

fn validate_selectors(parent: &Value, path: &Path, errors: &mut Errors) {
    for key in ["namespaceSelector", "objectSelector"] {
        if let Some(value) = member(parent, key) {
            selector::validate(value, &path.child(key), errors);
        }
    }
}

/// Defaults of the webhooks of a configuration.
pub fn default_webhooks(configuration: &mut Value, mutating: bool) {
    each(configuration, "webhooks", |webhook| {
        fill_absent(webhook, "failurePolicy", "Fail");
        fill_absent(webhook, "matchPolicy", "Equivalent");
        made(webhook, "namespaceSelector");
        made(webhook, "objectSelector");
        fill(webhook, "timeoutSeconds", 10);
        if mutating {
            fill_absent(webhook, "reinvocationPolicy", "Never");
        }
        default_rules(webhook, "rules");
        within(webhook, "clientConfig", |client| within(client, "service", |service| fill(service, "port", 443)));
    });
}

/// Checks the webhooks of a configuration.
pub fn validate_webhooks(configuration: &Value, mutating: bool, errors: &mut Errors) {
    let webhooks = list(configuration, "webhooks");
    for (i, webhook, again) in checks::distinct(webhooks, |webhook| text(webhook, "name")) {
        let path = Path::new("webhooks").index(i);
        let name = text(webhook, "name");
        if checks::required(webhook, "name", &path, errors) {
            let problems = names::dns1123_subdomain(name);
            if !problems.is_empty() {
                errors.invalid(path.child("name"), name, &problems.join(","));
            } else if name.split('.').count() < 3 {
                errors.invalid(path.child("name"), name, "should be a domain with at least three segments separated by dots");
            }
        }
        for (i, rule) in list(webhook, "rules").iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
        checks::one_of(webhook, "failurePolicy", &["Fail", "Ignore"], &path, errors);
        checks::one_of(webhook, "matchPolicy", &["Equivalent", "Exact"], &path, errors);
        match member(webhook, "sideEffects") {
            None => errors.required(path.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
            Some(_) => checks::one_of(webhook, "sideEffects", &["None", "NoneOnDryRun"], &path, errors),
        }
        if let Some(seconds) = webhook.get("timeoutSeconds").and_then(Value::as_i64)
            && !(1..=30).contains(&seconds)
        {
            errors.invalid(path.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds");
        }
        validate_selectors(webhook, &path, errors);
        if mutating {
            checks::one_of(webhook, "reinvocationPolicy", &["IfNeeded", "Never"], &path, errors);
        }
        client(webhook.get("clientConfig").unwrap_or(&Value::Null), &path.child("clientConfig"), errors);
        match_conditions(webhook, &Scope { authorizer: true, ..Scope::default() }, &path, errors);
        let versions: Vec<&str> = strings(webhook, "admissionReviewVersions").collect();
        review_versions(&versions, "must specify one of v1, v1beta1", path.child("admissionReviewVersions"), errors);
        if !name.is_empty() && again {
            errors.duplicate(path.child("name"), name);
        }
    }
}

/// Versions of reviews that a webhook understands, at `at`. `missing` says what there should be.
pub fn review_versions(versions: &[&str], missing: &str, at: Path, errors: &mut Errors) {
    if versions.is_empty() {
        return errors.required(at, missing);
    }
    for (i, version, again) in checks::distinct(versions, |version| *version) {
        if again {
            errors.invalid(at.index(i), *version, "duplicate version");
        } else {
            errors.invalid_all(&at.index(i), *version, names::dns1035_label(version));
        }
    }
    if !versions.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        errors.invalid(at, json!(versions), "must include at least one of v1, v1beta1");
    }
}

/// Where a webhook is: exactly one of a URL and a Service.
pub fn client(client: &Value, path: &Path, errors: &mut Errors) {
    match (member(client, "url"), member(client, "service")) {
        (Some(Value::String(url)), None) => web_address(url, &path.child("url"), errors),
        (None, Some(service)) => target(service, &path.child("service"), errors),
        _ => errors.required(path.clone(), "exactly one of url or service is required"),
    }
}
/// The Service of a webhook. Clients are told of a missing name at `namespace` and the other way round.
fn target(service: &Value, path: &Path, errors: &mut Errors) {
    for (key, shown) in [("namespace", "name"), ("name", "namespace")] {
        if text(service, key).is_empty() {
            errors.required(path.child(shown), "");
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(0);
    if !checks::is_port(port) {
        errors.invalid(path.child("port"), port, &format!("port is not valid: {}", checks::PORT_RANGE));
    }
    let target = text(service, "path");
    let at = path.child("path");
    match target {
        "" | "/" => return,
        "//" => return errors.invalid(at, target, "segment[0] may not be empty"),
        _ if !target.starts_with('/') => errors.invalid(at.clone(), target, "must start with a '/'"),
        _ => {}
    }
    let steps: String = target.chars().skip(1).collect();
    for (i, step) in steps.strip_suffix('/').unwrap_or(&steps).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(at.clone(), target, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for problem in names::dns1123_subdomain(step) {
            errors.invalid(at.clone(), target, &format!("segment[{i}]: {problem}"));
        }
    }
}
fn web_address(url: &str, path: &Path, errors: &mut Errors) {
    let form = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errors.invalid(path.clone(), scheme, &format!("'https' is the only allowed URL scheme{form}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = rest.split('/').next().unwrap_or_default();
    let (user, host) = host.rsplit_once('@').unwrap_or(("", host));
    if host.is_empty() {
        errors.invalid(path.clone(), host, &format!("host must be specified{form}"));
    }
    for (value, detail) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !value.is_empty() {
            errors.invalid(path.clone(), value, detail);
        }
    }
}

/// Compiles an expression; what is wrong with it is named.
pub fn expression(source: &str, scope: &Scope, wanted: &[Type], path: Path, errors: &mut Errors) -> Option<Program> {
    match scope.check(source, wanted) {
        Ok(program) => Some(program),
        Err(why) => {
            errors.invalid(path, source, &why);
            None
        }
    }
}

/// What the expressions of a policy may speak of, its variables included; names what is wrong with those.
pub fn policy_scope(spec: &Value, path: &Path, errors: &mut Errors) -> Scope {
    let mut scope = Scope { params: member(spec, "paramKind").is_some(), authorizer: true, namespace_object: true, ..Scope::default() };
    for (i, variable) in list(spec, "variables").iter().enumerate() {
        let path = path.child("variables").index(i);
        let (name, source) = (text(variable, "name"), text(variable, "expression"));
        if name.is_empty() {
            errors.required(path.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(path.child("name"), name, "must be a valid CEL identifier");
        }
        if source.trim().is_empty() {
            errors.required(path.child("expression"), "expression is not specified");
        }
        let compiled = if source.trim().is_empty() { Err(String::new()) } else { scope.compile(source) };
        let type_ = match compiled {
            Ok(program) => program.type_,
            Err(why) if why.is_empty() => Type::Dyn,
            Err(why) => {
                errors.invalid(path.child("expression"), source, &format!("compilation failed: {why}"));
                Type::Dyn
            }
        };
        scope.variables.push((name.to_string(), type_));
    }
    scope
}

/// Match conditions: their names, and that their expressions compile.
pub fn match_conditions(parent: &Value, scope: &Scope, path: &Path, errors: &mut Errors) {
    let conditions = list(parent, "matchConditions");
    if conditions.len() > CONDITIONS_MAX {
        errors.too_many(path.child("matchConditions"), conditions.len(), CONDITIONS_MAX);
    }
    for (i, condition, again) in checks::distinct(conditions, |condition| text(condition, "name")) {
        let path = path.child("matchConditions").index(i);
        let name = text(condition, "name");
        if text(condition, "expression").trim().is_empty() {
            errors.required(path.child("expression"), "");
        } else {
            expression(text(condition, "expression").trim(), scope, &[Type::Bool], path.child("expression"), errors);
        }
        if checks::required(condition, "name", &path, errors) {
            errors.invalid_all(&path.child("name"), name, names::qualified_name(name));
            if again {
                errors.duplicate(path.child("name"), name);
            }
        }
    }
}

/// What is said of a name that is kept for what a server reads from its own files.
pub fn name_warnings(object: &Value) -> Vec<String> {
    const SUFFIX: &str = ".static.k8s.io";
    let why = "are reserved for static manifest-based configurations and cannot be managed via the API";
    object.name().ends_with(SUFFIX).then(|| format!("metadata.name: names ending with {SUFFIX:?} {why}")).into_iter().collect()
}

/// The cell `ParamKind`.
pub fn param_kind(spec: &Value) -> String {
    member(spec, "paramKind").map_or("<unset>".into(), |kind| format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")))
}
/// The cell `ParamRef`.
pub fn param_reference(spec: &Value) -> String {
    let Some(reference) = member(spec, "paramRef") else { return "<unset>".into() };
    match (text(reference, "name"), member(reference, "selector")) {
        ("", Some(selector)) => go_selector(selector),
        (name, _) => format!("{}/{name}", if text(reference, "namespace").is_empty() { "*" } else { text(reference, "namespace") }),
    }
}
/// A LabelSelector in the form that Kubernetes prints here.
fn go_selector(selector: &Value) -> String {
    let labels: String = checks::text_entries(selector, "matchLabels").map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: String = list(selector, "matchExpressions")
        .iter()
        .map(|e| {
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                text(e, "key"),
                text(e, "operator"),
                strings(e, "values").collect::<Vec<_>>().join(" ")
            )
        })
        .collect();
    format!("&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}")
}

/// Defaults of the spec of a policy.
pub fn default_policy(policy: &mut Value) {
    let spec = made(policy, "spec");
    fill_absent(spec, "failurePolicy", "Fail");
    within(spec, "matchConstraints", default_match);
}
/// Defaults of the spec of a binding.
pub fn default_binding(binding: &mut Value) {
    within(made(binding, "spec"), "matchResources", default_match);
}
/// A version, maybe with its group, at `path`.
fn group_version(text: &str, path: &Path, errors: &mut Errors) {
    if text.matches('/').count() > 1 {
        return errors.invalid(path.clone(), text, &format!("unexpected GroupVersion string: {text}"));
    }
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    let problems = names::dns1123_subdomain(group);
    if !group.is_empty() && !problems.is_empty() {
        errors.invalid(path.clone(), group, &problems.join(","));
    }
    let problems = names::dns1035_label(version);
    if version.is_empty() {
        errors.invalid(path.clone(), text, "version must be specified");
    } else if !problems.is_empty() {
        errors.invalid(path.clone(), version, &problems.join(","));
    }
}

/// Checks of a policy that need no expressions.
pub fn validate_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    checks::one_of(spec, "failurePolicy", &["Fail", "Ignore"], path, errors);
    if let Some(kind) = member(spec, "paramKind") {
        let path = path.child("paramKind");
        let version = text(kind, "apiVersion");
        if checks::required(kind, "apiVersion", &path, errors) {
            group_version(version, &path.child("apiVersion"), errors);
        }
        let name = text(kind, "kind");
        if checks::required(kind, "kind", &path, errors) {
            let problems = names::dns1035_label(&name.to_lowercase());
            if !problems.is_empty() {
                let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
                errors.invalid(path.child("kind"), name, &detail);
            }
        }
    }
    match member(spec, "matchConstraints") {
        None => errors.required(path.child("matchConstraints"), ""),
        Some(constraints) => {
            let path = path.child("matchConstraints");
            validate_match(constraints, &path, errors);
            if list(constraints, "resourceRules").is_empty() {
                errors.required(path.child("resourceRules"), "");
            }
        }
    }
    let scope = Scope { params: member(spec, "paramKind").is_some(), authorizer: true, namespace_object: true, ..Scope::default() };
    match_conditions(spec, &scope, path, errors);
}
/// Checks of a binding.
pub fn validate_binding(spec: &Value, path: &Path, errors: &mut Errors) {
    checks::required_checked(spec, "policyName", path, names::dns1123_subdomain, errors);
    if let Some(reference) = member(spec, "paramRef") {
        let path = path.child("paramRef");
        let (name, selected) = (text(reference, "name"), member(reference, "selector"));
        let both = |key: &str, errors: &mut Errors| {
            if !name.is_empty() && selected.is_some() {
                errors.forbidden(path.child(key), "name and selector are mutually exclusive");
            }
        };
        checks::checked(reference, "name", &path, checks::path_segment, errors);
        both("name", errors);
        if let Some(selected) = selected {
            selector::validate(selected, &path.child("selector"), errors);
        }
        both("selector", errors);
        if name.is_empty() && selected.is_none() {
            errors.required(path.clone(), "one of name or selector must be specified");
        }
        match text(reference, "parameterNotFoundAction") {
            "" => errors.required(path.child("parameterNotFoundAction"), ""),
            _ => checks::one_of(reference, "parameterNotFoundAction", &["Deny", "Allow"], &path, errors),
        }
    }
    if let Some(resources) = member(spec, "matchResources") {
        validate_match(resources, &path.child("matchResources"), errors);
    }
}
