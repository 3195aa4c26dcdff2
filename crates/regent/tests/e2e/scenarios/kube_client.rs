//! An unchanged `kube`, the Rust client, over the cluster: create, read, watch, patch, apply, delete, exec, logs.

use crate::{
    Outcome,
    cluster::{Cluster, PATIENCE_S, expect},
};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config, Error,
    api::{AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        conditions::is_pod_running,
        wait::await_condition,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt::Display, path::Path, time::Duration};
use tokio::io::AsyncReadExt;

fn text(error: impl Display) -> String {
    error.to_string()
}

fn typed<K: DeserializeOwned>(object: Value) -> Result<K, String> {
    serde_json::from_value(object).map_err(text)
}

pub fn drives(cluster: &Cluster, namespace: &str) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(text)?;
    runtime.block_on(async {
        let file = Kubeconfig::read_from(Path::new(cluster.kubeconfig())).map_err(text)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(text)?;
        let client = Client::try_from(config).map_err(text)?;
        let all = async {
            objects(Api::namespaced(client.clone(), namespace)).await?;
            pods(Api::namespaced(client, namespace)).await
        };
        tokio::time::timeout(Duration::from_secs(2 * PATIENCE_S), all).await.map_err(|_| "the client was not done in time".to_string())?
    })
}

async fn objects(api: Api<ConfigMap>) -> Outcome {
    let labelled = "app=kube";
    let object =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube", "labels": {"app": "kube"}}, "data": data});
    let made = api.create(&PostParams::default(), &typed(object(json!({"a": "1"})))?).await.map_err(text)?;
    let mut events = watcher::watcher(api.clone(), watcher::Config::default().labels(labelled).streaming_lists()).boxed();
    // The watch begins with what is there, and says when that is all.
    let mut there = Vec::new();
    while let Some(event) = events.try_next().await.map_err(text)? {
        match event {
            Event::InitApply(object) => there.push(object),
            Event::InitDone => break,
            _ => {}
        }
    }
    expect(there.first() == Some(&made) && there.len() == 1, format!("a watch begins with {there:?}"))?;

    let merged = api.patch("kube", &PatchParams::default(), &Patch::Merge(json!({"data": {"b": "2"}}))).await.map_err(text)?;
    let applied = PatchParams::apply("one");
    let conflict = api.patch("kube", &applied, &Patch::Apply(object(json!({"a": "3"})))).await;
    let conflict = conflict.err().ok_or("what another manager set must not be taken without force")?;
    expect(matches!(&conflict, Error::Api(status) if status.code == 409 && status.reason == "Conflict"), format!("a conflict: {conflict}"))?;
    let forced = api.patch("kube", &applied.force(), &Patch::Apply(object(json!({"a": "3"})))).await.map_err(text)?;
    let data = forced.data.unwrap_or_default();
    expect(data.get("a").is_some_and(|a| a == "3") && data.get("b").is_some_and(|b| b == "2"), format!("an apply merges: {data:?}"))?;
    let stale = api.replace("kube", &PostParams::default(), &merged).await.err().ok_or("an update of an old version must be refused")?;
    expect(matches!(&stale, Error::Api(status) if status.code == 409), format!("a stale update: {stale}"))?;
    expect(api.list(&ListParams::default().labels(labelled)).await.map_err(text)?.items.len() == 1, "a list by label has it")?;
    api.delete("kube", &DeleteParams::default()).await.map_err(text)?;

    let mut versions = Vec::new();
    while let Some(event) = events.try_next().await.map_err(text)? {
        match event {
            Event::Apply(object) => versions.push(object.data.unwrap_or_default()),
            Event::Delete(_) => break,
            other => return Err(format!("the watch must go on, not {other:?}")),
        }
    }
    expect(versions == [merged.data.unwrap_or_default(), data], format!("the watch saw each change once: {versions:?}"))
}

async fn pods(api: Api<Pod>) -> Outcome {
    let script = "echo begun; trap exit TERM; sleep 3600 & wait";
    let container = json!({"name": "main", "image": "busybox:1.35", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube"}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}});
    api.create(&PostParams::default(), &typed(pod)?).await.map_err(text)?;
    await_condition(api.clone(), "kube", is_pod_running()).await.map_err(text)?;

    let mut attached = api.exec("kube", ["sh", "-c", "echo said; echo wrong >&2; exit 3"], &AttachParams::default()).await.map_err(text)?;
    let (mut said, mut wrong) = (String::new(), String::new());
    let (mut output, mut errors) = (attached.stdout().ok_or("no stdout")?, attached.stderr().ok_or("no stderr")?);
    let status = attached.take_status().ok_or("no status")?;
    tokio::try_join!(output.read_to_string(&mut said), errors.read_to_string(&mut wrong)).map_err(text)?;
    let status = status.await.ok_or("a command ends with a status")?;
    expect(said == "said\n" && wrong == "wrong\n", format!("exec said {said:?} and {wrong:?}"))?;
    let code = status.details.unwrap_or_default().causes.unwrap_or_default().into_iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    expect(code.is_some_and(|cause| cause.message.as_deref() == Some("3")), "the status has the exit code")?;
    expect(api.logs("kube", &LogParams::default()).await.map_err(text)? == "begun\n", "the log has what was said")
}
