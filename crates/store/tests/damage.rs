//! A damaged, truncated, replaced, full or read-only store: said at once, never served as if it were whole.

use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use store::{Depth, Error, Outcome, Revision, Store, Write, sqlite::Sqlite};

async fn put(store: &Sqlite, key: &str, value: &[u8]) -> Revision {
    let value = value.to_vec().into();
    let write = match store.get(key).await.unwrap() {
        None => Write::Create { key: key.into(), value },
        Some(kv) => Write::Update { key: key.into(), value, expected: kv.modified },
    };
    match store.commit(write).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(other) => panic!("a conflict with {other:?}"),
    }
}

/// Keys with values, changes, a deletion and a compaction.
async fn fill(store: &Sqlite) {
    for i in 0..120 {
        put(store, &format!("/registry/core/pods/default/pod-{i:03}"), &vec![b'a' + (i % 26) as u8; 100 + i * 17]).await;
    }
    for i in (0..120).step_by(3) {
        put(store, &format!("/registry/core/pods/default/pod-{i:03}"), b"changed").await;
    }
    let gone = store.get("/registry/core/pods/default/pod-007").await.unwrap().unwrap();
    store.commit(Write::Delete { key: gone.key, expected: gone.modified }).await.unwrap();
    store.compact(Revision(60)).await.unwrap();
    for i in 0..20 {
        put(store, &format!("/registry/core/secrets/default/secret-{i}"), b"late").await;
    }
}

async fn content(store: &Sqlite) -> store::Result<(Revision, Vec<store::KeyValue>, Vec<store::KeyValue>)> {
    let now = store.list("", None, 0, None).await?;
    let then = store.list("", None, 0, Some(Revision(100))).await?;
    Ok((now.revision, now.items, then.items))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap().block_on(work)
}

/// A store that was closed well (all of it in the database) or that a dead process left (much of it in the write-ahead log).
fn filled(directory: &Path, clean: bool) -> PathBuf {
    block_on(async {
        let (open, left) = (directory.join("open"), directory.join("left"));
        let store = Sqlite::open(&open).unwrap();
        fill(&store).await;
        if clean {
            drop(store);
            copy(&open, &left);
        } else {
            copy(&open, &left);
        }
        left
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Twenty-five places per case. Either the store refuses to open, or what it says is what was written.
    #[test]
    fn a_flipped_bit_is_never_served(clean in any::<bool>(), places in proptest::collection::vec((any::<prop::sample::Index>(), 0..8u32), 25)) {
        let directory = tempfile::tempdir().unwrap();
        let whole = filled(directory.path(), clean);
        let wanted = block_on(async { content(&Sqlite::open_reading(&whole).unwrap()).await.unwrap() });
        let mut refused = 0;
        for (i, (place, bit)) in places.iter().enumerate() {
            let broken = directory.path().join(format!("broken-{i}"));
            copy(&whole, &broken);
            let victim = if clean || i % 2 == 0 { "state.db" } else { "state.db-wal" };
            let file = [broken.join(victim), broken.join("state.db")].into_iter().find(|f| f.exists() && fs::metadata(f).unwrap().len() > 0).unwrap();
            let mut bytes = fs::read(&file).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            fs::write(&file, bytes).unwrap();
            let found = block_on(async {
                let store = Sqlite::open(&broken)?;
                content(&store).await
            });
            match found {
                Err(Error::Damaged(_)) => refused += 1,
                Err(other) => prop_assert!(false, "bit {bit} of byte {place} of {victim}: {other}"),
                Ok(found) => prop_assert_eq!(&found, &wanted, "bit {} of byte {} of {} went unnoticed", bit, place, victim),
            }
            fs::remove_dir_all(&broken).unwrap();
        }
        let _ = refused;
    }
}

fn say(result: store::Result<Sqlite>) -> String {
    match result {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn lost_changes_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let left = filled(directory.path(), false);
    let cut = directory.path().join("cut");
    copy(&left, &cut);
    let log = cut.join("state.db-wal");
    let length = fs::metadata(&log).unwrap().len();
    fs::File::options().write(true).open(&log).unwrap().set_len(length - 3 * 4120).unwrap();
    let said = say(Sqlite::open(&cut));
    assert!(said.contains("were acknowledged") && said.contains("regent snapshot restore FILE"), "{said}");
    fs::remove_file(cut.join("newest")).unwrap();
    assert!(Sqlite::open(&cut).is_ok(), "who accepts the loss can say so");

    let clean = filled(&directory.path().join("second"), true);
    fs::File::options().write(true).open(clean.join("state.db")).unwrap().set_len(40_000).unwrap();
    let said = say(Sqlite::open(&clean));
    assert!(said.starts_with("the store is damaged"), "{said}");
    fs::write(clean.join("state.db"), b"").unwrap();
    let said = say(Sqlite::open(&clean));
    assert!(said.contains("were acknowledged"), "an emptied database is not a new one: {said}");
}

#[test]
fn damage_under_a_running_store_stops_it() {
    let directory = tempfile::tempdir().unwrap();
    let left = filled(directory.path(), true);
    block_on(async {
        let store = Sqlite::open(&left).unwrap();
        assert!(store.check(Depth::Thorough).await.is_ok() && store.trouble().is_none());
        let file = left.join("state.db");
        let mut bytes = fs::read(&file).unwrap();
        // Wherever it stands: old copies lie in free pages.
        for place in 0..bytes.len() - 64 {
            if bytes[place..place + 64] == [b'e'; 64] {
                bytes[place] = b'X';
            }
        }
        {
            use std::os::unix::fs::FileExt;
            fs::File::options().write(true).open(&file).unwrap().write_all_at(&bytes, 0).unwrap();
        }
        // What SQLite still has in memory is right; the look at the disk takes a connection of its own.
        let found = store.check(Depth::Thorough).await;
        assert!(matches!(found, Err(Error::Damaged(_))), "{found:?}");
        assert!(matches!(store.trouble(), Some(Error::Damaged(_))));
        for result in [store.get("/registry/core/pods/default/pod-001").await.map(drop), store.revision().await.map(drop)] {
            assert!(matches!(result, Err(Error::Damaged(_))), "nothing is served from it any more: {result:?}");
        }
        let write = Write::Create { key: "/new".into(), value: "x".into() };
        assert!(matches!(store.commit(write).await, Err(Error::Damaged(_))));
    });
}

#[test]
fn a_replaced_or_removed_database_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    for (i, replace) in [true, false].into_iter().enumerate() {
        let left = filled(&directory.path().join(i.to_string()), true);
        block_on(async {
            let store = Sqlite::open(&left).unwrap();
            store.check(Depth::Quick).await.unwrap();
            let file = left.join("state.db");
            let copy = left.join("copy");
            fs::copy(&file, &copy).unwrap();
            if replace {
                fs::rename(&copy, &file).unwrap()
            } else {
                fs::remove_file(&file).unwrap()
            }
            let said = store.check(Depth::Quick).await.unwrap_err().to_string();
            assert!(said.contains(if replace { "was replaced" } else { "is gone" }), "{said}");
            assert!(store.revision().await.is_err());
        });
    }
}

/// A file system of its own, unmounted at the end. Needs root.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf, options: &str) -> Mount {
        fs::create_dir_all(&path).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status().unwrap();
        assert!(done.success(), "mounting a tmpfs needs root");
        Mount(path)
    }

    fn remount(&self, options: &str) {
        assert!(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_heals_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mount = Mount::new(directory.path().join("disk"), "size=3m");
    let place = mount.0.join("store");
    block_on(async {
        let store = Sqlite::open(&place).unwrap();
        put(&store, "/a", b"kept").await;
        let ballast = mount.0.join("ballast");
        let _ = fs::write(&ballast, vec![0; 3 << 20]);
        let mut refusal = None;
        for i in 0..2000 {
            match store.commit(Write::Create { key: format!("/fill/{i}"), value: vec![b'x'; 4000].into() }).await {
                Ok(_) => {}
                Err(error) => {
                    refusal = Some(error);
                    break;
                }
            }
        }
        let said = refusal.expect("the disk never became full");
        assert!(matches!(said, Error::Unwritable(_)), "{said}");
        assert!(matches!(store.trouble(), Some(Error::Unwritable(_))));
        assert_eq!(store.get("/a").await.unwrap().unwrap().value, "kept", "reads go on");
        fs::remove_file(&ballast).unwrap();
        put(&store, "/a", b"again").await;
        assert!(store.trouble().is_none(), "it goes on by itself");
    });
    let _ = fs::write(mount.0.join("ballast"), vec![0; 3 << 20]);
    let said = say(Sqlite::open(&mount.0.join("another")));
    assert!(said.starts_with("the store cannot be written") && said.contains("full"), "{said}");
}

#[test]
fn a_read_only_disk_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let mount = Mount::new(directory.path().join("disk"), "size=4m");
    let place = mount.0.join("store");
    block_on(async {
        let store = Sqlite::open(&place).unwrap();
        put(&store, "/a", b"kept").await;
    });
    mount.remount("ro");
    let said = say(Sqlite::open(&place));
    assert!(said.contains("read-only file system"), "{said}");
    mount.remount("rw");
    assert!(Sqlite::open(&place).is_ok());
}
