//! DaemonSet of apps.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .categories(&["all"])
        .generation()
        .status()
}
