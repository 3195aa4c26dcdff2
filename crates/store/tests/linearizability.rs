//! Many clients on three members that are killed, paused and cut off at random: what they were told must be explained by one order of
//! all operations, and what watchers saw must be that order, whole.
//!
//! `REGENT_SEEDS=5` runs the first five seeds (20 otherwise), `REGENT_SEED=7` that one alone. A failure names its seed.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use store::{
    Error, Event, Outcome, Page, Revision, Store, Watched, Write,
    etcd::{Config, Etcd, cluster},
};
use support::{
    Cluster, Random,
    history::{Action, Answer, Operation, Value, linearizable, watched},
};
use tokio::time::Instant;

const SEEDS: u64 = 20;
const CLIENTS: usize = 4;
const WATCHERS: usize = 2;
const KEYS: usize = 3;
/// How long the clients of one seed write.
const RUN: Duration = Duration::from_millis(3_500);
const PATIENCE: Duration = Duration::from_secs(40);

/// What all clients of a seed share and leave behind.
struct Record {
    prefix: String,
    clock: AtomicU64,
    next_value: AtomicU64,
    /// The newest revision that a client was told of.
    acknowledged: AtomicU64,
    over: AtomicBool,
    operations: parking_lot::Mutex<HashMap<String, Vec<Operation>>>,
    committed: parking_lot::Mutex<Vec<(Revision, String, Option<Value>)>>,
    /// Values of writes that were refused or said not to be done.
    never: parking_lot::Mutex<HashSet<Value>>,
    pages: parking_lot::Mutex<Vec<Page>>,
}

impl Record {
    fn new(prefix: String) -> Record {
        Record {
            prefix,
            clock: AtomicU64::new(0),
            next_value: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
            over: AtomicBool::new(false),
            operations: parking_lot::Mutex::default(),
            committed: parking_lot::Mutex::default(),
            never: parking_lot::Mutex::default(),
            pages: parking_lot::Mutex::default(),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    fn note(&self, key: &str, called: u64, action: Action, answer: Answer) {
        let operation = Operation { called, returned: self.tick(), action, answer };
        self.operations.lock().entry(key.into()).or_default().push(operation);
    }
}

fn number(value: &Bytes) -> Value {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn text(value: Value) -> Bytes {
    value.to_string().into()
}

/// One client: reads, creates, updates and deletes what it believes to stand there.
async fn client(store: Arc<dyn Store>, record: Arc<Record>, mut random: Random) {
    let mut known: HashMap<String, Option<(Value, Revision)>> = HashMap::new();
    while !record.over.load(SeqCst) {
        tokio::time::sleep(random.ms(0, 12)).await;
        let key = format!("{}{}", record.prefix, random.below(KEYS as u64));
        if random.chance(6) {
            let before = record.acknowledged.load(SeqCst);
            if let Ok(page) = store.list(&record.prefix, None, 0, None).await {
                assert!(page.revision.0 >= before, "a list shows {}, though {before} was acknowledged before", page.revision);
                record.pages.lock().push(page);
            }
            let before = record.acknowledged.load(SeqCst);
            if let Ok(newest) = store.revision().await {
                assert!(newest.0 >= before, "the newest revision is said to be {newest}, though {before} was acknowledged before");
            }
            continue;
        }
        let standing = known.get(&key).copied();
        if standing.is_none() || random.chance(35) {
            let called = record.tick();
            if let Ok(found) = store.get(&key).await {
                let found = found.map(|kv| (number(&kv.value), kv.modified));
                record.note(&key, called, Action::Read, Answer::Found(found.map(|(value, _)| value)));
                known.insert(key, found);
            }
            continue;
        }
        let value = record.next_value.fetch_add(1, SeqCst);
        let (action, write, left) = match standing.flatten() {
            None => (Action::Create(value), Write::Create { key: key.clone(), value: text(value) }, Some(value)),
            Some((standing, expected)) if random.chance(25) => (Action::Delete(standing), Write::Delete { key: key.clone(), expected }, None),
            Some((standing, expected)) => {
                (Action::Update(value, standing), Write::Update { key: key.clone(), value: text(value), expected }, Some(value))
            }
        };
        let called = record.tick();
        match store.commit(write).await {
            Ok(Outcome::Committed(revision)) => {
                record.note(&key, called, action, Answer::Done);
                record.acknowledged.fetch_max(revision.0, SeqCst);
                record.committed.lock().push((revision, key.clone(), left));
                known.insert(key, left.map(|value| (value, revision)));
            }
            Ok(Outcome::Conflict(standing)) => {
                let standing = standing.map(|kv| (number(&kv.value), kv.modified));
                record.note(&key, called, action, Answer::Refused(standing.map(|(value, _)| value)));
                record.never.lock().insert(value);
                known.insert(key, standing);
            }
            Err(Error::Unknown(_)) => {
                record.note(&key, called, action, Answer::Unknown);
                known.remove(&key);
            }
            Err(Error::Unavailable(_)) => {
                record.never.lock().insert(value);
                known.remove(&key);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// Follows the prefix until the event of the last key, and gives all events.
async fn watcher(store: Arc<dyn Store>, record: Arc<Record>, from: Revision) -> Vec<Event> {
    let mut watch = loop {
        match store.watch(&record.prefix, from).await {
            Ok(watch) => break watch,
            Err(Error::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    };
    let (mut events, mut reached) = (Vec::<Event>::new(), from);
    let last = format!("{}end", record.prefix);
    loop {
        match watch.next().await.expect("a watch ended without a word").expect("a watch ended, though nothing was compacted") {
            Watched::Progress(revision) => reached = reached.max(revision),
            Watched::Events(more) => {
                for event in more {
                    assert!(event.revision > reached, "revision {} came after progress to {reached}", event.revision);
                    events.push(event);
                }
                if events.last().is_some_and(|event| event.key == last) {
                    return events;
                }
            }
        }
    }
}

/// Strikes members until the time is over, then heals all.
async fn nemesis(cluster: &mut Cluster, random: &mut Random, admin: &Etcd) -> Vec<String> {
    let end = Instant::now() + RUN;
    let mut done = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(random.ms(100, 500)).await;
        let mut leading = None;
        if random.chance(50)
            && let Ok(all) = cluster::status(admin).await
        {
            let leader = all.iter().find(|status| status.health.as_ref().is_ok_and(|health| health.leader));
            leading = leader.map(|leader| cluster.index(&leader.member.name));
        }
        let first = leading.unwrap_or_else(|| random.below(3) as usize);
        let victims = if random.chance(15) { vec![first, (first + 1) % 3] } else { vec![first] };
        let fault = ["kill", "pause", "cut"][random.below(3) as usize];
        for victim in &victims {
            match fault {
                "kill" => cluster.kill(*victim),
                "pause" => cluster.pause(*victim),
                _ => cluster.cut(*victim),
            }
        }
        tokio::time::sleep(random.ms(200, 1_600)).await;
        done.push(format!("{fault} {victims:?}{}", if leading.is_some() { " (leader)" } else { "" }));
        for victim in victims {
            match fault {
                "kill" => cluster.restart(victim),
                "pause" => cluster.resume(victim),
                _ => cluster.mend(),
            }
        }
    }
    done
}

/// One seed on a cluster that is whole, and is whole again afterwards. Returns how many writes were committed, and how many unknown.
async fn run_seed(cluster: &mut Cluster, seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let record = Arc::new(Record::new(format!("/linearizability/{seed}/")));
    // Each has connections of its own, and asks another member first.
    let connect = async |turn: usize| {
        let mut endpoints = cluster.config().endpoints;
        endpoints.rotate_left(turn % 3);
        Arc::new(Etcd::connect(Config { endpoints, ..cluster.config() }).await.unwrap())
    };
    let admin = connect(0).await;
    let from = admin.revision().await.unwrap();
    let mut clients = Vec::new();
    for i in 0..CLIENTS {
        clients.push(tokio::spawn(client(connect(i).await, record.clone(), Random(random.next()))));
    }
    let mut watchers = Vec::new();
    for i in 0..WATCHERS {
        watchers.push(tokio::spawn(watcher(connect(i + 1).await, record.clone(), from)));
    }
    let faults = nemesis(cluster, &mut random, &admin).await;
    record.over.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    let healed = async || cluster::status(&admin).await.is_ok_and(|all| all.iter().all(|status| status.health.is_ok()));
    while !healed().await {
        assert!(Instant::now() < deadline, "seed {seed}: the cluster does not heal after {faults:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What stands in the end is part of the history.
    for i in 0..KEYS {
        let key = format!("{}{i}", record.prefix);
        let called = record.tick();
        let found = admin.get(&key).await.unwrap().map(|kv| number(&kv.value));
        record.note(&key, called, Action::Read, Answer::Found(found));
    }
    let end = admin.commit(Write::Create { key: format!("{}end", record.prefix), value: text(0) }).await.unwrap();
    assert!(matches!(end, Outcome::Committed(_)));

    let mut logs = Vec::new();
    for watcher in watchers {
        let log = tokio::time::timeout(PATIENCE, watcher).await;
        logs.push(log.unwrap_or_else(|_| panic!("seed {seed}: a watch does not catch up after {faults:?}")).unwrap());
    }
    judge(&record, &logs).unwrap_or_else(|why| panic!("seed {seed}, after {faults:?}: {why}"));
    let log = &logs[0];
    let is_unknown = |operation: &&Operation| operation.answer == Answer::Unknown;
    let unknown = record.operations.lock().values().flatten().filter(is_unknown).count();
    let committed = record.committed.lock().len();
    println!("seed {seed}: {committed} writes committed, {unknown} unknown, {} events; {faults:?}", log.len());
    (committed, unknown)
}

/// Whether what clients were told and what watchers saw is one history.
fn judge(record: &Record, logs: &[Vec<Event>]) -> Result<(), String> {
    for (key, operations) in record.operations.lock().iter() {
        linearizable(operations).map_err(|why| format!("{key}: {why}"))?;
    }
    watched(&logs[0])?;
    if logs.iter().any(|other| *other != logs[0]) {
        return Err("two watchers saw different things".into());
    }
    compare(record, &logs[0])
}

/// What clients were told against what watchers saw.
fn compare(record: &Record, log: &[Event]) -> Result<(), String> {
    let by_revision: HashMap<Revision, &Event> = log.iter().map(|event| (event.revision, event)).collect();
    for (revision, key, value) in record.committed.lock().iter() {
        let event = by_revision.get(revision).ok_or_else(|| format!("no watcher saw the write that was committed at {revision}"))?;
        if event.key != *key || event.value.as_ref().map(number) != *value {
            return Err(format!("at {revision} a client wrote {key} = {value:?}, watchers saw {event:?}"));
        }
    }
    let never = record.never.lock();
    if let Some(event) = log.iter().find(|event| event.value.as_ref().is_some_and(|value| never.contains(&number(value)))) {
        return Err(format!("a write that was said not to be done took place: {event:?}"));
    }
    let mut state: BTreeMap<&str, Value> = BTreeMap::new();
    let mut events = log.iter().peekable();
    let mut pages = record.pages.lock().clone();
    pages.sort_by_key(|page| page.revision);
    for page in pages {
        while let Some(event) = events.next_if(|event| event.revision <= page.revision) {
            match &event.value {
                Some(value) => state.insert(&event.key, number(value)),
                None => state.remove(event.key.as_str()),
            };
        }
        let shown: BTreeMap<&str, Value> = page.items.iter().map(|kv| (kv.key.as_str(), number(&kv.value))).collect();
        if shown != state {
            return Err(format!("a list at {} shows {shown:?}, watchers saw {state:?}", page.revision));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_clients_are_told_is_one_history_whatever_happens_to_members() {
    let parse = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} must be a number")));
    let seeds: Vec<u64> = match parse("REGENT_SEED") {
        Some(seed) => vec![seed],
        None => (1..=parse("REGENT_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut cluster = Cluster::start(3).await;
    let mut committed = 0;
    for seed in &seeds {
        committed += run_seed(&mut cluster, *seed).await.0;
    }
    assert!(committed >= seeds.len() * 20, "only {committed} writes in {} seeds: this proves nothing", seeds.len());
}

mod judges {
    use super::*;
    use store::{KeyValue, Watch, memory::Memory};

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Lie {
        None,
        /// Reads show what stood there before.
        Stale,
        /// Writes are acknowledged and forgotten.
        Forgotten,
        /// Writes are done and said not to be.
        Denied,
        /// Watches leave events out.
        Skipped,
        /// Watches show events twice.
        Repeated,
    }

    /// A store that is honest nine times out of ten.
    struct Liar {
        truth: Memory,
        lie: Lie,
        random: parking_lot::Mutex<Random>,
        before: parking_lot::Mutex<HashMap<String, KeyValue>>,
    }

    impl Liar {
        fn lies(&self, lie: Lie) -> bool {
            self.lie == lie && self.random.lock().chance(10)
        }
    }

    #[async_trait::async_trait]
    impl Store for Liar {
        async fn get(&self, key: &str) -> store::Result<Option<KeyValue>> {
            let stale = if self.lies(Lie::Stale) { self.before.lock().get(key).cloned() } else { None };
            if stale.is_some() { Ok(stale) } else { self.truth.get(key).await }
        }
        async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> store::Result<Page> {
            self.truth.list(prefix, after, limit, at).await
        }
        async fn commit(&self, write: Write) -> store::Result<Outcome> {
            if write.key().ends_with("end") {
                return self.truth.commit(write).await;
            }
            if let Some(kv) = self.truth.get(write.key()).await? {
                self.before.lock().insert(kv.key.clone(), kv);
            }
            if self.lies(Lie::Forgotten) {
                return Ok(Outcome::Committed(Revision(self.truth.revision().await?.0 + 1)));
            }
            let outcome = self.truth.commit(write).await;
            if self.lies(Lie::Denied) { Err(Error::Unavailable("a lie".into())) } else { outcome }
        }
        async fn watch(&self, prefix: &str, from: Revision) -> store::Result<Watch> {
            let (lie, seed) = (self.lie, self.random.lock().next());
            let distort = move |watched: store::Result<Watched>| {
                let Ok(Watched::Events(events)) = watched else { return watched };
                let mut random = Random(seed ^ events[0].revision.0);
                let mut shown = Vec::new();
                for event in events {
                    let count = match lie {
                        Lie::Skipped if !event.key.ends_with("end") && random.chance(10) => 0,
                        Lie::Repeated if random.chance(10) => 2,
                        _ => 1,
                    };
                    shown.extend(std::iter::repeat_n(event, count));
                }
                Ok(Watched::Events(shown))
            };
            Ok(self.truth.watch(prefix, from).await?.map(distort).boxed())
        }
        async fn revision(&self) -> store::Result<Revision> {
            self.truth.revision().await
        }
        async fn compact(&self, at: Revision) -> store::Result<()> {
            self.truth.compact(at).await
        }
    }

    /// The verdict on a short run against a store with this fault.
    async fn verdict(lie: Lie) -> Result<(), String> {
        let random = parking_lot::Mutex::new(Random(lie as u64));
        let store: Arc<dyn Store> = Arc::new(Liar { truth: Memory::default(), lie, random, before: parking_lot::Mutex::default() });
        let record = Arc::new(Record::new("/lies/".into()));
        let mut clients = tokio::task::JoinSet::new();
        for i in 0..CLIENTS {
            clients.spawn(client(store.clone(), record.clone(), Random(i as u64)));
        }
        let mut watchers = tokio::task::JoinSet::new();
        for _ in 0..WATCHERS {
            watchers.spawn(watcher(store.clone(), record.clone(), Revision(1)));
        }
        let enough = Instant::now() + Duration::from_secs(20);
        while record.committed.lock().len() < 120 && Instant::now() < enough && clients.len() == CLIENTS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        record.over.store(true, SeqCst);
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|error| format!("a client: {error}"))?;
        }
        store.commit(Write::Create { key: "/lies/end".into(), value: text(0) }).await.unwrap();
        let mut logs = Vec::new();
        while let Some(ended) = watchers.join_next().await {
            logs.push(ended.map_err(|error| format!("a watcher: {error}"))?);
        }
        judge(&record, &logs)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_lies_is_found_out() {
        assert_eq!(verdict(Lie::None).await, Ok(()));
        for lie in [Lie::Stale, Lie::Forgotten, Lie::Denied, Lie::Skipped, Lie::Repeated] {
            assert!(verdict(lie).await.is_err(), "{lie:?} was not noticed");
        }
    }

    fn operation(called: u64, returned: u64, action: Action, answer: Answer) -> Operation {
        Operation { called, returned, action, answer }
    }

    fn read(called: u64, returned: u64, found: impl Into<Option<Value>>) -> Operation {
        operation(called, returned, Action::Read, Answer::Found(found.into()))
    }

    fn done(called: u64, returned: u64, action: Action) -> Operation {
        operation(called, returned, action, Answer::Done)
    }

    fn unknown(called: u64, action: Action) -> Operation {
        operation(called, called + 1, action, Answer::Unknown)
    }

    #[test]
    fn what_one_order_explains_is_accepted() {
        let histories: [&[Operation]; 8] = [
            &[],
            &[done(0, 1, Action::Create(1)), read(2, 3, 1), done(4, 5, Action::Update(2, 1)), done(6, 7, Action::Delete(2)), read(8, 9, None)],
            // At the same time, either way round.
            &[done(0, 9, Action::Create(1)), read(1, 2, None), read(3, 4, 1)],
            &[done(0, 9, Action::Create(1)), operation(1, 8, Action::Create(2), Answer::Refused(Some(1)))],
            // An unknown write that was done long after, one that never was, and a delete of which nothing is known.
            &[unknown(0, Action::Create(1)), read(5, 6, None), read(7, 8, 1)],
            &[unknown(0, Action::Create(1)), read(5, 6, None), done(7, 8, Action::Create(2))],
            &[done(0, 1, Action::Create(1)), unknown(2, Action::Delete(1)), read(10, 11, 1), read(12, 13, None)],
            &[done(0, 1, Action::Create(1)), unknown(2, Action::Delete(1)), read(10, 11, 1)],
        ];
        for history in histories {
            assert_eq!(linearizable(history), Ok(()), "{history:#?}");
        }
    }

    #[test]
    fn what_no_order_explains_is_refused() {
        let histories: [(&str, &[Operation]); 9] = [
            ("a stale read", &[done(0, 1, Action::Create(1)), read(2, 3, None)]),
            ("a read that goes back", &[done(0, 9, Action::Create(1)), read(1, 2, 1), read(3, 4, None)]),
            ("two updates of one state", &[done(0, 1, Action::Create(1)), done(2, 5, Action::Update(2, 1)), done(3, 6, Action::Update(3, 1))]),
            ("two creates", &[done(0, 5, Action::Create(1)), done(1, 6, Action::Create(2))]),
            ("a lost write", &[done(0, 1, Action::Create(1)), done(2, 3, Action::Update(2, 1)), read(4, 5, 1)]),
            ("a value from nowhere", &[done(0, 1, Action::Create(1)), read(2, 3, 7)]),
            ("a refusal without a reason", &[done(0, 1, Action::Create(1)), operation(2, 3, Action::Update(2, 1), Answer::Refused(Some(1)))]),
            ("back from the dead", &[unknown(0, Action::Create(1)), read(2, 3, 1), done(4, 5, Action::Delete(1)), read(6, 7, 1)]),
            (
                "done, and then not",
                &[done(0, 1, Action::Create(1)), done(2, 3, Action::Delete(1)), operation(4, 5, Action::Create(2), Answer::Refused(Some(1)))],
            ),
        ];
        for (what, history) in histories {
            assert!(linearizable(history).is_err(), "{what} was accepted");
        }
    }

    #[test]
    fn a_long_history_is_judged_quickly() {
        let mut history = vec![done(0, 1, Action::Create(0))];
        for i in 1..2000u64 {
            history.push(done(i * 10, i * 10 + 5, Action::Update(i, i - 1)));
            history.extend((0..3).map(|j| read(i * 10 + j, i * 10 + 9, i)));
            if i % 100 == 0 {
                history.push(unknown(i * 10, Action::Delete(i + 5)));
            }
        }
        let started = std::time::Instant::now();
        assert_eq!(linearizable(&history), Ok(()));
        history.push(read(30_000, 30_001, 5));
        assert!(linearizable(&history).is_err());
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }

    fn event(revision: u64, key: &str, value: Option<&str>, previous: Option<u64>, created: u64) -> Event {
        let bytes = |text: &str| Bytes::from(text.to_string());
        Event { revision: Revision(revision), key: key.into(), value: value.map(bytes), previous: previous.map(Revision), created: Revision(created) }
    }

    #[test]
    fn a_stream_that_skips_repeats_or_reorders_is_refused() {
        let good = vec![
            event(2, "/a", Some("1"), None, 2),
            event(3, "/b", Some("1"), None, 3),
            event(5, "/a", Some("2"), Some(2), 2),
            event(6, "/a", None, Some(5), 2),
            event(8, "/a", Some("3"), None, 8),
        ];
        assert_eq!(watched(&good), Ok(()));
        let changed = |change: &dyn Fn(&mut Vec<Event>)| {
            let mut events = good.clone();
            change(&mut events);
            watched(&events)
        };
        for i in [0, 2, 3] {
            assert!(changed(&|events| drop(events.remove(i))).is_err(), "the event {i} may not be missing");
        }
        for i in 0..5 {
            assert!(changed(&|events| events.insert(i, events[i].clone())).is_err(), "the event {i} may not come twice");
        }
        for i in 0..4 {
            assert!(changed(&|events| events.swap(i, i + 1)).is_err(), "the events {i} and {} may not change places", i + 1);
        }
    }
}
