//! `regent store`: the store of a stopped server, moved into another kind, or made of the copy that a node has; and how far copies
//! are.

use super::{kubelet::machine_address, snapshot::Place};
use crate::{
    backend::Backend,
    backups,
    moving::{self, Move},
    recovery,
    topology::{Stacked, Topology},
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

#[derive(Args)]
pub struct StoreCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Etcd,
    Sqlite,
}

#[derive(Subcommand)]
enum Action {
    /// Move a stopped server's objects from SQLite into a member of etcd of its own, so that further servers can join, or back.
    Migrate {
        /// Where the objects shall be.
        #[arg(long, value_enum)]
        to: Kind,
        /// The address under which other servers will reach this one [default: the machine's].
        #[arg(long)]
        advertise_address: Option<IpAddr>,
        /// This server's name [default: the machine's].
        #[arg(long)]
        hostname_override: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Take over from a lost server with the copy that this machine's node keeps, without starting a server (`regent server --recover`
    /// does both).
    Recover {
        /// The copy [default: node/store-copy in the data directory].
        #[arg(long, value_name = "DIRECTORY")]
        from: Option<PathBuf>,
        /// What this machine's node has promised [default: in node in the data directory].
        #[arg(long, value_name = "FILE")]
        ledger: Option<PathBuf>,
        /// The address under which nodes will reach the server [default: the machine's].
        #[arg(long)]
        advertise_address: Option<IpAddr>,
        #[arg(long, default_value_t = 6443)]
        secure_port: u16,
        /// Take over although the old server is alive, or too few nodes can be asked: you know that it is off and stays off.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: Place,
    },
    /// How far the copies are behind, as the server knows them; with --data-dir, the copy on this node.
    Copies {
        /// The administrator's kubeconfig.
        #[arg(long, env = "KUBECONFIG", default_value = "/var/lib/regent/admin.kubeconfig")]
        kubeconfig: PathBuf,
        /// Look at the copy below this data directory instead.
        #[arg(long, value_name = "DIRECTORY")]
        data_dir: Option<PathBuf>,
    },
}

pub fn run(arguments: StoreCommand) -> Result<()> {
    let (to, advertise_address, hostname_override, place) = match arguments.action {
        Action::Migrate { to, advertise_address, hostname_override, place } => (to, advertise_address, hostname_override, place),
        Action::Recover { from, ledger, advertise_address, secure_port, force, place } => {
            return crate::runtime::run(|_| async move {
                let address = match advertise_address {
                    Some(address) => address,
                    None => machine_address().map(IpAddr::from).context("finding the machine's address; say --advertise-address")?,
                };
                let request = recovery::Request {
                    copy: &from.unwrap_or_else(|| recovery::default_copy(&place.data_dir)),
                    server: &place.server(),
                    pki: &place.pki(),
                    ledger: &ledger.unwrap_or_else(|| place.data_dir.join("node").join(membership::cluster::LEDGER)),
                    url: format!("https://{}", SocketAddr::new(address, secure_port)),
                    force,
                };
                match recovery::recover(&request).await? {
                    true => println!("Start the server now (`systemctl start regent`, or `regent server`)."),
                    false => println!("This server has its state; there is nothing to recover."),
                }
                Ok(())
            });
        }
        Action::Copies { kubeconfig, data_dir } => return crate::runtime::run(|_| copies(kubeconfig, data_dir)),
    };
    crate::runtime::run(|shutdown| async move {
        let server = place.server();
        let kept = Topology::load(&server)?;
        let origin = |backend: &Backend| backups::origin(backend, &place.pki());
        match (to, kept) {
            (Kind::Etcd, Some(_)) => bail!("this server keeps its objects in etcd already"),
            (Kind::Sqlite, None) => bail!("this server keeps its objects in SQLite already"),
            (Kind::Sqlite, Some(Topology::External(files))) => {
                let work = Move { data_dir: &place.data_dir, origin: origin(&Backend::Etcd(files.clone()))? };
                moving::external_to_sqlite(work, &files).await
            }
            (Kind::Sqlite, Some(Topology::Stacked(stacked))) => {
                let work = Move { data_dir: &place.data_dir, origin: origin(&Backend::Etcd(stacked.files(&server)))? };
                moving::stacked_to_sqlite(work, &stacked, &shutdown).await
            }
            (Kind::Etcd, None) => {
                let address = match advertise_address {
                    Some(address) => address,
                    None => machine_address().map(IpAddr::from).context("finding the machine's address; say --advertise-address")?,
                };
                let name = hostname_override.unwrap_or_else(crate::runtime::host_name);
                let work = Move { data_dir: &place.data_dir, origin: origin(&Topology::backend_of(&server)?)? };
                moving::sqlite_to_etcd(work, &Stacked::first(&name, address), &shutdown).await
            }
        }
    })
}

/// Shows how far copies are.
async fn copies(kubeconfig: PathBuf, data_dir: Option<PathBuf>) -> Result<()> {
    if let Some(data_dir) = data_dir {
        let directory = recovery::default_copy(&data_dir);
        crate::copier::must_be_there(&directory)?;
        let progress = backup::copy::Copy::look(&directory)?;
        let age_s = backup::now_s().saturating_sub(progress.at_unix_ms / 1000);
        println!("{}: revision {}, whole as of {age_s} s ago", directory.display(), progress.revision);
        return Ok(());
    }
    let client = client::transport::from_kubeconfig(&kubeconfig).await?;
    let request = http::Request::get(apiserver::copies::STATUS_PATH).body(Vec::new())?;
    let text = client.request_text(request).await.context("asking the server for its copies")?;
    let all: Vec<apiserver::copies::Copied> = serde_json::from_str(&text).context("the server's answer; is it of the same version?")?;
    if all.is_empty() {
        println!("There is no copy. `--store-copy-nodes` on the server names the nodes that are to have one.");
        return Ok(());
    }
    println!("{:<30} {:>12} {:>14} {:>10} {:>10}", "NODE", "REVISION", "CHANGES BEHIND", "BEHIND", "ASKED");
    for copied in all {
        let seconds = |ms: u64| format!("{:.1}s", ms as f64 / 1000.0);
        let asked = format!("{} ago", seconds(copied.silent_ms));
        println!("{:<30} {:>12} {:>14} {:>10} {asked:>10}", copied.node, copied.revision, copied.changes_behind, seconds(copied.behind_ms));
    }
    Ok(())
}
