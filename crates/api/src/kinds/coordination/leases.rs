//! Lease of coordination.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("coordination.k8s.io", "v1", "Lease", "leases")
        .conditional_update()
        .create_on_update()
}
