//! The cluster's epoch: which server may write to the cluster's only store. Pure rules, and a node's promise on its disk.
//!
//! Each take-over raises the epoch by one and has a holder of its own. A server that takes over asks the nodes for their
//! promise, and needs it of more than half of the last agreed list; a node promises each number to one holder, never goes
//! back, and has its promise on disk before it answers. A server that starts asks the same list whether anybody has promised
//! more. Two majorities of one list have a node in common, so of two servers one hears of the other before its first write.
//!
//! What must stay true: a promise is never forgotten and never given twice; who hears of a higher epoch never serves again.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Bytes of an epoch as text at most; what is longer is refused.
pub const EPOCH_BYTES_MAX: usize = 4096;
/// Characters of a holder or of a server's address at most.
const TEXT_MAX: usize = 512;

/// Which server has the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows by one with each take-over.
    pub number: u64,
    /// The life of a store that has this number: of two take-overs at once each has its own.
    pub holder: String,
    /// Where that server is: `https://10.0.0.1:6443`.
    pub server: String,
}

impl Epoch {
    /// Whether whoever has this epoch must step down where that one is known.
    pub fn is_superseded_by(&self, known: &Epoch) -> bool {
        known.number > self.number || (known.number == self.number && known.holder != self.holder)
    }

    /// Whether it can be one at all: what comes from outside is asked this first.
    pub fn is_sensible(&self) -> bool {
        let plain = |text: &str| !text.is_empty() && text.len() <= TEXT_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        self.number > 0 && plain(&self.holder) && plain(&self.server)
    }
}

/// What a store says of its cluster's epoch, beside its objects. It goes along with every copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose the store is.
    pub epoch: Epoch,
    /// Nodes that were given a copy, ever: without any, nobody can have taken over.
    #[serde(default)]
    pub copies: BTreeSet<String>,
    /// The last agreed list of nodes, and where each one's own API is.
    #[serde(default)]
    pub voters: BTreeMap<String, SocketAddr>,
}

impl Record {
    /// How many votes the machine of the server has beside those of the nodes: one, unless it is a node itself.
    pub fn votes_of_server(&self, server: Option<IpAddr>) -> usize {
        usize::from(!self.voters.values().any(|address| Some(address.ip()) == server))
    }
}

/// What a node has answered when it was asked for the highest epoch that it has promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Nothing, or nothing of use.
    Silent,
    /// This one; `None`: it has never promised any.
    Knows(Option<Epoch>),
}

/// Whether a server that starts may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: nobody else can have taken over.
    Serve,
    /// Never: this epoch is higher, says that node.
    StepDown(Epoch, String),
    /// Not yet: these have not answered, and so many more answers are needed.
    Ask {
        /// Who is silent.
        silent: Vec<String>,
        /// How many of them must answer.
        needed: usize,
    },
}

fn is_majority(votes: usize, of: usize) -> bool {
    2 * votes > of
}

/// Judges the answers to a server that starts. `server`: where it is itself; its own machine votes with its own epoch,
/// unless that is one of the nodes, and then the node is asked like any other.
pub fn may_serve(record: &Record, server: Option<IpAddr>, votes: &BTreeMap<String, Vote>) -> Verdict {
    for (node, vote) in votes {
        if let Vote::Knows(Some(known)) = vote
            && record.epoch.is_superseded_by(known)
        {
            return Verdict::StepDown(known.clone(), node.clone());
        }
    }
    // Nobody else ever had what it takes to take over, or there is nobody who could have promised anything.
    if record.copies.is_empty() || record.voters.is_empty() {
        return Verdict::Serve;
    }
    let own = record.votes_of_server(server);
    let of = record.voters.len() + own;
    let silent: Vec<String> = record.voters.keys().filter(|node| !matches!(votes.get(*node), Some(Vote::Knows(_)))).cloned().collect();
    let yes = of - silent.len();
    if is_majority(yes, of) { Verdict::Serve } else { Verdict::Ask { needed: of / 2 + 1 - yes, silent } }
}

/// The epoch that a take-over has to ask for: one above everything that anybody has promised. A take-over that was begun by
/// the same holder and not finished goes on with its own.
pub fn next(record: &Record, holder: &str, server: &str, votes: &BTreeMap<String, Vote>) -> Epoch {
    let promised = votes.values().filter_map(|vote| match vote {
        Vote::Knows(Some(known)) => Some(known),
        _ => None,
    });
    let highest = promised.fold(&record.epoch, |highest, known| if known.number > highest.number { known } else { highest });
    let number = if highest.holder == holder { highest.number } else { highest.number.saturating_add(1) };
    Epoch { number, holder: holder.to_owned(), server: server.to_owned() }
}

/// Whether so many promises make a take-over: more than half of the list, on which the machine of the old server has a place.
pub fn is_agreed(record: &Record, promises: usize) -> bool {
    let old = host(&record.epoch.server);
    is_majority(promises, record.voters.len() + record.votes_of_server(old))
}

/// The address in `https://ADDRESS:PORT`.
pub fn host(server: &str) -> Option<IpAddr> {
    let rest = server.strip_prefix("https://")?;
    rest.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| rest.parse()).ok()
}

/// Why a node cannot promise, or remember what it has promised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk does not take it, or does not give it back.
    #[error("the cluster's epoch cannot be kept in {path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is there is no epoch: a promise may be lost, so none is given any more.
    #[error("{0} does not hold an epoch; remove it if this node has promised nothing to another server")]
    Damaged(PathBuf),
    /// It is not an epoch.
    #[error("this is not an epoch")]
    NotSensible,
}

/// The name of a node's [`Ledger`] in its directory.
pub const LEDGER: &str = "cluster-epoch.json";

/// What a node has promised, on its disk.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    known: Mutex<Option<Epoch>>,
}

impl Ledger {
    /// Opens the ledger in this file, which need not be there.
    pub fn open(path: &Path) -> Result<Ledger, Error> {
        Ok(Ledger { path: path.to_owned(), known: Mutex::new(read(path)?) })
    }

    /// The highest epoch that was promised.
    pub fn known(&self) -> Option<Epoch> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Promises to obey nobody below this epoch; when it returns, that is on disk. `Ok(Err(known))`: another has the promise.
    pub fn promise(&self, asked: Epoch) -> Result<Result<(), Epoch>, Error> {
        if !asked.is_sensible() {
            return Err(Error::NotSensible);
        }
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(standing) = known.as_ref() {
            if *standing == asked {
                return Ok(Ok(()));
            }
            if asked.is_superseded_by(standing) {
                return Ok(Err(standing.clone()));
            }
        }
        self.write(&asked).map_err(|source| Error::Disk { path: self.path.clone(), source })?;
        *known = Some(asked);
        Ok(Ok(()))
    }

    fn write(&self, epoch: &Epoch) -> io::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let new = self.path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(epoch)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        std::fs::File::open(directory)?.sync_all()
    }
}

/// What stands in a ledger that another process may keep; `None`: nothing was promised.
pub fn read(path: &Path) -> Result<Option<Epoch>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Disk { path: path.to_owned(), source }),
    };
    let epoch: Option<Epoch> = serde_json::from_slice(&text).ok();
    epoch.filter(Epoch::is_sensible).map(Some).ok_or_else(|| Error::Damaged(path.to_owned()))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
