//! PriorityClass of scheduling.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
        .short(&["pc"])
        .generation()
}
