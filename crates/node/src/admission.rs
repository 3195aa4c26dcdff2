//! Whether the node takes a pod that was bound to it: the kubelet's own admission. Pure.
//!
//! For most pods the scheduler has asked all this before. It is asked again for those that came past it: bound by hand, by a
//! scheduler of somebody else, or by one that saw the node as it was. The order of the questions, the reasons and the words are
//! Kubernetes' (<https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/lifecycle/predicate.go>); of several reasons the
//! first is given.
//!
//! What must stay true: a pod is judged once, when it comes. One that was taken is never judged again, whatever becomes of the
//! node's labels, and over restarts of the agent. What only a server can say of the node and none has said is not asked about, so
//! that a node that starts without one starts its pods. Static pods are not judged: whoever may write files on the node may
//! run what they want there.

use crate::{
    eviction::{self, Pressures},
    spec::{security, spec_of},
};
use api::kinds::pod::resources::is_native;
use client::{
    placement::{AFFINITY_REFUSED, HostPort, NAME_REFUSED, NodeMatch, PORTS_REFUSED},
    resources::{self, Resources},
    taints,
};
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{collections::BTreeMap, sync::Arc};

const OS: &str = "linux";
const OS_LABEL: &str = "kubernetes.io/os";
/// What is said of a node with a taint that ends pods.
const TAINTS_REFUSED: &str = "node(s) had taints that the pod didn't tolerate";

/// What the API has of this node that pods are judged by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registered {
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    allocatable: BTreeMap<String, Quantity>,
}

impl Registered {
    pub fn of(node: &Node) -> Registered {
        Registered {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            allocatable: node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default(),
        }
    }
}

/// The node as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub node_name: &'a str,
    pub allocatable: &'a BTreeMap<String, Quantity>,
    pub pods_max: usize,
    pub pressures: Pressures,
    pub allowed_unsafe_sysctls: &'a [String],
    /// None while no server has said it.
    pub registered: Option<&'a Registered>,
}

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
    /// It follows from what the API has of the node, which may have changed since it was read.
    pub is_of_registered: bool,
}

impl Refusal {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), message: message.into(), is_of_registered: false }
    }

    fn of_predicate(name: &str, words: &str) -> Refusal {
        Refusal::new(name, format!("Predicate {name} failed: {words}"))
    }

    fn of_registered(self) -> Refusal {
        Refusal { is_of_registered: true, ..self }
    }
}

/// Whether the pod was taken in an earlier life of the agent, or has no claim to be.
pub fn is_settled(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || pod.status.as_ref().is_some_and(|status| status.start_time.is_some())
}

/// Why the node does not take the pod, if it does not. `others` are the pods that hold something of the node, each with what
/// was set aside for it.
pub fn refusal(pod: &Pod, others: &[Arc<Pod>], place: &Place<'_>) -> Option<Refusal> {
    under_pressure(pod, place)
        .or_else(|| sysctl(pod, place))
        .or_else(|| operating_system(pod))
        .or_else(|| groups_policy(pod))
        .or_else(|| shortage(pod, others, place))
        .or_else(|| affinity(pod, place))
        .or_else(|| name(pod, place))
        .or_else(|| ports(pod, others))
        .or_else(|| untolerated(pod, place))
}

fn under_pressure(pod: &Pod, place: &Place<'_>) -> Option<Refusal> {
    eviction::refusal(pod, place.pressures).map(|why| Refusal::new("Evicted", why))
}

fn sysctl(pod: &Pod, place: &Place<'_>) -> Option<Refusal> {
    security::forbidden_sysctl(pod, place.allowed_unsafe_sysctls).map(|why| Refusal::new("SysctlForbidden", why))
}

fn operating_system(pod: &Pod) -> Option<Refusal> {
    // The pod's own label, as in Kubernetes: what it selects is asked for with all other labels.
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if label.is_some_and(|label| label != OS) {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    let is_foreign = spec_of(pod).os.as_ref().is_some_and(|os| os.name != OS);
    is_foreign.then(|| Refusal::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"))
}

/// The runtime is never told of the policy, so only what it does by itself is there to be had.
fn groups_policy(pod: &Pod) -> Option<Refusal> {
    let spec = spec_of(pod);
    let is_strict = spec.security_context.as_ref().and_then(|context| context.supplemental_groups_policy.as_deref()) == Some("Strict");
    is_strict.then(|| Refusal::new("SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"))
}

fn shortage(pod: &Pod, others: &[Arc<Pod>], place: &Place<'_>) -> Option<Refusal> {
    let refused = |name: &str, wanted: i64, used: i64, whole: i64| {
        let message = format!("Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {whole}");
        Refusal::new(format!("OutOf{name}"), message)
    };
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    if others.len() >= place.pods_max {
        return Some(refused("pods", 1, count(others.len()), count(place.pods_max)));
    }
    let wanted = resources::requests(pod);
    if wanted.is_zero() {
        return None;
    }
    let mut whole = Resources::of(Some(place.allocatable));
    // What somebody offers on this node under a name of their own stands in its object alone.
    let offered = place.registered.iter().flat_map(|registered| &registered.allocatable).filter(|(name, _)| !is_native(name));
    offered.for_each(|(name, quantity)| whole.set(name, resources::amount(name, quantity)));
    let mut used = Resources::default();
    others.iter().for_each(|other| used.add(&resources::requests(other)));
    let asked_for = ["cpu", "memory", "ephemeral-storage"].into_iter().chain(wanted.others.keys().map(String::as_str));
    for name in asked_for {
        // One that the node knows nothing of belongs to the cluster, and whoever gives it counts it.
        if !is_native(name) && !whole.others.contains_key(name) {
            continue;
        }
        let (wanted, used, whole) = (wanted.get(name), used.get(name), whole.get(name));
        if wanted > 0 && wanted > whole.saturating_sub(used) {
            let refusal = refused(name, wanted, used, whole);
            return Some(if is_native(name) { refusal } else { refusal.of_registered() });
        }
    }
    None
}

fn affinity(pod: &Pod, place: &Place<'_>) -> Option<Refusal> {
    let matches = NodeMatch::of(pod).matches(place.node_name, &place.registered?.labels);
    (!matches).then(|| Refusal::of_predicate("NodeAffinity", AFFINITY_REFUSED).of_registered())
}

fn name(pod: &Pod, place: &Place<'_>) -> Option<Refusal> {
    let is_other = spec_of(pod).node_name.as_deref().is_some_and(|name| !name.is_empty() && name != place.node_name);
    is_other.then(|| Refusal::of_predicate("NodeName", NAME_REFUSED))
}

fn ports(pod: &Pod, others: &[Arc<Pod>]) -> Option<Refusal> {
    let wanted = HostPort::of_pod(pod);
    if wanted.is_empty() {
        return None;
    }
    let is_taken = |taken: &HostPort| wanted.iter().any(|port| port.conflicts(taken));
    let taken = others.iter().any(|other| HostPort::of_pod(other).iter().any(is_taken));
    taken.then(|| Refusal::of_predicate("NodePorts", PORTS_REFUSED))
}

/// Taints that keep pods away are the scheduler's business; here it is those that would end the pod at once.
fn untolerated(pod: &Pod, place: &Place<'_>) -> Option<Refusal> {
    let spec = spec_of(pod);
    let taint = taints::untolerated(&place.registered?.taints, spec.tolerations.as_deref().unwrap_or_default(), &["NoExecute"]);
    taint.map(|_| Refusal::of_predicate("TaintToleration", TAINTS_REFUSED).of_registered())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "a"}]);
        }
        testing::pod(spec)
    }

    fn asking(requests: Value) -> Pod {
        pod(json!({"containers": [{"name": "a", "resources": {"requests": requests}}]}))
    }

    fn with_port(port: i32) -> Pod {
        pod(json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": port}]}]}))
    }

    fn registered() -> Registered {
        let node = json!({
            "metadata": {"name": "n", "labels": {"kubernetes.io/os": "linux", "disk": "ssd"}},
            "spec": {"taints": [{"key": "keep", "value": "out", "effect": "NoSchedule"}, {"key": "go", "effect": "NoExecute"}]},
            "status": {"allocatable": {"cpu": "64", "example.com/gpu": "2"}},
        });
        Registered::of(&serde_json::from_value(node).expect("a node"))
    }

    fn without_taints() -> Registered {
        Registered { taints: Vec::new(), ..registered() }
    }

    fn judge(pod: &Pod, others: &[Pod], registered: Option<&Registered>) -> Option<Refusal> {
        let amounts = [("cpu", "2"), ("memory", "1Gi"), ("ephemeral-storage", "10Gi"), ("hugepages-2Mi", "0"), ("pods", "3")];
        let allocatable = amounts.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into();
        let others: Vec<_> = others.iter().cloned().map(Arc::new).collect();
        let allowed_unsafe_sysctls = &[];
        let pressures = Pressures::default();
        refusal(pod, &others, &Place { node_name: "n", allocatable: &allocatable, pods_max: 3, pressures, allowed_unsafe_sysctls, registered })
    }

    /// Reason and message of the refusal by a node with those other pods.
    fn check(pod: &Pod, others: &[Pod], expected: Option<(&str, &str)>) {
        let refusal = judge(pod, others, Some(&without_taints()));
        let found = refusal.as_ref().map(|refusal| (refusal.reason.as_str(), refusal.message.as_str()));
        assert_eq!(found, expected, "{:?}", pod.spec);
    }

    #[test]
    fn a_plain_pod_is_taken() {
        check(&pod(json!({"nodeName": "n", "nodeSelector": {"disk": "ssd"}, "os": {"name": "linux"}})), &[], None);
    }

    #[test]
    fn a_node_that_runs_short_takes_no_more() {
        let allocatable = BTreeMap::new();
        let pressures = Pressures { disk: true, ..Pressures::default() };
        let place = Place { node_name: "n", allocatable: &allocatable, pods_max: 3, pressures, allowed_unsafe_sysctls: &[], registered: None };
        let refused = refusal(&with_port(80), &[], &place);
        assert_eq!(refused, Some(Refusal::new("Evicted", "The node had condition: [DiskPressure]. ")));
    }

    #[test]
    fn kernel_parameters_are_allowed_or_not() {
        let unsafe_one = pod(json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}));
        check(&unsafe_one, &[], Some(("SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted")));
    }

    #[test]
    fn another_operating_system_is_not_to_be_had() {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        check(&pod(json!({"os": {"name": "windows"}})), &[], Some(("PodOSNotSupported", message)));
        let mut labelled = pod(json!({}));
        labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        check(&labelled, &[], Some(("PodOSSelectorNodeLabelDoesNotMatch", message)));
    }

    #[test]
    fn groups_are_merged_or_nothing() {
        check(&pod(json!({"securityContext": {"supplementalGroupsPolicy": "Merge"}})), &[], None);
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        let strict = pod(json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}));
        check(&strict, &[], Some(("SupplementalGroupsPolicyNotSupported", message)));
    }

    #[test]
    fn what_is_promised_is_there() {
        let short = |name: &str, figures: &str| Some((format!("OutOf{name}"), format!("Node didn't have enough resource: {name}, {figures}")));
        for (requests, others, expected) in [
            (json!({"cpu": "2"}), vec![], None),
            (json!({"cpu": "1500m"}), vec![asking(json!({"cpu": "1"}))], short("cpu", "requested: 1500, used: 1000, capacity: 2000")),
            (json!({"memory": "1Gi"}), vec![asking(json!({"memory": "1"}))], short("memory", "requested: 1073741824, used: 1, capacity: 1073741824")),
            (json!({"ephemeral-storage": "11Gi"}), vec![], short("ephemeral-storage", "requested: 11811160064, used: 0, capacity: 10737418240")),
            (json!({"hugepages-2Mi": "2Mi"}), vec![], short("hugepages-2Mi", "requested: 2097152, used: 0, capacity: 0")),
            (json!({"hugepages-1Gi": "1Gi"}), vec![], short("hugepages-1Gi", "requested: 1073741824, used: 0, capacity: 0")),
            (json!({"example.com/gpu": "2"}), vec![], None),
            (
                json!({"example.com/gpu": "2"}),
                vec![asking(json!({"example.com/gpu": "1"}))],
                short("example.com/gpu", "requested: 2, used: 1, capacity: 2"),
            ),
            (json!({"example.com/of-the-cluster": "7"}), vec![], None),
            // Who asks for nothing of what is spent is in nobody's way.
            (json!({"cpu": "0"}), vec![asking(json!({"cpu": "3"}))], None),
            (json!({}), vec![pod(json!({})), pod(json!({})), pod(json!({}))], short("pods", "requested: 1, used: 3, capacity: 3")),
        ] {
            let expected = expected.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str()));
            check(&asking(requests), &others, expected);
        }
    }

    #[test]
    fn the_node_is_one_that_the_pod_asks_for() {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        check(&pod(json!({"nodeSelector": {"disk": "hdd"}})), &[], Some(("NodeAffinity", message)));
        let terms =
            |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let named = |name: &str| pod(terms(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}])));
        check(&named("n"), &[], None);
        check(&named("m"), &[], Some(("NodeAffinity", message)));
        let message = "Predicate NodeName failed: node(s) didn't match the requested node name";
        check(&pod(json!({"nodeName": "m"})), &[], Some(("NodeName", message)));
    }

    #[test]
    fn a_port_of_the_node_is_one_pods() {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        check(&with_port(80), &[with_port(81), pod(json!({}))], None);
        check(&with_port(80), &[with_port(81), with_port(80)], Some(("NodePorts", message)));
    }

    #[test]
    fn a_taint_that_would_end_the_pod_keeps_it_away() {
        let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        let refused = judge(&pod(json!({})), &[], Some(&registered())).expect("the taint is not tolerated");
        assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("TaintToleration", message));
        let tolerant = pod(json!({"tolerations": [{"key": "go", "operator": "Exists", "effect": "NoExecute"}]}));
        assert_eq!(judge(&tolerant, &[], Some(&registered())), None, "NoSchedule is the scheduler's");
    }

    #[test]
    fn amounts_come_first_and_a_taint_last() {
        let all_wrong = pod(json!({"nodeSelector": {"disk": "hdd"}, "containers": [{"name": "a", "resources": {"requests": {"cpu": "9"}},
            "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
        let reason = |pod: &Pod, others: &[Pod]| judge(pod, others, Some(&registered())).map(|refusal| refusal.reason);
        assert_eq!(reason(&all_wrong, &[with_port(80)]).as_deref(), Some("OutOfcpu"));
        let mut fitting = all_wrong.clone();
        fitting.spec.as_mut().expect("it has one").containers[0].resources = None;
        assert_eq!(reason(&fitting, &[with_port(80)]).as_deref(), Some("NodeAffinity"));
        fitting.spec.as_mut().expect("it has one").node_selector = None;
        assert_eq!(reason(&fitting, &[with_port(80)]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(&fitting, &[]).as_deref(), Some("TaintToleration"));
    }

    #[test]
    fn what_no_server_has_said_is_not_held_against_a_pod() {
        let picky = pod(json!({"nodeSelector": {"disk": "hdd"}, "containers": [{"name": "a", "resources": {"requests": {"example.com/gpu": "9"}}}]}));
        assert_eq!(judge(&picky, &[], None), None);
        assert_eq!(judge(&with_port(80), &[with_port(80)], None).map(|refusal| refusal.reason).as_deref(), Some("NodePorts"));
        // What it has said may be old by now; what the node knows itself is not.
        let is_of_registered = |pod: &Pod| judge(pod, &[with_port(80)], Some(&registered())).map(|refusal| refusal.is_of_registered);
        assert_eq!(is_of_registered(&picky), Some(true));
        assert_eq!(is_of_registered(&pod(json!({"nodeSelector": {"disk": "hdd"}}))), Some(true));
        assert_eq!(is_of_registered(&pod(json!({}))), Some(true));
        assert_eq!(is_of_registered(&asking(json!({"cpu": "3"}))), Some(false));
        assert_eq!(is_of_registered(&with_port(80)), Some(false));
    }

    #[test]
    fn what_was_taken_or_goes_is_not_judged() {
        let mut one = pod(json!({"nodeSelector": {"disk": "hdd"}}));
        assert!(!is_settled(&one));
        one.status = Some(serde_json::from_value(json!({"startTime": "2026-01-01T00:00:00Z"})).expect("a status"));
        assert!(is_settled(&one));
        one.status = None;
        one.metadata.deletion_timestamp = Some(crate::status::time(jiff::Timestamp::UNIX_EPOCH));
        assert!(is_settled(&one));
    }
}
