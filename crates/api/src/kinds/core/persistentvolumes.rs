//! PersistentVolume.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "PersistentVolume", "persistentvolumes")
        .short(&["pv"])
        .status()
}
