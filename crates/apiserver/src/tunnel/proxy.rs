//! `proxy`: HTTP to a pod, to one of a Service's endpoints, or to a node, through the API server.

use super::nodes::{incoming, send_plain};
use super::target::NodeAddress;
use crate::connect::{Answer, Call};
use api::{Status, Value, object::ObjectExt};
use http::{HeaderMap, Request, Response, Uri};
use rand::Rng;

/// Headers that are about one connection and end here, and those with the caller's identity.
const NOT_PASSED_ON: [&str; 9] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "host", "authorization"];

/// HTTP to a pod: `[scheme:]name[:port]`.
pub async fn pod_proxy(call: Call) -> Answer {
    let place = Place::parse(&call.info.name);
    let pod = call.server.lookup("", "pods", &call.info.namespace, place.name)?.ok_or_else(|| Status::not_found(("", "pods"), place.name))?.value();
    let host = pod.str_at("status.podIP").filter(|address| !address.is_empty()).map(String::from);
    let host = host.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let port = match place.port {
        "" => first_port(&pod),
        text => text.parse().ok().or_else(|| named_port(&pod, text)),
    };
    let port = port.ok_or_else(|| Status::bad_request(format!("invalid pod request {:?}", call.info.name)))?;
    forward(call, NodeAddress { host, port }).await
}

/// HTTP to one of the endpoints of a Service: `[scheme:]name[:port]`, where the port is a name or number of the Service's.
pub async fn service_proxy(call: Call) -> Answer {
    let place = Place::parse(&call.info.name);
    let (namespace, name) = (&call.info.namespace, place.name);
    let service = call.server.lookup("", "services", namespace, name)?.ok_or_else(|| Status::not_found(("", "services"), name))?.value();
    let ports = service.list_at("spec.ports");
    let port = match (place.port, ports) {
        ("", [only]) => Some(only),
        (text, ports) => {
            ports.iter().find(|port| port.str_at("name") == Some(text) || port.i64_at("port").is_some_and(|number| number.to_string() == text))
        }
    };
    let unavailable = || Status::service_unavailable(format!("no endpoints available for service {:?}", call.info.name));
    let port_name = port
        .ok_or_else(|| Status::service_unavailable(format!("no service port {} found for service {name:?}", place.port)))?
        .str_at("name")
        .unwrap_or_default();
    let slices = call.server.entries("discovery.k8s.io", "endpointslices", Some(namespace))?;
    let slices: Vec<Value> =
        slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some(name)).map(|slice| slice.value()).collect();
    if slices.is_empty() {
        // Nobody has ever said where it leads.
        return Err(Status::not_found(("", "services"), name));
    }
    let ready: Vec<NodeAddress> = slices.iter().flat_map(|slice| endpoints(slice, port_name)).collect();
    if ready.is_empty() {
        return Err(unavailable());
    }
    let chosen = ready[rand::rng().random_range(0..ready.len())].clone();
    forward(call, chosen).await
}

/// HTTP to a node's own API.
pub async fn node_proxy(mut call: Call) -> Answer {
    let place = Place::parse(&call.info.name);
    let node = NodeAddress::find(&call.server, place.name)?;
    let request = outgoing(&mut call)?;
    let answer = call
        .server
        .nodes
        .send(&call.server, &node, request)
        .await
        .map_err(|error| Status::service_unavailable(format!("error trying to reach service: {error}")))?;
    Ok(passed_back(answer))
}

async fn forward(mut call: Call, place: NodeAddress) -> Answer {
    let request = outgoing(&mut call)?;
    let answer = send_plain(&place, request).await.map_err(|error| Status::service_unavailable(format!("error trying to reach service: {error}")))?;
    Ok(passed_back(answer))
}

/// `scheme:name:port`, of which only the name must be there.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    name: &'a str,
    port: &'a str,
}

impl Place<'_> {
    fn parse(text: &str) -> Place<'_> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name, port] => Place { name, port },
            [_scheme, name, port] => Place { name, port },
            _ => Place { name: text, port: "" },
        }
    }
}

fn port_number(port: &Value, key: &str) -> Option<u16> {
    port.i64_at(key).and_then(|number| u16::try_from(number).ok())
}

fn pod_ports(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.list_at("spec.containers").iter().flat_map(|container| container.list_at("ports"))
}

/// The port of a pod's whose request names none: the first that a container states, else 80.
fn first_port(pod: &Value) -> Option<u16> {
    pod_ports(pod).find_map(|port| port_number(port, "containerPort")).or(Some(80))
}

fn named_port(pod: &Value, name: &str) -> Option<u16> {
    pod_ports(pod).find(|port| port.str_at("name") == Some(name)).and_then(|port| port_number(port, "containerPort"))
}

/// The ready endpoints of a slice at one of its ports.
fn endpoints(slice: &Value, port_name: &str) -> Vec<NodeAddress> {
    let port = slice.list_at("ports").iter().find(|port| port.str_at("name").unwrap_or_default() == port_name);
    let Some(port) = port.and_then(|port| port_number(port, "port")) else { return vec![] };
    let ready = slice.list_at("endpoints").iter().filter(|endpoint| endpoint.bool_at("conditions.ready").unwrap_or(true));
    ready.filter_map(|endpoint| Some(NodeAddress { host: endpoint.list_at("addresses").first()?.as_str()?.to_string(), port })).collect()
}

/// The client's request, as it goes on: the path behind `proxy`, without what ends here.
fn outgoing(call: &mut Call) -> Result<Request<crate::Body>, Status> {
    // The path as it came, not decoded: the server behind may tell `%2F` from `/`.
    let path = call.request.uri().path();
    let rest = path
        .match_indices("/proxy")
        .map(|(at, _)| &path[at + "/proxy".len()..])
        .find(|rest| rest.is_empty() || rest.starts_with('/'))
        .unwrap_or_default();
    let rest = if rest.is_empty() { "/" } else { rest };
    let uri = match call.request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_string(),
    };
    let unread = std::mem::replace(call.request.body_mut(), crate::body::empty());
    let mut request = Request::new(unread);
    *request.method_mut() = call.request.method().clone();
    *request.uri_mut() = uri.parse::<Uri>().map_err(|error| Status::bad_request(error.to_string()))?;
    *request.headers_mut() = passed_on(call.request.headers());
    Ok(request)
}

fn passed_on(given: &HeaderMap) -> HeaderMap {
    let ends_here = |name: &str| NOT_PASSED_ON.contains(&name) || name.starts_with("impersonate-");
    given.iter().filter(|(name, _)| !ends_here(name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn passed_back(answer: Response<hyper::body::Incoming>) -> Response<crate::Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(incoming(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = passed_on(&parts.headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_have_a_name_and_perhaps_a_port() {
        assert_eq!(Place::parse("web"), Place { name: "web", port: "" });
        assert_eq!(Place::parse("web:http"), Place { name: "web", port: "http" });
        assert_eq!(Place::parse("http:web:80"), Place { name: "web", port: "80" });
    }

    #[test]
    fn only_ready_endpoints_are_asked() {
        let slice = json!({"ports": [{"name": "http", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        assert_eq!(endpoints(&slice, "http"), [NodeAddress { host: "10.0.0.1".into(), port: 8080 }]);
        assert!(endpoints(&slice, "other").is_empty());
    }
}
