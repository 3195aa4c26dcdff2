//! ServiceCIDR of networking.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs").status()
}
