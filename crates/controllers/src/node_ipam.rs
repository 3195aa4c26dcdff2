//! Node IPAM: every node gets a range of pod addresses of its own out of the cluster's (`spec.podCIDR`, `spec.podCIDRs`).
//!
//! What must stay true: no range is given twice. So one worker allocates, from what all nodes hold (own writes are seen at
//! once) and what it has given out itself; and ranges are given round robin, so that a removed node's is reused last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder};
use client::{Informer, Key};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use tracing::info;

use crate::Context;
use crate::common::owner::{name_of, uid_of};
use crate::common::patch;

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(NodeIpam {
        cluster: context.options.cluster_cidr,
        prefix: context.options.node_cidr_mask_size,
        nodes: context.informers.all(),
        recorder: context.recorder_for("cidrAllocator"),
        given: Mutex::default(),
    })
}

struct NodeIpam {
    cluster: IpNet,
    prefix: u8,
    nodes: Informer<Node>,
    recorder: Recorder,
    given: Mutex<Given>,
}

/// What this allocator has given out since it started.
#[derive(Default)]
struct Given {
    /// By UID of the node.
    ranges: BTreeMap<String, IpNet>,
    last: Option<IpNet>,
}

#[async_trait]
impl Controller for NodeIpam {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.nodes);
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let nodes = self.nodes.list();
        let Some(node) = nodes.iter().find(|node| name_of(&***node) == key.name) else {
            let uids: BTreeSet<_> = nodes.iter().map(|node| uid_of(&**node)).collect();
            self.given.lock().ranges.retain(|uid, _| uids.contains(uid.as_str()));
            return Ok(Next::Done);
        };
        if !ranges_of(node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let uid = uid_of(&**node).to_owned();
        let range = {
            let mut given = self.given.lock();
            // Asked for already, and the write failed or is not seen yet: the same range again.
            let before = given.ranges.get(&uid).copied();
            let others = given.ranges.iter().filter(|(each, _)| **each != uid).map(|(_, range)| *range);
            let used: BTreeSet<IpNet> = nodes.iter().flat_map(|node| ranges_of(node)).chain(others).collect();
            let free = before.filter(|range| !overlaps(&used, range)).or_else(|| decide(self.cluster, self.prefix, &used, given.last));
            if let Some(range) = free {
                given.ranges.insert(uid, range);
                given.last = Some(range);
            }
            free
        };
        let Some(range) = range else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.about(&**node, Normal, "CIDRNotAvailable", message);
            return Err(Error::NotYet(format!("{} has no range of pod addresses left", self.cluster)));
        };
        let text = range.to_string();
        patch::write(&self.nodes, &**node, json!({"spec": {"podCIDR": text, "podCIDRs": [text]}})).await?;
        info!(node = key.name, range = text, "pod addresses given");
        Ok(Next::Done)
    }
}

/// The ranges that a node holds.
fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|text| text.parse().ok()).collect()
}

fn overlaps(used: &BTreeSet<IpNet>, range: &IpNet) -> bool {
    used.iter().any(|each| each.contains(range) || range.contains(each))
}

/// The next free range after `last`, wrapping round.
fn decide(cluster: IpNet, prefix: u8, used: &BTreeSet<IpNet>, last: Option<IpNet>) -> Option<IpNet> {
    let ranges = || cluster.subnets(prefix).into_iter().flatten();
    let free = |range: &IpNet| !overlaps(used, range);
    let later = ranges().filter(|range| last.is_none_or(|last| *range > last)).find(free);
    later.or_else(|| ranges().find(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn ranges_are_given_once_and_reused_last() {
        let cluster = net("10.244.0.0/22");
        let next = |used: &[&str], last: Option<&str>| {
            decide(cluster, 24, &used.iter().map(|text| net(text)).collect(), last.map(net)).map(|range| range.to_string())
        };
        assert_eq!(next(&[], None).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(next(&["10.244.0.0/24"], Some("10.244.0.0/24")).as_deref(), Some("10.244.1.0/24"));
        // Node 0 is gone, but its range is only used again when all others have been.
        assert_eq!(next(&["10.244.1.0/24"], Some("10.244.1.0/24")).as_deref(), Some("10.244.2.0/24"));
        assert_eq!(next(&["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"], Some("10.244.3.0/24")).as_deref(), Some("10.244.0.0/24"));
        // A larger range that somebody gave by hand is heeded.
        assert_eq!(next(&["10.244.0.0/23"], None).as_deref(), Some("10.244.2.0/24"));
        assert_eq!(next(&["10.244.0.0/22"], None), None);
    }
}
