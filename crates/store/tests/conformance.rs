//! Every back end passes the one suite; what SQLite acknowledged survives `kill -9`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};
use store::{Outcome, Store, Write, memory::Memory, sqlite::Sqlite, suite};

/// Set in the child process that writes until it is killed: the store's directory.
const VICTIM: &str = "REGENT_STORE_VICTIM";

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_the_suite() {
    suite::run(|| async { Arc::new(Memory::default()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_passes_the_suite() {
    let directory = tempfile::tempdir().unwrap();
    let mut stores = 0;
    suite::run(|| {
        stores += 1;
        let path = directory.path().join(stores.to_string());
        async move { Arc::new(Sqlite::open(&path).unwrap()) as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_opened_once_and_refuses_damage() {
    let directory = tempfile::tempdir().unwrap();
    let first = Sqlite::open(directory.path()).unwrap();
    let second = Sqlite::open(directory.path());
    assert!(matches!(second, Err(store::Error::Unavailable(_))), "a second process must be refused");
    for i in 0..2000 {
        first.commit(Write::Create { key: format!("/{i}"), value: vec![b'x'; 400].into() }).await.unwrap();
    }
    drop(first);
    let file = directory.path().join("state.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes.truncate(half / 4096 * 4096);
    std::fs::write(&file, bytes).unwrap();
    assert!(matches!(Sqlite::open(directory.path()), Err(store::Error::Damaged(_))), "a truncated store must be refused");
}

/// Not a check: the process that [`sqlite_keeps_what_it_acknowledged_through_kill_9`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Some(directory) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let store = Arc::new(Sqlite::open(&directory).unwrap());
    let write_on = |store: Arc<Sqlite>, writer: u32| async move {
        let key = format!("/{writer}");
        let mut standing = store.get(&key).await.unwrap();
        loop {
            let count = standing.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap()) + 1;
            let value = count.to_string().into();
            let write = match &standing {
                None => Write::Create { key: key.clone(), value },
                Some(kv) => Write::Update { key: key.clone(), value, expected: kv.modified },
            };
            match store.commit(write).await.unwrap() {
                Outcome::Committed(_) => println!("\nacknowledged {writer} {count}"),
                Outcome::Conflict(other) => panic!("nobody else writes {key}, but it holds {other:?}"),
            }
            standing = store.get(&key).await.unwrap();
        }
    };
    futures::future::join_all((0..8).map(|writer| tokio::spawn(write_on(store.clone(), writer)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_what_it_acknowledged_through_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u32, u64> = BTreeMap::new();
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            if let Some((writer, count)) = line.strip_prefix("acknowledged ").and_then(|rest| rest.split_once(' ')) {
                acknowledged.insert(writer.parse().unwrap(), count.parse().unwrap());
                return true;
            }
            false
        };
        let mut seen = 0;
        while seen < 40 * round {
            let line = lines.next().expect("the writer ended by itself").unwrap();
            seen += usize::from(note(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died counts too; its last line may be torn.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in &rest[..rest.len().saturating_sub(1)] {
            note(line);
        }
        let store = Sqlite::open(directory.path()).unwrap();
        for (writer, count) in &acknowledged {
            let kv = store.get(&format!("/{writer}")).await.unwrap().expect("an acknowledged key is gone");
            let kept: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
            assert!(kept >= *count, "round {round}: writer {writer} was told {count}, the store holds {kept}");
        }
    }
}
