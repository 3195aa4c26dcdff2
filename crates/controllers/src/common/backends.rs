//! Which pods stand behind a Service, and what each can serve: shared by the controllers of EndpointSlices and Endpoints.

use client::Change;
use client::{Informer, Key};
use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::owner::labels_of;
use super::pod_state::{is_deleting, is_finished, is_ready, node_name};

/// A port that a pod serves for a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendPort {
    /// The Service port's name; empty if it has none.
    pub name: String,
    /// Protocol.
    pub protocol: String,
    /// The pod's port.
    pub port: i32,
    /// The application's protocol, as the Service says.
    pub app_protocol: Option<String>,
}

/// Whether the Service's endpoints are made from its selector (otherwise they are somebody else's business).
pub fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let external = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    spec.is_some_and(|spec| spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())) && !external
}

/// Whether the Service selects the pod.
pub fn selects<K: kube::Resource>(service: &Service, pod: &K) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(|(key, value)| labels_of(pod).get(key) == Some(value)))
}

/// Whether the Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether the Service lists pods that are not ready as if they were.
pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The pod's port that a Service port means: a number as it is, a name as one of the containers has it.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let is_meant = |each: &&ContainerPort| each.name.as_deref() == Some(name) && each.protocol.as_deref().unwrap_or("TCP") == protocol;
            ports.find(is_meant).map(|found| found.container_port)
        }
    }
}

/// The ports that the pod serves for the Service; a named port that the pod does not have is left out.
pub fn ports_of(service: &Service, pod: &Pod) -> Vec<BackendPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(BackendPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: target_port(pod, port)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The pod's address of a family (`IPv4` or `IPv6`).
pub fn address_of(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|each| each.ip.clone());
    let mut addresses = listed.chain(status.pod_ip.clone()).filter(|ip| !ip.is_empty());
    addresses.find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// The pod's own name under a headless Service, if it has one there.
pub fn hostname_under(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then(|| hostname.clone())
}

/// The pod as endpoints refer to it.
pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Whether the two states of a pod differ in anything that endpoints show.
fn differs(old: &Pod, new: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            pod.metadata.uid.clone(),
            is_ready(pod),
            is_deleting(pod),
            is_finished(pod),
            node_name(pod).map(str::to_owned),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.pod_ips.clone()),
        )
    };
    shown(old) != shown(new) || old.metadata.labels != new.metadata.labels
}

/// The Services whose endpoints a change of a pod can touch.
pub fn services_of(services: &Informer<Service>, change: &Change<Pod>) -> Vec<Key> {
    let new = change.object();
    if let (Change::Applied { .. }, Some(old)) = (change, change.old())
        && !differs(old, new)
    {
        return Vec::new();
    }
    let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
    let touched = services
        .in_namespace(namespace)
        .into_iter()
        .filter(|service| selects(service, &**new) || change.old().is_some_and(|old| selects(service, &**old)));
    touched.map(|service| Key::of(&*service)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_by_number_and_name() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"port": 80}, {"name": "web", "port": 81, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "http"},
            {"name": "n", "port": 82, "targetPort": 8082}]}}))
        .expect("a Service");
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .expect("a pod");
        let ports: Vec<_> = ports_of(&service, &pod).into_iter().map(|port| (port.name, port.port)).collect();
        assert_eq!(ports, [(String::new(), 80), ("web".to_owned(), 8080), ("n".to_owned(), 8082)]);
    }

    #[test]
    fn a_pod_is_named_only_under_its_own_subdomain() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "hostname": "db-0", "subdomain": "db"}})).expect("a pod");
        let service = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).expect("a Service");
        assert_eq!(hostname_under(&service("db"), &pod).as_deref(), Some("db-0"));
        assert_eq!(hostname_under(&service("web"), &pod), None);
    }
}
