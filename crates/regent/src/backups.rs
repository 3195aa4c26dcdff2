//! Snapshots of this cluster: what goes into one, where it is kept, and taking them by the clock in a running server.

use crate::{backend::Backend, bundle};
use anyhow::{Context, Result, bail};
use backup::{
    bucket::{self, Bucket},
    directory::{self, Reason},
    files,
};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{
    Depth, Store,
    etcd::Etcd,
    snapshot::{self, Origin, Secret, Status},
    sqlite::Sqlite,
};
use tokio_util::sync::CancellationToken;

/// Scheduled snapshots that are kept unless told otherwise.
const RETENTION: usize = 5;

/// What opens encrypted snapshots.
#[derive(Args, Clone, Debug, Default)]
pub struct SecretFlags {
    /// Encrypt snapshots with the passphrase on this file's first line.
    #[arg(long, alias = "passphrase-file", value_name = "FILE", conflicts_with = "snapshot_key_file")]
    pub snapshot_passphrase_file: Option<PathBuf>,
    /// Encrypt snapshots with this file of at least 32 random bytes.
    #[arg(long, alias = "key-file", value_name = "FILE")]
    pub snapshot_key_file: Option<PathBuf>,
}

impl SecretFlags {
    pub fn secret(&self) -> Result<Option<Secret>> {
        let reading = |path: &Path| format!("reading {}", path.display());
        if let Some(path) = &self.snapshot_passphrase_file {
            let text = std::fs::read_to_string(path).with_context(|| reading(path))?;
            return Ok(Some(Secret::passphrase(text.lines().next().unwrap_or_default().trim_end())?));
        }
        let Some(path) = &self.snapshot_key_file else { return Ok(None) };
        Ok(Some(Secret::key_file(std::fs::read(path).with_context(|| reading(path))?)?))
    }
}

/// Where copies of snapshots go.
#[derive(Args, Clone, Debug, Default)]
pub struct BucketFlags {
    /// An S3-compatible store for copies of snapshots, as https://s3.example.com.
    #[arg(long, value_name = "URL", requires = "snapshot_s3_bucket")]
    pub snapshot_s3_endpoint: Option<String>,
    #[arg(long, value_name = "NAME", requires = "snapshot_s3_endpoint")]
    pub snapshot_s3_bucket: Option<String>,
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    pub snapshot_s3_region: String,
    /// Put before every snapshot's name in the bucket, as clusters/a/.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub snapshot_s3_prefix: String,
    #[arg(long, value_name = "KEY", env = "AWS_ACCESS_KEY_ID", hide_env_values = true)]
    pub snapshot_s3_access_key: Option<String>,
    #[arg(long, value_name = "KEY", env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub snapshot_s3_secret_key: Option<String>,
    /// A file with the access key on its first line and the secret key on its second.
    #[arg(long, value_name = "FILE")]
    pub snapshot_s3_credentials_file: Option<PathBuf>,
    /// The authorities that have signed the endpoint's certificate [default: those that the machine trusts].
    #[arg(long, value_name = "FILE")]
    pub snapshot_s3_endpoint_ca: Option<PathBuf>,
}

impl BucketFlags {
    pub fn bucket(&self) -> Result<Option<Bucket>> {
        let (Some(endpoint), Some(bucket)) = (&self.snapshot_s3_endpoint, &self.snapshot_s3_bucket) else { return Ok(None) };
        let (mut access_key, mut secret_key) = (self.snapshot_s3_access_key.clone(), self.snapshot_s3_secret_key.clone());
        if let Some(path) = &self.snapshot_s3_credentials_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            let mut lines = text.lines().map(|line| line.trim().to_string());
            (access_key, secret_key) = (lines.next(), lines.next());
        }
        let missing = "the bucket needs --snapshot-s3-access-key and --snapshot-s3-secret-key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)";
        Ok(Some(Bucket::new(&bucket::Config {
            endpoint: endpoint.clone(),
            bucket: bucket.clone(),
            region: self.snapshot_s3_region.clone(),
            access_key: access_key.context(missing)?,
            secret_key: secret_key.context(missing)?,
            prefix: self.snapshot_s3_prefix.clone(),
            authorities: self.snapshot_s3_endpoint_ca.clone(),
        })?))
    }
}

/// What a running server is told of snapshots.
#[derive(Args, Clone, Debug, Default)]
pub struct ScheduleFlags {
    /// Take a snapshot of the store by the clock, as a cron schedule in UTC: "0 */6 * * *", @hourly.
    #[arg(long, value_name = "CRON")]
    pub snapshot_schedule: Option<String>,
    /// Scheduled snapshots of this server that are kept.
    #[arg(long, default_value_t = RETENTION, value_name = "NUMBER")]
    pub snapshot_retention: usize,
    /// Where they are kept [default: `snapshots` in the data directory].
    #[arg(long, value_name = "DIRECTORY")]
    pub snapshot_dir: Option<PathBuf>,
    #[command(flatten)]
    pub bucket: BucketFlags,
    #[command(flatten)]
    pub secret: SecretFlags,
}

/// Where snapshots of the server in this directory (`<data-dir>/server`) are kept.
pub fn default_directory(server_directory: &Path) -> PathBuf {
    server_directory.parent().unwrap_or(server_directory).join("snapshots")
}

/// The fingerprint of the cluster's authority; `None` where there is none yet.
pub fn cluster(pki: &Path) -> Result<Option<String>> {
    let Some(certificate_pem) = pki::files::read(&pki.join("ca.crt"))? else { return Ok(None) };
    let issued = pki::Issued { certificate_pem, key_pem: String::new(), authority_pem: String::new() };
    Ok(Some(pki::authority::fingerprint(&issued.certificate()?)))
}

/// What is told of a snapshot beside the store's content.
pub fn origin(backend: &Backend, pki: &Path) -> Result<Origin> {
    let cluster =
        cluster(pki)?.with_context(|| format!("there is no ca.crt in {}; say where the cluster's keys are with --pki-dir", pki.display()))?;
    Ok(Origin {
        cluster,
        store: match backend {
            Backend::Sqlite(_) => "sqlite",
            Backend::Etcd(_) => "etcd",
        }
        .into(),
        regent: env!("CARGO_PKG_VERSION").into(),
        created_at_s: backup::now_s(),
        files: files::collect(pki, &bundle::FILES)?,
    })
}

/// Opens the store for reading alone, beside whoever runs on it.
pub async fn open_reading(backend: &Backend) -> Result<Arc<dyn Store>> {
    Ok(match backend {
        Backend::Sqlite(directory) => Arc::new(Sqlite::open_reading(directory)?),
        Backend::Etcd(files) => {
            let etcd = Etcd::connect(files.config()?).await?;
            etcd.revision().await.with_context(|| format!("asking etcd at {}", files.endpoints.join(",")))?;
            Arc::new(etcd)
        }
    })
}

/// The name by which this machine's snapshots are told apart.
pub fn node_name() -> String {
    crate::runtime::host_name().replace(['/', '.'], "-")
}

/// Takes a snapshot of an open store into a file, and copies it to the bucket.
pub async fn take(store: &dyn Store, origin: &Origin, file: &Path, secret: Option<&Secret>, bucket: Option<&Bucket>) -> Result<Status> {
    let status = snapshot::save(store, origin, file, secret).await.with_context(|| format!("saving {}", file.display()))?;
    if let Some(bucket) = bucket {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        bucket.put(&name, file).await.with_context(|| format!("{} is saved, but not copied", file.display()))?;
    }
    Ok(status)
}

/// Takes snapshots by the clock until the shutdown. Fails at once if the flags cannot be used.
pub fn start_schedule(
    flags: &ScheduleFlags,
    store: Arc<dyn Store>,
    backend: &Backend,
    pki: Option<PathBuf>,
    shutdown: CancellationToken,
) -> Result<()> {
    let Some(schedule) = &flags.snapshot_schedule else { return Ok(()) };
    let schedule = api::cron::Schedule::parse(schedule, None).with_context(|| format!("--snapshot-schedule {schedule:?}"))?;
    let Some(pki) = pki else { bail!("--snapshot-schedule needs --pki-dir: a snapshot without the cluster's keys is of little use") };
    let place = match (&flags.snapshot_dir, backend) {
        (Some(place), _) => place.clone(),
        (None, Backend::Sqlite(store)) => default_directory(store.parent().unwrap_or(store)),
        (None, Backend::Etcd(_)) => default_directory(pki.parent().unwrap_or(&pki)),
    };
    let (secret, bucket, retention) = (flags.secret.secret()?, flags.bucket.bucket()?.map(Arc::new), flags.snapshot_retention.max(1));
    directory::create(&place)?;
    let backend = backend.clone();
    let node = node_name();
    let take_one = move || {
        let (store, place, secret, bucket) = (store.clone(), place.clone(), secret.clone(), bucket.clone());
        let (backend, pki, node) = (backend.clone(), pki.clone(), node.clone());
        async move {
            let work = async {
                let origin = origin(&backend, &pki)?;
                let file = place.join(directory::name(Reason::Schedule, &node, origin.created_at_s));
                let status = take(&*store, &origin, &file, secret.as_ref(), bucket.as_deref()).await?;
                let gone = directory::prune(&place, &node, retention)?;
                if let Some(bucket) = &bucket {
                    bucket.prune(&node, retention).await?;
                }
                anyhow::Ok(format!(
                    "snapshot {}: revision {}, {} keys; {} old ones removed",
                    file.display(),
                    status.header.revision,
                    status.summary.keys,
                    gone.len()
                ))
            };
            work.await.map_err(|error| format!("{error:#}"))
        }
    };
    tokio::spawn(backup::schedule::run(schedule, jiff::Timestamp::now, take_one, shutdown));
    Ok(())
}

/// How often a running server looks whether its store is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks after the store of a running server until the shutdown: what is wrong is said once, and stays in `Store::trouble`.
pub async fn look_after(store: Arc<dyn Store>, thoroughly_every: Duration, shutdown: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::select! { () = shutdown.cancelled() => return, _ = look.tick() => {} }
        let due = !thoroughly_every.is_zero() && last.elapsed() >= thoroughly_every;
        if due {
            last = tokio::time::Instant::now();
        }
        // What it finds is in the store's own trouble, which readiness and every call report.
        if let Err(error) = store.check(if due { Depth::Thorough } else { Depth::Quick }).await {
            tracing::debug!(%error, "the store was looked at");
        }
    }
}
