//! A server's start and run among nodes that answer, are silent, or have promised themselves to another.

use super::*;
use membership::cluster::Ledger;
use std::{future::Future, sync::atomic::AtomicBool};
use store::memory::Memory;

/// Nodes on loopback whose own API is this one path.
pub struct Nodes {
    pub authority: pki::Authority,
    directory: tempfile::TempDir,
    pub nodes: BTreeMap<String, (SocketAddr, Arc<Ledger>, Arc<AtomicBool>)>,
}

impl Nodes {
    async fn new(count: usize) -> Nodes {
        Nodes::of(pki::Authority::generate("kubernetes").unwrap(), count).await
    }

    pub async fn of(authority: pki::Authority, count: usize) -> Nodes {
        pki::tls::install_provider();
        let mut nodes = Nodes { authority, directory: tempfile::tempdir().unwrap(), nodes: BTreeMap::new() };
        for i in 0..count {
            let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::new(127, 0, 9, 10 + i as u8), 0)).await.unwrap();
            let (name, address) = (format!("node-{i}"), listener.local_addr().unwrap());
            let ledger = Arc::new(Ledger::open(&nodes.directory.path().join(&name)).unwrap());
            let answers = Arc::new(AtomicBool::new(true));
            let issued = nodes.authority.issue(&pki::Identity::node_serving(&name, &[address.ip()])).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::tls::server(&issued).unwrap()));
            tokio::spawn(serve(listener, acceptor, ledger.clone(), answers.clone()));
            nodes.nodes.insert(name, (address, ledger, answers));
        }
        nodes
    }

    pub fn voters(&self) -> Voters {
        let client = self.authority.issue(&pki::Identity::apiserver_kubelet_client()).unwrap();
        Voters::with(self.authority.certificate_pem(), &client).unwrap()
    }

    fn record(&self, epoch: Epoch) -> Record {
        let voters = self.nodes.iter().map(|(name, (address, ..))| (name.clone(), *address)).collect();
        Record { epoch, copies: ["node-0".to_string()].into(), voters }
    }

    pub fn set_answers(&self, node: &str, answers: bool) {
        self.nodes[node].2.store(answers, std::sync::atomic::Ordering::SeqCst);
    }
}

async fn serve(listener: tokio::net::TcpListener, acceptor: tokio_rustls::TlsAcceptor, ledger: Arc<Ledger>, answers: Arc<AtomicBool>) {
    use http_body_util::{BodyExt, Full};
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        if !answers.load(std::sync::atomic::Ordering::SeqCst) {
            continue;
        }
        let Ok(stream) = acceptor.accept(stream).await else { continue };
        let ledger = ledger.clone();
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let ledger = ledger.clone();
            async move {
                if request.method() == http::Method::POST {
                    let body = request.into_body().collect().await?.to_bytes();
                    let _ = ledger.promise(serde_json::from_slice(&body).unwrap()).unwrap();
                }
                let text = serde_json::json!({"epoch": ledger.known(), "apiReachable": false}).to_string();
                Ok::<_, hyper::Error>(http::Response::new(Full::new(bytes::Bytes::from(text))))
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service));
    }
}

fn epoch(number: u64, holder: &str) -> Epoch {
    Epoch { number, holder: holder.into(), server: URL.into() }
}

const URL: &str = "https://192.0.2.1:6443";

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it takes too long")
}

async fn store_of(record: &Record) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    put_record(&*store, record).await.unwrap();
    store
}

#[tokio::test]
async fn a_new_server_starts_alone_with_the_first_epoch() {
    let nodes = Nodes::new(0).await;
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let shutdown = CancellationToken::new();
    let (hold, fenced) = within(enter(store.clone(), directory.path(), URL, None, nodes.voters(), &shutdown)).await.unwrap().unwrap();
    assert_eq!(hold.epoch().number, 1);
    assert!(hold.note_copy("node-0").await.is_err(), "nobody is given a copy before it is known who has a vote");
    fenced.commit(Write::Create { key: "/registry/a".into(), value: "1".into() }).await.unwrap();
    // The same holder after a restart, and after a restore that has lost what the store said of it.
    for again in [store, Arc::new(Memory::default())] {
        let (other, _) = within(enter(again, directory.path(), URL, None, nodes.voters(), &shutdown)).await.unwrap().unwrap();
        assert_eq!(other.epoch(), hold.epoch());
    }
}

#[tokio::test]
async fn a_server_waits_for_a_majority_before_its_first_write() {
    let nodes = Nodes::new(3).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store_of(&nodes.record(epoch(1, "a"))).await;
    let before = store.revision().await.unwrap();
    for silent in ["node-1", "node-2"] {
        nodes.set_answers(silent, false);
    }
    let shutdown = CancellationToken::new();
    let (waiting, voters, path, token) = (store.clone(), nodes.voters(), directory.path().to_owned(), shutdown.clone());
    let mut entering = tokio::spawn(async move { enter(waiting, &path, URL, None, voters, &token).await });
    // One node and the server's own machine are two of four.
    assert!(tokio::time::timeout(Duration::from_millis(2500), &mut entering).await.is_err());
    assert_eq!(store.revision().await.unwrap(), before, "nothing is written meanwhile");
    nodes.set_answers("node-2", true);
    assert!(within(entering).await.unwrap().unwrap().is_some());
    // One that is asked to stop while it waits does.
    nodes.set_answers("node-2", false);
    nodes.set_answers("node-0", false);
    shutdown.cancel();
    assert!(within(enter(store, directory.path(), URL, None, nodes.voters(), &shutdown)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_server_steps_down_at_its_start_and_remembers_it() {
    let nodes = Nodes::new(3).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store_of(&nodes.record(epoch(1, "a"))).await;
    let before = store.revision().await.unwrap();
    let newer = Epoch { server: "https://192.0.2.2:6443".into(), ..epoch(2, "b") };
    nodes.nodes["node-1"].1.promise(newer).unwrap().unwrap();
    let shutdown = CancellationToken::new();
    let refused = within(enter(store.clone(), directory.path(), URL, None, nodes.voters(), &shutdown)).await.err().unwrap().to_string();
    assert!(refused.contains("stepped down") && refused.contains("https://192.0.2.2:6443"), "{refused}");
    assert_eq!(store.revision().await.unwrap(), before, "it has written nothing");
    // Later it needs nobody's word for it.
    for node in nodes.nodes.keys() {
        nodes.set_answers(node, false);
    }
    assert!(within(enter(store, directory.path(), URL, None, nodes.voters(), &shutdown)).await.is_err());
}

#[tokio::test]
async fn the_own_node_votes_by_its_disk() {
    let nodes = Nodes::new(1).await;
    let directory = tempfile::tempdir().unwrap();
    let mut record = nodes.record(epoch(1, "a"));
    // The server's machine is a node, in the same process, which cannot answer yet.
    record.voters = BTreeMap::from([("own".to_string(), "192.0.2.1:1".parse().unwrap())]);
    let ledger = directory.path().join("ledger");
    let shutdown = CancellationToken::new();
    let enters = |store| enter(store, directory.path(), URL, Some(&ledger), nodes.voters(), &shutdown);
    assert!(within(enters(store_of(&record).await)).await.unwrap().is_some());
    Ledger::open(&ledger).unwrap().promise(epoch(2, "b")).unwrap().unwrap();
    assert!(within(enters(store_of(&record).await)).await.is_err());
}
