//! Certificate signing requests: who asks is written down, and who approves or signs must be allowed to for that signer.

use super::{AdmissionContext, Operation, Plugin};
use crate::authorization::{Attributes, allowed};
use api::{
    Status, Value,
    field::{Errors, Path},
    kinds::{
        certificates::certificatesigningrequests::{REQUEST_LABEL, pem_of},
        pem,
    },
    object::ObjectExt,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use pki::{identity::are_certificates, request::Request};
use serde_json::json;

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";

/// Writes the caller's identity into a new request, whatever the request claims. And reads what is asked for, and what a signer made:
/// that is X.509, which the rules of the kind know nothing of.
pub(super) struct Requester;

#[async_trait::async_trait]
impl Plugin for Requester {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.is(Operation::Create, GROUP, RESOURCE) {
            return Ok(());
        }
        let user = cx.user;
        let fields = [
            ("spec.username", json!(user.name), user.name.is_empty()),
            ("spec.uid", json!(user.uid), user.uid.is_empty()),
            ("spec.groups", json!(user.groups), user.groups.is_empty()),
            ("spec.extra", json!(user.extra), user.extra.is_empty()),
        ];
        for (path, value, empty) in fields {
            if empty { drop(object.remove(path)) } else { object.set(path, value) }
        }
        Ok(())
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let mut errors = Errors::default();
        if cx.is(Operation::Create, GROUP, RESOURCE) {
            check_request(object, &mut errors);
        } else if cx.operation == Operation::Update && cx.concerns(GROUP, RESOURCE) && cx.subresource == "status" {
            check_certificate(object, cx.old, &mut errors);
        }
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&cx.kind.group, &cx.kind.kind, object.name(), &errors)) }
    }
}

/// The request is one, and signed by the key that it is for.
fn check_request(object: &Value, errors: &mut Errors) {
    let request = object.str_at("spec.request").unwrap_or_default();
    let text = pem_of(request);
    // Of what is no request at all, the rules of the kind have told.
    let Some(block) = pem::blocks(&text).next().filter(|block| block.label == REQUEST_LABEL) else { return };
    if let Some(problem) = pki::request::problem(&block.bytes) {
        errors.invalid(Path::new("spec").child("request"), request, problem);
    }
}
/// What a signer puts in are certificates.
fn check_certificate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let certificate = |object: &'_ Value| object.str_at("status.certificate").unwrap_or_default().to_string();
    let now = certificate(object);
    if old.map(certificate).unwrap_or_default() != now && pem::blocks(&pem_of(&now)).any(|block| !are_certificates(&block.bytes)) {
        errors.invalid(Path::new("status").child("certificate"), "<certificate data>", "x509: malformed certificate");
    }
}

/// Approving needs the verb `approve` on the signer.
pub(super) struct CertificateApproval;

#[async_trait::async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if cx.operation != Operation::Update || !cx.concerns(GROUP, RESOURCE) || cx.subresource != "approval" {
            return Ok(());
        }
        check_signer(cx, object, "approve")
    }
}

/// Putting in a certificate needs the verb `sign` on the signer.
pub(super) struct CertificateSigning;

#[async_trait::async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if cx.operation != Operation::Update || !cx.concerns(GROUP, RESOURCE) || cx.subresource != "status" {
            return Ok(());
        }
        let failed = |request: &Value| {
            request.list_at("status.conditions").iter().filter(|condition| condition.str_at("type") == Some("Failed")).cloned().collect::<Vec<_>>()
        };
        let unchanged = cx.old.is_some_and(|old| old.at("status.certificate") == object.at("status.certificate") && failed(old) == failed(object));
        if unchanged { Ok(()) } else { check_signer(cx, object, "sign") }
    }
}

fn check_signer(cx: &AdmissionContext<'_>, object: &Value, verb: &str) -> Result<(), Status> {
    let signer = cx.old.unwrap_or(object).str_at("spec.signerName").unwrap_or_default();
    let all_of_domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
    let may = |name: &str| {
        allowed(cx.server, cx.user, &Attributes { verb, group: GROUP, version: "*", resource: "signers", name, ..Attributes::default() })
    };
    if may(signer) || may(&all_of_domain) {
        return Ok(());
    }
    Err(cx.forbidden(object, format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Nobody asks for a certificate that may everything.
pub(super) struct CertificateSubjectRestriction;

#[async_trait::async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if !cx.is(Operation::Create, GROUP, RESOURCE) || object.str_at("spec.signerName") != Some("kubernetes.io/kube-apiserver-client") {
            return Ok(());
        }
        let pem = STANDARD.decode(object.str_at("spec.request").unwrap_or_default()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let request = pem.and_then(|pem| Request::parse(&pem).ok());
        if request.is_some_and(|request| request.subject.organizations.iter().any(|group| group == "system:masters")) {
            return Err(cx.forbidden(object, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_and_what_is_made_is_read() {
        let identity = pki::Identity::node("worker-1");
        let (request, _) = pki::request::create(&identity).unwrap();
        let field = |pem: &str| STANDARD.encode(pem);
        let asked = |pem: &str| {
            let mut errors = Errors::default();
            check_request(&json!({"spec": {"request": field(pem)}}), &mut errors);
            errors.to_string()
        };
        assert_eq!(asked(&request), "[]");
        let odd = request.replace("MII", "MIA").replace("MIH", "MIG");
        assert!(asked(&odd).starts_with("spec.request: Invalid value: ") && asked(&odd).contains(": asn1: "), "{}", asked(&odd));
        let authority = pki::Authority::generate("kubernetes").unwrap();
        let made = |new: &str, old: &str| {
            let status = |pem: &str| json!({"status": {"certificate": field(pem)}});
            let mut errors = Errors::default();
            check_certificate(&status(new), Some(&status(old)), &mut errors);
            errors.to_string()
        };
        let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(made(authority.certificate_pem(), ""), "[]");
        assert_eq!(made(none, ""), "status.certificate: Invalid value: \"<certificate data>\": x509: malformed certificate");
        assert_eq!(made(none, none), "[]");
    }
}
