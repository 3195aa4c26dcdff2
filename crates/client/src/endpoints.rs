//! What an EndpointSlice says of its endpoints, with Kubernetes' defaults for what it leaves out
//! (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>), and who writes it.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use membership::Said;
use std::net::Ipv4Addr;

/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The controller that makes slices of Pods.
pub const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// What the slice says of this endpoint of its. The addresses of one endpoint are interchangeable: the first is taken. `None`: it
/// has no IPv4 address.
pub fn said(slice: &EndpointSlice, endpoint: &Endpoint) -> Option<Said> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    Some(Said {
        ready,
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        address: endpoint.addresses.first()?.parse::<Ipv4Addr>().ok()?,
        copied: slice.metadata.labels.iter().flatten().any(|(key, value)| key == MANAGED_BY && value == CONTROLLER),
    })
}

/// The UID of the Pod behind an endpoint.
pub fn pod(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_out_is_as_kubernetes_has_it() {
        let of = |labels: serde_json::Value, endpoint: serde_json::Value| {
            let slice = json!({"metadata": {"labels": labels}, "addressType": "IPv4", "endpoints": [endpoint]});
            let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
            said(&slice, &slice.endpoints.as_ref().unwrap()[0])
        };
        let known = of(json!({}), json!({"addresses": ["10.0.0.1", "10.0.0.2"]})).unwrap();
        assert_eq!(known, Said { ready: true, serving: true, terminating: false, address: "10.0.0.1".parse().unwrap(), copied: false });
        let known =
            of(json!({MANAGED_BY: CONTROLLER}), json!({"addresses": ["10.0.0.1"], "conditions": {"ready": false, "terminating": true}})).unwrap();
        assert_eq!((known.ready, known.serving, known.terminating, known.copied), (false, false, true, true));
        assert_eq!(of(json!({}), json!({"addresses": ["fd00::1"]})), None);
    }
}
