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
    let added = class.list_at("scheduling.tolerations");
    if !added.is_empty()
        && let Some(tolerations) = list_mut(pod, "spec.tolerations")
    {
        tolerations.extend(added.iter().cloned());
        *tolerations = without_covered(tolerations);
    }
    Ok(())
}

/// Tolerations without those that others tolerate too; of two that are alike the first.
fn without_covered(all: &[Value]) -> Vec<Value> {
    let mut kept: Vec<Value> = vec![];
    for (i, toleration) in all.iter().enumerate() {
        if !kept.iter().chain(&all[i + 1..]).any(|other| other != toleration && covers(other, toleration)) && !kept.contains(toleration) {
            kept.push(toleration.clone());
        }
    }
    kept
}
/// Whether one toleration tolerates all that another does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let of = |toleration: &Value, key: &str| toleration.str_at(key).unwrap_or_default().to_string();
    let exists = of(wide, "operator") == "Exists";
    if of(wide, "key") != of(narrow, "key") && !(of(wide, "key").is_empty() && exists) {
        return false;
    }
    if !of(wide, "effect").is_empty() && of(wide, "effect") != of(narrow, "effect") {
        return false;
    }
    let seconds = |toleration: &Value| toleration.i64_at("tolerationSeconds");
    if of(wide, "effect") == "NoExecute"
        && let Some(wide_s) = seconds(wide)
        && seconds(narrow).is_none_or(|narrow_s| narrow_s > wide_s)
    {
        return false;
    }
    exists || of(narrow, "operator") != "Exists" && of(wide, "value") == of(narrow, "value")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_another_toleration_covers_is_left_out() {
        let wide = json!({"key": "k", "operator": "Exists"});
        let narrow = json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        let other = json!({"key": "o", "operator": "Exists"});
        assert_eq!(without_covered(&[narrow.clone(), other.clone(), wide.clone()]), [other.clone(), wide.clone()]);
        assert_eq!(without_covered(&[wide.clone(), narrow, wide.clone()]), [wide]);
    }

    #[test]
    fn a_class_adds_and_never_overrules() {
        let class = json!({"overhead": {"podFixed": {"cpu": "10m"}}, "scheduling": {"nodeSelector": {"a.b/c": "d"}, "tolerations": [{"key": "x"}]}});
        let mut pod = json!({"spec": {}});
        apply(&mut pod, &class).unwrap();
        assert_eq!(pod["spec"], json!({"overhead": {"cpu": "10m"}, "nodeSelector": {"a.b/c": "d"}, "tolerations": [{"key": "x"}]}));
        assert!(apply(&mut json!({"spec": {"nodeSelector": {"a.b/c": "e"}}}), &class).unwrap_err().contains("conflict"));
    }
}
