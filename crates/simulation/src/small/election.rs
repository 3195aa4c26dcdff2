//! Leader election alone, on virtual time, with links to the API that hang, lose requests, and lose answers to requests that were
//! heard: of two to five candidates, as often as not whoever leads is struck. (In the world a candidate asks its own server.)

use crate::seeds;
use client::{
    clock::Clock,
    election::{ElectionConfig, lead},
};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{task::AbortHandle, time::sleep};
use tokio_util::sync::CancellationToken;

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
        if seeds::is_told() {
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

/// One seed.
pub fn simulate(seed: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().map_err(|error| error.to_string())?;
    runtime.block_on(elections(seed))
}
