//! Who a member is: a node's name as a number, and an epoch that grows with every start and every return from the dead.

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// A node's name as a number, the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The number of this name.
    pub fn of(name: &str) -> NodeId {
        let hash = digest(&SHA256, name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_ref()[..8]);
        NodeId(u64::from_be_bytes(first))
    }
}

/// What SWIM calls a member: of two with the same node, the higher epoch is the real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Grows with every start and every return.
    pub epoch: u64,
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Identity { node: self.node, epoch: self.epoch.saturating_add(1) })
    }
    fn addr(&self) -> NodeId {
        self.node
    }
    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.epoch > adversary.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_number_everywhere() {
        assert_eq!(NodeId::of("worker-1"), NodeId::of("worker-1"));
        assert_ne!(NodeId::of("worker-1"), NodeId::of("worker-2"));
    }
}
