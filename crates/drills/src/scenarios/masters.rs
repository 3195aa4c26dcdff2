//! What the drills of several masters share: who leads, who is where, and the API of one server alone.

use crate::{
    Error, Result,
    stage::{Stage, finish},
    timeline::View,
};
use std::{path::PathBuf, process::Command, time::Duration};
use tokio::task::block_in_place;

pub(super) const SCHEDULER: &str = "kube-scheduler";
pub(super) const CONTROLLERS: &str = "kube-controller-manager";
/// How long the others may take to lead when a leader died: the lease (15 s), a retry (2 s), and the start of the work.
pub(super) const LEASE_MAX_S: u64 = 20;

/// The component behind a lease.
pub(super) fn component(lease: &str) -> &'static str {
    if lease == SCHEDULER { "scheduler" } else { "controller-manager" }
}

/// The server that holds a lease.
pub(super) fn leader(view: &View, lease: &str) -> Option<String> {
    // A holder is the server's name and something that makes it unique.
    view.leaders.get(lease).filter(|holder| !holder.is_empty()).map(|holder| holder.split('_').next().unwrap_or(holder).to_owned())
}

/// The same when there must be one.
pub(super) fn must_lead(stage: &Stage, lease: &str) -> Result<String> {
    let holder = leader(&stage.view(), lease).filter(|holder| stage.servers().contains(holder));
    holder.ok_or_else(|| Error::Refused(format!("no server leads as {lease}: {:?}", stage.view().leaders)))
}

/// Waits until another holder than this one leads. How long it took.
pub(super) async fn other_leader(stage: &Stage, lease: &str, old_holder: &str) -> Result<Duration> {
    let led = |view: &View| match view.leaders.get(lease) {
        Some(holder) if !holder.is_empty() && holder != old_holder => Ok(()),
        other => Err(format!("{lease}: {other:?}")),
    };
    stage.wait(&format!("another leader of {lease}"), 60, led).await
}

/// The holder as the lease names it.
pub(super) fn holder(stage: &Stage, lease: &str) -> String {
    stage.view().leaders.get(lease).cloned().unwrap_or_default()
}

/// The administrator's kubeconfig for one server, past every balancer.
pub(super) fn kubeconfig(stage: &Stage, server: &str) -> PathBuf {
    stage.scratch().join(format!("{server}.kubeconfig"))
}

/// `kubectl` against one server.
pub(super) fn kubectl_at(stage: &Stage, server: &str, arguments: &str) -> Result<String> {
    let mut command = Command::new("kubectl");
    command.args(arguments.split_whitespace()).env("KUBECONFIG", kubeconfig(stage, server));
    block_in_place(|| finish(command, ""))
}

/// Waits until every server says that it is ready.
pub(super) async fn all_ready(stage: &Stage, limit_s: u64) -> Result<()> {
    for server in stage.servers() {
        stage
            .eventually(&format!("{server} to be ready"), limit_s, || async {
                kubectl_at(stage, &server, "get --raw /readyz --request-timeout=2s").map(|_| ()).map_err(|error| error.to_string())
            })
            .await?;
    }
    Ok(())
}
