//! The load balancer in front of several servers: Debian's HAProxy, on a node of its own, as `docs/operations.md` has it.
//!
//! What must stay true: a server that is not ready gets no new connection while another is ready; when none is ready
//! (the store has lost its quorum), the living ones still get them, for they answer reads.

use crate::{
    Doing, Result,
    plan::{API_PORT, Component, Node, Role, credentials},
};
use std::{fs, path::PathBuf};

fn file(node: &Node) -> PathBuf {
    node.directory.join("haproxy.cfg")
}

/// The process. `-db`: in the foreground.
pub(crate) fn component(node: &Node) -> Component {
    let command = vec!["haproxy".into(), "-db".into(), "-f".into(), file(node).display().to_string()];
    Component { name: "haproxy".into(), command, environment: Vec::new(), sockets: None }
}

/// Writes its configuration: all servers of the sandbox.
pub(crate) fn configure(node: &Node, nodes: &[Node]) -> Result<()> {
    let servers: Vec<(&str, &str)> = nodes.iter().filter(|n| n.role == Role::Server).map(|n| (n.name.as_str(), n.address.as_str())).collect();
    let authority = credentials(node).join("ca.crt").display().to_string();
    fs::write(file(node), configuration(&servers, &authority)).doing(|| format!("writing {}", file(node).display()))
}

fn configuration(servers: &[(&str, &str)], authority: &str) -> String {
    let list: String = servers.iter().map(|(name, address)| format!("    server {name} {address}:{API_PORT}\n")).collect();
    let backend = |name: &str, path: &str| {
        format!(
            "backend {name}\n    balance roundrobin\n    option httpchk GET {path}\n    http-check expect status 200\n    \
             default-server check check-ssl verify required ca-file {authority} inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions\n{list}"
        )
    };
    format!(
        "global\n    maxconn 4000\n\n\
         defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1h\n    timeout server 1h\n    timeout check 2s\n    \
         retries 3\n    option redispatch\n\n\
         frontend kubernetes\n    bind *:{API_PORT}\n    use_backend ready if {{ nbsrv(ready) gt 0 }}\n    default_backend alive\n\n\
         {}\n{}",
        backend("ready", "/readyz"),
        backend("alive", "/livez"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_in_both_backends() {
        let text = configuration(&[("server-1", "10.0.0.1"), ("server-2", "10.0.0.2")], "/pki/ca.crt");
        assert_eq!(text.matches("    server server-2 10.0.0.2:6443\n").count(), 2, "{text}");
        assert!(text.contains("option httpchk GET /readyz") && text.contains("ca-file /pki/ca.crt"));
    }
}
