//! The rules, routes and addresses in a real kernel: two nodes, their pods and a client outside, as network namespaces.
//!
//! Everything is made here (names begin with `rgnet-`) and taken down at the end, also after a failure. The pods are made
//! by Debian's `ptp` plugin with our own address management: this very program, under the name `regent-ipam`, is the plugin
//! (which is why it brings its own `main`). Needs root; without it, it says so and passes.

mod api;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Change, Key};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::links::{Hop, Links, Tunnel};
use network::nft::Nft;
use network::pods::{cni, plan as places, ports};
use network::services::{Facts, NodeFacts, Plan};
use network::table::Table;

const CLUSTER: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/16";
const PATIENCE: Duration = Duration::from_secs(2);

fn main() {
    if network::is_ipam_invocation() {
        std::process::exit(network::ipam_main());
    }
    if !is_root() {
        println!("kernel: skipped, needs root");
        return;
    }
    let world = World::make();
    world.services();
    world.affinity();
    world.udp();
    world.host_ports();
    world.tunnel();
    world.components();
    println!("kernel: all checks passed");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command that must succeed; gives what it said.
fn sh(words: &str) -> String {
    let mut parts = words.split_whitespace();
    let output = Command::new(parts.next().unwrap()).args(parts).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A network namespace that goes with its value.
struct Space(String);

impl Space {
    fn make(name: &str) -> Space {
        let name = format!("rgnet-{}-{name}", std::process::id());
        sh(&format!("ip netns add {name}"));
        sh(&format!("ip -n {name} link set lo up"));
        Space(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs `work` on a thread inside the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&path);
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Runs asynchronous `work` on a thread inside the namespace.
    fn inside_async<F: Future<Output = ()>>(&self, work: impl FnOnce() -> F + Send) {
        self.inside(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async { work().await }));
    }

    fn nft(&self, transaction: &str) {
        let nft = Nft::through(["ip", "netns", "exec", &self.0]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if let Err(error) = runtime.block_on(nft.apply(transaction)) {
            panic!("{error}\n{transaction}");
        }
    }

    /// What the server at the address says: its name and the client's address as it sees it.
    fn ask(&self, address: &str) -> Result<String, std::io::ErrorKind> {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(|| {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| e.kind())?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).map_err(|e| e.kind())?;
            Ok(text)
        })
    }

    /// Serves TCP and UDP on the port, as long as the namespace is there.
    fn serve(&self, name: &'static str, port: u16) {
        self.inside(move || {
            let tcp = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let from = stream.peer_addr().unwrap().ip();
                    let _ = write!(stream, "{name} saw {from}");
                }
            });
            let udp = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{name} saw {}", from.ip()).as_bytes(), from);
                }
            });
        });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn enter(path: &str) {
    let file = std::fs::File::open(path).unwrap();
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
}

struct Node {
    name: &'static str,
    space: Space,
    address: Ipv4Addr,
    folder: tempfile::TempDir,
    range: &'static str,
}

impl Node {
    /// Calls Debian's ptp plugin as containerd does.
    fn cni(&self, command: &str, pod: &Space, uid: &str) -> serde_json::Value {
        let configuration = cni::configuration(self.range.parse().unwrap(), &self.folder.path().join("addresses"), 1400);
        let list: serde_json::Value = serde_json::from_str(&configuration).unwrap();
        let mut plugin = list["plugins"][0].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.space.0, "/usr/lib/cni/ptp"])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("sandbox-{uid}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={uid};K8S_POD_UID={uid}"))
            .env("CNI_PATH", self.folder.path().join("bin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(plugin.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command} {uid}: {said}");
        serde_json::from_str(&said).unwrap_or_default()
    }

    fn pod(&self, uid: &'static str) -> (Space, String) {
        let space = Space::make(uid);
        let answer = self.cni("ADD", &space, uid);
        let address = answer["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        space.serve(uid, 80);
        (space, address)
    }

    fn facts(&self) -> Facts {
        Facts {
            node: NodeFacts { name: self.name.into(), ..NodeFacts::default() },
            cluster_cidr: Some(CLUSTER.parse().unwrap()),
            service_cidr: Some(SERVICES.parse().unwrap()),
            left_alone: vec!["10.96.0.10".parse().unwrap()],
        }
    }

    fn route(&self, destination: &'static str, hop: Hop, tunnel: Option<Tunnel>) {
        self.space.inside_async(|| async move {
            let links = Links::open().unwrap();
            let mut index = None;
            if let (Some(tunnel), Hop::Tunnel { inner, hardware, outer }) = (tunnel, &hop) {
                let made = links.tunnel(&tunnel).await.unwrap();
                links.tunnel_peer(made, *inner, *hardware, *outer).await.unwrap();
                index = Some(made);
            }
            links.route(destination.parse().unwrap(), &hop, index).await.unwrap();
            assert!(links.own_routes().await.unwrap().contains_key(&destination.parse().unwrap()));
        });
    }
}

struct World {
    _lan: Space,
    outside: Space,
    one: Node,
    two: Node,
    a: (Space, String),
    b: (Space, String),
    c: (Space, String),
}

impl World {
    fn make() -> World {
        let lan = Space::make("lan");
        sh(&format!("ip -n {} link add br0 type bridge", lan.0));
        sh(&format!("ip -n {} link set br0 up", lan.0));
        let join = |space: &Space, port: &str, address: &str| {
            sh(&format!("ip -n {} link add {port} type veth peer name eth0 netns {}", lan.0, space.0));
            sh(&format!("ip -n {} link set {port} master br0 up", lan.0));
            sh(&format!("ip -n {} addr add {address}/24 dev eth0", space.0));
            sh(&format!("ip -n {} link set eth0 up", space.0));
        };
        let node = |name: &'static str, address: &str, range: &'static str| {
            let space = Space::make(name);
            join(&space, name, address);
            let folder = tempfile::tempdir().unwrap();
            cni::provide_plugins(&folder.path().join("bin"), &std::env::current_exe().unwrap()).unwrap();
            space.inside(|| {
                // Written by path, so that the thread's namespace counts.
                std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
                std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            });
            let address: Ipv4Addr = address.parse().unwrap();
            space.inside_async(|| async move {
                network::links::route_to_loopback(SERVICES.parse().unwrap(), address).await.unwrap();
                network::links::route_to_loopback(SERVICES.parse().unwrap(), address).await.unwrap();
                let own = Links::open().unwrap().link_of(address).await.unwrap().unwrap();
                assert_eq!((own.prefix_length, own.mtu), (24, 1500));
            });
            Node { name, space, address, folder, range }
        };
        let one = node("one", "172.31.213.1", "10.244.1.0/24");
        let two = node("two", "172.31.213.2", "10.244.2.0/24");
        let outside = Space::make("out");
        join(&outside, "out", "172.31.213.9");
        let (a, b, c) = (one.pod("pod-a"), one.pod("pod-b"), two.pod("pod-c"));
        assert_eq!((a.1.as_str(), b.1.as_str(), c.1.as_str()), ("10.244.1.2", "10.244.1.3", "10.244.2.2"));
        one.route("10.244.2.0/24", Hop::Via(two.address), None);
        one.route("10.244.1.0/24", Hop::Unreachable, None);
        two.route("10.244.1.0/24", Hop::Via(one.address), None);
        let world = World { _lan: lan, outside, one, two, a, b, c };
        assert_eq!(world.a.0.ask("10.244.2.2:80").as_deref(), Ok("pod-c saw 10.244.1.2"));
        assert_eq!(world.a.0.ask("10.244.1.3:80").as_deref(), Ok("pod-b saw 10.244.1.2"));
        assert_eq!(world.one.space.ask("10.244.1.3:80").as_deref(), Ok("pod-b saw 10.244.1.1"));

        // A sandbox made anew keeps the pod's address.
        world.one.cni("DEL", &world.b.0, "pod-b");
        let again = world.one.cni("ADD", &world.b.0, "pod-b");
        assert_eq!(again["ips"][0]["address"], "10.244.1.3/24");
        world
    }

    /// Brings a Service with its endpoints into both nodes' kernels.
    fn route(&self, plans: &mut [(&Node, Plan)], service: &str, endpoints: &[(&str, &str)]) {
        let service: Arc<Service> = Arc::new(serde_saphyr::from_str(service).unwrap());
        let name = service.metadata.name.clone().unwrap();
        let port = &service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0];
        let slice = serde_json::json!({
            "metadata": { "name": format!("{name}-x"), "namespace": "default", "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "ports": [{ "name": port.name, "port": 80, "protocol": port.protocol }],
            "endpoints": endpoints.iter().map(|(address, node)| serde_json::json!({
                "addresses": [address], "nodeName": node, "conditions": { "ready": true } })).collect::<Vec<_>>(),
        });
        let slice: Arc<EndpointSlice> = Arc::new(serde_json::from_value(slice).unwrap());
        for (node, plan) in plans {
            plan.service(&Change::Applied { old: None, new: service.clone() });
            plan.slice(&Change::Applied { old: None, new: slice.clone() });
            plan.renew();
            if let Some(changes) = plan.table().changes() {
                node.space.nft(&changes);
            }
            plan.table_mut().committed();
        }
    }

    fn plans(&self) -> [(&Node, Plan); 2] {
        [&self.one, &self.two].map(|node| {
            let mut plan = Plan::new(node.facts());
            // Twice: a restarted proxy finds its table and makes it anew.
            node.space.nft(&plan.table().whole());
            node.space.nft(&plan.table().whole());
            plan.table_mut().committed();
            (node, plan)
        })
    }

    fn services(&self) {
        let mut plans = self.plans();
        let nginx = "{metadata: {name: nginx, namespace: default}, spec: {type: NodePort, clusterIP: 10.96.1.1, \
                     ports: [{name: http, port: 8000, nodePort: 31000, protocol: TCP}]}}";
        let local = "{metadata: {name: local, namespace: default}, spec: {type: NodePort, clusterIP: 10.96.1.2, \
                     externalTrafficPolicy: Local, ports: [{name: http, port: 80, nodePort: 31001, protocol: TCP}]}}";
        let (outside, one, a) = (&self.outside, &self.one.space, &self.a.0);
        sh(&format!("ip -n {} route add 10.96.0.0/16 via {}", outside.0, self.one.address));

        // No endpoint: refused at once, from everywhere, and so is a port that no Service has.
        self.route(&mut plans, nginx, &[]);
        let refused = Err(std::io::ErrorKind::ConnectionRefused);
        for (space, address) in [
            (a, "10.96.1.1:8000"),
            (one, "10.96.1.1:8000"),
            (outside, "172.31.213.1:31000"),
            (one, "127.0.0.1:31000"),
            (a, "10.96.77.77:80"),
            (one, "10.96.77.77:80"),
        ] {
            let started = Instant::now();
            assert_eq!(space.ask(address), refused, "{address}");
            assert!(started.elapsed() < PATIENCE / 2);
        }

        // One endpoint, on the other node.
        self.route(&mut plans, nginx, &[("10.244.2.2", "two")]);
        assert_eq!(a.ask("10.96.1.1:8000").as_deref(), Ok("pod-c saw 10.244.1.2"), "a pod's address is kept");
        assert_eq!(one.ask("10.96.1.1:8000").as_deref(), Ok("pod-c saw 172.31.213.1"));
        assert_eq!(one.ask("127.0.0.1:31000").as_deref(), Ok("pod-c saw 172.31.213.1"));
        assert_eq!(one.ask("172.31.213.1:31000").as_deref(), Ok("pod-c saw 172.31.213.1"));
        assert_eq!(outside.ask("172.31.213.1:31000").as_deref(), Ok("pod-c saw 172.31.213.1"));
        assert_eq!(outside.ask("172.31.213.2:31000").as_deref(), Ok("pod-c saw 10.244.2.1"));
        assert_eq!(outside.ask("10.96.1.1:8000").as_deref(), Ok("pod-c saw 172.31.213.1"));
        assert_eq!(a.ask("10.96.1.1:8001"), refused);

        // Itself only: through the Service and back.
        self.route(&mut plans, nginx, &[("10.244.1.2", "one")]);
        assert_eq!(a.ask("10.96.1.1:8000").as_deref(), Ok("pod-a saw 10.244.1.1"));
        assert_eq!(a.ask("172.31.213.1:31000").as_deref(), Ok("pod-a saw 10.244.1.1"));
        assert_eq!(one.ask("127.0.0.1:31000").as_deref(), Ok("pod-a saw 10.244.1.1"));
        // From a pod of the same node, there and back through the node.
        assert_eq!(self.b.0.ask("10.96.1.1:8000").as_deref(), Ok("pod-a saw 10.244.1.3"));

        // All of them: each gets its part.
        self.route(&mut plans, nginx, &[("10.244.1.2", "one"), ("10.244.1.3", "one"), ("10.244.2.2", "two")]);
        let mut seen: Vec<String> = (0..60).map(|_| a.ask("10.96.1.1:8000").unwrap().split(' ').next().unwrap().to_owned()).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, ["pod-a", "pod-b", "pod-c"]);

        // externalTrafficPolicy Local: only here, and the client's address is kept.
        self.route(&mut plans, local, &[("10.244.1.2", "one")]);
        sh(&format!("ip -n {} route add 172.31.213.9/32 dev eth0", self.two.space.0));
        assert_eq!(outside.ask("172.31.213.1:31001").as_deref(), Ok("pod-a saw 172.31.213.9"));
        assert!(matches!(outside.ask("172.31.213.2:31001"), Err(std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)));
        assert_eq!(self.two.space.ask("127.0.0.1:31001").as_deref(), Ok("pod-a saw 172.31.213.2"));
        assert_eq!(self.c.0.ask("172.31.213.2:31001").as_deref(), Ok("pod-a saw 10.244.2.2"));

        // A Service goes: nothing of it stays.
        for (node, plan) in &mut plans {
            for name in ["nginx", "local"] {
                let mut gone = Service::default();
                gone.metadata.name = Some(name.into());
                gone.metadata.namespace = Some("default".into());
                plan.service(&Change::Deleted(Arc::new(gone)));
            }
            plan.renew();
            node.space.nft(&plan.table().changes().unwrap());
            let left = sh(&format!("ip netns exec {} nft list table ip regent-services", node.space.0));
            assert!(!left.contains("default/"), "{left}");
        }
        println!("kernel: services");
    }

    fn affinity(&self) {
        let mut plans = self.plans();
        let cart = "{metadata: {name: cart, namespace: default}, spec: {clusterIP: 10.96.1.3, sessionAffinity: ClientIP, \
                    ports: [{name: http, port: 80, protocol: TCP}]}}";
        self.route(&mut plans, cart, &[("10.244.1.3", "one"), ("10.244.2.2", "two")]);
        let first = self.a.0.ask("10.96.1.3:80").unwrap();
        for _ in 0..20 {
            assert_eq!(self.a.0.ask("10.96.1.3:80").unwrap(), first);
        }
        // The endpoint goes: the other one takes over.
        let other = if first.starts_with("pod-b") { ("10.244.2.2", "two") } else { ("10.244.1.3", "one") };
        self.route(&mut plans, cart, &[other]);
        assert_ne!(self.a.0.ask("10.96.1.3:80").unwrap(), first);
        println!("kernel: affinity");
    }

    fn udp(&self) {
        let mut plans = self.plans();
        let echo = "{metadata: {name: echo, namespace: default}, spec: {clusterIP: 10.96.1.4, \
                    ports: [{name: echo, port: 53, protocol: UDP}]}}";
        self.route(&mut plans, echo, &[("10.244.2.2", "two")]);
        let said = self.a.0.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"?", "10.96.1.4:53").unwrap();
            let mut buffer = [0; 64];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            format!("{} from {from}", String::from_utf8_lossy(&buffer[..length]))
        });
        assert_eq!(said, "pod-c saw 10.244.1.2 from 10.96.1.4:53");
        println!("kernel: udp");
    }

    fn host_ports(&self) {
        let base = cni::base(self.one.range.parse().unwrap(), CLUSTER.parse().unwrap(), &[]);
        let mut table: Table<Key> = Table::new(network::pods::TABLE, base);
        let pod: Pod = serde_saphyr::from_str(
            "{metadata: {name: a}, spec: {containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}, \
             {containerPort: 80, hostPort: 8081, hostIP: 127.0.0.1}]}]}, status: {podIP: 10.244.1.2}}",
        )
        .unwrap();
        table.set(&Key::new("", "a"), ports::fragment(&pod));
        self.one.space.nft(&table.whole());
        assert_eq!(self.outside.ask("172.31.213.1:8080").as_deref(), Ok("pod-a saw 172.31.213.9"));
        assert_eq!(self.one.space.ask("127.0.0.1:8080").as_deref(), Ok("pod-a saw 10.244.1.1"));
        assert_eq!(self.one.space.ask("127.0.0.1:8081").as_deref(), Ok("pod-a saw 10.244.1.1"));
        assert!(self.outside.ask("172.31.213.1:8081").is_err());
        assert_eq!(self.a.0.ask("172.31.213.1:8080").as_deref(), Ok("pod-a saw 10.244.1.1"));
        // A pod that leaves the cluster has the node's address.
        self.outside.serve("outside", 7000);
        assert_eq!(self.a.0.ask("172.31.213.9:7000").as_deref(), Ok("outside saw 172.31.213.1"));
        println!("kernel: host ports");
    }

    /// The components themselves, from the API to the kernel.
    fn components(&self) {
        let api = api::Api::default();
        let node = |name: &str, address: &str, range: &str| {
            serde_json::json!({ "metadata": { "name": name }, "spec": { "podCIDR": range },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] } })
        };
        api.set("nodes", node("one", "172.31.213.1", "10.244.1.0/24"));
        api.set("nodes", node("two", "172.31.213.2", "10.244.2.0/24"));
        api.set("nodes", node("far", "192.168.213.3", "10.244.3.0/24"));
        api.set(
            "services",
            serde_json::json!({ "metadata": { "name": "live", "namespace": "default" }, "spec": { "clusterIP": "10.96.9.9",
                "ports": [{ "port": 80, "protocol": "TCP" }] } }),
        );
        let slice = |address: &str| {
            serde_json::json!({ "metadata": { "name": "live-x", "namespace": "default", "labels": { "kubernetes.io/service-name": "live" } },
                "addressType": "IPv4", "ports": [{ "port": 80, "protocol": "TCP" }], "endpoints": [{ "addresses": [address] }] })
        };
        api.set("endpointslices", slice("10.244.1.2"));
        let folder = self.one.folder.path();
        let conflist = folder.join("net.d").join(cni::FILE);
        self.one.space.inside_async(|| async {
            let shutdown = tokio_util::sync::CancellationToken::new();
            let informers = client::Informers::new(api.client());
            let proxy = network::services::Config {
                node_name: "one".into(),
                node_ip: Some(self.one.address),
                informers: informers.clone(),
                cluster_cidr: Some(CLUSTER.parse().unwrap()),
                service_cidr: Some(SERVICES.parse().unwrap()),
                left_alone: vec!["10.96.0.10".parse().unwrap()],
                health_address: Some("127.0.0.1:10256".parse().unwrap()),
                view: None,
            };
            let pods = network::pods::Config {
                node_name: "one".into(),
                node_ip: self.one.address,
                informers,
                cni_conf_dir: folder.join("net.d"),
                cni_bin_dir: folder.join("bin"),
                binary: std::env::current_exe().unwrap(),
                data_dir: folder.join("data"),
                mode: network::pods::Mode::Auto,
                cluster_cidr: CLUSTER.parse().unwrap(),
                left_alone: vec![],
            };
            let proxy = tokio::spawn(network::services::run(proxy, shutdown.clone()));
            let network = tokio::spawn(network::pods::run(pods, shutdown.clone()));
            until("the first endpoint", || said("10.96.9.9:80"), |said| said.starts_with("pod-a")).await;
            until("the CNI configuration", async || std::fs::read_to_string(&conflist).unwrap_or_default(), |text| text.contains("10.244.1.0/24"))
                .await;
            assert!(said_raw("127.0.0.1:10256", "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));

            // A changed slice is in the kernel within moments.
            let mut slowest = Duration::ZERO;
            for (address, name) in [("10.244.2.2", "pod-c"), ("10.244.1.3", "pod-b"), ("10.244.1.2", "pod-a")] {
                let started = Instant::now();
                api.set("endpointslices", slice(address));
                until(name, || said("10.96.9.9:80"), |said| said.starts_with(name)).await;
                slowest = slowest.max(started.elapsed());
            }
            println!("kernel: a changed EndpointSlice carried a connection after {} ms at most", slowest.as_millis());
            assert!(slowest < Duration::from_secs(1));

            // A node goes: its route too, and no other.
            let routes = || async {
                let own = Links::open().unwrap().own_routes().await.unwrap();
                own.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            until("all routes", routes, |routes| routes == "10.244.1.0/24 10.244.2.0/24 10.244.3.0/24").await;
            api.delete("nodes", "far");
            until("the node's route to go", routes, |routes| routes == "10.244.1.0/24 10.244.2.0/24").await;

            // A stopped component leaves what works.
            shutdown.cancel();
            proxy.await.unwrap().unwrap();
            network.await.unwrap().unwrap();
            assert!(said("10.96.9.9:80").await.starts_with("pod-a"), "the rules stay");
        });
        println!("kernel: components");
    }

    fn tunnel(&self) {
        let end = |node: &Node| {
            let range: ipnet::Ipv4Net = node.range.parse().unwrap();
            (range.network(), places::hardware(node.address), node.address)
        };
        for (from, to) in [(&self.one, &self.two), (&self.two, &self.one)] {
            let address = from.address;
            let mut over = None;
            from.space.inside_async(|| async {
                over = Links::open().unwrap().link_of(address).await.unwrap();
            });
            let (inner, hardware, outer) = end(from);
            let tunnel = Tunnel { name: "regent.vxlan", network_identifier: 213, port: 8472, over: over.unwrap(), outer, inner, hardware };
            let (inner, hardware, outer) = end(to);
            from.route(to.range, Hop::Tunnel { inner, hardware, outer }, Some(tunnel));
        }
        assert_eq!(self.a.0.ask("10.244.2.2:80").as_deref(), Ok("pod-c saw 10.244.1.2"));
        assert_eq!(self.c.0.ask("10.244.1.2:80").as_deref(), Ok("pod-a saw 10.244.2.2"));
        let device = sh(&format!("ip -n {} -d link show regent.vxlan", self.one.space.0));
        assert!(device.contains("mtu 1450") && device.contains("dstport 8472"), "{device}");
        println!("kernel: tunnel");
    }
}

/// Waits until what is seen is as wanted; says what it saw last if that does not come.
async fn until<F: Future<Output = String>>(what: &str, see: impl Fn() -> F, wanted: impl Fn(&str) -> bool) {
    let started = Instant::now();
    loop {
        let seen = see().await;
        if wanted(&seen) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "waiting for {what}, saw {seen:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What the server at the address says, or nothing.
async fn said(address: &str) -> String {
    said_raw(address, "").await
}

async fn said_raw(address: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut text = String::new();
    if let Ok(Ok(mut stream)) = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await {
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await;
    }
    text
}
