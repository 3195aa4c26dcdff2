//! From events to bars: how long each node, pod, leader and endpoint count was in which state. Pure.

use crate::timeline::{Event, Mark, What};
use std::collections::BTreeMap;

/// One state of one thing, from then to then (milliseconds since 1970).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    pub from_ms: u64,
    pub to_ms: u64,
    /// The colour's name.
    pub state: String,
    /// What a reader sees when pointing at it.
    pub title: String,
}

/// A row of bars under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    pub label: String,
    pub kind: Kind,
    pub bars: Vec<Bar>,
}

/// What a lane shows; nodes are followed by their pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Node,
    Pod,
    Leader,
    Endpoints,
}

/// A numbered moment on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub at_ms: u64,
    pub mark: Mark,
    pub text: String,
}

/// The marks in order.
pub fn moments(events: &[Event]) -> Vec<Moment> {
    let marks = events.iter().filter_map(|event| match &event.what {
        What::Mark { mark, text } => Some(Moment { at_ms: event.at_ms, mark: *mark, text: text.clone() }),
        _ => None,
    });
    marks.collect()
}

/// From each fault to the heal that ends it.
pub fn faults(moments: &[Moment], end_ms: u64) -> Vec<(u64, u64)> {
    let mut spans = Vec::new();
    let mut open = None;
    for moment in moments {
        match moment.mark {
            Mark::Fault => open = open.or(Some(moment.at_ms)),
            Mark::Heal => spans.extend(open.take().map(|from| (from, moment.at_ms))),
            _ => {}
        }
    }
    spans.extend(open.map(|from| (from, end_ms)));
    spans
}

#[derive(Default)]
struct Row {
    bars: Vec<Bar>,
    open: Option<(u64, String, String)>,
}

impl Row {
    fn set(&mut self, at_ms: u64, state: String, title: String) {
        if self.open.as_ref().is_some_and(|(_, was, about)| *was == state && *about == title) {
            return;
        }
        self.close(at_ms);
        self.open = Some((at_ms, state, title));
    }

    fn close(&mut self, at_ms: u64) {
        if let Some((from_ms, state, title)) = self.open.take() {
            self.bars.push(Bar { from_ms, to_ms: at_ms.max(from_ms), state, title });
        }
    }
}

/// Over the pods that no node has yet.
const NOT_PLACED: &str = "not placed";

/// The lanes in the order in which they are drawn: endpoints, then each node with its pods, what is nowhere yet, leaders.
/// What was over before `begin_ms` is left out.
pub fn lanes(events: &[Event], begin_ms: u64, end_ms: u64) -> Vec<Lane> {
    let (mut nodes, mut leaders): (BTreeMap<String, Row>, BTreeMap<String, Row>) = (BTreeMap::new(), BTreeMap::new());
    // Pods by node (empty: not placed), name and UID.
    let mut pods: BTreeMap<(String, String, String), Row> = BTreeMap::new();
    let (mut counted, mut slices): (Row, BTreeMap<String, usize>) = (Row::default(), BTreeMap::new());
    for event in events {
        let at = event.at_ms;
        match &event.what {
            What::Node(node) => {
                let state = match (node.ready.as_str(), node.cordoned) {
                    ("True", false) => "ready",
                    ("True", true) => "cordoned",
                    ("False", _) => "notready",
                    _ => "unknown",
                };
                let title = format!("{}: Ready={}{}", node.name, node.ready, if node.cordoned { ", SchedulingDisabled" } else { "" });
                nodes.entry(node.name.clone()).or_default().set(at, state.into(), title);
            }
            What::Pod(pod) => {
                let state = match (pod.terminating, pod.phase.as_str(), pod.ready) {
                    (true, _, _) => "terminating",
                    (_, "Running", true) => "ready",
                    (_, "Running", false) => "starting",
                    (_, "Pending", _) => "pending",
                    _ => "notready",
                };
                // A pod that was nowhere moves to its node's rows.
                if !pod.node.is_empty()
                    && let Some(row) = pods.get_mut(&(String::new(), pod.name.clone(), pod.uid.clone()))
                {
                    row.close(at);
                }
                let shown = if pod.terminating { "Terminating" } else { &pod.phase };
                let restarts = if pod.restarts > 0 { format!(", {} restarts", pod.restarts) } else { String::new() };
                let title = format!("{} ({}): {shown}{}{restarts}", pod.name, pod.address, if pod.ready { ", ready" } else { "" });
                pods.entry((pod.node.clone(), pod.name.clone(), pod.uid.clone())).or_default().set(at, state.into(), title);
            }
            What::PodGone { uid, .. } => pods.iter_mut().filter(|(key, _)| key.2 == *uid).for_each(|(_, row)| row.close(at)),
            What::Leader { lease, holder } => {
                let state = if holder.is_empty() { "nobody".to_owned() } else { format!("leader-{}", holder.split('_').next().unwrap_or(holder)) };
                let title = if holder.is_empty() { "nobody leads".to_owned() } else { format!("{holder} leads") };
                leaders.entry(lease.clone()).or_default().set(at, state, title);
            }
            What::Endpoints(endpoints) => {
                slices.insert(endpoints.slice.clone(), endpoints.ready.len());
                let ready: usize = slices.values().sum();
                counted.set(at, if ready == 0 { "notready".into() } else { "endpoints".into() }, format!("{ready} ready"));
            }
            What::Mark { .. } => {}
        }
    }
    let lane = |label: String, kind: Kind, mut row: Row| {
        row.close(end_ms);
        row.bars.retain(|bar| bar.to_ms > begin_ms);
        Lane { label, kind, bars: row.bars }
    };
    let mut all = vec![lane("ready endpoints".into(), Kind::Endpoints, counted)];
    let mut names: Vec<String> = nodes.keys().cloned().collect();
    names.push(String::new());
    for name in names {
        match nodes.remove(&name) {
            Some(row) => all.push(lane(name.clone(), Kind::Node, row)),
            None if pods.keys().any(|key| key.0 == name) => all.push(Lane { label: NOT_PLACED.into(), kind: Kind::Node, bars: Vec::new() }),
            None => {}
        }
        let own: Vec<_> = pods.keys().filter(|key| key.0 == name).cloned().collect();
        for key in own {
            if let Some(row) = pods.remove(&key) {
                all.push(lane(key.1, Kind::Pod, row));
            }
        }
    }
    all.extend(leaders.into_iter().map(|(name, row)| lane(name, Kind::Leader, row)));
    all.retain(|lane| lane.kind != Kind::Pod || lane.bars.iter().any(|bar| bar.to_ms > bar.from_ms));
    if all.iter().rposition(|lane| lane.kind == Kind::Pod) < all.iter().position(|lane| lane.label == NOT_PLACED) {
        all.retain(|lane| lane.label != NOT_PLACED);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Node, Pod};

    fn event(at_ms: u64, what: What) -> Event {
        Event { at_ms, what }
    }

    fn pod(node: &str, phase: &str, ready: bool) -> What {
        What::Pod(Pod { uid: "u".into(), name: "web-1".into(), node: node.into(), phase: phase.into(), ready, ..Pod::default() })
    }

    #[test]
    fn a_pod_goes_from_nowhere_to_its_node_and_ends() {
        let events = [
            event(0, What::Node(Node { name: "n".into(), ready: "True".into(), ..Node::default() })),
            event(10, pod("", "Pending", false)),
            event(20, pod("n", "Pending", false)),
            event(30, pod("n", "Running", true)),
            event(40, What::PodGone { uid: "u".into(), name: "web-1".into(), node: "n".into() }),
        ];
        let lanes = lanes(&events, 5, 100);
        let shown: Vec<_> =
            lanes.iter().map(|l| (l.label.as_str(), l.bars.iter().map(|b| (b.state.as_str(), b.from_ms, b.to_ms)).collect::<Vec<_>>())).collect();
        assert_eq!(
            shown,
            [
                ("ready endpoints", vec![]),
                ("n", vec![("ready", 0, 100)]),
                ("web-1", vec![("pending", 20, 30), ("ready", 30, 40)]),
                ("not placed", vec![]),
                ("web-1", vec![("pending", 10, 20)]),
            ]
        );
        let later: Vec<String> = super::lanes(&events, 50, 100).into_iter().map(|lane| lane.label).collect();
        assert_eq!(later, ["ready endpoints", "n"]);
    }

    #[test]
    fn a_fault_lasts_until_the_next_heal() {
        let moment = |at_ms, mark| Moment { at_ms, mark, text: String::new() };
        let moments = [moment(5, Mark::Fault), moment(7, Mark::Fault), moment(9, Mark::Heal), moment(11, Mark::Heal), moment(20, Mark::Fault)];
        assert_eq!(faults(&moments, 30), [(5, 9), (20, 30)]);
    }
}
