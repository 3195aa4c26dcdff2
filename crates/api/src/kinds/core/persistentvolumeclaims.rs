//! PersistentVolumeClaim.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
        .short(&["pvc"])
        .status()
}
