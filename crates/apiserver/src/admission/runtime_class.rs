//! RuntimeClass: what a pod's runtime costs and where it runs is written into the pod.

use super::{AdmissionContext, Operation, Plugin, list_mut};
use api::{Status, Value, object::ObjectExt};

pub(super) struct RuntimeClass;

#[async_trait::async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        let Some(name) = object.str_at("spec.runtimeClassName").map(String::from) else {
            return match object.at("spec.overhead").is_some_and(|overhead| !overhead.is_null()) {
                true => Err(cx.forbidden(object, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")),
                false => Ok(()),
            };
        };
        let Some(class) = cx.find("node.k8s.io", "runtimeclasses", "", &name)? else {
            return Err(cx.forbidden(object, format!("pod rejected: RuntimeClass {name:?} not found")));
        };
        apply(object, &class).map_err(|message| cx.forbidden(object, message))
    }
}

fn apply(pod: &mut Value, class: &Value) -> Result<(), String> {
    let overhead = class.at("overhead.podFixed").filter(|overhead| !overhead.is_null());
    match (pod.at("spec.overhead").filter(|overhead| !overhead.is_null()), overhead) {
        (Some(given), overhead) if Some(given) != overhead => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        (None, Some(overhead)) => pod.set("spec.overhead", overhead.clone()),
        _ => {}
    }
    for (key, value) in class.map_at("scheduling.nodeSelector").into_iter().flatten() {
        let selector = pod.map_at("spec.nodeSelector").and_then(|selector| selector.get(key));
        if selector.is_some_and(|given| given != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                selector.map(text).unwrap_or_default()
            ));
        }
        pod.set_default("spec.nodeSelector", Value::Object(Default::default()));
        if let Some(selector) = pod.at_mut("spec.nodeSelector").and_then(Value::as_object_mut) {
            selector.insert(key.clone(), value.clone());
        }
    }
    for toleration in class.list_at("scheduling.tolerations") {
        if !pod.list_at("spec.tolerations").contains(toleration)
            && let Some(tolerations) = list_mut(pod, "spec.tolerations")
        {
            tolerations.push(toleration.clone());
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_adds_and_never_overrules() {
        let class = json!({"overhead": {"podFixed": {"cpu": "10m"}}, "scheduling": {"nodeSelector": {"a.b/c": "d"}, "tolerations": [{"key": "x"}]}});
        let mut pod = json!({"spec": {}});
        apply(&mut pod, &class).unwrap();
        assert_eq!(pod["spec"], json!({"overhead": {"cpu": "10m"}, "nodeSelector": {"a.b/c": "d"}, "tolerations": [{"key": "x"}]}));
        assert!(apply(&mut json!({"spec": {"nodeSelector": {"a.b/c": "e"}}}), &class).unwrap_err().contains("conflict"));
    }
}
