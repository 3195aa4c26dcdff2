//! `regent snapshot`: backups of the cluster's objects and keys, and the way back.

use crate::{
    backend::{Backend, EtcdFlags},
    backups::{self, BucketFlags, SecretFlags},
    moving,
    progress::Progress,
    topology::{self, Stacked, Topology},
};
use anyhow::{Context, Result, bail};
use backup::{
    directory::{self, Reason, State},
    files::{self, Fate},
    restore::{self, Request},
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};
use store::snapshot::Status;

#[derive(Args)]
pub struct Snapshot {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Save everything as of one moment, while the server runs.
    Save {
        /// The new file [default: one in the directory of snapshots, named by the time].
        file: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        etcd: EtcdFlags,
        #[command(flatten)]
        secret: SecretFlags,
        #[command(flatten)]
        bucket: BucketFlags,
    },
    /// Read a snapshot to its end and say what it is: hash, revision, keys, size.
    Status {
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t = Output::Simple)]
        output: Output,
    },
    /// List the snapshots in the directory of snapshots, and in the bucket.
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        bucket: BucketFlags,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Bring the cluster back to a snapshot.
    Restore {
        /// The snapshot: a file, or the name of one in the directory of snapshots or the bucket.
        #[arg(required_unless_present = "newest")]
        file: Option<PathBuf>,
        /// The newest whole snapshot in the directory of snapshots.
        #[arg(long, conflicts_with = "file")]
        newest: bool,
        /// Take the objects even if the snapshot is of another cluster.
        #[arg(long)]
        force: bool,
        /// Take the snapshot's keys in place of this server's, which are kept aside.
        #[arg(long)]
        replace_keys: bool,
        /// Begin etcd anew with this stopped server as its only member, because its data are lost; the other servers join again.
        #[arg(long)]
        cluster_reset: bool,
        /// With --cluster-reset on a new machine: the address under which other servers will reach this one.
        #[arg(long, requires = "cluster_reset")]
        advertise_address: Option<IpAddr>,
        /// With --cluster-reset on a new machine: this server's name.
        #[arg(long, requires = "cluster_reset")]
        hostname_override: Option<String>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        etcd: EtcdFlags,
        #[command(flatten)]
        secret: SecretFlags,
        #[command(flatten)]
        bucket: BucketFlags,
    },
}

/// Where a server keeps things.
#[derive(Args, Clone)]
pub struct Place {
    /// The server's data directory.
    #[arg(long, default_value = "/var/lib/regent")]
    pub data_dir: PathBuf,
    /// The cluster's keys [default: server/pki in the data directory].
    #[arg(long)]
    pub pki_dir: Option<PathBuf>,
    /// Where snapshots are kept [default: snapshots in the data directory].
    #[arg(long)]
    pub snapshot_dir: Option<PathBuf>,
}

impl Place {
    pub fn server(&self) -> PathBuf {
        self.data_dir.join("server")
    }

    pub fn pki(&self) -> PathBuf {
        self.pki_dir.clone().unwrap_or_else(|| topology::pki_directory(&self.server()))
    }

    fn snapshots(&self) -> PathBuf {
        self.snapshot_dir.clone().unwrap_or_else(|| backups::default_directory(&self.server()))
    }

    /// The store of the server here, unless the flags name an etcd.
    pub fn backend(&self, etcd: &EtcdFlags) -> Result<Backend> {
        match etcd.files()? {
            Some(files) => Ok(Backend::Etcd(files)),
            None => Topology::backend_of(&self.server()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One line: hash, revision, keys, size.
    Simple,
    Table,
    Json,
}

pub fn run(arguments: Snapshot) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        match arguments.action {
            Action::Save { file, place, etcd, secret, bucket } => save(file, &place, &etcd, &secret, &bucket).await,
            Action::Status { file, output } => {
                let status = store::snapshot::read_status(&file).with_context(|| file.display().to_string())?;
                print!("{}", shown(&status, output)?);
                Ok(())
            }
            Action::List { place, bucket, output } => list(&place, &bucket, output).await,
            Action::Restore {
                file,
                newest: _,
                force,
                replace_keys,
                cluster_reset,
                advertise_address,
                hostname_override,
                place,
                etcd,
                secret,
                bucket,
            } => {
                let file = find(file, &place, &bucket).await?;
                let secret = secret.secret()?;
                let (server, pki) = (place.server(), place.pki());
                let cluster = backups::cluster(&pki)?;
                let backend = place.backend(&etcd)?;
                if let (Backend::Sqlite(_), false) = (&backend, cluster_reset) {
                    let request =
                        Request { file: &file, secret: secret.as_ref(), server: &server, pki: &pki, cluster, force, replace_keys, newest: None };
                    return restore_sqlite(&request).await;
                }
                if replace_keys {
                    bail!("--replace-keys: the servers of an etcd share their keys; join them to this cluster anew instead");
                }
                let status = restore::verify(&file, secret.as_ref()).await?;
                restore::check_cluster(&status, cluster.as_deref(), force)?;
                if cluster_reset {
                    let stacked = match Topology::load(&server)? {
                        Some(Topology::Stacked(stacked)) => stacked,
                        Some(Topology::External(_)) => {
                            bail!("--cluster-reset: etcd is run by others; begin it anew there, then restore without --cluster-reset")
                        }
                        None => Stacked::first(&hostname_override.unwrap_or_else(crate::runtime::host_name), address(advertise_address)?),
                    };
                    let (restored, aside, files) = moving::reset_etcd(&place.data_dir, &stacked, &file, secret.as_ref(), &status, &shutdown).await?;
                    print_restored(&status, &file, Some(restored.revision.0));
                    if let Some(aside) = aside {
                        println!("The old data of etcd are kept in {}.", aside.display());
                    }
                    print_files(&files, &pki);
                    println!(
                        "Start this server again. On each other server remove {0}/server and {0}/etcd, and join it again with `regent server --server URL --token TOKEN`.",
                        place.data_dir.display()
                    );
                    return Ok(());
                }
                let Backend::Etcd(to) = backend else { bail!("this server has no etcd") };
                let restored = moving::restore_etcd(&to, &file, secret.as_ref(), &status).await?;
                print_restored(&status, &file, Some(restored.revision.0));
                println!(
                    "{} objects were made, {} changed, {} removed, {} left as they were.",
                    restored.created, restored.changed, restored.deleted, restored.unchanged
                );
                if pki.exists() {
                    print_files(&files::place(&pki, &store::snapshot::files(&file, secret.as_ref())?, true)?, &pki);
                }
                println!("All servers of this etcd go on with the restored objects by themselves; nothing has to be started again.");
                Ok(())
            }
        }
    })
}

fn address(asked: Option<IpAddr>) -> Result<IpAddr> {
    match asked {
        Some(address) => Ok(address),
        None => super::kubelet::machine_address().map(IpAddr::from).context("finding the machine's address; say --advertise-address"),
    }
}

async fn save(file: Option<PathBuf>, place: &Place, etcd: &EtcdFlags, secret: &SecretFlags, bucket: &BucketFlags) -> Result<()> {
    let (secret, bucket) = (secret.secret()?, bucket.bucket()?);
    let backend = place.backend(etcd)?;
    let origin = backups::origin(&backend, &place.pki())?;
    let file = match file {
        Some(file) => file,
        None => {
            directory::create(&place.snapshots())?;
            place.snapshots().join(directory::name(Reason::Person, &backups::node_name(), origin.created_at_s))
        }
    };
    let store = backups::open_reading(&backend).await?;
    let status = backups::take(&*store, &origin, &file, secret.as_ref(), bucket.as_ref()).await?;
    println!("Saved revision {} to {}: {} keys, {}.", status.header.revision, file.display(), status.summary.keys, size(status.file_bytes));
    Ok(())
}

/// The snapshot that is meant: a path, a name in the directory, a name in the bucket, or the newest whole one.
async fn find(file: Option<PathBuf>, place: &Place, bucket: &BucketFlags) -> Result<PathBuf> {
    let Some(file) = file else {
        let whole = directory::list(&place.snapshots())?.into_iter().rev().find(|entry| matches!(entry.state, State::Whole(_)));
        let newest = whole.with_context(|| format!("there is no whole snapshot in {}", place.snapshots().display()))?;
        println!("The newest whole snapshot is {}.", newest.path.display());
        return Ok(newest.path);
    };
    let kept = place.snapshots().join(&file);
    if file.exists() || (!kept.exists() && bucket.snapshot_s3_bucket.is_none()) {
        return Ok(file);
    }
    if let (false, Some(bucket), Some(name)) = (kept.exists(), bucket.bucket()?, file.file_name()) {
        directory::create(&place.snapshots())?;
        bucket.get(&name.to_string_lossy(), &kept).await?;
    }
    Ok(kept)
}

async fn restore_sqlite(request: &Request<'_>) -> Result<()> {
    let progress = Progress::start("Restoring");
    let outcome = restore::restore(request, |step| progress.step(told(step))).await;
    progress.finish();
    let report = outcome?;
    print_restored(&report.status, request.file, report.restored.map(|restored| restored.revision.0));
    if let Some(aside) = &report.aside {
        println!("The old store is kept in {}.", aside.display());
    }
    if let Some(aside) = &report.keys_aside {
        println!("The old keys are kept in {}.", aside.display());
    }
    print_files(&report.files, request.pki);
    println!("Start the server again (`systemctl start regent`, or `regent server`): nodes and controllers see the restored objects by themselves.");
    Ok(())
}

pub fn print_restored(status: &Status, file: &Path, revision: Option<u64>) {
    let now = revision.map(|revision| format!("; the store now stands at revision {revision}")).unwrap_or_default();
    println!("Restored {} keys of revision {} from {}{now}.", status.summary.keys, status.header.revision, file.display());
}

pub fn print_files(files: &[(String, Fate)], pki: &Path) {
    for (name, fate) in files {
        match fate {
            Fate::Same => {}
            Fate::Written => println!("{} was missing and has been restored.", pki.join(name).display()),
            Fate::Differs => {
                println!("{} differs from the snapshot's and stays as it is; --replace-keys takes the snapshot's.", pki.join(name).display())
            }
        }
    }
}

pub fn told(step: restore::Step) -> &'static str {
    match step {
        restore::Step::Verify => "reading the snapshot to its end",
        restore::Step::Begin => "locking the server out",
        restore::Step::Build => "building the new store beside the old one",
        restore::Step::Built => "the new store is on disk",
        restore::Step::Keys => "keys",
        restore::Step::Exchange => "exchanging old and new",
        restore::Step::KeepAside => "keeping the old store aside",
        restore::Step::Finish => "done",
    }
}

/// Bytes as etcdctl shows them: `3.3 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn time(seconds: u64) -> String {
    i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok()).map(|time| time.to_string()).unwrap_or_default()
}

fn shown(status: &Status, output: Output) -> Result<String> {
    let size = size(status.file_bytes);
    let cells = [status.short_hash().to_string(), status.header.revision.to_string(), status.summary.keys.to_string(), size];
    Ok(match output {
        Output::Simple => format!("{}\n", cells.join(", ")),
        Output::Table => boxed(&["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"], &[cells.to_vec()]),
        Output::Json => {
            let value = json!({
                "hash": status.short_hash(), "revision": status.header.revision, "totalKey": status.summary.keys, "totalSize": status.file_bytes,
                "sha256": status.hash, "dataSize": status.summary.bytes, "files": status.summary.files, "store": status.header.store,
                "cluster": status.header.cluster, "createdAt": time(status.header.created_at_s), "version": status.header.regent,
                "encrypted": status.header.seal.is_some(),
            });
            format!("{}\n", serde_json::to_string_pretty(&value)?)
        }
    })
}

/// A table with lines, as etcdctl prints it.
fn boxed(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).chain([heads[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = format!("+{}+\n", widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("+"));
    let mut text = line.clone();
    text += &format!("|{}|\n", heads.iter().zip(&widths).map(|(head, w)| format!(" {head:^w$} ")).collect::<Vec<_>>().join("|"));
    text += &line;
    for row in rows {
        text += &format!("|{}|\n", row.iter().zip(&widths).map(|(cell, w)| format!(" {cell:>w$} ")).collect::<Vec<_>>().join("|"));
    }
    text + &line
}

async fn list(place: &Place, bucket: &BucketFlags, output: Output) -> Result<()> {
    let entries = directory::list(&place.snapshots())?;
    let stored = match bucket.bucket()? {
        Some(bucket) => bucket.list().await?,
        None => Vec::new(),
    };
    if output == Output::Json {
        let bucket: Vec<_> = stored.iter().map(|(name, bytes)| json!({"name": name, "size": bytes})).collect();
        println!("{}", serde_json::to_string_pretty(&json!({"snapshots": entries, "bucket": bucket}))?);
        return Ok(());
    }
    if entries.is_empty() && stored.is_empty() {
        println!("There are no snapshots in {}; `regent snapshot save` makes one.", place.snapshots().display());
        return Ok(());
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let row = |cells: [&str; 7]| {
        let [name, created, store, revision, keys, size, state] = cells;
        println!("{name:<58} {created:<21} {store:<7} {revision:>10} {keys:>8} {size:>9}  {state}");
    };
    row(["NAME", "CREATED", "STORE", "REVISION", "KEYS", "SIZE", "STATE"]);
    for entry in &entries {
        match &entry.state {
            State::Whole(status) => row([
                &name(&entry.path),
                &time(status.header.created_at_s),
                &status.header.store,
                &status.header.revision.to_string(),
                &status.summary.keys.to_string(),
                &size(status.file_bytes),
                &format!("whole ({}{})", status.short_hash(), if status.header.seal.is_some() { ", encrypted" } else { "" }),
            ]),
            State::Unusable(why) => row([&name(&entry.path), "-", "-", "-", "-", "-", why]),
        }
    }
    for (name, bytes) in &stored {
        row([name, "-", "-", "-", "-", &size(*bytes), "in the bucket"]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_etcdctl_shows_them() {
        for (bytes, expected) in [(0, "0 B"), (999, "999 B"), (3_300_000, "3.3 MB"), (20_000, "20 kB"), (1_500_000_000, "1.5 GB")] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn status_as_etcdctl_prints_it() {
        let header = store::snapshot::Header {
            format: 1,
            regent: "0.1.0".into(),
            cluster: "c".into(),
            store: "sqlite".into(),
            revision: 184_596,
            created_at_s: 0,
            seal: None,
        };
        let summary = store::snapshot::Summary { keys: 613, bytes: 5_000_000, files: 4 };
        let status = Status { hash: "be27a17bcafe".into(), header, summary, file_bytes: 3_300_000 };
        assert_eq!(shown(&status, Output::Simple).unwrap(), "be27a17b, 184596, 613, 3.3 MB\n");
        let table = "+----------+----------+------------+------------+\n\
                     |   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE |\n\
                     +----------+----------+------------+------------+\n\
                     | be27a17b |   184596 |        613 |     3.3 MB |\n\
                     +----------+----------+------------+------------+\n";
        assert_eq!(shown(&status, Output::Table).unwrap(), table);
    }
}
