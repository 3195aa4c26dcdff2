//! What a Job's failure policy says about a failed pod, and when the next one may be tried.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::common::owner::name_of;
use crate::common::pod_state;

/// The first pause after a failed pod; it doubles with each further one.
const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What to make of a failed pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the back-off limit.
    Count,
    /// It does not count.
    Ignore,
    /// The whole Job fails, for this reason in words.
    FailJob(String),
    /// Its index fails and is not tried again.
    FailIndex,
}

/// Judges a failed pod by the Job's policy; without a policy, or where no rule matches, it counts.
pub(super) fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules).enumerate();
    for (at, rule) in rules {
        if let Some(how) = matching(rule, pod, at) {
            return match rule.action.as_str() {
                "FailJob" => Verdict::FailJob(how),
                "Ignore" => Verdict::Ignore,
                "FailIndex" => Verdict::FailIndex,
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten()))
}

fn matching(rule: &PodFailurePolicyRule, pod: &Pod, at: usize) -> Option<String> {
    let named = format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), name_of(pod));
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = statuses(pod).find_map(|status| exit_matching(codes, status))?;
        return Some(format!("Container {container} for pod {named} failed with exit code {code} matching {} rule at index {at}", rule.action));
    }
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let found = rule.on_pod_conditions.iter().flatten().find(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        conditions.iter().any(|condition| condition.type_ == pattern.type_ && condition.status == wanted)
    })?;
    Some(format!("Pod {named} has condition {} matching {} rule at index {at}", found.type_, rule.action))
}

fn exit_matching<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, status: &'a ContainerStatus) -> Option<(&'a str, i32)> {
    if codes.container_name.as_ref().is_some_and(|name| *name != status.name) {
        return None;
    }
    let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = codes.values.contains(&code);
    let matches = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => code != 0 && !listed,
        _ => false,
    };
    matches.then_some((status.name.as_str(), code))
}

/// When the pod ended, as far as its object says.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = statuses(pod).filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|time| time.0).max();
    containers
        .or_else(|| pod_state::condition(pod, "Ready").and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0))
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// How long the next pod must wait: the pause doubles with each failure since the last success.
pub(super) fn pause<'a>(pods: impl Iterator<Item = &'a Pod> + Clone, now: Timestamp) -> Duration {
    let last_success = pods.clone().filter(|pod| pod_state::phase(pod) == "Succeeded").filter_map(ended_at).max();
    let failures: Vec<Timestamp> = pods
        .filter(|pod| pod_state::phase(pod) == "Failed")
        .filter_map(ended_at)
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let Some(last) = failures.iter().max() else { return Duration::ZERO };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let pause = BACKOFF_INITIAL.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    let passed = Duration::try_from(now.duration_since(*last)).unwrap_or(Duration::ZERO);
    pause.saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern};
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, PodCondition};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn failed(exit_code: i32, finished_s: i64) -> Pod {
        let mut pod = pod("p", "n", "Failed", None);
        let terminated = ContainerStateTerminated { exit_code, finished_at: Some(Time(at(finished_s))), ..Default::default() };
        let state = Some(ContainerState { terminated: Some(terminated), ..Default::default() });
        pod.status.as_mut().unwrap().container_statuses = Some(vec![ContainerStatus { name: "main".into(), state, ..Default::default() }]);
        pod
    }

    #[test]
    fn rules_are_tried_in_order() {
        let exit = |action: &str, operator: &str, values: &[i32]| PodFailurePolicyRule {
            action: action.into(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement { container_name: None, operator: operator.into(), values: values.to_vec() }),
            on_pod_conditions: None,
        };
        let disrupted = PodFailurePolicyRule {
            action: "Ignore".into(),
            on_exit_codes: None,
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: None }]),
        };
        let spec = JobSpec {
            pod_failure_policy: Some(PodFailurePolicy { rules: vec![disrupted, exit("FailJob", "In", &[42]), exit("FailIndex", "NotIn", &[1])] }),
            ..Default::default()
        };
        assert_eq!(
            judge(&spec, &failed(42, 1)),
            Verdict::FailJob("Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        assert_eq!(judge(&spec, &failed(1, 1)), Verdict::Count);
        assert_eq!(judge(&spec, &failed(7, 1)), Verdict::FailIndex);
        let mut evicted = failed(42, 1);
        let condition = PodCondition { type_: "DisruptionTarget".into(), status: "True".into(), ..Default::default() };
        evicted.status.as_mut().unwrap().conditions.as_mut().unwrap().push(condition);
        assert_eq!(judge(&spec, &evicted), Verdict::Ignore);
    }

    #[test]
    fn the_pause_doubles_and_a_success_ends_it() {
        let check = |pods: &[Pod], now: i64, expected_s: u64| assert_eq!(pause(pods.iter(), at(now)).as_secs(), expected_s);
        check(&[], 100, 0);
        check(&[failed(1, 100)], 103, 7);
        check(&[failed(1, 50), failed(1, 100)], 103, 17);
        check(&[failed(1, 50), failed(1, 100)], 120, 0);
        let mut success = failed(0, 80);
        success.status.as_mut().unwrap().phase = Some("Succeeded".into());
        check(&[failed(1, 50), success, failed(1, 100)], 103, 7);
    }
}
