//! NamespaceLifecycle: nothing is made in a namespace that is not there or that is going, and some namespaces stay.

use super::{AdmissionContext, Operation, Plugin};
use api::{Status, Value, object::ObjectExt};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The phase of a namespace that is going.
const TERMINATING: &str = "Terminating";

pub(super) struct NamespaceLifecycle;

#[async_trait::async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.is(Operation::Delete, "", "namespaces") && IMMORTAL.contains(&cx.name) {
            return Err(cx.forbidden(object, "this namespace may not be deleted"));
        }
        if cx.operation != Operation::Create || !cx.kind.namespaced_scope() || cx.namespace.is_empty() {
            return Ok(());
        }
        let mut namespace = cx.server.lookup("", "namespaces", "", cx.namespace)?;
        if namespace.is_none() {
            // It may have been made a moment ago, by another server.
            cx.server.cache.fresh().await?;
            namespace = cx.server.lookup("", "namespaces", "", cx.namespace)?;
        }
        let Some(namespace) = namespace else { return Err(Status::not_found(("", "namespaces"), cx.namespace)) };
        // The word is looked for before the object is read: every create in every namespace asks.
        let may_end = namespace.bytes.windows(TERMINATING.len()).any(|bytes| bytes == TERMINATING.as_bytes());
        if namespace.deleting || (may_end && namespace.value().str_at("status.phase") == Some(TERMINATING)) {
            let message = format!("unable to create new content in namespace {} because it is being terminated", cx.namespace);
            let cause = format!("namespace {} is being terminated", cx.namespace);
            return Err(cx.forbidden(object, message).with_cause("NamespaceTerminating", cause, "metadata.namespace"));
        }
        Ok(())
    }
}
