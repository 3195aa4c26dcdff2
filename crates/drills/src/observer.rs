//! Watches pods, nodes, leaders and endpoints through every API server and gives what it sees to the recorder.
//!
//! Only what a drill judges is kept of each object. A server that does not answer is asked again by the informer; the
//! others go on, and the recorder takes each change once.

use crate::{
    timeline::{Endpoints, Node, Pod, Recorder, What},
    workload::NAMESPACE,
};
use client::{Change, Informer, Informers, Object, Selection};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node as NodeObject, Pod as PodObject},
    discovery::v1::EndpointSlice,
};
use std::sync::Arc;
use tokio::task::JoinSet;

/// The watches of one drill; they end when it is dropped.
pub struct Observer {
    _informers: Vec<Informers>,
    _tasks: JoinSet<()>,
    synced: Vec<(Informer<PodObject>, Informer<NodeObject>, Informer<EndpointSlice>)>,
}

/// The namespace of the leaders' leases.
const LEADERS_NAMESPACE: &str = "kube-system";

impl Observer {
    /// Starts to watch, through each of the clients.
    pub fn start(clients: Vec<kube::Client>, recorder: &Recorder) -> Observer {
        let mut observer = Observer { _informers: Vec::new(), _tasks: JoinSet::new(), synced: Vec::new() };
        for client in clients {
            let informers = Informers::new(client);
            let within = |namespace: &str| Selection { namespace: Some(namespace.to_owned()), ..Selection::default() };
            let (pods, nodes) = (informers.selected::<PodObject>(within(NAMESPACE)), informers.all::<NodeObject>());
            let slices = informers.selected::<EndpointSlice>(within(NAMESPACE));
            let leases = informers.selected::<Lease>(within(LEADERS_NAMESPACE));
            observer.follow(&pods, recorder, pod);
            observer.follow(&nodes, recorder, |change| match change {
                Change::Applied { new, .. } => Some(What::Node(node(new))),
                Change::Deleted(_) => None,
            });
            observer.follow(&slices, recorder, endpoints);
            observer.follow(&leases, recorder, leader);
            observer.synced.push((pods, nodes, slices));
            observer._informers.push(informers);
        }
        observer
    }

    /// Waits until one server's state is known.
    pub async fn synced(&self) {
        let all = self.synced.iter().map(|(pods, nodes, slices)| {
            Box::pin(async move {
                pods.synced().await;
                nodes.synced().await;
                slices.synced().await;
            })
        });
        if !self.synced.is_empty() {
            futures::future::select_all(all).await;
        }
    }

    fn follow<K: Object>(&mut self, informer: &Informer<K>, recorder: &Recorder, read: fn(&Change<K>) -> Option<What>) {
        let (mut changes, recorder) = (informer.subscribe(), recorder.clone());
        self._tasks.spawn(async move {
            while let Some(change) = changes.next().await {
                let Some(what) = read(&change) else { continue };
                let meta = change.object().meta();
                let revision = meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
                recorder.observe(meta.uid.as_deref().unwrap_or_default(), revision, what);
            }
        });
    }
}

fn pod(change: &Change<PodObject>) -> Option<What> {
    let object: &Arc<PodObject> = change.object();
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let (uid, name) = (object.metadata.uid.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default());
    let node = spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    if matches!(change, Change::Deleted(_)) {
        return Some(What::PodGone { uid, name, node });
    }
    let is_ready = |status: &k8s_openapi::api::core::v1::PodStatus| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    Some(What::Pod(Pod {
        uid,
        name,
        node,
        phase: status.and_then(|status| status.phase.clone()).unwrap_or_default(),
        ready: status.is_some_and(is_ready),
        terminating: object.metadata.deletion_timestamp.is_some(),
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        address: status.and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
        app: object.metadata.labels.as_ref().and_then(|labels| labels.get("app").cloned()).unwrap_or_default(),
    }))
}

fn node(object: &NodeObject) -> Node {
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.clone());
    let spec = object.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let is_own = |key: &&str| *key == "node-role.kubernetes.io/control-plane";
    Node {
        name: object.metadata.name.clone().unwrap_or_default(),
        ready: ready.unwrap_or_else(|| "Unknown".into()),
        cordoned: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        taints: taints.iter().map(|taint| taint.key.as_str()).filter(|key| !is_own(key)).map(str::to_owned).collect(),
    }
}

fn endpoints(change: &Change<EndpointSlice>) -> Option<What> {
    let slice = change.object();
    let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?.clone();
    let mut found = Endpoints { slice: slice.metadata.name.clone().unwrap_or_default(), service, ..Endpoints::default() };
    if matches!(change, Change::Applied { .. }) {
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let side = if ready { &mut found.ready } else { &mut found.not_ready };
            side.extend(endpoint.addresses.iter().cloned());
        }
    }
    Some(What::Endpoints(found))
}

fn leader(change: &Change<Lease>) -> Option<What> {
    let lease = change.object();
    let name = lease.metadata.name.clone().unwrap_or_default();
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    ["kube-scheduler", "kube-controller-manager"].contains(&name.as_str()).then_some(What::Leader { lease: name, holder })
}
