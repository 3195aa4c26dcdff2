//! The server over real sockets on loopback, with an upstream of the test's own.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record};

use super::*;

const MANIFESTS: &str = "kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.12.7, ports: [{port: 80}]}
---
kind: Service
metadata: {name: away, namespace: default}
spec: {type: ExternalName, externalName: www.example.org}
---
kind: Service
metadata: {name: many, namespace: default}
spec: {clusterIP: None}
";

struct Fixture {
    address: SocketAddr,
    ready: watch::Sender<bool>,
    upstream_works: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fixture {
    async fn start() -> Fixture {
        let mut manifests = MANIFESTS.to_owned();
        manifests.push_str("---\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: many-x, namespace: default, labels: {kubernetes.io/service-name: many}}\nendpoints:\n");
        for i in 0..200 {
            manifests.push_str(&format!("- {{addresses: [10.244.{}.{}]}}\n", i / 100, 1 + i % 100));
        }
        let zone = Arc::new(RwLock::new(crate::zone::tests::zone(&manifests)));
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream_address = upstream.local_addr().unwrap();
        let upstream_works = Arc::new(AtomicBool::new(true));
        let works = upstream_works.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = upstream.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().clone();
                let mut response = Message::response(query.metadata.id, OpCode::Query);
                response.add_queries(query.queries.iter().cloned());
                if name.to_ascii() == "www.example.org." {
                    response.add_answer(Record::from_rdata(name, 1, RData::A(A::new(192, 0, 2, 80))));
                } else {
                    response.metadata.response_code = ResponseCode::NXDomain;
                }
                if works.load(Ordering::Relaxed) {
                    upstream.send_to(&response.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        let (ready, is_ready) = watch::channel(true);
        let server = Arc::new(Server::new(zone, is_ready, Forwarder::new(vec![upstream_address])));
        let (udp, tcp) = crate::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = udp.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move { server.serve(udp, tcp, stop).await });
        Fixture { address, ready, upstream_works, shutdown }
    }

    async fn udp(&self, name: &str) -> Message {
        self.udp_sized(name, None).await
    }

    async fn udp_sized(&self, name: &str, payload: Option<u16>) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question(name, payload), self.address).await.unwrap();
        let mut buffer = [0; 4096];
        let (length, _) = tokio::time::timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn tcp(&self, name: &str) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let query = question(name, None);
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

fn question(name: &str, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 4242;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn the_zone_others_and_both_together() {
    let server = Fixture::start().await;
    let web = server.udp("web.default.svc.cluster.local.").await;
    assert_eq!((web.metadata.id, web.metadata.authoritative, addresses(&web)), (4242, true, vec!["10.96.12.7".into()]));
    assert_eq!(addresses(&server.udp("www.example.org.").await), ["192.0.2.80"]);
    assert_eq!(server.udp("nobody.example.org.").await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(server.udp("nobody.default.svc.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(addresses(&server.udp("away.default.svc.cluster.local.").await), ["www.example.org.", "192.0.2.80"]);
    assert_eq!(addresses(&server.tcp("www.example.org.").await), ["192.0.2.80"]);
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_whole_over_tcp() {
    let server = Fixture::start().await;
    let plain = server.udp("many.default.svc.cluster.local.").await;
    assert!(plain.metadata.truncation && (20..=30).contains(&plain.answers.len()), "{}", plain.answers.len());
    let wide = server.udp_sized("many.default.svc.cluster.local.", Some(4096)).await;
    assert!(wide.metadata.truncation && wide.answers.len() > 60 && wide.edns.is_some());
    let whole = server.tcp("many.default.svc.cluster.local.").await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 200);
    // The next client begins elsewhere.
    assert_ne!(addresses(&whole)[0], addresses(&server.tcp("many.default.svc.cluster.local.").await)[0]);
}

#[tokio::test]
async fn before_the_first_list_a_name_of_the_zone_waits_and_others_do_not() {
    let server = Fixture::start().await;
    server.ready.send_replace(false);
    let asked = server.udp("web.default.svc.cluster.local.");
    let meanwhile = async {
        assert_eq!(addresses(&server.udp("www.example.org.").await), ["192.0.2.80"]);
        server.ready.send_replace(true);
    };
    let (answer, ()) = tokio::join!(asked, meanwhile);
    assert_eq!(addresses(&answer), ["10.96.12.7"]);
}

#[tokio::test]
async fn a_name_known_once_outlives_the_resolvers_above() {
    let server = Fixture::start().await;
    assert_eq!(addresses(&server.udp("www.example.org.").await), ["192.0.2.80"]);
    server.upstream_works.store(false, Ordering::Relaxed);
    // Its TTL of one second runs out while nobody answers.
    assert_eq!(server.udp("unknown.example.org.").await.metadata.response_code, ResponseCode::ServFail);
    let stale = server.udp("www.example.org.").await;
    assert_eq!(addresses(&stale), ["192.0.2.80"]);
    assert_eq!(stale.answers[0].ttl, limits::TTL_ENDPOINT_SECONDS);
}

#[tokio::test]
async fn a_query_of_ours_that_comes_back_is_refused() {
    let zone = Arc::new(RwLock::new(Zone::new("cluster.local").unwrap()));
    let (udp, tcp) = crate::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = udp.local_addr().unwrap();
    let (_ready, is_ready) = watch::channel(true);
    let server = Arc::new(Server::new(zone, is_ready, Forwarder::new(vec![address])));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move { server.serve(udp, tcp, stop).await });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question("www.example.org.", None), address).await.unwrap();
    let mut buffer = [0; 512];
    let (length, _) = tokio::time::timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::Refused);
    shutdown.cancel();
}

#[tokio::test]
async fn damage_is_refused_or_ignored() {
    let server = Fixture::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for cut in 0..20 {
        socket.send_to(&question("www.example.org.", None)[..cut], server.address).await.unwrap();
    }
    assert_eq!(addresses(&server.udp("web.default.svc.cluster.local.").await), ["10.96.12.7"]);
}
