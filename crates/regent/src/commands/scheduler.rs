//! `regent scheduler`: the scheduler alone.

use super::election::Election;
use crate::component;
use anyhow::Result;
use clap::Args;
use std::{net::IpAddr, path::PathBuf};
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Scheduler {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    election: Election,
    /// Where /healthz and /metrics are served.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: IpAddr,
    /// On which port; 0: not at all.
    #[arg(long, default_value_t = component::SCHEDULER_PORT)]
    secure_port: u16,
}

pub fn run(arguments: Scheduler) -> Result<()> {
    crate::runtime::run(|shutdown| async move {
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        tokio::spawn(component::serve("kube-scheduler", arguments.bind_address, arguments.secure_port, client.clone(), shutdown.clone()));
        schedule(client, &arguments.election, shutdown).await
    })
}

/// Schedules until the shutdown. A lost lease is an error: the process ends, and its supervisor starts it as a candidate.
pub async fn schedule(client: kube::Client, election: &Election, shutdown: CancellationToken) -> Result<()> {
    let config =
        scheduler::Config { election: election.config("kube-scheduler"), host: crate::runtime::host_name(), ..scheduler::Config::new(client) };
    Ok(scheduler::run(config, shutdown).await?)
}
