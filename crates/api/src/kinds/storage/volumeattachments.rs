//! VolumeAttachment of storage.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments")
        .conditional_update()
        .status()
}
