//! What a node believes: how every member stands, and every owner's word about its endpoints. And what follows for an
//! endpoint of which the API has said something ([`View::refine`]). Plain values and pure functions.
//!
//! What must stay true: a view never calls anybody dead on a minority's word; readiness is only ever taken from the owner; its
//! word counts more than the API's copy of it, which is older, so that nothing changes when the API comes back with what it knew
//! before; where the owner is not heard, the API's word stands and is only sharpened (an endpoint can leave earlier, not come
//! back); an endpoint that its owner does not name is no more, whatever is remembered of what the API said.

use crate::records::Endpoints;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

/// How this node finds a peer, before anybody is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Not heard of yet.
    Unknown,
    /// It answers, or others say so.
    Alive,
    /// It does not answer; others are being asked.
    Suspect,
    /// Its host answers that nobody listens.
    AgentDown,
    /// It answers nobody that this node can ask.
    Down,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// It answers.
    Alive,
    /// It may be dead, or on the other side of a partition.
    Suspect,
    /// Its host is alive; its agent is not running. Its pods go on.
    AgentDown,
    /// Dead, as the majority sees it.
    Dead,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// See there.
    pub health: Health,
    /// Whether it, or its host, can be reached from this node, by whatever way.
    pub reachable: bool,
    /// Whether nothing passes between it and this node, although others reach it, or the API says nothing of it: that of a node that
    /// went out of reach while there was no API is not worth anything before the API has had time to find it out.
    #[serde(default)]
    pub cut: bool,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it says that it reaches the API.
    pub api_reachable: bool,
    /// Since when its health is so, milliseconds of Unix time.
    pub since_unix_ms: u64,
}

/// What one node believes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Which node.
    pub me: String,
    /// Whether it is on the side of the majority.
    pub majority: bool,
    /// All members, this node too, by name.
    pub nodes: BTreeMap<String, Member>,
    /// The endpoints that each node says it has, by UID.
    pub endpoints: BTreeMap<String, Endpoints>,
    /// The nodes that have named every endpoint that they have.
    #[serde(default)]
    pub complete: BTreeSet<String>,
    /// The process that made it has been silent for a while: nobody can be vouched for any more.
    #[serde(default)]
    pub stale: bool,
}

/// What the API says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whether it wants new connections.
    pub ready: bool,
    /// Whether it can serve.
    pub serving: bool,
    /// Whether it is ending.
    pub terminating: bool,
    /// Where it is.
    pub address: Ipv4Addr,
    /// Whether the API only repeats what the owner has told it.
    pub copied: bool,
}

/// What is so, as far as this node can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refined {
    /// As in [`Said`].
    pub ready: bool,
    /// As in [`Said`].
    pub serving: bool,
    /// As in [`Said`].
    pub address: Ipv4Addr,
    /// Why it may be of no use. Of those that could be used, the ones with the least doubt MUST be: doubt alone empties no Service.
    pub doubt: Doubt,
}

/// Why an endpoint may be of no use, the slightest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// None.
    #[default]
    None,
    /// Its node is dead or out of reach.
    Lost,
    /// Its owner, who is silent now, said last that it is ready, and the API says that it is not.
    Disputed,
    /// Its node does not name it: not yet, or not any more.
    Unnamed,
}

impl View {
    /// Whether a node's endpoints are of no use from here: it is dead, or nothing passes between it and this node any more, or it
    /// is out of reach and no API can say better. While the API can, a minority's view (somebody may have closed the port) does
    /// not outweigh its word.
    pub fn lost(&self, node: &str) -> bool {
        let lost = |member: &Member| member.cut || !member.reachable && (member.health == Health::Dead || !self.api_reachable());
        self.nodes.get(node).is_some_and(lost)
    }

    /// Whether everybody else has been heard: nobody is unknown or suspected, and who is alive has named all its endpoints.
    pub fn is_settled(&self) -> bool {
        let others = || self.nodes.iter().filter(|(node, _)| **node != self.me);
        let is_heard = |(node, member): (&String, &Member)| match member.health {
            Health::Alive => self.complete.contains(node),
            Health::Suspect => false,
            Health::AgentDown | Health::Dead => true,
        };
        others().count() > 0 && others().all(is_heard)
    }

    /// Whether this node reaches the API. True while nothing is known.
    pub fn api_reachable(&self) -> bool {
        self.nodes.get(&self.me).is_none_or(|member| member.api_reachable)
    }

    /// Whether more than half of the members that are alive say that they cannot reach the API: then it is the servers
    /// that are gone.
    pub fn api_is_gone(&self) -> bool {
        let alive = || self.nodes.values().filter(|member| member.health == Health::Alive);
        !self.stale && 2 * alive().filter(|member| !member.api_reachable).count() > alive().count()
    }

    /// Whether the peers vouch for a node that the API has not heard from: it is alive, and says that it cannot reach the API.
    pub fn vouched(&self, node: &str) -> bool {
        !self.stale && self.nodes.get(node).is_some_and(|member| member.health == Health::Alive && !member.api_reachable)
    }

    /// Whether a node is dead, as the majority sees it now.
    pub fn dead(&self, node: &str) -> bool {
        !self.stale && self.nodes.get(node).is_some_and(|member| member.health == Health::Dead)
    }

    /// Whether what a node says of its endpoints comes here as soon as it is said, by whatever way. A suspicion changes nothing.
    fn hears(&self, node: &str) -> bool {
        let heard = |member: &Member| member.health == Health::Alive || (member.health == Health::Suspect && member.reachable);
        !self.stale && self.nodes.get(node).is_some_and(heard)
    }

    /// What is so of an endpoint of this pod on this node.
    pub fn refine(&self, node: Option<&str>, pod: Option<&str>, said: Said) -> Refined {
        let mut refined = Refined { ready: said.ready, serving: said.serving, address: said.address, doubt: Doubt::None };
        let Some(node) = node else { return refined };
        if self.lost(node) {
            refined.doubt = Doubt::Lost;
        }
        let (Some(pod), Some(words)) = (pod, self.endpoints.get(node)) else { return refined };
        let Some(record) = words.get(pod) else {
            // What the API once said of a pod that its node no longer names is not so any more. Of a new pod of somebody else the API
            // may know first.
            let may_be_new = self.api_reachable() && node != self.me;
            if !self.complete.contains(node) {
                return refined;
            }
            if !may_be_new {
                (refined.ready, refined.serving) = (false, false);
            } else if refined.doubt == Doubt::Lost || self.hears(node) {
                refined.doubt = Doubt::Unnamed;
            }
            return refined;
        };
        if !self.api_reachable() || (said.copied && self.hears(node)) {
            refined.ready = record.ready && !said.terminating;
            refined.serving = record.serving;
            refined.address = record.address;
        } else {
            let is_disputed = record.ready && !said.ready && !said.terminating && said.copied && !self.dead(node);
            refined.ready = record.ready && (said.ready || is_disputed);
            refined.serving = record.serving && (said.serving || is_disputed);
            if is_disputed {
                refined.doubt = Doubt::Disputed;
            }
        }
        refined
    }

    /// The nodes of whose endpoints this view says something else than that one.
    pub fn changed_nodes(&self, before: &View) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        let api_changed = self.api_reachable() != before.api_reachable();
        for node in self.nodes.keys().chain(before.nodes.keys()).chain(self.endpoints.keys()).chain(before.endpoints.keys()) {
            let words =
                |view: &View| view.endpoints.get(node).map(|all| all.iter().map(|(uid, e)| (uid.clone(), e.address, e.ready, e.serving)).collect());
            let same_words = || {
                let (new, old): (Option<Vec<_>>, Option<Vec<_>>) = (words(self), words(before));
                new.unwrap_or_default() == old.unwrap_or_default()
            };
            let has_words = || self.endpoints.get(node).is_some_and(|all| !all.is_empty()) || self.complete.contains(node);
            let same_words = || self.complete.contains(node) == before.complete.contains(node) && same_words();
            let is_heard_as_before = || self.hears(node) == before.hears(node);
            if self.lost(node) != before.lost(node) || !same_words() || ((api_changed || !is_heard_as_before()) && has_words()) {
                changed.insert(node.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Endpoint;
    use std::sync::Arc;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
    const NEW_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);

    fn member(health: Health, reachable: bool, api_reachable: bool) -> Member {
        Member { health, reachable, cut: false, address: "172.30.0.21:7946".parse().unwrap(), api_reachable, since_unix_ms: 0 }
    }

    fn view(api_reachable: bool, record: Option<(Ipv4Addr, bool)>) -> View {
        let mut view = View { me: "me".into(), majority: true, ..View::default() };
        view.nodes.insert("me".into(), member(Health::Alive, true, api_reachable));
        view.nodes.insert("dead".into(), member(Health::Dead, false, true));
        view.nodes.insert("cut".into(), member(Health::Suspect, false, true));
        view.nodes.insert("maybe".into(), member(Health::Suspect, true, true));
        view.nodes.insert("stopped".into(), member(Health::AgentDown, true, true));
        if let Some((address, ready)) = record {
            let endpoint = Endpoint { address, ready, serving: ready, version: 1 };
            view.endpoints.insert("me".into(), Arc::new(BTreeMap::from([("pod".to_owned(), endpoint)])));
        }
        view
    }

    fn said(ready: bool, terminating: bool) -> Said {
        Said { ready, serving: true, terminating, address: IP, copied: true }
    }

    #[test]
    fn what_is_cut_off_from_here_alone_is_of_no_use_here_and_not_dead() {
        let mut view = View { me: "a".into(), ..View::default() };
        view.nodes.insert("a".into(), member(Health::Alive, true, true));
        view.nodes.insert("b".into(), Member { cut: true, ..member(Health::Alive, true, true) });
        assert!(view.lost("b") && !view.dead("b"));
    }

    #[test]
    fn only_who_is_dead_or_out_of_reach_is_lost() {
        let lost = |api_reachable: bool| {
            let view = view(api_reachable, None);
            assert_eq!(view.refine(None, None, said(true, false)).doubt, Doubt::None);
            ["me", "dead", "cut", "maybe", "stopped", "unheard-of"]
                .map(|node| view.refine(Some(node), Some("pod"), said(true, false)).doubt == Doubt::Lost)
        };
        assert_eq!(lost(false), [false, true, true, false, false, false]);
        assert_eq!(lost(true), [false, true, false, false, false, false]);
    }

    #[test]
    fn the_owners_word_replaces_the_apis_copy_of_it() {
        let refine = |api: bool, record: Option<(Ipv4Addr, bool)>, said: Said| {
            let refined = view(api, record).refine(Some("me"), Some("pod"), said);
            (refined.ready, refined.address)
        };
        let own = |said: Said| Said { copied: false, ..said };
        let unheard = |record: (Ipv4Addr, bool), said: Said| {
            let mut view = view(true, Some(record));
            view.nodes.insert("me".into(), member(Health::AgentDown, true, true));
            let refined = view.refine(Some("me"), Some("pod"), said);
            assert_eq!(refined.doubt == Doubt::Disputed, refined.ready && !said.ready);
            (refined.ready, refined.address)
        };
        // (the API is reachable, the owner's word, the API's word) -> (ready, address)
        assert_eq!(refine(true, None, said(true, false)), (true, IP));
        assert_eq!(refine(true, Some((IP, false)), said(true, false)), (false, IP));
        assert_eq!(refine(true, Some((IP, true)), said(false, false)), (true, IP));
        assert_eq!(refine(true, Some((IP, true)), said(false, true)), (false, IP));
        assert_eq!(refine(true, Some((NEW_IP, true)), said(true, false)), (true, NEW_IP));
        assert_eq!(refine(true, Some((IP, true)), own(said(false, false))), (false, IP), "somebody else has a reason of his own");
        assert_eq!(refine(true, Some((IP, false)), own(said(true, false))), (false, IP));
        assert_eq!(unheard((IP, true), own(said(false, false))), (false, IP));
        assert_eq!(unheard((IP, true), said(false, true)), (false, IP));
        assert_eq!(unheard((IP, true), said(false, false)), (true, IP), "disputed: used where nothing else is left");
        assert_eq!(unheard((IP, false), said(true, false)), (false, IP));
        assert_eq!(refine(false, None, said(true, false)), (true, IP));
        assert_eq!(refine(false, Some((IP, false)), said(true, false)), (false, IP));
        assert_eq!(refine(false, Some((IP, true)), said(false, false)), (true, IP));
        assert_eq!(refine(false, Some((NEW_IP, true)), said(true, false)), (true, NEW_IP));
        assert_eq!(refine(false, Some((IP, true)), said(false, true)), (false, IP));
    }

    #[test]
    fn a_pod_that_its_node_no_longer_names_is_no_more() {
        let refine = |api: bool, is_complete: bool, health: Health| {
            let mut view = view(api, Some((IP, true)));
            view.nodes.insert("other".into(), member(health, health != Health::Dead, true));
            view.endpoints.insert("other".into(), view.endpoints["me"].clone());
            view.complete.extend(is_complete.then(|| "other".to_owned()));
            let refine = |pod: Option<&str>| view.refine(Some("other"), pod, said(true, false));
            [refine(Some("pod")), refine(Some("another")), refine(None)]
        };
        let ready = |api, is_complete| refine(api, is_complete, Health::Alive).map(|refined| refined.ready);
        let unnamed = |api, is_complete, health| refine(api, is_complete, health).map(|refined| refined.doubt == Doubt::Unnamed);
        assert_eq!(ready(false, true), [true, false, true]);
        assert_eq!(ready(false, false), [true, true, true], "it may not have been named yet");
        assert_eq!(ready(true, true), [true, true, true], "the API knows of new ones first");
        assert_eq!(unnamed(true, true, Health::Alive), [false, true, false], "kept only where nothing else is left");
        assert_eq!(unnamed(true, true, Health::AgentDown), [false; 3], "what would be so now is not heard");
        assert_eq!(unnamed(true, false, Health::Alive), [false; 3]);
        assert_eq!(unnamed(true, true, Health::Dead), [false, true, false], "the last choice of those that are lost");
        let mut own = view(true, Some((IP, true)));
        own.complete.insert("me".into());
        assert!(!own.refine(Some("me"), Some("another"), said(true, false)).ready, "nobody knows better");
        let (mut before, mut after) = (view(false, None), view(false, None));
        before.endpoints.insert("me".into(), Arc::default());
        after.endpoints.clone_from(&before.endpoints);
        after.complete.insert("me".into());
        assert_eq!(after.changed_nodes(&before).into_iter().collect::<Vec<_>>(), ["me"]);
    }

    #[test]
    fn a_change_names_the_nodes_that_it_touches() {
        let before = view(true, Some((IP, true)));
        let nodes = |after: &View| after.changed_nodes(&before).into_iter().collect::<Vec<_>>();
        assert!(nodes(&before).is_empty());
        assert_eq!(nodes(&view(true, Some((IP, false)))), ["me"]);
        assert_eq!(nodes(&view(false, Some((IP, true)))), ["cut", "me"]);
        let mut back = before.clone();
        back.nodes.insert("dead".into(), member(Health::Alive, true, true));
        assert_eq!(nodes(&back), ["dead"]);
        let mut version = before.clone();
        version
            .endpoints
            .insert("me".into(), Arc::new(BTreeMap::from([("pod".to_owned(), Endpoint { address: IP, ready: true, serving: true, version: 9 })])));
        assert!(nodes(&version).is_empty());
    }

    #[test]
    fn it_is_settled_when_all_who_are_alive_have_named_their_endpoints() {
        let mut view = View { me: "a".into(), ..View::default() };
        view.nodes.insert("a".into(), member(Health::Alive, true, true));
        assert!(!view.is_settled(), "nobody else is known yet");
        view.nodes.insert("b".into(), member(Health::Alive, true, true));
        view.nodes.insert("c".into(), member(Health::Dead, false, true));
        assert!(!view.is_settled());
        view.complete.insert("b".into());
        assert!(view.is_settled());
        view.nodes.insert("d".into(), member(Health::Suspect, true, true));
        assert!(!view.is_settled());
    }

    #[test]
    fn when_most_cannot_reach_the_api_it_is_gone() {
        let mut view = View { me: "a".into(), ..View::default() };
        for (name, api) in [("a", true), ("b", false), ("c", false)] {
            view.nodes.insert(name.into(), member(Health::Alive, true, api));
        }
        assert!(view.api_is_gone() && view.vouched("b") && !view.vouched("a"));
        view.nodes.insert("d".into(), member(Health::Alive, true, true));
        assert!(!view.api_is_gone());
        view.nodes.insert("e".into(), member(Health::Dead, false, false));
        assert!(!view.api_is_gone() && !view.vouched("e"));
    }
}
