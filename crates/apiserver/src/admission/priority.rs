//! Priority: what a pod's class says becomes the pod's number; a number that a user gives must be that one.

use super::{AdmissionContext, Operation, Plugin};
use api::{Status, Value, object::ObjectExt};

const GROUP: &str = "scheduling.k8s.io";
/// Classes that the cluster itself needs.
const SYSTEM_CLASSES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];

/// How a class says that it is the default one.
const DEFAULT: &[u8] = br#""globalDefault":true"#;

pub(super) struct Priority;

#[async_trait::async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.is(Operation::Update, "", "pods") {
            // The number is fixed; an update that leaves it out means it as it was.
            for path in ["spec.priority", "spec.preemptionPolicy"] {
                if let Some(value) = cx.old.and_then(|old| old.at(path)) {
                    object.set_default(path, value.clone());
                }
            }
        }
        if !cx.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        let name = object.str_at("spec.priorityClassName").unwrap_or_default().to_string();
        let class = match name.as_str() {
            "" => {
                // Most clusters have no default: only what says that it might be one is read.
                let mut classes = cx.server.entries(GROUP, "priorityclasses", None)?;
                classes.retain(|class| class.bytes.windows(DEFAULT.len()).any(|bytes| bytes == DEFAULT));
                default_class(&classes.iter().map(|class| class.value()).collect::<Vec<_>>())
            }
            name => match cx.find(GROUP, "priorityclasses", "", name)? {
                Some(class) => Some(class),
                None => return Err(cx.forbidden(object, format!("no PriorityClass with name {name} was found"))),
            },
        };
        resolve(object, class.as_ref()).map_err(|message| cx.forbidden(object, message))
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if cx.is(Operation::Delete, GROUP, "priorityclasses") && SYSTEM_CLASSES.contains(&cx.name) {
            return Err(cx.forbidden(object, "this is a system priority class and cannot be deleted"));
        }
        let written = cx.is(Operation::Create, GROUP, "priorityclasses") || cx.is(Operation::Update, GROUP, "priorityclasses");
        if written && object.bool_at("globalDefault") == Some(true) {
            let other = cx
                .objects(GROUP, "priorityclasses", None)?
                .into_iter()
                .find(|class| class.bool_at("globalDefault") == Some(true) && class.name() != object.name());
            if let Some(other) = other {
                return Err(cx.forbidden(object, format!("PriorityClass {} is already marked as default. Only one default can exist", other.name())));
            }
        }
        Ok(())
    }
}

/// The class of pods that name none. Should there be several, the lowest.
fn default_class(classes: &[Value]) -> Option<Value> {
    classes.iter().filter(|class| class.bool_at("globalDefault") == Some(true)).min_by_key(|class| class.i64_at("value").unwrap_or_default()).cloned()
}

fn resolve(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let priority = class.and_then(|class| class.i64_at("value")).unwrap_or_default();
    let policy = class.and_then(|class| class.str_at("preemptionPolicy")).unwrap_or("PreemptLowerPriority");
    if let Some(given) = pod.i64_at("spec.priority").filter(|given| *given != priority) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        ));
    }
    if let Some(given) = pod.str_at("spec.preemptionPolicy").filter(|given| !given.is_empty() && *given != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        pod.set("spec.priorityClassName", class.name());
    }
    pod.set("spec.priority", priority);
    pod.set("spec.preemptionPolicy", policy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_class_decides() {
        let class = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
        let mut pod = json!({"spec": {}});
        resolve(&mut pod, Some(&class)).unwrap();
        assert_eq!(pod["spec"], json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}));
        let mut pod = json!({"spec": {}});
        resolve(&mut pod, None).unwrap();
        assert_eq!(pod["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let refused = resolve(&mut json!({"spec": {"priority": 7}}), None).unwrap_err();
        assert_eq!(
            refused,
            "the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name"
        );
    }
}
