//! The network that joins the nodes: one bridge on the machine, one veth pair per node, and cuts.
//!
//! A cut is a rule of the bridge, not a change of the node: frames between two links are dropped in the direction asked,
//! as if the cable were broken. The pairs that are cut live in an nft set, so that cutting and healing are one element.

use crate::{
    Result,
    plan::{NETWORK_PREFIX, Node},
    run, run_with_input,
};

pub const BRIDGE: &str = "rgsb0";
/// The nft tables of a sandbox on the machine, by family.
const TABLES: [(&str, &str); 2] = [("bridge", "regent-sandbox"), ("ip", "regent-sandbox")];

/// The hardware address that goes with an address of the sandbox's network. A machine keeps its own through a reboot; with
/// a new one, its neighbours would send to the old one until their caches forget it.
fn hardware_address(address: &str) -> String {
    let bytes = address.split('.').map(|part| format!("{:02x}", part.parse::<u8>().unwrap_or(0)));
    format!("02:72:{}", bytes.collect::<Vec<_>>().join(":"))
}

/// Makes the bridge with the machine's own address on it, unless it is there.
pub fn make_bridge() -> Result<()> {
    if run("ip", &["link", "show", BRIDGE]).is_err() {
        run("ip", &["link", "add", BRIDGE, "address", &hardware_address(&format!("{NETWORK_PREFIX}.1")), "type", "bridge"])?;
    }
    run("ip", &["address", "replace", &format!("{NETWORK_PREFIX}.1/24"), "dev", BRIDGE])?;
    run("ip", &["link", "set", BRIDGE, "up"])?;
    let ruleset = format!(
        "table bridge regent-sandbox {{
            set cut {{ type ifname . ifname; }}
            chain forward {{ type filter hook forward priority 0; policy accept; iifname . oifname @cut drop; }}
            set off {{ type ifname; }}
            chain input {{ type filter hook input priority 0; policy accept; iifname @off drop; }}
            chain output {{ type filter hook output priority 0; policy accept; oifname @off drop; }}
        }}
        table ip regent-sandbox {{
            chain postrouting {{ type nat hook postrouting priority 100; policy accept; }}
        }}
        flush chain ip regent-sandbox postrouting
        add rule ip regent-sandbox postrouting ip saddr {NETWORK_PREFIX}.0/24 oifname != \"{BRIDGE}\" masquerade
        "
    );
    let exists = run("nft", &["list", "table", "bridge", "regent-sandbox"]).is_ok();
    if !exists {
        run_with_input("nft", &["-f", "-"], &ruleset)?;
    }
    Ok(())
}

/// Removes the bridge and the rules.
pub fn remove_bridge() -> Result<()> {
    for (family, table) in TABLES {
        if run("nft", &["list", "table", family, table]).is_ok() {
            run("nft", &["delete", "table", family, table])?;
        }
    }
    if run("ip", &["link", "show", BRIDGE]).is_ok() {
        run("ip", &["link", "delete", BRIDGE])?;
    }
    Ok(())
}

/// Plugs a node that is on (its init is `pid`) into the bridge, as its `eth0`.
pub fn plug(node: &Node, pid: i32) -> Result<()> {
    let link = node.link();
    unplug(node);
    let pid = pid.to_string();
    let address = hardware_address(&node.address);
    run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "address", &address, "netns", &pid])?;
    run("ip", &["link", "set", &link, "master", BRIDGE, "up"])?;
    let inside = |arguments: &[&str]| {
        let mut all = vec!["--target", &pid, "--net", "ip"];
        all.extend(arguments);
        run("nsenter", &all)
    };
    inside(&["address", "add", &format!("{}/24", node.address), "dev", "eth0"])?;
    inside(&["link", "set", "eth0", "up"])?;
    inside(&["route", "add", "default", "via", &format!("{NETWORK_PREFIX}.1")])?;
    Ok(())
}

/// Removes a node's link, if there is one. The kernel removes it too, some time after the node's death.
pub fn unplug(node: &Node) {
    let _ = run("ip", &["link", "delete", &node.link()]);
}

/// Breaks the cable between two nodes, both ways, or heals it.
pub fn set_cut(a: &Node, b: &Node, cut: bool) -> Result<()> {
    let (a, b) = (a.link(), b.link());
    set_elements("cut", &format!("\"{a}\" . \"{b}\", \"{b}\" . \"{a}\""), cut)
}

/// Breaks the cable between a node and the machine itself, both ways, or heals it.
pub fn set_off(node: &Node, off: bool) -> Result<()> {
    set_elements("off", &format!("\"{}\"", node.link()), off)
}

fn set_elements(set: &str, elements: &str, present: bool) -> Result<()> {
    // Added first in both cases: deleting what is not there is an error, adding what is there is none.
    let mut text = format!("add element bridge regent-sandbox {set} {{ {elements} }}\n");
    if !present {
        text += &format!("delete element bridge regent-sandbox {set} {{ {elements} }}\n");
    }
    run_with_input("nft", &["-f", "-"], &text).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_local_and_follows_from_the_address() {
        assert_eq!(hardware_address("172.30.0.21"), "02:72:ac:1e:00:15");
    }
}
