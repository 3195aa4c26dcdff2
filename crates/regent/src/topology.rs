//! Where a server's objects are, as it was told at its first start: kept in `<data-dir>/server/topology.json`, so that it
//! starts again without flags.
//!
//! What must stay true: a server never changes its store by a changed flag, because that would show an empty cluster; it
//! refuses, and names the command that moves the objects.

use crate::{
    backend::{Backend, EtcdFiles, EtcdFlags, sqlite_directory},
    etcd::{Member, client_url},
};
use anyhow::{Context, Result, bail};
use pki::{Authority, Identity, files::Access};
use serde::{Deserialize, Serialize};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

pub const FILE: &str = "topology.json";

/// Where the objects are, if not in SQLite on this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "store")]
pub enum Topology {
    /// In etcd, of which this server runs a member.
    Stacked(Stacked),
    /// In an etcd that others run.
    External(EtcdFiles),
}

/// This server's member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stacked {
    pub name: String,
    pub address: IpAddr,
    /// The members when this one first started, as `name=https://address:2380`.
    pub initial_cluster: Vec<String>,
    /// Whether it joined members that were there.
    pub joined: bool,
    /// The other members' addresses for clients.
    #[serde(default)]
    pub others: Vec<String>,
}

/// What the command line asks of a server's first start.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub cluster_init: bool,
    pub server: Option<String>,
    pub token: Option<String>,
    pub etcd: EtcdFlags,
}

/// How a server is to start.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// With SQLite.
    Alone,
    /// As it did before, or with an etcd of others.
    As(Topology),
    /// As the first server of several.
    Init,
    /// As a further server of those that are there.
    Join { server: String, token: String },
}

/// Decides from what is kept, what lies on the disk, and what is asked.
pub fn plan(kept: Option<Topology>, has_sqlite: bool, asked: &Asked) -> Result<Plan> {
    const MOVE: &str = "this server keeps its objects in SQLite; `regent store migrate` moves them to etcd";
    if let Some(files) = asked.etcd.files()? {
        return match kept {
            Some(Topology::Stacked(_)) => bail!("this server runs a member of etcd and keeps its objects there; leave --etcd-servers out"),
            None if has_sqlite => bail!("--etcd-servers: {MOVE}"),
            _ => Ok(Plan::As(Topology::External(files))),
        };
    }
    match (kept, &asked.server) {
        (Some(kept), _) => Ok(Plan::As(kept)),
        (None, _) if has_sqlite && asked.cluster_init => bail!("--cluster-init: {MOVE}"),
        (None, Some(_)) if has_sqlite => bail!("--server: this server is a cluster of its own already; give it another --data-dir to join with"),
        (None, Some(_)) if asked.cluster_init => bail!("--cluster-init makes a cluster and --server joins one; say one of them"),
        (None, Some(server)) => {
            let token = asked.token.clone().context("--server needs --token; `regent token create --server` on a server prints one")?;
            Ok(Plan::Join { server: server.clone(), token })
        }
        (None, None) if asked.cluster_init => Ok(Plan::Init),
        (None, None) => Ok(Plan::Alone),
    }
}

/// Whether a server keeps objects in SQLite here.
pub fn has_sqlite(server_directory: &Path) -> bool {
    sqlite_directory(server_directory).exists()
}

impl Topology {
    /// What was kept; `None` for a server with SQLite, and before the first start.
    pub fn load(server_directory: &Path) -> Result<Option<Topology>> {
        let path = server_directory.join(FILE);
        let Some(text) = pki::files::read(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| format!("{} cannot be read as what this server keeps of its store", path.display()))
    }

    pub fn save(&self, server_directory: &Path) -> Result<()> {
        pki::files::create_directory(server_directory)?;
        Ok(pki::files::replace(&server_directory.join(FILE), &serde_json::to_string_pretty(self)?, Access::Private)?)
    }

    /// The store.
    pub fn backend(&self, server_directory: &Path) -> Backend {
        match self {
            Topology::External(files) => Backend::Etcd(files.clone()),
            Topology::Stacked(stacked) => Backend::Etcd(stacked.files(server_directory)),
        }
    }

    /// The store of the server in this directory.
    pub fn backend_of(server_directory: &Path) -> Result<Backend> {
        let kept = Topology::load(server_directory)?;
        Ok(kept.map_or_else(|| Backend::Sqlite(sqlite_directory(server_directory)), |kept| kept.backend(server_directory)))
    }
}

/// Where a server's keys are.
pub fn pki_directory(server_directory: &Path) -> PathBuf {
    server_directory.join("pki")
}

/// The authority of etcd's certificates, which every server has.
pub fn etcd_authority(pki_directory: &Path) -> Result<Authority> {
    Ok(Authority::load_or_create_named(&pki_directory.join("etcd"), "ca", "etcd-ca")?)
}

impl Stacked {
    /// The first member of a new cluster.
    pub fn first(name: &str, address: IpAddr) -> Stacked {
        let initial_cluster = vec![format!("{name}={}", crate::etcd::peer_url(address))];
        Stacked { name: name.into(), address, initial_cluster, joined: false, others: Vec::new() }
    }

    /// All members for clients, its own first: that one is asked as long as it answers.
    pub fn files(&self, server_directory: &Path) -> EtcdFiles {
        let pki = pki_directory(server_directory);
        let mut endpoints = vec![client_url(self.address)];
        endpoints.extend(self.others.iter().filter(|url| **url != endpoints[0]).cloned().collect::<Vec<_>>());
        EtcdFiles {
            endpoints,
            authority: pki.join("etcd/ca.crt"),
            certificate: pki.join("apiserver-etcd-client.crt"),
            key: pki.join("apiserver-etcd-client.key"),
        }
    }

    /// Makes what certificates are missing or due, for the member and for its clients on this server.
    pub fn make_certificates(&self, server_directory: &Path) -> Result<()> {
        let pki = pki_directory(server_directory);
        let authority = etcd_authority(&pki)?;
        let identity = Identity::etcd_member(&self.name, &[self.address]);
        authority.issue_kept(&pki.join("etcd"), "server", &identity)?;
        authority.issue_kept(&pki.join("etcd"), "peer", &identity)?;
        authority.issue_kept(&pki, "apiserver-etcd-client", &Identity::apiserver_etcd_client())?;
        Ok(())
    }

    /// The member, for the server with this data directory.
    pub fn member(&self, data_dir: &Path) -> Member {
        Member {
            binary: "etcd".into(),
            name: self.name.clone(),
            data_dir: data_dir.join("etcd"),
            address: self.address,
            certificates: pki_directory(&data_dir.join("server")).join("etcd"),
            initial_cluster: self.initial_cluster.clone(),
            joining: self.joined,
            extra: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacked() -> Topology {
        Topology::Stacked(Stacked::first("a", "10.0.0.1".parse().unwrap()))
    }

    fn asked(text: &str) -> Asked {
        let mut asked = Asked::default();
        for word in text.split_whitespace() {
            match word {
                "init" => asked.cluster_init = true,
                "server" => asked.server = Some("https://s".into()),
                "token" => asked.token = Some("t".into()),
                "etcd" => {
                    let file = || Some(PathBuf::from("/f"));
                    let servers = vec!["https://e:2379".into()];
                    asked.etcd = EtcdFlags { etcd_servers: servers, etcd_cafile: file(), etcd_certfile: file(), etcd_keyfile: file() };
                }
                other => panic!("{other}"),
            }
        }
        asked
    }

    #[test]
    fn a_server_starts_as_it_was_told_first() {
        let check = |kept: Option<Topology>, has_sqlite: bool, flags: &str, expected: &str| {
            let seen = match plan(kept, has_sqlite, &asked(flags)) {
                Ok(Plan::Alone) => "alone".to_string(),
                Ok(Plan::Init) => "init".into(),
                Ok(Plan::Join { .. }) => "join".into(),
                Ok(Plan::As(Topology::Stacked(_))) => "stacked".into(),
                Ok(Plan::As(Topology::External(_))) => "external".into(),
                Err(error) => error.to_string(),
            };
            assert!(seen.contains(expected), "{flags}: {seen} is not {expected}");
        };
        check(None, false, "", "alone");
        check(None, true, "", "alone");
        check(None, false, "init", "init");
        check(None, false, "server token", "join");
        check(None, false, "server", "needs --token");
        check(None, false, "init server token", "say one of them");
        check(None, true, "init", "regent store migrate");
        check(None, true, "etcd", "regent store migrate");
        check(None, true, "server token", "another --data-dir");
        check(None, false, "etcd", "external");
        for again in ["", "init", "server token"] {
            check(Some(stacked()), false, again, "stacked");
        }
        check(Some(stacked()), false, "etcd", "leave --etcd-servers out");
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Topology::load(directory.path()).unwrap(), None);
        stacked().save(directory.path()).unwrap();
        assert_eq!(Topology::load(directory.path()).unwrap(), Some(stacked()));
        let Backend::Etcd(files) = Topology::backend_of(directory.path()).unwrap() else { panic!() };
        assert_eq!(files.endpoints, ["https://10.0.0.1:2379"]);
    }
}
