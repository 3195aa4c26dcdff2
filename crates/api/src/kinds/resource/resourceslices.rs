//! ResourceSlice of resource.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")
        .generation()
        .selectable(&["spec.nodeName", "spec.driver"])
}
