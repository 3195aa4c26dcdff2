//! StatefulSet of apps.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .categories(&["all"])
        .generation()
        .names(NameRule::Label)
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
}
