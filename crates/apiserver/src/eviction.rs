//! `pods/eviction`: a delete that asks the PodDisruptionBudgets first.
//!
//! A budget is charged before the pod is deleted, with the version that was read: two evictions cannot spend the same
//! allowance. The disruption controller corrects a charge whose delete did not happen.

use crate::{
    admission::connections,
    cache::Entry,
    connect::{Answer, Call},
    delete,
    subresource::set_condition,
    write::{Changed, Part, Writer, now},
};
use api::{Status, Value, limits, object::ObjectExt, request::DeleteOptions, selector::LabelSelector};
use http::StatusCode;
use serde_json::json;

/// Pods that one budget may be waiting for at a time.
const DISRUPTED_PODS_MAX: usize = 2000;
/// When a client should ask again.
const RETRY_AFTER_S: u32 = 10;

/// POST of an Eviction.
pub async fn evict(mut call: Call) -> Answer {
    let mut eviction = call.object_of("policy", "v1", "Eviction", &["policy/v1beta1"]).await?;
    if eviction.name() != call.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    connections::admit_posted(&call, &mut eviction, call.write_options()?.dry_run).await?;
    let mut options = match eviction.get("deleteOptions") {
        Some(given) if !given.is_null() => DeleteOptions::from_value(given)?,
        _ => DeleteOptions::default(),
    };
    options.dry_run |= call.write_options()?.dry_run;
    let writer = Writer::of(&call, options.dry_run, "");
    for _ in 0..limits::UPDATE_ATTEMPTS_MAX {
        let entry = writer.standing(writer.name).await?.ok_or_else(|| Status::not_found(call.resource(), writer.name))?;
        let pod = entry.value();
        delete::check_preconditions(&call.kind, &pod, &options)?;
        if !ignores_budgets(&pod) {
            match charge(&call, &entry, &pod, options.dry_run).await {
                Err(status) if status.is_conflict() => continue,
                other => other?,
            }
            // What was decided about is what is deleted.
            options.uid.get_or_insert_with(|| pod.uid().to_string());
        }
        say_why(&writer, &options).await?;
        delete::delete_object(&writer, &options).await?;
        return Ok(call.done(StatusCode::CREATED));
    }
    Err(Status::too_many_requests("The eviction request conflicts with other writes, please try again.", RETRY_AFTER_S))
}

/// Tells whoever looks at the pod, and the controllers that count its failures, why it ends.
async fn say_why(writer: &Writer<'_>, options: &DeleteOptions) -> Result<(), Status> {
    if options.dry_run {
        return Ok(());
    }
    let condition = json!({"type": "DisruptionTarget", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
        "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"});
    let marked = writer.modify(Part::Trusted, |old| {
        delete::check_preconditions(writer.kind, old, options)?;
        let mut new = old.clone();
        set_condition(&mut new, condition.clone());
        Ok(Changed::newest(new))
    });
    marked.await?;
    Ok(())
}

/// Pods that do not count as available anyway: done, not begun, or on their way out.
fn ignores_budgets(pod: &Value) -> bool {
    matches!(pod.str_at("status.phase"), Some("Succeeded" | "Failed" | "Pending")) || pod.deletion_timestamp().is_some()
}

fn is_ready(pod: &Value) -> bool {
    pod.list_at("status.conditions").iter().any(|condition| condition.str_at("type") == Some("Ready") && condition.str_at("status") == Some("True"))
}

/// Takes one disruption from the pod's budget, if it has one.
async fn charge(call: &Call, entry: &Entry, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let budgets = call.server.entries("policy", "poddisruptionbudgets", Some(call.namespace()))?;
    let selects = |budget: &Value| {
        budget
            .at("spec.selector")
            .and_then(|selector| LabelSelector::from_value(selector).ok())
            .is_some_and(|selector| selector.matches(|key| entry.label(key)))
    };
    let mut covering = budgets.iter().map(|budget| budget.value()).filter(selects);
    let (Some(budget), second) = (covering.next(), covering.next()) else { return Ok(()) };
    if second.is_some() {
        return Err(Status::unknown("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."));
    }
    if !is_ready(pod) && may_evict_unready(&budget) {
        return Ok(());
    }
    let kind = call.server.kind("policy", "poddisruptionbudgets")?;
    let writer = Writer { kind: &kind, namespace: call.namespace(), name: budget.name(), dry_run, ..Writer::of(call, dry_run, "") };
    let charged = writer.modify(Part::Trusted, |old| charged(old, pod.name()));
    charged.await.map(drop)
}

/// Whether a pod that is not ready may go without asking the budget.
fn may_evict_unready(budget: &Value) -> bool {
    match budget.str_at("spec.unhealthyPodEvictionPolicy") {
        Some("AlwaysAllow") => true,
        _ => {
            budget.i64_at("status.currentHealthy").unwrap_or(0) >= budget.i64_at("status.desiredHealthy").unwrap_or(0)
                && budget.i64_at("status.desiredHealthy").unwrap_or(0) > 0
        }
    }
}

/// The budget with one disruption less, or why there is none to take.
fn charged(budget: &Value, pod: &str) -> Result<Changed, Status> {
    let refused = |retry_after_s: u32, cause: Option<String>| {
        let status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", retry_after_s);
        match cause {
            Some(cause) => status.with_cause("DisruptionBudget", cause, ""),
            None => status,
        }
    };
    let name = budget.name();
    if budget.i64_at("status.observedGeneration").unwrap_or(0) < budget.generation() {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(RETRY_AFTER_S, Some(cause)));
    }
    let allowed = budget.i64_at("status.disruptionsAllowed").unwrap_or(0);
    if allowed < 0 {
        return Err(Status::forbidden(("policy", "poddisruptionbudgets"), name, "pdb disruptions allowed is negative"));
    }
    if budget.map_at("status.disruptedPods").map_or(0, |pods| pods.len()) > DISRUPTED_PODS_MAX {
        return Err(Status::forbidden(
            ("policy", "poddisruptionbudgets"),
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            budget.i64_at("status.desiredHealthy").unwrap_or(0),
            budget.i64_at("status.currentHealthy").unwrap_or(0)
        );
        return Err(refused(0, Some(cause)));
    }
    let mut new = budget.clone();
    new.set("status.disruptionsAllowed", allowed - 1);
    if new.map_at("status.disruptedPods").is_none() {
        new.set("status.disruptedPods", json!({}));
    }
    if let Some(Value::Object(pods)) = new.at_mut("status.disruptedPods") {
        pods.insert(pod.to_string(), json!(now()));
    }
    Ok(Changed::newest(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 2, "currentHealthy": 2 + allowed}})
    }

    #[test]
    fn a_budget_is_spent_once_and_then_refuses() {
        let new = charged(&budget(1), "p").unwrap().object;
        assert_eq!(new["status"]["disruptionsAllowed"], 0);
        assert!(new["status"]["disruptedPods"]["p"].is_string());
        let status = charged(&new, "q").err().unwrap();
        assert_eq!(status.code, 429);
        assert_eq!(status.message, "Cannot evict pod as it would violate the pod's disruption budget.");
        assert_eq!(status.details.unwrap().causes[0].message, "The disruption budget b needs 2 healthy pods and has 3 currently");
    }

    #[test]
    fn a_budget_that_is_not_processed_yet_refuses_for_a_while() {
        let mut fresh = budget(5);
        fresh.set("metadata.generation", 2);
        assert_eq!(charged(&fresh, "p").err().unwrap().retry_after_s(), Some(RETRY_AFTER_S));
    }
}
