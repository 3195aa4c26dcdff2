//! Clients of a real API server that is killed with `kill -9` again and again, on SQLite and on etcd (which is killed too): what they were
//! told is there, once and in its order, what they were refused is not, and watchers saw the same history without a gap.
//!
//! `make crashes` runs 10,000 acknowledged writes on each store; here it is a share. `REGENT_WRITES` says how many, `REGENT_SEED` repeats
//! the choices of a run. A failure names its seed and leaves the server's last words.

#[path = "../../store/tests/support/mod.rs"]
mod etcd;
#[path = "crashes/judge.rs"]
mod judge;
#[path = "crashes/server.rs"]
mod server;

use etcd::{Cluster, Random, history::Action, history::Answer};
use futures::StreamExt;
use judge::{Followed, Record, token_of};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use server::{Backend, Process};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Acknowledged writes without `REGENT_WRITES`.
const WRITES: u64 = 400;
const CLIENTS: usize = 8;
/// Objects that all clients update.
const SHARED: u64 = 12;
/// How long one request, one start or one catching up may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait before a server that does not answer is asked again.
const AWAY: Duration = Duration::from_millis(5);
/// Deaths of the server, however few writes are wanted.
const KILLS: u64 = 5;
/// The longest that writes may take, beside what is for every one of them.
const RUN: (Duration, Duration) = (Duration::from_secs(120), Duration::from_millis(50));
const NAMESPACE: &str = "crashes";
/// The object that is written last: whoever has seen it has seen all.
const LAST: &str = "zz-last";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text}")))
}

/// An object whose parts all say which write made it, and what that write stood on.
fn object(name: &str, token: u64, after: Option<u64>) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.into());
    map.metadata.annotations = Some(BTreeMap::from([("token".into(), token.to_string())]));
    let text = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    // Long enough that a torn page would show.
    let padding = format!("{token};").repeat(200);
    map.data = Some(BTreeMap::from([("after".into(), text(after)), ("padding".into(), padding), ("token".into(), token.to_string())]));
    map
}

/// One client: reads, creates, updates what it has read, and deletes it now and then.
async fn client(api: Api<ConfigMap>, record: Arc<Record>, me: usize, mut random: Random) {
    let mut made = 0;
    while !record.over.load(SeqCst) {
        let shared = random.chance(60);
        let name = if shared { format!("shared-{}", random.below(SHARED)) } else { format!("own-{me}-{made}") };
        made += u64::from(!shared);
        let mut standing = None;
        if shared {
            let (called, before) = (record.tick(), record.newest_of(&name));
            match within(api.get_opt(&name)).await {
                Ok(found) => {
                    let found = found.map(|found| (judge::read(&found).unwrap_or_else(|why| panic!("{why}")), found));
                    if let (Some(before), Some((read, _))) = (before, &found) {
                        assert!(read.revision >= before, "a read shows {name} at {}, though {before} was acknowledged before", read.revision);
                    }
                    record.note(&name, called, Action::Read, Answer::Found(found.as_ref().map(|(read, _)| read.token)));
                    standing = found;
                }
                Err(kube::Error::Api(status)) if status.code < 500 => panic!("a read is refused: {status:?}"),
                Err(_) => {
                    // The server is away, or just was.
                    tokio::time::sleep(AWAY).await;
                    continue;
                }
            }
        }
        let token = record.next_token.fetch_add(1, SeqCst);
        let floor = record.acknowledged.load(SeqCst);
        let called = record.tick();
        let (action, outcome) = match standing {
            None => (Action::Create(token), within(api.create(&PostParams::default(), &object(&name, token, None))).await.map(Some)),
            Some((read, found)) if random.chance(8) => {
                let preconditions = Preconditions { resource_version: found.metadata.resource_version, uid: found.metadata.uid };
                let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                (Action::Delete(read.token), within(api.delete(&name, &how)).await.map(|_| None))
            }
            Some((read, found)) => {
                let mut changed = object(&name, token, Some(read.token));
                changed.metadata.resource_version = found.metadata.resource_version;
                (Action::Update(token, read.token), within(api.replace(&name, &PostParams::default(), &changed)).await.map(Some))
            }
        };
        match outcome {
            Ok(answer) => {
                record.note(&name, called, action, Answer::Done);
                let answer = answer.map(|answer| judge::read(&answer).unwrap_or_else(|why| panic!("{why}")));
                if let Some(answer) = &answer {
                    assert_eq!(answer.token, token, "the answer shows another write");
                    assert!(answer.revision > floor, "{name} was written at {}, though {floor} was acknowledged before", answer.revision);
                }
                record.acknowledge(&name, token, answer.map(|answer| answer.revision));
            }
            // Refused: by a condition, or because there was no room. Such a write must never be seen.
            Err(kube::Error::Api(status)) if status.code < 500 => record.refuse(token),
            Err(_) => {
                record.note(&name, called, action, Answer::Unknown);
                record.unknown.fetch_add(1, SeqCst);
            }
        }
    }
}

/// A request that ends, one way or the other.
async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    timeout(PATIENCE, request).await.expect("a request hangs: it is neither answered nor refused")
}

/// Follows all objects over every end of a watch until the last one is there. A watch that is told that the past is gone lists anew.
async fn watcher(api: Api<ConfigMap>, from: u64, pause: Duration) -> Followed {
    let mut followed = Followed::new(from);
    loop {
        let watch = match within(api.watch(&WatchParams::default().timeout(200), &followed.reached.to_string())).await {
            Ok(watch) => watch,
            Err(kube::Error::Api(status)) if status.code == 410 => {
                followed.gap(list_revision(&api).await);
                continue;
            }
            Err(kube::Error::Api(status)) if status.code < 500 => panic!("a watch is refused: {status:?}"),
            Err(_) => {
                tokio::time::sleep(AWAY).await;
                continue;
            }
        };
        let mut watch = std::pin::pin!(watch);
        loop {
            let event = timeout(PATIENCE * 5, watch.next()).await.expect("a watch is silent: no event, no end");
            let (what, object) = match event {
                Some(Ok(WatchEvent::Added(object))) => ("ADDED", object),
                Some(Ok(WatchEvent::Modified(object))) => ("MODIFIED", object),
                Some(Ok(WatchEvent::Deleted(object))) => ("DELETED", object),
                Some(Ok(WatchEvent::Bookmark(_))) => continue,
                Some(Ok(WatchEvent::Error(status))) if status.code == 410 => {
                    followed.gap(list_revision(&api).await);
                    break;
                }
                Some(Ok(WatchEvent::Error(status))) => panic!("a watch ends with {status:?}"),
                Some(Err(_)) | None => break,
            };
            followed.take(what, &object).unwrap_or_else(|why| panic!("{why}"));
            if object.metadata.name.as_deref() == Some(LAST) {
                return followed;
            }
            tokio::time::sleep(pause).await;
        }
        followed.ends += 1;
    }
}

/// The revision of a whole list, once the server answers.
async fn list_revision(api: &Api<ConfigMap>) -> u64 {
    let listed = server::eventually("a list", || async { api.list(&ListParams::default()).await.ok() }).await;
    listed.metadata.resource_version.and_then(|text| text.parse().ok()).expect("a list has a revision")
}

/// Kills the server, and what is behind it, until enough has been acknowledged. The last server is left running.
async fn nemesis(server: &mut Process, cluster: &mut Option<Cluster>, record: &Record, random: &mut Random, writes: u64) -> (u64, u64) {
    let deadline = Instant::now() + RUN.0 + RUN.1 * u32::try_from(writes).expect("fewer writes");
    let (mut kills, mut kills_behind) = (0, 0);
    while record.count() < writes || kills < KILLS {
        assert!(Instant::now() < deadline, "{} of {writes} writes in time, after {kills} kills\n{}", record.count(), server.log());
        // Mostly while it works, sometimes while it starts.
        if random.chance(75) {
            server.wait_ready().await;
            tokio::time::sleep(random.ms(20, 1_000)).await;
        } else {
            tokio::time::sleep(random.ms(0, 600)).await;
        }
        let behind = random.chance(30);
        if let Some(cluster) = cluster.as_mut().filter(|_| behind) {
            cluster.kill(0);
            if random.chance(50) {
                tokio::time::sleep(random.ms(0, 300)).await;
            }
            cluster.restart(0);
            kills_behind += 1;
        }
        server.kill();
        server.start();
        kills += 1;
    }
    (kills, kills_behind)
}

async fn run(mut cluster: Option<Cluster>) {
    let writes = number("REGENT_WRITES", WRITES);
    let seed = number("REGENT_SEED", u64::from(std::process::id()));
    println!("REGENT_SEED={seed} REGENT_WRITES={writes}");
    let mut random = Random(seed);
    let backend = cluster.as_ref().map_or(Backend::Sqlite, Backend::of);
    let mut server = Process::new(backend);
    server.start();
    server.wait_ready().await;
    let namespace = Namespace { metadata: kube::core::ObjectMeta { name: Some(NAMESPACE.into()), ..Default::default() }, ..Default::default() };
    Api::all(server.client().await).create(&PostParams::default(), &namespace).await.expect("a namespace");

    let record = Arc::new(Record::default());
    let api = Api::<ConfigMap>::namespaced(server.client().await, NAMESPACE);
    let from = list_revision(&api).await;
    let started = Instant::now();
    let mut clients = Vec::new();
    for i in 0..CLIENTS {
        let api = Api::namespaced(server.client().await, NAMESPACE);
        clients.push(tokio::spawn(client(api, record.clone(), i, Random(random.next()))));
    }
    let mut watchers = Vec::new();
    for pause_ms in [0, 0, 5] {
        let api = Api::namespaced(server.client().await, NAMESPACE);
        watchers.push(tokio::spawn(watcher(api, from, Duration::from_millis(pause_ms))));
    }
    let (kills, kills_behind) = nemesis(&mut server, &mut cluster, &record, &mut random, writes).await;
    record.over.store(true, SeqCst);
    for client in clients {
        client.await.unwrap_or_else(|why| panic!("seed {seed}: a client: {why}\n{}", server.log()));
    }
    let took = started.elapsed();
    server.wait_ready().await;
    let token = record.next_token.fetch_add(1, SeqCst);
    let last = object(LAST, token, None);
    let written = server::eventually("the last write", || async {
        match api.create(&PostParams::default(), &last).await {
            Ok(written) => Some(written),
            Err(_) => api.get(LAST).await.ok(),
        }
    })
    .await;
    record.acknowledge(LAST, token, judge::read(&written).ok().map(|read| read.revision));
    let mut followed = Vec::new();
    for watcher in watchers {
        let seen = timeout(PATIENCE * 5, watcher).await.unwrap_or_else(|_| panic!("seed {seed}: a watch does not catch up"));
        followed.push(seen.unwrap_or_else(|why| panic!("seed {seed}: a watcher: {why}\n{}", server.log())));
    }
    // What is there after one more death is what is on disk.
    server.kill();
    server.start();
    server.wait_ready().await;
    let all = api.list(&ListParams::default()).await.expect("a list").items;
    for name in all.iter().filter_map(|object| object.metadata.name.clone()).filter(|name| name != LAST) {
        let standing = all.iter().find(|object| object.metadata.name.as_deref() == Some(&name)).and_then(token_of);
        let called = record.tick();
        record.note(&name, called, Action::Read, Answer::Found(standing));
    }
    let verdict = judge::judge(&record, &all, &followed);
    verdict.unwrap_or_else(|why| panic!("seed {seed}, after {kills} kills: {why}\n{}", server.log()));
    let unknown = record.unknown.load(SeqCst);
    println!(
        "seed {seed}: {} writes acknowledged in {took:.1?}, {unknown} unknown, {} refused; the server was killed {kills} times, etcd {kills_behind} times; \
         {} objects, {} events; watches ended {:?} times, gaps {:?}",
        record.count(),
        record.refused(),
        all.len(),
        followed[0].events.len(),
        followed.iter().map(|one| one.ends).collect::<Vec<_>>(),
        followed.iter().map(|one| one.gaps.len()).collect::<Vec<_>>(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_is_there_once_on_sqlite() {
    run(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_is_there_once_on_etcd() {
    run(Some(Cluster::start(1).await)).await;
}
