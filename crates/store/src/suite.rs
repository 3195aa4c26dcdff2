//! What every back end must do: one suite of checks, run on each (`tests/conformance.rs`).
//!
//! Each check gets a fresh, empty store and panics with a sentence when a promise is broken.

use crate::{Error, Event, Outcome, Revision, Store, Watch, Watched, Write};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use std::{sync::Arc, time::Duration};

/// How long a check waits for something that must happen, in seconds.
const PATIENCE_S: u64 = 20;

/// Runs every check, each on a store of its own from `fresh`.
pub async fn run<F: Future<Output = Arc<dyn Store>>>(mut fresh: impl FnMut() -> F) {
    conditions_hold(fresh().await).await;
    lists_are_ordered_paged_and_of_one_moment(fresh().await).await;
    a_watch_neither_skips_nor_repeats(fresh().await).await;
    a_watch_sees_only_its_prefix(fresh().await).await;
    compaction_forgets_the_past_and_says_so(fresh().await).await;
    racing_writers_lose_nothing(fresh().await).await;
    a_watch_reports_progress(fresh().await).await;
}

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

async fn commit(store: &Arc<dyn Store>, write: Write) -> Revision {
    match store.commit(write).await.expect("commit") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(standing) => panic!("unexpected conflict with {standing:?}"),
    }
}

async fn create(store: &Arc<dyn Store>, key: &str, value: &str) -> Revision {
    commit(store, Write::Create { key: key.into(), value: text(value) }).await
}

async fn update(store: &Arc<dyn Store>, key: &str, value: &str, expected: Revision) -> Revision {
    commit(store, Write::Update { key: key.into(), value: text(value), expected }).await
}

async fn delete(store: &Arc<dyn Store>, key: &str, expected: Revision) -> Revision {
    commit(store, Write::Delete { key: key.into(), expected }).await
}

async fn next_events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let wait = async {
        while events.len() < count {
            match watch.next().await.expect("the watch ended").expect("the watch failed") {
                Watched::Events(more) => events.extend(more),
                Watched::Progress(_) => {}
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(PATIENCE_S), wait).await.is_ok();
    assert!(in_time, "waited for {count} events, last seen: {events:?}");
    events
}

async fn conditions_hold(store: Arc<dyn Store>) {
    assert_eq!(store.revision().await.unwrap(), Revision(1), "an empty store stands at 1");
    assert_eq!(store.get("/a").await.unwrap(), None);
    let first = create(&store, "/a", "1").await;
    assert_eq!(first, Revision(2));
    let again = store.commit(Write::Create { key: "/a".into(), value: text("2") }).await.unwrap();
    assert!(matches!(again, Outcome::Conflict(Some(kv)) if kv.value == text("1") && kv.modified == first), "a second create must conflict");
    let second = update(&store, "/a", "2", first).await;
    let stale = store.commit(Write::Update { key: "/a".into(), value: text("3"), expected: first }).await.unwrap();
    assert!(matches!(stale, Outcome::Conflict(Some(kv)) if kv.modified == second), "an update from a stale revision must conflict");
    let stale = store.commit(Write::Delete { key: "/a".into(), expected: first }).await.unwrap();
    assert!(matches!(stale, Outcome::Conflict(Some(_))), "a delete from a stale revision must conflict");
    assert_eq!(store.revision().await.unwrap(), second, "a conflict must not move the revision");
    let kv = store.get("/a").await.unwrap().unwrap();
    assert_eq!((kv.value, kv.created, kv.modified), (text("2"), first, second));
    let third = delete(&store, "/a", second).await;
    assert_eq!(store.get("/a").await.unwrap(), None);
    let gone = store.commit(Write::Update { key: "/a".into(), value: text("3"), expected: third }).await.unwrap();
    assert_eq!(gone, Outcome::Conflict(None), "an update of a deleted key must conflict with nothing");
    let fourth = create(&store, "/a", "4").await;
    assert_eq!(store.get("/a").await.unwrap().unwrap().created, fourth, "a key made anew has a new birth");
}

async fn lists_are_ordered_paged_and_of_one_moment(store: Arc<dyn Store>) {
    for key in ["/p/c", "/p/a", "/q/x", "/p/b", "/p/é", "/p0"] {
        create(&store, key, key).await;
    }
    let keys = |page: &crate::Page| page.items.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>();
    let all = store.list("/p/", None, 0, None).await.unwrap();
    assert_eq!(keys(&all), ["/p/a", "/p/b", "/p/c", "/p/é"]);
    assert!(!all.more && all.revision == store.revision().await.unwrap());
    let then = all.revision;
    let first = store.list("/p/", None, 2, None).await.unwrap();
    assert_eq!((keys(&first), first.more), (vec!["/p/a".to_string(), "/p/b".into()], true));
    let b = store.get("/p/b").await.unwrap().unwrap();
    update(&store, "/p/b", "new", b.modified).await;
    let c = store.get("/p/c").await.unwrap().unwrap();
    delete(&store, "/p/c", c.modified).await;
    create(&store, "/p/d", "d").await;
    let rest = store.list("/p/", Some("/p/b"), 0, Some(then)).await.unwrap();
    assert_eq!((keys(&rest), rest.revision), (vec!["/p/c".to_string(), "/p/é".into()], then), "a later page shows the first page's moment");
    let before = store.list("/p/", None, 0, Some(then)).await.unwrap();
    assert_eq!(before.items, all.items, "the past must not change");
    let now = store.list("/p/", None, 0, None).await.unwrap();
    assert_eq!(keys(&now), ["/p/a", "/p/b", "/p/d", "/p/é"]);
    let future = store.list("/p/", None, 0, Some(Revision(10_000))).await;
    assert!(matches!(future, Err(Error::Future { .. })), "{future:?}");
}

async fn a_watch_neither_skips_nor_repeats(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let mut revision = create(&store, "/w", "0").await;
    for i in 1..50 {
        revision = update(&store, "/w", &i.to_string(), revision).await;
    }
    let mut watches = vec![store.watch("/", start).await.unwrap(), store.watch("/", Revision(start.0 + 20)).await.unwrap()];
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 50..150 {
                revision = update(&store, "/w", &i.to_string(), revision).await;
            }
            delete(&store, "/w", revision).await
        }
    });
    watches.push(store.watch("/", start).await.unwrap());
    for (mut watch, from) in watches.into_iter().zip([start.0, start.0 + 20, start.0]) {
        let count = (start.0 + 151 - from) as usize;
        let events = next_events(&mut watch, count).await;
        let seen: Vec<u64> = events.iter().map(|e| e.revision.0).collect();
        assert_eq!(seen, (from + 1..=start.0 + 151).collect::<Vec<_>>(), "a watch must report each revision once, in order");
        for pair in events.windows(2) {
            assert_eq!(pair[1].previous, Some(pair[0].revision), "an event says which change it follows");
        }
        let last = events.last().unwrap();
        assert_eq!((&last.value, last.created), (&None, Revision(start.0 + 1)));
    }
    writer.await.unwrap();
}

async fn a_watch_sees_only_its_prefix(store: Arc<dyn Store>) {
    let mut watch = store.watch("/a/", store.revision().await.unwrap()).await.unwrap();
    create(&store, "/b/1", "").await;
    create(&store, "/a", "").await;
    create(&store, "/a/1", "").await;
    let events = next_events(&mut watch, 1).await;
    assert_eq!(events[0].key, "/a/1");
    assert!(events[0].previous.is_none() && events.len() == 1);
}

async fn compaction_forgets_the_past_and_says_so(store: Arc<dyn Store>) {
    let a = create(&store, "/c/a", "1").await;
    let b = create(&store, "/c/b", "1").await;
    let a2 = update(&store, "/c/a", "2", a).await;
    delete(&store, "/c/b", b).await;
    let a3 = update(&store, "/c/a", "3", a2).await;
    store.compact(a2).await.unwrap();
    assert!(matches!(store.list("/c/", None, 0, Some(a)).await, Err(Error::Compacted { .. })), "a compacted past must be refused");
    let kept = store.list("/c/", None, 0, Some(a2)).await.unwrap();
    assert_eq!(
        kept.items.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(),
        [text("2"), text("1")],
        "the compacted revision itself stays readable"
    );
    assert!(matches!(store.watch("/c/", a).await.map(|_| ()), Err(Error::Compacted { .. })), "a watch from a compacted past must be refused");
    let mut watch = store.watch("/c/", a2).await.unwrap();
    assert_eq!(next_events(&mut watch, 2).await[1].revision, a3);
    store.compact(a3).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), a3, "compaction must not move the revision");
    assert_eq!(store.get("/c/a").await.unwrap().unwrap().value, text("3"));
    assert_eq!(create(&store, "/c/d", "").await, Revision(a3.0 + 1));
    assert!(matches!(store.compact(Revision(a.0)).await, Err(Error::Compacted { .. })), "compaction must not go back");
}

async fn racing_writers_lose_nothing(store: Arc<dyn Store>) {
    create(&store, "/n", "0").await;
    let add_25 = |store: Arc<dyn Store>| async move {
        for _ in 0..25 {
            let mut standing = store.get("/n").await.unwrap().unwrap();
            loop {
                let n: u64 = std::str::from_utf8(&standing.value).unwrap().parse().unwrap();
                let write = Write::Update { key: "/n".into(), value: text(&(n + 1).to_string()), expected: standing.modified };
                match store.commit(write).await.unwrap() {
                    Outcome::Committed(_) => break,
                    Outcome::Conflict(now) => standing = now.expect("the key stands"),
                }
            }
        }
    };
    let writers: Vec<_> = (0..8).map(|_| tokio::spawn(add_25(store.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.get("/n").await.unwrap().unwrap().value, text("200"), "an acknowledged write was lost");
}

async fn a_watch_reports_progress(store: Arc<dyn Store>) {
    let start = create(&store, "/x", "").await;
    let mut watch = store.watch("/y", start).await.unwrap();
    let newest = create(&store, "/x2", "").await;
    let wait = async {
        loop {
            match watch.next().now_or_never() {
                Some(Some(Ok(Watched::Progress(revision)))) if revision >= newest => return,
                Some(Some(Ok(Watched::Progress(_)))) => {}
                Some(other) => panic!("a quiet watch may only report progress, not {other:?}"),
                None => tokio::task::yield_now().await,
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(PATIENCE_S), wait).await.is_ok(), "no progress was reported");
}
