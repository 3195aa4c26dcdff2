//! Who asks: front proxies, certificates, bearer tokens, impersonation.
//!
//! A request is asked for credentials in a fixed order: a front proxy's word, client certificate, then bearer token (static,
//! service account, bootstrap, OpenID Connect). The first that knows the caller wins. Credentials that nobody accepts are 401; no credentials at all is the
//! anonymous user, if that is allowed. Signatures are checked once per certificate and token and remembered
//! ([`remembered`]); whether account and bound object still exist is looked up every time.

mod bootstrap_tokens;
pub mod certificates;
pub mod front_proxy;
pub mod impersonation;
pub mod oidc;
mod remembered;
pub mod service_accounts;
mod static_tokens;

pub use impersonation::impersonate;
pub use static_tokens::StaticToken;

use crate::encode::respond;
use crate::{Body, Error, Server, User, body};
use api::{Status, request::RequestInfo};
use http::{Response, StatusCode};
use pki::ServiceAccountKeys;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;

/// The issuer and audience of service account tokens in a cluster with the default domain.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The group of everyone whom an authenticator knows.
pub const AUTHENTICATED_GROUP: &str = "system:authenticated";
/// The group of everyone else.
pub const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";

/// Where identities come from.
#[derive(Clone)]
pub struct Config {
    /// The authorities (PEM) whose client certificates are trusted; without, certificates say nothing.
    pub client_authorities_pem: Option<String>,
    /// What signs and checks service account tokens. Without, the server makes itself a key that lives as long as it does.
    pub service_account_keys: Option<Arc<ServiceAccountKeys>>,
    pub service_account_issuer: String,
    /// Audiences that make a token one for this API server; by default the issuer.
    pub audiences: Vec<String>,
    /// Whether a request without credentials is let through as `system:anonymous`.
    pub anonymous: bool,
    /// Whether bootstrap tokens (Secrets in kube-system) are credentials.
    pub bootstrap_tokens: bool,
    /// The only paths that are open to it; empty: all.
    pub anonymous_paths: Vec<String>,
    /// Proxies that say who asks.
    pub front_proxy: Option<front_proxy::Config>,
    /// Issuers of OpenID Connect whose tokens are credentials.
    pub oidc: Vec<Arc<oidc::IssuerSettings>>,
    /// The content of a `--token-auth-file`.
    pub static_tokens: Vec<StaticToken>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            client_authorities_pem: None,
            service_account_keys: None,
            service_account_issuer: DEFAULT_ISSUER.into(),
            audiences: vec![],
            anonymous: true,
            anonymous_paths: vec![],
            front_proxy: None,
            oidc: vec![],
            bootstrap_tokens: true,
            static_tokens: vec![],
        }
    }
}

/// The authenticators in the order they are asked.
pub struct Authenticators {
    front_proxy: Option<front_proxy::FrontProxy>,
    certificates: Option<certificates::Certificates>,
    static_tokens: static_tokens::StaticTokens,
    pub(crate) service_accounts: service_accounts::ServiceAccounts,
    bootstrap_tokens: bool,
    oidc: oidc::Issuers,
    anonymous: bool,
    anonymous_paths: Vec<String>,
}

impl Authenticators {
    pub fn new(config: &crate::Config) -> Result<Authenticators, Error> {
        let config = &config.authentication;
        let unusable = |error: pki::Error| Error::Configuration(error.to_string());
        let certificates = config.client_authorities_pem.as_deref().map(certificates::Certificates::new).transpose().map_err(unusable)?;
        let keys = match &config.service_account_keys {
            Some(keys) => keys.clone(),
            None => Arc::new(ServiceAccountKeys::generate().map_err(unusable)?),
        };
        let front_proxy = config.front_proxy.as_ref().map(front_proxy::FrontProxy::new).transpose().map_err(Error::Configuration)?;
        Ok(Authenticators {
            front_proxy,
            certificates,
            static_tokens: static_tokens::StaticTokens::new(&config.static_tokens),
            service_accounts: service_accounts::ServiceAccounts::new(keys, &config.service_account_issuer, &config.audiences),
            bootstrap_tokens: config.bootstrap_tokens,
            oidc: oidc::Issuers::new(config.oidc.clone()),
            anonymous: config.anonymous,
            anonymous_paths: config.anonymous_paths.clone(),
        })
    }
}

/// What a bearer token says.
#[derive(Debug)]
pub struct TokenAnswer {
    pub user: User,
    /// Those of the wanted audiences that the token is for.
    pub audiences: Vec<String>,
}

/// Finds out who asks. No credentials at all is the anonymous user; wrong ones are 401.
pub async fn authenticate(server: &Server, parts: &http::request::Parts, peer: Option<&[CertificateDer<'static>]>) -> Result<User, Status> {
    let authenticators = &server.authenticators;
    let mut wrong = false;
    if let (Some(front_proxy), Some(chain)) = (&authenticators.front_proxy, peer)
        && let Some(said) = front_proxy.authenticate(chain, &parts.headers, pki::now_unix_s())
    {
        match said {
            Ok(user) => return Ok(authenticated(user)),
            Err(error) => {
                tracing::debug!(%error, "a front proxy was not believed");
                wrong = true;
            }
        }
    }
    if let (Some(certificates), Some(chain)) = (&authenticators.certificates, peer.filter(|chain| !chain.is_empty())) {
        match certificates.authenticate(chain, pki::now_unix_s()) {
            Ok(user) => return Ok(authenticated(user)),
            Err(error) => {
                tracing::debug!(%error, "a client certificate was refused");
                wrong = true;
            }
        }
    }
    if let Some(token) = bearer_token(parts) {
        let mut known = authenticate_token(server, token, &[]);
        // What the token speaks of may have been made a moment ago, by another server.
        let ours = known.as_ref().is_err_and(|errors| errors.len() > 1) || pki::JoinToken::parse(token).is_ok();
        if known.is_err() && ours && server.cache.fresh().await.is_ok() {
            known = authenticate_token(server, token, &[]);
        }
        if known.is_err() && authenticators.oidc.prepare(token).await {
            known = authenticate_token(server, token, &[]);
        }
        match known {
            Ok(answer) => return Ok(answer.user),
            Err(errors) => {
                tracing::debug!(?errors, "a bearer token was refused");
                wrong = true;
            }
        }
    }
    let open = || authenticators.anonymous_paths.is_empty() || authenticators.anonymous_paths.iter().any(|path| path == parts.uri.path());
    match wrong || !authenticators.anonymous || !open() {
        true => Err(Status::unauthorized()),
        false => Ok(User::anonymous()),
    }
}

/// Who holds a bearer token. `audiences` are the wanted ones, or empty for this API server's own. The errors are what the
/// authenticators said of a token that is theirs but not good.
pub fn authenticate_token(server: &Server, token: &str, audiences: &[String]) -> Result<TokenAnswer, Vec<String>> {
    let authenticators = &server.authenticators;
    let own = authenticators.service_accounts.audiences();
    let wanted = if audiences.is_empty() { own } else { audiences };
    // Static and bootstrap tokens are for this API server, whatever they are asked for.
    let for_this_server = || wanted.iter().filter(|audience| own.contains(audience)).cloned().collect::<Vec<_>>();
    let mut errors = vec!["invalid bearer token".to_string()];
    let found = match authenticators.static_tokens.authenticate(token) {
        Some(user) => Some((user, for_this_server())),
        None => match authenticators.service_accounts.authenticate(server, token, wanted, pki::now_unix_s()) {
            Some(Ok(answer)) => Some(answer),
            Some(Err(error)) => {
                errors.push(error);
                None
            }
            None => {
                let bootstrap = authenticators.bootstrap_tokens.then(|| bootstrap_tokens::authenticate(server, token)).flatten();
                match (bootstrap, &authenticators.oidc) {
                    (Some(user), _) => Some((user, for_this_server())),
                    (None, oidc) => match oidc.authenticate(token, pki::now_unix_s()) {
                        Some(Ok(user)) => Some((user, for_this_server())),
                        Some(Err(error)) => {
                            errors.push(error);
                            None
                        }
                        None => None,
                    },
                }
            }
        },
    };
    match found {
        Some((user, audiences)) if !audiences.is_empty() => Ok(TokenAnswer { user: authenticated(user), audiences }),
        _ => Err(errors),
    }
}

/// Sees to it that a token's keys are here, where it is of an issuer whose keys are fetched.
pub async fn prepare_token(server: &Server, token: &str) {
    server.authenticators.oidc.prepare(token).await;
}

/// The paths at which others learn how to check service account tokens (OpenID Connect discovery).
pub fn serve(server: &Server, info: &RequestInfo, _request: &http::Request<Body>) -> Option<Response<Body>> {
    let service_accounts = &server.authenticators.service_accounts;
    let (content_type, document) = match (info.verb.as_str(), info.path.as_str()) {
        ("get" | "head", "/.well-known/openid-configuration") => {
            let place = std::net::SocketAddr::new(server.config.advertise_address, server.config.secure_port);
            let keys_url = format!("https://{place}/openid/v1/jwks");
            ("application/json", pki::jwt::openid_configuration(service_accounts.issuer(), &keys_url))
        }
        ("get" | "head", "/openid/v1/jwks") => ("application/jwk-set+json", service_accounts.keys().jwks()),
        _ => return None,
    };
    Some(respond(StatusCode::OK, content_type, body::full(document.to_string())))
}

/// The token of an `Authorization: Bearer` header. Other schemes and odd shapes are as if there were none.
fn bearer_token(parts: &http::request::Parts) -> Option<&str> {
    let header = parts.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.trim();
    let mut words = header.splitn(3, ' ');
    let scheme = words.next()?;
    words.next().filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// What a client is told whose `Authorization` header looks like a bearer token and is none.
pub fn ignored_header(headers: &http::HeaderMap) -> Option<&'static str> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = header.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && rest.starts_with(' '))
        .then_some("the provided Authorization header contains extra space before the bearer token, and is ignored")
}

/// Puts a known user into the group of those.
fn authenticated(mut user: User) -> User {
    if user.name != "system:anonymous" && !user.in_group(AUTHENTICATED_GROUP) && !user.in_group(UNAUTHENTICATED_GROUP) {
        user.groups.push(AUTHENTICATED_GROUP.into());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_bearer_header_is_a_token() {
        let check = |header: &str, expected: Option<&str>| {
            let request = http::Request::builder().header("Authorization", header).body(()).unwrap();
            assert_eq!(bearer_token(&request.into_parts().0), expected, "{header}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer abc", Some("abc"));
        check("BEARER abc more", Some("abc"));
        check("Bearer", None);
        check("Bearer  abc", None);
        check("Basic abc", None);
        check("", None);
    }

    #[test]
    fn the_group_of_known_users_is_added_once() {
        assert_eq!(authenticated(User::new("jane", &["devs"])).groups, ["devs", AUTHENTICATED_GROUP]);
        assert_eq!(authenticated(User::new("jane", &[AUTHENTICATED_GROUP])).groups, [AUTHENTICATED_GROUP]);
    }
}
