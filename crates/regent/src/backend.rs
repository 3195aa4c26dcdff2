//! Which store this process uses, and opening it: SQLite in a directory, or etcd behind a list of addresses.

use anyhow::{Context, Result, bail};
use clap::Args;
use pki::reload::CertificateFiles;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};
use store::{Store, etcd::Etcd, sqlite::Sqlite};
use tokio_util::sync::CancellationToken;

/// Pause between two attempts to reach etcd when a server starts.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// How often the files of the certificate for etcd are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where an etcd is that is not run by this server.
#[derive(Args, Clone, Debug, Default)]
pub struct EtcdFlags {
    /// The members of etcd, as https://ADDRESS:2379,... The first that answers is asked.
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub etcd_servers: Vec<String>,
    /// The authority that has signed etcd's certificates.
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// This server's certificate as a client of etcd.
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
}

impl EtcdFlags {
    /// The files, which must all be said; `None` if no etcd was named.
    pub fn files(&self) -> Result<Option<EtcdFiles>> {
        if self.etcd_servers.is_empty() {
            return Ok(None);
        }
        let given =
            |file: &Option<PathBuf>, flag: &str| file.clone().with_context(|| format!("--etcd-servers needs {flag}: etcd is spoken to by TLS only"));
        if let Some(url) = self.etcd_servers.iter().find(|url| !url.starts_with("https://")) {
            bail!("--etcd-servers {url}: etcd is spoken to by TLS only; say https://ADDRESS:2379");
        }
        Ok(Some(EtcdFiles {
            endpoints: self.etcd_servers.clone(),
            authority: given(&self.etcd_cafile, "--etcd-cafile")?,
            certificate: given(&self.etcd_certfile, "--etcd-certfile")?,
            key: given(&self.etcd_keyfile, "--etcd-keyfile")?,
        }))
    }
}

/// How to reach an etcd: its members, and the files with which to prove oneself to it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdFiles {
    pub endpoints: Vec<String>,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl EtcdFiles {
    /// What the store is told.
    pub fn config(&self) -> Result<store::etcd::Config> {
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        Ok(store::etcd::Config {
            endpoints: self.endpoints.clone(),
            ca_pem: Some(read(&self.authority)?),
            certificate_pem: Some(read(&self.certificate)?),
            key_pem: Some(read(&self.key)?),
            ..store::etcd::Config::default()
        })
    }
}

/// A store, closed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In this directory.
    Sqlite(PathBuf),
    Etcd(EtcdFiles),
}

impl Backend {
    /// What the flags say, or SQLite in the server's directory.
    pub fn of(flags: &EtcdFlags, server_directory: &Path) -> Result<Backend> {
        Ok(match flags.files()? {
            Some(files) => Backend::Etcd(files),
            None => Backend::Sqlite(sqlite_directory(server_directory)),
        })
    }

    /// Opens it. An etcd that does not answer yet is waited for, until the shutdown.
    pub async fn open(&self, shutdown: &CancellationToken) -> Result<Arc<dyn Store>> {
        match self {
            Backend::Sqlite(directory) => {
                // Between a restore's begin and its end there is no whole store.
                backup::restore::check_finished(directory.parent().unwrap_or(directory))?;
                let store = Sqlite::open(directory).with_context(|| format!("opening the store in {}", directory.display()))?;
                Ok(Arc::new(store))
            }
            Backend::Etcd(files) => {
                let config = files.config()?;
                loop {
                    let error = match connect(config.clone()).await {
                        Ok(store) => {
                            tokio::spawn(follow_files(Arc::downgrade(&store), files.clone(), shutdown.clone()));
                            return Ok(store);
                        }
                        Err(error @ store::Error::Unavailable(_)) => error,
                        Err(error) => return Err(anyhow::Error::from(error).context("opening etcd")),
                    };
                    tracing::warn!(endpoints = files.endpoints.join(","), %error, "etcd does not answer yet; it is asked again");
                    tokio::select! {
                        () = shutdown.cancelled() => bail!("asked to stop before etcd answered: {error}"),
                        () = tokio::time::sleep(RETRY_EVERY) => {}
                    }
                }
            }
        }
    }
}

async fn connect(config: store::etcd::Config) -> Result<Arc<Etcd>, store::Error> {
    let store = Etcd::connect(config).await?;
    store.revision().await?;
    Ok(Arc::new(store))
}

/// Gives the store the certificate that its files hold, whenever they hold another one, for as long as there is the store.
async fn follow_files(store: Weak<Etcd>, files: EtcdFiles, shutdown: CancellationToken) {
    let Ok(certificate) = CertificateFiles::open(&files.certificate, &files.key, "") else { return };
    let mut used = certificate.current();
    loop {
        tokio::select! { () = shutdown.cancelled() => return, () = tokio::time::sleep(LOOK_EVERY) => {} }
        let now = certificate.current();
        if Arc::ptr_eq(&used, &now) {
            continue;
        }
        let Some(store) = store.upgrade() else { return };
        match files.config().and_then(|config| Ok(store.reconfigure(config)?)) {
            Ok(()) => {
                tracing::info!("the certificate for etcd has been renewed, and is used from now on");
                used = now;
            }
            Err(error) => tracing::warn!("the renewed certificate for etcd cannot be used yet; the one before is: {error:#}"),
        }
    }
}

/// Where a server without etcd keeps its objects.
pub fn sqlite_directory(server_directory: &Path) -> PathBuf {
    server_directory.join("store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_needs_all_its_files_and_tls() {
        let mut flags = EtcdFlags::default();
        assert_eq!(Backend::of(&flags, Path::new("/d")).unwrap(), Backend::Sqlite("/d/store".into()));
        flags.etcd_servers = vec!["https://10.0.0.1:2379".into()];
        assert!(flags.files().unwrap_err().to_string().contains("--etcd-cafile"));
        (flags.etcd_cafile, flags.etcd_certfile, flags.etcd_keyfile) = (Some("/ca".into()), Some("/c".into()), Some("/k".into()));
        assert!(matches!(Backend::of(&flags, Path::new("/d")).unwrap(), Backend::Etcd(files) if files.key == Path::new("/k")));
        flags.etcd_servers = vec!["http://10.0.0.1:2379".into()];
        assert!(flags.files().unwrap_err().to_string().contains("TLS only"));
    }
}
