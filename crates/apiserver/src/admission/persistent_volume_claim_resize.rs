//! PersistentVolumeClaimResize: a claim may only grow if its class can grow volumes.

use super::{AdmissionContext, Operation, Plugin};
use api::{Status, Value, object::ObjectExt, quantity::Quantity};

pub(super) struct PersistentVolumeClaimResize;

#[async_trait::async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        let Some(old) = cx.old.filter(|_| cx.is(Operation::Update, "", "persistentvolumeclaims")) else { return Ok(()) };
        let size = |claim: &Value| claim.at("spec.resources.requests.storage").and_then(|size| Quantity::from_value(size).ok());
        let grows = matches!((size(old), size(object)), (Some(old), Some(new)) if new > old);
        if !grows || old.str_at("status.phase") != Some("Bound") {
            return Ok(());
        }
        let class = object.str_at("spec.storageClassName").unwrap_or_default();
        let can = cx.find("storage.k8s.io", "storageclasses", "", class)?.is_some_and(|class| class.bool_at("allowVolumeExpansion") == Some(true));
        if can {
            return Ok(());
        }
        Err(cx.forbidden(object, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}
