//! What the cluster looks like to one scheduling cycle: nodes with the pods on them, and what plugins need beside.
//!
//! Kept up by single changes, never rebuilt: a pod that comes or goes costs the work of one pod. A pod that the
//! scheduler has just placed is here at once (assumed), before the API shows it, so that the next cycle counts it.
//!
//! What must stay true: every pod is counted on at most one node, and taking it away undoes exactly what adding it did.
//! A cycle only reads; what-if questions (preemption, nominated pods) are asked of a clone of one [`NodeInfo`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::placement::HostPort;
use client::resources::{Resources, amount};
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::devices::Devices;
use crate::pod::{Labels, PodInfo, PodSelector, labels_or_none};
use crate::volumes::Volumes;

/// One node with what is on it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The object.
    pub node: Arc<Node>,
    /// Its name.
    pub name: String,
    /// What it can give to pods.
    pub allocatable: Resources,
    /// How many pods it can hold.
    pub pods_max: i64,
    /// What its pods ask for.
    pub requested: Resources,
    /// What its pods are taken to use: CPU in thousandths, memory in bytes.
    pub assumed: (i64, i64),
    /// The ports its pods take.
    pub host_ports: Vec<HostPort>,
    /// The pods on it.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them have any affinity or anti-affinity to pods.
    pub pods_with_affinity: usize,
    /// How many of them refuse neighbours.
    pub pods_with_anti_affinity: usize,
    /// Size in bytes of every image on it, by each of the image's names.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    /// An empty node.
    pub fn of(node: Arc<Node>) -> NodeInfo {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let pods_max = allocatable.and_then(|list| list.get("pods")).map_or(0, |quantity| amount("pods", quantity));
        let images = status.and_then(|status| status.images.as_deref()).unwrap_or(&[]);
        let sizes = images.iter().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        NodeInfo {
            name: node.metadata.name.clone().unwrap_or_default(),
            allocatable: Resources::of(allocatable),
            pods_max,
            requested: Resources::default(),
            assumed: (0, 0),
            host_ports: Vec::new(),
            pods: Vec::new(),
            pods_with_affinity: 0,
            pods_with_anti_affinity: 0,
            images: sizes.collect(),
            node,
        }
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        labels_or_none(self.node.metadata.labels.as_ref())
    }

    /// Its taints.
    pub fn taints(&self) -> &[Taint] {
        let spec = self.node.spec.as_ref();
        spec.and_then(|spec| spec.taints.as_deref()).unwrap_or(&[])
    }

    /// Whether it is cordoned.
    pub fn is_unschedulable(&self) -> bool {
        self.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
    }

    /// Counts a pod.
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.assumed.0 += pod.assumed.0;
        self.assumed.1 += pod.assumed.1;
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods_with_affinity += usize::from(!pod.affinity.is_empty());
        self.pods_with_anti_affinity += usize::from(!pod.affinity.required_anti.is_empty());
        self.pods.push(Arc::clone(pod));
    }

    /// Takes a pod away; says whether it was there.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let position = self.pods.iter().position(|pod| pod.uid == uid)?;
        let pod = self.pods.swap_remove(position);
        self.requested.subtract(&pod.requests);
        self.assumed.0 -= pod.assumed.0;
        self.assumed.1 -= pod.assumed.1;
        for port in &pod.host_ports {
            if let Some(position) = self.host_ports.iter().position(|each| each == port) {
                self.host_ports.swap_remove(position);
            }
        }
        self.pods_with_affinity -= usize::from(!pod.affinity.is_empty());
        self.pods_with_anti_affinity -= usize::from(!pod.affinity.required_anti.is_empty());
        Some(pod)
    }
}

/// A budget of voluntary disruptions, as far as preemption heeds it.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// The pods it is for.
    pub selector: PodSelector,
    /// How many of them may go now.
    pub disruptions_allowed: i64,
    /// Pods already on their way out, by name: they have been counted.
    pub disrupted: HashSet<String>,
}

/// What a Service or the owner of pods selects: default spreading goes by it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The owner's kind; `Service` for a Service.
    pub kind: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What it selects.
    pub selector: PodSelector,
}

/// The cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// Pods bound to nodes that are not (or no longer) known.
    strays: HashMap<String, Vec<Arc<PodInfo>>>,
    /// Node name of every pod that is counted, by UID.
    placed: HashMap<String, String>,
    /// On how many nodes each image is.
    image_nodes: HashMap<String, usize>,
    namespaces: HashMap<String, Labels>,
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    budgets: HashMap<(String, String), Budget>,
    workloads: HashMap<String, Vec<Workload>>,
    /// Claims and volumes.
    pub volumes: Volumes,
    /// Claims of devices and what there is to give them.
    pub devices: Devices,
}

impl Snapshot {
    /// All nodes, in a fixed order.
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|position| &self.nodes[*position])
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        labels_or_none(self.namespaces.get(namespace))
    }

    /// On how many nodes an image is.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// The pods for which room is being made on a node.
    pub fn nominated_to(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// All disruption budgets.
    pub fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.values()
    }

    /// The Services and owners of a namespace.
    pub fn workloads(&self, namespace: &str) -> &[Workload] {
        self.workloads.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The node on which a pod is counted.
    pub fn place_of(&self, uid: &str) -> Option<&str> {
        self.placed.get(uid).map(String::as_str)
    }

    /// Adds a node or takes its new version; its pods stay.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let mut info = NodeInfo::of(node);
        for image in info.images.keys() {
            *self.image_nodes.entry(image.clone()).or_insert(0) += 1;
        }
        match self.index.get(&info.name) {
            Some(&position) => {
                for pod in &self.nodes[position].pods {
                    info.add(pod);
                }
                let before = std::mem::replace(&mut self.nodes[position], info);
                self.forget_images(&before);
            }
            None => {
                for pod in self.strays.remove(&info.name).unwrap_or_default() {
                    info.add(&pod);
                }
                self.index.insert(info.name.clone(), self.nodes.len());
                self.nodes.push(info);
            }
        }
    }

    /// Removes a node; pods that are still bound to it are kept in mind in case it returns.
    pub fn remove_node(&mut self, name: &str) {
        let Some(position) = self.index.remove(name) else {
            return;
        };
        let removed = self.nodes.swap_remove(position);
        if let Some(moved) = self.nodes.get(position) {
            self.index.insert(moved.name.clone(), position);
        }
        self.forget_images(&removed);
        if !removed.pods.is_empty() {
            self.strays.insert(removed.name, removed.pods);
        }
    }

    fn forget_images(&mut self, node: &NodeInfo) {
        for image in node.images.keys() {
            if let Some(count) = self.image_nodes.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
    }

    /// Counts a pod on a node, wherever it was counted before.
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.displace(&pod.uid);
        self.placed.insert(pod.uid.clone(), node.to_owned());
        match self.index.get(node) {
            Some(&position) => self.nodes[position].add(pod),
            None => self.strays.entry(node.to_owned()).or_default().push(Arc::clone(pod)),
        }
    }

    /// Stops counting a pod; gives back how it was last seen.
    pub fn displace(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let node = self.placed.remove(uid)?;
        if let Some(&position) = self.index.get(&node) {
            return self.nodes[position].remove(uid);
        }
        let strays = self.strays.get_mut(&node)?;
        let position = strays.iter().position(|pod| pod.uid == uid)?;
        let pod = strays.swap_remove(position);
        if strays.is_empty() {
            self.strays.remove(&node);
        }
        Some(pod)
    }

    /// Remembers that room is being made for a pod on a node.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.withdraw_nomination(&pod.uid);
        self.nominated.entry(node.to_owned()).or_default().push(Arc::clone(pod));
    }

    /// Forgets it again.
    pub fn withdraw_nomination(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|pod| pod.uid != uid);
            !pods.is_empty()
        });
    }

    /// The node that room is being made on for a pod.
    pub fn nomination_of(&self, uid: &str) -> Option<&str> {
        let found = self.nominated.iter().find(|(_, pods)| pods.iter().any(|pod| pod.uid == uid));
        found.map(|(node, _)| node.as_str())
    }

    /// Takes a namespace's labels (`None`: it is gone).
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// Takes a disruption budget (`None`: it is gone).
    pub fn set_budget(&mut self, namespace: &str, name: &str, budget: Option<Budget>) {
        let key = (namespace.to_owned(), name.to_owned());
        match budget {
            Some(budget) => self.budgets.insert(key, budget),
            None => self.budgets.remove(&key),
        };
    }

    /// Takes a Service or owner of pods.
    pub fn set_workload(&mut self, workload: Workload) {
        self.remove_workload(workload.kind, &workload.namespace, &workload.name);
        self.workloads.entry(workload.namespace.clone()).or_default().push(workload);
    }

    /// Forgets a Service or owner of pods.
    pub fn remove_workload(&mut self, kind: &str, namespace: &str, name: &str) {
        if let Some(list) = self.workloads.get_mut(namespace) {
            list.retain(|workload| workload.kind != kind || workload.name != name);
            if list.is_empty() {
                self.workloads.remove(namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{node, pod};

    #[test]
    fn a_pod_counts_once_and_leaves_no_trace() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("n1", "cpu=4 memory=8Gi pods=10"));
        snapshot.set_node(node("n2", "cpu=4 memory=8Gi pods=10"));
        let pod = pod("p", "cpu=1 port=80");
        snapshot.place(&pod, "n1");
        snapshot.place(&pod, "n2");
        assert!(snapshot.nodes()[0].requested.is_zero());
        assert!(snapshot.nodes()[0].host_ports.is_empty());
        assert_eq!(snapshot.nodes()[1].requested.cpu_milli, 1000);
        snapshot.displace(&pod.uid);
        assert!(snapshot.nodes()[1].requested.is_zero());
        assert_eq!(snapshot.nodes()[1].assumed, (0, 0));
    }

    #[test]
    fn pods_wait_for_their_node_and_outlive_it() {
        let mut snapshot = Snapshot::default();
        let pod = pod("p", "cpu=1");
        snapshot.place(&pod, "n1");
        snapshot.set_node(node("n1", "cpu=4 memory=8Gi pods=10"));
        assert_eq!(snapshot.nodes()[0].pods.len(), 1);
        snapshot.set_node(node("n2", "cpu=4 memory=8Gi pods=10"));
        snapshot.remove_node("n1");
        assert_eq!(snapshot.node("n2").map(|node| node.pods.len()), Some(0));
        snapshot.set_node(node("n1", "cpu=4 memory=8Gi pods=10"));
        assert_eq!(snapshot.node("n1").map(|node| node.pods.len()), Some(1));
    }
}
