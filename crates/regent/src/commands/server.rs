//! `regent server`: a whole cluster in one process; with the agent in it, a node as well.
//!
//! It needs no configuration: it makes its authority and certificates, writes the administrator's kubeconfig and a join
//! token, and says where they are. Scheduler and controllers reach the API server in this process, without a socket.
//!
//! Several servers share etcd: the first is started with `--cluster-init` and runs a member, further ones join with
//! `--server` and a token, or all use an etcd of others (`--etcd-servers`). Each remembers how ([`crate::topology`]).
//!
//! What must stay true: the parts end in the order in which they need each other: scheduler, controllers and agent first
//! (they give their leases back through the API server), then the API server, etcd last.

use super::{
    agent,
    apiserver::{self, ApiserverFlags, Credentials, Started},
    certs::{self, Lifetime},
    controller_manager::{self, ControllerFlags},
    election::Election,
    kubelet::{KubeletFlags, Node, machine_address},
    scheduler, token,
};
use crate::{
    backend::Backend,
    component, recovery,
    rotation::Rotation,
    server_join,
    topology::{self, Asked, Plan, Stacked, Topology},
};
use ::apiserver::User;
use anyhow::{Context, Result, bail};
use clap::Args;
use controllers::ClusterCa;
use pki::{Authority, Identity, Kubeconfig, ServiceAccountKeys, reload::CertificateFiles};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long scheduler, controllers and agent may take to end before the API server goes all the same.
const PARTS_GRACE: Duration = Duration::from_secs(10);

/// Where scheduler and controllers show how they are.
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// The parts of a server that `--disable` can leave out.
const PARTS: [&str; 3] = ["agent", "scheduler", "controller-manager"];

#[derive(Args)]
pub struct Server {
    /// Where everything lies: the store, the certificates, the node's pods.
    #[arg(long, default_value = "/var/lib/regent")]
    data_dir: PathBuf,
    /// Parts to leave out: agent, scheduler, controller-manager.
    #[arg(long, value_delimiter = ',')]
    disable: Vec<String>,
    /// Further names and addresses of this server for its certificate.
    #[arg(long, value_delimiter = ',')]
    tls_san: Vec<String>,
    /// Begin a cluster of several servers: this one runs the first member of etcd.
    #[arg(long)]
    cluster_init: bool,
    /// Join the cluster of this server, as https://ADDRESS:6443, as a further server.
    #[arg(long, value_name = "URL", requires = "token")]
    server: Option<String>,
    /// The token to join with; `regent token create --server` on a server prints one.
    #[arg(long, requires = "server", env = "REGENT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Take over from a lost server, with the copy of its store that this machine's node keeps. Once done, the flag does nothing.
    #[arg(long, conflicts_with_all = ["cluster_init", "server"])]
    recover: bool,
    /// The copy [default: node/store-copy in the data directory].
    #[arg(long, value_name = "DIRECTORY", requires = "recover")]
    recover_from: Option<PathBuf>,
    /// Take over although the old server is alive, or too few nodes can be asked: you know that it is off and stays off.
    #[arg(long, requires = "recover")]
    force: bool,
    #[command(flatten)]
    apiserver: ApiserverFlags,
    #[command(flatten)]
    controllers: ControllerFlags,
    #[command(flatten)]
    election: Election,
    #[command(flatten)]
    kubelet: KubeletFlags,
    #[command(flatten)]
    lifetime: Lifetime,
    /// Keep pods away from this server's own node, unless they tolerate it.
    #[arg(long)]
    reserved: bool,
}

pub fn run(arguments: Server) -> Result<()> {
    if let Some(unknown) = arguments.disable.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!("--disable {unknown}: a server's parts are {}", PARTS.join(", "));
    }
    crate::runtime::run(|shutdown| async move { start(arguments, shutdown).await })
}

async fn start(arguments: Server, shutdown: CancellationToken) -> Result<()> {
    let runs = |part: &str| !arguments.disable.iter().any(|disabled| disabled == part);
    let address = match arguments.apiserver.advertise_address {
        Some(address) => address,
        None => machine_address().map(IpAddr::from).context("finding the machine's address; say --advertise-address")?,
    };
    let directory = arguments.data_dir.join("server");
    if arguments.recover {
        recover(&arguments, &directory, address).await?;
    }
    let mut etcd = Running::default();
    let backend = tokio::select! {
        backend = open(&arguments, &directory, address, &mut etcd, &shutdown) => backend?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let authority = Authority::load_or_create(&directory.join("pki"))?;
    let credentials = credentials(&directory.join("pki"), &authority, &arguments, address)?;
    let url = format!("https://{}", std::net::SocketAddr::new(address, arguments.apiserver.secure_port));
    let kubeconfig = arguments.data_dir.join("admin.kubeconfig");
    let admin = authority.issue_kept(&directory.join("pki"), "admin", &arguments.lifetime.of(Identity::admin()))?;
    Kubeconfig::of(&url, &admin, "kubernetes-admin").write(&kubeconfig)?;
    let renewed = vec![directory.join("pki"), arguments.data_dir.clone()];
    tokio::spawn(certs::keep_renewed(renewed, arguments.lifetime.certificate_validity_period, shutdown.clone()));

    let stop = CancellationToken::new();
    let keys = Some(topology::pki_directory(&directory));
    let own_ledger = runs("agent").then(|| arguments.data_dir.join("node").join(membership::cluster::LEDGER));
    let started = apiserver::start(&backend, &arguments.apiserver, &credentials, keys, own_ledger, &shutdown, stop.clone());
    let Some(Started { server, held }) = etcd.beside(started).await? else { return etcd.end().await };
    let in_process = |user: &str, groups: &[&str]| {
        let mut all = vec!["system:authenticated"];
        all.extend(groups);
        client::transport::in_process(client::transport::named(&client::transport::component_of(user), server.local_service(User::new(user, &all))))
    };
    let mut parts: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
    parts.spawn(async move { ("fencing", held.await.unwrap_or_else(|panic| Err(panic.into()))) });
    {
        let (server, flags, stop) = (server.clone(), arguments.apiserver.clone(), stop.clone());
        parts.spawn(async move { ("apiserver", apiserver::serve(server, &flags, &credentials, stop).await) });
    }
    if runs("scheduler") {
        let (client, shutdown) = (in_process("system:kube-scheduler", &[]), shutdown.clone());
        let election = arguments.election.clone().within(&arguments.data_dir);
        let (port, serving, stop) = (component::SCHEDULER_PORT, client.clone(), shutdown.clone());
        tokio::spawn(component::serve("kube-scheduler", LOOPBACK, port, serving, stop));
        parts.spawn(async move { ("scheduler", scheduler::schedule(client, &election, shutdown).await) });
    }
    if runs("controller-manager") {
        let client = in_process("system:kube-controller-manager", &[]);
        let ca = ClusterCa { certificate_pem: authority.certificate_pem().into(), key_pem: Some(authority.key_pem().into()) };
        let (flags, shutdown) = (arguments.controllers.clone(), shutdown.clone());
        let election = arguments.election.clone().within(&arguments.data_dir);
        let membership = arguments.kubelet.membership.clone();
        let (port, serving, stop) = (component::CONTROLLER_MANAGER_PORT, client.clone(), shutdown.clone());
        tokio::spawn(component::serve("kube-controller-manager", LOOPBACK, port, serving, stop));
        parts.spawn(async move { ("controller-manager", controller_manager::control(client, &flags, &election, &membership, ca, shutdown).await) });
    }
    if runs("agent") {
        let mut flags = arguments.kubelet.clone();
        // Its own store is here already.
        flags.store_copy = crate::copier::Willing::False;
        if arguments.reserved {
            flags.register_with_taints.push("node-role.kubernetes.io/control-plane=:NoSchedule".into());
        }
        let name = flags.name();
        let node_address = flags.address()?;
        let identity = Identity::node_serving(&name, &[node_address.into()]);
        authority.issue_kept(&directory.join("pki"), "kubelet", &arguments.lifetime.of(identity))?;
        // This server renews it with its other certificates; the node follows.
        let rotation = Rotation {
            kubeconfig: kubeconfig.clone(),
            server: None,
            serving_certificate: directory.join("pki/kubelet.crt"),
            serving_key: directory.join("pki/kubelet.key"),
            name: name.clone(),
            address: node_address.into(),
            token: None,
            renew_client: false,
            renew_serving: false,
        };
        let node = Node {
            address: node_address,
            root_dir: arguments.data_dir.join("node"),
            serving: rotation.start(shutdown.clone()),
            authority_pem: authority.certificate_pem().into(),
            cluster_cidr: arguments.controllers.cluster_cidr,
            name,
        };
        let service_cidr = match arguments.apiserver.service_cluster_ip_range {
            ipnet::IpNet::V4(range) => range,
            ipnet::IpNet::V6(range) => bail!("--service-cluster-ip-range {range}: this version routes IPv4 only"),
        };
        let client = in_process(&format!("system:node:{}", node.name), &["system:nodes"]);
        let shutdown = shutdown.clone();
        parts.spawn(async move { ("agent", agent::run_node(client, None, node, flags, service_cidr, shutdown).await) });
    }
    let joins = matches!(backend, Backend::Etcd(_));
    tokio::spawn(announce(server.clone(), directory, authority.fingerprint(), kubeconfig, url, joins));
    let outcome = attend(parts, &mut etcd, &server, &shutdown, &stop).await;
    etcd.end().await.and(outcome)
}

/// Makes this machine the server of the cluster whose store its node has a copy of.
async fn recover(arguments: &Server, directory: &Path, address: IpAddr) -> Result<()> {
    if Topology::load(directory)?.is_some() || arguments.apiserver.etcd.files()?.is_some() {
        bail!("--recover: this server keeps its objects in etcd, whose members are the copies");
    }
    let request = recovery::Request {
        copy: &arguments.recover_from.clone().unwrap_or_else(|| recovery::default_copy(&arguments.data_dir)),
        server: directory,
        pki: &topology::pki_directory(directory),
        ledger: &arguments.data_dir.join("node").join(membership::cluster::LEDGER),
        url: format!("https://{}", std::net::SocketAddr::new(address, arguments.apiserver.secure_port)),
        force: arguments.force,
    };
    if !recovery::recover(&request).await? {
        tracing::info!("this server has its state; there is nothing to recover");
    }
    Ok(())
}

/// Keeps this server's own join token as soon as the store can be written, and says what to do next.
async fn announce(server: Arc<::apiserver::Server>, directory: PathBuf, fingerprint: String, kubeconfig: PathBuf, url: String, joins: bool) {
    let join = loop {
        match token::standing(&server, &directory, &fingerprint).await {
            Ok(join) => break join,
            Err(error) => tracing::warn!("there is no join token yet: {error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tracing::info!(
        "the cluster is up: export KUBECONFIG={} ; join a node with `regent agent --server {url} --token $(cat {})`",
        kubeconfig.display(),
        join.display()
    );
    crate::pages::give_back();
    if joins {
        tracing::info!("join a server with `regent server --server {url} --token TOKEN`; `regent token create --server` prints a token");
    }
}

/// Waits for the shutdown, or for a part that ends unasked, and then for all parts, in their order.
async fn attend(
    mut parts: JoinSet<(&'static str, Result<()>)>,
    etcd: &mut Running,
    server: &Arc<::apiserver::Server>,
    shutdown: &CancellationToken,
    stop: &CancellationToken,
) -> Result<()> {
    let mut failure = None;
    let mut note = |part: &str, outcome: Result<()>| {
        let unasked = !shutdown.is_cancelled();
        let problem = match outcome {
            Err(error) => Some(error.context(format!("the {part} ended"))),
            Ok(()) => unasked.then(|| anyhow::anyhow!("the {part} ended unasked")),
        };
        failure = failure.take().or(problem);
        shutdown.cancel();
    };
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = shutdown.cancelled() => {}
            outcome = etcd.ended() => note("etcd", outcome),
            Some(ended) = parts.join_next() => match ended {
                Ok((part, outcome)) => note(part, outcome),
                Err(panic) => note("part", Err(panic.into())),
            },
        }
    }
    let others = async {
        while parts.len() > 1 {
            match parts.join_next().await {
                // The API server alone cannot be waited for before it is asked to stop.
                Some(Ok(("apiserver", outcome))) => return note("apiserver", outcome),
                Some(Ok((part, outcome))) => note(part, outcome),
                _ => {}
            }
        }
    };
    if tokio::time::timeout(PARTS_GRACE, others).await.is_err() {
        tracing::warn!("parts of this server did not end in time");
    }
    apiserver::farewell(server).await;
    stop.cancel();
    while let Some(ended) = parts.join_next().await {
        if let Ok((part, outcome)) = ended {
            note(part, outcome);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Finds or makes this server's place in the cluster, starts its member of etcd if it has one, and says which store it has.
async fn open(arguments: &Server, directory: &Path, address: IpAddr, etcd: &mut Running, shutdown: &CancellationToken) -> Result<Backend> {
    let name = arguments.kubelet.name();
    let asked = Asked {
        cluster_init: arguments.cluster_init,
        server: arguments.server.clone(),
        token: arguments.token.clone(),
        etcd: arguments.apiserver.etcd.clone(),
    };
    let found = match topology::plan(Topology::load(directory)?, topology::has_sqlite(directory), &asked)? {
        Plan::Alone => return Backend::of(&asked.etcd, directory),
        Plan::As(topology) => topology,
        Plan::Init => Topology::Stacked(Stacked::first(&name, address)),
        Plan::Join { server, token } => server_join::join(&server, &token, &arguments.data_dir, &name, address).await?,
    };
    found.save(directory)?;
    let Topology::Stacked(mut stacked) = found else { return Ok(found.backend(directory)) };
    if stacked.address != address {
        bail!(
            "this server's member of etcd is known at {}, but the server is to be reached at {address}; say --advertise-address={}",
            stacked.address,
            stacked.address
        );
    }
    stacked.make_certificates(directory)?;
    etcd.start(stacked.member(&arguments.data_dir));
    stacked.others = etcd.beside(server_join::promote(&stacked, directory, shutdown)).await?;
    let found = Topology::Stacked(stacked);
    found.save(directory)?;
    Ok(found.backend(directory))
}

/// This server's member of etcd, if it has one.
#[derive(Default)]
struct Running {
    stop: CancellationToken,
    member: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl Running {
    fn start(&mut self, member: crate::etcd::Member) {
        self.member = Some(tokio::spawn(member.run(self.stop.clone())));
    }

    /// Waits until the member ends; for ever if there is none.
    async fn ended(&mut self) -> Result<()> {
        match &mut self.member {
            None => std::future::pending().await,
            Some(member) => {
                let ended = member.await;
                self.member = None;
                ended.context("etcd's supervisor panicked")?
            }
        }
    }

    /// Does something that needs the member to run.
    async fn beside<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = work => outcome,
            ended = self.ended() => match ended {
                Err(error) => Err(error.context("etcd ended")),
                Ok(()) => bail!("etcd ended unasked"),
            },
        }
    }

    /// Stops the member and waits for its end.
    async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        if self.member.is_some() { self.ended().await } else { Ok(()) }
    }
}

fn credentials(directory: &Path, authority: &Authority, arguments: &Server, address: IpAddr) -> Result<Credentials> {
    let mut names = arguments.tls_san.clone();
    names.extend([crate::runtime::host_name(), address.to_string()]);
    let service = first_address(arguments.apiserver.service_cluster_ip_range);
    let lifetime = &arguments.lifetime;
    authority.issue_kept(directory, "apiserver", &lifetime.of(Identity::apiserver(service, "cluster.local", &names)))?;
    let client = authority.issue_kept(directory, "apiserver-kubelet-client", &lifetime.of(Identity::apiserver_kubelet_client()))?;
    let files = |stem: &str, authority_pem: &str| -> Result<Arc<CertificateFiles>> {
        let (certificate, key) = (directory.join(format!("{stem}.crt")), directory.join(format!("{stem}.key")));
        Ok(Arc::new(CertificateFiles::open(&certificate, &key, authority_pem)?))
    };
    Ok(Credentials {
        serving: files("apiserver", authority.certificate_pem())?,
        authority_pem: authority.certificate_pem().into(),
        service_account_keys: Arc::new(ServiceAccountKeys::load_or_create(directory)?),
        kubelet_client: client,
        kubelet_client_files: files("apiserver-kubelet-client", "")?,
        aggregation: apiserver::front_proxy(directory, lifetime)?,
    })
}

/// The address of the Service `kubernetes`: the first of its range.
fn first_address(range: ipnet::IpNet) -> IpAddr {
    range.hosts().next().unwrap_or_else(|| range.addr())
}
