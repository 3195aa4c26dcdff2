//! `regent token`: the tokens with which nodes join. They are Secrets in kube-system, as kubeadm keeps them.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use pki::{Issued, JoinToken};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a new cluster may take to publish its authority.
const AUTHORITY_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Token {
    /// The administrator's kubeconfig.
    #[arg(long, global = true, env = "KUBECONFIG", default_value = "/var/lib/regent/admin.kubeconfig")]
    kubeconfig: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a token and print it.
    Create {
        /// How long it is good for; 0s means until it is deleted.
        #[arg(long, default_value = "24h", value_parser = super::election::duration)]
        ttl: Duration,
        #[arg(long, default_value = "")]
        description: String,
        /// A token with which a further server joins: whoever has it is given the cluster's keys.
        #[arg(long)]
        server: bool,
    },
    /// List the tokens that are good.
    List,
    /// Revoke a token, by its id or whole.
    Delete { token: String },
}

pub fn run(arguments: Token) -> Result<()> {
    crate::runtime::run(|_| async move {
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
        match arguments.action {
            Action::Create { ttl, description, server } => {
                let authority = authority_of(&client).await?;
                let token = JoinToken::generate(&authority);
                let expiration =
                    (!ttl.is_zero()).then(|| jiff::Timestamp::from_second(pki::now_unix_s()).map(|now| (now + ttl).to_string())).transpose()?;
                let group = if server { pki::join::SERVER_BOOTSTRAPPERS_GROUP } else { pki::join::NODE_BOOTSTRAPPERS_GROUP };
                let secret: Secret = serde_json::from_value(token.to_secret_for(group, &description, expiration.as_deref()))?;
                secrets.create(&PostParams::default(), &secret).await.context("keeping the token")?;
                println!("{token}");
            }
            Action::List => {
                let list = secrets.list(&ListParams::default().fields("type=bootstrap.kubernetes.io/token")).await?;
                println!("{:<8} {:<26} DESCRIPTION", "ID", "EXPIRES");
                for secret in list {
                    let field = |name: &str| {
                        let value = secret.data.as_ref().and_then(|data| data.get(name));
                        value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
                    };
                    let expires = field("expiration");
                    println!("{:<8} {:<26} {}", field("token-id"), if expires.is_empty() { "never" } else { &expires }, field("description"));
                }
            }
            Action::Delete { token } => {
                let id = token.rsplit("::").next().and_then(|t| t.split('.').next()).unwrap_or(&token).to_string();
                let name = format!("bootstrap-token-{id}");
                secrets.delete(&name, &DeleteParams::default()).await.with_context(|| format!("revoking the token {id}"))?;
                println!("The token {id} is revoked.");
            }
        }
        Ok(())
    })
}

/// The fingerprint of the cluster's authority, as the cluster publishes it.
async fn authority_of(client: &kube::Client) -> Result<String> {
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let deadline = tokio::time::Instant::now() + AUTHORITY_PATIENCE;
    let map = loop {
        match maps.get("kube-root-ca.crt").await {
            // The controllers of a cluster that has just begun publish it within seconds.
            Err(kube::Error::Api(status)) if status.code == 404 && tokio::time::Instant::now() < deadline => {}
            other => break other.context("reading the cluster's authority (ConfigMap kube-system/kube-root-ca.crt)")?,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let pem = map.data.as_ref().and_then(|data| data.get("ca.crt")).with_context(|| format!("{} has no ca.crt", map.name_any()))?;
    Ok(pki::authority::fingerprint(&Issued { certificate_pem: pem.clone(), key_pem: String::new(), authority_pem: String::new() }.certificate()?))
}

/// The server's own standing token, in a file that only root can read. Made at the first start.
pub async fn standing(server: &Arc<apiserver::Server>, directory: &Path, fingerprint: &str) -> Result<PathBuf> {
    let path = directory.join("token");
    let token = match pki::files::read(&path)? {
        Some(text) => JoinToken::parse(&text)?,
        None => {
            let token = JoinToken::generate(fingerprint);
            pki::files::replace(&path, &format!("{token}\n"), pki::files::Access::Private)?;
            token
        }
    };
    // The namespace is among the objects that a new server makes first.
    while !server.health.is_bootstrapped() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let secret = token.to_secret("the standing token of this server", None);
    match server.create_internal("", "secrets", "kube-system", secret).await {
        Ok(_) => {}
        Err(status) if status.reason == "AlreadyExists" => {}
        Err(status) => return Err(anyhow::Error::from(status).context("keeping the join token")),
    }
    Ok(path)
}
