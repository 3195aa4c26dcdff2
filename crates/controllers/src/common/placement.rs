//! Whether a pod may run on a node: node name, selector, required affinity. For controllers that place pods themselves
//! (DaemonSets). Taints are in [`client::taints`]; resources are the scheduler's business.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

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
}
