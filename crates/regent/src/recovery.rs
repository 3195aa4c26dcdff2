//! Taking over from a lost server, on a machine that has a copy of its store.
//!
//! 1. The copy is made one snapshot.
//! 2. The old server must be out of reach, for this machine and for the nodes.
//! 3. More than half of the nodes that the copy names promise themselves to a higher epoch, which fences the old server
//!    whenever it comes back.
//! 4. The snapshot is restored as any other, with the cluster's keys; the revision goes on beyond everything that was ever
//!    seen, so that all who watch list anew.
//! 5. The store says whose it is.
//!
//! What must stay true: nothing is promised unless enough nodes can be; no server starts here on half a recovery, and the same
//! command goes on with the same promises.

use crate::{
    backend::sqlite_directory,
    backups, copier, fencing,
    fencing::Beside,
    progress::Progress,
    voters::{Said, Voters, votes},
};
use anyhow::{Context, Result, bail};
use backup::{copy::Copy, restore};
use membership::cluster::{self, Epoch, Ledger, Record};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use store::{snapshot::write_private, sqlite::Sqlite};

/// Stands in a server's directory from before the first promise until all is done.
const JOURNAL: &str = "recovery.json";
/// The snapshot that is made of the copy.
const SNAPSHOT: &str = "recovery.snapshot";
/// How long the old server may take to show that it is alive.
const OLD_SERVER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is asked.
pub struct Request<'a> {
    /// The copy.
    pub copy: &'a Path,
    /// The server's directory: `<data-dir>/server`.
    pub server: &'a Path,
    /// Where its keys are, or will be.
    pub pki: &'a Path,
    /// What this machine's node has promised.
    pub ledger: &'a Path,
    /// Where the server will be reached.
    pub url: String,
    /// Although the old server is alive, or fewer nodes than half can be asked: a person says that it is right.
    pub force: bool,
}

#[derive(Serialize, Deserialize)]
struct Journal {
    holder: String,
}

/// Refuses the start of a server whose recovery was not finished.
pub fn check_finished(server: &Path) -> Result<()> {
    if server.join(JOURNAL).exists() {
        bail!("a recovery in {} was begun and not finished; run it again with --recover", server.display());
    }
    Ok(())
}

/// Takes over. `Ok(false)`: this server has its state, and there is nothing to recover.
pub async fn recover(request: &Request<'_>) -> Result<bool> {
    let store_directory = sqlite_directory(request.server);
    if Sqlite::in_use(&store_directory) {
        bail!("a server runs on {} here already", store_directory.display());
    }
    let journal = journal(request.server)?;
    let has_store = store_directory.join("state.db").exists();
    let kept = fencing::beside(request.server)?;
    if journal.is_none() && has_store && !copier::is_there(request.copy) {
        if request.force {
            return go_on(request, &store_directory).await;
        }
        if kept.as_ref().is_none_or(|kept| kept.superseded_by.is_none()) {
            return Ok(false);
        }
    }
    copier::must_be_there(request.copy)?;
    pki::files::create_directory(request.server)?;
    let snapshot = request.server.join(SNAPSHOT);
    let (copy, file) = (request.copy.to_owned(), snapshot.clone());
    let _ = std::fs::remove_file(&snapshot);
    let made = tokio::task::spawn_blocking(move || Copy::materialise(&copy, &file)).await?.context("reading the copy")?;
    let record = made.epoch.as_ref().context("the copy does not say which epoch it is of; begin it anew")?;
    let record: Record = serde_json::from_slice(record).context("the copy's epoch cannot be read; was it made by a newer version?")?;
    if journal.is_none() && !is_needed(&record, kept.as_ref(), has_store, request.force) {
        let _ = std::fs::remove_file(&snapshot);
        return Ok(false);
    }
    let age_s = backup::now_s().saturating_sub(made.progress.at_unix_ms / 1000);
    println!("The copy holds revision {} of {}, as of {age_s} s ago.", made.progress.revision, record.epoch.server);

    let files = store::snapshot::files(&snapshot, Some(&made.secret))?;
    let text = |name: &str| -> Result<String> {
        let file = files.iter().find(|file| file.name == name).with_context(|| format!("the copy does not hold {name}"))?;
        Ok(String::from_utf8(file.content.clone())?)
    };
    let authority = pki::Authority::from_pem(&text("ca.crt")?, &text("ca.key")?).context("the authority in the copy")?;
    let client = authority.issue(&pki::Identity::apiserver_kubelet_client())?;
    let voters = Voters::with(authority.certificate_pem(), &client)?;
    if !request.force {
        check_old_server(&record, &request.url, &pki::tls::client(authority.certificate_pem(), None)?).await?;
    }
    let holder = journal.map_or_else(fencing::new_holder, |journal| journal.holder);
    write_private(&request.server.join(JOURNAL), &serde_json::to_vec(&Journal { holder: holder.clone() })?, 0o600)?;
    let epoch = match claim(request, &record, &voters, &holder).await {
        Ok(epoch) => epoch,
        Err(error) => {
            // Nothing here has changed: a server that was here may start.
            let _ = std::fs::remove_file(request.server.join(JOURNAL));
            let _ = std::fs::remove_file(&snapshot);
            return Err(error);
        }
    };
    println!("Epoch {} is this server's; {} is fenced.", epoch.number, record.epoch.server);

    let progress = Progress::start("Recovering");
    let restoring = restore::Request {
        file: &snapshot,
        secret: Some(&made.secret),
        server: request.server,
        pki: request.pki,
        cluster: backups::cluster(request.pki)?,
        force: true,
        replace_keys: true,
        newest: None,
    };
    let outcome = restore::restore(&restoring, |step| progress.step(crate::commands::snapshot::told(step))).await;
    progress.finish();
    let report = outcome?;
    let record = Record { epoch, ..record };
    let store = Sqlite::open(&store_directory)?;
    fencing::put_record(&store, &record).await?;
    tokio::task::spawn_blocking(move || drop(store)).await?;
    fencing::keep_beside(request.server, &Beside { record, superseded_by: None })?;
    std::fs::remove_file(&snapshot).context("removing the snapshot that was made of the copy")?;
    std::fs::remove_file(request.server.join(JOURNAL)).context("removing the recovery's journal")?;
    crate::commands::snapshot::print_restored(&report.status, request.copy, report.restored.map(|restored| restored.revision.0));
    for (what, aside) in [("store", &report.aside), ("keys", &report.keys_aside)] {
        if let Some(aside) = aside {
            println!("The old {what} that was here is kept in {}.", aside.display());
        }
    }
    Ok(true)
}

/// Goes on with the store that is here, on the word of a person that nobody has taken over from it: under a higher epoch, for which
/// whoever can be reached is asked.
async fn go_on(request: &Request<'_>, store_directory: &Path) -> Result<bool> {
    let text = |name: &str| -> Result<String> {
        let path = request.pki.join(name);
        pki::files::read(&path)?.with_context(|| format!("there is no {}", path.display()))
    };
    let authority = pki::Authority::from_pem(&text("ca.crt")?, &text("ca.key")?)?;
    let client = authority.issue(&pki::Identity::apiserver_kubelet_client())?;
    let voters = Voters::with(authority.certificate_pem(), &client)?;
    let store = Sqlite::open(store_directory)?;
    let record = match fencing::record_in(&store).await? {
        Some(record) => record,
        None => fencing::beside(request.server)?
            .map(|beside| beside.record)
            .context("the store does not say which epoch it is of; start its server once")?,
    };
    let epoch = claim(request, &record, &voters, &fencing::new_holder()).await?;
    println!("Epoch {} is this server's, with the store that is here.", epoch.number);
    // Without copies nobody is asked at the start: those that are silent may be gone for good. A copy that comes again is noted again.
    let record = Record { epoch, copies: Default::default(), ..record };
    fencing::put_record(&store, &record).await?;
    tokio::task::spawn_blocking(move || drop(store)).await?;
    fencing::keep_beside(request.server, &Beside { record, superseded_by: None })?;
    Ok(true)
}

fn journal(server: &Path) -> Result<Option<Journal>> {
    let path = server.join(JOURNAL);
    let Some(text) = pki::files::read(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} cannot be read; remove it to begin the recovery anew", path.display()))
}

/// Whether the copy is of more use than what is here: there is nothing here, another server has taken over from it, or the copy is of
/// a later one.
fn is_needed(copy: &Record, kept: Option<&Beside>, has_store: bool, force: bool) -> bool {
    match kept {
        _ if !has_store || force => true,
        None => false,
        Some(kept) => kept.superseded_by.is_some() || copy.epoch.number > kept.record.epoch.number,
    }
}

/// Refuses as long as the old server shows a sign of life.
async fn check_old_server(record: &Record, own_url: &str, tls: &rustls::ClientConfig) -> Result<()> {
    let old = &record.epoch.server;
    if old == own_url {
        // Its machine is this one, and nothing runs on its store.
        return Ok(());
    }
    let Some(address) = old.strip_prefix("https://").and_then(|rest| rest.parse::<SocketAddr>().ok()) else {
        bail!("the copy's server has the address {old}, which cannot be asked; if that server is lost, say --force");
    };
    let alive = async {
        let stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let name = rustls::pki_types::ServerName::from(address.ip());
        // Whoever is of this cluster there is the old server. One that hangs is not dead either.
        let shaken = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls.clone())).connect(name, stream);
        match tokio::time::timeout(OLD_SERVER_TIMEOUT, shaken).await {
            Ok(Ok(_)) => Some("it answers"),
            Ok(Err(_)) => None,
            Err(_) => Some("it takes connections, though it does not answer"),
        }
    };
    match tokio::time::timeout(OLD_SERVER_TIMEOUT * 2, alive).await {
        Ok(Some(how)) => {
            bail!("the server {old} is alive: {how}. Stop it first (`systemctl stop regent` there); if it must be given up as it is, say --force")
        }
        _ => Ok(()),
    }
}

/// Gets the promises of the nodes.
async fn claim(request: &Request<'_>, record: &Record, voters: &Voters, holder: &str) -> Result<Epoch> {
    let mut said = voters.ask(&record.voters).await;
    // This machine's own node may be off: then its disk is asked.
    let own = own_node(record, &request.url).filter(|name| !said.contains_key(name));
    let ledger = own.as_ref().map(|_| Ledger::open(request.ledger)).transpose()?;
    if let (Some(name), Some(ledger)) = (&own, &ledger) {
        said.insert(name.clone(), Said { epoch: ledger.known(), api_reachable: false });
    }
    let list = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let reaching: Vec<&String> = said.iter().filter(|(_, said)| said.api_reachable).map(|(name, _)| name).collect();
    if !request.force && 2 * reaching.len() > said.len() {
        bail!(
            "{} say that they still reach a server; where it has just died, they notice within seconds, so try again. If it must be given up \
             as it is, say --force",
            list(reaching)
        );
    }
    let silent: Vec<&String> = record.voters.keys().filter(|name| !said.contains_key(*name)).collect();
    if !request.force && !cluster::is_agreed(record, said.len()) {
        bail!(
            "only {} of the nodes {} can be asked for their promise, and more than half are needed (the old server's machine counts too). \
             Without them nobody can tell a dead server from a cut network. If you know that {} is off and stays off, say --force",
            said.len(),
            list(record.voters.keys().collect()),
            record.epoch.server
        );
    }
    let epoch = cluster::next(record, holder, &request.url, &votes(&said));
    let asked: BTreeMap<String, SocketAddr> = record
        .voters
        .iter()
        .filter(|(name, _)| said.contains_key(*name) && Some(*name) != own.as_ref())
        .map(|(name, at)| (name.clone(), *at))
        .collect();
    let answers = voters.promise(&asked, &epoch).await;
    let mut promised = answers.values().filter(|said| said.epoch.as_ref() == Some(&epoch)).count();
    if let Some(ledger) = &ledger {
        promised += usize::from(ledger.promise(epoch.clone())?.is_ok());
    }
    if !request.force && !cluster::is_agreed(record, promised) {
        bail!(
            "only {promised} of {} nodes have promised themselves to this server (no word of {}); run the same command again",
            record.voters.len(),
            list(silent)
        );
    }
    Ok(epoch)
}

/// Which of the nodes this machine is.
fn own_node(record: &Record, url: &str) -> Option<String> {
    let own = cluster::host(url);
    record.voters.iter().find(|(_, address)| Some(address.ip()) == own).map(|(name, _)| name.clone())
}

/// Where a node's copy is, for a server with this data directory.
pub fn default_copy(data_dir: &Path) -> PathBuf {
    data_dir.join("node").join(copier::DIRECTORY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_given_up_only_for_something_later() {
        let of = |number| Record {
            epoch: Epoch { number, holder: format!("h{number}"), server: "https://10.0.0.1:6443".into() },
            copies: Default::default(),
            voters: BTreeMap::new(),
        };
        let kept = |number, by: Option<u64>| Beside { record: of(number), superseded_by: by.map(|by| of(by).epoch) };
        assert!(is_needed(&of(1), None, false, false), "a new machine");
        assert!(!is_needed(&of(1), Some(&kept(1, None)), true, false) && !is_needed(&of(1), Some(&kept(2, None)), true, false));
        assert!(is_needed(&of(2), Some(&kept(1, None)), true, false) && is_needed(&of(2), Some(&kept(1, Some(2))), true, false));
        assert!(is_needed(&of(1), Some(&kept(1, None)), true, true));
        assert!(!is_needed(&of(1), None, true, false), "a store of an older version");
    }
}
