//! The only server is lost for good, a worker with a copy of its store becomes the server, and the old one comes back.

use super::{RECOVERABLE, SERVER};
use crate::{
    Error, Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
    workload::{APP, NAMESPACE},
};
use std::time::Instant;

pub const SCENARIO: Scenario = Scenario {
    name: "recover-on-another-node",
    shows: "The only master is lost; a worker becomes the server with what was written a moment before, and the old master steps down when it returns, before it writes anything.",
    kubernetes: "restore the newest etcd snapshot on a new machine: what was written since is lost, and nothing fences the old one (seed 004).",
    topology: RECOVERABLE,
    sabotage: "the copy is removed before it is needed",
    expects: &[NoFailedRequest, RecoveredWithin(120_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// Which worker becomes the server.
const HEIR: &str = "worker-1";
/// Where a node's copy is.
const COPY: &str = "/var/lib/regent/node/store-copy";
const PORT: u16 = 6443;

fn url(stage: &Stage, node: &str) -> Result<String> {
    Ok(format!("https://{}:{PORT}", stage.address(node)?))
}

fn kubectl_at(stage: &Stage, server: &str, arguments: &str) -> Result<String> {
    stage.kubectl(&format!("--server={server} --request-timeout=5s {arguments}"))
}

/// Waits until these nodes have everything on their disks that the server has.
async fn copies_whole(stage: &Stage, server: &str, nodes: &[&str]) -> Result<()> {
    let whole = |text: &str, node: &str| {
        let all: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
        all.iter().any(|copied| copied["node"] == node && copied["changesBehind"] == 0)
    };
    stage
        .eventually(&format!("whole copies on {}", nodes.join(", ")), 60, || async {
            let text = kubectl_at(stage, server, "get --raw /regent/v1/store-copy/status").map_err(|error| error.to_string())?;
            if nodes.iter().all(|node| whole(&text, node)) { Ok(()) } else { Err(text) }
        })
        .await
}

/// UID and restarts of the workload's pods, as this server says.
fn pods(stage: &Stage, server: &str) -> Result<String> {
    let path = "{range.items[*]}{.metadata.uid}:{.status.containerStatuses[0].restartCount},{end}";
    let text = kubectl_at(stage, server, &format!("get pods -n {NAMESPACE} -l app={APP} -o jsonpath={path}"))?;
    let mut all: Vec<&str> = text.split(',').filter(|pod| !pod.is_empty()).collect();
    all.sort_unstable();
    Ok(all.join(" "))
}

async fn steps(stage: &Stage) -> Result<()> {
    let (old, new) = (url(stage, SERVER)?, url(stage, HEIR)?);
    let data = stage.disk(HEIR)?.join("taken-over");
    stage.on_node(HEIR, &format!("rm -rf {}", data.display()))?;
    stage.step("the copies have everything");
    copies_whole(stage, &old, &[HEIR, "worker-2"]).await?;
    let began = Instant::now();
    stage.kubectl(&format!("create configmap -n {NAMESPACE} newest --from-literal=written=last"))?;
    copies_whole(stage, &old, &[HEIR, "worker-2"]).await?;
    stage.figure("the newest write on two disks after", format!("{} ms at most", began.elapsed().as_millis()));
    let before = pods(stage, &old)?;

    stage.fault("the only master is lost");
    stage.power_off(SERVER)?;
    stage.hold(12).await;
    if stage.sabotaged() {
        stage.on_node(HEIR, &format!("rm -rf {COPY}"))?;
    }
    stage.step(format!("regent server --recover on {HEIR}"));
    let began = Instant::now();
    let address = stage.address(HEIR)?;
    let flags = format!("--disable=agent --data-dir={} --recover-from={COPY} --advertise-address={address}", data.display());
    // The nodes may take some seconds more to be sure that no server answers.
    let group =
        stage.spawn_on(HEIR, &format!("for i in 1 2 3 4 5 6; do {{regent}} server --recover {flags} && break; sleep 2; done"), "recovered")?;
    let outcome = taken_over(stage, &old, &new, &before, began).await;
    let back = if outcome.is_ok() { back(stage, &new, &group).await } else { Ok(()) };
    stage.end_on(HEIR, &group)?;
    outcome.and(back)?;
    stage.on_node(HEIR, &format!("rm -rf {}", data.display()))?;
    stage.kubectl(&format!("delete configmap -n {NAMESPACE} newest after --ignore-not-found"))?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}

/// What must be so when the worker is the server, and when the old one returns.
async fn taken_over(stage: &Stage, old: &str, new: &str, before: &str, began: Instant) -> Result<()> {
    stage
        .eventually("the new server to be ready", 90, || async {
            kubectl_at(stage, new, "get --raw /readyz")
                .map(|_| ())
                .map_err(|error| format!("{error}; {}", stage.log_tail(HEIR, "recovered", 5).unwrap_or_default()))
        })
        .await?;
    stage.figure("a server again after", format!("{:.1} s", began.elapsed().as_secs_f64()));
    let newest = kubectl_at(stage, new, &format!("get configmap -n {NAMESPACE} newest -o jsonpath={{.data.written}}"))?;
    stage.check("what was written last is there", newest == "last", newest);
    let renewals = || -> Result<Vec<String>> {
        let path = "jsonpath={.spec.renewTime}";
        stage.workers().iter().map(|worker| kubectl_at(stage, new, &format!("get lease -n kube-node-lease {worker} -o {path}"))).collect()
    };
    let first = renewals()?;
    stage
        .eventually("the workers to report to it", 60, || async {
            let now = renewals().map_err(|error| error.to_string())?;
            if now.iter().zip(&first).all(|(now, first)| now != first) { Ok(()) } else { Err(now.join(", ")) }
        })
        .await?;
    let now = pods(stage, new)?;
    stage.check("the new server knows the same pods, none was restarted", now == before, format!("{before}, now {now}"));
    kubectl_at(stage, new, &format!("create configmap -n {NAMESPACE} after --from-literal=written=since"))?;

    stage.step("the old master is powered on");
    stage.power_on(SERVER).await?;
    stage
        .eventually("the old server to step down", 60, || async {
            let log = stage.log_tail(SERVER, "apiserver", 40).map_err(|error| error.to_string())?;
            if log.contains("has stepped down") { Ok(()) } else { Err(log) }
        })
        .await?;
    let served = kubectl_at(stage, old, "get --raw /readyz");
    stage.check("the old server serves nobody", served.is_err(), served.unwrap_or_default());
    Ok(())
}

/// The way back, by the same means: the old master's node gets a copy, and its server takes over.
async fn back(stage: &Stage, new: &str, group: &str) -> Result<()> {
    copies_whole(stage, new, &[SERVER, "worker-2"]).await?;
    stage.step("the server moves back");
    stage.stop(SERVER, "apiserver")?;
    stage.end_on(HEIR, group)?;
    let disk = stage.disk(SERVER)?;
    let flags = [
        format!("--data-dir={}", disk.display()),
        format!("--pki-dir={}", disk.join("pki").display()),
        format!("--advertise-address={}", stage.address(SERVER)?),
        format!("--from={COPY}"),
    ];
    stage
        .eventually("the old master's machine to take over", 60, || async {
            let mut arguments = vec!["store", "recover"];
            arguments.extend(flags.iter().map(String::as_str));
            stage.regent_on(SERVER, &arguments).map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
    stage.heal("the API server is started where it was");
    stage.start(SERVER, "apiserver")?;
    stage.api_ready(60).await?;
    let since = stage.kubectl(&format!("get configmap -n {NAMESPACE} after -o jsonpath={{.data.written}}"))?;
    if since != "since" {
        return Err(Error::Refused(format!("what was written on the other server did not come back: {since:?}")));
    }
    Ok(())
}
