//! The cluster's keys, handed from a server to one that joins: what makes servers alike.
//!
//! The API server gives it, over TLS, to holders of a server's join token and to nobody else; the joining server keeps the
//! files where it would have made its own.
//!
//! What must stay true: a server never takes keys that are not of the cluster whose fingerprint its token names, and never
//! replaces keys that it has.

use crate::backend::Backend;
use anyhow::{Context, Result, bail};
use pki::files::{self, Access};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What every server has alike, in its directory of keys; those that there are.
pub const FILES: [&str; 11] = [
    "ca.crt",
    "ca.key",
    "sa.key",
    "sa.pub",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
    "membership.key",
    "encryption.yaml",
    "encryption.key",
];

/// What a joining server is given.
#[derive(Serialize, Deserialize)]
pub struct Bundle {
    /// By their names in the directory of keys.
    pub files: BTreeMap<String, String>,
    pub etcd: EtcdAccess,
}

/// How the cluster's etcd is reached.
#[derive(Serialize, Deserialize)]
pub struct EtcdAccess {
    pub endpoints: Vec<String>,
    /// Whether it is run by others, so that a new server brings no member. Then there is a client's certificate.
    pub external: bool,
    #[serde(default)]
    pub authority_pem: String,
    #[serde(default)]
    pub certificate_pem: String,
    #[serde(default)]
    pub key_pem: String,
}

/// What the API server answers with.
pub fn source(directory: PathBuf, backend: Backend) -> apiserver::ServerBundle {
    Arc::new(move || {
        let bundle = collect(&directory, &backend).map_err(|error| format!("{error:#}"))?;
        serde_json::to_value(bundle).map_err(|error| error.to_string())
    })
}

fn collect(directory: &Path, backend: &Backend) -> Result<Bundle> {
    let Backend::Etcd(access) = backend else {
        bail!("this cluster keeps its objects in SQLite, which has room for one server; `regent store migrate` moves them to etcd");
    };
    let mut found = BTreeMap::new();
    for name in FILES {
        if let Some(text) = files::read(&directory.join(name))? {
            found.insert(name.to_string(), text);
        }
    }
    // Whoever has the authority's key runs a member; else etcd is somebody else's, and its client's certificate is handed on.
    let external = !found.contains_key("etcd/ca.key");
    let read = |path: &Path| if external { crate::commands::apiserver::read(path) } else { Ok(String::new()) };
    let etcd = EtcdAccess {
        endpoints: access.endpoints.clone(),
        external,
        authority_pem: read(&access.authority)?,
        certificate_pem: read(&access.certificate)?,
        key_pem: read(&access.key)?,
    };
    Ok(Bundle { files: found, etcd })
}

impl Bundle {
    /// Keeps the files. `authority_pem` is that of the cluster which the token names.
    pub fn keep(&self, directory: &Path, authority_pem: &str) -> Result<()> {
        if self.files.get("ca.crt").map(|text| text.trim()) != Some(authority_pem.trim()) {
            bail!("the server gave the keys of another cluster than the token names");
        }
        for name in ["ca.key", "sa.key"] {
            if !self.files.contains_key(name) {
                bail!("the server did not give {name}; does it run with --pki-dir?");
            }
        }
        if let Some(standing) = files::read(&directory.join("ca.crt"))?
            && standing.trim() != authority_pem.trim()
        {
            bail!("{} is of another cluster; join with another --data-dir", directory.display());
        }
        files::create_directory(directory)?;
        files::create_directory(&directory.join("etcd"))?;
        for (name, text) in self.files.iter().filter(|(name, _)| FILES.contains(&name.as_str())) {
            let access = if name.ends_with(".crt") || name.ends_with(".pub") { Access::Public } else { Access::Private };
            let path = directory.join(name);
            if !files::create(&path, text, access)? && files::read(&path)?.as_deref() != Some(text.as_str()) {
                bail!("{} is there and differs from the cluster's; join with another --data-dir", path.display());
            }
        }
        Ok(())
    }

    /// Reads what the API server answered.
    pub fn parse(text: &str) -> Result<Bundle> {
        serde_json::from_str(text).context("the server's answer is not what a joining server is given; is it of the same version?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::EtcdFiles;

    #[test]
    fn what_is_given_is_what_is_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = pki::Authority::load_or_create(from.path()).unwrap();
        pki::ServiceAccountKeys::load_or_create(from.path()).unwrap();
        crate::topology::etcd_authority(from.path()).unwrap();
        assert!(collect(from.path(), &Backend::Sqlite("/s".into())).err().unwrap().to_string().contains("regent store migrate"));
        let access = EtcdFiles {
            endpoints: vec!["https://10.0.0.1:2379".into()],
            authority: from.path().join("etcd/ca.crt"),
            certificate: "/none".into(),
            key: "/none".into(),
        };
        let answer = source(from.path().into(), Backend::Etcd(access))().unwrap();
        let bundle = Bundle::parse(&answer.to_string()).unwrap();
        assert!(!bundle.etcd.external && bundle.etcd.key_pem.is_empty());
        let other = pki::Authority::generate("kubernetes").unwrap();
        assert!(bundle.keep(to.path(), other.certificate_pem()).is_err(), "the token names another cluster");
        for _ in 0..2 {
            bundle.keep(to.path(), authority.certificate_pem()).unwrap();
        }
        assert_eq!(pki::Authority::load_or_create(to.path()).unwrap().fingerprint(), authority.fingerprint());
        assert!(to.path().join("etcd/ca.key").exists());
        std::fs::write(to.path().join("sa.key"), "mine").unwrap();
        assert!(bundle.keep(to.path(), authority.certificate_pem()).is_err(), "nothing is replaced");
    }
}
