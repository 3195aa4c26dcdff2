//! Copies of a store, cut off and damaged at every place; and what can be made of them.

use backup::copy::{Copy, Found};
use bytes::Bytes;
use futures::StreamExt;
use std::{collections::BTreeMap, io::Cursor, path::Path, sync::Arc, time::Duration};
use store::{
    Outcome, Revision, Store, Write,
    copy::{Batch, EPOCH_KEY, changes},
    snapshot::{self, Blob, Origin},
    sqlite::Sqlite,
};

const WAIT: Duration = Duration::from_millis(100);

fn origin() -> Origin {
    let file = Blob { name: "ca.key".into(), mode: 0o600, content: b"the authority's key".to_vec() };
    Origin { cluster: "c1".into(), store: "sqlite".into(), regent: "0".into(), created_at_s: 1_700_000_000, files: vec![file] }
}

async fn streamed(store: &Arc<dyn Store>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pieces = snapshot::stream(store.clone(), origin());
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    bytes
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> Revision {
    let (key, value) = (format!("/registry/{key}"), Bytes::copy_from_slice(value.as_bytes()));
    let write = match store.get(&key).await.unwrap() {
        Some(kv) if value.is_empty() => Write::Delete { key, expected: kv.modified },
        Some(kv) => Write::Update { key, value, expected: kv.modified },
        None => Write::Create { key, value },
    };
    match store.commit(write).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

async fn follow(store: &Arc<dyn Store>, copy: &mut Copy) -> Batch {
    let batch = changes(&**store, copy.progress().revision, WAIT, || 1_700_000_001_000).await.unwrap();
    copy.append(&batch).unwrap();
    batch
}

fn whole(directory: &Path) -> Copy {
    match Copy::open(directory).unwrap() {
        Found::Whole(copy) => *copy,
        Found::Nothing => panic!("there is no copy"),
        Found::Damaged(why) => panic!("{why}"),
    }
}

/// All objects in the snapshot that is made of a copy.
async fn objects(directory: &Path) -> (BTreeMap<String, Bytes>, u64) {
    let into = directory.parent().unwrap().join("made.snapshot");
    let _ = std::fs::remove_file(&into);
    let made = Copy::materialise(directory, &into).unwrap();
    snapshot::verify(&into, Some(&made.secret)).unwrap();
    assert_eq!(snapshot::files(&into, Some(&made.secret)).unwrap(), origin().files);
    let memory = store::memory::Memory::default();
    snapshot::restore_into(&memory, &into, Some(&made.secret)).await.unwrap();
    let page = memory.list("/", None, 0, None).await.unwrap();
    (page.items.into_iter().map(|kv| (kv.key, kv.value)).collect(), made.status.header.revision)
}

async fn objects_of(store: &Arc<dyn Store>) -> BTreeMap<String, Bytes> {
    let page = store.list("/registry/x/", None, 0, None).await.unwrap();
    page.items.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

#[tokio::test]
async fn a_copy_follows_its_store_and_is_the_same_at_every_step() {
    let place = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&place.path().join("store")).unwrap());
    let directory = place.path().join("copy");
    assert!(matches!(Copy::open(&directory).unwrap(), Found::Nothing));
    for i in 0..700 {
        put(&store, &format!("x/{i:03}"), &format!("value {i}")).await;
    }
    put(&store, &EPOCH_KEY["/registry/".len()..], "{\"first\": 1}").await;
    let mut copy = Copy::begin(&directory, Cursor::new(streamed(&store).await), Some("c1")).unwrap();
    assert_eq!(objects(&directory).await.0, objects_of(&store).await);
    for (key, value) in [("x/000", "changed"), ("x/0005", "between"), ("x/350", ""), ("x/zzz", "last"), ("x/699", ""), ("a", "before"), ("a", "")] {
        put(&store, key, value).await;
    }
    let newest = put(&store, &EPOCH_KEY["/registry/".len()..], "{\"second\": 2}").await;
    assert_eq!(follow(&store, &mut copy).await.changes.len(), 8);
    let (made, revision) = objects(&directory).await;
    assert_eq!(made, objects_of(&store).await);
    assert_eq!(revision, newest.0);
    let into = place.path().join("again.snapshot");
    assert_eq!(Copy::materialise(&directory, &into).unwrap().epoch.unwrap(), Bytes::from_static(b"{\"second\": 2}"));
    // A copy that starts again goes on where it was.
    drop(copy);
    let mut copy = whole(&directory);
    assert_eq!(copy.progress().revision, newest);
    put(&store, "x/later", "1").await;
    follow(&store, &mut copy).await;
    assert!(copy.append(&Batch { after: newest, upto: newest, at_unix_ms: 0, changes: Vec::new() }).is_err(), "it does not follow");
    // And one that is begun anew forgets its log.
    drop(copy);
    put(&store, "x/later", "2").await;
    drop(Copy::begin(&directory, Cursor::new(streamed(&store).await), Some("c1")).unwrap());
    assert_eq!(objects(&directory).await.0, objects_of(&store).await);
    let logs = std::fs::read_dir(&directory).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with("log.")).count();
    assert_eq!(logs, 1);
    for file in std::fs::read_dir(&directory).unwrap().flatten().filter(|file| file.file_name() != "lock") {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.path().display());
        let content = std::fs::read(file.path()).unwrap();
        assert!(!content.windows(7).any(|part| part == b"value 1"), "{} can be read by anybody", file.path().display());
    }
}

#[tokio::test]
async fn what_is_cut_off_is_asked_for_again_and_damage_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&place.path().join("store")).unwrap());
    let directory = place.path().join("copy");
    put(&store, "x/a", "1").await;
    let stream = streamed(&store).await;
    // A stream that breaks, or is of another cluster, makes no copy and spoils none.
    for cut in [0, 10, 100, stream.len() / 2, stream.len() - 1] {
        assert!(Copy::begin(&directory, Cursor::new(&stream[..cut]), Some("c1")).is_err());
    }
    assert!(Copy::begin(&directory, Cursor::new(&stream), Some("c2")).is_err());
    assert!(matches!(Copy::open(&directory).unwrap(), Found::Nothing));
    let copy = Copy::begin(&directory, Cursor::new(&stream), Some("c1")).unwrap();
    assert!(matches!(Copy::open(&directory), Err(backup::Error::Store(_))), "it has one writer");
    drop(copy);
    assert!(Copy::begin(&directory, Cursor::new(&stream[..stream.len() - 1]), Some("c1")).is_err());
    let mut copy = whole(&directory);
    let mut revisions = vec![copy.progress().revision];
    for i in 0..3 {
        put(&store, "x/a", &format!("v{i}")).await;
        follow(&store, &mut copy).await;
        revisions.push(copy.progress().revision);
    }
    drop(copy);
    let log = std::fs::read_dir(&directory).unwrap().flatten().find(|e| e.file_name().to_string_lossy().starts_with("log.")).unwrap().path();
    let good = std::fs::read(&log).unwrap();
    let record = good.len() / 3;
    for cut in 0..good.len() {
        std::fs::write(&log, &good[..cut]).unwrap();
        assert_eq!(whole(&directory).progress().revision, revisions[cut / record], "cut at {cut}");
        assert_eq!(std::fs::metadata(&log).unwrap().len(), (cut / record * record) as u64);
    }
    for flipped in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[flipped] ^= 0x10;
        std::fs::write(&log, &bad).unwrap();
        match Copy::open(&directory).unwrap() {
            Found::Damaged(_) => {}
            // A length that leads beyond the end, or the last record: taken for what a power cut leaves.
            Found::Whole(copy) => {
                assert!(copy.progress().revision < revisions[3] && (flipped >= 2 * record || flipped % record < 4), "byte {flipped}")
            }
            Found::Nothing => panic!(),
        }
    }
    // It goes on after a cut, and is whole again.
    std::fs::write(&log, &good[..good.len() - 3]).unwrap();
    let mut copy = whole(&directory);
    follow(&store, &mut copy).await;
    drop(copy);
    assert_eq!(objects(&directory).await.0, objects_of(&store).await);
    let base = directory.join("base.snapshot");
    let mut bytes = std::fs::read(&base).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&base, &bytes).unwrap();
    assert!(matches!(Copy::open(&directory).unwrap(), Found::Damaged(_)));
    assert!(Copy::materialise(&directory, &place.path().join("none")).is_err() && !place.path().join("none").exists());
    // Begun anew, it is whole.
    Copy::begin(&directory, Cursor::new(streamed(&store).await), Some("c1")).unwrap();
    assert_eq!(objects(&directory).await.0, objects_of(&store).await);
}
