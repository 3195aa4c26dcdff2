//! What a person does with a sandbox: up, down, status, stop, start, reboot, cut, heal, exec.
//!
//! Every step finds what is there and adds what is missing, so that it can be run again after a failure in its middle.

use crate::{
    Doing, Error, Result, balancer, containerd, launch, links,
    plan::{self, Node, Options, Role, StoreKind},
    registry,
    supervisor::{self, Order, State},
};
use pki::{Authority, Identity, Kubeconfig, ServiceAccountKeys, files::Access};
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

/// Where a sandbox lives unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/regent-sandbox";

/// The key that opens the cluster's encryption keys, alike on all servers.
const ENCRYPTION_KEY: &str = "encryption.key";

/// A sandbox in its directory, running or not.
pub struct Sandbox {
    directory: PathBuf,
    /// The binary that its nodes run.
    regent: PathBuf,
    pub options: Options,
    pub nodes: Vec<Node>,
}

/// How a node and its components are.
pub struct NodeStatus {
    pub name: String,
    pub address: String,
    /// The init's PID on the machine; `None`: powered off.
    pub init: Option<i32>,
    pub components: Vec<State>,
}

impl Sandbox {
    /// The sandbox in `directory`, as `up` made it.
    pub fn open(directory: &Path) -> Result<Sandbox> {
        let file = directory.join("sandbox.json");
        let missing = |_| Error::Refused(format!("there is no sandbox in {}; make one with `regent sandbox up`", directory.display()));
        let text = fs::read(&file).map_err(missing)?;
        let options = serde_json::from_slice(&text).map_err(|e| Error::Refused(format!("{}: {e}", file.display())))?;
        Sandbox::with(directory, options)
    }

    fn with(directory: &Path, options: Options) -> Result<Sandbox> {
        let regent = std::env::current_exe().doing(|| "finding this program".to_string())?;
        let nodes = plan::nodes(&options, directory, &regent);
        Ok(Sandbox { directory: directory.to_path_buf(), regent, options, nodes })
    }

    /// Makes (or completes) a sandbox and starts every node. `images`: a directory of OCI archives for its registry.
    pub fn up(directory: &Path, options: Options, images: Option<&Path>, mut progress: impl FnMut(&str)) -> Result<Sandbox> {
        check(&options)?;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Refused("a sandbox needs root: it makes namespaces, mounts and links".into()));
        }
        fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
        if let Ok(old) = Sandbox::open(directory) {
            let running = old.nodes.iter().any(|n| launch::init_pid(n).is_some());
            let (a, b) = (serde_json::to_value(&old.options), serde_json::to_value(&options));
            if running && a.ok() != b.ok() {
                return Err(Error::Refused(format!(
                    "another sandbox runs in {} ({} servers, {} workers); take it down first: `regent sandbox down`",
                    directory.display(),
                    old.options.servers,
                    old.options.workers
                )));
            }
        }
        let text = serde_json::to_string_pretty(&options).map_err(|e| Error::Refused(e.to_string()))?;
        fs::write(directory.join("sandbox.json"), text).doing(|| "keeping the options".to_string())?;
        let sandbox = Sandbox::with(directory, options)?;
        progress("certificates");
        sandbox.make_credentials()?;
        progress("network");
        allow_forwarding()?;
        links::make_bridge()?;
        for node in &sandbox.nodes {
            progress(&node.name);
            sandbox.start_node(node)?;
            if let (Role::Registry, Some(images)) = (node.role, images) {
                registry::wait()?;
                registry::fill(node, images, |name| progress(&format!("image {name}")))?;
            }
        }
        Ok(sandbox)
    }

    /// Stops every node and removes all that the sandbox made on the machine; its disk too, unless `keep`.
    pub fn down(self, keep: bool) -> Result<()> {
        for node in &self.nodes {
            launch::power_off(node)?;
            links::unplug(node);
        }
        launch::remove_cgroups(&plan::cgroup_root(&self.directory));
        links::remove_bridge()?;
        restore_forwarding()?;
        if !keep {
            fs::remove_dir_all(&self.directory).doing(|| format!("removing {}", self.directory.display()))?;
        }
        Ok(())
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let names = || self.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
        self.nodes.iter().find(|n| n.name == name).ok_or_else(|| Error::Refused(format!("there is no node {name}; the sandbox has {}", names())))
    }

    /// The path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    pub fn status(&self) -> Vec<NodeStatus> {
        let of = |node: &Node| NodeStatus {
            name: node.name.clone(),
            address: node.address.clone(),
            init: launch::init_pid(node),
            components: supervisor::order(node, &Order::Status).unwrap_or_default(),
        };
        self.nodes.iter().map(of).collect()
    }

    /// A power cut, or with a component: its end alone (`kill`: by SIGKILL).
    pub fn stop(&self, name: &str, component: Option<&str>, kill: bool) -> Result<()> {
        let node = self.node(name)?;
        match component {
            Some(component) => supervisor::order(node, &Order::Stop { component: component.into(), kill }).map(|_| ()),
            None => {
                launch::power_off(node)?;
                links::unplug(node);
                Ok(())
            }
        }
    }

    /// Powers a node on, or starts one component of it.
    pub fn start(&self, name: &str, component: Option<&str>) -> Result<()> {
        let node = self.node(name)?;
        match component {
            Some(component) => supervisor::order(node, &Order::Start { component: component.into() }).map(|_| ()),
            None => self.start_node(node),
        }
    }

    /// Halts one component where it stands (SIGSTOP, with all that it has started), or lets it go on.
    pub fn set_paused(&self, name: &str, component: &str, paused: bool) -> Result<()> {
        let component = component.to_string();
        let order = if paused { Order::Pause { component } } else { Order::Resume { component } };
        supervisor::order(self.node(name)?, &order).map(|_| ())
    }

    /// A power cut and power again.
    pub fn reboot(&self, name: &str) -> Result<()> {
        self.stop(name, None, false)?;
        self.start(name, None)
    }

    /// Breaks the cable between a node and `peers` (all others and the machine itself, if none are named), or heals it.
    pub fn set_cut(&self, name: &str, peers: &[String], cut: bool) -> Result<()> {
        let node = self.node(name)?;
        for other in self.nodes.iter().filter(|n| n.name != name && (peers.is_empty() || peers.contains(&n.name))) {
            links::set_cut(node, other, cut)?;
        }
        for peer in peers {
            self.node(peer)?;
        }
        if peers.is_empty() { links::set_off(node, cut) } else { Ok(()) }
    }

    /// A command inside a node, ready to be run.
    pub fn command(&self, name: &str, command: &[String]) -> Result<Command> {
        let node = self.node(name)?;
        let pid = launch::init_pid(node).ok_or_else(|| Error::Refused(format!("{name} is off; start it with `regent sandbox start {name}`")))?;
        let mut entry = Command::new("nsenter");
        entry.args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]).args(command);
        Ok(entry)
    }

    fn start_node(&self, node: &Node) -> Result<()> {
        if launch::init_pid(node).is_none() {
            fs::create_dir_all(&node.directory).doing(|| format!("making {}", node.directory.display()))?;
            match node.role {
                Role::Registry => registry::configure(node)?,
                Role::Balancer => balancer::configure(node, &self.nodes)?,
                Role::Etcd => {}
                Role::Server | Role::Worker => containerd::configure(node, &self.regent)?,
            }
            let pid = launch::power_on(node, &self.regent)?;
            links::plug(node, pid)?;
        }
        supervisor::order(node, &Order::Boot).map(|_| ())
    }

    /// The cluster's authorities, and on each node the certificates of what runs there.
    fn make_credentials(&self) -> Result<()> {
        let authority_directory = self.directory.join("pki");
        let authority = Authority::load_or_create(&authority_directory)?;
        ServiceAccountKeys::load_or_create(&authority_directory)?;
        Authority::load_or_create_named(&authority_directory, "front-proxy-ca", "front-proxy-ca")?;
        pki::secret::load_or_create(&authority_directory.join(ENCRYPTION_KEY))?;
        let admin = authority.issue_kept(&authority_directory, "admin", &Identity::admin())?;
        Kubeconfig::of(&plan::api_url(&self.options, None), &admin, "kubernetes-admin").write(&self.kubeconfig())?;
        for node in self.nodes.iter().filter(|n| n.role != Role::Registry) {
            let directory = plan::credentials(node);
            pki::files::create_directory(&directory)?;
            pki::files::replace(&directory.join("ca.crt"), authority.certificate_pem(), Access::Public)?;
            self.make_etcd_credentials(node, &directory)?;
            if node.role == Role::Server {
                self.make_server_credentials(node, &authority, &directory)?;
            }
            if node.role.is_cluster_node() {
                self.make_node_credentials(node, &authority, &directory)?;
            }
        }
        Ok(())
    }

    /// On members: etcd's own certificates; on servers: the API server's as etcd's client, and etcd's authority.
    fn make_etcd_credentials(&self, node: &Node, directory: &Path) -> Result<()> {
        let members = plan::etcd_members(&self.options);
        let member = members.iter().any(|(name, _)| *name == node.name);
        if members.is_empty() || !(member || node.role == Role::Server) {
            return Ok(());
        }
        let kept = self.directory.join("pki/etcd");
        let authority = Authority::load_or_create_named(&kept, "ca", "etcd-ca")?;
        let own = directory.join("etcd");
        pki::files::create_directory(&own)?;
        pki::files::replace(&own.join("ca.crt"), authority.certificate_pem(), Access::Public)?;
        if member {
            let identity = Identity::etcd_member(&node.name, &[address(node)?]);
            authority.issue_kept(&own, "server", &identity)?;
            authority.issue_kept(&own, "peer", &identity)?;
        }
        if node.role == Role::Server {
            pki::files::replace(&own.join("ca.key"), authority.key_pem(), Access::Private)?;
            authority.issue_kept(directory, "apiserver-etcd-client", &Identity::apiserver_etcd_client())?;
        }
        Ok(())
    }

    fn make_server_credentials(&self, node: &Node, authority: &Authority, directory: &Path) -> Result<()> {
        pki::files::replace(&directory.join("ca.key"), authority.key_pem(), Access::Private)?;
        for file in ["sa.key", "sa.pub", "front-proxy-ca.key", "front-proxy-ca.crt", ENCRYPTION_KEY] {
            let text = fs::read_to_string(self.directory.join("pki").join(file)).doing(|| format!("reading {file}"))?;
            pki::files::replace(
                &directory.join(file),
                &text,
                if matches!(file, "sa.pub" | "front-proxy-ca.crt") { Access::Public } else { Access::Private },
            )?;
        }
        let service: IpAddr = IpAddr::from([10, 96, 0, 1]);
        let mut names = vec![node.name.clone(), node.address.clone()];
        if self.options.servers > 1 {
            names.extend(["lb".to_string(), plan::BALANCER_ADDRESS.to_string()]);
        }
        authority.issue_kept(directory, "apiserver", &Identity::apiserver(service, "cluster.local", &names))?;
        authority.issue_kept(directory, "apiserver-kubelet-client", &Identity::apiserver_kubelet_client())?;
        let url = plan::api_url(&self.options, Some(node));
        kubeconfig(authority, directory, &url, "scheduler", "system:kube-scheduler", &Identity::scheduler())?;
        kubeconfig(authority, directory, &url, "controller-manager", "system:kube-controller-manager", &Identity::controller_manager())
    }

    fn make_node_credentials(&self, node: &Node, authority: &Authority, directory: &Path) -> Result<()> {
        let url = plan::api_url(&self.options, Some(node));
        authority.issue_kept(directory, "kubelet", &Identity::node_serving(&node.name, &[address(node)?]))?;
        let issued = authority.issue_kept(directory, "kubelet-client", &Identity::node(&node.name))?;
        let user = format!("system:node:{}", node.name);
        Kubeconfig::of(&url, &issued, &user).write(&directory.join("kubelet.kubeconfig"))?;
        kubeconfig(authority, directory, &url, "proxy", "system:kube-proxy", &Identity::proxy())?;
        kubeconfig(authority, directory, &url, "dns", "system:dns", &Identity::dns())
    }
}

fn address(node: &Node) -> Result<IpAddr> {
    node.address.parse().map_err(|_| Error::Refused(format!("{}: bad address {}", node.name, node.address)))
}

/// A component's certificate and the kubeconfig with it.
fn kubeconfig(authority: &Authority, directory: &Path, url: &str, stem: &str, user: &str, identity: &Identity) -> Result<()> {
    let issued = authority.issue_kept(directory, stem, identity)?;
    Ok(Kubeconfig::of(url, &issued, user).write(&directory.join(format!("{stem}.kubeconfig")))?)
}

fn check(options: &Options) -> Result<()> {
    if options.servers == 0 {
        return Err(Error::Refused("a cluster needs at least one server".into()));
    }
    if options.store == StoreKind::Sqlite && (options.servers > 1 || options.etcd_nodes > 0) {
        return Err(Error::Refused("several servers share one store, which SQLite cannot be; add --store etcd".into()));
    }
    if options.servers.max(options.workers).max(options.etcd_nodes) > plan::NODES_MAX {
        return Err(Error::Refused(format!("at most {0} servers, {0} workers and {0} nodes of etcd", plan::NODES_MAX)));
    }
    Ok(())
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_BEFORE: &str = "/run/regent-sandbox-ip-forward";

/// Lets the nodes reach beyond the machine; what was set before comes back with [`restore_forwarding`].
fn allow_forwarding() -> Result<()> {
    if !Path::new(FORWARDING_BEFORE).exists() {
        let before = fs::read_to_string(FORWARDING).doing(|| format!("reading {FORWARDING}"))?;
        fs::write(FORWARDING_BEFORE, before).doing(|| format!("writing {FORWARDING_BEFORE}"))?;
    }
    fs::write(FORWARDING, "1").doing(|| format!("writing {FORWARDING}"))
}

fn restore_forwarding() -> Result<()> {
    if let Ok(before) = fs::read_to_string(FORWARDING_BEFORE) {
        fs::write(FORWARDING, before).doing(|| format!("writing {FORWARDING}"))?;
        let _ = fs::remove_file(FORWARDING_BEFORE);
    }
    Ok(())
}
