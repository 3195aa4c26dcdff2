//! The role label of the nodes that run an API server.
//!
//! A node may not give itself a role (the node authorizer's admission refuses it), and nobody else knows at its
//! registration that it is a server. The endpoints of the Service `kubernetes` say where API servers are.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{ErrorExt, Informer, Key, Selection};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Patch;
use serde_json::json;

use crate::Context;

const LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let servers =
        Selection { namespace: Some("default".to_owned()), labels: Some("kubernetes.io/service-name=kubernetes".to_owned()), ..Selection::default() };
    Arc::new(ControlPlane { nodes: context.informers.all(), servers: context.informers.selected(servers) })
}

struct ControlPlane {
    nodes: Informer<Node>,
    servers: Informer<EndpointSlice>,
}

/// Whether this node runs an API server and does not say so yet. The label stays when a server moves away: what to do
/// with such a node is a person's decision.
fn lacks_label(node: &Node, servers: &[Arc<EndpointSlice>]) -> bool {
    let labelled = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL));
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).filter(|address| address.type_ == "InternalIP");
    let serves = |address: &str| {
        servers.iter().flat_map(|slice| slice.endpoints.iter().flatten()).any(|endpoint| endpoint.addresses.iter().any(|a| a == address))
    };
    !labelled && addresses.into_iter().any(|address| serves(&address.address))
}

#[async_trait]
impl Controller for ControlPlane {
    fn name(&self) -> &'static str {
        "control-plane-label-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.nodes);
        let nodes = self.nodes.clone();
        inputs.mapped(&self.servers, move |_| nodes.list().iter().map(|node| Key::of(&**node)).collect());
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Next::Done) };
        if !lacks_label(&node, &self.servers.list()) {
            return Ok(Next::Done);
        }
        let patch = json!({"metadata": {"uid": node.metadata.uid, "labels": {LABEL: ""}}});
        match self.nodes.patch(key, &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).map_err(Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn only_a_node_at_a_servers_address_is_labelled_and_only_once() {
        let slice: EndpointSlice = from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]})).unwrap();
        let servers = [Arc::new(slice)];
        let node = |address: &str, labels: serde_json::Value| -> Node {
            from_value(json!({"metadata": {"labels": labels}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})).unwrap()
        };
        assert!(lacks_label(&node("10.0.0.1", json!({})), &servers));
        assert!(!lacks_label(&node("10.0.0.2", json!({})), &servers));
        assert!(!lacks_label(&node("10.0.0.1", json!({LABEL: ""})), &servers));
        assert!(!lacks_label(&node("10.0.0.1", json!({})), &[]));
    }
}
