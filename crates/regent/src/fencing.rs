//! The epoch of a server with the cluster's only store: it asks the nodes before its first write whether another server has
//! taken over meanwhile, goes on asking while it runs, and steps down as soon as one of them says so.
//!
//! Nobody is asked as long as no copy of the store was ever given away: then nobody can have taken over. The rules are
//! `membership::cluster`'s. What the store says of its epoch lies in the store, and a second time beside it, so that it
//! survives a restore, and so that a server which has stepped down remembers it.
//!
//! What must stay true: nothing is written to the store, but for its own epoch, before a majority has been heard; a server
//! that has stepped down never serves again from that store by itself.

use crate::voters::{Voters, votes};
use anyhow::{Context, Result, bail};
use membership::cluster::{self, Epoch, Record, Verdict, Vote};
use parking_lot::Mutex;
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};
use store::{
    Outcome, Store, Write,
    copy::EPOCH_KEY,
    fenced::{Fence, Fenced},
    snapshot::write_private,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Beside the store: the same as in it, and whether this server has stepped down.
const FILE: &str = "epoch.json";
/// How often the nodes are asked while a server waits to start, and while it runs.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_EVERY: Duration = Duration::from_secs(5);
/// When a server that waits says for whom, and how often.
const SAY_AFTER: Duration = Duration::from_secs(3);
const SAY_EVERY: Duration = Duration::from_secs(15);
/// Nodes that a running server asks each time.
const ASKED_MAX: usize = 32;
/// A node's API, if its Node does not say another port.
const NODE_PORT: u16 = 10250;
/// How often a write of the epoch is tried that others have come before.
const ATTEMPTS: usize = 5;

/// What lies beside the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    pub record: Record,
    /// The server that has taken over, if one has.
    #[serde(default)]
    pub superseded_by: Option<Epoch>,
}

/// Reads it; `None` where there is none yet.
pub fn beside(server_directory: &Path) -> Result<Option<Beside>> {
    let path = server_directory.join(FILE);
    let Some(text) = pki::files::read(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} cannot be read as what this server keeps of its epoch", path.display()))
}

/// Writes it.
pub fn keep_beside(server_directory: &Path, beside: &Beside) -> Result<()> {
    Ok(write_private(&server_directory.join(FILE), &serde_json::to_vec_pretty(beside)?, 0o600)?)
}

/// A random name for the life of a store.
pub fn new_holder() -> String {
    let random: [u8; 16] = rand::random();
    pki::hex(&random)
}

/// What a store says of its epoch.
pub async fn record_in(store: &dyn Store) -> Result<Option<Record>> {
    let Some(kv) = store.get(EPOCH_KEY).await? else { return Ok(None) };
    serde_json::from_slice(&kv.value).map(Some).context("what the store says of its epoch cannot be read; was it written by a newer version?")
}

/// Writes what a store says of its epoch, whatever stood there before.
pub async fn put_record(store: &dyn Store, record: &Record) -> Result<()> {
    let value = bytes::Bytes::from(serde_json::to_vec(record)?);
    for _ in 0..ATTEMPTS {
        let write = match store.get(EPOCH_KEY).await? {
            Some(kv) if kv.value == value => return Ok(()),
            Some(kv) => Write::Update { key: EPOCH_KEY.into(), value: value.clone(), expected: kv.modified },
            None => Write::Create { key: EPOCH_KEY.into(), value: value.clone() },
        };
        if matches!(store.commit(write).await?, Outcome::Committed(_)) {
            return Ok(());
        }
    }
    bail!("the store's epoch is being written by somebody else")
}

/// What a server that has stepped down tells.
pub fn stepped_down(own: &Epoch, by: &Epoch, server_directory: &Path) -> String {
    format!(
        "this server has stepped down: {} has taken the cluster over (epoch {}, this store is of epoch {}). Nothing was written since. \
         What was here is kept in {}; to use this machine as a node, run `regent agent --server {}`; to bring the cluster back here, \
         give it a copy first and run `regent server --recover`",
        by.server,
        by.number,
        own.number,
        server_directory.display(),
        by.server,
    )
}

/// A server's hold on its epoch.
pub struct Hold {
    store: Arc<dyn Store>,
    directory: PathBuf,
    /// Where this server is, for telling whether its machine is one of the nodes.
    address: Option<IpAddr>,
    record: Mutex<Record>,
    /// One writer of the record at a time.
    writing: tokio::sync::Mutex<()>,
    /// The server that runs on the store, once it does: it knows the nodes.
    server: OnceLock<Weak<apiserver::Server>>,
    voters: Voters,
    fence: Fence,
}

/// Waits until this server may serve from this store, and answers with the store to serve from. `Ok(None)`: the shutdown came
/// first. `url`: where it will be reached. `own_ledger`: what this machine's node has promised, where that node runs in this very
/// process and cannot answer yet.
pub async fn enter(
    store: Arc<dyn Store>,
    server_directory: &Path,
    url: &str,
    own_ledger: Option<&Path>,
    voters: Voters,
    shutdown: &CancellationToken,
) -> Result<Option<(Arc<Hold>, Arc<dyn Store>)>> {
    crate::recovery::check_finished(server_directory)?;
    let known = beside(server_directory)?;
    let stored = record_in(&*store).await?;
    let mut record = match (&stored, &known) {
        // After a restore the store does not know.
        (None, Some(known)) => known.record.clone(),
        (Some(stored), Some(known)) if known.record.epoch.number > stored.epoch.number => {
            Record { epoch: known.record.epoch.clone(), ..stored.clone() }
        }
        (Some(stored), _) => stored.clone(),
        (None, None) => {
            let epoch = Epoch { number: 1, holder: new_holder(), server: url.to_owned() };
            Record { epoch, copies: Default::default(), voters: BTreeMap::new() }
        }
    };
    if let Some(by) = known.as_ref().and_then(|known| known.superseded_by.as_ref())
        && record.epoch.is_superseded_by(by)
    {
        bail!(stepped_down(&record.epoch, by, server_directory));
    }
    record.epoch.server = url.to_owned();
    let fence = Fence::default();
    let hold = Arc::new(Hold {
        store: store.clone(),
        directory: server_directory.to_owned(),
        address: cluster::host(url),
        record: Mutex::new(record.clone()),
        writing: tokio::sync::Mutex::default(),
        server: OnceLock::new(),
        voters,
        fence: fence.clone(),
    });
    let mut heard = BTreeMap::new();
    if let Some(ledger) = own_ledger
        && let Some((name, _)) = record.voters.iter().find(|(_, address)| Some(address.ip()) == hold.address)
    {
        heard.insert(name.clone(), Vote::Knows(cluster::read(ledger)?));
    }
    if !hold.wait(heard, shutdown).await? {
        return Ok(None);
    }
    tracing::info!(epoch = hold.epoch().number, "no other server has taken over");
    if stored.as_ref() != Some(&record) {
        put_record(&*store, &record).await?;
    }
    if known.as_ref().map(|known| &known.record) != Some(&record) {
        keep_beside(server_directory, &Beside { record, superseded_by: None })?;
    }
    Ok(Some((hold, Arc::new(Fenced { inner: store, fence }))))
}

impl Hold {
    /// Asks until it is known whether this server may serve; whether it may, or was asked to stop.
    async fn wait(&self, mut heard: BTreeMap<String, Vote>, shutdown: &CancellationToken) -> Result<bool> {
        let record = self.record.lock().clone();
        let mut say_at = Instant::now() + SAY_AFTER;
        loop {
            // What was heard stays heard: a promise never goes back.
            match cluster::may_serve(&record, self.address, &heard) {
                Verdict::Serve => return Ok(true),
                Verdict::StepDown(by, node) => {
                    tracing::error!(node, "a node has promised itself to another server");
                    self.step_down(&by)?;
                    bail!(stepped_down(&record.epoch, &by, &self.directory));
                }
                Verdict::Ask { silent, needed } => {
                    if Instant::now() >= say_at {
                        say_at += SAY_EVERY;
                        tracing::warn!(
                            "copies of this server's store were given to {}; before it serves, {needed} more of {} must say that none of them \
                             has taken over. Where these are lost for good, and nobody has taken over: `regent server --recover --force` goes on with what is here",
                            record.copies.iter().cloned().collect::<Vec<_>>().join(", "),
                            silent.join(", "),
                        );
                    }
                }
            }
            let asked = tokio::select! {
                asked = self.voters.ask(&record.voters) => asked,
                () = shutdown.cancelled() => return Ok(false),
            };
            let news = votes(&asked);
            if news.is_empty() || news.keys().all(|node| heard.contains_key(node)) {
                tokio::select! { () = shutdown.cancelled() => return Ok(false), () = tokio::time::sleep(ASK_AGAIN) => {} }
            }
            heard.extend(news);
        }
    }

    /// No write from here on, and never again from this store.
    fn step_down(&self, by: &Epoch) -> Result<()> {
        let record = self.record.lock().clone();
        self.fence.close(&format!("this server has stepped down: {} has taken over (epoch {})", by.server, by.number));
        keep_beside(&self.directory, &Beside { record, superseded_by: Some(by.clone()) })
    }

    /// Which epoch this server serves.
    pub fn epoch(&self) -> Epoch {
        self.record.lock().epoch.clone()
    }

    /// Notes that a node is given a copy, and who has a vote from then on.
    pub async fn note_copy(&self, node: &str) -> Result<()> {
        let nodes = self.nodes();
        if nodes.is_empty() {
            bail!("the cluster's nodes are not known yet; ask again");
        }
        self.change(|record| {
            record.copies.insert(node.to_owned());
            record.voters = nodes;
        })
        .await
    }

    /// The nodes, and where each one's own API is.
    fn nodes(&self) -> BTreeMap<String, SocketAddr> {
        let server = self.server.get().and_then(Weak::upgrade);
        let nodes = server.and_then(|server| server.entries("", "nodes", None).ok()).unwrap_or_default();
        nodes.iter().filter_map(|entry| voter(&entry.value())).collect()
    }

    async fn change(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _turn = self.writing.lock().await;
        let before = self.record.lock().clone();
        let mut record = before.clone();
        change(&mut record);
        if record == before {
            return Ok(());
        }
        if let Some(why) = self.fence.closed() {
            bail!(why);
        }
        put_record(&*self.store, &record).await?;
        keep_beside(&self.directory, &Beside { record: record.clone(), superseded_by: None })?;
        *self.record.lock() = record;
        Ok(())
    }

    /// Keeps the list of voters, asks them, and tells those of this epoch that do not know it, until the shutdown. When
    /// another server has taken over, the fence is closed, `stop` ends the serving, and the error says what is so.
    pub async fn keep(self: Arc<Self>, server: Weak<apiserver::Server>, stop: CancellationToken, shutdown: CancellationToken) -> Result<()> {
        let _ = self.server.set(server);
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! { () = shutdown.cancelled() => return Ok(()), _ = ticks.tick() => {} }
            let record = self.record.lock().clone();
            if record.copies.is_empty() {
                continue;
            }
            let now = self.nodes();
            // A list that is read empty is no list: the cluster has nodes, or it has no copies.
            if !now.is_empty()
                && let Err(error) = self.change(|record| record.voters = now.clone()).await
            {
                tracing::warn!("the list of voters cannot be kept: {error:#}");
            }
            // Of many nodes some in turn: more than half have promised themselves to whoever has taken over.
            let asked: BTreeMap<String, SocketAddr> = now.into_iter().choose_multiple(&mut rand::rng(), ASKED_MAX).into_iter().collect();
            let said = self.voters.ask(&asked).await;
            let superseded =
                said.iter().filter_map(|(node, said)| Some((node, said.epoch.as_ref()?))).find(|(_, known)| record.epoch.is_superseded_by(known));
            if let Some((node, by)) = superseded {
                self.fence.close("this server has stepped down");
                let told = stepped_down(&record.epoch, by, &self.directory);
                tracing::error!(node, "{told}");
                if let Err(error) = self.step_down(by) {
                    tracing::error!("that this server has stepped down cannot be kept: {error:#}");
                }
                stop.cancel();
                bail!(told);
            }
            let behind = |name: &String| said.get(name).is_some_and(|said| said.epoch.as_ref() != Some(&record.epoch));
            let untold: BTreeMap<String, SocketAddr> = asked.into_iter().filter(|(name, _)| behind(name)).collect();
            if !untold.is_empty() {
                self.voters.promise(&untold, &record.epoch).await;
            }
        }
    }
}

fn voter(node: &serde_json::Value) -> Option<(String, SocketAddr)> {
    let name = node.pointer("/metadata/name")?.as_str()?.to_owned();
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    let ip: IpAddr = internal.filter_map(|address| address["address"].as_str()?.parse().ok()).next()?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(|port| u16::try_from(port.as_u64()?).ok());
    Some((name, SocketAddr::new(ip, port.filter(|port| *port != 0).unwrap_or(NODE_PORT))))
}

/// What the API server gives to copies.
pub struct Copies {
    pub hold: Arc<Hold>,
    pub store: Arc<dyn Store>,
    pub backend: crate::backend::Backend,
    pub pki: PathBuf,
}

#[async_trait::async_trait]
impl apiserver::copies::Source for Copies {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
    fn origin(&self) -> std::result::Result<store::snapshot::Origin, String> {
        crate::backups::origin(&self.backend, &self.pki).map_err(|error| format!("{error:#}"))
    }
    async fn begin(&self, node: &str) -> std::result::Result<(), String> {
        self.hold.note_copy(node).await.map_err(|error| format!("{error:#}"))
    }
}

#[cfg(test)]
#[path = "fencing_tests.rs"]
pub mod tests;
