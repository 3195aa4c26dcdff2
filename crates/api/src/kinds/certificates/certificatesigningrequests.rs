//! CertificateSigningRequest of certificates.k8s.io. Who asks (`username`, `groups`, ...) is set by the API server, which also reads what
//! is in the request: here is no X.509.

use crate::{
    field::{Errors, Path, quoted},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        base64, checks, conditions, pem,
        values::{each, fill, int, list, put, shown, strings, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::HashSet;

pub fn kind() -> Kind {
    Kind::cluster("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
        .short(&["csr"])
        .names(NameRule::PathSegment)
        .selectable(&["spec.signerName"])
        .connect("approval", ("", "", "CertificateSigningRequest"), &["get", "patch", "update"])
        .status()
        .hooks(CertificateSigningRequests)
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// What a request is called in PEM.
pub const REQUEST_LABEL: &str = "CERTIFICATE REQUEST";
const DURATION_MIN_S: i64 = 600;
const DOMAIN_CHARS_MAX: usize = 253;
/// Two domains, a label and what is between them.
const SIGNER_CHARS_MAX: usize = 253 + 1 + 253 + 63 + 1;

struct CertificateSigningRequests;

impl Hooks for CertificateSigningRequests {
    fn prepare_create(&self, request: &mut Value) {
        put(request, "status", json!({}));
    }
    fn prepare_update(&self, request: &mut Value, old: &Value) {
        for key in ["spec", "status"] {
            if let Some(value) = old.get(key) {
                put(request, key, value.clone());
            }
        }
    }
    fn prepare_status(&self, request: &mut Value, old: &Value) {
        // Approval and denial are not the signer's to change.
        let decided = |object: &Value| {
            list(workload::status(object), "conditions")
                .iter()
                .filter(|c| matches!(text(c, "type"), "Approved" | "Denied"))
                .cloned()
                .collect::<Vec<_>>()
        };
        let before = decided(old);
        within(request, "status", |status| {
            let kept: Vec<Value> = list(status, "conditions").to_vec();
            let before = checks::by_key(&before, |condition| text(condition, "type"));
            let all: Vec<Value> = kept.into_iter().map(|c| before.get(text(&c, "type")).copied().cloned().unwrap_or(c)).collect();
            if !all.is_empty() {
                put(status, "conditions", all);
            }
        });
    }
    fn prepare_view(&self, _view: &str, request: &mut Value, old: &Value) {
        let conditions = workload::status(request).get("conditions").cloned();
        let version = request.at("metadata.resourceVersion").cloned();
        *request = old.clone();
        if let Some(version) = version {
            request.set("metadata.resourceVersion", version);
        }
        match conditions {
            Some(conditions) => request.set("status.conditions", conditions),
            None => {
                request.remove("status.conditions");
            }
        }
    }
    /// Conditions are told of now; the last transition was when another status was said last.
    fn stamp(&self, request: &mut Value, old: &Value, now: &str) {
        let before = list(workload::status(old), "conditions");
        within(request, "status", |status| {
            each(status, "conditions", |condition| {
                fill(condition, "lastUpdateTime", now);
                let same = before.iter().find(|b| ["type", "status"].iter().all(|key| text(b, key) == text(condition, key)));
                let since = same.map(|same| text(same, "lastTransitionTime")).filter(|since| !since.is_empty()).unwrap_or(now);
                fill(condition, "lastTransitionTime", since);
            })
        });
    }
    fn validate(&self, request: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(request), Path::new("spec"));
        let request = pem_of(text(spec, "request"));
        if pem::blocks(&request).next().is_none_or(|block| block.label != REQUEST_LABEL) {
            errors.invalid(path.child("request"), shown(spec, "request"), "PEM block type must be CERTIFICATE REQUEST");
        }
        let usages: Vec<&str> = strings(spec, "usages").collect();
        if usages.is_empty() {
            errors.required(path.child("usages"), "");
        }
        let at = |i: usize| path.child("usages").index(i);
        for (i, usage) in usages.iter().enumerate().filter(|(_, usage)| !USAGES.contains(usage)) {
            errors.not_supported(at(i), *usage, USAGES);
        }
        for (i, usage, _) in checks::distinct(&usages, |usage| *usage).filter(|(.., again)| *again) {
            errors.duplicate(at(i), *usage);
        }
        if text(spec, "signerName") == "kubernetes.io/legacy-unknown" {
            errors.invalid(path.child("signerName"), "kubernetes.io/legacy-unknown", "the legacy signerName is not allowed via this API version");
        } else {
            signer_name(text(spec, "signerName"), &path.child("signerName"), errors);
        }
        if let Some(seconds) = int(spec, "expirationSeconds")
            && seconds < DURATION_MIN_S
        {
            errors.invalid(path.child("expirationSeconds"), seconds, "may not specify a duration less than 600 seconds (10 minutes)");
        }
    }
    fn validate_status(&self, request: &Value, old: &Value, errors: &mut Errors) {
        let (now, before) = (text(workload::status(request), "certificate"), text(workload::status(old), "certificate"));
        validate_conditions(request, old, errors);
        let path = Path::new("status").child("certificate");
        // Who stands with something odd may keep to it.
        if now != before
            && certificate_problem(before).is_none()
            && let Some(problem) = certificate_problem(now)
        {
            errors.invalid(path.clone(), "<certificate data>", &problem);
        }
        kept_conditions(request, old, false, errors);
        if !before.is_empty() && now != before {
            errors.forbidden(path, "updates may not modify existing certificate content");
        }
    }
    fn validate_view(&self, _view: &str, request: &Value, old: &Value, errors: &mut Errors) {
        validate_conditions(request, old, errors);
        kept_conditions(request, old, true, errors);
    }
    fn cells(&self, request: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(request), workload::status(request));
        let has = |kind: &str| list(status, "conditions").iter().any(|c| text(c, "type") == kind);
        let mut state = match () {
            () if has("Denied") => "Denied",
            () if has("Approved") => "Approved",
            () => "Pending",
        }
        .to_string();
        if has("Failed") {
            state.push_str(",Failed");
        }
        if !text(status, "certificate").is_empty() {
            state.push_str(",Issued");
        }
        let duration = int(spec, "expirationSeconds").map_or("<none>".to_string(), table::human_duration);
        let signer = match text(spec, "signerName") {
            "" => "<none>",
            signer => signer,
        };
        vec![table::name(request), table::age(request, now_unix_s), json!(signer), json!(text(spec, "username")), json!(duration), json!(state)]
    }
}

/// A domain with a dot, a slash, and a path of names.
pub fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    let (domain, rest) = match name.split('/').collect::<Vec<_>>().as_slice() {
        [domain, rest] => (*domain, *rest),
        _ => return errors.invalid(path.clone(), name, "must be a fully qualified domain and path of the form 'example.com/signer-name'"),
    };
    if domain.len() > DOMAIN_CHARS_MAX {
        errors.too_long(path.clone(), domain, DOMAIN_CHARS_MAX);
    }
    // Of several bad parts, the first is named.
    let first_bad = |whole: &str, check: fn(&str) -> Vec<String>, errors: &mut Errors| {
        let bad = whole.split('.').map(|part| (part, check(part))).find(|(_, problems)| !problems.is_empty());
        for (part, problem) in bad.iter().flat_map(|(part, problems)| problems.iter().map(move |problem| (part, problem))) {
            errors.invalid(path.clone(), whole, &format!("validating label {}: {problem}", quoted(part)));
        }
    };
    first_bad(domain, names::dns1123_label, errors);
    if !domain.contains('.') {
        errors.invalid(path.clone(), domain, "should be a domain with at least two segments separated by dots");
    }
    first_bad(rest, names::dns1123_subdomain, errors);
    if name.len() > SIGNER_CHARS_MAX {
        errors.too_long(path.clone(), name, SIGNER_CHARS_MAX);
    }
}

/// What is wrong with the certificates that a signer made, as PEM in base64.
fn certificate_problem(certificate: &str) -> Option<String> {
    if certificate.is_empty() {
        return None;
    }
    let certificate = pem_of(certificate);
    let mut blocks = pem::blocks(&certificate).peekable();
    if blocks.peek().is_none() {
        return Some("must contain at least one CERTIFICATE PEM block".into());
    }
    blocks.find_map(|block| match block.label {
        "CERTIFICATE" => block.has_headers.then(|| "no PEM block headers are permitted".into()),
        label => Some(format!("only CERTIFICATE PEM blocks are allowed, found {}", quoted(label))),
    })
}
/// The text of a field of bytes that is PEM.
pub fn pem_of(bytes: &str) -> String {
    String::from_utf8_lossy(&base64::decode(bytes).unwrap_or_default()).into_owned()
}

/// Checks the conditions, but for what was already wrong before.
fn validate_conditions(request: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let (conditions, before) = (list(workload::status(request), "conditions"), list(workload::status(old), "conditions"));
    fn kind(condition: &Value) -> &str {
        text(condition, "type")
    }
    let were = checks::by_key(before, kind);
    let were_twice = were.len() < before.len();
    let were_both = ["Approved", "Denied"].iter().all(|kind| were.contains_key(kind));
    let mut so_far = HashSet::new();
    for (i, condition, again) in checks::distinct(conditions, kind) {
        let at = path.index(i);
        let kind = text(condition, "type");
        if kind.is_empty() && !were.contains_key("") {
            errors.required(at.child("type"), "");
        }
        let supported: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") { &["True"] } else { conditions::STATUSES };
        checks::required_one_of(condition, "status", supported, &at, errors);
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if so_far.contains(opposite) && !were_both {
            errors.invalid(path.clone(), kind, "Approved and Denied conditions are mutually exclusive");
        }
        if again && !were_twice {
            errors.duplicate(at.child("type"), kind);
        }
        so_far.extend(["Approved", "Denied"].into_iter().find(|decision| *decision == kind));
    }
}

/// What was decided stays, and only an approval decides.
fn kept_conditions(request: &Value, old: &Value, approval: bool, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let count = |object: &Value, kind: &str| list(workload::status(object), "conditions").iter().filter(|c| text(c, "type") == kind).count();
    for kind in ["Approved", "Denied", "Failed"] {
        if count(request, kind) < count(old, kind) {
            errors.forbidden(path.clone(), &format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    for kind in ["Approved", "Denied"] {
        if !approval && count(request, kind) > count(old, kind) {
            errors.forbidden(path.clone(), &format!("updates may not add a condition of type {kind:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_are_a_domain_and_a_path() {
        for (name, problem) in [
            ("example.com/a", ""),
            ("example.com/a.b", ""),
            ("example/a", "should be a domain with at least two segments separated by dots"),
            ("example.com/a/b", "must be a fully qualified domain and path of the form 'example.com/signer-name'"),
            ("me", "must be a fully qualified domain and path of the form 'example.com/signer-name'"),
        ] {
            let mut errors = Errors::default();
            signer_name(name, &Path::new("at"), &mut errors);
            assert!(errors.to_string().ends_with(problem) && errors.is_empty() == problem.is_empty(), "{name}: {errors}");
        }
    }

    #[test]
    fn what_a_signer_makes_is_certificates() {
        let pem = |label: &str, body: &str| base64::encode(format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").as_bytes());
        for (certificate, problem) in [
            (pem("CERTIFICATE", "AAAA"), None),
            (pem("PRIVATE KEY", "AAAA"), Some("only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\"")),
            (pem("CERTIFICATE", "a: b\n\nAAAA"), Some("no PEM block headers are permitted")),
            (base64::encode(b"x"), Some("must contain at least one CERTIFICATE PEM block")),
        ] {
            assert_eq!(certificate_problem(&certificate).as_deref(), problem);
        }
    }
}
