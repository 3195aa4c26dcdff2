//! TaintNodesByCondition: a new node takes no pods until its conditions are known.

use super::{AdmissionContext, Operation, Plugin, list_mut};
use api::{Status, Value, object::ObjectExt};
use serde_json::json;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait::async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        let tainted =
            object.list_at("spec.taints").iter().any(|taint| taint.str_at("key") == Some(NOT_READY) && taint.str_at("effect") == Some("NoSchedule"));
        if cx.is(Operation::Create, "", "nodes")
            && !tainted
            && let Some(taints) = list_mut(object, "spec.taints")
        {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
