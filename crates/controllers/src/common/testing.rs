//! Objects for the tests of the decisions.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A point in time, in seconds.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a test's time is in range")
}

/// A pod in namespace `ns`; on no node if `node` is empty; ready since then.
pub fn pod(name: &str, node: &str, phase: &str, ready_since: Option<i64>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.metadata.creation_timestamp = Some(Time(at(ready_since.unwrap_or(1))));
    pod.spec = Some(PodSpec { node_name: (!node.is_empty()).then(|| node.into()), ..Default::default() });
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if ready_since.is_some() { "True" } else { "False" }.into(),
        last_transition_time: ready_since.map(|s| Time(at(s))),
        ..Default::default()
    };
    pod.status = Some(PodStatus { phase: Some(phase.into()), conditions: Some(vec![ready]), ..Default::default() });
    pod
}
