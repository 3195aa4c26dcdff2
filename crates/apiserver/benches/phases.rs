//! What the API server itself costs, phase by phase: requests through the whole pipeline in this process, without sockets and
//! TLS, on the store in memory. `cargo bench -p apiserver`; `make load` measures the same phases over HTTPS on SQLite.
//!
//! Each phase runs at 1,000, 10,000 and 100,000 stored pods: what one request costs must not grow with what is stored beside.

mod workload;

use apiserver::{Body, Config, Server, User, serve::LocalService};
use bytes::Bytes;
use divan::{Bencher, counter::BytesCount};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use store::memory::Memory;
use tokio::runtime::Runtime;
use tower::Service;
use workload::{NAMESPACES, namespace, path, pod};

/// How many pods are stored.
const STORED: [usize; 3] = [1_000, 10_000, 100_000];
/// Pods that are made at the same time when the store is filled.
const FILLERS: usize = 64;

fn main() {
    // `cargo test --all-targets` runs this too, and is not to wait for a hundred thousand pods.
    if std::env::args().any(|argument| argument == "--bench") {
        divan::main();
    }
}

/// A server with some pods in it.
struct Cluster {
    runtime: Runtime,
    service: LocalService,
    pods: usize,
    /// Counts what benchmarks make and change, so that no two writes say the same.
    turn: AtomicUsize,
}

impl Cluster {
    /// The one with so many pods; filled once.
    fn of(pods: usize) -> &'static Cluster {
        static CLUSTERS: [OnceLock<Cluster>; STORED.len()] = [const { OnceLock::new() }; STORED.len()];
        let at = STORED.iter().position(|stored| *stored == pods).expect("a size of the list");
        CLUSTERS[at].get_or_init(|| Cluster::filled(pods))
    }

    fn filled(pods: usize) -> Cluster {
        let runtime = Runtime::new().expect("a runtime");
        let service = runtime.block_on(async {
            let server = Server::new(Config::new(Arc::new(Memory::default()))).await.expect("the server starts");
            while !server.health.is_bootstrapped() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            server.local_service(User::new("bench", &["system:masters", "system:authenticated"]))
        });
        let cluster = Cluster { runtime, service, pods, turn: AtomicUsize::new(pods) };
        for i in 0..NAMESPACES {
            let name = namespace(i);
            cluster.post("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            cluster.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account);
        }
        cluster.runtime.block_on(async {
            use futures::StreamExt;
            let made = (0..pods).map(|i| call(cluster.service.clone(), Method::POST, collection(i), "application/json", pod(i).to_string()));
            futures::stream::iter(made).buffer_unordered(FILLERS).for_each(|_| async {}).await;
        });
        cluster
    }

    fn next(&self) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }

    fn request(&self, method: Method, path: &str, content_type: &str, body: String) -> Bytes {
        self.runtime.block_on(call(self.service.clone(), method, path.into(), content_type, body))
    }

    fn get(&self, path: &str) -> Bytes {
        self.request(Method::GET, path, "", String::new())
    }

    fn post(&self, path: &str, object: Value) -> Bytes {
        self.request(Method::POST, path, "application/json", object.to_string())
    }

    fn patch(&self, i: usize) -> Bytes {
        let turn = self.next();
        self.request(
            Method::PATCH,
            &path(i % self.pods),
            "application/merge-patch+json",
            json!({"metadata": {"labels": {"rev": format!("r{turn}")}}}).to_string(),
        )
    }
}

fn collection(i: usize) -> String {
    format!("/api/v1/namespaces/{}/pods", namespace(i))
}

async fn answer(mut service: LocalService, method: Method, path: String, content_type: &str, body: String) -> http::Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !content_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    let request = request.body(http_body_util::Full::new(Bytes::from(body))).expect("a well-formed request");
    service.call(request).await.expect("an answer")
}

async fn call(service: LocalService, method: Method, path: String, content_type: &str, body: String) -> Bytes {
    let answer = answer(service, method, path, content_type, body).await;
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.into_body().collect().await.expect("a whole body").to_bytes()
}

#[divan::bench(args = STORED)]
fn create(bencher: Bencher, stored: usize) {
    let cluster = Cluster::of(stored);
    // What is made goes again, so that the next phase finds what it expects.
    bencher
        .with_inputs(|| {
            let i = cluster.next();
            (i, pod(i))
        })
        .bench_local_values(|(i, pod)| {
            cluster.post(&collection(i), pod);
            Made(cluster, i)
        });
}

/// A pod that is deleted when its benchmark has been timed.
struct Made(&'static Cluster, usize);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.request(Method::DELETE, &format!("{}?gracePeriodSeconds=0", path(self.1)), "", String::new());
    }
}

#[divan::bench(args = STORED)]
fn delete(bencher: Bencher, stored: usize) {
    let cluster = Cluster::of(stored);
    bencher
        .with_inputs(|| {
            let i = cluster.next();
            cluster.post(&collection(i), pod(i));
            i
        })
        .bench_local_values(|i| cluster.request(Method::DELETE, &format!("{}?gracePeriodSeconds=0", path(i)), "", String::new()));
}

#[divan::bench(args = STORED)]
fn get(bencher: Bencher, stored: usize) {
    let cluster = Cluster::of(stored);
    bencher.with_inputs(|| cluster.next() * 7919 % stored).bench_local_values(|i| cluster.get(&path(i)));
}

#[divan::bench(args = STORED)]
fn merge_patch(bencher: Bencher, stored: usize) {
    let cluster = Cluster::of(stored);
    bencher.with_inputs(|| cluster.next() * 7919 % stored).bench_local_values(|i| cluster.patch(i));
}

/// One change, until each of 200 watchers of all pods has it.
#[divan::bench(args = STORED)]
fn watch_by_200(bencher: Bencher, stored: usize) {
    const WATCHERS: usize = 200;
    let cluster = Cluster::of(stored);
    let page: Value = serde_json::from_slice(&cluster.get("/api/v1/pods?limit=1")).expect("a list");
    let version = page["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
    let mut streams = cluster.runtime.block_on(futures::future::join_all((0..WATCHERS).map(|_| {
        let path = format!("/api/v1/pods?watch=1&resourceVersion={version}");
        async { answer(cluster.service.clone(), Method::GET, path, "", String::new()).await.into_body() }
    })));
    bencher.with_inputs(|| cluster.next() * 7919 % stored).bench_local_values(|i| {
        cluster.patch(i);
        cluster.runtime.block_on(async {
            for stream in &mut streams {
                let event = stream.frame().await.expect("an event").expect("a stream that goes on");
                assert!(event.is_data());
            }
        });
    });
}

fn listed(bencher: Bencher, cluster: &'static Cluster, path: &str) {
    let bytes = cluster.get(path).len();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| cluster.get(path));
}

#[divan::bench(args = STORED, sample_count = 20)]
fn list_all(bencher: Bencher, stored: usize) {
    listed(bencher, Cluster::of(stored), "/api/v1/pods?resourceVersion=0");
}

#[divan::bench(args = STORED)]
fn page_of_500(bencher: Bencher, stored: usize) {
    listed(bencher, Cluster::of(stored), "/api/v1/pods?limit=500");
}

/// One pod in a hundred: ten, a hundred, a thousand.
#[divan::bench(args = STORED)]
fn list_by_label(bencher: Bencher, stored: usize) {
    listed(bencher, Cluster::of(stored), "/api/v1/pods?labelSelector=shard%3Ds7&resourceVersion=0");
}
