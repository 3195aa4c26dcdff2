//! A proxy in front of this server that has authenticated the caller, and says in headers who that is.
//!
//! It is believed only with a client certificate of its own authority and one of the allowed names. Its headers say nothing in
//! any other request, and a certificate of that authority is no credential without them.

use crate::User;
use http::{HeaderMap, HeaderName};
use pki::tls::ClientVerifier;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;

/// Which proxies are believed, and where they say who asks.
#[derive(Clone, Debug)]
pub struct Config {
    /// What signed the proxies' certificates, PEM (`--requestheader-client-ca-file`).
    pub authorities_pem: String,
    /// Common names of the proxies; empty: every certificate of the authority (`--requestheader-allowed-names`).
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_headers_prefixes: Vec<String>,
}

impl Config {
    /// What Kubernetes' own tools set up, for this authority.
    pub fn new(authorities_pem: &str) -> Config {
        Config {
            authorities_pem: authorities_pem.into(),
            allowed_names: vec!["front-proxy-client".into()],
            username_headers: vec!["X-Remote-User".into()],
            uid_headers: vec!["X-Remote-Uid".into()],
            group_headers: vec!["X-Remote-Group".into()],
            extra_headers_prefixes: vec!["X-Remote-Extra-".into()],
        }
    }
}

/// Believes proxies.
pub struct FrontProxy {
    verifier: ClientVerifier,
    allowed_names: Vec<String>,
    username: Vec<HeaderName>,
    uid: Vec<HeaderName>,
    group: Vec<HeaderName>,
    extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// The error says what of the configuration cannot be used.
    pub fn new(config: &Config) -> Result<FrontProxy, String> {
        let names = |texts: &[String]| -> Result<Vec<HeaderName>, String> {
            texts.iter().map(|text| text.trim().parse().map_err(|_| format!("{text:?} is no name of a header"))).collect()
        };
        let username = names(&config.username_headers)?;
        if username.is_empty() {
            return Err("--requestheader-username-headers must name a header".into());
        }
        Ok(FrontProxy {
            verifier: ClientVerifier::new(&config.authorities_pem).map_err(|error| error.to_string())?,
            allowed_names: config.allowed_names.iter().filter(|name| !name.is_empty()).cloned().collect(),
            username,
            uid: names(&config.uid_headers)?,
            group: names(&config.group_headers)?,
            extra_prefixes: config.extra_headers_prefixes.iter().map(|prefix| prefix.trim().to_ascii_lowercase()).collect(),
        })
    }

    /// Who asks, as the proxy says; `None` if no proxy says anything, an error if one does that is not believed.
    pub fn authenticate(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap, now_unix_s: i64) -> Option<Result<User, pki::Error>> {
        let name = self.first(headers, &self.username)?;
        if chain.is_empty() {
            return None;
        }
        Some(self.verifier.verify(chain, now_unix_s).and_then(|subject| {
            if !self.allowed_names.is_empty() && !self.allowed_names.contains(&subject.common_name) {
                return Err(pki::Error::Untrusted(format!("{:?} is not among the names of front proxies", subject.common_name)));
            }
            let texts = |names: &[HeaderName]| -> Vec<String> {
                let values = names.iter().flat_map(|name| headers.get_all(name)).filter_map(|value| value.to_str().ok());
                values.filter(|value| !value.is_empty()).map(String::from).collect()
            };
            let uid = self.first(headers, &self.uid).unwrap_or_default();
            Ok(User { name, uid, groups: texts(&self.group), extra: self.extra(headers) })
        }))
    }

    fn first(&self, headers: &HeaderMap, names: &[HeaderName]) -> Option<String> {
        names.iter().find_map(|name| headers.get(name)?.to_str().ok().filter(|value| !value.is_empty()).map(String::from))
    }

    fn extra(&self, headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra.entry(api::request::percent_decode(key, false)).or_default().push(value.into());
            }
        }
        extra
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{Authority, Identity};

    #[test]
    fn a_proxy_with_its_certificate_is_believed_and_nobody_else() {
        let authority = Authority::generate("front-proxy-ca").unwrap();
        let other = Authority::generate("kubernetes").unwrap();
        let proxy = FrontProxy::new(&Config::new(authority.certificate_pem())).unwrap();
        let now = pki::now_unix_s();
        let mut headers = HeaderMap::new();
        let certificate = authority.issue(&Identity::front_proxy_client()).unwrap().certificate().unwrap();
        assert!(proxy.authenticate(std::slice::from_ref(&certificate), &headers, now).is_none(), "without a name it says nothing");
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "devs"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-acme.com%2fproject", "some"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let user = proxy.authenticate(std::slice::from_ref(&certificate), &headers, now).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
        assert_eq!(user.groups, ["devs", "ops"]);
        assert_eq!(user.extra["acme.com/project"], ["some"]);
        assert!(proxy.authenticate(&[], &headers, now).is_none(), "headers alone are nothing");
        let foreign = other.issue(&Identity::front_proxy_client()).unwrap().certificate().unwrap();
        assert!(proxy.authenticate(&[foreign], &headers, now).unwrap().is_err());
        let admin = authority.issue(&Identity::admin()).unwrap().certificate().unwrap();
        assert!(proxy.authenticate(std::slice::from_ref(&admin), &headers, now).unwrap().is_err(), "not one of the names");
        let mut config = Config::new(authority.certificate_pem());
        config.allowed_names.clear();
        assert!(FrontProxy::new(&config).unwrap().authenticate(&[admin], &headers, now).unwrap().is_ok());
    }
}
