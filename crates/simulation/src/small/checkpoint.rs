//! The checkpoint's file alone, byte by byte: what was acknowledged is there after every power cut, whatever became of what was
//! being written; what is there is a state that once was.

use client::{Checkpoint, checkpoint::Secrecy};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{collections::BTreeMap, path::Path};

type Rows = BTreeMap<String, Vec<u8>>;

fn rows_of(directory: &Path) -> Result<(Rows, Vec<String>), String> {
    let checkpoint = Checkpoint::open(directory, "node").map_err(|error| format!("it does not open: {error}"))?;
    let mut rows = Rows::new();
    for (shelf, secrecy) in SHELVES {
        rows.extend(checkpoint.shelf(shelf, secrecy).load().into_iter().map(|(key, value)| (format!("{shelf}/{key}"), value)));
    }
    Ok((rows, checkpoint.report().damage))
}

const SHELVES: [(&str, Secrecy); 2] = [("open", Secrecy::Open), ("sealed", Secrecy::Sealed)];

/// Copies a directory as a power cut leaves it: what was synced is there; of what came later, an end that is cut or filled with what
/// stood on the disk before.
fn cut_power(from: &Path, to: &Path, synced: &BTreeMap<String, u64>, rng: &mut StdRng) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Shared memory is not on the disk.
        if name.ends_with("-shm") {
            continue;
        }
        let mut bytes = std::fs::read(entry.path())?;
        let safe = usize::try_from(synced.get(&name).copied().unwrap_or(0)).unwrap_or(usize::MAX);
        if name.ends_with("-wal") && bytes.len() > safe {
            let cut = rng.random_range(safe..=bytes.len());
            match rng.random_range(0..3) {
                0 => bytes.truncate(cut),
                1 => bytes[cut..].fill(0),
                _ => rng.fill(&mut bytes[cut..]),
            }
        }
        std::fs::write(to.join(name), bytes)?;
    }
    Ok(())
}

fn lengths(directory: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_string_lossy().into_owned(), entry.metadata().ok()?.len()))).collect()
}

async fn torn(seed: u64) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let place = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut directory = place.path().join("0");
    // Every state that the node has been in, in order; what is on disk is one of those since the last that was acknowledged.
    let mut now = Rows::new();
    for life in 1..=3 {
        let mut states = vec![now.clone()];
        let mut acknowledged = 0;
        let mut synced;
        {
            let (checkpoint, mut disk) = Checkpoint::open_with_disk(&directory, "node").map_err(|error| error.to_string())?;
            let shelves = SHELVES.map(|(name, secrecy)| checkpoint.shelf(name, secrecy));
            synced = lengths(&directory);
            for step in 0..rng.random_range(1..25) {
                let shelf = rng.random_range(0..2);
                let key = format!("k{}", rng.random_range(0..12));
                let full = format!("{}/{key}", SHELVES[shelf].0);
                if rng.random_bool(0.3) {
                    shelves[shelf].remove(&key);
                    now.remove(&full);
                } else {
                    let mut value = vec![0; [10, 500, 9_000][rng.random_range(0..3)]];
                    rng.fill(&mut value[..]);
                    shelves[shelf].put(&key, value.clone());
                    now.insert(full, value);
                }
                states.push(now.clone());
                if rng.random_bool(0.3) {
                    if !disk.write() || !shelves[shelf].written().await {
                        return Err(format!("life {life}, step {step}: the disk does not take it"));
                    }
                    acknowledged = states.len() - 1;
                    synced = lengths(&directory);
                }
            }
            // The power goes in the midst of a commit, or between two.
            if rng.random_bool(0.7) {
                disk.write();
            }
            let next = place.path().join(life.to_string());
            cut_power(&directory, &next, &synced, &mut rng).map_err(|error| error.to_string())?;
            directory = next;
        }
        let (rows, damage) = rows_of(&directory)?;
        let Some(found) = states.iter().rposition(|state| *state == rows) else {
            return Err(format!("life {life}: {} rows that were never so; damage: {damage:?}", rows.len()));
        };
        // A state can come back later as it was; the newest of that look counts.
        if found < acknowledged {
            return Err(format!(
                "life {life}: state {found} of {} is on disk, {acknowledged} was acknowledged; damage: {damage:?}",
                states.len() - 1
            ));
        }
        now = rows;
    }
    Ok(())
}

/// One seed.
pub fn simulate(seed: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(torn(seed))
}
