//! Ingress of networking.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("networking.k8s.io", "v1", "Ingress", "ingresses")
        .short(&["ing"])
        .generation()
        .status()
}
