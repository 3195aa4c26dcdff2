//! The API server's flags about who asks and what is written of it: OpenID Connect, front proxies, the audit log. Kubernetes' names.

use crate::commands::apiserver::read;
use anyhow::{Context, Result, bail};
use apiserver::{
    Config, audit,
    authentication::{front_proxy, oidc},
};
use clap::Args;
use std::{path::PathBuf, sync::Arc, time::Duration};

#[derive(Args, Clone, Debug, Default)]
pub struct SecurityFlags {
    /// What is written of which request: a Policy of audit.k8s.io/v1. Needs --audit-log-path.
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where it is written; `-` is the standard output.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// How it is written: json, one event a line.
    #[arg(long, default_value = "json", value_parser = ["json"])]
    audit_log_format: String,
    /// Days for which old audit logs are kept; 0: for ever.
    #[arg(long, default_value_t = 0)]
    audit_log_maxage: u64,
    /// Old audit logs that are kept; 0: all.
    #[arg(long, default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes after which a new audit log is begun; 0: 100.
    #[arg(long, default_value_t = 0)]
    audit_log_maxsize: u64,

    /// The authority that has signed the certificates of front proxies, which say in headers who asks, and of this server as the
    /// front proxy of aggregated API servers [default: the cluster's own front-proxy authority].
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; empty: any certificate of their authority.
    #[arg(long, value_delimiter = ',', default_value = "front-proxy-client")]
    requestheader_allowed_names: Vec<String>,
    /// Headers that name the user; the first that is there counts.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-User")]
    requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Uid")]
    requestheader_uid_headers: Vec<String>,
    /// Headers with the user's groups.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Group")]
    requestheader_group_headers: Vec<String>,
    /// What headers with further facts about the user begin with.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Extra-")]
    requestheader_extra_headers_prefix: Vec<String>,

    /// How long a server that is asked to stop goes on answering after it has said that it is not ready.
    #[arg(long, default_value = "0s", value_parser = crate::commands::election::duration)]
    shutdown_delay_duration: Duration,

    /// Issuers whose tokens are credentials, how users are read from them, and where anonymous requests may go: an
    /// AuthenticationConfiguration.
    #[arg(long, value_name = "FILE", conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// An OpenID Connect issuer whose tokens are credentials: https://...
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// The audience that its tokens must have.
    #[arg(long, requires = "oidc_issuer_url")]
    oidc_client_id: Option<String>,
    /// The claim that names the user.
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// Put before users' names; `-`: nothing [default: the issuer and #, unless the claim is email].
    #[arg(long)]
    oidc_username_prefix: Option<String>,
    /// The claim with the user's groups.
    #[arg(long, default_value = "")]
    oidc_groups_claim: String,
    /// Put before groups' names.
    #[arg(long, default_value = "")]
    oidc_groups_prefix: String,
    /// The authorities that have signed the issuer's certificate [default: those that the machine trusts].
    #[arg(long, value_name = "FILE")]
    oidc_ca_file: Option<PathBuf>,
    /// A claim that tokens must have, as CLAIM=VALUE; may be said again.
    #[arg(long, value_delimiter = ',', value_name = "CLAIM=VALUE")]
    oidc_required_claim: Vec<String>,
    /// What tokens may be signed with.
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
}

impl SecurityFlags {
    /// Writes them into the server's configuration.
    pub fn configure(&self, config: &mut Config) -> Result<()> {
        if let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) {
            let log = audit::Settings {
                path: path.clone(),
                age_days_max: self.audit_log_maxage,
                backups_max: self.audit_log_maxbackup,
                size_megabytes_max: self.audit_log_maxsize,
            };
            config.audit = Some(audit::Config { policy: read(policy)?, log });
        }
        let authority = match &self.requestheader_client_ca_file {
            Some(file) => Some(read(file)?),
            None => config.aggregation.authority_pem.clone(),
        };
        config.authentication.front_proxy = authority.map(|authorities_pem| front_proxy::Config {
            authorities_pem,
            allowed_names: self.requestheader_allowed_names.clone(),
            username_headers: self.requestheader_username_headers.clone(),
            uid_headers: self.requestheader_uid_headers.clone(),
            group_headers: self.requestheader_group_headers.clone(),
            extra_headers_prefixes: self.requestheader_extra_headers_prefix.clone(),
        });
        if let (Some(url), Some(client)) = (&self.oidc_issuer_url, &self.oidc_client_id) {
            let flags = oidc::Flags {
                issuer_url: url.clone(),
                client_id: client.clone(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone(),
                authorities_pem: self.oidc_ca_file.as_deref().map(read).transpose()?.unwrap_or_default(),
                required_claims: self.oidc_required_claim.clone(),
                signing_algorithms: self.oidc_signing_algs.clone(),
            };
            config.authentication.oidc = vec![Arc::new(flags.settings().map_err(anyhow::Error::msg)?)];
        }
        if let Some(file) = &self.authentication_config {
            let parsed = oidc::parse(&read(file)?).map_err(anyhow::Error::msg);
            let (issuers, anonymous) = parsed.with_context(|| format!("--authentication-config {}", file.display()))?;
            if issuers.iter().any(|issuer| issuer.url == config.authentication.service_account_issuer) {
                bail!("--authentication-config {}: the issuer of service account tokens is this server itself", file.display());
            }
            config.authentication.oidc = issuers.into_iter().map(Arc::new).collect();
            if let Some(anonymous) = anonymous {
                config.authentication.anonymous = anonymous.enabled;
                config.authentication.anonymous_paths = anonymous.paths;
            }
        }
        config.shutdown_delay = self.shutdown_delay_duration;
        Ok(())
    }
}
