//! `regent etcd`: one member of etcd alone, and what an administrator does with the members.

use crate::{
    backend::{Backend, EtcdFlags},
    etcd::{Member, peer_url},
    topology::Topology,
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use std::{net::IpAddr, path::PathBuf};
use store::etcd::{Etcd as Store, cluster};

#[derive(Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Etcd {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: Option<Run>,
}

/// A member, run by hand or by a unit.
#[derive(Args)]
struct Run {
    /// The member's name.
    #[arg(long)]
    name: String,
    /// Where it keeps its data.
    #[arg(long, default_value = "/var/lib/regent/etcd")]
    data_dir: PathBuf,
    /// Where the other members and the API servers reach it.
    #[arg(long)]
    advertise_address: IpAddr,
    /// The directory of its certificates: ca.crt, server.crt, server.key, peer.crt, peer.key.
    #[arg(long, default_value = "/var/lib/regent/server/pki/etcd")]
    cert_dir: PathBuf,
    /// All members, as NAME=https://ADDRESS:2380,... Read only at the first start.
    #[arg(long, value_delimiter = ',')]
    initial_cluster: Vec<String>,
    /// Whether the members are new, or this one joins those that exist.
    #[arg(long, default_value = "new", value_parser = ["new", "existing"])]
    initial_cluster_state: String,
    /// The program.
    #[arg(long, default_value = "etcd")]
    binary: PathBuf,
    /// A further flag for etcd itself, such as --etcd-flag=--election-timeout=5000; can be repeated.
    #[arg(long = "etcd-flag", allow_hyphen_values = true)]
    extra: Vec<String>,
}

#[derive(Subcommand)]
enum Action {
    /// List the members: who leads, who lags, how large their databases are, and what etcd complains of.
    Members(Reach),
    /// Remove a member for good, because its server is lost. Refused where that would cost the quorum.
    Remove {
        /// Its name or its ID.
        member: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Let the members give back the space that is free in their databases, one after another.
    Defragment(Reach),
    /// Take back etcd's alarms, once their cause is gone.
    Disarm(Reach),
}

/// How the members are reached.
#[derive(Args)]
struct Reach {
    /// The data directory of a server, which knows its etcd.
    #[arg(long, default_value = "/var/lib/regent")]
    data_dir: PathBuf,
    #[command(flatten)]
    etcd: EtcdFlags,
}

impl Reach {
    async fn connect(&self) -> Result<Store> {
        let backend = match self.etcd.files()? {
            Some(files) => Backend::Etcd(files),
            None => Topology::backend_of(&self.data_dir.join("server"))?,
        };
        let Backend::Etcd(files) = backend else {
            bail!("the server in {} does not use etcd; say --etcd-servers and its files, or another --data-dir", self.data_dir.display());
        };
        Ok(Store::connect(files.config()?).await?)
    }
}

pub fn run(arguments: Etcd) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        match (arguments.action, arguments.run) {
            (None, None) => bail!("say --name and --advertise-address to run a member, or what to do with the members (`regent etcd --help`)"),
            (None, Some(run)) => run.member().run(shutdown).await,
            (Some(Action::Members(reach)), _) => {
                print!("{}", table(&cluster::status(&reach.connect().await?).await?));
                Ok(())
            }
            (Some(Action::Remove { member, reach }), _) => {
                let etcd = reach.connect().await?;
                let members = cluster::list(&etcd).await?;
                let found = members.iter().find(|known| known.name == member || format!("{:x}", known.id) == member);
                let found = found.with_context(|| format!("etcd has no member {member}; it has {}", names(&members)))?;
                cluster::remove(&etcd, found.id).await?;
                println!("The member {member} is removed. A server joins in its place with `regent server --server URL --token TOKEN`.");
                Ok(())
            }
            (Some(Action::Defragment(reach)), _) => {
                cluster::defragment_all(&reach.connect().await?).await?;
                println!("All members have given back what was free.");
                Ok(())
            }
            (Some(Action::Disarm(reach)), _) => {
                println!("{} alarms are taken back.", cluster::disarm(&reach.connect().await?).await?);
                Ok(())
            }
        }
    })
}

impl Run {
    fn member(self) -> Member {
        let initial_cluster = match self.initial_cluster.is_empty() {
            true => vec![format!("{}={}", self.name, peer_url(self.advertise_address))],
            false => self.initial_cluster,
        };
        Member {
            binary: self.binary,
            name: self.name,
            data_dir: self.data_dir,
            address: self.advertise_address,
            certificates: self.cert_dir,
            initial_cluster,
            joining: self.initial_cluster_state == "existing",
            extra: self.extra,
        }
    }
}

fn names(members: &[cluster::Member]) -> String {
    members.iter().map(|member| if member.name.is_empty() { format!("{:x}", member.id) } else { member.name.clone() }).collect::<Vec<_>>().join(", ")
}

fn table(all: &[cluster::Status]) -> String {
    let mut text = format!("{:<18} {:<20} {:<9} {:<10} {:<12} {:<12} {}\n", "ID", "NAME", "ROLE", "VERSION", "REVISION", "SIZE", "STATE");
    for cluster::Status { member, health } in all {
        let name = if member.name.is_empty() { "(not started)" } else { &member.name };
        let (role, version, revision, size, state) = match health {
            Err(why) => ("-", "-".into(), "-".into(), "-".into(), format!("does not answer: {why}")),
            Ok(health) => {
                let role = if health.leader { "leader" } else { "follower" };
                let alarms: Vec<&str> =
                    (health.alarms.iter()).map(|alarm| if *alarm == cluster::Alarm::Corrupt { "CORRUPT" } else { "NOSPACE" }).collect();
                let state = match (alarms.is_empty(), health.leader_id) {
                    (false, _) => alarms.join(","),
                    (true, 0) => "has no leader".into(),
                    (true, _) => "ok".into(),
                };
                (role, health.version.clone(), health.revision.to_string(), format!("{:.1} MiB", health.database_bytes as f64 / 1_048_576.0), state)
            }
        };
        let role = if member.learner { "learner" } else { role };
        text += &format!("{:<18x} {name:<20} {role:<9} {version:<10} {revision:<12} {size:<12} {state}\n", member.id);
    }
    text
}
