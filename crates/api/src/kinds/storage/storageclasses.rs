//! StorageClass of storage.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "StorageClass", "storageclasses").short(&["sc"])
}
