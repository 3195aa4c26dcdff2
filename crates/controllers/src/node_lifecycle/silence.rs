//! Whether a node that has not been heard of is to be called silent. Pure.
//!
//! | its peers see it | it says that it reaches the API | it counts as silent |
//! |---|---|---|
//! | not at all, or there is no membership | | after the grace period |
//! | dead | | at once |
//! | its agent ended, its host alive | | after the grace period |
//! | alive | no | never: they vouch for it |
//! | alive, and cut off from this very node | yes | not within [`CUT_EXCUSES`] of the cut; then as below |
//! | alive, or only suspected | yes | after the grace period and a second look |
//!
//! The word that it cannot reach the API is a node's own, and may come late where the machine is busy. Two things keep a cut from
//! being taken for silence before it has come: what is lost between this node and that one is seen here, by the membership, within
//! a second or two; and before a living node is marked it is looked at once more, one period later. That is as late as whoever looks
//! once in a period may be anyhow, so a living agent that has stopped to renew its lease is marked as early as it ever was.

use std::time::Duration;

use jiff::Timestamp;
use membership::view::Member;
use membership::{Health, View};

use super::memory::Memory;

/// A node that has given a sign of life to the API within this is not dead, whatever its peers have not heard yet.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_millis(1_500);
/// For so long a cut between this node and another excuses the other's silence: within this its lease is due (10 s), it has noticed
/// that nobody answers, and has told its peers.
pub(super) const CUT_EXCUSES: Duration = Duration::from_secs(15);

/// What the peers say for the silent ones.
pub(super) fn heed(view: &View, memory: &mut Memory, now: Timestamp) {
    if view.api_is_gone() {
        memory.restart(now);
    }
    for (name, member) in &view.nodes {
        let is_cut = !view.stale && member.cut && member.health == Health::Alive;
        let cut_for = memory.cut_for(name, is_cut, now);
        if view.vouched(name) || cut_for.is_some_and(|lasts| lasts < CUT_EXCUSES) {
            memory.vouched(name, now);
        }
    }
}

/// Whether a node of which nothing has been heard for so long counts as silent. `grace`: how long any node may be; `period`: how
/// often it is looked; `member`: what its peers say.
pub(super) fn is_silent(silence: Duration, grace: Duration, period: Duration, member: Option<&Member>) -> bool {
    match member.map(|member| member.health) {
        Some(Health::Dead) => silence >= SIGN_OF_LIFE || silence > grace,
        Some(Health::Alive | Health::Suspect) => silence > grace + period,
        Some(Health::AgentDown) | None => silence > grace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{AgentDown, Alive, Dead, Suspect};

    #[test]
    fn a_living_node_is_looked_at_once_more_and_a_dead_one_at_once() {
        let is_silent = |seconds: f64, health: Option<Health>| {
            let address = "172.30.0.21:7946".parse().expect("an address");
            let member = health.map(|health| Member { health, reachable: true, cut: false, address, api_reachable: true, since_unix_ms: 0 });
            super::is_silent(Duration::from_secs_f64(seconds), Duration::from_secs(50), Duration::from_secs(5), member.as_ref())
        };
        for (health, from_s) in [(None, 50.0), (Some(Dead), 1.4), (Some(AgentDown), 50.0), (Some(Alive), 55.0), (Some(Suspect), 55.0)] {
            assert!(!is_silent(from_s, health) && is_silent(from_s + 0.2, health), "{health:?}");
        }
    }
}
