//! Encryption at rest over the real SQLite back end: what is on disk, rotation, wrong keys, several servers on one store.

use bytes::Bytes;
use futures::StreamExt;
use std::{path::Path, sync::Arc, time::Duration};
use store::{
    Error, Outcome, Revision, Store, Watched, Write,
    encryption::{Encrypted, ring, ring::RingSource},
    memory::Memory,
    sqlite::Sqlite,
};

const SECRETS: &str = "/registry/core/secrets/";
const SECRET: &str = "/registry/core/secrets/default/db";
const WORD: &str = "correct-horse-battery-staple";

fn sealed() -> Vec<(String, String)> {
    vec![("secrets".into(), SECRETS.into())]
}

async fn with_ring(store: Arc<dyn Store>, byte: u8) -> Result<Encrypted, Error> {
    let source = RingSource::new(store.clone(), &[byte; 32], "/pki/encryption.key".into(), sealed())?;
    Encrypted::open(store, source).await
}

fn value(word: &str) -> Bytes {
    format!("{{\"data\":{{\"password\":\"{word}\"}}}}").into()
}

async fn create(store: &dyn Store, key: &str, word: &str) -> Revision {
    match store.commit(Write::Create { key: key.into(), value: value(word) }).await.expect("a write") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(standing) => panic!("{key} stands there: {standing:?}"),
    }
}

fn found_in(directory: &Path, word: &str) -> bool {
    std::fs::read_dir(directory).expect("the store's directory").any(|file| {
        let path = file.expect("a file").path();
        path.is_file() && std::fs::read(path).expect("its content").windows(word.len()).any(|part| part == word.as_bytes())
    })
}

#[tokio::test]
async fn the_disk_holds_no_plaintext_and_readers_see_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let sqlite = Arc::new(Sqlite::open(directory.path()).expect("a store"));
    let store = with_ring(sqlite.clone(), 1).await.expect("keys");
    let from = store.revision().await.expect("a revision");
    let mut watch = store.watch("/registry/", from).await.expect("a watch");
    let first = create(&store, SECRET, WORD).await;
    create(&store, "/registry/core/configmaps/default/plain", "in-the-open").await;
    assert_eq!(store.get(SECRET).await.expect("a read").expect("the secret").value, value(WORD));
    let page = store.list(SECRETS, None, 0, None).await.expect("a list");
    assert_eq!((page.items.len(), &page.items[0].value), (1, &value(WORD)));
    let update = Write::Update { key: SECRET.into(), value: value("other"), expected: Revision(1) };
    match store.commit(update).await.expect("an answer") {
        Outcome::Conflict(Some(standing)) => assert_eq!(standing.value, value(WORD), "whoever lost the race sees what stands there"),
        other => panic!("{other:?}"),
    }
    let update = Write::Update { key: SECRET.into(), value: value("second-word"), expected: first };
    assert!(matches!(store.commit(update).await.expect("an answer"), Outcome::Committed(_)));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time").expect("no end").expect("an event") {
            Watched::Events(events) => seen.extend(events.into_iter().filter_map(|event| event.value)),
            Watched::Progress(_) => {}
        }
    }
    assert_eq!((&seen[0], &seen[2]), (&value(WORD), &value("second-word")));
    let raw = sqlite.get(SECRET).await.expect("a read").expect("the secret").value;
    assert!(raw.starts_with(b"k8s:enc:aesgcm:v1:key-"), "{raw:?}");
    drop((store, watch, sqlite));
    for word in [WORD, "second-word"] {
        assert!(!found_in(directory.path(), word), "{word} is on the disk");
    }
    assert!(found_in(directory.path(), "in-the-open"), "the search finds what is there");
}

#[tokio::test]
async fn keys_rotate_and_everything_is_sealed_anew() {
    let memory: Arc<dyn Store> = Arc::new(Memory::default());
    create(&*memory, SECRET, "from-before").await;
    let one = with_ring(memory.clone(), 1).await.expect("keys");
    // Another server of the same cluster.
    let two = with_ring(memory.clone(), 1).await.expect("keys");
    create(&one, "/registry/core/secrets/default/new", WORD).await;
    let usage = one.usage().await.expect("the usage").remove(0);
    assert_eq!(usage.stored.get("identity"), Some(&1));
    assert_eq!(usage.stored.get(&usage.writes), Some(&1));
    let before = usage.writes;
    one.rotate().await.expect("a new key").expect("the cluster's own keys");
    create(&one, "/registry/core/secrets/default/newer", WORD).await;
    let read = two.get("/registry/core/secrets/default/newer").await.expect("the other server learns of the key").expect("the secret");
    assert_eq!(read.value, value(WORD));
    let done = two.reencrypt().await.expect("all is sealed anew");
    assert_eq!((done.rewritten, done.current, done.left), (2, 1, 0));
    let usage = one.usage().await.expect("the usage").remove(0);
    assert_ne!(usage.writes, before);
    assert_eq!(usage.stored.into_iter().collect::<Vec<_>>(), [(usage.writes, 3)]);
    assert_eq!(one.reencrypt().await.expect("nothing is left to do").rewritten, 0);
    for name in ["db", "new", "newer"] {
        let raw = memory.get(&format!("{SECRETS}default/{name}")).await.expect("a read").expect("the secret");
        assert!(raw.value.starts_with(b"k8s:enc:aesgcm:v1:"));
    }
    assert_eq!(one.get(SECRET).await.expect("a read").expect("the secret").value, value("from-before"));
}

#[tokio::test]
async fn a_wrong_key_is_an_error_and_never_an_empty_list() {
    let memory: Arc<dyn Store> = Arc::new(Memory::default());
    let store = with_ring(memory.clone(), 1).await.expect("keys");
    create(&store, SECRET, WORD).await;
    let wrong = with_ring(memory.clone(), 2).await.err().expect("the file is another cluster's").to_string();
    assert!(wrong.contains("/pki/encryption.key"), "{wrong}");
    // The ring is lost: a new one is made, but it opens nothing.
    let ring = memory.get(ring::KEY).await.expect("a read").expect("the ring");
    memory.commit(Write::Delete { key: ring::KEY.into(), expected: ring.modified }).await.expect("a write");
    create(&*memory, "/registry/core/secrets/default/plain", "seen").await;
    let another = with_ring(memory.clone(), 2).await.expect("new keys");
    for outcome in [another.list(SECRETS, None, 0, None).await.map(|page| page.items.len()), another.get(SECRET).await.map(|_| 0)] {
        match outcome {
            Err(Error::Undecryptable(why)) => assert!(why.contains(SECRET), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(another.trouble(), Some(Error::Undecryptable(_))));
    let mut watch = another.watch("/registry/", Revision(1)).await.expect("a watch");
    let failed = loop {
        match tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time").expect("no end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, Error::Undecryptable(_)), "{failed}");
    assert_eq!(another.get("/registry/core/secrets/default/plain").await.expect("a read").expect("it").value, value("seen"));
}
