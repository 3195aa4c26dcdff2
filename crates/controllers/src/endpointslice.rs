//! EndpointSlices: the pods behind every Service that has a selector, in slices of at most [`ENDPOINTS_PER_SLICE_MAX`].
//!
//! ```text
//! Service, its pods, their nodes --desired--> endpoints by port set --decide(existing slices)--> create, update, delete
//! ```
//!
//! What must stay true: an endpoint that stays keeps its slice; a change of one pod writes one slice; a Service always has
//! at least one slice (perhaps empty), so that "no endpoints" can be told from "not looked at yet". Slices that others
//! manage are left alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::endpoints::{CONTROLLER as MANAGER, MANAGED_BY};
use client::{Informer, Key};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone};

use crate::Context;
use crate::common::backends;
use crate::common::owner::{Owner, labels_of, name_of};
use crate::common::pod_state::{is_deleting, is_finished, is_ready, node_name};
use crate::common::slices::{self, Actions, Desired, Frame, SERVICE_NAME};

/// Kubernetes' default of `--max-endpoints-per-slice`.
pub const ENDPOINTS_PER_SLICE_MAX: usize = 100;

const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(EndpointSlices {
        services: context.informers.all(),
        pods: context.informers.all(),
        nodes: context.informers.all(),
        slices: context.informers.all(),
    })
}

struct EndpointSlices {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

#[async_trait]
impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.services);
        let services = self.services.clone();
        inputs.mapped(&self.pods, move |change| backends::services_of(&services, change));
        // Somebody touched a slice: it is put right. What this controller wrote itself comes by here too, and is found right.
        inputs.mapped(&self.slices, |change| slices::service_of(change, MANAGER));
        inputs.read(&self.nodes);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let existing = slices::of_service(&self.slices, key, MANAGER);
        let service = self.services.get(key).filter(|service| service.metadata.deletion_timestamp.is_none());
        let actions = match &service {
            Some(service) if backends::has_selector(service) => {
                let pods = self.pods.in_namespace(&key.namespace);
                let pods: Vec<_> = pods.into_iter().filter(|pod| backends::selects(service, &**pod)).collect();
                let zone = |node: &str| {
                    let node = self.nodes.get(&Key::new("", node))?;
                    labels_of(&*node).get(ZONE).cloned()
                };
                let mut actions = Actions::default();
                let (frame, families) = (frame(service), families(service));
                for family in &families {
                    let of_family: Vec<_> = existing.iter().filter(|slice| slice.address_type == *family).cloned().collect();
                    actions.extend(slices::decide(&frame, family, desired(service, family, &pods, zone), &of_family));
                }
                let strays = existing.iter().filter(|slice| !families.contains(&slice.address_type));
                actions.delete.extend(strays.cloned());
                actions
            }
            // A Service without a selector has endpoints by somebody else's hand; what was made while it had one goes.
            _ => Actions { delete: existing, ..Actions::default() },
        };
        actions.apply(&self.slices).await
    }
}

/// The address families of the Service.
fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

/// What the Service's endpoints of one family should be.
fn desired(service: &Service, family: &str, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Desired {
    let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let mut desired = Desired::new();
    for pod in pods.iter().filter(|pod| !is_finished(pod)) {
        let Some(address) = backends::address_of(pod, family) else { continue };
        let serving = is_ready(pod);
        let terminating = is_deleting(pod);
        let node = node_name(pod).map(str::to_owned);
        let zone = node.as_deref().and_then(&zone);
        let ready = backends::publishes_unready(service) || (serving && !terminating);
        let near = matches!(distribution, Some("PreferClose" | "PreferSameZone" | "PreferSameNode"));
        let for_zones = zone.clone().filter(|_| near && ready).map(|name| vec![ForZone { name }]);
        let for_nodes = node.clone().filter(|_| distribution == Some("PreferSameNode") && ready).map(|name| vec![ForNode { name }]);
        let hints = (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes });
        let endpoint = Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
            hostname: backends::hostname_under(service, pod),
            node_name: node,
            target_ref: Some(backends::reference(pod)),
            zone,
            hints,
            deprecated_topology: None,
        };
        desired.entry(backends::ports_of(service, pod)).or_default().push(endpoint);
    }
    desired
}

/// The Service's own labels and those by which slices are found.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = labels_of(service).clone();
    labels.remove(HEADLESS);
    if backends::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), name_of(service).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// What all of the Service's slices have in common.
fn frame(service: &Service) -> Frame {
    Frame {
        service: name_of(service).to_owned(),
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        labels: labels(service),
        annotations: None,
        owner: Owner::of(service).reference,
        endpoints_max: ENDPOINTS_PER_SLICE_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::pod as bare_pod;
    use serde_json::json;

    fn service(extra: serde_json::Value) -> Service {
        let mut service = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        serde_json::from_value(service).expect("a Service")
    }

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        let mut pod = bare_pod(&format!("p{number:03}"), "n1", "Running", ready.then_some(1));
        pod.status.as_mut().expect("a status").pod_ip = Some(format!("10.0.{}.{}", number / 250, number % 250 + 1));
        Arc::new(pod)
    }

    fn run(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Actions {
        slices::decide(&frame(service), "IPv4", desired(service, "IPv4", pods, |_| Some("a".to_owned())), existing)
    }

    /// What the API would hold after the actions.
    fn settle(actions: Actions, existing: &[Arc<EndpointSlice>]) -> Vec<Arc<EndpointSlice>> {
        let mut all: BTreeMap<String, EndpointSlice> = BTreeMap::new();
        for slice in existing.iter().map(|slice| (**slice).clone()).chain(actions.update) {
            all.insert(slice.metadata.uid.clone().unwrap_or_default(), slice);
        }
        for slice in actions.delete {
            all.remove(slice.metadata.uid.as_deref().unwrap_or_default());
        }
        for mut slice in actions.create {
            let uid = format!("u{}", all.len());
            slice.metadata.uid = Some(uid.clone());
            all.insert(uid, slice);
        }
        all.into_values().map(Arc::new).collect()
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    fn writes(actions: &Actions) -> [usize; 3] {
        [actions.create.len(), actions.update.len(), actions.delete.len()]
    }

    #[test]
    fn readiness_and_termination_show() {
        let leaving = {
            let mut pod = (*pod(3, true)).clone();
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
            Arc::new(pod)
        };
        let pods = [pod(1, true), pod(2, false), leaving];
        let flags = |service: &Service| -> Vec<_> {
            let slices = settle(run(service, &pods, &[]), &[]);
            let endpoints = slices[0].endpoints.clone().unwrap_or_default();
            endpoints.iter().filter_map(|e| e.conditions.as_ref()).map(|c| [c.ready, c.serving, c.terminating].map(|f| f == Some(true))).collect()
        };
        assert_eq!(flags(&service(json!({}))), [[true, true, false], [false, false, false], [false, true, true]]);
        assert_eq!(flags(&service(json!({"publishNotReadyAddresses": true}))), [[true, true, false], [true, false, false], [true, true, true]]);
    }

    #[test]
    fn one_change_writes_one_slice() {
        let service = service(json!({}));
        let mut pods: Vec<_> = (0..250).map(|number| pod(number, true)).collect();
        let slices = settle(run(&service, &pods, &[]), &[]);
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(writes(&run(&service, &pods, &slices)), [0, 0, 0]);
        pods[7] = pod(7, false);
        assert_eq!(writes(&run(&service, &pods, &slices)), [0, 1, 0]);
        // One goes and one comes: the newcomer goes where something is written anyway.
        pods[7] = pod(250, true);
        let actions = run(&service, &pods, &slices);
        assert_eq!(writes(&actions), [0, 1, 0]);
        assert_eq!(sizes(&settle(actions, &slices)), [100, 100, 50]);
        pods.push(pod(251, true));
        pods.push(pod(252, true));
        assert_eq!(writes(&run(&service, &pods, &slices)), [0, 2, 0]);
    }

    #[test]
    fn none_is_said_by_one_empty_slice() {
        let service = service(json!({}));
        let none = settle(run(&service, &[], &[]), &[]);
        assert_eq!(sizes(&none), [0]);
        assert_eq!(writes(&run(&service, &[], &none)), [0, 0, 0]);
        let actions = run(&service, &[pod(1, true)], &none);
        assert_eq!(sizes(&settle(actions, &none)), [1]);
        let one = settle(run(&service, &[pod(1, true)], &none), &none);
        assert_eq!(sizes(&settle(run(&service, &[], &one), &one)), [0]);
    }

    #[test]
    fn a_headless_service_says_so_and_named_pods_keep_their_names() {
        let service = service(json!({"clusterIP": "None"}));
        let mut named = (*pod(1, true)).clone();
        let spec = named.spec.as_mut().expect("a spec");
        (spec.hostname, spec.subdomain) = (Some("web-0".to_owned()), Some("web".to_owned()));
        let slices = settle(run(&service, &[Arc::new(named)], &[]), &[]);
        assert!(labels_of(&*slices[0]).contains_key(HEADLESS));
        assert_eq!(slices[0].endpoints.as_ref().and_then(|endpoints| endpoints[0].hostname.clone()).as_deref(), Some("web-0"));
    }
}
