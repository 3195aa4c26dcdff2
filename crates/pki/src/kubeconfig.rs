//! Kubeconfig files: where the API server is, which authority to trust, and who to be.

use crate::Error;
use crate::authority::Issued;
use crate::files::{self, Access};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;

/// The content of a kubeconfig with one cluster, one user and one context.
#[derive(Clone)]
pub struct Kubeconfig {
    server_url: String,
    authority_pem: String,
    user: String,
    credentials: Value,
}

impl Kubeconfig {
    /// With a client certificate.
    pub fn new(server_url: &str, authority_pem: &str, certificate_pem: &str, key_pem: &str, user: &str) -> Kubeconfig {
        let credentials = json!({
            "client-certificate-data": STANDARD.encode(certificate_pem),
            "client-key-data": STANDARD.encode(key_pem),
        });
        Kubeconfig { server_url: server_url.into(), authority_pem: authority_pem.into(), user: user.into(), credentials }
    }

    /// The same from what the authority issued.
    pub fn of(server_url: &str, issued: &Issued, user: &str) -> Kubeconfig {
        Kubeconfig::new(server_url, &issued.authority_pem, &issued.certificate_pem, &issued.key_pem, user)
    }

    /// With a bearer token.
    pub fn with_token(server_url: &str, authority_pem: &str, token: &str, user: &str) -> Kubeconfig {
        Kubeconfig { server_url: server_url.into(), authority_pem: authority_pem.into(), user: user.into(), credentials: json!({"token": token}) }
    }

    /// Without credentials: what the ConfigMap `kube-public/cluster-info` tells everyone.
    pub fn cluster_info(server_url: &str, authority_pem: &str) -> String {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "", "cluster": {"certificate-authority-data": STANDARD.encode(authority_pem), "server": server_url}}],
            "contexts": null,
            "current-context": "",
            "preferences": {},
            "users": null,
        });
        to_yaml(&config)
    }

    /// The file's text.
    pub fn to_yaml(&self) -> String {
        let context = format!("{}@regent", self.user);
        to_yaml(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "regent", "cluster": {
                "certificate-authority-data": STANDARD.encode(&self.authority_pem),
                "server": self.server_url,
            }}],
            "contexts": [{"name": context, "context": {"cluster": "regent", "user": self.user}}],
            "current-context": context,
            "preferences": {},
            "users": [{"name": self.user, "user": self.credentials}],
        }))
    }

    /// Writes the file, readable by its owner only.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        files::replace(path, &self.to_yaml(), Access::Private)
    }
}

pub(crate) fn to_yaml(config: &Value) -> String {
    // JSON with string keys and finite numbers always has a YAML form; JSON itself is one.
    serde_saphyr::to_string(config).unwrap_or_else(|_| config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Identity};

    #[test]
    fn the_file_says_where_and_who() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("kubernetes").unwrap();
        let issued = authority.issue(&Identity::admin()).unwrap();
        let path = directory.path().join("admin.kubeconfig");
        Kubeconfig::of("https://127.0.0.1:6443", &issued, "kubernetes-admin").write(&path).unwrap();
        let text = files::read(&path).unwrap().unwrap();
        let config: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(config["current-context"], config["contexts"][0]["name"]);
        let key = STANDARD.decode(config["users"][0]["user"]["client-key-data"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(key).unwrap(), issued.key_pem);
    }
}
