//! RuntimeClass of node.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
        .conditional_update()
        .create_on_update()
}
