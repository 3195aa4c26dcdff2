//! DefaultTolerationSeconds: a pod stays on a node that is not ready or not reachable for five minutes, unless it says otherwise.

use super::{AdmissionContext, Operation, Plugin, list_mut};
use api::{Status, Value, object::ObjectExt};
use serde_json::json;

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) struct DefaultTolerationSeconds;

#[async_trait::async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.is(Operation::Create, "", "pods") || cx.is(Operation::Update, "", "pods") {
            add(object);
        }
        Ok(())
    }
}

fn add(pod: &mut Value) {
    let missing: Vec<&str> =
        TAINTS.into_iter().filter(|taint| !pod.list_at("spec.tolerations").iter().any(|toleration| concerns(toleration, taint))).collect();
    if missing.is_empty() {
        return;
    }
    if let Some(tolerations) = list_mut(pod, "spec.tolerations") {
        tolerations.extend(missing.iter().map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS})));
    }
}

/// Whether a toleration already says something about the taint's eviction.
fn concerns(toleration: &Value, taint: &str) -> bool {
    let text = |key| toleration.str_at(key).unwrap_or_default();
    (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_said_is_added() {
        let check = |given: Value, added: &[&str]| {
            let mut pod = json!({"spec": {"tolerations": given}});
            let before = pod.list_at("spec.tolerations").len();
            add(&mut pod);
            let keys: Vec<_> = pod.list_at("spec.tolerations")[before..].iter().map(|toleration| toleration["key"].as_str().unwrap()).collect();
            assert_eq!(keys, added);
        };
        check(json!([]), &TAINTS);
        check(json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}]), &[TAINTS[1]]);
        check(json!([{"key": TAINTS[1], "operator": "Exists"}]), &[TAINTS[0]]);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoSchedule"}]), &TAINTS);
    }
}
