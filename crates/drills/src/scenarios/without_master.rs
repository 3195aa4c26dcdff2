//! What the drills without a master share: the only server is off, and stays off.

use super::SERVER;
use crate::{Error, Result, stage::Stage, timeline::Pod};
use std::time::{Duration, Instant};

/// How long the cluster is left alone before more happens, in seconds: every connection to the server is known to be dead.
const SETTLE_S: u64 = 8;

/// The only server loses power.
pub(super) async fn master_off(stage: &Stage) -> Result<()> {
    stage.fault("the only master loses power");
    stage.power_off(SERVER)?;
    stage.hold(SETTLE_S).await;
    Ok(())
}

/// It is powered on again, and all is as before.
pub(super) async fn master_on(stage: &Stage) -> Result<()> {
    stage.heal("the master is powered on");
    stage.power_on(SERVER).await?;
    stage.api_ready(60).await?;
    stage.recovered().await?;
    // A return that disturbs shows soon after it.
    stage.hold(6).await;
    Ok(())
}

/// The ID of a pod's container on its node.
pub(super) fn container(stage: &Stage, pod: &Pod, name: &str) -> Result<String> {
    let filter = format!("labels.\"io.kubernetes.pod.uid\"=={},labels.\"io.kubernetes.container.name\"=={name}", pod.uid);
    let found = stage.on_node(&pod.node, &format!("ctr -n k8s.io containers list -q '{filter}'"))?;
    // The running one: containers that ended may still be there.
    let tasks = stage.on_node(&pod.node, "ctr -n k8s.io tasks list")?;
    let running = |id: &&str| tasks.lines().any(|line| line.starts_with(*id) && line.contains("RUNNING"));
    let id = found.split_whitespace().find(running).map(str::to_owned);
    id.ok_or_else(|| Error::Refused(format!("{} has no running container {name} on {}", pod.name, pod.node)))
}

/// Runs a command in a container, without a server.
pub(super) fn exec(stage: &Stage, pod: &Pod, container: &str, command: &str) -> Result<String> {
    stage.on_node(&pod.node, &format!("ctr -n k8s.io tasks exec --exec-id drill-{} {container} {command}", crate::now_ms()))
}

/// Waits until this pod answers requests of the traffic that begin from now on. How long it took.
pub(super) async fn answers(stage: &Stage, pod: &Pod, limit_s: u64) -> Result<Duration> {
    let (began, since) = (Instant::now(), crate::now_ms());
    let name = pod.name.as_str();
    stage
        .eventually(&format!("{name} to answer"), limit_s, || async {
            let answered = stage.recorder.with_log(|log| {
                log.requests
                    .iter()
                    .rev()
                    .take_while(|r| r.ended_ms() + 5_000 > since)
                    .any(|r| r.started_ms >= since && r.pod.as_deref() == Some(name))
            });
            if answered { Ok(()) } else { Err("it has answered no request".to_owned()) }
        })
        .await?;
    Ok(began.elapsed())
}
