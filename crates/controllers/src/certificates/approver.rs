//! Approves the certificates that nodes ask for themselves: to join (if the requester may), to renew, and to serve under
//! their own names.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, ErrorExt, Informer, Key};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use pki::request::Request;
use serde_json::json;
use tracing::info;

use super::{KUBELET_CLIENT, KUBELET_SERVING, breaks_rules, condition, is, is_issued, parse};
use crate::Context;

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Approver {
        client: context.client.clone(),
        requests: context.informers.all(),
        nodes: context.informers.all(),
        clock: context.clock.clone(),
    })
}

struct Approver {
    client: kube::Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    clock: Clock,
}

#[async_trait]
impl Controller for Approver {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-approving-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.requests);
        let requests = self.requests.clone();
        // A serving certificate waits until its node says which addresses it has.
        inputs.mapped(&self.nodes, move |change| {
            let user = format!("system:node:{}", Key::of(&**change.object()).name);
            let of_node = requests
                .list()
                .into_iter()
                .filter(|request| request.spec.signer_name == KUBELET_SERVING && request.spec.username.as_ref() == Some(&user));
            of_node.map(|request| Key::of(&*request)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(csr) = self.requests.get(key) else { return Ok(Next::Done) };
        if is_issued(&csr) || ["Approved", "Denied", "Failed"].iter().any(|type_| is(&csr, type_)) {
            return Ok(Next::Done);
        }
        let Ok(request) = parse(&csr) else { return Ok(Next::Done) };
        let node = request.subject.common_name.strip_prefix("system:node:").and_then(|name| self.nodes.get(&Key::new("", name)));
        let message = match decide(&csr, &request, node.as_deref()) {
            Verdict::NotOurs => return Ok(Next::Done),
            Verdict::Approve(message) => message,
            Verdict::IfAllowed { subresource, message } => {
                if !self.may(&csr, subresource).await? {
                    return Ok(Next::Done);
                }
                message
            }
        };
        let mut conditions = super::conditions(&csr).to_vec();
        conditions.push(condition("Approved", "AutoApproved", message, self.clock.now()));
        let patch = json!({"metadata": {"resourceVersion": csr.metadata.resource_version}, "status": {"conditions": conditions}});
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        match api.patch_approval(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => {
                info!(request = key.name, user = csr.spec.username, "approved");
                Ok(Next::Done)
            }
        }
    }
}

impl Approver {
    /// Whether the requester may have its request approved without a human.
    async fn may(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let spec = &csr.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Somebody else decides.
    NotOurs,
    Approve(&'static str),
    /// If the requester may create this subresource.
    IfAllowed {
        subresource: &'static str,
        message: &'static str,
    },
}

fn decide(csr: &CertificateSigningRequest, request: &Request, node: Option<&Node>) -> Verdict {
    if breaks_rules(csr, request).is_some() {
        return Verdict::NotOurs;
    }
    let by_itself = csr.spec.username.as_deref() == Some(&request.subject.common_name);
    match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT if by_itself => {
            Verdict::IfAllowed { subresource: "selfnodeclient", message: "Auto approving self kubelet client certificate after SubjectAccessReview." }
        }
        KUBELET_CLIENT => {
            Verdict::IfAllowed { subresource: "nodeclient", message: "Auto approving kubelet client certificate after SubjectAccessReview." }
        }
        KUBELET_SERVING if by_itself && node.is_some_and(|node| owns_names(node, request)) => {
            Verdict::Approve("Auto approving kubelet serving certificate for the node's own names and addresses.")
        }
        _ => Verdict::NotOurs,
    }
}

/// Whether all names are the node's own, as its status has them (or mean the machine itself).
fn owns_names(node: &Node, request: &Request) -> bool {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut own: BTreeSet<&str> = addresses.map(|address| address.address.as_str()).collect();
    own.extend(node.metadata.name.as_deref());
    own.insert("localhost");
    let own_address = |address: &std::net::IpAddr| address.is_loopback() || own.contains(address.to_string().as_str());
    request.dns_names.iter().all(|name| own.contains(name.as_str())) && request.addresses.iter().all(own_address)
}

#[cfg(test)]
mod tests {
    use super::super::tests::csr;
    use super::*;
    use pki::Identity;

    fn node(name: &str, address: &str) -> Node {
        let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).expect("a node")
    }

    #[test]
    fn a_node_serves_under_its_own_names_only() {
        let check = |node: Option<&Node>, expected: bool| {
            let identity = Identity::node_serving("w1", &["192.0.2.1".parse().expect("an address")]);
            let csr = csr(KUBELET_SERVING, &identity, &["digital signature", "server auth"]);
            let verdict = decide(&csr, &parse(&csr).expect("a request"), node);
            assert_eq!(matches!(verdict, Verdict::Approve(_)), expected);
        };
        check(Some(&node("w1", "192.0.2.1")), true);
        check(Some(&node("w1", "192.0.2.2")), false);
        check(None, false);
    }

    #[test]
    fn joining_and_renewing_are_told_apart() {
        let subresource = |user: &str| {
            let mut csr = csr(KUBELET_CLIENT, &Identity::node("w1"), &["digital signature", "client auth"]);
            csr.spec.username = Some(user.to_owned());
            match decide(&csr, &parse(&csr).expect("a request"), None) {
                Verdict::IfAllowed { subresource, .. } => Some(subresource),
                _ => None,
            }
        };
        assert_eq!(subresource("system:node:w1"), Some("selfnodeclient"));
        assert_eq!(subresource("system:bootstrap:abcdef"), Some("nodeclient"));
    }
}
