//! The store on real etcd: the common suite, and what only a cluster can do to it: members that die, hang, lose a majority, fill up.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use store::{
    Depth, Error, Event, Outcome, Revision, Store, Watch, Watched, Write,
    etcd::{Config, Etcd, cluster},
    suite,
};
use support::{Cluster, proxy::Proxy};
use tokio::time::{Instant, timeout};

/// How long a check waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

async fn create(store: &Etcd, key: &str, value: impl Into<Bytes>) -> Revision {
    expect_committed(store.commit(Write::Create { key: key.into(), value: value.into() }).await)
}

async fn update(store: &Etcd, key: &str, value: impl Into<Bytes>, expected: Revision) -> Revision {
    expect_committed(store.commit(Write::Update { key: key.into(), value: value.into(), expected }).await)
}

fn expect_committed(outcome: store::Result<Outcome>) -> Revision {
    match outcome {
        Ok(Outcome::Committed(revision)) => revision,
        other => panic!("a write must be committed, not {other:?}"),
    }
}

/// The next events, until `enough` says so of all that came. Panics on anything that is not in order.
async fn events_until(watch: &mut Watch, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let wait = async {
        while !enough(&events) {
            if let Watched::Events(more) = watch.next().await.expect("the watch ended").expect("the watch failed") {
                events.extend(more);
            }
        }
    };
    let in_time = timeout(PATIENCE, wait).await.is_ok();
    assert!(in_time, "waited for events; the last: {:?}", events.last());
    assert!(events.is_sorted_by(|a, b| a.revision < b.revision), "the events are out of order");
    events
}

/// Tries until `done` gives a value.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut done: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The number of the member that leads.
async fn leader(cluster: &Cluster, store: &Etcd) -> usize {
    eventually("a leader", || async {
        let all = cluster::status(store).await.ok()?;
        let leader = all.into_iter().find(|status| status.health.as_ref().is_ok_and(|health| health.leader))?;
        Some(cluster.index(&leader.member.name))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_passes_the_suite() {
    let clusters = parking_lot::Mutex::new(Vec::new());
    suite::run(|| async {
        let cluster = Cluster::start(1).await;
        let store = cluster.connect().await;
        // The one before is of no more use.
        let mut clusters = clusters.lock();
        clusters.clear();
        clusters.push(cluster);
        store as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_in_mid_write() {
    let mut cluster = Cluster::start(1).await;
    let store = cluster.connect().await;
    let acknowledged = Arc::new(parking_lot::Mutex::new(BTreeMap::<u32, u64>::new()));
    let writer = |store: Arc<Etcd>, acknowledged: Arc<parking_lot::Mutex<BTreeMap<u32, u64>>>, writer: u32| async move {
        let key = format!("/kill/{writer}");
        loop {
            let Ok(standing) = store.get(&key).await else { continue };
            let count = standing.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap()) + 1;
            let value = Bytes::from(count.to_string());
            let write = match standing {
                None => Write::Create { key: key.clone(), value },
                Some(kv) => Write::Update { key: key.clone(), value, expected: kv.modified },
            };
            if let Ok(Outcome::Committed(_)) = store.commit(write).await {
                acknowledged.lock().insert(writer, count);
            }
        }
    };
    let writers: Vec<_> = (0..4).map(|i| tokio::spawn(writer(store.clone(), acknowledged.clone(), i))).collect();
    for round in 1..=3 {
        let before: u64 = acknowledged.lock().values().sum();
        eventually("writes", || async { (acknowledged.lock().values().sum::<u64>() > before + 60).then_some(()) }).await;
        cluster.kill(0);
        cluster.restart(0);
        cluster.wait_ready().await;
        let told = acknowledged.lock().clone();
        for (writer, count) in told {
            let kv = store.get(&format!("/kill/{writer}")).await.unwrap().expect("an acknowledged key is gone");
            let kept: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
            assert!(kept >= count, "round {round}: writer {writer} was told {count}, the store holds {kept}");
        }
    }
    writers.iter().for_each(|writer| writer.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_watches_outlive_any_one_member() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.connect().await;
    let start = create(&store, "/r/count", "0").await;
    let mut watch = store.watch("/r/", start).await.unwrap();
    let mut standing = start;
    let mut written = 0;
    for (round, fault) in ["leader killed", "follower killed", "leader paused", "follower paused"].iter().enumerate() {
        let leading = leader(&cluster, &store).await;
        let victim = if fault.starts_with("leader") { leading } else { (leading + 1) % 3 };
        let killed = fault.ends_with("killed");
        if killed {
            cluster.kill(victim)
        } else {
            cluster.pause(victim)
        }
        let struck = Instant::now();
        let goal = written + 20;
        while written < goal {
            let write = Write::Update { key: "/r/count".into(), value: (written + 1).to_string().into(), expected: standing };
            match store.commit(write).await {
                Ok(Outcome::Committed(revision)) => (standing, written) = (revision, written + 1),
                // An answer that was lost: what stands there tells.
                Err(Error::Unknown(_) | Error::Unavailable(_)) => {
                    let kv = eventually("a read", || async { store.get("/r/count").await.ok() }).await.unwrap();
                    written = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    standing = kv.modified;
                }
                other => panic!("{fault}: {other:?}"),
            }
            assert!(struck.elapsed() < Duration::from_secs(20), "{fault}: writes do not go on\n{}", cluster.logs());
        }
        // Everything until now, each once, whichever member served it.
        let from = standing;
        events_until(&mut watch, |events| events.last().is_some_and(|event| event.revision >= from)).await;
        if killed {
            cluster.restart(victim)
        } else {
            cluster.resume(victim)
        }
        eventually("all members", || async {
            let all = cluster::status(&store).await.ok()?;
            all.iter().all(|status| status.health.is_ok()).then_some(round)
        })
        .await;
    }
    let mut again = store.watch("/r/", start).await.unwrap();
    let events = events_until(&mut again, |events| events.last().is_some_and(|event| event.revision >= standing)).await;
    assert_eq!(events.len(), written, "one event for each write");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_quorum_all_is_refused_in_time_and_comes_back_by_itself() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.connect().await;
    let start = create(&store, "/q/a", "1").await;
    let mut watch = store.watch("/q/", start).await.unwrap();
    cluster.kill(0);
    cluster.kill(1);
    eventually("the loss to show", || async {
        let asked = Instant::now();
        let outcome = store.commit(Write::Update { key: "/q/a".into(), value: "never".into(), expected: Revision(999_999) }).await;
        assert!(asked.elapsed() < Duration::from_secs(5), "a write without quorum took {:?}", asked.elapsed());
        matches!(outcome, Err(Error::Unavailable(_))).then_some(())
    })
    .await;
    // From now on the loss is known, and said at once.
    let asked = Instant::now();
    let refused = store.commit(Write::Create { key: "/q/b".into(), value: "".into() }).await;
    let Err(Error::Unavailable(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("quorum") && why.contains(&cluster.members()[0].client_url()), "{why}");
    assert!(matches!(store.get("/q/a").await, Err(Error::Unavailable(_))));
    assert!(matches!(store.revision().await, Err(Error::Unavailable(_))));
    assert!(matches!(store.check(Depth::Quick).await, Err(Error::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_secs(4), "four calls took {:?}", asked.elapsed());
    cluster.restart(1);
    let revision = eventually("quorum", || async {
        match store.commit(Write::Create { key: "/q/b".into(), value: "2".into() }).await {
            Ok(Outcome::Committed(revision)) => Some(revision),
            _ => None,
        }
    })
    .await;
    let events = events_until(&mut watch, |events| !events.is_empty()).await;
    assert_eq!((events[0].key.as_str(), events[0].revision), ("/q/b", revision));
    store.check(Depth::Quick).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_past_was_compacted_while_it_was_away_says_so() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.connect().await;
    let start = create(&store, "/c/a", "1").await;
    let first = cluster.connect_to(0).await;
    let mut bound = first.watch("/c/", start).await.unwrap();
    let mut live = store.watch("/c/", start).await.unwrap();
    let second = update(&store, "/c/a", "2", start).await;
    events_until(&mut bound, |events| !events.is_empty()).await;
    // Compaction below what a watch has seen does not touch it.
    store.compact(second).await.unwrap();
    let third = update(&store, "/c/a", "3", second).await;
    assert_eq!(events_until(&mut bound, |events| !events.is_empty()).await[0].revision, third);
    cluster.kill(0);
    let mut standing = third;
    for i in 4..10 {
        standing = update(&store, "/c/a", i.to_string(), standing).await;
    }
    // A watch that had another member to go to has seen it all by now.
    let events = events_until(&mut live, |events| events.len() >= 8).await;
    assert_eq!((events.len(), events[7].revision), (8, standing));
    store.compact(standing).await.unwrap();
    cluster.restart(0);
    let end = timeout(PATIENCE, async {
        loop {
            match bound.next().await.expect("the watch ended without a word") {
                Ok(Watched::Progress(at)) => assert!(at <= third, "progress over a gap: {at}"),
                other => return other,
            }
        }
    });
    assert!(matches!(end.await, Ok(Err(Error::Compacted { asked, oldest })) if asked == third && oldest == standing), "the gap must be told");
    let after = update(&store, "/c/a", "10", standing).await;
    assert_eq!(events_until(&mut live, |events| !events.is_empty()).await[0].revision, after, "the other watch goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_recognised_or_called_unknown() {
    let cluster = Cluster::start(1).await;
    let direct = cluster.connect().await;
    let proxy = Proxy::start((cluster.members()[0].address, 2379).into()).await;
    let behind = Config { endpoints: vec![format!("https://{}", proxy.address)], ..cluster.config() };
    let alone = Etcd::connect(behind.clone()).await.unwrap();
    let muted_first = [behind.endpoints[0].clone(), cluster.config().endpoints[0].clone()];
    let both = Etcd::connect(Config { endpoints: muted_first.to_vec(), ..behind }).await.unwrap();
    // The connections stand before the wire falls silent.
    alone.revision().await.unwrap();
    both.revision().await.unwrap();
    proxy.mute(true);

    // Another way is left: the mark tells that the create was ours, once and for all.
    let created = create(&both, "/u/a", "1").await;
    let kv = direct.get("/u/a").await.unwrap().unwrap();
    assert_eq!((kv.value, kv.modified), (Bytes::from("1"), created));

    // Gone again before anyone could look: it is not made a second time, for another has deleted it.
    let remove = async {
        let kv = eventually("the create", || async { direct.get("/u/gone").await.unwrap() }).await;
        expect_committed(direct.commit(Write::Delete { key: "/u/gone".into(), expected: kv.modified }).await)
    };
    proxy.mute(false);
    let both = Etcd::connect(Config { endpoints: muted_first.to_vec(), ..cluster.config() }).await.unwrap();
    both.revision().await.unwrap();
    proxy.mute(true);
    let (outcome, deleted) = tokio::join!(both.commit(Write::Create { key: "/u/gone".into(), value: "1".into() }), remove);
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    assert_eq!((direct.get("/u/gone").await.unwrap(), direct.revision().await.unwrap()), (None, deleted));

    // No way is left: nobody knows, and nobody says that it was not done.
    let asked = Instant::now();
    let outcome = alone.commit(Write::Create { key: "/u/b".into(), value: "1".into() }).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(direct.get("/u/b").await.unwrap().is_some(), "it was done, as it happens");
    // The loss is known now: a further write is not even sent.
    let outcome = alone.commit(Write::Create { key: "/u/c".into(), value: "1".into() }).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert!(direct.get("/u/c").await.unwrap().is_none());

    // Updates and deletes.
    proxy.mute(false);
    let both = Etcd::connect(Config { endpoints: muted_first.to_vec(), ..cluster.config() }).await.unwrap();
    both.revision().await.unwrap();
    proxy.mute(true);
    let updated = update(&both, "/u/a", "2", created).await;
    assert_eq!(direct.get("/u/a").await.unwrap().unwrap().modified, updated, "it was done once");
    proxy.mute(false);
    let both = Etcd::connect(Config { endpoints: muted_first.to_vec(), ..cluster.config() }).await.unwrap();
    both.revision().await.unwrap();
    proxy.mute(true);
    let outcome = both.commit(Write::Delete { key: "/u/a".into(), expected: updated }).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "nothing stands there that could tell who deleted it: {outcome:?}");
    assert!(direct.get("/u/a").await.unwrap().is_none());
    // A conflict that can be proven is said as such.
    let b = direct.get("/u/b").await.unwrap().unwrap();
    proxy.mute(false);
    let both = Etcd::connect(Config { endpoints: muted_first.to_vec(), ..cluster.config() }).await.unwrap();
    both.revision().await.unwrap();
    proxy.mute(true);
    let outcome = both.commit(Write::Create { key: "/u/b".into(), value: "9".into() }).await;
    assert!(matches!(&outcome, Ok(Outcome::Conflict(Some(kv))) if kv.modified == b.modified), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_database_is_said_clearly_and_opens_again() {
    let cluster = Cluster::start_with(1, &["--quota-backend-bytes=4194304"]).await;
    let store = cluster.connect().await;
    let mut standing = create(&store, "/f/a", vec![b'x'; 200_000]).await;
    let full = eventually("the quota", || async {
        let at = store.get("/f/a").await.unwrap().unwrap().modified;
        store.commit(Write::Update { key: "/f/a".into(), value: vec![b'x'; 200_000].into(), expected: at }).await.err()
    })
    .await;
    assert!(matches!(&full, Error::Unwritable(why) if why.contains("quota") && why.contains("regent etcd defragment")), "{full}");
    assert!(matches!(store.check(Depth::Quick).await, Err(Error::Unwritable(_))));
    assert!(matches!(store.trouble(), Some(Error::Unwritable(_))));
    standing = standing.max(store.get("/f/a").await.unwrap().expect("reads go on").modified);
    store.compact(store.revision().await.unwrap()).await.unwrap();
    cluster::defragment_all(&store).await.unwrap();
    assert_eq!(cluster::disarm(&store).await.unwrap(), 1);
    store.check(Depth::Quick).await.unwrap();
    assert!(store.trouble().is_none());
    update(&store, "/f/a", "small", standing).await;
    let too_large = store.commit(Write::Create { key: "/f/b".into(), value: vec![b'x'; 9 << 20].into() }).await;
    assert!(matches!(too_large, Err(Error::TooLarge(_))), "{too_large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_is_told_so() {
    let cluster = Cluster::start(1).await;
    let stranger = Etcd::connect(Config { certificate_pem: None, key_pem: None, ..cluster.config() }).await.unwrap();
    let refused = stranger.revision().await;
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("ertificate")), "{refused:?}");
    let other = pki::Authority::generate("other-ca").unwrap();
    let misled = Etcd::connect(Config { ca_pem: Some(other.certificate_pem().into()), ..cluster.config() }).await.unwrap();
    let refused = misled.revision().await;
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("ertificate")), "{refused:?}");
    // New credentials are taken up by the same store.
    stranger.reconfigure(cluster.config()).unwrap();
    stranger.revision().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_and_long_pasts_come_whole() {
    let cluster = Cluster::start(1).await;
    let store = cluster.connect().await;
    let start = store.revision().await.unwrap();
    let count = 24;
    for i in 0..count {
        create(&store, &format!("/l/{i:03}"), vec![b'a' + i as u8; 3 << 20]).await;
    }
    let page = store.list("/l/", None, 0, None).await.unwrap();
    assert_eq!((page.items.len(), page.more), (count, false));
    for (i, kv) in page.items.iter().enumerate() {
        assert!(kv.key == format!("/l/{i:03}") && kv.value.len() == 3 << 20 && kv.value[0] == b'a' + i as u8);
    }
    let first = store.list("/l/", None, 5, Some(page.revision)).await.unwrap();
    assert_eq!((first.items.len(), first.more), (5, true));
    let mut watch = store.watch("/l/", start).await.unwrap();
    let events = events_until(&mut watch, |events| events.len() >= count).await;
    assert!(events.iter().all(|event| event.value.as_ref().is_some_and(|value| value.len() == 3 << 20)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_lead_and_leave() {
    let mut etcd = Cluster::start(3).await;
    let store = etcd.connect().await;
    for i in 0..50 {
        create(&store, &format!("/m/{i}"), "x").await;
    }
    let all = cluster::status(&store).await.unwrap();
    assert_eq!(all.iter().filter(|status| status.health.as_ref().is_ok_and(|health| health.leader && health.database_bytes > 0)).count(), 1);
    let leading = leader(&etcd, &store).await;
    let next = all.iter().find(|status| etcd.index(&status.member.name) != leading).unwrap().member.clone();
    cluster::move_leader(&store, next.id).await.unwrap();
    assert_eq!(leader(&etcd, &store).await, etcd.index(&next.name));

    // One dies. The others may not go, it may.
    let dead = (0..3).find(|i| etcd.members()[*i].name != next.name).unwrap();
    etcd.kill(dead);
    let id = |name: &str| all.iter().find(|status| status.member.name == name).unwrap().member.id;
    let dead_name = etcd.members()[dead].name.clone();
    let refused = cluster::remove(&store, next.id).await.unwrap_err();
    assert!(matches!(&refused, cluster::Error::CostsQuorum(why) if why.contains(&dead_name)), "{refused}");
    cluster::remove(&store, id(&dead_name)).await.unwrap();
    etcd.forget(dead);
    assert_eq!(cluster::list(&store).await.unwrap().len(), 2);

    // Its place is taken: first without a vote, then with one.
    let joined = etcd.prepare_member("etcd-4");
    let peer_url = [etcd.members()[joined].peer_url()];
    let learner = cluster::add_learner(&store, &peer_url).await.unwrap();
    assert!(learner.learner);
    assert_eq!(cluster::add_learner(&store, &peer_url).await.unwrap().id, learner.id, "asking again adds no second one");
    etcd.start_member(joined);
    cluster::promote_when_ready(&store, learner.id, PATIENCE).await.unwrap();
    store.reconfigure(etcd.config()).unwrap();
    let member = cluster::list(&store).await.unwrap().into_iter().find(|member| member.id == learner.id).unwrap();
    assert!(!member.learner && member.name == "etcd-4");
    let new = etcd.connect_to(joined).await;
    assert_eq!(new.list("/m/", None, 0, None).await.unwrap().items.len(), 50);
    assert!(matches!(cluster::remove(&store, 77).await, Err(cluster::Error::NoSuchMember(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_soon_leaves_a_member_that_hangs() {
    let cluster = Cluster::start(3).await;
    let store = cluster.connect().await;
    let mut standing = create(&store, "/h/a", "0").await;
    let mut watch = store.watch("/h/", standing).await.unwrap();
    // The member that answers first serves the watch.
    let url = &cluster.config().endpoints[0];
    let first = cluster.members().iter().position(|member| member.client_url() == *url).unwrap();
    for hung in [first, (first + 1) % 3, (first + 2) % 3] {
        cluster.pause(hung);
        let written = loop {
            match store.commit(Write::Update { key: "/h/a".into(), value: "1".into(), expected: standing }).await {
                Ok(Outcome::Committed(revision)) => break revision,
                Ok(Outcome::Conflict(Some(kv))) => standing = kv.modified,
                Err(Error::Unknown(_) | Error::Unavailable(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        let asked = Instant::now();
        let events = events_until(&mut watch, |events| events.last().is_some_and(|event| event.revision >= written)).await;
        assert!(asked.elapsed() < Duration::from_secs(3), "readers waited {:?} for {} events", asked.elapsed(), events.len());
        standing = written;
        cluster.resume(hung);
        cluster.wait_ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_members_that_differ_nothing_is_served() {
    use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Certificate, Client, ConnectOptions, Identity, TlsOptions};
    let cluster = Cluster::start(1).await;
    let store = cluster.connect().await;
    let at = create(&store, "/d/a", "1").await;
    let config = cluster.config();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(config.ca_pem.clone().unwrap()))
        .identity(Identity::from_pem(config.certificate_pem.clone().unwrap(), config.key_pem.clone().unwrap()));
    let mut client = Client::connect(&config.endpoints, Some(ConnectOptions::new().with_tls(tls))).await.unwrap();
    let member = cluster::list(&store).await.unwrap()[0].id;
    let mut options = AlarmOptions::new();
    options.with_member(member);
    client.alarm(AlarmAction::Activate, AlarmType::Corrupt, Some(options)).await.unwrap();

    let refused = store.commit(Write::Update { key: "/d/a".into(), value: "2".into(), expected: at }).await;
    assert!(matches!(&refused, Err(Error::Damaged(why)) if why.contains("CORRUPT")), "{refused:?}");
    assert!(matches!(store.trouble(), Some(Error::Damaged(_))));
    assert!(matches!(store.get("/d/a").await, Err(Error::Damaged(_))));
    assert!(matches!(store.check(Depth::Quick).await, Err(Error::Damaged(_))));
    let status = cluster::status(&store).await.unwrap();
    assert_eq!(status[0].health.as_ref().unwrap().alarms, [cluster::Alarm::Corrupt]);
    assert_eq!(cluster::disarm(&store).await.unwrap(), 1);
    store.check(Depth::Quick).await.unwrap();
    update(&store, "/d/a", "2", at).await;
}
