//! The agent's shell: follows the pods bound to this node, gives each a worker, and does the node's own rounds.
//!
//! The agent starts from the node's checkpoint, the API second: with no server alive its pods are those that were there when
//! the last one was, and nothing here waits for an answer.
//!
//! What must stay true: a pod has one worker, by UID; stopping the agent stops no container; what runs on the node
//! without a pod in the API is ended, but only once a server has said in this life which pods there are (or in a life
//! before that this one is gone).

use crate::{
    Config, Error,
    admission::{self, Place, Refusal, Registered},
    allocations::{Allocations, Outcome},
    cgroups::Cgroups,
    contact::Contact,
    eviction,
    exits::Exits,
    images::Images,
    local, local_storage, logs,
    machine::Machine,
    node::{self, RuntimeState},
    objects::Objects,
    peers::{self, Board},
    pod::End,
    reporter::Reporter,
    resize::Room,
    runtime, server,
    spec::{self, PodId, names, resources, sandbox},
    static_pods::{self, StaticPods, manifest},
    stats::Stats,
    volumes::{Volumes, tokens::Tokens},
    worker::{self, Handle},
};
use client::{
    Informer, Key,
    events::{Normal, Recorder, Warning},
    informer::{Change, Selection},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    node::v1::RuntimeClass,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often the runtime's containers are listed, to notice what ended by itself.
const RELIST_EVERY: Duration = Duration::from_secs(1);
/// How often a runtime that does not answer is asked again; after a reboot it starts beside the agent.
const RUNTIME_LOOK_EVERY: Duration = Duration::from_millis(250);
const ROTATE_EVERY: Duration = Duration::from_secs(10);
const PRESSURE_EVERY: Duration = Duration::from_secs(10);
/// How often the disk is measured that pods with a limit fill.
const LOCAL_STORAGE_EVERY: Duration = Duration::from_secs(10);
const ORPHANS_EVERY: Duration = Duration::from_secs(5);
/// How often pods that wait for more resources are looked at, when nothing has happened that would let them have it.
const RESIZES_EVERY: Duration = Duration::from_secs(5);
/// The longest that pods wait for what the API has of the node, when it speaks against one of them.
const NODE_ANSWER: Duration = Duration::from_secs(2);
const IMAGES_EVERY: Duration = Duration::from_secs(300);
/// The longest that pods wait for the Services' rules: a node whose proxy is another's, or is broken, still runs its pods.
const RULES_WAIT: Duration = Duration::from_secs(3);
/// A pressure is over when it has not been seen for this long.
const PRESSURE_HOLDS: SignedDuration = SignedDuration::from_secs(60);

/// What all parts of the agent share.
pub struct Context {
    pub config: Config,
    pub client: kube::Client,
    pub cri: cri::Client,
    pub recorder: Recorder,
    pub services: Informer<Service>,
    pub runtime_classes: Informer<RuntimeClass>,
    pub contact: Contact,
    /// The pods that the API has bound to this node.
    pub api_pods: Informer<Pod>,
    pub static_pods: StaticPods,
    pub objects: Arc<Objects>,
    pub volumes: Volumes,
    pub images: Images,
    pub cgroups: Cgroups,
    /// What is set aside for each pod.
    pub allocations: Allocations,
    pub reporter: Arc<Reporter>,
    /// What the peers are told of this node's endpoints.
    pub board: Arc<Board>,
    pub machine: Machine,
    pub dns: sandbox::Dns,
    pub stats: Stats,
    pub started_at: Timestamp,
    /// Wakes the node's status loop.
    pub node_changed: Notify,
    /// Wakes the review of resizes.
    pub resizes: Notify,
    workers: Mutex<BTreeMap<String, Handle>>,
    network_ready: AtomicBool,
    pressures: Mutex<eviction::Pressures>,
    /// This node as the API had it last.
    registered: Mutex<Option<Arc<Registered>>>,
}

impl Context {
    /// The pods on this node as last known.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.workers.lock().values().map(Handle::pod).collect()
    }

    /// The pods on this node, each with the resources that are set aside for it.
    pub fn pods_as_given(&self) -> Vec<Arc<Pod>> {
        self.pods().iter().map(|pod| self.allocations.applied(pod)).collect()
    }

    /// A static pod is no longer wanted.
    pub(crate) fn end_static(&self, pod_uid: &str) {
        if let Some(handle) = self.workers.lock().get(pod_uid) {
            handle.gone();
        }
    }

    /// Has the pod's worker look again.
    pub(crate) fn wake(&self, pod_uid: &str) {
        if let Some(handle) = self.workers.lock().get(pod_uid) {
            handle.wake.notify_one();
        }
    }

    /// The pods on this node, each with the newest status that the node has found out, said or not.
    pub fn pods_as_seen(&self) -> Vec<Pod> {
        self.pods().iter().map(|pod| self.as_seen(pod)).collect()
    }

    /// The pod with the newest status that the node has found out.
    pub fn as_seen(&self, pod: &Pod) -> Pod {
        let newest = self.reporter.newest(pod.metadata.uid.as_deref().unwrap_or_default());
        Pod { status: newest.or_else(|| pod.status.clone()), ..pod.clone() }
    }

    pub fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.workers.lock().get(uid).map(Handle::pod)
    }

    /// The pod of that name; of two (one ending, one new) the newer.
    pub fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let named = |pod: &Arc<Pod>| pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name);
        self.pods().into_iter().filter(named).max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
    }

    pub fn network_ready(&self) -> bool {
        self.network_ready.load(Ordering::Relaxed)
    }

    pub fn set_runtime_state(&self, state: &RuntimeState) {
        let ready = state.runtime_problem.is_none() && state.network_problem.is_none();
        self.network_ready.store(ready, Ordering::Relaxed);
    }

    pub fn pressures(&self) -> eviction::Pressures {
        *self.pressures.lock()
    }

    /// Notes what the API has of this node; `None` if it has nothing, or cannot be asked.
    pub fn set_registered(&self, node: Option<&Node>) {
        *self.registered.lock() = node.map(|node| Arc::new(Registered::of(node)));
    }

    /// The pods that hold something of this node until they have ended, each with the resources that are set aside for it.
    fn pods_in_place(&self) -> Vec<Arc<Pod>> {
        let taken: Vec<_> = self.workers.lock().values().filter_map(Handle::taken_pod).collect();
        let has_ended = |pod: &Pod| eviction::is_over(pod) || self.reporter.has_ended(pod.metadata.uid.as_deref().unwrap_or_default());
        // After a new list the word that a pod is gone may come behind the one whose room it has left.
        let is_listed = |pod: &Pod| self.api_pods.get(&Key::of(pod)).is_some_and(|listed| listed.metadata.uid == pod.metadata.uid);
        let is_in_place = |pod: &&Arc<Pod>| !has_ended(pod) && (manifest::is_static(pod) || is_listed(pod));
        taken.iter().filter(is_in_place).map(|pod| self.allocations.applied(pod)).collect()
    }

    /// Why the node does not take the pod as things stand.
    fn refusal(&self, pod: &Pod) -> Option<Refusal> {
        let registered = self.registered.lock().clone();
        let place = Place {
            node_name: &self.config.node_name,
            allocatable: &self.machine.allocatable(),
            pods_max: self.machine.pods_max as usize,
            pressures: self.pressures(),
            allowed_unsafe_sysctls: &self.config.allowed_unsafe_sysctls,
            registered: registered.as_deref(),
        };
        admission::refusal(pod, &self.pods_in_place(), &place)
    }

    /// The agent's own metrics, in Prometheus' form.
    pub fn metrics(&self) -> String {
        let pods = self.workers.lock().len();
        let own = format!(
            "# HELP kubelet_node_name [ALPHA] The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n# HELP kubelet_running_pods [STABLE] Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n",
            self.config.node_name
        );
        own + &client::metrics::render()
    }
}

/// Runs the agent until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let pods_dir = config.data_dir.join("pods");
    for directory in [&pods_dir, &config.log_dir] {
        std::fs::create_dir_all(directory).map_err(|source| Error::Directory { path: directory.clone(), source })?;
    }
    let cri = cri::Client::new(&config.runtime_endpoint);
    let cgroups = Cgroups::detect(&config.cgroup_root, config.pod_pids_max).map_err(Error::Cgroups)?;
    let machine = Machine::read(&config.data_dir, config.max_pods, config.eviction.memory_available);
    cgroups.prepare(machine.cpus * 1000, machine.memory_bytes).map_err(Error::Cgroups)?;
    let informers = config.informers.clone();
    let client = informers.client();
    let checkpoint = informers.checkpoint();
    let pods: Informer<Pod> = informers.selected(Selection { fields: Some(format!("spec.nodeName={}", config.node_name)), ..Default::default() });
    let contact = Contact::new(pods.clone());
    let objects = Arc::new(Objects::new(client.clone(), contact.clone(), checkpoint));
    let recorder = Recorder::kept(client.clone(), "kubelet", &config.node_name, checkpoint);
    let reporter = Arc::new(Reporter::new(client.clone(), checkpoint));
    let tokens = Tokens::new(client.clone(), contact.clone(), recorder.clone(), checkpoint);
    if pods.is_synced() {
        tracing::info!(pods = pods.count(), "starting from the checkpoint; the API comes second");
    }
    let node_resolver = std::fs::read_to_string("/etc/resolv.conf").map(|text| sandbox::Resolver::parse(&text)).unwrap_or_default();
    let dns = sandbox::Dns {
        cluster_servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
        cluster_domain: config.cluster_domain.clone(),
        node: node_resolver,
    };
    let cx = Arc::new(Context {
        images: Images::new(cri.clone(), config.parallel_image_pulls),
        volumes: Volumes::new(pods_dir, objects.clone(), tokens),
        services: informers.all(),
        runtime_classes: informers.all(),
        contact,
        api_pods: pods.clone(),
        static_pods: StaticPods::default(),
        client,
        cri,
        recorder,
        objects,
        cgroups,
        allocations: Allocations::new(checkpoint),
        reporter: reporter.clone(),
        board: Arc::default(),
        machine,
        dns,
        stats: Stats::default(),
        started_at: Timestamp::now(),
        node_changed: Notify::new(),
        resizes: Notify::new(),
        workers: Mutex::default(),
        network_ready: AtomicBool::new(false),
        pressures: Mutex::default(),
        registered: Mutex::default(),
        config,
    });
    cx.set_runtime_state(&node::runtime_state(&cx.cri).await);

    let tasks = TaskTracker::new();
    tasks.spawn(reporter.run(shutdown.clone()));
    tasks.spawn(node::run(cx.clone(), shutdown.clone()));
    if let Some(config) = cx.config.peers.clone() {
        let name = cx.config.node_name.clone();
        tasks.spawn(peers::run(config, name, cx.config.node_ip, informers.clone(), cx.board.clone(), shutdown.clone()));
    }
    tasks.spawn(relist(cx.clone(), shutdown.clone()));
    tasks.spawn(rotate(cx.clone(), shutdown.clone()));
    tasks.spawn(watch_pressure(cx.clone(), shutdown.clone()));
    tasks.spawn(watch_local_storage(cx.clone(), shutdown.clone()));
    tasks.spawn(review_resizes(cx.clone(), shutdown.clone()));
    tasks.spawn(collect_images(cx.clone(), shutdown.clone()));
    tasks.spawn(end_orphans(cx.clone(), pods.clone(), shutdown.clone()));
    tasks.spawn(static_pods::follow(cx.clone(), tasks.clone(), shutdown.clone()));
    tasks.spawn(static_pods::mirror(cx.clone(), shutdown.clone()));
    tasks.spawn(follow(cx.clone(), pods, tasks.clone(), shutdown.clone()));
    let serve = server::run(cx.clone(), shutdown.clone());
    let result = tokio::try_join!(async { serve.await.map_err(Error::Server) }, local::run(cx.clone(), shutdown.clone())).map(drop);
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Gives every pod of this node its worker, and tells it what becomes of its pod.
async fn follow(cx: Arc<Context>, pods: Informer<Pod>, tasks: TaskTracker, shutdown: CancellationToken) {
    let mut changes = pods.subscribe();
    // A pod without Services in its environment would be wrong for its whole life.
    tokio::select! {
        () = cx.services.synced() => {}
        () = shutdown.cancelled() => return,
    }
    // After a reboot: rules first, then pods, or the first thing that a pod does fails.
    if let Some(mut rules) = cx.config.service_rules.clone()
        && tokio::time::timeout(RULES_WAIT, rules.wait_for(|in_place| *in_place)).await.is_err()
    {
        tracing::warn!("the rules of the Services are not in place; pods start without waiting for them any longer");
    }
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = shutdown.cancelled() => return,
        };
        let Some(change) = change else { return };
        // A mirror shows what runs here anyway. Its pod's worker looks again, for there is somebody to tell.
        let shown = match &change {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        };
        if manifest::is_mirror(shown) {
            let id = PodId::of(shown);
            if let Some(pod) = cx.pod_by_name(&id.namespace, &id.name) {
                cx.wake(&PodId::of(&pod).uid);
            }
            continue;
        }
        match change {
            Change::Applied { old, new } => {
                let uid = new.metadata.uid.clone().unwrap_or_default();
                // A name that was given to another pod between two looks: the first one is gone.
                if let Some(old_uid) = old.and_then(|old| old.metadata.uid.clone()).filter(|old_uid| *old_uid != uid)
                    && let Some(handle) = cx.workers.lock().get(&old_uid)
                {
                    handle.gone();
                }
                let known = cx.workers.lock().get(&uid).cloned();
                match known {
                    Some(handle) => {
                        handle.update(new);
                        cx.resizes.notify_one();
                    }
                    None => {
                        let refusal = tokio::select! {
                            refusal = judge(&cx, &new) => refusal,
                            () = shutdown.cancelled() => return,
                        };
                        begin(&cx, new, refusal, &tasks, &shutdown);
                    }
                }
            }
            Change::Deleted(last) => {
                if let Some(handle) = cx.workers.lock().get(last.metadata.uid.as_deref().unwrap_or_default()) {
                    handle.gone();
                }
            }
        }
    }
}

/// Whether the node takes a pod of the API. What is held against the pod because of the node's object is looked up first: whoever
/// bound it may have seen a newer one. Without an answer that is not known, and not held against the pod.
async fn judge(cx: &Context, pod: &Pod) -> Option<Refusal> {
    if admission::is_settled(pod) || cx.reporter.has_status(pod.metadata.uid.as_deref().unwrap_or_default()) {
        return None;
    }
    let refusal = cx.refusal(pod)?;
    if !refusal.is_of_registered {
        return Some(refusal);
    }
    let node = if cx.contact.is_there_now() { tokio::time::timeout(NODE_ANSWER, node::read(cx)).await.ok().and_then(Result::ok) } else { None };
    cx.set_registered(node.as_ref());
    cx.refusal(pod)
}

/// Begins with a pod: takes it on, or fails it.
pub(crate) fn begin(cx: &Arc<Context>, pod: Arc<Pod>, refusal: Option<Refusal>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    cx.allocations.admit(&pod);
    let handle = Handle::new(pod.clone());
    if let Some(Refusal { reason, message, .. }) = refusal {
        cx.recorder.about(&*pod, Warning, &reason, message.clone());
        handle.refuse(reason, format!("Pod was rejected: {message}"));
    }
    cx.workers.lock().insert(uid.clone(), handle.clone());
    share_burstable(cx);
    let (cx, shutdown) = (cx.clone(), shutdown.clone());
    tasks.spawn(async move {
        worker::run(cx.clone(), handle, shutdown).await;
        cx.workers.lock().remove(&uid);
        share_burstable(&cx);
        cx.resizes.notify_one();
    });
}

/// Gives the burstable class the shares of its pods.
fn share_burstable(cx: &Context) {
    let burstable = |pod: &Arc<Pod>| resources::qos(pod) == resources::Qos::Burstable;
    let milli = cx.pods_as_given().iter().filter(|pod| burstable(pod)).map(|pod| resources::pod_amount(pod).0.cpu_milli_request).sum();
    if let Err(error) = cx.cgroups.set_burstable(milli) {
        tracing::debug!(%error, "cannot set the burstable class' shares");
    }
}

/// Gives pods that want other resources than they have what there is room for.
async fn review_resizes(cx: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RESIZES_EVERY) => {}
            () = cx.resizes.notified() => {}
            () = shutdown.cancelled() => return,
        }
        let allocatable = cx.machine.allocatable();
        let whole = Room {
            cpu_milli: allocatable.get("cpu").map(resources::milli).unwrap_or(0),
            memory: allocatable.get("memory").map(resources::value).unwrap_or(0),
        };
        let changes = cx.allocations.review(&cx.pods(), whole, Timestamp::now());
        if changes.is_empty() {
            continue;
        }
        share_burstable(&cx);
        for (pod, outcome) in changes {
            let generation = pod.metadata.generation.unwrap_or_default();
            match outcome {
                Outcome::Granted => cx.recorder.about(&*pod, Normal, "ResizeStarted", format!("Pod resize started: generation {generation}")),
                Outcome::Refused(refusal) => {
                    let message = format!("Pod resize {}: generation {generation}, {}", refusal.reason(), refusal.message());
                    cx.recorder.about(&*pod, Warning, &format!("Resize{}", refusal.reason()), message);
                }
            }
            cx.wake(pod.metadata.uid.as_deref().unwrap_or_default());
        }
    }
}

type Listing = HashMap<String, (String, i32)>;

/// Lists everything in the runtime again and again, and wakes the workers of pods where something changed.
async fn relist(cx: Arc<Context>, shutdown: CancellationToken) {
    let mut before: Option<Listing> = None;
    let mut exits = Exits::new(&cx);
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
        let sandboxes = cx.cri.list_pod_sandboxes(HashMap::new()).await;
        let containers = cx.cri.list_containers(HashMap::new()).await;
        let (Ok(sandboxes), Ok(containers)) = (sandboxes, containers) else {
            wait = RUNTIME_LOOK_EVERY;
            if before.take().is_some() {
                // The runtime went away: the node says so at once.
                cx.node_changed.notify_one();
            }
            continue;
        };
        wait = RELIST_EVERY;
        // Not left to the node's reports: with no server there are none, and pods wait for the network.
        if !cx.network_ready() {
            cx.set_runtime_state(&node::runtime_state(&cx.cri).await);
            match cx.network_ready() {
                true => cx.workers.lock().values().for_each(|handle| handle.wake.notify_one()),
                false => wait = RUNTIME_LOOK_EVERY,
            }
        }
        let uid = |labels: &HashMap<String, String>| labels.get(names::POD_UID).cloned().unwrap_or_default();
        let running = containers.iter().filter(|item| item.state() == cri::v1::ContainerState::ContainerRunning);
        exits.follow(&cx, running.map(|item| item.id.clone()).collect());
        let mut now: Listing = HashMap::new();
        now.extend(sandboxes.iter().map(|item| (item.id.clone(), (uid(&item.labels), item.state))));
        now.extend(containers.iter().map(|item| (item.id.clone(), (uid(&item.labels), item.state))));
        match &before {
            None => {
                // First look, or the runtime is back: everyone looks for himself.
                cx.node_changed.notify_one();
                cx.workers.lock().values().for_each(|handle| handle.wake.notify_one());
            }
            Some(before) => {
                for uid in changed(before, &now) {
                    cx.wake(&uid);
                }
            }
        }
        before = Some(now);
    }
}

/// UIDs of the pods of which something came, went or changed.
fn changed(before: &Listing, now: &Listing) -> HashSet<String> {
    let differs =
        |a: &Listing, b: &Listing| a.iter().filter(|(id, item)| b.get(*id) != Some(item)).map(|(_, (uid, _))| uid.clone()).collect::<Vec<_>>();
    differs(before, now).into_iter().chain(differs(now, before)).collect()
}

async fn rotate(cx: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROTATE_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        if let Ok(mut containers) = cx.cri.list_containers(HashMap::new()).await {
            containers.retain(|item| item.state() == cri::v1::ContainerState::ContainerRunning);
            logs::rotate(&cx.cri, &cx.config.log_dir, containers, cx.config.logs).await;
        }
    }
}

/// Looks whether resources run low, says so, and evicts one pod at a time.
async fn watch_pressure(cx: Arc<Context>, shutdown: CancellationToken) {
    let mut seen = [Timestamp::UNIX_EPOCH; 3];
    loop {
        let now = Timestamp::now();
        let read = eviction::pressures(&eviction::read(&cx.config.data_dir), &cx.config.eviction);
        for (index, low) in [read.memory, read.disk, read.pids].into_iter().enumerate() {
            if low {
                seen[index] = now;
            }
        }
        let holds = |index: usize| seen[index] != Timestamp::UNIX_EPOCH && now.duration_since(seen[index]) < PRESSURE_HOLDS;
        let held = eviction::Pressures { memory: holds(0), disk: holds(1), pids: holds(2) };
        let before = std::mem::replace(&mut *cx.pressures.lock(), held);
        if before != held {
            cx.node_changed.notify_one();
        }
        if read.disk
            && let Err(error) = cx.images.collect(u64::MAX, SignedDuration::ZERO).await
        {
            tracing::warn!(%error, "images cannot be removed though the disk is full");
        }
        if read.memory || (read.disk && before.disk) {
            evict_one(&cx, read.memory).await;
        }
        tokio::select! {
            () = tokio::time::sleep(PRESSURE_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn evict_one(cx: &Arc<Context>, is_memory: bool) {
    let pods = cx.pods();
    let ranked = if is_memory {
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        for usage in cx.stats.containers(cx).await.unwrap_or_default() {
            *used.entry(usage.uid).or_default() += usage.memory_bytes;
        }
        eviction::rank(&pods, &used, eviction::memory_asked)
    } else {
        let of_pod = |(pod, used): (Arc<Pod>, local_storage::Used)| (pod.metadata.uid.clone().unwrap_or_default(), used.total());
        let used = disk_used(cx, pods.clone()).await.into_iter().map(of_pod).collect();
        eviction::rank(&pods, &used, local_storage::asked)
    };
    let Some(victim) = ranked.first() else { return };
    let resource = if is_memory { "memory" } else { "ephemeral-storage" };
    tracing::warn!(pod = %PodId::of(victim), resource, "a pod is evicted");
    evict(cx, victim, format!("The node was low on resource: {resource}. "));
}

fn evict(cx: &Context, pod: &Pod, message: String) {
    cx.recorder.about(pod, Warning, "Evicted", message.clone());
    if let Some(handle) = cx.workers.lock().get(pod.metadata.uid.as_deref().unwrap_or_default()) {
        handle.evict(End { grace_s: 0, deleted: false, reason: "Evicted".into(), message });
    }
}

/// Evicts pods that fill more of the disk than they may.
async fn watch_local_storage(cx: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOCAL_STORAGE_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let mut pods = cx.pods();
        pods.retain(|pod| local_storage::is_limited(pod) && !eviction::is_critical(pod) && !eviction::has_ended(pod));
        if pods.is_empty() {
            continue;
        }
        for (pod, used) in disk_used(&cx, pods).await {
            if let Some(message) = local_storage::excess(&pod, &used) {
                tracing::warn!(pod = %PodId::of(&pod), message, "a pod is evicted");
                evict(&cx, &pod, message);
            }
        }
    }
}

/// What each of these pods fills of the disk. Nothing is said of any when what they wrote cannot be learnt.
async fn disk_used(cx: &Arc<Context>, pods: Vec<Arc<Pod>>) -> Vec<(Arc<Pod>, local_storage::Used)> {
    let Ok(usages) = cx.stats.containers(cx).await else { return Vec::new() };
    let cx = cx.clone();
    let measure = move || {
        let of_pod = |pod: Arc<Pod>| {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let written = usages.iter().filter(|usage| usage.uid == uid).map(|usage| (usage.container.clone(), usage.written_bytes)).collect();
            let logs = cx.config.log_dir.join(spec::log_directory_name(&PodId::of(&pod)));
            let used = local_storage::measure(&pod, |volume| cx.volumes.place(uid, volume), &logs, &written);
            (pod, used)
        };
        pods.into_iter().map(of_pod).collect()
    };
    tokio::task::spawn_blocking(measure).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the disk that pods fill cannot be measured");
        Vec::new()
    })
}

/// Removes idle images when the disk that holds them is nearly full.
async fn collect_images(cx: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(IMAGES_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let Some((total, free, ..)) = crate::machine::disk(&cx.config.data_dir) else { continue };
        let percent_used = 100 - free * 100 / total.max(1);
        let to_free = if percent_used >= u64::from(cx.config.image_gc_high_percent) {
            (total / 100 * percent_used).saturating_sub(total / 100 * u64::from(cx.config.image_gc_low_percent))
        } else {
            0
        };
        // Called with nothing to free it still notes which images are in use.
        match cx.images.collect(to_free, SignedDuration::from_secs(120)).await {
            Ok(0) => {}
            Ok(freed) => tracing::info!(freed, "idle images were removed"),
            Err(error) => tracing::warn!(%error, "idle images cannot be removed"),
        }
    }
}

/// Ends what is left of pods that the API no longer has: their sandboxes, directories and cgroups.
async fn end_orphans(cx: Arc<Context>, pods: Informer<Pod>, shutdown: CancellationToken) {
    tokio::select! {
        () = pods.synced() => {}
        () = shutdown.cancelled() => return,
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(ORPHANS_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        if !cx.static_pods.are_known() {
            continue;
        }
        // First what is there, then who is known: a pod that comes in between is known.
        let Ok(sandboxes) = cx.cri.list_pod_sandboxes(HashMap::new()).await else { continue };
        let directories = cx.volumes.known().await.unwrap_or_default();
        let known: HashSet<String> = {
            let listed = pods.list().into_iter().filter_map(|pod| pod.metadata.uid.clone());
            listed.chain(cx.workers.lock().keys().cloned()).collect()
        };
        // With no word from a server yet, what the checkpoint does not know may be newer than it. It stays, unless it was
        // seen to go.
        let is_stale = pods.is_stale();
        let spared = |uid: &str| known.contains(uid) || (is_stale && !pods.has_seen_go(uid));
        if !is_stale {
            forget_unused(&cx, &pods, &known);
        }
        let mut occupied = HashSet::new();
        for sandbox in sandboxes {
            // Which static pods there are needs no server's word.
            let is_own = sandbox.annotations.get(manifest::SOURCE).is_some_and(|source| manifest::is_own(source));
            let is_spared = |uid: &str| if is_own { known.contains(uid) } else { spared(uid) };
            let Some(uid) = sandbox.labels.get(names::POD_UID).filter(|uid| !is_spared(uid)) else { continue };
            occupied.insert(uid.clone());
            let label = |name: &str| sandbox.labels.get(name).cloned().unwrap_or_default();
            let id = PodId { namespace: label(names::POD_NAMESPACE), name: label(names::POD_NAME), uid: uid.clone() };
            tracing::info!(pod = %id, "a pod that the API no longer has is ended");
            if let Err(error) = end_orphan(&cx, &id, &sandbox.id).await {
                tracing::warn!(pod = %id, %error, "an orphaned pod cannot be ended yet");
            }
        }
        for uid in directories.into_iter().filter(|uid| !spared(uid) && !occupied.contains(uid)) {
            if let Err(error) = cx.volumes.tear_down(&uid).await {
                tracing::warn!(uid, %error, "an orphaned pod's directory cannot be removed yet");
            }
        }
        for (uid, path) in cx.cgroups.pods() {
            if !spared(&uid) && !occupied.contains(&uid) {
                let _ = cx.cgroups.remove(&path);
            }
        }
    }
}

/// Drops from memory and disk what belongs to no pod of the node.
fn forget_unused(cx: &Context, pods: &Informer<Pod>, known: &HashSet<String>) {
    let mut referred = spec::referred::Referred::default();
    for pod in pods.list().into_iter().chain(cx.pods()) {
        referred.extend(spec::referred::objects(&pod));
    }
    cx.objects.retain(&referred);
    cx.volumes.retain_tokens(known);
    cx.reporter.retain(known);
    cx.allocations.retain(known);
}

async fn end_orphan(cx: &Context, id: &PodId, sandbox_id: &str) -> Result<(), cri::Error> {
    let containers = cx.cri.list_containers(runtime::of_pod(&id.uid)).await?;
    let stops = containers.iter().filter(|item| item.state() == cri::v1::ContainerState::ContainerRunning).map(|item| {
        let grace = item.annotations.get(names::POD_GRACE_PERIOD).and_then(|text| text.parse().ok()).unwrap_or(30);
        cx.cri.stop_container(&item.id, Duration::from_secs(grace))
    });
    futures::future::try_join_all(stops).await?;
    cx.cri.stop_pod_sandbox(sandbox_id).await?;
    cx.cri.remove_pod_sandbox(sandbox_id).await?;
    let _ = tokio::fs::remove_dir_all(cx.config.log_dir.join(spec::log_directory_name(id))).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen_on_either_side() {
        let item = |uid: &str, state| (uid.to_owned(), state);
        let before = Listing::from([("c1".into(), item("p1", 1)), ("c2".into(), item("p2", 1)), ("c3".into(), item("p3", 1))]);
        let now = Listing::from([("c1".into(), item("p1", 2)), ("c3".into(), item("p3", 1)), ("c4".into(), item("p4", 0))]);
        assert_eq!(changed(&before, &now), HashSet::from(["p1".to_owned(), "p2".into(), "p4".into()]));
    }
}
