//! The Node object and its Lease: who this node is, what it has, and that it lives.
//!
//! [`describe`] makes the status (pure); the loop registers, renews the lease, and patches what has changed. What must
//! stay true: what others write (pod CIDR, taints, labels of users, conditions of the network) is never touched; the
//! lease is renewed on its own task, so that slow statuses never make a node look dead.

use crate::{Config, agent::Context, eviction::Pressures, machine::Machine};
use api::kinds::pod::resources::is_native;
use client::{
    Api, Json,
    error::ErrorExt,
    events::{Normal, Warning},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
            ObjectReference,
        },
    },
    apimachinery::pkg::api::resource::Quantity,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;

/// Namespace of the nodes' leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How often a status that has not changed is written all the same.
const REPORT_EVERY: SignedDuration = SignedDuration::from_secs(300);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest wait between attempts to register.
const REGISTER_RETRY_MIN: Duration = Duration::from_millis(200);
const REGISTER_RETRY_MAX: Duration = Duration::from_secs(2);
/// A status that was not taken is written again after this.
const REPORT_RETRY: Duration = Duration::from_secs(1);
/// When a node whose object was deleted under it registers again: long enough for whoever deleted it to switch it off.
const REGISTER_AGAIN: Duration = Duration::from_secs(300);
/// How often a node looks whether it has become ready.
const NOT_READY_LOOK: Duration = Duration::from_millis(500);
/// As many images as a node tells of.
const IMAGES_MAX: usize = 50;
/// The version that clients see.
pub const VERSION: &str = concat!("v1.36.2+regent-", env!("CARGO_PKG_VERSION"));

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    pub version: String,
    /// Why it is not ready, if it is not.
    pub runtime_problem: Option<String>,
    pub network_problem: Option<String>,
}

/// Asks the runtime how it is.
pub async fn runtime_state(cri: &cri::Client) -> RuntimeState {
    let version = cri.version().await;
    let conditions = cri.status().await;
    match (version, conditions) {
        (Ok(version), Ok(conditions)) => {
            let problem = |type_: &str| {
                conditions
                    .iter()
                    .find(|condition| condition.r#type == type_ && !condition.status)
                    .map(|condition| format!("{type_}=false reason:{} message:{}", condition.reason, condition.message))
            };
            RuntimeState {
                version: format!("{}://{}", version.runtime_name, version.runtime_version.trim_end_matches("~ds1")),
                runtime_problem: problem("RuntimeReady").map(|text| format!("container runtime not ready: {text}")),
                network_problem: problem("NetworkReady").map(|text| format!("container runtime network not ready: {text}")),
            }
        }
        _ => RuntimeState { runtime_problem: Some("container runtime is down".into()), ..Default::default() },
    }
}

/// Labels that every node has.
pub fn labels(config: &Config, machine: &Machine) -> BTreeMap<String, String> {
    let mut out = config.node_labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture.as_str()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine.architecture.as_str()),
    ] {
        out.insert(key.into(), value.into());
    }
    out
}

/// What the node has, and what is offered on it by others, who write it into the status under names of their own.
fn with_offered(own: BTreeMap<String, Quantity>, before: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, Quantity> {
    let offered = before.into_iter().flatten().filter(|(name, _)| !is_native(name));
    offered.map(|(name, amount)| (name.clone(), amount.clone())).chain(own).collect()
}

/// The status as it is now. `before` gives the times of transitions, and the conditions of others.
pub fn describe(
    config: &Config,
    machine: &Machine,
    runtime: &RuntimeState,
    pressures: Pressures,
    images: Vec<ContainerImage>,
    before: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let known = before.conditions.clone().unwrap_or_default();
    let condition = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let since = known.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(crate::status::time(now)),
            last_transition_time: since.and_then(|condition| condition.last_transition_time.clone()).or_else(|| Some(crate::status::time(now))),
        }
    };
    let pressure = |type_: &str, low: bool, words: [&str; 4]| {
        if low { condition(type_, true, words[0], words[1]) } else { condition(type_, false, words[2], words[3]) }
    };
    let problems: Vec<&str> = [&runtime.runtime_problem, &runtime.network_problem].into_iter().flatten().map(String::as_str).collect();
    let mut conditions = vec![
        pressure(
            "MemoryPressure",
            pressures.memory,
            [
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ],
        ),
        pressure(
            "DiskPressure",
            pressures.disk,
            ["KubeletHasDiskPressure", "kubelet has disk pressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            pressures.pids,
            [
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ],
        ),
        if problems.is_empty() {
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status")
        } else {
            condition("Ready", false, "KubeletNotReady", &problems.join(", "))
        },
    ];
    let foreign: Vec<_> = known.iter().filter(|theirs| !conditions.iter().any(|own| own.type_ == theirs.type_)).cloned().collect();
    conditions.splice(0..0, foreign);
    let mut addresses: Vec<NodeAddress> = config.node_ips().into_iter().map(|address| NodeAddress { address, type_: "InternalIP".into() }).collect();
    addresses.push(NodeAddress { address: config.node_name.clone(), type_: "Hostname".into() });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with_offered(machine.capacity(), before.capacity.as_ref())),
        allocatable: Some(with_offered(machine.allocatable(), before.allocatable.as_ref())),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: config.port.into() }) }),
        images: Some(images),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: runtime.version.clone(),
            kernel_version: machine.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            swap: None,
            system_uuid: machine.system_uuid.clone(),
        }),
        ..before.clone()
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether two statuses say the same, heartbeats aside.
fn says_the_same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    still(a) == still(b)
}

fn images(listed: Vec<cri::v1::Image>) -> Vec<ContainerImage> {
    let mut listed = listed;
    listed.sort_by_key(|image| std::cmp::Reverse(image.size));
    listed
        .into_iter()
        .take(IMAGES_MAX)
        .map(|image| {
            let names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty()))
        .collect()
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

/// Makes the Node object, or finds it and puts our labels on it.
async fn register(cx: &Context) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(cx.client.clone());
    let config = &cx.config;
    let labels = labels(config, &cx.machine);
    match bounded(api.get(&config.node_name)).await {
        Ok(found) => {
            let has = found.metadata.labels.clone().unwrap_or_default();
            if labels.iter().all(|(key, value)| has.get(key) == Some(value)) {
                return Ok(found);
            }
            let patch = json!({ "metadata": { "labels": labels } });
            bounded(api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(&patch))).await
        }
        Err(error) if error.is_not_found() => {
            let runtime = runtime_state(&cx.cri).await;
            let status = describe(config, &cx.machine, &runtime, cx.pressures(), Vec::new(), &NodeStatus::default(), Timestamp::now());
            let annotations = BTreeMap::from([("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())]);
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(config.node_name.clone()),
                    labels: Some(labels),
                    annotations: Some(annotations),
                    ..Default::default()
                },
                spec: Some(NodeSpec {
                    taints: (!config.register_with_taints.is_empty()).then(|| config.register_with_taints.clone()),
                    ..Default::default()
                }),
                status: Some(status),
            };
            bounded(api.create(&node)).await
        }
        Err(error) => Err(error),
    }
}

/// The node's object as the API has it now.
pub async fn read(cx: &Context) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(cx.client.clone());
    bounded(api.get(&cx.config.node_name)).await
}

/// How the node refers to itself in events: its UID is its name, by custom.
fn own_reference(cx: &Context) -> ObjectReference {
    let name = cx.config.node_name.clone();
    ObjectReference { kind: Some("Node".into()), name: Some(name.clone()), uid: Some(name), ..Default::default() }
}

/// Registers, then keeps the status up to date until shutdown.
pub async fn run(cx: std::sync::Arc<Context>, shutdown: CancellationToken) {
    let reference = own_reference(&cx);
    cx.recorder.event(&reference, Normal, "Starting", "", "Starting kubelet.");
    let mut node = None;
    let mut wait = REGISTER_RETRY_MIN;
    let mut reported_at = Timestamp::UNIX_EPOCH;
    let mut lease_task: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        if shutdown.is_cancelled() {
            break;
        }
        let known = match node.take() {
            Some(known) => known,
            None => match register(&cx).await {
                Ok(found) => {
                    wait = REGISTER_RETRY_MIN;
                    cx.set_registered(Some(&found));
                    if lease_task.is_none() {
                        lease_task = Some(tokio::spawn(renew(cx.clone(), found.metadata.uid.clone(), shutdown.clone())));
                    }
                    found
                }
                Err(error) => {
                    tracing::info!(%error, "the node is not registered yet");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.cancelled() => break,
                    }
                    wait = (wait * 2).min(REGISTER_RETRY_MAX);
                    continue;
                }
            },
        };
        match report(&cx, &reference, known, &mut reported_at).await {
            Ok(now) => {
                cx.set_registered(Some(&now));
                node = Some(now);
            }
            Err(error) if error.is_not_found() => {
                cx.set_registered(None);
                tracing::warn!("the node's object was deleted; it registers again in {} s", REGISTER_AGAIN.as_secs());
                tokio::select! {
                    () = tokio::time::sleep(REGISTER_AGAIN) => continue,
                    () = shutdown.cancelled() => break,
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the node's status is not said yet");
                cx.node_changed.notify_one();
                // Who is refused at once (by a balancer without servers) is refused often enough.
                tokio::select! {
                    () = tokio::time::sleep(REPORT_RETRY) => {}
                    () = cx.board.returned() => {}
                    () = shutdown.cancelled() => break,
                }
            }
        }
        let pause = match &node {
            Some(node) if is_ready(node) => cx.config.status_update_frequency,
            Some(_) => NOT_READY_LOOK,
            None => Duration::from_secs(1),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cx.node_changed.notified(), if node.is_some() => {}
            () = shutdown.cancelled() => break,
        }
    }
    if let Some(task) = lease_task {
        task.abort();
    }
}

/// Writes the status if it says something new, or if it has been silent for long.
async fn report(cx: &Context, reference: &ObjectReference, known: Node, reported_at: &mut Timestamp) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(cx.client.clone());
    let runtime = runtime_state(&cx.cri).await;
    cx.set_runtime_state(&runtime);
    // What stands there now, not what was said last: others may have called this node silent meanwhile.
    let known = if *reported_at == Timestamp::UNIX_EPOCH { known } else { read(cx).await? };
    let listed = cx.cri.list_images().await.map(images);
    let before = known.status.clone().unwrap_or_default();
    let shown = listed.unwrap_or_else(|_| before.images.clone().unwrap_or_default());
    let now = Timestamp::now();
    let status = describe(&cx.config, &cx.machine, &runtime, cx.pressures(), shown, &before, now);
    if says_the_same(&before, &status) && now.duration_since(*reported_at) < REPORT_EVERY {
        return Ok(known);
    }
    for condition in status.conditions.iter().flatten() {
        let was = before.conditions.iter().flatten().find(|known| known.type_ == condition.type_).map(|known| known.status.as_str());
        if was != Some(condition.status.as_str()) {
            tell(cx, reference, condition);
        }
    }
    let before = before.to_tree().map_err(kube::Error::SerdeError)?;
    let after: Value = status.to_tree().map_err(kube::Error::SerdeError)?;
    let Some(change) = crate::reporter::difference(&before, &after) else { return Ok(known) };
    // Others own conditions in the same list, so the list is only written over the version that was read.
    let patch = json!({ "metadata": { "resourceVersion": known.metadata.resource_version }, "status": change });
    match cx.board.exchange(bounded(api.patch_status(&cx.config.node_name, &PatchParams::default(), &Patch::Merge(&patch)))).await {
        Ok(now_known) => {
            *reported_at = now;
            Ok(now_known)
        }
        Err(error) if error.is_conflict() => {
            cx.node_changed.notify_one();
            read(cx).await
        }
        Err(error) => Err(error),
    }
}

fn tell(cx: &Context, reference: &ObjectReference, condition: &NodeCondition) {
    let name = &cx.config.node_name;
    let (type_, reason) = match (condition.type_.as_str(), condition.status.as_str()) {
        ("Ready", "True") => (Normal, "NodeReady"),
        ("Ready", _) => (Normal, "NodeNotReady"),
        ("MemoryPressure", "True") => (Warning, "NodeHasInsufficientMemory"),
        ("MemoryPressure", _) => (Normal, "NodeHasSufficientMemory"),
        ("DiskPressure", "True") => (Warning, "NodeHasDiskPressure"),
        ("DiskPressure", _) => (Normal, "NodeHasNoDiskPressure"),
        ("PIDPressure", "True") => (Warning, "NodeHasInsufficientPID"),
        ("PIDPressure", _) => (Normal, "NodeHasSufficientPID"),
        _ => return,
    };
    cx.recorder.event(reference, type_, reason, "", format!("Node {name} status is now: {reason}"));
}

/// Renews the lease, four times in its life.
async fn renew(cx: std::sync::Arc<Context>, node_uid: Option<String>, shutdown: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(cx.client.clone(), LEASE_NAMESPACE);
    let name = cx.config.node_name.clone();
    let seconds = i32::try_from(cx.config.lease_duration.as_secs()).unwrap_or(40);
    let every = cx.config.lease_duration / 4;
    let mut exists = false;
    loop {
        let now = MicroTime(Timestamp::now());
        let request = async {
            if exists {
                let patch = json!({ "spec": { "holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now } });
                return bounded(api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await;
            }
            let owner = node_uid.clone().map(|uid| OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid,
                ..Default::default()
            });
            let lease = Lease {
                metadata: ObjectMeta { name: Some(name.clone()), owner_references: owner.map(|owner| vec![owner]), ..Default::default() },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.clone()),
                    lease_duration_seconds: Some(seconds),
                    renew_time: Some(now),
                    ..Default::default()
                }),
            };
            bounded(api.create(&lease)).await
        };
        // What hangs when the API is reached again was lost: it is sent anew, for a lease that is late is the first thing to say.
        let result = tokio::select! {
            result = cx.board.exchange(request) => result,
            () = cx.board.returned() => continue,
        };
        let pause = match result {
            Ok(_) => {
                exists = true;
                every
            }
            Err(error) if error.is_already_exists() => {
                exists = true;
                continue;
            }
            Err(error) if error.is_not_found() && exists => {
                exists = false;
                Duration::from_millis(200)
            }
            Err(error) => {
                tracing::debug!(%error, "the lease is not renewed yet");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cx.board.returned() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &NodeStatus) -> NodeCondition {
        status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap().clone()
    }

    #[test]
    fn a_node_is_ready_when_runtime_and_network_are() {
        let config = Config::for_tests("n1");
        let machine = Machine { cpus: 2, pods_max: 110, ..Default::default() };
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let broken = RuntimeState { network_problem: Some("container runtime network not ready: x".into()), ..Default::default() };
        let first = describe(&config, &machine, &broken, Pressures::default(), vec![], &NodeStatus::default(), at(1));
        assert_eq!((ready(&first).status.as_str(), ready(&first).message.as_deref()), ("False", Some("container runtime network not ready: x")));
        let mut before = first;
        before.conditions.as_mut().unwrap().push(NodeCondition { type_: "NetworkUnavailable".into(), status: "False".into(), ..Default::default() });
        before.capacity.as_mut().unwrap().insert("example.com/gpu".into(), Quantity("2".into()));
        before.capacity.as_mut().unwrap().insert("cpu".into(), Quantity("64".into()));
        let second = describe(&config, &machine, &RuntimeState::default(), Pressures::default(), vec![], &before, at(5));
        assert_eq!(ready(&second).last_transition_time, Some(crate::status::time(at(5))));
        assert_eq!(second.conditions.as_ref().unwrap().len(), 5);
        let capacity = second.capacity.as_ref().unwrap();
        assert_eq!(
            (capacity["example.com/gpu"].0.as_str(), capacity["cpu"].0.as_str()),
            ("2", "2"),
            "others' resources stay, the node's own are its"
        );
        let third = describe(&config, &machine, &RuntimeState::default(), Pressures::default(), vec![], &second, at(9));
        assert!(says_the_same(&second, &third) && second != third);
    }
}
