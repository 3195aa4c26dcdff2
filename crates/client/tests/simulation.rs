//! Leader election and the checkpoint under a seed, as they are: the election on virtual time with an API whose links hang, lose
//! answers and come back; the checkpoint on a real disk whose newest writes are torn.
//!
//! A failure prints its seed and the command that repeats it. `REGENT_SEEDS=1000` runs that many, `REGENT_SEED=17` that one.

use client::{
    Checkpoint,
    checkpoint::Secrecy,
    clock::Clock,
    election::{ElectionConfig, lead},
};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::AbortHandle, time::sleep};
use tokio_util::sync::CancellationToken;

/// Seeds that every run of the tests goes through.
const SEEDS_DEFAULT: u64 = 40;

/// Runs the seeds that are asked for, on all processors.
fn seeds(what: &str, run: impl Fn(u64) -> Result<(), String> + Sync) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("REGENT_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("REGENT_SEEDS").unwrap_or(SEEDS_DEFAULT)),
    };
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failures.lock().len() >= 5 {
                        return;
                    }
                    if let Err(failure) = run(seed) {
                        failures.lock().push((seed, failure));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    println!("{count} seeds of {what}");
    for (seed, failure) in &failures {
        println!("seed {seed}: {failure}\n  again: REGENT_SEED={seed} cargo test -p client --test simulation {what} -- --nocapture");
    }
    assert!(failures.is_empty(), "{} of {count} seeds of {what} failed, first {}", failures.len(), failures[0].0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Election

/// How one candidate reaches the API.
#[derive(Clone, Copy, Default)]
struct Link {
    /// Nothing gets through, either way; who asks waits.
    cut: bool,
    /// Requests arrive, answers do not.
    deaf: bool,
    delay_ms: u64,
    /// Of a hundred requests so many are lost before they arrive, and so many answers after.
    loss: u64,
}

/// The one Lease, and everybody's way to it.
struct World {
    rng: StdRng,
    lease: Option<Value>,
    version: u64,
    links: Vec<Link>,
    /// The API is away for all.
    down: bool,
    working: Vec<(usize, u64)>,
    overlaps: Vec<String>,
    began: tokio::time::Instant,
}

type Shared = Arc<Mutex<World>>;

fn client_of(world: &Shared, who: usize) -> kube::Client {
    let world = world.clone();
    client::transport::in_process(tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let world = world.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            if !passes(&world, who, false).await {
                std::future::pending::<()>().await;
            }
            let watches = parts.uri.query().is_some_and(|query| query.contains("watch="));
            let (code, answer) = if watches { (200, emptied(&world).await) } else { world.lock().answer(&parts.method, &body) };
            if !passes(&world, who, true).await {
                std::future::pending::<()>().await;
            }
            http::Response::builder().status(code).body(Full::new(bytes::Bytes::from(format!("{answer}\n"))))
        }
    }))
}

/// Whether a message comes through, after the time that it takes.
async fn passes(world: &Shared, who: usize, back: bool) -> bool {
    let (delay, lost) = {
        let mut world = world.lock();
        let link = world.links[who];
        (world.rng.random_range(0..=link.delay_ms), world.rng.random_range(0..100) < link.loss)
    };
    sleep(Duration::from_millis(delay)).await;
    let world = world.lock();
    let link = world.links[who];
    !(lost || world.down || link.cut || (back && link.deaf))
}

async fn emptied(world: &Shared) -> Value {
    loop {
        let lease = world.lock().lease.clone().unwrap_or_default();
        if lease["spec"]["holderIdentity"] == "" {
            return json!({"type": "MODIFIED", "object": lease});
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl World {
    fn answer(&mut self, method: &http::Method, body: &[u8]) -> (u16, Value) {
        let failure =
            |code: u16, reason: &str| (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}));
        let known = self.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        if method == http::Method::GET {
            return self.lease.clone().map_or_else(|| failure(404, "NotFound"), |lease| (200, lease));
        }
        let Ok(mut new) = serde_json::from_slice::<Value>(body) else { return failure(400, "BadRequest") };
        if method == http::Method::POST && known.is_some() {
            return failure(409, "AlreadyExists");
        }
        if method == http::Method::PUT && known.as_ref() != Some(&new["metadata"]["resourceVersion"]) {
            return failure(409, "Conflict");
        }
        self.version += 1;
        new["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.lease = Some(new.clone());
        (200, new)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One life of a candidate.
struct Life {
    stop: CancellationToken,
    task: AbortHandle,
    clock_off_ms: Arc<AtomicI64>,
}

/// Work that is noted as long as it goes on, however it ends.
struct Work(Shared, usize, u64);

impl Work {
    fn begin(world: &Shared, who: usize, life: u64) -> Work {
        let mut state = world.lock();
        if !state.working.is_empty() {
            let text = format!("at {} ms candidate {who} leads while {:?} does", state.now_ms(), state.working);
            state.overlaps.push(text);
        }
        state.working.push((who, life));
        drop(state);
        Work(world.clone(), who, life)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.lock().working.retain(|working| *working != (self.1, self.2));
    }
}

fn start(world: &Shared, who: usize, life: u64) -> Life {
    let (stop, clock_off_ms) = (CancellationToken::new(), Arc::new(AtomicI64::new(0)));
    let config = ElectionConfig {
        clock: {
            let (off, began) = (clock_off_ms.clone(), world.lock().began);
            Clock::from_fn(move || {
                let ms = 1_800_000_000_000 + i64::try_from(began.elapsed().as_millis()).unwrap_or(0) + off.load(Ordering::Relaxed);
                Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
            })
        },
        ..ElectionConfig::new("leader", format!("candidate-{who}_{life}"))
    };
    // Some work heeds its token at once, some does not.
    let stubborn = world.lock().rng.random_bool(0.3);
    let (client, shutdown, shared) = (client_of(world, who), stop.clone(), world.clone());
    let task = tokio::spawn(async move {
        let work = |leading: CancellationToken| {
            let shared = shared.clone();
            async move {
                let _work = Work::begin(&shared, who, life);
                if stubborn {
                    std::future::pending::<()>().await;
                }
                leading.cancelled().await;
            }
        };
        let _ = lead(client, config, shutdown, work).await;
    });
    Life { stop, task: task.abort_handle(), clock_off_ms }
}

async fn elections(seed: u64) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = rng.random_range(2..=5);
    let links = (0..count)
        .map(|_| Link { delay_ms: [1, 50, 400][rng.random_range(0..3)], loss: [0, 2, 20][rng.random_range(0..3)], ..Link::default() })
        .collect();
    let world: Shared = Arc::new(Mutex::new(World {
        rng: StdRng::seed_from_u64(rng.random()),
        lease: None,
        version: 0,
        links,
        down: false,
        working: Vec::new(),
        overlaps: Vec::new(),
        began: tokio::time::Instant::now(),
    }));
    let mut lives: Vec<Life> = (0..count).map(|who| start(&world, who, 0)).collect();
    let fault = |world: &Shared, text: String| {
        if std::env::var("REGENT_SEED").is_ok() {
            let state = world.lock();
            println!("  {:>7} ms {text}; {:?} leads", state.now_ms(), state.working);
        }
    };
    for life in 1..=12 {
        sleep(Duration::from_millis(rng.random_range(100..30_000))).await;
        // As often as not, whoever leads is struck.
        let leader = world.lock().working.first().map(|(who, _)| *who).filter(|_| rng.random_bool(0.6));
        let who = leader.unwrap_or_else(|| rng.random_range(0..count));
        match rng.random_range(0..9) {
            0 => world.lock().links[who].cut = true,
            1 => world.lock().links[who].deaf = true,
            2 | 3 => (0..count).for_each(|who| (world.lock().links[who].cut, world.lock().links[who].deaf) = (false, false)),
            4 => world.lock().down = rng.random_bool(0.6),
            // Killed, and started again as somebody else.
            5 => {
                lives[who].task.abort();
                lives[who] = start(&world, who, life);
            }
            // Stopped as one should; its release may be lost.
            6 => {
                lives[who].stop.cancel();
                sleep(Duration::from_millis(rng.random_range(0..20_000))).await;
                lives[who].task.abort();
                lives[who] = start(&world, who, life);
            }
            _ => lives[who].clock_off_ms.store(rng.random_range(-1_000_000_000..1_000_000_000), Ordering::Relaxed),
        }
        fault(&world, format!("candidate {who} of {count}"));
    }
    {
        let mut world = world.lock();
        world.down = false;
        world.links.iter_mut().for_each(|link| *link = Link { delay_ms: link.delay_ms, ..Link::default() });
    }
    // A lease that was just renewed runs out; then somebody leads within a retry, and nobody else.
    sleep(Duration::from_secs(15 + 10 + 5)).await;
    let state = world.lock();
    if let Some(overlap) = state.overlaps.first() {
        return Err(overlap.clone());
    }
    if state.working.len() != 1 {
        return Err(format!("{:?} lead half a minute after the last fault; the lease is {:?}", state.working, state.lease));
    }
    Ok(())
}

#[test]
fn election() {
    seeds("election", |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().map_err(|error| error.to_string())?;
        runtime.block_on(elections(seed))
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoint

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
            let checkpoint = Checkpoint::open(&directory, "node").map_err(|error| error.to_string())?;
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
                    if !shelves[shelf].written().await {
                        return Err(format!("life {life}, step {step}: the disk does not take it"));
                    }
                    acknowledged = states.len() - 1;
                    synced = lengths(&directory);
                }
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

#[test]
fn checkpoint() {
    seeds("checkpoint", |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(torn(seed))
    });
}
