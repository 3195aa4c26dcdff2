//! Two of three members of etcd stop: nothing can be written, everything else goes on, and all heals by itself.

use super::{
    MASTERS,
    masters::{all_ready, kubectl_at},
};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
    workload::NAMESPACE,
};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "quorum-lost",
    shows: "Without a quorum every server still answers reads, writes fail within 5 s with a reason, nodes and applications go on; when it returns, all goes on without a restart.",
    kubernetes: "\"The cluster will not be able to respond to node failures, create new resources, move pods to new nodes\" until \"Enough etcd instances are back online to form a quorum\" (seed 000).",
    topology: MASTERS,
    sabotage: "one member keeps running, so that there is a quorum",
    expects: &[NoFailedRequest, RecoveredWithin(60_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// Longer than a lease, so that leaders must have stepped down.
const AWAY_S: u64 = 25;
const WRITE_MAX: Duration = Duration::from_secs(6);

async fn steps(stage: &Stage) -> Result<()> {
    let servers = stage.servers();
    let lost = if stage.sabotaged() { &servers[..1] } else { &servers[..2] };
    let started = starts(stage);
    stage.fault(format!("etcd stops on {}", lost.join(" and ")));
    for server in lost {
        stage.stop(server, "etcd")?;
    }
    stage.hold(3).await;
    for server in &servers {
        let read = kubectl_at(stage, server, &format!("get pods -n {NAMESPACE} --request-timeout=5s"));
        stage.check(format!("{server} answers reads"), read.is_ok(), read.map_or_else(|error| error.to_string(), |_| "so".into()));
        let began = Instant::now();
        let name = format!("written-to-{server}");
        let write = kubectl_at(stage, server, &format!("create configmap {name} -n {NAMESPACE} --request-timeout=20s"));
        let took = began.elapsed();
        let said = write.err().map_or("it was written".to_owned(), |error| error.to_string());
        let refused = said.contains("ServiceUnavailable") || said.contains("503") || said.contains("unavailable") || said.contains("quorum");
        stage.check(format!("{server} refuses writes and says why"), refused, said);
        stage.check(format!("{server} refuses them within 5 s"), took < WRITE_MAX, format!("{:.1} s", took.as_secs_f64()));
    }
    stage.hold(AWAY_S).await;
    stage.heal("etcd starts again");
    for server in lost {
        stage.start(server, "etcd")?;
    }
    all_ready(stage, 60).await?;
    stage
        .eventually("a write to succeed", 60, || async {
            let asked = stage.kubectl(&format!("create configmap after-quorum -n {NAMESPACE} --request-timeout=6s"));
            asked.map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
    // It works again: what is asked for now is made and placed.
    let replicas = stage.replicas();
    stage.scale(replicas + 1)?;
    stage.ready_pods(replicas + 1, 90).await?;
    stage.scale(replicas)?;
    stage.recovered().await?;
    let kept: Vec<String> = servers.iter().map(|server| format!("written-to-{server}")).collect();
    stage.kubectl(&format!("delete configmap -n {NAMESPACE} after-quorum {} --ignore-not-found", kept.join(" ")))?;
    let again = starts(stage);
    stage.check(
        "no API server, kubelet, proxy or DNS was restarted",
        started == again,
        if started == again { "so".into() } else { format!("{again:?}") },
    );
    Ok(())
}

/// How often what must not restart was started.
fn starts(stage: &Stage) -> Vec<(String, String, u32)> {
    let kept = ["apiserver", "kubelet", "proxy", "dns"];
    let all = stage.starts();
    all.into_iter().filter(|(_, component, _)| kept.contains(&component.as_str())).collect()
}
