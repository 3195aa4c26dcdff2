//! What a sandbox consists of: nodes, addresses, components and their flags. Pure: options in, plan out.

use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The network that joins the nodes. The machine itself is `.1`, the registry `.2`, the balancer `.3`, servers from `.11`,
/// workers from `.21`, nodes of an external etcd from `.31`.
pub const NETWORK_PREFIX: &str = "172.30.0";
/// Where the balancer over several servers listens.
pub const BALANCER_ADDRESS: &str = "172.30.0.3";
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
pub const CLUSTER_CIDR: &str = "10.244.0.0/16";
pub const CLUSTER_DNS: &str = "10.96.0.10";
pub const API_PORT: u16 = 6443;
pub const ETCD_CLIENT_PORT: u16 = 2379;
pub const ETCD_PEER_PORT: u16 = 2380;
/// Address and port of the registry that every node's containerd has as mirror.
pub const REGISTRY: &str = "172.30.0.2:5000";
/// The same registry behind a user and a password, for `imagePullSecrets`.
pub const PRIVATE_REGISTRY: &str = "172.30.0.2:5001";
/// Servers, workers and nodes of etcd that the address plan has room for, each.
pub const NODES_MAX: usize = 9;

/// What was asked for at `up`; kept in the sandbox's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    pub servers: usize,
    pub workers: usize,
    #[serde(default)]
    pub store: StoreKind,
    /// Nodes of an etcd of its own, outside the servers; 0 puts a member on each server.
    #[serde(default)]
    pub etcd_nodes: usize,
    /// Further flags for a component on every node that runs it: `("controller-manager", "--node-monitor-grace-period=10s")`.
    pub extra_flags: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options { servers: 1, workers: 3, store: StoreKind::Sqlite, etcd_nodes: 0, extra_flags: Vec::new() }
    }
}

/// What the API servers keep their objects in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    #[default]
    Sqlite,
    Etcd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Server,
    Worker,
    /// Holds images; not a node of the cluster.
    Registry,
    /// A member of an external etcd; not a node of the cluster.
    Etcd,
    /// HAProxy over the API servers; not a node of the cluster.
    Balancer,
}

impl Role {
    /// Whether it is a node of the cluster: runs containerd, kubelet, proxy and dns.
    pub fn is_cluster_node(self) -> bool {
        matches!(self, Role::Server | Role::Worker)
    }
}

/// One process under a node's init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    pub name: String,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Where the node's init listens (UDP and TCP) in its place: sockets that it is given, and that stay open while it is away.
    pub sockets: Option<SocketAddr>,
}

/// One node: what its init needs to boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub address: String,
    pub directory: PathBuf,
    /// `/etc/hosts` of the node.
    pub hosts: String,
    pub components: Vec<Component>,
}

impl Node {
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }
    pub fn log(&self, component: &str) -> PathBuf {
        self.directory.join("log").join(format!("{component}.log"))
    }
    /// The veth on the machine's side. Interface names have at most 15 characters.
    pub fn link(&self) -> String {
        let short = self.name.replace("server-", "s").replace("worker-", "w");
        format!("rgsb-{short}").chars().take(15).collect()
    }
    /// Where the node's pods live in the cgroup tree.
    pub fn cgroup_root(&self) -> String {
        let sandbox = self.directory.ancestors().nth(2).unwrap_or(&self.directory);
        format!("{}/{}", cgroup_root(sandbox), self.name)
    }
}

/// The nodes of a sandbox in `directory`, whose components are run by the binary `regent`.
pub fn nodes(options: &Options, directory: &Path, regent: &Path) -> Vec<Node> {
    let mut named: Vec<(String, Role, String)> = vec![("registry".into(), Role::Registry, format!("{NETWORK_PREFIX}.2"))];
    if options.servers > 1 {
        named.push(("lb".into(), Role::Balancer, BALANCER_ADDRESS.into()));
    }
    named.extend((1..=options.etcd_nodes).map(|i| (format!("etcd-{i}"), Role::Etcd, format!("{NETWORK_PREFIX}.{}", 30 + i))));
    named.extend((1..=options.servers).map(|i| (format!("server-{i}"), Role::Server, format!("{NETWORK_PREFIX}.{}", 10 + i))));
    named.extend((1..=options.workers).map(|i| (format!("worker-{i}"), Role::Worker, format!("{NETWORK_PREFIX}.{}", 20 + i))));
    let names: String = named.iter().map(|(name, _, address)| format!("{address} {name}\n")).collect();
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{names}");
    let members = etcd_members(options);
    let servers: Vec<String> =
        named.iter().filter(|(_, role, _)| *role == Role::Server).map(|(_, _, address)| format!("https://{address}:{API_PORT}")).collect();
    let nodes = named.into_iter().map(|(name, role, address)| {
        let directory = directory.join("nodes").join(&name);
        let mut node = Node { name, role, address, directory, hosts: hosts.clone(), components: Vec::new() };
        node.components = components(&node, regent, &members);
        for component in &mut node.components {
            if servers.len() > 1 && NODE_COMPONENTS.contains(&component.name.as_str()) {
                component.command.extend(balancer_flags(node.role, &servers));
            }
            for (_, flag) in options.extra_flags.iter().filter(|(name, _)| *name == component.name) {
                match flag.strip_prefix(ENVIRONMENT).and_then(|variable| variable.split_once('=')) {
                    Some((name, value)) => {
                        let value = value.replace("{disk}", &node.directory.display().to_string());
                        component.environment.push((name.into(), value));
                    }
                    None => component.command.push(flag.clone()),
                }
            }
        }
        node
    });
    nodes.collect()
}

/// What begins so among the further flags is a variable of the component's environment, as `env:NAME=VALUE`.
const ENVIRONMENT: &str = "env:";

/// What reaches the API from every node; with several servers through the node's own balancer over all of them.
const NODE_COMPONENTS: [&str; 3] = ["kubelet", "proxy", "dns"];

/// A server's own API has port 6443 on every address of its node.
fn balancer_flags(role: Role, servers: &[String]) -> [String; 2] {
    let port = if role == Role::Server { API_PORT + 1 } else { API_PORT };
    [format!("--api-servers={}", servers.join(",")), format!("--balancer-address=127.0.0.1:{port}")]
}

/// The members of etcd, by name and address; none with SQLite.
pub fn etcd_members(options: &Options) -> Vec<(String, String)> {
    let (stem, first, count) = match options.store {
        StoreKind::Sqlite => return Vec::new(),
        StoreKind::Etcd if options.etcd_nodes > 0 => ("etcd", 30, options.etcd_nodes),
        StoreKind::Etcd => ("server", 10, options.servers),
    };
    (1..=count).map(|i| (format!("{stem}-{i}"), format!("{NETWORK_PREFIX}.{}", first + i))).collect()
}

/// Where a node's components reach the API: a server's own, else the only one, else the balancer.
pub fn api_url(options: &Options, node: Option<&Node>) -> String {
    let address = match node {
        Some(node) if node.role == Role::Server => node.address.clone(),
        _ if options.servers > 1 => BALANCER_ADDRESS.into(),
        _ => format!("{NETWORK_PREFIX}.11"),
    };
    format!("https://{address}:{API_PORT}")
}

/// The cgroup of a whole sandbox, by its directory: two sandboxes in network namespaces of their own leave each other alone.
pub fn cgroup_root(directory: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    directory.hash(&mut hasher);
    format!("/regent-sandbox-{:08x}", hasher.finish() as u32)
}

/// The directory of a node's certificates and kubeconfigs.
pub fn credentials(node: &Node) -> PathBuf {
    node.directory.join("pki")
}

/// The API server's flags that say where its store is.
fn store_flags(node: &Node, members: &[(String, String)]) -> Vec<String> {
    if members.is_empty() {
        return Vec::new();
    }
    let file = |name: &str| credentials(node).join(name).display().to_string();
    // Its own member first: that one is asked as long as it answers.
    let (own, others): (Vec<_>, Vec<_>) = members.iter().partition(|(name, _)| *name == node.name);
    let urls = own.into_iter().chain(others).map(|(_, address)| format!("https://{address}:{ETCD_CLIENT_PORT}"));
    vec![
        format!("--etcd-servers={}", urls.collect::<Vec<_>>().join(",")),
        format!("--etcd-cafile={}", file("etcd/ca.crt")),
        format!("--etcd-certfile={}", file("apiserver-etcd-client.crt")),
        format!("--etcd-keyfile={}", file("apiserver-etcd-client.key")),
    ]
}

fn components(node: &Node, regent: &Path, members: &[(String, String)]) -> Vec<Component> {
    let credentials = credentials(node);
    let file = |name: &str| credentials.join(name).display().to_string();
    let make = |name: &str, flags: Vec<String>| {
        let mut command = vec![regent.display().to_string(), name.to_string()];
        command.extend(flags);
        Component { name: name.to_string(), command, environment: vec![("REGENT_LOG".into(), "info".into())], sockets: None }
    };
    let registry = |name: &str| Component {
        name: name.into(),
        command: vec!["docker-registry".into(), "serve".into(), node.directory.join(format!("{name}.yml")).display().to_string()],
        environment: vec![("OTEL_TRACES_EXPORTER".into(), "none".into())],
        sockets: None,
    };
    match node.role {
        Role::Registry => return vec![registry("registry"), registry("private-registry")],
        Role::Balancer => return vec![crate::balancer::component(node)],
        Role::Etcd | Role::Server | Role::Worker => {}
    }
    let mut components = Vec::new();
    if members.iter().any(|(name, _)| *name == node.name) {
        let initial = members.iter().map(|(name, address)| format!("{name}=https://{address}:{ETCD_PEER_PORT}"));
        components.push(make(
            "etcd",
            vec![
                format!("--name={}", node.name),
                format!("--data-dir={}", node.directory.join("etcd").display()),
                format!("--advertise-address={}", node.address),
                format!("--cert-dir={}", file("etcd")),
                format!("--initial-cluster={}", initial.collect::<Vec<_>>().join(",")),
            ],
        ));
    }
    if node.role == Role::Etcd {
        return components;
    }
    if node.role == Role::Server {
        let store = store_flags(node, members);
        components.push(make(
            "apiserver",
            [
                vec![
                    format!("--data-dir={}", node.directory.join("server").display()),
                    format!("--advertise-address={}", node.address),
                    format!("--secure-port={API_PORT}"),
                    format!("--service-cluster-ip-range={SERVICE_CIDR}"),
                    format!("--tls-cert-file={}", file("apiserver.crt")),
                    format!("--tls-private-key-file={}", file("apiserver.key")),
                    format!("--client-ca-file={}", file("ca.crt")),
                    format!("--service-account-signing-key-file={}", file("sa.key")),
                    format!("--kubelet-client-certificate={}", file("apiserver-kubelet-client.crt")),
                    format!("--kubelet-client-key={}", file("apiserver-kubelet-client.key")),
                    format!("--kubelet-certificate-authority={}", file("ca.crt")),
                    format!("--cert-dir={}", credentials.display()),
                    format!("--pki-dir={}", credentials.display()),
                ],
                store,
            ]
            .concat(),
        ));
        let record = format!("--leader-elect-record-dir={}", node.directory.join("leader-election").display());
        components.push(make("scheduler", vec![format!("--kubeconfig={}", file("scheduler.kubeconfig")), record.clone()]));
        components.push(make(
            "controller-manager",
            vec![
                format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
                format!("--cluster-cidr={CLUSTER_CIDR}"),
                format!("--cluster-signing-cert-file={}", file("ca.crt")),
                format!("--cluster-signing-key-file={}", file("ca.key")),
                format!("--root-ca-file={}", file("ca.crt")),
                record,
            ],
        ));
    }
    components.push(Component {
        name: "containerd".into(),
        command: vec!["containerd".into(), "--config".into(), node.directory.join("containerd.toml").display().to_string()],
        environment: Vec::new(),
        sockets: None,
    });
    let mut kubelet = vec![
        format!("--kubeconfig={}", file("kubelet.kubeconfig")),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", node.address),
        format!("--tls-cert-file={}", file("kubelet.crt")),
        format!("--tls-private-key-file={}", file("kubelet.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--cluster-dns={CLUSTER_DNS}"),
        format!("--cluster-cidr={CLUSTER_CIDR}"),
        format!("--cgroup-root={}", node.cgroup_root()),
        // All nodes share this machine's disk: a share of it says nothing about them.
        "--eviction-hard=nodefs.available<1Gi,nodefs.inodesFree<1%".into(),
        format!("--cni-bin-dir={}", crate::containerd::cni_bin_dir(node).display()),
    ];
    if node.role == Role::Server {
        kubelet.push("--register-with-taints=node-role.kubernetes.io/control-plane=:NoSchedule".into());
    }
    components.push(make("kubelet", kubelet));
    components.push(make(
        "proxy",
        vec![
            format!("--kubeconfig={}", file("proxy.kubeconfig")),
            format!("--hostname-override={}", node.name),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            format!("--cluster-dns={CLUSTER_DNS}"),
        ],
    ));
    let dns = make("dns", vec![format!("--kubeconfig={}", file("dns.kubeconfig")), format!("--cluster-dns={CLUSTER_DNS}")]);
    components.push(Component { sockets: format!("{CLUSTER_DNS}:53").parse().ok(), ..dns });
    components
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_every_node_once_and_servers_run_the_control_plane() {
        let further = ["env:CLOCK={disk}/clock", "--max-pods=9"].map(|flag| ("kubelet".to_string(), flag.to_string()));
        let options = Options { extra_flags: further.to_vec(), ..Options::default() };
        let nodes = nodes(&options, Path::new("/s"), Path::new("/regent"));
        let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["registry", "server-1", "worker-1", "worker-2", "worker-3"]);
        let of = |name: &str| nodes.iter().find(|n| n.name == name).map(|n| n.components.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
        assert_eq!(of("worker-1").unwrap(), ["containerd", "kubelet", "proxy", "dns"]);
        assert_eq!(of("server-1").unwrap(), ["apiserver", "scheduler", "controller-manager", "containerd", "kubelet", "proxy", "dns"]);
        for node in nodes.iter().filter(|n| n.role.is_cluster_node()) {
            let kubelet = node.components.iter().find(|c| c.name == "kubelet").unwrap();
            assert_eq!(kubelet.command.last().unwrap(), "--max-pods=9");
            assert!(kubelet.environment.contains(&("CLOCK".into(), format!("/s/nodes/{}/clock", node.name))));
        }
    }

    #[test]
    fn several_servers_have_etcd_and_a_balancer() {
        let check = |options: &Options, expected: &[(&str, &str)], etcd_servers: &str| {
            let nodes = nodes(options, Path::new("/s"), Path::new("/regent"));
            let seen: Vec<(&str, &str)> = nodes.iter().map(|n| (n.name.as_str(), n.components[0].name.as_str())).collect();
            assert_eq!(seen, expected);
            let second = nodes.iter().find(|n| n.name == "server-2").unwrap();
            let apiserver = second.components.iter().find(|c| c.name == "apiserver").unwrap();
            assert!(apiserver.command.contains(&format!("--etcd-servers={etcd_servers}")), "{:?}", apiserver.command);
            assert_eq!(api_url(options, Some(second)), "https://172.30.0.12:6443");
            assert_eq!(api_url(options, None), "https://172.30.0.3:6443");
            for name in NODE_COMPONENTS {
                let component = second.components.iter().find(|c| c.name == name).unwrap();
                assert!(component.command.contains(&"--api-servers=https://172.30.0.11:6443,https://172.30.0.12:6443".to_string()));
                assert!(component.command.contains(&"--balancer-address=127.0.0.1:6444".to_string()));
            }
        };
        let stacked = Options { servers: 2, workers: 0, store: StoreKind::Etcd, ..Options::default() };
        let expected = [("registry", "registry"), ("lb", "haproxy"), ("server-1", "etcd"), ("server-2", "etcd")];
        check(&stacked, &expected, "https://172.30.0.12:2379,https://172.30.0.11:2379");
        let external = Options { etcd_nodes: 1, ..stacked };
        let expected = [("registry", "registry"), ("lb", "haproxy"), ("etcd-1", "etcd"), ("server-1", "apiserver"), ("server-2", "apiserver")];
        check(&external, &expected, "https://172.30.0.31:2379");
    }
}
