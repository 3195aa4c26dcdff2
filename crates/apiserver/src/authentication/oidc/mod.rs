//! Tokens of OpenID Connect issuers.
//!
//! An issuer's discovery document and keys are fetched over TLS when its first token comes, and again when a token names a key that
//! is not known, but never more often than [`REFRESH_PAUSE`], and by one request at a time for all who wait. What a token's
//! signature was found to be is remembered until it expires. [`settings`] reads the configuration, [`mapping`] makes users of claims.
//!
//! What must stay true: a token whose issuer is not configured is none of this room's; no answer of an issuer is unbounded.

mod mapping;
mod settings;

pub use settings::{Anonymous, Flags, IssuerSettings, parse};

use super::remembered::{Fingerprint, Remembered, fingerprint};
use crate::{Body, User, body};
use api::Value;
use arc_swap::ArcSwapOption;
use http::{Request, header};
use hyper_util::rt::TokioIo;
use pki::oidc::{Keys, peek};
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::Mutex, time::Instant};
use tokio_rustls::TlsConnector;

/// How long an issuer may take for one answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an issuer's answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How long an issuer is left alone after its keys were asked for, whatever it answered.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);

/// The issuers that are trusted.
#[derive(Default)]
pub struct Issuers(Vec<Issuer>);

struct Issuer {
    settings: Arc<IssuerSettings>,
    keys: ArcSwapOption<Keys>,
    /// When the keys were last asked for.
    asked: Mutex<Option<Instant>>,
    verified: Remembered<(User, i64)>,
}

impl Issuers {
    pub fn new(settings: Vec<Arc<IssuerSettings>>) -> Issuers {
        let issuer = |settings| Issuer { settings, keys: ArcSwapOption::empty(), asked: Mutex::default(), verified: Remembered::default() };
        Issuers(settings.into_iter().map(issuer).collect())
    }

    /// Sees to it that the keys for a token are here, if its issuer has them.
    ///
    /// Answers whether the token is of an issuer here at all.
    pub async fn prepare(&self, token: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let Some(says) = peek(token) else { return false };
        let Some(issuer) = self.0.iter().find(|issuer| issuer.settings.url == says.issuer) else { return false };
        let known = || issuer.keys.load().as_ref().is_some_and(|keys| keys.has(&says.key_id));
        if known() {
            return true;
        }
        let mut asked = issuer.asked.lock().await;
        // Whoever was before us may have fetched it.
        if known() || asked.is_some_and(|asked| asked.elapsed() < REFRESH_PAUSE) {
            return true;
        }
        *asked = Some(Instant::now());
        match fetch_keys(&issuer.settings).await {
            Ok(keys) => issuer.keys.store(Some(Arc::new(keys))),
            Err(why) => tracing::warn!(issuer = issuer.settings.url, why, "the keys of a token issuer could not be fetched"),
        }
        true
    }

    /// Who holds a token; `None` if it is of no issuer here.
    pub fn authenticate(&self, token: &str, now_unix_s: i64) -> Option<Result<User, String>> {
        if self.0.is_empty() {
            return None;
        }
        let key = fingerprint(token.as_bytes());
        if let Some(known) = self.0.iter().find_map(|issuer| issuer.verified.get(&key).filter(|known| now_unix_s < known.1)) {
            return Some(Ok(known.0.clone()));
        }
        let says = peek(token)?;
        let issuer = self.0.iter().find(|issuer| issuer.settings.url == says.issuer)?;
        Some(issuer.check(token, key, now_unix_s).map_err(|why| format!("oidc: {why}")))
    }
}

impl Issuer {
    fn check(&self, token: &str, key: Fingerprint, now_unix_s: i64) -> Result<User, String> {
        let keys = self.keys.load_full().ok_or_else(|| format!("the keys of {} are not known yet; see this server's log", self.settings.url))?;
        let claims = keys.verify(token, &self.settings.algorithms, now_unix_s).map_err(|error| error.to_string())?;
        let user = self.settings.mapping.user(&claims)?;
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() as i64;
        Ok(self.verified.put(key, (user, expires)).0.clone())
    }
}

async fn fetch_keys(settings: &IssuerSettings) -> Result<Keys, String> {
    let discovery = match settings.discovery_url.as_str() {
        "" => format!("{}/.well-known/openid-configuration", settings.url.trim_end_matches('/')),
        url => url.to_string(),
    };
    let text = fetch(&discovery, &settings.authorities_pem).await.map_err(|why| format!("{discovery}: {why}"))?;
    let document: Value = serde_json::from_str(&text).map_err(|error| format!("{discovery}: the answer is no JSON: {error}"))?;
    let text_of = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    if text_of("issuer") != settings.url {
        return Err(format!("{discovery}: it is the document of {:?}, not of {:?}", text_of("issuer"), settings.url));
    }
    let place = text_of("jwks_uri");
    let set = fetch(place, &settings.authorities_pem).await.map_err(|why| format!("{place}: {why}"))?;
    Keys::parse(&set).map_err(|error| format!("{place}: {error}"))
}

/// GETs a document over TLS.
async fn fetch(url: &str, authorities_pem: &str) -> Result<String, String> {
    let uri: http::Uri = url.parse().map_err(|_| "this is no URL".to_string())?;
    let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err("this is no https URL".into()) };
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let asked = async {
        let tls = pki::tls::client(authorities_pem, None).map_err(|error| format!("its authorities cannot be used: {error}"))?;
        let tcp = TcpStream::connect((bare.as_str(), uri.port_u16().unwrap_or(443))).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(bare.clone()).map_err(|_| format!("{bare:?} is not a name that can be certified"))?;
        let io = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| format!("tls: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        let running = tokio::spawn(connection);
        let authority = uri.authority().map_or(host, |authority| authority.as_str());
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .body(body::empty())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let code = response.status();
        let read = body::read(Body::new(response.into_body()), ANSWER_BYTES_MAX).await.map_err(|error| error.to_string());
        running.abort();
        if !code.is_success() {
            return Err(format!("it answered {code}"));
        }
        String::from_utf8(read?.to_vec()).map_err(|_| "the answer is no text".into())
    };
    tokio::time::timeout(FETCH_TIMEOUT, asked).await.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs())))
}
