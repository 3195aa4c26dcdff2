//! Objects on their way between kinds of store, all by way of a snapshot: `regent store migrate`, and restores into etcd.
//!
//! What must stay true: the server's store is what its `topology.json` says, and that file changes last; so a move that dies
//! leaves the server as it was, and the same command begins anew. What was before is kept aside, never removed.

use crate::{
    backend::{EtcdFiles, sqlite_directory},
    backups,
    progress::Progress,
    topology::{self, Stacked, Topology},
};
use anyhow::{Context, Result, bail};
use backup::{
    directory::{self, Reason},
    files::{self, Fate},
    restore,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};
use store::{
    Revision, Store,
    etcd::Etcd,
    snapshot::{self, Origin, Restored, Secret, Status},
    sqlite::{Lock, Sqlite},
};
use tokio_util::sync::CancellationToken;

/// How long a member of etcd may take to answer after its start.
const MEMBER_PATIENCE: Duration = Duration::from_secs(60);
/// Revisions by which a new etcd stands beyond the store that it follows.
const MARGIN_REVISIONS: u64 = 1_000;
/// More changes per second than a cluster makes over days: what a new etcd goes on by for the time since a snapshot.
const REVISIONS_PER_S: u64 = 100;
/// The most revisions that are used up for it.
const GUESS_REVISIONS_MAX: u64 = 500_000;

/// What is moved, and what its snapshot says of itself.
pub struct Move<'a> {
    pub data_dir: &'a Path,
    pub origin: Origin,
}

impl Move<'_> {
    fn server(&self) -> PathBuf {
        self.data_dir.join("server")
    }

    /// A snapshot of everything before it moves; it stays, as the way back.
    async fn snapshot(&self, store: &dyn Store) -> Result<(PathBuf, Status)> {
        let place = backups::default_directory(&self.server());
        directory::create(&place)?;
        let file = place.join(directory::name(Reason::Person, &format!("{}-before-migration", backups::node_name()), self.origin.created_at_s));
        let status = snapshot::save(store, &self.origin, &file, None).await?;
        println!("Saved {} keys of revision {} to {}.", status.summary.keys, status.header.revision, file.display());
        Ok((file, status))
    }
}

/// Moves a stopped server's objects from SQLite into a member of etcd of its own.
pub async fn sqlite_to_etcd(work: Move<'_>, stacked: &Stacked, shutdown: &CancellationToken) -> Result<()> {
    let server = work.server();
    let old = sqlite_directory(&server);
    if !topology::has_sqlite(&server) {
        bail!("there is no SQLite store in {}", old.display());
    }
    restore::check_finished(&server)?;
    let lock = Lock::take(&old).map_err(|_| backup::Error::Running(server.clone()))?;
    let store = Sqlite::open_reading(&old)?;
    let newest = store.revision().await?;
    let (file, status) = work.snapshot(&store).await?;
    drop(store);
    stacked.make_certificates(&server)?;
    let restored = beside_member(work.data_dir, stacked, shutdown, async |etcd| {
        let progress = Progress::start("Moving the objects into etcd");
        let outcome = etcd.restore(&file, None, Revision(newest.0 + MARGIN_REVISIONS), |now| progress.step(&format!("revision {now}"))).await;
        progress.finish();
        Ok(outcome?)
    })
    .await?;
    Topology::Stacked(stacked.clone()).save(&server)?;
    drop(lock);
    let aside = set_aside(&old, "before-migration")?;
    println!(
        "Moved {} keys into etcd, which stands at revision {}. The SQLite store is kept in {}.",
        status.summary.keys,
        restored.revision,
        aside.display()
    );
    println!("Start the server again; further servers join with `regent server --server URL --token TOKEN` (`regent token create --server`).");
    Ok(())
}

/// Moves a stopped server's objects from its own member of etcd into SQLite.
pub async fn stacked_to_sqlite(work: Move<'_>, stacked: &Stacked, shutdown: &CancellationToken) -> Result<()> {
    not_running(work.data_dir)?;
    stacked.make_certificates(&work.server())?;
    let (file, status) = beside_member(work.data_dir, stacked, shutdown, async |etcd| {
        let members = store::etcd::cluster::list(etcd).await?;
        if members.len() > 1 {
            let others: Vec<_> = members.iter().map(|member| member.name.as_str()).filter(|name| *name != stacked.name).collect();
            bail!("etcd has other members ({}); SQLite has room for one server, so remove them first (`regent etcd remove NAME`)", others.join(", "));
        }
        work.snapshot(etcd).await
    })
    .await?;
    into_sqlite(&work, &file, &status).await?;
    let aside = set_aside(&work.data_dir.join("etcd"), "before-migration")?;
    println!("The data of etcd are kept in {}.", aside.display());
    Ok(())
}

/// Copies the objects of an etcd of others into SQLite on this server.
pub async fn external_to_sqlite(work: Move<'_>, from: &EtcdFiles) -> Result<()> {
    let etcd = Etcd::connect(from.config()?).await?;
    let (file, status) = work.snapshot(&etcd).await?;
    into_sqlite(&work, &file, &status).await
}

async fn into_sqlite(work: &Move<'_>, file: &Path, status: &Status) -> Result<()> {
    let (server, pki) = (work.server(), topology::pki_directory(&work.server()));
    let newest = Some(Revision(status.header.revision));
    let request = restore::Request { file, secret: None, server: &server, pki: &pki, cluster: None, force: false, replace_keys: false, newest };
    let report = restore::restore(&request, |_| {}).await?;
    let revision = report.restored.map_or(Revision(0), |restored| restored.revision);
    set_aside(&server.join(topology::FILE), "before-migration")?;
    println!("Moved {} keys into SQLite, which stands at revision {revision}.", status.summary.keys);
    println!("Start the server again, without --cluster-init, --server or --etcd-servers.");
    Ok(())
}

/// Brings an etcd that answers to a snapshot: one of others, or the servers' own, which go on running.
pub async fn restore_etcd(to: &EtcdFiles, file: &Path, secret: Option<&Secret>, status: &Status) -> Result<Restored> {
    let etcd = Etcd::connect(to.config()?).await?;
    restore_into_etcd(&etcd, file, secret, status)
        .await
        .with_context(|| format!("restoring into etcd at {}; where its data are lost, begin anew with --cluster-reset", to.endpoints.join(",")))
}

async fn restore_into_etcd(etcd: &Etcd, file: &Path, secret: Option<&Secret>, status: &Status) -> Result<Restored> {
    etcd.begin_restore().await?;
    let newest = etcd.revision().await?;
    let progress = Progress::start("Restoring into etcd");
    let outcome = etcd.restore(file, secret, floor(status, newest, backup::now_s()), |now| progress.step(&format!("revision {now}"))).await;
    progress.finish();
    Ok(outcome?)
}

/// Where etcd must stand at least: an etcd that the snapshot was taken from is beyond it already, a new one is led there.
fn floor(status: &Status, newest: Revision, now_s: u64) -> Revision {
    let seen = status.header.revision;
    if status.header.store == "etcd" && newest.0 >= seen {
        return newest;
    }
    let since = now_s.saturating_sub(status.header.created_at_s).saturating_mul(REVISIONS_PER_S).min(GUESS_REVISIONS_MAX);
    Revision(seen + since + MARGIN_REVISIONS)
}

/// Begins etcd anew on a stopped server, as its only member, with what the snapshot holds. The other servers join it again.
pub async fn reset_etcd(
    data_dir: &Path,
    stacked: &Stacked,
    file: &Path,
    secret: Option<&Secret>,
    status: &Status,
    shutdown: &CancellationToken,
) -> Result<(Restored, Option<PathBuf>, Vec<(String, Fate)>)> {
    let server = data_dir.join("server");
    not_running(data_dir)?;
    let pki = topology::pki_directory(&server);
    let fates = files::place(&pki, &snapshot::files(file, secret)?, true)?;
    let data = data_dir.join("etcd");
    let aside = if data.exists() { Some(set_aside(&data, "before-restore")?) } else { None };
    let stacked = Stacked::first(&stacked.name, stacked.address);
    stacked.make_certificates(&server)?;
    let restored = beside_member(data_dir, &stacked, shutdown, async |etcd| restore_into_etcd(etcd, file, secret, status).await).await?;
    Topology::Stacked(stacked).save(&server)?;
    Ok((restored, aside, fates))
}

/// Does something with a member of etcd that runs for it alone.
async fn beside_member<T>(data_dir: &Path, stacked: &Stacked, shutdown: &CancellationToken, work: impl AsyncFnOnce(&Etcd) -> Result<T>) -> Result<T> {
    let stop = CancellationToken::new();
    let mut member = tokio::spawn(stacked.member(data_dir).run(stop.clone()));
    let mut files = stacked.files(&data_dir.join("server"));
    files.endpoints.truncate(1);
    let working = async {
        let etcd = Etcd::connect(files.config()?).await?;
        let started = tokio::time::Instant::now();
        while let Err(error) = store::etcd::cluster::list(&etcd).await {
            if started.elapsed() > MEMBER_PATIENCE {
                return Err(anyhow::Error::from(error).context("this server's member of etcd does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        work(&etcd).await
    };
    let outcome = tokio::select! {
        outcome = working => outcome,
        ended = &mut member => return ended.context("etcd's supervisor panicked")?.and_then(|()| bail!("etcd ended unasked")),
        () = shutdown.cancelled() => Err(anyhow::anyhow!("asked to stop; nothing of the server has changed")),
    };
    stop.cancel();
    let ended = member.await.context("etcd's supervisor panicked")?;
    outcome.and_then(|done| ended.map(|()| done))
}

/// Refuses while a member of etcd runs on this data directory: it holds a lock on its database.
fn not_running(data_dir: &Path) -> Result<()> {
    let database = data_dir.join("etcd/member/snap/db");
    match File::options().read(true).write(true).open(&database) {
        Ok(file) if file.try_lock().is_err() => Err(backup::Error::Running(data_dir.to_path_buf()).into()),
        _ => Ok(()),
    }
}

/// Gives a file or a directory a name with the time, so that it is out of the way and stays.
fn set_aside(path: &Path, why: &str) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{name}.{why}-{}", backup::stamp(backup::now_s())));
    std::fs::rename(path, &aside).with_context(|| format!("keeping {} as {}", path.display(), aside.display()))?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(|| format!("syncing {}", parent.display()))?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_etcd_is_led_beyond_what_was_seen() {
        let header = snapshot::Header {
            format: 1,
            regent: String::new(),
            cluster: String::new(),
            store: "etcd".into(),
            revision: 5_000,
            created_at_s: 100,
            seal: None,
        };
        let mut status = Status { hash: String::new(), header, summary: snapshot::Summary::default(), file_bytes: 0 };
        assert_eq!(floor(&status, Revision(6_000), 100), Revision(6_000), "the same etcd goes on");
        assert_eq!(floor(&status, Revision(3), 110), Revision(7_000));
        assert_eq!(floor(&status, Revision(3), u64::MAX), Revision(506_000));
        status.header.store = "sqlite".into();
        assert_eq!(floor(&status, Revision(6_000), 100), Revision(6_000), "another store's numbers");
    }
}
