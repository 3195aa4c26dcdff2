//! StorageObjectInUseProtection: claims and volumes get a finalizer, so that they go only when nothing uses them.

use super::{AdmissionContext, Operation, Plugin};
use api::{Status, Value, object::ObjectExt};

pub(super) struct StorageObjectInUseProtection;

#[async_trait::async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        for (group, resource, finalizer) in [
            ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
            ("", "persistentvolumes", "kubernetes.io/pv-protection"),
            ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
        ] {
            if cx.is(Operation::Create, group, resource) {
                object.add_finalizer(finalizer);
            }
        }
        Ok(())
    }
}
