//! APIService of apiregistration.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("apiregistration.k8s.io", "v1", "APIService", "apiservices")
        .categories(&["api-extensions"])
        .names(NameRule::PathSegment)
        .conditional_update()
        .status()
}
