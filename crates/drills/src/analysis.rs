//! From a drill's log to its figures. Pure: the same log gives the same figures.
//!
//! A request counts for the time at which it began. What a node that was powered on again asks before its first answer on
//! a way has come is neither success nor failure of routing: it is how long the node took to return, a figure of its own.

use crate::{
    request::{Request, Way},
    timeline::{Event, Log, Mark, What},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The width of a bin of the traffic strips, in milliseconds.
pub const BIN_MS: u64 = 100;

/// One stream of requests in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub sent: u64,
    pub failed: u64,
    /// Answered, but not at the first attempt: a look-up, a kept connection or an API call was tried again.
    pub repeated: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// The longest time without an answer that any source saw.
    pub longest_gap_ms: u64,
}

/// What a drill measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests with a connection of their own, and API calls.
    pub ways: BTreeMap<Way, Traffic>,
    /// Requests over kept connections, on all ways of the application.
    pub kept: Traffic,
    /// Application requests in all.
    pub sent: u64,
    pub failed: u64,
    /// The longest time without an answer on any way of the application, from any source.
    pub longest_gap_ms: u64,
    /// From a fault, or from a heal, to the last failed request before the next one; the longest. 0: none failed.
    pub route_around_ms: u64,
    /// From the first fault until the cluster knew: a node not Ready, or another leader.
    pub detect_ms: Option<u64>,
    /// From the first fault until what was lost ran elsewhere.
    pub replace_ms: Option<u64>,
    /// From the last heal until all was as before.
    pub recover_ms: Option<u64>,
    /// From power on to the first answer on every way, by node.
    pub returned_ms: BTreeMap<String, u64>,
}

/// The traffic of one source on one way, in bins of [`BIN_MS`] from the beginning of the drill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strip {
    pub source: String,
    pub answered: Vec<u32>,
    pub failed: Vec<u32>,
}

/// Moments of one mark.
pub fn marks(events: &[Event], wanted: Mark) -> Vec<u64> {
    events.iter().filter(|e| matches!(e.what, What::Mark { mark, .. } if mark == wanted)).map(|e| e.at_ms).collect()
}

/// The log's figures.
pub fn figures(log: &Log) -> Figures {
    let (counted, returned_ms) = without_returning(&log.requests);
    let application = |kept: bool| counted.iter().copied().filter(move |r| !r.way.is_api() && r.kept == kept);
    let mut ways = BTreeMap::new();
    for way in Way::APPLICATION.into_iter().chain(Way::API) {
        let requests: Vec<&Request> = counted.iter().copied().filter(|r| r.way == way && (r.way.is_api() || !r.kept)).collect();
        if !requests.is_empty() {
            ways.insert(way, traffic(&requests));
        }
    }
    let kept = traffic(&application(true).collect::<Vec<_>>());
    let of_application = || ways.iter().filter(|(way, _)| !way.is_api()).map(|(_, traffic)| traffic);
    let (faults, heals) = (marks(&log.events, Mark::Fault), marks(&log.events, Mark::Heal));
    let first = faults.first().copied();
    let since_fault = |at: Option<u64>| Some(at?.saturating_sub(first?));
    Figures {
        sent: of_application().map(|t| t.sent).sum::<u64>() + kept.sent,
        failed: of_application().map(|t| t.failed).sum::<u64>() + kept.failed,
        longest_gap_ms: of_application().map(|t| t.longest_gap_ms).max().unwrap_or(0),
        route_around_ms: route_around(&counted, &faults, &heals),
        detect_ms: since_fault(first.and_then(|fault| detected(&log.events, fault))),
        replace_ms: since_fault(marks(&log.events, Mark::Replaced).first().copied()),
        recover_ms: heals.last().and_then(|heal| Some(marks(&log.events, Mark::Recovered).last()?.saturating_sub(*heal))),
        returned_ms,
        ways,
        kept,
    }
}

/// The requests that count, and how long nodes that came back took to answer.
fn without_returning(requests: &[Request]) -> (Vec<&Request>, BTreeMap<String, u64>) {
    // The first answer of every returned source on every way.
    let mut first_answer: HashMap<(&str, u32, Way), u64> = HashMap::new();
    let mut first_asked: HashMap<(&str, u32), u64> = HashMap::new();
    let mut asked: BTreeSet<(&str, u32, Way)> = BTreeSet::new();
    for request in requests.iter().filter(|r| r.boot > 0 && !r.way.is_api()) {
        let (source, boot) = (request.source.as_str(), request.boot);
        asked.insert((source, boot, request.way));
        let asked = first_asked.entry((source, boot)).or_insert(request.started_ms);
        *asked = (*asked).min(request.started_ms);
        if request.ok() {
            let answer = first_answer.entry((source, boot, request.way)).or_insert(request.ended_ms());
            *answer = (*answer).min(request.ended_ms());
        }
    }
    let counts = |r: &&Request| {
        let key = (r.source.as_str(), r.boot, r.way);
        r.boot == 0 || r.way.is_api() || first_answer.get(&key).is_some_and(|first| r.started_ms >= *first)
    };
    let mut returned: BTreeMap<String, u64> = BTreeMap::new();
    for key in asked {
        let began = first_asked.get(&(key.0, key.1)).copied().unwrap_or(0);
        // A way that was never answered counts as returned never.
        let took = first_answer.get(&key).map_or(u64::MAX, |first| first.saturating_sub(began));
        let worst = returned.entry(key.0.to_owned()).or_default();
        *worst = (*worst).max(took);
    }
    (requests.iter().filter(counts).collect(), returned)
}

fn traffic(requests: &[&Request]) -> Traffic {
    let mut took: Vec<u64> = requests.iter().filter(|r| r.ok()).map(|r| r.took_us).collect();
    took.sort_unstable();
    let percentile = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(0);
    Traffic {
        sent: requests.len() as u64,
        failed: requests.iter().filter(|r| !r.ok()).count() as u64,
        repeated: requests.iter().filter(|r| r.ok() && r.attempts > 1).count() as u64,
        p50_us: percentile(50),
        p99_us: percentile(99),
        longest_gap_ms: longest_gap(requests),
    }
}

/// The longest stretch without an answer that one source saw, while it was on and asking.
fn longest_gap(requests: &[&Request]) -> u64 {
    let mut streams: HashMap<(&str, u32, Way), Vec<&Request>> = HashMap::new();
    for request in requests {
        streams.entry((&request.source, request.boot, request.way)).or_default().push(request);
    }
    let gap = |stream: &mut Vec<&Request>| {
        stream.sort_by_key(|r| r.ended_ms());
        let (mut last, mut worst) = (stream.first()?.started_ms, 0);
        for request in &*stream {
            worst = worst.max(request.ended_ms().saturating_sub(last));
            if request.ok() {
                last = request.ended_ms();
            }
        }
        Some(worst)
    };
    streams.values_mut().filter_map(gap).max().unwrap_or(0)
}

/// For each fault and each heal, how long after it a request still failed before the next one; the worst of them. A request that is
/// under way at a fault is hit by it, not late for the one before.
fn route_around(requests: &[&Request], faults: &[u64], heals: &[u64]) -> u64 {
    let late = |request: &&Request| {
        let hit_by = faults.iter().filter(|at| **at <= request.ended_ms());
        let since = hit_by.chain(heals.iter().filter(|at| **at <= request.started_ms)).max()?;
        Some(request.started_ms.saturating_sub(*since))
    };
    requests.iter().filter(|request| !request.ok() && !request.way.is_api()).filter_map(late).max().unwrap_or(0)
}

/// When the cluster first showed that it knew of a fault.
fn detected(events: &[Event], fault: u64) -> Option<u64> {
    let mut ready: HashMap<&str, bool> = HashMap::new();
    let mut holders: HashMap<&str, &str> = HashMap::new();
    for event in events {
        match &event.what {
            What::Node(node) => {
                let was = ready.insert(&node.name, node.ready == "True");
                if event.at_ms >= fault && was == Some(true) && node.ready != "True" {
                    return Some(event.at_ms);
                }
            }
            What::Leader { lease, holder } => {
                let was = holders.get(lease.as_str()).copied();
                if !holder.is_empty() {
                    holders.insert(lease, holder);
                }
                if event.at_ms >= fault && !holder.is_empty() && was.is_some_and(|was| was != holder) {
                    return Some(event.at_ms);
                }
            }
            _ => {}
        }
    }
    None
}

/// The traffic on one way as strips, one per source.
pub fn strips(requests: &[Request], way: Way, begin_ms: u64, end_ms: u64) -> Vec<Strip> {
    let bins = usize::try_from(end_ms.saturating_sub(begin_ms) / BIN_MS + 1).unwrap_or(1);
    let mut strips: BTreeMap<&str, Strip> = BTreeMap::new();
    for request in requests.iter().filter(|r| r.way == way && (r.way.is_api() || !r.kept) && r.started_ms >= begin_ms) {
        let strip =
            strips.entry(&request.source).or_insert_with(|| Strip { source: request.source.clone(), answered: vec![0; bins], failed: vec![0; bins] });
        let bin = usize::try_from((request.started_ms - begin_ms) / BIN_MS).unwrap_or(usize::MAX);
        let side = if request.ok() { &mut strip.answered } else { &mut strip.failed };
        if let Some(count) = side.get_mut(bin) {
            *count += 1;
        }
    }
    strips.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Node;

    fn request(source: &str, started_ms: u64, ok: bool) -> Request {
        Request {
            started_ms,
            took_us: if ok { 2_000 } else { 500_000 },
            source: source.into(),
            boot: 0,
            way: Way::ClusterIp,
            kept: false,
            attempts: 1,
            pod: None,
            error: (!ok).then(|| "refused".into()),
        }
    }

    fn mark(at_ms: u64, mark: Mark) -> Event {
        Event { at_ms, what: What::Mark { mark, text: String::new() } }
    }

    fn node(at_ms: u64, ready: &str) -> Event {
        Event { at_ms, what: What::Node(Node { name: "n".into(), ready: ready.into(), ..Node::default() }) }
    }

    #[test]
    fn a_quiet_drill_has_no_failures_and_a_gap_of_one_beat() {
        let requests = (0..100).map(|i| request("a", 1000 + i * 10, true)).collect();
        let log = Log { requests, events: vec![mark(1500, Mark::Fault), mark(1800, Mark::Heal), mark(1900, Mark::Recovered)], dropped: 0 };
        let figures = figures(&log);
        assert_eq!((figures.sent, figures.failed, figures.route_around_ms), (100, 0, 0));
        assert_eq!(figures.longest_gap_ms, 10);
        assert_eq!(figures.recover_ms, Some(100));
        assert_eq!((figures.detect_ms, figures.replace_ms), (None, None));
        assert_eq!(figures.ways[&Way::ClusterIp].p99_us, 2000);
    }

    #[test]
    fn failures_are_counted_from_their_fault_and_the_gap_runs_from_answer_to_answer() {
        // Answers until 1500, failures until 2400, answers again.
        let requests = (0..200).map(|i| request("a", 1000 + i * 10, !(50..140).contains(&i))).collect();
        let events = vec![node(900, "True"), mark(1495, Mark::Fault), node(1795, "Unknown"), mark(2000, Mark::Replaced), mark(2700, Mark::Heal)];
        let figures = figures(&Log { requests, events, dropped: 0 });
        assert_eq!(figures.failed, 90);
        assert_eq!(figures.route_around_ms, 2390 - 1495);
        assert_eq!(figures.detect_ms, Some(300));
        assert_eq!(figures.replace_ms, Some(505));
        // From the answer at 1492 to the one at 2402; the failures that end later are after it.
        assert_eq!(figures.longest_gap_ms, 910);
        assert_eq!(figures.recover_ms, None);
        let request = |at: u64| Request { started_ms: at, ..request("a", at, false) };
        assert_eq!(route_around(&[&request(5200)], &[1000], &[5000]), 200, "a heal can disturb too");
        assert_eq!(route_around(&[&request(4990)], &[1000, 5000], &[]), 0, "what was under way at the second fault");
    }

    #[test]
    fn half_of_the_requests_failing_is_no_gap_but_still_failures() {
        let requests = (0..100).map(|i| request("a", 1000 + i * 10, i % 2 == 0)).collect();
        let figures = figures(&Log { requests, events: vec![mark(1000, Mark::Fault)], dropped: 0 });
        assert_eq!(figures.failed, 50);
        assert!(figures.longest_gap_ms < 600);
        assert_eq!(figures.route_around_ms, 990);
    }

    #[test]
    fn a_node_that_returns_is_measured_apart_until_its_first_answer() {
        let mut requests: Vec<Request> = (0..10).map(|i| request("a", 1000 + i * 10, true)).collect();
        requests.extend((0..50).map(|i| Request { boot: 1, ..request("a", 5000 + i * 10, i >= 20) }));
        let figures = figures(&Log { requests, events: vec![], dropped: 0 });
        assert_eq!((figures.sent, figures.failed), (39, 0), "what was asked before the first answer came is not counted");
        assert_eq!(figures.returned_ms["a"], 202);
        let never = Log { requests: vec![Request { boot: 1, ..request("a", 5000, false) }], ..Log::default() };
        assert_eq!(super::figures(&never).returned_ms["a"], u64::MAX);
    }

    #[test]
    fn another_leader_is_a_detection_and_a_release_alone_is_not() {
        let leader = |at_ms, holder: &str| Event { at_ms, what: What::Leader { lease: "l".into(), holder: holder.into() } };
        let events = [leader(1, "a"), leader(20, ""), leader(30, "a"), leader(40, "b")];
        assert_eq!(detected(&events, 10), Some(40));
        assert_eq!(detected(&events, 50), None);
    }

    #[test]
    fn strips_count_by_source_and_bin() {
        let requests = [request("a", 1000, true), request("a", 1099, false), request("a", 1100, true), request("b", 1250, true)];
        let strips = strips(&requests, Way::ClusterIp, 1000, 1299);
        assert_eq!(strips.len(), 2);
        assert_eq!((strips[0].answered.clone(), strips[0].failed.clone()), (vec![1, 1, 0], vec![1, 0, 0]));
        assert_eq!(strips[1].answered, vec![0, 0, 1]);
    }
}
