//! Node.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "Node", "nodes")
        .short(&["no"])
        .selectable(&["spec.unschedulable"])
        .connect("proxy", ("", "", "NodeProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .status()
}
