//! PodSecurity: a namespace's labels say how much its pods may do to their node.
//!
//! `pod-security.kubernetes.io/enforce|warn|audit` name a level (`privileged`, `baseline`, `restricted`), each with a
//! `-version` of the rules. Pods beyond what is enforced are refused; workloads whose pods would be are warned about.

mod checks;

use super::{AdmissionContext, Operation, Plugin};
use crate::cache::Entry;
use api::{Status, Value, field, object::ObjectExt};
use checks::{Finding, Level};
use std::collections::BTreeMap;

const PREFIX: &str = "pod-security.kubernetes.io/";
const MODES: [&str; 3] = ["enforce", "audit", "warn"];
/// Pods that are looked at when a namespace is tightened; more are not named.
const EXISTING_PODS_MAX: usize = 3000;
/// Where workloads have their pods' template.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "template"),
    ("", "replicationcontrollers", "spec.template"),
    ("apps", "deployments", "spec.template"),
    ("apps", "replicasets", "spec.template"),
    ("apps", "statefulsets", "spec.template"),
    ("apps", "daemonsets", "spec.template"),
    ("batch", "jobs", "spec.template"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template"),
];

pub(super) struct PodSecurity;

/// A level and the minor version of its rules; `None` is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    level: Level,
    minor: Option<u32>,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            None => write!(f, "{}:latest", self.level.name()),
        }
    }
}

impl Policy {
    fn findings(&self, metadata: &Value, spec: &Value) -> Vec<Finding> {
        checks::run(self.level, self.minor.unwrap_or(u32::MAX), metadata, spec)
    }
}

#[async_trait::async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if !matches!(cx.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        match (cx.kind.group.as_str(), cx.kind.resource.as_str(), cx.subresource) {
            ("", "namespaces", "") => namespace(cx, object),
            ("", "pods", "" | "ephemeralcontainers") => pod(cx, object),
            (group, resource, "") => match TEMPLATES.iter().find(|(g, r, _)| *g == group && *r == resource) {
                Some((_, _, path)) => template(cx, object.at(path).unwrap_or(&Value::Null)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// A namespace, parsed or as the cache has it.
trait Namespace {
    fn says(&self, key: &str) -> Option<&str>;
}

impl Namespace for Value {
    fn says(&self, key: &str) -> Option<&str> {
        self.label(key)
    }
}

impl Namespace for Entry {
    fn says(&self, key: &str) -> Option<&str> {
        self.label(key)
    }
}

/// What a namespace's labels say of a mode. What cannot be read is taken as the strictest.
fn policy(namespace: &impl Namespace, mode: &str) -> Option<Policy> {
    let level = namespace.says(&format!("{PREFIX}{mode}"))?;
    let minor = namespace.says(&format!("{PREFIX}{mode}-version")).and_then(|text| version(text).ok().flatten());
    Some(Policy { level: Level::parse(level).unwrap_or(Level::Restricted), minor })
}

/// `latest` is none, `v1.24` is 24.
fn version(text: &str) -> Result<Option<u32>, ()> {
    if text == "latest" {
        return Ok(None);
    }
    let minor = text.strip_prefix("v1.").ok_or(())?;
    let plain = minor == "0" || !minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit());
    if plain { minor.parse().map(Some).map_err(drop) } else { Err(()) }
}

fn pod(cx: &AdmissionContext<'_>, pod: &Value) -> Result<(), Status> {
    let unchanged = cx.old.is_some_and(|old| old.at("spec") == pod.at("spec") && old.annotations() == pod.annotations());
    if unchanged {
        return Ok(());
    }
    let Some(namespace) = cx.server.lookup("", "namespaces", "", cx.namespace)? else { return Ok(()) };
    let (metadata, spec) = parts(pod);
    if cx.warnings.are_audited() {
        let enforced = policy(&*namespace, "enforce").map_or_else(|| "privileged:latest".to_string(), |policy| policy.to_string());
        cx.warnings.annotate(&format!("{PREFIX}enforce-policy"), &enforced);
    }
    if let Some(policy) = policy(&*namespace, "enforce") {
        let findings = policy.findings(metadata, spec);
        if !findings.is_empty() {
            return Err(cx.forbidden(pod, format!("violates PodSecurity \"{policy}\": {}", details(&findings))));
        }
    }
    warn(cx, policy(&*namespace, "warn"), metadata, spec);
    note(cx, &namespace, metadata, spec);
    Ok(())
}

fn template(cx: &AdmissionContext<'_>, template: &Value) -> Result<(), Status> {
    let Some(namespace) = cx.server.lookup("", "namespaces", "", cx.namespace)? else { return Ok(()) };
    let (metadata, spec) = parts(template);
    if spec.is_object() {
        // The workload itself is not refused, but its pods would be.
        warn(cx, policy(&*namespace, "warn").or_else(|| policy(&*namespace, "enforce")), metadata, spec);
        note(cx, &namespace, metadata, spec);
    }
    Ok(())
}

fn parts(pod: &Value) -> (&Value, &Value) {
    (pod.get("metadata").unwrap_or(&Value::Null), pod.get("spec").unwrap_or(&Value::Null))
}

fn warn(cx: &AdmissionContext<'_>, policy: Option<Policy>, metadata: &Value, spec: &Value) {
    let Some(policy) = policy else { return };
    let findings = policy.findings(metadata, spec);
    if !findings.is_empty() {
        cx.warnings.add(format!("would violate PodSecurity \"{policy}\": {}", details(&findings)));
    }
}

/// Tells the audit log, if there is one, what the mode `audit` finds.
fn note(cx: &AdmissionContext<'_>, namespace: &Entry, metadata: &Value, spec: &Value) {
    let Some(policy) = policy(namespace, "audit").filter(|_| cx.warnings.are_audited()) else { return };
    let findings = policy.findings(metadata, spec);
    if !findings.is_empty() {
        cx.warnings.annotate(&format!("{PREFIX}audit-violations"), &format!("would violate PodSecurity \"{policy}\": {}", details(&findings)));
    }
}

fn details(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{} ({})", finding.reason, finding.detail)).collect::<Vec<_>>().join(", ")
}

/// Labels must make sense; and who tightens a namespace is told which of its pods are beyond it now.
fn namespace(cx: &AdmissionContext<'_>, namespace: &Value) -> Result<(), Status> {
    let errors = check_labels(namespace);
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", namespace.name(), &errors));
    }
    let (Some(now), Some(old)) = (policy(namespace, "enforce"), cx.old) else { return Ok(()) };
    if policy(old, "enforce") == Some(now) || now.level == Level::Privileged {
        return Ok(());
    }
    let mut by_reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in cx.server.entries("", "pods", Some(namespace.name()))?.iter().take(EXISTING_PODS_MAX) {
        let pod = entry.value();
        let (metadata, spec) = parts(&pod);
        let reasons: Vec<_> = now.findings(metadata, spec).iter().map(|finding| finding.reason).collect();
        if !reasons.is_empty() {
            by_reasons.entry(reasons.join(", ")).or_default().push(entry.name().to_string());
        }
    }
    if by_reasons.is_empty() {
        return Ok(());
    }
    cx.warnings.add(format!("existing pods in namespace {:?} violate the new PodSecurity enforce level \"{now}\"", namespace.name()));
    for (reasons, pods) in by_reasons {
        let others = match pods.len() {
            1 => String::new(),
            2 => " (and 1 other pod)".into(),
            more => format!(" (and {} other pods)", more - 1),
        };
        cx.warnings.add(format!("{}{others}: {reasons}", pods[0]));
    }
    Ok(())
}

fn check_labels(namespace: &Value) -> field::Errors {
    let mut errors = field::Errors::default();
    let labels = field::Path::new("metadata").child("labels");
    for mode in MODES {
        let level = format!("{PREFIX}{mode}");
        if let Some(given) = namespace.label(&level).filter(|given| Level::parse(given).is_none()) {
            errors.invalid(labels.key(&level), given, "must be one of privileged, baseline, restricted");
        }
        let key = format!("{PREFIX}{mode}-version");
        if let Some(given) = namespace.label(&key).filter(|given| version(given).is_err()) {
            errors.invalid(labels.key(&key), given, "must be \"latest\" or \"v1.x\"");
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_are_read_and_checked() {
        let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
        let good = namespace(json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.24"}));
        assert_eq!(policy(&good, "enforce").unwrap().to_string(), "baseline:v1.24");
        assert_eq!(policy(&good, "warn"), None);
        let odd = namespace(json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/audit-version": "1.2"}));
        assert_eq!(policy(&odd, "enforce").unwrap().level, Level::Restricted, "unreadable is strictest");
        assert_eq!(check_labels(&odd).0.len(), 2);
        assert!(check_labels(&good).is_empty());
    }
}
