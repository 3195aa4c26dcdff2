//! Records between two and three members, packet by packet.

use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn at(last: u8) -> Option<(Ipv4Addr, bool, bool)> {
    Some((Ipv4Addr::new(10, 244, 1, last), true, true))
}

/// Brings `to` up to what `from` knows; answers how many packets that took.
fn sync(from: &Records, to: &mut Records) -> usize {
    let (digest, whole) = to.digest(0);
    let (deltas, _) = from.compare(&digest, whole);
    let count = deltas.len();
    for delta in deltas {
        to.apply(delta).unwrap();
    }
    count
}

#[test]
fn changes_come_as_differences_and_removals_as_tombstones() {
    let (mut a, mut b) = (Records::new(A, 1), Records::new(B, 1));
    a.set_api(true);
    a.publish("x", at(2)).unwrap();
    a.publish("y", at(3)).unwrap();
    sync(&a, &mut b);
    assert_eq!(b.endpoints(A).unwrap().len(), 2);
    a.publish("x", None).unwrap();
    a.publish("y", Some((Ipv4Addr::new(10, 244, 1, 3), false, false))).unwrap();
    a.set_api(false);
    let delta = &a.own_since(b.known(A).unwrap().1)[0];
    assert_eq!((delta.from, delta.items.len()), (3, 3));
    assert_eq!(b.apply(delta.clone()), Ok(Applied::Changed));
    assert_eq!(b.endpoints(A).unwrap().keys().collect::<Vec<_>>(), ["y"]);
    assert!(!b.endpoints(A).unwrap()["y"].ready && !b.api_reachable(A));
    assert_eq!(b.apply(delta.clone()), Ok(Applied::Nothing));
    assert_eq!(sync(&a, &mut b), 0);
}

#[test]
fn that_all_are_named_is_known_only_with_all_of_them() {
    let (mut a, mut b) = (Records::new(A, 1), Records::new(B, 1));
    a.publish("x", at(2)).unwrap();
    sync(&a, &mut b);
    assert!(!b.is_complete(A));
    assert!(a.set_complete(true) && !a.set_complete(true));
    sync(&a, &mut b);
    assert!(b.is_complete(A));
    // The next start has not said so yet.
    let mut a = Records::new(A, 2);
    a.publish("y", at(2)).unwrap();
    sync(&a, &mut b);
    assert!(!b.is_complete(A) && !b.endpoints(A).unwrap().contains_key("x"));
    a.set_complete(true);
    a.set_complete(false);
    sync(&a, &mut b);
    assert!(!b.is_complete(A));
}

#[test]
fn a_whole_in_parts_is_put_in_place_at_once() {
    let mut a = Records::new(A, 1);
    let mut b = Records::new(B, 1);
    a.publish("old", at(1)).unwrap();
    sync(&a, &mut b);
    let mut a = Records::new(A, 2);
    for i in 0..110 {
        a.publish(&format!("00000000-0000-0000-0000-{i:012}"), at(i)).unwrap();
    }
    let (digest, whole) = b.digest(0);
    let (parts, _) = a.compare(&digest, whole);
    assert!(parts.len() > 3, "{}", parts.len());
    for part in &parts[..parts.len() - 1] {
        assert!(postcard::to_stdvec(part).unwrap().len() < limits::PACKET_BYTES_MAX - 100);
        b.apply(part.clone()).unwrap();
        assert_eq!(b.endpoints(A).unwrap().keys().collect::<Vec<_>>(), ["old"], "the last good state is kept");
    }
    b.apply(parts[parts.len() - 1].clone()).unwrap();
    assert_eq!(b.endpoints(A).unwrap().len(), 110);
    assert_eq!(b.known(A), a.known(A));
}

#[test]
fn an_old_start_never_wins_and_an_owner_that_lost_its_past_rises_above_it() {
    let (mut old, mut b) = (Records::new(A, 5), Records::new(B, 1));
    old.publish("x", at(2)).unwrap();
    sync(&old, &mut b);
    let mut new = Records::new(A, 3);
    new.publish("y", at(9)).unwrap();
    assert_eq!(sync(&new, &mut b), 0);
    let (digest, whole) = new.digest(0);
    let (deltas, _) = b.compare(&digest, whole);
    assert_eq!(new.apply(deltas[0].clone()), Ok(Applied::OwnIsBehind(5)));
    new.raise(5);
    sync(&new, &mut b);
    assert_eq!(b.endpoints(A).unwrap().keys().collect::<Vec<_>>(), ["y"]);
}

#[test]
fn others_pass_on_what_they_know_also_after_forgotten_tombstones() {
    let (mut a, mut b, mut c) = (Records::new(A, 1), Records::new(B, 1), Records::new(NodeId(3), 1));
    a.publish("keep", at(1)).unwrap();
    a.publish("drop", at(2)).unwrap();
    sync(&a, &mut b);
    sync(&b, &mut c);
    a.publish("drop", None).unwrap();
    for i in 0..=limits::TOMBSTONES_MAX {
        let uid = format!("short-lived-{i}");
        a.publish(&uid, at(7)).unwrap();
        a.publish(&uid, None).unwrap();
    }
    sync(&a, &mut b);
    sync(&b, &mut c);
    assert_eq!(c.endpoints(A).unwrap().keys().collect::<Vec<_>>(), ["keep"]);
    assert_eq!(c.known(A), a.known(A));
}

#[test]
fn what_makes_no_sense_is_refused_as_a_whole() {
    let mut b = Records::new(B, 1);
    let endpoint = |uid: &str, address: [u8; 4]| What::Endpoint { uid: uid.into(), address: address.into(), ready: true, serving: true };
    let delta = |items: Vec<Item>| Delta { owner: A, epoch: 1, from: 0, upto: 9, last: true, items };
    let good = Item { version: 1, what: endpoint("x", [10, 0, 0, 1]) };
    let loopback = Item { version: 2, what: endpoint("y", [127, 0, 0, 1]) };
    assert_eq!(b.apply(delta(vec![good.clone(), loopback])), Err(Error::Address([127, 0, 0, 1].into())));
    let nameless = Item { version: 2, what: endpoint("", [10, 0, 0, 2]) };
    assert_eq!(b.apply(delta(vec![good.clone(), nameless])), Err(Error::Uid));
    assert_eq!(b.apply(delta(vec![good.clone(), good])), Err(Error::Order));
    assert_eq!(b.endpoints(A).map(|e| e.len()).unwrap_or(0), 0);
}

#[test]
fn of_more_owners_than_a_digest_names_each_is_heard_of() {
    let members: BTreeSet<NodeId> = (1..=3 * limits::DIGEST_OWNERS_MAX as u64).map(NodeId).collect();
    let (mut a, mut b) = (Records::new(A, 1), Records::new(B, 1));
    for id in members.iter().filter(|id| **id != A) {
        let mut owner = Records::new(*id, 1);
        owner.publish("x", at(2)).unwrap();
        owner.own_since(0).into_iter().for_each(|delta| drop(a.apply(delta)));
    }
    b.roster(&members);
    for start in (0..members.len()).step_by(limits::DIGEST_OWNERS_MAX) {
        let (digest, whole) = b.digest(start);
        assert!(!whole && digest.len() == limits::DIGEST_OWNERS_MAX);
        a.compare(&digest, whole).0.into_iter().for_each(|delta| drop(b.apply(delta)));
    }
    assert!(members.iter().all(|id| [A, B].contains(id) || b.endpoints(*id).is_some_and(|all| all.len() == 1)));
}
