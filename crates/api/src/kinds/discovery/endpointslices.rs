//! EndpointSlice of discovery.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").generation()
}
