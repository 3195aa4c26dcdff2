//! What the membership's word does to a Service's endpoints, case by case.

use super::endpoints::{Backends, select};
use super::*;
use k8s_openapi::api::core::v1::ServicePort;
use membership::{Endpoint, Health, view::Member};
use serde_json::json;
use std::collections::BTreeMap;

/// A Service with an endpoint on each of these nodes: `10.244.0.N` for the Nth, with the API's word on its readiness.
fn slice(nodes: &[(&str, bool)]) -> EndpointSlice {
    let endpoints: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(i, (node, ready))| {
            json!({"addresses": [format!("10.244.0.{}", i + 1)], "nodeName": node, "conditions": {"ready": ready, "serving": ready},
                "targetRef": {"kind": "Pod", "uid": format!("pod-{node}")}})
        })
        .collect();
    let slice = json!({"metadata": {"name": "s", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 80, "protocol": "TCP"}], "endpoints": endpoints});
    serde_json::from_value(slice).expect("an EndpointSlice")
}

/// A view of `here` in which these nodes are so, and these pods are told by their owners.
fn view(api_reachable: bool, nodes: &[(&str, Health)], words: &[(&str, &str, bool)]) -> Arc<View> {
    let mut view = View { me: "here".into(), majority: true, ..View::default() };
    for (name, health) in nodes.iter().copied().chain([("here", Health::Alive)]) {
        let address = "172.30.0.21:7946".parse().expect("an address");
        let reachable = health != Health::Dead;
        view.nodes.insert(name.into(), Member { health, reachable, cut: false, address, api_reachable, since_unix_ms: 0 });
    }
    for (node, address, ready) in words {
        let endpoint = Endpoint { address: address.parse().expect("an address"), ready: *ready, serving: *ready, version: 1 };
        view.endpoints.insert((*node).into(), Arc::new(BTreeMap::from([(format!("pod-{node}"), endpoint)])));
    }
    Arc::new(view)
}

fn chosen(service: serde_json::Value, slice: &EndpointSlice, view: Arc<View>) -> Backends {
    let service: Service = serde_json::from_value(service).expect("a Service");
    let node = NodeFacts { name: "here".into(), zone: None, view: Some(view) };
    select(&service, &ServicePort { port: 80, ..ServicePort::default() }, [slice], &node)
}

fn last_bytes(backends: &[super::endpoints::Backend]) -> Vec<u8> {
    backends.iter().map(|backend| backend.address.octets()[3]).collect()
}

#[test]
fn the_view_takes_endpoints_away_but_never_the_last() {
    use Health::{AgentDown, Alive, Dead, Suspect};
    let all = slice(&[("a", true), ("b", true), ("c", true)]);
    let plain = || json!({"spec": {}});
    // (nodes, owners' words, the API is reachable) -> endpoints used
    let check = |nodes: &[(&str, Health)], words: &[(&str, &str, bool)], api: bool, expected: &[u8]| {
        assert_eq!(last_bytes(&chosen(plain(), &all, view(api, nodes, words)).cluster), expected, "{nodes:?} {words:?} api {api}");
    };
    check(&[("a", Alive), ("b", Suspect), ("c", AgentDown)], &[], true, &[1, 2, 3]);
    check(&[("a", Alive), ("b", Dead), ("c", Alive)], &[], true, &[1, 3]);
    check(&[("a", Dead), ("b", Dead), ("c", Dead)], &[], true, &[1, 2, 3]);
    check(&[("a", Dead), ("b", Dead), ("c", Dead)], &[], false, &[1, 2, 3]);
    check(&[("b", Alive)], &[("b", "10.244.0.2", false)], true, &[1, 3]);
    check(&[("b", Alive)], &[("b", "10.244.0.2", false)], false, &[1, 3]);
    check(&[("b", Alive)], &[("b", "10.244.0.99", true)], true, &[1, 2, 3]);
    check(&[("b", Alive)], &[("b", "10.244.0.99", true)], false, &[1, 3, 99]);
    // Those that remain are not ready, as their owner says; the lost one is better than nothing.
    check(&[("a", Dead)], &[("b", "10.244.0.2", false), ("c", "10.244.0.3", false)], true, &[1]);
}

#[test]
fn a_dropped_endpoint_has_vanished_so_that_its_connections_are_forgotten() {
    let all = slice(&[("a", true), ("b", true)]);
    let backends = chosen(json!({"spec": {}}), &all, view(true, &[("b", Health::Dead)], &[]));
    assert_eq!(last_bytes(&backends.known), [1]);
    let unready = chosen(json!({"spec": {}}), &all, view(true, &[], &[("b", "10.244.0.2", false)]));
    assert_eq!((last_bytes(&unready.cluster), last_bytes(&unready.known)), (vec![1], vec![1, 2]), "connections to it may finish");
}

#[test]
fn a_service_that_publishes_unready_endpoints_goes_on_doing_so() {
    let all = slice(&[("a", true), ("b", true)]);
    let backends = chosen(json!({"spec": {"publishNotReadyAddresses": true}}), &all, view(true, &[], &[("b", "10.244.0.2", false)]));
    assert_eq!(last_bytes(&backends.cluster), [1, 2]);
}

#[test]
fn when_the_api_is_silent_a_ready_word_brings_an_endpoint_back() {
    let all = slice(&[("a", true), ("b", false)]);
    let used = |api: bool| last_bytes(&chosen(json!({"spec": {}}), &all, view(api, &[], &[("b", "10.244.0.2", true)])).cluster);
    assert_eq!((used(true), used(false)), (vec![1], vec![1, 2]));
}
