//! Which taints of a node a pod tolerates: a fact that the scheduler and the controllers that place or evict pods must agree
//! on. Functions of their arguments.
//!
//! The operators `Lt` and `Gt` belong to the feature `TaintTolerationComparisonOperators`, which v1.36 leaves switched off:
//! the API refuses them, and one that is there nevertheless tolerates nothing.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether the toleration covers the taint. What it leaves empty matches all: the key, the effect; no operator is `Equal`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let admits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == is);
    let value_matches = match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    };
    value_matches && admits(&toleration.key, &taint.key) && admits(&toleration.effect, &taint.effect)
}

/// The first taint of one of the effects that none of the tolerations covers.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(toleration: Value, expected: bool) {
        let taint: Taint = serde_json::from_value(json!({"key": "rank", "value": "5", "effect": "NoSchedule"})).expect("a taint");
        let read: Toleration = serde_json::from_value(toleration.clone()).expect("a toleration");
        assert_eq!(tolerates(&read, &taint), expected, "{toleration}");
        assert_eq!(untolerated(std::slice::from_ref(&taint), &[read], &["NoSchedule"]).is_none(), expected, "{toleration}");
    }

    #[test]
    fn what_is_empty_matches_all() {
        check(json!({"operator": "Exists"}), true);
        check(json!({"operator": "Exists", "key": "", "effect": ""}), true);
        check(json!({"operator": "Exists", "key": "rank"}), true);
        check(json!({"operator": "Exists", "effect": "NoSchedule"}), true);
        check(json!({"key": "rank", "value": "5"}), true);
        check(json!({"key": "rank", "operator": "", "value": "5", "effect": "NoSchedule"}), true);
        check(json!({"operator": "Equal", "value": "5"}), true);
    }

    #[test]
    fn what_is_said_must_be_so() {
        check(json!({"operator": "Exists", "key": "other"}), false);
        check(json!({"operator": "Exists", "effect": "NoExecute"}), false);
        check(json!({"operator": "Equal", "key": "rank", "value": "6"}), false);
        check(json!({"key": "rank"}), false);
        check(json!({}), false);
    }

    #[test]
    fn operators_that_are_switched_off_or_unknown_tolerate_nothing() {
        check(json!({"key": "rank", "operator": "Lt", "value": "6"}), false);
        check(json!({"key": "rank", "operator": "Gt", "value": "4"}), false);
        check(json!({"key": "rank", "operator": "Near", "value": "5"}), false);
    }

    #[test]
    fn other_effects_are_not_asked_about() {
        let taint: Taint = serde_json::from_value(json!({"key": "a", "effect": "PreferNoSchedule"})).expect("a taint");
        assert!(untolerated(std::slice::from_ref(&taint), &[], &["NoSchedule", "NoExecute"]).is_none());
        assert_eq!(untolerated(std::slice::from_ref(&taint), &[], &["PreferNoSchedule"]), Some(&taint));
    }
}
