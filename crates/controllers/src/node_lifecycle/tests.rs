//! Clusters of nodes that fall silent and return, by the clock of the test.

use super::*;
use crate::common::testing::at;
use std::collections::BTreeMap;

/// A cluster as the API would hold it.
#[derive(Default)]
struct World {
    nodes: BTreeMap<String, Arc<Node>>,
    renewed: BTreeMap<String, Timestamp>,
    state: State,
    options: crate::Options,
    view: View,
}

impl World {
    fn of(names: &[&str]) -> World {
        let mut world = World::default();
        for name in names {
            let node = json!({"metadata": {"name": name, "uid": name},
                "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "1970-01-01T00:00:00Z"}]}});
            world.nodes.insert((*name).to_owned(), Arc::new(serde_json::from_value(node).expect("a node")));
        }
        world
    }

    /// One look at `second`, with these nodes having just renewed; gives the nodes whose pods must be marked.
    fn look(&mut self, second: i64, alive: &[&str], heard: bool) -> Vec<String> {
        for name in alive {
            self.renewed.insert((*name).to_owned(), at(second));
        }
        let nodes: Vec<_> = self.nodes.values().cloned().collect();
        let renewed = |name: &str| self.renewed.get(name).copied();
        self.state.memory.observe(&nodes, renewed, at(second), heard, Duration::from_secs(5));
        if !heard {
            return Vec::new();
        }
        silence::heed(&self.view, &mut self.state.memory, at(second));
        let mut marked = Vec::new();
        for plan in plan(&nodes, &mut self.state.memory, &mut self.state.zones, at(second), &self.options, &self.view) {
            let name = name_of(&*plan.node).to_owned();
            let mut node = (*plan.node).clone();
            let list = node.status.get_or_insert_default().conditions.get_or_insert_default();
            for new in plan.unknown {
                list.retain(|old| old.type_ != new.type_);
                list.push(new);
            }
            if let Some(taints) = plan.taints {
                node.spec.get_or_insert_default().taints = Some(taints);
            }
            if plan.pods_unready {
                self.state.memory.set_pods_marked(&name);
                marked.push(name.clone());
            }
            self.nodes.insert(name, Arc::new(node));
        }
        marked
    }

    /// Looks every 5 seconds.
    fn pass(&mut self, from: i64, to: i64, alive: &[&str]) -> Vec<String> {
        (from..=to).step_by(5).flat_map(|second| self.look(second, alive, true)).collect()
    }

    /// The node's agent says so itself.
    fn report(&mut self, name: &str, status: &str, second: i64) {
        let mut node = (*self.nodes[name]).clone();
        for condition in node.status.get_or_insert_default().conditions.get_or_insert_default() {
            if condition.type_ == "Ready" {
                condition.status = status.to_owned();
                condition.last_heartbeat_time = Some(Time(at(second)));
            }
        }
        self.nodes.insert(name.to_owned(), Arc::new(node));
    }

    fn taints(&self, name: &str) -> Vec<String> {
        let short = |taint: &Taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect);
        taints(&self.nodes[name]).iter().map(short).collect()
    }
}

const ALL: [&str; 4] = ["s1", "w1", "w2", "w3"];
const REST: [&str; 3] = ["s1", "w1", "w3"];

#[test]
fn a_silent_node_is_unknown_tainted_and_its_pods_marked_once() {
    let mut world = World::of(&ALL);
    assert!(world.pass(0, 20, &ALL).is_empty());
    assert!(world.pass(25, 70, &REST).is_empty());
    assert_eq!(world.pass(75, 100, &REST), ["w2"]);
    let ready = conditions(&world.nodes["w2"]).iter().find(|c| c.type_ == "Ready").expect("Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    assert_eq!(ready.message.as_deref(), Some("Kubelet stopped posting node status."));
    assert_eq!(world.taints("w2"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    assert!(world.taints("w1").is_empty());
    // It returns: its taints go.
    world.report("w2", "True", 105);
    assert!(world.pass(105, 110, &ALL).is_empty());
    assert!(world.taints("w2").is_empty());
}

#[test]
fn silence_while_deaf_does_not_count() {
    let mut world = World::of(&ALL);
    world.pass(0, 20, &ALL);
    for second in (25..=300).step_by(5) {
        world.look(second, &[], false);
    }
    assert!(world.pass(305, 340, &[]).is_empty());
    // A process that was stopped for ten minutes has heard nothing either.
    assert!(world.look(940, &[], true).is_empty());
}

#[test]
fn evictions_are_rationed() {
    let mut world = World::of(&ALL);
    world.pass(0, 10, &ALL);
    world.pass(15, 65, &["s1", "w1"]);
    let evicting = |world: &World| ["w2", "w3"].into_iter().filter(|name| world.taints(name).contains(&"unreachable:NoExecute".to_owned())).count();
    assert_eq!(evicting(&world), 1);
    assert!(world.taints("w2").contains(&"unreachable:NoSchedule".to_owned()) && world.taints("w3").contains(&"unreachable:NoSchedule".to_owned()));
    world.pass(70, 75, &["s1", "w1"]);
    assert_eq!(evicting(&world), 2);
}

#[test]
fn when_everybody_is_gone_nobody_is_evicted() {
    let mut world = World::of(&ALL);
    world.pass(0, 10, &ALL);
    world.pass(15, 200, &[]);
    for name in ALL {
        assert_eq!(world.taints(name), ["unreachable:NoSchedule"]);
    }
    // One is back; the others get their full time, then evictions begin.
    world.report("s1", "True", 205);
    world.pass(205, 210, &["s1"]);
    assert!(world.taints("s1").is_empty());
}

#[test]
fn most_of_a_small_zone_gone_evicts_nobody() {
    let mut world = World::of(&ALL);
    world.pass(0, 10, &ALL);
    world.pass(15, 120, &["s1"]);
    for name in ["w1", "w2", "w3"] {
        assert_eq!(world.taints(name), ["unreachable:NoSchedule"], "{name}");
    }
}

#[test]
fn conditions_become_taints() {
    let mut world = World::of(&ALL);
    world.pass(0, 5, &ALL);
    world.report("w1", "False", 6);
    let mut node = (*world.nodes["w3"]).clone();
    node.spec.get_or_insert_default().unschedulable = Some(true);
    world.nodes.insert("w3".to_owned(), Arc::new(node));
    assert_eq!(world.look(6, &ALL, true), ["w1"]);
    assert_eq!(world.taints("w1"), ["not-ready:NoSchedule", "not-ready:NoExecute"]);
    assert_eq!(world.taints("w3"), ["unschedulable:NoSchedule"]);
    // From not ready to unreachable without a new grant.
    world.pass(10, 100, &["s1", "w2", "w3"]);
    assert_eq!(world.taints("w1"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
}

/// What the peers say: health and whether it reaches the API.
fn views(members: &[(&str, membership::Health, bool)]) -> View {
    let mut view = View { me: "server".into(), majority: true, ..View::default() };
    for (name, health, api_reachable) in members {
        let (health, api_reachable) = (*health, *api_reachable);
        let reachable = health != membership::Health::Dead;
        let address = "172.30.0.21:7946".parse().expect("an address");
        let member = membership::view::Member { health, reachable, cut: false, address, api_reachable, since_unix_ms: 0 };
        view.nodes.insert((*name).to_owned(), member);
    }
    view
}

#[test]
fn a_node_that_its_peers_see_dead_is_unknown_at_once() {
    use membership::Health::{Alive, Dead, Suspect};
    let mut world = World::of(&["a", "b", "c"]);
    world.look(0, &["a", "b", "c"], true);
    world.view = views(&[("a", Alive, true), ("b", Suspect, true), ("c", Dead, true)]);
    assert_eq!(world.look(2, &["a", "b"], true), ["c"]);
    assert!(world.taints("c").iter().any(|taint| taint.contains("unreachable")), "{:?}", world.taints("c"));
    // A sign of life is believed before the peers' word.
    world.report("c", "True", 3);
    world.look(3, &["a", "b", "c"], true);
    assert!(world.taints("c").is_empty(), "{:?}", world.taints("c"));
    // What is old is not believed at all.
    world.view.stale = true;
    assert!(world.look(10, &["a", "b"], true).is_empty());
}

#[test]
fn a_node_that_its_peers_vouch_for_stays_as_it_is() {
    use membership::Health::{Alive, Suspect};
    let mut world = World::of(&["a", "b", "c", "d"]);
    world.look(0, &["a", "b", "c", "d"], true);
    world.view = views(&[("a", Alive, true), ("b", Alive, true), ("c", Alive, false), ("d", Suspect, false)]);
    assert_eq!(world.pass(5, 300, &["a", "b"]), ["d"], "who is not seen is not vouched for");
    assert!(world.taints("c").is_empty());
    // It has its full time from the moment that nobody vouches any more.
    world.view = views(&[("a", Alive, true), ("b", Alive, true), ("c", Alive, true)]);
    assert!(world.pass(305, 340, &["a", "b"]).is_empty());
    assert_eq!(world.pass(345, 400, &["a", "b"]), ["c"]);
}

#[test]
fn a_cut_excuses_silence_until_the_nodes_own_word_must_have_come() {
    use membership::Health::Alive;
    let alive = [("a", Alive, true), ("b", Alive, true), ("c", Alive, true), ("d", Alive, true)];
    let mut world = World::of(&["a", "b", "c", "d"]);
    world.look(0, &["a", "b", "c", "d"], true);
    // The link to c is cut when its lease is nearly over; its word comes late.
    world.view = views(&alive);
    assert!(world.pass(5, 50, &["a", "b"]).is_empty());
    world.view.nodes.get_mut("c").expect("c").cut = true;
    assert_eq!(world.pass(51, 61, &["a", "b"]), ["d"], "the second look finds nothing that speaks for d");
    world.view.nodes.get_mut("c").expect("c").api_reachable = false;
    assert!(world.pass(62, 500, &["a", "b"]).is_empty());
    assert!(world.taints("c").is_empty());
    // It reaches the API again by another way, though it is cut off from here, and yet says nothing: its agent is stuck.
    world.view.nodes.get_mut("c").expect("c").api_reachable = true;
    assert!(world.pass(505, 550, &["a", "b"]).is_empty());
    assert_eq!(world.pass(555, 600, &["a", "b"]), ["c"]);
    // Without a membership silence is silence.
    let mut plain = World::of(&["a", "b", "c", "d"]);
    plain.look(0, &["a", "b", "c", "d"], true);
    assert_eq!(plain.pass(5, 55, &["a", "b", "c"]), ["d"]);
}

#[test]
fn when_most_could_not_reach_the_servers_everybody_gets_the_full_time_again() {
    use membership::Health::{Alive, Suspect};
    let mut world = World::of(&["a", "b", "c", "d"]);
    world.look(0, &["a", "b", "c", "d"], true);
    world.view = views(&[("a", Alive, true), ("b", Alive, false), ("c", Alive, false), ("d", Suspect, false)]);
    assert!(world.pass(5, 300, &["a"]).is_empty());
    world.view = views(&[("a", Alive, true), ("b", Alive, true), ("c", Alive, true), ("d", Suspect, true)]);
    assert!(world.pass(305, 340, &["a", "b", "c"]).is_empty());
    assert_eq!(world.pass(345, 400, &["a", "b", "c"]), ["d"]);
}
