//! A cluster of three masters with thousands of objects is brought back to a snapshot by one command, while it runs.

use super::{MASTERS, masters, snapshots};
use crate::{Error, Result, expectation::Expectation::NoFailedRequest, scenario::Scenario, stage::Stage, workload::NAMESPACE};
use client::transport;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use std::{collections::BTreeSet, path::Path, time::Duration};
use tokio::time::Instant;

pub const SCENARIO: Scenario = Scenario {
    name: "masters-restored",
    shows: "One command brings a running cluster of three masters with 5,000 objects back to a snapshot: the same objects with the same UIDs on every server, and applications never notice.",
    kubernetes: "\"stop the etcd service, remove the current db content and restore from the backup\", on every master (seed 004).",
    topology: MASTERS,
    sabotage: "the store is not restored",
    expects: &[NoFailedRequest],
    steps: |stage| Box::pin(steps(stage)),
};

const OBJECTS: usize = 5_000;
const RESTORED_MAX: Duration = Duration::from_secs(30);
/// Objects that are written at once.
const WRITERS: usize = 16;
const LABEL: &str = "drill=restored";

async fn steps(stage: &Stage) -> Result<()> {
    let api = objects(&stage.sandbox.kubeconfig()).await?;
    stage.step(format!("{OBJECTS} objects are made"));
    let written = stream::iter(0..OBJECTS).map(|number| create(&api, format!("restored-{number}"))).buffer_unordered(WRITERS);
    let uids: BTreeSet<String> = written.try_collect().await?;
    let file = snapshots::save(stage)?;
    stage.fault("all of them are deleted, and another one is made");
    remove(&api).await?;
    let late = create(&api, "late".into()).await?;
    let began = Instant::now();
    if !stage.sabotaged() {
        snapshots::bring_back(stage, &file)?;
    }
    for server in stage.servers() {
        let own = objects(&masters::kubeconfig(stage, &server)).await?;
        stage
            .eventually(&format!("{server} to have the objects of the snapshot"), RESTORED_MAX.as_secs(), || async {
                let there = uids_of(&own).await.map_err(|error| error.to_string())?;
                let (lost, more) = (uids.difference(&there).count(), there.difference(&uids).count());
                if lost + more == 0 { Ok(()) } else { Err(format!("{lost} are missing, {more} are not of the snapshot")) }
            })
            .await?;
    }
    let took = began.elapsed();
    stage.heal("every server has what was saved");
    let seen = format!("{:.1} s", took.as_secs_f64());
    stage.check(format!("the same {OBJECTS} objects by UID on every server within {} s", RESTORED_MAX.as_secs()), took <= RESTORED_MAX, &*seen);
    stage.check("what was made since is gone", !uids_of(&api).await?.contains(&late), "so");
    stage.figure(format!("restore of {OBJECTS} objects on three servers"), seen);
    remove(&api).await?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}

async fn objects(kubeconfig: &Path) -> Result<Api<ConfigMap>> {
    Ok(Api::namespaced(transport::from_kubeconfig(kubeconfig).await?, NAMESPACE))
}

/// Makes an object; a second attempt may find what the first one made. Its UID.
async fn create(api: &Api<ConfigMap>, name: String) -> Result<String> {
    let (key, value) = LABEL.split_once('=').unwrap_or_default();
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.clone());
    object.metadata.labels = Some([(key.to_owned(), value.to_owned())].into());
    object.data = Some([("text".to_owned(), "x".repeat(500))].into());
    let made = match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) => Err(kube::Error::Api(status)),
        Err(_) => match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await,
            again => again,
        },
        made => made,
    };
    Ok(made.map_err(|error| Error::Refused(format!("making an object: {error}")))?.metadata.uid.unwrap_or_default())
}

async fn remove(api: &Api<ConfigMap>) -> Result<()> {
    let removed = api.delete_collection(&DeleteParams::default(), &ListParams::default().labels(LABEL)).await;
    removed.map(|_| ()).map_err(|error| Error::Refused(format!("removing the objects: {error}")))
}

async fn uids_of(api: &Api<ConfigMap>) -> Result<BTreeSet<String>> {
    let listed = api.list_metadata(&ListParams::default().labels(LABEL)).await.map_err(|error| Error::Refused(format!("listing: {error}")))?;
    Ok(listed.items.into_iter().filter_map(|object| object.metadata.uid).collect())
}
