//! Deployment of apps.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "Deployment", "deployments")
        .short(&["deploy"])
        .categories(&["all"])
        .generation()
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
}
