//! How a machine becomes a further server: from a server's token to the cluster's keys and a member of etcd.
//!
//! 1. The cluster's authority, over a connection that is trusted only if the authority's fingerprint is the token's.
//! 2. With the token, the keys that all servers have ([`crate::bundle`]).
//! 3. A place among etcd's members, first as a learner: it has no vote until it has caught up ([`promote`]), so that joining
//!    never endangers the quorum.
//!
//! What must stay true: each step can be done again after a failure in its middle; a dead predecessor of the same address
//! gives way only where that costs no quorum.

use crate::{
    backend::EtcdFiles,
    bundle::Bundle,
    etcd::peer_url,
    topology::{Stacked, Topology, pki_directory},
};
use anyhow::{Context, Result, bail};
use pki::{
    JoinToken, Kubeconfig,
    files::{self, Access},
};
use std::{net::IpAddr, path::Path, time::Duration};
use store::etcd::{Etcd, cluster};
use tokio_util::sync::CancellationToken;

/// Pause between two attempts to reach a server.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long a place among etcd's members is tried for: there may be one learner at a time.
const PLACE_PATIENCE: Duration = Duration::from_secs(120);
/// How long a learner may take to catch up before that is said, and waited for again.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(60);

/// Joins the cluster of `server`, and answers with where its objects are. The member is not started yet.
pub async fn join(server: &str, token: &str, data_dir: &Path, name: &str, address: IpAddr) -> Result<Topology> {
    let directory = data_dir.join("server");
    let pki = pki_directory(&directory);
    let token = JoinToken::parse(token)?;
    let fingerprint =
        token.fingerprint.as_deref().context("the token has no fingerprint of the cluster; `regent token create --server` prints whole ones")?;
    let authority_pem = crate::join::authority(server, fingerprint).await?;
    files::create_directory(&pki)?;
    let bundle = fetch(server, &authority_pem, &token, &pki).await?;
    bundle.keep(&pki, &authority_pem)?;
    if bundle.etcd.external {
        let files = EtcdFiles {
            endpoints: bundle.etcd.endpoints.clone(),
            authority: pki.join("etcd/ca.crt"),
            certificate: pki.join("apiserver-etcd-client.crt"),
            key: pki.join("apiserver-etcd-client.key"),
        };
        files::replace(&files.authority, &bundle.etcd.authority_pem, Access::Public)?;
        files::replace(&files.key, &bundle.etcd.key_pem, Access::Private)?;
        files::replace(&files.certificate, &bundle.etcd.certificate_pem, Access::Public)?;
        let topology = Topology::External(files);
        topology.save(&directory)?;
        return Ok(topology);
    }
    let mut stacked = Stacked { others: bundle.etcd.endpoints, joined: true, ..Stacked::first(name, address) };
    stacked.make_certificates(&directory)?;
    let has_data = stacked.member(data_dir).has_data();
    let etcd = Etcd::connect(others(&stacked, &directory).config()?).await?;
    let members = take_place(&etcd, &stacked, has_data).await?;
    stacked.initial_cluster = initial_cluster(&members, name, &peer_url(address));
    stacked.others = clients_of(&members, &peer_url(address));
    let topology = Topology::Stacked(stacked);
    topology.save(&directory)?;
    tracing::info!(member = name, "has a place among etcd's members");
    Ok(topology)
}

/// The way to etcd over the other members alone.
fn others(stacked: &Stacked, directory: &Path) -> EtcdFiles {
    EtcdFiles { endpoints: stacked.others.clone(), ..stacked.files(directory) }
}

/// The keys that all servers have.
async fn fetch(server: &str, authority_pem: &str, token: &JoinToken, pki: &Path) -> Result<Bundle> {
    let file = pki.join("bootstrap.kubeconfig");
    Kubeconfig::with_token(server, authority_pem, &token.bearer(), "bootstrap").write(&file)?;
    let client = client::transport::from_kubeconfig(&file).await;
    std::fs::remove_file(&file).context("removing the token")?;
    let client = client?;
    loop {
        let request = http::Request::get(apiserver::SERVER_BUNDLE_PATH).body(Vec::new())?;
        match client.request_text(request).await {
            Ok(text) => return Bundle::parse(&text),
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                bail!("{server} refuses the token ({}); it must be a server's (`regent token create --server`) and not expired", status.message)
            }
            Err(kube::Error::Api(status)) if status.code != 503 || status.message.contains("SQLite") => bail!("{server}: {}", status.message),
            Err(error) => tracing::warn!(%error, "{server} cannot be asked for the cluster's keys yet"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// A member of etcd for this server, without a vote yet; answers with all members.
async fn take_place(etcd: &Etcd, stacked: &Stacked, has_data: bool) -> Result<Vec<cluster::Member>> {
    let url = peer_url(stacked.address);
    let deadline = tokio::time::Instant::now() + PLACE_PATIENCE;
    loop {
        let members = cluster::list(etcd).await.context("asking etcd for its members")?;
        match predecessor(&members, &stacked.name, &url, has_data)? {
            Some(dead) => {
                cluster::remove(etcd, dead.id)
                    .await
                    .with_context(|| format!("the former member {} must go before this server can take its place", dead.name))?;
                tracing::info!(member = dead.name, "the former member of this address is removed");
            }
            None => match cluster::add_learner(etcd, std::slice::from_ref(&url)).await {
                Ok(_) => return Ok(cluster::list(etcd).await?),
                // Another server joins, or etcd finds its members not healthy enough for a change; both may pass.
                Err(error) if tokio::time::Instant::now() < deadline => {
                    tracing::warn!(%error, "there is no place among etcd's members yet");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => return Err(anyhow::Error::from(error).context("taking a place among etcd's members")),
            },
        }
    }
}

/// A member that must be removed before this one can join: what ran at this address before the disk was lost.
fn predecessor<'a>(members: &'a [cluster::Member], name: &str, url: &str, has_data: bool) -> Result<Option<&'a cluster::Member>> {
    let at_address = |member: &&cluster::Member| member.peer_urls.iter().any(|known| known == url);
    if let Some(member) = members.iter().find(|member| member.name == name && !at_address(member)) {
        bail!(
            "etcd has a member {name} at {} already; remove it first (`regent etcd remove {name}`), or give this server another --node-name",
            member.peer_urls.join(",")
        );
    }
    // One without a name has not started: an attempt before this one made it.
    Ok(members.iter().find(at_address).filter(|member| !member.name.is_empty() && !has_data))
}

fn initial_cluster(members: &[cluster::Member], name: &str, url: &str) -> Vec<String> {
    let of = |member: &cluster::Member| {
        let own = member.peer_urls.iter().any(|known| known == url);
        let name = if own { name } else { &member.name };
        member.peer_urls.iter().map(move |url| format!("{name}={url}")).collect::<Vec<_>>()
    };
    members.iter().filter(|member| !member.name.is_empty() || member.peer_urls.iter().any(|known| known == url)).flat_map(of).collect()
}

fn clients_of(members: &[cluster::Member], own_url: &str) -> Vec<String> {
    members.iter().filter(|member| !member.peer_urls.iter().any(|url| url == own_url)).flat_map(|member| member.client_urls.clone()).collect()
}

/// Waits until this server's member has its vote, and answers with the other members' addresses for clients: who they are
/// may have changed since this server last ran.
pub async fn promote(stacked: &Stacked, directory: &Path, shutdown: &CancellationToken) -> Result<Vec<String>> {
    let work = async {
        loop {
            match promote_once(stacked, directory).await {
                Ok(others) => return Ok(others),
                Err(error) => tracing::warn!("this server's member of etcd cannot vote yet: {error:#}"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    tokio::select! { outcome = work => outcome, () = shutdown.cancelled() => Ok(stacked.others.clone()) }
}

async fn promote_once(stacked: &Stacked, directory: &Path) -> Result<Vec<String>> {
    let etcd = Etcd::connect(stacked.files(directory).config()?).await?;
    let url = peer_url(stacked.address);
    let members = cluster::list(&etcd).await?;
    let own = members.iter().find(|member| member.peer_urls.contains(&url));
    let own = own.with_context(|| format!("etcd has no member at {url} any more: it was removed. To join anew, stop this server, remove its --data-dir and start it with --server and a new token"))?;
    if own.learner {
        cluster::promote_when_ready(&etcd, own.id, CATCH_UP_PATIENCE).await?;
        tracing::info!(member = stacked.name, "has caught up and votes from now on");
    }
    Ok(clients_of(&members, &url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, last: u8) -> cluster::Member {
        let client_urls = if name.is_empty() { vec![] } else { vec![format!("https://10.0.0.{last}:2379")] };
        cluster::Member {
            id: last.into(),
            name: name.into(),
            peer_urls: vec![format!("https://10.0.0.{last}:2380")],
            client_urls,
            learner: name.is_empty(),
        }
    }

    #[test]
    fn a_former_member_of_the_same_address_gives_way() {
        let members = [member("a", 1), member("b", 2)];
        let of = |name: &str, last: u8, has_data: bool| {
            predecessor(&members, name, &format!("https://10.0.0.{last}:2380"), has_data).map(|found| found.map(|member| member.name.clone()))
        };
        assert_eq!(of("c", 3, false).unwrap(), None);
        assert_eq!(of("b", 2, false).unwrap(), Some("b".into()), "its disk is lost");
        assert_eq!(of("b", 2, true).unwrap(), None, "it is this very member");
        assert_eq!(of("c", 2, false).unwrap(), Some("b".into()), "the machine has a new name");
        assert!(of("b", 3, false).unwrap_err().to_string().contains("regent etcd remove b"));
        let begun = [member("a", 1), member("", 2)];
        assert_eq!(predecessor(&begun, "b", "https://10.0.0.2:2380", false).unwrap(), None, "an attempt before made it");
    }

    #[test]
    fn the_first_start_names_everyone_and_oneself() {
        let members = [member("a", 1), member("", 2)];
        assert_eq!(initial_cluster(&members, "b", "https://10.0.0.2:2380"), ["a=https://10.0.0.1:2380", "b=https://10.0.0.2:2380"]);
        assert_eq!(clients_of(&members, "https://10.0.0.2:2380"), ["https://10.0.0.1:2379"]);
    }
}
