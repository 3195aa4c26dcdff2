//! ResourceQuota.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ResourceQuota", "resourcequotas")
        .short(&["quota"])
        .status()
}
