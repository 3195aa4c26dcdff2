//! IPAddress of networking.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "IPAddress", "ipaddresses")
        .short(&["ip"])
        .names(NameRule::PathSegment)
}
