//! Whether a pod may run on a node: node name, selector, required affinity, taints. For controllers that place pods
//! themselves (DaemonSets), and that ask who would be driven away. Resources are the scheduler's business.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

use super::owner::{labels_of, name_of};

/// Whether the pod's node selector and required node affinity allow the node.
pub fn affinity_allows(pod: &PodSpec, node: &Node) -> bool {
    let labels = labels_of(node);
    let selected = pod.node_selector.iter().flatten().all(|(name, value)| labels.get(name) == Some(value));
    let required =
        pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| selector_matches(selector, node))
}

/// Whether any of the selector's terms matches the node. A term without any requirement matches nothing.
pub fn selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = labels_of(node);
    let mut requirements = 0;
    for requirement in term.match_expressions.iter().flatten() {
        requirements += 1;
        if !requirement_matches(requirement, labels.get(&requirement.key).map(String::as_str)) {
            return false;
        }
    }
    for requirement in term.match_fields.iter().flatten() {
        requirements += 1;
        let field = (requirement.key == "metadata.name").then(|| name_of(node));
        if !requirement_matches(requirement, field) {
            return false;
        }
    }
    requirements > 0
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || Some((number(value)?, number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether the toleration tolerates the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().filter(|effect| !effect.is_empty());
    let key = toleration.key.as_deref().filter(|key| !key.is_empty());
    if effect.is_some_and(|effect| effect != taint.effect) || key.is_some_and(|key| key != taint.key) {
        return false;
    }
    let value = taint.value.as_deref().unwrap_or_default();
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let compared = || Some((value.parse::<i64>().ok()?, wanted.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => key.is_some() && value == wanted,
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        _ => false,
    }
}

/// The first taint of one of the effects that none of the tolerations tolerates.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    taints.iter().filter(|taint| effects.contains(&taint.effect.as_str())).find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(operator: &str, values: &[&str], label: Option<&str>, expected: bool) {
        let requirement =
            NodeSelectorRequirement { key: "k".into(), operator: operator.into(), values: Some(values.iter().map(ToString::to_string).collect()) };
        assert_eq!(requirement_matches(&requirement, label), expected, "{operator} {values:?} {label:?}");
    }

    #[test]
    fn requirements() {
        check("In", &["a", "b"], Some("b"), true);
        check("In", &["a"], None, false);
        check("NotIn", &["a"], None, true);
        check("Exists", &[], Some(""), true);
        check("DoesNotExist", &[], Some(""), false);
        check("Gt", &["3"], Some("4"), true);
        check("Lt", &["3"], Some("x"), false);
    }

    #[test]
    fn tolerations() {
        let taint = Taint { key: "dedicated".into(), value: Some("gpu".into()), effect: "NoSchedule".into(), time_added: None };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        assert!(tolerates(&toleration("dedicated", "Equal", "gpu", "NoSchedule"), &taint));
        assert!(tolerates(&toleration("", "Exists", "", ""), &taint));
        assert!(!tolerates(&toleration("dedicated", "Equal", "cpu", "NoSchedule"), &taint));
        assert!(!tolerates(&toleration("dedicated", "Exists", "", "NoExecute"), &taint));
        assert!(untolerated(std::slice::from_ref(&taint), &[], &["NoExecute"]).is_none());
        assert!(untolerated(&[taint], &[], &["NoSchedule"]).is_some());
    }
}
