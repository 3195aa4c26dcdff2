//! Encryption at rest, as the API server sees it: Kubernetes' EncryptionConfiguration read into rules for the store, and the
//! path at which an administrator looks at the keys and changes them.

use crate::{
    Body, Server,
    body::{self, full},
    connect::Answer,
    encode::respond,
    keys,
};
use api::{
    Status, Value,
    object::ObjectExt,
    request::RequestInfo,
    structure::{self, Encoding},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use store::encryption::{CbcKey, GcmKey, Provider, Providers, Rule, Rules, Source};

/// Where keys are looked at (GET) and changed (POST, `{"action": "rotate"}` or `{"action": "reencrypt"}`).
pub const PATH: &str = "/regent/v1/secrets-encryption";
/// The longest request to it, in bytes.
const REQUEST_BYTES_MAX: usize = 1024;

/// What is sealed when the user says nothing: names, and prefixes of keys in the store.
pub fn default_resources() -> Vec<(String, String)> {
    vec![("secrets".into(), keys::prefix("", "secrets"))]
}

/// A file with an EncryptionConfiguration.
pub struct FileSource {
    path: PathBuf,
}

impl FileSource {
    pub fn new(path: &Path) -> FileSource {
        FileSource { path: path.into() }
    }
}

impl Source for FileSource {
    fn load(&self) -> BoxFuture<'_, store::Result<Rules>> {
        Box::pin(async {
            let unusable = |why: String| store::Error::Undecryptable(format!("--encryption-provider-config {}: {why}", self.path.display()));
            let text = tokio::fs::read_to_string(&self.path).await.map_err(|error| unusable(error.to_string()))?;
            parse(&text).map_err(unusable)
        })
    }
    fn rotate(&self) -> Option<BoxFuture<'_, store::Result<String>>> {
        None
    }
    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// Reads an EncryptionConfiguration of apiserver.config.k8s.io/v1.
pub fn parse(text: &str) -> Result<Rules, String> {
    let configuration = structure::parse_object(text.as_bytes(), Encoding::Yaml)?;
    if configuration.kind() != "EncryptionConfiguration" || configuration.api_version() != "apiserver.config.k8s.io/v1" {
        return Err("it is no EncryptionConfiguration of apiserver.config.k8s.io/v1".into());
    }
    let mut rules = Vec::new();
    for (i, part) in configuration.list_at("resources").iter().enumerate() {
        let at = |why: String| format!("resources[{i}]: {why}");
        let providers = part.list_at("providers").iter().map(provider).collect::<Result<Vec<_>, _>>().map_err(at)?;
        if providers.is_empty() {
            return Err(at("it names no providers".into()));
        }
        let providers = Arc::new(Providers(providers));
        let names = part.list_at("resources");
        if names.is_empty() {
            return Err(at("it names no resources".into()));
        }
        for name in names {
            let name = name.as_str().ok_or_else(|| at("a resource's name is not a text".into()))?;
            let (prefix, deep) = place(name);
            rules.push(Rule { name: name.into(), prefix, deep, providers: providers.clone() });
        }
    }
    if rules.is_empty() { Err("it names no resources".into()) } else { Ok(Rules(rules)) }
}

/// Where the objects of a resource lie: `secrets`, `jobs.batch`, `*.batch`, `*.` (all of the core group), `*.*`.
fn place(name: &str) -> (String, bool) {
    match name.split_once('.') {
        None => (keys::prefix("", name), false),
        Some(("*", "*")) => (keys::ROOT.into(), true),
        Some(("*", group)) => (keys::prefix(group, "").trim_end_matches('/').to_string() + "/", true),
        Some((resource, group)) => (keys::prefix(group, resource), false),
    }
}

fn provider(provider: &Value) -> Result<Provider, String> {
    let named = |kind: &str| -> Result<Vec<(String, Vec<u8>)>, String> {
        let keys = provider.list_at(&format!("{kind}.keys"));
        if keys.is_empty() {
            return Err(format!("{kind} has no keys"));
        }
        let read = |key: &Value| {
            let name = key.str_at("name").unwrap_or_default().to_string();
            let secret = STANDARD.decode(key.str_at("secret").unwrap_or_default().trim());
            secret.map(|secret| (name.clone(), secret)).map_err(|error| format!("{kind}: the secret of key {name:?} is not base64: {error}"))
        };
        keys.iter().map(read).collect()
    };
    let kinds: Vec<&str> = provider.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
    let usable = |error: store::encryption::SealError| error.to_string();
    match kinds[..] {
        ["identity"] => Ok(Provider::Identity),
        ["aesgcm"] => {
            let keys = named("aesgcm")?.iter().map(|(name, secret)| GcmKey::new(name, secret)).collect::<Result<_, _>>().map_err(usable)?;
            Ok(Provider::AesGcm(keys))
        }
        ["aescbc"] => {
            let keys = named("aescbc")?.iter().map(|(name, secret)| CbcKey::new(name, secret)).collect::<Result<_, _>>().map_err(usable)?;
            Ok(Provider::AesCbc(keys))
        }
        [other] => Err(format!("the provider {other} is not known here; this server has aesgcm, aescbc and identity")),
        _ => Err("a provider must be exactly one of aesgcm, aescbc, identity".into()),
    }
}

/// Answers a request about the keys.
pub async fn answer(server: &Arc<Server>, info: &RequestInfo, request: Request<Body>) -> Answer {
    let Some(encryption) = &server.config.encryption else {
        return Err(Status::bad_request("nothing is encrypted here: this server has neither --pki-dir nor --encryption-provider-config"));
    };
    let failed = |error: store::Error| match error {
        error @ store::Error::Undecryptable(_) => Status::internal(error),
        other => crate::write::store_failure(other),
    };
    let answer = match info.verb.as_str() {
        "get" => {
            let usage = encryption.usage().await.map_err(failed)?;
            let of = |usage: &store::encryption::Usage| json!({"resource": usage.name, "writes": usage.writes, "reads": usage.reads, "stored": usage.stored});
            json!({"source": encryption.describe(), "resources": usage.iter().map(of).collect::<Vec<_>>()})
        }
        "post" => {
            let bytes = body::read(request.into_body(), REQUEST_BYTES_MAX).await.map_err(|error| Status::bad_request(error.to_string()))?;
            let asked = structure::parse_object(&bytes, Encoding::Json).map_err(Status::bad_request)?;
            match asked.str_at("action") {
                Some("rotate") => match encryption.rotate().await.map_err(failed)? {
                    Some(key) => json!({"key": key}),
                    None => {
                        let place = encryption.describe();
                        return Err(Status::bad_request(format!(
                            "the keys are in {place}: put the new one second there, on all servers; a minute later put it first; then reencrypt"
                        )));
                    }
                },
                Some("reencrypt") => {
                    let done = encryption.reencrypt().await.map_err(failed)?;
                    json!({"rewritten": done.rewritten, "current": done.current, "left": done.left})
                }
                _ => return Err(Status::bad_request("the action must be rotate or reencrypt")),
            }
        }
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(respond(StatusCode::OK, "application/json", full(answer.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_kubernetes_is_read() {
        let rules = parse(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, configmaps, pandas.awesome.bears.example]\n  providers:\n  - aesgcm:\n      keys:\n      - {name: key1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}\n      - {name: key2, secret: dGhpcyBpcyBwYXNzd29yZA==}\n  - identity: {}\n- resources: ['*.*']\n  providers:\n  - aescbc: {keys: [{name: key3, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n  - identity: {}\n",
        )
        .unwrap();
        let places: Vec<_> = rules.0.iter().map(|rule| (rule.prefix.as_str(), rule.providers.writes())).collect();
        assert_eq!(places[0], ("/registry/core/secrets/", "aesgcm:key1".to_string()));
        assert_eq!(places[2].0, "/registry/awesome.bears.example/pandas/");
        assert_eq!(places[3], ("/registry/", "aescbc:key3".to_string()));
        assert_eq!(place("*.batch"), ("/registry/batch/".into(), true));
        assert_eq!(place("*."), ("/registry/core/".into(), true));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let of = |providers: &str| {
            parse(&format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: [{providers}]}}]"
            ))
            .err()
            .unwrap()
        };
        assert!(of("{secretbox: {keys: []}}").contains("secretbox is not known"));
        assert!(of("{aesgcm: {keys: [{name: a, secret: YQ==}]}}").contains("16, 24 or 32"));
        assert!(of("{aesgcm: {keys: [{name: a, secret: '?'}]}}").contains("base64"));
        assert!(of("").contains("no providers"));
        assert!(parse("kind: Other").is_err());
    }
}
