//! A node's certificates while it runs: new ones before the old ones end, without a restart and without a pause.
//!
//! The client certificate lies in the kubeconfig, from which the API client takes it for every new connection. The serving
//! certificate goes through a channel to the node's API, which takes it for every new connection as well. Each is renewed
//! between 70 and 90 percent of its life, through the cluster's certificates API, with a new key that never leaves the node;
//! what cannot be renewed now is tried again, at growing pauses, and the one before is used meanwhile.
//!
//! A node that was off for longer than its certificate lived can only come back with a token: then it asks as it once joined.

use crate::join::{self, KUBELET_CLIENT, KUBELET_SERVING};
use anyhow::{Context, Result};
use node::Serving;
use pki::{
    Identity, Issued, JoinToken,
    files::{self, Access},
    rotation,
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at: somebody else may renew them as well.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause after an attempt that failed; doubled in between.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// What a node's certificates are, and where.
#[derive(Clone)]
pub struct Rotation {
    pub kubeconfig: PathBuf,
    /// Where the API is reached, if not where the kubeconfig says.
    pub server: Option<String>,
    pub serving_certificate: PathBuf,
    pub serving_key: PathBuf,
    pub name: String,
    pub address: IpAddr,
    /// For a certificate that has expired.
    pub token: Option<JoinToken>,
    /// Whether to renew the client certificate, and the serving certificate. What is not renewed here is still followed.
    pub renew_client: bool,
    pub renew_serving: bool,
}

impl Rotation {
    /// Starts, until the shutdown. The receiver has the serving certificate as soon as there is one.
    pub fn start(self, shutdown: CancellationToken) -> watch::Receiver<Option<Serving>> {
        let (sender, receiver) = watch::channel(None);
        if self.renew_client {
            let (own, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! { () = own.keep_client() => {} () = shutdown.cancelled() => {} }
            });
        }
        tokio::spawn(async move {
            tokio::select! { () = self.keep_serving(&sender) => {} () = shutdown.cancelled() => {} }
        });
        receiver
    }

    async fn keep_client(&self) {
        let mut pause = RETRY_FIRST;
        loop {
            match self.client_once().await {
                Ok(()) => {
                    pause = RETRY_FIRST;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!("the node's client certificate could not be renewed yet; the one before is used: {error:#}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    async fn client_once(&self) -> Result<()> {
        let Some(pem) = rotation::certificate_in(&self.kubeconfig)? else { return Ok(()) };
        let now = pki::now_unix_s();
        let held = certificate(&pem)?;
        if now < rotation::renew_at_unix_s(&held)? {
            return Ok(());
        }
        let (_, ends) = pki::identity::validity(&held)?;
        let identity = Identity::node(&self.name);
        let (_, key_pem) = pki::request::create(&identity)?;
        let issued = if now < ends {
            let certificate_pem = join::signed(&self.client().await?, &key_pem, &identity, KUBELET_CLIENT).await?;
            Issued { certificate_pem, key_pem, authority_pem: String::new() }
        } else {
            let (token, server) = (self.token.as_ref(), self.server.as_deref());
            let (token, server) = token.zip(server).context("it has expired; start the node with --token (`regent token create` prints one)")?;
            let directory = self.kubeconfig.parent().unwrap_or(Path::new("."));
            let authority_pem = files::read(&directory.join("ca.crt"))?.context("the cluster's authority is not kept here")?;
            join::client_with_token(server, &authority_pem, token, directory, &self.name, &key_pem).await?
        };
        rotation::replace_in(&self.kubeconfig, &issued)?;
        tracing::info!("the node's client certificate has been renewed");
        Ok(())
    }

    async fn client(&self) -> Result<kube::Client> {
        Ok(client::transport::from_kubeconfig_at(&self.kubeconfig, self.server.as_deref()).await?)
    }

    async fn keep_serving(&self, sender: &watch::Sender<Option<Serving>>) {
        let mut pause = RETRY_FIRST;
        loop {
            match self.serving_once(sender).await {
                Ok(()) => {
                    pause = RETRY_FIRST;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => {
                    let state = if sender.borrow().is_some() { "the one before is used" } else { "the node's API waits for it" };
                    tracing::warn!("no new certificate for the node's API yet; {state}: {error:#}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    async fn serving_once(&self, sender: &watch::Sender<Option<Serving>>) -> Result<()> {
        let kept = self.kept_serving()?;
        if let Some(kept) = &kept {
            sender.send_if_modified(|current| {
                let news = current.as_ref().is_none_or(|current| current.certificate_pem != kept.certificate_pem);
                if news {
                    *current = Some(kept.clone());
                }
                news
            });
            if !self.renew_serving || pki::now_unix_s() < rotation::renew_at_unix_s(&certificate(&kept.certificate_pem)?)? {
                return Ok(());
            }
        } else if !self.renew_serving {
            anyhow::bail!("{} and {} do not hold a certificate and its key", self.serving_certificate.display(), self.serving_key.display());
        }
        let identity = Identity::node_serving(&self.name, &[self.address]);
        let (_, key_pem) = pki::request::create(&identity)?;
        let certificate_pem = join::signed(&self.client().await?, &key_pem, &identity, KUBELET_SERVING).await?;
        files::replace(&self.serving_key, &key_pem, Access::Private)?;
        files::replace(&self.serving_certificate, &certificate_pem, Access::Public)?;
        tracing::info!("the certificate of the node's API has been renewed");
        sender.send_replace(Some(Serving { certificate_pem, key_pem }));
        Ok(())
    }

    /// What the two files hold, if they belong together.
    fn kept_serving(&self) -> Result<Option<Serving>> {
        let (Some(certificate_pem), Some(key_pem)) = (files::read(&self.serving_certificate)?, files::read(&self.serving_key)?) else {
            return Ok(None);
        };
        let issued = Issued { certificate_pem, key_pem, authority_pem: String::new() };
        Ok(pki::reload::certified(&issued).is_ok().then_some(Serving { certificate_pem: issued.certificate_pem, key_pem: issued.key_pem }))
    }
}

fn certificate(pem: &str) -> Result<rustls::pki_types::CertificateDer<'static>> {
    Ok(Issued { certificate_pem: pem.into(), key_pem: String::new(), authority_pem: String::new() }.certificate()?)
}
