//! CSIDriver of storage.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "CSIDriver", "csidrivers").conditional_update()
}
