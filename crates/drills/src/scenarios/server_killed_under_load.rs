//! The API server is killed again and again while many clients write: what was acknowledged is there.

use super::{SERVER, SINGLE};
use crate::{Error, Result, expectation::Expectation::NoFailedRequest, scenario::Scenario, stage::Stage, workload::NAMESPACE};
use client::transport;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use std::{collections::BTreeSet, sync::Arc};
use tokio::{
    task::JoinSet,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

pub const SCENARIO: Scenario = Scenario {
    name: "server-killed-under-load",
    shows: "An API server that is killed (SIGKILL) while many clients write loses nothing that it acknowledged, and is back within seconds.",
    kubernetes: "The same, as etcd syncs before it answers.",
    topology: SINGLE,
    sabotage: "one acknowledged object is deleted behind the drill's back",
    expects: &[NoFailedRequest],
    steps: |stage| Box::pin(steps(stage)),
};

const WRITERS: usize = 8;
const KILLS: usize = 3;
/// A write that is not answered in this time counts as not acknowledged.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
const LABEL: &str = "drill=written-under-load";

async fn steps(stage: &Stage) -> Result<()> {
    let api = objects(stage).await?;
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    let acknowledged: Arc<parking_lot::Mutex<BTreeSet<String>>> = Arc::default();
    for writer in 0..WRITERS {
        writers.spawn(write(api.clone(), writer, acknowledged.clone(), stop.clone()));
    }
    let killed = kill(stage).await;
    stop.cancel();
    while writers.join_next().await.is_some() {}
    killed?;
    let acknowledged = std::mem::take(&mut *acknowledged.lock());
    if stage.sabotaged()
        && let Some(one) = acknowledged.first()
    {
        stage.kubectl(&format!("delete configmap -n {NAMESPACE} {one}"))?;
    }
    let listed =
        api.list(&ListParams::default().labels(LABEL)).await.map_err(|error| Error::Refused(format!("listing what was written: {error}")))?;
    let there: BTreeSet<String> = listed.items.into_iter().filter_map(|object| object.metadata.name).collect();
    let lost: Vec<&String> = acknowledged.difference(&there).collect();
    stage.figure("writes acknowledged", acknowledged.len().to_string());
    stage.check("writers were busy", acknowledged.len() > 50, format!("{} writes were acknowledged", acknowledged.len()));
    stage.check("nothing acknowledged is lost", lost.is_empty(), format!("{} of {} are lost: {:?}", lost.len(), acknowledged.len(), lost.first()));
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels(LABEL))
        .await
        .map_err(|error| Error::Refused(format!("removing what was written: {error}")))?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}

async fn objects(stage: &Stage) -> Result<Api<ConfigMap>> {
    Ok(Api::namespaced(transport::from_kubeconfig(&stage.sandbox.kubeconfig()).await?, NAMESPACE))
}

async fn kill(stage: &Stage) -> Result<()> {
    for _ in 0..KILLS {
        stage.hold(2).await;
        stage.fault("the API server is killed");
        stage.kill(SERVER, "apiserver")?;
        stage.start(SERVER, "apiserver")?;
        stage.heal("and started");
        let began = tokio::time::Instant::now();
        stage.api_ready(30).await?;
        stage.figure("from its start to ready", format!("{:.1} s", began.elapsed().as_secs_f64()));
    }
    stage.hold(1).await;
    Ok(())
}

async fn write(api: Api<ConfigMap>, writer: usize, acknowledged: Arc<parking_lot::Mutex<BTreeSet<String>>>, stop: CancellationToken) {
    let (key, value) = LABEL.split_once('=').unwrap_or_default();
    for i in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("load-{writer}-{i}");
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.clone());
        object.metadata.labels = Some([(key.to_owned(), value.to_owned())].into());
        match timeout(WRITE_TIMEOUT, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => drop(acknowledged.lock().insert(name)),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
