//! CSIStorageCapacity of storage.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities")
        .conditional_update()
}
