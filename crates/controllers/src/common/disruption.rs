//! Saying on a pod that, and why, it is being taken away: the condition DisruptionTarget.

use client::{ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::Patch;
use serde_json::json;

/// The condition.
pub fn condition(reason: &str, message: &str, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(client::clock::whole_seconds(now))),
        ..PodCondition::default()
    }
}

/// Sets the condition. A pod that is gone, or another by now, is no failure.
pub async fn announce(pods: &Informer<Pod>, pod: &Pod, condition: PodCondition) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
    tolerant(pods.patch_status(&Key::of(pod), &Patch::Strategic(patch)).await)
}

/// Declares the pod failed: whoever replaces or counts pods must not wait for it any more.
pub async fn fail(pods: &Informer<Pod>, pod: &Pod, condition: Option<PodCondition>) -> Result<(), kube::Error> {
    let conditions: Vec<_> = condition.into_iter().collect();
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": conditions}});
    tolerant(pods.patch_status(&Key::of(pod), &Patch::Strategic(patch)).await)
}

fn tolerant<T>(outcome: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}
