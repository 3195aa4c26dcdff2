//! EndpointSlices: the pods behind every Service that has a selector, in slices of at most [`ENDPOINTS_PER_SLICE_MAX`].
//!
//! ```text
//! Service, its pods, their nodes --desired--> endpoints by port set --decide(existing slices)--> create, update, delete
//! ```
//!
//! What must stay true: an endpoint that stays keeps its slice; a change of one pod writes one slice; a Service always has
//! at least one slice (perhaps empty), so that "no endpoints" can be told from "not looked at yet". Slices that others
//! manage are left alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Change, Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone};
use kube::api::ObjectMeta;

use crate::Context;
use crate::common::backends::{self, BackendPort};
use crate::common::owner::{Owner, labels_of, name_of};
use crate::common::pod_state::{is_deleting, is_finished, is_ready, node_name};

/// Kubernetes' default of `--max-endpoints-per-slice`.
pub const ENDPOINTS_PER_SLICE_MAX: usize = 100;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
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
        inputs.mapped(&self.slices, |change: &Change<EndpointSlice>| {
            let slice = change.object();
            let service = labels_of(&**slice).get(SERVICE_NAME).filter(|_| is_ours(slice));
            let namespace = slice.metadata.namespace.clone().unwrap_or_default();
            service.map(|name| Key::new(namespace, name.clone())).into_iter().collect()
        });
        inputs.read(&self.nodes);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let existing: Vec<_> = self.slices.in_namespace(&key.namespace);
        let existing: Vec<_> =
            existing.into_iter().filter(|slice| is_ours(slice) && labels_of(&**slice).get(SERVICE_NAME) == Some(&key.name)).collect();
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
                let families = families(service);
                for family in &families {
                    let of_family: Vec<_> = existing.iter().filter(|slice| slice.address_type == *family).cloned().collect();
                    actions.extend(decide(service, family, desired(service, family, &pods, zone), &of_family));
                }
                let strays = existing.iter().filter(|slice| !families.contains(&slice.address_type));
                actions.delete.extend(strays.cloned());
                actions
            }
            // A Service without a selector has endpoints by somebody else's hand; what was made while it had one goes.
            _ => Actions { delete: existing, ..Actions::default() },
        };
        self.apply(actions).await
    }
}

impl EndpointSlices {
    async fn apply(&self, actions: Actions) -> Result<Next, Error> {
        for slice in &actions.update {
            self.slices.replace(slice).await?;
        }
        for slice in &actions.create {
            match self.slices.create(slice).await {
                Err(error) if error.is_namespace_terminating() => return Ok(Next::Done),
                outcome => outcome?,
            };
        }
        for slice in &actions.delete {
            match self.slices.delete(&Key::of(&**slice), &Deletion::of(&**slice)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Next::Done)
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    labels_of(slice).get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// The address families of the Service.
fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

/// Endpoints by the set of ports that they serve.
type Desired = BTreeMap<Vec<BackendPort>, Vec<Endpoint>>;

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

#[derive(Debug, Default)]
struct Actions {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

impl Actions {
    fn extend(&mut self, other: Actions) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.delete.extend(other.delete);
    }
}

/// Turns what is desired for one family into the fewest writes: endpoints stay where they are, new ones go where something
/// is written anyway, then where there is room, then into new slices.
fn decide(service: &Service, family: &str, mut desired: Desired, existing: &[Arc<EndpointSlice>]) -> Actions {
    let mut actions = Actions::default();
    if desired.is_empty() {
        // The empty slice that says: there are none.
        desired.insert(Vec::new(), Vec::new());
    }
    let labels = labels(service);
    let mut by_ports: HashMap<Vec<BackendPort>, Vec<&Arc<EndpointSlice>>> = HashMap::new();
    for slice in existing {
        by_ports.entry(ports_of(slice)).or_default().push(slice);
    }
    for (ports, endpoints) in desired {
        let mut wanted: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
        let none_wanted = wanted.is_empty();
        let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for old in by_ports.remove(&ports).unwrap_or_default() {
            let staying = old.endpoints.iter().flatten().filter_map(|endpoint| wanted.remove(&identity(endpoint)));
            kept.push((old, staying.collect()));
        }
        let mut fresh = wanted.into_values();
        kept.sort_by_key(|(old, endpoints)| !differs(old, endpoints, &labels));
        for (_, endpoints) in &mut kept {
            let room = ENDPOINTS_PER_SLICE_MAX.saturating_sub(endpoints.len());
            endpoints.extend(fresh.by_ref().take(room));
        }
        let mut says_none = false;
        for (old, endpoints) in kept {
            // A slice that has become empty goes, except the one that says: there are none.
            if endpoints.is_empty() && (says_none || !none_wanted) {
                actions.delete.push(old.clone());
                continue;
            }
            says_none |= endpoints.is_empty();
            if differs(old, &endpoints, &labels) {
                let mut new = (**old).clone();
                new.endpoints = Some(endpoints);
                new.metadata.labels = Some(labels.clone());
                actions.update.push(new);
            }
        }
        if none_wanted && !says_none {
            actions.create.push(slice(service, family, &labels, &ports, Vec::new()));
        }
        let mut fresh: Vec<Endpoint> = fresh.collect();
        while !fresh.is_empty() {
            let rest = fresh.split_off(fresh.len().min(ENDPOINTS_PER_SLICE_MAX));
            actions.create.push(slice(service, family, &labels, &ports, std::mem::replace(&mut fresh, rest)));
        }
    }
    actions.delete.extend(by_ports.into_values().flatten().cloned());
    actions
}

/// What makes an endpoint the same one: its pod and address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{uid}/{}", endpoint.addresses.first().map(String::as_str).unwrap_or_default())
}

fn ports_of(slice: &EndpointSlice) -> Vec<BackendPort> {
    let ports = slice.ports.iter().flatten();
    ports
        .map(|port| BackendPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.port.unwrap_or_default(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
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

/// Whether the slice must be written to hold these endpoints and labels.
fn differs(old: &EndpointSlice, endpoints: &[Endpoint], labels: &BTreeMap<String, String>) -> bool {
    old.endpoints.as_deref().unwrap_or_default() != endpoints || labels_of(old) != labels
}

fn slice(service: &Service, family: &str, labels: &BTreeMap<String, String>, ports: &[BackendPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            namespace: service.metadata.namespace.clone(),
            generate_name: Some(format!("{}-", name_of(service))),
            labels: Some(labels.clone()),
            owner_references: Some(vec![Owner::of(service).reference]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
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
        decide(service, "IPv4", desired(service, "IPv4", pods, |_| Some("a".to_owned())), existing)
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
