//! The balancer over loopback: servers that die, hang, return and change, and clients that must not notice more than a
//! closed connection.

use super::*;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server that greets every connection with its own port.
struct Greeter {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Greeter {
    async fn at(address: SocketAddr) -> Greeter {
        let listener = eventually("a free port", || async { TcpListener::bind(address).await.ok() }).await;
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! { () = token.cancelled() => return, accepted = listener.accept() => accepted };
                let (mut stream, _) = accepted.unwrap();
                let token = token.clone();
                tokio::spawn(async move {
                    let _ = stream.write_all(&address.port().to_be_bytes()).await;
                    let mut byte = [0u8; 1];
                    loop {
                        tokio::select! {
                            () = token.cancelled() => return,
                            read = stream.read(&mut byte) => if !matches!(read, Ok(1)) || stream.write_all(&byte).await.is_err() { return },
                        }
                    }
                });
            }
        });
        Greeter { address, stop }
    }

    async fn new() -> Greeter {
        Greeter::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    fn server(&self) -> Server {
        Server::at(self.address.ip(), self.address.port())
    }
}

/// Asks until it is so; what is awaited is said when it never is.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

fn start(servers: &[&Greeter], kept_in: Option<PathBuf>) -> (Balancer, CancellationToken) {
    let shutdown = CancellationToken::new();
    // The kernel picks the port; nothing else listens there between this and the balancer's own bind.
    let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let config = Config { address, servers: servers.iter().map(|greeter| greeter.server()).collect(), probe: Probe::Connect, local: None, kept_in };
    (Balancer::start(config, shutdown.clone()), shutdown)
}

/// A connection through the balancer, and the port of the server at its end.
async fn connect(balancer: &Balancer) -> Option<(TcpStream, u16)> {
    let mut stream = TcpStream::connect(balancer.address()).await.ok()?;
    let mut port = [0u8; 2];
    stream.read_exact(&mut port).await.ok()?;
    Some((stream, u16::from_be_bytes(port)))
}

async fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [7u8; 1];
    stream.write_all(&byte).await.is_ok() && matches!(stream.read(&mut byte).await, Ok(1))
}

async fn healthy(balancer: &Balancer, count: usize) {
    eventually("healthy servers", || async {
        (balancer.servers().iter().filter(|(_, health, _)| *health == Health::Ready).count() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_server_is_replaced_and_used_again_when_it_returns() {
    let (first, second) = (Greeter::new().await, Greeter::new().await);
    let (balancer, _shutdown) = start(&[&first, &second], None);
    let _guard = _shutdown.clone().drop_guard();
    balancer.listening().await;
    healthy(&balancer, 2).await;
    let mut ports = Vec::new();
    let mut held = Vec::new();
    for _ in 0..4 {
        let (stream, port) = connect(&balancer).await.unwrap();
        ports.push(port);
        held.push(stream);
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 2, "both are used");

    first.stop.cancel();
    for _ in 0..8 {
        // Also in the moment before a check has found out.
        let (mut stream, port) = eventually("the living server", || async { connect(&balancer).await }).await;
        assert_eq!(port, second.address.port());
        assert!(echoes(&mut stream).await);
    }
    let again = Greeter::at(first.address).await;
    healthy(&balancer, 2).await;
    second.stop.cancel();
    let (_, port) = eventually("the server that is back", || async { connect(&balancer).await }).await;
    assert_eq!(port, again.address.port());
}

#[tokio::test]
async fn connections_to_a_server_that_is_silent_are_cut() {
    let (silent, living) = (Greeter::new().await, Greeter::new().await);
    let (balancer, shutdown) = start(&[&silent, &living], None);
    let _guard = shutdown.drop_guard();
    balancer.listening().await;
    healthy(&balancer, 2).await;
    let mut stream = eventually("a connection to the first", || async {
        connect(&balancer).await.filter(|(_, port)| *port == silent.address.port()).map(|(stream, _)| stream)
    })
    .await;
    // The verdict of a check that found nobody; that the kernel can be that silent is shown between network namespaces.
    report(&balancer.shared, &silent.server(), Verdict::Gone);
    let mut byte = [0u8; 1];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("the connection is not cut");
    assert!(!matches!(read, Ok(1)), "{read:?}");
    assert_eq!(connect(&balancer).await.unwrap().1, living.address.port());
}

#[tokio::test]
async fn the_list_that_is_learned_survives_a_restart_without_the_first_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api-servers.json");
    let (first, second) = (Greeter::new().await, Greeter::new().await);
    let (balancer, shutdown) = start(&[&first], Some(path.clone()));
    balancer.listening().await;
    balancer.learn(&[first.server(), second.server()]);
    eventually("the file", || async { (kept::read(&path).len() == 2).then_some(()) }).await;
    shutdown.cancel();
    first.stop.cancel();

    let (balancer, shutdown) = start(&[&first], Some(path));
    let _guard = shutdown.drop_guard();
    balancer.listening().await;
    let (_, port) = eventually("the second server", || async { connect(&balancer).await }).await;
    assert_eq!(port, second.address.port());
    assert!(*balancer.reachable().wait_for(Option::is_some).await.unwrap() == Some(true));
}

#[tokio::test]
async fn a_second_balancer_takes_over_when_the_first_one_ends() {
    let greeter = Greeter::new().await;
    let (first, shutdown) = start(&[&greeter], None);
    first.listening().await;
    let standby = CancellationToken::new();
    let _guard = standby.clone().drop_guard();
    let second = Balancer::start(first.shared.config.clone(), standby);
    second.listening().await;
    assert_eq!(second.servers()[0].1, Health::Unknown, "it only stands by");
    assert!(connect(&second).await.is_some());
    shutdown.cancel();
    healthy(&second, 1).await;
    assert!(eventually("the second one", || async { connect(&second).await }).await.1 == greeter.address.port());
}

#[test]
fn the_kubernetes_service_names_the_servers() {
    let slice = |port: i32, ready: bool| -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "addressType": "IPv4", "metadata": {"name": "kubernetes"},
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}, {"addresses": ["10.0.0.2"]}, {"addresses": ["bad"]}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }))
        .unwrap()
    };
    let texts = |slice| servers_of(&slice).iter().map(Server::to_string).collect::<Vec<_>>();
    assert_eq!(texts(slice(6443, true)), ["https://10.0.0.1:6443", "https://10.0.0.2:6443"]);
    assert_eq!(texts(slice(7443, false)), ["https://10.0.0.2:7443"]);
    assert!(texts(slice(0, true)).is_empty());
}
