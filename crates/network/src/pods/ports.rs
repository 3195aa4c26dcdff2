//! hostPort: what one pod of this node wants on the node's own addresses. Pure.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

use super::cni::{HAIRPINS, HOST_IP_PORTS, HOST_PORTS};
use crate::conntrack::Protocol;
use crate::table::Fragment;

/// The pod's part of the table; nothing for a pod without host ports, without address, on the node's own network, or done.
pub fn fragment(pod: &Pod) -> Option<Fragment> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref()?;
    let done = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || done {
        return None;
    }
    let address: Ipv4Addr = status.pod_ip.as_deref()?.parse().ok()?;
    let mut fragment = Fragment::default();
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten()) {
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
        let (Some(host_port), Some(container_port)) = (port.host_port.and_then(number), number(port.container_port)) else {
            continue;
        };
        let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP")) else { continue };
        let target = format!("{address} . {container_port}");
        match port.host_ip.as_deref().unwrap_or("") {
            "" | "0.0.0.0" => fragment.map(HOST_PORTS, format!("{protocol} . {host_port}"), target),
            host_ip => {
                let Ok(host_ip) = host_ip.parse::<Ipv4Addr>() else { continue };
                fragment.map(HOST_IP_PORTS, format!("{host_ip} . {protocol} . {host_port}"), target);
            }
        }
        fragment.member(HAIRPINS, format!("{address} . {address}"));
    }
    (fragment != Fragment::default()).then_some(fragment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_become_elements() {
        let pod = |status: &str| -> Pod {
            serde_saphyr::from_str(&format!(
                "{{metadata: {{name: a}}, spec: {{containers: [{{name: c, ports: [{{containerPort: 80, hostPort: 8080}}, \
                 {{containerPort: 53, hostPort: 5353, hostIP: 127.0.0.1, protocol: UDP}}, {{containerPort: 9}}]}}]}}, status: {status}}}"
            ))
            .unwrap()
        };
        let fragment = fragment(&pod("{podIP: 10.244.1.7, phase: Running}")).unwrap();
        let text: Vec<String> = fragment.elements.iter().map(|(e, v)| format!("{} {} {}", e.container, e.key, v.as_deref().unwrap_or("-"))).collect();
        assert_eq!(
            text,
            [
                "hairpins 10.244.1.7 . 10.244.1.7 -",
                "host-ports-any tcp . 8080 10.244.1.7 . 80",
                "host-ports-one 127.0.0.1 . udp . 5353 10.244.1.7 . 53",
            ]
        );
        assert!(super::fragment(&pod("{podIP: 10.244.1.7, phase: Succeeded}")).is_none());
        assert!(super::fragment(&pod("{phase: Pending}")).is_none());
    }
}
