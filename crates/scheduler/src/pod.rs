//! A pod as the scheduler sees it: parsed once when it arrives, read many times in every cycle.
//!
//! What must stay true: everything here follows from the pod object alone, so two views of the same version are equal.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::placement::{HostPort, NodeMatch};
use client::resources::{self, Resources};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, Toleration, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt};

use crate::devices::DeviceUse;
use crate::snapshot::Snapshot;
use crate::volumes::ClaimUse;

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = Labels::new();

/// A label selector, compiled. A missing selector selects nothing, an empty one everything.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSelector(Option<Selector>);

impl PodSelector {
    /// Compiles a selector; one that can't be read selects nothing.
    pub fn of(selector: Option<&LabelSelector>) -> PodSelector {
        PodSelector(selector.and_then(|selector| Selector::try_from(selector.clone()).ok()))
    }

    /// A selector of labels that must all be equal.
    pub fn equal(labels: &Labels) -> PodSelector {
        PodSelector(Some(labels.clone().into_iter().collect()))
    }

    /// Whether `labels` are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// Whether there is anything it could select.
    pub fn selects_any(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it selects whatever it is asked about.
    pub fn selects_all(&self) -> bool {
        self.0.as_ref().is_some_and(Selector::selects_all)
    }

    /// Narrows the selector; nothing stays nothing.
    pub fn narrow(&mut self, expressions: impl IntoIterator<Item = Expression>) {
        if let Some(selector) = &mut self.0 {
            selector.extend(expressions);
        }
    }

    /// Adds all that `other` requires.
    pub fn and(&mut self, other: &PodSelector) {
        if let Some(other) = &other.0 {
            match &mut self.0 {
                Some(selector) => {
                    selector.extend(other.clone());
                }
                None => self.0 = Some(other.clone()),
            }
        }
    }
}

/// One affinity or anti-affinity term between pods.
#[derive(Clone, Debug, PartialEq)]
pub struct AffinityTerm {
    /// The node label whose values are the places.
    pub topology_key: String,
    namespaces: Vec<String>,
    namespace_selector: PodSelector,
    selector: PodSelector,
}

impl AffinityTerm {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> AffinityTerm {
        let own = pod.metadata.namespace.clone().unwrap_or_default();
        let named = term.namespaces.clone().unwrap_or_default();
        let namespaces = if named.is_empty() && term.namespace_selector.is_none() { vec![own] } else { named };
        let mut selector = PodSelector::of(term.label_selector.as_ref());
        let labels = pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
        let values = |keys: &Option<Vec<String>>| -> Vec<(String, String)> {
            let keys = keys.iter().flatten();
            keys.filter_map(|key| labels.get(key).map(|value| (key.clone(), value.clone()))).collect()
        };
        selector.narrow(values(&term.match_label_keys).into_iter().map(|(key, value)| Expression::Equal(key, value)));
        selector.narrow(values(&term.mismatch_label_keys).into_iter().map(|(key, value)| Expression::NotIn(key, [value].into())));
        AffinityTerm {
            topology_key: term.topology_key.clone(),
            namespaces,
            namespace_selector: PodSelector::of(term.namespace_selector.as_ref()),
            selector,
        }
    }

    /// Whether the term is about `pod`.
    pub fn matches(&self, pod: &PodInfo, snapshot: &Snapshot) -> bool {
        let in_scope = self.namespaces.contains(&pod.namespace)
            || (self.namespace_selector.selects_any() && self.namespace_selector.matches(snapshot.namespace_labels(&pod.namespace)));
        in_scope && self.selector.matches(pod.labels())
    }
}

/// Terms with the weight that a preference gives them.
pub type Weighted = Vec<(i64, AffinityTerm)>;

/// Where a pod wants its neighbours to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodAffinity {
    /// Must be with these.
    pub required: Vec<AffinityTerm>,
    /// Must not be with these.
    pub required_anti: Vec<AffinityTerm>,
    /// Would rather be with these.
    pub preferred: Weighted,
    /// Would rather not be with these.
    pub preferred_anti: Weighted,
}

impl PodAffinity {
    fn of(pod: &Pod) -> PodAffinity {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| terms.into_iter().flatten().map(|term| AffinityTerm::of(term, pod)).collect();
        let preferred = |terms: Option<&Vec<WeightedPodAffinityTerm>>| -> Weighted {
            let terms = terms.into_iter().flatten();
            terms.map(|term| (i64::from(term.weight), AffinityTerm::of(&term.pod_affinity_term, pod))).collect()
        };
        PodAffinity {
            required: required(with.and_then(|with| with.required_during_scheduling_ignored_during_execution.as_ref())),
            required_anti: required(apart.and_then(|apart| apart.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred: preferred(with.and_then(|with| with.preferred_during_scheduling_ignored_during_execution.as_ref())),
            preferred_anti: preferred(apart.and_then(|apart| apart.preferred_during_scheduling_ignored_during_execution.as_ref())),
        }
    }

    /// Whether there is no term at all.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && !self.has_preferences()
    }

    /// Whether there is any preference.
    pub fn has_preferences(&self) -> bool {
        !self.preferred.is_empty() || !self.preferred_anti.is_empty()
    }
}

/// One constraint on how evenly pods are spread over the values of a node label.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadConstraint {
    /// How far the fullest place may be above the emptiest.
    pub max_skew: i64,
    /// The node label whose values are the places.
    pub topology_key: String,
    /// Whether a pod that would break it must wait (else it only weighs).
    pub required: bool,
    /// Below this many places, the emptiest counts as having none.
    pub min_domains: i64,
    /// Which pods are counted.
    pub selector: PodSelector,
    /// Whether nodes that the pod's node affinity excludes are left out.
    pub honor_affinity: bool,
    /// Whether nodes with taints that the pod does not tolerate are left out.
    pub honor_taints: bool,
}

impl SpreadConstraint {
    fn of_pod(pod: &Pod) -> Vec<SpreadConstraint> {
        let labels = pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
        let constraints = pod.spec.iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
        constraints
            .map(|constraint| {
                let mut selector = PodSelector::of(constraint.label_selector.as_ref());
                let keys = constraint.match_label_keys.iter().flatten();
                selector.narrow(keys.filter_map(|key| labels.get(key).map(|value| Expression::Equal(key.clone(), value.clone()))));
                SpreadConstraint {
                    max_skew: i64::from(constraint.max_skew),
                    topology_key: constraint.topology_key.clone(),
                    required: constraint.when_unsatisfiable != "ScheduleAnyway",
                    min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
                    selector,
                    honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                    honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
                }
            })
            .collect()
    }
}

/// A pod, parsed.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The object itself.
    pub pod: Arc<Pod>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, by which the scheduler knows it.
    pub uid: String,
    /// Its priority.
    pub priority: i32,
    /// What it needs from a node.
    pub requests: Resources,
    /// What it is taken to use when nodes are compared: CPU in thousandths, memory in bytes.
    pub assumed: (i64, i64),
    /// The ports it takes from the node.
    pub host_ports: Vec<HostPort>,
    /// Which nodes it can be on, and which it would rather be on.
    pub nodes: NodeMatch,
    /// Where it wants its neighbours.
    pub affinity: PodAffinity,
    /// How it wants to be spread.
    pub spread: Vec<SpreadConstraint>,
    /// The claims that its volumes stand for.
    pub claims: Vec<ClaimUse>,
    /// The claims of devices that it names.
    pub devices: Vec<DeviceUse>,
}

impl PodInfo {
    /// Parses a pod.
    pub fn of(pod: Arc<Pod>) -> Arc<PodInfo> {
        Arc::new(PodInfo {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            requests: resources::requests(&pod),
            assumed: resources::assumed_requests(&pod),
            host_ports: HostPort::of_pod(&pod),
            nodes: NodeMatch::of(&pod),
            affinity: PodAffinity::of(&pod),
            spread: SpreadConstraint::of_pod(&pod),
            claims: ClaimUse::of_pod(&pod),
            devices: DeviceUse::of_pod(&pod),
            pod,
        })
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        self.pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
    }

    /// What it tolerates.
    pub fn tolerations(&self) -> &[Toleration] {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or(&[])
    }

    /// The node it is bound to.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        name.filter(|name| !name.is_empty())
    }

    /// The node that others have been evicted from for it.
    pub fn nominated_node(&self) -> Option<&str> {
        let name = self.pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        name.filter(|name| !name.is_empty())
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether its containers have all ended for good, so that it holds nothing on its node any more.
    pub fn is_finished(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The labels of `metadata`, or none.
pub fn labels_or_none(labels: Option<&Labels>) -> &Labels {
    labels.unwrap_or(&NO_LABELS)
}
