//! Which container on which node a request means.

use crate::Server;
use crate::connect::Call;
use api::{Status, Value, object::ObjectExt};
use std::fmt::{self, Write};

/// A node's own HTTPS API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeAddress {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Where nodes listen if they do not say.
const NODE_PORT: u16 = 10250;

impl NodeAddress {
    /// Of a node by name; the error is what a client is told.
    pub(super) fn find(server: &Server, name: &str) -> Result<NodeAddress, Status> {
        let node = server.lookup("", "nodes", "", name)?.ok_or_else(|| Status::not_found(("", "nodes"), name))?.value();
        NodeAddress::of(&node).ok_or_else(|| Status::internal(format!("no preferred addresses found; known addresses: [] of node {name}")))
    }

    pub(super) fn of(node: &Value) -> Option<NodeAddress> {
        let addresses = node.list_at("status.addresses");
        let of_type =
            |kind: &str| addresses.iter().find(|address| address.str_at("type") == Some(kind)).and_then(|address| address.str_at("address"));
        let host = ["InternalIP", "ExternalIP", "InternalDNS", "Hostname", "ExternalDNS"].into_iter().find_map(of_type)?;
        let port = node.i64_at("status.daemonEndpoints.kubeletEndpoint.Port").and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        Some(NodeAddress { host: host.into(), port: port.unwrap_or(NODE_PORT) })
    }
}

/// A container, and the node that its pod is bound to.
pub(super) struct Target {
    pub container: String,
    pub node: Option<NodeAddress>,
}

impl Target {
    /// The pod that a request names; its container is not looked at.
    pub(super) fn of_pod(call: &Call) -> Result<Target, Status> {
        let pod = pod(call)?;
        Ok(Target { container: String::new(), node: node(call, &pod)? })
    }

    /// The container that a request names, or the only one.
    pub(super) fn of_container(call: &Call) -> Result<Target, Status> {
        let pod = pod(call)?;
        let container = choose(&pod, call.query.get("container").unwrap_or_default()).map_err(Status::bad_request)?;
        Ok(Target { container, node: node(call, &pod)? })
    }

    /// The node; 400 if the pod is bound to none.
    pub(super) fn node(&self, call: &Call) -> Result<&NodeAddress, Status> {
        self.node.as_ref().ok_or_else(|| Status::bad_request(format!("pod {} does not have a host assigned", call.info.name)))
    }
}

fn pod(call: &Call) -> Result<Value, Status> {
    let entry = call.server.lookup("", "pods", &call.info.namespace, &call.info.name)?;
    Ok(entry.ok_or_else(|| Status::not_found(("", "pods"), &call.info.name))?.value())
}

fn node(call: &Call, pod: &Value) -> Result<Option<NodeAddress>, Status> {
    match pod.str_at("spec.nodeName").filter(|name| !name.is_empty()) {
        Some(name) => NodeAddress::find(&call.server, name).map(Some),
        None => Ok(None),
    }
}

/// The container that is meant: the named one, or the only one. The error says which there are.
fn choose(pod: &Value, named: &str) -> Result<String, String> {
    let names = |list: &str| pod.list_at(&format!("spec.{list}")).iter().filter_map(|container| container.str_at("name")).collect::<Vec<_>>();
    let (plain, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !named.is_empty() {
        let known = [&plain, &init, &ephemeral].into_iter().flatten().any(|name| *name == named);
        return if known { Ok(named.into()) } else { Err(format!("container {named} is not valid for pod {}", pod.name())) };
    }
    if let ([only], [], []) = (plain.as_slice(), init.as_slice(), ephemeral.as_slice()) {
        return Ok(only.to_string());
    }
    let all = [init.as_slice(), plain.as_slice(), ephemeral.as_slice()].concat().join(" ");
    let message = format!("a container name must be specified for pod {}, choose one of: [{all}]", pod.name());
    match plain.as_slice() {
        // One container beside init containers is still the obvious one.
        [only] => Ok(only.to_string()),
        [] => Err(format!("a container name must be specified for pod {}", pod.name())),
        _ => Err(message),
    }
}

/// `?key=value&...`, escaped; empty if there is nothing.
pub(super) fn encode_query<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut query = String::new();
    for (key, value) in pairs {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(key);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => query.push(byte as char),
                _ => drop(write!(query, "%{byte:02X}")),
            }
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_only_container_is_meant_unless_one_is_named() {
        let pod = |containers: &[&str], init: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
            json!({"metadata": {"name": "x"}, "spec": {"containers": list(containers), "initContainers": list(init)}})
        };
        assert_eq!(choose(&pod(&["a"], &[]), ""), Ok("a".into()));
        assert_eq!(choose(&pod(&["a"], &["i"]), ""), Ok("a".into()));
        assert_eq!(choose(&pod(&["a", "b"], &[]), "b"), Ok("b".into()));
        assert_eq!(choose(&pod(&["a"], &["i"]), "i"), Ok("i".into()));
        assert_eq!(choose(&pod(&["a", "b"], &[]), ""), Err("a container name must be specified for pod x, choose one of: [a b]".into()));
        assert_eq!(choose(&pod(&["a"], &[]), "z"), Err("container z is not valid for pod x".into()));
    }

    #[test]
    fn a_node_is_reached_at_its_internal_address() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.5"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10260}}}});
        assert_eq!(NodeAddress::of(&node).unwrap().to_string(), "10.0.0.5:10260");
        let bare =
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "fd00::5"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}}});
        assert_eq!(NodeAddress::of(&bare).unwrap().to_string(), "[fd00::5]:10250");
        assert_eq!(NodeAddress::of(&json!({})), None);
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(encode_query([("command", "sh -c".to_string()), ("tty", "1".into())]), "?command=sh%20-c&tty=1");
        assert_eq!(encode_query([]), "");
    }
}
