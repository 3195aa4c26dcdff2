//! The checkpoint as a node meets it: killed at any moment, started with no server, and with one that has moved on.
//!
//! The first test starts this very program again as a writer (chosen by an environment variable) and kills it.

use client::{Checkpoint, Informers, Key, checkpoint::Secrecy};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

const WRITER: &str = "REGENT_TEST_CHECKPOINT_WRITER";

/// The child: writes numbered rows and removes others for ever, and says each number that the disk has.
#[tokio::test]
async fn writer() {
    let Ok(directory) = std::env::var(WRITER) else { return };
    let checkpoint = Checkpoint::open(Path::new(&directory), "kubelet").unwrap();
    let shelf = checkpoint.shelf("numbers", Secrecy::Sealed);
    let begin = shelf.load().iter().filter_map(|(_, value)| String::from_utf8_lossy(value).parse::<u64>().ok()).max().unwrap_or(0);
    for n in begin + 1.. {
        shelf.put(&format!("slot-{}", n % 17), n.to_string().into_bytes());
        shelf.remove(&format!("slot-{}", (n + 9) % 17));
        assert!(shelf.written().await);
        println!("written {n}");
    }
}

#[test]
fn what_was_said_to_be_on_disk_survives_every_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut said = 0_u64;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
            .env(WRITER, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after another number of writes each time, in the midst of the next.
        let mut left = 3 + round * 5;
        while left > 0 {
            let line = lines.next().expect("the writer goes on").unwrap();
            if let Some(number) = line.strip_prefix("written ") {
                said = number.parse().unwrap();
                left -= 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The pipe may hold more that it said before it died.
        said = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("written ").and_then(|n| n.parse().ok())).max().unwrap_or(said);

        let checkpoint = Checkpoint::open(directory.path(), "kubelet").unwrap();
        assert_eq!(checkpoint.report().damage, Vec::<String>::new());
        let rows: BTreeMap<String, u64> = checkpoint
            .shelf("numbers", Secrecy::Sealed)
            .load()
            .into_iter()
            .map(|(key, value)| (key, String::from_utf8(value).unwrap().parse().unwrap()))
            .collect();
        let newest = *rows.values().max().unwrap();
        assert!(newest == said || newest == said + 1, "round {round}: {said} was said, {newest} is there");
        let removed = format!("slot-{}", (newest + 9) % 17);
        assert!(!rows.contains_key(&removed), "round {round}: {removed} has come back");
    }
}

/// An API server that answers as the test says: a list, and a watch that ends at once or never.
fn server(answer: impl Fn(&str) -> Option<Value> + Send + Sync + 'static) -> kube::Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let answer = answer.clone();
        async move {
            let uri = request.uri().to_string();
            match answer(&uri) {
                Some(value) => {
                    let code = value["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(200);
                    let body = kube::client::Body::from(value.to_string().into_bytes());
                    Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
                }
                None => std::future::pending().await,
            }
        }
    });
    kube::Client::new(service, "default")
}

fn config_map(name: &str, version: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "ns", "uid": name, "resourceVersion": version } })
}

fn list(items: &[Value], version: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": version }, "items": items })
}

fn open(directory: &Path) -> Checkpoint {
    Checkpoint::open(directory, "kubelet").unwrap().keeping::<ConfigMap>()
}

fn names(informer: &client::Informer<ConfigMap>) -> Vec<String> {
    informer.list().iter().filter_map(|map| map.metadata.name.clone()).collect()
}

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

// With threads: the informers of before end beside the test, and only then the checkpoint can be opened again.
#[tokio::test(flavor = "multi_thread")]
async fn informers_begin_with_what_the_disk_holds_and_removals_arrive() {
    let directory = tempfile::tempdir().unwrap();
    let is_watch = |uri: &str| uri.contains("watch=true");
    {
        // A server, once: two objects, one of which is then deleted.
        let client = server(move |uri| match is_watch(uri) {
            false => Some(list(&[config_map("a", "3"), config_map("b", "4")], "5")),
            true if uri.contains("resourceVersion=5") => Some(json!({ "type": "DELETED", "object": config_map("b", "6") })),
            true => None,
        });
        let informers = Informers::with_checkpoint(client, open(directory.path()));
        let informer = informers.all::<ConfigMap>();
        assert!(!informer.is_synced() && informer.is_stale());
        let mut changes = informer.subscribe();
        soon("the deletion", async { while !matches!(changes.next().await, Some(client::Change::Deleted(_))) {} }).await;
        assert!(!informer.is_stale());
    }
    {
        // No server: what was deleted stays deleted, and everything is there at once.
        let informers = Informers::with_checkpoint(server(|_| None), open(directory.path()));
        let informer = informers.all::<ConfigMap>();
        assert!(informer.is_synced() && informer.is_stale());
        assert_eq!(names(&informer), ["a"]);
        assert!(informer.has_seen_go("b") && !informer.has_seen_go("a"));
    }
    {
        // A server that went on meanwhile: the watch resumes from the disk's version, and the removal arrives.
        let client = server(move |uri| match is_watch(uri) {
            false => panic!("listed, though the version could be resumed"),
            true if uri.contains("resourceVersion=6") => Some(json!({ "type": "ADDED", "object": config_map("c", "8") })),
            true => None,
        });
        let informers = Informers::with_checkpoint(client, open(directory.path()));
        let informer = informers.all::<ConfigMap>();
        let mut changes = informer.subscribe();
        soon("the addition", async { while changes.next().await.is_none_or(|change| Key::of(&**change.object()).name != "c") {} }).await;
    }
    {
        // A server that no longer has that version: a list replaces everything.
        let client = server(move |uri| match is_watch(uri) {
            true if uri.contains("resourceVersion=8") => {
                Some(json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410 }))
            }
            true => None,
            false => Some(list(&[config_map("c", "8"), config_map("d", "20")], "21")),
        });
        let informers = Informers::with_checkpoint(client, open(directory.path()));
        let informer = informers.all::<ConfigMap>();
        assert_eq!(names(&informer), ["a", "c"]);
        let mut changes = informer.subscribe();
        soon("the removal", async { while !matches!(changes.next().await, Some(client::Change::Deleted(_))) {} }).await;
        assert_eq!(names(&informer), ["c", "d"]);
    }
    let informers = Informers::with_checkpoint(server(|_| None), open(directory.path()));
    let informer = informers.all::<ConfigMap>();
    assert_eq!(names(&informer), ["c", "d"]);
    assert!(informer.has_seen_go("a") && informer.has_seen_go("b"));
}

#[tokio::test]
async fn kinds_that_nobody_named_are_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let client = server(|uri| (!uri.contains("watch=true")).then(|| list(&[config_map("a", "3")], "5")));
    let checkpoint = Checkpoint::open(directory.path(), "kubelet").unwrap();
    let informers = Informers::with_checkpoint(client, checkpoint.clone());
    soon("the list", informers.all::<ConfigMap>().synced()).await;
    assert_eq!(checkpoint.report().rows, 0);
}
