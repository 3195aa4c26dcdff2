//! `make load`: the API server under load over HTTPS, as tables for docs/performance.md.
//!
//! It starts a server of its own (TLS, RBAC, SQLite with an fsync per commit; no scheduler, no controllers, no node), drives it
//! phase by phase, and reads from /proc what the server's process spent meanwhile. CPU per operation is the figure to compare:
//! it changes little with what else the machine does. Beside it stands what Kubernetes v1.36.2 with etcd 3.6 spent on the same work.

mod client;
#[path = "../../crates/apiserver/benches/workload/mod.rs"]
mod workload;

use crate::bench::{Running, rss_mib, start};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use client::{Client, JSON, MERGE_PATCH};
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};
use std::{
    fs,
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use workload::{NAMESPACES, namespace, path, pod};

const PORT: u16 = 16444;
const TOKEN: &str = "load";
const CONNECTIONS: usize = 4;
/// Requests at a time, where a phase does not say otherwise.
const CONCURRENCY: usize = 32;
const WATCHERS: usize = 200;
const UPDATES: usize = 500;
/// How long an event may take to a watcher.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long idle watchers are looked at.
const IDLE: Duration = Duration::from_secs(10);

/// CPU milliseconds per operation of Kubernetes' API server and etcd together, and MiB in the last two lines.
const KUBERNETES: [(&str, f64); 8] = [
    ("create", 2.40),
    ("get", 0.73),
    ("list of all", 558.0),
    ("page of 500", 42.5),
    ("list by label, 1 %", 8.15),
    ("merge-patch", 4.05),
    ("one change to 200 watchers", 8.5),
    ("delete", 2.46),
];
/// The pods at which those were measured.
const KUBERNETES_PODS: usize = 5000;
const KUBERNETES_IDLE_MIB: u64 = 330;
const KUBERNETES_END_MIB: u64 = 1083;

/// What to measure.
#[derive(clap::Args)]
pub struct Load {
    #[arg(long, default_value = "target/release/regent")]
    regent: std::path::PathBuf,
    /// Pods in the table of phases.
    #[arg(long, default_value_t = 5000)]
    pods: usize,
    /// Stored pods at which the cost of single requests is compared; without a value that is left out.
    #[arg(long, value_delimiter = ',', num_args = 0..=1, default_value = "1000,10000,100000")]
    stored: Vec<usize>,
    /// Idle watchers whose memory is measured; 0 leaves that out.
    #[arg(long, default_value_t = 5000)]
    idle_watchers: usize,
}

pub fn run(load: &Load) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        phases(load).await?;
        if !load.stored.is_empty() {
            growth(load).await?;
        }
        if load.idle_watchers > 0 {
            idle_watchers(load).await?;
        }
        Ok(())
    })
}

/// A server and a client of it.
struct Bench {
    server: Running,
    client: Client,
}

impl Bench {
    async fn start(load: &Load, connections: usize) -> Result<Arc<Bench>> {
        let tokens = std::path::absolute("target/load-tokens.csv")?;
        fs::write(&tokens, format!("{TOKEN},load,load,\"system:masters\"\n"))?;
        let tokens = format!("--token-auth-file={}", tokens.display());
        let (server, _) = start(&load.regent, "target/load-server", PORT, &["--disable=agent,scheduler,controller-manager", &tokens])?;
        let authority = Path::new("target/load-server/data/server/pki/ca.crt");
        let client = Client::connect(PORT, TOKEN, authority, connections).await?;
        let bench = Bench { server, client };
        for i in 0..NAMESPACES {
            let (name, account) = (namespace(i), json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}));
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            bench.client.call(0, Method::POST, "/api/v1/namespaces", JSON, text(&object)).await?;
            // Without controllers nobody makes the account that pods run as.
            bench.client.call(0, Method::POST, &format!("/api/v1/namespaces/{name}/serviceaccounts"), JSON, text(&account)).await?;
        }
        Ok(Arc::new(bench))
    }

    fn cpu_ms(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<u64>().ok()).sum();
        // Linux counts these in hundredths of a second, whatever its own clock does.
        Ok(ticks as f64 * 10.0)
    }

    fn rss_mib(&self) -> Result<u64> {
        rss_mib(self.server.id())
    }

    /// Runs `count` operations, some at a time.
    async fn phase<F, Fut>(self: &Arc<Bench>, count: usize, concurrency: usize, operation: F) -> Result<Figures>
    where
        F: Fn(Arc<Bench>, usize) -> Fut,
        Fut: Future<Output = Result<usize>> + Send + 'static,
    {
        let (cpu, begun) = (self.cpu_ms()?, Instant::now());
        let (mut bytes, mut latencies) = (0, Vec::with_capacity(count));
        let operations = (0..count).map(|i| {
            let running = operation(self.clone(), i);
            async move {
                let sent = Instant::now();
                let length = tokio::spawn(running).await??;
                Ok::<_, anyhow::Error>((length, sent.elapsed()))
            }
        });
        let mut running = futures::stream::iter(operations).buffer_unordered(concurrency);
        while let Some(done) = running.next().await {
            let (length, took) = done?;
            bytes += length;
            latencies.push(took);
        }
        Figures::of(self, cpu, begun, bytes, latencies)
    }

    async fn create(self: &Arc<Bench>, range: std::ops::Range<usize>) -> Result<Figures> {
        let first = range.start;
        self.phase(range.len(), CONCURRENCY, move |bench, i| async move {
            let i = first + i;
            bench.client.call(i, Method::POST, &format!("/api/v1/namespaces/{}/pods", namespace(i)), JSON, text(&pod(i))).await
        })
        .await
    }

    async fn delete(self: &Arc<Bench>, range: std::ops::Range<usize>) -> Result<Figures> {
        let first = range.start;
        self.phase(range.len(), CONCURRENCY, move |bench, i| async move {
            bench.client.call(i, Method::DELETE, &format!("{}?gracePeriodSeconds=0", path(first + i)), "", Bytes::new()).await
        })
        .await
    }

    async fn get(self: &Arc<Bench>, count: usize, stored: usize) -> Result<Figures> {
        self.phase(count, CONCURRENCY, move |bench, i| async move { bench.client.get(i, &path(i * 7919 % stored)).await }).await
    }

    async fn patch(self: &Arc<Bench>, count: usize, stored: usize) -> Result<Figures> {
        self.phase(count, CONCURRENCY, move |bench, i| async move {
            let patch = json!({"metadata": {"labels": {"rev": format!("r{}", turn())}}});
            bench.client.call(i, Method::PATCH, &path(i % stored), MERGE_PATCH, text(&patch)).await
        })
        .await
    }

    async fn list(self: &Arc<Bench>, count: usize, concurrency: usize, path: &'static str) -> Result<Figures> {
        self.phase(count, concurrency, move |bench, i| async move { bench.client.get(i, path).await }).await
    }

    async fn version(&self) -> Result<String> {
        let page: Value = serde_json::from_slice(&self.client.read("/api/v1/pods?limit=1").await?)?;
        Ok(page["metadata"]["resourceVersion"].as_str().context("a list has a version")?.into())
    }

    /// One change after the other, each timed until the last of all watchers has it.
    async fn watch(self: &Arc<Bench>, watchers: usize, updates: usize, stored: usize) -> Result<Figures> {
        let version = self.version().await?;
        let (seen, mut events) = tokio::sync::mpsc::unbounded_channel();
        let mut readers = tokio::task::JoinSet::new();
        for i in 0..watchers {
            let path = format!("/api/v1/pods?watch=1&resourceVersion={version}");
            let mut body = self.client.send(i, Method::GET, &path, "", Bytes::new()).await?.into_body();
            let seen = seen.clone();
            readers.spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    // An event is one line.
                    let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                    for _ in 0..lines {
                        let _ = seen.send(());
                    }
                }
            });
        }
        let (cpu, begun) = (self.cpu_ms()?, Instant::now());
        let mut latencies = Vec::with_capacity(updates);
        for i in 0..updates {
            let patch = json!({"metadata": {"annotations": {"bench/turn": turn().to_string()}}});
            let sent = Instant::now();
            self.client.call(0, Method::PATCH, &path(i % stored), MERGE_PATCH, text(&patch)).await?;
            for _ in 0..watchers {
                tokio::time::timeout(EVENT_TIMEOUT, events.recv()).await.context("a watcher did not get an event in time")?;
            }
            latencies.push(sent.elapsed());
        }
        Figures::of(self, cpu, begun, 0, latencies)
    }
}

/// What came of a phase.
struct Figures {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_ms: f64,
    bytes_per_s: f64,
    bytes: usize,
    rss_mib: u64,
}

impl Figures {
    fn of(bench: &Bench, cpu_before_ms: f64, begun: Instant, bytes: usize, mut latencies: Vec<Duration>) -> Result<Figures> {
        let (elapsed_s, count) = (begun.elapsed().as_secs_f64(), latencies.len());
        latencies.sort();
        let at = |share: f64| {
            latencies.get(((count as f64 * share) as usize).min(count.saturating_sub(1))).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
        };
        Ok(Figures {
            per_s: count as f64 / elapsed_s,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            cpu_ms: (bench.cpu_ms()? - cpu_before_ms) / count as f64,
            bytes_per_s: bytes as f64 / elapsed_s,
            bytes: bytes / count.max(1),
            rss_mib: bench.rss_mib()?,
        })
    }
}

/// A number that was not there before: a patch that changes nothing is no event.
fn turn() -> usize {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    TURN.fetch_add(1, Relaxed)
}

fn text(value: &Value) -> Bytes {
    value.to_string().into()
}

/// The phases one after another, beside Kubernetes' figures.
async fn phases(load: &Load) -> Result<()> {
    let bench = Bench::start(load, CONNECTIONS).await?;
    let idle_mib = bench.rss_mib()?;
    println!("\n{} pods of two containers, {CONNECTIONS} HTTP/2 connections, TLS, RBAC, SQLite with an fsync per commit\n", load.pods);
    println!("| phase | per s | p50 ms | p99 ms | CPU ms | Kubernetes, CPU ms | ratio | RSS MiB after |\n|---|---|---|---|---|---|---|---|");
    println!("| idle, just started | | | | | ({KUBERNETES_IDLE_MIB} MiB) | {:.1} | {idle_mib} |", KUBERNETES_IDLE_MIB as f64 / idle_mib as f64);
    let show = |phase: &str, figures: Figures| {
        // Theirs is of so many pods only.
        let theirs = KUBERNETES.iter().find(|(name, _)| *name == phase && load.pods == KUBERNETES_PODS).map(|(_, theirs)| *theirs);
        let Figures { per_s, p50_ms, p99_ms, cpu_ms, rss_mib, .. } = figures;
        let compared = theirs.map_or("| ".to_owned(), |theirs| format!("{theirs} | {:.1}", theirs / cpu_ms));
        println!("| {phase} | {per_s:.1} | {p50_ms:.1} | {p99_ms:.1} | {cpu_ms:.3} | {compared} | {rss_mib} |");
    };
    show("create", bench.create(0..load.pods).await?);
    show("get", bench.get(load.pods * 2, load.pods).await?);
    let all = bench.list(20, 2, "/api/v1/pods?resourceVersion=0").await?;
    let (list_bytes, list_bytes_per_s) = (all.bytes, all.bytes_per_s);
    show("list of all", all);
    show("page of 500", bench.list(100, 2, "/api/v1/pods?limit=500").await?);
    show("list by label, 1 %", bench.list(200, 4, "/api/v1/pods?labelSelector=shard%3Ds7&resourceVersion=0").await?);
    show("merge-patch", bench.patch(load.pods, load.pods).await?);
    show("one change to 200 watchers", bench.watch(WATCHERS, UPDATES.min(load.pods), load.pods).await?);
    let deleted = bench.delete(0..load.pods).await?;
    let end_mib = deleted.rss_mib;
    show("delete", deleted);
    println!("| after all phases | | | | | ({KUBERNETES_END_MIB} MiB) | {:.1} | {end_mib} |", KUBERNETES_END_MIB as f64 / end_mib as f64);
    println!("\nA list of all is {:.1} MB; {:.0} MB/s.", list_bytes as f64 / 1e6, list_bytes_per_s / 1e6);
    Ok(())
}

/// What single requests cost beside more and more that is stored.
async fn growth(load: &Load) -> Result<()> {
    const OPERATIONS: usize = 1000;
    let bench = Bench::start(load, CONNECTIONS).await?;
    println!("\nCPU ms per operation, by what is stored\n");
    println!(
        "| stored pods | create | get | merge-patch | one change to one watcher | list by label, 1 % | list of all, MB/s | list of all, CPU ms per MB | RSS MiB |\n|---|---|---|---|---|---|---|---|---|"
    );
    let mut stored = 0;
    for &wanted in &load.stored {
        if wanted > stored {
            bench.create(stored..wanted).await?;
            stored = wanted;
        }
        let created = bench.create(stored..stored + OPERATIONS).await?;
        let got = bench.get(2 * OPERATIONS, stored).await?;
        let patched = bench.patch(OPERATIONS, stored).await?;
        let watched = bench.watch(1, OPERATIONS / 2, stored).await?;
        let selected = bench.list(50, 2, "/api/v1/pods?labelSelector=shard%3Ds7&resourceVersion=0").await?;
        let all = bench.list((500_000 / stored).clamp(5, 50), 2, "/api/v1/pods?resourceVersion=0").await?;
        bench.delete(stored..stored + OPERATIONS).await?;
        println!(
            "| {stored} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.0} | {:.2} | {} |",
            created.cpu_ms,
            got.cpu_ms,
            patched.cpu_ms,
            watched.cpu_ms,
            selected.cpu_ms,
            all.bytes_per_s / 1e6,
            all.cpu_ms / (all.bytes as f64 / 1e6),
            all.rss_mib
        );
    }
    Ok(())
}

/// Many watchers to whom nothing happens.
async fn idle_watchers(load: &Load) -> Result<()> {
    const PER_CONNECTION: usize = 500;
    let bench = Bench::start(load, load.idle_watchers.div_ceil(PER_CONNECTION)).await?;
    let before_mib = bench.rss_mib()?;
    let version = bench.version().await?;
    let mut bodies = Vec::with_capacity(load.idle_watchers);
    for i in 0..load.idle_watchers {
        let path = format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={version}");
        let answer = bench.client.send(i, Method::GET, &path, "", Bytes::new()).await?;
        if !answer.status().is_success() {
            bail!("watcher {i}: {}", answer.status());
        }
        bodies.push(answer.into_body());
    }
    let opened_mib = bench.rss_mib()?;
    let cpu = bench.cpu_ms()?;
    tokio::time::sleep(IDLE).await;
    let cpu_ms_per_s = (bench.cpu_ms()? - cpu) / IDLE.as_secs_f64();
    let each_kib = (opened_mib - before_mib) as f64 * 1024.0 / load.idle_watchers as f64;
    println!(
        "\n{} idle watchers on {} connections: {before_mib} MiB before, {opened_mib} MiB with them, {each_kib:.1} KiB each; {cpu_ms_per_s:.1} ms of CPU per second",
        load.idle_watchers,
        load.idle_watchers.div_ceil(PER_CONNECTION)
    );
    drop(bodies);
    Ok(())
}
