//! CertificateSigningRequest of certificates.k8s.io. Who asks (`username`, `groups`, ...) is set by the API server.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        base64, conditions,
        values::{each, fill, int, list, put, shown, strings, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

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
const DURATION_MIN_S: i64 = 600;

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
        stamp(request, old);
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
            let all: Vec<Value> =
                kept.into_iter().map(|c| before.iter().find(|b| text(b, "type") == text(&c, "type")).cloned().unwrap_or(c)).collect();
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
        stamp(request, old);
    }
    fn validate(&self, request: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(request), Path::new("spec"));
        let pem = base64::decode(text(spec, "request")).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        if !pem.contains("-----BEGIN CERTIFICATE REQUEST-----") {
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
        for (i, usage) in usages.iter().enumerate().filter(|(i, usage)| usages[..*i].contains(usage)) {
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
        validate_conditions(request, old, false, errors);
        let (status, before) = (workload::status(request), workload::status(old));
        let certificate = text(status, "certificate");
        let path = Path::new("status").child("certificate");
        if !text(before, "certificate").is_empty() && certificate != text(before, "certificate") {
            errors.forbidden(path, "updates may not modify existing certificate content");
        } else if !certificate.is_empty() {
            let pem = base64::decode(certificate).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
            if !pem.contains("-----BEGIN CERTIFICATE-----") {
                errors.invalid(path, "<certificate data>", "must contain at least one CERTIFICATE PEM block");
            }
        }
    }
    fn validate_view(&self, _view: &str, request: &Value, old: &Value, errors: &mut Errors) {
        validate_conditions(request, old, true, errors);
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

/// Conditions that were there keep their times.
fn stamp(request: &mut Value, old: &Value) {
    let before = list(workload::status(old), "conditions").to_vec();
    within(request, "status", |status| {
        each(status, "conditions", |condition| {
            if let Some(same) = before.iter().find(|b| text(b, "type") == text(condition, "type")) {
                for key in ["lastUpdateTime", "lastTransitionTime"] {
                    if let Some(time) = same.get(key) {
                        fill(condition, key, time.clone());
                    }
                }
            }
        })
    });
}

/// A domain with a dot, a slash, and a path of names.
pub fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(domain, rest)| domain.contains('.') && !rest.is_empty()) else {
        return errors.invalid(path.clone(), name, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    for label in domain.split('.') {
        for problem in names::dns1123_label(label) {
            errors.invalid(path.clone(), domain, &format!("validating label {label:?}: {problem}"));
        }
    }
    for part in rest.split('/') {
        for problem in names::dns1123_subdomain(part) {
            errors.invalid(path.clone(), part, &format!("validating label {part:?}: {problem}"));
        }
    }
}

fn validate_conditions(request: &Value, old: &Value, approval: bool, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let (conditions, before) = (list(workload::status(request), "conditions"), list(workload::status(old), "conditions"));
    let has = |conditions: &[Value], kind: &str| conditions.iter().any(|c| text(c, "type") == kind);
    if has(conditions, "Approved") && has(conditions, "Denied") {
        errors.invalid(path.clone(), "Denied", "Approved and Denied conditions are mutually exclusive");
    }
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let kind = text(condition, "type");
        if kind.is_empty() {
            errors.required(path.child("type"), "");
        }
        let status = text(condition, "status");
        let supported: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") { &["True"] } else { conditions::STATUSES };
        if status.is_empty() {
            errors.required(path.child("status"), "");
        } else if !supported.contains(&status) {
            errors.not_supported(path.child("status"), status, supported);
        }
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if has(before, kind) && !has(conditions, kind) {
            errors.forbidden(path.clone(), &format!("updates may not remove a condition of type {kind:?}"));
        }
        if !approval && kind != "Failed" && !has(before, kind) && has(conditions, kind) {
            errors.forbidden(path.clone(), &format!("updates may not add a condition of type {kind:?}"));
        }
    }
}
