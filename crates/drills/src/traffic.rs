//! The traffic of a drill, from inside a node: `regent drill traffic`, one process per source.
//!
//! Open loop: each way has its own beat, and a request begins on its beat whether or not the last one is answered, as users
//! do. Each request opens a connection of its own; a second, slower stream per way keeps one connection and is reported
//! apart. Names are looked up at the node's cluster DNS for each request. Every request is one line on standard output
//! ([`crate::request`]). The process ends when its standard input does, so that it never outlives the drill.
//!
//! It is plain sockets and one thread, for it shares two cores with the cluster that it measures.

mod api_calls;
mod look_up;
mod page;
pub use page::POD_HEADER;

use crate::{
    limits, now_ms,
    request::{Request, Way},
};
use page::Kept;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where a way's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub way: Way,
    /// An address, or a name for the cluster DNS.
    pub host: String,
    pub port: u16,
}

impl std::str::FromStr for Target {
    type Err = String;

    /// Reads `cluster-ip=10.96.3.4:80`.
    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || format!("{text} is no target; say WAY=HOST:PORT");
        let (way, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        Ok(Target { way: way.parse()?, host: host.to_owned(), port: port.parse().map_err(|_| wrong())? })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = serde_json::to_value(self.way).ok().and_then(|way| way.as_str().map(str::to_owned)).unwrap_or_default();
        write!(f, "{way}={}:{}", self.host, self.port)
    }
}

/// What a source asks for.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: String,
    pub boot: u32,
    pub targets: Vec<Target>,
    /// New connections per second on each way.
    pub rate: u32,
    /// Requests per second on each way over a kept connection; 0: none.
    pub kept_rate: u32,
    pub dns: SocketAddr,
    /// A kubeconfig with which the API is called too.
    pub api: Option<PathBuf>,
}

struct Shared {
    config: Config,
    lines: mpsc::Sender<Request>,
    in_flight: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// How a request ended: what answered, after how many attempts; or why not.
struct Ended {
    pod: Option<String>,
    attempts: u8,
    error: Option<String>,
}

/// Sends traffic until standard input ends.
pub async fn run(config: Config) -> std::io::Result<()> {
    let (lines, waiting) = mpsc::channel(limits::LINES_WAITING_MAX);
    let writer = tokio::spawn(write_lines(waiting));
    let shared = Arc::new(Shared {
        in_flight: Arc::new(Semaphore::new(limits::IN_FLIGHT_MAX)),
        config,
        lines,
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    for target in shared.config.targets.clone() {
        shared.tasks.spawn(fresh(shared.clone(), target.clone()));
        if shared.config.kept_rate > 0 {
            shared.tasks.spawn(kept(shared.clone(), target));
        }
    }
    if let Some(kubeconfig) = shared.config.api.clone() {
        shared.tasks.spawn(api_calls::run(shared.clone(), kubeconfig));
    }
    let mut nothing = [0; 64];
    let mut input = tokio::io::stdin();
    while input.read(&mut nothing).await.is_ok_and(|n| n > 0) {}
    shared.stop.cancel();
    shared.tasks.close();
    shared.tasks.wait().await;
    drop(shared);
    writer.await.map_err(std::io::Error::other)?
}

/// A beat of so many per second; the offset keeps sources and ways from beating together.
fn beat(rate: u32, offset: u64) -> tokio::time::Interval {
    let period = Duration::from_secs(1) / rate.max(1);
    let micros = u64::try_from(period.as_micros()).unwrap_or(1).max(1);
    let mut beat = tokio::time::interval_at(Instant::now() + Duration::from_micros(offset.wrapping_mul(7919) % micros), period);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    beat
}

/// A new connection for each request.
async fn fresh(shared: Arc<Shared>, target: Target) {
    let offset = now_ms() + u64::from(target.port) + target.way as u64 * 31;
    let mut beat = beat(shared.config.rate, offset);
    loop {
        tokio::select! { () = shared.stop.cancelled() => return, _ = beat.tick() => {} }
        let started_ms = now_ms();
        let Ok(room) = shared.in_flight.clone().try_acquire_owned() else {
            let ended = Ended { pod: None, attempts: 1, error: Some("too many requests are under way".into()) };
            shared.log(target.way, false, started_ms, Duration::ZERO, ended).await;
            continue;
        };
        let (shared, target) = (shared.clone(), target.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let began = Instant::now();
            let ended = match tokio::time::timeout(limits::REQUEST_TIMEOUT, ask(&target, shared.config.dns)).await {
                Ok(ended) => ended,
                Err(_) => Ended { pod: None, attempts: 1, error: Some("no answer in time".into()) },
            };
            shared.log(target.way, false, started_ms, began.elapsed(), ended).await;
            drop(room);
        });
    }
}

async fn ask(target: &Target, dns: SocketAddr) -> Ended {
    let (address, attempts) = match look_up::address(&target.host, dns).await {
        Ok(found) => found,
        Err((why, attempts)) => return Ended { pod: None, attempts, error: Some(why) },
    };
    match page::get(SocketAddr::new(address, target.port), &target.host).await {
        Ok(pod) => Ended { pod, attempts, error: None },
        Err(why) => Ended { pod: None, attempts, error: Some(why) },
    }
}

/// One connection for all requests, made anew when it ends.
async fn kept(shared: Arc<Shared>, target: Target) {
    let mut beat = beat(shared.config.kept_rate, now_ms());
    let mut connection: Option<Kept> = None;
    loop {
        tokio::select! { () = shared.stop.cancelled() => return, _ = beat.tick() => {} }
        let (started_ms, began) = (now_ms(), Instant::now());
        let ended = match tokio::time::timeout(limits::REQUEST_TIMEOUT, ask_kept(&mut connection, &target, shared.config.dns)).await {
            Ok(ended) => ended,
            Err(_) => Ended { pod: None, attempts: 1, error: Some("no answer in time".into()) },
        };
        if ended.error.is_some() {
            connection = None;
        }
        shared.log(target.way, true, started_ms, began.elapsed(), ended).await;
    }
}

/// A request on the kept connection. If that was closed from the other side before it answered, the request is sent once
/// more on a new one, as every HTTP client does.
async fn ask_kept(connection: &mut Option<Kept>, target: &Target, dns: SocketAddr) -> Ended {
    let used = connection.is_some();
    if let Some(kept) = connection
        && let Ok((pod, goes_on)) = kept.get(&target.host).await
    {
        if !goes_on {
            *connection = None;
        }
        return Ended { pod, attempts: 1, error: None };
    }
    *connection = None;
    let attempts = 1 + u8::from(used);
    let made = async {
        let (address, _): (IpAddr, u8) = look_up::address(&target.host, dns).await.map_err(|(why, _)| why)?;
        let mut kept = Kept::connect(SocketAddr::new(address, target.port)).await?;
        let answer = kept.get(&target.host).await?;
        Ok::<_, String>((kept, answer))
    };
    match made.await {
        Ok((kept, (pod, goes_on))) => {
            *connection = goes_on.then_some(kept);
            Ended { pod, attempts, error: None }
        }
        Err(why) => Ended { pod: None, attempts, error: Some(why) },
    }
}

impl Shared {
    async fn log(&self, way: Way, kept: bool, started_ms: u64, took: Duration, ended: Ended) {
        let request = Request {
            started_ms,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            source: self.config.source.clone(),
            boot: self.config.boot,
            way,
            kept,
            attempts: ended.attempts,
            pod: ended.pod,
            error: ended.error,
        };
        // The writer is gone only when nobody reads any more.
        let _ = self.lines.send(request).await;
    }
}

async fn write_lines(mut waiting: mpsc::Receiver<Request>) -> std::io::Result<()> {
    let mut out = tokio::io::BufWriter::with_capacity(64 * 1024, tokio::io::stdout());
    let mut flush = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            line = waiting.recv() => match line {
                Some(request) => {
                    let mut text = serde_json::to_vec(&request)?;
                    text.push(b'\n');
                    out.write_all(&text).await?;
                }
                None => return out.flush().await,
            },
            _ = flush.tick() => out.flush().await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_what_it_writes() {
        let target: Target = "cluster-ip=10.96.3.4:80".parse().unwrap();
        assert_eq!(target, Target { way: Way::ClusterIp, host: "10.96.3.4".into(), port: 80 });
        assert_eq!(target.to_string(), "cluster-ip=10.96.3.4:80");
        assert!("cluster-ip=10.96.3.4".parse::<Target>().is_err());
    }
}
