//! LimitRanger: a namespace's LimitRanges give containers defaults, and bound what pods and claims ask for.

use super::{AdmissionContext, Operation, Plugin};
use crate::authorization::rbac::aggregate;
use api::quota::{Amounts as Resources, pod_resources, resources};
use api::{Status, Value, object::ObjectExt, quantity::Quantity};
use std::collections::BTreeMap;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger;

#[async_trait::async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        let ranges = cx.objects("", "limitranges", Some(cx.namespace))?;
        ranges.iter().for_each(|range| default_resources(object, range));
        Ok(())
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let claim = cx.is(Operation::Create, "", "persistentvolumeclaims") || cx.is(Operation::Update, "", "persistentvolumeclaims");
        let resized = cx.operation == Operation::Update && cx.concerns("", "pods") && cx.subresource == "resize";
        if !claim && !resized && !cx.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        for range in cx.objects("", "limitranges", Some(cx.namespace))? {
            let problems = if claim { check_claim(object, &range) } else { check_pod(object, &range) };
            if !problems.is_empty() {
                return Err(cx.forbidden(object, aggregate(&problems)));
            }
        }
        Ok(())
    }
}

/// Writes defaults into the containers of a pod, and into an annotation that it did.
fn default_resources(pod: &mut Value, range: &Value) {
    let of_containers = |key: &str| {
        let limits = range.list_at("spec.limits").iter().filter(|limit| limit.str_at("type") == Some("Container"));
        limits
            .flat_map(|limit| limit.map_at(key).into_iter().flatten())
            .map(|(name, amount)| (name.clone(), amount.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (limits, requests) = (of_containers("default"), of_containers("defaultRequest"));
    let mut notes = Vec::new();
    for (list, kind) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
        let Some(containers) = pod.at_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let name = container.str_at("name").unwrap_or_default().to_string();
            for (what, part, defaults) in [("request", "requests", &requests), ("limit", "limits", &limits)] {
                let mut set = Vec::new();
                for (resource, amount) in defaults {
                    let path = format!("resources.{part}");
                    if container.map_at(&path).is_some_and(|given| given.contains_key(resource)) {
                        continue;
                    }
                    container.set_default(&path, Value::Object(Default::default()));
                    if let Some(given) = container.at_mut(&path).and_then(Value::as_object_mut) {
                        given.insert(resource.clone(), amount.clone());
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    notes.push(format!("{} {what} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        pod.set_annotation(ANNOTATION, &format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for limit in range.list_at("spec.limits") {
        match limit.str_at("type") {
            Some("Container") => {
                for list in ["spec.containers", "spec.initContainers"] {
                    for container in pod.list_at(list) {
                        check(
                            limit,
                            "Container",
                            &resources(container, "resources.requests"),
                            &resources(container, "resources.limits"),
                            &mut problems,
                        );
                    }
                }
            }
            Some("Pod") => check(limit, "Pod", &pod_resources(pod, "requests"), &pod_resources(pod, "limits"), &mut problems),
            _ => {}
        }
    }
    problems
}

fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let requests = resources(claim, "spec.resources.requests");
    for limit in range.list_at("spec.limits").iter().filter(|limit| limit.str_at("type") == Some("PersistentVolumeClaim")) {
        for (name, least) in resources(limit, "min") {
            least_of(&name, "PersistentVolumeClaim", &least, requests.get(&name), None, &mut problems);
        }
        for (name, most) in resources(limit, "max") {
            match requests.get(&name) {
                None => problems.push(format!("maximum {name} usage per PersistentVolumeClaim is {most}.  No request is specified")),
                Some(request) if *request > most => {
                    problems.push(format!("maximum {name} usage per PersistentVolumeClaim is {most}, but request is {request}"))
                }
                Some(_) => {}
            }
        }
    }
    problems
}

fn check(limit: &Value, kind: &str, requests: &Resources, limits: &Resources, problems: &mut Vec<String>) {
    for (name, least) in resources(limit, "min") {
        least_of(&name, kind, &least, requests.get(&name), limits.get(&name), problems);
    }
    for (name, most) in resources(limit, "max") {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if *limit > most => problems.push(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if *request > most => problems.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in resources(limit, "maxLimitRequestRatio") {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        match (requests.get(&name).filter(|request| !request.is_zero()), limits.get(&name).filter(|limit| !limit.is_zero())) {
            (None, _) => problems.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => problems.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                if ratio > most.as_f64() {
                    problems.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn least_of(name: &str, kind: &str, least: &Quantity, request: Option<&Quantity>, limit: Option<&Quantity>, problems: &mut Vec<String>) {
    let head = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => problems.push(format!("{head}.  No request is specified")),
        (Some(request), _) if request < least => problems.push(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < least => problems.push(format!("{head}, but limit is {limit}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(resources: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn defaults_fill_what_is_missing_and_say_so() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "500m", "memory": "128Mi"}, "defaultRequest": {"cpu": "100m", "memory": "128Mi"}}]}});
        let mut pod = container(json!({"requests": {"memory": "64Mi"}}));
        default_resources(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}})
        );
        assert_eq!(pod.annotation(ANNOTATION), Some("LimitRanger plugin set: cpu request for container c; cpu, memory limit for container c"));
        let complete = pod.clone();
        default_resources(&mut pod, &range);
        assert_eq!(pod, complete, "nothing is missing now");
    }

    #[test]
    fn bounds() {
        let range =
            json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}}]}});
        let check = |resources: Value, expected: &[&str]| assert_eq!(check_pod(&container(resources), &range), expected);
        check(json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "500m"}}), &[]);
        check(
            json!({"limits": {"cpu": "4"}, "requests": {"cpu": "10m"}}),
            &[
                "minimum cpu usage per Container is 100m, but request is 10m",
                "maximum cpu usage per Container is 1, but limit is 4",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 400.000000",
            ],
        );
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers_or_its_largest_init_container() {
        let range = json!({"spec": {"limits": [{"type": "Pod", "max": {"memory": "1Gi"}, "min": {"cpu": "100m"}}]}});
        let with = |memory: &[&str], init: &str| {
            let one = |memory: &str| json!({"resources": {"limits": {"memory": memory, "cpu": "1"}, "requests": {"cpu": "1"}}});
            json!({"spec": {"containers": memory.iter().map(|m| one(m)).collect::<Vec<_>>(), "initContainers": [one(init)]}})
        };
        assert_eq!(check_pod(&with(&["600Mi", "600Mi"], "1Mi"), &range), ["maximum memory usage per Pod is 1Gi, but limit is 1200Mi"]);
        assert!(check_pod(&with(&["512Mi"], "1Gi"), &range).is_empty());
        let nothing = json!({"spec": {"containers": [{"name": "c"}]}});
        assert_eq!(
            check_pod(&nothing, &range),
            ["minimum cpu usage per Pod is 100m.  No request is specified", "maximum memory usage per Pod is 1Gi.  No limit is specified"]
        );
    }
}
