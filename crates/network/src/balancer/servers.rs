//! The pure core: which servers there are, how they are, and which one the next connection goes to.
//!
//! Time, chance and the outcome of checks come in; choices and [`Action`]s go out. What must stay true: a list that is
//! learned empty changes nothing; a server that looks dead is the last choice, never no choice; connections are cut only
//! where another server lives that can take them; a server that has come back gets its share slowly.

use super::Server;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Servers that are known at most; what is learned beyond is left out.
pub const SERVERS_MAX: usize = 64;
/// A server that answers TCP, but nothing more, for so long hangs: its connections are given up.
pub const HANGS_AFTER: Duration = Duration::from_secs(3);
/// How long a server that the cluster no longer names is asked on.
pub const FORMER_KEPT: Duration = Duration::from_secs(3_600);
/// A server that has come back is given its share over this time.
pub const SLOW_START: Duration = Duration::from_secs(10);
/// A connection counts as quiet, and can be moved, after this time without a byte.
pub const QUIET_AFTER: Duration = Duration::from_secs(5);
/// How much busier than the least busy one a server must be for a connection to move.
const EXCESS: usize = 2;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It serves.
    Ready,
    /// It answers, and says that it does not serve now.
    Unready,
    /// Its machine takes connections, but it has not answered in time.
    Slow,
    /// Nobody is there: refused, or silence.
    Gone,
}

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Ready,
    /// Not checked yet.
    Unknown,
    Unready,
    Slow,
    Dead,
}

/// Whence a server is known; the better source first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The cluster names it.
    Learned,
    /// The cluster named it when this node last heard of it.
    Kept,
    /// A flag names it.
    Seed,
    /// The cluster named it once. It is asked on for a while: it may be the one that returns when all others have gone.
    Former,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Cut every connection to this server, so that its clients come again.
    Cut(Server),
    /// The health of a server has changed.
    Changed(Server, Health),
}

#[derive(Clone, Debug)]
struct Entry {
    source: Source,
    /// A flag names it: it is never forgotten.
    is_seed: bool,
    /// Since when the cluster no longer names it.
    former_since: Option<Instant>,
    health: Health,
    /// Since when the health is this one.
    since: Instant,
    /// Set when it has come back from the dead.
    returned: Option<Instant>,
    connections: usize,
}

/// All servers.
#[derive(Debug)]
pub struct Servers {
    entries: BTreeMap<Server, Entry>,
    /// A server on this very machine is preferred.
    local: Option<std::net::IpAddr>,
    has_learned: bool,
}

impl Servers {
    /// Starts with what the flags and the file name.
    pub fn new(seeds: &[Server], kept: &[Server], local: Option<std::net::IpAddr>, now: Instant) -> Servers {
        let mut servers = Servers { entries: BTreeMap::new(), local, has_learned: false };
        for seed in seeds {
            servers.add(seed.clone(), Source::Seed, now);
        }
        for server in kept {
            servers.add(server.clone(), Source::Kept, now);
        }
        servers
    }

    fn add(&mut self, server: Server, source: Source, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&server) {
            entry.source = entry.source.min(source);
            entry.is_seed |= source == Source::Seed;
        } else if self.entries.len() < SERVERS_MAX {
            let is_seed = source == Source::Seed;
            let entry = Entry { source, is_seed, former_since: None, health: Health::Unknown, since: now, returned: None, connections: 0 };
            self.entries.insert(server, entry);
        }
    }

    /// The cluster names its servers. Says whether that is news.
    pub fn learn(&mut self, named: &[Server], now: Instant) -> bool {
        if named.is_empty() {
            return false;
        }
        let before = self.learned();
        let mut after = named.to_vec();
        after.sort();
        after.dedup();
        if self.has_learned && before == after {
            return false;
        }
        for (server, entry) in &mut self.entries {
            if after.contains(server) {
                continue;
            }
            // Seeds stay: behind one may be a load balancer that reaches servers nobody has named here.
            entry.source = if entry.is_seed { Source::Seed } else { Source::Former };
            entry.former_since.get_or_insert(now);
        }
        for server in after {
            self.add(server.clone(), Source::Learned, now);
            if let Some(entry) = self.entries.get_mut(&server) {
                (entry.source, entry.former_since) = (Source::Learned, None);
            }
        }
        self.has_learned = true;
        self.forget(now);
        true
    }

    /// Former servers go when their time is over and nobody is connected to them.
    fn forget(&mut self, now: Instant) {
        let over = |entry: &Entry| entry.former_since.is_some_and(|since| now.duration_since(since) >= FORMER_KEPT);
        self.entries.retain(|_, entry| entry.source != Source::Former || entry.connections > 0 || !over(entry));
    }

    /// What the cluster has named last, in order.
    pub fn learned(&self) -> Vec<Server> {
        self.entries.iter().filter(|(_, entry)| entry.source == Source::Learned).map(|(server, _)| server.clone()).collect()
    }

    /// All that are to be checked.
    pub fn all(&self) -> Vec<Server> {
        self.entries.keys().cloned().collect()
    }

    /// Every server with its health and its connections.
    pub fn view(&self) -> Vec<(Server, Health, usize)> {
        self.entries.iter().map(|(server, entry)| (server.clone(), entry.health, entry.connections)).collect()
    }

    /// Whether any server answers.
    pub fn any_alive(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry.health, Health::Ready | Health::Unready))
    }

    /// Takes the outcome of a check, or of an attempt to connect.
    pub fn checked(&mut self, server: &Server, verdict: Verdict, now: Instant) -> Vec<Action> {
        let others_ready = self.entries.iter().any(|(other, entry)| other != server && entry.health == Health::Ready);
        let Some(entry) = self.entries.get_mut(server) else { return Vec::new() };
        let health = match verdict {
            Verdict::Ready => Health::Ready,
            Verdict::Unready => Health::Unready,
            Verdict::Gone => Health::Dead,
            // A dead one that takes connections again has not answered yet.
            Verdict::Slow if entry.health == Health::Dead => Health::Dead,
            Verdict::Slow if entry.health == Health::Slow && now.duration_since(entry.since) >= HANGS_AFTER && others_ready => Health::Dead,
            Verdict::Slow => Health::Slow,
        };
        let mut actions = Vec::new();
        if health != entry.health {
            if health == Health::Ready && entry.health == Health::Dead {
                entry.returned = Some(now);
            }
            (entry.health, entry.since) = (health, now);
            actions.push(Action::Changed(server.clone(), health));
        }
        actions.extend(self.cuts());
        self.forget(now);
        actions
    }

    /// Connections to the dead, if somebody living can take them.
    fn cuts(&self) -> Vec<Action> {
        if !self.entries.values().any(|entry| entry.health == Health::Ready) {
            return Vec::new();
        }
        let dead = self.entries.iter().filter(|(_, entry)| entry.health == Health::Dead && entry.connections > 0);
        dead.map(|(server, _)| Action::Cut(server.clone())).collect()
    }

    /// Where the next connection goes, of those that have not been `tried`. `random` decides among equals.
    pub fn choose(&self, tried: &[Server], random: u64, now: Instant) -> Option<Server> {
        let candidates: Vec<(&Server, &Entry)> = self.entries.iter().filter(|(server, _)| !tried.contains(server)).collect();
        let rank = |entry: &Entry| (entry.health, entry.source);
        let best = candidates.iter().map(|(_, entry)| rank(entry)).min()?;
        let equals: Vec<(&Server, &Entry)> = candidates.into_iter().filter(|(_, entry)| rank(entry) == best).collect();
        if let Some((server, _)) = equals.iter().find(|(server, entry)| self.is_local(server) && entry.health == Health::Ready) {
            return Some((*server).clone());
        }
        // One that has just come back is passed over in most rounds at first, and in fewer and fewer.
        let warm = |entry: &Entry| {
            entry.returned.is_none_or(|returned| {
                let share = now.duration_since(returned).as_millis() * 100 / SLOW_START.as_millis();
                u128::from(random / 1000 % 100) < share
            })
        };
        let warmed: Vec<(&Server, &Entry)> = equals.iter().copied().filter(|(_, entry)| warm(entry)).collect();
        let field = if warmed.is_empty() { equals } else { warmed };
        let least = field.iter().map(|(_, entry)| entry.connections).min()?;
        let least_busy: Vec<&Server> = field.iter().filter(|(_, entry)| entry.connections == least).map(|(server, _)| *server).collect();
        let index = usize::try_from(random % 1000).unwrap_or(0) % least_busy.len();
        least_busy.get(index).map(|server| (*server).clone())
    }

    fn is_local(&self, server: &Server) -> bool {
        self.local.is_some() && server.ip() == self.local
    }

    /// A connection has been made.
    pub fn opened(&mut self, server: &Server) {
        if let Some(entry) = self.entries.get_mut(server) {
            entry.connections += 1;
        }
    }

    /// A connection has ended.
    pub fn closed(&mut self, server: &Server) {
        if let Some(entry) = self.entries.get_mut(server) {
            entry.connections = entry.connections.saturating_sub(1);
        }
    }

    /// The server from which one quiet connection should move, if the load is uneven. Asked now and then, it lets a server
    /// that has come back have its share of what is long-lived as well, one connection at a time.
    pub fn overloaded(&self, now: Instant) -> Option<Server> {
        let settled = |entry: &Entry| entry.returned.is_none_or(|returned| now.duration_since(returned) >= SLOW_START);
        let usable = |entry: &&Entry| entry.health == Health::Ready && entry.source == Source::Learned && settled(entry);
        let least = self.entries.values().filter(usable).map(|entry| entry.connections).min()?;
        if let Some((server, _)) = self.entries.iter().find(|(_, entry)| entry.source == Source::Former && entry.connections > 0) {
            return Some(server.clone());
        }
        // What goes to this machine's own server is where it belongs.
        let at_home = self.entries.iter().any(|(server, entry)| self.is_local(server) && usable(&entry));
        let excess = if at_home { 0 } else { least + EXCESS - 1 };
        let movable = self.entries.iter().filter(|(server, entry)| !self.is_local(server) && entry.connections > excess);
        movable.max_by_key(|(_, entry)| entry.connections).map(|(server, _)| server.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u8) -> Server {
        Server::at([10, 0, 0, number].into(), 6443)
    }

    fn three(now: Instant) -> Servers {
        let mut servers = Servers::new(&[server(1)], &[], None, now);
        assert!(servers.learn(&[server(1), server(2), server(3)], now));
        for number in 1..=3 {
            servers.checked(&server(number), Verdict::Ready, now);
        }
        servers
    }

    fn connect(servers: &mut Servers, rounds: u64, now: Instant) -> BTreeMap<Server, usize> {
        let mut counts = BTreeMap::new();
        for round in 0..rounds {
            let chosen = servers.choose(&[], round * 7_919 + 13, now).unwrap();
            servers.opened(&chosen);
            *counts.entry(chosen).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn connections_are_spread_evenly() {
        let now = Instant::now();
        let counts = connect(&mut three(now), 30, now);
        assert!(counts.values().all(|count| *count == 10), "{counts:?}");
    }

    #[test]
    fn a_dead_server_is_left_at_once_and_its_connections_are_cut() {
        let now = Instant::now();
        let mut servers = three(now);
        connect(&mut servers, 9, now);
        let actions = servers.checked(&server(2), Verdict::Gone, now);
        assert_eq!(actions, [Action::Changed(server(2), Health::Dead), Action::Cut(server(2))]);
        let counts = connect(&mut servers, 9, now);
        assert!(!counts.contains_key(&server(2)), "{counts:?}");
        // It is still a choice when nothing else is left.
        assert_eq!(servers.choose(&[server(1), server(3)], 0, now), Some(server(2)));
    }

    #[test]
    fn the_last_server_is_never_cut_and_the_dead_are_when_somebody_returns() {
        let now = Instant::now();
        let mut servers = three(now);
        connect(&mut servers, 6, now);
        servers.checked(&server(1), Verdict::Gone, now);
        servers.checked(&server(2), Verdict::Gone, now);
        assert_eq!(servers.checked(&server(3), Verdict::Gone, now), [Action::Changed(server(3), Health::Dead)]);
        assert!(!servers.any_alive());
        let actions = servers.checked(&server(1), Verdict::Ready, now);
        assert!(actions.contains(&Action::Cut(server(2))) && actions.contains(&Action::Cut(server(3))), "{actions:?}");
    }

    #[test]
    fn a_busy_server_is_avoided_and_given_up_only_when_it_hangs() {
        let now = Instant::now();
        let mut servers = three(now);
        connect(&mut servers, 3, now);
        assert_eq!(servers.checked(&server(1), Verdict::Slow, now), [Action::Changed(server(1), Health::Slow)]);
        assert!(!connect(&mut servers, 4, now).contains_key(&server(1)));
        let later = now + HANGS_AFTER;
        let actions = servers.checked(&server(1), Verdict::Slow, later);
        assert_eq!(actions, [Action::Changed(server(1), Health::Dead), Action::Cut(server(1))]);
        // Alone, it would only be slow.
        let mut alone = Servers::new(&[server(1)], &[], None, now);
        alone.checked(&server(1), Verdict::Slow, now);
        assert_eq!(alone.checked(&server(1), Verdict::Slow, later), []);
    }

    #[test]
    fn a_server_that_came_back_gets_its_share_slowly() {
        let start = Instant::now();
        let mut servers = three(start);
        servers.checked(&server(1), Verdict::Gone, start);
        connect(&mut servers, 20, start);
        servers.checked(&server(1), Verdict::Ready, start);
        let soon = |servers: &Servers, now: Instant| (0..100u64).filter(|i| servers.choose(&[], i * 1000, now) == Some(server(1))).count();
        let (first, middle, last) = (soon(&servers, start), soon(&servers, start + SLOW_START / 2), soon(&servers, start + SLOW_START));
        assert_eq!(first, 0);
        assert!((40..60).contains(&middle), "{middle}");
        assert_eq!(last, 100);
    }

    #[test]
    fn long_lived_connections_move_one_by_one_when_quiet() {
        let start = Instant::now();
        let mut servers = three(start);
        servers.checked(&server(1), Verdict::Gone, start);
        connect(&mut servers, 8, start);
        servers.checked(&server(1), Verdict::Ready, start);
        assert_eq!(servers.overloaded(start), None, "not while it starts slowly");
        let later = start + SLOW_START;
        let from = servers.overloaded(later).unwrap();
        assert_ne!(from, server(1));
        servers.closed(&from);
        servers.opened(&server(1));
        let from = servers.overloaded(later).unwrap();
        servers.closed(&from);
        servers.opened(&server(1));
        assert_eq!(servers.overloaded(later), None, "3, 3 and 2 are even: {servers:?}");
    }

    #[test]
    fn the_list_follows_the_cluster_and_is_never_emptied() {
        let now = Instant::now();
        let mut servers = three(now);
        assert!(!servers.learn(&[], now));
        assert!(!servers.learn(&[server(3), server(2), server(1)], now), "the same in another order");
        connect(&mut servers, 3, now);
        assert!(servers.learn(&[server(2), server(4)], now));
        servers.checked(&server(4), Verdict::Ready, now);
        // The third one is no longer named: its connections move, and after a while it is forgotten.
        assert_eq!(servers.overloaded(now), Some(server(3)));
        servers.closed(&server(3));
        assert_eq!(servers.all().len(), 4);
        for number in [2, 4] {
            servers.checked(&server(number), Verdict::Gone, now);
        }
        assert_eq!(servers.choose(&[server(1)], 0, now), Some(server(3)), "it may be the one that is left");
        servers.checked(&server(3), Verdict::Gone, now + FORMER_KEPT);
        // The first one stays, because a flag names it.
        assert_eq!(servers.all(), [server(1), server(2), server(4)]);
    }

    #[test]
    fn the_server_on_this_machine_is_preferred_while_it_is_ready() {
        let now = Instant::now();
        let mut servers = Servers::new(&[server(1)], &[server(2)], Some([10, 0, 0, 2].into()), now);
        servers.learn(&[server(1), server(2)], now);
        for number in 1..=2 {
            servers.checked(&server(number), Verdict::Ready, now);
        }
        assert_eq!(connect(&mut servers, 5, now).len(), 1);
        servers.checked(&server(2), Verdict::Unready, now);
        assert_eq!(servers.choose(&[], 1, now), Some(server(1)));
    }
}
