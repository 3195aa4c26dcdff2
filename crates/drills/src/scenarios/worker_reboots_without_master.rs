//! A worker reboots while no server is there to tell it what to run.

use super::{
    SINGLE, VICTIM,
    without_master::{answers, master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{RecoveredWithin, ReturnedWithin, RoutedAroundWithin},
    scenario::Scenario,
    stage::Stage,
    timeline::View,
    workload,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, core::ObjectList};
use tokio::time::Instant;

pub const SCENARIO: Scenario = Scenario {
    name: "worker-reboots-without-master",
    shows: "With the only master gone, a worker reboots: its pods come back by themselves with their addresses, and Services and names work on it.",
    kubernetes: "\"rebooting a node would cause DNS queries and in fact probably all pod and service networking functionality\" to fail \"until at least one master comes back online\" (seed 000).",
    topology: SINGLE,
    sabotage: "the node's checkpoints are removed while it is off",
    expects: &[RoutedAroundWithin(3_000), ReturnedWithin(12_000), RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// Pods that the worker runs besides those of the workload: ten, as seen by the node itself after its boot.
const CROWD: &str = "crowd";
const CROWD_PODS: usize = 10;
const CROWD_READY_MAX_S: u64 = 10;

async fn steps(stage: &Stage) -> Result<()> {
    stage.kubectl_with(&["apply", "-f", "-"], &workload::sleepers(CROWD, CROWD_PODS, Some(VICTIM)))?;
    let ready = |view: &View| if view.ready(CROWD).count() == CROWD_PODS { Ok(()) } else { Err(view.describe()) };
    stage.wait(&format!("{CROWD_PODS} pods on {VICTIM}"), 60, ready).await?;
    let rebooted = rebooted(stage).await;
    stage
        .eventually("the crowd to be deleted", 60, || async {
            let deleted = stage.kubectl(&format!("delete deployment -n {} {CROWD} --ignore-not-found", workload::NAMESPACE));
            deleted.map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
    rebooted?;
    let gone = |view: &View| if view.pods.values().all(|pod| pod.app != CROWD) { Ok(()) } else { Err(view.describe()) };
    stage.wait("the crowd to go", 60, gone).await.map(|_| ())
}

async fn rebooted(stage: &Stage) -> Result<()> {
    let pod = stage.pod_on(VICTIM)?;
    master_off(stage).await?;
    stage.fault(format!("{VICTIM} loses power"));
    stage.power_off(VICTIM)?;
    stage.hold(5).await;
    if stage.sabotaged() {
        let data = stage.disk(VICTIM)?.join("data");
        stage.shell(&format!("find {} -name checkpoint -prune -exec rm -rf {{}} +", data.display()))?;
    }
    stage.heal(format!("{VICTIM} is powered on"));
    let (began, since) = (Instant::now(), jiff::Timestamp::now());
    stage.power_on(VICTIM).await?;
    stage.eventually("the node's own word that its pods are ready", 60, || async { crowd_ready(stage, since) }).await?;
    let crowd_took = began.elapsed();
    let seen = format!("{:.1} s", crowd_took.as_secs_f64());
    stage.check(format!("{CROWD_PODS} pods are ready on it within {CROWD_READY_MAX_S} s"), crowd_took.as_secs() < CROWD_READY_MAX_S, &*seen);
    stage.figure(format!("power on to the last of {CROWD_PODS} pods ready"), seen);
    let took = answers(stage, &pod, 40).await?;
    stage.figure("its pod answers again", format!("{:.1} s after power on", took.as_secs_f64()));
    stage.check("its pod answers within 12 s", took.as_secs() < 12, format!("{:.1} s", took.as_secs_f64()));
    stage.hold(5).await;
    master_on(stage).await?;
    let now = stage.view().pods.get(&pod.uid).cloned();
    let same = now.as_ref().is_some_and(|now| now.address == pod.address && now.ready);
    stage.check("it is the same pod with the same address", same, format!("{now:?}"));
    Ok(())
}

/// Whether all of the crowd were started since and are ready, as the node itself says without a server.
fn crowd_ready(stage: &Stage, since: jiff::Timestamp) -> std::result::Result<(), String> {
    let said = stage.regent_on(VICTIM, &["node", "pods", "--output=json"]);
    let list: ObjectList<Pod> = serde_json::from_str(&said.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    let is_back = |pod: &&Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.is_some_and(|all| {
            all.iter().all(|one| {
                let running = one.state.as_ref().and_then(|state| state.running.as_ref());
                one.ready && running.and_then(|running| running.started_at.as_ref()).is_some_and(|at| at.0.as_second() >= since.as_second())
            })
        })
    };
    let count = list.items.iter().filter(|pod| pod.name_any().starts_with(CROWD)).filter(is_back).count();
    if count == CROWD_PODS { Ok(()) } else { Err(format!("{count} of {CROWD_PODS}")) }
}
