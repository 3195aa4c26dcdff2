//! What containerd is told about the pod network: the CNI configuration, and the plugins where it looks for them.
//!
//! The plugin is Debian's `ptp`, not `bridge`: every pod is a link of its own, so that also packets between two pods of one
//! node pass the node's routing, and with it Service translation, its way back, and policies. Over a bridge the answer of a
//! pod on the same node would go past them, unless `br_netfilter` is loaded.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde_json::json;

use crate::addresses::{PLUGIN, write_durably};

/// The configuration's file name: CNI takes the first by name.
pub const FILE: &str = "10-regent.conflist";

/// Where distributions put the CNI plugins.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// The configuration's text.
pub fn configuration(pods: Ipv4Net, addresses_folder: &Path, mtu: u32) -> String {
    let value = json!({
        "cniVersion": "1.0.0",
        "name": "regent",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "mtu": mtu,
            "ipam": { "type": PLUGIN, "range": pods.to_string(), "folder": addresses_folder },
        }],
    });
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

/// Makes sure that the plugins folder holds our plugin (a link to this binary) and those that it needs.
pub fn provide_plugins(folder: &Path, binary: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    link(binary, &folder.join(PLUGIN))?;
    for plugin in ["ptp", "loopback"] {
        let wanted = folder.join(plugin);
        if wanted.exists() {
            continue;
        }
        let found = PLUGIN_FOLDERS.iter().map(|folder| Path::new(folder).join(plugin)).find(|path| path.is_file());
        match found {
            Some(found) => link(&found, &wanted)?,
            None => tracing::error!(plugin, "the CNI plugin is missing: install Debian's containernetworking-plugins"),
        }
    }
    Ok(())
}

fn link(target: &Path, at: &Path) -> std::io::Result<()> {
    if std::fs::read_link(at).is_ok_and(|known| known == target) {
        return Ok(());
    }
    let beside = PathBuf::from(format!("{}.new", at.display()));
    let _ = std::fs::remove_file(&beside);
    std::os::unix::fs::symlink(target, &beside)?;
    std::fs::rename(&beside, at)
}

/// Writes the configuration if it is not there already.
pub fn write_configuration(folder: &Path, text: &str) -> std::io::Result<()> {
    let path = folder.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    write_durably(&path, text.as_bytes())
}

/// The table's fixed part: pods that leave the cluster take the node's address, and the node's ports that pods have.
pub fn base(pods: Ipv4Net, cluster: Ipv4Net, untouched: &[Ipv4Addr]) -> String {
    let untouched = untouched.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
    let skip = if untouched.is_empty() { String::new() } else { format!("    ip daddr {{ {untouched} }} return\n") };
    format!(
        "  map {HOST_PORTS} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map {HOST_IP_PORTS} {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  set {HAIRPINS} {{ type ipv4_addr . ipv4_addr; }}
  chain host-ports {{
{skip}    meta l4proto {{ tcp, udp, sctp }} dnat ip to ip daddr . meta l4proto . th dport map @{HOST_IP_PORTS}
    fib daddr type local meta l4proto {{ tcp, udp, sctp }} dnat ip to meta l4proto . th dport map @{HOST_PORTS}
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump host-ports
  }}
  chain nat-output {{
    type nat hook output priority -100; policy accept;
    jump host-ports
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr . ip daddr @{HAIRPINS} masquerade fully-random
    ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random
    ip saddr {pods} ip daddr != {cluster} ip daddr != 224.0.0.0/4 masquerade fully-random
  }}
"
    )
}

/// Map from (protocol, port) on any of the node's addresses to a pod's address and port.
pub const HOST_PORTS: &str = "host-ports-any";
/// The same for ports on one address.
pub const HOST_IP_PORTS: &str = "host-ports-one";
/// Pods with host ports that may reach themselves through them.
pub const HAIRPINS: &str = "hairpins";
