//! Which nodes a pod can be on by what it says of nodes (`nodeSelector`, node affinity) and by the ports that it takes of them:
//! facts that the scheduler, the controllers that place pods themselves and the node that takes them must agree on. Taints are
//! in [`crate::taints`], amounts in [`crate::resources`]. Functions of their arguments.
//!
//! What a pod says is compiled once and asked about for every node. What is asked that often is marked `inline`: it is compiled
//! into the scheduler, which is built to be fast, where this crate is built to be small.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};

/// Labels of a node.
type Labels = BTreeMap<String, String>;

/// What is said of a node that [`NodeMatch::matches`] refuses.
pub const AFFINITY_REFUSED: &str = "node(s) didn't match Pod's node affinity/selector";
/// What is said of a node where a [`HostPort`] is taken.
pub const PORTS_REFUSED: &str = "node(s) didn't have free ports for the requested pod ports";
/// What is said of a node that is not the one that `spec.nodeName` names.
pub const NAME_REFUSED: &str = "node(s) didn't match the requested node name";

/// One requirement on a label or field.
#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Above(i64),
    Below(i64),
    /// A requirement that can't be read: no node fulfils it.
    Never,
}

impl Requirement {
    fn of(requirement: &NodeSelectorRequirement) -> Requirement {
        let values = requirement.values.clone().unwrap_or_default();
        let number = || values.first().and_then(|value| value.parse().ok());
        let test = match requirement.operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            "Gt" => number().map_or(Test::Never, Test::Above),
            "Lt" => number().map_or(Test::Never, Test::Below),
            _ => Test::Never,
        };
        Requirement { key: requirement.key.clone(), test }
    }

    #[inline]
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.iter().any(|each| each == value)),
            Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|each| each != value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::Above(bound) => number().is_some_and(|number| number > *bound),
            Test::Below(bound) => number().is_some_and(|number| number < *bound),
            Test::Never => false,
        }
    }
}

/// One term of a node selector: all its requirements must hold. A term without any matches nothing.
#[derive(Clone, Debug, PartialEq)]
struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Term {
        let compile = |list: &Option<Vec<NodeSelectorRequirement>>| list.iter().flatten().map(Requirement::of).collect();
        Term { labels: compile(&term.match_expressions), fields: compile(&term.match_fields) }
    }

    #[inline]
    fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        let label = |requirement: &Requirement| requirement.matches(labels.get(&requirement.key).map(String::as_str));
        let field = |requirement: &Requirement| requirement.key == "metadata.name" && requirement.matches(Some(name));
        self.labels.iter().all(label) && self.fields.iter().all(field)
    }

    /// The only node names the term can match, if it names any.
    fn names(&self) -> Option<Vec<String>> {
        let mut names: Option<Vec<String>> = None;
        for requirement in self.fields.iter().filter(|requirement| requirement.key == "metadata.name") {
            if let Test::In(values) = &requirement.test {
                names = Some(match names {
                    None => values.clone(),
                    Some(before) => before.into_iter().filter(|name| values.contains(name)).collect(),
                });
            }
        }
        names
    }
}

/// A node selector: one of its terms must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTerms(Vec<Term>);

impl NodeTerms {
    /// Compiles a selector.
    pub fn of(selector: &NodeSelector) -> NodeTerms {
        NodeTerms(selector.node_selector_terms.iter().map(Term::of).collect())
    }

    /// Whether the node is selected.
    #[inline]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().any(|term| term.matches(name, labels))
    }
}

/// What a pod says about the nodes it can be on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeMatch {
    selector: Vec<(String, String)>,
    required: Option<Vec<Term>>,
    preferred: Vec<(i64, Term)>,
}

impl NodeMatch {
    /// Reads `spec.nodeSelector` and `spec.affinity.nodeAffinity`.
    pub fn of(pod: &Pod) -> NodeMatch {
        pod.spec.as_ref().map(NodeMatch::of_spec).unwrap_or_default()
    }

    /// The same of a specification, such as a template's.
    pub fn of_spec(spec: &PodSpec) -> NodeMatch {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|each| each.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = affinity.and_then(|each| each.preferred_during_scheduling_ignored_during_execution.as_ref());
        NodeMatch {
            selector: spec.node_selector.clone().unwrap_or_default().into_iter().collect(),
            required: required.map(|selector| selector.node_selector_terms.iter().map(Term::of).collect()),
            preferred: preferred.into_iter().flatten().map(|term| (i64::from(term.weight), Term::of(&term.preference))).collect(),
        }
    }

    /// Whether there is anything that a node could fail.
    pub fn is_required(&self) -> bool {
        !self.selector.is_empty() || self.required.is_some()
    }

    /// Whether there is anything to prefer.
    pub fn has_preferences(&self) -> bool {
        !self.preferred.is_empty()
    }

    /// Whether the pod can be on the node.
    #[inline]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let selected = self.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let required = |terms: &Vec<Term>| terms.iter().any(|term| term.matches(name, labels));
        selected && self.required.as_ref().is_none_or(required)
    }

    /// The sum of the weights of the preferences that the node fulfils. An empty preference is fulfilled by none.
    #[inline]
    pub fn preference(&self, name: &str, labels: &Labels) -> i64 {
        let fulfilled = self.preferred.iter().filter(|(_, term)| term.matches(name, labels));
        fulfilled.map(|(weight, _)| weight).sum()
    }

    /// The only nodes that can match, when every required term names its nodes (as a DaemonSet's pods do).
    pub fn names(&self) -> Option<Vec<String>> {
        let terms = self.required.as_ref()?;
        let mut names = Vec::new();
        for term in terms {
            names.extend(term.names()?);
        }
        Some(names)
    }
}

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The address; `0.0.0.0` is every address.
    pub ip: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The port number.
    pub port: i32,
}

impl HostPort {
    /// All that a pod takes, by its containers and sidecars.
    pub fn of_pod(pod: &Pod) -> Vec<HostPort> {
        let spec = pod.spec.iter();
        let containers = spec.flat_map(|spec| {
            let sidecars = spec.init_containers.iter().flatten();
            spec.containers.iter().chain(sidecars.filter(|each| each.restart_policy.as_deref() == Some("Always")))
        });
        containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let ip = port.host_ip.clone().filter(|ip| !ip.is_empty());
                Some(HostPort {
                    ip: ip.unwrap_or_else(|| "0.0.0.0".to_owned()),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port: number,
                })
            })
            .collect()
    }

    /// Whether two pods can't both have these on one node.
    #[inline]
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let everywhere = "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (self.ip == other.ip || self.ip == everywhere || other.ip == everywhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_match(spec: serde_json::Value) -> NodeMatch {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        NodeMatch::of(&serde_json::from_value(serde_json::json!({"spec": spec})).expect("a pod"))
    }

    fn terms(terms: serde_json::Value) -> NodeMatch {
        node_match(serde_json::json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn every_operator() {
        for (operator, values, value, expected) in [
            ("In", vec!["a", "b"], Some("b"), true),
            ("In", vec!["a"], Some("b"), false),
            ("In", vec!["a"], None, false),
            ("NotIn", vec!["a"], None, true),
            ("NotIn", vec!["a"], Some("a"), false),
            ("Exists", vec![], Some(""), true),
            ("DoesNotExist", vec![], Some(""), false),
            ("DoesNotExist", vec![], None, true),
            ("Gt", vec!["3"], Some("4"), true),
            ("Gt", vec!["3"], Some("3"), false),
            ("Lt", vec!["3"], Some("2"), true),
            ("Lt", vec!["3"], Some("two"), false),
            ("Nonsense", vec![], Some("x"), false),
        ] {
            let requirement = serde_json::json!([{"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}]);
            let labels = value.map(|value| labels(&[("k", value)])).unwrap_or_default();
            assert_eq!(terms(requirement).matches("n", &labels), expected, "{operator} {value:?}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_an_empty_one_matches_nothing() {
        assert!(!terms(serde_json::json!([{}])).matches("n", &Labels::new()));
        let either = terms(serde_json::json!([{}, {"matchExpressions": [{"key": "k", "operator": "Exists"}]}]));
        assert!(either.matches("n", &labels(&[("k", "v")])));
    }

    #[test]
    fn fields_name_the_node() {
        let one = terms(serde_json::json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]));
        assert!(one.matches("n1", &Labels::new()));
        assert!(!one.matches("n2", &Labels::new()));
        assert_eq!(one.names(), Some(vec!["n1".to_owned()]));
    }

    #[test]
    fn selector_and_affinity_must_both_agree() {
        let both = node_match(serde_json::json!({"nodeSelector": {"disk": "ssd"}, "affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}}}));
        assert!(both.matches("n", &labels(&[("disk", "ssd"), ("zone", "a")])));
        assert!(!both.matches("n", &labels(&[("disk", "ssd"), ("zone", "b")])));
        assert!(!both.matches("n", &labels(&[("zone", "a")])));
        assert!(node_match(serde_json::json!({})).matches("n", &Labels::new()));
    }

    fn ports(spec: serde_json::Value) -> Vec<HostPort> {
        HostPort::of_pod(&serde_json::from_value(serde_json::json!({"spec": spec})).expect("a pod"))
    }

    #[test]
    fn containers_and_sidecars_take_ports_and_what_starts_before_them_does_not() {
        let container = |port: i32| serde_json::json!({"name": "c", "ports": [{"containerPort": 1, "hostPort": port}, {"containerPort": 2}]});
        let mut sidecar = container(81);
        sidecar["restartPolicy"] = "Always".into();
        let taken = ports(serde_json::json!({"containers": [container(80)], "initContainers": [sidecar, container(82)]}));
        assert_eq!(taken.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
        assert_eq!((taken[0].ip.as_str(), taken[0].protocol.as_str()), ("0.0.0.0", "TCP"));
    }

    #[test]
    fn ports_conflict_on_one_address_or_on_all() {
        let port = |ip: &str, protocol: &str, number: i32| {
            let port = serde_json::json!({"containerPort": 1, "hostPort": number, "hostIP": ip, "protocol": protocol});
            ports(serde_json::json!({"containers": [{"name": "c", "ports": [port]}]})).remove(0)
        };
        let one = port("127.0.0.1", "TCP", 80);
        assert!(one.conflicts(&port("127.0.0.1", "TCP", 80)));
        assert!(one.conflicts(&port("", "TCP", 80)) && port("0.0.0.0", "TCP", 80).conflicts(&one));
        assert!(!one.conflicts(&port("127.0.0.2", "TCP", 80)));
        assert!(!one.conflicts(&port("", "UDP", 80)) && !one.conflicts(&port("", "TCP", 81)));
    }
}
