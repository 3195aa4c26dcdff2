//! RoleEscalation: nobody writes a role or binding that gives more than they have. Kubernetes has this check in the storage
//! of these kinds and not under a plugin's name; here it is where every other rule about who writes what is.

use super::{AdmissionContext, Operation, Plugin};
use crate::authorization::{escalation, rbac};
use api::{Status, Value};

pub(super) struct RoleEscalation;

#[async_trait::async_trait]
impl Plugin for RoleEscalation {
    fn name(&self) -> &'static str {
        "RoleEscalation"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if cx.kind.group != rbac::GROUP || !matches!(cx.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let check = match cx.kind.resource.as_str() {
            "roles" | "clusterroles" => escalation::check_role,
            "rolebindings" | "clusterrolebindings" => escalation::check_binding,
            _ => return Ok(()),
        };
        check(cx.server, cx.user, &cx.kind.resource, cx.namespace, object, cx.old)
    }
}
