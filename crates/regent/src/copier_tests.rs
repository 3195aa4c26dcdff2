//! From a real API server to a copy that is killed again and again, to a server that takes over from it; and the old one's return.

use super::*;
use crate::{
    backend::Backend,
    fencing::{self, Hold, tests::Nodes},
    recovery,
};
use apiserver::{Config, Server, User};
use std::{collections::BTreeMap, sync::Arc};
use store::{Store, Write, sqlite::Sqlite};

const OLD: &str = "https://127.0.9.1:7743";
const NEW: &str = "https://127.0.9.10:7744";
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    server: Arc<Server>,
    hold: Arc<Hold>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
}

/// The server of this directory, without a socket.
async fn start(directory: &Path, url: &str, nodes: &Nodes) -> Result<Cluster> {
    let (server_directory, pki) = (directory.join("server"), directory.join("server/pki"));
    let path = server_directory.join("store");
    let opened: Arc<dyn Store> = Arc::new(Sqlite::open(&path)?);
    let stop = CancellationToken::new();
    let entered = fencing::enter(opened, &server_directory, url, None, nodes.voters(), &stop).await?;
    let (hold, store) = entered.context("asked to stop")?;
    let mut config = Config::new(store.clone());
    config.shutdown = stop.clone();
    config.bootstrap.store_copy_nodes = vec!["node-0".into()];
    let copies = fencing::Copies { hold: hold.clone(), store: store.clone(), backend: Backend::Sqlite(path), pki };
    config.store_copy = Some(Arc::new(copies));
    let server = Server::new(config).await?;
    while !server.health.is_bootstrapped() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Cluster { server, hold, store, stop })
}

impl Cluster {
    async fn add_node(&self, name: &str, address: std::net::SocketAddr) {
        let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.server.create_internal("", "nodes", "", node).await.unwrap();
        let status = serde_json::json!({
            "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
        });
        let change = |node: &mut serde_json::Value| {
            node["status"] = status.clone();
            Ok(true)
        };
        self.server.update_internal("", "nodes", "", name, "status", change).await.unwrap();
    }

    fn client(&self, node: &str) -> kube::Client {
        let user = User::new(&format!("system:node:{node}"), &["system:nodes", "system:authenticated"]);
        client::transport::in_process(self.server.local_service(user))
    }

    async fn write(&self, name: &str, text: &str) {
        let map =
            serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"text": text}});
        self.server.create_internal("", "configmaps", "default", map).await.unwrap();
    }
}

async fn objects(store: &dyn Store) -> BTreeMap<String, Bytes> {
    let page = store.list("/registry/", None, 0, None).await.unwrap();
    let is_object = |key: &str| key != store::copy::EPOCH_KEY && key != store::compaction::KEY;
    page.items.into_iter().filter(|kv| is_object(&kv.key)).map(|kv| (kv.key, kv.value)).collect()
}

async fn until<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let waited = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_again_and_again_becomes_the_server_and_the_old_one_steps_down() {
    let place = tempfile::tempdir().unwrap();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    let authority = pki::Authority::load_or_create(&old.join("server/pki")).unwrap();
    pki::ServiceAccountKeys::load_or_create(&old.join("server/pki")).unwrap();
    let nodes = Nodes::of(authority, 3).await;
    let cluster = start(&old, OLD, &nodes).await.unwrap();
    for (name, (address, ..)) in &nodes.nodes {
        cluster.add_node(name, *address).await;
    }
    tokio::spawn(cluster.hold.clone().keep(Arc::downgrade(&cluster.server), cluster.stop.clone(), cluster.stop.clone()));

    // A node that nobody has named is given nothing.
    let refused = ask(&cluster.client("node-1"), apiserver::copies::PATH).await;
    assert!(matches!(refused, Err(Stop::Refused(_))), "{refused:?}");

    // Writes go on while the copy is begun, followed, and killed at whatever it is doing.
    let root = new.join("node");
    let (writer, done) = (cluster.server.clone(), CancellationToken::new());
    let writing = done.clone();
    let writes = tokio::spawn(async move {
        let mut count = 0;
        while !writing.is_cancelled() {
            let map =
                serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("busy-{count}"), "namespace": "default"}});
            writer.create_internal("", "configmaps", "default", map).await.unwrap();
            if count % 3 == 0 {
                writer.delete_internal("", "configmaps", "default", &format!("busy-{count}")).await.unwrap();
            }
            count += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        count
    });
    for kill_after_ms in [1, 5, 20, 60, 100, 150, 250, 400, 30, 300] {
        let copying = tokio::spawn(run(cluster.client("node-0"), root.clone(), Willing::Auto, CancellationToken::new()));
        tokio::time::sleep(Duration::from_millis(kill_after_ms)).await;
        copying.abort();
    }
    let copying = tokio::spawn(run(cluster.client("node-0"), root.clone(), Willing::True, CancellationToken::new()));
    until("the copy has begun", || async { cluster.server.copies.view(cluster.store.revision().await.unwrap()).iter().any(|c| c.node == "node-0") })
        .await;
    done.cancel();
    assert!(writes.await.unwrap() > 20);
    cluster.write("last", "what was written last").await;
    until("the copy has everything", || async {
        cluster.server.copies.view(cluster.store.revision().await.unwrap()).iter().any(|c| c.node == "node-0" && c.changes_behind == 0)
    })
    .await;
    copying.abort();
    assert!(copying.await.is_err());

    // The server dies.
    let before = objects(&*cluster.store).await;
    let seen = cluster.store.revision().await.unwrap();
    cluster.stop.cancel();
    let request = recovery::Request {
        copy: &root.join(DIRECTORY),
        server: &new.join("server"),
        pki: &new.join("server/pki"),
        ledger: &root.join(membership::cluster::LEDGER),
        url: NEW.into(),
        force: false,
    };
    nodes.set_answers("node-2", false);
    let refused = recovery::recover(&request).await.unwrap_err().to_string();
    assert!(refused.contains("more than half"), "two of four votes: {refused}");
    assert!(nodes.nodes.values().all(|(_, ledger, _)| ledger.known().is_none_or(|known| known.number == 1)), "nobody was asked in vain");
    nodes.set_answers("node-2", true);
    assert!(recovery::recover(&request).await.unwrap());
    assert!(!recovery::recover(&request).await.unwrap(), "once is enough");

    let recovered = start(&new, NEW, &nodes).await.unwrap();
    assert_eq!((recovered.hold.epoch().number, recovered.hold.epoch().server.as_str()), (2, NEW));
    let after = objects(&*recovered.store).await;
    for (key, value) in before.iter().filter(|(key, _)| key.contains("/configmaps/default/")) {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
    assert_eq!(
        after.keys().filter(|key| key.contains("/configmaps/default/")).count(),
        before.keys().filter(|key| key.contains("/configmaps/default/")).count()
    );
    assert!(recovered.store.revision().await.unwrap() > seen);
    let watched = recovered.store.watch("/registry/", seen).await.err();
    assert!(matches!(watched, Some(store::Error::Compacted { .. })), "who watched before lists anew: {watched:?}");
    for file in ["ca.crt", "ca.key", "sa.key"] {
        let read = |directory: &Path| std::fs::read(directory.join("server/pki").join(file)).unwrap();
        assert_eq!(read(&old), read(&new), "{file}");
    }

    // The old one comes back, and steps down before it writes.
    let old_store = cluster.store.clone();
    let refused = old_store.commit(Write::Create { key: "/registry/x".into(), value: "1".into() }).await;
    assert!(refused.is_ok(), "nobody has told it yet: it is only fenced where it hears of the other");
    let (hold, _) = (fencing::enter(old_store.clone(), &old.join("server"), OLD, None, nodes.voters(), &CancellationToken::new()).await.err(), ());
    let why = hold.unwrap().to_string();
    assert!(why.contains("stepped down") && why.contains(NEW), "{why}");
    // Unless a person says that it is the one, and the nodes promise it an epoch above.
    drop((old_store, cluster));
    let again = recovery::Request {
        copy: &old.join("node").join(DIRECTORY),
        server: &old.join("server"),
        pki: &old.join("server/pki"),
        ledger: &old.join("node").join(membership::cluster::LEDGER),
        url: OLD.into(),
        force: true,
    };
    until("the old store to be closed", || async { !Sqlite::in_use(&old.join("server/store")) }).await;
    assert!(recovery::recover(&again).await.unwrap());
    let back = start(&old, OLD, &nodes).await.unwrap();
    assert_eq!(back.hold.epoch().number, 3);
    back.stop.cancel();
    recovered.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_steps_down_when_it_hears_of_another() {
    let place = tempfile::tempdir().unwrap();
    let authority = pki::Authority::load_or_create(&place.path().join("server/pki")).unwrap();
    let nodes = Nodes::of(authority, 3).await;
    let cluster = start(place.path(), OLD, &nodes).await.unwrap();
    for (name, (address, ..)) in &nodes.nodes {
        cluster.add_node(name, *address).await;
    }
    let keeping = tokio::spawn(cluster.hold.clone().keep(Arc::downgrade(&cluster.server), cluster.stop.clone(), CancellationToken::new()));
    until("a copy to be noted", || async { cluster.hold.note_copy("node-0").await.is_ok() }).await;
    // All are told of the epoch.
    until("the nodes to know the epoch", || async { nodes.nodes.values().all(|(_, ledger, _)| ledger.known() == Some(cluster.hold.epoch())) }).await;
    let newer = membership::cluster::Epoch { number: 2, holder: "b".into(), server: NEW.into() };
    nodes.nodes["node-1"].1.promise(newer).unwrap().unwrap();
    let ended = tokio::time::timeout(PATIENCE, keeping).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("stepped down"));
    assert!(cluster.stop.is_cancelled(), "it serves no more");
    let refused = cluster.store.commit(Write::Create { key: "/registry/x".into(), value: "1".into() }).await;
    assert!(matches!(refused, Err(store::Error::Unavailable(_))), "{refused:?}");
}
