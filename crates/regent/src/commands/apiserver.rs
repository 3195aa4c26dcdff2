//! `regent apiserver`: the API server alone.

use super::certs::{self, Lifetime};
use crate::{
    backend::{Backend, EtcdFlags},
    fencing,
    voters::Voters,
};
use anyhow::{Context, Result, bail};
use apiserver::{Config, Server};
use clap::Args;
use futures::FutureExt;
use pki::{Authority, Identity, Issued, ServiceAccountKeys, reload::CertificateFiles};
use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long a server may take to tell the cluster that it goes.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What the API server is told, alone or in `regent server`.
#[derive(Args, Clone)]
pub struct ApiserverFlags {
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The address under which nodes and pods reach this server [default: the machine's].
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// The range of ClusterIPs.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: ipnet::IpNet,
    /// The range of NodePorts.
    #[arg(long, default_value = "30000-32767", value_parser = ports)]
    pub service_node_port_range: RangeInclusive<u16>,
    /// The issuer of service account tokens.
    #[arg(long)]
    pub service_account_issuer: Option<String>,
    /// Let requests without credentials through as system:anonymous (RBAC decides what it may).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: bool,
    /// A file of static tokens, one `token,user,uid,"group1,group2"` per line.
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// Who decides what a user may do: Node,RBAC or AlwaysAllow.
    #[arg(long, default_value = "Node,RBAC")]
    pub authorization_mode: String,
    /// Admission plugins that do not run, by Kubernetes' names: NodeRestriction, LimitRanger, ...
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// Seconds for which a pod that does not say otherwise stays on a node that is not ready.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_not_ready_toleration_seconds: i64,
    /// The same for a node that cannot be reached.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_unreachable_toleration_seconds: i64,
    /// What is encrypted in the store and with which keys: an EncryptionConfiguration [default: Secrets, with the cluster's own keys].
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Requests that only read and are answered at a time.
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Requests that write and are answered at a time. With priority and fairness, both numbers together are the server's seats.
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// Let FlowSchemas and PriorityLevelConfigurations decide whose request is answered first.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_priority_and_fairness: bool,
    /// Serve metrics.k8s.io (`kubectl top`, autoscalers) from what the nodes say, as long as no metrics-server is installed.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub resource_metrics: bool,
    /// Nodes that are given a copy of this server's store, with all Secrets and the cluster's keys in it, so that
    /// `regent server --recover` on one of them can take over when this server is lost. Two are a good number.
    #[arg(long, value_delimiter = ',', value_name = "NODE,...")]
    pub store_copy_nodes: Vec<String>,
    #[command(flatten)]
    pub security: crate::security::SecurityFlags,
    #[command(flatten)]
    pub etcd: EtcdFlags,
    #[command(flatten)]
    pub snapshots: crate::backups::ScheduleFlags,
    /// How often the store is read from end to end in search of damage; 0s: at the start alone.
    #[arg(long, default_value = "1h", value_parser = super::election::duration)]
    pub store_check_interval: Duration,
}

#[derive(Args)]
pub struct Apiserver {
    /// Where the store lies.
    #[arg(long, default_value = "/var/lib/regent/server")]
    data_dir: PathBuf,
    #[command(flatten)]
    flags: ApiserverFlags,
    #[arg(long)]
    tls_cert_file: PathBuf,
    #[arg(long)]
    tls_private_key_file: PathBuf,
    /// The authority whose client certificates are trusted.
    #[arg(long)]
    client_ca_file: PathBuf,
    /// The key that signs service account tokens.
    #[arg(long)]
    service_account_signing_key_file: PathBuf,
    #[arg(long)]
    kubelet_client_certificate: PathBuf,
    #[arg(long)]
    kubelet_client_key: PathBuf,
    #[arg(long)]
    kubelet_certificate_authority: Option<PathBuf>,
    /// The certificate with which aggregated API servers are asked [default: one in --pki-dir].
    #[arg(long, requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    #[arg(long, requires = "requestheader_client_ca_file")]
    proxy_client_key_file: Option<PathBuf>,
    /// The directory of the cluster's keys, from which a server that joins is given its own.
    #[arg(long)]
    pki_dir: Option<PathBuf>,
    /// Renew the certificates and kubeconfigs in this directory before they end; it must hold the authorities' keys.
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// What the server proves itself and checks others with.
pub struct Credentials {
    pub serving: Arc<CertificateFiles>,
    pub authority_pem: String,
    pub service_account_keys: Arc<ServiceAccountKeys>,
    /// For the node API.
    pub kubelet_client: Issued,
    pub kubelet_client_files: Arc<CertificateFiles>,
    /// For aggregated API servers.
    pub aggregation: apiserver::aggregation::Config,
}

/// What aggregated API servers are asked with: a certificate of the front-proxy authority in a directory of keys, both made
/// there if they are not there yet.
pub fn front_proxy(directory: &Path, lifetime: &Lifetime) -> Result<apiserver::aggregation::Config> {
    const AUTHORITY: &str = "front-proxy-ca";
    const CLIENT: &str = "front-proxy-client";
    let authority = Authority::load_or_create_named(directory, AUTHORITY, AUTHORITY)?;
    authority.issue_kept(directory, CLIENT, &lifetime.of(Identity::front_proxy_client()))?;
    let file = |end: &str| directory.join(format!("{CLIENT}.{end}"));
    Ok(apiserver::aggregation::Config {
        client_files: Some(Arc::new(CertificateFiles::open(&file("crt"), &file("key"), "")?)),
        authority_pem: Some(authority.certificate_pem().into()),
    })
}

pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

pub fn run(arguments: Apiserver) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        if let Some(directory) = arguments.cert_dir {
            // At once, for what ended while the server was off.
            pki::rotation::renew_due(&[&directory], Some(arguments.lifetime.certificate_validity_period), pki::now_unix_s())?;
            tokio::spawn(certs::keep_renewed(vec![directory], arguments.lifetime.certificate_validity_period, shutdown.clone()));
        }
        let authority_pem = read(&arguments.client_ca_file)?;
        let issued = |certificate: &Path, key: &Path, authority: String| -> Result<Issued> {
            Ok(Issued { certificate_pem: read(certificate)?, key_pem: read(key)?, authority_pem: authority })
        };
        let kubelet_authority = arguments.kubelet_certificate_authority.as_deref().map(read).transpose()?.unwrap_or_else(|| authority_pem.clone());
        let aggregation =
            match (&arguments.proxy_client_cert_file, &arguments.proxy_client_key_file, &arguments.flags.security.requestheader_client_ca_file) {
                (Some(certificate), Some(key), Some(authority)) => apiserver::aggregation::Config {
                    client_files: Some(Arc::new(CertificateFiles::open(certificate, key, "")?)),
                    authority_pem: Some(read(authority)?),
                },
                _ => match &arguments.pki_dir {
                    Some(directory) => front_proxy(directory, &arguments.lifetime)?,
                    None => Default::default(),
                },
            };
        let credentials = Credentials {
            aggregation,
            serving: Arc::new(CertificateFiles::open(&arguments.tls_cert_file, &arguments.tls_private_key_file, &authority_pem)?),
            service_account_keys: Arc::new(ServiceAccountKeys::from_pem(&read(&arguments.service_account_signing_key_file)?)?),
            kubelet_client: issued(&arguments.kubelet_client_certificate, &arguments.kubelet_client_key, kubelet_authority)?,
            kubelet_client_files: Arc::new(CertificateFiles::open(&arguments.kubelet_client_certificate, &arguments.kubelet_client_key, "")?),
            authority_pem,
        };
        let backend = Backend::of(&arguments.flags.etcd, &arguments.data_dir)?;
        let stop = CancellationToken::new();
        let started = start(&backend, &arguments.flags, &credentials, arguments.pki_dir, None, &shutdown, stop.clone()).await?;
        let Some(Started { server, held }) = started else { return Ok(()) };
        tokio::spawn(end(server.clone(), shutdown.clone(), stop.clone()));
        let served = serve(server, &arguments.flags, &credentials, stop).await;
        shutdown.cancel();
        held.await.context("the fencing panicked")?.and(served)
    })
}

/// A server that is started.
pub struct Started {
    pub server: Arc<Server>,
    /// Ends with the shutdown, or with an error when another server has taken over.
    pub held: tokio::task::JoinHandle<Result<()>>,
}

/// Opens the store and starts the server behind it; nothing listens yet. `shutdown` ends the waiting for the store (`None`
/// then), `stop` the server. `pki_dir`: whence servers that join, and copies, get the cluster's keys. `own_ledger`: what the node
/// in this very process has promised, if there is one.
pub async fn start(
    backend: &Backend,
    flags: &ApiserverFlags,
    credentials: &Credentials,
    pki_dir: Option<PathBuf>,
    own_ledger: Option<PathBuf>,
    shutdown: &CancellationToken,
    stop: CancellationToken,
) -> Result<Option<Started>> {
    let mut store = tokio::select! {
        store = backend.open(shutdown) => store?,
        () = shutdown.cancelled() => return Ok(None),
    };
    let advertise_address = match flags.advertise_address {
        Some(address) => address,
        None => super::kubelet::machine_address().context("finding the machine's address; say --advertise-address")?.into(),
    };
    // Whether another server has taken over is known before anything is written.
    let mut hold = None;
    if let Backend::Sqlite(directory) = backend {
        let url = format!("https://{}", SocketAddr::new(advertise_address, flags.secure_port));
        let authority = Some(&credentials.kubelet_client.authority_pem).filter(|pem| !pem.is_empty()).unwrap_or(&credentials.authority_pem);
        let voters = Voters::new(authority, credentials.kubelet_client_files.clone())?;
        let server_directory = directory.parent().unwrap_or(directory);
        let Some((held, fenced)) = fencing::enter(store, server_directory, &url, own_ledger.as_deref(), voters, shutdown).await? else {
            return Ok(None);
        };
        (hold, store) = (Some(held), fenced);
    }
    tokio::spawn(store::compaction::run(store.clone(), store::compaction::PERIOD, stop.clone().cancelled_owned()));
    tokio::spawn(crate::backups::look_after(store.clone(), flags.store_check_interval, stop.clone()));
    crate::backups::start_schedule(&flags.snapshots, store.clone(), backend, pki_dir.clone(), stop.clone())?;
    let mut config = Config::new(store.clone());
    config.advertise_address = advertise_address;
    config.secure_port = flags.secure_port;
    config.service_cidr = flags.service_cluster_ip_range;
    config.node_ports = flags.service_node_port_range.clone();
    config.shutdown = stop.clone();
    config.flow = apiserver::flow::Config {
        enabled: flags.enable_priority_and_fairness,
        requests_max: flags.max_requests_inflight,
        mutating_requests_max: flags.max_mutating_requests_inflight,
    };
    config.resource_metrics.enabled = flags.resource_metrics;
    config.server_bundle = pki_dir.clone().map(|directory| crate::bundle::source(directory, backend.clone()));
    config.bootstrap.store_copy_nodes = flags.store_copy_nodes.clone();
    config.store_copy = match (&hold, &pki_dir) {
        (Some(hold), Some(pki)) => {
            let copies = fencing::Copies { hold: hold.clone(), store: store.clone(), backend: backend.clone(), pki: pki.clone() };
            Some(Arc::new(copies) as Arc<dyn apiserver::copies::Source>)
        }
        (_, None) if !flags.store_copy_nodes.is_empty() => {
            bail!("--store-copy-nodes needs --pki-dir: a copy without the cluster's keys is of no use")
        }
        (None, _) if !flags.store_copy_nodes.is_empty() => {
            bail!("--store-copy-nodes: this server's objects are in etcd, whose members are the copies")
        }
        _ => None,
    };
    config.authentication.client_authorities_pem = Some(credentials.authority_pem.clone());
    config.authentication.service_account_keys = Some(credentials.service_account_keys.clone());
    config.authentication.anonymous = flags.anonymous_auth;
    if let Some(issuer) = &flags.service_account_issuer {
        config.authentication.service_account_issuer = issuer.clone();
    }
    if let Some(file) = &flags.token_auth_file {
        config.authentication.static_tokens = apiserver::authentication::StaticToken::parse_file(&read(file)?).map_err(anyhow::Error::msg)?;
    }
    config.authorization.always_allow = match flags.authorization_mode.as_str() {
        "AlwaysAllow" => true,
        "Node,RBAC" | "RBAC,Node" => false,
        other => bail!("--authorization-mode {other}: this server knows Node,RBAC and AlwaysAllow"),
    };
    config.admission.disabled = flags.disable_admission_plugins.clone();
    config.admission.not_ready_toleration_s = flags.default_not_ready_toleration_seconds;
    config.admission.unreachable_toleration_s = flags.default_unreachable_toleration_seconds;
    config.tunnel.client = Some(credentials.kubelet_client.clone());
    config.tunnel.client_files = Some(credentials.kubelet_client_files.clone());
    config.aggregation = credentials.aggregation.clone();
    flags.security.configure(&mut config)?;
    config.more_metrics = Some(Arc::new(client::metrics::render));
    config.bootstrap.authority_pem = Some(credentials.authority_pem.clone());
    // A store that answers now may lose its quorum the next moment: then it is asked again.
    loop {
        match with_encryption(&mut config, &store, flags, pki_dir.as_deref(), &stop).await {
            Err(error) if matches!(error.downcast_ref(), Some(store::Error::Unavailable(_))) => {
                tracing::warn!(%error, "the store does not answer yet; it is asked again")
            }
            Err(error) => return Err(error),
            Ok(()) => match Server::new(config.clone()).await {
                Err(apiserver::Error::Store(error @ store::Error::Unavailable(_))) => {
                    tracing::warn!(%error, "the store does not answer yet; it is asked again")
                }
                other => {
                    let server = other?;
                    let held = match hold {
                        Some(hold) => tokio::spawn(hold.keep(Arc::downgrade(&server), stop, shutdown.clone())),
                        None => tokio::spawn(shutdown.clone().cancelled_owned().map(Ok)),
                    };
                    return Ok(Some(Started { server, held }));
                }
            },
        }
        tokio::select! { () = shutdown.cancelled() => return Ok(None), () = tokio::time::sleep(Duration::from_millis(500)) => {} }
    }
}

/// Puts the store that seals in the place of the plain one, once.
async fn with_encryption(
    config: &mut Config,
    store: &Arc<dyn store::Store>,
    flags: &ApiserverFlags,
    pki_dir: Option<&Path>,
    stop: &CancellationToken,
) -> Result<()> {
    if config.encryption.is_none()
        && let Some(encrypted) = crate::encryption::wrap(store, flags, pki_dir, stop).await?
    {
        config.store = Arc::new(encrypted.clone());
        config.encryption = Some(encrypted);
    }
    Ok(())
}

/// Waits for the shutdown, lets the cluster know that this server goes, and then stops it.
async fn end(server: Arc<Server>, shutdown: CancellationToken, stop: CancellationToken) {
    shutdown.cancelled().await;
    farewell(&server).await;
    stop.cancel();
}

/// Takes this server out of the Service `kubernetes` before it stops listening.
pub async fn farewell(server: &Arc<Server>) {
    if tokio::time::timeout(FAREWELL_MAX, server.retire()).await.is_err() {
        tracing::warn!("the other servers could not be told that this one goes; they will find out");
    }
    tokio::time::sleep(server.config.shutdown_delay).await;
}

/// Listens and serves until the shutdown.
pub async fn serve(server: Arc<Server>, flags: &ApiserverFlags, credentials: &Credentials, shutdown: CancellationToken) -> Result<()> {
    let address = SocketAddr::new(flags.bind_address, flags.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!(%address, "the API server listens");
    Ok(server.serve(listener, pki::tls::server_of(credentials.serving.clone())?, shutdown).await?)
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text} is not a range of ports; say 30000-32767");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}
