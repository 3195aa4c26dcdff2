//! Since when each node has been silent, as far as this process could tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

use super::conditions;
use crate::common::owner::{name_of, uid_of};

/// A look that comes later than this many periods after the last was not a look: the process did not run.
const PERIODS_LATE_MAX: i32 = 2;

#[derive(Clone, Debug)]
struct Seen {
    uid: String,
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
    /// When it last gave a sign of life, moved on by all time in which none could be heard.
    at: Timestamp,
    pods_marked: bool,
    /// Since when this very node is cut off from it.
    cut: Option<Timestamp>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    nodes: BTreeMap<String, Seen>,
    last_look: Option<Timestamp>,
}

/// Nodes that came and went.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) arrived: Vec<Arc<Node>>,
    pub(super) left: Vec<String>,
}

impl Memory {
    /// Takes in the signs of life. `heard`: whether the API answers this process now.
    pub(super) fn observe(
        &mut self,
        nodes: &[Arc<Node>],
        renewed: impl Fn(&str) -> Option<Timestamp>,
        now: Timestamp,
        heard: bool,
        period: Duration,
    ) -> Changes {
        let period = SignedDuration::try_from(period).unwrap_or(SignedDuration::ZERO);
        let past = self.last_look.map_or(SignedDuration::ZERO, |last| now.duration_since(last));
        self.last_look = Some(now);
        let deaf = if !heard { past } else { (past - period * PERIODS_LATE_MAX).max(SignedDuration::ZERO) };
        let mut changes = Changes::default();
        for node in nodes {
            let name = name_of(&**node).to_owned();
            let renewed = renewed(&name);
            let ready = conditions(node).iter().find(|condition| condition.type_ == "Ready");
            let heartbeat = ready.and_then(|condition| condition.last_heartbeat_time.as_ref()).map(|time| time.0);
            let uid = uid_of(&**node).to_owned();
            let fresh = Seen { uid, renewed, heartbeat, at: now, pods_marked: false, cut: None };
            match self.nodes.get_mut(&name).filter(|seen| seen.uid == fresh.uid) {
                None => {
                    changes.arrived.push(node.clone());
                    self.nodes.insert(name, fresh);
                }
                Some(seen) => {
                    seen.at = seen.at.checked_add(deaf).unwrap_or(now).min(now);
                    // Any new time is a sign of life: a clock that was set back shows an earlier one.
                    let has_renewed = fresh.renewed.is_some() && fresh.renewed != seen.renewed;
                    if has_renewed || fresh.heartbeat != seen.heartbeat {
                        *seen = Seen { pods_marked: seen.pods_marked, cut: seen.cut, ..fresh };
                    }
                }
            }
        }
        let here: BTreeSet<&str> = nodes.iter().map(|node| name_of(&**node)).collect();
        self.nodes.retain(|name, _| {
            let stays = here.contains(name.as_str());
            if !stays {
                changes.left.push(name.clone());
            }
            stays
        });
        changes
    }

    /// For how long the node has been silent.
    pub(super) fn silence(&self, node: &str, now: Timestamp) -> Duration {
        let since = self.nodes.get(node).map_or(now, |seen| seen.at);
        Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
    }

    /// Every node gets its full time again.
    pub(super) fn restart(&mut self, now: Timestamp) {
        for seen in self.nodes.values_mut() {
            seen.at = now;
        }
    }

    /// The node's peers vouch for it.
    pub(super) fn vouched(&mut self, node: &str, now: Timestamp) {
        if let Some(seen) = self.nodes.get_mut(node) {
            seen.at = seen.at.max(now);
        }
    }

    /// Takes in whether this very node is cut off from that one now, and says for how long.
    pub(super) fn cut_for(&mut self, node: &str, is_cut: bool, now: Timestamp) -> Option<Duration> {
        let seen = self.nodes.get_mut(node)?;
        seen.cut = is_cut.then(|| seen.cut.unwrap_or(now));
        Duration::try_from(now.duration_since(seen.cut?)).ok()
    }

    /// Whether the node's pods have been marked since it was last ready.
    pub(super) fn pods_marked(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|seen| seen.pods_marked)
    }

    pub(super) fn set_pods_marked(&mut self, node: &str) {
        if let Some(seen) = self.nodes.get_mut(node) {
            seen.pods_marked = true;
        }
    }

    pub(super) fn clear_pods_marked(&mut self, node: &str) {
        if let Some(seen) = self.nodes.get_mut(node) {
            seen.pods_marked = false;
        }
    }
}
