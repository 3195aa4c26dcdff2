//! ResourceClaim of resource.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims").status()
}
