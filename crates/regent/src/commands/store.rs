//! `regent store`: the store of a stopped server, moved into another kind.

use super::{kubelet::machine_address, snapshot::Place};
use crate::{
    backend::Backend,
    backups,
    moving::{self, Move},
    topology::{Stacked, Topology},
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::net::IpAddr;

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
}

pub fn run(arguments: StoreCommand) -> Result<()> {
    let Action::Migrate { to, advertise_address, hostname_override, place } = arguments.action;
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
