//! ReplicaSet of apps.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .categories(&["all"])
        .generation()
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
}
