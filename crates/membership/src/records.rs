//! Every node's own word about its endpoints, and whether it reaches the API: versioned, one writer each, spread by difference.
//!
//! An owner numbers its changes. Whoever knows an owner up to version `v` is told what has changed since (with tombstones
//! for what was removed), or, if that is too long ago or of an earlier start of the owner, everything anew; a whole that
//! comes in several packets is put in place only when its last part is there, so that nothing known is lost on the way.
//! Changes are pushed to all at once; a digest to a random member every second brings what was lost, also by way of others.
//!
//! An owner that has named every endpoint that it has says so too: from then on an endpoint that it does not name is no more,
//! which an old word of somebody else cannot bring back.
//!
//! What must stay true: (epoch, version) of an owner never goes back; only the owner numbers; a delta is validated as a
//! whole and applied as a whole or not at all.

use crate::{identity::NodeId, limits};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

/// What an owner says of itself beside its endpoints: the API, and that all are named.
const FLAGS: usize = 2;

/// An endpoint, as its owner says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it is.
    pub address: Ipv4Addr,
    /// Whether it wants new connections.
    pub ready: bool,
    /// Whether it can serve them, although it may be ending.
    pub serving: bool,
    /// The owner's number of this word.
    pub version: u64,
}

/// All endpoints of one owner, by UID.
pub type Endpoints = Arc<BTreeMap<String, Endpoint>>;

/// Changes of one owner: all that it said with a version after `from` up to `upto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The owner.
    pub owner: NodeId,
    /// Its start.
    pub epoch: u64,
    /// Nought for everything anew.
    pub from: u64,
    /// See there.
    pub upto: u64,
    /// Whether more parts follow.
    pub last: bool,
    /// In ascending order of version.
    pub items: Vec<Item>,
}

/// One word of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its number.
    pub version: u64,
    /// What is said.
    pub what: What,
}

/// What an owner can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Whether it reaches the API.
    Api(bool),
    /// An endpoint is like this.
    Endpoint {
        /// Which.
        uid: String,
        /// Where.
        address: Ipv4Addr,
        /// See [`Endpoint`].
        ready: bool,
        /// See [`Endpoint`].
        serving: bool,
    },
    /// An endpoint is no more.
    Gone {
        /// Which.
        uid: String,
    },
    /// Whether every endpoint that it has is named.
    Complete(bool),
}

/// Why a delta is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An address that no endpoint can have.
    #[error("{0} is no endpoint's address")]
    Address(Ipv4Addr),
    /// A UID that no endpoint can have.
    #[error("an endpoint's UID is empty, too long or no plain text")]
    Uid,
    /// Versions that are not in order.
    #[error("the versions of a delta are not in order")]
    Order,
    /// More than one node can have.
    #[error("more than {} endpoints of one node", limits::RECORDS_PER_NODE_MAX)]
    TooMany,
}

/// What became of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Something is new.
    Changed,
    /// Nothing is new, or a part is still missing.
    Nothing,
    /// Others hold a later start of this very node: its epoch must be raised above this one.
    OwnIsBehind(u64),
}

#[derive(Clone, Debug, Default)]
struct Owner {
    epoch: u64,
    version: u64,
    /// Tombstones are complete for versions after this.
    floor: u64,
    api: Option<(u64, bool)>,
    complete: Option<(u64, bool)>,
    endpoints: Endpoints,
    gone: BTreeMap<u64, String>,
    staging: Option<Staging>,
}

#[derive(Clone, Debug)]
struct Staging {
    epoch: u64,
    upto: u64,
    items: Vec<Item>,
}

/// The records of all owners, one of them this node.
#[derive(Clone, Debug)]
pub struct Records {
    me: NodeId,
    owners: BTreeMap<NodeId, Owner>,
    /// All who can be owners, also those that have said nothing here yet.
    members: BTreeSet<NodeId>,
}

impl Records {
    /// Empty records, of this start of this node.
    pub fn new(me: NodeId, epoch: u64) -> Records {
        Records { me, owners: BTreeMap::from([(me, Owner { epoch, ..Owner::default() })]), members: BTreeSet::new() }
    }

    fn own(&mut self) -> &mut Owner {
        self.owners.entry(self.me).or_default()
    }

    /// Says whether this node reaches the API. Answers whether that is new.
    pub fn set_api(&mut self, reachable: bool) -> bool {
        let own = self.own();
        if own.api.is_some_and(|(_, known)| known == reachable) {
            return false;
        }
        own.version += 1;
        own.api = Some((own.version, reachable));
        true
    }

    /// Says whether every own endpoint is named. Answers whether that is new.
    pub fn set_complete(&mut self, complete: bool) -> bool {
        let own = self.own();
        if own.complete.is_some_and(|(_, known)| known) == complete {
            return false;
        }
        own.version += 1;
        own.complete = Some((own.version, complete));
        true
    }

    /// Says how an own endpoint is, or (`None`) that it is no more. Answers whether that is new.
    pub fn publish(&mut self, uid: &str, endpoint: Option<(Ipv4Addr, bool, bool)>) -> Result<bool, Error> {
        check_uid(uid)?;
        if let Some((address, ..)) = endpoint {
            check_address(address)?;
        }
        let own = self.own();
        let known = own.endpoints.get(uid).map(|e| (e.address, e.ready, e.serving));
        if known == endpoint {
            return Ok(false);
        }
        if known.is_none() && own.endpoints.len() >= limits::RECORDS_PER_NODE_MAX {
            return Err(Error::TooMany);
        }
        own.version += 1;
        let version = own.version;
        own.gone.retain(|_, gone| gone != uid);
        let all = Arc::make_mut(&mut own.endpoints);
        match endpoint {
            Some((address, ready, serving)) => {
                all.insert(uid.to_owned(), Endpoint { address, ready, serving, version });
            }
            None => {
                all.remove(uid);
                own.gone.insert(version, uid.to_owned());
            }
        }
        own.bound();
        Ok(true)
    }

    /// Another start of this node is known to others: this one must be later, and all is said anew.
    pub fn raise(&mut self, above: u64) {
        let own = self.own();
        own.epoch = own.epoch.max(above.saturating_add(1));
    }

    /// Only these are members: forgets owners that are no more, and asks for those that are not known yet.
    pub fn roster(&mut self, members: &BTreeSet<NodeId>) {
        let me = self.me;
        self.owners.retain(|owner, _| *owner == me || members.contains(owner));
        self.members.clone_from(members);
    }

    /// Start and version of an owner, as far as known.
    pub fn known(&self, owner: NodeId) -> Option<(u64, u64)> {
        self.owners.get(&owner).map(|o| (o.epoch, o.version))
    }

    /// The endpoints of an owner.
    pub fn endpoints(&self, owner: NodeId) -> Option<Endpoints> {
        self.owners.get(&owner).map(|o| o.endpoints.clone())
    }

    /// Whether an owner says that it reaches the API; true while it has said nothing.
    pub fn api_reachable(&self, owner: NodeId) -> bool {
        self.owners.get(&owner).and_then(|o| o.api).is_none_or(|(_, reachable)| reachable)
    }

    /// Whether an owner has named every endpoint that it has.
    pub fn is_complete(&self, owner: NodeId) -> bool {
        self.owners.get(&owner).and_then(|o| o.complete).is_some_and(|(_, complete)| complete)
    }

    /// What is known, owner by owner; of more than fit those from `start` on, and whether these are all.
    pub fn digest(&self, start: usize) -> (Vec<(NodeId, u64, u64)>, bool) {
        let all: BTreeSet<NodeId> = self.owners.keys().chain(&self.members).copied().collect();
        let known = |id: NodeId| {
            let (epoch, version) = self.known(id).unwrap_or((0, 0));
            (id, epoch, version)
        };
        if all.len() <= limits::DIGEST_OWNERS_MAX {
            return (all.into_iter().map(known).collect(), true);
        }
        let start = start % all.len();
        (all.iter().copied().cycle().skip(start).take(limits::DIGEST_OWNERS_MAX).map(known).collect(), false)
    }

    /// What whoever sent this digest lacks, and whether it knows something that is not known here.
    pub fn compare(&self, theirs: &[(NodeId, u64, u64)], whole: bool) -> (Vec<Delta>, bool) {
        let theirs: BTreeMap<NodeId, (u64, u64)> = theirs.iter().map(|(id, epoch, version)| (*id, (*epoch, *version))).collect();
        let lacking = theirs.iter().any(|(id, known)| self.known(*id).is_none_or(|own| *known > own));
        let mut deltas = Vec::new();
        for (id, owner) in &self.owners {
            let known = theirs.get(id).copied();
            if known.is_none() && !whole {
                continue;
            }
            if known.is_none_or(|known| known < (owner.epoch, owner.version)) {
                let parts = owner.deltas(*id, known);
                if !deltas.is_empty() && deltas.len() + parts.len() > limits::DELTAS_AT_ONCE_MAX {
                    break;
                }
                deltas.extend(parts);
            }
        }
        (deltas, lacking)
    }

    /// What this node has said since that version.
    pub fn own_since(&self, version: u64) -> Vec<Delta> {
        let Some(own) = self.owners.get(&self.me) else { return Vec::new() };
        if version == own.version { Vec::new() } else { own.deltas(self.me, Some((own.epoch, version))) }
    }

    /// Takes in a delta.
    pub fn apply(&mut self, delta: Delta) -> Result<Applied, Error> {
        if delta.owner == self.me {
            let own = self.own();
            let ahead = (delta.epoch, delta.upto) > (own.epoch, own.version);
            return Ok(if ahead { Applied::OwnIsBehind(delta.epoch) } else { Applied::Nothing });
        }
        check(&delta)?;
        let owner = self.owners.entry(delta.owner).or_default();
        if delta.epoch < owner.epoch {
            return Ok(Applied::Nothing);
        }
        if delta.from == 0 {
            owner.staging = Some(Staging { epoch: delta.epoch, upto: delta.upto, items: delta.items });
        } else if let Some(staging) = owner.staging.as_mut().filter(|s| s.epoch == delta.epoch && s.upto == delta.from) {
            if staging.items.len() + delta.items.len() > limits::RECORDS_PER_NODE_MAX + FLAGS {
                owner.staging = None;
                return Err(Error::TooMany);
            }
            staging.upto = delta.upto;
            staging.items.extend(delta.items);
        } else if delta.epoch == owner.epoch && delta.from <= owner.version && delta.upto > owner.version {
            return owner.advance(delta);
        } else {
            return Ok(Applied::Nothing);
        }
        if !delta.last {
            return Ok(Applied::Nothing);
        }
        // The parts of a whole may be older than what came beside them.
        let Some(staging) = owner.staging.take().filter(|s| (s.epoch, s.upto) > (owner.epoch, owner.version)) else {
            return Ok(Applied::Nothing);
        };
        let mut fresh = Owner { epoch: staging.epoch, version: staging.upto, floor: staging.upto, ..Owner::default() };
        fresh.take(staging.items);
        *owner = fresh;
        Ok(Applied::Changed)
    }
}

impl Owner {
    fn advance(&mut self, delta: Delta) -> Result<Applied, Error> {
        let after = self.version;
        let new: Vec<Item> = delta.items.into_iter().filter(|item| item.version > after).collect();
        if self.endpoints.len() + new.len() > 2 * limits::RECORDS_PER_NODE_MAX {
            return Err(Error::TooMany);
        }
        self.take(new);
        self.version = delta.upto;
        self.bound();
        Ok(Applied::Changed)
    }

    fn take(&mut self, items: Vec<Item>) {
        let all = Arc::make_mut(&mut self.endpoints);
        for Item { version, what } in items {
            match what {
                What::Api(reachable) => self.api = Some((version, reachable)),
                What::Complete(complete) => self.complete = Some((version, complete)),
                What::Endpoint { uid, address, ready, serving } => {
                    all.insert(uid, Endpoint { address, ready, serving, version });
                }
                What::Gone { uid } => {
                    all.remove(&uid);
                    self.gone.insert(version, uid);
                }
            }
        }
    }

    fn bound(&mut self) {
        while self.gone.len() > limits::TOMBSTONES_MAX {
            if let Some((version, _)) = self.gone.pop_first() {
                self.floor = self.floor.max(version);
            }
        }
    }

    /// What somebody who knows this owner up to there lacks, in parts that fit a packet each.
    fn deltas(&self, id: NodeId, known: Option<(u64, u64)>) -> Vec<Delta> {
        let from = known.filter(|(epoch, version)| *epoch == self.epoch && *version >= self.floor).map_or(0, |(_, version)| version);
        let mut items: Vec<Item> = Vec::new();
        items.extend(self.api.map(|(version, reachable)| Item { version, what: What::Api(reachable) }));
        items.extend(self.complete.map(|(version, complete)| Item { version, what: What::Complete(complete) }));
        items.extend(self.endpoints.iter().map(|(uid, e)| {
            let what = What::Endpoint { uid: uid.clone(), address: e.address, ready: e.ready, serving: e.serving };
            Item { version: e.version, what }
        }));
        if from > 0 {
            items.extend(self.gone.iter().map(|(version, uid)| Item { version: *version, what: What::Gone { uid: uid.clone() } }));
        }
        items.retain(|item| item.version > from);
        items.sort_by_key(|item| item.version);
        let mut parts = Vec::new();
        let mut part = Delta { owner: id, epoch: self.epoch, from, upto: from, last: false, items: Vec::new() };
        let mut bytes = 0;
        for item in items {
            let size = 24 + item.bytes();
            if bytes + size > limits::DELTA_BYTES_MAX {
                let next = Delta { owner: id, epoch: self.epoch, from: part.upto, upto: part.upto, last: false, items: Vec::new() };
                parts.push(std::mem::replace(&mut part, next));
                bytes = 0;
            }
            bytes += size;
            part.upto = item.version;
            part.items.push(item);
        }
        part.upto = self.version;
        part.last = true;
        parts.push(part);
        parts
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Api(_) | What::Complete(_) => 1,
            What::Endpoint { uid, .. } => uid.len() + 7,
            What::Gone { uid } => uid.len(),
        }
    }
}

fn check(delta: &Delta) -> Result<(), Error> {
    if delta.items.len() > limits::RECORDS_PER_NODE_MAX + FLAGS {
        return Err(Error::TooMany);
    }
    let mut last = delta.from;
    for item in &delta.items {
        if item.version <= last || item.version > delta.upto {
            return Err(Error::Order);
        }
        last = item.version;
        match &item.what {
            What::Api(_) | What::Complete(_) => {}
            What::Endpoint { uid, address, .. } => {
                check_uid(uid)?;
                check_address(*address)?;
            }
            What::Gone { uid } => check_uid(uid)?,
        }
    }
    Ok(())
}

fn check_uid(uid: &str) -> Result<(), Error> {
    let fits = !uid.is_empty() && uid.len() <= limits::UID_BYTES_MAX && uid.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(()) } else { Err(Error::Uid) }
}

fn check_address(address: Ipv4Addr) -> Result<(), Error> {
    let unusable = address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast() || address.is_link_local();
    if unusable { Err(Error::Address(address)) } else { Ok(()) }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
