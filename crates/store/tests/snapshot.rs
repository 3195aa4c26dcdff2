//! Snapshots across back ends: what is saved is what comes back, at a revision beyond everything seen.

mod support;

use futures::StreamExt;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use store::{
    Error, Outcome, Revision, Store, Write,
    memory::Memory,
    snapshot::{self, Blob, Origin, Secret, restore_into, save, verify},
    sqlite::Sqlite,
};

fn origin() -> Origin {
    let file = Blob { name: "pki/ca.key".into(), mode: 0o600, content: b"key".to_vec() };
    Origin { cluster: "one".into(), store: "test".into(), regent: "0".into(), created_at_s: 1_000, files: vec![file] }
}

async fn put(store: &dyn Store, key: &str, value: &str) {
    let value = value.to_string().into();
    let write = match store.get(key).await.unwrap() {
        None => Write::Create { key: key.into(), value },
        Some(kv) => Write::Update { key: key.into(), value, expected: kv.modified },
    };
    assert!(matches!(store.commit(write).await.unwrap(), Outcome::Committed(_)));
}

async fn fill(store: &dyn Store, count: usize) {
    for i in 0..count {
        put(store, &format!("/registry/core/pods/default/pod-{i:05}"), &format!("value {i}")).await;
    }
    put(store, "/other/not-saved", "x").await;
}

async fn content(store: &dyn Store) -> BTreeMap<String, String> {
    let items = store.list("/registry/", None, 0, None).await.unwrap().items;
    items.into_iter().map(|kv| (kv.key, String::from_utf8(kv.value.to_vec()).unwrap())).collect()
}

fn stores(directory: &Path) -> Vec<Arc<dyn Store>> {
    vec![Arc::new(Memory::default()), Arc::new(Sqlite::open(directory).unwrap())]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    for (i, from) in stores(&directory.path().join("from")).into_iter().enumerate() {
        fill(&*from, 1200).await;
        let file = directory.path().join(format!("{i}.snapshot"));
        let status = save(&*from, &origin(), &file, None).await.unwrap();
        assert_eq!((status.summary.keys, status.summary.files), (1200, 1));
        assert_eq!(status, verify(&file, None).unwrap());
        assert!(matches!(save(&*from, &origin(), &file, None).await, Err(snapshot::Error::Exists { .. })));
        let wanted = content(&*from).await;
        for (j, into) in stores(&directory.path().join(format!("into-{i}"))).into_iter().enumerate() {
            put(&*into, "/registry/core/pods/default/pod-00000", "of before").await;
            put(&*into, "/registry/core/pods/default/stray", "of before").await;
            put(&*into, "/other/kept", "x").await;
            let before = into.revision().await.unwrap();
            let done = restore_into(&*into, &file, None).await.unwrap();
            assert_eq!((done.created, done.changed, done.deleted), (1199, 1, 1), "{i} {j}");
            assert_eq!(content(&*into).await, wanted);
            assert!(into.get("/other/kept").await.unwrap().is_some(), "what a snapshot does not hold is left alone");
            let past = into.watch("/registry/", before).await.map(drop);
            assert!(matches!(past, Err(Error::Compacted { .. })), "every watcher lists anew");
            let again = restore_into(&*into, &file, None).await.unwrap();
            assert_eq!((again.created, again.changed, again.deleted, again.unchanged), (0, 0, 0, 1200));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_one_moment_of_a_busy_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Sqlite::open(&directory.path().join("store")).unwrap());
    // Two keys at the two ends of the key space, always written one after the other.
    for i in 0..1500 {
        put(&*store, &format!("/registry/m/{i:05}"), "filling").await;
    }
    put(&*store, "/registry/a", "0").await;
    put(&*store, "/registry/z", "0").await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            for i in 1.. {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                put(&*store, "/registry/a", &i.to_string()).await;
                put(&*store, "/registry/z", &i.to_string()).await;
            }
        }
    });
    // A process beside the server reads the same database.
    let reader = Sqlite::open_reading(&directory.path().join("store")).unwrap();
    for round in 0..5 {
        let file = directory.path().join(format!("{round}.snapshot"));
        save(&reader, &origin(), &file, None).await.unwrap();
        let into = Memory::default();
        restore_into(&into, &file, None).await.unwrap();
        let content = content(&into).await;
        let number = |key: &str| content[key].parse::<u64>().unwrap();
        let (a, z) = (number("/registry/a"), number("/registry/z"));
        assert!(a == z || a == z + 1, "round {round}: {a} and {z} are not of one moment");
    }
    assert!(matches!(reader.commit(Write::Create { key: "/x".into(), value: "x".into() }).await, Err(Error::Unavailable(_))));
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let from = Memory::default();
    fill(&from, 300).await;
    let file = directory.path().join("snapshot");
    save(&from, &origin(), &file, None).await.unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "temporary files are gone");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let said = verify(&file, None).unwrap_err().to_string();
    assert!(said.starts_with("the snapshot is damaged: ") && said.contains("regent snapshot list"), "{said}");
    std::fs::write(&file, "hello").unwrap();
    assert!(matches!(verify(&file, None), Err(snapshot::Error::NoSnapshot)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_snapshot_opens_with_its_passphrase_alone() {
    let directory = tempfile::tempdir().unwrap();
    let from = Memory::default();
    fill(&from, 50).await;
    let file = directory.path().join("snapshot");
    let secret = Secret::passphrase("correct horse battery staple").unwrap();
    let status = save(&from, &origin(), &file, Some(&secret)).await.unwrap();
    assert!(status.header.seal.is_some());
    assert_eq!(snapshot::read_status(&file).unwrap(), status, "its figures are readable without the passphrase");
    assert!(matches!(verify(&file, None), Err(snapshot::Error::SecretNeeded)));
    assert!(matches!(verify(&file, Some(&Secret::passphrase("wrong").unwrap())), Err(snapshot::Error::SecretWrong)));
    assert_eq!(snapshot::files(&file, Some(&secret)).unwrap(), origin().files);
    let into = Memory::default();
    restore_into(&into, &file, Some(&secret)).await.unwrap();
    assert_eq!(content(&into).await, content(&from).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_stands_beyond_what_was_seen() {
    let directory = tempfile::tempdir().unwrap();
    let from = Sqlite::open(&directory.path().join("from")).unwrap();
    fill(&from, 10).await;
    let file = directory.path().join("snapshot");
    let status = save(&from, &origin(), &file, None).await.unwrap();
    fill(&from, 10).await;
    let newest = from.revision().await.unwrap();
    drop(from);
    assert_eq!(Sqlite::newest_known(&directory.path().join("from")), Some(newest));
    let known = snapshot::beyond(&status, Some(newest), 2_000);
    let guessed = snapshot::beyond(&status, None, 2_000);
    assert!(known > newest && guessed.0 > status.header.revision + 1_000 * 1_000);
    let into = Sqlite::create(&directory.path().join("into"), known).unwrap();
    let done = restore_into(&into, &file, None).await.unwrap();
    assert!(done.revision > known);
    let old = into.watch("/registry/", newest).await.map(drop);
    assert!(matches!(old, Err(Error::Compacted { .. })), "no old revision means anything here");
    assert!(into.list("/registry/", None, 0, None).await.unwrap().items.iter().all(|kv| kv.modified > known));
    drop(into);
    assert!(Sqlite::open(&directory.path().join("into")).is_ok(), "and it is whole");
}

/// Whether a store refuses because a restore is under way.
fn is_fenced<T>(result: store::Result<T>) -> bool {
    matches!(result, Err(Error::Unavailable(why)) if why.contains("being restored"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_etcd_is_brought_back_and_nobody_sees_half_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("snapshot");
    let cluster = support::Cluster::start(3).await;
    let (server, restorer) = (cluster.connect_to(0).await, cluster.connect_to(1).await);
    fill(&*server, 300).await;
    put(&*server, store::compaction::KEY, "7").await;
    let status = save(&*server, &origin(), &file, None).await.unwrap();
    assert_eq!(status.summary.keys, 300, "what servers agree on among themselves is not saved");
    let wanted = content(&*server).await;
    put(&*server, "/registry/core/pods/default/pod-00001", "changed since").await;
    put(&*server, "/registry/core/pods/default/stray", "made since").await;
    let before = server.revision().await.unwrap();
    let mut watch = server.watch("/registry/", before).await.unwrap();

    // The restorer dies after it has raised the fence.
    restorer.begin_restore().await.unwrap();
    assert!(is_fenced(server.commit(Write::Create { key: "/registry/x".into(), value: "x".into() }).await));
    assert!(is_fenced(server.revision().await) && is_fenced(server.list("/registry/", None, 0, None).await));
    assert!(is_fenced(server.watch("/registry/", before).await.map(drop)));
    loop {
        match watch.next().await.expect("the watch ends with a reason") {
            Ok(store::Watched::Progress(_)) => {}
            Ok(other) => panic!("{other:?} was seen behind the fence"),
            Err(error) => break assert!(is_fenced(Err::<(), _>(error))),
        }
    }
    drop(restorer);

    let again = cluster.connect_to(2).await;
    let done = again.restore(&file, None, before, |_| {}).await.unwrap();
    assert_eq!((done.created, done.changed, done.deleted, done.unchanged), (0, 1, 1, 299));
    let mut found = content(&*server).await;
    found.remove(store::compaction::KEY).unwrap();
    let expected: BTreeMap<_, _> = wanted.into_iter().filter(|(key, _)| key != store::compaction::KEY).collect();
    assert_eq!(found, expected);
    assert!(matches!(server.watch("/registry/", before).await.map(drop), Err(Error::Compacted { .. })), "every watcher lists anew");
    put(&*server, "/registry/core/pods/default/pod-00001", "and it goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_etcd_is_led_beyond_the_old_store() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("snapshot");
    let old = Sqlite::open(&directory.path().join("store")).unwrap();
    fill(&old, 200).await;
    save(&old, &origin(), &file, None).await.unwrap();
    fill(&old, 200).await;
    let newest = old.revision().await.unwrap();
    let cluster = support::Cluster::start(1).await;
    let etcd = cluster.connect().await;
    let floor = Revision(newest.0 + 2_000);
    let done = etcd.restore(&file, None, floor, |_| {}).await.unwrap();
    assert!(done.revision > floor);
    assert_eq!(content(&*etcd).await, content(&old).await);
    assert!(matches!(etcd.watch("/registry/", newest).await.map(drop), Err(Error::Compacted { .. })), "no old revision means anything here");
    // And back again.
    let back = directory.path().join("back");
    let status = save(&*etcd, &origin(), &back, None).await.unwrap();
    let into = Sqlite::create(&directory.path().join("into"), snapshot::beyond(&status, Some(done.revision), 1_000)).unwrap();
    restore_into(&into, &back, None).await.unwrap();
    assert_eq!(content(&into).await, content(&old).await);
}
