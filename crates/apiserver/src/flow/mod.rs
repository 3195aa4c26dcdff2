//! Priority and fairness: no flood of one tenant keeps others from being answered.
//!
//! Every request that is not a stream is classified by the FlowSchemas ([`schema`]) into a flow of a priority level. A level
//! has seats ([`shares`]); a request that finds none free waits in one of the level's queues ([`queues`]) or is answered 429.
//! The seats are held until the handler has its answer: for a watch, until it has begun.
//!
//! What a request costs beyond a walk through the schemas: one uncontended lock when it begins and one when it ends.
//! [`follow`] keeps all this in line with the objects. Without priority and fairness there are two plain limits.

mod follow;
mod queues;
mod schema;
mod shares;
mod work;

pub(crate) use follow::start;

use crate::{Server, User, authorization::MASTERS_GROUP, connect};
use api::{
    Status,
    request::{Query, RequestInfo},
};
use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, Response};
use parking_lot::Mutex;
use queues::{Arrival, Queues};
use schema::Schema;
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a request may wait for its seats: a quarter of what it may take in all.
const WAIT_MAX: Duration = Duration::from_secs(api::limits::REQUEST_TIMEOUT_S / 4);
/// When a client that was sent away may come again.
const RETRY_AFTER_S: u32 = 1;
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// How many requests are answered at a time.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether FlowSchemas decide (`--enable-priority-and-fairness`).
    pub enabled: bool,
    /// `--max-requests-inflight`: requests that only read. With priority and fairness both limits together are the server's seats.
    pub requests_max: usize,
    /// `--max-mutating-requests-inflight`: the others.
    pub mutating_requests_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { enabled: true, requests_max: 400, mutating_requests_max: 200 }
    }
}

impl Config {
    fn seats(&self) -> usize {
        self.requests_max + self.mutating_requests_max
    }
}

/// Who may go on now.
pub struct Flow {
    config: Config,
    begun: Instant,
    plan: ArcSwap<Plan>,
    reading: AtomicUsize,
    mutating: AtomicUsize,
    /// Requests that the plain limits sent away.
    dropped: [AtomicU64; 2],
}

/// Schemas and levels as they are now.
struct Plan {
    /// In order of precedence; the last matches everybody.
    schemas: Vec<Arc<Bound>>,
    levels: Vec<Arc<Level>>,
}

/// A schema with the level that it leads to.
struct Bound {
    schema: Schema,
    level: Arc<Level>,
    marks: Marks,
    dispatched: AtomicU64,
    rejected_full: AtomicU64,
    rejected_busy: AtomicU64,
    rejected_late: AtomicU64,
    waited: Waited,
}

/// Upper bounds of the histogram of waiting, in seconds.
const WAITED_S: [f64; 8] = [0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0, 10.0];

#[derive(Default)]
struct Waited {
    counts: [AtomicU64; WAITED_S.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Waited {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Relaxed);
        for (bound_s, count) in WAITED_S.iter().zip(&self.counts) {
            if took.as_secs_f64() <= *bound_s {
                count.fetch_add(1, Relaxed);
            }
        }
    }
}

/// A priority level.
struct Level {
    name: String,
    uid: String,
    exempt: bool,
    share: Mutex<shares::Share>,
    /// Seats of its own.
    nominal: AtomicUsize,
    /// The most seats that one request may ask of it.
    width_max: AtomicUsize,
    queues: Mutex<Queues<oneshot::Sender<()>>>,
}

/// The response headers that say which schema and level a request was of.
#[derive(Clone)]
pub struct Marks {
    schema_uid: HeaderValue,
    level_uid: HeaderValue,
}

impl Marks {
    fn new(schema_uid: &str, level_uid: &str) -> Marks {
        let value = |uid: &str| HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""));
        Marks { schema_uid: value(schema_uid), level_uid: value(level_uid) }
    }
    /// Puts them on.
    pub fn put<B>(self, response: &mut Response<B>) {
        response.headers_mut().insert(SCHEMA_UID, self.schema_uid);
        response.headers_mut().insert(LEVEL_UID, self.level_uid);
    }
}

/// Leave to go on. What it holds is given back when it is dropped.
pub struct Ticket {
    server: Arc<Server>,
    held: Held,
}

enum Held {
    /// A stream holds nothing.
    Nothing,
    /// A place under one of the plain limits.
    Plain {
        mutating: bool,
    },
    Seats {
        bound: Arc<Bound>,
        mutating: bool,
        queue: usize,
        width: usize,
        begun_s: f64,
    },
}

impl Ticket {
    /// The headers for the answer.
    pub fn marks(&self) -> Option<Marks> {
        match &self.held {
            Held::Seats { bound, .. } => Some(bound.marks.clone()),
            _ => None,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let flow = &self.server.flow;
        match &self.held {
            Held::Nothing => {}
            Held::Plain { mutating } => {
                flow.in_flight(*mutating).fetch_sub(1, Relaxed);
            }
            Held::Seats { bound, mutating, queue, width, begun_s } => {
                flow.in_flight(*mutating).fetch_sub(1, Relaxed);
                let now_s = flow.now_s();
                bound.level.queues.lock().finish(now_s, *queue, *width, now_s - begun_s, wake);
            }
        }
    }
}

/// Wakes a request that waits. One that has left meanwhile sees to it that its seats are given back.
fn wake(waiting: oneshot::Sender<()>) {
    let _ = waiting.send(());
}

/// A request that waits. Dropped before its end, it leaves the queue, or gives back what it was given a moment ago.
struct Waiter<'a> {
    flow: &'a Flow,
    level: &'a Level,
    queue: usize,
    number: u64,
    width: usize,
    over: bool,
}

impl Waiter<'_> {
    /// Whether the seats are there, if no more is waited.
    fn end(&mut self) -> bool {
        self.over = true;
        !self.level.queues.lock().leave(self.flow.now_s(), self.queue, self.number, wake)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if !self.over && self.end() {
            self.level.queues.lock().finish(self.flow.now_s(), self.queue, self.width, 0.0, wake);
        }
    }
}

impl Flow {
    pub fn new(config: Config) -> Result<Flow, crate::Error> {
        let plan = follow::first(&config)?;
        Ok(Flow {
            config,
            begun: Instant::now(),
            plan: ArcSwap::from_pointee(plan),
            reading: AtomicUsize::new(0),
            mutating: AtomicUsize::new(0),
            dropped: Default::default(),
        })
    }

    fn now_s(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn in_flight(&self, mutating: bool) -> &AtomicUsize {
        if mutating { &self.mutating } else { &self.reading }
    }

    /// Requests that are being answered: those that read, and those that write.
    pub fn current(&self) -> (usize, usize) {
        (self.reading.load(Relaxed), self.mutating.load(Relaxed))
    }
}

/// Gives a request leave to go on, at once or after a wait; 429 if there is no room for it.
pub async fn admit(server: &Arc<Server>, user: &User, info: &RequestInfo, query: &Query) -> Result<Ticket, (Status, Option<Marks>)> {
    let flow = &server.flow;
    let ticket = |held| Ticket { server: server.clone(), held };
    if connect::is_long(info) && (info.verb != "watch" || !flow.config.enabled) {
        return Ok(ticket(Held::Nothing));
    }
    let mutating = !matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options");
    if !flow.config.enabled {
        let (now, most) = (flow.in_flight(mutating), if mutating { flow.config.mutating_requests_max } else { flow.config.requests_max });
        if now.fetch_add(1, Relaxed) >= most && most > 0 && !user.in_group(MASTERS_GROUP) {
            now.fetch_sub(1, Relaxed);
            flow.dropped[usize::from(mutating)].fetch_add(1, Relaxed);
            return Err((refusal(), None));
        }
        return Ok(ticket(Held::Plain { mutating }));
    }
    let plan = flow.plan.load();
    // The mandatory schema `catch-all` is always there, and its rules match everybody who has a group; who has none is caught too.
    let Some(bound) = plan.schemas.iter().find(|bound| bound.schema.matches(user, info)).or(plan.schemas.last()).cloned() else {
        return Ok(ticket(Held::Nothing));
    };
    drop(plan);
    let level = &bound.level;
    let width = work::width(server, info, query).min(level.width_max.load(Relaxed)).max(1);
    let number = bound.schema.flow(user, info);
    let mut given = None;
    let arrival = level.queues.lock().arrive(flow.now_s(), number, width, || {
        let (wake, woken) = oneshot::channel();
        given = Some(woken);
        wake
    });
    let queue = match (arrival, given) {
        (Arrival::Runs { queue }, _) => queue,
        (Arrival::Waits { queue, number }, Some(woken)) => {
            let mut waiter = Waiter { flow, level, queue, number, width, over: false };
            let since = Instant::now();
            let woken = tokio::time::timeout(WAIT_MAX, woken).await;
            let runs = match woken {
                Ok(_) => {
                    waiter.over = true;
                    true
                }
                Err(_) => waiter.end(),
            };
            bound.waited.add(since.elapsed());
            if !runs {
                bound.rejected_late.fetch_add(1, Relaxed);
                return Err((refusal(), Some(bound.marks.clone())));
            }
            queue
        }
        (refused, _) => {
            let counter = if refused == Arrival::Full { &bound.rejected_full } else { &bound.rejected_busy };
            counter.fetch_add(1, Relaxed);
            return Err((refusal(), Some(bound.marks.clone())));
        }
    };
    bound.dispatched.fetch_add(1, Relaxed);
    flow.in_flight(mutating).fetch_add(1, Relaxed);
    let begun_s = flow.now_s();
    Ok(ticket(Held::Seats { bound, mutating, queue, width, begun_s }))
}

fn refusal() -> Status {
    Status::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_S)
}

impl Flow {
    /// Its part of the metrics.
    pub fn metrics(&self, out: &mut String) {
        let (reading, mutating) = self.current();
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP apiserver_current_inflight_requests Requests that are being answered.\n# TYPE apiserver_current_inflight_requests gauge\n\
             apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {mutating}\napiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {reading}"
        );
        let plan = self.plan.load();
        let gauge = |out: &mut String, name: &str, help: &str, value: &dyn Fn(&Level) -> usize| {
            let _ = writeln!(out, "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} gauge");
            for level in plan.levels.iter() {
                let _ = writeln!(out, "apiserver_flowcontrol_{name}{{priority_level={:?}}} {}", level.name, value(level));
            }
        };
        let limited = |level: &Level, seats: usize| if level.exempt { 0 } else { seats };
        gauge(out, "nominal_limit_seats", "Seats that a level owns.", &|level| level.nominal.load(Relaxed));
        gauge(out, "current_limit_seats", "Seats that a level may use now.", &|level| limited(level, level.queues.lock().limit()));
        gauge(out, "current_executing_seats", "Seats in use.", &|level| level.queues.lock().seats_in_use());
        gauge(out, "current_executing_requests", "Requests that are being answered.", &|level| level.queues.lock().executing());
        gauge(out, "current_inqueue_requests", "Requests that wait for seats.", &|level| level.queues.lock().waiting());
        let _ = writeln!(
            out,
            "# HELP apiserver_flowcontrol_dispatched_requests_total Requests that were given seats.\n# TYPE apiserver_flowcontrol_dispatched_requests_total counter"
        );
        let labels = |bound: &Bound| format!("flow_schema={:?},priority_level={:?}", bound.schema.name, bound.level.name);
        for bound in plan.schemas.iter() {
            let _ = writeln!(out, "apiserver_flowcontrol_dispatched_requests_total{{{}}} {}", labels(bound), bound.dispatched.load(Relaxed));
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_flowcontrol_rejected_requests_total Requests that were sent away.\n# TYPE apiserver_flowcontrol_rejected_requests_total counter"
        );
        for bound in plan.schemas.iter() {
            for (reason, counter) in
                [("queue-full", &bound.rejected_full), ("concurrency-limit", &bound.rejected_busy), ("time-out", &bound.rejected_late)]
            {
                let count = counter.load(Relaxed);
                if count > 0 {
                    let _ = writeln!(out, "apiserver_flowcontrol_rejected_requests_total{{{},reason={reason:?}}} {count}", labels(bound));
                }
            }
        }
        const WAIT: &str = "apiserver_flowcontrol_request_wait_duration_seconds";
        let _ = writeln!(out, "# HELP {WAIT} How long requests waited that had to.\n# TYPE {WAIT} histogram");
        for bound in plan.schemas.iter().filter(|bound| bound.waited.count.load(Relaxed) > 0) {
            let (labels, waited) = (labels(bound), &bound.waited);
            for (bound_s, count) in WAITED_S.iter().zip(&waited.counts) {
                let _ = writeln!(out, "{WAIT}_bucket{{{labels},le=\"{bound_s}\"}} {}", count.load(Relaxed));
            }
            let count = waited.count.load(Relaxed);
            let _ = writeln!(out, "{WAIT}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{WAIT}_sum{{{labels}}} {}\n{WAIT}_count{{{labels}}} {count}", waited.sum_us.load(Relaxed) as f64 / 1e6);
        }
        let dropped = [("readOnly", &self.dropped[0]), ("mutating", &self.dropped[1])];
        let _ = writeln!(
            out,
            "# HELP apiserver_dropped_requests_total Requests beyond the plain limits.\n# TYPE apiserver_dropped_requests_total counter"
        );
        for (kind, count) in dropped {
            let _ = writeln!(out, "apiserver_dropped_requests_total{{request_kind={kind:?}}} {}", count.load(Relaxed));
        }
    }
}
