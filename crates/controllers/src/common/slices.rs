//! EndpointSlices as their controllers write them: what is wanted, packed into slices by the fewest writes.
//!
//! What must stay true: an endpoint that stays keeps its slice; a change of one endpoint writes one slice; slices of other
//! managers are never touched.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::controller::{Error, Next};
use client::endpoints::MANAGED_BY;
use client::{Change, Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use super::backends::BackendPort;
use super::owner::labels_of;

/// The label by which a Service's slices are found.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Endpoints by the set of ports that they serve.
pub type Desired = BTreeMap<Vec<BackendPort>, Vec<Endpoint>>;

/// What all slices of one owner have in common.
pub struct Frame {
    /// The Service's name.
    pub service: String,
    /// Its namespace.
    pub namespace: String,
    /// The labels that each slice has.
    pub labels: BTreeMap<String, String>,
    /// The annotations that each slice has; `None` leaves whatever is there.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Whose they are.
    pub owner: OwnerReference,
    /// How many endpoints one slice holds.
    pub endpoints_max: usize,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Actions {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices with other content.
    pub update: Vec<EndpointSlice>,
    /// Slices that go.
    pub delete: Vec<Arc<EndpointSlice>>,
}

impl Actions {
    /// All that both say.
    pub fn extend(&mut self, other: Actions) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.delete.extend(other.delete);
    }

    /// Writes it.
    pub async fn apply(self, slices: &Informer<EndpointSlice>) -> Result<Next, Error> {
        for slice in &self.update {
            slices.replace(slice).await?;
        }
        for slice in &self.create {
            match slices.create(slice).await {
                Err(error) if error.is_namespace_terminating() => return Ok(Next::Done),
                outcome => outcome?,
            };
        }
        for slice in &self.delete {
            match slices.delete(&Key::of(&**slice), &Deletion::of(&**slice)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Next::Done)
    }
}

/// Whether this manager writes the slice.
pub fn is_of(slice: &EndpointSlice, manager: &str) -> bool {
    labels_of(slice).get(MANAGED_BY).is_some_and(|each| each == manager)
}

/// The manager's slices of a Service.
pub fn of_service(slices: &Informer<EndpointSlice>, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let all = slices.in_namespace(&key.namespace).into_iter();
    all.filter(|slice| is_of(slice, manager) && labels_of(&**slice).get(SERVICE_NAME) == Some(&key.name)).collect()
}

/// The Service whose slice, written by this manager, has changed.
pub fn service_of(change: &Change<EndpointSlice>, manager: &str) -> Vec<Key> {
    let slice = change.object();
    let service = labels_of(&**slice).get(SERVICE_NAME).filter(|_| is_of(slice, manager));
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    service.map(|name| Key::new(namespace, name.clone())).into_iter().collect()
}

/// Turns what is desired for one family into the fewest writes: endpoints stay where they are, new ones go where something
/// is written anyway, then where there is room, then into new slices.
pub fn decide(frame: &Frame, family: &str, mut desired: Desired, existing: &[Arc<EndpointSlice>]) -> Actions {
    let mut actions = Actions::default();
    if desired.is_empty() {
        // The empty slice that says: there are none.
        desired.insert(Vec::new(), Vec::new());
    }
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
        kept.sort_by_key(|(old, endpoints)| !differs(old, endpoints, frame));
        for (_, endpoints) in &mut kept {
            let room = frame.endpoints_max.saturating_sub(endpoints.len());
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
            if differs(old, &endpoints, frame) {
                let mut new = (**old).clone();
                new.endpoints = Some(endpoints);
                new.metadata.labels = Some(frame.labels.clone());
                if let Some(annotations) = &frame.annotations {
                    new.metadata.annotations = Some(annotations.clone());
                }
                actions.update.push(new);
            }
        }
        if none_wanted && !says_none {
            actions.create.push(slice(frame, family, &ports, Vec::new()));
        }
        let mut fresh: Vec<Endpoint> = fresh.collect();
        while !fresh.is_empty() {
            let rest = fresh.split_off(fresh.len().min(frame.endpoints_max));
            actions.create.push(slice(frame, family, &ports, std::mem::replace(&mut fresh, rest)));
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

/// Whether the slice must be written to hold these endpoints and what the frame says.
fn differs(old: &EndpointSlice, endpoints: &[Endpoint], frame: &Frame) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let annotated = frame.annotations.as_ref().is_none_or(|wanted| old.metadata.annotations.as_ref().unwrap_or(&NONE) == wanted);
    old.endpoints.as_deref().unwrap_or_default() != endpoints || *labels_of(old) != frame.labels || !annotated
}

fn slice(frame: &Frame, family: &str, ports: &[BackendPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            namespace: Some(frame.namespace.clone()),
            generate_name: Some(format!("{}-", frame.service)),
            labels: Some(frame.labels.clone()),
            annotations: frame.annotations.clone().filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![frame.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}
