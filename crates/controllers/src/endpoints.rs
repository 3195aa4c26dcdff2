//! Endpoints, the older form of EndpointSlices: one object per Service with a selector, all its pods' addresses in subsets
//! of like ports, at most [`ADDRESSES_MAX`] of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::api::ObjectMeta;

use crate::Context;
use crate::common::backends::{self, BackendPort};
use crate::common::owner::{labels_of, name_of};
use crate::common::pod_state::{is_deleting, is_finished, is_ready, node_name};

/// More addresses than this are left out, and an annotation says so.
pub const ADDRESSES_MAX: usize = 1000;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Endpoints with it are somebody's old way of electing a leader.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(EndpointsController { services: context.informers.all(), pods: context.informers.all(), endpoints: context.informers.all() })
}

struct EndpointsController {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

#[async_trait]
impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoints-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.services);
        inputs.primary(&self.endpoints);
        let services = self.services.clone();
        inputs.mapped(&self.pods, move |change| backends::services_of(&services, change));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let existing = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            let orphan = existing.filter(|old| labels_of(&**old).get(MANAGED_BY).is_some_and(|manager| manager == MANAGER));
            if let Some(old) = orphan {
                match self.endpoints.delete(key, &Deletion::of(&*old)).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                    _ => {}
                }
            }
            return Ok(Next::Done);
        };
        if !backends::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let pods = self.pods.in_namespace(&key.namespace);
        let pods: Vec<_> = pods.into_iter().filter(|pod| backends::selects(&service, &**pod)).collect();
        let desired = desired(&service, &pods, existing.as_deref());
        match existing {
            None => match self.endpoints.create(&desired).await {
                Err(error) if error.is_namespace_terminating() => {}
                outcome => drop(outcome?),
            },
            Some(old) if *old != desired => drop(self.endpoints.replace(&desired).await?),
            Some(_) => {}
        }
        Ok(Next::Done)
    }
}

/// What the Service's Endpoints should be, starting from what they are.
fn desired(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let family = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()?.first().cloned());
    let family = family.unwrap_or_else(|| "IPv4".to_owned());
    // Per set of ports: ready and not ready addresses, in order of address.
    let mut groups: BTreeMap<Vec<BackendPort>, [BTreeMap<Option<IpAddr>, EndpointAddress>; 2]> = BTreeMap::new();
    let mut left_out = false;
    let mut count = 0;
    for pod in pods.iter().filter(|pod| !is_finished(pod)) {
        let unready_too = backends::publishes_unready(service);
        if is_deleting(pod) && !unready_too {
            continue;
        }
        let Some(ip) = backends::address_of(pod, &family) else { continue };
        if count >= ADDRESSES_MAX {
            left_out = true;
            continue;
        }
        count += 1;
        let address = EndpointAddress {
            hostname: backends::hostname_under(service, pod),
            node_name: node_name(pod).map(str::to_owned),
            target_ref: Some(backends::reference(pod)),
            ip: ip.clone(),
        };
        let group = groups.entry(backends::ports_of(service, pod)).or_default();
        group[usize::from(!unready_too && !is_ready(pod))].insert(ip.parse().ok(), address);
    }
    let list = |addresses: BTreeMap<Option<IpAddr>, EndpointAddress>| (!addresses.is_empty()).then(|| addresses.into_values().collect());
    let subsets = groups.into_iter().map(|(ports, [ready, unready])| EndpointSubset {
        addresses: list(ready),
        not_ready_addresses: list(unready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    });
    let subsets: Vec<_> = subsets.collect();

    let mut labels = labels_of(service).clone();
    labels.remove(HEADLESS);
    if backends::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut metadata = existing.map_or_else(
        || ObjectMeta { name: Some(name_of(service).to_owned()), namespace: service.metadata.namespace.clone(), ..ObjectMeta::default() },
        |old| old.metadata.clone(),
    );
    metadata.labels = Some(labels);
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    annotations.retain(|name, _| name == LEADER);
    annotations.extend(service.metadata.annotations.clone().unwrap_or_default().into_iter().filter(|(name, _)| !is_service_only(name)));
    if left_out {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// Annotations that say something about the Service object alone.
fn is_service_only(annotation: &str) -> bool {
    annotation == "kubectl.kubernetes.io/last-applied-configuration"
}

fn port(port: BackendPort) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then_some(port.name),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::pod as bare_pod;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
        let mut pod = bare_pod(name, "n1", "Running", ready.then_some(1));
        pod.status.as_mut().expect("a status").pod_ip = Some(ip.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn addresses_are_sorted_and_split_by_readiness() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}))
        .expect("a Service");
        let pods = [pod("c", "10.0.0.10", true), pod("a", "10.0.0.9", true), pod("b", "10.0.0.8", false)];
        let endpoints = desired(&service, &pods, None);
        let subset = &endpoints.subsets.as_ref().expect("subsets")[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> { list.iter().flatten().map(|each| each.ip.clone()).collect() };
        assert_eq!(ips(&subset.addresses), ["10.0.0.9", "10.0.0.10"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.8"]);
        assert_eq!(desired(&service, &pods, Some(&endpoints)), endpoints);
        assert_eq!(desired(&service, &[], None).subsets, None);
    }
}
