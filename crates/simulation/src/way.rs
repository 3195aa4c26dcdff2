//! How a process of a host reaches anything: its gate, connections between hosts, and the node's way to an API server.
//!
//! The way to the servers is the balancer's own core (`network::balancer::servers::Servers`) with simulated connections under it:
//! a request or a watch is a connection to a server of the core's choice, which breaks as TCP does: at once where the host says
//! that nobody listens, after a while of silence where it says nothing.

use crate::{
    api::{self, Target},
    world::{World, address},
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use network::balancer::{
    Server,
    servers::{Action, Servers, Verdict},
};
use parking_lot::Mutex;
use rand::Rng;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// What was sent and is not acknowledged for this long ends its connection, as in `client::transport`.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// What was lost is sent again after this.
const RESEND: Duration = Duration::from_millis(200);
/// The times of the balancer's shell.
const CHECK_EVERY_MS: u64 = 250;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const CHOICE_TIMEOUT: Duration = Duration::from_secs(3);
const REBALANCE_EVERY: Duration = Duration::from_secs(2);
const CHECK_TIMEOUT: Duration = Duration::from_millis(700);
/// Servers send a bookmark this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Batches of events on their way to one watcher.
const BATCHES_MAX: usize = 16;

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Broken {
    /// Nobody listens, or the other side has ended it.
    #[error("connection reset")]
    Reset,
    /// Nothing has come back for too long.
    #[error("connection timed out")]
    Silence,
    /// There is none that can be reached.
    #[error("no API server could be reached")]
    NoServer,
}

type Body = UnsyncBoxBody<Bytes, Broken>;

/// One start of a process.
#[derive(Clone)]
pub struct Process {
    /// Where.
    pub world: World,
    /// On which host.
    pub host: usize,
    /// Which start of it.
    pub number: u64,
    /// The server; otherwise the agent.
    pub is_server: bool,
}

impl Process {
    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        let state = self.world.lock();
        let host = &state.hosts[self.host];
        let life = if self.is_server { &host.server } else { &host.agent };
        host.is_on && life.runs && life.number == self.number
    }

    /// Passes when the process runs and is not paused; never, when it has been killed. Every act of a process goes through here.
    pub async fn gate(&self) {
        loop {
            if !self.is_alive() {
                std::future::pending::<()>().await;
            }
            let until = self.world.lock().hosts[self.host].paused_until;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Brings something from one host to the other, as TCP does.
async fn carry(world: &World, from: usize, to: usize) -> Result<(), Broken> {
    let deadline = Instant::now() + SILENCE_MAX;
    loop {
        let delay = world.delay(&mut world.lock());
        sleep(if from == to { Duration::from_millis(1) } else { delay }).await;
        {
            let mut state = world.lock();
            if from == to || (state.passes(from, to) && state.passes(to, from) && !world.loses(&mut state)) {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            return Err(Broken::Silence);
        }
        sleep(RESEND).await;
    }
}

/// A connection to a server's process.
#[derive(Clone)]
struct Link {
    world: World,
    from: usize,
    to: usize,
    /// Which start of the server it goes to.
    number: u64,
}

impl Link {
    /// Whether the other end is still the same process.
    fn stands(&self) -> bool {
        let state = self.world.lock();
        let server = &state.hosts[self.to].server;
        server.runs && server.number == self.number
    }

    async fn carry(&self, back: bool) -> Result<(), Broken> {
        let (from, to) = if back { (self.to, self.from) } else { (self.from, self.to) };
        carry(&self.world, from, to).await?;
        if self.stands() { Ok(()) } else { Err(Broken::Reset) }
    }

    /// Waits as long as the server takes and says nothing.
    async fn served(&self) -> Result<(), Broken> {
        let mut struck = self.world.struck.subscribe();
        loop {
            if !self.stands() {
                return Err(Broken::Reset);
            }
            let until = {
                let state = self.world.lock();
                let host = &state.hosts[self.to];
                if !host.hangs && host.paused_until <= Instant::now() {
                    return Ok(());
                }
                host.paused_until.max(Instant::now() + RESEND)
            };
            tokio::select! {
                biased;
                _ = struck.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// One request and its answer.
    async fn ask(&self, method: &http::Method, target: &Target, strategic: bool, body: &[u8]) -> Result<api::Answer, Broken> {
        self.carry(false).await?;
        self.served().await?;
        let answer = {
            let mut state = self.world.lock();
            if self.world.has_quorum(&state, self.to) {
                state.api.now_ms = state.now_ms();
                let before = state.api.revision();
                let answer = state.api.answer(method, target, strategic, body);
                if state.api.revision() != before {
                    state.note(&format!("{method} {target:?} by {}", self.from));
                }
                answer
            } else {
                api::failure(503, "ServiceUnavailable")
            }
        };
        self.world.wrote();
        self.carry(true).await?;
        Ok(answer)
    }

    /// Tells of what changes until the connection breaks.
    async fn watch(self, target: Target, from: u64, lines: mpsc::Sender<Result<Bytes, Broken>>) {
        let (mut revised, mut struck) = (self.world.revised.subscribe(), self.world.struck.subscribe());
        let mut told = from;
        let mut silent_since: Option<Instant> = None;
        let mut bookmark_at = Instant::now() + BOOKMARK_EVERY;
        loop {
            revised.mark_unchanged();
            struck.mark_unchanged();
            let (linked, quorum, hangs) = {
                let state = self.world.lock();
                let linked = self.from == self.to || (state.passes(self.from, self.to) && state.passes(self.to, self.from));
                (linked, self.world.has_quorum(&state, self.to), state.hosts[self.to].hangs || state.is_paused(self.to))
            };
            if linked && (!self.stands() || !quorum) {
                let _ = lines.send(Err(Broken::Reset)).await;
                return;
            }
            if !linked {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SILENCE_MAX {
                    let _ = lines.send(Err(Broken::Silence)).await;
                    return;
                }
                tokio::select! {
                    biased;
                    () = lines.closed() => return,
                    _ = struck.changed() => {}
                    () = sleep_until(since + SILENCE_MAX) => {}
                }
                continue;
            }
            silent_since = None;
            let batch = (!hangs).then(|| {
                let state = self.world.lock();
                (state.api.is_known(told), state.api.events(&target, told))
            });
            if let Some((is_known, (mut batch, upto))) = batch {
                if !is_known {
                    let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","code":410,"reason":"Expired","message":"too old resource version"}}"#;
                    let _ = lines.send(Ok(Bytes::from(format!("{gone}\n")))).await;
                    return;
                }
                told = upto;
                if batch.is_empty() && Instant::now() >= bookmark_at {
                    bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    batch = format!(r#"{{"type":"BOOKMARK","object":{{"kind":"Bookmark","apiVersion":"v1","metadata":{{"resourceVersion":"{upto}","annotations":{{}}}}}}}}{}"#, "\n").into_bytes();
                }
                if !batch.is_empty() {
                    if self.carry(true).await.is_err() {
                        // Lost on the way; the end of the connection is seen above.
                        let _ = lines.send(Err(Broken::Silence)).await;
                        return;
                    }
                    if lines.send(Ok(Bytes::from(batch))).await.is_err() {
                        return;
                    }
                    continue;
                }
            }
            let look_at = if hangs { Instant::now() + RESEND } else { bookmark_at };
            tokio::select! {
                biased;
                () = lines.closed() => return,
                _ = revised.changed() => {}
                _ = struck.changed() => {}
                () = sleep_until(look_at) => {}
            }
        }
    }
}

fn server_at(host: usize) -> Server {
    Server::at(IpAddr::V4(address(host)), 6443)
}

/// A process' way to the servers.
pub struct Way {
    process: Process,
    servers: Mutex<Servers>,
    /// Open connections: to which host, and how to cut them.
    open: Mutex<BTreeMap<u64, (usize, CancellationToken)>>,
    /// A server asks itself and nobody else.
    own: Option<usize>,
    next: Mutex<u64>,
}

/// A connection that is counted as long as it is open.
struct Counted {
    way: Arc<Way>,
    id: u64,
    link: Link,
    cut: CancellationToken,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.way.open.lock().remove(&self.id).is_some() {
            self.way.servers.lock().closed(&server_at(self.link.to));
        }
    }
}

impl Way {
    /// The way of a process, with what keeps it going.
    pub fn start(process: &Process) -> Arc<Way> {
        let world = process.world.clone();
        let named: Vec<Server> = (0..world.shape.servers).map(server_at).collect();
        let now = Instant::now();
        let mut servers = Servers::new(&named, &[], Some(IpAddr::V4(address(process.host))), now);
        servers.learn(&named, now);
        let own = process.is_server.then_some(process.host);
        let way = Arc::new(Way { process: process.clone(), servers: Mutex::new(servers), open: Mutex::default(), own, next: Mutex::new(0) });
        if !process.is_server {
            for to in 0..world.shape.servers {
                tokio::spawn(way.clone().check(to));
            }
            if world.shape.servers > 1 {
                tokio::spawn(way.clone().rebalance());
            }
        }
        way
    }

    /// A client that goes this way.
    pub fn client(self: &Arc<Way>) -> kube::Client {
        let way = self.clone();
        client::transport::in_process(tower::service_fn(move |request| {
            let way = way.clone();
            async move { way.call(request).await }
        }))
    }

    async fn check(self: Arc<Way>, to: usize) {
        let world = self.process.world.clone();
        let from = self.process.host;
        while self.process.is_alive() {
            let pause = world.lock().rng.random_range(CHECK_EVERY_MS * 4 / 5..=CHECK_EVERY_MS);
            sleep(Duration::from_millis(pause)).await;
            let (passes, runs, hangs, quorum) = {
                let state = world.lock();
                let passes = from == to || (state.passes(from, to) && state.passes(to, from));
                (passes, state.hosts[to].server.runs, state.hosts[to].hangs || state.is_paused(to), world.has_quorum(&state, to))
            };
            let verdict = match (passes, runs, hangs, quorum) {
                (false, ..) => Verdict::Gone,
                (_, false, ..) => Verdict::Gone,
                (.., true, _) => Verdict::Slow,
                (.., false) => Verdict::Unready,
                _ => Verdict::Ready,
            };
            if !passes || hangs {
                sleep(CHECK_TIMEOUT).await;
            }
            self.process.gate().await;
            self.report(to, verdict);
        }
    }

    fn report(&self, to: usize, verdict: Verdict) {
        let actions = self.servers.lock().checked(&server_at(to), verdict, Instant::now());
        for action in actions {
            let Action::Cut(server) = action else { continue };
            let view = self.servers.lock().view();
            if !view.iter().any(|(other, health, _)| *other != server && *health == network::balancer::Health::Ready) {
                self.process
                    .world
                    .lock()
                    .fail(format!("node-{} cuts its connections to {server}, though nobody else can take them", self.process.host));
            }
            self.open.lock().values().filter(|(host, _)| server_at(*host) == server).for_each(|(_, cut)| cut.cancel());
        }
    }

    /// Now and then one of the long-lived connections moves.
    async fn rebalance(self: Arc<Way>) {
        while self.process.is_alive() {
            sleep(REBALANCE_EVERY).await;
            if let Some(server) = self.servers.lock().overloaded(Instant::now())
                && let Some((_, cut)) = self.open.lock().values().find(|(host, _)| server_at(*host) == server)
            {
                cut.cancel();
            }
        }
    }

    async fn connect(self: &Arc<Way>) -> Result<Counted, Broken> {
        let world = &self.process.world;
        let from = self.process.host;
        let mut tried = Vec::new();
        loop {
            let to = match self.own {
                Some(own) => own,
                None => {
                    let random = world.lock().rng.random();
                    let chosen = self.servers.lock().choose(&tried, random, Instant::now()).ok_or(Broken::NoServer)?;
                    (0..world.shape.servers).find(|host| server_at(*host) == chosen).ok_or(Broken::NoServer)?
                }
            };
            let reached = timeout(CONNECT_TIMEOUT, carry(world, from, to)).await.is_ok_and(|carried| carried.is_ok());
            let life = {
                let state = world.lock();
                let server = &state.hosts[to].server;
                (reached && server.runs).then_some(server.number)
            };
            if let Some(number) = life {
                self.servers.lock().opened(&server_at(to));
                let id = {
                    let mut next = self.next.lock();
                    *next += 1;
                    *next
                };
                let cut = CancellationToken::new();
                self.open.lock().insert(id, (to, cut.clone()));
                return Ok(Counted { way: self.clone(), id, link: Link { world: world.clone(), from, to, number }, cut });
            }
            if self.own.is_some() {
                return Err(Broken::Reset);
            }
            self.report(to, Verdict::Gone);
            tried.push(server_at(to));
        }
    }

    async fn call(self: Arc<Way>, request: http::Request<kube::client::Body>) -> Result<http::Response<Body>, Broken> {
        self.process.gate().await;
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let target = Target::of(&parts.uri);
        let strategic = parts.headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/strategic"));
        let connection = timeout(CHOICE_TIMEOUT, self.connect()).await.map_err(|_| Broken::NoServer)??;
        let (link, cut) = (connection.link.clone(), connection.cut.clone());
        let answer = if target.watch_from.is_some() {
            async {
                link.carry(false).await?;
                link.served().await?;
                link.carry(true).await
            }
            .await
            .map(|()| None)
        } else {
            tokio::select! {
                biased;
                () = cut.cancelled() => Err(Broken::Reset),
                answer = link.ask(&parts.method, &target, strategic, &body) => answer.map(Some),
            }
        };
        self.process.gate().await;
        let (code, body) = match (answer?, target.watch_from) {
            (Some((code, body)), _) => (code, Full::new(body).map_err(|never| match never {}).boxed_unsync()),
            (None, from) => {
                let (sender, lines) = mpsc::channel(BATCHES_MAX);
                let watching = tokio::spawn(link.watch(target, from.unwrap_or(0), sender));
                (200, stream(connection, self.process.clone(), lines, watching.abort_handle()))
            }
        };
        // The numbers above are codes.
        http::Response::builder().status(code).body(body).map_err(|_| Broken::Reset)
    }
}

/// The body of a watch: ends with its connection.
fn stream(connection: Counted, process: Process, lines: mpsc::Receiver<Result<Bytes, Broken>>, watching: tokio::task::AbortHandle) -> Body {
    struct Watching(tokio::task::AbortHandle);
    impl Drop for Watching {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let begin = (connection, process, lines, Watching(watching), false);
    let frames = futures::stream::unfold(begin, |(connection, process, mut lines, watching, is_over)| async move {
        if is_over {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = connection.cut.cancelled() => Some(Err(Broken::Reset)),
            next = lines.recv() => next,
        };
        process.gate().await;
        let next = next?;
        let is_over = next.is_err();
        Some((next.map(Frame::data), (connection, process, lines, watching, is_over)))
    });
    StreamBody::new(frames).boxed_unsync()
}
