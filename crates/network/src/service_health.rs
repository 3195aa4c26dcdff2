//! Health checks of Services of type LoadBalancer with `externalTrafficPolicy: Local`: on the port `healthCheckNodePort` every
//! node says whether it has an endpoint of its own, so that a balancer in front asks only nodes that have.
//!
//! What must stay true: a port is listened on as long as a Service has it and no longer; one that is taken is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use client::Informers;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::health::{self, Answer, Respond};
use crate::limits;

/// What is said of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Check {
    namespace: String,
    name: String,
    /// Its ready endpoints on this node.
    local: usize,
}

type Checks = BTreeMap<u16, Check>;

/// Which ports say what.
fn checks(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node_name: &str) -> Checks {
    let mut checks = Checks::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let local_only = spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
        let Some(port) = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| local_only && *port > 0) else {
            continue;
        };
        let (namespace, name) = (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default());
        let of_service = slices.iter().filter(|slice| {
            let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
            label == Some(&name) && slice.metadata.namespace.as_deref() == Some(namespace.as_str()) && slice.address_type == "IPv4"
        });
        let endpoints = of_service.flat_map(|slice| slice.endpoints.iter().flatten());
        let here = endpoints.filter(|endpoint| {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            ready && endpoint.node_name.as_deref() == Some(node_name)
        });
        let local = here.filter_map(|endpoint| endpoint.addresses.first()).collect::<BTreeSet<_>>().len();
        checks.insert(port, Check { namespace, name, local });
    }
    checks
}

/// Answers for one port.
#[derive(Clone)]
struct Port {
    number: u16,
    checks: Arc<Mutex<Checks>>,
}

impl Respond for Port {
    fn respond(&self, _path: &str) -> Answer {
        let Some(check) = self.checks.lock().get(&self.number).cloned() else { return Answer::not_found() };
        let body = json!({"service": {"namespace": check.namespace, "name": check.name}, "localEndpoints": check.local, "serviceProxyHealthy": true});
        let status = if check.local > 0 { "200 OK" } else { "503 Service Unavailable" };
        Answer { status, content_type: "application/json", body: body.to_string() }
    }
}

/// Serves the health checks of Services until `shutdown`.
pub async fn run(informers: Informers, node_name: String, shutdown: CancellationToken) {
    let (services, slices) = (informers.all::<Service>(), informers.all::<EndpointSlice>());
    let known: Arc<Mutex<Checks>> = Arc::default();
    let follow = async {
        tokio::join!(services.synced(), slices.synced());
        let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
        let mut listening: BTreeMap<u16, CancellationToken> = BTreeMap::new();
        loop {
            let wanted = checks(&services.list(), &slices.list(), &node_name);
            listening.retain(|port, stop| {
                let stays = wanted.contains_key(port);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            let mut refused = false;
            let ports: Vec<u16> = wanted.keys().copied().filter(|port| !listening.contains_key(port)).collect();
            *known.lock() = wanted;
            for number in ports {
                match health::listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, number))).await {
                    Some(listener) => {
                        let stop = shutdown.child_token();
                        tokio::spawn(health::serve(listener, Port { number, checks: known.clone() }, stop.clone()));
                        listening.insert(number, stop);
                    }
                    None => refused = true,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(limits::TABLE_CHECK_PERIOD), if refused => {}
                Some(_) = service_changes.next() => {}
                Some(_) = slice_changes.next() => {}
                else => return,
            }
            // What comes at once is looked at once.
            while service_changes.try_next().is_some() {}
            while slice_changes.try_next().is_some() {}
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_its_own_ready_endpoints() {
        let service = |policy: &str| {
            let service = json!({"metadata": {"name": "web", "namespace": "ns"},
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": 30500}});
            Arc::new(serde_json::from_value::<Service>(service).unwrap())
        };
        let endpoint =
            |node: &str, last: u8, ready: bool| json!({"addresses": [format!("10.0.0.{last}")], "nodeName": node, "conditions": {"ready": ready}});
        let slice = json!({"metadata": {"name": "s", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [endpoint("here", 1, true), endpoint("here", 2, false), endpoint("there", 3, true)]});
        let slices = [Arc::new(serde_json::from_value::<EndpointSlice>(slice).unwrap())];
        let said = checks(&[service("Local")], &slices, "here");
        assert_eq!(said.get(&30500).map(|check| check.local), Some(1));
        assert!(checks(&[service("Cluster")], &slices, "here").is_empty());
        let answer = |node: &str| {
            let checks = Arc::new(Mutex::new(checks(&[service("Local")], &slices, node)));
            Port { number: 30500, checks }.respond("/")
        };
        assert_eq!(answer("here").status, "200 OK");
        assert_eq!(answer("elsewhere").status, "503 Service Unavailable");
        assert!(answer("here").body.contains("\"localEndpoints\":1"));
    }
}
