//! The file under faults that need its insides: damage at any place, a disk that refuses.

use super::*;
use crate::checkpoint::{Checkpoint, Secrecy};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Everything that the checkpoint in this directory holds: shelf, key, value.
fn all(directory: &Path) -> Result<(BTreeSet<(String, String, Vec<u8>)>, Vec<String>), Error> {
    let (file, contents) = File::open(directory, "t")?;
    drop(file);
    Ok((contents.rows.into_iter().map(|row| (row.shelf, row.key, row.value)).collect(), contents.damage))
}

/// A checkpoint with two hundred rows of which some were written over and some removed.
async fn fill(directory: &Path) -> BTreeSet<(String, String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(directory, "t").unwrap();
    let (open, sealed) = (checkpoint.shelf("open", Secrecy::Open), checkpoint.shelf("sealed", Secrecy::Sealed));
    for round in 0..3 {
        for n in 0..100 {
            for shelf in [&open, &sealed] {
                shelf.put(&format!("key-{n}"), format!("value {n} of round {round} {}", "x".repeat(n * 7)).into_bytes());
            }
        }
        assert!(open.written().await);
    }
    for n in 0..20 {
        open.remove(&format!("key-{n}"));
    }
    assert!(open.written().await);
    drop((open, sealed, checkpoint));
    let (rows, damage) = all(directory).unwrap();
    assert_eq!((rows.len(), damage), (180, Vec::new()));
    rows
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A row of any round is one that was written.
fn was_written(row: &(String, String, Vec<u8>)) -> bool {
    let n: usize = row.1.trim_start_matches("key-").parse().unwrap();
    (0..3).any(|round| row.2 == format!("value {n} of round {round} {}", "x".repeat(n * 7)).into_bytes())
}

#[tokio::test]
async fn flipped_bits_and_lost_ends_are_refused_and_never_believed() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("good");
    let rows = fill(&good).await;
    let seed: u64 = std::env::var("REGENT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_241_122);
    let mut random = StdRng::seed_from_u64(seed);
    let mut refused = 0;
    for trial in 0..150 {
        let place = directory.path().join(format!("trial-{trial}"));
        copy(&good, &place);
        let file = place.join("t.db");
        let mut bytes = fs::read(&file).unwrap();
        if trial % 3 == 0 {
            bytes.truncate(random.random_range(0..bytes.len()));
        } else {
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        fs::write(&file, bytes).unwrap();
        let (found, damage) = all(&place).unwrap_or_else(|error| panic!("seed {seed}, trial {trial}: it must open: {error}"));
        assert!(found.is_subset(&rows) || found.iter().all(was_written), "seed {seed}, trial {trial}: a row that nobody wrote");
        if found.len() < rows.len() && !damage.is_empty() {
            refused += 1;
        }
        assert!(found.len() == rows.len() || !damage.is_empty() || trial % 3 == 0, "seed {seed}, trial {trial}: rows are gone and nothing is said");
        // What is left can be used, and what was said is said once.
        let (again, damage) = all(&place).unwrap();
        assert_eq!((again, damage), (found, Vec::new()), "seed {seed}, trial {trial}");
        fs::remove_dir_all(&place).unwrap();
    }
    assert!(refused > 50, "the faults hit nothing: {refused}");
}

#[tokio::test]
async fn a_torn_log_leaves_an_older_state_that_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live");
    let checkpoint = Checkpoint::open(&live, "t").unwrap();
    let shelf = checkpoint.shelf("pairs", Secrecy::Open);
    for n in 0..40 {
        // Both or none: one transaction.
        let rows = ["a", "b"].map(|key| (key.to_owned(), Some(Value { bytes: format!("{n}").into_bytes(), is_sealed: false })));
        checkpoint.file.change(&shelf.name, rows.into(), Some(&n.to_string()));
        assert!(shelf.written().await);
    }
    // As a power cut finds it: the process is alive, its log is not taken into the file.
    let mut random = StdRng::seed_from_u64(7);
    for trial in 0..60 {
        let place = directory.path().join(format!("trial-{trial}"));
        copy(&live, &place);
        let log = place.join("t.db-wal");
        let mut bytes = fs::read(&log).unwrap();
        assert!(bytes.len() > 4096, "there is no log to tear");
        let cut = random.random_range(0..=bytes.len());
        if trial % 2 == 0 {
            bytes.truncate(cut)
        } else {
            bytes[cut..].fill(0)
        }
        fs::write(&log, bytes).unwrap();
        let (rows, damage) = all(&place).unwrap();
        assert_eq!(damage, Vec::<String>::new());
        let values: BTreeSet<Vec<u8>> = rows.into_iter().map(|(_, _, value)| value).collect();
        assert!(values.len() <= 1, "trial {trial}: a mixture of transactions: {values:?}");
    }
}

#[tokio::test]
async fn what_has_no_place_is_left_out_and_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path(), "t").unwrap();
    let shelf = checkpoint.shelf("s", Secrecy::Open);
    let value = |bytes| Some(Value { bytes: vec![b'x'; bytes], is_sealed: false });
    checkpoint.file.replace(&shelf.name, vec![("small".into(), value(10)), ("large".into(), value(limits::CHECKPOINT_ROW_BYTES_MAX + 1))], "7");
    assert!(shelf.written().await);
    assert_eq!((checkpoint.report().left_out, checkpoint.report().rows), (1, 2));
    let left: Vec<(String, Option<Value>)> = (0..17).map(|n| (format!("k{n}"), value(limits::CHECKPOINT_ROW_BYTES_MAX - 100))).collect();
    checkpoint.file.change(&shelf.name, left, Some("8"));
    assert!(shelf.written().await);
    assert!(checkpoint.report().bytes <= limits::CHECKPOINT_BYTES_MAX);
    assert!(checkpoint.report().left_out > 1);
    drop((shelf, checkpoint));
    let checkpoint = Checkpoint::open(directory.path(), "t").unwrap();
    let found = checkpoint.take("s").unwrap();
    assert_eq!(found.version.as_deref(), Some(""), "a shelf of which something is missing is listed anew");
    assert!(found.rows.iter().any(|(key, _)| key == "small"));
}

#[tokio::test]
async fn a_lost_key_costs_the_secrets_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path()).await;
    let raw = fs::read(directory.path().join("t.db")).unwrap();
    let sealed_text = b"value 99 of round 2";
    assert_eq!(raw.windows(sealed_text.len()).filter(|part| part == sealed_text).count(), 1, "once in the open shelf, never in the sealed one");
    fs::write(directory.path().join(super::super::seal::KEY_FILE), b"short").unwrap();
    let (rows, damage) = all(directory.path()).unwrap();
    assert_eq!((rows.len(), damage.len()), (80, 100));
    assert!(rows.iter().all(|(shelf, ..)| shelf == "open"));
}

#[tokio::test]
async fn a_second_process_is_refused_and_the_file_stays() {
    let directory = tempfile::tempdir().unwrap();
    let first = Checkpoint::open(directory.path(), "t").unwrap();
    first.shelf("s", Secrecy::Open).put("k", b"v".to_vec());
    assert!(first.shelf("s", Secrecy::Open).written().await);
    assert!(matches!(Checkpoint::open(directory.path(), "t"), Err(Error::Sqlite { .. })));
    drop(first);
    assert_eq!(Checkpoint::open(directory.path(), "t").unwrap().shelf("s", Secrecy::Open).load(), [("k".to_owned(), b"v".to_vec())]);
}

#[tokio::test]
async fn a_commit_that_fails_is_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    let (file, _) = File::open(directory.path(), "t").unwrap();
    drop(file);
    // A second connection that holds the file makes every commit fail.
    let connection = Connection::open(directory.path().join("t.db")).unwrap();
    let mut writer = Writer {
        connection,
        directory: directory.path().to_owned(),
        path: directory.path().join("t.db"),
        seal: None,
        held: HashMap::new(),
        bytes: 0,
        left_out: BTreeSet::new(),
        failures: 0,
    };
    writer.connection.busy_timeout(Duration::ZERO).unwrap();
    let slot: Slot = ("s".into(), "k".to_owned());
    let rows = BTreeMap::from([(slot.clone(), Some(Value { bytes: b"v".to_vec(), is_sealed: false }))]);
    let other = Connection::open(directory.path().join("t.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(writer.commit(&rows).is_err());
    assert!(writer.held.is_empty() && writer.bytes == 0);
    other.execute_batch("ROLLBACK").unwrap();
    writer.commit(&rows).unwrap();
    assert_eq!(writer.bytes, 2);
    // Written twice it is written once.
    let seq = writer.held[&slot].seq;
    writer.commit(&rows).unwrap();
    assert_eq!(writer.held[&slot].seq, seq);
}
