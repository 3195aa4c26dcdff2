//! Runs drills: groups them by topology, brings sandboxes up and down, and takes each drill from workload to verdict.
//!
//! ```text
//!   for each topology: sandbox up
//!     for each drill:  all on, workload spread -> watch -> traffic, steady -> steps -> mend what is left -> as before
//!                      -> steady -> traffic ends -> figures -> checks -> verdict
//!   sandbox down
//! ```

use crate::{
    Error, Result, analysis, expectation, limits, now_ms,
    observer::Observer,
    outcome::Outcome,
    request::Way,
    scenario::{Scenario, Store, Topology},
    sources::{Plan, Sources},
    stage::{Say, Stage, as_before, finish},
    timeline::{Recorder, View},
    traffic::Target,
    workload::{self, APP, NAMESPACE, NODE_PORT},
};
use client::transport;
use sandbox::{
    cluster::Sandbox,
    plan::{Options, Role, StoreKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tokio::{task::block_in_place, time::Instant};

/// How a run is made.
pub struct Config {
    /// Where the sandbox lives while it does.
    pub directory: PathBuf,
    /// The directory of images for its registry.
    pub images: PathBuf,
    /// Where logs of requests and the drills' own files stay.
    pub logs: PathBuf,
    /// Leave the last sandbox up.
    pub keep: bool,
    /// COMPONENT=FLAG, in place of the topologies' own.
    pub set: Vec<String>,
    /// Break on purpose what each drill checks.
    pub sabotage: bool,
    /// Requests per second on each way, from all nodes together.
    pub rate: u32,
}

/// Runs the drills, until all are done or `enough` says so. Each has an outcome, whatever happens; an error is the sandbox's own.
pub async fn run(config: &Config, drills: &[&'static Scenario], say: &Say, enough: impl Fn() -> bool) -> Result<Vec<Outcome>> {
    let topologies: BTreeSet<&Topology> = drills.iter().map(|drill| &drill.topology).collect();
    let mut outcomes = Vec::new();
    let last = topologies.len().saturating_sub(1);
    for (i, topology) in topologies.into_iter().enumerate() {
        if enough() {
            break;
        }
        let sandbox = Arc::new(bring_up(config, topology, say).await?);
        for drill in drills.iter().filter(|drill| drill.topology == *topology) {
            if enough() {
                break;
            }
            let outcome = one(config, &sandbox, drill, say).await;
            let verdict = if outcome.passed() { "passed".to_owned() } else { format!("FAILED: {}", outcome.why_failed()) };
            say(&format!("{}: {verdict}", drill.name));
            outcomes.push(outcome);
        }
        if !(config.keep && i == last) {
            say("the sandbox goes down");
            let sandbox = Sandbox::open(&config.directory)?;
            block_in_place(|| sandbox.down(false))?;
        }
    }
    Ok(outcomes)
}

async fn bring_up(config: &Config, topology: &Topology, say: &Say) -> Result<Sandbox> {
    say(&format!("a sandbox comes up: {}", topology.describe(&config.set)));
    let options = Options {
        servers: topology.servers,
        workers: topology.workers,
        store: if topology.store == Store::Sqlite { StoreKind::Sqlite } else { StoreKind::Etcd },
        etcd_nodes: if topology.store == Store::ExternalEtcd { 3 } else { 0 },
        extra_flags: topology.flags(&config.set),
    };
    Ok(block_in_place(|| {
        if let Ok(old) = Sandbox::open(&config.directory)
            && serde_json::to_value(&old.options).ok() != serde_json::to_value(&options).ok()
        {
            old.down(false)?;
        }
        Sandbox::up(&config.directory, options, Some(&config.images), |_| {})
    })?)
}

/// One drill, from its workload to its outcome.
async fn one(config: &Config, sandbox: &Arc<Sandbox>, drill: &'static Scenario, say: &Say) -> Outcome {
    say(&format!("{}: {}", drill.name, drill.shows));
    let began_ms = now_ms();
    let mut outcome = Outcome {
        name: drill.name.into(),
        shows: drill.shows.into(),
        kubernetes: drill.kubernetes.into(),
        topology: drill.topology.describe(&config.set),
        sabotage: config.sabotage.then(|| drill.sabotage.into()),
        began_ms,
        ended_ms: began_ms,
        figures: analysis::Figures::default(),
        further: Vec::new(),
        checks: Vec::new(),
        error: None,
        events: Vec::new(),
        strips: BTreeMap::new(),
        failures: Vec::new(),
        reasons: BTreeMap::new(),
        dropped: 0,
    };
    let recorder = Recorder::default();
    let played = play(config, sandbox, drill, &recorder, &mut outcome, say).await;
    outcome.ended_ms = now_ms();
    let log = recorder.take_log();
    outcome.figures = analysis::figures(&log);
    outcome.error = played.err().map(|error| error.to_string());
    let judged = expectation::judge(drill.expects, &outcome.figures);
    outcome.checks.splice(0..0, judged);
    // Where this sandbox happens to live says nothing to a reader of the report.
    let place = config.directory.display().to_string();
    outcome.checks.iter_mut().for_each(|check| check.seen = check.seen.replace(&place, "SANDBOX"));
    outcome.error = outcome.error.map(|error| error.replace(&place, "SANDBOX"));
    // What was seen while the cluster was made ready is not the drill's.
    if let Some(first) = log.requests.iter().map(|request| request.started_ms).min() {
        outcome.began_ms = first;
    }
    outcome.absorb(log);
    outcome
}

async fn play(config: &Config, sandbox: &Arc<Sandbox>, drill: &Scenario, recorder: &Recorder, outcome: &mut Outcome, say: &Say) -> Result<()> {
    let directory = config.logs.join(drill.name);
    std::fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
    let workers = sandbox.nodes.iter().filter(|node| node.role == Role::Worker).count();
    let replicas = workers.max(2);
    power(sandbox)?;
    let observer = Observer::start(clients(sandbox, &directory).await?, recorder);
    prepare(sandbox, recorder, &observer, replicas, say).await?;
    let plan = plan(config, sandbox, &directory)?;
    let mut sources = Sources::new(sandbox.clone(), plan.clone(), recorder.clone(), &directory.join("requests.jsonl")).await?;
    sources.start()?;
    let stage = Stage::new(sandbox.clone(), recorder.clone(), sources, directory, replicas, config.sabotage, say.clone());
    let played = match flowing(recorder, &plan).await {
        Ok(()) => {
            recorder.forget_requests();
            tokio::time::sleep(limits::STEADY).await;
            (drill.steps)(&stage).await
        }
        Err(error) => Err(error),
    };
    let mended = stage.mend_all().await;
    let recovered = if stage.has_recovered() || played.is_err() { Ok(()) } else { stage.recovered().await };
    tokio::time::sleep(limits::STEADY).await;
    let stopped = stage.sources.lock().await.stop().await;
    (outcome.checks, outcome.further) = stage.take_notes();
    let ended = played.and(recovered).and(mended).and(stopped);
    if ended.is_ok() {
        outcome.checks.push(expectation::Check { what: "all is as before".into(), held: true, seen: "so".into() });
    }
    ended
}

/// Everything on: what an earlier drill may have left off.
fn power(sandbox: &Sandbox) -> Result<()> {
    block_in_place(|| sandbox.nodes.iter().try_for_each(|node| sandbox.start(&node.name, None)))?;
    Ok(())
}

/// The administrator's kubeconfig for each server, so that one that is down hides nothing.
async fn clients(sandbox: &Sandbox, directory: &Path) -> Result<Vec<kube::Client>> {
    let mut clients = Vec::new();
    for server in sandbox.nodes.iter().filter(|node| node.role == Role::Server) {
        let path = directory.join(format!("{}.kubeconfig", server.name));
        retarget(sandbox, &format!("https://{}:{}", server.address, sandbox::plan::API_PORT), &path)?;
        clients.push(transport::from_kubeconfig(&path).await?);
    }
    Ok(clients)
}

/// Writes the administrator's kubeconfig with another server.
fn retarget(sandbox: &Sandbox, url: &str, path: &Path) -> Result<()> {
    let admin = sandbox.kubeconfig();
    let text = std::fs::read_to_string(&admin).map_err(Error::io(format!("reading {}", admin.display())))?;
    let own = server_of(&text).ok_or_else(|| Error::Refused(format!("{} names no server", admin.display())))?;
    let file = std::os::unix::fs::OpenOptionsExt::mode(std::fs::OpenOptions::new().write(true).create(true).truncate(true), 0o600).open(path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.replace(&own, url).as_bytes()));
    written.map_err(Error::io(format!("writing {}", path.display())))
}

/// The first URL of a kubeconfig.
fn server_of(text: &str) -> Option<String> {
    let at = text.find("https://")?;
    let url: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || ":/.-[]".contains(*c)).collect();
    Some(url)
}

/// The workload on every worker, all of it ready, nothing else about.
async fn prepare(sandbox: &Sandbox, recorder: &Recorder, observer: &Observer, replicas: usize, say: &Say) -> Result<()> {
    let done = |arguments: &str, input: &str| {
        let mut command = Command::new("kubectl");
        command.args(arguments.split_whitespace()).env("KUBECONFIG", sandbox.kubeconfig());
        block_in_place(|| finish(command, input)).map(|_| ()).map_err(|error| error.to_string())
    };
    let deadline = Instant::now() + limits::READY_MAX;
    let manifest = workload::manifest(replicas);
    until(deadline, "the API server", || done("get --raw /readyz", "")).await?;
    let nodes = sandbox.nodes.iter().filter(|node| node.role.is_cluster_node()).count();
    until(deadline, "the nodes to be Ready", || {
        let view = recorder.view();
        let ready = view.nodes.values().filter(|node| node.ready == "True" && !node.cordoned && node.taints.is_empty()).count();
        if ready == nodes { Ok(()) } else { Err(format!("{ready} of {nodes} are: {}", view.describe())) }
    })
    .await?;
    until(deadline, "the workload's manifest", || done("apply -f -", &manifest)).await?;
    let synced = tokio::time::timeout(limits::READY_MAX, observer.synced()).await;
    synced.map_err(|_| Error::Refused("the API shows no pods, nodes and endpoints".into()))?;
    if !is_spread(&recorder.view(), replicas, sandbox) {
        say("the workload is made anew");
        let delete = format!("delete deployment -n {NAMESPACE} {APP} --ignore-not-found --cascade=foreground --wait --timeout=30s");
        until(deadline, "the old Deployment to go", || done(&delete, "")).await?;
        until(deadline, "the old pods to go", || {
            let view = recorder.view();
            if view.pods.is_empty() { Ok(()) } else { Err(view.describe()) }
        })
        .await?;
        until(deadline, "the workload's manifest", || done("apply -f -", &manifest)).await?;
    }
    until(deadline, "the workload to be ready", || as_before(&View::default(), &recorder.view(), replicas)).await
}

/// Whether every worker has a pod that was never restarted, as many as there should be.
fn is_spread(view: &View, replicas: usize, sandbox: &Sandbox) -> bool {
    let mut workers = sandbox.nodes.iter().filter(|node| node.role == Role::Worker);
    let pods: Vec<_> = view.ready(APP).collect();
    pods.len() == replicas && pods.iter().all(|pod| pod.restarts == 0) && workers.all(|worker| pods.iter().any(|pod| pod.node == worker.name))
}

async fn until(deadline: Instant, what: &str, mut look: impl FnMut() -> std::result::Result<(), String>) -> Result<()> {
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(last) if Instant::now() > deadline => {
                return Err(Error::TooLong { what: what.to_owned(), limit_s: limits::READY_MAX.as_secs(), last });
            }
            Err(_) => tokio::time::sleep(limits::LOOK_EVERY).await,
        }
    }
}

/// Every node asks by its own NodePort, the ClusterIP and the name; the first worker also calls the API as nodes do.
fn plan(config: &Config, sandbox: &Sandbox, directory: &Path) -> Result<Plan> {
    let mut command = Command::new("kubectl");
    command.args(["get", "service", "-n", NAMESPACE, APP, "-o", "jsonpath={.spec.clusterIP}"]).env("KUBECONFIG", sandbox.kubeconfig());
    let cluster_ip = block_in_place(|| finish(command, ""))?;
    let nodes: Vec<_> = sandbox.nodes.iter().filter(|node| node.role.is_cluster_node()).collect();
    let target = |way: Way, host: &str, port: u16| Target { way, host: host.to_owned(), port };
    let targets = nodes.iter().map(|node| {
        let all = vec![
            target(Way::NodePort, &node.address, NODE_PORT),
            target(Way::ClusterIp, cluster_ip.trim(), workload::PORT),
            target(Way::Name, &workload::dns_name(), workload::PORT),
        ];
        (node.name.clone(), all)
    });
    let targets: BTreeMap<String, Vec<Target>> = targets.collect();
    let caller = nodes.iter().find(|node| node.role == Role::Worker).ok_or_else(|| Error::Refused("a drill needs a worker".into()))?;
    let own = sandbox::plan::credentials(caller).join("kubelet.kubeconfig");
    let text = std::fs::read_to_string(&own).map_err(Error::io(format!("reading {}", own.display())))?;
    let url = server_of(&text).ok_or_else(|| Error::Refused(format!("{} names no server", own.display())))?;
    let api = directory.join("api-calls.kubeconfig");
    retarget(sandbox, &url, &api)?;
    let dns = format!("{}:53", sandbox::plan::CLUSTER_DNS);
    let rate = config.rate.div_ceil(u32::try_from(targets.len()).unwrap_or(1).max(1));
    Ok(Plan { targets, rate, dns, api: Some((caller.name.clone(), api)) })
}

/// Waits until every node has been answered on every way for a while.
async fn flowing(recorder: &Recorder, plan: &Plan) -> Result<()> {
    const ANSWERS: usize = 5;
    let deadline = Instant::now() + Duration::from_secs(30);
    until(deadline, "traffic to flow on every way", || {
        recorder.with_log(|log| {
            for (source, targets) in &plan.targets {
                for target in targets {
                    let last = log.requests.iter().rev().filter(|r| r.source == *source && r.way == target.way && !r.kept).take(ANSWERS);
                    let last: Vec<_> = last.collect();
                    if last.len() < ANSWERS || last.iter().any(|request| !request.ok()) {
                        let why = last.iter().find_map(|request| request.error.clone()).unwrap_or_else(|| "no answer yet".into());
                        return Err(format!("{source}, {}: {why}", target.way.title()));
                    }
                }
            }
            Ok(())
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_names_its_server() {
        assert_eq!(server_of("clusters:\n- cluster:\n    server: https://172.30.0.11:6443\n"), Some("https://172.30.0.11:6443".into()));
        assert_eq!(server_of(r#"{"server":"https://10.0.0.1:6443","x":1}"#), Some("https://10.0.0.1:6443".into()));
        assert_eq!(server_of("nothing"), None);
    }
}
