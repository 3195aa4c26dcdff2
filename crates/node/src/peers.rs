//! This node among its peers: its member of the cluster's membership, and its own word about its endpoints.
//!
//! ```text
//! workers' statuses --> Board --\
//! lease, informers --> API? -----> membership (UDP, its own thread) --view--> Unix socket --> proxy, DNS, controllers
//! Node objects --> peers -------/
//! ```
//!
//! The key that the members share is the Secret `kube-system/regent-membership`; the node keeps it on its disk, so that it
//! is a member again after a reboot with no server alive. The Node objects come from the informers, so from the checkpoint.
//!
//! What must stay true: a change of a pod's readiness is told at once, before the API has it; a pod that is over is told as
//! not ready for a while, so that whoever cannot ask the API stops using it; a node whose address is unknown for a moment
//! stays a peer; a node that was off does not come back among its peers before it knows what became of its endpoints, for until
//! it says otherwise they believe what it said last.

mod link;

use self::link::Link;
use crate::spec::PodId;
use client::{Clock, Informer, Informers, informer::Selection};
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Secret};
use kube::Api;
use membership::{Handle, Health, Keys, Peer, View, local, view::Member};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// The port that members listen on.
pub const PORT: u16 = 7946;
/// Where the key is, in the API.
const SECRET: (&str, &str, &str) = ("kube-system", "regent-membership", "keys");
/// A key that was changed is noticed within this.
const KEY_EVERY: Duration = Duration::from_secs(60);
/// A key that is not there yet is asked for again after this.
const KEY_RETRY: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether the API is reached.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// While there is reason to doubt that the API is reached it is asked this often, and has to answer within this.
const ASK_API_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the pods' workers have looked.
const WORDS_LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long this node waits for its pods' workers to have looked before it is a member; then they take too long.
const WORDS_WAIT: Duration = Duration::from_secs(30);
/// A pod that is over is told as not ready for this long, and until the API is reached.
const OVER_FOR: Duration = Duration::from_secs(30);

/// What makes a member: [`membership::start`], unless there is no network under it.
pub type Start = Arc<dyn Fn(membership::Config, CancellationToken) -> Result<Handle, membership::transport::Error> + Send + Sync>;

/// How this node is a member.
#[derive(Clone)]
pub struct Config {
    /// Where it listens; usually all addresses and [`PORT`].
    pub listen: SocketAddr,
    /// The socket that publishes the view on this node.
    pub socket: PathBuf,
    /// Where key and epoch are kept.
    pub directory: PathBuf,
    /// The time of day.
    pub clock: Clock,
    /// What makes the member.
    pub start: Start,
}

impl Config {
    /// As it is by default, with the node's data below this directory.
    pub fn below(data_dir: &Path) -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            socket: local::SOCKET.into(),
            directory: data_dir.join("membership"),
            clock: Clock::system(),
            start: Arc::new(membership::start),
        }
    }
}

/// An endpoint: address, ready, serving.
type Word = (Ipv4Addr, bool, bool);

/// What a worker says of its pod.
struct Said {
    worker: PodId,
    word: Word,
    over: Option<Instant>,
}

impl Said {
    fn end(&mut self) {
        (self.word.1, self.word.2) = (false, false);
        self.over.get_or_insert_with(Instant::now);
    }
}

/// What the pods' workers say of this node's endpoints, and how exchanges with the API go. Shared.
#[derive(Default)]
pub struct Board {
    /// By the UID that the API knows, which for a static pod is its mirror's.
    words: Mutex<BTreeMap<String, Said>>,
    changed: Notify,
    link: Link,
}

impl Board {
    /// The newest status of a worker's pod, as the API knows it.
    pub fn report(&self, worker: &PodId, pod: &Pod, status: &PodStatus) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let mut words = self.words.lock();
        // What was its mirror before is none any more.
        words.iter_mut().filter(|(other, said)| said.worker == *worker && **other != uid).for_each(|(_, said)| said.end());
        let before = words.get(&uid).map(|said| said.word);
        // Of a pod that has none yet since the node was switched on, the peers know its last one.
        let last = before.map(|(address, ..)| address).or_else(|| address_of(pod.status.as_ref()?));
        if let Some(word) = word(pod, status, last)
            && before != Some(word)
        {
            words.insert(uid, Said { worker: worker.clone(), word, over: None });
            self.changed.notify_one();
        }
    }

    /// Waits until every pod that ran here, as far as the node knew, has been looked at.
    async fn has_heard_of(&self, pods: &Informer<Pod>) {
        pods.synced().await;
        while !self.names_all(&pods.list()) {
            tokio::time::sleep(WORDS_LOOK_EVERY).await;
        }
    }

    /// Whether there is a word on each of these pods that ran here, as far as the node knew.
    fn names_all(&self, pods: &[Arc<Pod>]) -> bool {
        let runs = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running") && address_of(status).is_some());
        let words = self.words.lock();
        pods.iter().filter(|pod| runs(pod)).all(|pod| pod.metadata.uid.as_ref().is_none_or(|uid| words.contains_key(uid)))
    }

    /// The pod is over on this node.
    pub fn forget(&self, worker: &PodId) {
        self.words.lock().values_mut().filter(|said| said.worker == *worker).for_each(Said::end);
        self.changed.notify_one();
    }

    /// Waits for an exchange with the API, such as the renewal of the lease. From how it goes, also from how long it takes, this
    /// node knows whether it reaches the API; any answer is one.
    pub async fn exchange<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        self.link.exchange(request).await
    }

    /// Waits until the API is reached again after it was not. What still hangs was sent while it was not, and may be sent again.
    pub async fn returned(&self) {
        self.link.returned().await;
    }

    fn words(&self, api_reachable: bool) -> BTreeMap<String, Word> {
        let mut words = self.words.lock();
        words.retain(|_, said| !(api_reachable && said.over.is_some_and(|since| since.elapsed() >= OVER_FOR)));
        words.iter().map(|(uid, said)| (uid.clone(), said.word)).collect()
    }
}

fn address_of(status: &PodStatus) -> Option<Ipv4Addr> {
    status.pod_ip.as_deref()?.parse().ok()
}

/// What a pod's status says of it as an endpoint. While it has no address it keeps its last one, and is not ready.
fn word(pod: &Pod, status: &PodStatus, last: Option<Ipv4Addr>) -> Option<Word> {
    let address = address_of(status);
    let condition = status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let serving = condition && address.is_some() && status.phase.as_deref() == Some("Running");
    Some((address.or(last)?, serving && pod.metadata.deletion_timestamp.is_none(), serving))
}

/// Is a member until `shutdown`. What fails is said and tried again: the node is a node also without peers.
pub async fn run(config: Config, node_name: String, node_ip: IpAddr, informers: Informers, board: Arc<Board>, shutdown: CancellationToken) {
    if let Err(error) = std::fs::create_dir_all(&config.directory) {
        tracing::error!(path = %config.directory.display(), %error, "no membership: its directory cannot be made");
        return;
    }
    let work = async {
        let keys = keys(informers.client(), config.directory.join("keys")).await;
        let pods: Informer<Pod> = informers.selected(Selection { fields: Some(format!("spec.nodeName={node_name}")), ..Default::default() });
        if tokio::time::timeout(WORDS_WAIT, board.has_heard_of(&pods)).await.is_err() {
            tracing::warn!("the pods' workers take long to look; this node is a member all the same");
        }
        let handle = loop {
            match begin(&config, &node_name, node_ip, keys.clone(), &shutdown) {
                Ok(handle) => break handle,
                Err(error) => tracing::error!(%error, "this node is no member yet; trying again"),
            }
            tokio::time::sleep(KEY_RETRY).await;
        };
        tracing::info!(listen = %config.listen, "a member of the cluster's membership");
        tokio::join!(publish(&config.socket, &handle, &shutdown), tell(&handle, &informers, &pods, &board), ask_api(&handle, &informers, &board));
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

fn begin(
    config: &Config,
    name: &str,
    ip: IpAddr,
    keys: watch::Receiver<Keys>,
    shutdown: &CancellationToken,
) -> Result<Handle, membership::transport::Error> {
    let unix_ms = u64::try_from(config.clock.now().as_millisecond()).unwrap_or(0);
    let (epoch, kept) = membership::epoch::next(&config.directory.join("epoch"), unix_ms);
    if let Err(error) = kept {
        tracing::warn!(%error, "the membership's epoch cannot be kept: a clock that is set back may delay the next start");
    }
    let address = SocketAddr::new(ip, config.listen.port());
    let member = membership::Config { node_name: name.to_owned(), listen: config.listen, address, epoch, keys };
    (config.start)(member, shutdown.clone())
}

async fn publish(socket: &Path, handle: &Handle, shutdown: &CancellationToken) {
    while let Err(error) = local::publish(socket, handle.view(), shutdown.clone()).await {
        tracing::error!(path = %socket.display(), %error, "the membership cannot be published on this node; trying again");
        tokio::time::sleep(KEY_RETRY).await;
    }
}

/// Asks the API for a sign of life while something is wrong: a server that has lost its power closes no connection, a link that
/// is cut in one direction neither, and who has to judge by the membership must know soon whether anybody could say better.
async fn ask_api(handle: &Handle, informers: &Informers, board: &Board) {
    let client = informers.client();
    let view = handle.view();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = BTreeMap::new();
    loop {
        ticks.tick().await;
        let now = troubled(&view.borrow());
        let has_changed = now != before;
        let is_wrong = now.values().any(|(health, cut)| *cut || *health == Health::Suspect);
        before = now;
        if !has_changed && !is_wrong && !board.link.is_doubtful() {
            continue;
        }
        let next = Instant::now() + ASK_API_EVERY;
        let question = async {
            let answer = tokio::time::timeout(ASK_API_EVERY, client.apiserver_version()).await;
            answer.unwrap_or_else(|elapsed| Err(kube::Error::Service(Box::new(elapsed))))
        };
        // What it answers is of no interest; that it does is noted.
        let _ = board.exchange(question).await;
        tokio::time::sleep_until(next).await;
    }
}

/// The members that are not well, or are cut off from this one: one of them may be on this node's way to the API. A suspicion that
/// came and went between two looks still shows, as what has become of it.
fn troubled(view: &View) -> BTreeMap<String, (Health, bool)> {
    let state = |(name, member): (&String, &Member)| (name.clone(), (member.health, member.cut));
    view.nodes.iter().map(state).filter(|(_, (health, cut))| *cut || *health != Health::Alive).collect()
}

/// Tells the member what it is to know, as it changes.
async fn tell(handle: &Handle, informers: &Informers, pods: &Informer<Pod>, board: &Board) {
    let nodes: Informer<Node> = informers.all();
    let mut node_changes = nodes.subscribe();
    let mut peers: BTreeMap<String, SocketAddr> = BTreeMap::new();
    let mut told: BTreeMap<String, Word> = BTreeMap::new();
    let mut is_complete = false;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = node_changes.next() => {
                if change.is_none() {
                    return;
                }
                while node_changes.try_next().is_some() {}
            }
            () = board.changed.notified() => {}
            _ = ticks.tick() => {}
        }
        if nodes.is_synced() {
            let now = addresses(&nodes.list(), &peers);
            if now != peers {
                peers = now;
                handle.set_peers(peers.iter().map(|(name, address)| Peer { name: name.clone(), address: *address }).collect()).await;
            }
        }
        let reachable = board.link.word(nodes.is_connected());
        handle.set_api_reachable(reachable).await;
        // A node whose checkpoint was damaged does not know what else runs here before a server has told it.
        let knows_its_pods = || pods.is_synced() && (!pods.is_stale() || informers.checkpoint().is_none_or(|kept| kept.report().damage.is_empty()));
        is_complete = is_complete || (knows_its_pods() && board.names_all(&pods.list()));
        let words = board.words(reachable);
        for (uid, word) in words.iter().filter(|(uid, word)| told.get(*uid) != Some(word)) {
            handle.publish(uid.clone(), Some(*word)).await;
        }
        for uid in told.keys().filter(|uid| !words.contains_key(*uid)) {
            handle.publish(uid.clone(), None).await;
        }
        handle.set_complete(is_complete).await;
        told = words;
    }
}

/// Where the nodes' members are. One without an address keeps its last.
fn addresses(nodes: &[Arc<Node>], before: &BTreeMap<String, SocketAddr>) -> BTreeMap<String, SocketAddr> {
    let address = |node: &Node| {
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
        internal.filter_map(|address| address.address.parse::<IpAddr>().ok()).next().map(|ip| SocketAddr::new(ip, PORT))
    };
    let known = nodes.iter().filter_map(|node| {
        let name = node.metadata.name.clone()?;
        let address = address(node).or_else(|| before.get(&name).copied())?;
        Some((name, address))
    });
    known.collect()
}

/// The cluster's keys: from the disk at once, from the API as soon and as long as it answers.
async fn keys(client: kube::Client, file: PathBuf) -> watch::Receiver<Keys> {
    let on_disk = std::fs::read_to_string(&file).ok().and_then(|text| Keys::parse(&text).ok());
    let first = match on_disk {
        Some(keys) => keys,
        None => loop {
            match ask(&client).await {
                Ok((keys, text)) => {
                    keep(&file, &text);
                    break keys;
                }
                Err(problem) => tracing::debug!(problem, "the membership's key cannot be had yet"),
            }
            tokio::time::sleep(KEY_RETRY).await;
        },
    };
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            if let Ok((keys, text)) = ask(&client).await
                && sender.send_if_modified(|known| {
                    let changes = *known != keys;
                    *known = keys;
                    changes
                })
            {
                keep(&file, &text);
            }
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(KEY_EVERY) => {}
            }
        }
    });
    receiver
}

async fn ask(client: &kube::Client) -> Result<(Keys, String), String> {
    let (namespace, name, field) = SECRET;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = tokio::time::timeout(ANSWER_TIMEOUT, api.get(name)).await.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    let bytes = secret.data.unwrap_or_default().remove(field).ok_or_else(|| format!("the Secret {namespace}/{name} has no {field}"))?;
    let text = String::from_utf8(bytes.0).map_err(|error| error.to_string())?;
    let keys = Keys::parse(&text).map_err(|error| error.to_string())?;
    Ok((keys, text))
}

/// Keeps the keys for a start without a server. Only root reads them.
fn keep(file: &Path, text: &str) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let written = (|| -> io::Result<()> {
        let new = file.with_extension("new");
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, file)
    })();
    if let Err(error) = written {
        tracing::error!(path = %file.display(), %error, "the membership's key cannot be kept; after a reboot without a server this node would have no peers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_an_endpoint_as_its_status_says() {
        let ready = json!({"phase": "Running", "podIP": "10.244.1.2", "conditions": [{"type": "Ready", "status": "True"}]});
        let of = |metadata: serde_json::Value, status: serde_json::Value, last: Option<Ipv4Addr>| {
            let pod = pod(json!({"metadata": metadata, "status": status}));
            word(&pod, pod.status.as_ref().unwrap(), last)
        };
        let ip = Ipv4Addr::new(10, 244, 1, 2);
        assert_eq!(of(json!({}), ready.clone(), None), Some((ip, true, true)));
        assert_eq!(of(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), ready.clone(), None), Some((ip, false, true)));
        assert_eq!(of(json!({}), json!({"phase": "Running", "podIP": "10.244.1.2"}), None), Some((ip, false, false)));
        assert_eq!(of(json!({}), json!({"phase": "Pending"}), Some(ip)), Some((ip, false, false)));
        assert_eq!(of(json!({}), json!({"phase": "Pending"}), None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_over_is_not_ready_until_the_api_must_know() {
        let board = Board::default();
        let one = pod(json!({"metadata": {"uid": "u", "name": "p", "namespace": "n"}, "status":
            {"phase": "Running", "podIP": "10.244.1.2", "conditions": [{"type": "Ready", "status": "True"}]}}));
        let worker = PodId::of(&one);
        board.report(&worker, &one, one.status.as_ref().unwrap());
        assert!(board.words(false)["u"].1);
        board.forget(&worker);
        assert!(!board.words(false)["u"].1);
        tokio::time::advance(OVER_FOR).await;
        assert_eq!(board.words(false).len(), 1);
        assert_eq!(board.words(true).len(), 0);
    }

    #[tokio::test]
    async fn a_static_pod_is_known_by_its_newest_mirror() {
        let board = Board::default();
        let known_as = |uid: &str| {
            pod(json!({"metadata": {"uid": uid, "name": "p", "namespace": "n"}, "status":
            {"phase": "Running", "podIP": "10.244.1.2", "conditions": [{"type": "Ready", "status": "True"}]}}))
        };
        let worker = PodId::of(&known_as("of its file"));
        for (uid, others) in [("of its file", [].as_slice()), ("mirror", &["of its file"]), ("next mirror", &["of its file", "mirror"])] {
            let shown = known_as(uid);
            board.report(&worker, &shown, shown.status.as_ref().unwrap());
            let words = board.words(false);
            assert!(words[uid].1 && others.iter().all(|other| !words[*other].1), "{words:?}");
        }
        board.forget(&worker);
        assert!(board.words(false).values().all(|word| !word.1 && !word.2));
    }

    #[test]
    fn a_node_without_an_address_for_a_moment_stays_a_peer() {
        let node = |value: serde_json::Value| Arc::new(serde_json::from_value::<Node>(value).unwrap());
        let known = addresses(
            &[node(json!({"metadata": {"name": "a"}, "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.21"}]}}))],
            &BTreeMap::new(),
        );
        assert_eq!(known["a"], "172.30.0.21:7946".parse().unwrap());
        assert_eq!(addresses(&[node(json!({"metadata": {"name": "a"}}))], &known), known);
        assert!(addresses(&[node(json!({"metadata": {"name": "b"}}))], &known).is_empty());
    }
}
