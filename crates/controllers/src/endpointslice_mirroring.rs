//! EndpointSlices for Endpoints that somebody made by hand: a Service without a selector is routed by slices alone, so what
//! stands in its Endpoints is mirrored into slices of this controller's own.
//!
//! Not mirrored: Endpoints without a Service or of one with a selector, those that say so
//! (`endpointslice.kubernetes.io/skip-mirror`), and those that only serve somebody's leader election.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::endpoints::MANAGED_BY;
use client::{Informer, Key};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use crate::Context;
use crate::common::backends::{self, BackendPort};
use crate::common::owner::{Owner, annotation, labels_of, name_of};
use crate::common::slices::{self, Actions, Desired, Frame, SERVICE_NAME};

/// Kubernetes' default of `--mirroring-max-endpoints-per-subset`: more of a subset's addresses are left out.
pub const ENDPOINTS_PER_SUBSET_MAX: usize = 1000;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.informers;
    Arc::new(Mirroring { services: informers.all(), endpoints: informers.all(), slices: informers.all() })
}

struct Mirroring {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
}

#[async_trait]
impl Controller for Mirroring {
    fn name(&self) -> &'static str {
        "endpointslice-mirroring-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.endpoints);
        inputs.primary(&self.services);
        inputs.mapped(&self.slices, |change| slices::service_of(change, MANAGER));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let existing = slices::of_service(&self.slices, key, MANAGER);
        let endpoints = self.endpoints.get(key);
        let service = self.services.get(key);
        let mirrored = endpoints.filter(|endpoints| is_mirrored(endpoints, service.as_deref()));
        let actions = match &mirrored {
            Some(endpoints) => decide(endpoints, &existing),
            None => Actions { delete: existing, ..Actions::default() },
        };
        actions.apply(&self.slices).await
    }
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let wanted = service.is_some_and(|service| !backends::has_selector(service) && service.metadata.deletion_timestamp.is_none());
    let skipped = labels_of(endpoints).get(SKIP).is_some_and(|value| value == "true");
    wanted && !skipped && annotation(endpoints, LEADER).is_none() && endpoints.metadata.deletion_timestamp.is_none()
}

fn decide(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Actions {
    let frame = frame(endpoints);
    let mut actions = Actions::default();
    for family in ["IPv4", "IPv6"] {
        let of_family: Vec<_> = existing.iter().filter(|slice| slice.address_type == family).cloned().collect();
        let desired = desired(endpoints, family);
        if desired.is_empty() {
            actions.delete.extend(of_family);
        } else {
            actions.extend(slices::decide(&frame, family, desired, &of_family));
        }
    }
    actions
}

fn frame(endpoints: &Endpoints) -> Frame {
    let mut labels = labels_of(endpoints).clone();
    labels.insert(SERVICE_NAME.to_owned(), name_of(endpoints).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations: BTreeMap<String, String> = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| name != LAST_APPLIED && name != TRIGGER_TIME);
    Frame {
        service: name_of(endpoints).to_owned(),
        namespace: endpoints.metadata.namespace.clone().unwrap_or_default(),
        labels,
        annotations: Some(annotations),
        owner: Owner::of(endpoints).reference,
        endpoints_max: ENDPOINTS_PER_SUBSET_MAX,
    }
}

/// The addresses of one family, by ports.
fn desired(endpoints: &Endpoints, family: &str) -> Desired {
    let mut desired = Desired::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().map(|port| BackendPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
        });
        let ports: Vec<_> = ports.collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let of_family = ready.chain(unready).filter(|(address, _)| family_of(address) == Some(family));
        for (address, ready) in of_family.take(ENDPOINTS_PER_SUBSET_MAX) {
            desired.entry(ports.clone()).or_default().push(endpoint(address, ready));
        }
    }
    desired
}

fn family_of(address: &EndpointAddress) -> Option<&'static str> {
    match address.ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        let object = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "e", "labels": {"a": "b"},
            "annotations": {"note": "x", LAST_APPLIED: "{}"}}, "subsets": subsets});
        serde_json::from_value(object).expect("Endpoints")
    }

    fn service(selector: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"selector": selector}})).expect("a Service")
    }

    #[test]
    fn each_family_and_port_set_has_its_slice() {
        let made = endpoints(json!([
            {"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.2.4"}], "ports": [{"name": "http", "port": 80}]},
            {"addresses": [{"ip": "10.1.2.5"}], "ports": [{"name": "http", "port": 81}]},
        ]));
        let actions = decide(&made, &[]);
        let seen: Vec<_> = actions.create.iter().map(|slice| (slice.address_type.as_str(), slice.endpoints.as_ref().map_or(0, Vec::len))).collect();
        assert_eq!(seen, [("IPv4", 2), ("IPv4", 1), ("IPv6", 1)]);
        let first = &actions.create[0];
        assert_eq!(labels_of(first).get("a").map(String::as_str), Some("b"));
        assert_eq!(first.metadata.annotations, Some([("note".to_owned(), "x".to_owned())].into()));
        let existing: Vec<_> = actions.create.into_iter().map(Arc::new).collect();
        let again = decide(&made, &existing);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        assert_eq!(decide(&endpoints(json!([])), &existing).delete.len(), 3);
    }

    #[test]
    fn only_endpoints_by_hand_are_mirrored() {
        let mut made = endpoints(json!([]));
        assert!(is_mirrored(&made, Some(&service(json!(null)))));
        assert!(!is_mirrored(&made, Some(&service(json!({"app": "web"})))));
        assert!(!is_mirrored(&made, None));
        made.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&made, Some(&service(json!(null)))));
    }
}
