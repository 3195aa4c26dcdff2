//! ReplicationController.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .categories(&["all"])
        .generation()
        .selectable(&["status.replicas"])
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
}
