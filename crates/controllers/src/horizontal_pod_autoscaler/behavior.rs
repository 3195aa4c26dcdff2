//! How fast the number of replicas may change: what was wanted lately, and how much was changed lately. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// What is remembered of one autoscaler. Lost with the leader: a new one waits a window before it scales down.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    wanted: Vec<(Timestamp, i32)>,
    added: Vec<(Timestamp, i32)>,
    removed: Vec<(Timestamp, i32)>,
}

/// How long anything can matter: the longest window or period that the API allows.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How many of each are remembered at most; at one in 15 seconds this is an hour.
const REMEMBERED_MAX: usize = 300;

/// Kubernetes' defaults.
fn policies(rules: Option<&HPAScalingRules>, up: bool) -> Vec<HPAScalingPolicy> {
    let policy = |type_: &str, value| HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: 15 };
    match rules.and_then(|rules| rules.policies.clone()) {
        Some(policies) if !policies.is_empty() => policies,
        _ if up => vec![policy("Pods", 4), policy("Percent", 100)],
        _ => vec![policy("Percent", 100)],
    }
}

fn window(rules: Option<&HPAScalingRules>, otherwise_s: i32) -> Duration {
    let seconds = rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(otherwise_s);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A number of replicas and why it is that one: a condition's reason and message.
pub type Reasoned = (i32, &'static str, &'static str);

impl Memory {
    fn forget(&mut self, now: Timestamp) {
        for list in [&mut self.wanted, &mut self.added, &mut self.removed] {
            list.retain(|(at, _)| *at + REMEMBERED > now);
            let surplus = list.len().saturating_sub(REMEMBERED_MAX);
            list.drain(..surplus);
        }
    }

    /// Remembers a change that was made.
    pub fn changed(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.added.push((now, to - from));
        } else if to < from {
            self.removed.push((now, from - to));
        }
    }

    /// Holds on to what was wanted within the windows. `None` where the newest wish stands.
    pub fn stabilize(&mut self, behavior: Option<&HorizontalPodAutoscalerBehavior>, current: i32, wanted: i32, now: Timestamp) -> Option<Reasoned> {
        self.forget(now);
        let (up, down) = (behavior.and_then(|behavior| behavior.scale_up.as_ref()), behavior.and_then(|behavior| behavior.scale_down.as_ref()));
        let within = |window: Duration| self.wanted.iter().filter(move |(at, _)| *at + window > now).map(|(_, wanted)| *wanted).chain([wanted]);
        let lowest = within(window(up, 0)).min().unwrap_or(wanted);
        let highest = within(window(down, 300)).max().unwrap_or(wanted);
        let steady = current.max(lowest).min(highest);
        self.wanted.push((now, wanted));
        match steady {
            _ if steady == wanted => None,
            _ if wanted >= current => {
                Some((steady, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"))
            }
            _ => Some((
                steady,
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            )),
        }
    }

    fn sum(list: &[(Timestamp, i32)], period_s: i32, now: Timestamp) -> i32 {
        let period = Duration::from_secs(u64::try_from(period_s).unwrap_or(0));
        list.iter().filter(|(at, _)| *at + period > now).map(|(_, change)| change).sum()
    }

    /// What the policies of one direction allow.
    fn limit(&self, rules: Option<&HPAScalingRules>, current: i32, up: bool, now: Timestamp) -> i32 {
        let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let limits = policies(rules, up).into_iter().map(|policy| {
            let start = current - Self::sum(&self.added, policy.period_seconds, now) + Self::sum(&self.removed, policy.period_seconds, now);
            let share = f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), up) {
                ("Pods", true) => start.saturating_add(policy.value),
                ("Pods", false) => start.saturating_sub(policy.value),
                (_, true) => (f64::from(start) * (1.0 + share)).ceil() as i32,
                (_, false) => (f64::from(start) * (1.0 - share)) as i32,
            }
        });
        // The policy that allows the most change is the highest up, the lowest down.
        let furthest = (select == "Min") != up;
        let limit = if furthest { limits.max() } else { limits.min() }.unwrap_or(current);
        if up { limit.max(current) } else { limit.min(current) }
    }

    /// Keeps the wish within the bounds and the speed that is allowed.
    pub fn bound(
        &self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        current: i32,
        wanted: i32,
        bounds: (i32, i32),
        now: Timestamp,
    ) -> Result<i32, Reasoned> {
        let (least, most) = bounds;
        let (up, down) = (behavior.and_then(|behavior| behavior.scale_up.as_ref()), behavior.and_then(|behavior| behavior.scale_down.as_ref()));
        if wanted > current {
            let limit = self.limit(up, current, true, now);
            if wanted > limit.min(most) {
                return Err(if limit > most {
                    (most, "TooManyReplicas", "the desired replica count is more than the maximum replica count")
                } else {
                    (limit, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate")
                });
            }
        } else if wanted < current {
            let limit = self.limit(down, current, false, now);
            if wanted < limit.max(least) {
                return Err(if limit < least {
                    (least, "TooFewReplicas", "the desired replica count is less than the minimum replica count")
                } else {
                    (limit, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate")
                });
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use serde_json::{Value, json};

    fn behavior(value: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(value).expect("a behavior")
    }

    #[test]
    fn down_waits_five_minutes_and_up_does_not() {
        let mut memory = Memory::default();
        assert_eq!(memory.stabilize(None, 4, 8, at(1000)), None);
        assert_eq!(memory.stabilize(None, 8, 2, at(1015)).map(|held| (held.0, held.1)), Some((8, "ScaleDownStabilized")));
        assert_eq!(memory.stabilize(None, 8, 2, at(1299)).map(|held| held.0), Some(8));
        assert_eq!(memory.stabilize(None, 8, 2, at(1301)), None);
        let patient = behavior(json!({"scaleUp": {"stabilizationWindowSeconds": 60}}));
        let mut memory = Memory::default();
        assert_eq!(memory.stabilize(Some(&patient), 2, 2, at(0)), None);
        assert_eq!(memory.stabilize(Some(&patient), 2, 9, at(15)).map(|held| (held.0, held.1)), Some((2, "ScaleUpStabilized")));
        assert_eq!(memory.stabilize(Some(&patient), 2, 9, at(61)), None);
    }

    #[test]
    fn the_speed_has_limits() {
        let mut memory = Memory::default();
        assert_eq!(memory.bound(None, 1, 3, (1, 100), at(0)), Ok(3));
        assert_eq!(memory.bound(None, 10, 50, (1, 100), at(0)).map_err(|limit| (limit.0, limit.1)), Err((20, "ScaleUpLimit")));
        assert_eq!(memory.bound(None, 10, 50, (1, 15), at(0)).map_err(|limit| (limit.0, limit.1)), Err((15, "TooManyReplicas")));
        memory.changed(10, 20, at(0));
        assert_eq!(memory.bound(None, 20, 50, (1, 100), at(5)).map_err(|limit| limit.0), Err(20), "the period's share is used up");
        assert_eq!(memory.bound(None, 20, 50, (1, 100), at(15)).map_err(|limit| limit.0), Err(40));
        assert_eq!(memory.bound(None, 10, 0, (2, 100), at(60)).map_err(|limit| limit.0), Err(2));
        let slow = behavior(
            json!({"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}, "scaleUp": {"selectPolicy": "Disabled"}}),
        );
        assert_eq!(memory.bound(Some(&slow), 10, 2, (1, 100), at(100)).map_err(|limit| (limit.0, limit.1)), Err((9, "ScaleDownLimit")));
        assert_eq!(memory.bound(Some(&slow), 10, 20, (1, 100), at(100)).map_err(|limit| limit.0), Err(10));
    }
}
