//! `regent scheduler`: the scheduler alone.

use super::election::Election;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Scheduler {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    election: Election,
}

pub fn run(arguments: Scheduler) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        schedule(client, &arguments.election, shutdown).await
    })
}

/// Schedules until the shutdown. A lost lease is an error: the process ends, and its supervisor starts it as a candidate.
pub async fn schedule(client: kube::Client, election: &Election, shutdown: CancellationToken) -> Result<()> {
    let config =
        scheduler::Config { election: election.config("kube-scheduler"), host: crate::runtime::host_name(), ..scheduler::Config::new(client) };
    Ok(scheduler::run(config, shutdown).await?)
}
