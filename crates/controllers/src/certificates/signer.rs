//! Signs approved requests with the cluster's authority, for the signers that are Kubernetes' own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, ErrorExt, Informer, Key};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::Patch;
use pki::{Authority, Usage};
use serde_json::json;
use tracing::{error, info};

use super::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, breaks_rules, condition, conditions, is, is_issued, parse};
use crate::Context;

/// No certificate is good for less because it asks for less.
const VALIDITY_MIN: Duration = Duration::from_secs(600);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let ca = &context.options.ca;
    let authority = ca.key_pem.as_deref().and_then(|key| {
        let loaded = Authority::from_pem(&ca.certificate_pem, key);
        loaded.inspect_err(|problem| error!(%problem, "the authority can't be used; nothing will be signed")).ok()
    });
    let longest = context.options.cluster_signing_duration;
    Arc::new(Signer { authority, longest, requests: context.informers.all(), clock: context.clock.clone() })
}

struct Signer {
    authority: Option<Authority>,
    /// How long a certificate is good that asks for no shorter time.
    longest: Duration,
    requests: Informer<CertificateSigningRequest>,
    clock: Clock,
}

#[async_trait]
impl Controller for Signer {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-signing-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.requests);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(authority) = &self.authority else { return Ok(Next::Done) };
        let Some(csr) = self.requests.get(key) else { return Ok(Next::Done) };
        let ours = [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].contains(&csr.spec.signer_name.as_str());
        if !ours || !is(&csr, "Approved") || is(&csr, "Denied") || is(&csr, "Failed") || is_issued(&csr) {
            return Ok(Next::Done);
        }
        let status = match sign(authority, &csr, self.longest) {
            Ok(certificate) => json!({"certificate": ByteString(certificate.into_bytes())}),
            Err(problem) => {
                let failed = condition("Failed", "SignerValidationFailure", &problem, self.clock.now());
                json!({"conditions": conditions(&csr).iter().cloned().chain([failed]).collect::<Vec<_>>()})
            }
        };
        let patch = json!({"metadata": {"resourceVersion": csr.metadata.resource_version}, "status": status});
        match self.requests.patch_status(key, &Patch::Merge(patch)).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => {
                info!(request = key.name, signer = csr.spec.signer_name, "settled");
                Ok(Next::Done)
            }
        }
    }
}

/// The signed certificate, or why there is none.
fn sign(authority: &Authority, csr: &CertificateSigningRequest, longest: Duration) -> Result<String, String> {
    let request = parse(csr)?;
    if let Some(broken) = breaks_rules(csr, &request) {
        return Err(broken.to_owned());
    }
    let asked = csr.spec.usages.as_deref().unwrap_or_default();
    let usages: Vec<Usage> = [("client auth", Usage::Client), ("server auth", Usage::Server)]
        .into_iter()
        .filter(|(name, _)| asked.iter().any(|usage| usage == name))
        .map(|(_, usage)| usage)
        .collect();
    let pem = std::str::from_utf8(&csr.spec.request.0).map_err(|error| error.to_string())?;
    authority.sign_request(pem, &usages, validity(csr.spec.expiration_seconds, longest)).map_err(|error| error.to_string())
}

fn validity(asked_s: Option<i32>, longest: Duration) -> Duration {
    let asked = asked_s.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    asked.map_or(longest, |asked| asked.max(VALIDITY_MIN).min(longest))
}

#[cfg(test)]
mod tests {
    use super::super::tests::csr;
    use super::*;
    use pki::Identity;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[test]
    fn what_follows_the_rules_is_signed() {
        let authority = Authority::generate("kubernetes").expect("an authority");
        let sound = csr(KUBELET_CLIENT, &Identity::node("w1"), &["digital signature", "client auth"]);
        assert!(sign(&authority, &sound, YEAR).is_ok_and(|pem| pem.starts_with("-----BEGIN CERTIFICATE-----")));
        let unsound = csr(KUBELET_CLIENT, &Identity::admin(), &["digital signature", "client auth"]);
        assert!(sign(&authority, &unsound, YEAR).is_err());
        let mut broken = sound;
        broken.spec.request = ByteString(b"nothing".to_vec());
        assert!(sign(&authority, &broken, YEAR).is_err());
    }

    #[test]
    fn validity_has_its_bounds() {
        assert_eq!(validity(None, YEAR), YEAR);
        assert_eq!(validity(Some(3600), YEAR), Duration::from_secs(3600));
        assert_eq!(validity(Some(1), YEAR), VALIDITY_MIN);
        assert_eq!(validity(Some(i32::MAX), YEAR), YEAR);
        // A drill lets them live for minutes.
        let short = Duration::from_secs(120);
        assert_eq!((validity(None, short), validity(Some(3600), short)), (short, short));
    }
}
