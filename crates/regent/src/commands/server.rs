//! `regent server`: a whole cluster in one process; with the agent in it, a node as well.
//!
//! It needs no configuration: it makes its authority and certificates, writes the administrator's kubeconfig and a join
//! token, and says where they are. Scheduler and controllers reach the API server in this process, without a socket.

use super::{
    agent,
    apiserver::{self, ApiserverFlags, Credentials},
    controller_manager::{self, ControllerFlags},
    election::Election,
    kubelet::{KubeletFlags, Node, machine_address},
    scheduler, token,
};
use ::apiserver::User;
use anyhow::{Context, Result, bail};
use clap::Args;
use controllers::ClusterCa;
use pki::{Authority, Identity, Kubeconfig, ServiceAccountKeys};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::JoinSet;

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
    #[command(flatten)]
    apiserver: ApiserverFlags,
    #[command(flatten)]
    controllers: ControllerFlags,
    #[command(flatten)]
    election: Election,
    #[command(flatten)]
    kubelet: KubeletFlags,
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

async fn start(arguments: Server, shutdown: tokio_util::sync::CancellationToken) -> Result<()> {
    let runs = |part: &str| !arguments.disable.iter().any(|disabled| disabled == part);
    let address = match arguments.apiserver.advertise_address {
        Some(address) => address,
        None => machine_address().map(IpAddr::from).context("finding the machine's address; say --advertise-address")?,
    };
    let directory = arguments.data_dir.join("server");
    let authority = Authority::load_or_create(&directory.join("pki"))?;
    let credentials = credentials(&directory.join("pki"), &authority, &arguments, address)?;
    let url = format!("https://{}", std::net::SocketAddr::new(address, arguments.apiserver.secure_port));
    let kubeconfig = arguments.data_dir.join("admin.kubeconfig");
    let admin = authority.issue_kept(&directory.join("pki"), "admin", &Identity::admin())?;
    Kubeconfig::of(&url, &admin, "kubernetes-admin").write(&kubeconfig)?;

    let server = apiserver::start(&directory, &arguments.apiserver, &credentials, shutdown.clone()).await?;
    let in_process = |user: &str, groups: &[&str]| {
        let mut all = vec!["system:authenticated"];
        all.extend(groups);
        client::transport::in_process(server.local_service(User::new(user, &all)))
    };
    let mut parts: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
    {
        let (server, flags, shutdown) = (server.clone(), arguments.apiserver.clone(), shutdown.clone());
        parts.spawn(async move { ("apiserver", apiserver::serve(server, &flags, &credentials, shutdown).await) });
    }
    if runs("scheduler") {
        let (client, election, shutdown) = (in_process("system:kube-scheduler", &[]), arguments.election.clone(), shutdown.clone());
        parts.spawn(async move { ("scheduler", scheduler::schedule(client, &election, shutdown).await) });
    }
    if runs("controller-manager") {
        let client = in_process("system:kube-controller-manager", &[]);
        let ca = ClusterCa { certificate_pem: authority.certificate_pem().into(), key_pem: Some(authority.key_pem().into()) };
        let (flags, election, shutdown) = (arguments.controllers.clone(), arguments.election.clone(), shutdown.clone());
        parts.spawn(async move { ("controller-manager", controller_manager::control(client, &flags, &election, ca, shutdown).await) });
    }
    if runs("agent") {
        let mut flags = arguments.kubelet.clone();
        if arguments.reserved {
            flags.register_with_taints.push("node-role.kubernetes.io/control-plane=:NoSchedule".into());
        }
        let name = flags.name();
        let node_address = flags.address()?;
        let serving = authority.issue_kept(&directory.join("pki"), "kubelet", &Identity::node_serving(&name, &[node_address.into()]))?;
        let node = Node {
            address: node_address,
            root_dir: arguments.data_dir.join("node"),
            serving: node::Serving::known(serving.certificate_pem, serving.key_pem),
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
        parts.spawn(async move { ("agent", agent::run_node(client, node, flags, service_cidr, shutdown).await) });
    }
    let join = token::standing(&server, &directory, &authority.fingerprint()).await?;
    tracing::info!(
        "the cluster is up: export KUBECONFIG={} ; join a node with `regent agent --server {url} --token $(cat {})`",
        kubeconfig.display(),
        join.display()
    );
    while let Some(ended) = parts.join_next().await {
        let (part, outcome) = ended.context("a part of the server panicked")?;
        match outcome {
            Err(error) => {
                shutdown.cancel();
                return Err(error.context(format!("the {part} ended")));
            }
            Ok(()) if !shutdown.is_cancelled() => {
                shutdown.cancel();
                bail!("the {part} ended unasked");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn credentials(directory: &Path, authority: &Authority, arguments: &Server, address: IpAddr) -> Result<Credentials> {
    let mut names = arguments.tls_san.clone();
    names.extend([crate::runtime::host_name(), address.to_string()]);
    let service = first_address(arguments.apiserver.service_cluster_ip_range);
    let identity = Identity::apiserver(service, "cluster.local", &names);
    Ok(Credentials {
        serving: authority.issue_kept(directory, "apiserver", &identity)?,
        authority_pem: authority.certificate_pem().into(),
        service_account_keys: Arc::new(ServiceAccountKeys::load_or_create(directory)?),
        kubelet_client: authority.issue_kept(directory, "apiserver-kubelet-client", &Identity::apiserver_kubelet_client())?,
    })
}

/// The address of the Service `kubernetes`: the first of its range.
fn first_address(range: ipnet::IpNet) -> IpAddr {
    range.hosts().next().unwrap_or_else(|| range.addr())
}
