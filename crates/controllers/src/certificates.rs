//! CertificateSigningRequests: approving those of nodes, signing what is approved, clearing away what is done.
//!
//! What must stay true: what is signed is what was approved, and follows the rules of its signer; a node only ever gets
//! certificates that say it is itself.

pub mod approver;
pub mod cleaner;
pub mod signer;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pki::request::Request;

pub(crate) const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(crate) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub(crate) const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Reads what is asked for; in words what is wrong with it otherwise.
pub(crate) fn parse(request: &CertificateSigningRequest) -> Result<Request, String> {
    let pem = std::str::from_utf8(&request.spec.request.0).map_err(|_| "the request is not PEM".to_owned())?;
    Request::parse(pem).map_err(|error| error.to_string())
}

pub(crate) fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

pub(crate) fn is(request: &CertificateSigningRequest, type_: &str) -> bool {
    conditions(request).iter().any(|condition| condition.type_ == type_)
}

pub(crate) fn is_issued(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|certificate| !certificate.0.is_empty())
}

pub(crate) fn condition(type_: &str, reason: &str, message: &str, now: jiff::Timestamp) -> CertificateSigningRequestCondition {
    let time = Time(client::clock::whole_seconds(now));
    CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(time.clone()),
        last_transition_time: Some(time),
    }
}

/// Whether the usages hold all of `needed` and nothing beyond these and `key encipherment`.
fn usages_are(request: &CertificateSigningRequest, needed: &[&str]) -> bool {
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let has = |usage: &&str| usages.iter().any(|each| each == usage);
    needed.iter().all(has) && usages.iter().all(|usage| needed.contains(&usage.as_str()) || usage == "key encipherment")
}

/// What the rules of its signer say against a request.
pub(crate) fn breaks_rules(csr: &CertificateSigningRequest, request: &Request) -> Option<&'static str> {
    let is_node = request.subject.organizations == ["system:nodes"] && request.subject.common_name.starts_with("system:node:");
    let has_names = !request.dns_names.is_empty() || !request.addresses.is_empty();
    match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT if !is_node => Some("subject organization is not system:nodes, or common name does not begin with system:node:"),
        KUBELET_CLIENT if has_names || request.other_names => Some("names are not allowed in a node's client certificate"),
        KUBELET_CLIENT if !usages_are(csr, &["digital signature", "client auth"]) => {
            Some("usages did not match those of a node's client certificate")
        }
        KUBELET_SERVING if !is_node => Some("subject organization is not system:nodes, or common name does not begin with system:node:"),
        KUBELET_SERVING if request.other_names => Some("only DNS names and IP addresses are allowed in a node's serving certificate"),
        KUBELET_SERVING if !has_names => Some("a node's serving certificate needs a DNS name or IP address"),
        KUBELET_SERVING if !usages_are(csr, &["digital signature", "server auth"]) => {
            Some("usages did not match those of a node's serving certificate")
        }
        API_CLIENT if !csr.spec.usages.iter().flatten().any(|usage| usage == "client auth") => Some("usages lack client auth"),
        API_CLIENT
            if csr.spec.usages.iter().flatten().any(|usage| !["client auth", "digital signature", "key encipherment"].contains(&usage.as_str())) =>
        {
            Some("usages beyond those of a client certificate")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use pki::Identity;

    pub(super) fn csr(signer: &str, identity: &Identity, usages: &[&str]) -> CertificateSigningRequest {
        let (pem, _) = pki::request::create(identity).expect("a request");
        let mut csr = CertificateSigningRequest::default();
        csr.spec.request = ByteString(pem.into_bytes());
        csr.spec.signer_name = signer.to_owned();
        csr.spec.usages = Some(usages.iter().map(|usage| (*usage).to_owned()).collect());
        csr.spec.username = Some(identity.common_name.clone());
        csr
    }

    #[test]
    fn rules() {
        let check = |csr: CertificateSigningRequest, sound: bool| {
            let request = parse(&csr).expect("a request");
            assert_eq!(breaks_rules(&csr, &request).is_none(), sound, "{} {:?}", csr.spec.signer_name, csr.spec.usages);
        };
        let node = Identity::node("w1");
        let serving = Identity::node_serving("w1", &[]);
        check(csr(KUBELET_CLIENT, &node, &["digital signature", "client auth"]), true);
        check(csr(KUBELET_CLIENT, &node, &["digital signature", "client auth", "server auth"]), false);
        check(csr(KUBELET_CLIENT, &serving, &["digital signature", "client auth"]), false);
        check(csr(KUBELET_CLIENT, &Identity::admin(), &["digital signature", "client auth"]), false);
        check(csr(KUBELET_SERVING, &serving, &["digital signature", "key encipherment", "server auth"]), true);
        check(csr(KUBELET_SERVING, &node, &["digital signature", "server auth"]), false);
        check(csr(API_CLIENT, &Identity::client("jane", &["dev"]), &["client auth"]), true);
        check(csr(API_CLIENT, &Identity::client("jane", &["dev"]), &["client auth", "server auth"]), false);
    }
}
