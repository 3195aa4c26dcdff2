//! The epoch's rules, by hand and by chance: whatever nodes are asked in whatever order, never do two servers serve.

use super::*;
use proptest::prelude::*;

fn epoch(number: u64, holder: &str) -> Epoch {
    Epoch { number, holder: holder.into(), server: format!("https://10.0.0.{number}:6443") }
}

fn record(nodes: u8, with_server: bool) -> Record {
    let address = |i: u8| SocketAddr::from(([10, 0, 0, 100 + i], 10250));
    let mut voters: BTreeMap<String, SocketAddr> = (0..nodes).map(|i| (format!("node-{i}"), address(i))).collect();
    if with_server {
        voters.insert("server".into(), SocketAddr::from(([10, 0, 0, 1], 10250)));
    }
    Record { epoch: epoch(1, "a"), copies: BTreeSet::from(["node-0".into()]), voters }
}

const OWN: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

fn votes(list: &[(&str, Vote)]) -> BTreeMap<String, Vote> {
    list.iter().map(|(name, vote)| ((*name).to_string(), vote.clone())).collect()
}

#[test]
fn a_server_without_nodes_or_copies_starts_alone() {
    let mut alone = record(0, false);
    assert_eq!(may_serve(&alone, OWN, &BTreeMap::new()), Verdict::Serve);
    alone = record(5, true);
    alone.copies.clear();
    assert_eq!(may_serve(&alone, OWN, &BTreeMap::new()), Verdict::Serve);
}

#[test]
fn a_server_waits_for_a_majority_and_steps_down_for_one_higher_epoch() {
    // Three nodes and the server's machine, which is none of them: four votes.
    let three = record(3, false);
    let none = Vote::Knows(None);
    let Verdict::Ask { silent, needed } = may_serve(&three, OWN, &votes(&[("node-1", none.clone())])) else { panic!() };
    assert_eq!((silent, needed), (vec!["node-0".into(), "node-2".into()], 1));
    assert_eq!(may_serve(&three, OWN, &votes(&[("node-1", none.clone()), ("node-2", Vote::Knows(Some(epoch(1, "a"))))])), Verdict::Serve);
    for higher in [epoch(2, "b"), epoch(1, "b")] {
        let verdict =
            may_serve(&three, OWN, &votes(&[("node-0", none.clone()), ("node-1", none.clone()), ("node-2", Vote::Knows(Some(higher.clone())))]));
        assert_eq!(verdict, Verdict::StepDown(higher, "node-2".into()));
    }
    // A server whose machine is a node asks that node too: its kubelet may have promised while the server was off.
    let with_own = record(2, true);
    assert!(matches!(may_serve(&with_own, OWN, &votes(&[("node-1", none.clone())])), Verdict::Ask { needed: 1, .. }));
    assert_eq!(may_serve(&with_own, OWN, &votes(&[("node-1", none.clone()), ("server", none)])), Verdict::Serve);
}

#[test]
fn a_take_over_is_one_above_all_and_goes_on_where_it_was_interrupted() {
    let record = record(3, false);
    let answers = votes(&[("node-0", Vote::Knows(Some(epoch(4, "c")))), ("node-1", Vote::Silent)]);
    assert_eq!(next(&record, "b", "https://s:6443", &answers).number, 5);
    assert_eq!(next(&record, "c", "https://s:6443", &answers).number, 4);
    assert!(!is_agreed(&record, 2) && is_agreed(&record, 3), "the old server's machine has a vote that nobody gives");
    assert!(is_agreed(&record_with(2), 2));
}

fn record_with(nodes: u8) -> Record {
    record(nodes, true)
}

#[test]
fn a_promise_is_kept_over_a_restart_and_given_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub").join(LEDGER);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.known(), None);
    assert_eq!(ledger.promise(epoch(2, "b")).unwrap(), Ok(()));
    assert_eq!(ledger.promise(epoch(2, "b")).unwrap(), Ok(()));
    assert_eq!(ledger.promise(epoch(2, "c")).unwrap(), Err(epoch(2, "b")));
    assert_eq!(ledger.promise(epoch(1, "a")).unwrap(), Err(epoch(2, "b")));
    let again = Ledger::open(&path).unwrap();
    assert_eq!(again.known(), Some(epoch(2, "b")));
    assert_eq!(again.promise(epoch(3, "a")).unwrap(), Ok(()));
    assert!(matches!(again.promise(epoch(0, "a")), Err(Error::NotSensible)));
    // The same life of the store, at another address: kept as it now is.
    let moved = Epoch { server: "https://10.9.9.9:6443".into(), ..epoch(3, "a") };
    assert_eq!(again.promise(moved.clone()).unwrap(), Ok(()));
    assert_eq!(read(&path).unwrap(), Some(moved));
    std::fs::write(&path, b"{\"number\": 3").unwrap();
    assert!(matches!(Ledger::open(&path), Err(Error::Damaged(_))));
}

#[test]
fn the_host_of_a_server() {
    assert_eq!(host("https://10.0.0.1:6443"), OWN);
    assert_eq!(host("https://[::1]:6443"), Some("::1".parse().unwrap()));
    assert_eq!(host("https://name:6443"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Some nodes are reached by whoever takes over, some by the old server that starts again; in between, nothing is known.
    #[test]
    fn of_two_servers_one_hears_of_the_other(nodes in 1u8..8, with_server: bool, reached: u16, heard: u16, restarts: bool) {
        let record = record(nodes, with_server);
        let directory = tempfile::tempdir().unwrap();
        let ledgers: BTreeMap<&String, Ledger> =
            record.voters.keys().map(|name| (name, Ledger::open(&directory.path().join(name)).unwrap())).collect();
        let ask = |mask: u16| -> BTreeMap<String, Vote> {
            let vote = |(i, (name, ledger)): (usize, (&&String, &Ledger))| {
                let vote = if mask & (1 << i) != 0 { Vote::Knows(ledger.known()) } else { Vote::Silent };
                ((*name).clone(), vote)
            };
            ledgers.iter().enumerate().map(vote).collect()
        };
        let claim = next(&record, "b", "https://10.0.0.2:6443", &ask(reached));
        let promises = ledgers.iter().enumerate().filter(|(i, (_, ledger))| {
            reached & (1 << i) != 0 && ledger.promise(claim.clone()).unwrap().is_ok()
        }).count();
        let taken_over = is_agreed(&record, promises);
        if restarts {
            for (name, ledger) in &ledgers {
                prop_assert_eq!(Ledger::open(&directory.path().join(name)).unwrap().known(), ledger.known());
            }
        }
        let old_serves = may_serve(&record, OWN, &ask(heard)) == Verdict::Serve;
        prop_assert!(!(taken_over && old_serves), "two servers serve");
    }
}
