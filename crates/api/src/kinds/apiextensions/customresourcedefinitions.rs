//! CustomResourceDefinition of apiextensions.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
        .short(&["crd", "crds"])
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .status()
}
