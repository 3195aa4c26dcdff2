//! Calls of the API from a node, at a slow beat: reads and writes of a few objects in turn, each tried once more if it fails.

use super::{Ended, Shared, beat};
use crate::{
    limits::{API_CALL_TIMEOUT, LOOK_EVERY},
    now_ms,
    request::Way,
    workload::{NAMESPACE, api_object},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::{path::PathBuf, sync::Arc};
use tokio::time::{Instant, timeout};

/// Reads, and writes, per second.
const RATE: u32 = 4;

pub(super) async fn run(shared: Arc<Shared>, kubeconfig: PathBuf) {
    let client = match client::transport::from_kubeconfig(&kubeconfig).await {
        Ok(client) => client,
        Err(error) => {
            let ended = Ended { pod: None, attempts: 1, error: Some(error.to_string()) };
            return shared.log(Way::ApiRead, true, now_ms(), std::time::Duration::ZERO, ended).await;
        }
    };
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    tokio::join!(stream(&shared, &api, Way::ApiRead), stream(&shared, &api, Way::ApiWrite));
}

async fn stream(shared: &Arc<Shared>, api: &Api<ConfigMap>, way: Way) {
    let mut beat = beat(RATE, way as u64 * 31);
    for number in 0.. {
        tokio::select! { () = shared.stop.cancelled() => return, _ = beat.tick() => {} }
        let object = api_object(number);
        let (shared, api) = (shared.clone(), api.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let (started_ms, began) = (now_ms(), Instant::now());
            let mut ended = Ended { pod: None, attempts: 1, error: call(&api, way, &object, &shared.config.source).await.err() };
            if ended.error.is_some() {
                tokio::time::sleep(LOOK_EVERY).await;
                ended = Ended { pod: None, attempts: 2, error: call(&api, way, &object, &shared.config.source).await.err() };
            }
            shared.log(way, true, started_ms, began.elapsed(), ended).await;
        });
    }
}

async fn call(api: &Api<ConfigMap>, way: Way, object: &str, source: &str) -> Result<(), String> {
    let work = async {
        match way {
            Way::ApiWrite => {
                let patch = json!({"data": {source: now_ms().to_string()}});
                api.patch(object, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
            }
            _ => api.get(object).await.map(|_| ()),
        }
    };
    match timeout(API_CALL_TIMEOUT, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => Err(format!("status {}: {}", status.code, status.message)),
        Ok(Err(error)) => Err(root_cause(&error)),
        Err(_) => Err("no answer in time".into()),
    }
}

/// The innermost reason: the outer ones only say that a call failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
