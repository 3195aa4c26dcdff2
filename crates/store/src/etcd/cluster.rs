//! Administration of etcd's members: who they are, how they are, and the changes to them that keep a majority alive.
//!
//! What must stay true: [`remove`] never leaves fewer living voters than a majority needs; a joining member becomes a voter only once it
//! has caught up.

use super::{Etcd, Fault, Member as Connection, Shared, fault::UNHEALTHY, limits::DEFRAGMENT_S, limits::SILENT_MEMBER_MS, members::Failure, within};
use crate::Revision;
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, MemberAddOptions};
use futures::FutureExt;
use std::time::Duration;
use tokio::time::Instant;

/// The pause between attempts at a change that etcd does not allow yet, in milliseconds.
const CHANGE_EVERY_MS: u64 = 500;

/// How long a change of the membership waits for etcd to call itself healthy, which it does 5 s after the last disturbance, in seconds.
const HEALTHY_WAIT_S: u64 = 20;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("etcd has no member {0}; `regent etcd members` lists them")]
    NoSuchMember(String),
    #[error("{0}")]
    CostsQuorum(String),
    #[error("the member {0} has not caught up with the leader yet; try again shortly")]
    NotCaughtUp(String),
    #[error("etcd refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] crate::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// One member, as all members know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Empty until it has started for the first time.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    /// Receives everything, but has no vote.
    pub learner: bool,
}

/// What etcd complains of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The database has reached its quota.
    NoSpace,
    /// The members' data differ.
    Corrupt,
}

/// How one member is.
#[derive(Clone, Debug)]
pub struct Status {
    pub member: Member,
    /// What it says of itself; why it could not be asked otherwise.
    pub health: std::result::Result<Health, String>,
}

/// What a living member says of itself.
#[derive(Clone, Debug)]
pub struct Health {
    pub version: String,
    pub leader: bool,
    /// The leader that it follows; 0: none.
    pub leader_id: u64,
    pub raft_term: u64,
    pub raft_index: u64,
    pub raft_applied_index: u64,
    pub revision: Revision,
    pub database_bytes: u64,
    /// What [`defragment`] would leave.
    pub database_used_bytes: u64,
    pub alarms: Vec<Alarm>,
}

/// All members.
pub async fn list(etcd: &Etcd) -> Result<Vec<Member>> {
    let ask = |connection: &Connection, _| {
        let mut client = connection.plain();
        async move { Ok(client.member_list().await?) }.boxed()
    };
    let answer = etcd.shared.members.read(ask).await.map_err(|fault| refused(&etcd.shared, fault))?;
    Ok(answer.members().iter().map(member).collect())
}

/// How each member is; all are asked at the same time, and none for longer than [`SILENT_MEMBER_MS`].
pub async fn status(etcd: &Etcd) -> Result<Vec<Status>> {
    let members = list(etcd).await?;
    Ok(futures::future::join_all(members.into_iter().map(|member| status_of(etcd, member))).await)
}

async fn status_of(etcd: &Etcd, member: Member) -> Status {
    let health = async {
        let connection = dial(etcd, &member).map_err(|error| error.to_string())?;
        let mut client = connection.plain();
        let ask = async {
            let status = client.status().await?;
            let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
            Ok((status, alarms))
        };
        let (status, alarms) = within(SILENT_MEMBER_MS, &connection.url, ask).await.map_err(|error| error.to_string())?;
        let own = alarms.alarms().iter().filter(|alarm| alarm.member_id() == member.id);
        Ok(Health {
            version: status.version().into(),
            leader: status.leader() == member.id,
            leader_id: status.leader(),
            raft_term: status.raft_term(),
            raft_index: status.raft_index(),
            raft_applied_index: status.raft_applied_index(),
            revision: status.header().map_or(Revision(0), |header| super::revision(header.revision())),
            database_bytes: u64::try_from(status.db_size()).unwrap_or(0),
            database_used_bytes: u64::try_from(status.raft_used_db_size()).unwrap_or(0),
            alarms: own.filter_map(|alarm| kind(alarm.alarm())).collect(),
        })
    };
    let health = health.await;
    Status { member, health }
}

/// Adds a member without a vote, to be reached by the others at `peer_urls`; then start it with `--initial-cluster-state existing`.
/// One that is there already is returned as it is.
pub async fn add_learner(etcd: &Etcd, peer_urls: &[String]) -> Result<Member> {
    once_healthy(async || try_add_learner(etcd, peer_urls).await).await
}

async fn try_add_learner(etcd: &Etcd, peer_urls: &[String]) -> Result<Member> {
    let present = async || -> Result<Option<Member>> {
        Ok(list(etcd).await?.into_iter().find(|member| member.peer_urls.iter().any(|url| peer_urls.contains(url))))
    };
    if let Some(member) = present().await? {
        return Ok(member);
    }
    let ask = |connection: &Connection, _| {
        let (mut client, urls) = (connection.plain(), peer_urls.to_vec());
        async move { Ok(client.member_add(urls, Some(MemberAddOptions::new().with_is_learner())).await?) }.boxed()
    };
    match etcd.shared.members.race(ask, |answer, _| Some(answer)).await {
        Ok(answer) => answer.member().map(member).ok_or_else(|| Error::Refused("the answer names no member".into())),
        // The answer to an attempt may have been lost.
        Err(Failure { fault, uncertain }) => match if uncertain { present().await? } else { None } {
            Some(member) => Ok(member),
            None => Err(refused(&etcd.shared, fault)),
        },
    }
}

/// Gives a learner its vote. Fails with [`Error::NotCaughtUp`] while it lags.
pub async fn promote(etcd: &Etcd, id: u64) -> Result<()> {
    let member = find(etcd, id).await?;
    if !member.learner {
        return Ok(());
    }
    let ask = |connection: &Connection, _| {
        let mut client = connection.plain();
        async move { Ok(client.member_promote(id).await?) }.boxed()
    };
    match etcd.shared.members.race(ask, |answer, _| Some(answer)).await {
        Ok(_) => Ok(()),
        Err(Failure { fault: Fault::Refused(why), .. }) if why.contains("in sync") => Err(Error::NotCaughtUp(named(&member))),
        Err(Failure { fault, uncertain }) => {
            if uncertain && !find(etcd, id).await?.learner {
                return Ok(());
            }
            Err(refused(&etcd.shared, fault))
        }
    }
}

/// Waits until a learner has caught up, and gives it its vote.
pub async fn promote_when_ready(etcd: &Etcd, id: u64, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match promote(etcd, id).await {
            Err(Error::NotCaughtUp(_) | Error::Store(crate::Error::Unavailable(_))) if Instant::now() < deadline => {}
            other => return other,
        }
        tokio::time::sleep(Duration::from_millis(CHANGE_EVERY_MS)).await;
    }
}

/// Removes a member, unless that would cost quorum. Its data directory is of no use afterwards.
pub async fn remove(etcd: &Etcd, id: u64) -> Result<()> {
    let voters: Vec<Voter> = status(etcd).await?.into_iter().map(Voter::of).collect();
    may_remove(&voters, id)?;
    once_healthy(async || try_remove(etcd, id).await).await
}

async fn try_remove(etcd: &Etcd, id: u64) -> Result<()> {
    let ask = |connection: &Connection, _| {
        let mut client = connection.plain();
        async move { Ok(client.member_remove(id).await?) }.boxed()
    };
    match etcd.shared.members.race(ask, |answer, _| Some(answer)).await {
        Ok(_) => Ok(()),
        Err(Failure { fault, uncertain }) => {
            if uncertain && !list(etcd).await?.iter().any(|member| member.id == id) {
                return Ok(());
            }
            Err(refused(&etcd.shared, fault))
        }
    }
}

/// Hands leadership to another voter, before the leader is stopped.
pub async fn move_leader(etcd: &Etcd, to: u64) -> Result<()> {
    find(etcd, to).await?;
    let all = status(etcd).await?;
    let leader = all.iter().find(|status| status.health.as_ref().is_ok_and(|health| health.leader));
    let leader = leader.ok_or_else(|| Error::Refused("no member leads".into()))?;
    if leader.member.id == to {
        return Ok(());
    }
    let connection = dial(etcd, &leader.member)?;
    let mut client = connection.plain();
    within(super::limits::CALL_MS, &connection.url, client.move_leader(to)).await?;
    Ok(())
}

/// Lets a member give back the space that compaction has freed. It answers nothing meanwhile.
pub async fn defragment(etcd: &Etcd, id: u64) -> Result<()> {
    let connection = dial(etcd, &find(etcd, id).await?)?;
    let mut client = connection.plain();
    within(DEFRAGMENT_S * 1000, &connection.url, client.defragment()).await?;
    Ok(())
}

/// The same for all members, one after another, the leader last.
pub async fn defragment_all(etcd: &Etcd) -> Result<()> {
    let mut all = status(etcd).await?;
    all.sort_by_key(|status| status.health.as_ref().is_ok_and(|health| health.leader));
    for status in all {
        defragment(etcd, status.member.id).await?;
    }
    Ok(())
}

/// Takes back all alarms; etcd raises them again if their cause is still there. Returns how many there were.
pub async fn disarm(etcd: &Etcd) -> Result<usize> {
    let ask = |connection: &Connection, _| {
        let mut client = connection.plain();
        async move {
            let raised = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
            for alarm in raised.alarms() {
                let mut options = AlarmOptions::new();
                options.with_member(alarm.member_id());
                client.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options)).await?;
            }
            Ok(raised.alarms().len())
        }
        .boxed()
    };
    let count = etcd.shared.members.read(ask).await.map_err(|fault| refused(&etcd.shared, fault))?;
    *etcd.shared.trouble.lock() = None;
    Ok(count)
}

/// Tries a change again while etcd has not been healthy for long enough to allow it.
async fn once_healthy<T>(change: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(HEALTHY_WAIT_S);
    loop {
        match change().await {
            Err(Error::Refused(why)) if why.contains(UNHEALTHY) && Instant::now() < deadline => {}
            other => return other,
        }
        tokio::time::sleep(Duration::from_millis(CHANGE_EVERY_MS)).await;
    }
}

async fn find(etcd: &Etcd, id: u64) -> Result<Member> {
    list(etcd).await?.into_iter().find(|member| member.id == id).ok_or_else(|| Error::NoSuchMember(format!("{id:x}")))
}

fn dial(etcd: &Etcd, member: &Member) -> Result<Connection> {
    let url = member.client_urls.first().ok_or_else(|| Error::Refused(format!("the member {} has not started yet", named(member))))?;
    Ok(Connection::dial(url, &etcd.shared.members.config())?)
}

fn refused(shared: &Shared, fault: Fault) -> Error {
    match fault {
        Fault::Refused(why) => Error::Refused(why),
        fault => Error::Store(shared.error(fault, Revision(0))),
    }
}

fn member(member: &etcd_client::Member) -> Member {
    Member {
        id: member.id(),
        name: member.name().into(),
        peer_urls: member.peer_urls().to_vec(),
        client_urls: member.client_urls().to_vec(),
        learner: member.is_learner(),
    }
}

fn named(member: &Member) -> String {
    if member.name.is_empty() { format!("{:x}", member.id) } else { member.name.clone() }
}

fn kind(alarm: AlarmType) -> Option<Alarm> {
    match alarm {
        AlarmType::Nospace => Some(Alarm::NoSpace),
        AlarmType::Corrupt => Some(Alarm::Corrupt),
        AlarmType::None => None,
    }
}

/// What the rule of removal looks at.
#[derive(Clone, Debug)]
struct Voter {
    id: u64,
    name: String,
    learner: bool,
    alive: bool,
}

impl Voter {
    fn of(status: Status) -> Voter {
        // A member without a leader counts as dead: it does not reach the others.
        let alive = status.health.as_ref().is_ok_and(|health| health.leader_id != 0);
        Voter { id: status.member.id, name: named(&status.member), learner: status.member.learner, alive }
    }
}

/// Whether a member may go: the voters that remain must have a living majority.
fn may_remove(members: &[Voter], id: u64) -> Result<()> {
    let target = members.iter().find(|member| member.id == id).ok_or_else(|| Error::NoSuchMember(format!("{id:x}")))?;
    if target.learner {
        return Ok(());
    }
    let rest: Vec<&Voter> = members.iter().filter(|member| !member.learner && member.id != id).collect();
    let living = rest.iter().filter(|member| member.alive).count();
    let needed = rest.len() / 2 + 1;
    if rest.is_empty() {
        return Err(Error::CostsQuorum(format!("{} is the only voting member; without it there is no store", target.name)));
    }
    if living < needed {
        let dead: Vec<&str> = rest.iter().filter(|member| !member.alive).map(|member| member.name.as_str()).collect();
        return Err(Error::CostsQuorum(format!(
            "removing {} would leave {} voting members, of which {living} live and {needed} are needed; start or remove {} first",
            target.name,
            rest.len(),
            dead.join(", ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` lives, `-` is dead, `l` is a learner; the first has the number 1.
    fn members(text: &str) -> Vec<Voter> {
        let voter = |(i, c)| Voter { id: i as u64 + 1, name: format!("server-{}", i + 1), learner: c == 'l', alive: c != '-' };
        text.chars().enumerate().map(voter).collect()
    }

    #[test]
    fn a_member_goes_only_if_a_living_majority_stays() {
        for (text, id, allowed) in [
            ("+++", 1, true),
            ("++-", 3, true),
            ("++-", 1, false),
            ("+--", 2, false),
            ("++", 1, true),
            ("+-", 2, true),
            ("+-", 1, false),
            ("+", 1, false),
            ("+l", 1, false),
            ("+l", 2, true),
            ("++-l", 4, true),
            ("++-l", 2, false),
            ("+++--", 4, true),
            ("+++--", 1, false),
        ] {
            assert_eq!(may_remove(&members(text), id).is_ok(), allowed, "{text} without {id}");
        }
        assert!(matches!(may_remove(&members("+++"), 9), Err(Error::NoSuchMember(_))));
    }

    #[test]
    fn the_refusal_says_what_to_do() {
        let text = may_remove(&members("++-"), 1).unwrap_err().to_string();
        assert_eq!(text, "removing server-1 would leave 2 voting members, of which 1 live and 2 are needed; start or remove server-3 first");
    }
}
