//! DefaultTolerationSeconds: a pod stays on a node that is not ready or not reachable for five minutes, unless it (or the
//! server's flags) says otherwise.

use super::{AdmissionContext, Operation, Plugin, list_mut};
use api::{Status, Value, object::ObjectExt};
use serde_json::json;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The taints, and for how many seconds they are tolerated.
pub(super) struct DefaultTolerationSeconds([(&'static str, i64); 2]);

impl DefaultTolerationSeconds {
    pub(super) fn new(config: &super::Config) -> DefaultTolerationSeconds {
        DefaultTolerationSeconds([(NOT_READY, config.not_ready_toleration_s), (UNREACHABLE, config.unreachable_toleration_s)])
    }
}

#[async_trait::async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.is(Operation::Create, "", "pods") || cx.is(Operation::Update, "", "pods") {
            add(object, &self.0);
        }
        Ok(())
    }
}

fn add(pod: &mut Value, defaults: &[(&str, i64)]) {
    let is_said = |taint: &str| pod.list_at("spec.tolerations").iter().any(|toleration| concerns(toleration, taint));
    let missing: Vec<_> = defaults.iter().filter(|(taint, _)| !is_said(taint)).collect();
    if missing.is_empty() {
        return;
    }
    if let Some(tolerations) = list_mut(pod, "spec.tolerations") {
        let toleration =
            |(key, seconds): &(&str, i64)| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        tolerations.extend(missing.into_iter().map(toleration));
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
            add(&mut pod, &[(NOT_READY, 300), (UNREACHABLE, 7)]);
            let new = &pod.list_at("spec.tolerations")[before..];
            assert_eq!(new.iter().map(|toleration| toleration["key"].as_str().unwrap()).collect::<Vec<_>>(), added);
            for toleration in new {
                assert_eq!(toleration["tolerationSeconds"], if toleration["key"] == NOT_READY { 300 } else { 7 });
            }
        };
        check(json!([]), &[NOT_READY, UNREACHABLE]);
        check(json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}]), &[UNREACHABLE]);
        check(json!([{"key": UNREACHABLE, "operator": "Exists"}]), &[NOT_READY]);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"}]), &[NOT_READY, UNREACHABLE]);
    }
}
