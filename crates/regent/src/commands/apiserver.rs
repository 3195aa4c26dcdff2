//! `regent apiserver`: the API server alone.

use crate::backend::{Backend, EtcdFlags};
use super::certs::{self, Lifetime};
use anyhow::{Context, Result, bail};
use apiserver::{Config, Server};
use clap::Args;
use pki::{Issued, ServiceAccountKeys, reload::CertificateFiles};
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
    /// Seconds for which a pod that does not say otherwise stays on a node that is not ready.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_not_ready_toleration_seconds: i64,
    /// The same for a node that cannot be reached.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_unreachable_toleration_seconds: i64,
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
        let credentials = Credentials {
            serving: Arc::new(CertificateFiles::open(&arguments.tls_cert_file, &arguments.tls_private_key_file, &authority_pem)?),
            service_account_keys: Arc::new(ServiceAccountKeys::from_pem(&read(&arguments.service_account_signing_key_file)?)?),
            kubelet_client: issued(&arguments.kubelet_client_certificate, &arguments.kubelet_client_key, kubelet_authority)?,
            kubelet_client_files: Arc::new(CertificateFiles::open(&arguments.kubelet_client_certificate, &arguments.kubelet_client_key, "")?),
            authority_pem,
        };
        let backend = Backend::of(&arguments.flags.etcd, &arguments.data_dir)?;
        let stop = CancellationToken::new();
        let Some(server) = start(&backend, &arguments.flags, &credentials, arguments.pki_dir, &shutdown, stop.clone()).await? else {
            return Ok(());
        };
        tokio::spawn(end(server.clone(), shutdown, stop.clone()));
        serve(server, &arguments.flags, &credentials, stop).await
    })
}

/// Opens the store and starts the server behind it; nothing listens yet. `shutdown` ends the waiting for the store (`None`
/// then), `stop` the server. `pki_dir`: whence servers that join get the cluster's keys.
pub async fn start(
    backend: &Backend,
    flags: &ApiserverFlags,
    credentials: &Credentials,
    pki_dir: Option<PathBuf>,
    shutdown: &CancellationToken,
    stop: CancellationToken,
) -> Result<Option<Arc<Server>>> {
    let store = tokio::select! {
        store = backend.open(shutdown) => store?,
        () = shutdown.cancelled() => return Ok(None),
    };
    tokio::spawn(store::compaction::run(store.clone(), store::compaction::PERIOD, stop.clone().cancelled_owned()));
    tokio::spawn(crate::backups::look_after(store.clone(), flags.store_check_interval, stop.clone()));
    crate::backups::start_schedule(&flags.snapshots, store.clone(), backend, pki_dir.clone(), stop.clone())?;
    let advertise_address = match flags.advertise_address {
        Some(address) => address,
        None => super::kubelet::machine_address().context("finding the machine's address; say --advertise-address")?.into(),
    };
    let mut config = Config::new(store);
    config.advertise_address = advertise_address;
    config.secure_port = flags.secure_port;
    config.service_cidr = flags.service_cluster_ip_range;
    config.node_ports = flags.service_node_port_range.clone();
    config.shutdown = stop;
    config.server_bundle = pki_dir.map(|directory| crate::bundle::source(directory, backend.clone()));
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
    config.admission.not_ready_toleration_s = flags.default_not_ready_toleration_seconds;
    config.admission.unreachable_toleration_s = flags.default_unreachable_toleration_seconds;
    config.tunnel.client = Some(credentials.kubelet_client.clone());
    config.tunnel.client_files = Some(credentials.kubelet_client_files.clone());
    config.bootstrap.authority_pem = Some(credentials.authority_pem.clone());
    // A store that answers now may lose its quorum the next moment: then it is asked again.
    loop {
        match Server::new(config.clone()).await {
            Err(apiserver::Error::Store(error @ store::Error::Unavailable(_))) => {
                tracing::warn!(%error, "the store does not answer yet; it is asked again")
            }
            other => return Ok(Some(other?)),
        }
        tokio::select! { () = shutdown.cancelled() => return Ok(None), () = tokio::time::sleep(Duration::from_millis(500)) => {} }
    }
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
